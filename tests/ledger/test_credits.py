"""Credits that end: what is spent first, what is lost and when, what E foresees, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from billing.api.methods import parse
from billing.ledger import commands as ops
from billing.ledger.commands import BY_AMOUNT, BY_RUNWAY
from billing.ledger.credits import CREDITS_MAX
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import INT64_MAX
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    return LedgerDriver()


def credit(driver: LedgerDriver, amount: int, ends: int, at: int = 0, kind: str = "", **more: Any) -> dict[str, Any]:
    return driver.top_up("u", amount, at=at, options=ops.top_up_options(ends, kind.encode()), **more)


def lost(driver: LedgerDriver) -> list[tuple[int, int, str, int]]:
    """(instant, what was lost, kind, entry_id of the top-up) of each end."""
    expiries = [entry for entry in driver.entries("u") if entry.op == ops.CREDIT_EXPIRED]
    return [(entry.at_ns, -entry.amount // HOUR, entry.key.decode(), entry.b) for entry in expiries]


def left_of_credits(driver: LedgerDriver, at: int) -> list[tuple[str, int]]:
    """(kind, what is left) in the order in which it is spent."""
    return [(credit["kind"], credit["left_nanos"]) for credit in driver.view("u", at=at)["credits"]]


@pytest.mark.parametrize(("at", "gone", "balance"), [(-1, False, 91), (0, True, 40), (1, True, 39)])
def test_what_is_left_leaves_at_exactly_the_end(driver: LedgerDriver, at: int, gone: bool, balance: int) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10, kind="promo")
    driver.set_rate("u", HOUR, at=0)
    assert driver.view("u", at=10 + at)["balance_nanos"] == balance
    assert lost(driver) == ([(10, 50, "promo", 2)] if gone else [])


def test_the_row_of_an_end_has_the_amount_the_kind_and_what_accrued(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10, kind="promo")
    driver.set_rate("u", HOUR, at=0)
    driver.view("u", at=20)
    row = driver.rows("u")[-1]
    names = ("operation", "at_ns", "amount_nanos", "accrued_nanos", "balance_after_nanos", "actor")
    assert tuple(row[name] for name in names) == ("credit_expired", 10, -50, 10, 40, "time")


def test_what_ends_soonest_is_spent_first_and_what_never_ends_last(driver: LedgerDriver) -> None:
    driver.top_up("u", 100, at=0)
    credit(driver, 10, ends=1000, kind="later")
    credit(driver, 10, ends=500, kind="sooner")
    driver.debit("u", 5, at=1)
    assert left_of_credits(driver, at=1) == [("sooner", 5), ("later", 10)]
    driver.debit("u", 7, at=1)
    assert left_of_credits(driver, at=1) == [("later", 8)]
    driver.debit("u", 8, at=1)
    assert left_of_credits(driver, at=1) == []
    assert driver.view("u", at=2000)["balance_nanos"] == 100
    assert lost(driver) == []


def test_of_one_end_the_smaller_then_the_older_is_spent_first(driver: LedgerDriver) -> None:
    for kind, amount in (("a", 10), ("b", 5), ("c", 5), ("d", 7)):
        credit(driver, amount, ends=100, kind=kind)
    assert [kind for kind, _ in left_of_credits(driver, at=0)] == ["b", "c", "d", "a"]
    driver.debit("u", 11, at=1)
    assert left_of_credits(driver, at=1) == [("d", 6), ("a", 10)]
    credit(driver, 6, ends=100, at=1, kind="e")
    assert [kind for kind, _ in left_of_credits(driver, at=1)] == ["d", "e", "a"], (
        "the smaller by what is left, then the older"
    )
    driver.view("u", at=100)
    assert lost(driver) == [(100, 6, "d", 4), (100, 6, "e", 6), (100, 10, "a", 1)]


@pytest.mark.parametrize("accrue", [False, True])
@pytest.mark.parametrize(
    ("never_ends", "ends", "operations"),
    [
        (0, 30, ["credit_expired"]),  # nothing is left at the end
        (10, 30, ["credit_expired", "exhaust"]),
        (0, 50, ["exhaust"]),  # all of it is spent in the nanosecond in which it ends: nothing is left to end
        (0, 51, ["exhaust"]),
        (10, 50, ["exhaust"]),
    ],
)
def test_an_end_is_judged_before_an_exhaustion(accrue: bool, never_ends: int, ends: int, operations: list[str]) -> None:
    driver = LedgerDriver(accrue=accrue)
    credit(driver, 50, ends=ends)
    if never_ends:
        driver.top_up("u", never_ends, at=0)
    reply = driver.set_rate("u", HOUR, at=0)
    driver.view("u", at=1000)
    operations_made = [
        (operation, at) for operation, at in driver.operations("u") if operation in ("credit_expired", "exhaust")
    ]
    assert [operation for operation, _ in operations_made] == operations
    assert operations_made[-1][1] == reply["exhausts_at_ns"], "E foresaw it"
    assert driver.cutoffs() == [1]


def test_an_end_that_meets_an_exhaustion_with_money_on_hold_is_the_one_that_crosses(driver: LedgerDriver) -> None:
    credit(driver, 60, ends=10)
    driver.hold("u", 50, at=0)
    driver.set_rate("u", HOUR, at=0)
    view = driver.view("u", at=11)
    assert driver.operations("u")[3:] == [("credit_expired", 10)]
    assert (view["available_nanos"], view["state"], driver.cutoffs()) == (-50, "exhausted", [1])


def test_a_hold_that_expires_when_a_credit_ends_is_given_back_first(driver: LedgerDriver) -> None:
    credit(driver, 60, ends=10)
    driver.hold("u", 50, at=0, ttl=10)
    driver.set_rate("u", HOUR, at=0)
    driver.top_up("u", 7, at=0)
    view = driver.view("u", at=10)
    assert driver.operations("u")[4:] == [("hold_expired", 10), ("credit_expired", 10)]
    assert (view["balance_nanos"], view["state"], lost(driver)) == (7, "active", [(10, 50, "", 1)])


def test_without_a_rate_an_account_runs_out_when_its_last_credit_ends(driver: LedgerDriver) -> None:
    reply = credit(driver, 60, ends=10)
    assert (reply["exhausts_at_ns"], reply["runway_ns"]) == (10, 10)
    assert driver.view("u", at=10)["state"] == "exhausted"
    assert driver.cutoffs() == [1]


def test_a_credit_pays_a_debt_first_and_only_the_rest_ends(driver: LedgerDriver) -> None:
    driver.top_up("u", 1, at=0)
    driver.debit("u", 41, at=0, mode="force")
    credit(driver, 60, ends=10)
    assert left_of_credits(driver, at=0) == [("", 20)]
    assert driver.view("u", at=10)["balance_nanos"] == 0
    driver.debit("u", 70, at=10, mode="force")
    credit(driver, 60, ends=20, at=10)
    assert left_of_credits(driver, at=10) == []


def test_a_capture_takes_from_what_is_spent_first_and_a_hold_keeps_nothing_from_ending(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10, kind="promo")
    first, second = driver.hold("u", 30, at=0)["hold_id"], driver.hold("u", 30, at=0)["hold_id"]
    driver.capture("u", first, 25, at=1)
    assert left_of_credits(driver, at=1) == [("promo", 35)]
    view = driver.view("u", at=10)
    assert (view["balance_nanos"], view["available_nanos"], lost(driver)) == (40, 10, [(10, 35, "promo", 2)])
    assert driver.capture("u", second, 30, at=11)["balance_nanos"] == 10


def test_a_correction_downwards_takes_from_it_and_one_upwards_never_ends(driver: LedgerDriver) -> None:
    credit(driver, 60, ends=10)
    driver.adjust("u", -20, "wrong", at=1)
    assert left_of_credits(driver, at=1) == [("", 40)]
    driver.adjust("u", 30, "right", at=1)
    assert driver.view("u", at=10)["balance_nanos"] == 30


def test_a_closing_pays_out_what_never_ends_and_forfeits_the_rest(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10)
    reply = driver.close("u", at=1, request_id="r")
    assert (reply["paid_out_nanos"], reply["forfeited_nanos"], reply["balance_nanos"]) == (40, 60, 0)
    assert driver.close("u", at=9, request_id="r") == reply | {"replayed": True}
    driver.top_up("u", 5, at=2)
    assert driver.view("u", at=100)["balance_nanos"] == 5


def test_a_closing_pays_out_no_fraction_of_what_ends(driver: LedgerDriver) -> None:
    driver.top_up("u", 5, at=0)
    driver.set_rate("u", 7 * HOUR // 10, at=0)
    driver.set_rate("u", 0, at=1)  # 4.3 never end
    credit(driver, 6, ends=100, at=1)
    driver.set_rate("u", 3 * HOUR // 10, at=1)
    driver.set_rate("u", 0, at=2)  # 5.7 end
    reply = driver.close("u", at=3)
    assert (reply["paid_out_nanos"], reply["forfeited_nanos"]) == (4, 6)
    assert driver.rows("u")[-1]["amount_nanos"] == -10


def test_what_ended_stops_at_nothing_and_a_closing_without_credit_forfeits_nothing(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    assert driver.close("u", at=1)["forfeited_nanos"] == 0


def test_thresholds_foresee_ends(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10)
    driver.set_thresholds("u", [(BY_AMOUNT, 60), (BY_RUNWAY, 15)], at=0)
    assert driver.set_rate("u", HOUR, at=0)["exhausts_at_ns"] == 50
    driver.view("u", at=49)
    fired = [(entry.at_ns, entry.a, entry.b) for entry in driver.entries("u") if entry.op == ops.THRESHOLD]
    assert fired == [(10, BY_AMOUNT, 60), (35, BY_RUNWAY, 15)]
    assert driver.operations("u")[4:6] == [("credit_expired", 10), ("threshold", 10)]


def test_admission_counts_no_money_that_ends_before(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10)
    error = refusal(driver.set_rate, "u", HOUR, at=0, min_runway=51)
    assert (error.name, error.details["runway_ns"]) == ("INSUFFICIENT_RUNWAY", 50)
    assert driver.set_rate("u", HOUR, at=0, min_runway=50)["exhausts_at_ns"] == 50


def test_what_ended_while_nobody_looked_has_run_out(driver: LedgerDriver) -> None:
    credit(driver, 60, ends=10)
    driver.set_rate("u", HOUR, at=0, resource="vm", options=ops.number_option(ops.TTL_NS, ops.LEASE_NS_MIN))
    driver.ledger.still(BUCKET)
    assert [driver.ledger.unnoticed(driver.ledger.books[BUCKET], at) for at in (9, 10)] == [0, 1]


def test_credits_go_with_their_bucket(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10, kind="promo")
    driver.debit("u", 7, at=0)
    loaded = Ledger(Rules(False, 10, False), lambda ref, due_ns: due_ns)
    loaded.load(BUCKET, driver.state())
    assert loaded.dump(BUCKET) == driver.state()
    loaded.wake(BUCKET)
    assert loaded.next_due_ns([(BUCKET << 32, loaded.books[BUCKET].armed_ns[0])]) == [10]
    assert loaded.view(BUCKET, b"u", 9)["credits"] == driver.view("u", at=9)["credits"]
    assert loaded.view(BUCKET, b"u", 10)["balance_nanos"] == 40


def test_an_account_whose_credits_are_spent_is_an_everyday_one_again(driver: LedgerDriver) -> None:
    driver.top_up("u", 40, at=0)
    credit(driver, 60, ends=10)
    driver.debit("u", 60, at=1)
    assert driver.ledger.books[BUCKET].extras == {}


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("ends", [0, 4, 5])
def test_a_credit_that_has_ended_is_refused_and_nothing_changes(driver: LedgerDriver, opened: bool, ends: int) -> None:
    if opened:
        driver.top_up("u", 5, at=0)
    before = driver.state()
    error = refusal(credit, driver, 60, ends=ends, at=5)
    assert (error.name, error.details["expires_at_ns"]) == ("INVALID_PARAMS", ends)
    assert "is not after the instant of the call" in error.message
    assert driver.state() == before
    assert credit(driver, 60, ends=6, at=5)["exhausts_at_ns"] == (None if opened else 6)


def test_a_refused_end_is_refused_alike_when_it_comes_again(driver: LedgerDriver) -> None:
    driver.top_up("u", 5, at=0)
    first = refusal(credit, driver, 60, ends=4, at=5, request_id="r")
    again = refusal(credit, driver, 60, ends=4, at=6, request_id="r")
    assert again.details == first.details | {"replayed": True}


def test_no_more_than_a_stated_number_of_credits(driver: LedgerDriver) -> None:
    for number in range(CREDITS_MAX):
        credit(driver, 1, ends=1000 + number)
    before = driver.state()
    error = refusal(credit, driver, 1, ends=5000)
    assert (error.name, error.details["limit"]) == ("LIMIT_EXCEEDED", "credits")
    assert driver.state() == before
    driver.top_up("u", 1, at=0)
    driver.view("u", at=1000)
    credit(driver, 1, ends=5000, at=1000)


@pytest.mark.parametrize(
    ("name", "value"), [("expires_at_ns", -1), ("expires_at_ns", INT64_MAX + 1), ("kind", "x" * 65)]
)
def test_what_is_no_end_and_no_kind_is_refused(name: str, value: Any) -> None:
    with pytest.raises(Refused, match=f"INVALID_PARAMS.*{name}"):
        parse("top_up", [b"u", 1, {name.encode(): value}])


def test_a_kind_without_an_end_is_kept_in_the_entry(driver: LedgerDriver) -> None:
    driver.top_up("u", 5, at=0, options=ops.top_up_options(-1, b"gift"))
    assert ops.unpack_options(driver.entries("u")[0].options) == {ops.KIND: b"gift"}
    assert driver.ledger.books[BUCKET].extras == {}
