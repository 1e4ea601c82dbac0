"""Owed cutoffs as ledger state, as CONTRACT §4 has them: never without cause, never lost, never stale."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.cutoffs import CUTOFFS_MAX, Owed
from billing.ledger.entry import event_id
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver, refusal


def spending(seq_floor: int = 0) -> LedgerDriver:
    """A user who runs out at 100."""
    driver = LedgerDriver(restore=True, seq_floor=seq_floor)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    return driver


@pytest.fixture
def driver() -> LedgerDriver:
    return spending()


def status(driver: LedgerDriver, at: int = 10**6) -> object:
    return driver.view("u", at=at)["cutoff"]["status"]


def call_of(driver: LedgerDriver) -> Owed:
    """The call that is owed to `u`."""
    call = driver.ledger.owed(BUCKET, b"u")
    assert call is not None
    return call


def retried(driver: LedgerDriver, at: int) -> object:
    """What is answered about the cutoff of `u` when an operator wants it sent."""
    cutoff: Any = driver.ledger.retry_cutoff(BUCKET, b"u", at)["cutoff"]
    return cutoff["status"]


def exhaust(driver: LedgerDriver, at: int = 100) -> None:
    driver.view("u", at=at)


def deliver(driver: LedgerDriver, at: int = 102) -> None:
    """The cutoff of `u` is sent at 101, and has its 2xx then."""
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=at)


def test_a_cutoff_is_owed_from_e_on_with_its_event_id(driver: LedgerDriver) -> None:
    assert driver.owed("u") is None
    assert driver.view("u", at=99)["cutoff"] is None
    exhaust(driver)
    call = call_of(driver)
    assert (call.kind, call.seq, call.exhausted_at_ns, call.attempts) == ("cutoff", 1, 100, 0)
    assert call.event_id == event_id(b"u", 1, 100) == "u:1:100"
    assert driver.view("u", at=100)["cutoff"] == {
        "event_id": "u:1:100",
        "seq": 1,
        "exhausted_at_ns": 100,
        "status": "pending",
        "attempts": 0,
        "last_error": None,
        "delivered_at_ns": None,
        "restored_at_ns": None,
    }


def test_a_cutoff_that_time_caused_depends_on_the_entries_before_it(driver: LedgerDriver) -> None:
    driver.notices()
    driver.debit("u", 1, at=40)
    exhaust(driver)
    ((kind, depends_ns, bucket_id, user_id, seq),) = driver.ledger.notices
    assert (kind, depends_ns, bucket_id, user_id, seq) == ("cutoff", 40, BUCKET, b"u", 1)


def test_a_cutoff_that_a_command_caused_depends_on_that_command(driver: LedgerDriver) -> None:
    driver.debit("u", 60, at=40)
    assert driver.ledger.notices == [("cutoff", 40, BUCKET, b"u", 1)]


def test_attempts_and_errors_are_counted_until_2xx(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.report(ops.CUTOFF_FAILED, "u", 1, at=102, error="503")
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=103)
    (row,) = driver.pending()
    assert row == {
        "user_id": "u", "event_id": "u:1:100", "seq": 1, "exhausted_at_ns": 100, "attempts": 2, "last_error": "503",
    }  # fmt: skip
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=104)
    assert status(driver) == "delivered"
    assert driver.view("u", at=105)["cutoff"]["last_error"] is None
    assert driver.view("u", at=105)["cutoff"]["delivered_at_ns"] == 104
    assert driver.owed("u") is None
    assert driver.pending() == []


def test_the_instant_of_the_2xx_survives_a_snapshot_and_ends_where_the_cutoff_is_owed_again(
    driver: LedgerDriver,
) -> None:
    exhaust(driver)
    deliver(driver, at=104)
    driver.load_again()
    assert driver.view("u", at=200)["cutoff"]["delivered_at_ns"] == 104
    driver.report(ops.CUTOFF_RETRY, "u", 1, at=300)
    assert driver.view("u", at=300)["cutoff"]["delivered_at_ns"] is None
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=301)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=302)
    assert driver.view("u", at=400)["cutoff"]["delivered_at_ns"] == 302


def test_the_call_that_restores_tells_no_instant_of_the_2xx_and_get_account_goes_on_telling_it(
    driver: LedgerDriver,
) -> None:
    exhaust(driver)
    deliver(driver, at=104)
    assert "delivered_at_ns" not in driver.top_up("u", 50, at=110)["cutoff"]
    assert driver.view("u", at=110)["cutoff"]["delivered_at_ns"] == 104


def test_the_instant_of_a_restores_2xx_is_told_of_the_cutoff_that_it_makes_good(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver, at=104)
    driver.top_up("u", 50, at=110)
    driver.report(ops.RESTORE_STARTED, "u", 1, at=111)
    assert driver.view("u", at=112)["cutoff"]["restored_at_ns"] is None
    driver.report(ops.RESTORE_DELIVERED, "u", 1, at=113)
    driver.load_again()
    cutoff = driver.view("u", at=120)["cutoff"]
    assert (cutoff["delivered_at_ns"], cutoff["restored_at_ns"]) == (104, 113)
    assert driver.view("u", at=10**6)["cutoff"]["restored_at_ns"] is None, "that of the next cutoff"


def test_what_delivery_reports_settles_nothing_and_is_no_row(driver: LedgerDriver) -> None:
    exhaust(driver)
    rows = driver.rows("u")
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=500)
    assert driver.rows("u") == rows
    entry = driver.entries("u")[-1]
    assert (entry.entry_id, entry.amount, entry.accrued, entry.at_ns) == (0, 0, 0, 500)


def test_a_delivered_cutoff_is_effective_when_the_rate_is_zero(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver)
    driver.set_rate("u", 0, at=103)
    assert status(driver) == "effective"


def test_a_cutoff_delivered_at_rate_zero_is_effective_at_once(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.set_rate("u", 0, at=101)
    assert status(driver) == "pending", "the cutoff is owed all the same"
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=102)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=103)
    assert status(driver) == "effective"


def test_what_lifts_available_before_the_first_attempt_supersedes_the_cutoff(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.notices()
    reply = driver.top_up("u", 100, at=150)
    assert reply["cutoff"]["status"] == "superseded"
    assert driver.owed("u") is None, "nothing was sent, so nothing has to be undone"
    assert driver.notices() == [("superseded", "u", 1)]
    assert refusal(driver.report, ops.CUTOFF_STARTED, "u", 1, at=151).name == "UNKNOWN_CUTOFF"


def test_if_an_attempt_has_started_no_new_one_starts_and_a_restore_is_owed(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.notices()
    reply = driver.top_up("u", 1000, at=150)
    assert (reply["restored"], reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == (True, "superseded", 1)
    assert driver.notices() == [("superseded", "u", 1), ("restore", "u", 1)]
    assert driver.owed("u") == ("restore", 1)
    assert call_of(driver).event_id == "u:1:100:restore"
    assert refusal(driver.report, ops.CUTOFF_STARTED, "u", 1, at=151).name == "UNKNOWN_CUTOFF"
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=152)  # the one in flight
    assert status(driver, at=152) == "delivered"
    driver.report(ops.RESTORE_STARTED, "u", 1, at=153)
    driver.report(ops.RESTORE_FAILED, "u", 1, at=154, error="500")
    assert call_of(driver).attempts == 1
    driver.report(ops.RESTORE_STARTED, "u", 1, at=155)
    driver.report(ops.RESTORE_DELIVERED, "u", 1, at=156)
    assert driver.owed("u") is None
    assert refusal(driver.report, ops.RESTORE_DELIVERED, "u", 1, at=157).name == "UNKNOWN_CUTOFF"


def test_a_restore_is_owed_also_when_the_cutoff_had_its_2xx(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver)
    assert driver.top_up("u", 1000, at=150)["cutoff"]["status"] == "delivered"
    assert driver.owed("u") == ("restore", 1)


def test_without_a_restore_url_nothing_is_owed_back() -> None:
    driver = LedgerDriver(restore=False)
    driver.top_up("u", 100, at=0)
    driver.debit("u", 100, at=1)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=2)
    driver.top_up("u", 1, at=3)
    assert driver.owed("u") is None
    assert [kind for kind, _, _ in driver.notices()] == ["cutoff", "superseded"]
    assert driver.moved(restore=True).owed("u") is None, "nor when one is configured later"


def test_where_both_are_owed_only_the_newest_state_is_sent(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.top_up("u", 50, at=150)
    assert driver.owed("u") == ("restore", 1)
    exhaust(driver, at=200)
    assert driver.owed("u") == ("cutoff", 2)
    assert refusal(driver.report, ops.RESTORE_STARTED, "u", 1, at=201).name == "UNKNOWN_CUTOFF"
    driver.top_up("u", 1000, at=210)
    assert driver.owed("u") == ("restore", 1), "the second one was never attempted"


def test_a_restore_in_flight_may_end_after_the_next_exhaustion(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.top_up("u", 50, at=150)
    driver.report(ops.RESTORE_STARTED, "u", 1, at=151)
    exhaust(driver, at=200)
    driver.report(ops.RESTORE_DELIVERED, "u", 1, at=201)
    driver.top_up("u", 1000, at=210)
    assert driver.owed("u") is None


def test_the_oldest_undelivered_cutoff_goes_first(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.set_rate("u", 5, at=110, resource="vm")
    assert driver.owed("u") == ("cutoff", 1)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=111)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=112)
    assert driver.owed("u") == ("cutoff", 2)
    assert status(driver) == "pending"
    reply = driver.top_up("u", 10**9, at=120)
    assert (reply["cutoff"]["seq"], reply["cutoff"]["status"]) == (2, "superseded")
    assert driver.owed("u") == ("restore", 1)


def test_undelivered_cutoffs_of_an_account_have_a_maximum(driver: LedgerDriver) -> None:
    exhaust(driver)
    for number in range(CUTOFFS_MAX):
        driver.set_rate("u", 5, at=110 + number, resource="vm")
        driver.set_rate("u", 0, at=110 + number, resource="vm")
    rows = driver.pending()
    assert (len(rows), rows[0]["seq"], rows[-1]["seq"]) == (CUTOFFS_MAX, 2, CUTOFFS_MAX + 1)
    assert driver.ledger.books[BUCKET].pending_cutoffs == CUTOFFS_MAX
    assert driver.moved().pending() == rows


def test_verification_sends_a_delivered_cutoff_again_while_machines_run(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    assert refusal(driver.report, ops.CUTOFF_RETRY, "u", 1, at=101).name == "UNKNOWN_CUTOFF"
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    driver.notices()
    driver.report(ops.CUTOFF_RETRY, "u", 1, at=103)
    assert driver.notices() == [("cutoff", "u", 1)]
    assert call_of(driver).event_id == "u:1:100"
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=104)
    driver.report(ops.CUTOFF_DELIVERED, "u", 1, at=105)
    driver.set_rate("u", 0, at=106)
    assert refusal(driver.report, ops.CUTOFF_RETRY, "u", 1, at=107).name == "UNKNOWN_CUTOFF", "it was effective"
    driver.report(ops.CUTOFF_RETRY, "u", 1, at=108, operator=1)
    assert driver.owed("u") == ("cutoff", 1)


def test_an_operator_may_have_what_is_owed_sent_at_once(driver: LedgerDriver) -> None:
    assert refusal(driver.ledger.retry_cutoff, BUCKET, b"u", 50).name == "UNKNOWN_CUTOFF"
    driver.notices()
    assert retried(driver, 100) == "pending"
    assert driver.notices() == [("cutoff", "u", 1), ("retry", "u", 1)]
    deliver(driver)
    assert retried(driver, 103) == "pending"
    assert driver.entries("u")[-1].command == (ops.CUTOFF_RETRY, b"u", 1, 1, 0, b"", b"", b"", b"", b"")
    assert refusal(driver.ledger.retry_cutoff, BUCKET, b"nobody", 103).name == "UNKNOWN_ACCOUNT"


def test_a_released_cutoff_says_so(driver: LedgerDriver) -> None:
    exhaust(driver)
    assert call_of(driver).released is False
    driver.report(ops.CUTOFF_RELEASED, "u", 1, at=101)
    assert call_of(driver).released is True


def test_after_a_start_what_is_pending_counts_as_attempted(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.ledger.presume_attempted(BUCKET)
    reply = driver.top_up("u", 1000, at=150)
    assert reply["cutoff"]["attempts"] == 0
    assert driver.owed("u") == ("restore", 1)
    again = driver.replayed(restore=True)
    assert again.owed("u") == ("restore", 1)
    assert again.state() == driver.state()


def test_what_became_owed_since_the_start_does_not(driver: LedgerDriver) -> None:
    driver.ledger.presume_attempted(BUCKET)
    exhaust(driver)
    driver.top_up("u", 1000, at=150)
    assert driver.owed("u") is None


def test_an_attempt_without_a_connection_counts_and_a_top_up_still_supersedes_the_cutoff(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_FAILED, "u", 1, at=101, operator=1, error="connection refused")
    cutoff = driver.view("u", at=102)["cutoff"]
    assert (cutoff["status"], cutoff["attempts"], cutoff["last_error"]) == ("pending", 1, "connection refused")
    assert driver.call(ops.TOP_UP, "u", 103, a=5)["cutoff"]["status"] == "superseded"
    assert driver.owed("u") is None


@pytest.mark.parametrize("op", [ops.CUTOFF_DELIVERED, ops.CUTOFF_FAILED])
def test_what_became_of_an_attempt_comes_after_its_beginning(driver: LedgerDriver, op: int) -> None:
    exhaust(driver)
    assert refusal(driver.report, op, "u", 1, at=101).name == "UNKNOWN_CUTOFF"


@pytest.mark.parametrize("op", range(ops.CUTOFF_STARTED, ops.CUTOFF_RETRY + 1))
def test_a_report_about_something_that_was_never_owed_is_unknown(driver: LedgerDriver, op: int) -> None:
    before = driver.state()
    entry_count = len(driver.entries())
    assert refusal(driver.report, op, "u", 1, at=50).name == "UNKNOWN_CUTOFF"
    assert refusal(driver.report, op, "nobody", 1, at=50).name == "UNKNOWN_ACCOUNT"
    assert (driver.state(), len(driver.entries())) == (before, entry_count)


def test_a_second_2xx_for_the_same_cutoff_changes_nothing(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver)
    assert refusal(driver.report, ops.CUTOFF_DELIVERED, "u", 1, at=103).name == "UNKNOWN_CUTOFF"


def test_all_that_is_owed_in_a_bucket(driver: LedgerDriver) -> None:
    driver.top_up("v", 5, at=0)
    driver.debit("v", 5, at=1)
    exhaust(driver)
    assert [(user_id, call.kind) for user_id, call in driver.ledger.owed_in(BUCKET)] == [
        (b"v", "cutoff"),
        (b"u", "cutoff"),
    ]
    assert driver.ledger.owed(BUCKET, b"nobody") is None
    assert driver.ledger.owed(BUCKET + 1, b"u") is None


def test_a_cutoff_sent_again_is_counted_as_pending_again(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.top_up("v", 5, at=0)
    driver.debit("v", 5, at=1)
    assert driver.ledger.books[BUCKET].pending_cutoffs == 2
    deliver(driver)
    assert driver.ledger.books[BUCKET].pending_cutoffs == 1
    driver.report(ops.CUTOFF_RETRY, "u", 1, at=103)
    assert driver.ledger.books[BUCKET].pending_cutoffs == 2
    driver.state()  # which asserts that it is so


def test_a_delivered_cutoff_of_an_account_that_was_restored_is_not_sent_again(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver)
    driver.top_up("u", 1000, at=103)
    for operator in (0, 1):
        assert refusal(driver.report, ops.CUTOFF_RETRY, "u", 1, at=104, operator=operator).name == "UNKNOWN_CUTOFF"


def test_a_restore_is_owed_with_its_cutoffs_instant_and_its_own_attempts(driver: LedgerDriver) -> None:
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.top_up("u", 1000, at=103)
    for attempts in (0, 1, 2):
        call = driver.ledger.owed(BUCKET, b"u")
        assert call == ("restore", "u:1:100:restore", 1, 100, attempts, True, b"", 100), "nothing holds a restore back"
        driver.report(ops.RESTORE_STARTED, "u", 1, at=104)
    driver.report(ops.RESTORE_DELIVERED, "u", 1, at=105)
    exhaust(driver, at=10**6)
    driver.report(ops.CUTOFF_STARTED, "u", 2, at=10**6)
    driver.top_up("u", 1000, at=10**6)
    assert call_of(driver).attempts == 0


def test_a_restore_that_failed_and_then_succeeded_leaves_nothing_behind(driver: LedgerDriver) -> None:
    clean = spending()
    for each in (driver, clean):
        exhaust(each)
        each.report(ops.CUTOFF_STARTED, "u", 1, at=101)
        each.top_up("u", 1000, at=103)
        each.report(ops.RESTORE_STARTED, "u", 1, at=104)
        if each is driver:
            each.report(ops.RESTORE_FAILED, "u", 1, at=105, error="500")
            each.report(ops.RESTORE_STARTED, "u", 1, at=106)
        each.report(ops.RESTORE_DELIVERED, "u", 1, at=107)
    assert driver.state() == clean.state()
    extra = driver.ledger.books[BUCKET].extras[0]
    assert (extra.restore_attempts, extra.restore_error) == (0, b"")


def test_a_restore_that_failed_is_forgotten_by_the_next_one(driver: LedgerDriver) -> None:
    clean = spending()
    for each in (driver, clean):
        exhaust(each)
        each.report(ops.CUTOFF_STARTED, "u", 1, at=101)
        each.top_up("u", 1000, at=103)
        if each is driver:
            each.report(ops.RESTORE_STARTED, "u", 1, at=104)
            each.report(ops.RESTORE_FAILED, "u", 1, at=105, error="500")
        exhaust(each, at=10**6)
        each.report(ops.CUTOFF_STARTED, "u", 2, at=10**6)
        each.top_up("u", 1000, at=10**6)
    assert driver.state() == clean.state()
    assert driver.ledger.books[BUCKET].extras[0].restore_error == b""


def test_what_a_command_makes_owed_depends_on_that_command(driver: LedgerDriver) -> None:
    """Superseded cutoffs, restores and thresholds, as `test_a_cutoff_that_a_command_caused_depends_on_that_command`."""
    exhaust(driver)
    driver.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    driver.set_thresholds("u", [(0, 500), (0, 400)], at=102)
    driver.ledger.notices.clear()
    driver.top_up("u", 1000, at=150)
    assert [notice[:2] for notice in driver.ledger.notices] == [("superseded", 150), ("restore", 150)]
    driver.ledger.notices.clear()
    driver.debit("u", 700, at=160)
    assert [notice[:2] for notice in driver.ledger.notices] == [("threshold", 160), ("threshold", 160)]


def test_what_time_makes_owed_depends_on_the_entries_before_it_for_each_of_the_holds_that_expire_together(
    driver: LedgerDriver,
) -> None:
    driver.debit("u", 10, at=3)
    driver.hold("u", 40, at=4, ttl=20, request_id="a")
    driver.hold("u", 46, at=4, ttl=20, request_id="b")  # which takes all there is
    driver.ledger.notices.clear()
    driver.view("u", at=500)
    assert [notice[:2] for notice in driver.ledger.notices] == [("superseded", 4), ("cutoff", 24)]


def test_a_pending_cutoff_that_no_attempt_failed_has_no_error(driver: LedgerDriver) -> None:
    exhaust(driver)
    (row,) = driver.pending()
    assert row["last_error"] is None


@pytest.mark.parametrize("by", ["time", "a look", "a command", "a raised line"])
def test_the_next_seq_is_at_least_the_floor_whatever_the_cutoff_comes_of(by: str) -> None:
    driver = spending(seq_floor=50)
    if by == "time":
        driver.ledger.tick([ref for ref, _ in driver.filed], 100)
    elif by == "a look":
        exhaust(driver)
    elif by == "a command":
        driver.debit("u", 60, at=40)
    else:
        exhaust(driver)
        driver.set_rate("u", HOUR, at=100, resource="other")
    expected = [50, 51] if by == "a raised line" else [50]
    assert driver.cutoffs() == expected
    driver.set_rate("u", 0, at=200)
    driver.set_rate("u", 0, at=200, resource="other")
    driver.top_up("u", 100, at=200)
    driver.debit("u", 100, at=200)
    assert driver.cutoffs() == [expected[-1] + 1]


def test_replay_has_the_seqs_that_were_given_whatever_the_floor_is_now() -> None:
    before = spending(seq_floor=50)
    exhaust(before)
    before.top_up("u", 1000, at=200)
    before.debit("u", 1000, at=200)
    for floor in (0, 7, 5000):
        assert before.replayed(restore=True, seq_floor=floor).state() == before.state()
    again = before.replayed(restore=True, seq_floor=60)
    again.top_up("u", 2000, at=300)
    again.debit("u", 2000, at=300)
    assert again.view("u", at=300)["exhaustion_seq"] == 60


def test_an_account_that_is_opened_again_goes_on_behind_the_seq_that_it_had(driver: LedgerDriver) -> None:
    exhaust(driver)
    deliver(driver)
    driver.set_rate("u", 0, at=200)
    driver.close("u", at=200)
    for floor, seq in ((0, 2), (50, 50)):
        again = driver.moved(restore=True, seq_floor=floor)
        again.top_up("u", 1, at=300)
        again.debit("u", 1, at=300)
        assert again.view("u", at=300)["exhaustion_seq"] == seq
