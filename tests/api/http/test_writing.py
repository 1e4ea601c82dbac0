"""Replies as JSON: money twice and exactly, pages with cursors; refusals as problems."""

from __future__ import annotations

import json
from typing import Any

import pytest

from billing.api.http.reading import cursor_of
from billing.api.http.writing import STATUS, encode, money_name, problem, rendering_of, status_of
from billing.api.methods import METHODS, Method
from billing.ledger.errors import KINDS, Refused


def rendered(name: str, result: Any, limit: int = 0) -> Any:
    return json.loads(encode(rendering_of(METHODS[name])(result, limit)))


def test_money_comes_as_nanos_and_as_coins() -> None:
    body = rendered("top_up", {"balance_nanos": -12_500_000_001, "rate_nanos_per_hour": 3_600, "exhausts_at_ns": None})
    assert body["balance_nanos"] == -12_500_000_001
    assert body["balance"] == "-12.500000001"
    assert body["rate_per_hour"] == "0.0000036"
    assert body["exhausts_at_ns"] is None


def test_lines_holds_and_thresholds_of_an_account_have_units() -> None:
    account = {
        "rates": {"": 1, "vm-1": 7 * 10**9},
        "holds": [{"hold_id": b"x:\xff", "amount_nanos": 5 * 10**9, "expires_at_ns": None}],
        "thresholds": [{"amount_nanos": 10**9}, {"runway_ns": 9}],
        "cutoff": None,
    }
    body = rendered("get_account", account)
    assert "rates" not in body
    assert body["rates_nanos_per_hour"] == {"": 1, "vm-1": 7 * 10**9}
    assert body["rates_per_hour"] == {"": "0.000000001", "vm-1": "7"}
    assert body["holds"] == [
        {"hold_id": "base64:eDr/", "amount_nanos": 5 * 10**9, "amount": "5", "expires_at_ns": None}
    ]
    assert body["thresholds"] == [{"amount_nanos": 10**9, "amount": "1"}, {"runway_ns": 9}]


def test_a_full_page_says_how_to_go_on() -> None:
    rows = [{"user_id": "a"}, {"user_id": "b"}]
    assert rendered("accounts", list(rows), 2) == {"accounts": rows, "next_cursor": cursor_of("b")}
    assert rendered("accounts", list(rows), 3) == {"accounts": rows, "next_cursor": None}
    assert rendered("accounts", [], 2) == {"accounts": [], "next_cursor": None}


def test_what_is_no_map_stands_under_its_methods_name() -> None:
    assert rendered("ping", "pong") == {"ping": "pong"}
    assert rendered("bucket_id", 477) == {"bucket_id": 477}
    assert rendered("route", {"owners": [1], b"\xff": (b"a", 2)}) == {"route": {"owners": [1], "base64:/w==": ["a", 2]}}


def test_every_name_has_a_status() -> None:
    assert set(STATUS) <= set(KINDS)
    for name, kind in KINDS.items():
        status = status_of(name)
        assert 400 <= status <= 599
        assert (status in (429, 503)) == kind.retry, f"{name} and Retry-After disagree"


@pytest.mark.parametrize(
    ("name", "status", "headers"),
    [
        ("INSUFFICIENT_FUNDS", 402, {}),
        ("UNKNOWN_ACCOUNT", 404, {}),
        ("REQUEST_ID_CONFLICT", 409, {}),
        ("BUSY", 429, {"Retry-After": "1"}),
        ("UNAVAILABLE", 503, {"Retry-After": "1"}),
        ("UNAUTHENTICATED", 401, {"WWW-Authenticate": "Bearer"}),
    ],
)
def test_a_problem_has_the_contracts_name(name: str, status: int, headers: dict[str, str]) -> None:
    answer = problem(Refused(name, "so it is", {"shortfall_nanos": 7, "name": "never this"}, applied="unknown"))
    assert (answer.status, answer.headers) == (status, headers)
    body = json.loads(answer.body)
    assert body == {
        "type": f"urn:billing:error:{name}",
        "title": name.replace("_", " ").capitalize(),
        "status": status,
        "detail": "so it is",
        "code": KINDS[name].code,
        "name": name,
        "retry": KINDS[name].retry,
        "applied": "unknown",
        "shortfall_nanos": 7,
    }


def test_a_refusal_that_comes_again_says_so() -> None:
    answer = problem(Refused("INSUFFICIENT_FUNDS", "no", {"replayed": True}))
    assert answer.headers == {"Idempotent-Replayed": "true"}


WITH_SHAPES = [row for row in METHODS.values() if row.reply.shape is not None]


@pytest.mark.parametrize("method", WITH_SHAPES, ids=lambda row: row.name)
def test_a_decimal_string_never_takes_the_place_of_another_field(method: Method) -> None:
    assert method.reply.shape is not None
    shapes = [method.reply.shape]
    for shape in shapes:
        names = [field.name for field in shape.fields]
        money_names = [in_coins for field in shape.fields if (in_coins := money_name(field.name, field.kind))]
        assert not set(money_names) & set(names), shape.name
        assert len(set(money_names)) == len(money_names), shape.name
        shapes += [field.shape for field in shape.fields if field.shape is not None and field.shape not in shapes]
