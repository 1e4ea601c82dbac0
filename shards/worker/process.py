"""A worker process from its first message to its last: recover, serve, drain.

The supervisor spawns it (never forks) with one inherited socket, the control wire, and the sockets it is to listen on.
What is said over the control wire stands in `shards.control`.

**Recovery**: open the journal (which fences an older owner), load the newest good snapshot, replay what came after it
through the same code that made it, compare what this shard then holds with what the map says it owns, and stop with 65
where they differ: a shard restored from an older backup, or emptied, is not served. Only then are clocks, timers and
sockets touched. A shard that the map has never seen serve (`founded` is false) makes its buckets.

When the control wire closes, the supervisor is gone: the worker answers what is in flight, and ends. SIGUSR1 asks a
worker for a snapshot now.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, assert_never

import uvloop

from shards import backup
from shards.buckets import BucketMap
from shards.control import (
    Answer,
    Ask,
    Begin,
    Configure,
    Cut,
    Examine,
    Examined,
    Failed,
    Figures,
    HoldFiles,
    MoveAbort,
    MoveIn,
    MoveOut,
    NewAnchor,
    NewOwner,
    Obstacle,
    Progress,
    Proved,
    Query,
    ReadFigures,
    ReadObstacle,
    Recovered,
    Serve,
    Serving,
    ShardsChanged,
    Stop,
    ToWorker,
    Waiting,
    WorkerSettings,
    to_worker,
)
from shards.exits import Exit
from shards.journal import Journal, Unavailable, backends
from shards.machine import Command
from shards.moves.handoff import before_serving
from shards.shard import Shard
from shards.system.clock import BillingClock, boot_now_ns
from shards.system.host import REAL, Host
from shards.system.links import Wire
from shards.system.serial_executor import SerialExecutor
from shards.worker.gc_policy import Garbage
from shards.worker.histogram import Pulse
from shards.worker.hosting import Hosted
from shards.worker.recover import Beats, Stopped, check_ownership, exit_code_of, open_journal, recover
from shards.worker.snapshotter import Snapshotter
from shards.worker.worker import Worker
from shards.worker.worker_queries import Inquirer

LINK_POLL_S, LINK_POLLS = 0.005, 200  # "serving" waits a second for the links; a peer that is held never comes
LEAVE_POLL_S, LEAVE_POLLS = 0.05, 20  # a worker that failed stays for a second until the supervisor has heard why
FAULTS_MAX = 100  # of an examination, told
SWITCH_INTERVAL_S = 0.0002  # the committer's thread, back from the journal, must not wait 5 ms for a busy loop


class Process:
    """One worker process."""

    def __init__(
        self,
        control: socket.socket,
        build: Callable[[Begin], Hosted],
        host: Host = REAL,
        garbage: Garbage | None = None,
    ) -> None:
        """`garbage` where this object has a process to itself."""
        self._host = host
        self._garbage = garbage
        self._control = control
        self._build = build
        self._wire: Wire | None = None
        self._messages: asyncio.Queue[Begin | Serve | Stop] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._asked: dict[int, tuple[Any, Any]] = {}
        self._number = 0
        self._clock: BillingClock | None = None
        self._worker: Worker | None = None
        self._begin: Begin | None = None
        self._settings: WorkerSettings | None = None  # the newest
        self._map: BucketMap | None = None
        self._proved: set[int] = set()  # shards that hold what the map says
        self._open_links: Callable[[], None] = lambda: None
        self._application: Hosted | None = None
        self._inquirer: Inquirer | None = None
        self._pulse: Pulse | None = None
        self._examining: set[asyncio.Task[None]] = set()

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
        self._pulse = Pulse()
        begin_task, ended_task = loop.create_task(self._serve()), loop.create_task(self._ended.wait())
        await asyncio.wait({begin_task, ended_task}, return_when=asyncio.FIRST_COMPLETED)
        if not begin_task.done():
            self._messages.put_nowait(Stop())
            await asyncio.wait({begin_task}, timeout=60)
        try:
            await begin_task
        except BaseException as error:
            self._fail(error)
        ended_task.cancel()
        self._pulse.close()
        if self._exit_code:
            await asyncio.sleep(2 * LEAVE_POLL_S * LEAVE_POLLS)  # `_leave` ends the process before
        wire.close()
        await asyncio.sleep(0)
        return self._exit_code

    def _fail(self, error: BaseException) -> None:
        """Ends the process with the exit code that the error asks for; no result is answered any more."""
        if self._exit_code:
            return
        self._exit_code = exit_code_of(error, self._application)
        if self._worker is not None:
            self._worker.halt(error)
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

    def _begin_snapshot(self) -> None:
        assert self._worker is not None
        self._worker.snapshotter.begin()
        self._worker.wake()

    def _on_control_lost(self, wire: Wire) -> None:
        self._ended.set()

    def _on_message(self, wire: Wire, message: ToWorker) -> None:
        worker, application = self._worker, self._application
        match message:
            case Begin():  # at once: what comes behind it may say what has changed since
                self._begin, self._settings = message, message.settings
                self._map = BucketMap.decode(message.bucket_map)
                self._proved.update(message.proved)
                self._messages.put_nowait(message)
            case Serve():
                self._messages.put_nowait(message)
            case Stop():
                self._messages.put_nowait(message)
                self._ended.set()
            case NewAnchor():
                if self._clock is not None:
                    self._clock.follow(message.anchor)
                if worker is not None:
                    worker.follow_clock()
            case ShardsChanged():
                self._learn_shards(message)
            case Configure():
                self._configure(message)
            case Proved():
                self._proved.add(message.shard_id)
                if worker is not None:
                    worker.handoff.proved(self._proved)
            case Answer():
                asked = self._asked.pop(message.number, None)
                if asked is not None and worker is not None and application is not None:
                    worker.reply(asked[0], asked[1], application.reply_of(message.reply))
            case MoveOut() | MoveIn() | MoveAbort() | NewOwner():
                if worker is not None:
                    worker.handoff.on_message(message)
                else:
                    before_serving(message, self._map, wire.send)
            case HoldFiles() | Cut():
                if worker is not None:
                    backup.on_message(worker, message, wire.send)
            case ReadFigures():
                wire.send(Figures(message.number, self._figures()))
            case ReadObstacle():
                text = "it is starting" if application is None or worker is None else application.obstacle()
                wire.send(Obstacle(message.number, text))
            case Query():
                if worker is not None and self._inquirer is not None:
                    self._inquirer.ask(worker, message.number, message.key, message.query)
            case Examine():
                task = asyncio.get_running_loop().create_task(self._examine(wire, message.number))
                self._examining.add(task)
                task.add_done_callback(self._examining.discard)
            case _:
                assert_never(message)

    def _learn_shards(self, changed: ShardsChanged) -> None:
        """Other shards than before: the map knows them, and there is a link to each."""
        assert self._begin is not None
        assert self._map is not None
        for record in changed.records:
            self._map.apply(record)
        for known, told in ((self._begin.peers, changed.peers), (self._begin.direct, changed.direct)):
            known.clear()
            known.update(told)
        self._open_links()

    def _configure(self, changed: Configure) -> None:
        """The configuration has changed, in what may change while it serves."""
        assert self._begin is not None
        self._settings = changed.settings
        if self._worker is not None:
            self._worker.settings = changed.settings
        if self._application is not None:
            self._application.configure(changed.configuration)

    async def _examine(self, wire: Wire, number: int) -> None:
        """What this shard holds, and whether each bucket's content agrees with itself; one bucket at a time."""
        worker, application = self._worker, self._application
        faults: list[str] = []
        if worker is None or application is None:
            return
        for bucket_id in list(worker.shard.held):
            if bucket_id in worker.shard.held:
                try:
                    application.examine(bucket_id)
                except AssertionError as error:
                    faults.append(f"bucket {bucket_id}: {error}")
            await asyncio.sleep(0)
        wire.send(Examined(number, list(worker.shard.held.items()), faults[:FAULTS_MAX]))

    def _ask(self, caller: Any, token: Any, operation: Command) -> None:
        assert self._wire is not None
        self._number += 1
        self._asked[self._number] = (caller, token)
        self._wire.send(Ask(self._number, operation))

    def _figures(self) -> dict[str, Any]:
        worker, application = self._worker, self._application
        pulse = {} if self._pulse is None else self._pulse.figures()
        if worker is None or application is None:
            return pulse
        snapshotter = worker.snapshotter
        return {
            **pulse,
            **({} if self._garbage is None else self._garbage.figures()),
            **worker.syncs.figures(),
            "no_room": worker.shortage.reason,
            "buckets": len(worker.shard.held),
            "journal_bytes": worker.journal.stored_bytes,
            "garbage": len(worker.shard.chores),
            "passed_on": sum(link.passed_on for link in worker.links.values()),
            "snapshots": snapshotter.count,
            "snapshot_age_ns": boot_now_ns() - snapshotter.finished_boot_ns if snapshotter.count else -1,
            "snapshot_pause_max_ns": snapshotter.pause_max_ns,
            **application.figures(),
        }

    async def _serve(self) -> None:
        if not isinstance(await self._messages.get(), Begin):
            return
        begin, bucket_map, wire = self._begin, self._map, self._wire
        assert begin is not None
        assert bucket_map is not None
        assert wire is not None
        loop, host = asyncio.get_running_loop(), self._host
        journal = backends.open(begin.journal, host).journal(begin.shard_id, self._stamp_ns)
        application = self._application = self._build(begin)
        shard = Shard(begin.shard_id, application.machine)
        if self._garbage is not None:
            self._garbage.hold_off()
        began_ns = boot_now_ns()
        try:
            opened = await open_journal(journal, begin.shard_id, host.pid(), self._ended, self._on_wait)
            beats = Beats(journal)

            def progress(done: int, total: int) -> None:
                wire.send(Progress(done, total))
                beats.due()

            recovered = await recover(shard, journal, progress, self._ended)
        except Stopped:
            journal.close()
            return
        is_new = opened.head == 0 and not begin.founded
        check_ownership(shard, bucket_map, begin.founded, is_new)
        took_ns = boot_now_ns() - began_ns
        last_ns = max(journal.last_time_ns, opened.began_ns)
        wire.send(Recovered(last_ns, took_ns, *recovered, list(journal.warnings)))

        message = await beats.until(self._messages.get)
        if not isinstance(message, Serve):
            journal.close()
            return
        self._clock = BillingClock(message.anchors[0], last_ns)
        for anchor in message.anchors[1:]:
            self._clock.follow(anchor)
        executor = host.executor(f"journal-{begin.shard_id}", loop)
        snapshotter = Snapshotter(
            shard, journal, host.executor(f"snapshot-{begin.shard_id}", loop), application.trim_floor, self._fail
        )
        snapshotter.stored_bytes = journal.stored_bytes
        if journal.granted_ns <= self._stamp_ns():
            await executor.call(journal.idle_barrier)  # nothing is stamped before the journal has granted time
        worker = self._worker = Worker(
            shard,
            journal,
            executor,
            self._clock,
            bucket_map,
            application,
            self._settings or begin.settings,
            snapshotter,
            self._ask,
            wire.send,
            self._fail,
            host.alarm(),
        )
        worker.begin_beats()
        loop.add_signal_handler(signal.SIGUSR1, self._begin_snapshot)
        worker.route = lambda operation: application.route(operation, worker.map)
        orphans = check_ownership(shard, bucket_map, begin.founded, is_new)  # moves may have been decided meanwhile
        shard.serve(worker.now_ns(), orphans)
        worker.handoff.proved(self._proved)
        if is_new:
            for bucket_id, generation in bucket_map.ownership_of(begin.shard_id).items():
                shard.adopt(bucket_id, generation)
        ready = shard.take_ready()
        if ready is not None:
            if ready.payload:
                await executor.call(journal.append, ready.payload, ready.decides)
            shard.synced(ready)
        sockets = host.sockets(f"{begin.directory}/run")
        server = await loop.create_unix_server(worker.peer_wire, sock=sockets.listen(begin.peers[begin.shard_id]))
        self._open_links = lambda: worker.open_links(
            {shard_id: sockets.address(name) for shard_id, name in begin.peers.items()}
        )
        self._open_links()
        listeners = [(kind, host.inherited(descriptor)) for kind, descriptor in begin.listeners]
        await application.open(worker, listeners)
        worker.halted = self._exit_code != 0
        worker.wake()
        self._inquirer = Inquirer(wire, application.encode, application.surveys)
        for _ in range(LINK_POLLS):
            if worker.is_linked():
                break
            await asyncio.sleep(LINK_POLL_S)
        wire.send(Serving(host.pid(), application.figures().get("accounts", 0)))
        if self._garbage is not None:
            self._garbage.settle()
        worker.wake()

        while not isinstance(await self._messages.get(), Stop):
            continue
        await application.stop_listening()
        await worker.quiesce()
        await application.close()
        server.close()
        self._worker = None  # nothing changes the shard any more: no peer, no move, no call
        worker.close()
        await worker.quiesce()  # what came in between
        snapshotter.close()
        if wire.is_open:
            await self._snapshot(worker, journal, executor, application.trim_floor)
        await executor.call(journal.close)
        executor.close()
        sockets.close()

    async def _snapshot(
        self, worker: Worker, journal: Journal, executor: SerialExecutor, trim_floor: Callable[[], int]
    ) -> None:
        """A clean stop leaves a snapshot, so that a new version starts from state and not from old commands."""
        shard, position = worker.shard, journal.head
        parts = (shard.dump(bucket_id, position) for bucket_id in sorted(shard.present()))
        with contextlib.suppress(Unavailable):  # no room: the journal alone is enough
            await executor.call(journal.save_snapshot, position, parts)
            await executor.call(journal.trim, min(position, trim_floor()))

    def _on_wait(self, full: Unavailable) -> None:
        """The journal has no room for a start, or is out of reach."""
        if self._wire is not None:
            self._wire.send(Waiting(str(full)))

    def _stamp_ns(self) -> int:
        return self._clock.at(boot_now_ns()) if self._clock is not None else 0


def run(control_descriptor: int, build: Callable[[Begin], Hosted]) -> int:
    """The main function of a worker process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    control = REAL.inherited(control_descriptor)
    control.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Process(control, build, garbage=Garbage()).run())
