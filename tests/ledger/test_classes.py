"""Cutoff classes: graces that end at exact instants, what happens within them, changes of class, lost classes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.ledger.entry import RULE_ACCRUE, RULE_RESTORE
from billing.ledger.extra import Extra, unpack
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import INT64_MAX, NANO
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver, refusal
from tests.ledger.hunting import OF_CLASSES, hunt

GRACE = 1000
CLASSES = {
    b"gold": CutoffClass(grace_ns=GRACE, restore=True),
    b"arrears": CutoffClass(grace_ns=GRACE, accrue=True),
    b"short": CutoffClass(grace_ns=10),
    b"strict": CutoffClass(),
}
E = 100  # 100 nanos at a nano each nanosecond


def new_driver(name: str = "gold", **more: Any) -> LedgerDriver:
    driver = LedgerDriver(classes=CLASSES, **more)
    driver.top_up("u", E, at=0)
    driver.set_class("u", name, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.notices()
    return driver


@pytest.fixture
def driver() -> LedgerDriver:
    return new_driver()


@pytest.mark.parametrize(("at", "called"), [(-1, False), (0, True), (1, True)])
def test_the_call_is_owed_from_exactly_the_end_of_the_grace_on(driver: LedgerDriver, at: int, called: Any) -> None:
    view = driver.view("u", at=E + GRACE + at)
    assert view["state"] == "exhausted"
    assert driver.cutoffs() == ([1] if called else [])
    assert driver.owed("u") == (("cutoff", 1) if called else None)
    assert view["cutoff"]["status"] == ("pending" if called else "in_grace")
    assert view["cutoff"]["exhausted_at_ns"] == E
    assert view["cutoff_at_ns"] == (None if called else E + GRACE)
    assert view["overrun_nanos"] == GRACE + at
    operations = [("grace_ended", E + GRACE)] if called else []
    assert driver.operations("u")[3:] == [("exhaust", E), *operations]
    assert [row["seq"] for row in driver.pending()] == ([1] if called else [])


def test_the_wheel_is_told_of_the_end_of_the_grace(driver: LedgerDriver) -> None:
    ref = driver.filed[-1][0]
    driver.filed.clear()
    driver.ledger.tick([ref], E)
    assert driver.filed == [(ref, E + GRACE)]
    driver.ledger.tick([ref], E + GRACE)
    assert driver.cutoffs() == [1]
    assert driver.operations("u")[-1] == ("grace_ended", E + GRACE)


@pytest.mark.parametrize(
    ("at", "status", "operations"),
    [(-1, "superseded", ["exhaust", "top_up"]), (0, "superseded", ["exhaust", "grace_ended", "top_up"])],
)
def test_a_top_up_supersedes_and_at_the_end_comes_behind_it(
    driver: LedgerDriver, at: int, status: Any, operations: Any
) -> None:
    reply = driver.top_up("u", 5, at=E + GRACE + at)
    assert reply["restored"] is True
    assert (reply["cutoff"]["seq"], reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == (1, status, 0)
    assert [name for name, _ in driver.operations("u")[3:]] == operations
    assert driver.owed("u") is None, "nothing was attempted, so nothing is to be made good"
    assert driver.pending() == []
    assert driver.view("u", at=E + GRACE + at + 5)["cutoff"]["seq"] == 2, "and it runs out again"


def test_a_start_presumes_no_attempt_before_the_end_of_the_grace(driver: LedgerDriver) -> None:
    driver.view("u", at=E + 1)
    driver.ledger.started(E + 5)
    driver.view("u", at=E + GRACE)
    driver.top_up("u", 5, at=E + GRACE + 1)
    assert driver.owed("u") is None, "the call was not due before the start, and no attempt is recorded since"


def test_a_start_behind_the_end_presumes_an_attempt_though_no_entry_says_so(driver: LedgerDriver) -> None:
    driver.ledger.started(E + GRACE)
    driver.top_up("u", 5, at=E + GRACE + 1)
    assert driver.owed("u") == ("restore", 1)


def test_a_grace_counts_arrears_where_the_class_says_so() -> None:
    driver = new_driver("arrears")
    view = driver.view("u", at=E + 7)
    assert (view["balance_nanos"], view["overrun_nanos"], view["cutoff_at_ns"]) == (-7, 7, E + GRACE)
    assert driver.view("u", at=E + GRACE)["balance_nanos"] == -GRACE
    assert driver.rows("u")[-1]["accrued_nanos"] == GRACE
    assert driver.top_up("u", GRACE, at=E + GRACE)["state"] == "exhausted", "arrears are paid first"
    assert driver.top_up("u", 1, at=E + GRACE)["restored"] is True


def test_a_line_raised_within_the_grace_makes_no_call_of_its_own_and_one_behind_it_does(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=E + 1, resource="vm")
    assert driver.view("u", at=E + 1)["exhaustion_seq"] == 1
    assert driver.cutoffs() == []
    driver.view("u", at=E + GRACE)
    assert driver.cutoffs() == [1]
    driver.set_rate("u", HOUR, at=E + GRACE + 5, resource="vm-2")
    assert driver.cutoffs() == [2], "the grace belongs to the crossing"


def test_a_debit_to_zero_begins_a_grace_at_its_instant(driver: LedgerDriver) -> None:
    reply = driver.debit("u", 60, at=40)
    assert reply["state"] == "exhausted"
    assert driver.view("u", at=40)["cutoff_at_ns"] == 40 + GRACE
    assert driver.cutoffs() == []


def test_a_call_at_rate_zero_comes_at_the_end_of_the_grace_too(driver: LedgerDriver) -> None:
    driver.set_rate("u", 0, at=E)
    assert driver.view("u", at=E + GRACE - 1)["overrun_nanos"] == 0
    driver.view("u", at=E + GRACE)
    assert driver.cutoffs() == [1]


def test_an_account_in_its_grace_is_not_closable(driver: LedgerDriver) -> None:
    driver.set_rate("u", 0, at=E)
    assert refusal(driver.close, "u", at=E + GRACE - 1).details["obstacle"] == "cutoff"
    assert refusal(driver.close, "u", at=E + GRACE).details["obstacle"] == "cutoff"
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=E + GRACE)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=E + GRACE)
    driver.close("u", at=E + GRACE)
    driver.top_up("u", 5, at=E + GRACE + 1)
    assert driver.view("u", at=E + GRACE + 1)["class"] == "default", "a closed account forgets its class"


def test_the_expiry_of_a_hold_at_the_end_of_the_grace_comes_first() -> None:
    driver = LedgerDriver(classes=CLASSES)
    driver.top_up("u", E, at=0)
    driver.set_class("u", "gold", at=0)
    driver.hold("u", 40, at=0, ttl=60 + GRACE)
    driver.set_rate("u", HOUR, at=0)
    driver.notices()
    assert driver.view("u", at=60)["cutoff_at_ns"] == 60 + GRACE
    view = driver.view("u", at=60 + GRACE)
    assert view["state"] == "active"
    assert driver.cutoffs() == []
    assert [name for name, _ in driver.operations("u")[4:]] == ["exhaust", "hold_expired"]


def test_a_lease_that_ends_with_the_grace_ends_behind_it(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=E, resource="vm", options=ops.number_option(ops.TTL_NS, ops.LEASE_NS_MIN))
    driver.configure(CLASSES | {b"gold": CutoffClass(grace_ns=ops.LEASE_NS_MIN)})
    driver.set_class("u", "gold", at=E + 1)
    driver.view("u", at=E + ops.LEASE_NS_MIN)
    assert [name for name, _ in driver.operations("u")[-2:]] == ["grace_ended", "lease_expired"]


def test_nothing_of_a_cutoff_in_its_grace_can_be_reported_or_ordered(driver: LedgerDriver) -> None:
    driver.view("u", at=E)
    for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED, ops.CUTOFF_FAILED, ops.CUTOFF_RELEASED, ops.CUTOFF_RETRY):
        for operator in (0, 1):
            assert refusal(driver.report, op, "u", 1, at=E + 1, operator=operator).name == "UNKNOWN_CUTOFF"
    before = driver.state()
    assert refusal(driver.ledger.retry_cutoff, BUCKET, b"u", E + 1).name == "UNKNOWN_CUTOFF"
    assert driver.state() == before


# -- changes of class --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at", "due"),
    [
        ("short", E + 4, E + 10),  # E + the new grace
        ("short", E + 9, E + 10),
        ("short", E + 10, E + 10),
        ("short", E + 500, E + 500),  # it would have been over: at once
        ("strict", E + 4, E + 4),
        ("", E + 4, E + 4),
        ("arrears", E + 4, E + GRACE),
    ],
)
def test_another_class_within_the_grace_moves_its_end(driver: LedgerDriver, name: str, at: int, due: Any) -> None:
    driver.set_class("u", name, at=at)
    if due > at:
        driver.view("u", at=due - 1)
        assert driver.cutoffs() == []
    driver.view("u", at=due)
    assert driver.cutoffs() == [1]
    assert driver.operations("u")[-1] == ("grace_ended", due)


def test_a_longer_grace_moves_the_end_back(driver: LedgerDriver) -> None:
    driver.set_class("u", "short", at=E)
    driver.set_class("u", "gold", at=E + 9)
    driver.view("u", at=E + GRACE - 1)
    assert driver.cutoffs() == []
    driver.view("u", at=E + GRACE)
    assert driver.cutoffs() == [1]


def test_a_call_that_is_owed_stays_owed_whatever_class_comes(driver: LedgerDriver) -> None:
    driver.set_class("u", "short", at=0)
    driver.view("u", at=E + 10)
    driver.set_class("u", "gold", at=E + 10)
    assert driver.owed("u") == ("cutoff", 1)
    assert driver.view("u", at=E + 10)["cutoff_at_ns"] is None
    assert driver.operations("u")[-1] == ("set_class", E + 10)


def test_how_an_exhaustion_goes_on_is_asked_when_it_begins(driver: LedgerDriver) -> None:
    driver.set_class("u", "arrears", at=E + 1)
    assert driver.view("u", at=E + 5)["balance_nanos"] == 0, "it began with the rule clamp"
    driver.top_up("u", 10, at=E + 5)
    assert driver.view("u", at=E + 18)["balance_nanos"] == -3


def test_a_class_has_its_own_rules_in_its_entries(driver: LedgerDriver) -> None:
    driver.top_up("u", 5, at=1)
    driver.set_class("u", "arrears", at=2)
    driver.top_up("u", 5, at=3)
    driver.set_class("u", "", at=4)
    rules = [entry.flags & (RULE_ACCRUE | RULE_RESTORE) for entry in driver.entries("u")]
    assert rules == [0, RULE_RESTORE, RULE_RESTORE, RULE_RESTORE, RULE_ACCRUE, RULE_ACCRUE, 0]


@pytest.mark.parametrize(("name", "owed"), [("gold", ("restore", 1)), ("short", None)])
def test_a_restore_is_owed_where_the_class_has_a_restore_url(name: str, owed: Any) -> None:
    driver = new_driver(name)
    driver.view("u", at=E + GRACE)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=E + GRACE)
    driver.top_up("u", 5, at=E + GRACE + 1)
    assert driver.owed("u") == owed


def test_the_row_of_the_history_names_the_class(driver: LedgerDriver) -> None:
    driver.set_class("u", "", at=5, message="left the plan", actor="desk")
    rows = [(row["operation"], row["class"], row["resource"], row["actor"]) for row in driver.rows("u")]
    assert rows == [
        ("top_up", None, None, ""),
        ("set_class", "gold", None, ""),
        ("set_rate", None, "", ""),
        ("set_class", "default", None, "desk"),
    ]


def test_an_account_without_a_class_has_no_extra() -> None:
    driver = LedgerDriver(classes=CLASSES)
    driver.top_up("u", E, at=0)
    driver.set_class("u", "", at=1)
    assert driver.ledger.books[BUCKET].extras == {}
    driver.set_class("u", "gold", at=2)
    assert len(driver.ledger.books[BUCKET].extras) == 1
    driver.set_class("u", "", at=3)
    assert driver.ledger.books[BUCKET].extras == {}


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_class_that_the_configuration_does_not_have_is_refused_and_nothing_is_kept(driver: LedgerDriver) -> None:
    before, entry_count = driver.state(), len(driver.entries())
    refused = refusal(driver.set_class, "u", "platinum", at=5, request_id="r")
    assert (refused.name, refused.details) == ("INVALID_PARAMS", {"class": "platinum"})
    assert "cutoff.class.platinum" in refused.message
    assert driver.state() == before
    assert len(driver.entries()) == entry_count


def test_a_class_that_is_gone_is_served_by_the_default(driver: LedgerDriver) -> None:
    driver.configure({})
    assert driver.view("u", at=E - 1)["cutoff_at_ns"] == E
    assert driver.view("u", at=E)["class"] == "gold", "it comes back with the configuration"
    assert driver.cutoffs() == [1]


def test_a_grace_that_runs_while_its_class_goes_ends_where_it_was_to_end(driver: LedgerDriver) -> None:
    driver.view("u", at=E)
    driver.configure({})
    assert driver.view("u", at=E + GRACE - 1)["cutoff_at_ns"] == E + GRACE
    driver.view("u", at=E + GRACE)
    assert driver.cutoffs() == [1]


def test_a_request_is_answered_again_though_its_class_is_gone(driver: LedgerDriver) -> None:
    first = driver.set_class("u", "short", at=5, request_id="r")
    driver.configure({})
    assert driver.set_class("u", "short", at=6, request_id="r") == first | {"replayed": True}
    assert refusal(driver.set_class, "u", "gold", at=6, request_id="r").name == "REQUEST_ID_CONFLICT"


@pytest.mark.parametrize("grace", [INT64_MAX - E, INT64_MAX - E + 1, INT64_MAX])
def test_no_grace_ends_beyond_the_last_instant(grace: Any) -> None:
    driver = LedgerDriver(classes={b"long": CutoffClass(grace_ns=grace)})
    driver.top_up("u", E, at=0)
    driver.set_class("u", "long", at=0)
    driver.set_rate("u", HOUR, at=0)
    assert driver.view("u", at=E)["cutoff_at_ns"] == INT64_MAX
    driver.state()


# -- recovery ----------------------------------------------------------------------------------------------------------


def test_replay_takes_graces_from_the_entries_whatever_the_configuration_says_now(driver: LedgerDriver) -> None:
    driver.set_class("u", "short", at=E + 1)
    driver.set_class("u", "gold", at=E + 2)
    driver.top_up("u", 5, at=E + 3)
    driver.debit("u", 5, at=E + 3, mode="partial")
    driver.view("u", at=E + 3 + GRACE)
    entries = [packed for packed in driver.journal] if driver.entries() else []
    for rules in (Rules(True, 1000, True), Rules(False, 1000, False, 7, {b"gold": CutoffClass(1, True)})):
        again = Ledger(rules, lambda _, due_ns: due_ns)
        again.create(BUCKET)
        for packed in entries:
            again.replay(BUCKET, packed)
        again.replayed()
        assert again.dump(BUCKET) == driver.state()


def test_class_and_grace_are_in_the_packed_extra() -> None:
    extra = Extra()
    extra.class_name = "grün".encode()
    again = unpack(extra.pack())
    assert (again.class_name, again.is_empty(), again.cutoffs) == ("grün".encode(), False, [])
    driver = new_driver()
    driver.view("u", at=E)
    (packed,) = (extra.pack() for extra in driver.ledger.books[BUCKET].extras.values())
    again = unpack(packed)
    assert (again.cutoffs[0].due_ns, again.cutoffs[0].exhausted_at_ns, again.next_expiry_ns) == (
        E + GRACE,
        E,
        E + GRACE,
    )
    assert again.pack() == packed
    assert packed.endswith(b"\x03\x04\0\0\0gold" + b"\x04\x0c\0\0\0\x01\0\0\0" + (E + GRACE).to_bytes(8, "little"))


def test_what_was_available_in_fractions_is_overrun_in_the_grace() -> None:
    driver = LedgerDriver(classes=CLASSES)
    driver.top_up("u", 1, at=0)
    driver.set_class("u", "gold", at=0)
    driver.set_rate("u", 7, at=0)
    e = -(-NANO // 7)
    assert driver.view("u", at=0)["cutoff_at_ns"] == e + GRACE
    driver.view("u", at=e + GRACE)
    entry = driver.entries("u")[-1]
    assert (entry.at_ns, entry.overrun, entry.balance) == (e + GRACE, 7 * (e + GRACE) - NANO, 0)


def test_a_wrong_tie_rule_of_classes_is_caught() -> None:
    """One of them, drawn anew each time; `python -m tests.ledger.hunting` tries all."""
    name = random.SystemRandom().choice(sorted(OF_CLASSES))
    assert hunt(name), f"{name} survives"
