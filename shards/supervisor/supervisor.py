"""The supervisor: it owns the map, the clock's anchor and the worker processes, and serves no request itself.

**What it keeps durable** is in `shards.supervisor.registry`; a record there is durable before anybody acts on it.

**Processes.** It is given the listening sockets, spawns one worker per shard (spawn, never fork), and restarts one
that dies (`shards.supervisor.child_process`, `shards.supervisor.restart_policy`); the others serve on. The workers end
with the supervisor: their control wires close. On a host that stands by they are started as well, and wait.

**Shards come and go** while it serves (`resize`): a new one gets its worker, is made known to all, and buckets move to
it; one that is wanted no more gets weight 0, is drained, and its worker ends as soon as the application needs nothing
of the shard's journal any more (its followers are through).

**Time.** Workers report the last instant in their journals before anything runs; billing time of this life begins
behind these (`shards.supervisor.billing_time`), and its anchors are sent to all.

**Several hosts** that share a log either take turns, each serving everything (`shards.supervisor.standby`), or serve at
once, each some of the shards (`shards.supervisor.sharing`): then workers come and go with the shards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

from shards.backup import Backups, OtherHosts
from shards.buckets import BucketMap
from shards.control import (
    Answer,
    Arriving,
    Ask,
    AskShard,
    Begin,
    Configure,
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
    LinkSettings,
    NewAnchor,
    NewOwner,
    Obstacle,
    Payload,
    Progress,
    Proved,
    QueryReply,
    Recovered,
    Serve,
    Served,
    Serving,
    ShardsChanged,
    ShardTold,
    Stop,
    Stored,
    ToSupervisor,
    ToWorker,
    Unmoved,
    Waiting,
    WorkerSettings,
)
from shards.counting import counted
from shards.exits import Exit, text_of
from shards.journal import Fenced, backends
from shards.links.far import Far
from shards.machine import Command
from shards.moves.mover import Caps, Mover
from shards.supervisor.billing_time import BillingTime
from shards.supervisor.child_process import SupervisorPort, WorkerState, keep, start_of, terminate
from shards.supervisor.clock_watch import ClockUnfit
from shards.supervisor.far_side import Arrivals, FarSide
from shards.supervisor.operator_api import OperatorApi
from shards.supervisor.registry import Registry
from shards.supervisor.sharing import Hands, ShareSettings, Sharing
from shards.supervisor.spares import Spares
from shards.supervisor.unserved import Unserved, refusing_of, share_of, unserved_of
from shards.supervisor.worker_figures import WorkerFigures
from shards.system.clock import Clocks
from shards.system.host import REAL, Host, address_of, listen_on
from shards.worker.recover import exit_code_of

log = logging.getLogger("shards.supervisor.supervisor")

STEER_INTERVAL_S = 1.0
PROGRESS_EVERY_NS = 1_000_000_000
STOP_TIMEOUT_S = 60.0
AHEAD_RETRY_S = 1.0  # how often a shard whose last instant lies ahead is looked at
RETIRE_POLL_S = 0.2  # how often a drained shard is asked whether it may go


class SupervisorSettings(NamedTuple):
    """What the supervisor needs of the configuration."""

    data_dir: str
    weights: dict[int, int]  # of the shards that are wanted, by id
    bucket_count: int
    slew_ppm_max: int
    journal: dict[str, Any]  # as `shards.journal.backends` takes it
    worker: WorkerSettings
    direct_host: str  # host of the port that each worker has for itself; "" for none
    caps: Caps = Caps()
    locked: frozenset[int] = frozenset()  # shards that the rebalancer leaves alone
    clock_error_ns_max: int = 0  # of a host that shares its log; 0: any
    share: ShareSettings | None = None  # where several hosts serve at once


class Supervisor:
    """One running daemon; `run` returns its exit code."""

    def __init__(
        self,
        settings: SupervisorSettings,
        command: list[str],
        configuration: bytes,
        listeners: list[tuple[str, socket.socket]],
        host: Host = REAL,
    ) -> None:
        """`command` starts a worker, to which the number of its control descriptor is appended."""
        self.settings = settings
        self._boot_ns = host.clocks.boot_ns
        self._log_backend = backends.open(settings.journal, host)
        share_workers = settings.share.workers if settings.share is not None else 0
        self.time = BillingTime(host, settings.slew_ppm_max, settings.clock_error_ns_max)
        of_log = self._log_backend, self.time.now_ns, settings.clock_error_ns_max, share_workers
        self.registry = Registry(settings.data_dir, host, *of_log)
        self.workers: dict[int, WorkerState] = {}
        asked = self._on_drained, self._leaves, self._boot_ns
        self.mover = Mover(self.registry, self.workers, settings.caps, settings.locked, *asked)
        self.worker_figures = WorkerFigures()
        asked_of = self.mover, self.worker_figures, self.elsewhere
        self.operator_api = OperatorApi(self.registry, self.workers, *asked_of)
        where = settings.data_dir, settings.journal
        self.backups = Backups(
            self.registry, self.workers, self.mover, *where, self.time.now_ns, self._other_hosts(host)
        )
        self.exit_code = 0
        self.told: Callable[[bytes], None] = lambda reply: None  # takes answers to `worker_queries`
        self._host = host
        self._configuration = configuration
        self._stopping = asyncio.Event()
        tell = self._begin, self._on_message, self._on_event
        self._spares = Spares(host.spawn)
        self._port = SupervisorPort(self._spares.spawn, self._boot_ns, command, listeners, *tell, self._stopping)
        self._ports: dict[int, socket.socket | None] = {}  # of shards that are not served yet
        self._arrivals = Arrivals()
        self._far_side: FarSide | None = None  # as `sharing`
        self.sharing: Sharing | None = None  # where several hosts serve at once, once the registry is open
        self._ready: list[tuple[str, socket.socket | None]] = []  # labels and ports of the next shards' workers there
        self._labels = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[int] = set()  # drained shards that are asked whether they may go

    @property
    def clocks(self) -> Clocks:
        """Those of this machine."""
        return self._host.clocks

    @property
    def map(self) -> BucketMap:
        """Who owns which bucket."""
        return self.registry.map

    # -- state that others look at ----------------------------------------------------------------------------------

    def unserved(self) -> list[Unserved]:
        """What is not served; empty when every bucket is."""
        return unserved_of(self.registry, self.workers, self.sharing)

    def refusing(self) -> list[Unserved]:
        """What is served and refuses changes, for want of room for its journal."""
        return refusing_of(self.workers)

    @property
    def is_stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping.is_set()

    async def wait_changed(self) -> None:
        """Returns when some worker's state has changed."""
        self._changed.clear()
        await self._changed.wait()

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until `stop`; raises Conflict, or the journal's errors, before anything was started."""
        loop = asyncio.get_running_loop()
        wanted = self.settings.bucket_count, self.settings.weights, self._stopping, self._prepare
        executor = self._host.executor("map", loop)
        self.registry.use(executor)
        try:
            warnings = await self.registry.open_with_room(*wanted)
            if warnings is None:
                return self.exit_code
            self._changed.set()
            for warning in warnings:
                log.warning("about the place of the log: %s", warning)
            if self.registry.placement is not None:
                self._begin_sharing()
            else:
                for shard_id in sorted(self.map.weights):
                    self._add(shard_id, self._ports.pop(shard_id, None) or self._direct_port(shard_id))
            for worker in self.workers.values():
                worker.task = loop.create_task(keep(worker, self._port))
            self.spawn(self._keep_time())
            await self._stopping.wait()
            await self._stop_workers()
            await self.registry.give_back()
        finally:
            for task in self._tasks:
                task.cancel()
            await self._spares.close()
            executor.close()
            self.registry.close()
        return self.exit_code

    def _prepare(self) -> None:
        """This host stands by: starts a worker for each shard, to be there when it takes over."""
        self._changed.set()
        if self.settings.share is None:
            self.spawn(self._prepare_all())

    async def _prepare_all(self) -> None:
        for shard_id in sorted(self.settings.weights):
            if not self.registry.stands_by:
                return
            try:
                if shard_id not in self._ports:
                    self._ports[shard_id] = self._direct_port(shard_id)
                await self._spares.prepare(*start_of(self._port, f"shard={shard_id}", self._ports[shard_id]))
            except OSError as error:
                log.warning("the worker of shard %d cannot be started ahead of time: %s", shard_id, text_of(error))

    # -- several hosts that serve at once -----------------------------------------------------------------------------

    def _begin_sharing(self) -> None:
        tell = self._tell_places, self.spawn, self._look_at_moves
        hands = Hands(self._start_shared, self._end_shared, self._prepare_shared, *tell)
        self.sharing = Sharing(self.registry, self.workers, hands, self._boot_ns)
        self.mover.far = self._far_side = FarSide(self.registry, self.workers, self.sharing)
        self.registry.on_assigned = self._tell_assigned
        self.registry.stands_by = True
        self.spawn(self.sharing.run())

    def _tell_assigned(self, assigned: list[tuple[int, int, int]]) -> None:
        """Other hosts have moved buckets: as after a move of this one, every worker is told."""
        for bucket_id, shard_id, generation in assigned:
            self._tell(NewOwner(0, bucket_id, shard_id, generation))

    def _look_at_moves(self) -> None:
        for shard_id, abort in self._arrivals.aborted(self.map, self.registry.shares):
            worker = self.workers.get(shard_id)
            if worker is not None and worker.wire is not None:
                worker.wire.send(abort)
        self.spawn(self.mover.look_at_map())

    def _prepare_shared(self, count: int) -> None:
        """Keeps so many processes loaded for the next shards that this host takes."""
        if len(self._ready) < count and not self._stopping.is_set():
            self._labels += 1
            try:
                ready = f"worker={self._labels}", self._direct_port(0)
            except OSError as error:
                log.warning("no worker can be started ahead of time: %s", text_of(error))
                return
            self._ready.append(ready)
            self.spawn(self._prepare_ready(*ready))

    async def _prepare_ready(self, label: str, direct: socket.socket | None) -> None:
        try:
            await self._spares.prepare(*start_of(self._port, label, direct))
        except OSError as error:
            log.warning("no worker can be started ahead of time: %s", text_of(error))

    def _start_shared(self, shard_id: int) -> None:
        """A worker for a shard that this host has taken."""
        label, direct = self._ready.pop(0) if self._ready else (f"shard={shard_id}", None)
        worker = self._add(shard_id, direct or self._direct_port(shard_id))
        worker.label = label
        self.registry.stands_by = False
        worker.task = asyncio.get_running_loop().create_task(keep(worker, self._port))
        self._changed.set()

    async def _end_shared(self, worker: WorkerState, patience_s: float) -> None:
        """Ends a worker whose shard another host is to serve; one that takes longer than that is killed."""
        worker.retired = True
        worker.again.set()
        if worker.wire is not None:
            worker.wire.send(Stop())
        if worker.state == "recovering":
            terminate(worker)
        if worker.task is not None:
            _, late = await asyncio.wait({worker.task}, timeout=patience_s)
            if late and worker.process is not None and worker.pid:
                worker.process.kill()
            await worker.task
        if worker.direct is not None:
            worker.direct.close()
        del self.workers[worker.shard_id]
        if not self.workers:
            self._refuse_clients()
        self._tell_places()
        self._changed.set()

    def _refuse_clients(self) -> None:
        """No worker is left to answer clients: they are to go elsewhere instead of waiting here."""
        self.registry.stands_by = True
        for kind, listener in self._port.listeners:
            if kind != "unix":  # one that was shut down could never listen again
                with contextlib.suppress(OSError):  # it does not listen
                    listener.shutdown(socket.SHUT_RDWR)

    def _tell_places(self) -> None:
        self._tell_shards([])
        for shard_id in self._far():
            self._tell(Proved(shard_id))

    def _link_settings(self, shard_id: int) -> LinkSettings | None:
        share, sharing = self.settings.share, self.sharing
        if share is None or sharing is None:
            return None
        voice = sharing.begin_life(shard_id)
        cluster = self._log_backend.cluster
        return LinkSettings(share.listen_of(shard_id), cluster, *voice, share.secret_file, share.certificates)

    def _far(self) -> dict[int, Far]:
        return {} if self.sharing is None else self.sharing.far()

    def elsewhere(self) -> dict[int, str]:
        """The shards that other hosts serve, with the names of these; "" where none is known."""
        sharing = self.sharing
        if sharing is None:
            return {}
        return {one: sharing.node_of(one) for one in sorted(self.map.weights) if one not in self.workers}

    def written_elsewhere(self) -> list[int]:
        """The shards whose journals other hosts write: those that they serve, or where this one stands by, all."""
        if self.settings.share is None:
            return sorted(self.settings.weights) if self.registry.stands_by else []
        return list(self.elsewhere())

    def _other_hosts(self, host: Host) -> OtherHosts | None:
        """What a backup needs of the hosts that serve beside this one."""
        if self.settings.share is None:
            return None

        def lives() -> dict[int, tuple[int, int]]:
            owns = self.registry.shares.owns
            return {shard_id: owns[shard_id].voice for shard_id in self._far() if shard_id not in self.workers}

        holder = f"{host.randbits(64):016x}"
        return OtherHosts(holder, self.settings.clock_error_ns_max, lives, self._ask_far)

    def _ask_far(self, shard_id: int, step: Command) -> None:
        """A step of a backup for a shard of another host, over a worker's link."""
        for worker in self.workers.values():
            if worker.state == "serving" and worker.wire is not None:
                worker.wire.send(AskShard(shard_id, step))
                return
        raise ConnectionError("this host serves no shard at present, and asks the others over its workers' links")

    # -- shards of this host ------------------------------------------------------------------------------------------

    def _add(self, shard_id: int, direct: socket.socket | None) -> WorkerState:
        worker = self.workers[shard_id] = WorkerState(shard_id)
        worker.direct = direct
        return worker

    def _direct_port(self, shard_id: int) -> socket.socket | None:
        """A port that is the shard's alone, where the configuration wants it. OSError that names it."""
        host = self.settings.direct_host
        if not host:
            return None
        try:
            return listen_on(host)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"a port of shard {shard_id} at {host}") from error

    def stop(self) -> None:
        """Begins the orderly end."""
        self._stopping.set()

    # -- changes while it serves ------------------------------------------------------------------------------------

    async def reload(self, settings: SupervisorSettings, configuration: bytes) -> None:
        """Takes up other shards, weights, caps, locks and paces, and passes the application's configuration on to every
        worker. What is held is tried again. All else of `settings` must be as it was.
        """
        self.settings = settings
        self.mover.caps, self.mover.locked = settings.caps, settings.locked
        async with self.registry.deciding:
            self._configuration = configuration
            self._tell(Configure(settings.worker, configuration))
        for worker in self.workers.values():
            if worker.state == "held":
                worker.again.set()
        if self.sharing is not None:
            self.sharing.try_again()
        await self._resize(settings.weights)

    async def _resize(self, weights: dict[int, int]) -> None:
        """Makes the shards those that are wanted; the rebalancer does the rest."""
        async with self.registry.deciding:
            records = self.registry.changes(weights)
            if not records or self.sharing is not None:
                return
            ports: dict[int, socket.socket | None] = {}
            try:
                for shard_id in sorted(weights.keys() - self.workers.keys()):
                    ports[shard_id] = self._direct_port(shard_id)
            except OSError as error:
                log.error("the shards stay as they are: %s", text_of(error))
                for port in ports.values():
                    if port is not None:
                        port.close()
                return
            await self.registry.record(*records)
            fresh = [self._add(shard_id, port) for shard_id, port in ports.items()]
            self._tell_shards([record for record in records if record[0] == "weight"])
        for worker in fresh:
            worker.task = asyncio.get_running_loop().create_task(keep(worker, self._port))
        self._even_out()

    def _tell_shards(self, records: list[list[Any]]) -> None:
        self._tell(ShardsChanged(records, self._peers(), self._direct(), self._far()))

    def _tell(self, message: ToWorker) -> None:
        for worker in self.workers.values():
            if worker.wire is not None:
                worker.wire.send(message)

    def _leaves(self, shard_id: int) -> bool:
        return shard_id not in self.settings.weights

    def _even_out(self) -> None:
        """Begins to move buckets, once every worker serves, where that is owed, or a shard is still to go."""
        is_owed = self.registry.uneven or any(map(self._leaves, self.map.weights))
        if self.sharing is not None:  # `Mover.look_at_map` sees to it
            return
        if is_owed and all(worker.state == "serving" for worker in self.workers.values()):
            self.mover.begin_rebalance()

    def spawn(self, coroutine: Any) -> None:
        """Runs something beside; a bug in it ends the daemon."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def done(finished: asyncio.Task[Any]) -> None:
            self._tasks.discard(finished)
            if not finished.cancelled() and finished.exception() is not None:
                self._end(finished.exception())

        task.add_done_callback(done)

    def _end(self, error: BaseException | None) -> None:
        """What must not fail has failed. On a log that failed once nothing is tried again."""
        assert error is not None
        if self._stopping.is_set() and isinstance(error, Fenced | ClockUnfit):
            return  # it gives its shards up anyway; another host may have taken the first ones over already
        self.exit_code = exit_code_of(error, None)
        if isinstance(error, Fenced):
            log.error("this host gives its shards up: %s", text_of(error))
        elif isinstance(error, ClockUnfit):
            log.error("this host gives its shards up because of its clock: %s", text_of(error))
        elif self.exit_code == Exit.BUG:
            log.critical("the supervisor ends on a bug", exc_info=error)
        else:
            log.critical("the supervisor ends: %s", text_of(error))
        self.stop()

    # -- time -------------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Waits until every worker knows the last instant of its journal, then begins billing time and steers it."""
        while self._awaits_recovery():
            await self.wait_changed()
        last_ns = max((worker.last_instant_ns for worker in self.workers.values()), default=0)
        if self.sharing is not None:
            last_ns = 0  # each shard begins behind its own last instant, and that may be another host's
        await self.time.begin(self.registry, last_ns)
        for worker in self.workers.values():
            self._send_serve(worker)
        while True:
            await asyncio.sleep(STEER_INTERVAL_S)
            if await self.registry.is_displaced():
                raise Fenced(f"{self.registry.claim.node or 'another host'} serves now")
            await self.registry.settle({one.shard_id: one.figures.get("settled", -1) for one in self.workers.values()})
            if (anchor := await self.time.steer(self.registry)) is not None:
                self._tell(NewAnchor(anchor))

    def _awaits_recovery(self) -> bool:
        """Whether billing time cannot begin yet: some last instant is not known, or no shard is here to need it."""
        if self.sharing is not None:
            return not any(worker.state == "recovered" for worker in self.workers.values())
        return any(worker.state != "recovered" and not worker.is_late for worker in self.workers.values())

    def _send_serve(self, worker: WorkerState) -> None:
        clock = self.time.clock
        if clock is None or worker.state != "recovered" or worker.wire is None:
            return
        if self.sharing is not None and not worker.is_confirmed:
            return  # `_confirm` sends it
        if self.sharing is not None and (ahead_ns := self.time.ahead_ns(worker.last_instant_ns)):
            log.error(
                "shard %d was served up to an instant %.3f s ahead of this host's clock: it waits until then",
                worker.shard_id, ahead_ns / 1e9,
            )  # fmt: skip
            asyncio.get_running_loop().call_later(min(AHEAD_RETRY_S, ahead_ns / 1e9), self._send_serve, worker)
            return
        worker.wire.send(Serve(list(clock.anchors)))

    # -- workers ----------------------------------------------------------------------------------------------------

    async def _begin(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> None:
        self._changed.set()
        worker.is_confirmed = False
        async with self.registry.deciding:
            if worker.wire is not None:
                worker.wire.send(self._begin_of(worker, inherited))

    async def _on_event(self, worker: WorkerState, event: str) -> None:
        """A worker is down, is held ("held"), or was and is tried again ("tried")."""
        if event == "tried":
            self._tell(Held(worker.shard_id, ""))
            self.exit_code = next((one.exit_code for one in self.workers.values() if one.state == "held"), 0)
            self._changed.set()
            return
        self.backups.on_down(worker.shard_id)
        self.worker_figures.gone(worker.shard_id)
        self._arrivals.forget(worker.shard_id)
        if self._far_side is not None:
            self._far_side.on_down(worker.shard_id)
        self._changed.set()
        await self.mover.on_worker(worker.shard_id, "down")
        if event == "held":
            self._tell(Held(worker.shard_id, worker.reason))
            await self.mover.on_worker(worker.shard_id, "held")
            if self.exit_code == 0:
                self.exit_code = worker.exit_code
            if self.sharing is None and all(other.state == "held" for other in self.workers.values()):
                self.stop()

    def _begin_of(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> Begin:
        proven = ("recovered", "serving") if self.sharing is None else ("serving",)
        return Begin(
            shard_id=worker.shard_id,
            directory=self.settings.data_dir,
            founded=worker.shard_id in self.registry.founded,
            bucket_map=self.map.encode(),
            peers=self._peers(),
            listeners=[(kind, listener.fileno()) for kind, listener in inherited],
            direct=self._direct(),
            journal=self._log_backend.settings_of_worker(),
            settings=self.settings.worker,
            configuration=self._configuration,
            settled=self.registry.settled.get(worker.shard_id, -1),
            proved=[
                *(one.shard_id for one in self.workers.values() if one.state in proven),
                *self._far(),  # those that the map says serve have recovered by a map that is new enough
            ],
            far=self._far(),
            links=self._link_settings(worker.shard_id),
            log=self._log_backend.cluster,
        )

    def _peers(self) -> dict[int, str]:
        here = self.map.weights if self.sharing is None else self.workers
        return {shard_id: f"shard-{shard_id}.sock" for shard_id in here}

    def _direct(self) -> dict[int, str]:
        far = {} if self.sharing is None else self.sharing.direct()
        return far | {worker.shard_id: self._direct_of(worker) for worker in self.workers.values() if worker.direct}

    def _direct_of(self, worker: WorkerState) -> str:
        """Where clients reach this worker alone; "" where they cannot."""
        address, share = "" if worker.direct is None else address_of(worker.direct), self.settings.share
        return address if share is None else share.told(address)

    def _set_state(self, worker: WorkerState, state: str, reason: str = "") -> None:
        worker.state = state
        worker.reason = reason
        self._changed.set()

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
                self._set_state(worker, "waiting", message.reason)
            case Recovered():
                self._on_recovered(worker, message)
            case Serving():
                self.spawn(self._on_serving(worker, message))
            case Failed():
                worker.reason = message.text
                log.error("shard %d: %s", worker.shard_id, message.text)
            case Figures() | Obstacle() | Examined():
                self.worker_figures.told(message)
            case Payload() | Stored() | Served() | Known() | Unmoved() | Holdup():
                self.spawn(self.mover.on_message(worker.shard_id, message))
            case Arriving():
                self._arrivals.note(worker.shard_id, message)
            case FarReport():
                self.spawn(self.mover.on_far_report(message))
            case FarAnswer():
                if self._far_side is not None:
                    self._far_side.on_answer(message)
            case FilesHeld() | CutAt() | ShardTold():
                self.backups.on_message(worker.shard_id, message)
            case QueryReply():
                self.told(message.reply)
            case Ask():
                self.spawn(self._answer(worker, message))
            case _:
                assert_never(message)

    def _on_recovered(self, worker: WorkerState, recovered: Recovered) -> None:
        worker.last_instant_ns = recovered.last_instant_ns
        for warning in recovered.warnings:
            log.warning("shard %d was recovered, and this was found: %s", worker.shard_id, warning)
        log.info(
            "shard %d recovered in %.2f s: %s of a snapshot, %s replayed",
            worker.shard_id, recovered.took_ns / 1e9,
            counted(recovered.parts, "part"), counted(recovered.records, "record"),
        )  # fmt: skip
        self._set_state(worker, "recovered")
        if self.sharing is not None:
            self.spawn(self._confirm(worker, self.sharing))
        else:
            self._tell(Proved(worker.shard_id))
            self._send_serve(worker)

    async def _confirm(self, worker: WorkerState, sharing: Sharing) -> None:
        """Lets a worker serve, once the map says that this life of it is the newest one."""
        starts = worker.starts
        if await sharing.confirm(worker.shard_id) and worker.starts == starts:
            worker.is_confirmed = True
            self._send_serve(worker)

    async def _on_serving(self, worker: WorkerState, serving: Serving) -> None:
        if worker.shard_id not in self.registry.founded:
            await self.registry.record(["founded", worker.shard_id])
        worker.serving_since_ns = self._boot_ns()
        worker.figures = {"accounts": serving.accounts}
        if worker.wire is not None:
            for other in self.workers.values():
                if other.state == "held":
                    worker.wire.send(Held(other.shard_id, other.reason))
        self._set_state(worker, "serving")
        if self.sharing is not None and self.settings.share is not None:
            self._tell(Proved(worker.shard_id))  # by now it was compared with the map
            links = self.settings.share.told(serving.links)
            await self.sharing.arrived(worker.shard_id, links, self._direct_of(worker))
        await self.mover.on_worker(worker.shard_id, "serving")
        if not self.mover.rebalancing:
            self._even_out()
        log.info("shard %d serves, %s", worker.shard_id, counted(serving.accounts, "account"))

    async def _answer(self, worker: WorkerState, asked: Ask) -> None:
        place = self.backups if asked.operation[0] == "backup" else self.operator_api
        reply = await place.operate(asked.operation)
        if worker.wire is not None:
            worker.wire.send(Answer(asked.number, reply))

    def _on_drained(self, shard_id: int) -> None:
        """A shard of weight 0 owns nothing any more: where it is not wanted, the map forgets it and its worker ends."""
        if shard_id not in self.settings.weights:
            self.spawn(self._retire(self.workers[shard_id]))

    async def _retire(self, worker: WorkerState) -> None:
        """Lets a drained shard go, once its application needs nothing of it any more, however long that takes."""
        one = worker.shard_id
        if one in self._retiring:
            return
        self._retiring.add(one)
        try:
            while await self._must_wait(worker):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RETIRE_POLL_S)
                    return
        finally:
            self._retiring.discard(one)
        if not worker.retired:
            return
        if worker.task is not None:
            await worker.task
        if worker.direct is not None:
            worker.direct.close()
        log.info("shard %d is drained and gone", one)

    async def _must_wait(self, worker: WorkerState) -> bool:
        """Whether the shard cannot go yet. Where it can, the map forgets it and its worker ends."""
        one = worker.shard_id
        async with self.registry.deciding:
            if one in self.settings.weights or self.map.buckets_of(one) or self.mover.touches(one):
                return False  # wanted again meanwhile, or a move is not over, behind which it is looked again
            obstacle = await self.worker_figures.obstacle(worker)
            if obstacle:
                if worker.reason != obstacle:
                    log.info("shard %d is drained, and waits: %s", one, obstacle)
                worker.reason = obstacle
                return True
            await self.registry.record(["retire", one])
            worker.retired = True
            del self.workers[one]
            self._tell_shards([["retire", one]])
            if worker.wire is not None:
                worker.wire.send(Stop())
            return False

    async def _stop_workers(self) -> None:
        self.mover.stop()
        if self.sharing is not None:
            self.sharing.stop()
        self._tell(Stop())
        for worker in self.workers.values():
            if worker.state == "recovering":
                terminate(worker)
        givers = []
        if self.sharing is not None:
            givers = [asyncio.ensure_future(self._give_back(worker)) for worker in self.workers.values()]
        if tasks := [worker.task for worker in self.workers.values() if worker.task is not None]:
            _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
            for worker in self.workers.values():
                if worker.task in late and worker.process is not None:
                    log.error("shard %d did not stop within %d s and is killed", worker.shard_id, STOP_TIMEOUT_S)
                    worker.process.kill()
            await asyncio.gather(*tasks, *givers, return_exceptions=True)

    async def _give_back(self, worker: WorkerState) -> None:
        """Tells other hosts of a shard whose worker has ended, as soon as it has: they take it over one by one."""
        assert self.sharing is not None
        if worker.task is not None:
            await asyncio.wait({worker.task})
        await self.sharing.given_back(worker.shard_id)
