"""A host that was away for longer than the log goes back has from the others what its histories lack."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from billing.config.load import load, log_of
from billing.follower.store import connect, file_of
from billing.history.gaps import Gap, gaps_of
from billing.history.tables import KIND
from shards.journal import backends
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import USERS, WAIT_S, Caller, billing
from tests.system.test_standby import begin_snapshots, history_position, make_durable, wait_followed
from tests.system.two_hosts import both_serve, two_hosts, wait_owners, wait_page

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

SHARDS = 2


@pytest.fixture
async def hosts(servers: NatsCluster, data_dir: Path) -> AsyncIterator[list[Daemon]]:
    """Two hosts that serve at once over a log that keeps nothing behind the older of two snapshots."""
    hosts = await two_hosts(servers, data_dir, SHARDS, cluster__retain_bytes=0)
    with killed_in_the_end(*hosts):
        yield hosts


def file_at(host: Daemon, shard: int) -> Path:
    return Path(file_of(str(host.directory / "data/history"), shard))


def lacks(host: Daemon) -> dict[int, list[Gap]]:
    """By shard, what the host's own history of it lacks."""
    gaps = {}
    for shard in range(1, SHARDS + 1):
        with closing(connect(str(file_at(host, shard)), KIND)) as db:
            gaps[shard] = gaps_of(db)
    return gaps


def is_behind_the_log(host: Daemon, away: Daemon) -> bool:
    """Whether the log of each shard begins behind the end of the file of the host that is away."""
    backend = backends.open(log_of(load(host.config, {}).config) | {"directory": ""}, REAL)
    for shard in range(1, SHARDS + 1):
        with closing(backend.reader(shard)) as reader:
            if reader.first <= history_position(file_at(away, shard)) + 1:
                return False
    return True


async def test_a_host_that_was_away_for_longer_than_the_log_goes_back_answers_from_its_own_files_all_the_same(
    hosts: list[Daemon],
) -> None:
    a, b = hosts
    await both_serve(hosts)
    caller = Caller(a.rpc_port)
    for _ in range(2):
        await caller.round()
    await asyncio.to_thread(wait_followed, b)
    assert await asyncio.to_thread(b.stop) == 0
    await wait_owners(a, "a", "a")
    await caller.round()
    await asyncio.to_thread(make_durable, a)
    deadline = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(is_behind_the_log, a, b):
        assert time.monotonic() < deadline, "nothing is trimmed"
        begin_snapshots(a)
        await caller.round()

    b.launch()
    await wait_owners(a, "a", "b")
    await wait_page(b, 200, "ready")
    deadline = time.monotonic() + WAIT_S
    while b.log.read_text().count(" again, ") < SHARDS or any(lacks(b).values()):
        assert time.monotonic() < deadline, f"{lacks(b)}\n{b.log.read_text()}"
        await asyncio.sleep(0.1)
    status = {"history_lacks": ["not asked"]}
    while status["history_lacks"]:
        assert time.monotonic() < deadline, status
        code, text = await asyncio.to_thread(billing, b, "cluster", "status", "--json")
        assert code == 0, text
        status = json.loads(text)

    caller.port, caller._rpc = b.rpc_port, None
    await caller.round()
    a.kill()
    await wait_owners(b, "b", "b")
    await wait_page(b, 200, "ready")
    await caller.check()
    for user in USERS:
        rows = await caller.call("history", user, {"limit": 1000})
        assert [row["entry_id"] for row in rows] == list(range(len(rows), 0, -1)), "by the host that was away"
    assert await asyncio.to_thread(b.stop) == 0
