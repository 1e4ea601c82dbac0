"""What refusals say: names, sentences and details, word by word, as clients and logs show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from billing.ledger.money import (
    INT64_MAX,
    parse_amount,
    parse_delta,
    parse_limit,
    parse_rate,
    parse_signed_amount,
)
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver, refusal

NO_AMOUNT = " must be an integer of nanos or a decimal string of coins"
NO_DECIMAL = " must be an integer of nanos, or a decimal string of coins, at most 9 digits after the point"
NO_WHOLE = " as a float must be a whole number of at most 2**53"
TOO_MUCH = " must be at most 2**63-1 nanos"


@pytest.mark.parametrize(
    ("parse", "value", "text"),
    [
        (parse_amount, 0, "INVALID_AMOUNT: amount must be above zero"),
        (parse_amount, None, "INVALID_AMOUNT: amount" + NO_AMOUNT),
        (parse_amount, "1,5", "INVALID_AMOUNT: amount" + NO_DECIMAL),
        (parse_amount, "5\ud800", "INVALID_AMOUNT: amount" + NO_DECIMAL),
        (parse_amount, 0.5, "INVALID_AMOUNT: amount" + NO_WHOLE),
        (parse_amount, INT64_MAX + 1, "INVALID_AMOUNT: amount" + TOO_MUCH),
        (parse_limit, -1, "INVALID_AMOUNT: amount must not be negative"),
        (parse_limit, None, "INVALID_AMOUNT: amount" + NO_AMOUNT),
        (parse_signed_amount, 0, "INVALID_AMOUNT: amount must not be zero"),
        (parse_signed_amount, None, "INVALID_AMOUNT: amount" + NO_AMOUNT),
        (parse_rate, -1, "INVALID_RATE: rate must not be negative"),
        (parse_rate, None, "INVALID_RATE: rate" + NO_AMOUNT),
        (parse_delta, None, "INVALID_RATE: delta" + NO_AMOUNT),
        (parse_delta, -INT64_MAX, "INVALID_RATE: delta lies below any rate there can be"),
    ],
)
def test_what_is_wrong_with_an_amount_or_a_rate_is_said_by_field(
    parse: Callable[..., Any], value: float | str | None, text: str
) -> None:
    with pytest.raises(Refused) as caught:
        parse(value)
    assert str(caught.value) == text
    assert caught.value.details == {}


@pytest.mark.parametrize("parse", [parse_rate, parse_delta])
def test_a_rate_beyond_its_bound_and_a_unknown_per_are_said(parse: Callable[..., Any]) -> None:
    with pytest.raises(Refused) as caught:
        parse(INT64_MAX)
    assert str(caught.value) == "LIMIT_EXCEEDED: rate must be at most 2**63-1 nanos per hour"
    assert caught.value.details == {"limit_nanos_per_hour": INT64_MAX}
    for per in ("day", "\ud800"):
        with pytest.raises(Refused) as caught:
            parse(1, per)
        assert str(caught.value) == "INVALID_RATE: per must be second, minute or hour"


@pytest.fixture
def driver() -> LedgerDriver:
    """`u` has 100 nanos and a credit limit of 5, 10 of them held, a line with a rate_seq; `out` is exhausted."""
    driver = LedgerDriver(restore=True)
    driver.top_up("u", 100, at=0)
    driver.set_credit_limit("u", 5, at=0)
    driver.set_rate("u", 5, at=0, resource="vm", seq=7)
    driver.hold("u", 10, at=0, request_id="h")
    driver.top_up("out", 50, at=0)
    driver.debit("out", 50, at=0, request_id="r")
    driver.top_up("rich", INT64_MAX, at=0)
    driver.debit("rich", 1, at=0, mode="force")
    return driver


def open_many(driver: LedgerDriver) -> None:
    driver.top_up("u", 10**6, at=0)
    for number in range(999):
        driver.hold("u", 1, at=0, request_id=f"{number}")


# (user, method, arguments, options), what str() says, and the details beside bucket_id and at_ns.
SAID = [
    (("u", "debit", (96,), {}), "INSUFFICIENT_FUNDS: 0.000000096 coins asked for, 0.000000094 available",
     {"available_nanos": 94, "shortfall_nanos": 2}),
    (("u", "hold", (100,), {}), "INSUFFICIENT_FUNDS: 0.0000001 coins asked for, 0.000000094 available",
     {"available_nanos": 94, "shortfall_nanos": 6}),
    (("u", "set_rate", (HOUR,), {"min_runway": 1000}),
     "INSUFFICIENT_RUNWAY: the money would last 95 ns, 1000 asked for", {"runway_ns": 95, "min_runway_ns": 1000}),
    (("u", "set_rate", (9,), {"resource": "vm", "seq": 6}), "STALE_RATE: rate_seq 6 is not newer than 7",
     {"rate_seq": 7}),
    (("u", "change_rate", (-6,), {"resource": "vm"}),
     "INVALID_RATE: the line is at 0.000000005 coins per hour and cannot fall below zero", {"rate_nanos_per_hour": 5}),
    (("u", "release", ("r:other",), {}), "UNKNOWN_HOLD: no open hold has this id", {}),
    (("u", "close", (), {}), "ACCOUNT_NOT_CLOSABLE: the account still has a rate", {"obstacle": "rate"}),
    (("out", "close", (), {}), "ACCOUNT_NOT_CLOSABLE: the account still has a cutoff", {"obstacle": "cutoff"}),
    (("u", "set_rate", (INT64_MAX,), {}), "LIMIT_EXCEEDED: rate would leave its bounds", {"limit": "rate"}),
    (("rich", "top_up", (2,), {}), "LIMIT_EXCEEDED: balance would leave its bounds", {"limit": "balance"}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text", "details"), SAID)
def test_what_stands_against_a_command_is_said_with_its_numbers(
    driver: LedgerDriver, call: tuple[str, str, tuple[Any, ...], dict[str, Any]], text: str, details: dict[str, Any]
) -> None:
    user, method, arguments, options = call
    refused = refusal(getattr(driver, method), user, *arguments, at=1, **options)
    assert str(refused) == text
    assert refused.details == {**details, "bucket_id": BUCKET, "at_ns": 1}


def test_a_hold_whose_request_id_was_let_go_before_it_says_so() -> None:
    driver = LedgerDriver(ids=1)
    driver.top_up("u", 100, at=0)
    driver.hold("u", 1, at=0, request_id="h")
    driver.top_up("u", 1, at=0, request_id="other")
    refused = refusal(driver.hold, "u", 1, at=1, request_id="h")
    assert str(refused) == "REQUEST_ID_CONFLICT: a hold made with this request_id is still open"
    assert refused.details == {"bucket_id": BUCKET, "at_ns": 1}


def test_what_never_reaches_an_account_is_said_without_an_instant(driver: LedgerDriver) -> None:
    for call in (
        lambda: driver.debit("nobody", 1, at=1),
        lambda: driver.view("nobody", at=1),
        lambda: driver.report(ops.CUTOFF_STARTED, "nobody", 1, at=1),
    ):
        refused = refusal(call)
        assert (str(refused), refused.details) == ("UNKNOWN_ACCOUNT: there is no such account", {})
    refused = refusal(driver.report, ops.CUTOFF_STARTED, "u", 1, at=1)
    assert (str(refused), refused.details) == ("UNKNOWN_CUTOFF: no such cutoff is owed", {})
    refused = refusal(driver.debit, "out", 51, at=1, request_id="r")
    conflict = "REQUEST_ID_CONFLICT: this request_id was used with other parameters or another method"
    assert (str(refused), refused.details) == (conflict, {})


def test_the_number_of_holds_is_a_limit_with_a_name(driver: LedgerDriver) -> None:
    open_many(driver)
    refused = refusal(driver.hold, "u", 1, at=1)
    assert str(refused) == "LIMIT_EXCEEDED: open_holds would leave its bounds"
    assert refused.details == {"limit": "open_holds", "bucket_id": BUCKET, "at_ns": 1}
