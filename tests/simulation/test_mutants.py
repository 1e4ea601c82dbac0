"""Our own faults: three, drawn anew each time, must be caught by the simulation; `python -m tests.simulation.mutants`
tries all of them. Every one must still fit the code.
"""

from __future__ import annotations

import random

import pytest

from tests.simulation.faulty import FAULTS, NOT_CAUGHT_YET
from tests.simulation.mutants import ROOT, hunt

SEED = random.SystemRandom().randrange(10**6)  # shown by a failure, in the name of the test
DRAWN = 3


def test_there_are_enough_and_each_fits_the_code_and_changes_it():
    assert len(FAULTS) - len(NOT_CAUGHT_YET) >= 30
    assert {fault.name for fault in FAULTS} >= NOT_CAUGHT_YET
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault.name
        assert fault.new != fault.old, fault.name


@pytest.mark.parametrize("number", range(DRAWN))
def test_drawn_faults_are_caught(number, record_property):
    seed = f"{SEED}"
    caught = [fault for fault in FAULTS if fault.name not in NOT_CAUGHT_YET]
    fault = random.Random(int(seed)).sample(caught, DRAWN)[number]
    record_property("fault", fault.name)
    found = hunt(fault)
    assert found["seed"] is not None, f"python -m tests.simulation.mutants {fault.name}   # drawn by {seed}: survives"
