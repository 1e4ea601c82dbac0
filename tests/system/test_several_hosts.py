"""Two hosts that serve at once over one log on three real nats-servers, each some of the shards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from billing.client import Client
from billing.trial.faults import Fault
from billing.trial.receiver import Receiver
from tests.notices.names import numbered
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import USERS, WAIT_S, Caller, billing, run
from tests.system.test_feed import FeedReader, entries_of
from tests.system.test_jetstream import called
from tests.system.test_standby import is_refused
from tests.system.two_hosts import at_every_door, both_serve, owners, two_hosts, wait_owners, wait_page

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

SHARDS = 3
SPENDERS = [f"spender-{number}" for number in range(12)]
COIN = 1_000_000_000


@pytest.fixture
async def hosts(servers: NatsCluster, data_dir: Path, receiver: Receiver) -> AsyncIterator[list[Daemon]]:
    """Two hosts; nothing runs yet."""
    hosts = await two_hosts(servers, data_dir, SHARDS, cutoff__url=f"{receiver.url}/off")
    with killed_in_the_end(*hosts):
        yield hosts


async def read_on(reader: FeedReader, caller: Caller, users: list[str], limit: int = 1000) -> None:
    """Reads the feed at the host where the caller asks, behind the cursor that any host gave, until the newest entries
    of all users are there: each once, and in order.
    """
    rpc = await _rpc(caller)
    entries = await entries_of(rpc, users)
    async with asyncio.timeout(WAIT_S):
        while any(reader.newest().get(user, 0) < entry_id for user, entry_id in entries.items()):
            await reader.read(rpc, limit)
    reader.check()


async def spend(caller: Caller, seconds: int) -> dict[tuple[str, int], None]:
    """Lets each spender run out so long from now; (user, instant) of each."""
    due: dict[tuple[str, int], None] = {}
    for user in SPENDERS:
        await caller.call("top_up", user, seconds * COIN)
        reply = await caller.call("set_rate", user, COIN)
        due[user, reply["exhausts_at_ns"]] = None
    return due


async def wait_called(receiver: Receiver, due: dict[tuple[str, int], Any]) -> None:
    """Returns when everybody was called at their own instant, and nobody at another."""
    deadline = time.monotonic() + WAIT_S
    while missing := due.keys() - {(call.user_id, call.exhausted_at_ns) for call in receiver.calls}:
        assert time.monotonic() < deadline, missing
        await asyncio.sleep(0.05)
    assert {(call.user_id, call.exhausted_at_ns) for call in receiver.calls} == due.keys()
    assert len({call.event_id for call in receiver.calls}) == len(due)
    receiver.clear()


async def test_hosts_share_the_shards_and_follow_each_other_in_death_drain_and_planned_ends(
    hosts: list[Daemon], receiver: Receiver, data_dir: Path
) -> None:
    a, b = hosts
    await asyncio.to_thread(a.start, WAIT_S)
    assert await owners(a, SHARDS) == ["a"] * SHARDS
    caller = Caller(a.rpc_port)
    await caller.round()

    b.launch()
    await wait_owners(a, "a", "a", "b")
    for host in hosts:
        await wait_page(host, 200, "ready")
    await at_every_door(caller, a, b)
    rows = await caller.call("shards_info")
    assert [row["state"] for row in rows].count("elsewhere") == 2
    assert {row["reason"] for row in rows if row["state"] == "elsewhere"} == {"served by a"}
    page = await caller.call("accounts", {"limit": 1000})
    assert {row["user_id"] for row in page} == set(USERS), "of the shards of both hosts"
    route = await caller.call("route")
    assert len({row["address"] for row in route["shards"]}) == SHARDS, (
        "each shard has a port of its own, wherever it is"
    )
    caller._rpc = None
    reader = FeedReader()
    await read_on(reader, caller, USERS, limit=7)

    due = await spend(caller, 6)
    async with Client([b.address, a.address]) as client:
        b.kill()  # the one that the client and the caller are connected to, with some of the spenders
        for number, user in enumerate(USERS):
            await client.top_up(user, str(number + 1), request_id=f"over the kill, {user}")
            caller.balances[user] += (number + 1) * COIN
    await at_every_door(caller, a)
    assert await owners(a, SHARDS) == ["a"] * SHARDS
    await wait_called(receiver, due)
    await read_on(reader, caller, [*USERS, *SPENDERS], limit=7)

    b.launch()
    await wait_owners(a, "a", "a", "b")
    await wait_page(b, 200, "ready")
    code, output = await asyncio.to_thread(billing, a, "cluster", "drain", "b")
    assert code == 0, output
    await wait_owners(a, "a", "a", "a")
    await wait_page(b, 503, "this host serves no shard at present")
    assert await is_refused(b), "its clients go elsewhere"
    await at_every_door(caller, a)
    output = (await asyncio.to_thread(billing, a, "cluster", "status"))[1]
    assert "a serves shards 1, 2, 3" in output
    assert "b is drained" in output
    code, output = await asyncio.to_thread(billing, a, "cluster", "drain", "c")
    assert code == 1
    assert "no host c takes part: the hosts are a, b" in output
    code, output = await asyncio.to_thread(billing, a, "cluster", "drain", "a")
    assert (code, "a is drained, as every other host is" in output) == (0, True), output
    assert (await asyncio.to_thread(billing, a, "cluster", "undrain", "a"))[0] == 0
    assert (await asyncio.to_thread(billing, a, "cluster", "undrain", "b"))[0] == 0
    await wait_owners(a, "a", "a", "b")
    await wait_page(b, 200, "ready")
    code, output = await asyncio.to_thread(billing, a, "cluster", "forget", "b")
    assert (code, "b serves shard" in output) == (1, True), output
    await at_every_door(caller, a, b)
    await read_on(reader, caller, [*USERS, *SPENDERS])
    await at_every_door(caller, b, a)
    await read_on(reader, caller, [*USERS, *SPENDERS])

    await restored_elsewhere(b, caller, data_dir)
    caller.port, caller._rpc = b.rpc_port, None
    error, _ = await (await _rpc(caller)).call("backup", "begin")
    assert error is None, error
    due = await spend(caller, 2)
    assert await asyncio.to_thread(a.stop) == 0
    await wait_page(b, 200, "ready")
    await caller.round()
    error, _ = await (await _rpc(caller)).call("backup", "end")
    assert "changed its host meanwhile: take the backup again" in error
    assert await owners(b, SHARDS) == ["b"] * SHARDS
    code, output = await asyncio.to_thread(billing, b, "cluster", "forget", "a")
    assert (code, "a is forgotten" in output) == (0, True), output
    output = (await asyncio.to_thread(billing, b, "cluster", "status"))[1]
    assert "b serves shards 1, 2, 3\nshard 1:" in output, "b is the only host, and has no other to have links to"
    await at_every_door(caller, b)
    await wait_called(receiver, due)
    await read_on(reader, caller, [*USERS, *SPENDERS])
    assert await asyncio.to_thread(b.stop) == 0
    assert await owners(b, SHARDS) == [None] * SHARDS


async def restored_elsewhere(host: Daemon, caller: Caller, directory: Path) -> None:
    """A backup that is taken at a host which serves one of the shards is whole: a daemon on files made of it has every
    account, and every row of their histories.
    """
    code, output = await asyncio.to_thread(run, "backup", directory / "copy", "--address", host.address)
    assert code == 0, output
    assert "no faults" in output
    keys: dict[str, object] = {"shards.workers": SHARDS, "shards.bucket_count": 32}
    (directory / "files").mkdir()
    files = Daemon(directory / "files", **keys)
    code, output = await asyncio.to_thread(billing, files, "restore", str(directory / "copy"))
    assert code == 0, output
    with killed_in_the_end(files):
        await asyncio.to_thread(files.start, WAIT_S)
        second_caller = Caller(files.rpc_port)
        second_caller.balances = dict(caller.balances)
        await second_caller.check()
        for user in SPENDERS:
            rows = await second_caller.call("history", user, {"limit": 1000})
            assert [row["entry_id"] for row in rows] == list(range(len(rows), 0, -1))
            assert rows[0]["operation"] == "exhaust"
        assert await asyncio.to_thread(files.stop) == 0


async def _rpc(caller: Caller) -> Any:
    await caller.call("ping")
    return caller._rpc


async def test_a_backup_at_either_host_has_the_notices_that_both_owe(
    servers: NatsCluster, data_dir: Path, receiver: Receiver
) -> None:
    """What the other host had told is told again, as far as the map has not heard of it; nothing is left out."""
    receiver.fault = Fault("status", 503)
    notify = f"{receiver.url}/told"
    hosts = await two_hosts(servers, data_dir, 2, notify__url=notify)
    keys: dict[str, object] = {"shards.workers": 2, "shards.bucket_count": 32, "notify.url": notify}
    (data_dir / "files").mkdir()
    files = Daemon(data_dir / "files", **keys)
    with killed_in_the_end(*hosts, files):
        await both_serve(hosts)
        caller = Caller(hosts[1].rpc_port)
        await caller.round()
        event_ids = {f"{user}:1:account-topped_up" for user in caller.balances}
        code, output = await asyncio.to_thread(run, "backup", data_dir / "copy", "--address", hosts[1].address)
        assert code == 0, output
        assert "no faults" in output
        for host in hosts:
            assert await asyncio.to_thread(host.stop) == 0
        code, output = await asyncio.to_thread(billing, files, "restore", str(data_dir / "copy"))
        assert code == 0, output
        assert f"notices that were still to be told then: {len(event_ids)}" in output
        receiver.fault = None
        receiver.clear()
        await asyncio.to_thread(files.start, WAIT_S)
        await called(receiver, event_ids)
        assert {numbered(call.event_id) for call in receiver.calls} == event_ids
