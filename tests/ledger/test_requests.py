"""Retries are safe: request ids, as CONTRACT §3 has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from billing.ledger.entry import Entry, unpack
from billing.ledger.requests import KEPT_NS
from tests.ledger.bank import BUCKET, DAY_NS, HOUR, Bank, refusal


@pytest.fixture
def bank() -> Bank:
    bank = Bank()
    bank.top_up("u", 100, at=0)
    return bank


def test_the_same_id_with_the_same_parameters_returns_the_stored_first_answer(bank: Bank) -> None:
    first = bank.debit("u", 30, at=5, request_id="r", message="one")
    assert first["replayed"] is False
    bank.top_up("u", 500, at=6)
    entry_count = len(bank.entries())
    assert bank.debit("u", 30, at=7, request_id="r", message="one") == first | {"replayed": True}
    assert len(bank.entries()) == entry_count
    assert bank.view("u", at=7)["balance_nanos"] == 570


@pytest.mark.parametrize(
    ("method", "arguments", "more"),
    [
        ("debit", (31,), {}),
        ("debit", (30,), {"mode": "partial"}),
        ("debit", (30,), {"message": "other"}),
        ("top_up", (30,), {}),
        ("hold", (30,), {}),
    ],
)
def test_with_other_parameters_or_another_method_it_is_request_id_conflict(
    bank: Bank, method: str, arguments: tuple[int, ...], more: dict[str, str]
) -> None:
    bank.debit("u", 30, at=5, request_id="r")
    before = bank.state()
    error = refusal(getattr(bank, method), "u", *arguments, at=6, request_id="r", **more)
    assert (error.name, error.applied) == ("REQUEST_ID_CONFLICT", "no")
    assert bank.state() == before


def test_refusals_are_stored_too(bank: Bank) -> None:
    first = refusal(bank.debit, "u", 101, at=5, request_id="r")
    bank.top_up("u", 500, at=6)
    again = refusal(bank.debit, "u", 101, at=7, request_id="r")
    assert again.as_map() == first.as_map() | {"replayed": True}
    assert again.details["shortfall_nanos"] == 1
    assert refusal(bank.set_rate, "u", 1, at=5, min_runway=0, seq=-1, request_id="r").name == "REQUEST_ID_CONFLICT"


def test_every_kind_of_refusal_is_given_again_as_it_was(bank: Bank) -> None:
    bank.set_rate("u", 10, at=1, seq=5)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        (bank.debit, (1000,), {}),
        (bank.set_rate, (HOUR,), {"min_runway": 10**18}),
        (bank.set_rate, (10,), {"seq": 5}),
        (bank.change_rate, (-11,), {}),
        (bank.release, ("e:77",), {}),
        (bank.set_rate, (2**63 - 1,), {"resource": "vm"}),
        (bank.close, (), {}),
    ]
    for number, (call, arguments, more) in enumerate(calls):
        first = refusal(call, "u", *arguments, at=2, request_id=str(number), **more)
        again = refusal(call, "u", *arguments, at=3, request_id=str(number), **more)
        assert again.as_map() == first.as_map() | {"replayed": True}


def test_an_unknown_account_is_not_stored(bank: Bank) -> None:
    assert refusal(bank.debit, "v", 1, at=1, request_id="r").name == "UNKNOWN_ACCOUNT"
    bank.top_up("v", 5, at=2)
    assert bank.debit("v", 1, at=3, request_id="r")["replayed"] is False


def test_ids_are_scoped_to_the_user(bank: Bank) -> None:
    bank.top_up("v", 5, at=1, request_id="r")
    assert bank.top_up("u", 7, at=1, request_id="r")["replayed"] is False
    bank.top_up("uu", 5, at=1, request_id="x")
    assert bank.top_up("u", 5, at=1, request_id="ux")["replayed"] is False


def test_the_first_call_of_an_account_is_safe_to_repeat(bank: Bank) -> None:
    first = bank.top_up("v", 5, at=1, request_id="first")
    assert bank.top_up("v", 5, at=2, request_id="first") == first | {"replayed": True}


def test_a_restoring_call_says_so_again_when_repeated(bank: Bank) -> None:
    bank.debit("u", 100, at=1)
    first = bank.top_up("u", 5, at=2, request_id="r")
    assert first["cutoff"]["status"] == "superseded"
    bank.debit("u", 5, at=3)
    assert bank.top_up("u", 5, at=4, request_id="r") == first | {"replayed": True}


def test_a_retry_is_answered_before_time_passes(bank: Bank) -> None:
    bank.set_rate("u", HOUR, at=0)
    first = bank.top_up("u", 5, at=1, request_id="r")
    assert bank.top_up("u", 5, at=10**9, request_id="r") == first | {"replayed": True}
    assert bank.rows("u")[-1]["operation"] == "top_up"


def test_ids_are_kept_7_days(bank: Bank) -> None:
    assert KEPT_NS == 7 * DAY_NS
    bank.debit("u", 1, at=5, request_id="r")
    assert bank.debit("u", 1, at=4 + KEPT_NS, request_id="r")["replayed"] is True
    assert bank.debit("u", 1, at=5 + KEPT_NS, request_id="r")["replayed"] is False
    assert bank.debit("u", 1, at=6 + KEPT_NS, request_id="r")["replayed"] is True
    assert len(bank.ledger.books[BUCKET].ids) == 1
    assert bank.ledger.books[BUCKET].ids.evicted_early == 0


def test_more_than_a_stated_number_per_bucket_are_let_go_the_oldest_first() -> None:
    bank = Bank(ids=2)
    bank.top_up("u", 100, at=0)
    for name in "abc":
        bank.debit("u", 1, at=1, request_id=name)
    ids = bank.ledger.books[BUCKET].ids
    assert (len(ids), ids.evicted_early) == (2, 1)
    assert bank.debit("u", 1, at=2, request_id="d")["replayed"] is False
    assert ids.evicted_early == 2
    assert [Entry._make(unpack(packed)).request_id for packed in ids] == [b"c", b"d"]
    assert bank.debit("u", 1, at=2, request_id="c")["replayed"] is True
    assert bank.debit("u", 1, at=2, request_id="d")["replayed"] is True
    assert bank.debit("u", 1, at=2, request_id="a")["replayed"] is False


def test_an_id_that_is_too_old_behind_one_that_is_not_is_replaced(bank: Bank) -> None:
    """Only where the instants of a bucket came out of order."""
    bank.top_up("v", 5, at=10**6, request_id="late")
    bank.top_up("u", 5, at=5, request_id="r")
    assert bank.top_up("u", 5, at=5 + KEPT_NS, request_id="r")["replayed"] is False
    assert [key[1:2] for key in bank.ledger.books[BUCKET].ids._order] == [b"v", b"u"]


def test_ids_outlive_a_closed_account(bank: Bank) -> None:
    first = bank.debit("u", 100, at=1, request_id="r")
    bank.set_rate("u", 0, at=1)
    bank.top_up("u", 1, at=1)
    closed = bank.close("u", at=2, request_id="close")
    assert bank.debit("u", 100, at=3, request_id="r") == first | {"replayed": True}
    assert bank.close("u", at=4, request_id="close") == closed | {"replayed": True}


def test_request_ids_that_are_no_text_are_as_good(bank: Bank) -> None:
    command = (6, b"u", 5, 0, 0, b"", b"\xff\x00", b"", b"", b"")
    first = bank.ledger.apply(BUCKET, 1, command)
    assert bank.ledger.apply(BUCKET, 2, command)[6:21] == first[6:21]
    assert bank.view("u", at=2)["holds"][0]["hold_id"] == "x:ff00"
    assert bank.rows("u")[-1]["request_id"] == b"\xff\x00"


def test_an_id_whose_7_days_are_over_to_the_nanosecond_makes_room_and_is_no_eviction() -> None:
    bank = Bank(ids=1)
    bank.top_up("u", 100, at=5, request_id="a")
    bank.debit("u", 1, at=5 + KEPT_NS, request_id="b")
    assert bank.ledger.books[BUCKET].ids.evicted_early == 0
    bank.debit("u", 1, at=4 + 2 * KEPT_NS, request_id="c")
    assert bank.ledger.books[BUCKET].ids.evicted_early == 1


def test_the_note_of_a_stored_refusal_is_its_number_or_zero(bank: Bank) -> None:
    refusal(bank.release, "u", "e:77", at=1, request_id="a")
    refusal(bank.debit, "u", 107, at=1, request_id="b")
    assert [entry.note for entry in bank.entries("u")[-2:]] == [bytes(8), b"\x07" + bytes(7)]


def test_any_command_with_an_id_lets_go_those_whose_7_days_are_over(bank: Bank) -> None:
    """Also one that is carried out the long way."""
    bank.debit("u", 1, at=5, request_id="old")
    bank.hold("u", 1, at=5 + KEPT_NS, request_id="new")
    assert [Entry._make(unpack(packed)).request_id for packed in bank.ledger.books[BUCKET].ids] == [b"new"]
