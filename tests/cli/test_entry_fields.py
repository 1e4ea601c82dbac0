"""An entry as people read it: what was asked for and what came of it, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from billing.cli.entry_fields import entry_fields
from billing.ledger import commands as ops
from billing.ledger.entry import Entry, pack, unpack
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules

AT_NS = 1_750_000_000 * 10**9
HOUR_NS = 3600 * 10**9


Shown = Callable[..., dict[str, Any]]


@pytest.fixture
def shown() -> Shown:
    """Carries out a command on user 7 in bucket 5; the last of the entries it made, as fields."""
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=True), lambda ref, due_ns: due_ns)
    ledger.create(5)

    def do(op: int, a: int = 0, b: int = 0, c: int = 0, key: bytes = b"", at_ns: int = AT_NS) -> dict[str, Any]:
        with contextlib.suppress(Refused):
            ledger.apply(5, at_ns, (op, b"7", a, b, c, key, b"", b"", b"", b""))
        return entry_fields(ledger.records[-1][1], 5)

    return do


def test_what_was_asked_for_has_its_name(shown: Shown) -> None:
    assert shown(ops.TOP_UP, 10)["asked_amount_nanos"] == 10
    assert shown(ops.SET_RATE, 0, 4, -1, b"vm")["nanos_per_hour"] == 0
    rate = shown(ops.SET_RATE, 0, 5, 0, b"vm")
    assert (rate["rate_seq"], rate["min_runway_ns"], rate["resource"]) == (5, 0, b"vm")
    assert "rate_seq" not in shown(ops.SET_RATE, 0, -1, -1)
    debit = shown(ops.DEBIT, 3, ops.PARTIAL)
    assert (debit["asked_amount_nanos"], debit["mode"], debit["amount_nanos"]) == (3, "partial", -3)
    thresholds = ops.pack_thresholds([(ops.BY_AMOUNT, 5), (ops.BY_RUNWAY, 9)])
    assert shown(ops.SET_THRESHOLDS, 2, key=thresholds)["thresholds"] == [{"amount": 5}, {"runway_ns": 9}]
    fired = shown(ops.DEBIT, 2)
    assert (fired["operation"], fired["kind"], fired["value"]) == ("threshold", "amount", 5)


def test_flags_refusals_and_cutoffs_have_names(shown: Shown) -> None:
    assert shown(ops.TOP_UP, 10)["flags"] == ["opened", "rule restore"]
    refused = shown(ops.DEBIT, 11)
    assert refused["refusal"] == "INSUFFICIENT_FUNDS: 0.000000011 coins asked for, 0.00000001 available"
    assert refused["flags"] == ["refused", "rule restore"]
    shown(ops.DEBIT, 10)
    assert shown(ops.CUTOFF_STARTED, 1)["seq"] == 1
    restored = shown(ops.TOP_UP, 1)
    assert restored["flags"] == ["restored", "rule restore"]
    assert restored["cutoff"]["event_id"] == f"7:1:{AT_NS}"
    assert "exhausts_at_ns" not in restored
    assert shown(ops.SET_RATE, 1, -1, -1)["exhausts_at_ns"] == AT_NS + HOUR_NS


def test_every_number_of_an_entry_is_shown_unless_it_is_zero(shown: Shown) -> None:
    shown(ops.TOP_UP, 10)
    shown(ops.SET_RATE, 7, -1, -1)
    fields = shown(ops.DEBIT, 1, at_ns=AT_NS + 1)
    assert (fields["accrued_frac"], fields["balance_nanos"], fields["balance_frac"]) == (7, 8, HOUR_NS - 7)
    assert fields["rate"] == 7
    assert "overrun_nanos" not in fields


def test_every_operation_that_has_parameters_has_names_for_them() -> None:
    assert set(ops.FIELD_NAMES) | {ops.CLOSE, ops.EXHAUST} == set(ops.NAMES)


@pytest.mark.parametrize("changed", [{"refusal": 9999}, {"note": b"xyz"}, {"key": b"abc", "op": ops.SET_THRESHOLDS}])
def test_what_the_ledger_never_wrote_is_shown_as_it_stands(changed: dict[str, Any]) -> None:
    entry = Entry._make((ops.DEBIT, 8, 201, 5, 0, 0, AT_NS, *[0] * 15, b"7", *[b""] * 5, b"\0" * 8))
    fields = entry_fields(pack(entry._replace(**changed)), 5)
    assert fields["operation"] in ("debit", "set_thresholds")
    assert unpack(pack(entry)) == entry
