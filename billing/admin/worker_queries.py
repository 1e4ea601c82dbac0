"""Asking the workers, from the main process, what only they know: one account, owed cutoffs, coming cutoffs.

A question goes over the control wire of any worker that serves (`shards.worker.worker_queries`). The worker answers it
as it answers a client.
Answers to questions about the whole daemon are kept for a moment, so that many viewers cost what one does. There is
an upper bound to the questions under way; further queries are refused, as are queries that take too long.

It asks only; nothing here changes an account.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import msgpack

from shards.control import Query
from shards.machine import Command
from shards.supervisor.supervisor import Supervisor

TIMEOUT_S: Final = 2.0
WAITING_MAX: Final = 64
KEPT_NS: Final = 1_000_000_000  # an answer about the whole daemon is as good as new for that long
FORECAST_KEPT_NS: Final = 20_000_000_000
KEPT_MAX: Final = 16


class QueryRefused(Exception):
    """The answer is an error, as clients are told: `NAME: message`; people are told the message alone."""

    def __init__(self, name: str, message: str) -> None:
        """`name`: of the error, as in `billing.ledger.errors`."""
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class QueryReplies:
    """The questions under way, by number; the supervisor hands each answer to `on_reply`."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    def begin(self) -> tuple[int, asyncio.Future[Any]]:
        """A question's number, and what its answer will be, or QueryRefused. QueryRefused: too many are under way."""
        if len(self._waiting) >= WAITING_MAX:
            raise QueryRefused("UNAVAILABLE", "too many questions at once")
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        return number, future

    def end(self, number: int) -> None:
        """Nobody waits for it any more."""
        del self._waiting[number]

    def on_reply(self, data: bytes) -> None:
        """A worker's answer, as it would be a client's."""
        _, number, error, result = msgpack.unpackb(data, raw=False, strict_map_key=False)
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(QueryRefused(error["name"], error["message"]))


class WorkerQueries:
    """Questions to the workers of one supervisor."""

    def __init__(self, supervisor: Supervisor, replies: QueryReplies) -> None:
        """`replies`: those that this supervisor was given."""
        self._supervisor = supervisor
        self._replies = replies
        self._turn = itertools.count()
        self._cached: dict[Command, tuple[int, Any]] = {}

    async def account(self, user_id: bytes) -> dict[str, Any]:
        """What `get_account` answers. Raises Refusal."""
        reply = await self._ask(user_id, ("get_account", user_id))
        assert isinstance(reply, dict)
        return reply

    async def pending_cutoffs(self, limit: int) -> list[dict[str, Any]]:
        """What `pending_cutoffs` answers. Raises Refusal."""
        return list(await self._survey(("pending_cutoffs", b"", limit)))

    async def forecast(self, within_ns: int, step_ns: int) -> dict[str, Any]:
        """What `forecast` answers: a look at every account, so kept for longer. Raises Refusal."""
        return dict(await self._survey(("forecast", within_ns, step_ns), FORECAST_KEPT_NS))

    async def _survey(self, query: Command, kept_ns: int = KEPT_NS) -> Any:
        asked_ns, reply = self._cached.get(query, (0, None))
        if reply is None or self._supervisor.clocks.boot_ns() - asked_ns > kept_ns:
            reply = await self._ask(b"", query)
            if len(self._cached) >= KEPT_MAX:
                self._cached.clear()
            self._cached[query] = (self._supervisor.clocks.boot_ns(), reply)
        return reply

    async def _ask(self, key: bytes, query: Command) -> Any:
        serving = [worker for worker in self._supervisor.workers.values() if worker.state == "serving" and worker.wire]
        if not serving:
            raise QueryRefused("UNAVAILABLE", "no shard is served")
        wire = serving[next(self._turn) % len(serving)].wire
        assert wire is not None
        number, future = self._replies.begin()
        wire.send(Query(number, key, query))
        try:
            return await asyncio.wait_for(future, TIMEOUT_S)
        except TimeoutError:
            raise QueryRefused("UNAVAILABLE", "no answer in time") from None
        finally:
            self._replies.end(number)
