"""Every refusal changes nothing and says so: the whole bucket is the same, byte for byte, before and after."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.errors import KINDS
from billing.ledger.money import INT64_MAX
from tests.ledger.driver import HOUR, LedgerDriver, refusal

BOUND = INT64_MAX


@pytest.fixture
def driver() -> LedgerDriver:
    """`u` has 100 nanos, 10 of them held, two lines, one with a rate_seq; `out` ran out at 50 and owes a cutoff."""
    driver = LedgerDriver(restore=True)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 5, at=0, resource="vm", seq=7)
    driver.set_rate("u", 1, at=0)
    driver.hold("u", 10, at=0, request_id="h")
    driver.set_thresholds("u", [(ops.BY_AMOUNT, 3)], at=0)
    driver.top_up("out", 50, at=0)
    driver.set_rate("out", HOUR, at=0)
    driver.view("out", at=60)
    return driver


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
    driver: LedgerDriver, error: str, user: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    before, filed = driver.state(), list(driver.filed)
    driver.notices()
    refused = refusal(getattr(driver, method), user, *arguments, at=100, **options)
    assert (refused.name, refused.applied, refused.retry) == (error, "no", KINDS[error].retry)
    assert driver.state() == before
    assert driver.filed == filed, "nothing is armed either"
    assert [kind for kind, _, _ in driver.notices() if kind in ("cutoff", "restore", "superseded")] == []


@pytest.mark.parametrize(("error", "user", "method", "arguments", "options"), REFUSED[1:])
def test_a_stored_refusal_keeps_its_request_id_and_nothing_else(
    driver: LedgerDriver, error: str, user: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    rows, view = len(driver.rows(user)), driver.view(user, at=100)
    first = refusal(getattr(driver, method), user, *arguments, at=100, request_id="r", **options)
    after = driver.state()
    again = refusal(getattr(driver, method), user, *arguments, at=200, request_id="r", **options)
    assert (again.name, again.as_map()) == (error, first.as_map() | {"replayed": True})
    assert driver.state() == after, "a replayed refusal stores nothing more"
    assert (len(driver.rows(user)), driver.view(user, at=100)) == (rows, view)


def test_a_request_id_conflict_changes_nothing(driver: LedgerDriver) -> None:
    driver.debit("u", 1, at=100, request_id="r")
    before = driver.state()
    assert refusal(driver.debit, "u", 2, at=101, request_id="r").name == "REQUEST_ID_CONFLICT"
    assert refusal(driver.top_up, "u", 1, at=101, request_id="r").name == "REQUEST_ID_CONFLICT"
    assert driver.state() == before


def test_a_refusal_stamped_behind_e_lets_the_exhaustion_happen_and_nothing_more(driver: LedgerDriver) -> None:
    """The exhaustion is time's doing, so the only entry that changes money is its own."""
    driver.set_rate("u", HOUR, at=100, resource="vm")
    rows = len(driver.rows("u"))
    assert refusal(driver.debit, "u", 1, at=10**6).details["available_nanos"] == 0
    assert [row["operation"] for row in driver.rows("u")[rows:]] == ["threshold", "exhaust"]
    assert driver.view("u", at=10**6)["balance_nanos"] == 10, "what is held is not spent"


def test_what_delivery_could_not_begin_counts_for_a_dead_endpoint_and_nobody_was_told(driver: LedgerDriver) -> None:
    for attempt in (1, 2, 3):
        driver.report(ops.CUTOFF_FAILED, "out", 1, at=60 + attempt, operator=1, error="connection refused")
        cutoff = driver.view("out", at=70)["cutoff"]
        assert (cutoff["attempts"], cutoff["last_error"], cutoff["status"]) == (
            attempt,
            "connection refused",
            "pending",
        )
        assert driver.owed("out") == ("cutoff", 1)
    reply = driver.top_up("out", 5, at=80)
    assert (reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == ("superseded", 3)
    assert driver.owed("out") is None, "no restore: nobody was switched off"


def test_a_failed_attempt_that_began_counts_once_and_a_restore_is_owed_for_it(driver: LedgerDriver) -> None:
    driver.report(ops.CUTOFF_FAILED, "out", 1, at=61, operator=1, error="connection refused")
    assert refusal(driver.report, ops.CUTOFF_FAILED, "out", 1, at=62, error="503").name == "UNKNOWN_CUTOFF"
    assert refusal(driver.report, ops.CUTOFF_DELIVERED, "out", 1, at=62).name == "UNKNOWN_CUTOFF"
    driver.report(ops.CUTOFF_STARTED, "out", 1, at=63)
    driver.report(ops.CUTOFF_FAILED, "out", 1, at=64, error="503")
    cutoff = driver.view("out", at=65)["cutoff"]
    assert (cutoff["attempts"], cutoff["last_error"]) == (2, "503")
    driver.top_up("out", 5, at=80)
    assert driver.owed("out") == ("restore", 1)
    before = driver.state()
    error = refusal(driver.report, ops.CUTOFF_FAILED, "out", 1, at=81, operator=1, error="late")
    assert (error.name, driver.state() == before) == ("UNKNOWN_CUTOFF", True), "it is superseded"
