"""The simulation with history and notices as processes on failing files: six seeds, and our own faults that they catch.
`make torture` plays two thousand.
"""

from __future__ import annotations

import pytest

from tests.simulation.faulty import BESIDE, Faulty
from tests.simulation.mutants import hunt_anywhere
from tests.simulation.run import play

SEEDS, AT_ONCE = 6, 3
FOUND = {  # seed -> what it was; each was a bug
    50: "a shard was drained and gone before its journal said that its last bucket had left",
    95: "behind an outage, notices waited until a wall clock that was set back had come to their instants",
    137: "notices that a checkpoint had committed were told only with the next batch of their shard",
    534: "a file that was set back owed again what it had told before its bucket left: its shard never went",
    508: "the end of a history was set back, and its pages were not: batches were taken twice",
    440: "a shard was drained in the moment of a stop, and the file that its notices had closed was asked what it owes",
    160: "the file of a bucket's former owner was made anew, and what it had not written again was answered as missing",
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


@pytest.mark.parametrize("fault", BESIDE, ids=lambda fault: fault.name)
def test_our_own_faults_are_caught_by_the_seed_that_is_known_to(fault: Faulty) -> None:
    assert hunt_anywhere(fault, HUNTED)["seed"] is not None, f"{fault.name} survives"
