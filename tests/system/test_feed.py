"""The feed of all entries of a running daemon: whoever keeps the cursor loses and doubles nothing, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

from tests.system.daemon import Daemon
from tests.system.rpc import Lost, Rpc

COIN = 10**9


class Reader:
    """Someone who stores the rows and, with them, the cursor."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @property
    def cursor(self) -> str:
        return str(self.rows[-1]["cursor"]) if self.rows else ""

    async def read(self, rpc: Rpc, limit: int = 1000) -> int:
        """One page; 0 where the daemon cannot be asked now, or has nothing."""
        error, rows = await rpc.call("entries", {"after": self.cursor, "limit": limit})
        assert error is None or str(error).startswith("UNAVAILABLE"), error
        self.rows += rows or []
        return len(rows or [])

    async def until_whole(self, rpc: Rpc, entries: dict[str, int]) -> None:
        """Reads on until it has every user's newest entry."""
        async with asyncio.timeout(60):
            while self.newest() != entries:
                await self.read(rpc)

    def newest(self) -> dict[str, int]:
        return {row["user_id"]: row["entry_id"] for row in self.rows}

    def check(self) -> None:
        last: dict[str, int] = {}
        for row in self.rows:
            assert row["entry_id"] == last.get(row["user_id"], 0) + 1, f"out of order or twice: {row}"
            last[row["user_id"]] = row["entry_id"]


async def entries_of(rpc: Rpc, users: list[str]) -> dict[str, int]:
    """Each user's newest entry by the daemon's own word."""
    return {user: (await rpc.ask("history", user, {"limit": 1}))[0]["entry_id"] for user in users}


async def is_drained(port: int, user: str) -> bool:
    """Whether one shard is left; spends something meanwhile. The worker that goes takes its connections with it."""
    with contextlib.suppress(Lost, OSError):
        rpc = await Rpc.connect(port)
        await rpc.ask("debit", user, 1)
        return len(await rpc.ask("shards_info")) == 1
    return False


async def test_each_entry_comes_once_over_moves_a_kill_and_a_shard_that_is_drained(data_dir: Path) -> None:
    rng = random.Random(17)
    users = [f"user_{number}" for number in range(12)]
    reader = Reader()
    daemon = Daemon(data_dir, shards__workers=2, shards__bucket_count=8)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        buckets = sorted({(await rpc.ask("top_up", user, COIN))["bucket_id"] for user in users})
        stop = asyncio.Event()

        async def spend(user: str) -> None:
            with contextlib.suppress(Lost):
                while not stop.is_set():
                    await rpc.ask("debit", user, 1)
                    await asyncio.sleep(0.02)

        async def follow() -> None:
            while not stop.is_set():
                await reader.read(rpc, rng.randrange(1, 60))

        tasks = [asyncio.create_task(spend(user)) for user in users] + [asyncio.create_task(follow())]
        operator = await Rpc.connect(daemon.rpc_port)
        moved = 0
        while moved < 12:
            error, _ = await operator.call("move_bucket", rng.choice(buckets), rng.choice((1, 2)))
            moved += error is None
        stop.set()
        await asyncio.gather(*tasks)
        daemon.kill()
        daemon.start()
        rpc = await Rpc.connect(daemon.rpc_port)
        await reader.until_whole(rpc, await entries_of(rpc, users))
        reader.check()
    fewer = Daemon(data_dir, shards__workers=1, shards__bucket_count=8)
    with fewer:
        async with asyncio.timeout(60):
            while not await is_drained(fewer.rpc_port, rng.choice(users)):
                pass
        rpc = await Rpc.connect(fewer.rpc_port)
        await reader.until_whole(rpc, await entries_of(rpc, users))
        reader.check()
        again = Reader()
        await again.until_whole(rpc, reader.newest())
        again.check()
        shown = [{name: value for name, value in row.items() if name != "cursor"} for row in again.rows]
        for user in users:
            rows = [row for row in shown if row["user_id"] == user]
            page = await rpc.ask("history", user, {"limit": 100})
            assert [{"user_id": user, **row} for row in reversed(page)] == rows[-len(page) :]
        error, _ = await rpc.call("entries", {"after": "bm9uZQ"})
        assert str(error).startswith("UNKNOWN_CURSOR: ")
