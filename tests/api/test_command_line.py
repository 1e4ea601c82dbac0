"""The command line on top of the client: what it sends, how it shows the reply, and how a refusal ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from billing.api.auth import Guard
from billing.api.methods import METHODS
from billing.cli.account_commands import COMMANDS as ACCOUNT_COMMANDS
from billing.cli.calling import DURATION
from billing.cli.operator_commands import COMMANDS as OPERATOR_COMMANDS
from billing.cli.showing import instant, span, value_of
from billing.ledger import commands
from billing.ledger.errors import Refused
from tests.api.outside import House, open_house
from tests.api.test_auth import TOKENS
from tests.system.ports import free_port

ALL = {**ACCOUNT_COMMANDS, **OPERATOR_COMMANDS}
HOUR_NS = 3_600 * 10**9

ACCOUNT: dict[str, Any] = {
    "user_id": "u",
    "bucket_id": 477,
    "state": "exhausted",
    "balance_nanos": -12_500_000_000,
    "rate_nanos_per_hour": 3_600_000_000_000,
    "rate_nanos_per_second": 1_000_000_000,
    "exhausts_at_ns": None,
    "runway_ns": None,
    "at_ns": 1_767_225_600_000_000_007,
    "replayed": False,
    "cutoff": {"event_id": "u:1:7", "attempts": 2, "last_error": None},
}


CHANGES: list[tuple[str, commands.Command]] = [
    ("top-up u 12.5", (commands.TOP_UP, b"u", 12_500_000_000, 0, 0, b"", b"", b"")),
    ("top-up 42 3 --request-id r --message hi", (commands.TOP_UP, b"42", 3 * 10**9, 0, 0, b"", b"r", b"hi")),
    ("set-rate u 0.000000001", (commands.SET_RATE, b"u", 3600, -1, -1, b"", b"", b"")),
    (
        "set-rate u 1 --per hour --resource vm --rate-seq 7 --min-runway 2h",
        (commands.SET_RATE, b"u", 10**9, 7, 2 * HOUR_NS, b"vm", b"", b""),
    ),
    ("change-rate u -0.5 --per hour", (commands.CHANGE_RATE, b"u", -5 * 10**8, 0, 0, b"", b"", b"")),
    ("debit u 1 --mode force", (commands.DEBIT, b"u", 10**9, commands.FORCE, 0, b"", b"", b"")),
    ("credit-limit u 0", (commands.SET_CREDIT_LIMIT, b"u", 0, 0, 0, b"", b"", b"")),
    ("hold u 1 --ttl 90s", (commands.HOLD, b"u", 10**9, 90 * 10**9, 0, b"", b"", b"")),
    ("capture u e:1 1", (commands.CAPTURE, b"u", 10**9, 0, 0, b"e:1", b"", b"")),
    ("release u e:1", (commands.RELEASE, b"u", 0, 0, 0, b"e:1", b"", b"")),
    ("adjust u -1 mistake --request-id r", (commands.ADJUST, b"u", -(10**9), 0, 0, b"", b"r", b"mistake")),
    (
        "thresholds u --amount 5 --runway 1h --runway 1d",
        (
            *(commands.SET_THRESHOLDS, b"u", 3, 0, 0),
            commands.pack_thresholds([(0, 5 * 10**9), (1, HOUR_NS), (1, 24 * HOUR_NS)]),
            *(b"", b""),
        ),
    ),
    ("close u --request-id r", (commands.CLOSE, b"u", 0, 0, 0, b"", b"r", b"")),
]

QUESTIONS: list[tuple[str, tuple[Any, ...]]] = [
    ("account u", ("get_account", b"u")),
    ("history u --limit 5 --before 9", ("history", b"u", 5, 9)),
    ("accounts --after u --limit 5", ("accounts", b"u", 5)),
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
    ("cutoffs retry u", ("retry_cutoff", b"u")),
    ("cutoffs release", ("release_cutoffs",)),
    ("forecast --next 1h", ("forecast", HOUR_NS, 60 * 10**9)),
    ("expirationd stats", ("expirationd_stats",)),
]
FORECAST = {"steps": [{"at_ns": 5, "cutoffs": 3}], "peak_per_second": 3, "endpoint_takes_per_second": None}

ANSWERED_BY_THE_DOOR = {"ping": "ping", "info": "server_info", "methods": "methods", "buckets of": "bucket_id"}


async def run(house: House, line: str, **environ: str) -> Result:
    """A command line, as from another process: the loop goes on meanwhile."""
    name, *arguments = line.split()
    address = house.address if isinstance(house.address, str) else f"{house.address[0]}:{house.address[1]}"
    variables = {"BILLING_ADDRESS": address, **environ}
    return await asyncio.to_thread(CliRunner().invoke, ALL[name], arguments, env=variables)


@pytest.mark.parametrize(("line", "command"), CHANGES)
async def test_what_a_command_sends(house, line, command):
    result = await run(house, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert house.gate.commands == [command]


@pytest.mark.parametrize(("line", "question"), QUESTIONS)
async def test_what_a_question_sends(house, line, question):
    house.gate.replies["forecast"] = dict(FORECAST)
    result = await run(house, line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [what for _, what in house.gate.asked] == [question]


async def test_what_the_door_answers_itself(house):
    assert (await run(house, "ping")).stdout == "pong\n"
    assert (await run(house, "buckets of 1")).stdout == "477\n"
    assert "in_flight_max 4096" in (await run(house, "info")).stdout.replace("in flight max", "in_flight_max")
    told = (await run(house, "methods")).stdout
    assert all(name in told for name in METHODS)


async def test_an_account_is_shown_for_people(house):
    house.gate.replies["get_account"] = ACCOUNT
    told = (await run(house, "account u")).stdout
    shown = dict(line.split(None, 1) for line in told.splitlines())
    assert shown["balance"].strip() == "-12.5"
    assert shown["rate"].strip() == "3600 per hour"
    assert shown["exhausts"].strip() == "at  never" or "never" in shown["exhausts"]
    assert shown["runway"].strip() == "without end"
    assert shown["at"].strip() == "2026-01-01T00:00:00.000000007Z"
    assert shown["cutoff"].strip() == "event u:1:7, attempts 2, last error -"


async def test_json_is_the_reply_as_it_came(house):
    house.gate.replies["get_account"] = ACCOUNT
    assert json.loads((await run(house, "account u --json")).stdout) == ACCOUNT
    house.gate.replies["history"] = [{"request_id": b"\xff"}]
    assert json.loads((await run(house, "history u --json")).stdout) == [{"request_id": "ff"}]


async def test_rows_are_a_table(house):
    house.gate.replies["history"] = [
        {"entry_id": 2, "at_ns": 5, "amount_nanos": -1, "message": "two\x1b[31m"},
        {"entry_id": 1, "at_ns": 4, "amount_nanos": 10**9, "message": "one"},
    ]
    lines = (await run(house, "history u")).stdout.splitlines()
    assert lines[0].split() == ["entry", "at", "amount", "message"]
    assert lines[1].split() == [
        "2",
        "1970-01-01T00:00:00.000000005Z",
        "-0.000000001",
        "two\N{REPLACEMENT CHARACTER}[31m",
    ]
    assert lines[2].split() == ["1", "1970-01-01T00:00:00.000000004Z", "1", "one"]
    house.gate.replies["history"] = []
    assert (await run(house, "history u")).stdout == "nothing\n"


async def test_a_refusal_ends_with_1_and_stands_on_standard_error(house):
    house.gate.replies["get_account"] = Refused("INSUFFICIENT_FUNDS", "too little", {"shortfall_nanos": 7})
    result = await run(house, "account u")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "billing: INSUFFICIENT_FUNDS: too little\n")
    result = await run(house, "account u --json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr)["shortfall_nanos"] == 7
    result = await run(house, "top-up u 0")
    assert (result.exit_code, result.stderr) == (1, "billing: INVALID_AMOUNT: amount must be above zero\n")


async def test_no_daemon_ends_with_1_and_says_so(house):
    result = await run(house, "top-up u 1 --timeout 1s", BILLING_ADDRESS=f"127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert result.stderr.startswith("billing: UNAVAILABLE: no answer within 1 s: cannot connect")
    assert "may have been" not in result.stderr
    house.gate.holds_back = True
    result = await run(house, "top-up u 1 --timeout 1s")
    assert result.stderr == "billing: UNAVAILABLE: no answer within 1 s (it may have been carried out)\n"


async def test_a_call_that_makes_no_sense_ends_with_2(house):
    for line in (
        "ping --address nowhere",
        "top-up u",
        "debit u 1 --mode gently",
        "hold u 1 --ttl soon",
        "ping --timeout -1",
    ):
        result = await run(house, line)
        assert (result.exit_code, result.stdout) == (2, ""), line
    assert house.gate.asked == []


async def test_a_token_comes_from_a_file(tmp_path):
    token = tmp_path / "token"
    token.write_text("shop\n")
    async with open_house(guard=Guard(TOKENS)) as house:
        assert (await run(house, "top-up u 1")).stderr.startswith("billing: UNAUTHENTICATED: ")
        assert (await run(house, f"top-up u 1 --token-file {token}")).exit_code == 0
        assert (await run(house, f"adjust u 1 why --token-file {token}")).stderr.startswith("billing: FORBIDDEN: ")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("90", 90 * 10**9), ("1.5s", 15 * 10**8), ("250ms", 25 * 10**7), ("3us", 3000), ("1ns", 1), ("2d", 48 * HOUR_NS)],
)
def test_spans_of_time(text, nanoseconds):
    assert DURATION.convert(text, None, None) == nanoseconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5ns", "1y", "1h30m", ".5s", "²s"])
def test_what_is_no_span_of_time(text):
    with pytest.raises(click.BadParameter, match="expected"):
        DURATION.convert(text, None, None)


def test_values_for_people():
    assert instant(1_767_225_600_000_000_007) == "2026-01-01T00:00:00.000000007Z"
    assert instant(2**63 - 1) == "2262-04-11T23:47:16.854775807Z"
    assert [span(0), span(-1), span(93_784_500_000_000)] == ["00:00:00", "-00:00:00.000000001", "1d 02:03:04.5"]
    assert (
        value_of("rates", {"": 5, "v\x1bm": 10**9})
        == "(default) 0.000000005 per hour; v\N{REPLACEMENT CHARACTER}m 1 per hour"
    )
    assert value_of("owners", list(range(3000))) == "3000 values"
    assert value_of("replayed", True) == "yes"
    assert value_of("message", None) == "-"


def test_each_procedure_has_its_command():
    called = {commands.NAMES[command[0]] for _, command in CHANGES} | {question[0] for _, question in QUESTIONS}
    elsewhere = {"hello", "backup", "check_owners"}  # each call's; of `billing backup`; of `billing doctor --online`
    assert called | {*ANSWERED_BY_THE_DOOR.values()} | elsewhere == set(METHODS)
    tried = {line.split()[0] for line, _ in [*CHANGES, *QUESTIONS]} | {name.split()[0] for name in ANSWERED_BY_THE_DOOR}
    assert tried == set(ALL)
