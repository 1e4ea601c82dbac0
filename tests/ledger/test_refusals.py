"""Every refusal changes nothing and says so: the whole bucket is the same, byte for byte, before and after."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.errors import KINDS
from billing.ledger.money import INT64_MAX
from tests.ledger.bank import HOUR, Bank, refusal

BOUND = INT64_MAX


@pytest.fixture
def bank() -> Bank:
    """`u` has 100 nanos, 10 of them held, two lines, one with a rate_seq; `out` ran out at 50 and owes a cutoff."""
    bank = Bank(restore=True)
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", 5, at=0, resource="vm", seq=7)
    bank.set_rate("u", 1, at=0)
    bank.hold("u", 10, at=0, request_id="h")
    bank.set_thresholds("u", [(ops.BY_AMOUNT, 3)], at=0)
    bank.top_up("out", 50, at=0)
    bank.set_rate("out", HOUR, at=0)
    bank.view("out", at=60)
    return bank


# (error, user, method, arguments, options), each refused by `u`, `out` or nobody as the fixture leaves them.
REFUSED = [
    ("UNKNOWN_ACCOUNT", "nobody", "debit", (1,), {}),
    ("INSUFFICIENT_FUNDS", "u", "debit", (91,), {}),
    ("INSUFFICIENT_FUNDS", "out", "debit", (1,), {}),
    ("INSUFFICIENT_FUNDS", "u", "hold", (91,), {}),
    ("INSUFFICIENT_RUNWAY", "u", "set_rate", (HOUR,), {"min_runway": 1000}),
    ("INSUFFICIENT_RUNWAY", "out", "set_rate", (1,), {"min_runway": 0}),
    ("STALE_RATE", "u", "set_rate", (9,), {"resource": "vm", "seq": 7}),
    ("INVALID_RATE", "u", "change_rate", (-6,), {"resource": "vm"}),
    ("UNKNOWN_HOLD", "u", "release", ("r:other",), {}),
    ("UNKNOWN_HOLD", "u", "capture", ("r:other", 1), {}),
    ("LIMIT_EXCEEDED", "u", "top_up", (BOUND,), {}),
    ("LIMIT_EXCEEDED", "u", "adjust", (BOUND, "too much"), {}),
    ("LIMIT_EXCEEDED", "u", "set_rate", (BOUND,), {"resource": "new"}),
    ("ACCOUNT_NOT_CLOSABLE", "u", "close", (), {}),
    ("ACCOUNT_NOT_CLOSABLE", "out", "close", (), {}),
]


@pytest.mark.parametrize(("error", "user", "method", "arguments", "options"), REFUSED)
def test_every_refusal_changes_nothing_and_says_applied_no(
    bank: Bank, error: str, user: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    before, filed = bank.state(), list(bank.filed)
    bank.notices()
    refused = refusal(getattr(bank, method), user, *arguments, at=100, **options)
    assert (refused.name, refused.applied, refused.retry) == (error, "no", KINDS[error].retry)
    assert bank.state() == before
    assert bank.filed == filed, "nothing is armed either"
    assert [kind for kind, _, _ in bank.notices() if kind in ("cutoff", "restore", "superseded")] == []


@pytest.mark.parametrize(("error", "user", "method", "arguments", "options"), REFUSED[1:])
def test_a_stored_refusal_keeps_its_request_id_and_nothing_else(
    bank: Bank, error: str, user: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    rows, view = len(bank.rows(user)), bank.view(user, at=100)
    first = refusal(getattr(bank, method), user, *arguments, at=100, request_id="r", **options)
    after = bank.state()
    again = refusal(getattr(bank, method), user, *arguments, at=200, request_id="r", **options)
    assert (again.name, again.as_map()) == (error, first.as_map() | {"replayed": True})
    assert bank.state() == after, "a replayed refusal stores nothing more"
    assert (len(bank.rows(user)), bank.view(user, at=100)) == (rows, view)


def test_a_request_id_conflict_changes_nothing(bank: Bank) -> None:
    bank.debit("u", 1, at=100, request_id="r")
    before = bank.state()
    assert refusal(bank.debit, "u", 2, at=101, request_id="r").name == "REQUEST_ID_CONFLICT"
    assert refusal(bank.top_up, "u", 1, at=101, request_id="r").name == "REQUEST_ID_CONFLICT"
    assert bank.state() == before


def test_a_refusal_stamped_behind_e_lets_the_exhaustion_happen_and_nothing_more(bank: Bank) -> None:
    """The exhaustion is time's doing, so the only entry that changes money is its own."""
    bank.set_rate("u", HOUR, at=100, resource="vm")
    rows = len(bank.rows("u"))
    assert refusal(bank.debit, "u", 1, at=10**6).details["available_nanos"] == 0
    assert [row["operation"] for row in bank.rows("u")[rows:]] == ["threshold", "exhaust"]
    assert bank.view("u", at=10**6)["balance_nanos"] == 10, "what is held is not spent"


def test_what_delivery_could_not_begin_counts_for_a_dead_endpoint_and_nobody_was_told(bank: Bank) -> None:
    for attempt in (1, 2, 3):
        bank.report(ops.CUTOFF_FAILED, "out", 1, at=60 + attempt, operator=1, error="connection refused")
        cutoff = bank.view("out", at=70)["cutoff"]
        assert (cutoff["attempts"], cutoff["last_error"], cutoff["status"]) == (
            attempt,
            "connection refused",
            "pending",
        )
        assert bank.owed("out") == ("cutoff", 1)
    reply = bank.top_up("out", 5, at=80)
    assert (reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == ("superseded", 3)
    assert bank.owed("out") is None, "no restore: nobody was switched off"


def test_a_failed_attempt_that_began_counts_once_and_a_restore_is_owed_for_it(bank: Bank) -> None:
    bank.report(ops.CUTOFF_FAILED, "out", 1, at=61, operator=1, error="connection refused")
    assert refusal(bank.report, ops.CUTOFF_FAILED, "out", 1, at=62, error="503").name == "UNKNOWN_CUTOFF"
    assert refusal(bank.report, ops.CUTOFF_DELIVERED, "out", 1, at=62).name == "UNKNOWN_CUTOFF"
    bank.report(ops.CUTOFF_STARTED, "out", 1, at=63)
    bank.report(ops.CUTOFF_FAILED, "out", 1, at=64, error="503")
    cutoff = bank.view("out", at=65)["cutoff"]
    assert (cutoff["attempts"], cutoff["last_error"]) == (2, "503")
    bank.top_up("out", 5, at=80)
    assert bank.owed("out") == ("restore", 1)
    before = bank.state()
    error = refusal(bank.report, ops.CUTOFF_FAILED, "out", 1, at=81, operator=1, error="late")
    assert (error.name, bank.state() == before) == ("UNKNOWN_CUTOFF", True), "it is superseded"
