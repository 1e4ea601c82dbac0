"""Buckets move between two hosts that serve at once, under load and over deaths: every user's money stays right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from billing.client import Client
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import WAIT_S, billing, run
from tests.system.pipelined_load import FIRST, PipelinedLoad
from tests.system.rpc import ConnectionLost, Rpc
from tests.system.test_feed import FeedReader, entries_of
from tests.system.test_several_hosts import COIN
from tests.system.two_hosts import both_serve, owners, two_hosts, wait_owners, wait_page

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

SHARDS = 2

USERS = [f"mover_{number}" for number in range(6)]
SPENDER = "spends"
LOAD_PAUSE_S = 0.2  # of each user at each door: a move meets some calls, and the cores are not full of them


@pytest.fixture
async def hosts(servers: NatsCluster, data_dir: Path) -> AsyncIterator[list[Daemon]]:
    """Two hosts; nothing runs yet."""
    hosts = await two_hosts(servers, data_dir, SHARDS)
    with killed_in_the_end(*hosts):
        yield hosts


async def both(hosts: list[Daemon]) -> tuple[Daemon, Daemon]:
    """The hosts, each with one of the shards."""
    a, b = hosts
    await both_serve(hosts)
    for host in hosts:
        rpc = await Rpc.connect(host.rpc_port)
        async with asyncio.timeout(WAIT_S):  # until every worker has its links, and the other host answers over them
            while any(row["links_down"] or row["accounts"] is None for row in await rpc.ask("shards_info")):
                await asyncio.sleep(0.05)
        rpc.close()
    return a, b


def other_shard(owners_of_shards: list[str | None], shard: int) -> int:
    """A shard of the other host."""
    return next(
        number for number in range(1, SHARDS + 1) if owners_of_shards[number - 1] != owners_of_shards[shard - 1]
    )


async def test_a_move_between_hosts_under_load_loses_nothing_and_keeps_the_order_of_a_connection(
    hosts: list[Daemon], data_dir: Path
) -> None:
    a, b = await both(hosts)
    owners_of_shards = await owners(a, SHARDS)
    clients = [await Rpc.connect(host.rpc_port) for host in (a, b, a, b)]
    load = PipelinedLoad(clients, USERS, depth=4, pause_s=LOAD_PAUSE_S)
    buckets = await load.begin()
    operators = [await Rpc.connect(host.rpc_port) for host in (a, b)]
    rng, moved = random.Random(1), 0
    for turn in range(14):
        bucket_id = rng.choice(sorted(buckets))
        shard = (await operators[0].ask("route"))["owners"][bucket_id - 1]
        error, _ = await operators[turn % 2].call("move_bucket", bucket_id, other_shard(owners_of_shards, shard))
        assert error is None or "already" in error, error  # a door may know of the last move a moment later
        moved += error is None
    moved += await _backup_while_buckets_move(a, operators[1], owners_of_shards, buckets, data_dir)
    await load.stop()
    assert moved >= 8
    await _all_know(operators, moved, buckets)
    for rpc in clients:
        await load.check(rpc)
    code, output = await asyncio.to_thread(billing, b, "rebalance")
    assert code == 0, output
    deadline = time.monotonic() + WAIT_S
    while len({row["buckets"] for row in await operators[0].ask("shards_info")}) != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    for rpc in operators:
        checked = await rpc.ask("check_owners")
        assert (checked["shards"], checked["faults"], checked["unchecked"]) == (SHARDS, [], [])
    statement = await _books_go_along(operators, owners_of_shards)
    for rpc in operators:
        await _history_is_whole(rpc)
        reader, entries = FeedReader(), await entries_of(rpc, USERS)
        async with asyncio.timeout(WAIT_S):
            while any(reader.newest().get(user, 0) < entry_id for user, entry_id in entries.items()):
                await reader.read(rpc, 1000)
        reader.check()

    assert a.stop() == 0
    await wait_page(b, 200, "ready")
    rpc = await Rpc.connect(b.rpc_port)
    await load.check(rpc)
    assert (await rpc.ask("check_owners"))["faults"] == []
    await _history_is_whole(rpc)
    assert await _statement(rpc, statement) == statement, "also of what the host that is gone served"


async def _backup_while_buckets_move(
    host: Daemon, operator: Rpc, owners_of_shards: list[str | None], buckets: set[int], directory: Path
) -> int:
    """A backup holds all moves, whichever host drives them, and is whole. How many there were."""
    bucket_id = min(buckets)
    shard = (await operator.ask("route"))["owners"][bucket_id - 1]
    backup = asyncio.create_task(asyncio.to_thread(run, "backup", directory / "copy", "--address", host.address))
    moved = 0
    while not backup.done() or moved % 2:
        target = shard if moved % 2 else other_shard(owners_of_shards, shard)
        error, _ = await operator.call("move_bucket", bucket_id, target)
        assert error is None or error.startswith("MOVE_REFUSED"), error
        moved += error is None
    code, output = await backup
    assert code == 0, output
    assert "no faults" in output
    return moved


async def _books_go_along(doors: list[Rpc], owners_of_shards: list[str | None]) -> dict[str, Any]:
    """A statement is the same at every door, wherever its account is and was; the statement."""
    await doors[0].ask("top_up", SPENDER, FIRST)
    first_rate = await doors[0].ask("set_rate", SPENDER, COIN, {"resource": "vm-1"})
    second_rate = await doors[0].ask("set_rate", SPENDER, 2 * COIN, {"resource": "vm-2"})
    period = {"from_ns": first_rate["at_ns"] + 1, "to_ns": second_rate["at_ns"] + 1}
    statement = await _statement(doors[0], period)
    assert statement["accrued_nanos"] > 0
    home = first_rate["bucket_id"], (await doors[0].ask("buckets_info"))[first_rate["bucket_id"] - 1]["shard_id"]
    for shard in (other_shard(owners_of_shards, home[1]), home[1]):  # there and back
        await _moved_to(doors, home[0], shard)
        for rpc in doors:
            assert await _statement(rpc, period) == statement
    return statement


async def _moved_to(doors: list[Rpc], bucket_id: int, shard: int) -> None:
    """Has a bucket moved; returns when every door says that it is there. What refuses the move, such as another move of
    the bucket, or a door that does not know of the last one yet, is over in time.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        rows = [(await rpc.ask("buckets_info"))[bucket_id - 1] for rpc in doors]
        if all((row["shard_id"], row["state"]) == (shard, "active") for row in rows):
            return
        error, _ = await doors[0].call("move_bucket", bucket_id, shard)
        assert error is None or error.startswith("MOVE_REFUSED"), error
        assert time.monotonic() < deadline, (error, rows)
        await asyncio.sleep(0.05)


async def _statement(rpc: Rpc, period: dict[str, Any]) -> dict[str, Any]:
    statement: dict[str, Any] = await rpc.ask(
        "statement", SPENDER, period["from_ns"], period["to_ns"], {"by": "resource"}
    )
    return statement


async def _history_is_whole(rpc: Rpc) -> None:
    """Of each account every entry is answered, whichever hosts had its bucket."""
    for user in USERS:
        rows: list[dict[str, Any]] = []
        options: dict[str, int] = {"limit": 1000}
        while page := await rpc.ask("history", user, options):
            rows += page
            options["before"] = page[-1]["entry_id"]
        assert [row["entry_id"] for row in rows] == list(range(len(rows), 0, -1))
        assert {row["operation"] for row in rows} == {"top_up", "set_rate"}
        assert sum(row["amount_nanos"] for row in rows) == (await rpc.ask("get_account", user))["balance_nanos"]


async def test_deaths_during_moves_lose_no_command_and_leave_each_bucket_at_one_shard(hosts: list[Daemon]) -> None:
    a, b = await both(hosts)
    first, leader = (b, a) if (await owners(a, SHARDS))[0] == "a" else (a, b)  # who serves shard 1 evens out the load
    called = dict.fromkeys(USERS, 0)
    stop, stop_moving, outcomes = asyncio.Event(), asyncio.Event(), {"moved": 0, "refused": 0}

    async def load(client: Client, user: str) -> None:
        while not stop.is_set():
            called[user] += 1
            await client.top_up(user, "1", request_id=f"{user} {called[user]}")
            await asyncio.sleep(LOAD_PAUSE_S)

    async def move() -> None:
        rng = random.Random(2)
        rpc: Rpc | None = None
        while not stop_moving.is_set():
            try:
                rpc = rpc or await Rpc.connect(rng.choice((a, b)).rpc_port)
                bucket_id = (await rpc.ask("get_account", rng.choice(USERS)))["bucket_id"]
                error, _ = await asyncio.wait_for(rpc.call("move_bucket", bucket_id, rng.randint(1, SHARDS)), 60)
                assert error is None or error.startswith(("MOVE_REFUSED", "UNAVAILABLE")), error
                outcomes["refused" if error else "moved"] += 1
                await asyncio.sleep(LOAD_PAUSE_S / 2)
            except (OSError, TimeoutError, ConnectionLost, AssertionError):
                rpc = None
                await asyncio.sleep(0.05)

    async with Client([a.address, b.address]) as client:
        tasks = [asyncio.create_task(load(client, user)) for user in USERS]
        for user in USERS:
            while not called[user] > 1:
                await asyncio.sleep(0.01)
        moving = asyncio.create_task(move())
        for victim, other in ((first, leader), (leader, first)):
            await _until(outcomes, "moved", 3)
            for pid in victim.worker_pids():
                with contextlib.suppress(ProcessLookupError):  # its shard was handed over meanwhile, and it has ended
                    victim.kill(pid)
                await _until(outcomes, "moved", 2)
            if victim is leader:
                stop_moving.set()
                await moving
                await (await Rpc.connect(other.rpc_port)).ask("rebalance")
            victim.kill()
            await wait_page(other, 200, "ready")
            if victim is first:
                await _until(outcomes, "moved", 2)
                victim.launch()
                await wait_owners(other, "a", "b")
                await wait_page(victim, 200, "ready")
        stop.set()
        await asyncio.gather(*tasks)
        for user in USERS:
            assert (await client.get_account(user)).balance_nanos == called[user] * COIN
    await _nothing_is_left_undone(first)
    rpc = await Rpc.connect(first.rpc_port)
    assert (await rpc.ask("check_owners"))["faults"] == []
    for user in USERS:
        assert (await rpc.ask("get_account", user))["balance_nanos"] == called[user] * COIN


async def _nothing_is_left_undone(host: Daemon) -> None:
    """Returns when the moves and the evening out which others had begun are over, by the map's log."""
    deadline = time.monotonic() + WAIT_S
    while True:
        code, output = await asyncio.to_thread(billing, host, "cluster", "status", "--json")
        assert code == 0, output
        status = json.loads(output)
        if not status["rebalancing"] and not status["moves"]:
            break
        assert time.monotonic() < deadline, f"{output}\n{host.log.read_text()}"
        await asyncio.sleep(0.2)
    rpc = await Rpc.connect(host.rpc_port)
    assert len({row["buckets"] for row in await rpc.ask("shards_info")}) == 1


async def _until(outcomes: dict[str, int], outcome: str, more: int) -> None:
    """Returns when so many more have come."""
    least, deadline = outcomes[outcome] + more, time.monotonic() + WAIT_S
    while outcomes[outcome] < least:
        assert time.monotonic() < deadline, outcomes
        await asyncio.sleep(0.02)


async def _all_know(doors: list[Rpc], moved: int, buckets: set[int]) -> None:
    """Returns when every door knows of all moves."""
    deadline = time.monotonic() + WAIT_S
    while True:
        rows_by_host = [[row for row in await rpc.ask("buckets_info") if row["bucket_id"] in buckets] for rpc in doors]
        if all(sum(row["generation"] - 1 for row in rows) == moved for rows in rows_by_host):
            return
        assert time.monotonic() < deadline, (moved, rows_by_host)
        await asyncio.sleep(0.05)
