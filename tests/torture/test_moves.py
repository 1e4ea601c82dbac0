"""Moves under kills, each of the three struck once; `python -m tests.torture.moves` is the long form."""

from __future__ import annotations

from pathlib import Path

from tests.torture.cycles import struck_daemon
from tests.torture.moves import TARGETS, kills, rebalancing

CYCLES = len(TARGETS)


async def test_source_target_or_supervisor_dies_while_buckets_move(data_dir: Path) -> None:
    daemon = struck_daemon(data_dir, shards__workers=3)
    try:
        counts = await kills(daemon, CYCLES, 1)
    finally:
        if daemon.process is not None:
            daemon.kill()
    assert all(counts[target] == 1 for target in TARGETS)
    assert counts["moved"] > 0


async def test_workers_die_while_buckets_even_out(data_dir: Path) -> None:
    daemon = struck_daemon(data_dir, shards__workers=2)
    try:
        counts = await rebalancing(daemon, 0, 1)
    finally:
        if daemon.process is not None:
            daemon.kill()
    assert counts["balanced"] >= 2
