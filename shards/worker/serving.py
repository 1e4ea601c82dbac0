"""A worker's second phase: from the first instant of billing time to its orderly end.

    open     the worker is made around the recovered shard; what it owes the journal from its birth is appended; then
             links to the other workers, and the application's doors
    serve    until told to stop, answering what the supervisor says
    close    no new requests; what is in flight is answered; a last snapshot, so that a new version starts from state
             and not from old commands; then the journal is closed, for which another host may be waiting: whoever
             follows the journal ends beside that

Where the process fails in between, none of `close` is done: it would answer what is not durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any

from shards.control import (
    Answer,
    AskShard,
    Configure,
    Cut,
    Examine,
    Examined,
    Held,
    HoldFiles,
    MoveAbort,
    MoveIn,
    MoveOut,
    NewAnchor,
    NewOwner,
    Obstacle,
    PassAsk,
    PassOn,
    Proved,
    Query,
    ReadObstacle,
    ShardsChanged,
    ToWorker,
)
from shards.control import Serving as NowServing
from shards.journal import Unavailable
from shards.machine import Command
from shards.system.host import Host
from shards.system.links import SocketDirectory, Wire
from shards.system.serial_executor import SerialExecutor
from shards.worker.asks import Asks
from shards.worker.far_links import FarLinks
from shards.worker.holds import Holds
from shards.worker.recover import check_ownership
from shards.worker.recovering import Recovering
from shards.worker.router import PeerCaller
from shards.worker.snapshotter import Snapshotter
from shards.worker.worker import Upward, Worker
from shards.worker.worker_queries import QueryCaller

REPLAYED_MAX = 10_000  # records; a takeover that had more to replay leaves a snapshot behind
LINK_POLL_S, LINK_POLLS = 0.005, 200  # NowServing waits a second for the links; a peer that is held never comes
FAULTS_MAX = 100  # of an examination, told


class Serving:
    """The service of one recovered shard."""

    def __init__(
        self,
        recovered: Recovering,
        executor: SerialExecutor,
        host: Host,
        wire: Wire,
        fail: Callable[[BaseException], None],
    ) -> None:
        """To be called on the loop of the process. `executor` is that of the journal, which has granted time."""
        assert recovered.clock is not None
        begin, journal, application = recovered.begin, recovered.journal, recovered.application
        self._recovered = recovered
        self._application = application
        self._host = host
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self.executor = executor
        snapshots = host.executor(f"snapshot-{begin.shard_id}", self._loop)
        boot_ns = host.clocks.boot_ns
        snapshotter = Snapshotter(recovered.shard, journal, snapshots, application.trim_floor, fail, boot_ns)
        snapshotter.stored_bytes = journal.stored_bytes
        upward = Upward(self._ask, wire.send, fail)
        self.worker = Worker(recovered, executor, snapshotter, upward, host.alarm(), boot_ns)
        self._holds = Holds(self.worker)
        self.worker.on_step = self._holds.on_step
        self.closed = False  # nothing changes the shard any more
        self._asks = Asks(wire.send, self._pass_back)
        self._query_caller: QueryCaller | None = None  # once the doors are open
        self._sockets: SocketDirectory | None = None
        self._server: asyncio.AbstractServer | None = None
        self._far: FarLinks | None = None  # where other hosts serve, too
        self._examining: set[asyncio.Task[None]] = set()

    # -- the beginning ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begins to serve the shard at the present billing instant."""
        recovered, worker, shard = self._recovered, self.worker, self._recovered.shard
        worker.begin_beats()
        self._loop.add_signal_handler(signal.SIGUSR1, self._begin_snapshot)
        # Once more: moves may have been decided since the recovery.
        orphans = check_ownership(shard, recovered.map, recovered.begin.founded, recovered.is_new)
        shard.serve(worker.now_ns(), orphans)
        worker.handoff.proved(recovered.proved)
        if recovered.is_new:
            for bucket_id, generation in recovered.map.ownership_of(shard.shard_id).items():
                shard.adopt(bucket_id, generation)

    async def open(self, has_failed: Callable[[], bool]) -> None:
        """Accepts peers and clients, and reports it."""
        recovered, worker, host = self._recovered, self.worker, self._host
        begin, journal, shard = recovered.begin, recovered.journal, recovered.shard
        ready = shard.take_ready()
        if ready is not None:
            if ready.payload:
                await self.executor.call(journal.append, ready.payload, ready.decides)
            shard.synced(ready)
        self._sockets = host.sockets(f"{begin.directory}/run")
        listener = self._sockets.listen(begin.peers[begin.shard_id])
        self._server = await self._loop.create_unix_server(worker.peer_wire, sock=listener)
        far_address = await self._open_far()
        self._open_links()
        listeners = [(kind, host.inherited(descriptor)) for kind, descriptor in begin.listeners]
        await self._application.open(worker, listeners)
        worker.halted = has_failed()
        worker.wake()
        application = self._application
        self._query_caller = QueryCaller(self._wire, application.encode, application.surveys, application.query_mode)
        for _ in range(LINK_POLLS):
            if worker.is_linked():
                break
            await asyncio.sleep(LINK_POLL_S)
        self._wire.send(NowServing(host.pid(), self._application.figures().get("accounts", 0), far_address))
        if recovered.records > REPLAYED_MAX and journal.beat_s:  # the next host that takes it over need not replay them
            worker.snapshotter.begin()
        worker.wake()

    def _open_links(self) -> None:
        if self._sockets is not None:
            begin, address = self._recovered.begin, self._sockets.address
            near = {shard_id: address(name) for shard_id, name in begin.peers.items()}
            self.worker.open_links(near, begin.far, None if self._far is None else self._far.dial)

    async def _open_far(self) -> str:
        """Accepts workers of other hosts; returns the address at which they reach this one, or ""."""
        links = self._recovered.begin.links
        if links is None:
            return ""
        self._far = FarLinks(links, self._recovered.begin.shard_id, self._host)
        return await self._far.listen(self.worker.peer_wire)

    def _begin_snapshot(self) -> None:
        self.worker.snapshotter.begin()
        self.worker.wake()

    # -- what the supervisor says -------------------------------------------------------------------------------------

    def on_message(self, message: ToWorker) -> None:
        """Takes messages of the supervisor while the shard is served."""
        worker, application = self.worker, self._application
        match message:
            case NewAnchor():
                worker.clock.follow(message.anchor)
                worker.follow_clock()
            case ShardsChanged():
                self._recovered.learn_shards(message)
                self._open_links()
            case Configure():
                worker.settings = message.settings
                application.configure(message.configuration)
            case Proved():
                self._recovered.proved.add(message.shard_id)
                worker.handoff.proved(self._recovered.proved)
            case Held():
                if (link := worker.links.get(message.shard_id)) is not None:
                    link.held = message.reason
            case Answer():
                self._asks.on_answer(message)
            case PassOn():
                worker.far_moves.pass_on(message)
                worker.wake()
            case PassAsk():
                worker.far_moves.pass_ask(message)
                worker.wake()
            case MoveOut() | MoveIn() | MoveAbort() | NewOwner():
                worker.handoff.on_message(message)
            case HoldFiles() | Cut() | AskShard():
                self._holds.on_message(message, self._wire.send)
            case ReadObstacle():
                self._wire.send(Obstacle(message.number, worker.obstacle() or application.obstacle()))
            case Query():
                if self._query_caller is not None:
                    self._query_caller.ask(worker, message.number, message.key, message.query)
            case Examine():
                task = self._loop.create_task(self._examine(message.number))
                self._examining.add(task)
                task.add_done_callback(self._examining.discard)
            case _:
                return

    async def _examine(self, number: int) -> None:
        """Reports which buckets this shard holds, and whether the content of each is consistent, one bucket at
        a time.
        """
        held = self._recovered.shard.held
        faults: list[str] = []
        for bucket_id in list(held):
            if bucket_id in held:
                try:
                    self._application.examine(bucket_id)
                except AssertionError as error:
                    faults.append(f"bucket {bucket_id}: {error}")
            await asyncio.sleep(0)
        self._wire.send(Examined(number, list(held.items()), faults[:FAULTS_MAX]))

    def _ask(self, caller: Any, token: Any, operation: Command) -> None:
        self._asks.ask(caller, token, operation)

    def _pass_back(self, caller: Any, token: Any, reply: object) -> None:
        is_peer = isinstance(caller, PeerCaller)
        self.worker.pass_back(caller, token, reply if is_peer else self._application.reply_of(reply))

    def figures(self) -> dict[str, Any]:
        """Counters of this shard for operators."""
        worker, medium = self.worker, self.worker.journal.medium
        snapshotter = worker.snapshotter
        return {
            **worker.syncs.figures(),
            "no_room": worker.backpressure.reason,
            "lapsed": not worker.may_act(),
            "grant_left_ns": worker.grant_left_ns(),
            "log_leader": medium.leader,
            "log_round_trip_ns": medium.round_trip_ns or -1,
            "log_bytes": medium.used_bytes,
            "log_limit_bytes": medium.limit_bytes or -1,
            "buckets": len(worker.shard.held),
            "journal_bytes": worker.journal.stored_bytes,
            "garbage": len(worker.shard.chores),
            "passed_on": sum(link.passed_on for link in worker.links.values()),
            "links_down": worker.links_down(),
            "snapshots": snapshotter.count,
            "snapshot_age_ns": self._host.clocks.boot_ns() - snapshotter.finished_boot_ns if snapshotter.count else -1,
            "snapshot_pause_max_ns": snapshotter.pause_max_ns,
            **self._application.figures(),
        }

    # -- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stops in order. Raises the journal's errors."""
        worker, journal, application = self.worker, self._recovered.journal, self._application
        await application.stop_listening()
        await worker.quiesce()
        await worker.hear_back()  # clients are owed the answers of other workers, too
        await worker.quiesce()  # refusals of those that went away
        await application.close()
        if self._server is not None:
            self._server.close()
        if self._far is not None:
            self._far.close()
        self._asks.close()
        self.closed = True  # no peer, no move, no call
        worker.close()
        await worker.quiesce()  # what came in between
        worker.snapshotter.close()
        self._holds.close()
        followers = self._loop.create_task(application.end_followers())
        try:
            if not self._recovered.begin.log:  # nobody waits for the journal: a snapshot may trim all that they have
                await asyncio.wait({followers})
            if self._wire.is_open:
                await self._snapshot()
            await self.executor.call(journal.close)
        finally:
            await followers
        self.executor.close()
        if self._sockets is not None:
            self._sockets.close()

    async def _snapshot(self) -> None:
        shard, journal = self._recovered.shard, self._recovered.journal
        position = journal.head
        parts = (shard.dump(bucket_id, position) for bucket_id in sorted(shard.present()))
        with contextlib.suppress(Unavailable):  # no room: the journal alone is enough
            await self.executor.call(journal.save_snapshot, position, parts)
            await self.executor.call(journal.trim, min(position, self._application.trim_floor()))
