"""Caps on a lifetime: admission by `min_runway_ns`, and holds, beside credits that end, leases and graces."""

from __future__ import annotations

import pytest

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from tests.ledger.driver import HOUR, LedgerDriver, refusal

MS = ops.LEASE_NS_MIN


@pytest.fixture
def driver() -> LedgerDriver:
    """60 nanos that never end and 40 that end at 50, at a nano a nanosecond of whoever asks for admission."""
    driver = LedgerDriver(classes={b"gold": CutoffClass(grace_ns=1000)})
    driver.top_up("u", 60, at=0)
    driver.top_up("u", 40, at=0, options=ops.top_up_options(50, b"promo"))
    return driver


@pytest.mark.parametrize(
    ("rate", "lasts"),
    [
        (HOUR, 100),  # the 40 are spent by 40, before their end
        (HOUR * 2, 50),  # all is spent at 50: what ends then is spent
        (HOUR // 2, 170),  # 25 of the 40 are spent by their end and 15 lost; the 60 last 120 from there on
    ],
)
def test_a_rate_is_admitted_for_as_long_as_the_money_lasts_and_not_a_nanosecond_longer(
    driver: LedgerDriver, rate: int, lasts: int
) -> None:
    error = refusal(driver.set_rate, "u", rate, at=0, min_runway=lasts + 1)
    assert (error.name, error.details["runway_ns"]) == ("INSUFFICIENT_RUNWAY", lasts)
    reply = driver.set_rate("u", rate, at=0, min_runway=lasts)
    assert reply["runway_ns"] == lasts
    driver.view("u", at=lasts)
    assert driver.operations("u")[-1] == ("exhaust", lasts)


def test_a_hold_is_no_money_to_run_on(driver: LedgerDriver) -> None:
    driver.hold("u", 30, at=0)
    error = refusal(driver.set_rate, "u", HOUR, at=0, min_runway=71)
    assert error.details["runway_ns"] == 70
    assert driver.set_rate("u", HOUR, at=0, min_runway=70)["exhausts_at_ns"] == 70


def test_a_lease_is_admitted_as_if_it_were_renewed(driver: LedgerDriver) -> None:
    lease = ops.number_option(ops.TTL_NS, MS)
    error = refusal(driver.set_rate, "u", HOUR, at=0, min_runway=101, options=lease)
    assert error.details["runway_ns"] == 100, "the money must last for as long as was asked, whatever the lease"
    driver.set_rate("u", HOUR, at=0, min_runway=100, options=lease)


def test_a_line_whose_lease_has_ended_takes_nothing_from_the_runway_of_the_next() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10 * MS, at=0)
    driver.set_rate("u", HOUR, at=0, resource="a", options=ops.number_option(ops.TTL_NS, MS))
    error = refusal(driver.set_rate, "u", HOUR, at=MS - 1, resource="b", min_runway=5 * MS)
    assert error.details["runway_ns"] == (9 * MS + 1 + 1) // 2, "both lines spend"
    assert driver.set_rate("u", HOUR, at=MS, resource="b", min_runway=9 * MS)["runway_ns"] == 9 * MS


def test_a_grace_is_no_money_to_run_on(driver: LedgerDriver) -> None:
    driver.set_class("u", "gold", at=0)
    assert refusal(driver.set_rate, "u", HOUR, at=0, min_runway=101).details["runway_ns"] == 100
    driver.set_rate("u", HOUR, at=0)
    assert refusal(driver.set_rate, "u", HOUR, at=100, resource="vm", min_runway=0).details["runway_ns"] == 0


def test_a_hold_keeps_no_credit_from_ending_and_takes_of_what_is_spent_first(driver: LedgerDriver) -> None:
    assert refusal(driver.hold, "u", 101, at=0).details["shortfall_nanos"] == 1
    name = driver.hold("u", 100, at=0)["hold_id"]
    view = driver.view("u", at=50)
    assert (view["balance_nanos"], view["available_nanos"], view["state"]) == (60, -40, "exhausted")
    assert driver.capture("u", name, 60, at=50)["balance_nanos"] == 0


def test_a_capture_before_the_end_takes_the_credit_first(driver: LedgerDriver) -> None:
    name = driver.hold("u", 30, at=0)["hold_id"]
    driver.capture("u", name, 30, at=1)
    assert [credit["left_nanos"] for credit in driver.view("u", at=1)["credits"]] == [10]
    assert driver.view("u", at=50)["balance_nanos"] == 60
