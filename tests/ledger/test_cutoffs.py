"""Owed cutoffs as ledger state, as CONTRACT §4 has them: never without cause, never lost, never stale."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.cutoffs import CUTOFFS_MAX, Owed
from billing.ledger.entry import event_id
from tests.ledger.bank import BUCKET, HOUR, Bank, refusal


@pytest.fixture
def bank() -> Bank:
    bank = Bank(restore=True)
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    return bank


def status(bank: Bank, at: int = 10**6) -> object:
    return bank.view("u", at=at)["cutoff"]["status"]


def call_of(bank: Bank) -> Owed:
    """The call that is owed to `u`."""
    call = bank.ledger.owed(BUCKET, b"u")
    assert call is not None
    return call


def retried(bank: Bank, at: int) -> object:
    """What is answered about the cutoff of `u` when an operator wants it sent."""
    cutoff: Any = bank.ledger.retry_cutoff(BUCKET, b"u", at)["cutoff"]
    return cutoff["status"]


def exhaust(bank: Bank, at: int = 100) -> None:
    bank.view("u", at=at)


def test_a_cutoff_is_owed_from_e_on_with_its_event_id(bank: Bank) -> None:
    assert bank.owed("u") is None
    assert bank.view("u", at=99)["cutoff"] is None
    exhaust(bank)
    call = call_of(bank)
    assert (call.kind, call.seq, call.exhausted_at_ns, call.attempts) == ("cutoff", 1, 100, 0)
    assert call.event_id == event_id(b"u", 1, 100) == "u:1:100"
    assert bank.view("u", at=100)["cutoff"] == {
        "event_id": "u:1:100",
        "seq": 1,
        "exhausted_at_ns": 100,
        "status": "pending",
        "attempts": 0,
        "last_error": None,
        "delivered_at_ns": None,
        "restored_at_ns": None,
    }


def test_a_cutoff_that_time_caused_depends_on_the_entries_before_it(bank: Bank) -> None:
    bank.notices()
    bank.debit("u", 1, at=40)
    exhaust(bank)
    ((kind, depends_ns, bucket_id, user_id, seq),) = bank.ledger.notices
    assert (kind, depends_ns, bucket_id, user_id, seq) == ("cutoff", 40, BUCKET, b"u", 1)


def test_a_cutoff_that_a_command_caused_depends_on_that_command(bank: Bank) -> None:
    bank.debit("u", 60, at=40)
    assert bank.ledger.notices == [("cutoff", 40, BUCKET, b"u", 1)]


def test_attempts_and_errors_are_counted_until_2xx(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_FAILED, "u", 1, at=102, error="503")
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=103)
    (row,) = bank.pending()
    assert row == {
        "user_id": "u", "event_id": "u:1:100", "seq": 1, "exhausted_at_ns": 100, "attempts": 2, "last_error": "503",
    }  # fmt: skip
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=104)
    assert status(bank) == "delivered"
    assert bank.view("u", at=105)["cutoff"]["last_error"] is None
    assert bank.view("u", at=105)["cutoff"]["delivered_at_ns"] == 104
    assert bank.owed("u") is None
    assert bank.pending() == []


def test_the_instant_of_the_2xx_survives_a_snapshot_and_ends_where_the_cutoff_is_owed_again(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=104)
    dumped = bank.ledger.dump(BUCKET)
    bank.ledger.drop(BUCKET)
    bank.ledger.load(BUCKET, dumped)
    bank.ledger.wake(BUCKET)
    assert bank.view("u", at=200)["cutoff"]["delivered_at_ns"] == 104
    bank.report(ops.CUTOFF_RETRY, "u", 1, at=300)
    assert bank.view("u", at=300)["cutoff"]["delivered_at_ns"] is None
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=301)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=302)
    assert bank.view("u", at=400)["cutoff"]["delivered_at_ns"] == 302


def test_the_call_that_restores_tells_no_instant_of_the_2xx_and_get_account_goes_on_telling_it(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=104)
    assert "delivered_at_ns" not in bank.top_up("u", 50, at=110)["cutoff"]
    assert bank.view("u", at=110)["cutoff"]["delivered_at_ns"] == 104


def test_the_instant_of_a_restores_2xx_is_told_of_the_cutoff_that_it_makes_good() -> None:
    bank = Bank(restore=True)
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=104)
    bank.top_up("u", 50, at=110)
    bank.report(ops.RESTORE_STARTED, "u", 1, at=111)
    assert bank.view("u", at=112)["cutoff"]["restored_at_ns"] is None
    bank.report(ops.RESTORE_DELIVERED, "u", 1, at=113)
    dumped = bank.ledger.dump(BUCKET)
    bank.ledger.drop(BUCKET)
    bank.ledger.load(BUCKET, dumped)
    bank.ledger.wake(BUCKET)
    cutoff = bank.view("u", at=120)["cutoff"]
    assert (cutoff["delivered_at_ns"], cutoff["restored_at_ns"]) == (104, 113)
    assert bank.view("u", at=10**6)["cutoff"]["restored_at_ns"] is None, "that of the next cutoff"


def test_what_delivery_reports_settles_nothing_and_is_no_row(bank: Bank) -> None:
    exhaust(bank)
    rows = bank.rows("u")
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=500)
    assert bank.rows("u") == rows
    entry = bank.entries("u")[-1]
    assert (entry.entry_id, entry.amount, entry.accrued, entry.at_ns) == (0, 0, 0, 500)


def test_a_delivered_cutoff_is_effective_when_the_rate_is_zero(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    bank.set_rate("u", 0, at=103)
    assert status(bank) == "effective"


def test_a_cutoff_delivered_at_rate_zero_is_effective_at_once(bank: Bank) -> None:
    exhaust(bank)
    bank.set_rate("u", 0, at=101)
    assert status(bank) == "pending", "the cutoff is owed all the same"
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=102)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=103)
    assert status(bank) == "effective"


def test_what_lifts_available_before_the_first_attempt_supersedes_the_cutoff(bank: Bank) -> None:
    exhaust(bank)
    bank.notices()
    reply = bank.top_up("u", 100, at=150)
    assert reply["cutoff"]["status"] == "superseded"
    assert bank.owed("u") is None, "nothing was sent, so nothing has to be undone"
    assert bank.notices() == [("superseded", "u", 1)]
    assert refusal(bank.report, ops.CUTOFF_STARTED, "u", 1, at=151).name == "UNKNOWN_CUTOFF"


def test_if_an_attempt_has_started_no_new_one_starts_and_a_restore_is_owed(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.notices()
    reply = bank.top_up("u", 1000, at=150)
    assert (reply["restored"], reply["cutoff"]["status"], reply["cutoff"]["attempts"]) == (True, "superseded", 1)
    assert bank.notices() == [("superseded", "u", 1), ("restore", "u", 1)]
    assert bank.owed("u") == ("restore", 1)
    assert call_of(bank).event_id == "u:1:100:restore"
    assert refusal(bank.report, ops.CUTOFF_STARTED, "u", 1, at=151).name == "UNKNOWN_CUTOFF"
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=152)  # the one in flight
    assert status(bank, at=152) == "delivered"
    bank.report(ops.RESTORE_STARTED, "u", 1, at=153)
    bank.report(ops.RESTORE_FAILED, "u", 1, at=154, error="500")
    assert call_of(bank).attempts == 1
    bank.report(ops.RESTORE_STARTED, "u", 1, at=155)
    bank.report(ops.RESTORE_DELIVERED, "u", 1, at=156)
    assert bank.owed("u") is None
    assert refusal(bank.report, ops.RESTORE_DELIVERED, "u", 1, at=157).name == "UNKNOWN_CUTOFF"


def test_a_restore_is_owed_also_when_the_cutoff_had_its_2xx(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    assert bank.top_up("u", 1000, at=150)["cutoff"]["status"] == "delivered"
    assert bank.owed("u") == ("restore", 1)


def test_without_a_restore_url_nothing_is_owed_back() -> None:
    bank = Bank(restore=False)
    bank.top_up("u", 100, at=0)
    bank.debit("u", 100, at=1)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=2)
    bank.top_up("u", 1, at=3)
    assert bank.owed("u") is None
    assert [kind for kind, _, _ in bank.notices()] == ["cutoff", "superseded"]
    loaded = Bank(restore=True)
    loaded.ledger.drop(BUCKET)
    loaded.ledger.load(BUCKET, bank.state())
    assert loaded.owed("u") is None, "nor when one is configured later"


def test_where_both_are_owed_only_the_newest_state_is_sent(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.top_up("u", 50, at=150)
    assert bank.owed("u") == ("restore", 1)
    exhaust(bank, at=200)
    assert bank.owed("u") == ("cutoff", 2)
    assert refusal(bank.report, ops.RESTORE_STARTED, "u", 1, at=201).name == "UNKNOWN_CUTOFF"
    bank.top_up("u", 1000, at=210)
    assert bank.owed("u") == ("restore", 1), "the second one was never attempted"


def test_a_restore_in_flight_may_end_after_the_next_exhaustion(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.top_up("u", 50, at=150)
    bank.report(ops.RESTORE_STARTED, "u", 1, at=151)
    exhaust(bank, at=200)
    bank.report(ops.RESTORE_DELIVERED, "u", 1, at=201)
    bank.top_up("u", 1000, at=210)
    assert bank.owed("u") is None


def test_the_oldest_undelivered_cutoff_goes_first(bank: Bank) -> None:
    exhaust(bank)
    bank.set_rate("u", 5, at=110, resource="vm")
    assert bank.owed("u") == ("cutoff", 1)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=111)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=112)
    assert bank.owed("u") == ("cutoff", 2)
    assert status(bank) == "pending"
    reply = bank.top_up("u", 10**9, at=120)
    assert (reply["cutoff"]["seq"], reply["cutoff"]["status"]) == (2, "superseded")
    assert bank.owed("u") == ("restore", 1)


def test_undelivered_cutoffs_of_an_account_have_a_maximum(bank: Bank) -> None:
    exhaust(bank)
    for number in range(CUTOFFS_MAX):
        bank.set_rate("u", 5, at=110 + number, resource="vm")
        bank.set_rate("u", 0, at=110 + number, resource="vm")
    rows = bank.pending()
    assert (len(rows), rows[0]["seq"], rows[-1]["seq"]) == (CUTOFFS_MAX, 2, CUTOFFS_MAX + 1)
    assert bank.ledger.books[BUCKET].pending_cutoffs == CUTOFFS_MAX
    loaded = Bank()
    loaded.ledger.drop(BUCKET)
    loaded.ledger.load(BUCKET, bank.state())
    assert loaded.pending() == rows


def test_verification_sends_a_delivered_cutoff_again_while_machines_run(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    assert refusal(bank.report, ops.CUTOFF_RETRY, "u", 1, at=101).name == "UNKNOWN_CUTOFF"
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    bank.notices()
    bank.report(ops.CUTOFF_RETRY, "u", 1, at=103)
    assert bank.notices() == [("cutoff", "u", 1)]
    assert call_of(bank).event_id == "u:1:100"
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=104)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=105)
    bank.set_rate("u", 0, at=106)
    assert refusal(bank.report, ops.CUTOFF_RETRY, "u", 1, at=107).name == "UNKNOWN_CUTOFF", "it was effective"
    bank.report(ops.CUTOFF_RETRY, "u", 1, at=108, operator=1)
    assert bank.owed("u") == ("cutoff", 1)


def test_an_operator_may_have_what_is_owed_sent_at_once(bank: Bank) -> None:
    assert refusal(bank.ledger.retry_cutoff, BUCKET, b"u", 50).name == "UNKNOWN_CUTOFF"
    bank.notices()
    assert retried(bank, 100) == "pending"
    assert bank.notices() == [("cutoff", "u", 1), ("retry", "u", 1)]
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    assert retried(bank, 103) == "pending"
    assert bank.entries("u")[-1].command == (ops.CUTOFF_RETRY, b"u", 1, 1, 0, b"", b"", b"", b"", b"")
    assert refusal(bank.ledger.retry_cutoff, BUCKET, b"nobody", 103).name == "UNKNOWN_ACCOUNT"


def test_a_released_cutoff_says_so(bank: Bank) -> None:
    exhaust(bank)
    assert call_of(bank).released is False
    bank.report(ops.CUTOFF_RELEASED, "u", 1, at=101)
    assert call_of(bank).released is True


def test_after_a_start_what_is_pending_counts_as_attempted(bank: Bank) -> None:
    exhaust(bank)
    bank.ledger.presume_attempted(BUCKET)
    reply = bank.top_up("u", 1000, at=150)
    assert reply["cutoff"]["attempts"] == 0
    assert bank.owed("u") == ("restore", 1)
    again = Bank(restore=True)
    bank.entries()
    for packed in bank.journal:
        again.ledger.replay(BUCKET, packed)
    assert again.owed("u") == ("restore", 1)
    assert again.state() == bank.state()


def test_what_became_owed_since_the_start_does_not(bank: Bank) -> None:
    bank.ledger.presume_attempted(BUCKET)
    exhaust(bank)
    bank.top_up("u", 1000, at=150)
    assert bank.owed("u") is None


def test_an_attempt_without_a_connection_counts_and_a_top_up_still_supersedes_the_cutoff(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_FAILED, "u", 1, at=101, operator=1, error="connection refused")
    cutoff = bank.view("u", at=102)["cutoff"]
    assert (cutoff["status"], cutoff["attempts"], cutoff["last_error"]) == ("pending", 1, "connection refused")
    assert bank.call(ops.TOP_UP, "u", 103, a=5)["cutoff"]["status"] == "superseded"
    assert bank.owed("u") is None


@pytest.mark.parametrize("op", [ops.CUTOFF_DELIVERED, ops.CUTOFF_FAILED])
def test_what_became_of_an_attempt_comes_after_its_beginning(bank: Bank, op: int) -> None:
    exhaust(bank)
    assert refusal(bank.report, op, "u", 1, at=101).name == "UNKNOWN_CUTOFF"


@pytest.mark.parametrize("op", range(ops.CUTOFF_STARTED, ops.CUTOFF_RETRY + 1))
def test_a_report_about_something_that_was_never_owed_is_unknown(bank: Bank, op: int) -> None:
    before = bank.state()
    entry_count = len(bank.entries())
    assert refusal(bank.report, op, "u", 1, at=50).name == "UNKNOWN_CUTOFF"
    assert refusal(bank.report, op, "nobody", 1, at=50).name == "UNKNOWN_ACCOUNT"
    assert (bank.state(), len(bank.entries())) == (before, entry_count)


def test_a_second_2xx_for_the_same_cutoff_changes_nothing(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    assert refusal(bank.report, ops.CUTOFF_DELIVERED, "u", 1, at=103).name == "UNKNOWN_CUTOFF"


def test_all_that_is_owed_in_a_bucket(bank: Bank) -> None:
    bank.top_up("v", 5, at=0)
    bank.debit("v", 5, at=1)
    exhaust(bank)
    assert [(user_id, call.kind) for user_id, call in bank.ledger.owed_in(BUCKET)] == [
        (b"v", "cutoff"),
        (b"u", "cutoff"),
    ]
    assert bank.ledger.owed(BUCKET, b"nobody") is None
    assert bank.ledger.owed(BUCKET + 1, b"u") is None


def test_a_cutoff_sent_again_is_counted_as_pending_again(bank: Bank) -> None:
    exhaust(bank)
    bank.top_up("v", 5, at=0)
    bank.debit("v", 5, at=1)
    assert bank.ledger.books[BUCKET].pending_cutoffs == 2
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    assert bank.ledger.books[BUCKET].pending_cutoffs == 1
    bank.report(ops.CUTOFF_RETRY, "u", 1, at=103)
    assert bank.ledger.books[BUCKET].pending_cutoffs == 2
    bank.state()  # which asserts that it is so


def test_a_delivered_cutoff_of_an_account_that_was_restored_is_not_sent_again(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.report(ops.CUTOFF_DELIVERED, "u", 1, at=102)
    bank.top_up("u", 1000, at=103)
    for operator in (0, 1):
        assert refusal(bank.report, ops.CUTOFF_RETRY, "u", 1, at=104, operator=operator).name == "UNKNOWN_CUTOFF"


def test_a_restore_is_owed_with_its_cutoffs_instant_and_its_own_attempts(bank: Bank) -> None:
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.top_up("u", 1000, at=103)
    for attempts in (0, 1, 2):
        call = bank.ledger.owed(BUCKET, b"u")
        assert call == ("restore", "u:1:100:restore", 1, 100, attempts, True, b"", 100), "nothing holds a restore back"
        bank.report(ops.RESTORE_STARTED, "u", 1, at=104)
    bank.report(ops.RESTORE_DELIVERED, "u", 1, at=105)
    exhaust(bank, at=10**6)
    bank.report(ops.CUTOFF_STARTED, "u", 2, at=10**6)
    bank.top_up("u", 1000, at=10**6)
    assert call_of(bank).attempts == 0


def test_a_restore_that_failed_and_then_succeeded_leaves_nothing_behind(bank: Bank) -> None:
    clean = Bank(restore=True)
    clean.top_up("u", 100, at=0)
    clean.set_rate("u", HOUR, at=0)
    for each in (bank, clean):
        exhaust(each)
        each.report(ops.CUTOFF_STARTED, "u", 1, at=101)
        each.top_up("u", 1000, at=103)
        each.report(ops.RESTORE_STARTED, "u", 1, at=104)
        if each is bank:
            each.report(ops.RESTORE_FAILED, "u", 1, at=105, error="500")
            each.report(ops.RESTORE_STARTED, "u", 1, at=106)
        each.report(ops.RESTORE_DELIVERED, "u", 1, at=107)
    assert bank.state() == clean.state()
    extra = bank.ledger.books[BUCKET].extras[0]
    assert (extra.restore_attempts, extra.restore_error) == (0, b"")


def test_a_restore_that_failed_is_forgotten_by_the_next_one(bank: Bank) -> None:
    clean = Bank(restore=True)
    clean.top_up("u", 100, at=0)
    clean.set_rate("u", HOUR, at=0)
    for each in (bank, clean):
        exhaust(each)
        each.report(ops.CUTOFF_STARTED, "u", 1, at=101)
        each.top_up("u", 1000, at=103)
        if each is bank:
            each.report(ops.RESTORE_STARTED, "u", 1, at=104)
            each.report(ops.RESTORE_FAILED, "u", 1, at=105, error="500")
        exhaust(each, at=10**6)
        each.report(ops.CUTOFF_STARTED, "u", 2, at=10**6)
        each.top_up("u", 1000, at=10**6)
    assert bank.state() == clean.state()
    assert bank.ledger.books[BUCKET].extras[0].restore_error == b""


def test_what_a_command_makes_owed_depends_on_that_command(bank: Bank) -> None:
    """Superseded cutoffs, restores and thresholds, as `test_a_cutoff_that_a_command_caused_depends_on_that_command`."""
    exhaust(bank)
    bank.report(ops.CUTOFF_STARTED, "u", 1, at=101)
    bank.set_thresholds("u", [(0, 500), (0, 400)], at=102)
    bank.ledger.notices.clear()
    bank.top_up("u", 1000, at=150)
    assert [notice[:2] for notice in bank.ledger.notices] == [("superseded", 150), ("restore", 150)]
    bank.ledger.notices.clear()
    bank.debit("u", 700, at=160)
    assert [notice[:2] for notice in bank.ledger.notices] == [("threshold", 160), ("threshold", 160)]


def test_what_time_makes_owed_depends_on_the_entries_before_it_for_each_of_the_holds_that_expire_together(
    bank: Bank,
) -> None:
    bank.debit("u", 10, at=3)
    bank.hold("u", 40, at=4, ttl=20, request_id="a")
    bank.hold("u", 46, at=4, ttl=20, request_id="b")  # which takes all there is
    bank.ledger.notices.clear()
    bank.view("u", at=500)
    assert [notice[:2] for notice in bank.ledger.notices] == [("superseded", 4), ("cutoff", 24)]


def test_a_pending_cutoff_that_no_attempt_failed_has_no_error(bank: Bank) -> None:
    exhaust(bank)
    (row,) = bank.pending()
    assert row["last_error"] is None
