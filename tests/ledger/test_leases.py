"""Leases of rate lines: ends at exact instants, renewals, ties with exhaustions, thresholds and holds; bad input."""

from __future__ import annotations

import random
from typing import Any

import pytest

from billing.api.methods import parse
from billing.ledger import commands as ops
from billing.ledger.commands import BY_AMOUNT, BY_RUNWAY, LEASE_NS_MIN
from billing.ledger.entry import DELIVERED
from billing.ledger.errors import Refused
from billing.ledger.ledger import EVENTS_AT_ONCE, Ledger, Rules
from billing.ledger.money import INT64_MAX, NANO
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver
from tests.ledger.hunting import TIE_RULES, hunt

MS = LEASE_NS_MIN


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver()
    driver.top_up("u", 100 * MS, at=0)
    return driver


def leased(
    driver: LedgerDriver, ttl_ns: int, at: int, rate: int = HOUR, resource: str = "", **more: Any
) -> dict[str, Any]:
    return driver.set_rate("u", rate, at=at, resource=resource, options=ops.number_option(ops.TTL_NS, ttl_ns), **more)


def ends(driver: LedgerDriver) -> list[tuple[int, str, int, int]]:
    """(instant, resource, rate it had, rate of the account from then on) of each end."""
    expiries = [entry for entry in driver.entries("u") if entry.op == ops.LEASE_EXPIRED]
    return [(entry.at_ns, entry.key.decode(), entry.a, entry.rate) for entry in expiries]


@pytest.mark.parametrize(("at", "ended", "balance"), [(-1, False, 95 * MS + 1), (0, True, 95 * MS), (1, True, 95 * MS)])
def test_the_line_is_zero_from_exactly_the_end_on(driver: LedgerDriver, at: int, ended: bool, balance: int) -> None:
    leased(driver, 5 * MS, at=0, resource="vm")
    view = driver.view("u", at=5 * MS + at)
    assert view["balance_nanos"] == balance
    assert view["rate_nanos_per_hour"] == (0 if ended else HOUR)
    assert view["leases"] == ({} if ended else {"vm": 5 * MS})
    assert ends(driver) == ([(5 * MS, "vm", HOUR, 0)] if ended else [])


def test_the_row_of_an_end_is_by_time_and_says_the_line(driver: LedgerDriver) -> None:
    leased(driver, MS, at=0, resource="vm")
    driver.view("u", at=MS)
    row = driver.rows("u")[-1]
    fields = {name: row[name] for name in ("operation", "at_ns", "accrued_nanos", "resource", "actor", "value_nanos")}
    assert fields == {
        "operation": "lease_expired", "at_ns": MS, "accrued_nanos": MS, "resource": "vm", "actor": "time",
        "value_nanos": None,
    }  # fmt: skip
    assert (row["line_rate_nanos_per_hour"], row["rate_nanos_per_hour"]) == (0, 0)


def test_a_renewal_moves_the_end_and_a_report_without_a_lease_takes_it_away(driver: LedgerDriver) -> None:
    leased(driver, 5 * MS, at=0)
    leased(driver, 5 * MS, at=3 * MS)
    driver.view("u", at=6 * MS)
    assert ends(driver) == []
    driver.set_rate("u", HOUR, at=7 * MS)
    assert driver.view("u", at=90 * MS)["leases"] == {}
    assert ends(driver) == []


def test_a_renewal_at_the_end_comes_behind_it(driver: LedgerDriver) -> None:
    leased(driver, 5 * MS, at=0)
    leased(driver, 5 * MS, at=5 * MS)
    assert driver.operations("u")[-2:] == [("lease_expired", 5 * MS), ("set_rate", 5 * MS)]
    assert driver.view("u", at=5 * MS)["leases"] == {"": 10 * MS}


def test_a_change_of_the_rate_leaves_the_end_where_it_is(driver: LedgerDriver) -> None:
    leased(driver, 5 * MS, at=0)
    driver.change_rate("u", HOUR, at=4 * MS)
    driver.view("u", at=6 * MS)
    assert ends(driver) == [(5 * MS, "", 2 * HOUR, 0)]
    assert driver.view("u", at=6 * MS)["balance_nanos"] == 94 * MS


def test_a_rate_of_zero_has_no_lease(driver: LedgerDriver) -> None:
    leased(driver, 5 * MS, at=0, rate=0)
    assert driver.ledger.books[BUCKET].extras == {}
    leased(driver, 5 * MS, at=0)
    driver.set_rate("u", 0, at=1)
    driver.view("u", at=6 * MS)
    assert ends(driver) == []


def test_what_a_lease_ended_keeps_its_rate_seq(driver: LedgerDriver) -> None:
    leased(driver, MS, at=0, seq=7)
    with pytest.raises(Refused, match="not newer than 7"):
        driver.set_rate("u", HOUR, at=2 * MS, seq=7)


def test_an_end_beyond_all_instants_is_none(driver: LedgerDriver) -> None:
    leased(driver, INT64_MAX, at=1)
    assert driver.view("u", at=1)["leases"] == {}


def test_lines_of_one_instant_end_one_after_the_other_by_name(driver: LedgerDriver) -> None:
    leased(driver, MS, at=0, resource="b")
    leased(driver, MS, at=0, resource="a", rate=2 * HOUR)
    driver.set_rate("u", 3, at=0)
    driver.view("u", at=MS)
    assert ends(driver) == [(MS, "a", 2 * HOUR, HOUR + 3), (MS, "b", HOUR, 3)]


@pytest.mark.parametrize("accrue", [False, True])
@pytest.mark.parametrize(("early", "crossed"), [(1, False), (0, True), (-1, True)])
def test_money_that_runs_out_with_the_lease_has_run_out(accrue: bool, early: int, crossed: bool) -> None:
    """A lease that ends 1 ns before E prevents the exhaustion; one that ends at E, or later, does not."""
    driver = LedgerDriver(accrue=accrue)
    driver.top_up("u", 5 * MS, at=0)
    leased(driver, 5 * MS - early, at=0)
    driver.view("u", at=20 * MS)
    end = ("lease_expired", 5 * MS - early)
    assert driver.operations("u")[2:] == ([("exhaust", 5 * MS), end] if crossed else [end])
    assert driver.cutoffs() == ([1] if crossed else [])


def test_an_end_stops_the_overrun_and_makes_the_cutoff_effective(driver: LedgerDriver) -> None:
    leased(driver, 130 * MS, at=0)
    driver.view("u", at=100 * MS)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=100 * MS)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=100 * MS)
    assert driver.ledger.books[BUCKET].extras[0].cutoffs[-1].status == DELIVERED
    view = driver.view("u", at=200 * MS)
    assert (view["overrun_nanos"], view["cutoff"]["status"], view["state"]) == (30 * MS, "effective", "exhausted")


def test_a_runway_threshold_of_the_same_instant_is_not_crossed_and_an_amount_is(driver: LedgerDriver) -> None:
    driver.set_thresholds("u", [(BY_RUNWAY, 60 * MS), (BY_AMOUNT, 60 * MS)], at=0)
    leased(driver, 40 * MS, at=0)
    driver.view("u", at=41 * MS)
    assert driver.operations("u")[-2:] == [("lease_expired", 40 * MS), ("threshold", 40 * MS)]
    assert driver.rows("u")[-1]["value_nanos"] == 60 * MS


def test_e_and_admission_take_a_lease_as_renewed(driver: LedgerDriver) -> None:
    reply = leased(driver, 10 * MS, at=0)
    assert (reply["exhausts_at_ns"], reply["runway_ns"]) == (100 * MS, 100 * MS)
    with pytest.raises(Refused, match="INSUFFICIENT_RUNWAY"):
        leased(driver, 10 * MS, at=0, min_runway=100 * MS + 1)
    assert driver.view("u", at=10 * MS)["exhausts_at_ns"] is None


def test_what_ended_while_nobody_looked_has_not_run_out(driver: LedgerDriver) -> None:
    """Overdue after a time without a daemon: by what would have happened, not by E alone."""
    leased(driver, 50 * MS, at=0)
    driver.top_up("v", 100 * MS, at=0)
    driver.set_rate("v", HOUR, at=0, options=ops.number_option(ops.TTL_NS, 101 * MS))
    driver.top_up("w", 100 * MS, at=0)
    driver.set_rate("w", HOUR, at=0)
    driver.hold("w", 40 * MS, at=0, ttl=60 * MS)
    driver.ledger.still(BUCKET)
    book = driver.ledger.books[BUCKET]
    assert [driver.ledger.unnoticed(book, at) for at in (100 * MS - 1, 100 * MS, 200 * MS)] == [0, 2, 2]


def test_a_lease_goes_with_its_bucket(driver: LedgerDriver) -> None:
    leased(driver, 5 * MS, at=0, resource="vm")
    loaded = Ledger(Rules(False, 10, False), lambda ref, due_ns: due_ns)
    loaded.load(BUCKET, driver.state())
    loaded.wake(BUCKET)
    assert loaded.next_due_ns([(BUCKET << 32, loaded.books[BUCKET].armed_ns[0])]) == [5 * MS]
    assert loaded.view(BUCKET, b"u", 6 * MS)["balance_nanos"] == 95 * MS


def test_a_rate_without_a_lease_gets_that_of_the_rules_and_replay_needs_no_rules() -> None:
    driver = LedgerDriver()
    driver.ledger = Ledger(Rules(False, 100, False, rate_lease_ns=5 * MS), lambda ref, due_ns: due_ns)
    driver.ledger.create(BUCKET)
    driver.top_up("u", 100 * MS, at=0)
    first = driver.set_rate("u", HOUR, at=0, request_id="r")
    again = driver.set_rate("u", HOUR, at=MS, request_id="r")
    assert (again["replayed"], again["entry_id"]) == (True, first["entry_id"])
    leased(driver, 50 * MS, at=0, resource="vm")
    driver.change_rate("u", HOUR, at=MS, resource="vm")
    driver.change_rate("u", HOUR, at=MS)
    assert driver.view("u", at=MS)["leases"] == {"vm": 50 * MS, "": 6 * MS}
    driver.view("u", at=6 * MS)
    assert ends(driver) == [(6 * MS, "", 2 * HOUR, 2 * HOUR)]
    assert driver.replayed(ids=100).state() == driver.state(), "in a ledger without a lease of its own"


def test_a_line_with_a_lease_is_no_everyday_line_and_others_stay_so(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    assert driver.ledger.books[BUCKET].extras == {}
    leased(driver, 5 * MS, at=0)
    driver.set_rate("u", 2 * HOUR, at=MS)
    assert driver.ledger.books[BUCKET].extras == {}, "nothing of the lease is left"
    assert driver.view("u", at=9 * MS)["balance_nanos"] == 100 * MS - MS - 16 * MS


@pytest.mark.parametrize("ttl", [0, -1, MS - 1, INT64_MAX + 1, 1.5, "5", True])
def test_a_lease_that_is_none_is_refused(ttl: Any) -> None:
    with pytest.raises(Refused, match="ttl_ns must be an integer from 1000000 to"):
        parse("set_rate", [b"u", 1, {b"ttl_ns": ttl}])
    assert parse("set_rate", [b"u", 1, {b"ttl_ns": MS}]).body[8] == ops.number_option(ops.TTL_NS, MS)


def test_an_open_hold_and_a_lease_meet_at_e(driver: LedgerDriver) -> None:
    """The hold's money comes first, then the exhaustion is judged, then the line ends."""
    driver.hold("u", 60 * MS, at=0, ttl=40 * MS)
    leased(driver, 40 * MS, at=0)
    view = driver.view("u", at=50 * MS)
    assert driver.operations("u")[-2:] == [("hold_expired", 40 * MS), ("lease_expired", 40 * MS)]
    assert (view["available_nanos"], view["state"]) == (60 * MS, "active")
    assert view["balance_nanos"] * NANO == driver.entries("u")[-1].balance


def test_a_wrong_tie_rule_is_caught() -> None:
    """One of them, drawn anew each time; `python -m tests.ledger.hunting` tries all."""
    name = random.SystemRandom().choice(sorted(TIE_RULES))
    assert hunt(name), f"{name} survives"


@pytest.mark.parametrize("seed", range(5))
def test_leases_end_in_their_order_however_often_each_was_renewed_or_taken_away(
    driver: LedgerDriver, seed: int
) -> None:
    draw = random.Random(seed)
    wanted: dict[str, int] = {}
    for at in range(400):
        line = f"vm-{draw.randrange(40)}"
        if draw.random() < 0.2:
            driver.set_rate("u", 0, at=at, resource=line)
            wanted.pop(line, None)
        else:
            ttl_ns = MS + draw.randrange(4) * 100
            leased(driver, ttl_ns, at=at, rate=1, resource=line)
            wanted[line] = at + ttl_ns
    again = LedgerDriver()
    again.ledger.drop(BUCKET)
    again.ledger.load(BUCKET, driver.ledger.dump(BUCKET))
    in_order = sorted((ends_ns, line) for line, ends_ns in wanted.items())
    for each in (driver, again):
        each.view("u", at=2 * MS)
        assert [(at_ns, line) for at_ns, line, *_ in ends(each)] == in_order
        assert each.view("u", at=2 * MS)["rate_nanos_per_hour"] == 0


def test_very_many_ends_are_taken_in_turns_so_that_other_accounts_need_not_wait(driver: LedgerDriver) -> None:
    count = 2 * EVENTS_AT_ONCE + 9
    for number in range(count):
        leased(driver, MS, at=number, rate=1, resource=f"vm-{number}")
    ref = driver.filed[-1][0]
    made = []
    for _ in range(4):  # turns
        driver.filed.clear()
        driver.ledger.tick([ref], 3 * MS)
        made.append(len(ends(driver)))
        assert driver.filed == [(ref, MS + made[-1])][: made[-1] < count]  # the next one, which has passed already
    assert made == [EVENTS_AT_ONCE, 2 * EVENTS_AT_ONCE, count, count]
    assert [at_ns for at_ns, *_ in ends(driver)] == [MS + number for number in range(count)]
    assert driver.view("u", at=3 * MS)["leases"] == {}
