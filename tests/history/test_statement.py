"""Statements: any period of any account adds up, in floors, and a row that is wrong is named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import click
import pytest

from billing.cli.statement_command import INSTANT
from billing.history.statement import NEWEST, fetch, statement
from billing.ledger import commands as ops
from billing.ledger.money import NANO
from tests.history.scene import Scene
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


class Account:
    """One account's history as the procedure answers it, page by page; counts the pages."""

    def __init__(self, scene: Scene, user: bytes) -> None:
        self.rows = scene.rows[user]
        self.pages = 0

    async def page(self, before: int, limit: int) -> list[dict[str, Any]]:
        assert 1 <= limit <= 1000
        self.pages += 1
        return [row for row in reversed(self.rows) if row["entry_id"] < before][:limit]


def spending(steps: int, users: int = 1, seed: int = 1) -> Scene:
    """A scene whose balances have fractions of a nano almost everywhere."""
    scene = Scene(seed=seed, users=users)
    for start in range(0, steps, 200):
        scene.batch(min(200, steps - start))
    return scene


async def test_every_period_adds_up_in_floors():
    scene = spending(3000, users=3)
    ledger = scene.shard.machine.ledger
    assert any(
        ledger.view(bucket_id, user, scene.now_ns)["balance_nanos"] for bucket_id in range(1, 5) for user in scene.users
        if user in ledger.books[bucket_id].slots
    )  # fmt: skip
    rng = random.Random(1)
    for user in scene.users:
        account = Account(scene, user)
        rows = account.rows
        for _ in range(200):
            instants = [row["at_ns"] + rng.choice([-1, 0, 1]) for row in rng.sample(rows, 2)]
            from_ns, to_ns = sorted(instants)
            found = await fetch(account.page, from_ns, to_ns)
            assert found.faults == []
            assert found.rows == [row for row in rows if from_ns <= row["at_ns"] < to_ns]
            before = [row for row in rows if row["at_ns"] < from_ns]
            assert found.opening_nanos == (before[-1]["balance_after_nanos"] if before else 0)
            assert found.opening_nanos - found.accrued_nanos + found.amount_nanos == found.closing_nanos
            assert found.is_first_known == (not before)
        whole = await fetch(account.page, 0, NEWEST)
        assert whole.rows == rows
        assert (whole.opening_nanos, whole.closing_nanos) == (0, rows[-1]["balance_after_nanos"])


async def test_fractions_of_a_nano_are_neither_lost_nor_made():
    """A third of a nano an entry: single rows show 0 or 1, and over the whole it is what was spent."""
    scene = Scene(users=1)
    user = scene.users[0]
    scene.do(ops.TOP_UP, user, 10**6, request_id=b"")
    scene.do(ops.SET_RATE, user, 3600, -1, request_id=b"")  # one nano a second
    for _ in range(3000):
        scene.now_ns += 333_333_333
        scene.do(ops.TOP_UP, user, 1, request_id=b"")
    scene.take_batch()
    account = Account(scene, user)
    found = await fetch(account.page, 0, NEWEST)
    assert found.faults == []
    assert {row["accrued_nanos"] for row in found.rows[2:]} == {0, 1}
    spent = 3000 * 333_333_333 * 3600
    assert found.accrued_nanos == -(-spent // NANO) == 1000
    assert found.closing_nanos == 10**6 + 3000 - 1000
    middle = await fetch(account.page, found.rows[1000]["at_ns"], found.rows[2000]["at_ns"])
    assert middle.faults == []
    assert len(middle.rows) == 1000
    assert middle.accrued_nanos in (333, 334)


async def test_a_period_long_ago_takes_few_pages():
    scene = spending(24_000)
    account = Account(scene, scene.users[0])
    rows = account.rows
    assert len(rows) > 8_000
    found = await fetch(account.page, rows[500]["at_ns"], rows[700]["at_ns"])
    assert found.rows == rows[500:700]
    assert account.pages <= 2 + len(rows).bit_length()


async def test_a_period_without_entries_opens_and_closes_with_the_same_balance():
    scene = spending(100)
    account = Account(scene, scene.users[0])
    last = account.rows[-1]
    found = await fetch(account.page, last["at_ns"] + 1, NEWEST)
    assert (found.rows, found.faults, found.is_first_known) == ([], [], False)
    assert found.opening_nanos == found.closing_nanos == last["balance_after_nanos"]
    before = await fetch(account.page, 0, account.rows[0]["at_ns"])
    assert (before.rows, before.opening_nanos, before.closing_nanos) == ([], 0, 0)
    assert (await fetch(Account(scene, b"nobody").page, 0, NEWEST)).rows == []


def test_what_is_not_kept_is_not_guessed():
    rows = spending(200).rows[b"user_000"][50:]
    found = statement(0, NEWEST, None, rows)
    assert found.faults == []
    assert found.is_first_known
    assert found.opening_nanos == rows[0]["balance_before_nanos"] + rows[0]["accrued_nanos"]


@pytest.mark.parametrize("field", ["amount_nanos", "accrued_nanos", "balance_before_nanos", "balance_after_nanos"])
def test_a_single_nano_too_many_anywhere_is_found(field):
    rows = spending(300).rows[b"user_000"]
    assert statement(0, NEWEST, None, rows).faults == []
    for index in range(len(rows)):
        wrong = [dict(row) for row in rows]
        wrong[index][field] += 1
        faults = statement(0, NEWEST, None, wrong).faults
        assert any(f"entry {rows[index]['entry_id']}:" in fault for fault in faults)


def test_rows_that_are_missing_doubled_or_out_of_order_are_found():
    rows = spending(300).rows[b"user_000"]
    moved = [
        index
        for index in range(1, len(rows) - 1)
        if rows[index]["balance_after_nanos"] != rows[index - 1]["balance_after_nanos"]
    ]
    for index in moved:
        assert statement(0, NEWEST, None, rows[:index] + rows[index + 1 :]).faults
        assert statement(0, NEWEST, None, rows[: index + 1] + rows[index:]).faults
        assert statement(0, NEWEST, None, [*rows[:index], rows[index + 1], rows[index], *rows[index + 2 :]]).faults
    assert statement(0, NEWEST, rows[9], rows[9:]).faults


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at_ns"),
    [
        ("0", 0),
        ("1727000000000000001", 1_727_000_000_000_000_001),
        ("1970-01-01", 0),
        ("2026-03-01", 1_772_323_200_000_000_000),
        ("2026-03-01T12:00", 1_772_366_400_000_000_000),
        ("2026-03-01 12:00:01Z", 1_772_366_401_000_000_000),
        ("2026-03-01T12:00:00.000000001Z", 1_772_366_400_000_000_001),
        ("2026-03-01T12:00:00.5", 1_772_366_400_500_000_000),
    ],
)
def test_instants_are_read_to_the_nanosecond(text, at_ns):
    assert INSTANT.convert(text, None, None) == at_ns


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-02-30", "1969-12-31", "2300-01-01", "-1", "1e9"])
def test_what_is_no_instant_is_refused(text):
    with pytest.raises(click.BadParameter):
        INSTANT.convert(text, None, None)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "billing", "statement", *arguments], capture_output=True, text=True)


async def test_the_command_prints_a_period_of_a_running_daemon(data_dir):
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "anna", "12.5", {"message": "[bold]hello"})
        await rpc.ask("set_rate", "anna", 7, {"per": "minute"})
        for _ in range(20):
            await rpc.ask("debit", "anna", 1_000_000_001) if _ < 5 else await rpc.ask("adjust", "anna", 3, "rounding")
        rpc.close()
        address = f"127.0.0.1:{daemon.rpc_port}"
        shown = run("anna", "--address", address)
        assert shown.returncode == 0, shown.stderr
        assert "22 entries; they add up: 0 - " in shown.stdout
        assert "[bold]hello" in shown.stdout
        told = json.loads(run("anna", "--config", str(daemon.config), "--json").stdout)
        assert told["adds_up"] is True
        assert [entry["entry_id"] for entry in told["entries"]] == list(range(1, 23))
        part = run("anna", "--address", address, "--json", "--from", str(told["entries"][5]["at_ns"]))
        assert json.loads(part.stdout)["opening_nanos"] == told["entries"][4]["balance_after_nanos"]
        nobody = run("nobody", "--address", address)
        assert (nobody.returncode, "UNKNOWN_ACCOUNT" in nobody.stderr) == (1, True)
        both = run("anna", "--address", address, "--config", str(daemon.config))
        assert both.returncode == 2
        assert run("anna", "--from", "2026-03-02", "--to", "2026-03-01").returncode == 2
