"""Debits, limits, corrections and holds, as CONTRACT §3 has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from billing.ledger.balances import HOLDS_MAX
from billing.ledger.entry import CROSSED, RESTORED
from billing.ledger.money import INT64_MAX, NANO
from tests.ledger.driver import HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    return driver


def test_top_up_adds_money_and_creates_the_account_if_new(driver: LedgerDriver) -> None:
    assert driver.top_up("u", 7, at=1)["balance_nanos"] == 107
    reply = driver.top_up("new", 5, at=2)
    assert (reply["balance_nanos"], reply["state"], reply["entry_id"], reply["exhaustion_seq"]) == (5, "active", 1, 0)
    assert (reply["rate_nanos_per_hour"], reply["credit_limit_nanos"], reply["exhausts_at_ns"]) == (0, 0, None)
    assert driver.view("u", at=2)["balance_nanos"] == 107


def test_state_is_active_while_available_is_above_zero_else_exhausted(driver: LedgerDriver) -> None:
    """Available is balance + credit limit - open holds, whichever of the three moves."""
    driver.set_credit_limit("u", 50, at=1)
    driver.hold("u", 30, at=1, request_id="h")
    view = driver.view("u", at=1)
    assert (view["balance_nanos"], view["credit_limit_nanos"], view["holds_nanos"]) == (100, 50, 30)
    assert (view["available_nanos"], view["state"]) == (120, "active")
    moves: list[tuple[Callable[[int], dict[str, Any]], int, int, str]] = [
        (lambda at: driver.debit("u", 119, at=at), 2, 1, "active"),
        (lambda at: driver.debit("u", 1, at=at), 3, 0, "exhausted"),
        (lambda at: driver.set_credit_limit("u", 49, at=at), 4, -1, "exhausted"),
        (lambda at: driver.release("u", "r:h", at=at), 5, 29, "active"),
    ]
    for move, at, available, state in moves:
        reply = move(at)
        assert (reply["available_nanos"], reply["state"]) == (available, state)


def test_strict_is_refused_with_insufficient_funds_if_it_exceeds_what_is_available(driver: LedgerDriver) -> None:
    error = refusal(driver.debit, "u", 130, at=1)
    assert (error.name, error.applied, error.retry) == ("INSUFFICIENT_FUNDS", "no", False)
    assert error.details["shortfall_nanos"] == 30
    assert error.details["available_nanos"] == 100
    assert driver.debit("u", 99, at=2)["outcome"] == "ok"


def test_a_shortfall_counts_the_missing_fraction_as_a_nano(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR // 2, at=0)
    assert refusal(driver.debit, "u", 100, at=1).details["shortfall_nanos"] == 1  # 99.5 are there
    assert driver.debit("u", 99, at=1)["state"] == "active", "a fraction of a nano is still money"


def test_partial_takes_what_is_there_the_fraction_of_a_nano_included(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR // 2, at=0)
    reply = driver.debit("u", 100, at=1, mode="partial")
    assert (reply["debited_nanos"], reply["outcome"], reply["balance_nanos"]) == (99, "exhausted", 0)
    assert driver.entries("u")[-1].balance == 0
    reply = driver.debit("u", 5, at=2, mode="partial")
    assert (reply["debited_nanos"], reply["outcome"]) == (0, "exhausted")
    assert driver.cutoffs() == [1]


def test_partial_takes_no_more_than_it_is_asked_for(driver: LedgerDriver) -> None:
    reply = driver.debit("u", 40, at=1, mode="partial")
    assert (reply["debited_nanos"], reply["outcome"], reply["balance_nanos"]) == (40, "ok", 60)


def test_force_may_go_below(driver: LedgerDriver) -> None:
    reply = driver.debit("u", 150, at=1, mode="force")
    assert (reply["balance_nanos"], reply["available_nanos"], reply["outcome"]) == (-50, -50, "exhausted")
    reply = driver.debit("u", 1, at=1, mode="force")
    assert reply["balance_nanos"] == -51
    assert driver.cutoffs() == [1], "one crossing, one cutoff"


def test_a_refused_debit_changes_nothing_and_is_remembered_for_its_notice(driver: LedgerDriver) -> None:
    before = driver.state()
    refusal(driver.debit, "u", 101, at=5)
    assert driver.state() == before
    (entry,) = (entry for entry in driver.entries("u") if entry.refusal)
    assert (entry.entry_id, entry.amount, entry.accrued, entry.at_ns) == (0, 0, 0, 5)
    assert len(driver.rows("u")) == 1


def test_other_refusals_without_a_request_id_leave_no_entry(driver: LedgerDriver) -> None:
    driver.entries()
    refusal(driver.hold, "u", 101, at=5)
    refusal(driver.release, "u", "e:9", at=5)
    assert len(driver.entries()) == 1


def test_a_credit_limit_is_how_far_below_zero_available_money_reaches(driver: LedgerDriver) -> None:
    assert driver.set_credit_limit("u", 50, at=1)["available_nanos"] == 150
    assert driver.debit("u", 150, at=2)["balance_nanos"] == -50
    assert driver.cutoffs() == [1]
    assert driver.set_credit_limit("u", 60, at=3)["restored"] is True


def test_lowering_the_limit_may_exhaust_at_once(driver: LedgerDriver) -> None:
    driver.set_credit_limit("u", 50, at=1)
    driver.debit("u", 120, at=2)
    reply = driver.set_credit_limit("u", 20, at=3)
    assert (reply["state"], reply["available_nanos"], reply["exhaustion_seq"]) == ("exhausted", 0, 1)
    assert driver.set_credit_limit("u", 0, at=4)["available_nanos"] == -20
    assert driver.cutoffs() == [1]


def test_adjust_books_a_difference_as_what_it_is(driver: LedgerDriver) -> None:
    assert driver.adjust("u", -30, "counted twice", at=1)["balance_nanos"] == 70
    row = driver.rows("u")[-1]
    assert (row["operation"], row["amount_nanos"], row["message"]) == ("adjust", -30, "counted twice")
    assert driver.adjust("u", -70, "all of it", at=2)["state"] == "exhausted"
    assert driver.adjust("u", 1, "or not", at=3)["restored"] is True


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("top_up", (INT64_MAX,)), ("adjust", (INT64_MAX, "x")), ("debit", (INT64_MAX, 1, "force"))],
)
def test_what_would_leave_the_bounds_is_refused_with_limit_exceeded(
    driver: LedgerDriver, method: str, arguments: tuple[Any, ...]
) -> None:
    if method == "debit":
        driver.debit("u", 101, at=0, mode="force")
    before = driver.state()
    error = refusal(getattr(driver, method), "u", *arguments, **({} if method == "debit" else {"at": 1}))
    assert (error.name, error.details["limit"], error.applied) == ("LIMIT_EXCEEDED", "balance", "no")
    assert driver.state() == before


def test_a_fraction_of_a_nano_above_the_bound_is_beyond_it() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", HOUR // 2, at=0)  # half a nano is left after 1 ns
    before = driver.state()
    assert refusal(driver.top_up, "u", INT64_MAX, at=1).details["limit"] == "balance"
    assert driver.state() == before
    assert driver.top_up("u", INT64_MAX - 1, at=1)["balance_nanos"] == INT64_MAX - 1
    assert driver.entries("u")[-1].balance == (INT64_MAX - 1) * NANO + NANO // 2


def test_available_stays_within_what_a_reply_can_show(driver: LedgerDriver) -> None:
    driver.hold("u", 100, at=0)
    assert driver.adjust("u", -INT64_MAX, "to the bound", at=1)["available_nanos"] == -INT64_MAX
    assert refusal(driver.adjust, "u", -1, "beyond it", at=2).details["limit"] == "available"


def test_a_hold_lowers_available_at_once_and_so_moves_e(driver: LedgerDriver) -> None:
    assert driver.set_rate("u", HOUR, at=0)["exhausts_at_ns"] == 100
    reply = driver.hold("u", 30, at=10)
    assert (reply["available_nanos"], reply["balance_nanos"], reply["exhausts_at_ns"]) == (60, 90, 70)
    assert driver.view("u", at=10)["holds"] == [{"hold_id": "e:3", "amount_nanos": 30, "expires_at_ns": None}]
    assert driver.release("u", "e:3", at=20)["exhausts_at_ns"] == 100


def test_a_hold_refuses_beyond_available_and_taking_all_of_it_exhausts(driver: LedgerDriver) -> None:
    error = refusal(driver.hold, "u", 101, at=1)
    assert (error.name, error.details["shortfall_nanos"]) == ("INSUFFICIENT_FUNDS", 1)
    reply = driver.hold("u", 100, at=1)
    assert (reply["state"], reply["balance_nanos"], reply["exhaustion_seq"]) == ("exhausted", 100, 1)
    assert driver.cutoffs() == [1]
    reply = driver.release("u", reply["hold_id"], at=2)
    assert (reply["state"], reply["restored"]) == ("active", True)


def test_the_id_of_a_hold_derives_from_the_request_id_so_a_retry_finds_it(driver: LedgerDriver) -> None:
    assert driver.hold("u", 10, at=1, request_id="invoice-7")["hold_id"] == "r:invoice-7"
    again = driver.hold("u", 10, at=2, request_id="invoice-7")
    assert (again["hold_id"], again["replayed"], again["available_nanos"]) == ("r:invoice-7", True, 90)
    assert driver.hold("u", 10, at=3)["hold_id"] == "e:3"


def test_a_request_id_let_go_before_its_hold_makes_no_second_hold() -> None:
    driver = LedgerDriver(ids=1)
    driver.top_up("u", 100, at=0)
    driver.hold("u", 10, at=1, request_id="x")
    driver.debit("u", 1, at=2, request_id="y")
    assert refusal(driver.hold, "u", 10, at=3, request_id="x").name == "REQUEST_ID_CONFLICT"
    assert driver.view("u", at=3)["holds_nanos"] == 10


def test_capture_takes_part_or_all_of_a_hold_and_frees_the_rest(driver: LedgerDriver) -> None:
    driver.hold("u", 60, at=1, request_id="h")
    reply = driver.capture("u", "r:h", 45, at=2)
    assert (reply["captured_nanos"], reply["balance_nanos"], reply["available_nanos"]) == (45, 55, 55)
    assert driver.view("u", at=2)["holds"] == []
    assert refusal(driver.capture, "u", "r:h", 1, at=3).name == "UNKNOWN_HOLD"


def test_capture_takes_at_most_the_hold(driver: LedgerDriver) -> None:
    driver.hold("u", 60, at=1, request_id="h")
    reply = driver.capture("u", "r:h", 1000, at=2)
    assert (reply["captured_nanos"], reply["balance_nanos"]) == (60, 40)


def test_what_capture_frees_may_restore(driver: LedgerDriver) -> None:
    driver.hold("u", 100, at=1, request_id="h")
    assert driver.capture("u", "r:h", 99, at=2)["restored"] is True
    driver.hold("u", 1, at=3, request_id="i")
    assert "restored" not in driver.capture("u", "r:i", 1, at=4)


def test_release_gives_a_hold_back(driver: LedgerDriver) -> None:
    driver.hold("u", 60, at=1, request_id="h")
    driver.hold("u", 15, at=1, request_id="i")
    reply = driver.release("u", "r:h", at=2)
    assert (reply["available_nanos"], reply["balance_nanos"]) == (85, 100)
    assert [hold["hold_id"] for hold in driver.view("u", at=2)["holds"]] == ["r:i"]
    assert refusal(driver.release, "u", "r:h", at=3).name == "UNKNOWN_HOLD"


def test_unknown_hold(driver: LedgerDriver) -> None:
    assert refusal(driver.release, "u", "e:1", at=1).name == "UNKNOWN_HOLD"
    assert refusal(driver.capture, "u", "", 1, at=1).name == "UNKNOWN_HOLD"


def test_a_hold_expires_at_its_exact_instant(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    driver.hold("u", 40, at=10, ttl=25)
    assert driver.view("u", at=34)["available_nanos"] == 26
    assert driver.view("u", at=35)["available_nanos"] == 65
    assert driver.operations("u")[-1] == ("hold_expired", 35)


def test_at_a_tie_the_holds_expiry_comes_before_the_exhaustion_it_prevents(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    driver.hold("u", 40, at=0, ttl=60)  # without it E is 60
    assert driver.view("u", at=60)["state"] == "active"
    assert driver.operations("u")[-1] == ("hold_expired", 60)
    assert driver.view("u", at=99)["exhausts_at_ns"] == 100
    assert driver.cutoffs() == []


def test_a_hold_expiring_one_nanosecond_after_e_restores(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    driver.hold("u", 40, at=0, ttl=61)
    driver.view("u", at=61)
    assert driver.operations("u")[-2:] == [("exhaust", 60), ("hold_expired", 61)]
    view = driver.view("u", at=61)
    assert (view["state"], view["available_nanos"], view["overrun_nanos"]) == ("active", 40, 1)


def test_an_expiry_at_e_that_is_not_enough_crosses_in_its_own_entry(driver: LedgerDriver) -> None:
    driver.set_rate("u", 60 * HOUR, at=0)
    driver.hold("u", 10, at=0, ttl=2)  # 90 are available: E is 2, when 120 would be spent
    view = driver.view("u", at=2)
    assert (view["state"], view["available_nanos"], view["overrun_nanos"], view["exhaustion_seq"]) == (
        "exhausted",
        0,
        20,
        1,
    )
    assert driver.operations("u")[-1] == ("hold_expired", 2)
    assert driver.cutoffs() == [1]


def test_holds_that_expire_at_one_instant_prevent_the_exhaustion_together(driver: LedgerDriver) -> None:
    """One alone would be too small for the last nanosecond: no crossing and restoring within it."""
    driver.set_rate("u", 60 * HOUR, at=0)
    driver.set_thresholds("u", [(0, 36)], at=0)
    driver.hold("u", 10, at=0, ttl=2, request_id="small")
    driver.hold("u", 45, at=0, ttl=2, request_id="large")
    driver.top_up("u", 55, at=0)  # 100 are available: E is 2, when 120 are spent
    reply = driver.debit("u", 1, at=2)
    assert (reply["state"], reply["available_nanos"], reply["exhaustion_seq"]) == ("active", 34, 0)
    assert driver.operations("u")[-4:] == [("hold_expired", 2), ("hold_expired", 2), ("threshold", 2), ("debit", 2)]
    large, small, threshold, _ = driver.entries("u")[-4:]
    assert (large.key, small.key) == (b"r:large", b"r:small")
    assert (large.accrued, small.accrued, threshold.accrued) == (120 * NANO, 0, 0)
    assert large.holds_nanos == small.holds_nanos == 0, "they are given back together"
    assert driver.cutoffs() == []


def test_the_first_entry_of_such_expiries_crosses_where_all_of_them_are_not_enough(driver: LedgerDriver) -> None:
    driver.set_rate("u", 60 * HOUR, at=0)
    driver.hold("u", 5, at=0, ttl=2, request_id="a")
    driver.hold("u", 5, at=0, ttl=2, request_id="b")  # 90 are available: E is 2, when 120 would be spent
    view = driver.view("u", at=2)
    assert (view["state"], view["overrun_nanos"], view["exhaustion_seq"]) == ("exhausted", 20, 1)
    assert [(e.key, e.accrued, bool(e.flags & CROSSED)) for e in driver.entries("u")[-2:]] == [
        (b"r:a", 100 * NANO, True),
        (b"r:b", 0, False),
    ]
    assert driver.cutoffs() == [1]


def test_with_accrue_such_an_expiry_goes_on_below_zero() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 60 * HOUR, at=0)
    driver.hold("u", 10, at=0, ttl=2)
    view = driver.view("u", at=2)
    assert (view["state"], view["balance_nanos"], view["overrun_nanos"]) == ("exhausted", -20, 20)


def test_the_first_entry_of_such_expiries_restores(driver: LedgerDriver) -> None:
    driver.hold("u", 40, at=0, ttl=9, request_id="a")
    driver.hold("u", 60, at=0, ttl=9, request_id="b")
    view = driver.view("u", at=9)
    assert (view["state"], view["available_nanos"]) == ("active", 100)
    assert [(e.key, bool(e.flags & RESTORED)) for e in driver.entries("u")[-2:]] == [(b"r:a", True), (b"r:b", False)]
    assert driver.notices() == [("cutoff", "u", 1), ("superseded", "u", 1)]


def test_holds_that_expire_together_go_in_the_order_of_their_ids(driver: LedgerDriver) -> None:
    for name in ("b", "a", "c"):
        driver.hold("u", 1, at=0, ttl=5, request_id=name)
    driver.view("u", at=5)
    assert [entry.key for entry in driver.entries("u")][-3:] == [b"r:a", b"r:b", b"r:c"]


def test_a_hold_whose_end_lies_beyond_2262_never_expires(driver: LedgerDriver) -> None:
    assert driver.hold("u", 1, at=5, ttl=INT64_MAX)["hold_id"]
    assert driver.view("u", at=5)["holds"][0]["expires_at_ns"] is None
    assert driver.view("u", at=INT64_MAX)["holds_nanos"] == 1


def test_open_holds_have_a_maximum(driver: LedgerDriver) -> None:
    assert HOLDS_MAX == 1000
    driver.top_up("u", 10_000, at=0)
    for number in range(HOLDS_MAX):
        driver.hold("u", 1, at=1, request_id=str(number))
    error = refusal(driver.hold, "u", 1, at=1)
    assert (error.name, error.details["limit"]) == ("LIMIT_EXCEEDED", "open_holds")


def test_holds_together_stay_within_their_bound(driver: LedgerDriver) -> None:
    driver.set_credit_limit("u", INT64_MAX, at=0)
    driver.hold("u", INT64_MAX, at=1)
    assert refusal(driver.hold, "u", 1, at=1).details["limit"] == "holds"


def test_a_limit_or_a_capture_that_would_leave_the_bounds_is_refused(driver: LedgerDriver) -> None:
    driver.set_credit_limit("u", INT64_MAX, at=0)
    driver.hold("u", 1, at=0, request_id="h")
    driver.debit("u", INT64_MAX - 1, at=1)
    driver.debit("u", 101, at=1, mode="force")
    assert driver.view("u", at=1)["balance_nanos"] == -INT64_MAX
    before = driver.state()
    assert refusal(driver.set_credit_limit, "u", 0, at=2).details["limit"] == "available"
    assert refusal(driver.capture, "u", "r:h", 1, at=2).details["limit"] == "balance"
    assert driver.state() == before
    assert driver.set_credit_limit("u", 1, at=2)["available_nanos"] == -INT64_MAX


def test_a_hold_that_expires_at_the_last_instant_there_is(driver: LedgerDriver) -> None:
    driver.hold("u", 1, at=5, ttl=INT64_MAX - 5)
    assert driver.view("u", at=5)["holds"][0]["expires_at_ns"] == INT64_MAX


def test_a_capture_is_allowed_where_it_leaves_the_bounds_as_they_are(driver: LedgerDriver) -> None:
    """Available stays at its bound: what the hold took from it, the balance gives."""
    driver.hold("u", 1, at=0, request_id="h")
    for amount in (INT64_MAX - 1, 100):
        driver.debit("u", amount, at=1, mode="force")
    assert driver.view("u", at=1)["available_nanos"] == -INT64_MAX
    reply = driver.capture("u", "r:h", 1, at=2)
    assert (reply["balance_nanos"], reply["available_nanos"]) == (-INT64_MAX, -INT64_MAX)


def test_a_command_at_the_very_instant_of_an_expiry_comes_behind_it(driver: LedgerDriver) -> None:
    driver.hold("u", 10, at=0, ttl=5)
    assert driver.debit("u", 1, at=5)["available_nanos"] == 99
    assert driver.operations("u")[-2:] == [("hold_expired", 5), ("debit", 5)]
