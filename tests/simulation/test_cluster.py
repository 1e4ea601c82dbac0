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
    played = [outcome_of(seed, hosts=True) for seed in range(SEEDS)]
    wrong = [one for one in played if not one["ok"]]
    assert not wrong, "\n".join(f"{command_of(one['seed'], hosts=True)}   # {one['error']}" for one in wrong)
    fired = {kind for one in played for kind in one["fired"]}
    assert len(fired) >= len(KINDS), fired  # some have several names
    assert sum(one["epochs"] for one in played) > 3 * SEEDS


def test_a_seed_of_several_hosts_is_repeated_exactly() -> None:
    once, again = play_hosts(7), play_hosts(7)
    assert once == again
    assert play_hosts(8).digest != once.digest


@pytest.mark.parametrize("number", range(DRAWN))
def test_gates_and_preconditions_are_missed(number: int, record_property: Callable[[str, object], None]) -> None:
    fault = random.Random(SEED).sample(list(BETWEEN), DRAWN)[number]
    record_property("fault", fault.name)
    found = hunt_anywhere(fault)
    assert found["seed"] is not None, f"python -m tests.simulation.mutants {fault.name}   # drawn by {SEED}: survives"
