"""What somebody else has written to the log, or made of it, is named with its exit code, and is not served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from shards.journal.jetstream import record
from shards.journal.jetstream.log import record_at
from shards.journal.jetstream.streams import Stream
from shards.system.clock import MACHINE_CLOCKS
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.system.test_jetstream import SHARDS, billing, daemon_on
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
    daemon = daemon_on(log, data_dir / "a", cluster__node="a", cluster__replicas=1)
    log.make_all(SHARDS)
    yield daemon
    if daemon.process is not None:
        daemon.kill()


def wait_said(host: Daemon, words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while words not in (text := host.log.read_text()):
        assert time.monotonic() < deadline, f"{words}:\n{text}"
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
    chain = crc32c(body, newest.chain)
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
    code, output = await asyncio.to_thread(billing, host, "serve")
    assert (code, "a message of 14 bytes is no record" in output) == (65, True), output
