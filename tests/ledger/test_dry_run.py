"""A dry run answers what the call would, and nothing changes: state, records and effects are what they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.commands import Command
from billing.ledger.entry import answer
from billing.ledger.errors import Refused
from billing.ledger.extra import Credit, Cutoff, Extra
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver

CALLS = [
    (ops.TOP_UP, 50, 0, 0, b""),
    (ops.SET_RATE, HOUR, -1, -1, b""),
    (ops.SET_RATE, HOUR, 7, 10**6, b"vm"),
    (ops.CHANGE_RATE, -1, 0, 0, b"vm"),
    (ops.DEBIT, 20, ops.STRICT, 0, b""),
    (ops.DEBIT, 10**6, ops.STRICT, 0, b""),
    (ops.DEBIT, 10**6, ops.PARTIAL, 0, b""),
    (ops.SET_CREDIT_LIMIT, 30, 0, 0, b""),
    (ops.HOLD, 5, 9, 0, b""),
    (ops.CAPTURE, 2, 0, 0, b"r:h"),
    (ops.RELEASE, 0, 0, 0, b"r:h"),
    (ops.ADJUST, -3, 0, 0, b""),
    (ops.SET_THRESHOLDS, 1, 0, 0, ops.pack_thresholds([(0, 40)])),
    (ops.CLOSE, 0, 0, 0, b""),
]


def outcome(carry_out: Callable[[int, int, Command], Any], command: Command, at: int) -> object:
    try:
        return answer(carry_out(BUCKET, at, command), BUCKET)
    except Refused as refused:
        return refused.as_map()


def lived(seed: int) -> LedgerDriver:
    """A ledger with an account that is active, one that ran out, one that is closed, and one that never was."""
    draw = random.Random(seed)
    driver = LedgerDriver(restore=True, accrue=draw.random() < 0.5)
    for user in ("active", "out", "closed"):
        driver.top_up(user, 100, at=0, request_id="first")
    driver.hold("active", 10, at=1, request_id="h")
    driver.set_rate("active", HOUR // 10, at=2, resource="vm", seq=draw.randrange(9))
    driver.set_rate("out", HOUR * 5, at=3)
    driver.view("out", at=60)
    driver.report(ops.CUTOFF_STARTED, "out", 1, at=61)
    driver.close("closed", at=62)
    return driver


@pytest.mark.parametrize("user", [b"active", b"out", b"closed", b"nobody"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("request_id", [b"", b"first", b"new"])
def test_it_answers_what_the_call_then_answers_and_changes_nothing(
    user: bytes, call: tuple[int, int, int, int, bytes], request_id: bytes
) -> None:
    driver = lived(sum(user) + call[0])
    op, a, b, c, key = call
    command = (op, user, a, b, c, key, request_id, b"", b"", b"shop")
    before, records, effects = driver.state(), list(driver.ledger.records), list(driver.ledger.notices)
    filed = list(driver.filed)
    rehearsed = outcome(driver.ledger.rehearse, command, 100)
    assert driver.state() == before
    assert (driver.ledger.records, driver.ledger.notices, driver.filed) == (records, effects, filed)
    assert rehearsed == outcome(driver.ledger.apply, command, 100)


def test_the_copy_of_an_account_has_all_of_it_and_shares_nothing_that_changes() -> None:
    extra = Extra()
    extra.holds, extra.holds_nanos, extra.lines, extra.quiet = {b"h": (5, 9)}, 5, {b"vm": (1, 2)}, {b"old": (3, 4)}
    extra.credits, extra.thresholds, extra.class_name = (Credit(9, 8, 7, 6, b"k"),), ((0, 5),), b"business"
    extra.lease(b"vm", 7)
    numbers = (name for name in Extra.__slots__ if type(getattr(extra, name)) is int and not getattr(extra, name))
    for number, name in enumerate(numbers, 1):
        setattr(extra, name, number)
    extra.restore_error = b"refused"
    cutoff = Cutoff(3, 5)
    for number, name in enumerate(("attempts", "delivered_ns", "due_ns", "restored_ns", "status", "released"), 1):
        setattr(cutoff, name, number)
    cutoff.last_error = b"timeout"
    extra.cutoffs = [cutoff]
    copy = extra.copied()
    for name in Extra.__slots__:
        if name != "cutoffs":
            assert getattr(copy, name) == getattr(extra, name), name
        if type(getattr(extra, name)) in (dict, list):
            assert getattr(copy, name) is not getattr(extra, name), name
    (copied,) = copy.cutoffs
    assert copied is not cutoff
    assert {name: getattr(copied, name) for name in Cutoff.__slots__} == {
        name: getattr(cutoff, name) for name in Cutoff.__slots__
    }
