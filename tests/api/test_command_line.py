"""The command line on top of the client: what it sends, how it shows the reply, and how a refusal ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
import pytest
from click.testing import CliRunner, Result

from billing.api.auth import Guard
from billing.api.methods import METHODS
from billing.cli.account_commands import COMMANDS as ACCOUNT_COMMANDS
from billing.cli.finding import config_file, listening
from billing.cli.main import root
from billing.cli.operator_commands import COMMANDS as OPERATOR_COMMANDS
from billing.cli.options import DURATION, Duration
from billing.cli.values import Look, coins, instant, moment, span, value_of
from billing.cli.vocabulary import procedure_of, words_of
from billing.config.load import ConfigError
from billing.ledger import commands
from billing.ledger.errors import Refused
from shards.replies import Unavailable
from tests.api.outside import DoorHarness, open_harness
from tests.api.test_auth import TOKENS
from tests.system.ports import free_port

ALL = {**ACCOUNT_COMMANDS, **OPERATOR_COMMANDS}
HOUR_NS = 3_600 * 10**9

ACCOUNT: dict[str, Any] = {
    "user_id": "u",
    "bucket_id": 477,
    "state": "exhausted",
    "balance_nanos": -12_345_500_000_000,
    "rate_nanos_per_hour": 3_600_000_000_000,
    "rate_nanos_per_second": 1_000_000_000,
    "exhausts_at_ns": None,
    "runway_ns": None,
    "at_ns": 1_767_225_600_000_000_007,
    "replayed": False,
    "cutoff": {
        "event_id": "u:1:7",
        "status": "pending",
        "attempts": 2,
        "last_error": "500",
        "exhausted_at_ns": 1_767_225_599_500_000_000,
    },
}


CHANGES: list[tuple[str, commands.Command]] = [
    ("top-up u 12.5", (commands.TOP_UP, b"u", 12_500_000_000, 0, 0, b"", b"", b"", b"", b"")),
    ("top-up 42 3 --request-id r --message hi", (commands.TOP_UP, b"42", 3 * 10**9, 0, 0, b"", b"r", b"hi", b"", b"")),
    ("set-rate u 0.000000001", (commands.SET_RATE, b"u", 3600, -1, -1, b"", b"", b"", b"", b"")),
    (
        "set-rate u 1 --per hour --resource vm --rate-seq 7 --min-runway 2h",
        (commands.SET_RATE, b"u", 10**9, 7, 2 * HOUR_NS, b"vm", b"", b"", b"", b""),
    ),
    ("change-rate u -0.5 --per hour", (commands.CHANGE_RATE, b"u", -5 * 10**8, 0, 0, b"", b"", b"", b"", b"")),
    ("debit u 1 --mode force", (commands.DEBIT, b"u", 10**9, commands.FORCE, 0, b"", b"", b"", b"", b"")),
    ("credit-limit u 0", (commands.SET_CREDIT_LIMIT, b"u", 0, 0, 0, b"", b"", b"", b"", b"")),
    (
        "hold u 1 --message deposit --request-id r",
        (commands.HOLD, b"u", 10**9, 0, 0, b"", b"r", b"deposit", b"", b""),
    ),
    ("hold u 1 --ttl 90s", (commands.HOLD, b"u", 10**9, 90 * 10**9, 0, b"", b"", b"", b"", b"")),
    ("capture u e:1 1", (commands.CAPTURE, b"u", 10**9, 0, 0, b"e:1", b"", b"", b"", b"")),
    ("release u e:1 --message done", (commands.RELEASE, b"u", 0, 0, 0, b"e:1", b"", b"done", b"", b"")),
    ("release u e:1", (commands.RELEASE, b"u", 0, 0, 0, b"e:1", b"", b"", b"", b"")),
    ("adjust u -1 mistake --request-id r", (commands.ADJUST, b"u", -(10**9), 0, 0, b"", b"r", b"mistake", b"", b"")),
    (
        "thresholds u --amount 5 --runway 1h --runway 1d",
        (
            *(commands.SET_THRESHOLDS, b"u", 3, 0, 0),
            commands.pack_thresholds([(0, 5 * 10**9), (1, HOUR_NS), (1, 24 * HOUR_NS)]),
            *(b"", b"", b"", b""),
        ),
    ),
    ("class u gold --message plan", (commands.SET_CLASS, b"u", 0, 0, 0, b"gold", b"", b"plan", b"", b"")),
    ("close u --yes --request-id r", (commands.CLOSE, b"u", 0, 0, 0, b"", b"r", b"", b"", b"")),
]

QUESTIONS: list[tuple[str, tuple[Any, ...]]] = [
    ("account u", ("get_account", b"u")),
    ("history u --limit 5 --before 9", ("history", b"u", 5, 9)),
    ("accounts --after u --limit 5", ("accounts", b"u", 5, "", -1, (), b"", 0)),
    ("accounts --overrunning", ("accounts", b"", 1000, "", -1, (), b"", 1)),
    ("accounts --class gold", ("accounts", b"", 1000, "", -1, (), b"gold", 0)),
    ("account u --at 2026-03-01T00:00Z", ("balance_at", b"u", 1_772_323_200 * 10**9)),
    ("balance-at u 1772323200000000000", ("balance_at", b"u", 1_772_323_200 * 10**9)),
    ("shards", ("shards_info",)),
    ("buckets", ("buckets_info",)),
    ("buckets route", ("route", 0)),
    ("buckets move 477 1", ("move_bucket", 477, 1)),
    ("buckets pin 477", ("pin_bucket", 477)),
    ("buckets unpin 477", ("unpin_bucket", 477)),
    ("buckets rebalance", ("rebalance", 0)),
    ("rebalance", ("rebalance", 0)),
    ("explain u", ("explain", b"u")),
    ("explain-move 477", ("explain_move", 477, 0)),
    ("explain-move 477 2", ("explain_move", 477, 2)),
    ("cutoffs --limit 5", ("pending_cutoffs", b"", 5)),
    ("cutoffs release --yes", ("release_cutoffs",)),
    ("forecast --next 1h", ("forecast", HOUR_NS, 60 * 10**9)),
    ("expirationd stats", ("expirationd_stats",)),
]
FORECAST = {"steps": [{"at_ns": 5, "cutoffs": 3}], "peak_per_second": 3, "endpoint_takes_per_second": None}

ANSWERED_BY_THE_DOOR = {"ping": "ping", "info": "server_info", "methods": "methods", "buckets of": "bucket_id"}


async def run(harness: DoorHarness, line: str, **environ: str) -> Result:
    """A command line, as from another process: the loop goes on meanwhile."""
    name, *arguments = line.split()
    address = harness.address if isinstance(harness.address, str) else f"{harness.address[0]}:{harness.address[1]}"
    variables = {"BILLING_ADDRESS": address, **environ}
    return await asyncio.to_thread(CliRunner().invoke, ALL[name], arguments, env=variables)


@pytest.mark.parametrize(("line", "command"), CHANGES)
async def test_what_a_command_sends(harness: DoorHarness, line: str, command: tuple[Any, ...]) -> None:
    result = await run(harness, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert harness.gate.commands == [command]


@pytest.mark.parametrize(("line", "question"), QUESTIONS)
async def test_what_a_question_sends(harness: DoorHarness, line: str, question: tuple[Any, ...]) -> None:
    harness.gate.replies["forecast"] = dict(FORECAST)
    result = await run(harness, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [what for _, what in harness.gate.asked] == [question]


@pytest.mark.parametrize(
    ("command_line", "nanos_per_hour", "shown"),
    [
        ("set-rate u 0.5", 1_800 * 10**9, "0.5 per second (1,800 per hour)"),
        ("set-rate u 0.5 --per second", 1_800 * 10**9, "0.5 per second (1,800 per hour)"),
        ("set-rate u 0.000000001 --per minute", 60, "0.000000001 per minute (0.00000006 per hour)"),
        ("set-rate u 1 --per hour", 10**9, "1 per hour"),
        ("set-rate u 1 --dry-run", 3_600 * 10**9, "1 per second (3,600 per hour)"),
        ("change-rate u -1", 10**9, "1 per hour"),  # with another line's rate it is no whole number of nanos a second
    ],
)
async def test_a_rate_is_shown_in_the_unit_in_which_it_was_given(
    harness: DoorHarness, command_line: str, nanos_per_hour: int, shown: str
) -> None:
    reply = {"user_id": "u", "rate_nanos_per_hour": nanos_per_hour}
    for name in (commands.SET_RATE, commands.CHANGE_RATE):
        harness.gate.replies[str(name)] = reply
    harness.gate.replies["dry_run"] = reply
    output = (await run(harness, command_line)).stdout
    assert [line.split("  ", 1)[1].strip() for line in output.splitlines() if line.startswith("rate")] == [shown]


AGAIN = {"user_id": "u", "state": "exhausted", "cutoff": {"attempts": 3}, "owes": {"call": "cutoff"}, "outbox": None}
FAILED = AGAIN | {"outbox": {"state": "waits", "failures": 1}, "why": "The last attempt failed for this user (500)."}
DELIVERED = AGAIN | {"owes": None, "cutoff": {"attempts": 3, "delivered_at_ns": 1_767_225_600_000_000_007}}


@pytest.mark.parametrize(
    ("explained", "code", "text"),
    [
        (
            [AGAIN, FAILED | {"outbox": {"state": "in flight", "failures": 1}}, DELIVERED],
            *(0, "The cutoff of u had its 2xx at 2026-01-01 00:00:00.000000007 UTC.\n"),
        ),
        ([AGAIN, FAILED], 1, "The cutoff of u failed again. The last attempt failed for this user (500).\n"),
        ([AGAIN | {"owes": None, "state": "active", "cutoff": None}], 0, "No call is owed for u any more.\n"),
    ],
)
async def test_an_operator_who_tries_a_cutoff_again_is_told_what_came_of_it(
    harness: DoorHarness, explained: list[dict[str, Any]], code: int, text: str
) -> None:
    states = iter(explained)
    harness.gate.replies["explain"] = lambda _: next(states)
    result = await run(harness, "cutoffs retry u --zone UTC")
    assert (result.exit_code, result.stdout, result.stderr) == (code, text, "")
    methods = [what[0] for _, what in harness.gate.asked]
    assert methods == ["retry_cutoff", *["explain"] * len(explained)]


async def test_a_call_without_an_answer_is_not_waited_for_longer_than_timeout(harness: DoorHarness) -> None:
    harness.gate.replies["explain"] = AGAIN | {"why": "A call is under way, for 3.0 s so far."}
    result = await run(harness, "cutoffs retry u --timeout 1s")
    assert (result.exit_code, result.stdout) == (
        1, "It was tried, and has no answer after 1 s. A call is under way, for 3.0 s so far.\n"
    )  # fmt: skip
    assert json.loads((await run(harness, "cutoffs retry u --timeout 1s --json")).stdout)["owes"] == {"call": "cutoff"}


async def test_what_the_door_answers_itself(harness: DoorHarness) -> None:
    assert (await run(harness, "ping")).stdout == "pong\n"
    assert (await run(harness, "buckets of 1")).stdout == "477\n"
    assert re.search(r"^limits +in flight per connection max 4,096$", (await run(harness, "info")).stdout, re.M)
    output = (await run(harness, "methods")).stdout
    assert all(name in output for name in METHODS)
    for words, name in (("account", "get_account"), ("buckets move", "move_bucket"), ("top-up", "top_up")):
        assert (await run(harness, f"methods {words}")).stdout.startswith(f"{name} "), words
    result = await run(harness, "methods account more")
    assert (result.exit_code, "there is no procedure account more" in result.stderr) == (1, True)


async def test_an_account_is_shown_for_people(harness: DoorHarness) -> None:
    harness.gate.replies["get_account"] = ACCOUNT
    output = (await run(harness, "account u --tz Europe/Moscow")).stdout
    fields = dict(re.split(" {2,}", line, maxsplit=1) for line in output.splitlines() if line[0] != " ")
    assert fields["balance"] == "-12,345.5"
    assert fields["rate"] == "3,600 per hour"
    assert fields["ran out at"] == (
        "2026-01-01 02:59:59.500000000 MSK, not cut off yet: 2 attempts, none with a 2xx so far; the last error: 500"
    )
    assert fields["at"] == "2026-01-01 03:00:00.000000007 MSK"
    assert "lasts for" not in fields
    assert "answered before" not in fields


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rate_nanos_per_hour": 1}, "runs out at  does not run out before the year 2262"),
        ({"rate_nanos_per_hour": 0}, "runs out at  does not run out: nothing is being spent"),
        ({"exhausts_at_ns": 1_767_225_600_000_000_001}, "runs out at  2026-01-01 00:00:00.000000001 UTC"),
        ({"state": "exhausted"}, "runs out at  it has no money left"),
    ],
)
async def test_it_is_said_when_the_money_runs_out(harness: DoorHarness, changes: dict[str, Any], text: str) -> None:
    harness.gate.replies["get_account"] = {"state": "active", "exhausts_at_ns": None, "runway_ns": None, **changes}
    output = (await run(harness, "account u --tz UTC")).stdout
    assert text in [re.sub(" {2,}", "  ", line) for line in output.splitlines()]


async def test_an_account_that_was_closed_is_not_called_exhausted(harness: DoorHarness) -> None:
    harness.gate.replies[str(commands.CLOSE)] = {
        "user_id": "u", "state": "exhausted", "exhausts_at_ns": None, "runway_ns": None, "paid_out_nanos": 8 * 10**9
    }  # fmt: skip
    output = (await run(harness, "close u --yes")).stdout
    assert [re.sub(" {2,}", "  ", line) for line in output.splitlines()] == ["user  u", "state  closed", "paid out  8"]


@pytest.mark.parametrize(
    ("moves", "output"),
    [(0, "nothing moves: the load is even\n"), (1, "1 bucket will move\n"), (2, "2 buckets will move\n")],
)
async def test_a_rebalance_says_how_much_moves(harness: DoorHarness, moves: int, output: str) -> None:
    harness.gate.replies["rebalance"] = {"moves": moves}
    assert (await run(harness, "rebalance")).stdout == output
    assert json.loads((await run(harness, "rebalance --json")).stdout) == {"moves": moves}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--amount 2 --runway 1h", "2 coins or less are available, and when the money lasts for 01:00:00 or less."),
        ("--never", "No notice of a low balance is sent."),
    ],
)
async def test_thresholds_are_said_again(harness: DoorHarness, line: str, text: str) -> None:
    assert (await run(harness, f"thresholds u {line}")).stdout.rstrip().endswith(text)
    assert text not in (await run(harness, f"thresholds u {line} --json")).stdout


async def test_json_is_the_reply_as_it_came(harness: DoorHarness) -> None:
    harness.gate.replies["get_account"] = ACCOUNT
    assert json.loads((await run(harness, "account u --json")).stdout) == ACCOUNT
    harness.gate.replies["history"] = [{"request_id": b"\xff"}]
    assert json.loads((await run(harness, "history u --json")).stdout) == [{"request_id": "base64:/w=="}]


async def test_rows_are_a_table(harness: DoorHarness) -> None:
    harness.gate.replies["history"] = [
        {"entry_id": 2, "at_ns": 10**9 + 5, "amount_nanos": -1, "message": "two\x1b[31m"},
        {"entry_id": 1, "at_ns": 4, "amount_nanos": 1234 * 10**9, "message": "one"},
    ]
    assert (await run(harness, "history u --tz UTC")).stdout.splitlines() == [
        "entry  at, UTC                       amount  message",
        "    2  1970-01-01 00:00:01     -0.000000001  two\N{REPLACEMENT CHARACTER}[31m",
        "    1  1970-01-01 00:00:00  1,234            one",
    ]
    wide = (await run(harness, "history u --tz UTC --wide")).stdout
    assert "1970-01-01 00:00:01.000000005" in wide
    assert (await run(harness, "history u --csv")).stdout.splitlines() == [
        "entry_id,at,amount_coins,message",
        "2,1970-01-01T00:00:01.000000005Z,-0.000000001,two\x1b[31m",
        "1,1970-01-01T00:00:00.000000004Z,1234,one",
    ]
    harness.gate.replies["history"] = []
    assert (await run(harness, "history u")).stdout == "nothing\n"


async def test_a_refusal_ends_with_1_and_stands_on_standard_error(harness: DoorHarness) -> None:
    harness.gate.replies[str(commands.DEBIT)] = Refused(
        "INSUFFICIENT_FUNDS", "too little", {"shortfall_nanos": 7, "available_nanos": 1234 * 10**9}
    )
    result = await run(harness, "debit u 2000")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "billing: INSUFFICIENT_FUNDS: 0.000000007 coins are missing; 1,234 are available\n"
    harness.gate.replies["explain"] = Refused("UNKNOWN_ACCOUNT", "none", {})
    result = await run(harness, "explain shut")
    message = "billing: UNKNOWN_ACCOUNT: there is no account shut; one that was closed has a `billing history`\n"
    assert (result.exit_code, result.stderr) == (1, message)
    result = await run(harness, "debit u 2000 --json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr)["shortfall_nanos"] == 7
    result = await run(harness, "top-up u 0")
    assert (result.exit_code, result.stderr) == (1, "billing: INVALID_AMOUNT: amount must be above zero\n")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "Connection refused"),
        ("unix:/nonexistent/socket", "No such file or directory"),
        ("no-such-host.invalid:3311", ""),
    ],
)
async def test_a_daemon_that_is_not_there_ends_with_3_without_waiting_for_one(
    harness: DoorHarness, address: str, reason: str
) -> None:
    # the wait would outlast the test's own
    address = address.format(port=free_port())
    async with asyncio.timeout(60):
        result = await run(harness, "top-up u 1 --timeout 1d", BILLING_ADDRESS=address)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"billing: UNAVAILABLE: no daemon answers at {address} (BILLING_ADDRESS): {reason}")
    assert "`billing serve` starts one" in result.stderr
    assert "may have been" not in result.stderr


async def test_an_import_that_is_refused_for_the_moment_or_not_answered_says_that_it_may_be_run_again(
    harness: DoorHarness, tmp_path: Path
) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("user_id,balance\na,1\nb,2\n")
    harness.info |= {"bucket_count": 3000, "request_ids_per_bucket": 100}
    refusal = Unavailable(1, "the log is full", "no")
    harness.gate.replies["route"] = {}
    harness.gate.replies[str(commands.TOP_UP)] = lambda command: refusal if command[1] == b"b" else {"user_id": "a"}
    address = "{}:{}".format(*harness.address)
    words = ["import", str(file), "--timeout", "1s", "--address", address]
    result = await asyncio.to_thread(CliRunner().invoke, root, words)
    assert result.exit_code == 1
    assert "imported 1 account with 1 command, 0 of them done before" in result.stdout
    assert "top_up of b was refused: UNAVAILABLE: shard 1: the log is full" in result.stderr
    assert "1 command may be taken later. Run the same import again, with the same --label" in result.stderr
    harness.gate.holds_back = True
    result = await asyncio.to_thread(CliRunner().invoke, root, words)
    assert result.exit_code == 3
    assert "(it may have been carried out)\nRun the same import again, with the same --label" in result.stderr


async def test_a_backup_that_is_not_answered_is_cancelled(harness: DoorHarness, tmp_path: Path) -> None:
    harness.gate.holds_back = True
    address = "{}:{}".format(*harness.address)
    words = ["backup", f"{tmp_path}/copy", "--timeout", "1s", "--address", address]
    result = await asyncio.to_thread(CliRunner().invoke, root, words)
    assert (result.exit_code, list(tmp_path.iterdir())) == (3, [])
    assert [operation for operation in harness.gate.operations if operation[0] == "backup"] == [
        ("backup", "begin"),
        ("backup", "cancel"),
    ]


def test_where_several_hosts_share_the_log_it_is_said_that_one_which_does_not_serve_lets_nobody_in(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.toml"
    for kind, advice in (("jetstream", "it stands by or is drained: `billing cluster status` names"), ("file", "")):
        file.write_text(f'[rpc]\nlisten = "{nowhere()}"\n[journal]\nkind = "{kind}"\n')
        for words, is_this_hosts in ((["--config", str(file)], True), (["--address", nowhere()], False)):
            result = CliRunner().invoke(root, ["ping", *words])
            assert result.exit_code == 3
            assert (advice in result.stderr) is (is_this_hosts or not advice), result.stderr
            assert "`billing serve` starts one" in result.stderr


async def test_no_answer_ends_with_3_and_says_what_is_not_known(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    result = await run(harness, "top-up u 1 --timeout 1s")
    assert result.exit_code == 3
    assert result.stderr == "billing: UNAVAILABLE: no answer within 1 s (it may have been carried out)\n"
    result = await run(harness, "account u --timeout 1s")  # which changes nothing
    assert (result.exit_code, result.stderr) == (3, "billing: UNAVAILABLE: no answer within 1 s\n")


@pytest.mark.parametrize(
    ("greeting", "text"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP"), (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS")],
)
async def test_what_is_no_daemon_is_called_what_it_is(harness: DoorHarness, greeting: bytes, text: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(greeting)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(60):
            result = await run(harness, "ping --timeout 1d", BILLING_ADDRESS=f"127.0.0.1:{port}")
    assert result.exit_code == 3
    assert text in result.stderr
    assert "Traceback" not in result.stderr


async def closing(greeting: bytes) -> asyncio.Server:
    """Takes what comes first, says that, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(greeting)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("greeting", "option", "text"),
    [
        (b"", "", "but closes the connection without an answer; where it speaks TLS, --tls or --tls-ca FILE says so\n"),
        (b"\x94\x01\xc0\xa7BUSY: x\xc0", "", "but lets nobody in (the connection was lost: BUSY: x)\n"),
        (b"\x94\x01\xc0\xa1x\xc0", "--tls", "; where it speaks none, leave out --tls, --tls-ca, "),
    ],
)
async def test_who_listens_and_lets_nobody_in_is_no_daemon_that_is_not_there(
    harness: DoorHarness, greeting: bytes, option: str, text: str
) -> None:
    async with await closing(greeting) as server:
        port = server.sockets[0].getsockname()[1]
        result = await run(harness, f"ping {option} --address 127.0.0.1:{port}")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"billing: UNAVAILABLE: something listens at 127.0.0.1:{port}, but ")
    assert text in result.stderr
    assert "billing serve" not in result.stderr


async def test_whoever_listens_and_answers_nothing_may_be_a_daemon_that_starts(harness: DoorHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        result = await run(harness, f"ping --timeout 1 --address {address}")
    assert result.exit_code == 3
    assert result.stderr == (
        f"billing: UNAVAILABLE: something listens at {address}, but has answered nothing for 1 s: so does a daemon "
        "that is starting, and one that hangs; /readyz at its admin.listen tells which\n"
    )


async def test_a_call_that_makes_no_sense_ends_with_2(harness: DoorHarness) -> None:
    for line in (
        "ping --address nowhere",
        "top-up u",
        "debit u 1 --mode gently",
        "hold u 1 --ttl soon",
        "top-up u a-lot",
        "top-up u 1 --tz Nowhere/Land",
        "account u --json --csv",
        "ping --timeout -1",
    ):
        result = await run(harness, line)
        assert (result.exit_code, result.stdout) == (2, ""), line
    assert harness.gate.asked == []


async def test_a_token_comes_from_a_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("shop\n")
    async with open_harness(guard=Guard(TOKENS)) as harness:
        nobody = await run(harness, "top-up u 1")
        assert nobody.exit_code == 4
        assert "this daemon asks for a token; --token-file FILE or BILLING_TOKEN_FILE names one" in nobody.stderr
        assert (await run(harness, f"top-up u 1 --token-file {token}")).exit_code == 0
        assert (await run(harness, "top-up u 1", BILLING_TOKEN_FILE=str(token))).exit_code == 0
        denied = await run(harness, f"adjust u 1 why --token-file {token}")
        assert (denied.exit_code, denied.stderr.startswith("billing: FORBIDDEN: ")) == (4, True)


async def test_a_token_that_is_not_known_is_said_to_be_so_and_where_it_came_from(tmp_path: Path) -> None:
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    wrong.write_text("no such token\n")
    right.write_text("shop\n")
    async with open_harness(guard=Guard(TOKENS)) as harness:
        for line, environ, where in (
            (f"top-up u 1 --token-file {wrong}", {}, str(wrong)),
            ("top-up u 1", {"BILLING_TOKEN_FILE": str(wrong)}, f"{wrong} (BILLING_TOKEN_FILE)"),
            ("top-up u 1", {"BILLING_TOKEN": "no such"}, "BILLING_TOKEN"),
            ("top-up u 1", {"BILLING_TOKEN": "no such", "BILLING_TOKEN_FILE": str(right)}, "BILLING_TOKEN"),
        ):
            result = await run(harness, line, **environ)
            assert result.exit_code == 4
            assert f"UNAUTHENTICATED: the token in {where} is not known to this daemon" in result.stderr
            assert "no such" not in result.stderr.replace(str(wrong), "")
        assert harness.gate.asked == []
        answered = await run(harness, f"top-up u 1 --token-file {right}", BILLING_TOKEN="no such")
        assert answered.exit_code == 0, "what is given on the line goes before the environment"


def in_terminal(columns: int, *arguments: str) -> list[str]:
    """What a command shows on a terminal so wide, standard error included, without its colours."""
    terminal, its = os.openpty()
    termios.tcsetwinsize(its, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "billing", *arguments], stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    output = b""
    with contextlib.suppress(OSError):  # which is how a terminal says that nobody writes to it any more
        while data := os.read(terminal, 65_536):
            output += data
    os.close(terminal)
    assert process.wait(60) == 0, output
    return re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines()


@pytest.mark.parametrize("columns", [80, 60])
async def test_nothing_of_a_history_or_an_explanation_is_wider_than_the_terminal(
    harness: DoorHarness, columns: Any
) -> None:
    names = ("amount_nanos", "accrued_nanos", "balance_before_nanos", "balance_after_nanos")
    row = {
        "entry_id": 7,
        "at_ns": ACCOUNT["at_ns"],
        "operation": "set_rate",
        **dict.fromkeys(names, 123_456_789_123_456_789),
        "message": "a price list of many words " * 5,
        "request_id": "r" * 60,
        "resource": "machine-" * 12,
        "line_rate_nanos_per_hour": 10**18,
        "rate_nanos_per_hour": 10**18,
        "value_nanos": None,
        "actor": "metering",
    }
    harness.gate.replies["history"] = [row, {**row, "entry_id": 6}]
    outbox = {"state": "waits", "next_attempt_in_ns": 10**10}
    owes = {"call": "cutoff", "seq": 1, "attempts": 2, "last_error": "500 " + "x" * 200}
    account = {**ACCOUNT, "available_nanos": 0, "overrun_nanos": 10**18, "rates": {"vm-" * 30: 10**15}}
    harness.gate.replies["explain"] = {**account, "owes": owes, "outbox": outbox, "why": "Its call waits. " * 9}
    address = f"{harness.address[0]}:{harness.address[1]}"
    for command, shown in (("history", "123,456,789.123456789"), ("explain", "Its rate of 3,600 per hour is")):
        lines = await asyncio.to_thread(in_terminal, columns, command, "u", "--address", address)
        assert [line for line in lines if len(line) > columns] == []
        assert any(shown in line for line in lines)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("90", 90 * 10**9), ("1.5s", 15 * 10**8), ("250ms", 25 * 10**7), ("3us", 3000), ("1ns", 1), ("2d", 48 * HOUR_NS)],
)
def test_spans_of_time(text: str, nanoseconds: int) -> None:
    assert DURATION.convert(text, None, None) == nanoseconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5ns", "1y", "1h30m", ".5s", "²s"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected"):
        DURATION.convert(text, None, None)


def test_values_for_people() -> None:
    assert instant(1_767_225_600_000_000_007) == "2026-01-01T00:00:00.000000007Z"
    assert instant(2**63 - 1) == "2262-04-11T23:47:16.854775807Z"
    assert [span(0), span(-1), span(93_784_500_000_000)] == ["00:00:00", "-00:00:00.000000001", "1d 02:03:04.5"]
    assert (
        value_of("rates", {"": 5, "v\x1bm": 10**9}) == "0.000000005 per hour; 1 per hour on v\N{REPLACEMENT CHARACTER}m"
    )
    assert coins(-1_234_567_000_000_001) == "-1,234,567.000000001"
    assert moment(5, Look(ZoneInfo("Asia/Tokyo"), exact=False)) == "1970-01-01 09:00:00 JST"
    assert value_of("owners", list(range(3000))) == "3,000 values"
    assert value_of("replayed", True) == "yes"
    assert value_of("message", None) == "-"


@pytest.mark.parametrize(("name", "method"), [("set-rate", "set_rate"), ("hold", "hold"), ("top-up", "top_up")])
def test_a_command_made_of_a_row_takes_what_the_row_says(name: str, method: str) -> None:
    row = METHODS[method]
    params = {param.name: param for param in ACCOUNT_COMMANDS[name].params}
    assert [param.name for param in params.values() if isinstance(param, click.Argument)] == [
        field.name for field in row.required
    ]
    assert {field.name for field in row.options} <= {*params}
    spans = [field.name for field in row.options if field.type.kind == "span"]
    assert all(isinstance(params[span].type, Duration) for span in spans)


def test_each_procedure_has_its_command() -> None:
    called = {commands.NAMES[command[0]] for _, command in CHANGES} | {question[0] for _, question in QUESTIONS}
    elsewhere = {"hello", "backup", "check_owners"}  # each call's; of `billing backup`; of `billing doctor --online`
    elsewhere |= {"dry_run", "statement", "entries"}  # each change's `--dry-run`; of `billing statement` and `export`
    elsewhere |= {"audit", "retry_cutoff"}  # of `billing audit --address`; of `billing cutoffs retry`, which waits
    assert called | {*ANSWERED_BY_THE_DOOR.values()} | elsewhere == set(METHODS)
    commands_tried = {line.split()[0] for line, _ in [*CHANGES, *QUESTIONS]} | {
        name.split()[0] for name in ANSWERED_BY_THE_DOOR
    }
    assert commands_tried == set(ALL)


# -- options anywhere, and none dropped ------------------------------------------------------------------------------


def nowhere() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize(("line", "question"), QUESTIONS)
async def test_a_connection_may_stand_before_the_command_it_is_for(
    harness: DoorHarness, line: str, question: tuple[Any, ...]
) -> None:
    """The daemon that the line names is asked, and not the one of the environment, which is not there."""
    harness.gate.replies["forecast"] = dict(FORECAST)
    host, port = harness.address
    name, *arguments = line.split()
    for words_of_line in (
        ["--address", f"{host}:{port}", name, *arguments],
        [name, f"--address={host}:{port}", *arguments],
        [name, *arguments, "--address", f"{host}:{port}"],
        ["--address", nowhere(), name, *arguments, "--address", f"{host}:{port}"],
    ):
        result = await asyncio.to_thread(
            CliRunner().invoke, root, words_of_line, env={"BILLING_ADDRESS": nowhere()}, catch_exceptions=False
        )
        assert (result.exit_code, result.stderr) == (0, ""), words_of_line
    assert [what for _, what in harness.gate.asked] == [question] * 4


@pytest.mark.parametrize(
    "line",
    [
        "cutoffs --limit 3 retry u",
        "cutoffs --after u release --yes",
        "--address 127.0.0.1:1 serve",
        "--json config check",
        "buckets --no-such-option of u",
        "loadtest --no-such-option",
    ],
)
def test_an_option_that_a_command_does_not_take_is_refused_wherever_it_stands(line: str) -> None:
    result = CliRunner().invoke(root, line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such option" in result.stderr


def test_what_a_load_test_would_take_is_refused_by_what_looks_at_its_results(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("{}")
    line = ["loadtest", "--seed", "3", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    result = CliRunner().invoke(root, line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "compare takes no --seed" in result.stderr


async def test_a_group_hands_its_options_to_what_it_does_by_itself(harness: DoorHarness) -> None:
    result = await run(harness, "cutoffs --limit 3 --after u --json")
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    assert harness.gate.asked[-1][1] == ("pending_cutoffs", b"u", 3)


@pytest.mark.parametrize("name", sorted({*METHODS} - {"hello", "backup", "check_owners", "dry_run"}))
async def test_each_procedure_is_a_command_by_its_own_name_too(harness: DoorHarness, name: str) -> None:
    for spelled in {name, name.replace("_", "-")}:
        result = CliRunner().invoke(root, [spelled, "--help"])
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"Usage: root {' '.join(words_of(name))} [OPTIONS]")


@pytest.mark.parametrize(
    ("words_typed", "name", "words_taken"),
    [
        (["account", "u"], "get_account", 1),
        (["buckets", "move", "5", "2"], "move_bucket", 2),
        (["buckets"], "buckets_info", 1),
        (["cutoffs", "u"], "pending_cutoffs", 1),
        (["credit-limit", "u"], "set_credit_limit", 1),
        (["release", "u", "h"], "release", 1),
        (["cutoffs", "release"], "release_cutoffs", 2),
        (["timers"], "expirationd_stats", 1),
        (["top-up"], "top_up", 1),
        (["nothing"], "nothing", 1),
    ],
)
def test_words_stand_for_procedures(words_typed: list[str], name: str, words_taken: int) -> None:
    assert procedure_of(words_typed, METHODS) == (name, words_taken)


# -- where the daemon is ---------------------------------------------------------------------------------------------


def test_one_rule_finds_the_configuration_and_by_it_the_daemon(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[rpc]\nlisten = "0.0.0.0:4000"\n')
    assert config_file(file, {"BILLING_CONFIG": "other.toml"}) == file
    assert config_file(None, {"BILLING_CONFIG": "other.toml"}) == Path("other.toml")
    assert listening(file, {}).address == "127.0.0.1:4000"
    assert listening(file, {"BILLING_RPC__LISTEN": "[::]:4001"}).address == "[::1]:4001"
    assert listening(None, {}).address == "127.0.0.1:3311"
    file.write_text('[rpc]\nlisten = ""\nunix_socket = "here.sock"\n')
    assert listening(file, {}).address == f"unix:{tmp_path / 'here.sock'}"
    file.write_text('[rpc]\nlisten = "127.0.0.1:0"\n')
    with pytest.raises(ValueError, match="takes a free port"):
        listening(file, {})
    file.write_text("[rpc]\nlisten = 7\n")
    with pytest.raises(ConfigError, match=r"rpc\.listen"):
        listening(file, {})


async def test_a_configuration_says_where_to_call(harness: DoorHarness, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[rpc]\nlisten = "{}:{}"\n'.format(*harness.address))
    for environ in ({}, {"BILLING_ADDRESS": nowhere()}):
        result = await asyncio.to_thread(CliRunner().invoke, root, ["ping", "--config", str(file)], env=environ)
        assert (result.exit_code, result.stdout) == (0, "pong\n")
    result = await asyncio.to_thread(CliRunner().invoke, root, ["ping"], env={"BILLING_CONFIG": str(file)})
    assert result.stdout == "pong\n"
    both = CliRunner().invoke(root, ["ping", "--config", str(file), "--address", nowhere()])
    assert both.exit_code == 2


# -- pages -----------------------------------------------------------------------------------------------------------


async def test_a_page_says_that_there_are_more_and_how_to_get_them(harness: DoorHarness) -> None:
    harness.gate.replies["accounts"] = [{"user_id": "a b"}, {"user_id": "c"}]
    result = await run(harness, "accounts --limit 2 --ids")
    assert result.stdout.split() == ["user", "a", "b", "c"]
    assert result.stderr == "More follow: accounts --ids --after c, or --all.\n"
    assert (
        "accounts --state active --within 3600000000000ns --after c"
        in (await run(harness, "accounts --limit 2 --state active --within 1h")).stderr
    )
    harness.gate.replies["accounts"] = []
    assert (await run(harness, "accounts --limit 2")).stderr == ""


async def test_accounts_are_listed_with_how_it_stands_with_them(harness: DoorHarness) -> None:
    names = ("state", "balance_nanos", "rate_nanos_per_hour")
    harness.gate.replies["accounts"] = [{"user_id": "u", **{name: ACCOUNT[name] for name in names}}]
    assert (await run(harness, "accounts --tz UTC")).stdout.splitlines() == [
        "user  state        balance  rate per hour",
        "u     exhausted  -12,345.5          3,600",
    ]
    harness.gate.replies["accounts"] = []
    assert (await run(harness, "accounts --state active --with rates")).stdout == "nothing\n"
    assert harness.gate.operations[-1] == ("accounts", b"", 1000, "active", -1, ("rates",), b"", 0)


# -- what cannot be undone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["close u", "cutoffs release"])
async def test_what_cannot_be_undone_is_only_done_when_it_is_meant(harness: DoorHarness, line: str) -> None:
    result = await run(harness, line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--yes" in result.stderr
    assert harness.gate.asked == []
