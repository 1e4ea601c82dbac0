"""Paths, queries and JSON become the params of a method, or a refusal that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.api.http.reading import DEPTH_MAX, Reader, cursor_of, json_of, nests_deeper, query_of, request_id_of
from billing.api.http.routes import GET, ROUTES, find
from billing.api.methods import METHODS, parse
from billing.ledger.errors import Refused

LAST = 2**63 - 1


def read(verb: str, target: str, body: Any = None, key: str | None = None) -> tuple[str, list[Any]]:
    """(method, params) of a request."""
    path, _, query = target.partition("?")
    resource = find(path)
    assert resource is not None, path
    route = resource.routes[verb]
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return route.method.name, Reader(route).params(resource.values, query, key, content)


def refusal(verb: str, target: str, body: Any = None, key: str | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(*read(verb, target, body, key))
    return caught.value


def name_of_refusal(function: Callable[[Any], object], value: object) -> str:
    """The name of the refusal, empty where there is none."""
    try:
        function(value)
    except Refused as refused:
        return refused.name
    return ""


def test_every_method_but_hello_has_a_place_of_its_own() -> None:
    assert {route.method.name for route in ROUTES} == set(METHODS) - {"hello"}
    places = [(route.verb, route.path) for route in ROUTES]
    assert len(set(places)) == len(places)
    for route in ROUTES:
        assert route.has_body == (route.verb != GET)
        assert route.method.changes <= route.has_body, f"{route.method.name} changes something by a GET"
        resource = find(route.path.replace("{user_id}", "ann").replace("{hold_id}", "h").replace("{bucket_id}", "7"))
        assert resource is not None
        assert resource.routes[route.verb] is route


@pytest.mark.parametrize(
    ("verb", "target", "body", "key", "method", "params"),
    [
        ("GET", "/v1/accounts/ann", None, None, "get_account", [b"ann"]),
        ("GET", "/v1/accounts/a%2Fb%20c%C3%BC", None, None, "get_account", ["a/b cü".encode()]),
        ("GET", "/v1/accounts", None, None, "accounts", []),
        ("GET", "/v1/accounts?limit=5", None, None, "accounts", [((b"limit", 5),)]),
        ("GET", f"/v1/accounts?cursor={cursor_of('ü')}", None, None, "accounts", [((b"after", "ü"),)]),
        ("GET", f"/v1/accounts/ann/history?cursor={cursor_of(7)}", None, None, "history", [b"ann", ((b"before", 7),)]),
        ("POST", "/v1/accounts/ann/top_up", {"amount": "12.5"}, None, "top_up", [b"ann", "12.5"]),
        ("POST", "/v1/accounts/ann/top_up", {"amount_nanos": LAST}, None, "top_up", [b"ann", LAST]),
        ("POST", "/v1/accounts/ann/top_up", b'{"amount_nanos": 5.0}', None, "top_up", [b"ann", 5]),
        ("POST", "/v1/accounts/ann/top_up", b'{"amount_nanos": 9.007199254740992e15}', None, "top_up", [b"ann", 2**53]),
        (
            "POST",
            "/v1/accounts/ann/debit",
            {"mode": "force", "amount": "1", "message": None},
            '"k 1"',
            "debit",
            [b"ann", "1", ((b"mode", "force"), (b"message", None), (b"request_id", b"k 1"))],
        ),
        ("POST", "/v1/accounts/ann/set_rate", {"rate_nanos": 0}, None, "set_rate", [b"ann", 0]),
        ("POST", "/v1/accounts/ann/holds/h1/capture", {"amount": "1"}, None, "capture", [b"ann", b"h1", "1"]),
        ("POST", "/v1/accounts/ann/holds/h1/release", None, "k", "release", [b"ann", b"h1", ((b"request_id", b"k"),)]),
        ("POST", "/v1/accounts/ann/close", b"{}", None, "close_account", [b"ann"]),
        (
            "PUT",
            "/v1/accounts/ann/thresholds",
            {"thresholds": [{"amount": "5"}, {"amount_nanos": 7}, {"runway_ns": 9}]},
            None,
            "set_thresholds",
            [b"ann", [{"amount": "5"}, {"amount": 7}, {"runway_ns": 9}]],
        ),
        ("POST", "/v1/operator/buckets/7/move", {"shard_id": 2}, None, "move_bucket", [7, 2]),
        ("POST", "/v1/operator/rebalance", {"plan": True}, None, "rebalance", [((b"plan", True),)]),
        ("GET", "/v1/operator/forecast?within_ns=1000000000", None, None, "forecast", [((b"within_ns", 10**9),)]),
        ("POST", "/v1/operator/cutoffs/release/retry", None, None, "retry_cutoff", [b"release"]),
        ("GET", "/v1/ping", None, None, "ping", []),
    ],
)
def test_what_a_request_means(
    verb: str, target: str, body: Any, key: str | None, method: str, params: list[Any]
) -> None:
    assert read(verb, target, body, key) == (method, params)
    assert parse(method, params).method.name == method


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/v2/ping", "/v1/ping/", "//v1/ping", "/v1/accounts/", "/v1/accounts//top_up", "v1/ping"],
)
def test_nothing_is_at_other_paths(path: str) -> None:
    assert find(path) is None


@pytest.mark.parametrize("field", ["amount", "rate", "delta"])
@pytest.mark.parametrize("value", [5, 5.0, 0.1, True, ["5"], {"coins": 5}])
def test_a_bare_number_is_no_amount(field: str, value: Any) -> None:
    name = {"amount": "debit", "rate": "set_rate", "delta": "change_rate"}[field]
    error = refusal("POST", f"/v1/accounts/ann/{name}", {field: value})
    assert error.name == ("INVALID_AMOUNT" if field == "amount" else "INVALID_RATE")
    assert f"{field}_nanos" in error.message


@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"1e400", b"Infinity", b"-Infinity", b"5.5", b"9007199254740994.0", b"9" * 30, b'"5"'),
        *(b"9007199254740993.0", b"4.99999999999999999999", b"5.0000000000000000000001", b"1e-999999999999999999999"),
    ],
)
def test_what_is_no_number_of_nanos(value: bytes) -> None:
    error = refusal("POST", "/v1/accounts/ann/debit", b'{"amount_nanos": ' + value + b"}")
    assert error.name in ("INVALID_AMOUNT", "INVALID_PARAMS")


@pytest.mark.parametrize(
    ("target", "body", "says"),
    [
        ("/v1/accounts/ann/debit", {"amount": "1", "mod": "force"}, "unknown field: mod;"),
        ("/v1/accounts/ann/debit", {"amount": "1", "request_id": "k"}, "Idempotency-Key"),
        ("/v1/accounts/ann/debit", {"amount": "1", "user_id": "bob"}, "unknown field: user_id"),
        ("/v1/accounts/ann/debit", {"amount": "1", "a b": 1}, "unknown field: that is no plain word"),
        ("/v1/accounts/ann/debit", {}, "amount or amount_nanos is missing"),
        ("/v1/accounts/ann/debit", {"amount": "1", "amount_nanos": 1}, "amount_nanos says again"),
        ("/v1/accounts/ann/debit", b'{"amount": "1", "amount": "2"}', "the name amount stands twice"),
        ("/v1/accounts/ann/debit", b'{"amount": "1"', "no JSON"),
        ("/v1/accounts/ann/debit", b"\xff", "UTF-8"),
        ("/v1/accounts/ann/debit", b'\xef\xbb\xbf{"amount": "1"}', "no JSON"),
        ("/v1/accounts/ann/debit", b"[]", "must be a JSON object"),
        ("/v1/accounts/ann/debit", b"null", "must be a JSON object"),
        ("/v1/accounts/ann/debit", b'{"amount": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "too deep"),
        ("/v1/accounts/ann/debit", b'{"amount_nanos": ' + b"9" * 5_000 + b"}", "number"),
        ("/v1/accounts/ann/debit", b'{"amount_nanos": NaN}', "NaN"),
        ("/v1/accounts/ann/debit?amount=1", {}, "not in the query"),
        ("/v1/accounts/ann/debit", {"amount": "1", "message": "\ud800"}, "message"),
        ("/v1/accounts/ann/debit", {"amount": "1", "message": {"a": 1}}, "message"),
        ("/v1/accounts/ann/top_up", {"amount": "1", "expires_at": "2027-01-01T00:00:00+24:00"}, "expires_at"),
        ("/v1/accounts/ann/top_up", {"amount": "1", "expires_at": "2027-01-01T00:00:00-05:60"}, "expires_at"),
    ],
)
def test_what_is_wrong_is_named(target: str, body: Any, says: str) -> None:
    error = refusal("POST", target, body)
    assert error.name == "INVALID_PARAMS"
    assert says in error.message


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/v1/accounts?limit=x", "limit"),
        ("/v1/accounts?limit=1&limit=2", "twice"),
        ("/v1/accounts?after=ann", "unknown field: after"),
        ("/v1/accounts?cursor=%21", "next_cursor"),
        ("/v1/accounts?cursor=bjE%3D%3D%3D", "next_cursor"),
        ("/v1/accounts?cursor=eHg", "next_cursor"),
        (f"/v1/accounts?cursor={cursor_of(7)}", "cursor must be what next_cursor"),  # of a history
        (f"/v1/operator/cutoffs?cursor={cursor_of(7)}", "cursor must be what next_cursor"),
        (f"/v1/accounts/ann/history?cursor={cursor_of('7')}", "cursor must be what next_cursor"),  # of accounts
        ("/v1/accounts?limit=%ff", "UTF-8"),
        ("/v1/accounts/ann/history?limit=0", "limit"),
        ("/v1/operator/forecast?step_ns=1500000000", "step_ns must be a multiple of 1000000000"),
    ],
)
def test_what_is_wrong_in_a_query_is_named(target: str, says: str) -> None:
    error = refusal("GET", target)
    assert error.name == "INVALID_PARAMS"
    assert says in error.message


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("debit", ["ann", 5], "INVALID_AMOUNT"),
        ("debit", ["ann", 5.0, {"mode": "force"}], "INVALID_AMOUNT"),
        ("adjust", ["ann", -5, "why"], "INVALID_AMOUNT"),
        ("capture", ["ann", "h", 5], "INVALID_AMOUNT"),
        ("set_rate", ["ann", 0], "INVALID_RATE"),
        ("change_rate", ["ann", -1], "INVALID_RATE"),
        ("set_thresholds", ["ann", [{"amount": 5}]], "INVALID_AMOUNT"),
    ],
)
def test_a_dry_run_takes_no_bare_number_for_money_either(method: str, params: list[Any], error: str) -> None:
    assert refusal("POST", "/v1/dry_run", {"method": method, "params": params}).name == error


def test_a_dry_run_has_the_params_that_its_method_takes() -> None:
    params = ["ann", [{"amount": "5"}, {"amount_nanos": 7}, {"runway_ns": 9}]]
    wanted = ["set_thresholds", ["ann", [{"amount": "5"}, {"amount": 7}, {"runway_ns": 9}]]]
    assert read("POST", "/v1/dry_run", {"method": "set_thresholds", "params": params}) == ("dry_run", wanted)
    for said in (
        ["debit", ["7", "5", {"mode": "force"}]],
        ["close_account", [7]],
        ["ping", [5]],
        [7, 5],
        ["debit", {}],
    ):
        assert read("POST", "/v1/dry_run", {"method": said[0], "params": said[1]}) == ("dry_run", said)


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"{}", 1),
        (b'{"a": [{"b": []}], "c": [1]}', 4),
        (b'{"a": "[[[[", "b": "\\"[[", "c": ["\\\\", []]}', 3),
        (b'{"a": "\\"[[\\\\\\"[[", "b\\\\": {"]": [{}, {}]}}', 4),
        (b"[" * 500 + b"]" * 500, 500),
    ],
)
def test_a_depth_is_that_of_brackets_outside_texts(body: bytes, depth: int) -> None:
    json.loads(body)
    assert [nests_deeper(body, levels) for levels in (depth - 1, depth)] == [True, False]


@pytest.mark.parametrize("body", [b"[" * 30_000, b"[]" * 100 + b'{"a":' * 30_000, b"[" * 30_000 + b"]" * 20_000])
def test_what_is_no_json_nests_deeper_where_its_parser_would_go_too_deep(body: bytes) -> None:
    assert nests_deeper(body, DEPTH_MAX)


def test_a_body_of_any_width_and_of_the_greatest_depth_is_read() -> None:
    wide = b'{"a": [' + b"[], " * 1000 + b"[]]}"
    assert len(json_of(wide)["a"]) == 1001
    deep = b'{"a": ' * DEPTH_MAX + b"1" + b"}" * DEPTH_MAX
    assert list(json_of(deep)) == ["a"]
    assert name_of_refusal(json_of, b'{"a": ' + deep + b"}") == "INVALID_PARAMS"


def test_a_key_where_none_is_taken_is_refused_and_not_forgotten() -> None:
    assert "Idempotency-Key" in refusal("POST", "/v1/operator/rebalance", {}, "k").message
    assert read("GET", "/v1/ping", None, "k") == ("ping", [])


@pytest.mark.parametrize(
    ("header", "raw"),
    [("k", b"k"), ('"k"', b"k"), ('""', b""), ('"', b'"'), ("k\udcff", b"k\xff"), ("ü", "ü".encode())],
)
def test_a_key_may_have_the_quotes_of_its_draft(header: str, raw: bytes) -> None:
    assert request_id_of(header) == raw


@given(value=st.one_of(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(0, LAST)))
def test_a_cursor_names_its_place_again(value: str | int) -> None:
    expected = "history" if isinstance(value, int) else "accounts"
    path = "/v1/accounts/ann/history" if isinstance(value, int) else "/v1/accounts"
    name, params = read("GET", f"{path}?cursor={cursor_of(value)}")
    assert name == expected
    assert params[-1][0][1] == value


@given(
    body=st.one_of(
        st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
    )
)
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    assert name_of_refusal(json_of, body) in ("", "INVALID_PARAMS")


@given(query=st.text(st.characters(codec="latin-1"), max_size=100))
def test_any_query_is_read_or_refused(query: str) -> None:
    assert name_of_refusal(query_of, query) in ("", "INVALID_PARAMS")
