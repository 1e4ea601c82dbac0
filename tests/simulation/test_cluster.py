"""Several hosts over one log on a virtual clock: ten seeds, each with its faults; see `tests.simulation.cluster`.
`make torture` plays two thousand.

A seed that fails names the command that repeats it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.simulation.campaign import command_of, outcome_of
from tests.simulation.cluster_run import KINDS, play_hosts
from tests.simulation.faulty import BETWEEN
from tests.simulation.mutants import hunt_anywhere

SEEDS = 10
SEED = random.SystemRandom().randrange(10**6)  # shown by a failure
DRAWN = 3  # of our own faults, anew each time; `make torture` tries all of them


def test_seeds() -> None:
    outcomes = [outcome_of(seed, hosts=True) for seed in range(SEEDS)]
    failed = [outcome for outcome in outcomes if not outcome["ok"]]
    assert not failed, "\n".join(
        f"{command_of(outcome['seed'], hosts=True)}   # {outcome['error']}" for outcome in failed
    )
    fired = {kind for outcome in outcomes for kind in outcome["fired"]}
    assert len(fired) >= len(KINDS), fired  # some have several names
    assert sum(outcome["epochs"] for outcome in outcomes) > 3 * SEEDS


def test_a_seed_of_several_hosts_is_repeated_exactly() -> None:
    first, second = play_hosts(7), play_hosts(7)
    assert first == second
    assert play_hosts(8).digest != first.digest


@pytest.mark.parametrize("number", range(DRAWN))
def test_gates_and_preconditions_are_missed(number: int, record_property: Callable[[str, object], None]) -> None:
    fault = random.Random(SEED).sample(list(BETWEEN), DRAWN)[number]
    record_property("fault", fault.name)
    outcome = hunt_anywhere(fault)
    assert outcome["seed"] is not None, f"python -m tests.simulation.mutants {fault.name}   # drawn by {SEED}: survives"
