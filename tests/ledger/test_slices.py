"""Buckets of more accounts than one slice, and what is asked of a whole bucket: delivered cutoffs, the next instant,
how many ran out unnoticed.
"""

from __future__ import annotations

import pytest

from billing.ledger import audit
from billing.ledger import commands as ops
from billing.ledger.account import Account
from billing.ledger.book import SLICE_ROWS
from billing.ledger.money import INT64_MAX
from billing.ledger.views import due_within
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver

MANY = 2 * SLICE_ROWS + 3


def large() -> LedgerDriver:
    """A bucket of three slices, in which every account has a credit limit, each another one."""
    driver = LedgerDriver()
    for number in range(MANY):
        driver.top_up(f"u{number}", 1 + number, at=0)
        driver.set_credit_limit(f"u{number}", 1 + number, at=1)
    return driver


def test_a_bucket_of_many_slices_comes_back_from_its_block() -> None:
    driver = large()
    loaded = driver.moved()
    book, back = driver.ledger.books[BUCKET], loaded.ledger.books[BUCKET]
    assert back.users == book.users
    assert back.slots == book.slots
    assert [back.extras[slot].pack() for slot in range(MANY)] == [book.extras[slot].pack() for slot in range(MANY)]
    assert loaded.state() == driver.state()
    for number in (0, SLICE_ROWS - 1, SLICE_ROWS, 2 * SLICE_ROWS, MANY - 1):
        assert loaded.view(f"u{number}", at=2)["available_nanos"] == 2 + 2 * number


def running() -> LedgerDriver:
    """A bucket of three slices, in which every account runs out, `u<number>` at 1000 + number; time stands still."""
    driver = LedgerDriver()
    for number in range(MANY):
        driver.top_up(f"u{number}", 1000 + number, at=0)
        driver.set_rate(f"u{number}", HOUR, at=0)
    driver.ledger.still(BUCKET)
    driver.filed.clear()
    return driver


def test_a_bucket_of_many_slices_wakes_slice_by_slice_and_files_every_account_for_its_instant() -> None:
    driver = running()
    filed = [len(driver.filed) for _ in driver.ledger.waking(BUCKET)]
    assert filed == [SLICE_ROWS, 2 * SLICE_ROWS]
    assert driver.filed == [(BUCKET << 32 | slot, 1000 + slot) for slot in range(MANY)]


def test_waking_ends_where_the_bucket_leaves_between_two_slices() -> None:
    driver = running()
    waking = driver.ledger.waking(BUCKET)
    next(waking)
    driver.ledger.still(BUCKET)
    assert list(waking) == []
    assert len(driver.filed) == SLICE_ROWS
    waking = driver.ledger.waking(BUCKET)
    next(waking)
    block = driver.state()
    driver.ledger.drop(BUCKET)
    driver.ledger.load(BUCKET, block)  # it is back already, and another book
    driver.ledger.books[BUCKET].awake = True
    assert list(waking) == []
    assert len(driver.filed) == 2 * SLICE_ROWS


def test_a_fraction_of_a_nano_counts_when_a_bucket_wakes() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", HOUR // 2, at=0)
    assert driver.top_up("u", 1, at=1)["exhausts_at_ns"] == 4  # one and a half are there
    driver.ledger.still(BUCKET)
    driver.filed.clear()
    driver.ledger.wake(BUCKET)
    assert driver.filed == [(BUCKET << 32, 4)]


def test_a_book_that_nobody_needs_is_freed_slice_by_slice() -> None:
    driver = large()
    driver.top_up("gone", 1, at=2)
    driver.close("gone", at=3)
    book = driver.ledger.books[BUCKET]
    sizes = []
    for _ in book.shrinking():
        sizes.append((len(book.slots), len(book.extras), len(book.closed), len(book.users)))
    after_one, after_two, rows = MANY - SLICE_ROWS, MANY - 2 * SLICE_ROWS, MANY + 1
    assert sizes == [
        (after_one, MANY, 1, rows), (after_two, MANY, 1, rows), (0, MANY, 1, rows),
        (0, after_one, 1, rows), (0, after_two, 1, rows), (0, 0, 1, rows), (0, 0, 0, rows),
        (0, 0, 0, rows - SLICE_ROWS), (0, 0, 0, rows - 2 * SLICE_ROWS), (0, 0, 0, 0),
    ]  # fmt: skip


def test_delivered_cutoffs_whose_machines_still_run_are_told_with_their_seq() -> None:
    driver = LedgerDriver(restore=True)
    for user in ("plain", "limit", "pending", "delivered", "second", "effective", "restored"):
        driver.top_up(user, 10, at=0)
    driver.set_credit_limit("limit", 5, at=1)
    for user in ("pending", "delivered", "second", "effective", "restored"):
        driver.set_rate(user, HOUR, at=0)
        assert driver.view(user, at=10)["state"] == "exhausted"
    driver.set_rate("second", 7, at=11, resource="vm")

    def delivered() -> list[tuple[bytes, int]]:
        return sorted(driver.ledger.delivered_in(BUCKET))

    assert delivered() == []
    for user in ("delivered", "second", "effective"):
        driver.report(ops.CUTOFF_STARTED, user, 1, at=12)
        driver.report(ops.CUTOFF_DELIVERED, user, 1, at=13)
    assert delivered() == [(b"delivered", 1), (b"effective", 1)]
    driver.report(ops.CUTOFF_STARTED, "second", 2, at=14)
    driver.report(ops.CUTOFF_DELIVERED, "second", 2, at=15)
    driver.set_rate("effective", 0, at=16)
    driver.top_up("restored", 10, at=16)
    assert delivered() == [(b"delivered", 1), (b"second", 2)]


def test_the_next_instant_of_a_bucket_is_that_of_the_account_that_is_first() -> None:
    driver = LedgerDriver()
    book = driver.ledger.books[BUCKET]
    assert due_within(book, INT64_MAX) == -1
    for user, nanos in (("late", 500), ("first", 100), ("still", 7), ("gone", 1)):
        driver.top_up(user, nanos, at=0)
    driver.close("gone", at=0)
    for user in ("late", "first"):
        driver.set_rate(user, HOUR, at=0)
    assert [due_within(book, until) for until in (0, 99, 100, 101, 500, INT64_MAX)] == [-1, -1, 100, 100, 100, 100]
    driver.top_up("first", 800, at=50)  # its filing stays where it was, its instant is 900
    assert [due_within(book, until) for until in (100, 499, 500, 899)] == [-1, -1, 500, 500]
    driver.hold("still", 7, at=50, ttl=250)
    assert due_within(book, 10**6) == 300
    driver.set_rate("late", 0, at=50)
    driver.release("still", driver.view("still", at=51)["holds"][0]["hold_id"], at=51)
    assert due_within(book, 10**6) == 900
    driver.ledger.still(BUCKET)
    assert due_within(book, 899) == -1


def test_a_row_that_is_free_again_has_no_instant() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.set_rate("u", 0, at=1)
    driver.close("u", at=2)
    book = driver.ledger.books[BUCKET]
    assert (book.users, book.armed_ns[0]) == ([b""], 100)
    assert due_within(book, INT64_MAX) == -1


@pytest.mark.parametrize("resource", ["", "vm"])
@pytest.mark.parametrize(("ends_ns", "filed"), [(INT64_MAX - 1, 1), (INT64_MAX, 1), (INT64_MAX + 1, 0)])
def test_the_last_instant_there_is_is_filed_whichever_way_the_account_goes(
    ends_ns: int, filed: int, resource: str
) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=ends_ns - 100)
    driver.set_rate("u", HOUR, at=ends_ns - 100, resource=resource)
    assert [due_ns for _, due_ns in driver.filed] == [ends_ns] * filed
    assert driver.ledger.next_due_ns([(BUCKET << 32, ends_ns)]) == [ends_ns if filed else -1]
    driver.ledger.still(BUCKET)
    driver.filed.clear()
    driver.ledger.wake(BUCKET)
    assert [due_ns for _, due_ns in driver.filed] == [ends_ns] * filed
    book = driver.ledger.books[BUCKET]
    assert Account(book, 0, b"u").runs_out_ns() == ends_ns


def test_accounts_that_ran_out_unnoticed_are_counted_until_they_are_looked_at() -> None:
    driver = LedgerDriver()
    book = driver.ledger.books[BUCKET]
    for user, nanos in (("one", 100), ("two", 200), ("topped up", 100), ("holds", 5), ("gone", 100)):
        driver.top_up(user, nanos, at=0)
    for user in ("one", "two", "topped up", "gone"):
        driver.set_rate(user, HOUR, at=0)
    driver.top_up("topped up", 800, at=50)  # filed for 100, as it was; runs out at 900
    driver.hold("holds", 1, at=0, ttl=100)  # filed for its expiry; never runs out
    driver.set_rate("gone", 0, at=1)
    driver.close("gone", at=2)
    assert [driver.ledger.unnoticed(book, now) for now in (0, 99, 100, 199, 200, 899, 900)] == [0, 0, 1, 1, 2, 2, 3]
    driver.view("one", at=250)
    assert [driver.ledger.unnoticed(book, now) for now in (100, 250, 900)] == [0, 1, 2]
    driver.view("two", at=250)
    assert driver.ledger.unnoticed(book, 250) == 0


def test_the_newest_seq_is_that_of_the_latest_cutoff_of_the_account() -> None:
    driver = LedgerDriver()
    for user in ("u", "v"):
        driver.top_up(user, 10, at=0)

    def newest(user: bytes) -> int:
        return driver.ledger.newest_seq(BUCKET, user)

    assert (newest(b"u"), newest(b"v")) == (0, 0)
    driver.debit("v", 10, at=1)
    driver.top_up("v", 10, at=2)
    assert (newest(b"u"), newest(b"v")) == (0, 1)
    driver.debit("v", 10, at=3)
    assert (newest(b"u"), newest(b"v")) == (0, 2)


@pytest.mark.parametrize(("rare", "slices"), [(SLICE_ROWS - 1, 1), (SLICE_ROWS, 2)])
def test_conservation_is_checked_in_slices_of_rows_and_then_of_their_rare_parts(rare: int, slices: int) -> None:
    driver = LedgerDriver()
    for number in range(rare):
        driver.top_up(f"u{number}", 1, at=0)
        driver.set_credit_limit(f"u{number}", 1, at=0)
    book = driver.ledger.books[BUCKET]
    assert sum(1 for _ in audit.checking(book)) == slices
    book.extras[rare - 1].holds_nanos += 1
    with pytest.raises(AssertionError, match="holds do not add up"):
        audit.check(book)
