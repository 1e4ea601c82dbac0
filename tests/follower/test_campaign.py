"""Seeded lives of followers on failing disks end without a silent loss; and our own faults are caught by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.follower.campaign import first_failing, play
from tests.simulation.faulty import Faulty
from tests.simulation.mutants import apply, copied

SEEDS = 24
FAULTS = [
    Faulty(
        "trimmed-too-early",
        "billing/follower/store.py",
        "        if frames > 0 and self._proved != (salts, frames):\n",
        "        if frames < 0 and self._proved != (salts, frames):\n",
    ),
    Faulty(
        "retired-too-early",
        "billing/follower/link.py",
        "    if durable < head:\n",
        "    if durable < 0:\n",
    ),
    Faulty(
        "order-broken",
        "billing/notices/store.py",
        "                return self._may_be_lost(bucket_id, others)\n",
        "                return True\n",
    ),
]


@pytest.mark.parametrize("part", range(4))
def test_nothing_is_lost_without_a_word(part: int) -> None:
    counts = play(part * SEEDS // 4)
    for seed in range(part * SEEDS // 4 + 1, (part + 1) * SEEDS // 4):
        counts += play(seed)
    assert counts["whole"] > counts["said"]
    assert counts["moves"] > 10
    assert counts["lost write-backs"] > 5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_our_own_faults_are_caught_within_the_seeds_of_the_suite(fault: Faulty, tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "tests" / "follower").mkdir()
    for name in ("__init__.py", "campaign.py"):
        (tmp_path / "tests" / "follower" / name).write_bytes(Path(__file__).with_name(name).read_bytes())
    apply(fault, tmp_path)
    hunt = f"from tests.follower.campaign import first_failing; print(first_failing(range({SEEDS})))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", hunt], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = done.stdout.strip()
    assert found != "None", f"{fault.name} survives"
    assert found.startswith("("), found


def test_the_hunt_itself_finds_nothing_in_sound_code() -> None:
    assert first_failing(range(1)) is None
