"""One machine's time and turn: every simulated process is an event loop, and all of them run on one virtual clock.

`Kernel` holds what is to happen, in order of instants, and does one thing after the other; a thing takes no time but
what the clock is read for (`tick`). `SimLoop` is the event loop that one process sees; when the process ends, `dead` is
set and nothing of it happens any more. Sockets are in `tests.simulation.wires`.

The same seed gives the same run: nothing here asks the operating system for anything, and what is ready at the same
instant happens in the order in which it was asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from asyncio import events
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from shards.system.clock import INSTANT_NS_MAX
from tests.simulation.disk import Crashed

SECOND_NS = 1_000_000_000
UNWINDINGS_MAX = 10  # of a coroutine: each time it may wait for something in a `finally`
_EMPTY = contextvars.Context()


class Handle:
    """Something that is to happen in a process, as asyncio's own: it can be cancelled."""

    __slots__ = ("_arguments", "_cancelled", "_context", "_function", "is_timer", "loop", "wakes", "when_ns")

    def __init__(
        self, loop: SimLoop, when_ns: int, function: Callable[..., Any], arguments: tuple[Any, ...], context: Any
    ) -> None:
        self.loop = loop
        self.when_ns = when_ns
        self._function: Callable[..., Any] | None = function
        self._arguments = arguments
        self._context = context
        self._cancelled = False
        self.is_timer = False
        self.wakes = False  # code that blocks: it happens although the loop is blocked

    def cancel(self) -> None:
        self._cancelled = True
        self._function = None
        self._arguments = ()

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self.when_ns / SECOND_NS

    def run(self) -> None:
        if self._function is None:
            return
        function, self._function = self._function, None
        if self._context is None:
            function(*self._arguments)
        else:
            self._context.run(function, *self._arguments)


class Kernel:
    """What happens next on the machine."""

    def __init__(self, rng: random.Random) -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS  # true time since the epoch
        self.booted_ns = self.now_ns - SECOND_NS
        self.wall_offset_ns = 0  # what the wall clock is wrong by
        self.steps = 0
        self.troubles: list[str] = []  # what nobody handled
        self.on_crash: Callable[[SimLoop], None] = lambda loop: None
        self._cpu = rng
        self._heap: list[tuple[int, int, Handle]] = []
        self._ready: deque[Handle] = deque()
        self._sequence = 0

    # -- clocks -----------------------------------------------------------------------------------------------------

    def boot_ns(self) -> int:
        """The boot clock. To read it takes time: a moment as a rule, sometimes long enough for others to come first."""
        self.now_ns += 300 if self._cpu.random() < 0.995 else self._cpu.randrange(3_000_000)
        return self.now_ns - self.booted_ns

    def wall_ns(self) -> int:
        """The wall clock."""
        return self.now_ns + self.wall_offset_ns

    # -- what is to happen ------------------------------------------------------------------------------------------

    def soon(self, handle: Handle) -> None:
        self._ready.append(handle)

    def at(self, handle: Handle) -> None:
        self._sequence += 1
        heappush(self._heap, (handle.when_ns, self._sequence, handle))

    def run(self, is_over: Callable[[], bool], limit_ns: int) -> bool:
        """Lets things happen until it is so; False where `limit_ns` of true time came first, or nothing is left."""
        ready, heap = self._ready, self._heap
        current: SimLoop | None = None
        try:
            while not is_over():
                if not ready:
                    if not heap or self.now_ns > limit_ns:
                        return False
                    when_ns, _, handle = heappop(heap)
                    self.now_ns = max(self.now_ns, when_ns)
                else:
                    handle = ready.popleft()
                loop = handle.loop
                if loop.dead or handle.cancelled():
                    continue
                if loop.hung_until_ns > self.now_ns:  # it does nothing now, and all of it later, in order
                    handle.when_ns = loop.hung_until_ns + loop.timers_late_ns * handle.is_timer
                    self.at(handle)
                    continue
                if loop.is_blocked and not handle.wakes:
                    loop.parked.append(handle)
                    continue
                self.steps += 1
                if loop is not current:
                    current = loop
                    events._set_running_loop(loop)
                try:
                    loop.do(handle)
                except Crashed:
                    self.on_crash(loop)
                except Exception as error:
                    loop.call_exception_handler({"message": "an exception in a callback", "exception": error})
                if loop.parked and not loop.is_blocked:
                    ready.extend(loop.parked)
                    loop.parked.clear()
                while heap and heap[0][0] <= self.now_ns:
                    ready.append(heappop(heap)[2])
        finally:
            events._set_running_loop(None)
        return True


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one process."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.dead = False
        self.hung_until_ns = 0
        self.timers_late_ns = 0  # after it hung: one that waited for its sockets hears them first
        self.on_trouble: Callable[[dict[str, Any]], None] | None = None
        self.is_blocked = False  # what runs on it waits, and nothing else can (`tests.simulation.fibers`)
        self.parked: list[Handle] = []  # what is to happen once it is not
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._readers: dict[int, Callable[[], None]] = {}

    def do(self, handle: Handle) -> None:
        """It is time for this to happen."""
        handle.run()

    # -- time and turn ----------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.kernel.now_ns / SECOND_NS

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(self, 0, callback, args, context)
        if not self.dead:
            self.kernel.soon(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self._timer(int(delay * SECOND_NS), callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self._timer(int(when * SECOND_NS) - self.kernel.now_ns, callback, *args, context=context)

    def _timer(self, delay_ns: int, callback: Any, *args: Any, context: Any) -> Handle:
        handle = self.call_in(delay_ns, callback, *args, context=context)
        handle.is_timer = True
        return handle

    def call_in(self, delay_ns: int, callback: Any, *args: Any, context: Any = None) -> Handle:
        """After so many nanoseconds."""
        when_ns = min(self.kernel.now_ns + max(delay_ns, 0), INSTANT_NS_MAX)
        handle = Handle(self, when_ns, callback, args, context)
        if not self.dead:
            self.kernel.at(handle)
        return handle

    # -- tasks ------------------------------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and isinstance(task.exception(), Crashed):
            self.kernel.on_crash(self)

    def die(self) -> None:
        """Nothing of this process happens any more; its coroutines are unwound, in order, and can do nothing."""
        self.dead = True
        tasks, self._tasks = list(self._tasks), {}
        self._readers.clear()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            for _ in range(UNWINDINGS_MAX if coroutine is not None else 0):
                try:
                    coroutine.close()
                    break
                except BaseException:  # what a dead process would have said; or it waits in a `finally`, once more
                    continue

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead and not isinstance(context.get("exception"), Crashed):
            if self.on_trouble is not None:
                self.on_trouble(context)
            else:
                self.kernel.troubles.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    # -- the operating system ---------------------------------------------------------------------------------------

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Signals are not simulated: a process is told to stop over its control wire, or killed."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        self._readers[fd] = callback

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """Tells whoever reads this descriptor."""
        callback = self._readers.get(fd)
        if callback is not None:
            callback()


class SimAlarm:
    """`shards.system.clock.Alarm` on the virtual clock: rings at the boot instant or a little after, never before."""

    _next_fd = 1000

    def __init__(
        self,
        loop: SimLoop,
        rng: random.Random,
        on_arm: Callable[[int], None],
        true_ns: Callable[[int], int] | None = None,
    ) -> None:
        """`true_ns`: when a boot instant of this machine is; by the kernel's own boot clock, if none is given."""
        self._loop = loop
        self._true_ns = true_ns
        self._on_arm = on_arm
        self._rng = rng
        SimAlarm._next_fd += 1
        self._fd = SimAlarm._next_fd
        self._handle: Handle | None = None
        self._rung = False
        self.armed_ns = -1

    def fileno(self) -> int:
        return self._fd

    def arm(self, boot_ns: int) -> None:
        if boot_ns == self.armed_ns:
            return
        if self._handle is not None:
            self._handle.cancel()
        self.armed_ns = boot_ns
        self._on_arm(boot_ns)
        kernel = self._loop.kernel
        late_ns = self._rng.randrange(50_000)
        rings_ns = boot_ns + kernel.booted_ns if self._true_ns is None else self._true_ns(boot_ns)
        self._handle = self._loop.call_in(rings_ns - kernel.now_ns + late_ns, self._ring)

    def _ring(self) -> None:
        self._rung = True
        self._loop.readable(self._fd)

    def disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._rung = False
        self.armed_ns = -1

    def acknowledge(self) -> bool:
        rung, self._rung = self._rung, False
        if rung:
            self.armed_ns = -1
        return rung

    def close(self) -> None:
        self.disarm()
