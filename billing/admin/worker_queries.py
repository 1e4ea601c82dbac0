"""Queries of the main process to the workers, for data that only workers have: one account, owed cutoffs, coming
cutoffs.

A query goes over the control wire of any worker that serves (`shards.worker.worker_queries`). The worker answers it as
it answers a client. Replies about the whole daemon are reused for a moment, so that many viewers cost no more than one.
At most `WAITING_MAX` queries are under way; further queries are refused, as are queries that take longer than
`TIMEOUT_S`.

Only queries are sent; nothing here changes an account.
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
KEPT_NS: Final = 1_000_000_000  # a reply about the whole daemon is reused for this long
FORECAST_KEPT_NS: Final = 20_000_000_000
KEPT_MAX: Final = 16


class QueryRefused(Exception):
    """A worker's reply is an error, or there is no reply. The text is `NAME: message`, as clients get it; the page
    shows the message alone.
    """

    def __init__(self, name: str, message: str) -> None:
        """`name`: the error's name, one of `billing.ledger.errors`."""
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class QueryReplies:
    """The queries under way, by number. The supervisor hands each reply to `on_reply`."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    def begin(self) -> tuple[int, asyncio.Future[Any]]:
        """(number of a new query, future of its result); the future raises QueryRefused if the reply is an error.
        Raises QueryRefused if too many queries are under way.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise QueryRefused("UNAVAILABLE", "too many questions at once")
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        return number, future

    def end(self, number: int) -> None:
        """Forgets a query: nobody waits for its reply any more."""
        del self._waiting[number]

    def on_reply(self, data: bytes) -> None:
        """Takes a worker's reply, encoded as for a client: MessagePack (type, number, error, result)."""
        _, number, error, result = msgpack.unpackb(data, raw=False, strict_map_key=False)
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(QueryRefused(error["name"], error["message"]))


class WorkerQueries:
    """Sends queries to the workers of one supervisor."""

    def __init__(self, supervisor: Supervisor, replies: QueryReplies) -> None:
        """`replies`: the object that this supervisor hands the workers' replies to."""
        self._supervisor = supervisor
        self._replies = replies
        self._turn = itertools.count()
        self._cached: dict[Command, tuple[int, Any]] = {}

    async def account(self, user_id: bytes) -> dict[str, Any]:
        """The result of the method `get_account`. Raises QueryRefused."""
        reply = await self._ask(user_id, ("get_account", user_id))
        assert isinstance(reply, dict)
        return reply

    async def pending_cutoffs(self, limit: int) -> list[dict[str, Any]]:
        """The result of the method `pending_cutoffs`. Raises QueryRefused."""
        return list(await self._survey(("pending_cutoffs", b"", limit)))

    async def forecast(self, within_ns: int, step_ns: int) -> dict[str, Any]:
        """The result of the method `forecast`. It costs a look at every account, so it is reused for longer. Raises
        QueryRefused.
        """
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
