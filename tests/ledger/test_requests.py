"""Retries are safe: request ids, as CONTRACT §3 has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from billing.ledger.entry import Entry, unpack
from billing.ledger.requests import KEPT_NS
from tests.ledger.driver import BUCKET, DAY_NS, HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    return driver


def test_the_same_id_with_the_same_parameters_returns_the_stored_first_answer(driver: LedgerDriver) -> None:
    first = driver.debit("u", 30, at=5, request_id="r", message="one")
    assert first["replayed"] is False
    driver.top_up("u", 500, at=6)
    entry_count = len(driver.entries())
    assert driver.debit("u", 30, at=7, request_id="r", message="one") == first | {"replayed": True}
    assert len(driver.entries()) == entry_count
    assert driver.view("u", at=7)["balance_nanos"] == 570


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
    driver: LedgerDriver, method: str, arguments: tuple[int, ...], more: dict[str, str]
) -> None:
    driver.debit("u", 30, at=5, request_id="r")
    before = driver.state()
    error = refusal(getattr(driver, method), "u", *arguments, at=6, request_id="r", **more)
    assert (error.name, error.applied) == ("REQUEST_ID_CONFLICT", "no")
    assert driver.state() == before


def test_refusals_are_stored_too(driver: LedgerDriver) -> None:
    first = refusal(driver.debit, "u", 101, at=5, request_id="r")
    driver.top_up("u", 500, at=6)
    again = refusal(driver.debit, "u", 101, at=7, request_id="r")
    assert again.as_map() == first.as_map() | {"replayed": True}
    assert again.details["shortfall_nanos"] == 1
    assert refusal(driver.set_rate, "u", 1, at=5, min_runway=0, seq=-1, request_id="r").name == "REQUEST_ID_CONFLICT"


def test_every_kind_of_refusal_is_given_again_as_it_was(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, seq=5)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        (driver.debit, (1000,), {}),
        (driver.set_rate, (HOUR,), {"min_runway": 10**18}),
        (driver.set_rate, (10,), {"seq": 5}),
        (driver.change_rate, (-11,), {}),
        (driver.release, ("e:77",), {}),
        (driver.set_rate, (2**63 - 1,), {"resource": "vm"}),
        (driver.close, (), {}),
    ]
    for number, (call, arguments, more) in enumerate(calls):
        first = refusal(call, "u", *arguments, at=2, request_id=str(number), **more)
        again = refusal(call, "u", *arguments, at=3, request_id=str(number), **more)
        assert again.as_map() == first.as_map() | {"replayed": True}


def test_an_unknown_account_is_not_stored(driver: LedgerDriver) -> None:
    assert refusal(driver.debit, "v", 1, at=1, request_id="r").name == "UNKNOWN_ACCOUNT"
    driver.top_up("v", 5, at=2)
    assert driver.debit("v", 1, at=3, request_id="r")["replayed"] is False


def test_ids_are_scoped_to_the_user(driver: LedgerDriver) -> None:
    driver.top_up("v", 5, at=1, request_id="r")
    assert driver.top_up("u", 7, at=1, request_id="r")["replayed"] is False
    driver.top_up("uu", 5, at=1, request_id="x")
    assert driver.top_up("u", 5, at=1, request_id="ux")["replayed"] is False


def test_the_first_call_of_an_account_is_safe_to_repeat(driver: LedgerDriver) -> None:
    first = driver.top_up("v", 5, at=1, request_id="first")
    assert driver.top_up("v", 5, at=2, request_id="first") == first | {"replayed": True}


def test_a_restoring_call_says_so_again_when_repeated(driver: LedgerDriver) -> None:
    driver.debit("u", 100, at=1)
    first = driver.top_up("u", 5, at=2, request_id="r")
    assert first["cutoff"]["status"] == "superseded"
    driver.debit("u", 5, at=3)
    assert driver.top_up("u", 5, at=4, request_id="r") == first | {"replayed": True}


def test_a_retry_is_answered_before_time_passes(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    first = driver.top_up("u", 5, at=1, request_id="r")
    assert driver.top_up("u", 5, at=10**9, request_id="r") == first | {"replayed": True}
    assert driver.rows("u")[-1]["operation"] == "top_up"


def test_ids_are_kept_7_days(driver: LedgerDriver) -> None:
    assert KEPT_NS == 7 * DAY_NS
    driver.debit("u", 1, at=5, request_id="r")
    assert driver.debit("u", 1, at=4 + KEPT_NS, request_id="r")["replayed"] is True
    assert driver.debit("u", 1, at=5 + KEPT_NS, request_id="r")["replayed"] is False
    assert driver.debit("u", 1, at=6 + KEPT_NS, request_id="r")["replayed"] is True
    assert len(driver.ledger.books[BUCKET].ids) == 1
    assert driver.ledger.books[BUCKET].ids.evicted_early == 0


def test_more_than_a_stated_number_per_bucket_are_let_go_the_oldest_first() -> None:
    driver = LedgerDriver(ids=2)
    driver.top_up("u", 100, at=0)
    for name in "abc":
        driver.debit("u", 1, at=1, request_id=name)
    ids = driver.ledger.books[BUCKET].ids
    assert (len(ids), ids.evicted_early) == (2, 1)
    assert driver.debit("u", 1, at=2, request_id="d")["replayed"] is False
    assert ids.evicted_early == 2
    assert [Entry._make(unpack(packed)).request_id for packed in ids] == [b"c", b"d"]
    assert driver.debit("u", 1, at=2, request_id="c")["replayed"] is True
    assert driver.debit("u", 1, at=2, request_id="d")["replayed"] is True
    assert driver.debit("u", 1, at=2, request_id="a")["replayed"] is False


def test_an_id_that_is_too_old_behind_one_that_is_not_is_replaced(driver: LedgerDriver) -> None:
    """Only where the instants of a bucket came out of order."""
    driver.top_up("v", 5, at=10**6, request_id="late")
    driver.top_up("u", 5, at=5, request_id="r")
    assert driver.top_up("u", 5, at=5 + KEPT_NS, request_id="r")["replayed"] is False
    assert [key[1:2] for key in driver.ledger.books[BUCKET].ids._order] == [b"v", b"u"]


def test_ids_outlive_a_closed_account(driver: LedgerDriver) -> None:
    first = driver.debit("u", 100, at=1, request_id="r")
    driver.set_rate("u", 0, at=1)
    driver.top_up("u", 1, at=1)
    closed = driver.close("u", at=2, request_id="close")
    assert driver.debit("u", 100, at=3, request_id="r") == first | {"replayed": True}
    assert driver.close("u", at=4, request_id="close") == closed | {"replayed": True}


def test_request_ids_that_are_no_text_are_as_good(driver: LedgerDriver) -> None:
    command = (6, b"u", 5, 0, 0, b"", b"\xff\x00", b"", b"", b"")
    first = driver.ledger.apply(BUCKET, 1, command)
    assert driver.ledger.apply(BUCKET, 2, command)[6:21] == first[6:21]
    assert driver.view("u", at=2)["holds"][0]["hold_id"] == "x:ff00"
    assert driver.rows("u")[-1]["request_id"] == b"\xff\x00"


def test_an_id_whose_7_days_are_over_to_the_nanosecond_makes_room_and_is_no_eviction() -> None:
    driver = LedgerDriver(ids=1)
    driver.top_up("u", 100, at=5, request_id="a")
    driver.debit("u", 1, at=5 + KEPT_NS, request_id="b")
    assert driver.ledger.books[BUCKET].ids.evicted_early == 0
    driver.debit("u", 1, at=4 + 2 * KEPT_NS, request_id="c")
    assert driver.ledger.books[BUCKET].ids.evicted_early == 1


def test_the_note_of_a_stored_refusal_is_its_number_or_zero(driver: LedgerDriver) -> None:
    refusal(driver.release, "u", "e:77", at=1, request_id="a")
    refusal(driver.debit, "u", 107, at=1, request_id="b")
    assert [entry.note for entry in driver.entries("u")[-2:]] == [bytes(8), b"\x07" + bytes(7)]


def test_any_command_with_an_id_lets_go_those_whose_7_days_are_over(driver: LedgerDriver) -> None:
    """Also one that is carried out the long way."""
    driver.debit("u", 1, at=5, request_id="old")
    driver.hold("u", 1, at=5 + KEPT_NS, request_id="new")
    assert [Entry._make(unpack(packed)).request_id for packed in driver.ledger.books[BUCKET].ids] == [b"new"]
