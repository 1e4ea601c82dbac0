"""Buckets of the real daemon change their owner under load: nothing is lost, doubled, or seen as an error."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.pipelined_load import PipelinedLoad
from tests.system.rpc import Rpc
from tests.system.test_reload import until_buckets

LOAD_PAUSE_S = 0.01  # a move meets some pipelines, and no core is full


async def test_a_move_under_load_loses_nothing_and_keeps_the_order_of_a_connection(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        clients = [await Rpc.connect(daemon.rpc_port) for _ in range(4)]
        load = PipelinedLoad(clients, [f"mover_{number}" for number in range(8)], depth=8, pause_s=LOAD_PAUSE_S)
        buckets = await load.begin()
        operator = await Rpc.connect(daemon.rpc_port)
        rng, moved = random.Random(1), 0
        for _ in range(40):
            error, _ = await operator.call("move_bucket", rng.choice(sorted(buckets)), rng.choice((1, 2)))
            moved += error is None
            assert error is None or "already" in error, error
            await asyncio.sleep(0.02)
        await load.stop()
        assert moved >= 10
        await load.check(clients[0])
        generations = {row["bucket_id"]: row["generation"] for row in await operator.ask("buckets_info")}
        assert sum(generations[bucket_id] - 1 for bucket_id in buckets) == moved
        for bucket_id in buckets:
            await operator.call("move_bucket", bucket_id, 1)  # or it is there already
        assert (await operator.ask("rebalance"))["moves"] > 1
        daemon.kill()
        daemon.start()
        rpc = await Rpc.connect(daemon.rpc_port)
        await load.check(rpc)
        async with asyncio.timeout(60):  # the next life goes on with what was asked for
            while len({row["buckets"] for row in await rpc.ask("shards_info")}) != 1:
                await asyncio.sleep(0.02)


async def test_workers_may_change_at_a_restart_and_the_buckets_even_out(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1, shards__bucket_count=60)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(200):
            await rpc.ask("top_up", f"u{number}", 1000 + number)
        for workers in (3, 2, 1):
            daemon.stop()
            line = next(line for line in daemon.config.read_text().splitlines() if line.startswith("workers"))
            daemon.config.write_text(daemon.config.read_text().replace(line, f"workers = {workers}"))
            daemon.start()
            await until_buckets(daemon, [60 // workers] * workers)
            rpc = await Rpc.connect(daemon.rpc_port)
            for number in range(200):
                assert (await rpc.ask("get_account", f"u{number}"))["balance_nanos"] == 1000 + number
