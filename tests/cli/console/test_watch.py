"""The picture of an account between two answers: the balance as the ledger would say it, to the nano."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from billing.cli.console.watch import picture, watch
from tests.ledger.driver import LedgerDriver

HOUR = 3600 * 10**9


def drawn(account: dict[str, Any], passed_ns: int) -> dict[str, str]:
    screen = io.StringIO()
    Console(file=screen, width=120).print(picture(account, passed_ns))
    lines = [line.split(maxsplit=1) for line in screen.getvalue().splitlines()]
    return {line[0]: line[1].strip() for line in lines}


@pytest.mark.parametrize("passed_ns", [0, 1, 999_999_999, 10**9, 1_500_000_001, 4 * 10**9])
def test_the_balance_ticks_as_the_ledger_says(passed_ns: int) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 3 * 10**9, at=0)
    driver.set_rate("u", 10**9 * 3600 * 7 // 9, at=0)
    account = {"cutoff": None, **driver.view("u", at=0)}
    shown = drawn(account, passed_ns)
    exact = driver.view("u", at=passed_ns)["balance_nanos"]
    assert (
        abs(round(float(shown["balance"]) * 10**9) - exact) <= 1
    )  # a picture floors the spent, the ledger what is left
    assert shown["user"] == "u"


async def test_it_asks_again_when_the_instant_has_come() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**9, at=0)
    driver.set_rate("u", HOUR, at=0)
    calls: list[int] = []

    async def ask() -> dict[str, Any]:
        calls.append(len(calls))
        at = 10**9 - 150_000_000 if len(calls) == 1 else 10**9
        return {"cutoff": None, **driver.view("u", at=at)}

    out = Console(file=io.StringIO(), width=120, force_terminal=True)
    async with asyncio.timeout(60):
        await watch(out, ask, 3_000_000_000)
    assert len(calls) >= 2


def test_what_a_client_called_a_user_steers_no_terminal() -> None:
    account = {
        "user_id": "u\x1b[2J",
        "state": "active",
        "balance_nanos": 0,
        "available_nanos": 0,
        "at_ns": 0,
        "rate_nanos_per_hour": 0,
        "exhausts_at_ns": None,
        "cutoff": None,
    }
    screen = io.StringIO()
    Console(file=screen, width=120, force_terminal=False).print(picture(account, 0))
    assert "\x1b" not in screen.getvalue()
    assert "u\N{REPLACEMENT CHARACTER}[2J" in screen.getvalue()
