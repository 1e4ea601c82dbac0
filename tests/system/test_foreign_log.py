"""What somebody else has written to the log, or made of it, is named with its exit code, and is not served."""

from __future__ import annotations

import asyncio
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
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import SHARDS, WAIT_S, billing, daemon_on, wait_said
from tests.system.rpc import Rpc

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture
def host(log_server: NatsCluster, data_dir: Path) -> Iterator[Daemon]:
    """One of two shards; the streams are made, and nothing runs yet."""
    daemon = daemon_on(log_server, data_dir / "a", cluster__node="a", cluster__replicas=1)
    log_server.make_all(SHARDS)
    with killed_in_the_end(daemon):
        yield daemon


def last_batch(log_server: NatsCluster, shard: int) -> record.Record:
    connection = log_server.connect()
    stream = Stream(connection, f"J_{shard}", WAIT_S, MACHINE_CLOCKS.boot_ns)
    newest = record_at(stream, stream.state().last, shard)
    connection.close()
    return newest


async def users_of(rpc: Rpc) -> dict[int, str]:
    """shard -> a user whom it serves."""
    route = {row["bucket_id"]: row["shard_id"] for row in await rpc.ask("buckets_info")}
    return {route[await rpc.ask("bucket_id", f"user-{number}")]: f"user-{number}" for number in range(32)}


async def test_who_writes_to_a_journal_and_is_no_owner_is_named_and_that_shard_is_not_served(
    log_server: NatsCluster, host: Daemon
) -> None:
    await asyncio.to_thread(host.start)
    rpc = await Rpc.connect(host.rpc_port)
    users = await users_of(rpc)
    for user in users.values():
        await rpc.ask("top_up", user, 1000)
    newest = last_batch(log_server, 1)
    body = b"right checksums, and an epoch that nobody owns"
    chain = crc32c(body, newest.chain)
    fields = newest.position + 1, newest.chain, chain, newest.time_ns, newest.until_ns, body
    log_server.publish("J.1", record.pack(record.Record(record.BATCH, 1, 0, 1, 77, *fields)))
    await asyncio.to_thread(wait_said, host, "shard 1 is held")
    assert "a record of epoch 77 stands in epoch 1" in host.log.read_text()
    rpc = await Rpc.connect(host.rpc_port)  # the one before may have been the held shard's
    assert (await rpc.ask("get_account", users[2]))["balance_nanos"] == 1000, "the other shard serves on"
    rpc.close()

    log_server.publish("J.2", b"something else")
    assert host.process is not None
    assert await asyncio.to_thread(host.process.wait, WAIT_S) == 65, "no shard is left"
    assert "somebody who is no owner writes to J.2" in host.log.read_text()
    host.process = None
    code, output = await asyncio.to_thread(billing, host, "serve")
    assert (code, "a message of 14 bytes is no record" in output) == (65, True), output
