"""Asking workers for their figures: one question on the control wire, one answer, or none in time.

A worker answers from its loop, also while it recovers; so an answer says that the loop turns. Several questions to one
worker may be under way. Nothing is kept here but who waits.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from shards.control import Examine, Examined, Figures, Obstacle, QuestionReply, ReadFigures, ReadObstacle
from shards.system.links import Wire

TIMEOUT_S = 1.0
LOOK_S = 3.0  # who is asked for something that may take long is looked at so often; less than clients wait
STILL_S = 3.0  # who answers nothing for so long, or whose disk has held a batch for so long, gets no bucket
EXAMINE_TIMEOUT_S = 60.0  # it looks at every bucket, one at a time, and serves meanwhile


class Worker(Protocol):
    """The supervisor's view of a worker that is asked."""

    shard_id: int
    wire: Wire | None
    figures: dict[str, Any]


class WorkerFigures:
    """The supervisor's questions to its workers that are not answered yet."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, tuple[int, asyncio.Future[QuestionReply | None]]] = {}  # number -> (shard, who waits)

    async def of(self, worker: Worker) -> dict[str, Any]:
        """A worker's own counters; empty where it does not answer."""
        return await self._figures_of(worker, TIMEOUT_S)

    async def _figures_of(self, worker: Worker, timeout_s: float) -> dict[str, Any]:
        reply = await self._ask(worker, ReadFigures, timeout_s)
        if not isinstance(reply, Figures):
            return {}
        figures = reply.figures
        worker.figures = figures or worker.figures
        return figures

    async def examine(self, worker: Worker) -> Examined | None:
        """Returns what a worker holds; None where it does not answer, which its figures show before the examination
        would have to be over.
        """
        asked = asyncio.ensure_future(self._ask(worker, Examine, EXAMINE_TIMEOUT_S))
        try:
            while not (await asyncio.wait((asked,), timeout=LOOK_S))[0]:
                if not await self.of(worker):
                    return None
            reply = asked.result()
        finally:
            asked.cancel()
        return reply if isinstance(reply, Examined) else None

    async def why_silent(self, worker: Worker) -> str:
        """Returns why a worker carries out nothing at this moment; "" where it may."""
        figures = await self.of(worker)
        if not figures:
            return "its worker does not answer"
        return str(figures["no_room"]) if figures.get("no_room") and figures.get("grant_left_ns") == 0 else ""

    async def why_still(self, worker: Worker) -> str:
        """Returns why a worker would take no part in a move at this moment: it does not answer, or its disk does not;
        "" where it would.
        """
        figures = await self._figures_of(worker, STILL_S)
        if not figures:
            return "its worker does not answer"
        held_s = figures.get("sync_waiting_ns", 0) / 1e9
        return f"its disk has held a batch for {held_s:.0f} s" if held_s > STILL_S else ""

    async def obstacle(self, worker: Worker) -> str:
        """Why a drained shard cannot be retired yet; empty where it can."""
        reply = await self._ask(worker, ReadObstacle, TIMEOUT_S)
        return reply.text if isinstance(reply, Obstacle) else "its worker does not answer"

    async def _ask(
        self, worker: Worker, question: type[ReadFigures | ReadObstacle | Examine], timeout_s: float
    ) -> QuestionReply | None:
        if worker.wire is None:
            return None
        self._number = number = self._number + 1
        future: asyncio.Future[QuestionReply | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (worker.shard_id, future)
        worker.wire.send(question(number))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(number, None)

    def on_reply(self, reply: QuestionReply) -> None:
        """Takes a worker's answer."""
        _, future = self._waiting.get(reply.number, (0, None))
        if future is not None and not future.done():
            future.set_result(reply)

    def gone(self, shard_id: int) -> None:
        """A worker has ended: its answers are no longer waited for."""
        for asked_id, future in self._waiting.values():
            if asked_id == shard_id and not future.done():
                future.set_result(None)
