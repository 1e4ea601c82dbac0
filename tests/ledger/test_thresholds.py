"""Thresholds: each crossing once downward, re-armed above, at its exact instant."""

from __future__ import annotations

import pytest

from billing.ledger.commands import BY_AMOUNT, BY_RUNWAY
from tests.ledger.driver import HOUR, LedgerDriver


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    return driver


def fired(driver: LedgerDriver) -> list[tuple[int, int, int]]:
    """(kind, value, at_ns) of all threshold entries."""
    return [(entry.a, entry.b, entry.at_ns) for entry in driver.entries("u") if entry.op == 34]


def test_the_exact_instant_of_a_threshold_is_computed_like_e(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 50), (BY_RUNWAY, 10)], at=0)
    driver.set_rate("u", 3 * HOUR, at=0)  # E is 34
    driver.view("u", at=33)
    assert fired(driver) == [(BY_AMOUNT, 50, 17), (BY_RUNWAY, 10, 24)]
    assert driver.filed[-1][1] == 17


def test_each_crossing_once_and_armed_again_above(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 50)], at=0)
    driver.debit("u", 50, at=1)
    driver.debit("u", 10, at=2)
    driver.top_up("u", 10, at=3)  # 50: not above
    driver.debit("u", 1, at=4)
    assert fired(driver) == [(BY_AMOUNT, 50, 1)]
    driver.top_up("u", 2, at=5)  # 51
    driver.debit("u", 1, at=6)
    assert fired(driver) == [(BY_AMOUNT, 50, 1), (BY_AMOUNT, 50, 6)]


def test_two_thresholds_and_e_in_one_step(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 10), (BY_AMOUNT, 50)], at=0)
    driver.set_rate("u", 1000 * HOUR, at=0)
    driver.view("u", at=1)
    assert driver.operations("u")[-3:] == [("exhaust", 1), ("threshold", 1), ("threshold", 1)]
    assert fired(driver) == [(BY_AMOUNT, 10, 1), (BY_AMOUNT, 50, 1)]
    assert [kind for kind, _, _ in driver.notices()] == ["cutoff", "threshold", "threshold"], "behind the cutoff"


def test_two_thresholds_crossed_in_the_same_nanosecond_by_time(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 61), (BY_AMOUNT, 69)], at=0)
    driver.set_rate("u", 40 * HOUR, at=0)  # 60 left after 1 ns
    driver.view("u", at=2)
    assert fired(driver) == [(BY_AMOUNT, 61, 1), (BY_AMOUNT, 69, 1)]
    rows = driver.rows("u")
    assert [row["accrued_nanos"] for row in rows[-2:]] == [40, 0]


@pytest.mark.parametrize("move", ["debit", "hold", "adjust", "set_credit_limit"])
def test_whatever_crosses_downward_fires_behind_its_own_entry(driver: LedgerDriver, move: str) -> None:
    driver.set_credit_limit("u", 30, at=0)
    driver.set_thresholds("u", [(BY_AMOUNT, 100)], at=0)
    arguments = {"debit": (30,), "hold": (30,), "adjust": (-30, "x"), "set_credit_limit": (0,)}[move]
    getattr(driver, move)("u", *arguments, at=7)
    assert [operation for operation, _ in driver.operations("u")[-2:]] == [move, "threshold"]
    assert fired(driver) == [(BY_AMOUNT, 100, 7)]


def test_a_runway_threshold_fires_when_the_rate_rises(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_RUNWAY, 20)], at=0)
    driver.set_rate("u", HOUR, at=0)
    assert fired(driver) == []
    driver.set_rate("u", 5 * HOUR, at=0)  # 20 ns
    assert fired(driver) == [(BY_RUNWAY, 20, 0)]
    driver.set_rate("u", 4 * HOUR, at=0)
    driver.set_rate("u", 5 * HOUR, at=1)
    assert len(fired(driver)) == 2


def test_at_rate_zero_the_runway_has_no_end_and_on_an_exhausted_account_it_is_zero(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_RUNWAY, 0)], at=0)
    driver.debit("u", 100, at=1)
    assert fired(driver) == [(BY_RUNWAY, 0, 1)]
    driver.set_rate("u", 5, at=2)
    driver.set_rate("u", 0, at=3)
    driver.set_rate("u", 5, at=4)
    assert len(fired(driver)) == 1
    driver.top_up("u", 1, at=5)
    driver.view("u", at=10**13)
    assert len(fired(driver)) == 2


def test_set_while_below_it_does_not_fire_until_it_was_above(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 100), (BY_AMOUNT, 500)], at=1)
    driver.debit("u", 1, at=2)
    assert fired(driver) == []
    driver.top_up("u", 2, at=3)
    driver.debit("u", 1, at=4)
    assert fired(driver) == [(BY_AMOUNT, 100, 4)]


def test_setting_the_same_thresholds_again_neither_fires_nor_re_arms(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 50)], at=0)
    driver.debit("u", 60, at=1)
    driver.set_thresholds("u", [(BY_AMOUNT, 50)], at=2)
    driver.debit("u", 1, at=3)
    assert len(fired(driver)) == 1


def test_a_threshold_that_is_taken_away_does_not_fire(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_AMOUNT, 50)], at=0)
    driver.set_thresholds("u", [], at=1)
    driver.debit("u", 60, at=2)
    assert fired(driver) == []
    assert not driver.ledger.books[3].extras


def test_one_armed_instant_per_account_the_nearest(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    driver.set_thresholds("u", [(BY_AMOUNT, 40)], at=0)
    driver.hold("u", 10, at=0, ttl=20)
    assert [due for _, due in driver.filed] == [100, 60, 20]
    ((ref, _),) = {filing for filing in driver.filed if filing[1] == 20}
    assert driver.ledger.next_due_ns([(ref, 60)]) == [-1]
    assert driver.ledger.next_due_ns([(ref, 20)]) == [20]
    driver.ledger.tick([ref], 20)
    assert driver.filed[-1] == (ref, 60)


def test_thresholds_are_shown(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_RUNWAY, 7), (BY_AMOUNT, 50)], at=0)
    assert driver.view("u", at=0)["thresholds"] == [{"amount_nanos": 50}, {"runway_ns": 7}]


def test_the_last_internal_unit_is_still_above() -> None:
    """A rate of one nano an hour leaves exactly one internal unit after an hour less a nanosecond."""
    driver = LedgerDriver()
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", 1, at=0)
    driver.set_thresholds("u", [(BY_AMOUNT, 0), (BY_RUNWAY, 0)], at=HOUR - 1)
    assert driver.entries("u")[-1].balance == 1
    driver.view("u", at=HOUR)
    assert driver.operations("u")[-3:] == [("exhaust", HOUR), ("threshold", HOUR), ("threshold", HOUR)]


def test_the_instant_of_a_threshold_in_the_last_internal_units() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", 1, at=0)
    driver.set_thresholds("u", [(BY_RUNWAY, 1)], at=HOUR - 2)
    driver.view("u", at=HOUR)
    assert fired(driver) == [(BY_RUNWAY, 1, HOUR - 1)]
