"""What finance and support ask a running daemon: who did what at which rate, also of an account that is closed."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing.client.client import Client
from tests.system.commands import CommandResult, carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


async def test_rows_name_actor_and_rates_and_a_closed_account_answers(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "anna", 10**9, {"message": "invoice 7"})
        await rpc.ask("set_rate", "anna", 3, {"resource": "vm-1", "message": "started"})
        await rpc.ask("set_rate", "anna", 0, {"resource": "vm-1"})
        await rpc.ask("close_account", "anna", {"message": "left"})
        error, _ = await rpc.call("get_account", "anna")
        assert str(error).startswith("UNKNOWN_ACCOUNT")
        rows = await rpc.ask("history", "anna")
        columns = ("operation", "resource", "line_rate_nanos_per_hour", "rate_nanos_per_hour", "message", "actor")
        assert [tuple(row[name] for name in columns) for row in rows] == [
            ("close_account", None, None, 0, "left", ""),
            ("set_rate", "vm-1", 0, 0, "", ""),
            ("set_rate", "vm-1", 3 * 3600, 3 * 3600, "started", ""),
            ("top_up", None, None, 0, "invoice 7", ""),
        ]
        statement = await rpc.ask("statement", "anna", 0, 2**63 - 1, {"by": "resource"})
        assert (statement["credits_nanos"], statement["closing_nanos"]) == (10**9, 0)
        assert [line["resource"] for line in statement["resources"]] == ["vm-1"]
        assert statement["resources"][0]["exact_accrued"] == statement["exact"]["accrued"]
        assert [row["entry_id"] for row in statement["entries"]] == [1, 2, 3, 4]
        account = await rpc.ask("balance_at", "anna", rows[1]["at_ns"])
        assert (account["state"], account["balance_nanos"]) == ("active", rows[1]["balance_after_nanos"])
        assert (await rpc.ask("balance_at", "anna", 2**63 - 1))["state"] == "closed"
        error, _ = await rpc.call("statement", "anna", 2, 1)
        assert str(error).startswith("INVALID_PARAMS: from_ns lies behind to_ns")
        error, _ = await rpc.call("history", "nobody")
        assert str(error).startswith("UNKNOWN_ACCOUNT")


async def test_every_change_has_its_message_and_what_it_set_in_its_row(data_dir: Path) -> None:
    changes: list[tuple[Any, ...]] = [
        *(("top_up", "5"), ("set_rate", "0.36"), ("change_rate", "-0.36"), ("debit", "1"), ("set_credit_limit", "2")),
        *(("hold", "1"), ("capture", "e:6", "0.5"), ("hold", "1"), ("release", "e:8"), ("adjust", -5, "a correction")),
        *(("set_thresholds", [{"amount": "3"}, {"runway_ns": 60}]), ("set_class", "default"), ("close_account",)),
    ]
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        assert {method for method, *_ in changes} == {
            row["name"] for row in await rpc.ask("methods") if row["kind"] == "command"
        }
        for method, *params in changes:
            await rpc.ask(method, "anna", *params, {"message": f"why {method}"})
        error, _ = await rpc.call("adjust", "anna", 5, "r" * 1000, {"message": "m" * 23})
        assert str(error).startswith("INVALID_PARAMS: reason and message may have 1024 bytes together")
        rows = (await rpc.ask("history", "anna"))[::-1]
        entries = await rpc.ask("entries")
        rpc.close()
    assert [(row["operation"], row["message"]) for row in rows] == [
        (method, f"a correction: why {method}" if method == "adjust" else f"why {method}") for method, *_ in changes
    ]
    assert {row["operation"]: row["value_nanos"] for row in rows if row["value_nanos"] is not None} == {
        "set_credit_limit": 2 * 10**9,
        "hold": 10**9,
        "capture": 5 * 10**8,
        "set_thresholds": 3 * 10**9,
    }
    assert [row["thresholds"] for row in rows if row["thresholds"] is not None] == [
        [{"amount_nanos": 3 * 10**9}, {"runway_ns": 60}]
    ]
    assert [{name: row[name] for name in rows[0]} for row in entries] == rows


# -- a running account, asked by people --------------------------------------------------------------------------------

HOUR_NS = 3600 * 10**9


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an account `anna`: two machines are running, 22 entries."""
    with Daemon(tmp_path_factory.mktemp("books"), shards__workers=2) as daemon:
        asyncio.run(_open_books(daemon.rpc_port))
        yield daemon


async def _open_books(port: int) -> None:
    rpc = await Rpc.connect(port)
    await rpc.ask("top_up", "anna", "12.5", {"message": "[bold]hello"})
    await rpc.ask("set_rate", "anna", "0.36", {"per": "hour", "resource": "vm-1"})
    await rpc.ask("set_rate", "anna", "0.72", {"per": "hour", "resource": "vm-2"})
    for _ in range(5):
        await rpc.ask("debit", "anna", 1_000_000_001)
    for _ in range(14):
        await rpc.ask("adjust", "anna", 3, "rounding")
    rpc.close()


def billing(daemon: Daemon, *words: str) -> CommandResult:
    return carried_out(*words, "--address", daemon.address, TZ="UTC")


def json_of(daemon: Daemon, *words: str) -> Any:
    result = billing(daemon, *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


async def test_what_ran_without_an_entry_is_in_the_statement(books: Daemon) -> None:
    rpc = await Rpc.connect(books.rpc_port)
    begin = (await rpc.ask("statement", "anna", 0, 2**63 - 1, {"limit": 0}))["to_ns"]
    end = begin
    while end < begin + 10**7:
        end = (await rpc.ask("statement", "anna", 0, 2**63 - 1, {"limit": 0}))["to_ns"]
    period = await rpc.ask("statement", "anna", begin, end, {"by": "resource"})
    rates = {"vm-1": 360_000_000, "vm-2": 720_000_000}
    assert period["entries"] == []
    assert {line["resource"]: int(line["exact_accrued"]) for line in period["resources"]} == {
        name: rate * (end - begin) for name, rate in rates.items()
    }
    assert int(period["exact"]["opening"]) - int(period["exact"]["closing"]) == sum(rates.values()) * (end - begin)


def test_the_command_prints_a_period_that_adds_up(books: Daemon) -> None:
    result = billing(books, "statement", "anna")
    assert result.returncode == 0, result.stderr
    assert "22 entries; they add up: 0 + " in result.stdout
    assert "[bold]hello" in result.stdout
    assert "The period goes up to now, " in result.stdout
    statement = json_of(books, "statement", "anna")
    assert (statement["adds_up"], [row["entry_id"] for row in statement["entries"]]) == (True, list(range(1, 23)))
    part = json_of(books, "statement", "anna", "--from", str(statement["entries"][5]["at_ns"]))
    assert part["opening_nanos"] == statement["entries"][5]["balance_before_nanos"]
    assert [row["entry_id"] for row in part["entries"]] == list(range(6, 23))


def opened_at(books: Daemon) -> datetime:
    """The instant of the account's first entry, in a zone where the day ends in hours: what is asked about "this" day
    or month then means the one in which the account was opened. Neither zone has summer time.
    """
    at_s = json_of(books, "statement", "anna")["entries"][0]["at_ns"] // 10**9
    here = [datetime.fromtimestamp(at_s, ZoneInfo(name)) for name in ("Europe/Moscow", "Pacific/Honolulu")]
    return next(at for at in here if 5 <= at.hour < 18)  # they are 13 hours apart


def test_months_days_and_zones_are_words(books: Daemon) -> None:
    day = opened_at(books)
    zone = ("--zone", str(day.tzinfo))

    def statement(*period: str) -> Any:
        return json_of(books, "statement", "anna", *period, *zone)

    month = statement("--month", f"{day:%Y-%m}")
    begin = datetime(day.year, day.month, 1, tzinfo=day.tzinfo)
    assert month["from_ns"] == int(begin.timestamp()) * 10**9
    assert (month["up_to_now"], month["entries_count"]) == (True, 22)
    assert statement("--month", f"{day:%B}")["from_ns"] == month["from_ns"]
    last_year = statement("--month", str(day.year - 1))
    assert (last_year["entries_count"], last_year["closing_nanos"], last_year["up_to_now"]) == (0, 0, False)
    output = billing(books, "statement", "anna", "--day", day.date().isoformat(), *zone).stdout
    assert f"{day:%Z}" in output.splitlines()[0]
    last_month = statement("--month", "last month")
    assert last_month["to_ns"] == month["from_ns"]
    months = statement("--from", "last month", "--to", f"{day:%B}")
    assert (months["from_ns"], months["to_ns"]) == (last_month["from_ns"], last_month["to_ns"])
    following = begin + timedelta(days=32)
    upwards = statement("--from", f"{day:%B}", "--to", f"{following:%B}")
    assert (upwards["up_to_now"], upwards["entries_count"]) == (True, 22)
    result = billing(books, "statement", "anna", "--zone", "Europe/Moskow")
    assert (result.returncode, "'Europe/Moskow'" in result.stderr) == (2, True)


def test_by_resource_is_a_table_and_csv(books: Daemon) -> None:
    output = billing(books, "statement", "anna", "--by", "resource").stdout
    assert re.search(r"^resource +accrued +rate at the end, per hour$", output, re.MULTILINE)
    rows = list(csv.DictReader(billing(books, "statement", "anna", "--by", "resource", "--csv").stdout.splitlines()))
    assert [(row["resource"], row["line_rate_coins_per_hour"]) for row in rows] == [("vm-1", "0.36"), ("vm-2", "0.72")]
    lines = list(csv.DictReader(billing(books, "statement", "anna", "--csv").stdout.splitlines()))
    assert [line["operation"] for line in (lines[0], lines[-1])] == ["opening", "closing"]
    assert lines[0]["at"] == lines[1]["at"], "from the beginning is from that of the account"
    moscow = billing(books, "statement", "anna", "--csv", "--zone", "Europe/Moscow").stdout
    assert {line["at"][-6:] for line in csv.DictReader(moscow.splitlines())} == {"+03:00"}
    assert all(line["at"].endswith("Z") for line in lines)
    sums = [sum(Decimal(line[name]) for line in lines) for name in ("amount_coins", "accrued_coins")]
    assert Decimal(lines[-1]["balance_coins"]) == sums[0] - sums[1]


@pytest.mark.parametrize(
    "words",
    [
        ("--from", "2026-03-02", "--to", "2026-03-01"),
        ("--month", "2026-13"),
        ("--month", "today"),
        ("--day", "november"),
        ("--from", "soon"),
        ("--month", "2026-01", "--from", "2026-01-01"),
    ],
)
def test_a_period_that_is_none_is_a_usage_error(books: Daemon, words: tuple[str, ...]) -> None:
    result = billing(books, "statement", "anna", *words)
    assert (result.returncode, result.stdout) == (2, "")


def test_a_statement_of_nobody_is_refused(books: Daemon) -> None:
    result = billing(books, "statement", "nobody")
    assert (result.returncode, "UNKNOWN_ACCOUNT" in result.stderr) == (1, True)


def test_the_account_as_it_was(books: Daemon) -> None:
    rows = json_of(books, "statement", "anna")["entries"]
    account = json_of(books, "account", "anna", "--at", str(rows[7]["at_ns"]))
    assert (account["entry_id"], account["balance_nanos"]) == (8, rows[7]["balance_after_nanos"])
    assert json_of(books, "account", "anna", "--at", "2001-01-01")["state"] == "unopened"
    assert json_of(books, "account", "anna", "--at", "now")["rate_nanos_per_hour"] == 1_080_000_000
    assert billing(books, "account", "anna", "--at", "later").returncode == 2
    zone = ("--zone", str(opened_at(books).tzinfo))
    for instant in ("yesterday", "monday", "january"):
        account = json_of(books, "account", "anna", "--at", instant, *zone)
        assert account == json_of(books, "balance-at", "anna", instant, *zone)


async def test_a_dry_run_says_what_would_come_and_changes_nothing(books: Daemon) -> None:
    rpc = await Rpc.connect(books.rpc_port)
    account = await rpc.ask("get_account", "anna")
    dry = await rpc.ask("dry_run", "set_rate", ["anna", 0, {"resource": "vm-1"}])
    assert (dry["rate_nanos_per_hour"], dry["entry_id"]) == (720_000_000, account["entry_id"] + 1)
    error, _ = await rpc.call("dry_run", "debit", ["anna", "500"])
    assert str(error).startswith("INSUFFICIENT_FUNDS")
    error, _ = await rpc.call("dry_run", "get_account", ["anna"])
    assert str(error).startswith("INVALID_PARAMS")
    result = await asyncio.to_thread(billing, books, "debit", "anna", "1", "--dry-run")
    assert (result.returncode, "Nothing was changed" in result.stderr) == (0, True)
    closing = await asyncio.to_thread(billing, books, "close", "anna", "--dry-run")
    assert (closing.returncode, "ACCOUNT_NOT_CLOSABLE" in closing.stderr) == (1, True)
    account_after = await rpc.ask("get_account", "anna")
    assert account_after["entry_id"] == account["entry_id"]


async def test_more_entries_than_one_answer_holds_are_all_printed(books: Daemon) -> None:
    client = Client(f"127.0.0.1:{books.rpc_port}")
    await client.connect()
    await asyncio.gather(*(client.top_up("ben", nanos=1) for _ in range(2_300)))
    client.close()
    statement = await asyncio.to_thread(json_of, books, "statement", "ben")
    assert (statement["entries_count"], statement["closing_nanos"], statement["adds_up"]) == (2_300, 2_300, True)
    assert [row["entry_id"] for row in statement["entries"]] == list(range(1, 2_301))


async def test_a_period_before_the_account_is_empty_and_one_to_come_ends_now(books: Daemon) -> None:
    rpc = await Rpc.connect(books.rpc_port)
    first_ns = (await rpc.ask("history", "anna", {"before": 2}))[0]["at_ns"]
    statement = await rpc.ask("statement", "anna", first_ns - 10**18, first_ns, {"by": "resource"})
    sums = ("opening_nanos", "credits_nanos", "debits_nanos", "accrued_nanos", "closing_nanos")
    assert [statement[name] for name in sums] == [0] * 5
    assert (statement["entries"], statement["resources"], statement["up_to_now"]) == ([], [], False)
    now_ns = (await rpc.ask("server_info"))["now_ns"]
    to_come = await rpc.ask("statement", "anna", now_ns + 10**15, now_ns + 10**18)
    assert to_come["from_ns"] == to_come["to_ns"] >= now_ns
    assert (to_come["up_to_now"], to_come["accrued_nanos"]) == (True, 0)
    assert to_come["opening_nanos"] == to_come["closing_nanos"]
    for params in (["anna", 2, 1], ["anna", -1, 5], ["anna", 0, 2**63], ["anna", 0.5, 5], ["anna", "yesterday", 5]):
        error, _ = await rpc.call("statement", *params)
        assert str(error).startswith("INVALID_PARAMS"), params
    error, _ = await rpc.call("balance_at", "anna", -1)
    assert str(error).startswith("INVALID_PARAMS")
    error, _ = await rpc.call("statement", "anna", 0, 5, {"by": "colour"})
    assert str(error).startswith("INVALID_PARAMS")


@pytest.mark.parametrize("zone", ["Europe/Moskow", "", "UTC+25", "../../etc/passwd", "Mars"])
def test_a_zone_that_there_is_not_is_a_usage_error(books: Daemon, zone: str) -> None:
    for command in ("statement", "history", "account"):
        result = billing(books, command, "anna", "--zone", zone)
        assert (result.returncode, result.stdout) == (2, ""), command
        assert "zone" in result.stderr


def test_what_is_yet_to_come_is_said_to_be(books: Daemon) -> None:
    result = billing(books, "balance-at", "anna", "2101-01-01", "--zone", "UTC")
    assert (result.returncode, result.stderr) == (
        0,
        "billing: 2101-01-01 00:00:00.000000000 UTC is yet to come: this is how anna stands now\n",
    )
    assert "up to now" in result.stdout
    past_result = billing(books, "account", "anna", "--at", "2001-01-01", "--zone", "UTC")
    assert (past_result.stderr, "up to now" in past_result.stdout) == ("", False)
    for words in (("--from", "2101-01-01"), ("--month", "2101-01"), ("--day", "2101-01-01")):
        empty = billing(books, "statement", "anna", *words, "--zone", "UTC", "--json")
        assert (empty.returncode, empty.stderr) == (
            0,
            "billing: 2101-01-01 00:00:00 UTC, where the period begins, is yet to come: this is how anna stands now\n",
        )
        statement = json.loads(empty.stdout)
        assert (statement["up_to_now"], statement["adds_up"], statement["entries"]) == (True, True, [])
        assert statement["opening_nanos"] == statement["closing_nanos"]
    for options, remark in ((["--to", "2101"], "goes up to now"), (["--to", "2001"], ""), ([], "")):
        rows = billing(books, "statement", "anna", *options, "--csv")
        assert (rows.returncode, remark in rows.stderr, bool(rows.stderr)) == (0, True, bool(remark)), options
