"""The feed of all entries of a running daemon: whoever keeps the cursor loses and doubles nothing, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import random
import urllib.request
from pathlib import Path
from typing import Any

from tests.system.commands import CommandResult, carried_out
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import ConnectionLost, Rpc

COIN = 10**9


class FeedReader:
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
    with contextlib.suppress(ConnectionLost, OSError):
        rpc = await Rpc.connect(port)
        await rpc.ask("debit", user, 1)
        return len(await rpc.ask("shards_info")) == 1
    return False


async def test_each_entry_comes_once_over_moves_a_kill_and_a_shard_that_is_drained(data_dir: Path) -> None:
    rng = random.Random(17)
    users = [f"user_{number}" for number in range(12)]
    reader = FeedReader()
    daemon = Daemon(data_dir, shards__workers=2, shards__bucket_count=8)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        buckets = sorted({(await rpc.ask("top_up", user, COIN))["bucket_id"] for user in users})
        stop = asyncio.Event()

        async def spend(user: str) -> None:
            with contextlib.suppress(ConnectionLost):
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
        second_reader = FeedReader()
        await second_reader.until_whole(rpc, reader.newest())
        second_reader.check()
        entries = [{name: value for name, value in row.items() if name != "cursor"} for row in second_reader.rows]
        for user in users:
            rows = [row for row in entries if row["user_id"] == user]
            page = await rpc.ask("history", user, {"limit": 100})
            assert [{"user_id": user, **row} for row in reversed(page)] == rows[-len(page) :]
        error, _ = await rpc.call("entries", {"after": "bm9uZQ"})
        assert str(error).startswith("UNKNOWN_CURSOR: ")


def billing(daemon: Daemon, *words: str) -> CommandResult:
    return carried_out("--address", daemon.address, *words)


async def test_exports_are_whole_go_on_behind_their_end_and_say_the_same_at_every_door(data_dir: Path) -> None:
    http = f"127.0.0.1:{free_port()}"
    with Daemon(data_dir, shards__workers=2, http__listen=http) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(30):
            await rpc.ask("top_up", f"u{number:02d}", COIN, {"message": 'a "comma", and\na line'})
        await rpc.ask("debit", "u07", COIN)
        await rpc.ask("set_rate", "u08", 10**7, {"resource": "vm-1"})  # a coin in 100 s
        result = await asyncio.to_thread(billing, daemon, "export", "entries")
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert rows == await rpc.ask("entries"), "the same as over RPC"
        assert len(rows) == 32
        assert result.stderr == f"32 entries; what comes next: --since {rows[-1]['cursor']}\n"
        await rpc.ask("debit", "u01", 5)
        result = await asyncio.to_thread(billing, daemon, "export", "entries", "--csv", "--since", rows[-1]["cursor"])
        (row,) = csv.DictReader(io.StringIO(result.stdout))
        assert (row["user_id"], row["operation"], row["amount_coins"]) == ("u01", "debit", "-0.000000005")
        result = await asyncio.to_thread(billing, daemon, "export", "entries", "--csv")
        messages = [row["message"] for row in csv.DictReader(io.StringIO(result.stdout))]
        assert messages.count('a "comma", and\na line') == 30
        result = await asyncio.to_thread(billing, daemon, "export", "entries", "--since", "bm9uZQ")
        assert (result.returncode, result.stdout) == (1, "")
        assert "UNKNOWN_CURSOR" in result.stderr

        url = f"http://{http}/v1/entries?cursor={rows[29]['cursor']}"
        lines = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read())).splitlines()
        entries = [json.loads(line) for line in lines]
        assert [(row["user_id"], row["operation"]) for row in entries[:2]] == [
            (row["user_id"], row["operation"]) for row in rows[30:]
        ]
        assert [row["cursor"] for row in entries[:2]] == [row["cursor"] for row in rows[30:]]
        assert (entries[-1]["user_id"], entries[-1]["amount"]) == ("u01", "-0.000000005")

        accounts_listed = await rpc.ask("accounts", {"with": ["rates"]})
        assert [row["user_id"] for row in accounts_listed] == [f"u{number:02d}" for number in range(30)]
        assert (accounts_listed[7]["state"], accounts_listed[7]["balance_nanos"], accounts_listed[8]["rates"]) == (
            "exhausted", 0, {"vm-1": 3600 * 10**7},
        )  # fmt: skip
        assert [row["user_id"] for row in await rpc.ask("accounts", {"state": "exhausted"})] == ["u07"]
        assert [row["user_id"] for row in await rpc.ask("accounts", {"exhausts_within_ns": 10**11})] == ["u08"]
        account = await rpc.ask("get_account", "u08")
        assert accounts_listed[8]["exhausts_at_ns"] == account["exhausts_at_ns"]
        result = await asyncio.to_thread(billing, daemon, "export", "accounts", "--csv")
        accounts = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [row["state"] for row in accounts].count("active") == 29
        assert (accounts[0]["user_id"], accounts[0]["balance_coins"]) == ("u00", "1")

        inventory = data_dir / "inventory.csv"
        inventory.write_text("user,resource,rate\nu08,vm-1,36\n")
        result = await asyncio.to_thread(billing, daemon, "reconcile", str(inventory))
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr == "1 machine, 0 differences; its rates were taken as coins per hour\n"
        inventory.write_text("user_id,resource_id,rate_per_minute\nu08,vm-1,0.6\n")
        result = await asyncio.to_thread(billing, daemon, "reconcile", str(inventory))
        assert result.stderr == "1 machine, 0 differences; its rates were taken as coins per minute\n"
        inventory.write_text("u08,vm-1,35\nu09,vm-2\nnobody,vm-3,1\nu01\n")
        result = await asyncio.to_thread(billing, daemon, "reconcile", str(inventory), "--json")
        assert result.returncode == 1
        assert [(row["user_id"], row["difference"]) for row in json.loads(result.stdout)["differences"]] == [
            ("nobody", "no_rate"), ("u08", "other_rate"), ("u09", "no_rate"),
        ]  # fmt: skip
        assert [line["line"] for line in json.loads(result.stdout)["broken_lines"]] == [4]
        assert f"{inventory}:4: expected user,resource" in result.stderr
