"""An account with very many rate lines is shown whole, but not by the thousand within a moment."""

from __future__ import annotations

from typing import Any

from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from billing.ledger.ledger import Rules
from billing.ledger.rates import LINES_MAX
from billing.worker.machine import ROWS_SHOWN_MAX, ROWS_SHOWN_NS, BillingMachine

BUCKET = 1
NOW_NS = 10**18


def account_shown(machine: BillingMachine, user_id: bytes, now_ns: int) -> Any:
    return machine.read(BUCKET, ("get_account", user_id), now_ns)


def test_lines_shown_within_a_moment_are_bounded() -> None:
    machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False))
    machine.create(BUCKET)
    for user_id in (b"many", b"few"):
        machine.apply(BUCKET, (ops.TOP_UP, user_id, 10**15, 0, 0, b"", b"", b"", b"", b""), NOW_NS)
    for number in range(LINES_MAX):
        machine.apply(BUCKET, (ops.SET_RATE, b"many", 1, -1, -1, b"vm-%d" % number, b"", b"", b"", b""), NOW_NS)
    for _ in range(ROWS_SHOWN_MAX // LINES_MAX):
        assert len(account_shown(machine, b"many", NOW_NS)["rates"]) == LINES_MAX
    refusal = account_shown(machine, b"many", NOW_NS + ROWS_SHOWN_NS - 1)
    assert isinstance(refusal, Refused)
    assert refusal.name == "BUSY"
    assert account_shown(machine, b"few", NOW_NS + ROWS_SHOWN_NS - 1)["rates"] == {}
    assert len(account_shown(machine, b"many", NOW_NS + ROWS_SHOWN_NS)["rates"]) == LINES_MAX
