"""The simulation with history and notices as processes on failing files: ten seeds, and our own faults that they catch.
`make torture` plays two thousand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.faulty import BESIDE, Faulty
from tests.simulation.mutants import apply, copied
from tests.simulation.run import play

SEEDS, AT_ONCE = 10, 5
FOUND = {  # seed -> what it was; each was a bug
    50: "a shard was drained and gone before its journal said that its last bucket had left",
    95: "behind an outage, notices waited until a wall clock that was set back had come to their instants",
    137: "notices that a checkpoint had committed were told only with the next batch of their shard",
    534: "a file that was set back owed again what it had told before its bucket left: its shard never went",
    508: "the end of a history was set back, and its pages were not: batches were taken twice",
    440: "a shard was drained in the moment of a stop, and the file that its notices had closed was asked what it owes",
}
HUNTED = 120  # seeds that are tried where the one that caught a fault does not any more


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
    assert hunted(tmp_path, seed, seed + 1) != "None" or hunted(tmp_path, 0, HUNTED) != "None", f"{fault.name} survives"


def hunted(root: Path, first: int, end: int) -> str:
    """What the first of these seeds that fails with the code under `root` says; "None" where none does."""
    hunt = f"from tests.simulation.campaign import first_failing; print(first_failing({first}, {end}, follows=True))"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", hunt], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
