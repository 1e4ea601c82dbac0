"""Time, as CONTRACT §2 has it: exhaustion instants, time before commands, clamp and overrun, bounds, conservation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from billing.ledger import audit
from billing.ledger.account import Account
from billing.ledger.money import INT64_MAX, NANO
from tests.ledger.driver import BUCKET, DAY_NS, HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    return LedgerDriver()


def test_e_is_the_first_nanosecond_at_which_what_was_spent_is_at_least_what_there_was(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=1000)
    assert driver.set_rate("u", 3 * HOUR, at=1000)["exhausts_at_ns"] == 1000 + 34  # 33 ns cost 99, 34 ns cost 102
    assert driver.view("u", at=1033)["state"] == "active"
    assert driver.view("u", at=1033)["balance_nanos"] == 1
    assert driver.view("u", at=1034)["state"] == "exhausted"
    assert driver.operations("u")[-1] == ("exhaust", 1034)


def test_e_does_not_move_when_the_account_is_looked_at_or_settled_in_between(driver: LedgerDriver) -> None:
    driver.top_up("u", 10**9, at=0)
    coming = driver.set_rate("u", 7 * 10**9 + 1, at=0)["exhausts_at_ns"]
    for at in (1, 12345, 10**11):
        reply = driver.set_thresholds("u", [], at=at)
        assert reply["exhausts_at_ns"] == coming
        assert reply["runway_ns"] == coming - at


@pytest.mark.parametrize("mover", ["debit", "top_up", "set_rate", "adjust", "set_credit_limit", "hold"])
def test_time_before_commands_an_exhaustion_due_happens_at_e_before_the_command(
    driver: LedgerDriver, mover: str
) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    if mover in ("debit", "hold"):
        assert refusal(getattr(driver, mover), "u", 5, at=100).name == "INSUFFICIENT_FUNDS"
    else:
        arguments = {"adjust": (5, "why"), "set_rate": (2 * HOUR,)}.get(mover, (5,))
        getattr(driver, mover)("u", *arguments, at=100)
    exhausted = next(entry for entry in driver.rows("u") if entry["operation"] == "exhaust")
    assert exhausted["at_ns"] == 100
    assert exhausted["balance_after_nanos"] == 0


def test_a_top_up_one_nanosecond_before_e_saves_the_user(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    reply = driver.top_up("u", 100, at=99)
    assert "restored" not in reply
    assert (reply["state"], reply["exhausts_at_ns"], reply["exhaustion_seq"]) == ("active", 200, 0)
    assert driver.cutoffs() == []


def test_a_top_up_at_e_restores(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    reply = driver.top_up("u", 100, at=100)
    assert reply["restored"] is True
    assert (reply["state"], reply["exhausts_at_ns"], reply["exhaustion_seq"]) == ("active", 200, 1)
    assert driver.operations("u")[-2:] == [("exhaust", 100), ("top_up", 100)]
    assert driver.cutoffs() == [1]


def test_clamp_at_e_available_is_exactly_zero_and_stays_there(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_credit_limit("u", 20, at=0)
    driver.set_rate("u", 7 * HOUR, at=0)
    for at in (18, 19, 10**6, DAY_NS):
        view = driver.view("u", at=at)
        assert (view["available_nanos"], view["balance_nanos"]) == (0, -20)
        assert view["rate_nanos_per_hour"] == 7 * HOUR, "the reported rate is kept"
        assert view["exhausts_at_ns"] is None
        assert view["runway_ns"] is None


def test_the_fraction_of_a_nano_is_taken_too(driver: LedgerDriver) -> None:
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", HOUR // 3, at=0)
    assert driver.view("u", at=2) | {"balance_nanos": 0, "state": "active"} == driver.view("u", at=2)
    assert driver.view("u", at=3)["state"] == "exhausted"


def test_overrun_is_what_would_have_accrued_until_the_rate_is_zero(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 3 * HOUR, at=0)
    assert driver.view("u", at=34)["overrun_nanos"] == 2  # the sliver: 34 ns cost 102
    assert driver.view("u", at=44)["overrun_nanos"] == 32
    driver.set_rate("u", 0, at=50)
    assert driver.view("u", at=10**9)["overrun_nanos"] == 50


def test_overrun_is_what_would_have_accrued_until_available_rises_above_zero(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.top_up("u", 1000, at=150)
    view = driver.view("u", at=250)
    assert view["overrun_nanos"] == 50
    assert view["balance_nanos"] == 900, "accrual resumes from that instant"


def test_rate_times_time_is_accrued_plus_overrun_exactly(driver: LedgerDriver) -> None:
    rate = 7 * HOUR // 3 + 1
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", rate, at=0)
    driver.debit("u", 3, at=11)
    driver.top_up("u", 50, at=200)
    driver.set_rate("u", 0, at=1000)
    entries = driver.entries("u")
    assert sum(entry.accrued for entry in entries) + entries[-1].overrun == rate * 1000


def test_the_clamp_never_raises_a_balance_that_another_cause_put_lower(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.debit("u", 150, at=50, mode="force")
    assert driver.view("u", at=10**6)["balance_nanos"] == -100
    assert [row["operation"] for row in driver.rows("u")] == ["top_up", "set_rate", "debit"]


def test_with_accrue_the_balance_goes_on_below_zero_and_arrears_are_paid_first() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 3 * HOUR, at=0)
    view = driver.view("u", at=134)
    assert (view["balance_nanos"], view["overrun_nanos"], view["state"]) == (-302, 302, "exhausted")
    assert refusal(driver.debit, "u", 1, at=134).details["available_nanos"] == -302
    reply = driver.top_up("u", 300, at=134)
    assert "restored" not in reply
    assert reply["state"] == "exhausted"
    reply = driver.top_up("u", 100, at=134)
    assert reply["restored"]
    assert reply["balance_nanos"] == 98


def test_what_the_rule_says_is_fixed_when_the_exhaustion_begins() -> None:
    """A configuration changed by a restart does not charge for the time before it."""
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.view("u", at=100)
    assert driver.moved(accrue=True).view("u", at=200)["balance_nanos"] == 0


def test_overrun_saturates_at_its_bound(driver: LedgerDriver) -> None:
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", INT64_MAX, at=0)
    view = driver.view("u", at=100 * 365 * DAY_NS)
    assert view["overrun_nanos"] == INT64_MAX
    assert view["balance_nanos"] == 0


def test_arrears_end_at_their_bound() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", INT64_MAX, at=0)
    for at in (50 * 365 * DAY_NS, 100 * 365 * DAY_NS):
        assert driver.view("u", at=at)["balance_nanos"] == -INT64_MAX
    driver.set_rate("u", 0, at=100 * 365 * DAY_NS)
    audit.check(driver.ledger.books[BUCKET])


def test_a_rate_so_large_that_e_is_the_next_nanosecond(driver: LedgerDriver) -> None:
    driver.top_up("u", 1, at=5)
    assert driver.set_rate("u", INT64_MAX, at=5)["exhausts_at_ns"] == 6
    assert driver.view("u", at=6)["overrun_nanos"] == INT64_MAX // NANO - 1


def test_an_e_beyond_2262_is_nil_and_no_overflow(driver: LedgerDriver) -> None:
    driver.top_up("u", INT64_MAX, at=5)
    reply = driver.set_rate("u", 1, at=5)
    assert (reply["exhausts_at_ns"], reply["runway_ns"], reply["state"]) == (None, None, "active")
    assert driver.filed == []
    assert driver.view("u", at=INT64_MAX)["state"] == "active"


def test_an_e_at_the_last_instant_there_is(driver: LedgerDriver) -> None:
    driver.top_up("u", INT64_MAX - 5, at=5)
    assert driver.set_rate("u", HOUR, at=5)["exhausts_at_ns"] == INT64_MAX
    assert driver.view("u", at=5)["exhausts_at_ns"] == INT64_MAX
    ((ref, filed_ns),) = driver.filed
    assert driver.ledger.next_due_ns([(ref, filed_ns)]) == [filed_ns] == [INT64_MAX]
    driver.top_up("u", 1, at=5)
    assert driver.view("u", at=5)["exhausts_at_ns"] is None
    assert driver.ledger.next_due_ns([(ref, filed_ns)]) == [-1]
    assert driver.set_rate("u", HOUR, at=5)["exhausts_at_ns"] is None


def test_restore_and_exhaust_within_a_millisecond(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.top_up("u", 100, at=300_000)
    driver.top_up("u", 100, at=600_000)
    driver.view("u", at=10**6)
    assert driver.operations("u") == [
        ("top_up", 0), ("set_rate", 0), ("exhaust", 100), ("top_up", 300_000), ("exhaust", 300_100),
        ("top_up", 600_000), ("exhaust", 600_100),
    ]  # fmt: skip
    assert driver.cutoffs() == [1, 2, 3]


def test_an_accounts_instants_never_decrease(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=1000)
    driver.set_rate("u", HOUR, at=1000)
    reply = driver.debit("u", 1, at=900)
    assert (reply["at_ns"], reply["balance_nanos"]) == (1000, 99)
    assert driver.view("u", at=10)["at_ns"] == 1000
    driver.set_thresholds("u", [(0, 5)], at=950)
    assert driver.rows("u")[-1]["at_ns"] == 1000


def test_a_debit_to_exactly_zero_at_rate_zero_exhausts_in_one_entry(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    reply = driver.debit("u", 100, at=7)
    assert (reply["outcome"], reply["debited_nanos"], reply["state"]) == ("exhausted", 100, "exhausted")
    assert driver.operations("u") == [("top_up", 0), ("debit", 7)]
    assert driver.cutoffs() == [1]
    assert driver.view("u", at=7)["cutoff"]["exhausted_at_ns"] == 7


def test_conservation_in_internal_units(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 7, at=0)
    driver.top_up("v", 50, at=3)
    driver.adjust("v", -20, "wrong", at=10)
    driver.debit("u", 10, at=12345)
    driver.debit("v", 99, at=20, mode="partial")
    driver.top_up("w", 5, at=30)
    driver.close("w", at=31)
    book = driver.ledger.books[BUCKET]
    audit.check(book)
    accrued = 7 * 12345
    assert book.totals.accrued == accrued
    assert audit.balance(book) == (155 - 10 - 30 - 20 - 5) * NANO - accrued
    totals = {name: getattr(book.totals, name) for name in book.totals.NAMES}
    assert totals == {
        "top_ups": 155 * NANO, "debits": 40 * NANO, "accrued": accrued, "adjustments": -20 * NANO, "paid_out": 5 * NANO,
    }  # fmt: skip
    book.totals.debits += 1
    with pytest.raises(AssertionError, match="bucket 3: balances and totals differ"):
        audit.check(book)


def test_neighbouring_rows_of_the_history_add_up_in_floors(driver: LedgerDriver) -> None:
    driver.top_up("u", 10**6, at=0)
    driver.set_rate("u", HOUR // 7 + 1, at=0)
    for step in range(1, 40):
        if step % 3:
            driver.debit("u", step, at=step * 13)
        else:
            driver.top_up("u", step, at=step * 13)
    driver.debit("u", 10**9, at=1000, mode="partial")
    rows = driver.rows("u")
    for before, row in pairwise(rows):
        assert before["entry_id"] + 1 == row["entry_id"]
        assert before["balance_after_nanos"] - row["accrued_nanos"] == row["balance_before_nanos"]
        assert row["balance_before_nanos"] + row["amount_nanos"] == row["balance_after_nanos"]
    assert rows[-1]["balance_after_nanos"] == 0


def test_an_e_at_the_last_instant_there_is_of_a_named_line(driver: LedgerDriver) -> None:
    driver.top_up("u", INT64_MAX - 5, at=5)
    assert driver.set_rate("u", HOUR, at=5, resource="vm")["exhausts_at_ns"] == INT64_MAX
    assert driver.set_rate("u", HOUR - 1, at=5, resource="vm")["exhausts_at_ns"] is None


def test_arrears_end_where_available_comes_to_its_bound() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 10, at=0)
    driver.hold("u", 7, at=0)
    driver.set_rate("u", INT64_MAX, at=0)
    view = driver.view("u", at=100 * 365 * DAY_NS)
    assert (view["available_nanos"], view["balance_nanos"]) == (-INT64_MAX, 7 - INT64_MAX)


def test_an_account_that_was_restored_has_no_rule_for_its_next_exhaustion() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.view("u", at=150)
    account = Account(driver.ledger.books[BUCKET], 0, b"u")
    assert (account.exhausted, account.accruing) == (True, True)
    driver.top_up("u", 100, at=150)
    account = Account(driver.ledger.books[BUCKET], 0, b"u")
    assert (account.exhausted, account.accruing) == (False, False)
