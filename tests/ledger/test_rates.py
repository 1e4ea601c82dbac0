"""Rates, rate lines, rate_seq and admission, as CONTRACT §§2 and 3 have them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.ledger.errors import Refused
from billing.ledger.money import INT64_MAX
from billing.ledger.rates import LINES_MAX
from tests.ledger.driver import DAY_NS, HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver()
    driver.top_up("u", 10**6, at=0)
    return driver


def test_the_accounts_rate_is_the_sum_of_its_lines(driver: LedgerDriver) -> None:
    driver.set_rate("u", 5, at=1)
    driver.set_rate("u", 7, at=1, resource="vm-1")
    assert driver.set_rate("u", 11, at=1, resource="vm-2")["rate_nanos_per_hour"] == 23
    assert driver.view("u", at=1)["rates"] == {"": 5, "vm-1": 7, "vm-2": 11}
    assert driver.set_rate("u", 0, at=2, resource="vm-1")["rate_nanos_per_hour"] == 16
    assert driver.set_rate("u", 1, at=2)["rate_nanos_per_hour"] == 12


def test_rate_per_second_is_a_floor(driver: LedgerDriver) -> None:
    assert driver.set_rate("u", 7199, at=1)["rate_nanos_per_second"] == 1


def test_a_change_adds_to_a_line(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, resource="vm")
    assert driver.change_rate("u", 5, at=2, resource="vm")["rate_nanos_per_hour"] == 15
    assert driver.change_rate("u", -15, at=3, resource="vm")["rate_nanos_per_hour"] == 0
    assert driver.change_rate("u", 4, at=3)["rate_nanos_per_hour"] == 4
    assert driver.change_rate("u", 0, at=3, resource="other")["rate_nanos_per_hour"] == 4


def test_a_change_below_zero_is_invalid_rate(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, resource="vm")
    driver.set_rate("u", 100, at=1)
    error = refusal(driver.change_rate, "u", -11, at=2, resource="vm")
    assert (error.name, error.details["rate_nanos_per_hour"]) == ("INVALID_RATE", 10)
    assert refusal(driver.change_rate, "u", -1, at=2, resource="none").name == "INVALID_RATE"
    assert driver.view("u", at=2)["rates"] == {"vm": 10, "": 100}


def test_the_total_rate_stays_within_its_bound(driver: LedgerDriver) -> None:
    driver.set_rate("u", INT64_MAX - 5, at=1)
    assert driver.set_rate("u", 5, at=1, resource="vm")["rate_nanos_per_hour"] == INT64_MAX
    assert refusal(driver.set_rate, "u", 6, at=1, resource="vm").details["limit"] == "rate"
    assert refusal(driver.change_rate, "u", 1, at=1).details["limit"] == "rate"


def test_a_rate_seq_that_is_not_newer_is_stale_rate(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, resource="vm", seq=5)
    for seq in (5, 4, 0):
        error = refusal(driver.set_rate, "u", 99, at=2, resource="vm", seq=seq)
        assert (error.name, error.details["rate_seq"]) == ("STALE_RATE", 5)
    assert driver.set_rate("u", 11, at=3, resource="vm", seq=6)["rate_nanos_per_hour"] == 11
    assert driver.set_rate("u", 1, at=3, resource="other", seq=0)["rate_nanos_per_hour"] == 12, "it is per line"


def test_rate_10_retried_after_rate_0(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, seq=1)
    driver.set_rate("u", 0, at=2, seq=2)
    assert refusal(driver.set_rate, "u", 10, at=3, seq=1).name == "STALE_RATE"
    assert driver.view("u", at=3)["rate_nanos_per_hour"] == 0


def test_rate_10_retried_after_rate_0_by_request_id(driver: LedgerDriver) -> None:
    first = driver.set_rate("u", 10, at=1, request_id="a")
    driver.set_rate("u", 0, at=2, request_id="b")
    assert driver.set_rate("u", 10, at=3, request_id="a") == first | {"replayed": True}
    assert driver.view("u", at=3)["rate_nanos_per_hour"] == 0


def test_a_call_without_rate_seq_leaves_the_lines_as_it_is(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, seq=5)
    driver.set_rate("u", 20, at=2)
    driver.change_rate("u", 1, at=2)
    assert refusal(driver.set_rate, "u", 1, at=3, seq=5).name == "STALE_RATE"


def test_a_line_at_zero_is_forgotten_after_7_days(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, resource="vm", seq=5)
    driver.set_rate("u", 0, at=2, resource="vm", seq=6)
    assert refusal(driver.set_rate, "u", 9, at=1 + 7 * DAY_NS, resource="vm", seq=6).name == "STALE_RATE"
    assert driver.set_rate("u", 9, at=2 + 7 * DAY_NS, resource="vm", seq=0)["rate_nanos_per_hour"] == 9


def test_a_line_that_never_ran_keeps_its_rate_seq_too(driver: LedgerDriver) -> None:
    driver.set_rate("u", 0, at=1, resource="vm", seq=3)
    assert refusal(driver.set_rate, "u", 10, at=2, resource="vm", seq=2).name == "STALE_RATE"


def test_at_most_10000_lines_an_account(driver: LedgerDriver) -> None:
    assert LINES_MAX == 10_000
    for number in range(LINES_MAX - 1):
        driver.set_rate("u", 1, at=1, resource=f"vm-{number}", seq=1)
    driver.set_rate("u", 1, at=1)
    for resource, seq in (("new", -1), ("new", 0)):
        error = refusal(driver.set_rate, "u", 1, at=1, resource=resource, seq=seq)
        assert (error.name, error.details["limit"]) == ("LIMIT_EXCEEDED", "rate_lines")
    assert refusal(driver.change_rate, "u", 1, at=1, resource="new").name == "LIMIT_EXCEEDED"
    assert driver.set_rate("u", 0, at=1, resource="unknown")["rate_nanos_per_hour"] == LINES_MAX
    driver.set_rate("u", 2, at=1, resource="vm-7", seq=2)  # a line it has
    driver.set_rate("u", 0, at=2, resource="vm-7", seq=3)
    assert refusal(driver.set_rate, "u", 1, at=3, resource="new").name == "LIMIT_EXCEEDED", "it is still remembered"
    assert driver.set_rate("u", 5, at=3, resource="vm-7", seq=4)["rate_nanos_per_hour"] == LINES_MAX + 4
    driver.set_rate("u", 0, at=4, resource="vm-7", seq=5)
    assert driver.set_rate("u", 1, at=4 + 7 * DAY_NS, resource="new")["rate_nanos_per_hour"] == LINES_MAX


def test_the_unnamed_line_counts_among_the_10000(driver: LedgerDriver) -> None:
    for number in range(LINES_MAX):
        driver.set_rate("u", 1, at=1, resource=f"vm-{number}")
    assert refusal(driver.set_rate, "u", 1, at=1).details["limit"] == "rate_lines"
    driver.set_rate("u", 0, at=1, resource="vm-0")
    assert driver.set_rate("u", 1, at=1)["rate_nanos_per_hour"] == LINES_MAX


def test_min_runway_ns_refuses_with_insufficient_runway_and_changes_nothing(driver: LedgerDriver) -> None:
    before = driver.state()
    error = refusal(driver.set_rate, "u", HOUR, at=1, min_runway=10**6 + 1)
    assert (error.name, error.details["runway_ns"], error.details["min_runway_ns"]) == (
        "INSUFFICIENT_RUNWAY",
        10**6,
        10**6 + 1,
    )
    assert driver.state() == before
    assert driver.set_rate("u", HOUR, at=1, min_runway=10**6)["runway_ns"] == 10**6


def test_admission_counts_all_lines(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    assert refusal(driver.set_rate, "u", HOUR, at=0, resource="vm", min_runway=500_001).details["runway_ns"] == 500_000
    assert driver.set_rate("u", HOUR, at=0, resource="vm", min_runway=500_000)["runway_ns"] == 500_000


def test_an_exhausted_account_is_never_admitted_but_may_always_stop(driver: LedgerDriver) -> None:
    driver.set_rate("u", 1, at=0)
    driver.debit("u", 10**6, at=0)
    assert refusal(driver.set_rate, "u", 5, at=1, resource="vm", min_runway=0).details["runway_ns"] == 0
    assert driver.set_rate("u", 0, at=1, min_runway=10**9)["rate_nanos_per_hour"] == 0
    assert driver.cutoffs() == [1]


@pytest.mark.parametrize("number", [0, 1, 10**6])
def test_a_rate_seq_and_a_min_runway_that_are_the_same_number_both_count(driver: LedgerDriver, number: int) -> None:
    assert driver.set_rate("u", HOUR, at=1, seq=number, min_runway=number)["rate_nanos_per_hour"] == HOUR
    assert refusal(driver.set_rate, "u", 1, at=1, seq=number, min_runway=number).name == "STALE_RATE"
    number = 10**6 + 1
    error = refusal(driver.set_rate, "u", HOUR, at=1, seq=number, min_runway=number)
    assert (error.name, error.details["runway_ns"]) == ("INSUFFICIENT_RUNWAY", 10**6)


def test_a_rate_report_is_a_fact_accepted_even_on_an_exhausted_account(driver: LedgerDriver) -> None:
    driver.debit("u", 10**6, at=1)
    reply = driver.set_rate("u", 10, at=2)
    assert (reply["state"], reply["rate_nanos_per_hour"], reply["exhaustion_seq"]) == ("exhausted", 10, 2)


def test_raising_any_line_from_zero_on_an_exhausted_account_fires_a_new_cutoff_at_that_instant(
    driver: LedgerDriver,
) -> None:
    driver.debit("u", 10**6, at=1)
    driver.set_rate("u", 10, at=2, resource="vm-1")
    assert driver.view("u", at=2)["cutoff"]["exhausted_at_ns"] == 2
    driver.set_rate("u", 20, at=3, resource="vm-1")  # not from zero
    driver.change_rate("u", 5, at=4, resource="vm-2")
    driver.set_rate("u", 0, at=5, resource="vm-1")
    driver.set_rate("u", 1, at=6, resource="vm-1")
    assert driver.cutoffs() == [1, 2, 3, 4]
    assert [call["exhausted_at_ns"] for call in driver.pending()] == [1, 2, 4, 6]


def test_an_account_with_only_the_unnamed_line_is_plain_again_when_the_others_are_gone(driver: LedgerDriver) -> None:
    book = driver.ledger.books[3]
    driver.set_rate("u", 5, at=1)
    assert not book.extras
    driver.set_rate("u", 5, at=1, resource="vm")
    assert book.extras
    driver.set_rate("u", 0, at=1, resource="vm")
    assert not book.extras
    assert driver.view("u", at=1)["rates"] == {"": 5}


def test_a_rate_seq_of_zero_is_remembered_as_any_other(driver: LedgerDriver) -> None:
    driver.set_rate("u", 0, at=1, seq=0)
    assert refusal(driver.set_rate, "u", 5, at=2, seq=0).name == "STALE_RATE"
    driver.set_rate("u", 0, at=1, resource="vm", seq=0)
    assert refusal(driver.set_rate, "u", 5, at=2, resource="vm", seq=0).name == "STALE_RATE"
    driver.set_rate("u", 7, at=3, seq=1)
    driver.set_rate("u", 9, at=3)
    assert refusal(driver.set_rate, "u", 5, at=4, seq=1).name == "STALE_RATE"


def test_what_is_forgotten_takes_no_room_any_more(driver: LedgerDriver) -> None:
    for number in range(3):
        driver.set_rate("u", 0, at=number, resource=f"vm-{number}", seq=1)
    extra = driver.ledger.books[3].extras[0]
    assert list(extra.quiet) == [b"vm-0", b"vm-1", b"vm-2"]
    driver.set_rate("u", 5, at=1 + 7 * DAY_NS, resource="vm-2", seq=2)
    assert list(extra.quiet) == []
    driver.set_rate("u", 0, at=2 + 7 * DAY_NS, resource="vm-2", seq=3)
    driver.set_rate("u", 1, at=1 + 14 * DAY_NS)
    assert list(extra.quiet) == [b"vm-2"]
    driver.set_rate("u", 2, at=2 + 14 * DAY_NS)
    assert not driver.ledger.books[3].extras


def test_lines_at_zero_that_are_remembered_count_among_the_10000(driver: LedgerDriver) -> None:
    driver.set_rate("u", 1, at=1)
    for number in range(LINES_MAX - 1):
        driver.set_rate("u", 0, at=1, resource=f"vm-{number}", seq=0)
    assert refusal(driver.set_rate, "u", 1, at=2, resource="new").details["limit"] == "rate_lines"
    assert refusal(driver.set_rate, "u", 0, at=2, resource="new", seq=0).details["limit"] == "rate_lines"
    assert driver.set_rate("u", 2, at=2)["rate_nanos_per_hour"] == 2
    assert driver.set_rate("u", 1, at=2, resource="vm-7", seq=1)["rate_nanos_per_hour"] == 3
    driver.set_rate("u", 0, at=3)
    assert driver.set_rate("u", 1, at=3, resource="new")["rate_nanos_per_hour"] == 2


def test_admission_holds_for_the_smallest_rate_and_the_smallest_sum_there_is() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1, at=0)
    assert refusal(driver.set_rate, "u", 1, at=0, min_runway=HOUR + 1).details["runway_ns"] == HOUR
    driver.set_rate("u", 1, at=0)
    reply = driver.set_rate("u", 2, at=HOUR - 1, min_runway=1)  # one internal unit is left
    assert reply["runway_ns"] == 1


def test_at_rate_zero_the_unnamed_line_takes_no_room(driver: LedgerDriver) -> None:
    for number in range(LINES_MAX - 1):
        driver.set_rate("u", 0, at=1, resource=f"vm-{number}", seq=1)
    driver.set_rate("u", 0, at=2, resource="the last", seq=1)
    assert refusal(driver.set_rate, "u", 0, at=2, resource="one too many", seq=1).details["limit"] == "rate_lines"


def test_the_unnamed_line_is_the_same_whether_it_came_before_a_named_one_or_behind_it() -> None:
    before, behind = LedgerDriver(), LedgerDriver()
    for driver in (before, behind):
        driver.top_up("u", 100, at=0)
    before.set_rate("u", 3, at=1)
    before.set_rate("u", 5, at=1, resource="vm")
    before.set_rate("u", 5, at=1, resource="vm")
    behind.set_rate("u", 5, at=1, resource="vm")
    behind.set_rate("u", 3, at=1)
    behind.set_rate("u", 5, at=1, resource="vm")
    assert before.state() == behind.state()


def test_a_rate_seq_of_zero_of_the_unnamed_line_is_remembered_too(driver: LedgerDriver) -> None:
    driver.set_rate("u", 5, at=1, seq=0)
    assert refusal(driver.set_rate, "u", 6, at=2, seq=0).name == "STALE_RATE"


def test_a_line_is_the_same_whether_it_was_set_or_changed() -> None:
    set_driver, changed_driver = LedgerDriver(), LedgerDriver()
    for driver in (set_driver, changed_driver):
        driver.top_up("u", 100, at=0)
    set_driver.set_rate("u", 5, at=1, resource="vm")
    changed_driver.change_rate("u", 5, at=1, resource="vm")
    assert set_driver.state() == changed_driver.state()


def reply(driver: LedgerDriver, method: str, *arguments: Any, **named: Any) -> object:
    """What a call answers, or its refusal."""
    try:
        return getattr(driver, method)("u", *arguments, **named)
    except Refused as error:
        return error.name, error.details


def drawn(draw: random.Random, at: int) -> tuple[str, int, dict[str, Any]]:
    """A call: its method, its amount or rate, and the rest."""
    resource, rate = draw.choice(("", "a", "b", "c", "d")), draw.choice((0, 0, 1, 7, 40, HOUR, INT64_MAX - 50))
    lease = ops.number_option(ops.TTL_NS, 50)
    calls: list[tuple[str, int, dict[str, Any]]] = [
        *[("set_rate", rate, {"resource": resource, "message": "m", "actor": "meter"})] * 8,
        ("set_rate", rate, {"resource": resource, "seq": draw.randrange(3)}),
        ("set_rate", rate, {"resource": resource, "options": lease}),
        ("change_rate", rate - 7, {"resource": resource}),
        ("debit", 100, {}),
        ("top_up", 1000, {}),
        ("set_credit_limit", draw.choice((0, 500)), {}),
        ("hold", 10, {"ttl": draw.choice((0, 30)), "request_id": f"hold-{at}"}),
    ]
    return draw.choice(calls)


@pytest.mark.parametrize("seed", range(60))
def test_a_report_leaves_the_same_whether_it_goes_the_fast_way_or_the_plain_one(seed: int) -> None:
    draw = random.Random(seed)
    fast, plain = (LedgerDriver(classes={b"as the default": CutoffClass()}) for _ in range(2))
    for driver, name in ((fast, ""), (plain, "as the default")):  # an account of a class goes the plain way
        driver.top_up("u", 10**4, at=0)
        driver.set_class("u", name, at=0)
    at = 0
    for _ in range(80):
        at += draw.randrange(20)
        method, amount, named = drawn(draw, at)
        assert reply(fast, method, amount, at=at, **named) == reply(plain, method, amount, at=at, **named)
    fast_entries, expected = (
        [entry for entry in driver.entries() if entry.op != ops.SET_CLASS] for driver in (fast, plain)
    )
    assert fast_entries == expected
    assert len(fast_entries) > 40
    fast.set_class("u", "as the default", at=at)
    plain.set_class("u", "as the default", at=at)
    assert fast.state() == plain.state()
