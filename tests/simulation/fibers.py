"""Code that blocks, on the virtual clock: each such piece runs on a stack of its own (a greenlet).

Whoever lets a `Fiber` run stands still until the fiber waits or has ended. So there is one order of everything, and the
same seed gives the same run. What a fiber waits for is a handle of its process's loop (`pause`, or a socket's), so a
process that hangs hangs with all of its threads, and one that ends takes them along.

`BlockingLoop` is the loop of a process in which the loop itself may block, as a worker's does while it recovers.
"""

from __future__ import annotations

import contextlib
import sys
from asyncio import AbstractEventLoop, Task, events, tasks
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, NamedTuple

from greenlet import greenlet

from tests.simulation.disk import Crashed
from tests.simulation.loop import Handle, SimLoop
from tests.simulation.machine import SimCommitter
from tests.simulation.wires import NetLoop


class Running(NamedTuple):
    """What asyncio takes for running on this thread: a loop, and since Python 3.14 a task of it, whichever the loop."""

    loop: AbstractEventLoop | None = None
    task: Task[Any] | None = None

    @classmethod
    def taken(cls) -> Running:
        """It, and from now on nothing runs."""
        loop, task = events._get_running_loop(), None
        if sys.version_info >= (3, 14) and loop is not None:
            task = tasks._swap_current_task(loop, None)
        events._set_running_loop(None)
        return cls(loop, task)

    def given(self) -> None:
        """This runs again."""
        events._set_running_loop(self.loop)
        if sys.version_info >= (3, 14) and self.loop is not None:
            tasks._swap_current_task(self.loop, self.task)


class Fiber:
    """One thread of a process."""

    current: ClassVar[Fiber | None] = None  # that runs now; None: what runs is no fiber

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.is_busy = False
        self._is_dead = False
        self._stack: greenlet | None = None  # while it is busy
        self._running = Running()  # on it, while it waits

    def run(self, job: Callable[[], None]) -> None:
        """Begins this, and returns once it has ended or waits. Raises what it raises until then."""
        assert not self.is_busy, "a thread does one thing after the other"
        if self._is_dead:
            raise Crashed("a process that is no more")
        self.is_busy = True
        self._stack = greenlet(job)
        self._switch()

    def resume(self) -> None:
        """Lets it go on, until it has ended or waits again. Raises what it raises until then."""
        if self.is_busy:
            self._switch()

    def wait(self) -> None:
        """On its own stack: until `resume`. Raises Crashed where its process has ended meanwhile."""
        if not self._is_dead:
            assert self._stack is not None
            assert self._stack.parent is not None, "it was switched to"
            self._stack.parent.switch()
        if self._is_dead:
            raise Crashed("a process that is no more")

    def kill(self) -> None:
        """Its process is no more."""
        if self._is_dead:
            return
        self._is_dead = True
        if Fiber.current is self or not self.is_busy:
            return  # what it is at ends with it
        with contextlib.suppress(BaseException):  # what a dead process would have said
            self._switch()

    def _switch(self) -> None:
        stack = self._stack
        assert stack is not None
        previous, Fiber.current = Fiber.current, self
        stack.parent = greenlet.getcurrent()  # where it goes on once this waits, or has ended, and what it raises
        outside = Running.taken()
        self._running.given()
        try:
            stack.switch()
        finally:
            self._running = Running.taken()
            outside.given()
            Fiber.current = previous
            if stack.dead:
                self.is_busy, self._stack = False, None


def waken(fiber: Fiber, in_ns: int, function: Callable[..., None], *arguments: Any) -> Handle:
    """Lets a function happen on the loop of the fiber's process, also while that is blocked: it may resume it."""
    handle = fiber.loop.call_in(in_ns, function, *arguments)
    handle.wakes = True
    return handle


def running() -> Fiber:
    """The fiber that this runs on."""
    fiber = Fiber.current
    assert fiber is not None, "only code on a thread of its own may block"
    return fiber


def pause(seconds: float) -> None:
    """Lets virtual time pass."""
    fiber = running()
    waken(fiber, int(seconds * 1e9), fiber.resume)
    fiber.wait()


class BlockingLoop(NetLoop):
    """The loop of a process; what happens on it may block as long as `may_block`."""

    def __init__(self, kernel: Any, name: str, net: Any) -> None:
        super().__init__(kernel, name, net)
        self.may_block = False
        self.node = ""  # of the host
        self.dial: Callable[[Callable[[], Any], str, int], Coroutine[Any, Any, None]] | None = None  # another machine
        self.fibers: list[Fiber] = []
        self._fiber: Fiber | None = None

    async def create_connection(self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
        if sock is not None:
            return await super().create_connection(protocol_factory, *args, sock=sock, **kwargs)
        assert self.dial is not None
        await self.dial(protocol_factory, *args)
        return None, None

    def fiber(self) -> Fiber:
        """A new thread of this process."""
        self.fibers.append(fiber := Fiber(self))
        return fiber

    def do(self, handle: Handle) -> None:
        if handle.wakes or not self.may_block:
            handle.run()
            if self._fiber is not None:
                self.is_blocked = self._fiber.is_busy
            return
        if self._fiber is None:
            self._fiber = self.fiber()
        try:
            self._fiber.run(partial(self._on_fiber, handle))
        finally:
            self.is_blocked = self._fiber.is_busy

    def _on_fiber(self, handle: Handle) -> None:
        events._set_running_loop(self)
        handle.run()

    def die(self) -> None:
        self.dead = True
        for fiber in self.fibers:
            fiber.kill()
        self.parked.clear()
        super().die()


class BlockingCommitter(SimCommitter):
    """See `shards.system.serial_executor.SerialExecutor`: what it does may block its thread."""

    def __init__(self, name: str, loop: BlockingLoop, machine: Any) -> None:
        super().__init__(name, loop, machine)
        self._fiber = loop.fiber()

    def _run(self) -> None:
        if self._waiting:
            self._fiber.run(partial(self._do, *self._waiting.popleft()[:3]))

    def close(self) -> None:
        """What it was asked for goes on, as long as the process is there."""
