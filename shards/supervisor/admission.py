"""The way of a worker from its start to serving, and when it may take each step.

    begun        it has been told all there is to know (`shards.supervisor.briefing`), and recovers its journal
    recovered    the last instant of its journal is known
    confirmed    where several hosts serve at once: the map says that this life of it is the newest
    let serve    billing time has begun, behind every last instant that it has to be behind of
    serving      the map knows that the shard has served; moves go on

Billing time begins once, for all: where one host serves, behind the last instant of every shard, so it waits until each
worker has recovered or nobody should wait for it. Where several hosts serve at once, each shard begins behind its own
last instant, which may be another host's and lie ahead of this host's clock: then that worker waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from shards.control import Proved, Recovered, Serve, Serving
from shards.counting import counted
from shards.moves.mover import Mover
from shards.supervisor.background import Background
from shards.supervisor.billing_time import BillingTime
from shards.supervisor.briefing import Briefing
from shards.supervisor.child_process import WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.registry import Registry
from shards.supervisor.worker_processes import WorkerProcesses

log = logging.getLogger("shards.supervisor.supervisor")

AHEAD_RETRY_S = 1.0  # how often a shard whose last instant lies ahead is looked at


class Admission:
    """Lets the workers of one supervisor recover and serve."""

    def __init__(
        self,
        registry: Registry,
        processes: WorkerProcesses,
        briefing: Briefing,
        time: BillingTime,
        mover: Mover,
        owners: Owners | None,
        background: Background,
    ) -> None:
        """`owners`: None where one host serves all shards."""
        self._registry = registry
        self._processes = processes
        self._briefing = briefing
        self._time = time
        self._mover = mover
        self._owners = owners
        self._background = background

    async def begin_time(self) -> None:
        """Begins billing time as soon as every last instant is known, and lets the recovered workers serve. Raises
        ClockUnfit, and the log's errors.
        """
        while self._awaits_recovery():
            await self._processes.wait_changed()
        workers = self._processes.by_shard.values()
        last_ns = max((worker.last_instant_ns for worker in workers), default=0) if self._owners is None else 0
        await self._time.begin(self._registry, last_ns)
        for worker in self._processes.by_shard.values():
            self._let_serve(worker)

    def _awaits_recovery(self) -> bool:
        """Whether billing time cannot begin yet: where several hosts serve at once, while no worker has recovered; else
        while a worker that is not late has not.
        """
        workers = self._processes.by_shard.values()
        if self._owners is not None:
            return not any(worker.state == "recovered" for worker in workers)
        return any(worker.state != "recovered" and not worker.is_late for worker in workers)

    async def begin(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> None:
        """Sends the first message to a process that has been started for a shard. `inherited`: the sockets that it
        listens on.
        """
        self._processes.note_change()
        worker.is_confirmed = False
        await self._briefing.begin(worker, inherited)

    def on_recovered(self, worker: WorkerState, recovered: Recovered) -> None:
        """A worker has recovered its shard, and reports the shard's last instant."""
        worker.last_instant_ns = recovered.last_instant_ns
        for warning in recovered.warnings:
            log.warning("shard %d was recovered, and this was found: %s", worker.shard_id, warning)
        log.info(
            "shard %d recovered in %.2f s: %s of a snapshot, %s replayed",
            worker.shard_id, recovered.took_ns / 1e9,
            counted(recovered.parts, "part"), counted(recovered.records, "record"),
        )  # fmt: skip
        self._processes.set_state(worker, "recovered")
        if self._owners is not None:
            self._background.spawn(self._confirm(worker, self._owners))
        else:
            self._processes.tell(Proved(worker.shard_id))
            self._let_serve(worker)

    async def _confirm(self, worker: WorkerState, owners: Owners) -> None:
        """Lets a worker serve once the map records it as the newest worker of its shard."""
        starts = worker.starts
        if await owners.confirm(worker.shard_id) and worker.starts == starts:
            worker.is_confirmed = True
            self._let_serve(worker)

    def _let_serve(self, worker: WorkerState) -> None:
        clock = self._time.clock
        if clock is None or worker.state != "recovered" or worker.wire is None:
            return
        if self._owners is not None and not worker.is_confirmed:
            return  # `_confirm` comes back to it
        if self._owners is not None and (ahead_ns := self._time.ahead_ns(worker.last_instant_ns)):
            log.error(
                "shard %d was served up to an instant %.3f s ahead of this host's clock: it waits until then",
                worker.shard_id, ahead_ns / 1e9,
            )  # fmt: skip
            asyncio.get_running_loop().call_later(min(AHEAD_RETRY_S, ahead_ns / 1e9), self._let_serve, worker)
            return
        worker.wire.send(Serve(list(clock.anchors)))

    async def on_serving(self, worker: WorkerState, serving: Serving) -> None:
        """A worker serves: records that in the map, tells other hosts, and lets what waited for it go on."""
        if worker.shard_id not in self._registry.founded:
            await self._registry.record(["founded", worker.shard_id])
        self._processes.serves(worker, serving)
        if self._owners is not None:
            self._processes.tell(Proved(worker.shard_id))  # by now it was compared with the map
            await self._owners.arrived(worker.shard_id, serving.links, self._briefing.direct_of(worker))
        await self._mover.on_worker(worker.shard_id, "serving")
        if not self._mover.rebalancing:
            self._mover.even_out()
        log.info("shard %d serves, %s", worker.shard_id, counted(serving.accounts, "account"))
