"""Files of accounts: what is taken, and what is named with its place and reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from billing.cli.main import root
from billing.migration.plan import IN_DEBT, commands_of, is_empty, most_of_a_bucket, refusal_of
from billing.migration.sources import Account, NotTaken, RateLine, from_csv, from_json_lines, merged

CSV = [
    "user_id,balance,credit_limit,resource,rate,per",
    "user_01,12.5,,vm-1,0.36,hour",
    "user_01,,,vm-2,0.000000001,",
    "user_02,100,50,,,",
    "user_03,-7,10,,,",
    "user_04,1e400,,,,",
    "user_05,NaN,,,,",
    "user_06,0.0000000001,,,,",
    "user_07,5",
    ",5,,,,",
    "user_08,,-1,,,",
    "user_09,1,,vm,1,week",
    "user_01,3,,,,",
    "user_10,1e3,,,,",
    "user_11,1.2346E+9,,,,",
    "user_12,1_000,,,,",
    "user_13,٣,,,,",
    "user_14,1.00000000000000000000000000001,,,,",
    "user_15,0.9999999999999999999999999999999999999,,,,",
    f"user_16,1.{'0' * 300}1,,,,",
    f"user_17,5.{'0' * 300},,,,",
]


def test_a_csv_file_is_read_line_by_line_and_no_line_is_dropped() -> None:
    items = list(merged(from_csv(CSV, "a.csv")))
    accounts = {item.user_id: item for item in items if isinstance(item, Account)}
    assert accounts["user_01"].balance_nanos == 12_500_000_000
    lines = (RateLine("vm-1", "0.360000000", "hour"), RateLine("vm-2", "0.000000001", "second"))
    assert accounts["user_01"].rates == lines
    assert (accounts["user_02"].balance_nanos, accounts["user_02"].credit_limit_nanos) == (100 * 10**9, 50 * 10**9)
    assert accounts["user_03"].balance_nanos == -7 * 10**9
    assert accounts["user_17"].balance_nanos == 5 * 10**9
    assert set(accounts) == {"user_01", "user_02", "user_03", "user_17"}
    places = {item.location for item in items if isinstance(item, NotTaken)}
    assert places == {f"a.csv:{line}" for line in range(6, 21)}


def test_a_csv_file_without_the_header_is_refused_whole() -> None:
    with pytest.raises(ValueError, match=r"name the columns, user_id and any of balance, .*; got user_01,5$"):
        list(from_csv(["user_01,5"], "a.csv"))
    with pytest.raises(ValueError, match=r"^a\.csv: its first line is no CSV: "):
        list(from_csv(['"user_id'], "a.csv"))
    for header in ("user_id,balance,balance", "user_id,balance,user_id"):  # the last one had been taken
        with pytest.raises(ValueError, match=r"^a\.csv: its first line names (balance|user_id) twice: "):
            list(from_csv([header, "u,5,7"], "a.csv"))


def test_an_empty_line_of_csv_is_passed_over_and_a_broken_one_is_named() -> None:
    items = list(from_csv(["user_id,balance\n", "\n", "u,1\n", 'v,"2"x\n', "w,3\n"], "a.csv"))
    assert [item.user_id for item in items if isinstance(item, Account)] == ["u", "w"]
    assert [item.location for item in items if isinstance(item, NotTaken)] == ["a.csv:4"]


def test_a_quote_that_is_not_closed_costs_its_own_line_alone() -> None:
    """It had swallowed what stands behind it, up to 128 KiB, and one line was said to be not taken."""
    lines = ["user_id,balance\n", '"bad,5\n', *(f"u{number},5\n" for number in range(20_000)), '"two\nlines",6\n']
    lines += ['"worse\n', "v,7\n", '"end,5\n']
    items = list(from_csv(lines, "a.csv"))
    users = [item.user_id for item in items if isinstance(item, Account)]
    assert users == [*(f"u{number}" for number in range(20_000)), "two\nlines", "v"]
    broken = [item for item in items if isinstance(item, NotTaken)]
    assert {(item.location, item.reason) for item in broken} == {
        ("a.csv:2", "a quote is not closed"),
        ("a.csv:20004", "a quote is not closed"),
        ("a.csv:20006", "unexpected end of data"),
    }


JSON_LINES = {
    '{"user_id": "u", "balance": "1e3"}': NotTaken("f:1", "expected balance as a decimal number of coins, got '1e3'"),
    '{"user_id": "u", "balance": 1e3}': Account("f:1", "u", 1000 * 10**9, None, ()),
    '{"user_id": "u", "balance": "5", "rates": [{"resource": "vm", "rate": "0.36", "per": "hour"}]}': Account(
        "f:1", "u", 5 * 10**9, None, (RateLine("vm", "0.360000000", "hour"),)
    ),
    '{"user_id": 17, "balance": 9223372036.854775807}': Account("f:1", "17", 2**63 - 1, None, ()),
    '{"user_id": "u", "rate": 1}': Account("f:1", "u", 0, None, (RateLine("", "1.000000000", "second"),)),
    '{"user_id": "u", "balance": 9223372036.854775808}': NotTaken(
        "f:1", "balance 9223372036.854775808 is beyond what an account can hold"
    ),
    '{"user_id": "u", "balance": NaN}': NotTaken("f:1", "not JSON: NaN is no number"),
    '{"user_id": "u", "colour": "red"}': NotTaken("f:1", "unknown keys: colour"),
    '{"user_id": "u", "balance": 5, "balance": 7}': NotTaken("f:1", "not JSON: balance stands twice"),
    '{"user_id": "u", "balance": 5, "rates": [{"rate": 1}, {"rate": 2}]}': NotTaken(
        "f:1", "one resource has two rates"
    ),
    '{"user_id": true}': NotTaken("f:1", "expected a user_id"),
    "[1]": NotTaken("f:1", "expected an object"),
    '{"user_id": "\\ud800", "balance": 1}': NotTaken("f:1", "the user_id is not UTF-8"),
}


@pytest.mark.parametrize("line", JSON_LINES)
def test_a_line_of_json_is_an_account_or_is_named(line: str) -> None:
    assert list(from_json_lines([line], "f")) == [JSON_LINES[line]]


def test_deep_json_is_one_line_not_taken() -> None:
    items = list(from_json_lines(["[" * 100_000, '{"user_id": "u", "balance": 1}'], "f"))
    assert [type(item) for item in items] == [NotTaken, Account]


def test_an_account_in_debt_is_opened_within_its_limit_and_never_cut_off() -> None:
    account = Account("f:1", "u", -7 * 10**9, 10 * 10**9, (RateLine("vm", "1", "hour"),))
    assert refusal_of(account) is None
    commands = list(commands_of(account, "old", "imported"))
    assert [method for method, _ in commands] == ["top_up", "set_credit_limit", "adjust", "set_rate"]
    assert commands[0][1][1] + commands[2][1][1] == -7 * 10**9
    assert len({params[-1]["request_id"] for _, params in commands}) == len(commands)


def test_what_would_be_cut_off_at_once_is_not_imported() -> None:
    refused = refusal_of(Account("f:1", "u", -5, 5, ()))
    assert refused is not None
    assert refused.reason == IN_DEBT
    assert is_empty(Account("f:1", "u", 0, None, ()))


def test_a_long_resource_makes_a_request_id_that_the_daemon_takes() -> None:
    lines = tuple(RateLine("x" * 100 + end, "1", "hour") for end in "ab")
    commands = list(commands_of(Account("f:1", "u", 1, None, lines), "import", "imported"))
    ids = [params[-1]["request_id"] for method, params in commands if method == "set_rate"]
    assert len(set(ids)) == 2
    assert all(len(request_id.encode()) <= 64 for request_id in ids)


@pytest.mark.parametrize(
    ("users", "text"),
    [(1, "1 user has no money, no limit and no rate"), (2, "2 users have no money, no limit and no rate")],
)
def test_users_who_have_nothing_are_counted_in_words(tmp_path: Path, users: int, text: str) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("user_id,balance\n" + "".join(f"u{number},0\n" for number in range(users)))
    result = CliRunner().invoke(root, ["import", "--dry-run", str(file)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(text)


@pytest.mark.parametrize("name", ["accounts.csv", "accounts.jsonl"])
def test_a_file_that_is_not_utf_8_is_named_and_nothing_of_it_is_imported(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"user_id,balance\n" if name.endswith("csv") else b'{"user_id": "a", "balance": "1"}\n')
    file.write_bytes(file.read_bytes() + b"caf\xe9,1\n")
    result = CliRunner().invoke(root, ["import", str(file)])
    assert result.exit_code == 1
    assert f"{file}: expected UTF-8, got a byte 0xe9; nothing was imported" in result.output


def test_what_a_bucket_gets_is_the_number_of_its_commands() -> None:
    lines = (RateLine("a", "1", "hour"), RateLine("b", "1", "hour"))
    accounts = [
        Account("f:1", "1", 5, None, ()),
        Account("f:2", "2", -5, 10, lines),
        Account("f:3", "3", 0, 10, lines[:1]),
        Account("f:4", "4", 7, None, lines),
    ]
    numbers = [len(list(commands_of(account, "l", "m"))) for account in accounts]
    assert numbers == [1, 5, 4, 3]
    assert most_of_a_bucket(accounts, 1) == sum(numbers)
    assert most_of_a_bucket(accounts[:3], 3000) == 5, "of 3000 buckets, no two of these users have the same"
