"""The name of a restore: made of the cutoff that it makes good, and the same on every attempt (CONTRACT §4)."""

from __future__ import annotations

import pytest

from billing.ledger import commands as ops
from tests.ledger.driver import BUCKET, LedgerDriver


@pytest.fixture
def driver() -> LedgerDriver:
    """A user whose machines may be off: the cutoff of seq 1, at 100, was attempted and then superseded."""
    driver = LedgerDriver(restore=True)
    driver.top_up("u", 100, at=0)
    driver.debit("u", 100, at=100)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.top_up("u", 50, at=150)
    return driver


def owed(driver: LedgerDriver, user: bytes = b"u") -> tuple[str, str, int, int]:
    call = driver.ledger.owed(BUCKET, user)
    assert call is not None
    return call.kind, call.event_id, call.seq, call.exhausted_at_ns


FIRST = ("restore", "u:1:100:restore", 1, 100)


def run_out_and_pay(driver: LedgerDriver, at: int) -> None:
    driver.debit("u", 1_000, at=at, mode="partial")
    assert owed(driver)[0] == "cutoff"
    driver.top_up("u", 50, at=at + 1)


def test_webhook_id_of_a_restore_stays_when_later_cutoffs_are_superseded_unsent(driver: LedgerDriver) -> None:
    assert owed(driver) == FIRST
    driver.report(ops.RESTORE_STARTED, "u", 1, at=151)
    for at in (200, 300, 400):
        run_out_and_pay(driver, at)
        assert owed(driver) == FIRST


def test_a_cutoff_that_was_attempted_in_between_gives_the_restore_its_name(driver: LedgerDriver) -> None:
    driver.debit("u", 50, at=200)
    driver.report(ops.CUTOFF_STARTED, "u", 2, at=201)
    driver.top_up("u", 50, at=250)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)
    run_out_and_pay(driver, 300)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)


def test_an_attempt_at_an_older_cutoff_does_not_take_the_name_back(driver: LedgerDriver) -> None:
    driver.debit("u", 50, at=200)
    driver.set_rate("u", 1, at=210)  # a line raised from zero: cutoff 3
    driver.report(ops.CUTOFF_STARTED, "u", 3, at=211)
    driver.report(ops.CUTOFF_STARTED, "u", 2, at=212)
    driver.top_up("u", 50, at=250)
    assert owed(driver) == ("restore", "u:3:210:restore", 3, 210)


def test_what_may_have_been_attempted_before_a_start_names_the_restore(driver: LedgerDriver) -> None:
    driver.debit("u", 50, at=200)
    driver.ledger.presume_attempted(BUCKET)
    driver.top_up("u", 50, at=250)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)
    run_out_and_pay(driver, 300)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)


def test_what_fell_due_before_a_start_may_have_been_called_without_a_record(driver: LedgerDriver) -> None:
    driver.set_rate("u", 3600, at=200)  # a nano a second
    due_ns = driver.view("u", 200)["exhausts_at_ns"]
    driver.ledger.started(due_ns)
    driver.top_up("u", 50, at=due_ns + 1)
    assert owed(driver) == ("restore", f"u:2:{due_ns}:restore", 2, due_ns)
    due_ns = driver.view("u", due_ns + 1)["exhausts_at_ns"]
    driver.report(ops.RESTORE_STARTED, "u", 2, at=due_ns - 2)
    driver.report(ops.RESTORE_DELIVERED, "u", 2, at=due_ns - 1)
    driver.top_up("u", 50, at=due_ns + 1)
    assert driver.owed("u") is None, "it fell due after the start, and every attempt of this life is known"


def test_the_name_of_a_restore_survives_a_snapshot_a_replay_and_a_closing(driver: LedgerDriver) -> None:
    run_out_and_pay(driver, 300)
    assert owed(driver.moved(restore=True)) == FIRST
    again = driver.replayed(restore=True)
    assert again.ledger.owed(BUCKET, b"u") == driver.ledger.owed(BUCKET, b"u")
    assert again.state() == driver.state()


def test_the_top_up_that_opens_an_account_again_restores_by_the_old_name(driver: LedgerDriver) -> None:
    driver.debit("u", 50, at=200)  # superseded unsent in the end, but first:
    driver.report(ops.CUTOFF_FAILED, "u", 2, at=201, operator=1, error="no connection")
    driver.report(ops.CUTOFF_STARTED, "u", 2, at=202)
    driver.report(ops.CUTOFF_DELIVERED, "u", 2, at=203)
    driver.close("u", at=300)
    assert driver.ledger.owed(BUCKET, b"u") is None
    driver.top_up("u", 10, at=400)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)
    run_out_and_pay(driver, 500)
    assert owed(driver) == ("restore", "u:2:200:restore", 2, 200)
