"""A worker process from its first message to its last.

The supervisor spawns it (never forks) with one inherited socket, the control wire, and the sockets it is to listen on.
What is said over the control wire stands in `shards.control`. The process goes through two phases, and each takes what
the supervisor says in its own way:

    Begin ──> Recovering ──Recovered──> … Serve ──> Serving ──> Stop
              shards.worker.recovering              shards.worker.serving

A shard that the map has never seen serve (`founded` is false) makes its buckets when it is served first.

When the control wire closes, the supervisor is gone: the worker answers what is in flight, and ends. SIGUSR1 asks a
worker that serves for a snapshot now.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable

import uvloop

from shards.control import Begin, Failed, Figures, ReadFigures, Serve, Stop, ToWorker, to_worker
from shards.exits import Exit
from shards.system.host import REAL, Host
from shards.system.links import Wire
from shards.worker.gc_policy import GcPolicy
from shards.worker.histogram import Pulse
from shards.worker.hosting import Hosted
from shards.worker.recover import Stopped, exit_code_of
from shards.worker.recovering import Recovering
from shards.worker.serving import Serving
from shards.worker.worker import Worker

LEAVE_POLL_S, LEAVE_POLLS = 0.05, 20  # a worker that failed stays for a second until the supervisor has heard why
LOAD_AFTER_S = 0.5  # a worker that nobody needs yet loads what it will need
SWITCH_INTERVAL_S = 0.0002  # the journal's thread, back from the journal, must not wait 5 ms for a busy loop


class Process:
    """One worker process."""

    def __init__(
        self,
        control: socket.socket,
        build: Callable[[Begin], Hosted],
        host: Host = REAL,
        gc_policy: GcPolicy | None = None,
        load: Callable[[], None] | None = None,
    ) -> None:
        """`gc_policy` where this object has a process to itself. `load` loads what is loaded on demand otherwise."""
        self._host = host
        self._gc_policy = gc_policy
        self._control = control
        self._build = build
        self._load = load
        self._messages: asyncio.Queue[Begin | Serve | Stop] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._wire: Wire | None = None
        self._pulse: Pulse | None = None
        self._early: list[ToWorker] = []  # came behind Begin, before it was begun
        self._recovering: Recovering | None = None
        self._serving: Serving | None = None

    @property
    def worker(self) -> Worker | None:
        """What serves the shard; None before it does, and once nothing changes the shard any more."""
        return None if self._serving is None or self._serving.closed else self._serving.worker

    async def run(self) -> int:
        """Runs until told to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # the terminal's ^C: the supervisor decides
            loop.add_signal_handler(number, lambda: None)
        _, wire = await loop.create_connection(
            lambda: Wire(self._on_message, self._on_control_lost, lambda _: None, to_worker), sock=self._control
        )
        self._wire = wire
        self._pulse = Pulse(self._host.clocks.boot_ns)
        life, ended = loop.create_task(self._live(wire)), loop.create_task(self._ended.wait())
        await asyncio.wait({life, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not life.done():
            self._messages.put_nowait(Stop())
            await asyncio.wait({life}, timeout=60)
        try:
            await life
        except BaseException as error:
            self._fail(error)
        ended.cancel()
        self._pulse.close()
        if self._exit_code:
            await asyncio.sleep(2 * LEAVE_POLL_S * LEAVE_POLLS)  # `_leave` ends the process before
        wire.close()
        await asyncio.sleep(0)
        return self._exit_code

    async def _live(self, wire: Wire) -> None:
        begin = await self._first()
        if not isinstance(begin, Begin):
            return
        recovering = self._recovering = Recovering(begin, self._build(begin), self._host, wire.send)
        for message in self._early:
            recovering.on_message(message)
        if self._gc_policy is not None:
            self._gc_policy.hold_off()
        try:
            await recovering.run(self._ended)
        except Stopped:
            recovering.journal.close()
            return
        if not isinstance(await recovering.beats.until(self._messages.get), Serve):
            recovering.journal.close()
            return
        await self._serve(recovering, wire)

    async def _first(self) -> Begin | Serve | Stop:
        """The first message. On a host that stands by it may take days."""
        if self._load is not None:
            try:
                return await asyncio.wait_for(self._messages.get(), LOAD_AFTER_S)
            except TimeoutError:
                self._load()
        return await self._messages.get()

    async def _serve(self, recovering: Recovering, wire: Wire) -> None:
        shard_id = recovering.begin.shard_id
        executor = self._host.executor(f"journal-{shard_id}", asyncio.get_running_loop())
        if not recovering.has_grant():  # nothing is stamped before the journal has granted time
            await executor.call(recovering.journal.idle_barrier)
        serving = self._serving = Serving(recovering, executor, self._host, wire, self._fail)
        serving.begin()
        await serving.open(lambda: self._exit_code != 0)
        if self._gc_policy is not None:
            self._gc_policy.settle()
        while not isinstance(await self._messages.get(), Stop):
            continue
        await serving.close()

    def _on_message(self, wire: Wire, message: ToWorker) -> None:
        match message:
            case Begin():
                self._messages.put_nowait(message)
            case Stop():
                self._messages.put_nowait(message)
                self._ended.set()
            case ReadFigures():
                wire.send(Figures.of(message.number, self._figures()))
            case _ if self._serving is not None and not self._serving.closed:
                self._serving.on_message(message)
            case _ if self._recovering is not None:
                self._recovering.on_message(message)
                if isinstance(message, Serve):
                    self._messages.put_nowait(message)
            case _:
                self._early.append(message)

    def _figures(self) -> dict[str, object]:
        pulse = {} if self._pulse is None else self._pulse.figures()
        if self._serving is None or self._serving.closed:
            return pulse
        collected = {} if self._gc_policy is None else self._gc_policy.figures()
        return {**pulse, **collected, **self._serving.figures()}

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _on_control_lost(self, wire: Wire) -> None:
        self._ended.set()

    def _fail(self, error: BaseException) -> None:
        """Ends the process with the exit code that the error asks for; no result is answered any more."""
        if self._exit_code:
            return
        application = None if self._recovering is None else self._recovering.application
        self._exit_code = exit_code_of(error, application)
        if self.worker is not None:
            self.worker.halt(error)
        if self._wire is not None:
            self._wire.send(Failed(self._exit_code, f"{type(error).__name__}: {error}"))
            self._wire.part()
        self._ended.set()
        loop = asyncio.get_running_loop()
        if self._exit_code == Exit.BUG:
            loop.call_exception_handler({"message": "the worker ends on a bug", "exception": error})
        # Not by an orderly shutdown, which would answer what is not durable: the journal knows.
        loop.call_soon(loop.call_later, LEAVE_POLL_S, self._leave, LEAVE_POLLS)  # what was sent above leaves first

    def _leave(self, polls: int) -> None:
        if polls and self._wire is not None and self._wire.is_parting:
            asyncio.get_running_loop().call_later(LEAVE_POLL_S, self._leave, polls - 1)
        else:
            self._host.exit(self._exit_code)


def run(control_descriptor: int, build: Callable[[Begin], Hosted], load: Callable[[], None]) -> int:
    """The main function of a worker process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    control = REAL.inherited(control_descriptor)
    control.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Process(control, build, gc_policy=GcPolicy(REAL.clocks.boot_ns), load=load).run())
