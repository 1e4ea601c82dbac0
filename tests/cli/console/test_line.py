"""What is typed at the console becomes the call that the daemon's own table says it is, or a refusal that helps."""

from __future__ import annotations

import pytest

from billing.api.methods import METHODS, describe
from billing.cli.console.line import OWN, LineError, Table

TABLE = Table(describe())


@pytest.mark.parametrize(
    ("line", "name", "params", "options"),
    [
        ("top_up user_01 12.5", "top_up", ["user_01", "12.5"], {}),
        ("top-up user_01 5n", "top_up", ["user_01", 5], {}),
        ("debit u 3 mode=partial message='a b'", "debit", ["u", "3"], {"mode": "partial", "message": "a b"}),
        ("adjust u -0.5 'a mistake'", "adjust", ["u", "-0.5", "a mistake"], {}),
        ("hold u 1 ttl_ns=5m", "hold", ["u", "1"], {"ttl_ns": 300 * 10**9}),
        ("hold u 1 ttl_ns=17", "hold", ["u", "1"], {"ttl_ns": 17}),
        ("set_rate u 1 per=hour rate_seq=7", "set_rate", ["u", "1"], {"per": "hour", "rate_seq": 7}),
        ('set_thresholds u \'[{"amount": "5"}]\'', "set_thresholds", ["u", [{"amount": "5"}]], {}),
        (
            'set_thresholds u \'[{"amount_nanos": 5}, {"runway_ns": 5}]\'',
            *("set_thresholds", ["u", [{"amount": 5}, {"runway_ns": 5}]], {}),
        ),
        ('dry_run debit \'["u", "5"]\'', "dry_run", ["debit", ["u", "5"]], {}),
        ("history 17 before=12 limit=3", "history", ["17"], {"before": 12, "limit": 3}),
        ("move_bucket 477 2", "move_bucket", [477, 2], {}),
        ("rebalance plan=true", "rebalance", [], {"plan": True}),
        ("ping # is it there?", "ping", [], {}),
        ("watch u 5s", "watch", ["u", "5s"], {}),
        ("account u", "get_account", ["u"], {}),
        ("buckets move 477 2", "move_bucket", [477, 2], {}),
        ("cutoffs --limit 3", "pending_cutoffs", [], {"limit": 3}),
        ("cutoffs release", "release_cutoffs", [], {}),
        ("credit-limit u 5", "set_credit_limit", ["u", "5"], {}),
        ("hold u 1 --ttl 5m", "hold", ["u", "1"], {"ttl_ns": 300 * 10**9}),
        ("hold --request-id=r u 1 ttl=1h", "hold", ["u", "1"], {"ttl_ns": 3600 * 10**9, "request_id": "r"}),
        ("rebalance --plan", "rebalance", [], {"plan": True}),
        ("timers", "expirationd_stats", [], {}),
        ("balance_at u 2026-03-01T00:00Z", "balance_at", ["u", 1_772_323_200 * 10**9], {}),
        ("balance-at u 1772323200000000000", "balance_at", ["u", 1_772_323_200 * 10**9], {}),
        ("statement u 0 2026-03-01T03:00+03:00", "statement", ["u", 0, 1_772_323_200 * 10**9], {}),
        ("quit", "exit", [], {}),
    ],
)  # fmt: skip
def test_a_line_is_a_call(line: str, name: str, params: list[str | int], options: dict[str, str | int]) -> None:
    assert TABLE.parse(line) == (name, params, options)


@pytest.mark.parametrize("line", ["", "   ", "# nothing"])
def test_an_empty_line_is_none(line: str) -> None:
    assert TABLE.parse(line) is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("top_upp u 5", "do you mean top_up"),
        ("__import__('os')", "there is no __import__"),
        ("top_up u", "amount is missing: top_up USER_ID AMOUNT"),
        ("top_up u 5e3", "amount: expected coins"),
        ("top_up u 1.5n", "amount: expected coins"),
        ("set_thresholds u '[{\"amount\": 5}]'", "amount: expected coins in quotes"),
        ("set_thresholds u '[{\"amount\": 12.5}]'", "amount: expected coins in quotes"),
        ("dry_run debit '[\"u\", 5]'", "amount: expected coins in quotes"),
        ('dry_run set_rate \'["u", 0.5, {"per": "hour"}]\'', "rate: expected coins in quotes"),
        ("top_up u 5 6", "'6' is no option"),
        ("top_up u 5 mode=strict", "'mode=strict' is no option"),
        ("move_bucket one 2", "bucket_id: expected a whole number"),
        ("balance_at u tomorrow", "at_ns: expected a date or an instant, as 2026-11-30 or 2026-11-30T12:00"),
        ("hold u 1 ttl_ns=soon", "ttl_ns: expected a span of time"),
        ("rebalance plan=maybe", "plan: expected true or false"),
        ("set_thresholds u [", "thresholds: expected JSON"),
        ("debit 'u 5", "the quotes do not match"),
        ("hello", "there is no hello"),
        ("hold u 1 --tll 5m", "'--tll' is no option"),
        ("bukets move 1 2", "do you mean buckets"),
    ],
)
def test_what_is_no_call_says_what_would_be_one(line: str, text: str) -> None:
    with pytest.raises(LineError, match=text.replace("(", r"\(")):
        TABLE.parse(line)


def test_every_procedure_can_be_typed_and_is_explained() -> None:
    for name, method in METHODS.items():
        if name != "hello":
            assert all(field.name in TABLE.help(name) for field in (*method.required, *method.options))
            assert TABLE.usage(name).split()[0] == name
    assert all(TABLE.help(name) == text for name, text in OWN.items())


@pytest.mark.parametrize(
    ("text", "completions"),
    [
        ("set_r", ["set_rate"]),
        ("set-r", ["set_rate"]),
        ("wat", ["watch"]),
        ("debit us", ["user_01", "user_02"]),
        ("watch user_02", ["user_02"]),
        ("debit user_01 5 mo", ["mode="]),
        ("debit user_01 5 mode=", ["mode=strict", "mode=partial", "mode=force"]),
        ("set_rate user_01 5 per=m", ["per=minute"]),
        ("set_rate user_01 5 resource=", []),
        ("help unp", ["unpin_bucket"]),
        ("nothing u", []),
        ("acc", ["account", "accounts"]),
        ("account us", ["user_01", "user_02"]),
    ],
)
def test_completion_comes_from_the_table(text: str, completions: list[str]) -> None:
    assert TABLE.complete(text, {"user_01", "user_02", "other"}) == completions


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_overview_names_everything_within_its_width_and_breaks_no_word(width: int) -> None:
    lines = TABLE.overview(width).splitlines()
    assert all(len(line) <= width for line in lines)
    text = " ".join(TABLE.overview(width).split())
    for name, method in METHODS.items():
        if name != "hello":
            assert f" {name} " in text
            assert method.doc in text
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[:4] == ["Accounts: changes", "Accounts: questions", "Operation", "The daemon"]
