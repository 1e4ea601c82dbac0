"""One cutoff for each downward crossing of available, whatever caused it, as CONTRACT §4 has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.ledger.driver import HOUR, LedgerDriver


@pytest.mark.parametrize("cause", ["time", "debit at rate 0", "partial", "force", "hold", "lowered limit", "adjust"])
def test_a_cutoff_fires_once_for_each_downward_crossing_whatever_caused_it(cause: str) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_credit_limit("u", 20, at=0)
    causes: dict[str, Callable[[int], object]] = {
        "time": lambda at: driver.set_rate("u", 120 * HOUR, at=at - 1),
        "debit at rate 0": lambda at: driver.debit("u", 120, at=at),
        "partial": lambda at: driver.debit("u", 1000, at=at, mode="partial"),
        "force": lambda at: driver.debit("u", 130, at=at, mode="force"),
        "hold": lambda at: driver.hold("u", 120, at=at),
        "lowered limit": lambda at: (driver.debit("u", 110, at=at), driver.set_credit_limit("u", 5, at=at)),
        "adjust": lambda at: driver.adjust("u", -125, "wrong", at=at),
    }
    for round_, at in ((1, 1000), (2, 2000)):
        causes[cause](at)
        driver.view("u", at=at)
        for later in (0, 1, 499):  # neither time nor what goes further down fires again
            driver.debit("u", 1, at=at + later, mode="force")
            driver.view("u", at=at + later)
        assert driver.cutoffs() == [round_]
        assert driver.view("u", at=at)["cutoff"]["exhausted_at_ns"] == at
        driver.set_rate("u", 0, at=at + 600)
        driver.set_credit_limit("u", 20, at=at + 600)
        below = -driver.view("u", at=at + 600)["available_nanos"]
        assert driver.top_up("u", below + 120, at=at + 700)["state"] == "active"
    assert driver.view("u", at=3000)["exhaustion_seq"] == 2
