"""Buckets as blocks, replay, timers: what recovery, snapshots and moves rest on."""

from __future__ import annotations

from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.block import _join, _split
from billing.ledger.book import ROW, Book, shared_slots
from billing.ledger.entry import OPENED, RULE_ACCRUE, RULE_RESTORE, Entry, pack, unpack
from billing.ledger.extra import Extra
from billing.ledger.ledger import ReplayDifference
from billing.ledger.money import INT64_MAX
from tests.ledger.driver import BUCKET, DAY_NS, HOUR, LedgerDriver, refusal


def busy(**rules: Any) -> LedgerDriver:
    """A bucket with something of everything in it."""
    driver = LedgerDriver(**rules)
    for number in range(20):
        driver.top_up(f"plain-{number}", 10**6 + number, at=number, request_id=f"r{number}")
        driver.set_rate(f"plain-{number}", number, at=number)
    driver.top_up("Ünal", 1000, at=30)
    driver.set_credit_limit("Ünal", 50, at=30)
    driver.set_thresholds("Ünal", [(0, 500), (1, 10**9)], at=30)
    driver.hold("Ünal", 100, at=30, ttl=DAY_NS, request_id="h")
    driver.hold("Ünal", 10, at=31)
    driver.set_rate("Ünal", 5, at=32, resource="vm-1", seq=3)
    driver.set_rate("Ünal", 7, at=32)
    driver.set_rate("Ünal", 0, at=33, resource="vm-2", seq=4)
    driver.top_up("gone", 10, at=40)
    driver.set_rate("gone", 0, at=41, resource="vm", seq=9)
    driver.close("gone", at=42, request_id="c")
    driver.top_up("out", 10, at=50)
    driver.set_rate("out", HOUR, at=50)
    driver.view("out", at=70)
    driver.report(ops.CUTOFF_STARTED, "out", 1, at=71)
    driver.report(ops.CUTOFF_FAILED, "out", 1, at=72, error="timeout")
    driver.set_rate("out", 3, at=73, resource="vm")
    driver.top_up("back", 10, at=80)
    driver.debit("back", 10, at=81)
    driver.report(ops.CUTOFF_STARTED, "back", 1, at=82)
    driver.top_up("back", 10, at=83)
    if rules.get("restore"):
        driver.report(ops.RESTORE_STARTED, "back", 1, at=84)
        driver.report(ops.RESTORE_FAILED, "back", 1, at=85, error="reset")
    refusal(driver.debit, "back", 100, at=86, request_id="no")
    driver.top_up("gone-2", 1, at=90)
    driver.close("gone-2", at=91)
    driver.top_up("in its row", 1, at=92)
    driver.top_up("closed while off", 5, at=93)
    driver.debit("closed while off", 5, at=94)
    driver.report(ops.CUTOFF_STARTED, "closed while off", 1, at=95)
    driver.report(ops.CUTOFF_DELIVERED, "closed while off", 1, at=96)
    driver.close("closed while off", at=97)
    driver.top_up("gone with lines", 5, at=98)
    for name in ("vm", "vm-22", "vm-333"):
        driver.set_rate("gone with lines", 0, at=98, resource=name, seq=2)
    driver.close("gone with lines", at=99)
    return driver


@pytest.mark.parametrize("restore", [False, True])
def test_what_is_loaded_dumps_to_the_same_block_and_answers_alike(restore: bool) -> None:
    driver = busy(restore=restore)
    loaded = driver.moved(restore=restore)
    assert loaded.state() == driver.state()
    users = [user.decode() for user in driver.ledger.books[BUCKET].slots]
    assert [driver.view(user, at=100) for user in users] == [loaded.view(user, at=100) for user in users]
    assert [driver.owed(user) for user in users] == [loaded.owed(user) for user in users]
    assert loaded.top_up("plain-3", 10**6 + 3, at=200, request_id="r3")["replayed"] is True
    assert driver.top_up("gone", 1, at=200) == loaded.top_up("gone", 1, at=200)
    assert refusal(loaded.set_rate, "gone", 5, at=201, resource="vm", seq=8).name == "STALE_RATE"
    driver.view("Ünal", at=2 * DAY_NS)
    loaded.view("Ünal", at=2 * DAY_NS)
    assert refusal(driver.set_rate, "gone", 5, at=201, resource="vm", seq=8).name == "STALE_RATE"
    assert loaded.state() == driver.state()


def test_an_empty_bucket_byte_by_byte() -> None:
    driver = LedgerDriver()
    assert driver.state() == b"BOOK\x03\x00" + bytes([BUCKET, 0, 0, 0]) + bytes(4) + b"\xa0\0\0\0" + bytes(160 + 9 * 4)


def test_a_block_of_another_bucket_or_a_shortened_one_is_refused() -> None:
    driver = busy()
    block = driver.state()
    driver.ledger.drop(BUCKET)
    with pytest.raises(ValueError, match="not a block of bucket 4"):
        driver.ledger.load(4, block)
    with pytest.raises(ValueError, match="not a block"):
        driver.ledger.load(BUCKET, b"X" + block[1:])
    with pytest.raises((ValueError, AssertionError)):
        driver.ledger.load(BUCKET, block[:-1])
    assert driver.ledger.books == {}


def test_a_bucket_is_here_once() -> None:
    driver = busy()
    with pytest.raises(AssertionError):
        driver.ledger.create(BUCKET)
    with pytest.raises(AssertionError):
        driver.ledger.load(BUCKET, driver.state())


@pytest.mark.parametrize("rules", [{}, {"restore": True}, {"accrue": True}, {"ids": 3}])
def test_replaying_the_entries_makes_the_same_bucket(rules: dict[str, Any]) -> None:
    driver = busy(**rules)
    assert driver.replayed(**rules).state() == driver.state()


def test_replay_goes_by_the_rules_of_the_entries_not_by_those_of_today() -> None:
    driver = busy(accrue=True, restore=True)
    assert driver.replayed(accrue=False, restore=False).state() == driver.state()


def test_replay_tells_nobody_and_records_nothing() -> None:
    replayed_driver = busy().replayed()
    assert replayed_driver.ledger.records == []
    assert replayed_driver.ledger.notices == []


def test_a_difference_stops_the_replay_and_shows_both() -> None:
    driver = busy()
    driver.entries()
    number = next(n for n, packed in enumerate(driver.journal) if Entry._make(unpack(packed)).op == ops.EXHAUST)
    forged = Entry._make(unpack(driver.journal[number]))._replace(accrued_nanos=77)
    replaying = LedgerDriver()
    for packed in driver.journal[:number]:
        replaying.ledger.replay(BUCKET, packed)
    with pytest.raises(ReplayDifference, match="accrued_nanos=77") as caught:
        replaying.ledger.replay(BUCKET, pack(tuple(forged)))
    assert caught.value.recorded == forged
    assert caught.value.replayed == Entry._make(unpack(driver.journal[number]))


@pytest.mark.parametrize("left_out", [ops.TOP_UP, ops.SET_RATE, ops.EXHAUST, ops.THRESHOLD])
def test_an_entry_left_out_is_noticed(left_out: int) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_thresholds("u", [(0, 50)], at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.top_up("u", 100, at=500)
    driver.debit("u", 1, at=501)
    driver.entries()
    driver.journal = [packed for packed in driver.journal if packed[1] != left_out]
    with pytest.raises(ReplayDifference):
        driver.replayed()


def test_the_last_entry_left_out_is_noticed_at_the_end() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_thresholds("u", [(0, 50)], at=0)
    driver.debit("u", 60, at=1)
    driver.entries()
    replaying = LedgerDriver()
    for packed in driver.journal[:-1]:
        replaying.ledger.replay(BUCKET, packed)
    with pytest.raises(ReplayDifference, match=r"the journal holds None, replay made Entry\(op=34, .*user_id=b'u'"):
        replaying.ledger.replayed()


def test_time_stands_still_until_a_bucket_is_woken() -> None:
    loaded = busy().moved()
    loaded.filed.clear()
    loaded.top_up("plain-5", 1, at=100)
    loaded.set_rate("plain-5", HOUR, at=100)
    loaded.top_up("a new one", 1, at=100)
    loaded.set_rate("a new one", HOUR, at=100)
    assert loaded.filed == []
    assert all(armed_ns == 0 for armed_ns in loaded.ledger.books[BUCKET].armed_ns)
    loaded.ledger.wake(BUCKET)
    book = loaded.ledger.books[BUCKET]
    coming = {book.users[ref & 0xFFFFFFFF] for ref, _ in loaded.filed}
    assert {b"plain-1", b"plain-5", "Ünal".encode()} <= coming
    assert b"plain-0" not in coming, "at rate zero nothing is coming"
    assert b"out" not in coming, "nor while it is exhausted"
    assert all(ref >> 32 == BUCKET for ref, _ in loaded.filed)


def test_in_a_bucket_that_stands_still_every_filing_is_stale() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    ((ref, due_ns),) = driver.filed
    assert driver.ledger.next_due_ns([(ref, due_ns)]) == [100]
    driver.ledger.still(BUCKET)
    assert driver.ledger.next_due_ns([(ref, due_ns)]) == [-1]
    driver.ledger.tick([ref], 100)
    assert driver.operations("u")[-1][0] == "set_rate"
    driver.ledger.drop(BUCKET)
    assert driver.ledger.next_due_ns([(ref, due_ns)]) == [-1]
    driver.ledger.tick([ref], 100)


def test_re_arming_is_a_comparison_an_instant_that_moves_later_needs_nothing() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.top_up("u", 100, at=1)
    ((ref, _),) = driver.filed
    assert driver.ledger.next_due_ns([(ref, 100)]) == [200]
    driver.ledger.moved([(ref, 200)])
    assert driver.ledger.next_due_ns([(ref, 100)]) == [-1]
    driver.debit("u", 50, at=2)
    assert driver.filed[-1] == (ref, 150)
    driver.set_rate("u", 0, at=3)
    assert driver.ledger.next_due_ns([(ref, 150)]) == [-1], "nothing is coming"
    driver.set_rate("u", HOUR, at=4)
    assert len(driver.filed) == 3


def test_a_tick_lets_happen_what_is_due_and_files_again() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.hold("u", 30, at=0, ttl=200)
    ref = driver.filed[-1][0]
    driver.ledger.tick([ref], 5)
    assert driver.rows("u")[-1]["operation"] == "hold"
    driver.ledger.tick([ref], 71)
    assert driver.operations("u")[-1] == ("exhaust", 70)
    assert driver.filed[-1] == (ref, 200)
    driver.ledger.tick([ref], 1000)
    assert driver.operations("u")[-2:] == [("hold_expired", 200), ("exhaust", 230)]


def test_a_plain_account_is_a_row_of_48_bytes_and_nothing_else() -> None:
    driver = LedgerDriver()
    for number in range(100):
        driver.top_up(f"u{number}", 10**6, at=0)
        driver.set_rate(f"u{number}", 10, at=1)
    book = driver.ledger.books[BUCKET]
    assert len(book.rows) == 100 * ROW.size == 4800
    assert not book.extras
    assert book.armed_ns.itemsize == 8
    driver.view("u3", at=10**18)
    assert list(book.extras) == [3]


@pytest.mark.parametrize(
    ("method", "arguments"), [("debit", (1,)), ("top_up", (1,)), ("set_rate", (1,)), ("adjust", (1, "x"))]
)
def test_a_broken_invariant_ends_before_the_entry_is_written(method: str, arguments: tuple[Any, ...]) -> None:
    """Also on the fast way, which writes the row itself."""
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.hold("u", 10, at=1)
    record_count = len(driver.ledger.records)
    driver.ledger.books[BUCKET].extras[0].holds_nanos = 0
    with pytest.raises(AssertionError, match="holds do not add up"):
        getattr(driver, method)("u", *arguments, at=2)
    assert len(driver.ledger.records) == record_count
    with pytest.raises(AssertionError):
        driver.state()


def test_what_is_known_of_closed_accounts_comes_back_from_a_block() -> None:
    driver = busy(restore=True)
    loaded = driver.moved(restore=True)
    assert list(loaded.ledger.books[BUCKET].fading) == [b"gone", b"gone with lines"]
    assert loaded.ledger.books[BUCKET].closed == driver.ledger.books[BUCKET].closed
    loaded.top_up("gone with lines", 5, at=100)
    for name in ("vm", "vm-22", "vm-333"):
        assert refusal(loaded.set_rate, "gone with lines", 1, at=101, resource=name, seq=2).name == "STALE_RATE"


def test_a_block_with_a_part_too_many_too_few_or_too_long_is_refused() -> None:
    driver = busy()
    block = driver.state()
    driver.ledger.drop(BUCKET)
    with pytest.raises(ValueError, match=r"^a part of a block ends behind it$"):
        driver.ledger.load(BUCKET, block[:-1])
    with pytest.raises(ValueError, match="too many values"):
        driver.ledger.load(BUCKET, block + bytes(4))
    head, parts = block[:14], list(_split(block, 14))
    assert head + _join(parts) == block
    extras = list(_split(parts[6]))
    for shorter, longer in ((extras[:-1], None), (None, [*extras, extras[0]])):
        changed = [*parts[:6], _join(shorter or longer or []), *parts[7:]]
        with pytest.raises(ValueError, match="zip"):
            driver.ledger.load(BUCKET, head + _join(changed))


def test_behind_a_replay_the_ledger_goes_by_its_own_rules_again() -> None:
    driver = busy(accrue=True)
    replayed_driver = driver.replayed(accrue=False, restore=True)
    replayed_driver.top_up("new", 10, at=100)
    replayed_driver.set_rate("new", HOUR, at=100)
    assert replayed_driver.view("new", at=200)["balance_nanos"] == 0, "it does not accrue"
    replayed_driver.ledger.presume_attempted(BUCKET)
    replayed_driver.top_up("new", 10, at=201)
    assert replayed_driver.owed("new") == ("restore", 1), "an attempt may have begun before the start"


def test_a_bucket_that_stood_still_and_goes_on_is_filed_again() -> None:
    """As after a move that was given up."""
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.ledger.still(BUCKET)
    driver.top_up("v", 100, at=0)
    driver.ledger.wake(BUCKET)
    driver.set_rate("v", HOUR, at=5)
    assert [(ref & 0xFFFFFFFF, due_ns) for ref, due_ns in driver.filed] == [(0, 100), (0, 100), (1, 105)]


def test_a_filing_of_a_row_that_there_is_not_is_stale() -> None:
    """A bucket that went and came back may have fewer rows."""
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    for slot in (1, 2):
        assert driver.ledger.next_due_ns([(BUCKET << 32 | slot, 0)]) == [-1]
        driver.ledger.tick([BUCKET << 32 | slot], 100)
    assert driver.operations("u") == [("top_up", 0)]


def test_row_numbers_go_on_behind_those_that_are_shared() -> None:
    assert list(shared_slots(3)) == [0, 1, 2]
    assert list(shared_slots(20_000)) == list(range(20_000))
    book = Book(1)
    assert [book.open_slot(b"%d" % number) for number in range(2**14 + 2)] == list(range(2**14 + 2))


def test_a_new_extra_is_all_zeros() -> None:
    assert Extra().pack() == bytes(len(Extra().pack()))


def test_the_first_top_up_says_so_and_by_which_rules_it_was_made() -> None:
    for amount in (1, 5, INT64_MAX):
        driver = LedgerDriver(accrue=True, restore=True)
        driver.top_up("u", amount, at=0)
        assert driver.entries("u")[0].flags == OPENED | RULE_ACCRUE | RULE_RESTORE
