"""A data directory whose map is gone: refused with what helps, made again by `billing rebuild --map`, nothing lost."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

BUCKETS = 16


async def fill(daemon: Daemon) -> tuple[dict[str, int], dict[int, tuple[int, int]]]:
    """Users with money, one bucket moved there and back, another moved away; balances, and who owns what."""
    rpc = await Rpc.connect(daemon.rpc_port)
    for number in range(60):
        await rpc.ask("top_up", f"user-{number}", 1_000 + number)
    owners = {row["bucket_id"]: row["shard_id"] for row in await rpc.ask("buckets_info")}
    returned_bucket, moved_bucket = (bucket for bucket, shard in sorted(owners.items())[:2] if shard == 1)
    await rpc.ask("move_bucket", returned_bucket, 2)
    await rpc.ask("move_bucket", returned_bucket, 1)
    await rpc.ask("move_bucket", moved_bucket, 2)
    for number in range(60):  # which is answered once both shards' histories have written it
        assert await rpc.ask("history", f"user-{number}")
    return await state_of(rpc)


async def state_of(rpc: Rpc) -> tuple[dict[str, int], dict[int, tuple[int, int]]]:
    users = [f"user-{number}" for number in range(60)]
    balances = {user: (await rpc.ask("get_account", user))["balance_nanos"] for user in users}
    rows = await rpc.ask("buckets_info")
    rpc.close()
    return balances, {row["bucket_id"]: (row["shard_id"], row["generation"]) for row in rows}


async def look(daemon: Daemon) -> tuple[dict[str, int], dict[int, tuple[int, int]]]:
    return await state_of(await Rpc.connect(daemon.rpc_port))


def billing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "billing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_start_without_the_map_is_refused_and_the_map_is_made_again_from_the_shards(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, shards__workers=2, shards__bucket_count=BUCKETS).start()
    state = asyncio.run(fill(daemon))
    daemon.kill()
    data = tmp_path / "data"
    shutil.move(data / "map", tmp_path / "gone")

    process = daemon.launch()
    assert process.wait(120) == 65
    log = daemon.log.read_text()
    assert "the map of the buckets is gone, and shards 1, 2 are there" in log
    assert "`billing rebuild --map`" in log
    assert not any(path.name.startswith("snapshot-") for path in (data / "map").glob("*"))

    result = billing("rebuild", "--map", "--config", daemon.config)
    assert result.returncode == 0, result.stderr
    assert "map: made again from what the shards hold: shard 1 owns 7, shard 2 owns 9" in result.stdout
    second = billing("rebuild", "--map", "--config", daemon.config)
    assert (second.returncode, f"already, {data}/map (version" in second.stderr) == (1, True), second.stderr
    assert "nothing was changed" in second.stderr
    assert "damaged" not in second.stderr

    daemon.start()
    try:
        assert asyncio.run(look(daemon)) == state
    finally:
        assert daemon.stop() == 0
    proof = billing("doctor", "--config", daemon.config)
    assert proof.returncode == 0, proof.stdout + proof.stderr
