"""The simulation with history and notices as processes on failing files: seeds, and our own faults that they catch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.faulty import BESIDE, Faulty
from tests.simulation.mutants import apply, copied
from tests.simulation.run import play

SEEDS, AT_ONCE = 20, 5
FOUND = {  # seed -> what it was; each was a bug
    50: "a shard was drained and gone before its journal said that its last bucket had left",
    95: "behind an outage, notices waited until a wall clock that was set back had come to their instants",
}
_PLAY = "import sys; from tests.simulation.run import play; play(int(sys.argv[1]), follows=True)"


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_entry_is_in_the_history_and_every_notice_is_told_in_order(first: int) -> None:
    struck: set[str] = set()
    for seed in range(first, first + AT_ONCE):
        struck |= play(seed, follows=True).fired.keys()
    assert struck >= {"kill", "lose", "prove"}


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    play(seed, follows=True)


def test_a_seed_with_followers_is_repeated_exactly() -> None:
    assert play(12, follows=True) == play(12, follows=True)


@pytest.mark.parametrize(("fault", "seed"), BESIDE.items(), ids=lambda one: getattr(one, "name", str(one)))
def test_our_own_faults_are_caught_by_the_seed_that_is_known_to(fault: Faulty, seed: int, tmp_path: Path) -> None:
    copied(tmp_path)
    apply(fault, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", _PLAY, str(seed)]
    played = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert played.returncode == 1, f"{fault.name}: seed {seed} does not catch it any more"
    assert any(error in played.stderr for error in ("Violation", "Error", "Stuck")), played.stderr
