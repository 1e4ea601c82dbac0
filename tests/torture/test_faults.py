"""A real daemon whose real disk fails: what its clients, the other shard and `/readyz` say of it."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from pathlib import Path

import pytest

from shards.buckets import bucket_id_of
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.torture.cycles import examined
from tests.torture.faults import (
    BUCKETS,
    STOP_S,
    new_daemon,
    readiness,
    recovered_balances,
    settled_start,
    shim,
    why_not,
)

SYNCS = 60  # a start needs fewer


async def stopped(daemon: Daemon) -> None:
    """Tells it to stop, and sees that it does."""
    assert daemon.process is not None
    daemon.process.terminate()
    try:
        await asyncio.to_thread(daemon.process.wait, STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        raise


async def test_a_failed_sync_is_answered_as_unknown_and_holds_that_shard_alone(data_dir: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    daemon = new_daemon(data_dir)
    calmly = "[journal]\nidle_barrier_ms = 10000\n"  # of the syncs, only those of batches are due
    daemon.config.write_text(daemon.config.read_text().replace("[journal]\n", calmly))
    daemon.environment = {
        "LD_PRELOAD": str(shim(data_dir)), "FAULT_DIR": "data/shard-1", "FAULT_ONLY": "fdatasync",
        "FAULT_AT": str(SYNCS), "FAULT_WHAT": str(errno.EIO), "FAULT_STICKY": "1", "FAULT_LOG": str(data_dir / "hits"),
    }  # fmt: skip
    await asyncio.to_thread(daemon.start)
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("hello", {"errors": "map"})
    owners = (await rpc.ask("route"))["owners"]
    by_shard: dict[int, list[str]] = {1: [], 2: []}
    for number in range(200):
        by_shard[owners[bucket_id_of(b"u%d" % number, BUCKETS) - 1]].append(f"u{number}")
    user, neighbour, elsewhere = by_shard[1][0], by_shard[1][1], by_shard[2][0]
    route = await rpc.ask("route")
    direct, through = [await Rpc.connect(int(row["address"].rsplit(":", 1)[1])) for row in route["shards"]]
    for connection in (direct, through):
        await connection.ask("hello", {"errors": "map"})
    answered, error = 0, None
    while error is None:  # one after the other: each is a batch, and the last of them is the one that the disk refused
        error, _ = await direct.call("top_up", user, 1, {"request_id": f"r{answered}"})
        answered += error is None
        assert answered <= SYNCS, "the fault never fired"
    assert (error["name"], error["applied"], error["retry"]) == ("UNAVAILABLE", "unknown", True)
    for _ in range(500):  # until the other worker knows, it may still be passing things on
        error, _ = await through.call("top_up", neighbour, 1)
        assert (error["name"], error["retry"]) == ("UNAVAILABLE", True)
        if error["applied"] == "no":
            break
        await asyncio.sleep(0.01)
    assert error["applied"] == "no"
    assert (await through.ask("top_up", elsewhere, 5))["balance_nanos"] == 5
    for _ in range(500):
        status = await asyncio.to_thread(readiness, daemon)
        if "held" in status:
            break
        await asyncio.sleep(0.02)
    assert "shard 1: held" in status
    assert "the disk failed" in status
    assert "shard 2" not in status
    rpc.close()
    direct.close()
    through.close()
    await stopped(daemon)
    examined(data_dir / "data")
    assert answered <= (await recovered_balances(data_dir / "data"))[user] <= answered + 1


def struck_from_the_start(data_dir: Path, directory: str, error: int) -> Daemon:
    """A daemon for which every I/O call below `directory` fails alike."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    daemon = new_daemon(data_dir)
    daemon.environment = {
        "LD_PRELOAD": str(shim(data_dir)), "FAULT_DIR": directory, "FAULT_AT": "1", "FAULT_STICKY": "1",
        "FAULT_WHAT": str(error),
    }  # fmt: skip
    return daemon


async def test_a_start_without_room_for_the_map_waits_and_readyz_says_why(data_dir: Path) -> None:
    daemon = struck_from_the_start(data_dir, "data/map", errno.ENOSPC)
    status = await settled_start(daemon)
    assert "the map of the buckets: waiting: the disk is full: no room for opening: No space left on device" in status
    await stopped(daemon)


async def test_a_shard_whose_disk_takes_no_writes_from_its_start_on_is_held_as_unfit(data_dir: Path) -> None:
    """Nothing was written, so the disk did not fail; an operator has to make it writable."""
    daemon = struck_from_the_start(data_dir, "data/shard-1", errno.EROFS)
    status = await settled_start(daemon)
    assert "shard 1: held: Unfit: opening is not possible: Read-only file system" in status
    assert "shard 2" not in status
    await stopped(daemon)
    assert daemon.process is not None
    assert daemon.process.returncode == 78
