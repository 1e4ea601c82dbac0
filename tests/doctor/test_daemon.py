"""The real daemon, its processes and its disk: whatever it was stopped in the middle of, what it leaves is right."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.system.commands import carried_out_beside
from tests.system.daemon import Daemon
from tests.system.processes import killed_with_all_it_started
from tests.system.rpc import ConnectionLost, Rpc

COIN = 10**9


def doctor(daemon: Daemon, code: int = 0) -> dict[str, Any]:
    """The report on a daemon's directory."""
    result = carried_out_beside("doctor", "--json", "--config", daemon.config)
    assert result.returncode == code, result.stdout + result.stderr
    report: dict[str, Any] = json.loads(result.stdout) if code in (0, 65) else {"error": result.stderr}
    return report


def counts(report: dict[str, Any], check: str) -> dict[str, int]:
    (counts_of_check,) = [row["counts"] for row in report["checks"] if row["check"] == check]
    return dict(counts_of_check)


async def load(rpc: Rpc, seed: int, steps: int) -> int:
    """Random calls; how many were answered without an error, or until the connection broke."""
    draw = random.Random(seed)
    users = [f"user {number}" for number in range(20)]
    calls: list[Any] = []

    async def call(method: str, *params: Any) -> bool:
        with suppress(ConnectionLost):
            error, _ = await rpc.call(method, *params)
            return error is None
        return False

    def one_of(user: str, number: int) -> Coroutine[Any, Any, bool]:
        kinds: list[Callable[[], Coroutine[Any, Any, bool]]] = [
            lambda: call("top_up", user, draw.randrange(1, COIN), {"request_id": f"{seed} {number}"}),
            lambda: call("set_rate", user, draw.choice([0, 5, COIN, 100 * COIN]), {"resource": "vm"}),
            lambda: call("debit", user, draw.randrange(1, COIN), {"mode": "partial"}),
            lambda: call("set_credit_limit", user, draw.choice([0, 5, COIN])),
            lambda: call("hold", user, draw.randrange(1, COIN), {"ttl_ns": 10**7}),
            lambda: call("set_thresholds", user, [{"amount": COIN}, {"runway_ns": 10**8}]),
            lambda: call("adjust", user, draw.choice([-5, 5]), "why not"),
        ]
        return draw.choice(kinds)()

    for number in range(steps):
        calls.append(one_of(draw.choice(users), number))
        if len(calls) == 32:
            calls_before, calls = calls, []
            await asyncio.gather(*calls_before)
            await asyncio.sleep(0.005)
    return sum(await asyncio.gather(*calls))


async def test_a_daemon_that_runs_is_not_looked_at_and_one_that_stopped_is_right(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__bucket_count=16)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(20):
            await rpc.ask("top_up", f"user {number}", COIN)
        await load(rpc, 1, 1500)
        assert "a daemon runs on" in doctor(daemon, 1)["error"]
        assert (await rpc.ask("get_account", "user 1"))["user_id"] == "user 1"
        entries = sum([(await rpc.ask("get_account", f"user {number}"))["entry_id"] for number in range(20)])
        for number in range(20):  # answered once the histories have begun: one that has not by the stop has no rows
            await rpc.ask("history", f"user {number}", {"limit": 1})
    report = doctor(daemon)
    assert counts(report, "accounts")["accounts"] == 20
    assert counts(report, "accounts")["entries"] > 500
    assert counts(report, "owners")["buckets"] == 16
    assert counts(report, "cutoffs")["cutoffs made"] > 0
    assert counts(report, "snapshots")["parts"] == 16  # a clean stop leaves a snapshot of each shard
    assert counts(report, "history")["rows"] >= entries
    assert counts(report, "history")["accounts"] == 20
    assert report["summary"].endswith("16 buckets: no faults")


async def test_kill_9_moves_and_restarts_leave_what_is_right(data_dir: Path) -> None:
    daemon = Daemon(
        data_dir, shards__bucket_count=16, journal__snapshot_bytes=65536, journal__segment_bytes=65536,
        cutoff__url="http://127.0.0.1:9/cutoff", cutoff__restore_url="http://127.0.0.1:9/restore",
    )  # fmt: skip
    entries = 0
    for seed in range(4):
        daemon.start()
        operator = await Rpc.connect(daemon.rpc_port)
        rpc = await Rpc.connect(daemon.rpc_port)
        if seed == 0:
            for number in range(20):
                await rpc.ask("top_up", f"user {number}", COIN)
        driving = asyncio.create_task(load(rpc, seed, 4000))
        for bucket_id in range(1, 17, 3):
            await operator.call("move_bucket", bucket_id, 1 + (bucket_id + seed) % 2)
        await asyncio.sleep(0.2)
        if seed == 3:
            await driving
            daemon.stop()
        else:
            await killed_with_all_it_started(daemon)
            await driving
        report = doctor(daemon)
        assert report["findings"] == []
        entries += counts(report, "accounts")["entries"]
        assert counts(report, "accounts")["accounts"] == 20
    assert entries > 500
    assert counts(report, "history")["rows compared"] > 0
    assert counts(report, "snapshots")["parts"] > 16
