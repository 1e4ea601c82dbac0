"""Seeded lives of followers on failing disks end without a silent loss; and our own faults are caught by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.follower.campaign import first_failing, play
from tests.simulation.faulty import Faulty
from tests.simulation.files import FailingDisk
from tests.simulation.mutants import said_by

SEEDS = 24
HUNTED = 100  # seeds that are tried where the one that caught a fault does not any more
FAULTS = {  # our own fault -> the seed that catches it
    Faulty(
        "trimmed-too-early",
        "billing/follower/store.py",
        "        if frames > 0 and self._proved != (salts, frames):\n",
        "        if frames < 0 and self._proved != (salts, frames):\n",
    ): 29,
    Faulty(
        "retired-too-early",
        "billing/follower/link.py",
        "    if durable < head:\n",
        "    if durable < 0:\n",
    ): 22,
    Faulty(
        "order-broken",
        "billing/notices/store.py",
        "                return self._may_be_lost(bucket_id, other_dbs)\n",
        "                return True\n",
    ): 0,
    Faulty(
        "what-a-former-shard-waited-for-is-forgotten",
        "billing/notices/store.py",
        "            if departed == [0]:\n",
        "            if departed:\n",
    ): 0,
}


@pytest.mark.parametrize("part", range(4))
def test_nothing_is_lost_without_a_word(part: int) -> None:
    counts = play(part * SEEDS // 4)
    for seed in range(part * SEEDS // 4 + 1, (part + 1) * SEEDS // 4):
        counts += play(seed)
    assert counts["whole"] > counts["said"]
    assert counts["moves"] > 10
    assert counts["lost write-backs"] > 5
    assert counts["shards gone"] > 0
    assert counts["shards back"] > 0
    assert counts["stops"] > 0
    assert counts["torn checkpoints"] > 0


def test_a_write_back_fails_for_a_file_and_not_for_what_is_put_in_its_place(tmp_path: Path) -> None:
    disk, path, aside = FailingDisk(), tmp_path / "file", tmp_path / "aside"
    path.write_bytes(b"old")
    disk.fail(str(path))
    path.write_bytes(b"new")
    assert disk.read_medium(str(path), 0, 512) == b"old"
    aside.write_bytes(b"another")
    disk.rename(str(aside), str(path))
    assert disk.read_medium(str(path), 0, 512) == b"another"
    assert disk.content(str(path)) == b"another"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_our_own_faults_are_caught_by_the_seed_that_is_known_to(fault: Faulty) -> None:
    seed = FAULTS[fault]
    assert hunted(fault, seed, seed + 1).startswith("("), (
        f"{fault.name}: seed {seed} does not catch it any more; {hunted(fault, 0, HUNTED)} does"
    )


def hunted(fault: Faulty, first: int, end: int) -> str:
    """What the first of these seeds that fails with the faulty code says; "None" where none does."""
    hunt = f"from tests.follower.campaign import first_failing; print(first_failing(range({first}, {end})))"
    return said_by(fault, hunt)


def test_the_hunt_itself_finds_nothing_in_sound_code() -> None:
    assert first_failing(range(1)) is None
