"""Opening and closing accounts, as CONTRACT §3 has it."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.entry import OPENED, RESTORED
from tests.ledger.bank import BUCKET, DAY_NS, HOUR, Bank, refusal


@pytest.fixture
def bank() -> Bank:
    bank = Bank(restore=True)
    bank.top_up("u", 100, at=0)
    return bank


CALLS: dict[str, tuple[Any, ...]] = {
    "debit": (1,), "set_rate": (1,), "change_rate": (1,), "set_credit_limit": (1,), "hold": (1,), "capture": ("e:1", 1),
    "release": ("e:1",), "adjust": (1, "x"), "set_thresholds": ([],), "close": (), "view": (),
}  # fmt: skip


@pytest.mark.parametrize("method", CALLS)
def test_unknown_account_for_everything_but_top_up(bank: Bank, method: str) -> None:
    before = bank.state()
    assert refusal(getattr(bank, method), "v", *CALLS[method], at=1).name == "UNKNOWN_ACCOUNT"
    assert bank.state() == before
    assert bank.top_up("v", 1, at=1)["entry_id"] == 1


def test_closing_pays_out_the_rest_as_an_entry(bank: Bank) -> None:
    bank.set_rate("u", HOUR // 3, at=0)
    bank.set_rate("u", 0, at=1)
    reply = bank.close("u", at=2)
    assert (reply["balance_nanos"], reply["paid_out_nanos"], reply["exhaustion_seq"]) == (0, 99, 0)
    row = bank.rows("u")[-1]
    assert (row["operation"], row["amount_nanos"], row["balance_after_nanos"]) == ("close_account", -99, 0)
    assert bank.entries("u")[-1].balance == 0
    assert refusal(bank.view, "u", at=3).name == "UNKNOWN_ACCOUNT"
    assert bank.cutoffs() == [], "an account that is closed does not run out"


def obstacle(bank: Bank, at: int) -> object:
    error = refusal(bank.close, "u", at=at)
    assert (error.name, error.applied) == ("ACCOUNT_NOT_CLOSABLE", "no")
    return error.details["obstacle"]


def test_only_at_rate_0(bank: Bank) -> None:
    bank.set_rate("u", 1, at=1)
    assert obstacle(bank, at=2) == "rate"


def test_only_with_no_debt(bank: Bank) -> None:
    bank.debit("u", 150, at=1, mode="force")
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=2)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=2)
    assert obstacle(bank, at=2) == "debt"


def test_only_with_no_hold(bank: Bank) -> None:
    bank.hold("u", 10, at=1, ttl=10)
    assert obstacle(bank, at=10) == "hold"
    assert bank.close("u", at=11)["paid_out_nanos"] == 100, "it has expired"


def test_only_with_no_owed_cutoff(bank: Bank) -> None:
    bank.debit("u", 100, at=1)
    assert obstacle(bank, at=2) == "cutoff"
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=3)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=4)
    assert bank.close("u", at=5)["paid_out_nanos"] == 0


def test_only_with_no_owed_restore(bank: Bank) -> None:
    bank.debit("u", 100, at=1)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=3)
    bank.top_up("u", 1, at=4)
    assert obstacle(bank, at=5) == "cutoff"


def test_entry_id_and_exhaustion_seq_go_on_rising_when_it_is_opened_again(bank: Bank) -> None:
    bank.debit("u", 100, at=1)
    bank.top_up("u", 5, at=2)
    closed = bank.close("u", at=3)
    assert closed["entry_id"] == 4
    reply = bank.top_up("u", 7, at=2)
    assert (reply["entry_id"], reply["exhaustion_seq"], reply["balance_nanos"], reply["at_ns"]) == (5, 1, 7, 3)
    assert "restored" not in reply
    assert bank.debit("u", 7, at=4)["exhaustion_seq"] == 2


def switched_off(bank: Bank, user: str = "off") -> None:
    """An account at zero whose cutoff had its 2xx."""
    bank.top_up(user, 5, at=10)
    bank.debit(user, 5, at=11)
    bank.report(ops.CUTOFF_STARTED, user, 1, at=12)
    bank.report(ops.CUTOFF_DELIVERED, user, 1, at=13)


def test_opening_restores_an_account_that_was_closed_with_its_machines_off() -> None:
    bank = Bank(restore=True)
    switched_off(bank)
    bank.close("off", at=14)
    assert bank.owed("off") is None
    bank.notices()
    reply = bank.top_up("off", 7, at=20)
    assert reply["restored"] is True
    assert (reply["state"], reply["balance_nanos"], reply["exhaustion_seq"]) == ("active", 7, 1)
    cutoff = reply["cutoff"]
    assert (cutoff["seq"], cutoff["status"], cutoff["exhausted_at_ns"]) == (1, "effective", 11)
    assert bank.entries("off")[-1].flags & (OPENED | RESTORED) == OPENED | RESTORED
    assert bank.owed("off") == ("restore", 1)
    assert bank.ledger.notices[0][1] == 20, "it depends on the call that opened it"
    assert bank.notices() == [("restore", "off", 1)]
    bank.report(ops.RESTORE_STARTED, "off", 1, at=21)
    bank.report(ops.RESTORE_DELIVERED, "off", 1, at=22)
    assert bank.owed("off") is None
    bank.close("off", at=23)
    assert "restored" not in bank.top_up("off", 7, at=24), "it was made good before it was closed again"


def test_opening_it_says_so_also_without_a_restore_url_and_nothing_is_owed() -> None:
    bank = Bank()
    switched_off(bank)
    bank.close("off", at=14)
    assert bank.top_up("off", 7, at=20)["restored"] is True
    assert bank.owed("off") is None
    bank.close("off", at=21)
    assert "restored" not in bank.top_up("off", 7, at=22)


def test_closing_twice_does_not_forget_it() -> None:
    """What is kept survives the row's next user, a move, and running out once more."""
    bank = Bank(restore=True)
    switched_off(bank)
    bank.close("off", at=14)
    switched_off(bank, "in its row")
    loaded = Bank(restore=True)
    loaded.ledger.drop(BUCKET)
    loaded.ledger.load(BUCKET, bank.state())
    loaded.top_up("off", 7, at=20)
    loaded.debit("off", 7, at=21)
    assert loaded.owed("off") == ("cutoff", 2)
    loaded.report(ops.CUTOFF_STARTED, "off", 2, at=22)
    loaded.report(ops.CUTOFF_DELIVERED, "off", 2, at=23)
    loaded.close("off", at=24)
    loaded.top_up("off", 1, at=25)
    assert loaded.owed("off") == ("restore", 2)


def test_nothing_else_of_it_comes_back(bank: Bank) -> None:
    bank.set_credit_limit("u", 50, at=1)
    bank.set_thresholds("u", [(0, 10)], at=1)
    bank.close("u", at=2)
    bank.top_up("u", 7, at=3)
    view = bank.view("u", at=3)
    assert (view["credit_limit_nanos"], view["thresholds"], view["cutoff"], view["rates"]) == (0, [], None, {})


def test_rate_seq_outlives_a_closed_account(bank: Bank) -> None:
    bank.set_rate("u", 10, at=1, resource="vm", seq=5)
    bank.set_rate("u", 0, at=2, resource="vm", seq=6)
    bank.close("u", at=3)
    bank.top_up("u", 7, at=4)
    assert refusal(bank.set_rate, "u", 10, at=5, resource="vm", seq=5).name == "STALE_RATE"


def test_but_not_longer_than_7_days(bank: Bank) -> None:
    bank.set_rate("u", 0, at=2, resource="vm", seq=6)
    bank.close("u", at=3)
    bank.top_up("u", 7, at=2 + 7 * DAY_NS)
    assert not bank.ledger.books[BUCKET].extras
    assert bank.set_rate("u", 1, at=3 + 7 * DAY_NS, resource="vm", seq=0)["rate_nanos_per_hour"] == 1


def test_it_frees_its_memory(bank: Bank) -> None:
    book = bank.ledger.books[BUCKET]
    for number in range(50):
        bank.top_up("v", 5, at=10 + number)
        bank.set_thresholds("v", [(0, 1)], at=10 + number)
        bank.close("v", at=10 + number)
    assert len(book.users) == 2
    assert len(book.rows) == 2 * 48
    assert not book.extras
    assert list(book.closed) == [b"v"]


def test_tombstones_grow_smaller_when_their_rate_seqs_are_needed_no_more(bank: Bank) -> None:
    book = bank.ledger.books[BUCKET]
    for number in range(3):
        bank.top_up(f"v{number}", 5, at=number)
        bank.set_rate(f"v{number}", 0, at=number, resource="vm", seq=1)
        bank.close(f"v{number}", at=number)
    bank.top_up("v1", 5, at=10)  # opened again
    assert [len(tombstone.quiet) for tombstone in book.closed.values()] == [1, 1]
    bank.close("u", at=1 + 7 * DAY_NS)
    assert [(user, len(tombstone.quiet)) for user, tombstone in book.closed.items()] == [
        (b"v0", 0),
        (b"v2", 1),
        (b"u", 0),
    ]
    assert list(book.fading) == [b"v2"]


def test_a_filing_of_a_closed_account_is_stale_also_for_who_has_its_row_next(bank: Bank) -> None:
    bank.set_rate("u", HOUR, at=0)
    (ref, due_ns) = bank.filed[-1]
    bank.set_rate("u", 0, at=1)
    bank.close("u", at=2)
    assert bank.ledger.next_due_ns(ref, due_ns) == -1
    bank.ledger.tick(ref, 500)
    bank.top_up("v", 10**6, at=3)
    assert bank.ledger.next_due_ns(ref, due_ns) == -1
    bank.set_rate("v", HOUR, at=3)
    assert bank.filed[-1] == (ref, 3 + 10**6)
    assert bank.ledger.next_due_ns(ref, 3 + 10**6) == 3 + 10**6


def test_a_rate_seq_is_kept_to_the_last_nanosecond_of_its_7_days(bank: Bank) -> None:
    book = bank.ledger.books[BUCKET]
    bank.set_rate("u", 0, at=5, resource="vm", seq=6)
    bank.close("u", at=4 + 7 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 1
    bank.top_up("v", 1, at=0)
    bank.set_rate("v", 0, at=5, resource="vm", seq=6)
    bank.close("v", at=5 + 7 * DAY_NS)
    assert len(book.closed[b"v"].quiet) == 0
    bank.top_up("w", 1, at=0)
    bank.close("w", at=3 + 14 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 1
    bank.top_up("w", 1, at=0)
    bank.close("w", at=4 + 14 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 0
