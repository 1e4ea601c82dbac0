"""The table of procedures: it has what the contract names, and says of itself exactly what it takes."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.api.methods import (
    ADMIN,
    ANYONE,
    CHARGE,
    COMMAND,
    METHODS,
    ONE_SHARD,
    READ,
    ROLES,
    TOP_UP,
    Method,
    Parser,
    allowed,
    command_parsers,
    describe,
    parse,
)
from billing.ledger import commands
from billing.ledger.commands import pack_thresholds
from billing.ledger.errors import Refused
from billing.worker.machine import SHARD_BY_SHARD

HOUR = 3600
LAST = 2**63 - 1

# What the contract's table of procedures names: required parameters and options.
CONTRACT = {
    "top_up": (["user_id", "amount"], {"expires_at_ns", "kind", "request_id", "message"}),
    "set_rate": (
        ["user_id", "rate"],
        {"per", "resource", "rate_seq", "min_runway_ns", "ttl_ns", "request_id", "message"},
    ),
    "change_rate": (["user_id", "delta"], {"per", "resource", "request_id", "message"}),
    "debit": (["user_id", "amount"], {"mode", "request_id", "message"}),
    "set_credit_limit": (["user_id", "amount"], {"request_id", "message"}),
    "get_account": (["user_id"], set()),
    "balance_at": (["user_id", "at_ns"], set()),
    "statement": (["user_id", "from_ns", "to_ns"], {"by", "limit"}),  # limit is beyond the contract
    "dry_run": (["method", "params"], set()),
    "accounts": ([], {"after", "limit", "state", "exhausts_within_ns", "with", "class", "overrunning", "shard_id"}),
    "history": (["user_id"], {"limit", "before"}),
    "hold": (["user_id", "amount"], {"ttl_ns", "request_id", "message"}),
    "capture": (["user_id", "hold_id", "amount"], {"request_id", "message"}),
    "release": (["user_id", "hold_id"], {"request_id", "message"}),
    "adjust": (["user_id", "amount", "reason"], {"request_id", "message"}),
    "set_thresholds": (["user_id", "thresholds"], {"request_id", "message"}),
    "set_class": (["user_id", "class"], {"request_id", "message"}),
    "close_account": (["user_id"], {"request_id", "message"}),
    "hello": ([], {"token", "errors"}),
    "ping": ([], set()),
    "server_info": ([], set()),
    "methods": ([], set()),
    "bucket_id": (["user_id"], set()),
    "route": ([], {"version"}),
    "buckets_info": ([], set()),
    "shards_info": ([], set()),
    "move_bucket": (["bucket_id", "shard_id"], set()),
    "pin_bucket": (["bucket_id"], set()),
    "unpin_bucket": (["bucket_id"], set()),
    "rebalance": ([], {"plan"}),
    "explain": (["user_id"], set()),
    "explain_move": (["bucket_id"], {"shard_id"}),
    "check_owners": ([], set()),
    "entries": ([], {"after", "limit"}),
    "audit": ([], {"after", "limit", "actor", "act"}),
    "pending_cutoffs": ([], {"after", "limit", "shard_id"}),
    "retry_cutoff": (["user_id"], set()),
    "release_cutoffs": ([], set()),
    "forecast": ([], {"within_ns", "step_ns", "shard_id"}),
    "expirationd_stats": ([], {"shard_id"}),
    "backup": (["step"], set()),  # beyond the contract: what billing backup asks for
}

# A value of each parameter and option that is right, as the wire's decoder hands it over.
RIGHT: dict[str, object] = {
    "user_id": b"u",
    "amount": 5,
    "rate": 5,
    "at_ns": 9,
    "from_ns": 9,
    "to_ns": 9,
    "by": b"resource",
    "method": b"top_up",
    "params": [b"u", 5],
    "delta": -5,
    "hold_id": b"h1",
    "reason": b"a mistake",
    "thresholds": [{"amount": 5}],
    "class": "gold",
    "bucket_id": 477,
    "shard_id": 1,
    "request_id": b"r1",
    "message": b"hello",
    "per": b"hour",
    "resource": b"vm-1",
    "rate_seq": 3,
    "min_runway_ns": 9,
    "mode": b"force",
    "ttl_ns": commands.LEASE_NS_MIN,
    "expires_at_ns": 9,
    "kind": b"promo",
    "after": b"u",
    "limit": 7,
    "before": 9,
    "token": b"secret",
    "errors": b"map",
    "state": b"active",
    "actor": b"ops",
    "act": b"reload",
    "exhausts_within_ns": 9,
    "overrunning": True,
    "with": [b"rates"],
    "within_ns": 7200 * 10**9,
    "step_ns": 30 * 10**9,
    "version": 9,
    "plan": True,
    "step": b"begin",
}


def body(name: str, *params: object) -> tuple[Any, ...]:
    return parse(name, list(params)).body


def refusal(name: str, *params: object) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(name, list(params))
    return caught.value


def test_the_table_is_the_contracts() -> None:
    table = {
        name: ([field.name for field in row.required], {field.name for field in row.options})
        for name, row in METHODS.items()
    }
    assert table == CONTRACT


@pytest.mark.parametrize("name", METHODS)
def test_a_procedure_takes_what_its_row_says_and_nothing_else(name: str) -> None:
    row = METHODS[name]
    required = [RIGHT[field.name] for field in row.required]
    plain = parse(name, required)
    assert plain.method is row
    assert parse(name.encode(), [*required, ()]).body == plain.body
    assert parse(name, [*required, None]).body == plain.body
    for field in row.options:
        with_option = parse(name, [*required, ((field.name.encode(), RIGHT[field.name]),)]).body
        assert with_option != plain.body, f"{name} takes {field.name} and forgets it"
        assert parse(name, [*required, {field.name: RIGHT[field.name]}]).body == with_option
        assert parse(name, [*required, {field.name: None}]).body == plain.body
    every = tuple((field.name.encode(), RIGHT[field.name]) for field in row.options)
    body = parse(name, [*required, every]).body
    assert (body[2] if ONE_SHARD in row.options else body)[0] == plain.body[0]
    for field_name in RIGHT.keys() - {field.name for field in row.options}:
        error = refusal(name, *required, ((field_name.encode(), RIGHT[field_name]),))
        assert error.name == "INVALID_PARAMS"
        assert f"unknown option: {field_name};" in error.message


@pytest.mark.parametrize("name", METHODS)
def test_wrong_arity_says_what_is_expected(name: str) -> None:
    row = METHODS[name]
    required = [RIGHT[field.name] for field in row.required]
    wrong = [[*required, (), ()], {"a": 1}, b"abc", 5, True]
    if required:
        wrong += [required[:-1], None, ()]
    for params in wrong:
        with pytest.raises(Refused) as caught:
            parse(name, params)
        assert caught.value.name == "INVALID_PARAMS"
        assert all(field.name in caught.value.message for field in row.required)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.kind == COMMAND])
def test_commands_are_canonical(name: str) -> None:
    """Eight fields of fixed types, whichever options came, so that equal calls are equal tuples."""
    row = METHODS[name]
    required = [RIGHT[field.name] for field in row.required]
    for options in ((), tuple((field.name.encode(), RIGHT[field.name]) for field in row.options)):
        command = parse(name, [*required, options]).body
        assert [type(field) for field in command] == [int, bytes, int, int, int, bytes, bytes, bytes, bytes, bytes]
        assert commands.NAMES[command[0]] == name
        assert all(-(2**63) <= number < 2**63 for number in command[2:5])


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (("top_up", b"u", 5), (commands.TOP_UP, b"u", 5, 0, 0, b"", b"", b"", b"", b"")),
        (("top_up", "ü", b"12.5"), (commands.TOP_UP, "ü".encode(), 12_500_000_000, 0, 0, b"", b"", b"", b"", b"")),
        (("top_up", 2**64 - 1, 5.0), (commands.TOP_UP, b"18446744073709551615", 5, 0, 0, b"", b"", b"", b"", b"")),
        (("top_up", 0, LAST), (commands.TOP_UP, b"0", LAST, 0, 0, b"", b"", b"", b"", b"")),
        (("set_rate", b"u", 0), (commands.SET_RATE, b"u", 0, -1, -1, b"", b"", b"", b"", b"")),
        (("set_rate", b"u", 7), (commands.SET_RATE, b"u", 7 * HOUR, -1, -1, b"", b"", b"", b"", b"")),
        (("set_rate", b"u", b"0.5"), (commands.SET_RATE, b"u", 500_000_000 * HOUR, -1, -1, b"", b"", b"", b"", b"")),
        (("set_rate", b"u", 7, {"per": "minute"}), (commands.SET_RATE, b"u", 420, -1, -1, b"", b"", b"", b"", b"")),
        (("set_rate", b"u", 7, {"per": b"hour"}), (commands.SET_RATE, b"u", 7, -1, -1, b"", b"", b"", b"", b"")),
        (
            ("set_rate", b"u", LAST // HOUR, {"rate_seq": 0, "min_runway_ns": 5e9}),
            (commands.SET_RATE, b"u", LAST // HOUR * HOUR, 0, 5_000_000_000, b"", b"", b"", b"", b""),
        ),
        (
            ("change_rate", b"u", -7, {"per": "hour", "resource": "vm"}),
            (commands.CHANGE_RATE, b"u", -7, 0, 0, b"vm", b"", b"", b"", b""),
        ),
        (("debit", b"u", 5), (commands.DEBIT, b"u", 5, commands.STRICT, 0, b"", b"", b"", b"", b"")),
        (
            ("debit", b"u", 5, {"mode": "partial"}),
            (commands.DEBIT, b"u", 5, commands.PARTIAL, 0, b"", b"", b"", b"", b""),
        ),
        (("debit", b"u", 5, {"mode": b"force"}), (commands.DEBIT, b"u", 5, commands.FORCE, 0, b"", b"", b"", b"", b"")),
        (("set_credit_limit", b"u", 0), (commands.SET_CREDIT_LIMIT, b"u", 0, 0, 0, b"", b"", b"", b"", b"")),
        (("hold", b"u", 5, {"ttl_ns": 9}), (commands.HOLD, b"u", 5, 9, 0, b"", b"", b"", b"", b"")),
        (("capture", b"u", b"h", 5), (commands.CAPTURE, b"u", 5, 0, 0, b"h", b"", b"", b"", b"")),
        (("release", b"u", b"h"), (commands.RELEASE, b"u", 0, 0, 0, b"h", b"", b"", b"", b"")),
        (("adjust", b"u", -5, b"why"), (commands.ADJUST, b"u", -5, 0, 0, b"", b"", b"why", b"", b"")),
        (
            ("close_account", b"u", {"request_id": b"\xff"}),
            (commands.CLOSE, b"u", 0, 0, 0, b"", b"\xff", b"", b"", b""),
        ),
        (
            ("set_thresholds", b"u", [{"runway_ns": 9}, {"amount": "1"}, {"amount": 10**9}]),
            (commands.SET_THRESHOLDS, b"u", 2, 0, 0, pack_thresholds([(0, 10**9), (1, 9)]), b"", b"", b"", b""),
        ),
        (("set_class", b"u", "gold"), (commands.SET_CLASS, b"u", 0, 0, 0, b"gold", b"", b"", b"", b"")),
        (("set_class", b"u", b"default"), (commands.SET_CLASS, b"u", 0, 0, 0, b"", b"", b"", b"", b"")),
        (("set_thresholds", b"u", []), (commands.SET_THRESHOLDS, b"u", 0, 0, 0, b"", b"", b"", b"", b"")),
    ],
)
def test_what_a_call_becomes(call: tuple[Any, ...], command: tuple[Any, ...]) -> None:
    assert body(*call) == command


@pytest.mark.parametrize(
    ("call", "question"),
    [
        (("get_account", 42), ("get_account", b"42")),
        (("history", b"u"), ("history", b"u", 100, LAST)),
        (("history", b"u", {"limit": 1000, "before": 7}), ("history", b"u", 1000, 7)),
        (("accounts",), ("accounts", b"", 1000, "", -1, (), b"", 0)),
        (("accounts", {"after": "", "limit": 1}), ("accounts", b"", 1, "", -1, (), b"", 0)),
        (("accounts", {"after": 42}), ("accounts", b"42", 1000, "", -1, (), b"", 0)),
        (
            ("accounts", {"state": b"exhausted", "exhausts_within_ns": 5, "with": [b"holds", "rates"]}),
            ("accounts", b"", 1000, "exhausted", 5, ("rates", "holds"), b"", 0),
        ),
        (("pending_cutoffs",), ("pending_cutoffs", b"", 1000)),
        (("forecast",), ("forecast", 3600 * 10**9, 60 * 10**9)),
        (("forecast", {"within_ns": 10**9, "step_ns": 2 * 10**9}), ("forecast", 10**9, 2 * 10**9)),
        (("retry_cutoff", b"u"), ("retry_cutoff", b"u")),
        (("release_cutoffs",), ("release_cutoffs",)),
        (("route",), ("route", 0)),
        (("route", {"version": 7}), ("route", 7)),
        (("move_bucket", 477, 0), ("move_bucket", 477, 0)),
        (("pin_bucket", 1), ("pin_bucket", 1)),
        (("rebalance",), ("rebalance", 0)),
        (("rebalance", {"plan": True}), ("rebalance", 1)),
        (("explain", 42), ("explain", b"42")),
        (("explain_move", 477), ("explain_move", 477, 0)),
        (("explain_move", 477, {"shard_id": 2}), ("explain_move", 477, 2)),
        (("hello",), ("hello", b"", "")),
        (("hello", {"token": "t", "errors": "string"}), ("hello", b"t", "string")),
        (("bucket_id", b"1"), ("bucket_id", b"1")),
    ],
)
def test_what_a_question_becomes(call: tuple[Any, ...], question: tuple[Any, ...]) -> None:
    assert body(*call) == question


@pytest.mark.parametrize(
    "user_id",
    [b"", "", b"x" * 129, "ü" * 65, -1, 1.5, -1.0, 2.0**54, True, False, None, [], (), b"\xff", b"\xc3", "\ud800"],
)
@pytest.mark.parametrize("name", ["top_up", "set_rate", "debit", "get_account", "release"])
def test_what_is_no_user_id(name: str, user_id: object) -> None:
    required = [RIGHT[field.name] for field in METHODS[name].required]
    assert refusal(name, user_id, *required[1:]).name == "INVALID_USER_ID"


def test_the_longest_user_id_counts_bytes() -> None:
    assert parse("debit", ["ü" * 64, 1]).user_id == ("ü" * 64).encode()
    assert parse("debit", [b"x" * 128, 1]).user_id == b"x" * 128


@pytest.mark.parametrize(
    "amount", [0, -1, 0.5, 2.0**53 + 2, float("nan"), float("inf"), True, None, b"", b"1e3", 2**63]
)
@pytest.mark.parametrize("name", ["top_up", "debit", "hold"])
def test_what_is_no_amount(name: str, amount: bytes | float | None) -> None:
    assert refusal(name, b"u", amount).name == "INVALID_AMOUNT"


@pytest.mark.parametrize(
    ("rate", "name"),
    [
        (-1, "INVALID_RATE"),
        (True, "INVALID_RATE"),
        (0.5, "INVALID_RATE"),
        (b"fast", "INVALID_RATE"),
        (LAST // HOUR + 1, "LIMIT_EXCEEDED"),
        (LAST, "LIMIT_EXCEEDED"),
    ],
)
def test_what_is_no_rate(rate: bytes | float, name: str) -> None:
    assert refusal("set_rate", b"u", rate).name == name


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (("top_up", b"u", 5, {"request_id": b""}), "request_id"),
        (("top_up", b"u", 5, {"request_id": b"x" * 65}), "request_id"),
        (("top_up", b"u", 5, {"request_id": 7}), "request_id"),
        (("top_up", b"u", 5, {"message": b"x" * 1025}), "message"),
        (("top_up", b"u", 5, {"message": b"\xff"}), "message"),
        (("top_up", b"u", 5, {"message": 7}), "message"),
        (("set_rate", b"u", 5, {"resource": b"x" * 129}), "resource"),
        (("set_rate", b"u", 5, {"rate_seq": -1}), "rate_seq"),
        (("set_rate", b"u", 5, {"rate_seq": True}), "rate_seq"),
        (("set_rate", b"u", 5, {"rate_seq": 2**63}), "rate_seq"),
        (("set_rate", b"u", 5, {"min_runway_ns": 0.5}), "min_runway_ns"),
        (("debit", b"u", 5, {"mode": b"gently"}), "mode"),
        (("debit", b"u", 5, {"mode": 1}), "mode"),
        (("hold", b"u", 5, {"ttl_ns": 0}), "ttl_ns"),
        (("capture", b"u", 7, 5), "hold_id"),
        (("release", b"u", b""), "hold_id"),
        (("adjust", b"u", 5, b""), "reason"),
        (("adjust", b"u", 5, None), "reason"),
        (("history", b"u", {"limit": 0}), "limit"),
        (("history", b"u", {"limit": 1001}), "limit"),
        (("history", b"u", {"before": -1}), "before"),
        (("set_thresholds", b"u", [{"amount": 5}] * 17), "thresholds"),
        (("set_thresholds", b"u", {"amount": 5}), "thresholds"),
        (("set_thresholds", b"u", [{}]), "threshold"),
        (("set_thresholds", b"u", [{"amount": 5, "runway_ns": 5}]), "threshold"),
        (("set_thresholds", b"u", [{"balance": 5}]), "threshold"),
        (("set_thresholds", b"u", [5]), "threshold"),
        (("set_thresholds", b"u", [None]), "threshold"),
        (("set_class", b"u", b""), "class"),
        (("set_class", b"u", b"x" * 65), "class"),
        (("set_class", b"u", 5), "class"),
        (("move_bucket", 0, 1), "bucket_id"),
        (("move_bucket", 1, -1), "shard_id"),
        (("move_bucket", b"1", 1), "bucket_id"),
        (("hello", {"token": b"x" * 513}), "token"),
        (("hello", {"token": 5}), "token"),
        (("hello", {"errors": []}), "errors"),
    ],
)
def test_what_is_out_of_range_is_named(call: tuple[Any, ...], field: str) -> None:
    error = refusal(*call)
    assert error.name == "INVALID_PARAMS"
    assert field in error.message


HAND_WRITTEN = [row for row in METHODS.values() if row.parse is not row.by_row]
WIRE_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.binary(max_size=140),
        st.text(max_size=70),
        st.sampled_from([RIGHT[name] for name in RIGHT if name != "thresholds"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(st.tuples(inner, inner), max_size=4).map(tuple)),
    max_leaves=8,
)


def outcome(parser: Parser, params: object) -> object:
    """What a parser returns, or the name of its refusal."""
    try:
        return parser(params)
    except Refused as refused:
        return refused.name


def test_three_parsers_are_written_by_hand() -> None:
    assert [row.name for row in HAND_WRITTEN] == ["top_up", "set_rate", "debit"]


@pytest.mark.parametrize("row", HAND_WRITTEN, ids=lambda row: row.name)
@given(data=st.data())
def test_what_is_written_by_hand_is_what_the_row_says(row: Method, data: st.DataObject) -> None:
    """Right values mixed with wrong ones, any subset of the options: one tuple, or a refusal of both."""
    required = [data.draw(st.one_of(st.just(RIGHT[field.name]), WIRE_VALUES)) for field in row.required]
    chosen = data.draw(st.sets(st.sampled_from([field.name for field in row.options])))
    options = {name: data.draw(st.one_of(st.just(RIGHT[name]), st.none(), WIRE_VALUES)) for name in chosen}
    for form in (options, tuple((name.encode(), value) for name, value in options.items())):
        by_hand, by_row = outcome(row.parse, [*required, form]), outcome(row.by_row, [*required, form])
        assert isinstance(by_hand, str) == isinstance(by_row, str)
        if not isinstance(by_hand, str):
            assert by_hand == by_row


@pytest.mark.parametrize("row", HAND_WRITTEN, ids=lambda row: row.name)
@given(params=WIRE_VALUES)
def test_any_params_are_taken_or_refused_by_both(row: Method, params: Any) -> None:
    by_hand, by_row = outcome(row.parse, params), outcome(row.by_row, params)
    assert by_hand == by_row or (isinstance(by_hand, str) and isinstance(by_row, str))


@pytest.mark.parametrize("row", HAND_WRITTEN, ids=lambda row: row.name)
def test_one_thing_wrong_has_the_same_name_by_hand_and_by_row(row: Method) -> None:
    right = [RIGHT[field.name] for field in row.required]
    wrong: list[object] = [[*right, {"nothing": 1}], right[:1], [*right, 5], [*right, (), ()]]
    odd: list[object] = [None, -1, True, 2**64, b"", [], "x" * 200]
    for position in range(len(right)):
        wrong += [[*right[:position], value, *right[position + 1 :]] for value in odd]
    odd = [-2, 5.5, True, [], b"", b"\xff", "x" * 2000, 2**63]
    for field in row.options:
        wrong += [[*right, {field.name: value}] for value in odd]
    for params in wrong:
        assert outcome(row.parse, params) == outcome(row.by_row, params), params


def test_an_option_that_comes_twice_is_refused() -> None:
    error = refusal("top_up", b"u", 5, ((b"message", b"a"), (b"message", b"b")))
    assert (error.name, error.message) == ("INVALID_PARAMS", "options must not name anything twice")


@pytest.mark.parametrize("name", ["nobody", b"nobody", b"\xff", 5, None, [], ()])
def test_there_is_no_such_method(name: object) -> None:
    with pytest.raises(Refused, match="UNKNOWN_METHOD"):
        parse(name, [])


def test_each_role_may_call_what_names_it_and_admin_everything() -> None:
    for row in METHODS.values():
        assert row.role in ROLES | {ANYONE}
        assert allowed(row, frozenset({ADMIN}))
        assert allowed(row, frozenset()) == (row.name in {"hello", "ping"})
        for role in ROLES - {ADMIN}:
            assert allowed(row, frozenset({role})) == (row.role in {role, ANYONE})
    assert set(command_parsers(frozenset({TOP_UP}))) == {b"top_up"}
    assert set(command_parsers(frozenset({CHARGE}))) == {
        *(b"set_rate", b"change_rate", b"debit"),
        *(b"hold", b"capture", b"release"),
    }
    assert command_parsers(frozenset({READ})) == {}
    assert len(command_parsers(frozenset({ADMIN}))) == 12


def test_money_moves_and_operators_act_only_with_a_role_for_it() -> None:
    by_role = {role: {name for name, row in METHODS.items() if row.role == role} for role in (ADMIN, READ)}
    assert by_role[ADMIN] == {
        *("adjust", "set_credit_limit", "set_thresholds", "set_class", "close_account", "retry_cutoff"),
        *("release_cutoffs", "move_bucket", "pin_bucket", "unpin_bucket", "rebalance", "backup", "audit"),
    }
    assert not any(METHODS[name].kind == COMMAND for name in by_role[READ])


def test_the_self_description_travels() -> None:
    described = msgpack.unpackb(msgpack.packb(describe()))
    assert [row["name"] for row in described] == list(METHODS)
    top_up = described[0]
    assert top_up["params"][1] == {
        "name": "amount",
        "type": "integer of nanos above 0, or decimal string of coins",
        "kind": "amount",
        "sign": "positive",
    }
    assert {"INVALID_AMOUNT", "LIMIT_EXCEEDED", "REQUEST_ID_CONFLICT", "UNAVAILABLE"} <= set(top_up["errors"])
    unknown_to = {row.name for row in METHODS.values() if row.about_account and "UNKNOWN_ACCOUNT" not in row.errors}
    assert unknown_to == {"top_up", "bucket_id"}, "the first opens the account, and the second looks at its name"
    assert top_up["reply"]["shape"] == "Standing"
    assert {"name": "balance_nanos", "kind": "nanos"} in top_up["reply"]["fields"]
    assert {option["name"] for option in top_up["options"]} == {"request_id", "message", "expires_at_ns", "kind"}
    assert all(row["doc"] and row["kind"] and row["role"] for row in described)


def test_what_can_be_asked_of_one_shard_is_what_the_refusal_of_the_whole_names() -> None:
    """`billing.worker.machine.SHARD_BY_SHARD` and the table agree."""
    assert {name for name, row in METHODS.items() if ONE_SHARD in row.options} == SHARD_BY_SHARD
    assert METHODS["accounts"].parse([{b"shard_id": 2, b"limit": 5}])[:2] == ("of_shard", 2)
