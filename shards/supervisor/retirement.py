"""Letting drained shards go: where a shard is not wanted any more and owns nothing, the map forgets it and its worker
ends.

It waits for the application, however long that takes: whoever follows the shard's journal (a history, notices) is to be
through with it. The worker says what stands against its end; that is the shard's reason, for people. A shard that is
wanted again meanwhile, owns a bucket again, or takes part in a move, stays, and is looked at anew when it is drained
the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shards.moves.mover import Mover
from shards.supervisor.background import Background
from shards.supervisor.briefing import Briefing
from shards.supervisor.child_process import WorkerState
from shards.supervisor.registry import Registry
from shards.supervisor.worker_figures import WorkerFigures
from shards.supervisor.worker_processes import WorkerProcesses

log = logging.getLogger("shards.supervisor.supervisor")

RETIRE_POLL_S = 0.2  # how often a drained shard is asked whether it may go


class Retirement:
    """Retires the drained shards of one supervisor."""

    def __init__(
        self,
        registry: Registry,
        processes: WorkerProcesses,
        briefing: Briefing,
        mover: Mover,
        worker_figures: WorkerFigures,
        background: Background,
        stopping: asyncio.Event,
    ) -> None:
        self._registry = registry
        self._processes = processes
        self._briefing = briefing
        self._mover = mover
        self._worker_figures = worker_figures
        self._background = background
        self._stopping = stopping
        self._waiting: set[int] = set()  # drained shards that are asked whether they may go

    async def run(self) -> None:
        """Retires each shard that the mover has drained, until cancelled."""
        while True:
            shard_id = await self._mover.next_drained()
            worker = self._processes.by_shard.get(shard_id)
            if worker is not None and shard_id not in self._waiting and self._mover.is_leaving(shard_id):
                self._waiting.add(shard_id)
                self._background.spawn(self._retire(worker))

    async def _retire(self, worker: WorkerState) -> None:
        try:
            while await self._must_wait(worker):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RETIRE_POLL_S)
                    return
        finally:
            self._waiting.discard(worker.shard_id)
        if worker.retired:
            await self._processes.until_gone(worker)
            log.info("shard %d is drained and gone", worker.shard_id)

    async def _must_wait(self, worker: WorkerState) -> bool:
        """Whether the shard cannot be retired yet. Where it can, the map forgets it and its worker ends."""
        shard_id = worker.shard_id
        async with self._registry.deciding:
            if (
                not self._mover.is_leaving(shard_id)
                or self._registry.map.buckets_of(shard_id)
                or self._mover.touches(shard_id)
            ):
                return False  # wanted again meanwhile, or a move is not over, behind which it is looked at again
            obstacle = await self._worker_figures.obstacle(worker)
            if obstacle:
                if worker.reason != obstacle:
                    log.info("shard %d is drained, and waits: %s", shard_id, obstacle)
                worker.reason = obstacle
                return True
            await self._registry.record(["retire", shard_id])
            self._processes.dismiss(worker)
            self._briefing.tell_shards([["retire", shard_id]])
            return False
