"""The doctor's own arithmetic of a daemon that serves: right where it is right, and a fault for whatever is off.

The daemon is the real ledger's entries behind the real history file, asked in this process; a lie is put into what it
answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from billing.cli.online_statements import UNIT, OnlineStatements, lines_of
from billing.client.client import Client
from billing.client.results import AccountRow, BalanceAt, HistoryRow, Statement
from billing.ledger.money import INT64_MAX
from tests.history.books import AccountLife, lives
from tests.history.test_period import File

Lie = Callable[[str, dict[str, Any]], None]


class FakeDaemon:
    """Answers for one account as a worker does; `lie` may change an answer."""

    def __init__(self, home: Path, life: AccountLife, lie: Lie) -> None:
        self.user = life.timeline.entries[0].user_id
        self.file = File(home, life, self.user)
        self.lie = lie

    def answered(self, method: str, answer: dict[str, Any]) -> dict[str, Any]:
        self.lie(method, answer)
        return answer

    async def accounts(self, **_: object) -> list[AccountRow]:
        return [AccountRow({"user_id": self.user.decode()})]

    async def history(self, _: str, *, limit: int, before: int | None) -> list[HistoryRow]:
        rows = self.file.reader.history(1, self.user, INT64_MAX if before is None else before, limit).rows
        return [HistoryRow(self.answered("history", row)) for row in rows]

    async def statement(self, _: str, from_ns: int, to_ns: int, *, by: str, limit: int) -> Statement:
        return Statement(self.answered("statement", self.file.statement(from_ns, to_ns, by=bool(by), limit=limit)))

    async def balance_at(self, _: str, at_ns: int) -> BalanceAt:
        return BalanceAt(self.answered("balance_at", self.file.balance_at(at_ns)))


def honest(_: str, __: dict[str, Any]) -> None:
    """Changes nothing."""


async def looked_at(home: Path, seed: int, lie: Lie = honest) -> OnlineStatements:
    life = max(lives(seed, 400), key=lambda life: len(life.points))
    statements = OnlineStatements(cast(Client, FakeDaemon(home, life, lie)), random.Random(seed))
    for _ in range(5):
        await statements.check()
    return statements


@pytest.mark.parametrize("seed", range(41, 49))
async def test_random_accounts_agree(tmp_path: Path, seed: int) -> None:
    report = await looked_at(tmp_path, seed)
    assert report.faults == []
    assert (report.accounts, report.periods) == (5, 15)


def of_sum(name: str, by: int) -> Lie:
    """A statement whose exact sum is off, by so many internal units."""

    def lie(method: str, answer: dict[str, Any]) -> None:
        if method == "statement":
            answer["exact"][name] = str(int(answer["exact"][name]) + by)

    return lie


def of_field(method: str, name: str) -> Lie:
    """An answer whose field is off by one."""

    def lie(called: str, answer: dict[str, Any]) -> None:
        if called == method:
            answer[name] += 1

    return lie


def shifted(method: str, answer: dict[str, Any]) -> None:
    """All of a period happens with a coin more."""
    if method == "statement":
        for name in ("opening", "closing"):
            answer["exact"][name] = str(int(answer["exact"][name]) + 3600 * 10**18)
            answer[f"{name}_nanos"] += 10**9


def swapped(method: str, answer: dict[str, Any]) -> None:
    """Lines under each other's names."""
    if method == "statement":
        names = [line["resource"] for line in answer["resources"]]
        for line, name in zip(answer["resources"], names[1:] + names[:1], strict=True):
            line["resource"] = name


def past(method: str, answer: dict[str, Any]) -> None:
    """A past balance that is off by three nanos."""
    if method == "balance_at":
        answer["exact_balance"] = str(int(answer["exact_balance"]) + 3 * 3600 * 10**9)


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        (of_sum("accrued", 1), "does not add up"),
        (of_sum("closing", 1), "opens with"),
        (of_field("statement", "credits_nanos"), "credits_nanos is"),
        (of_field("statement", "debits_nanos"), "debits_nanos is"),
        (of_field("statement", "entries_count"), "entries_count is"),
        (shifted, "by its entries"),
        (swapped, "spent"),
        (past, "balance_at says"),
    ],
)
async def test_what_is_off_is_a_fault(tmp_path: Path, lie: Lie, text: str) -> None:
    report = await looked_at(tmp_path, 42, lie)
    assert any(text in fault for fault in report.faults)


def test_a_change_of_an_older_version_that_names_no_rate_of_its_line_is_that_of_the_account() -> None:
    def row(at_ns: int, accrued: int, rate: int, resource: str | None = None, line_rate: int | None = None) -> Any:
        names = "at_ns", "accrued_nanos", "rate_nanos_per_hour", "resource", "line_rate_nanos_per_hour"
        return dict(zip(names, (at_ns, accrued, rate, resource, line_rate), strict=True))

    hour_ns = 3600 * 10**9
    rows = [
        row(0, 0, 50, "vm-2", 50),
        row(0, 0, 150, "vm-1", 100),
        row(0, 0, 350, "vm-1"),  # change_rate by 200
        row(hour_ns, 350, 350),
    ]
    assert lines_of(rows, 0, hour_ns) == {"vm-1": 300 * UNIT, "vm-2": 50 * UNIT}
