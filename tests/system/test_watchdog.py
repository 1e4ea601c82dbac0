"""The watchdog is fed only while every worker's last sync is fresh: a disk that holds one starves it.

The real daemon, whose syncs wait for as long as a file is there (tests/torture/failing.c), on a machine that is
suspended again and again meanwhile, so that nobody waits for its patience to end.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from shards.buckets import bucket_id_of
from tests.system.clock_step import ClockStep
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.system.systemd import FakeServiceManager, start
from tests.torture.faults import shim, why_not


async def test_a_sync_that_does_not_return_starves_the_watchdog_until_it_does(data_dir: Path) -> None:
    """At shard 1 it is the idle barrier behind an answered batch, at shard 2 a batch itself."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    stall = data_dir / "stall"
    manager = FakeServiceManager(data_dir)
    clock, suspended_s = ClockStep(data_dir, suspends=True), 0.0
    daemon = Daemon(data_dir, journal__idle_barrier_ms=3000)
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000"}
    shims = f"{shim(data_dir)} {clock.environment['LD_PRELOAD']}"
    shimmed = {"LD_PRELOAD": shims, "FAULT_DIR": "data/shard-", "FAULT_STALL": str(stall)}
    start(daemon, environ | clock.environment | shimmed)
    try:
        manager.wait_for("READY")
        rpc = await Rpc.connect(daemon.rpc_port)
        owners = (await rpc.ask("route"))["owners"]
        names = {owners[bucket_id_of(b"u%d" % number, len(owners)) - 1]: f"u{number}" for number in range(50)}
        await rpc.ask("top_up", names[1], 5)
        stall.touch()
        waiting = asyncio.ensure_future(rpc.call("top_up", names[2], 7))
        deadline = time.monotonic() + 60
        words = [f"shard {shard_id}: the disk has held a batch for" for shard_id in (1, 2)]
        while not all(any(text in status for status in manager.statuses()) for text in words):
            assert time.monotonic() < deadline, manager.statuses()[-3:]
            suspended_s += 2
            clock.suspended(suspended_s)
            await asyncio.sleep(0.1)
        fed = manager.count("WATCHDOG")
        await asyncio.sleep(2)
        assert not waiting.done()
        assert manager.count("WATCHDOG") == fed
        stall.unlink()
        manager.wait_for("WATCHDOG", fed + 2)
        assert (await waiting)[1]["balance_nanos"] == 7, "the batch was written once the disk went on"
        assert (await rpc.ask("get_account", names[1]))["balance_nanos"] == 5
        assert daemon.stop() == 0
    finally:
        stall.unlink(missing_ok=True)
        if daemon.process is not None:
            daemon.kill()
        manager.close()
