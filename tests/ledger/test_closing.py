"""Opening and closing accounts, as CONTRACT §3 has it."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.entry import OPENED, RESTORED, RULE_RESTORE, pack
from tests.ledger.driver import BUCKET, DAY_NS, HOUR, LedgerDriver, refusal


@pytest.fixture
def driver() -> LedgerDriver:
    driver = LedgerDriver(restore=True)
    driver.top_up("u", 100, at=0)
    return driver


CALLS: dict[str, tuple[Any, ...]] = {
    "debit": (1,), "set_rate": (1,), "change_rate": (1,), "set_credit_limit": (1,), "hold": (1,), "capture": ("e:1", 1),
    "release": ("e:1",), "adjust": (1, "x"), "set_thresholds": ([],), "close": (), "view": (),
}  # fmt: skip


@pytest.mark.parametrize("method", CALLS)
def test_unknown_account_for_everything_but_top_up(driver: LedgerDriver, method: str) -> None:
    before = driver.state()
    assert refusal(getattr(driver, method), "v", *CALLS[method], at=1).name == "UNKNOWN_ACCOUNT"
    assert driver.state() == before
    assert driver.top_up("v", 1, at=1)["entry_id"] == 1


def test_closing_pays_out_the_rest_as_an_entry(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR // 3, at=0)
    driver.set_rate("u", 0, at=1)
    reply = driver.close("u", at=2)
    assert (reply["balance_nanos"], reply["paid_out_nanos"], reply["exhaustion_seq"]) == (0, 99, 0)
    row = driver.rows("u")[-1]
    assert (row["operation"], row["amount_nanos"], row["balance_after_nanos"]) == ("close_account", -99, 0)
    assert driver.entries("u")[-1].balance == 0
    assert refusal(driver.view, "u", at=3).name == "UNKNOWN_ACCOUNT"
    assert driver.cutoffs() == [], "an account that is closed does not run out"


def obstacle(driver: LedgerDriver, at: int) -> object:
    error = refusal(driver.close, "u", at=at)
    assert (error.name, error.applied) == ("ACCOUNT_NOT_CLOSABLE", "no")
    return error.details["obstacle"]


def test_only_at_rate_0(driver: LedgerDriver) -> None:
    driver.set_rate("u", 1, at=1)
    assert obstacle(driver, at=2) == "rate"


def test_only_with_no_debt(driver: LedgerDriver) -> None:
    driver.debit("u", 150, at=1, mode="force")
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=2)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=2)
    assert obstacle(driver, at=2) == "debt"


def test_only_with_no_hold(driver: LedgerDriver) -> None:
    driver.hold("u", 10, at=1, ttl=10)
    assert obstacle(driver, at=10) == "hold"
    assert driver.close("u", at=11)["paid_out_nanos"] == 100, "it has expired"


def test_only_with_no_owed_cutoff(driver: LedgerDriver) -> None:
    driver.debit("u", 100, at=1)
    assert obstacle(driver, at=2) == "cutoff"
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=3)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=4)
    assert driver.close("u", at=5)["paid_out_nanos"] == 0


def test_only_with_no_owed_restore(driver: LedgerDriver) -> None:
    driver.debit("u", 100, at=1)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=3)
    driver.top_up("u", 1, at=4)
    assert obstacle(driver, at=5) == "cutoff"


def owing_a_restore(driver: LedgerDriver) -> LedgerDriver:
    """The account has money again, and its machines may be off."""
    driver.debit("u", 100, at=1)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=3)
    driver.top_up("u", 1, at=4)
    return driver


def test_a_restore_that_has_no_url_any_more_is_no_obstacle_and_is_not_forgotten(driver: LedgerDriver) -> None:
    after = owing_a_restore(driver).moved(restore=False)
    assert after.close("u", at=5)["paid_out_nanos"] == 1
    again = after.moved(restore=True)
    assert again.top_up("u", 7, at=6)["restored"] is True
    assert again.owed("u") == ("restore", 1), "the machines are still off"


def test_such_a_closing_is_replayed_whatever_the_configuration_says_now(driver: LedgerDriver) -> None:
    before = owing_a_restore(driver).state()
    after = driver.moved(restore=False)
    after.close("u", at=5)
    for restore in (True, False):
        later = LedgerDriver(restore=restore)
        later.ledger.drop(BUCKET)
        later.ledger.load(BUCKET, before)
        for _, packed in after.ledger.records:
            later.ledger.replay(BUCKET, packed)
        later.ledger.replayed()
        assert later.state() == after.state()


def test_what_former_versions_refused_for_such_a_restore_is_refused_again_in_replay(driver: LedgerDriver) -> None:
    owing_a_restore(driver)
    assert refusal(driver.close, "u", at=5, request_id="r").details["obstacle"] == "cutoff"
    *_, last = driver.entries()
    driver.journal[-1] = pack(last._replace(flags=last.flags & ~RULE_RESTORE))  # as they recorded it without a URL
    after = driver.replayed(restore=False)
    assert refusal(after.close, "u", at=6, request_id="r").details["obstacle"] == "cutoff"
    assert after.close("u", at=6, request_id="s")["paid_out_nanos"] == 1


def test_entry_id_and_exhaustion_seq_go_on_rising_when_it_is_opened_again(driver: LedgerDriver) -> None:
    driver.debit("u", 100, at=1)
    driver.top_up("u", 5, at=2)
    closed = driver.close("u", at=3)
    assert closed["entry_id"] == 4
    reply = driver.top_up("u", 7, at=2)
    assert (reply["entry_id"], reply["exhaustion_seq"], reply["balance_nanos"], reply["at_ns"]) == (5, 1, 7, 3)
    assert "restored" not in reply
    assert driver.debit("u", 7, at=4)["exhaustion_seq"] == 2


def switched_off(driver: LedgerDriver, user: str = "off") -> None:
    """An account at zero whose cutoff had its 2xx."""
    driver.top_up(user, 5, at=10)
    driver.debit(user, 5, at=11)
    driver.report(ops.CUTOFF_STARTED, user, 1, at=12)
    driver.report(ops.CUTOFF_DELIVERED, user, 1, at=13)


def test_opening_restores_an_account_that_was_closed_with_its_machines_off() -> None:
    driver = LedgerDriver(restore=True)
    switched_off(driver)
    driver.close("off", at=14)
    assert driver.owed("off") is None
    driver.notices()
    reply = driver.top_up("off", 7, at=20)
    assert reply["restored"] is True
    assert (reply["state"], reply["balance_nanos"], reply["exhaustion_seq"]) == ("active", 7, 1)
    cutoff = reply["cutoff"]
    assert (cutoff["seq"], cutoff["status"], cutoff["exhausted_at_ns"]) == (1, "effective", 11)
    assert driver.entries("off")[-1].flags & (OPENED | RESTORED) == OPENED | RESTORED
    assert driver.owed("off") == ("restore", 1)
    assert driver.ledger.notices[0][1] == 20, "it depends on the call that opened it"
    assert driver.notices() == [("restore", "off", 1)]
    driver.report(ops.RESTORE_STARTED, "off", 1, at=21)
    driver.report(ops.RESTORE_DELIVERED, "off", 1, at=22)
    assert driver.owed("off") is None
    driver.close("off", at=23)
    assert "restored" not in driver.top_up("off", 7, at=24), "it was made good before it was closed again"


def test_opening_it_says_so_also_without_a_restore_url_and_nothing_is_owed() -> None:
    driver = LedgerDriver()
    switched_off(driver)
    driver.close("off", at=14)
    assert driver.top_up("off", 7, at=20)["restored"] is True
    assert driver.owed("off") is None
    driver.close("off", at=21)
    assert "restored" not in driver.top_up("off", 7, at=22)


def test_closing_twice_does_not_forget_it() -> None:
    """What is kept survives the row's next user, a move, and running out once more."""
    driver = LedgerDriver(restore=True)
    switched_off(driver)
    driver.close("off", at=14)
    switched_off(driver, "in its row")
    loaded = driver.moved(restore=True)
    loaded.top_up("off", 7, at=20)
    loaded.debit("off", 7, at=21)
    assert loaded.owed("off") == ("cutoff", 2)
    loaded.report(ops.CUTOFF_STARTED, "off", 2, at=22)
    loaded.report(ops.CUTOFF_DELIVERED, "off", 2, at=23)
    loaded.close("off", at=24)
    loaded.top_up("off", 1, at=25)
    assert loaded.owed("off") == ("restore", 2)


def test_nothing_else_of_it_comes_back(driver: LedgerDriver) -> None:
    driver.set_credit_limit("u", 50, at=1)
    driver.set_thresholds("u", [(0, 10)], at=1)
    driver.close("u", at=2)
    driver.top_up("u", 7, at=3)
    view = driver.view("u", at=3)
    assert (view["credit_limit_nanos"], view["thresholds"], view["cutoff"], view["rates"]) == (0, [], None, {})


def test_rate_seq_outlives_a_closed_account(driver: LedgerDriver) -> None:
    driver.set_rate("u", 10, at=1, resource="vm", seq=5)
    driver.set_rate("u", 0, at=2, resource="vm", seq=6)
    driver.close("u", at=3)
    driver.top_up("u", 7, at=4)
    assert refusal(driver.set_rate, "u", 10, at=5, resource="vm", seq=5).name == "STALE_RATE"


def test_but_not_longer_than_7_days(driver: LedgerDriver) -> None:
    driver.set_rate("u", 0, at=2, resource="vm", seq=6)
    driver.close("u", at=3)
    driver.top_up("u", 7, at=2 + 7 * DAY_NS)
    assert not driver.ledger.books[BUCKET].extras
    assert driver.set_rate("u", 1, at=3 + 7 * DAY_NS, resource="vm", seq=0)["rate_nanos_per_hour"] == 1


def test_it_frees_its_memory(driver: LedgerDriver) -> None:
    book = driver.ledger.books[BUCKET]
    for number in range(50):
        driver.top_up("v", 5, at=10 + number)
        driver.set_thresholds("v", [(0, 1)], at=10 + number)
        driver.close("v", at=10 + number)
    assert len(book.users) == 2
    assert len(book.rows) == 2 * 48
    assert not book.extras
    assert list(book.closed) == [b"v"]


def test_tombstones_grow_smaller_when_their_rate_seqs_are_needed_no_more(driver: LedgerDriver) -> None:
    book = driver.ledger.books[BUCKET]
    for number in range(3):
        driver.top_up(f"v{number}", 5, at=number)
        driver.set_rate(f"v{number}", 0, at=number, resource="vm", seq=1)
        driver.close(f"v{number}", at=number)
    driver.top_up("v1", 5, at=10)  # opened again
    assert [len(tombstone.quiet) for tombstone in book.closed.values()] == [1, 1]
    driver.close("u", at=1 + 7 * DAY_NS)
    assert [(user, len(tombstone.quiet)) for user, tombstone in book.closed.items()] == [
        (b"v0", 0),
        (b"v2", 1),
        (b"u", 0),
    ]
    assert list(book.fading) == [b"v2"]


def test_a_filing_of_a_closed_account_is_stale_also_for_who_has_its_row_next(driver: LedgerDriver) -> None:
    driver.set_rate("u", HOUR, at=0)
    (ref, due_ns) = driver.filed[-1]
    driver.set_rate("u", 0, at=1)
    driver.close("u", at=2)
    assert driver.ledger.next_due_ns([(ref, due_ns)]) == [-1]
    driver.ledger.tick([ref], 500)
    driver.top_up("v", 10**6, at=3)
    assert driver.ledger.next_due_ns([(ref, due_ns)]) == [-1]
    driver.set_rate("v", HOUR, at=3)
    assert driver.filed[-1] == (ref, 3 + 10**6)
    assert driver.ledger.next_due_ns([(ref, 3 + 10**6)]) == [3 + 10**6]


def test_a_rate_seq_is_kept_to_the_last_nanosecond_of_its_7_days(driver: LedgerDriver) -> None:
    book = driver.ledger.books[BUCKET]
    driver.set_rate("u", 0, at=5, resource="vm", seq=6)
    driver.close("u", at=4 + 7 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 1
    driver.top_up("v", 1, at=0)
    driver.set_rate("v", 0, at=5, resource="vm", seq=6)
    driver.close("v", at=5 + 7 * DAY_NS)
    assert len(book.closed[b"v"].quiet) == 0
    driver.top_up("w", 1, at=0)
    driver.close("w", at=3 + 14 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 1
    driver.top_up("w", 1, at=0)
    driver.close("w", at=4 + 14 * DAY_NS)
    assert len(book.closed[b"u"].quiet) == 0
