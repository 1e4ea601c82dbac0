"""The machine: processes that run the daemon's real code on simulated loops, disks and threads, and how they end.

A process is `shards.worker.process.Process` or `shards.supervisor.supervisor.Supervisor`, given a `Host` of this
machine. It ends by itself, is killed between any two things that happen, or at any call of its disk; a
loss of power ends all of them and takes what was not synced.

The executor's thread is a queue: a job begins after a while, is done at once, and is reported after another while, so
a process can end before a write, in the middle of it, or after it and before anybody hears of it. A job that takes from
a queue (a snapshot its parts) begins when all of them are there.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from shards.system.clock import Clocks
from shards.system.host import Host
from shards.system.serial_executor import SerialExecutor
from tests.simulation.disk import Crashed, Medium, SimDisk
from tests.simulation.loop import Kernel, SimAlarm, SimLoop
from tests.simulation.wires import Net, NetLoop, SimSocket, SimSocketDirectory, Stream

EXIT_KILLED = -9


class SimQueue:
    """A queue that only a job reads, once it was ended."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self.ended = False
        self.on_end: Callable[[], None] = lambda: None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if not isinstance(item, bytes):
            self.ended = True
            self.on_end()

    def get(self) -> Any:
        return self._items.popleft()

    def qsize(self) -> int:
        return 0


class SimCommitter(SerialExecutor):
    """See `shards.system.serial_executor.SerialExecutor`; `call` is its own."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, machine: Machine) -> None:
        assert isinstance(loop, SimLoop)
        self._loop: SimLoop = loop
        self._machine = machine
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._gate: SimQueue | None = None
        self._busy = False

    def submit(self, done: Any, function: Callable[..., Any], *arguments: Any) -> None:
        gate, self._gate = self._gate, None
        self._waiting.append((done, function, arguments, gate))
        if gate is not None:
            gate.on_end = self._next
        self._next()

    def queue(self) -> Any:
        self._gate = SimQueue()
        return self._gate

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        gate = self._waiting[0][3]
        if gate is None or gate.ended:
            self._busy = True
            self._loop.call_in(self._machine.disk_ns(), self._run)

    def _run(self) -> None:
        if self._waiting:  # else close did it
            self._do(*self._waiting.popleft()[:3])

    def _do(self, done: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            result, error = function(*arguments), None
        except Crashed:
            raise
        except BaseException as caught:
            result, error = None, caught
        self._busy = False
        self._loop.call_in(self._machine.disk_ns(), done, result, error)
        self._next()

    def close(self) -> None:
        while self._waiting:
            self._run()


class SimProcess:
    """A running process."""

    def __init__(self, machine: Machine, name: str, pid: int) -> None:
        self.machine = machine
        self.name = name
        self.pid = pid
        self.loop = machine.loop_of(name)
        self.rng = random.Random(machine.rng.getrandbits(64))
        self.disk = SimDisk(machine.medium, self.rng)
        self.disk.on_sync = machine.on_sync
        self.doomed = False  # its disk was told to end it
        self.exit_code: int | None = None
        self.on_end: list[Callable[[int], None]] = []

    def host(self) -> Host:
        """The operating system as this process has it."""
        machine, loop = self.machine, self.loop
        return Host(
            clocks=machine.clocks,
            disk=self.disk,
            executor=lambda name, _: machine.executor_of(name, loop),
            alarm=lambda: SimAlarm(loop, self.rng, lambda boot_ns: machine.on_alarm(self, boot_ns), machine.true_ns),  # type: ignore[arg-type,return-value]
            sockets=lambda path: SimSocketDirectory(machine.net, path),  # type: ignore[arg-type,return-value]
            spawn=machine.spawn,
            exit=self._exit,
            inherited=machine.net.of_number,  # type: ignore[arg-type]
            pid=lambda: self.pid,
            randbits=self.rng.getrandbits,
            bind=machine.bind,
        )

    def _exit(self, code: int) -> NoReturn:
        self.machine.end(self, code)
        raise Crashed("it has left")

    def run(self, main: Any) -> None:
        """Starts its main function, a coroutine that returns the exit code."""

        def on_main_done(task: asyncio.Task[int]) -> None:
            if self.loop.dead or task.cancelled():
                return
            error = task.exception()
            if error is None:
                self.machine.end(self, task.result())
            elif not isinstance(error, Crashed):
                self.machine.failures.append((self.name, error))
                self.machine.end(self, 70)

        self.loop.create_task(main).add_done_callback(on_main_done)

    # -- as shards.system.host.Child -----------------------------------------------------------------------------------

    async def wait(self) -> int:
        if self.exit_code is None:
            future = asyncio.get_running_loop().create_future()
            self.on_end.append(lambda code: None if future.done() else future.set_result(code))
            return int(await future)
        return self.exit_code

    def terminate(self) -> None:
        """Every process here hears its wire from its first step on, which says the same."""

    def kill(self) -> None:
        self.machine.end(self, EXIT_KILLED)


class Machine:
    """One host: its clock, disk, sockets and processes."""

    true_ns: Callable[[int], int] | None = None  # when a boot instant is, where its clock is not the kernel's

    def __init__(
        self, rng: random.Random, on_sync: Callable[[str, Any], None], kernel: Kernel | None = None, pid: int = 100
    ) -> None:
        """`kernel`: of all machines of a world, if there are others; `pid`: that no process here has, nor a lower."""
        self.rng = rng
        self.kernel = Kernel(random.Random(rng.getrandbits(64))) if kernel is None else kernel
        self.clocks = Clocks(self.kernel.boot_ns, self.kernel.wall_ns)
        self.kernel.on_crash = self.on_crash
        self.net = Net(self.kernel, random.Random(rng.getrandbits(64)))
        self.medium = Medium()
        self.on_sync = on_sync
        self.processes: dict[SimLoop, SimProcess] = {}
        self.failures: list[tuple[str, BaseException]] = []  # what ended a main function
        self.start_worker: Callable[[SimProcess, SimSocket], Any] = lambda process, control: None
        self.next_fault: dict[str, tuple[int, str]] = {}  # for the next process of that name: at which call, what
        self.next_fired = 0
        self.on_control: Callable[[SimProcess, Stream], None] = lambda process, stream: None  # a new control wire
        self.on_alarm: Callable[[SimProcess, int], None] = lambda process, boot_ns: None  # it is set for that instant
        self.on_power: Callable[[], None] = lambda: None  # everything has ended
        self.slow_disk = False
        self.slow_share = 0.05  # of its jobs, where it is slow
        self._disk_rng = random.Random(rng.getrandbits(64))
        self._pid = pid
        self._boots = self.medium.boots

    def loop_of(self, name: str) -> NetLoop:
        """The loop of a new process."""
        return NetLoop(self.kernel, name, self.net)  # type: ignore[abstract]  # of asyncio's loop what we use

    def executor_of(self, name: str, loop: NetLoop) -> SerialExecutor:
        """A new thread of a process."""
        return SimCommitter(name, loop, self)

    def bind(self, host: str, port: int, backlog: int) -> Any:
        """`shards.system.host.bind_tcp`: only machines that have others beside them are reached over TCP."""
        raise OSError(f"nobody is beside this machine, and {host}:{port} is not bound")

    def disk_ns(self) -> int:
        """How long half a job of the disk takes."""
        rng = self._disk_rng
        if self.slow_disk and rng.random() < self.slow_share:
            return rng.randrange(30_000_000)
        return 20_000 + rng.randrange(80_000)

    def start(self, name: str) -> SimProcess:
        """A new process, which does nothing yet."""
        self._pid += 1
        process = SimProcess(self, name, self._pid)
        self.processes[process.loop] = process
        return process

    async def spawn(self, command: list[str], inherited: list[Any]) -> tuple[Any, Any]:
        """`shards.system.host.spawn`: the first word of the command names the process."""
        near_stream, far_stream = self.net.pair()
        await asyncio.sleep(0)
        process = self.start(command[0])
        assert far_stream.end is not None
        assert near_stream.end is not None
        starter = asyncio.get_running_loop()
        assert isinstance(starter, SimLoop)
        self.net.hold(near_stream.end, starter)
        self.on_control(process, far_stream.end.stream)
        process.run(self.start_worker(process, far_stream))
        return process, near_stream

    def end(self, process: SimProcess, code: int) -> None:
        """The process is no more, and whoever waits for it hears of it."""
        if process.exit_code is not None:
            return
        process.exit_code = code
        self.next_fired += process.doomed and process.disk.fired > 0
        del self.processes[process.loop]
        process.disk.kill()
        process.loop.die()
        self.net.died(process.loop)
        for on_end in process.on_end:
            on_end(code)

    def on_crash(self, loop: SimLoop) -> None:
        """A call of the disk ended the process: alone, or with all others, where it was a loss of power."""
        if self.medium.boots != self._boots:
            self._after_power()
        elif loop in self.processes:
            self.end(self.processes[loop], EXIT_KILLED)

    def lose_power(self) -> None:
        """Everything ends now, and what was not synced is at the mercy of chance."""
        self.medium.lose_power(self._disk_rng)
        self._after_power()

    def _after_power(self) -> None:
        self._boots = self.medium.boots
        for process in list(self.processes.values()):
            self.end(process, EXIT_KILLED)
        self.on_power()
        self.booted()

    def booted(self) -> None:
        """A new boot has begun."""
        self.kernel.booted_ns = self.kernel.now_ns
