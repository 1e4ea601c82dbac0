"""Amounts and rates at their bounds: what they add up to over accounts and periods is beyond any bound of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

MOST = 2**63 - 1


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    with Daemon(module_dir, shards__workers=1) as started:
        yield started


async def test_accounts_at_the_highest_rate_run_out_and_the_worker_serves_on(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    workers = daemon.worker_pids()
    for user in ("a", "b", "c"):
        await rpc.ask("top_up", user, 1)
        await rpc.ask("set_rate", user, MOST, {"per": "hour"})
    samples: dict[str, float] = {}
    async with aiohttp.ClientSession() as session:
        while samples.get('billing_overrun_accounts{shard="1"}') != 3:
            assert daemon.worker_pids() == workers, daemon.log.read_text()
            async with session.get(f"http://127.0.0.1:{daemon.admin_port}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            samples = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}
            await asyncio.sleep(0.1)
    assert samples['billing_overrun_coins_per_second{shard="1"}'] == pytest.approx(3 * MOST / 3600 / 10**9)
    assert (await rpc.ask("get_account", "a"))["state"] == "exhausted"
    for user in ("a", "b", "c"):
        await rpc.ask("set_rate", user, 0)
    rpc.close()


async def test_a_period_whose_sums_have_no_place_in_an_answer_is_refused_and_its_parts_join(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    instants = []
    for _ in range(3):
        instants.append((await rpc.ask("top_up", "turnover", MOST))["at_ns"])
        await rpc.ask("debit", "turnover", MOST)
    for by in ({}, {"by": "resource"}):
        error, _ = await rpc.call("statement", "turnover", 0, MOST, by)
        assert error == "LIMIT_EXCEEDED: credits_nanos of this period is more than 2**63-1; shorter periods join"
    for begin, end in zip(instants, [*instants[1:], MOST], strict=True):
        part = await rpc.ask("statement", "turnover", begin, end)
        assert (part["credits_nanos"], part["debits_nanos"], part["opening_nanos"], part["closing_nanos"]) == (
            *(MOST, MOST),
            *(0, 0),
        )
    assert len(await rpc.ask("history", "turnover")) == 6
    assert "follower_stopped" not in daemon.log.read_text()
    rpc.close()
