"""Asking workers for their figures: one question on the control wire, one answer, or none in time.

A worker answers from its loop, also while it recovers; so an answer says that the loop turns. Several questions to one
worker may be under way. Nothing is kept here but who waits.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from shards.system.links import Wire

TIMEOUT_S = 1.0
EXAMINE_TIMEOUT_S = 60.0  # it looks at every bucket, one at a time, and serves meanwhile


class Worker(Protocol):
    """What is asked: the supervisor's view of a worker."""

    shard_id: int
    wire: Wire | None
    figures: dict[str, Any]


class Readings:
    """The questions under way."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, tuple[int, asyncio.Future[dict[str, Any]]]] = {}  # number -> (shard, who waits)

    async def of(self, worker: Worker) -> dict[str, Any]:
        """A worker's own figures; empty where it does not answer."""
        figures = await self.ask(worker, "figures", TIMEOUT_S)
        worker.figures = figures or worker.figures
        return figures

    async def examine(self, worker: Worker) -> dict[str, Any]:
        """`{"held": ((bucket id, generation), …), "faults": (text, …)}` of a worker; empty where it does not answer."""
        return await self.ask(worker, "examine", EXAMINE_TIMEOUT_S)

    async def ask(self, worker: Worker, question: str, timeout_s: float) -> dict[str, Any]:
        """Any question's answer; empty where there is none."""
        if worker.wire is None:
            return {}
        self._number = number = self._number + 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (worker.shard_id, future)
        worker.wire.send((question, number))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return {}
        finally:
            self._waiting.pop(number, None)

    def told(self, number: int, figures: dict[str, Any]) -> None:
        """A worker has answered."""
        _, future = self._waiting.get(number, (0, None))
        if future is not None and not future.done():
            future.set_result(figures)

    def gone(self, shard_id: int) -> None:
        """A worker has ended: nobody waits for it any more."""
        for asked, future in self._waiting.values():
            if asked == shard_id and not future.done():
                future.set_result({})
