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
from tests.ledger.bank import BUCKET, HOUR, Bank, refusal
from tests.ledger.hunting import OF_CLASSES, hunt

GRACE = 1000
CLASSES = {
    b"gold": CutoffClass(grace_ns=GRACE, restore=True),
    b"arrears": CutoffClass(grace_ns=GRACE, accrue=True),
    b"short": CutoffClass(grace_ns=10),
    b"strict": CutoffClass(),
}
E = 100  # 100 nanos at a nano each nanosecond


def new_bank(name: str = "gold", **more: Any) -> Bank:
    bank = Bank(classes=CLASSES, **more)
    bank.top_up("u", E, at=0)
    bank.set_class("u", name, at=0)
    bank.set_rate("u", HOUR, at=0)
    bank.notices()
    return bank


@pytest.fixture
def bank() -> Bank:
    return new_bank()


@pytest.mark.parametrize(("at", "called"), [(-1, False), (0, True), (1, True)])
def test_the_call_is_owed_from_exactly_the_end_of_the_grace_on(bank: Bank, at: int, called: Any) -> None:
    view = bank.view("u", at=E + GRACE + at)
    assert view["state"] == "exhausted"
    assert bank.cutoffs() == ([1] if called else [])
    assert bank.owed("u") == (("cutoff", 1) if called else None)
    assert view["cutoff"]["status"] == ("pending" if called else "in_grace")
    assert view["cutoff"]["exhausted_at_ns"] == E
    assert view["cutoff_at_ns"] == (None if called else E + GRACE)
    assert view["overrun_nanos"] == GRACE + at
    ended = [("grace_ended", E + GRACE)] if called else []
    assert bank.operations("u")[3:] == [("exhaust", E), *ended]
    assert [row["seq"] for row in bank.pending()] == ([1] if called else [])


def test_the_wheel_is_told_of_the_end_of_the_grace(bank: Bank) -> None:
    ref = bank.filed[-1][0]
    bank.filed.clear()
    bank.ledger.tick(ref, E)
    assert bank.filed == [(ref, E + GRACE)]
    bank.ledger.tick(ref, E + GRACE)
    assert bank.cutoffs() == [1]
    assert bank.operations("u")[-1] == ("grace_ended", E + GRACE)


@pytest.mark.parametrize(
    ("at", "status", "operations"),
    [(-1, "superseded", ["exhaust", "top_up"]), (0, "superseded", ["exhaust", "grace_ended", "top_up"])],
)
def test_a_top_up_supersedes_and_at_the_end_comes_behind_it(bank: Bank, at: int, status: Any, operations: Any) -> None:
    reply = bank.top_up("u", 5, at=E + GRACE + at)
    assert reply["restored"] is True
    assert (reply["cutoff"]["seq"], reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == (1, status, 0)
    assert [name for name, _ in bank.operations("u")[3:]] == operations
    assert bank.owed("u") is None, "nothing was attempted, so nothing is to be made good"
    assert bank.pending() == []
    assert bank.view("u", at=E + GRACE + at + 5)["cutoff"]["seq"] == 2, "and it runs out again"


def test_a_start_presumes_no_attempt_before_the_end_of_the_grace(bank: Bank) -> None:
    bank.view("u", at=E + 1)
    bank.ledger.started(E + 5)
    bank.view("u", at=E + GRACE)
    bank.top_up("u", 5, at=E + GRACE + 1)
    assert bank.owed("u") is None, "the call was not due before the start, and no attempt is recorded since"


def test_a_start_behind_the_end_presumes_an_attempt_though_no_entry_says_so(bank: Bank) -> None:
    bank.ledger.started(E + GRACE)
    bank.top_up("u", 5, at=E + GRACE + 1)
    assert bank.owed("u") == ("restore", 1)


def test_a_grace_counts_arrears_where_the_class_says_so() -> None:
    bank = new_bank("arrears")
    view = bank.view("u", at=E + 7)
    assert (view["balance_nanos"], view["overrun_nanos"], view["cutoff_at_ns"]) == (-7, 7, E + GRACE)
    assert bank.view("u", at=E + GRACE)["balance_nanos"] == -GRACE
    assert bank.rows("u")[-1]["accrued_nanos"] == GRACE
    assert bank.top_up("u", GRACE, at=E + GRACE)["state"] == "exhausted", "arrears are paid first"
    assert bank.top_up("u", 1, at=E + GRACE)["restored"] is True


def test_a_line_raised_within_the_grace_makes_no_call_of_its_own_and_one_behind_it_does(bank: Bank) -> None:
    bank.set_rate("u", HOUR, at=E + 1, resource="vm")
    assert bank.view("u", at=E + 1)["exhaustion_seq"] == 1
    assert bank.cutoffs() == []
    bank.view("u", at=E + GRACE)
    assert bank.cutoffs() == [1]
    bank.set_rate("u", HOUR, at=E + GRACE + 5, resource="vm-2")
    assert bank.cutoffs() == [2], "the grace belongs to the crossing"


def test_a_debit_to_zero_begins_a_grace_at_its_instant(bank: Bank) -> None:
    reply = bank.debit("u", 60, at=40)
    assert reply["state"] == "exhausted"
    assert bank.view("u", at=40)["cutoff_at_ns"] == 40 + GRACE
    assert bank.cutoffs() == []


def test_a_call_at_rate_zero_comes_at_the_end_of_the_grace_too(bank: Bank) -> None:
    bank.set_rate("u", 0, at=E)
    assert bank.view("u", at=E + GRACE - 1)["overrun_nanos"] == 0
    bank.view("u", at=E + GRACE)
    assert bank.cutoffs() == [1]


def test_an_account_in_its_grace_is_not_closable(bank: Bank) -> None:
    bank.set_rate("u", 0, at=E)
    assert refusal(bank.close, "u", at=E + GRACE - 1).details["obstacle"] == "cutoff"
    assert refusal(bank.close, "u", at=E + GRACE).details["obstacle"] == "cutoff"
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=E + GRACE)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=E + GRACE)
    bank.close("u", at=E + GRACE)
    bank.top_up("u", 5, at=E + GRACE + 1)
    assert bank.view("u", at=E + GRACE + 1)["class"] == "default", "a closed account forgets its class"


def test_the_expiry_of_a_hold_at_the_end_of_the_grace_comes_first() -> None:
    bank = Bank(classes=CLASSES)
    bank.top_up("u", E, at=0)
    bank.set_class("u", "gold", at=0)
    bank.hold("u", 40, at=0, ttl=60 + GRACE)
    bank.set_rate("u", HOUR, at=0)
    bank.notices()
    assert bank.view("u", at=60)["cutoff_at_ns"] == 60 + GRACE
    view = bank.view("u", at=60 + GRACE)
    assert view["state"] == "active"
    assert bank.cutoffs() == []
    assert [name for name, _ in bank.operations("u")[4:]] == ["exhaust", "hold_expired"]


def test_a_lease_that_ends_with_the_grace_ends_behind_it(bank: Bank) -> None:
    bank.set_rate("u", HOUR, at=E, resource="vm", options=ops.number_option(ops.TTL_NS, ops.LEASE_NS_MIN))
    bank.configure(CLASSES | {b"gold": CutoffClass(grace_ns=ops.LEASE_NS_MIN)})
    bank.set_class("u", "gold", at=E + 1)
    bank.view("u", at=E + ops.LEASE_NS_MIN)
    assert [name for name, _ in bank.operations("u")[-2:]] == ["grace_ended", "lease_expired"]


def test_nothing_of_a_cutoff_in_its_grace_can_be_reported_or_ordered(bank: Bank) -> None:
    bank.view("u", at=E)
    for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED, ops.CUTOFF_FAILED, ops.CUTOFF_RELEASED, ops.CUTOFF_RETRY):
        for operator in (0, 1):
            assert refusal(bank.report, op, "u", 1, at=E + 1, operator=operator).name == "UNKNOWN_CUTOFF"
    before = bank.state()
    assert refusal(bank.ledger.retry_cutoff, BUCKET, b"u", E + 1).name == "UNKNOWN_CUTOFF"
    assert bank.state() == before


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
def test_another_class_within_the_grace_moves_its_end(bank: Bank, name: str, at: int, due: Any) -> None:
    bank.set_class("u", name, at=at)
    if due > at:
        bank.view("u", at=due - 1)
        assert bank.cutoffs() == []
    bank.view("u", at=due)
    assert bank.cutoffs() == [1]
    assert bank.operations("u")[-1] == ("grace_ended", due)


def test_a_longer_grace_moves_the_end_back(bank: Bank) -> None:
    bank.set_class("u", "short", at=E)
    bank.set_class("u", "gold", at=E + 9)
    bank.view("u", at=E + GRACE - 1)
    assert bank.cutoffs() == []
    bank.view("u", at=E + GRACE)
    assert bank.cutoffs() == [1]


def test_a_call_that_is_owed_stays_owed_whatever_class_comes(bank: Bank) -> None:
    bank.set_class("u", "short", at=0)
    bank.view("u", at=E + 10)
    bank.set_class("u", "gold", at=E + 10)
    assert bank.owed("u") == ("cutoff", 1)
    assert bank.view("u", at=E + 10)["cutoff_at_ns"] is None
    assert bank.operations("u")[-1] == ("set_class", E + 10)


def test_how_an_exhaustion_goes_on_is_asked_when_it_begins(bank: Bank) -> None:
    bank.set_class("u", "arrears", at=E + 1)
    assert bank.view("u", at=E + 5)["balance_nanos"] == 0, "it began with the rule clamp"
    bank.top_up("u", 10, at=E + 5)
    assert bank.view("u", at=E + 18)["balance_nanos"] == -3


def test_a_class_has_its_own_rules_in_its_entries(bank: Bank) -> None:
    bank.top_up("u", 5, at=1)
    bank.set_class("u", "arrears", at=2)
    bank.top_up("u", 5, at=3)
    bank.set_class("u", "", at=4)
    rules = [entry.flags & (RULE_ACCRUE | RULE_RESTORE) for entry in bank.entries("u")]
    assert rules == [0, RULE_RESTORE, RULE_RESTORE, RULE_RESTORE, RULE_ACCRUE, RULE_ACCRUE, 0]


@pytest.mark.parametrize(("name", "owed"), [("gold", ("restore", 1)), ("short", None)])
def test_a_restore_is_owed_where_the_class_has_a_restore_url(name: str, owed: Any) -> None:
    bank = new_bank(name)
    bank.view("u", at=E + GRACE)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=E + GRACE)
    bank.top_up("u", 5, at=E + GRACE + 1)
    assert bank.owed("u") == owed


def test_the_row_of_the_history_names_the_class(bank: Bank) -> None:
    bank.set_class("u", "", at=5, message="left the plan", actor="desk")
    rows = [(row["operation"], row["class"], row["resource"], row["actor"]) for row in bank.rows("u")]
    assert rows == [
        ("top_up", None, None, ""),
        ("set_class", "gold", None, ""),
        ("set_rate", None, "", ""),
        ("set_class", "default", None, "desk"),
    ]


def test_an_account_without_a_class_has_no_extra() -> None:
    bank = Bank(classes=CLASSES)
    bank.top_up("u", E, at=0)
    bank.set_class("u", "", at=1)
    assert bank.ledger.books[BUCKET].extras == {}
    bank.set_class("u", "gold", at=2)
    assert len(bank.ledger.books[BUCKET].extras) == 1
    bank.set_class("u", "", at=3)
    assert bank.ledger.books[BUCKET].extras == {}


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_class_that_the_configuration_does_not_have_is_refused_and_nothing_is_kept(bank: Bank) -> None:
    before, entry_count = bank.state(), len(bank.entries())
    refused = refusal(bank.set_class, "u", "platinum", at=5, request_id="r")
    assert (refused.name, refused.details) == ("INVALID_PARAMS", {"class": "platinum"})
    assert "cutoff.class.platinum" in refused.message
    assert bank.state() == before
    assert len(bank.entries()) == entry_count


def test_a_class_that_is_gone_is_served_by_the_default(bank: Bank) -> None:
    bank.configure({})
    assert list(bank.ledger.unknown_classes(BUCKET)) == [(b"u", b"gold")]
    assert bank.view("u", at=E - 1)["cutoff_at_ns"] == E
    assert bank.view("u", at=E)["class"] == "gold", "it comes back with the configuration"
    assert bank.cutoffs() == [1]


def test_a_grace_that_runs_while_its_class_goes_ends_where_it_was_to_end(bank: Bank) -> None:
    bank.view("u", at=E)
    bank.configure({})
    assert bank.view("u", at=E + GRACE - 1)["cutoff_at_ns"] == E + GRACE
    bank.view("u", at=E + GRACE)
    assert bank.cutoffs() == [1]


def test_a_request_is_answered_again_though_its_class_is_gone(bank: Bank) -> None:
    first = bank.set_class("u", "short", at=5, request_id="r")
    bank.configure({})
    assert bank.set_class("u", "short", at=6, request_id="r") == first | {"replayed": True}
    assert refusal(bank.set_class, "u", "gold", at=6, request_id="r").name == "REQUEST_ID_CONFLICT"


@pytest.mark.parametrize("grace", [INT64_MAX - E, INT64_MAX - E + 1, INT64_MAX])
def test_no_grace_ends_beyond_the_last_instant(grace: Any) -> None:
    bank = Bank(classes={b"long": CutoffClass(grace_ns=grace)})
    bank.top_up("u", E, at=0)
    bank.set_class("u", "long", at=0)
    bank.set_rate("u", HOUR, at=0)
    assert bank.view("u", at=E)["cutoff_at_ns"] == INT64_MAX
    bank.state()


# -- recovery ----------------------------------------------------------------------------------------------------------


def test_replay_takes_graces_from_the_entries_whatever_the_configuration_says_now(bank: Bank) -> None:
    bank.set_class("u", "short", at=E + 1)
    bank.set_class("u", "gold", at=E + 2)
    bank.top_up("u", 5, at=E + 3)
    bank.debit("u", 5, at=E + 3, mode="partial")
    bank.view("u", at=E + 3 + GRACE)
    entries = [packed for packed in bank.journal] if bank.entries() else []
    for rules in (Rules(True, 1000, True), Rules(False, 1000, False, 7, {b"gold": CutoffClass(1, True)})):
        again = Ledger(rules, lambda _, due_ns: due_ns)
        again.create(BUCKET)
        for packed in entries:
            again.replay(BUCKET, packed)
        again.replayed()
        assert again.dump(BUCKET) == bank.state()


def test_class_and_grace_are_in_the_packed_extra() -> None:
    extra = Extra()
    extra.class_name = "grün".encode()
    again = unpack(extra.pack())
    assert (again.class_name, again.is_empty(), again.cutoffs) == ("grün".encode(), False, [])
    bank = new_bank()
    bank.view("u", at=E)
    (packed,) = (extra.pack() for extra in bank.ledger.books[BUCKET].extras.values())
    again = unpack(packed)
    assert (again.cutoffs[0].due_ns, again.cutoffs[0].exhausted_at_ns, again.next_expiry_ns) == (
        E + GRACE,
        E,
        E + GRACE,
    )
    assert again.pack() == packed
    assert packed.endswith(b"\x03\x04\0\0\0gold" + b"\x04\x0c\0\0\0\x01\0\0\0" + (E + GRACE).to_bytes(8, "little"))


def test_what_was_available_in_fractions_is_overrun_in_the_grace() -> None:
    bank = Bank(classes=CLASSES)
    bank.top_up("u", 1, at=0)
    bank.set_class("u", "gold", at=0)
    bank.set_rate("u", 7, at=0)
    e = -(-NANO // 7)
    assert bank.view("u", at=0)["cutoff_at_ns"] == e + GRACE
    bank.view("u", at=e + GRACE)
    ended = bank.entries("u")[-1]
    assert (ended.at_ns, ended.overrun, ended.balance) == (e + GRACE, 7 * (e + GRACE) - NANO, 0)


def test_a_wrong_tie_rule_of_classes_is_caught() -> None:
    """One of them, drawn anew each time; `python -m tests.ledger.hunting` tries all."""
    name = random.SystemRandom().choice(sorted(OF_CLASSES))
    assert hunt(name), f"{name} survives"
