"""What somebody else has written to the log, or made of it, is named with its exit code, and is not served."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.journal.jetstream import record
from shards.journal.jetstream.log import record_at
from shards.journal.jetstream.streams import Stream
from shards.system.clock import MACHINE_CLOCKS
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.system.test_jetstream import billing, daemon_on
from tests.system.test_standby import WAIT_S

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture
def log(data_dir: Path) -> Iterator[NatsCluster]:
    """One server, as for trying."""
    directory = data_dir / "servers"
    directory.mkdir()
    cluster = NatsCluster(directory, 1)
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def host(log: NatsCluster, data_dir: Path) -> Iterator[Daemon]:
    """One of two shards; the streams are made, and nothing runs yet."""
    made = daemon_on(log, data_dir / "a", cluster__node="a", cluster__replicas=1, cluster__retain_bytes=0)
    assert billing(made, "cluster", "init")[0] == 0
    yield made
    if made.process is not None:
        made.kill()


def wait_said(host: Daemon, words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while words not in (said := host.log.read_text()):
        assert time.monotonic() < deadline, f"{words}:\n{said}"
        time.sleep(0.05)


def last_batch(log: NatsCluster, shard: int) -> record.Record:
    connection = log.connect()
    stream = Stream(connection, f"J_{shard}", WAIT_S, MACHINE_CLOCKS.boot_ns)
    newest = record_at(stream, stream.state().last, shard)
    connection.close()
    return newest


async def users_of(rpc: Rpc) -> dict[int, str]:
    """shard -> a user whom it serves."""
    route = {row["bucket_id"]: row["shard_id"] for row in await rpc.ask("buckets_info")}
    return {route[await rpc.ask("bucket_id", f"user-{number}")]: f"user-{number}" for number in range(32)}


async def test_who_writes_to_a_journal_and_is_no_owner_is_named_and_that_shard_is_not_served(
    log: NatsCluster, host: Daemon
) -> None:
    await asyncio.to_thread(host.start)
    rpc = await Rpc.connect(host.rpc_port)
    users = await users_of(rpc)
    for user in users.values():
        await rpc.ask("top_up", user, 1000)
    newest = last_batch(log, 1)
    body = b"right checksums, and an epoch that nobody owns"
    chain = record.crc32c(body, newest.chain)
    fields = newest.position + 1, newest.chain, chain, newest.time_ns, newest.until_ns, body
    log.publish("J.1", record.pack(record.Record(record.BATCH, 1, 0, 1, 77, *fields)))
    await asyncio.to_thread(wait_said, host, "shard 1 is held")
    assert "a record of epoch 77 stands in epoch 1" in host.log.read_text()
    rpc = await Rpc.connect(host.rpc_port)  # the one before may have been the held shard's
    assert (await rpc.ask("get_account", users[2]))["balance_nanos"] == 1000, "the other shard serves on"
    rpc.close()

    log.publish("J.2", b"something else")
    assert host.process is not None
    assert await asyncio.to_thread(host.process.wait, WAIT_S) == 65, "no shard is left"
    assert "somebody who is no owner writes to J.2" in host.log.read_text()
    host.process = None
    code, said = await asyncio.to_thread(billing, host, "serve")
    assert (code, "a message of 14 bytes is no record" in said) == (65, True), said


def test_streams_of_another_cluster_and_of_nobody_are_named(log: NatsCluster, host: Daemon) -> None:
    config = log.ask("STREAM.INFO.S_1")["config"]
    another = config | {"metadata": config["metadata"] | {"billing.cluster": "another"}}
    assert "error" not in log.ask("STREAM.UPDATE.S_1", another)
    code, said = billing(host, "serve")
    assert code == 78
    assert "the streams are of different clusters" in said
    assert "S_1 of another" in said
    assert "error" not in log.ask("STREAM.UPDATE.S_1", config | {"metadata": {}})
    code, said = billing(host, "serve")
    assert code == 78
    assert "S_1: made by somebody else" in said


async def test_a_host_that_returns_after_the_log_has_moved_on_serves_what_is_there_now(
    log: NatsCluster, host: Daemon, data_dir: Path
) -> None:
    """What it has seen last was trimmed long ago."""
    await asyncio.to_thread(host.start)
    rpc = await Rpc.connect(host.rpc_port)
    users = list((await users_of(rpc)).values())
    for user in users:
        await rpc.ask("top_up", user, 1000)
    rpc.close()
    assert host.stop() == 0

    keys = {"cluster__replicas": 1, "cluster__retain_bytes": 0}
    other = daemon_on(log, data_dir / "b", cluster__node="b", **keys)
    try:
        await asyncio.to_thread(other.start)
        rpc = await Rpc.connect(other.rpc_port)
        deadline, turns = time.monotonic() + WAIT_S, 0
        while not (is_trimmed(log, 1) and is_trimmed(log, 2)):  # a snapshot lets go what the one before it had
            assert time.monotonic() < deadline, "nothing is trimmed"
            turns += 1
            for user in users:
                await rpc.ask("top_up", user, 1000)
            for pid in other.worker_pids():
                os.kill(pid, signal.SIGUSR1)
            await asyncio.sleep(0.05)
        rpc.close()
        assert other.stop() == 0
    finally:
        if other.process is not None:
            other.kill()
    await asyncio.to_thread(host.start)
    rpc = await Rpc.connect(host.rpc_port)
    for user in users:
        assert (await rpc.ask("get_account", user))["balance_nanos"] == 1000 * (1 + turns)
        rows = await rpc.ask("history", user, {"limit": 100})
        assert rows[-1]["entry_id"] == 1, "what this host has had itself"
        assert {row["operation"] for row in rows} <= {"top_up", "missing"}, rows
    rpc.close()
    assert host.stop() == 0


def is_trimmed(log: NatsCluster, shard: int) -> bool:
    return bool(log.ask(f"STREAM.INFO.J_{shard}")["state"]["first_seq"] > 1)
