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
from tests.ledger.bank import BUCKET, DAY_NS, HOUR, Bank, refusal


def busy(**rules: Any) -> Bank:
    """A bucket with something of everything in it."""
    bank = Bank(**rules)
    for number in range(20):
        bank.top_up(f"plain-{number}", 10**6 + number, at=number, request_id=f"r{number}")
        bank.set_rate(f"plain-{number}", number, at=number)
    bank.top_up("Ünal", 1000, at=30)
    bank.set_credit_limit("Ünal", 50, at=30)
    bank.set_thresholds("Ünal", [(0, 500), (1, 10**9)], at=30)
    bank.hold("Ünal", 100, at=30, ttl=DAY_NS, request_id="h")
    bank.hold("Ünal", 10, at=31)
    bank.set_rate("Ünal", 5, at=32, resource="vm-1", seq=3)
    bank.set_rate("Ünal", 7, at=32)
    bank.set_rate("Ünal", 0, at=33, resource="vm-2", seq=4)
    bank.top_up("gone", 10, at=40)
    bank.set_rate("gone", 0, at=41, resource="vm", seq=9)
    bank.close("gone", at=42, request_id="c")
    bank.top_up("out", 10, at=50)
    bank.set_rate("out", HOUR, at=50)
    bank.view("out", at=70)
    bank.report(ops.CUTOFF_STARTED, "out", 1, at=71)
    bank.report(ops.CUTOFF_FAILED, "out", 1, at=72, error="timeout")
    bank.set_rate("out", 3, at=73, resource="vm")
    bank.top_up("back", 10, at=80)
    bank.debit("back", 10, at=81)
    bank.report(ops.CUTOFF_STARTED, "back", 1, at=82)
    bank.top_up("back", 10, at=83)
    if rules.get("restore"):
        bank.report(ops.RESTORE_STARTED, "back", 1, at=84)
        bank.report(ops.RESTORE_FAILED, "back", 1, at=85, error="reset")
    refusal(bank.debit, "back", 100, at=86, request_id="no")
    bank.top_up("gone-2", 1, at=90)
    bank.close("gone-2", at=91)
    bank.top_up("in its row", 1, at=92)
    bank.top_up("closed while off", 5, at=93)
    bank.debit("closed while off", 5, at=94)
    bank.report(ops.CUTOFF_STARTED, "closed while off", 1, at=95)
    bank.report(ops.CUTOFF_DELIVERED, "closed while off", 1, at=96)
    bank.close("closed while off", at=97)
    bank.top_up("gone with lines", 5, at=98)
    for name in ("vm", "vm-22", "vm-333"):
        bank.set_rate("gone with lines", 0, at=98, resource=name, seq=2)
    bank.close("gone with lines", at=99)
    return bank


def moved(bank: Bank, **rules: Any) -> Bank:
    """The same bucket in another ledger."""
    loaded = Bank(**rules)
    loaded.ledger.drop(BUCKET)
    loaded.ledger.load(BUCKET, bank.state())
    return loaded


@pytest.mark.parametrize("restore", [False, True])
def test_what_is_loaded_dumps_to_the_same_block_and_answers_alike(restore: bool) -> None:
    bank = busy(restore=restore)
    loaded = moved(bank, restore=restore)
    assert loaded.state() == bank.state()
    users = [user.decode() for user in bank.ledger.books[BUCKET].slots]
    assert [bank.view(user, at=100) for user in users] == [loaded.view(user, at=100) for user in users]
    assert [bank.owed(user) for user in users] == [loaded.owed(user) for user in users]
    assert loaded.top_up("plain-3", 10**6 + 3, at=200, request_id="r3")["replayed"] is True
    assert bank.top_up("gone", 1, at=200) == loaded.top_up("gone", 1, at=200)
    assert refusal(loaded.set_rate, "gone", 5, at=201, resource="vm", seq=8).name == "STALE_RATE"
    bank.view("Ünal", at=2 * DAY_NS)
    loaded.view("Ünal", at=2 * DAY_NS)
    assert refusal(bank.set_rate, "gone", 5, at=201, resource="vm", seq=8).name == "STALE_RATE"
    assert loaded.state() == bank.state()


def test_an_empty_bucket_byte_by_byte() -> None:
    bank = Bank()
    assert bank.state() == b"BOOK\x03\x00" + bytes([BUCKET, 0, 0, 0]) + bytes(4) + b"\xa0\0\0\0" + bytes(160 + 9 * 4)


def test_a_block_of_another_bucket_or_a_shortened_one_is_refused() -> None:
    bank = busy()
    block = bank.state()
    bank.ledger.drop(BUCKET)
    with pytest.raises(ValueError, match="not a block of bucket 4"):
        bank.ledger.load(4, block)
    with pytest.raises(ValueError, match="not a block"):
        bank.ledger.load(BUCKET, b"X" + block[1:])
    with pytest.raises((ValueError, AssertionError)):
        bank.ledger.load(BUCKET, block[:-1])
    assert bank.ledger.books == {}


def test_a_bucket_is_here_once() -> None:
    bank = busy()
    with pytest.raises(AssertionError):
        bank.ledger.create(BUCKET)
    with pytest.raises(AssertionError):
        bank.ledger.load(BUCKET, bank.state())


def replayed(bank: Bank, **rules: Any) -> Bank:
    replayed_bank = Bank(**rules)
    bank.entries()
    for packed in bank.journal:
        replayed_bank.ledger.replay(BUCKET, packed)
    replayed_bank.ledger.replayed()
    return replayed_bank


@pytest.mark.parametrize("rules", [{}, {"restore": True}, {"accrue": True}, {"ids": 3}])
def test_replaying_the_entries_makes_the_same_bucket(rules: dict[str, Any]) -> None:
    bank = busy(**rules)
    assert replayed(bank, **rules).state() == bank.state()


def test_replay_goes_by_the_rules_of_the_entries_not_by_those_of_today() -> None:
    bank = busy(accrue=True, restore=True)
    assert replayed(bank, accrue=False, restore=False).state() == bank.state()


def test_replay_tells_nobody_and_records_nothing() -> None:
    replayed_bank = replayed(busy())
    assert replayed_bank.ledger.records == []
    assert replayed_bank.ledger.notices == []


def test_a_difference_stops_the_replay_and_shows_both() -> None:
    bank = busy()
    bank.entries()
    number = next(n for n, packed in enumerate(bank.journal) if Entry._make(unpack(packed)).op == ops.EXHAUST)
    forged = Entry._make(unpack(bank.journal[number]))._replace(accrued_nanos=77)
    replaying = Bank()
    for packed in bank.journal[:number]:
        replaying.ledger.replay(BUCKET, packed)
    with pytest.raises(ReplayDifference, match="accrued_nanos=77") as caught:
        replaying.ledger.replay(BUCKET, pack(tuple(forged)))
    assert caught.value.recorded == forged
    assert caught.value.replayed == Entry._make(unpack(bank.journal[number]))


@pytest.mark.parametrize("left_out", [ops.TOP_UP, ops.SET_RATE, ops.EXHAUST, ops.THRESHOLD])
def test_an_entry_left_out_is_noticed(left_out: int) -> None:
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_thresholds("u", [(0, 50)], at=0)
    bank.set_rate("u", HOUR, at=0)
    bank.top_up("u", 100, at=500)
    bank.debit("u", 1, at=501)
    bank.entries()
    bank.journal = [packed for packed in bank.journal if packed[1] != left_out]
    with pytest.raises(ReplayDifference):
        replayed(bank)


def test_the_last_entry_left_out_is_noticed_at_the_end() -> None:
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_thresholds("u", [(0, 50)], at=0)
    bank.debit("u", 60, at=1)
    bank.entries()
    replaying = Bank()
    for packed in bank.journal[:-1]:
        replaying.ledger.replay(BUCKET, packed)
    with pytest.raises(ReplayDifference, match=r"the journal holds None, replay made Entry\(op=34, .*user_id=b'u'"):
        replaying.ledger.replayed()


def test_time_stands_still_until_a_bucket_is_woken() -> None:
    loaded = moved(busy())
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
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    ((ref, due_ns),) = bank.filed
    assert bank.ledger.next_due_ns(ref, due_ns) == 100
    bank.ledger.still(BUCKET)
    assert bank.ledger.next_due_ns(ref, due_ns) == -1
    bank.ledger.tick(ref, 100)
    assert bank.operations("u")[-1][0] == "set_rate"
    bank.ledger.drop(BUCKET)
    assert bank.ledger.next_due_ns(ref, due_ns) == -1
    bank.ledger.tick(ref, 100)


def test_re_arming_is_a_comparison_an_instant_that_moves_later_needs_nothing() -> None:
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    bank.top_up("u", 100, at=1)
    ((ref, _),) = bank.filed
    assert bank.ledger.next_due_ns(ref, 100) == 200
    bank.ledger.moved(ref, 200)
    assert bank.ledger.next_due_ns(ref, 100) == -1
    bank.debit("u", 50, at=2)
    assert bank.filed[-1] == (ref, 150)
    bank.set_rate("u", 0, at=3)
    assert bank.ledger.next_due_ns(ref, 150) == -1, "nothing is coming"
    bank.set_rate("u", HOUR, at=4)
    assert len(bank.filed) == 3


def test_a_tick_lets_happen_what_is_due_and_files_again() -> None:
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    bank.hold("u", 30, at=0, ttl=200)
    ref = bank.filed[-1][0]
    bank.ledger.tick(ref, 5)
    assert bank.rows("u")[-1]["operation"] == "hold"
    bank.ledger.tick(ref, 71)
    assert bank.operations("u")[-1] == ("exhaust", 70)
    assert bank.filed[-1] == (ref, 200)
    bank.ledger.tick(ref, 1000)
    assert bank.operations("u")[-2:] == [("hold_expired", 200), ("exhaust", 230)]


def test_a_plain_account_is_a_row_of_48_bytes_and_nothing_else() -> None:
    bank = Bank()
    for number in range(100):
        bank.top_up(f"u{number}", 10**6, at=0)
        bank.set_rate(f"u{number}", 10, at=1)
    book = bank.ledger.books[BUCKET]
    assert len(book.rows) == 100 * ROW.size == 4800
    assert not book.extras
    assert book.armed_ns.itemsize == 8
    bank.view("u3", at=10**18)
    assert list(book.extras) == [3]


@pytest.mark.parametrize(
    ("method", "arguments"), [("debit", (1,)), ("top_up", (1,)), ("set_rate", (1,)), ("adjust", (1, "x"))]
)
def test_a_broken_invariant_ends_before_the_entry_is_written(method: str, arguments: tuple[Any, ...]) -> None:
    """Also on the fast way, which writes the row itself."""
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.hold("u", 10, at=1)
    record_count = len(bank.ledger.records)
    bank.ledger.books[BUCKET].extras[0].holds_nanos = 0
    with pytest.raises(AssertionError, match="holds do not add up"):
        getattr(bank, method)("u", *arguments, at=2)
    assert len(bank.ledger.records) == record_count
    with pytest.raises(AssertionError):
        bank.state()


def test_what_is_known_of_closed_accounts_comes_back_from_a_block() -> None:
    bank = busy(restore=True)
    loaded = moved(bank, restore=True)
    assert list(loaded.ledger.books[BUCKET].fading) == [b"gone", b"gone with lines"]
    assert loaded.ledger.books[BUCKET].closed == bank.ledger.books[BUCKET].closed
    loaded.top_up("gone with lines", 5, at=100)
    for name in ("vm", "vm-22", "vm-333"):
        assert refusal(loaded.set_rate, "gone with lines", 1, at=101, resource=name, seq=2).name == "STALE_RATE"


def test_a_block_with_a_part_too_many_too_few_or_too_long_is_refused() -> None:
    bank = busy()
    block = bank.state()
    bank.ledger.drop(BUCKET)
    with pytest.raises(ValueError, match=r"^a part of a block ends behind it$"):
        bank.ledger.load(BUCKET, block[:-1])
    with pytest.raises(ValueError, match="too many values"):
        bank.ledger.load(BUCKET, block + bytes(4))
    head, parts = block[:14], list(_split(block, 14))
    assert head + _join(parts) == block
    extras = list(_split(parts[6]))
    for shorter, longer in ((extras[:-1], None), (None, [*extras, extras[0]])):
        changed = [*parts[:6], _join(shorter or longer or []), *parts[7:]]
        with pytest.raises(ValueError, match="zip"):
            bank.ledger.load(BUCKET, head + _join(changed))


def test_behind_a_replay_the_ledger_goes_by_its_own_rules_again() -> None:
    bank = busy(accrue=True)
    replayed_bank = replayed(bank, accrue=False, restore=True)
    replayed_bank.top_up("new", 10, at=100)
    replayed_bank.set_rate("new", HOUR, at=100)
    assert replayed_bank.view("new", at=200)["balance_nanos"] == 0, "it does not accrue"
    replayed_bank.ledger.presume_attempted(BUCKET)
    replayed_bank.top_up("new", 10, at=201)
    assert replayed_bank.owed("new") == ("restore", 1), "an attempt may have begun before the start"


def test_a_bucket_that_stood_still_and_goes_on_is_filed_again() -> None:
    """As after a move that was given up."""
    bank = Bank()
    bank.top_up("u", 100, at=0)
    bank.set_rate("u", HOUR, at=0)
    bank.ledger.still(BUCKET)
    bank.top_up("v", 100, at=0)
    bank.ledger.wake(BUCKET)
    bank.set_rate("v", HOUR, at=5)
    assert [(ref & 0xFFFFFFFF, due_ns) for ref, due_ns in bank.filed] == [(0, 100), (0, 100), (1, 105)]


def test_a_filing_of_a_row_that_there_is_not_is_stale() -> None:
    """A bucket that went and came back may have fewer rows."""
    bank = Bank()
    bank.top_up("u", 100, at=0)
    for slot in (1, 2):
        assert bank.ledger.next_due_ns(BUCKET << 32 | slot, 0) == -1
        bank.ledger.tick(BUCKET << 32 | slot, 100)
    assert bank.operations("u") == [("top_up", 0)]


def test_row_numbers_go_on_behind_those_that_are_shared() -> None:
    assert list(shared_slots(3)) == [0, 1, 2]
    assert list(shared_slots(20_000)) == list(range(20_000))
    book = Book(1)
    assert [book.open_slot(b"%d" % number) for number in range(2**14 + 2)] == list(range(2**14 + 2))


def test_a_new_extra_is_all_zeros() -> None:
    assert Extra().pack() == bytes(len(Extra().pack()))


def test_the_first_top_up_says_so_and_by_which_rules_it_was_made() -> None:
    for amount in (1, 5, INT64_MAX):
        bank = Bank(accrue=True, restore=True)
        bank.top_up("u", amount, at=0)
        assert bank.entries("u")[0].flags == OPENED | RULE_ACCRUE | RULE_RESTORE
