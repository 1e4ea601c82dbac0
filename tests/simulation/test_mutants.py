"""Our own faults: two, drawn anew each time, must be caught by the simulation; `make torture` tries all of them. Every
one must still fit the code.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.simulation.faulty import BESIDE, BETWEEN, FAULTS, UNSEEN
from tests.simulation.mutants import ROOT, hunt_anywhere

SEED = random.SystemRandom().randrange(10**6)  # shown by a failure, in the name of the test
DRAWN = 2


def test_there_are_enough_and_each_fits_the_code_and_changes_it() -> None:
    assert len(FAULTS) >= 30
    all_faults = [*FAULTS, *UNSEEN, *BESIDE, *BETWEEN]
    assert len({fault.name for fault in all_faults}) == len(all_faults)
    for fault in all_faults:
        for file, old, new in fault.edits:
            assert (ROOT / file).read_text().count(old) == 1, fault.name
            assert new != old, fault.name


@pytest.mark.parametrize("number", range(DRAWN))
def test_drawn_faults_are_caught(number: int, record_property: Callable[[str, object], None]) -> None:
    seed = f"{SEED}"
    fault = random.Random(int(seed)).sample(list(FAULTS), DRAWN)[number]
    record_property("fault", fault.name)
    outcome = hunt_anywhere(fault)
    assert outcome["seed"] is not None, f"python -m tests.simulation.mutants {fault.name}   # drawn by {seed}: survives"
