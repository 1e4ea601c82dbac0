"""The supervisor: it joins the map, the clock's anchor and the worker processes, and serves no request itself.

**What it keeps durable** is in `shards.supervisor.registry`; a record there is durable before anybody acts on it.

**Processes.** It is given the listening sockets, and has one worker for each shard of this host, which serve on where
one of them ends and is started again. The workers end with the supervisor: their control wires close. On a host that
stands by they are started as well, and wait.

**The other modules** of the package (its opening lists them) each own their state alone, and are given what they need
when they are made. This one makes them, runs the daemon's life, and hands each message of a worker to the one that it
is for.

**Shards come and go** while it serves (`reload`): a new one gets its worker, is made known to all, and buckets move to
it; one that is wanted no more gets weight 0, is drained, and let go.

**Several hosts** that share a log either take turns, each serving everything (`shards.supervisor.standby`), or serve at
once, each some of the shards (`shards.supervisor.sharing`): then workers come and go with the shards.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from shards.backup import Backups, OtherHosts
from shards.buckets import BucketMap
from shards.control import (
    Answer,
    Arriving,
    Ask,
    CutAt,
    Examined,
    Failed,
    FarAnswer,
    FarReport,
    Figures,
    FilesHeld,
    Held,
    Holdup,
    Known,
    NewAnchor,
    NewOwner,
    Obstacle,
    Payload,
    Progress,
    QueryReply,
    Recovered,
    Served,
    Serving,
    ShardTold,
    Stored,
    ToSupervisor,
    Unmoved,
    Waiting,
)
from shards.exits import Exit, text_of
from shards.journal import Fenced, backends
from shards.machine import Command
from shards.moves.mover import Mover, refusal
from shards.supervisor.admission import Admission
from shards.supervisor.background import Background
from shards.supervisor.billing_time import BillingTime
from shards.supervisor.briefing import Briefing
from shards.supervisor.child_process import SupervisorPort, WorkerState
from shards.supervisor.clock_watch import ClockUnfit
from shards.supervisor.far_side import FarSide
from shards.supervisor.operator_api import OperatorApi
from shards.supervisor.owners import Owners
from shards.supervisor.registry import Registry
from shards.supervisor.retirement import Retirement
from shards.supervisor.settings import SupervisorSettings
from shards.supervisor.sharing import Sharing
from shards.supervisor.unserved import Unserved, refusing_of, share_of, unserved_of
from shards.supervisor.worker_figures import WorkerFigures
from shards.supervisor.worker_processes import WorkerProcesses
from shards.system.clock import Clocks
from shards.system.host import REAL, Host
from shards.worker.recover import exit_code_of

log = logging.getLogger("shards.supervisor.supervisor")

STEER_INTERVAL_S = 1.0
PROGRESS_EVERY_NS = 1_000_000_000


class Supervisor:
    """One running daemon; `run` returns its exit code."""

    def __init__(
        self,
        settings: SupervisorSettings,
        command: list[str],
        configuration: bytes,
        listeners: list[tuple[str, socket.socket]],
        host: Host = REAL,
        on_reply: Callable[[bytes], None] = lambda reply: None,
    ) -> None:
        """`command` starts a worker, to which the number of its control descriptor is appended. `on_reply`
        takes the application's answers to `Query`.
        """
        self._settings = settings
        self._host = host
        self._boot_ns = host.clocks.boot_ns
        self._on_reply = on_reply
        self._stopping = stopping = asyncio.Event()
        self._has_begun = False  # the map is open, and has the shards that are wanted
        self._failure = 0  # the exit code of what has failed
        self._background = Background(self._end)
        hears = self._begin, self._on_message, self._on_event
        port = SupervisorPort(host.spawn, self._boot_ns, command, listeners, *hears, stopping)
        self._processes = WorkerProcesses(port, self._background, settings.direct_host)
        self.workers = self._processes.by_shard
        self.time = BillingTime(host, settings.slew_ppm_max, settings.clock_error_ns_max)
        log_backend = backends.open(settings.journal, host)
        share = settings.share
        self.registry = Registry(
            settings.data_dir,
            host,
            log_backend,
            self.time.now_ns,
            settings.clock_error_ns_max,
            0 if share is None else share.workers,
            self._on_assigned,
        )
        self._owners = None if share is None else Owners(self.registry, self.workers, share, stopping)
        self._far_side = None if self._owners is None else FarSide(self.registry, self.workers, self._owners)
        self.worker_figures = WorkerFigures()
        of_others = self._far_side, self.worker_figures.why_still
        self.mover = Mover(self.registry, self.workers, settings.moves, self._boot_ns, *of_others)
        self.operator_api = OperatorApi(self.registry, self.workers, self.mover, self.worker_figures, self.elsewhere)
        where = settings.data_dir, settings.journal, self.time.now_ns
        beside = self.worker_figures.why_silent, self._other_hosts()
        self._backups = Backups(self.registry, self.workers, self.mover, *where, *beside)
        self._briefing = Briefing(settings, configuration, log_backend, self.registry, self._processes, self._owners)
        of_workers = self.registry, self._processes, self._briefing
        self._admission = Admission(*of_workers, self.time, self.mover, self._owners, self._background)
        self._retirement = Retirement(*of_workers, self.mover, self.worker_figures, self._background, stopping)
        self.sharing: Sharing | None = None  # where several hosts serve at once
        if self._owners is not None:
            self.sharing = Sharing(
                self.registry,
                self._owners,
                self._processes,
                self._briefing,
                self.mover.look_at_map,
                self._background,
                stopping,
                self._boot_ns,
            )

    # -- what others look at ------------------------------------------------------------------------------------------

    @property
    def clocks(self) -> Clocks:
        """The clocks of this machine."""
        return self._host.clocks

    @property
    def map(self) -> BucketMap:
        """Who owns which bucket."""
        return self.registry.map

    def unserved(self) -> list[Unserved]:
        """The shards that are not served; empty when every bucket is served."""
        why_idle = "" if self.sharing is None else self.sharing.why_idle
        return unserved_of(self.registry, self.workers, self._owners, why_idle)

    def refusing(self) -> list[Unserved]:
        """The shards that are served and refuse changes, because their journals have no room."""
        return refusing_of(self.workers)

    def elsewhere(self) -> dict[int, str]:
        """The shards that other hosts serve, with the names of those hosts; "" where none is known."""
        return {} if self._owners is None else self._owners.elsewhere()

    def written_elsewhere(self) -> list[int]:
        """The shards whose journals other hosts write; where this host stands by, all shards."""
        if self._owners is None:
            return sorted(self._settings.weights) if self.registry.stands_by else []
        return list(self._owners.elsewhere())

    async def ask_host(self, node: str, operation: Command) -> dict[str, Any]:
        """The answer of another host's supervisor, or a refusal."""
        shard_id = next((served_id for served_id, its_node in self.elsewhere().items() if its_node == node), 0)
        if self._far_side is None or not shard_id:
            return refusal("UNAVAILABLE", f"{node or 'no host'} serves no shard over which it could be asked")
        return await self._far_side.ask_only(shard_id, operation)

    def without_host(self) -> int:
        """How many shards no host serves, as far as this one hears."""
        return 0 if self._owners is None else self._owners.without_host()

    @property
    def is_stopping(self) -> bool:
        """Whether the orderly stop has begun."""
        return self._stopping.is_set()

    async def wait_changed(self) -> None:
        """Returns when some worker's state has changed."""
        await self._processes.wait_changed()

    @property
    def _exit_code(self) -> int:
        """The exit code of what has failed, else of a held shard."""
        held = (worker.exit_code for worker in self.workers.values() if worker.state == "held")
        return self._failure or next(held, 0)

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until `stop`. Raises Conflict or the journal's errors before anything was started."""
        wanted = self._settings.bucket_count, lambda: self._settings.weights, self._stopping, self._prepare
        executor = self._host.executor("map", asyncio.get_running_loop())
        self.registry.use(executor)
        try:
            warnings = await self.registry.open_with_room(*wanted)
            if warnings is None:
                return self._exit_code
            self._processes.note_change()
            for warning in warnings:
                log.warning("about the place of the log: %s", warning)
            if self.registry.is_new:  # or a volume is not mounted, which nobody can tell from a first start
                log.info("there were no data: this is a beginning without accounts")
            if self.sharing is not None:
                self.spawn(self.sharing.run())
            else:
                while changes := self.registry.changes(self._settings.weights):
                    await self.registry.record(*changes)  # it was reloaded during the last look
                self._has_begun = True
                self._processes.start(self._processes.ports_for(self.map.weights))
            self.spawn(self._retirement.run())
            self.spawn(self._keep_time())
            await self._stopping.wait()
            await self._stop_workers()
            await self.registry.give_back()
        finally:
            self._background.cancel()
            await self._processes.close()
            executor.close()
            self.registry.close()
        return self._exit_code

    def _prepare(self) -> None:
        """While this host stands by: sends clients of a socket that was handed over, and so listens already, elsewhere;
        and loads a process for each shard, so that a takeover need not wait for it.
        """
        self._processes.note_change()
        self._processes.turn_clients_away()
        if self._owners is None:
            self.spawn(self._processes.prepare(self._settings.weights, lambda: self.registry.stands_by))

    async def _keep_time(self) -> None:
        """Begins and steers billing time, and checks whether this host may still serve."""
        await self._admission.begin_time()
        while True:
            await asyncio.sleep(STEER_INTERVAL_S)
            if await self.registry.is_displaced():
                raise Fenced(f"{self.registry.claim.node or 'another host'} serves now")
            await self.registry.settle(
                {worker.shard_id: worker.figures.get("settled", -1) for worker in self.workers.values()}
            )
            await self.registry.note_restored()
            if (anchor := await self.time.steer(self.registry)) is not None:
                self._processes.tell(NewAnchor(anchor))

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine as a background task; a bug in it ends the daemon."""
        self._background.spawn(coroutine)

    def stop(self, failure: int = Exit.CLEAN) -> None:
        """Begins the orderly stop. `failure`: the exit code, where something has failed."""
        self._failure = failure or self._failure
        self._stopping.set()

    def _end(self, error: BaseException) -> None:
        """Ends the daemon because of an error that must not happen. After a failure of the log nothing is tried
        again.
        """
        if self._stopping.is_set() and isinstance(error, Fenced | ClockUnfit):
            return  # it gives its shards up anyway; another host may have taken the first ones over already
        code = exit_code_of(error, None)
        if isinstance(error, Fenced):
            log.error("this host gives its shards up: %s", text_of(error))
        elif isinstance(error, ClockUnfit):
            log.error("this host gives its shards up because of its clock: %s", text_of(error))
        elif code == Exit.BUG:
            log.critical("the supervisor ends on a bug", exc_info=error)
        else:
            log.critical("the supervisor ends: %s", text_of(error))
        self.stop(code)

    async def _stop_workers(self) -> None:
        self.mover.stop()
        giving = [] if self.sharing is None else [self.sharing.give_back()]
        await asyncio.gather(self._processes.stop(), *giving)

    # -- changes while it serves ------------------------------------------------------------------------------------

    async def reload(self, settings: SupervisorSettings, configuration: bytes) -> None:
        """Takes up other shards, weights, caps, locks and paces, and passes the application's configuration on to every
        worker. What is held is tried again. All else of `settings` must be as it was. A host that does not serve yet
        writes nothing: it will serve by what was taken up.
        """
        self._settings = settings
        self.mover.take_settings(settings.moves)
        await self._briefing.tell_configuration(settings.worker, configuration)
        for worker in self.workers.values():
            if worker.state == "held":
                worker.again.set()
        if self.sharing is not None:
            self.sharing.try_again()
        elif self._has_begun:
            await self._resize(settings.weights)

    async def _resize(self, weights: dict[int, int]) -> None:
        """Records the wanted shards; the rebalancer moves the buckets."""
        async with self.registry.deciding:
            records = self.registry.changes(weights)
            if not records:
                return
            try:
                ports = self._processes.ports_for(weights.keys() - self.workers.keys())
            except OSError as error:
                log.error("the shards stay as they are: %s", text_of(error))
                return
            await self.registry.record(*records)
            self._processes.start(ports)
            self._briefing.tell_shards([record for record in records if record[0] == "weight"])
        self.mover.even_out()

    def _on_assigned(self, assigned: list[tuple[int, int, int]]) -> None:
        """Other hosts have moved buckets: tells every worker, as after a move by this host."""
        if self._owners is not None:
            for bucket_id, shard_id, generation in assigned:
                self._processes.tell(NewOwner(0, bucket_id, shard_id, generation))

    def _other_hosts(self) -> OtherHosts | None:
        """What a backup needs of the other hosts."""
        if self._owners is None or self._far_side is None:
            return None
        of_others = self._settings.clock_error_ns_max, self._owners.lives, self._far_side.ask_shard
        return OtherHosts(f"{self._host.randbits(64):016x}", *of_others)

    # -- what workers say -------------------------------------------------------------------------------------------

    async def _begin(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> None:
        await self._admission.begin(worker, inherited)

    def _on_message(self, worker: WorkerState, message: ToSupervisor) -> None:
        match message:
            case Progress():
                worker.progress = (message.done, message.total)
                if self._boot_ns() - worker.progress_told_ns > PROGRESS_EVERY_NS:
                    worker.progress_told_ns = self._boot_ns()
                    log.info("recovering shard %d:%s", worker.shard_id, share_of(worker.progress))
            case Waiting():
                if worker.reason != message.reason:
                    log.error("shard %d waits for its journal: %s", worker.shard_id, message.reason)
                self._processes.set_state(worker, "waiting", message.reason)
            case Recovered():
                self._admission.on_recovered(worker, message)
            case Serving():
                self.spawn(self._admission.on_serving(worker, message))
            case Failed():
                worker.reason = message.text
                log.error("shard %d: %s", worker.shard_id, message.text)
            case Figures() | Obstacle() | Examined():
                self.worker_figures.on_reply(message)
            case Payload() | Stored() | Served() | Known() | Unmoved() | Holdup():
                self.spawn(self.mover.on_message(worker.shard_id, message))
            case FarReport():
                self.spawn(self.mover.on_far_report(message))
            case Arriving() | FarAnswer():
                if self._far_side is not None:
                    self._far_side.on_message(worker.shard_id, message)
            case FilesHeld() | CutAt() | ShardTold():
                self._backups.on_message(worker.shard_id, message)
            case QueryReply():
                self._on_reply(message.reply)
            case Ask():
                self.spawn(self._answer(worker, message))
            case _:
                assert_never(message)

    async def _answer(self, worker: WorkerState, question: Ask) -> None:
        answerer = self._backups if question.operation[0] == "backup" else self.operator_api
        order = asyncio.ensure_future(answerer.operate(question.operation))
        try:
            reply = await self.operator_api.in_time(question.operation, order)
            if worker.wire is not None:
                worker.wire.send(Answer(question.number, reply))
            await order  # one that was answered before its end is still carried out
        finally:
            order.cancel()

    async def _on_event(self, worker: WorkerState, event: str) -> None:
        """A worker has ended, is held ("held"), or was held and is tried again ("tried")."""
        if event == "tried":
            self._processes.tell(Held(worker.shard_id, ""))
            self._processes.note_change()
            return
        self._backups.on_down(worker.shard_id)
        self.worker_figures.gone(worker.shard_id)
        if self._far_side is not None:
            self._far_side.on_down(worker.shard_id)
        self._processes.note_change()
        await self.mover.on_worker(worker.shard_id, "down")
        if event == "held":
            self._processes.tell(Held(worker.shard_id, worker.reason))
            await self.mover.on_worker(worker.shard_id, "held")
            if self.sharing is None and all(other.state == "held" for other in self.workers.values()):
                self.stop()
