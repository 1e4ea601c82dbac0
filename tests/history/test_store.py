"""Projection, store and reader: rows are the entries', once each, in order; the file fits its journal or says so."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.follower.store import Ahead, Damaged, Overtaken, ShardFile, StoreError, code_of, connect, file_of
from billing.history.accounts import Accounts
from billing.history.entries import Elsewhere
from billing.history.entries import page as feed_page
from billing.history.history_reader import MISSING, HistoryReader, Newest, as_map, rows_of
from billing.history.page import PAGE_ROWS, pages_of
from billing.history.projection import MARK_EVERY, Group, project
from billing.history.store import Store, open_store, rows_are_sound
from billing.history.tables import KIND
from billing.ledger import commands as ops
from billing.ledger.entry import FIELDS, history_row, pack, pack_first, unpack
from billing.ledger.money import INT64_MAX, NANO
from shards.batch import CAME_TO_NOTHING, ENTRY, ENVELOPE, LEAVE, LENGTH, RECEIVED, slim, split_batch
from shards.exits import Exit
from tests.history.shard_driver import ShardDriver
from tests.shards.system.unsynced import UnsyncedDisk

NEWEST = INT64_MAX


def opened(directory: Path, *, first: int = 1, head: int = 0, shard: int = 0) -> Store:
    store, _ = open_store(ShardFile(str(directory), shard, first, head, UnsyncedDisk()), suspect=False)
    return store


def reader_of(directory: Path, store: Store, shard: int = 0) -> HistoryReader:
    return HistoryReader(str(directory), shard, store.db, UnsyncedDisk())


def batch_of(*records: tuple[int, int, int, bytes]) -> bytes:
    """A payload of (kind, bucket, generation, body)."""
    packed = [ENVELOPE.pack(*record[:3]) + record[3] for record in records]
    return LENGTH.pack(len(packed)) + b"".join(LENGTH.pack(len(record)) + record for record in packed)


def entry_of(user: bytes, entry_id: int, **fields: int | bytes) -> bytes:
    """A packed entry; what is not given is zero or empty."""
    values: dict[str, Any] = {name: b"" if name in FIELDS[-7:] else 0 for name in FIELDS}
    values |= {"op": ops.TOP_UP, "user_id": user, "entry_id": entry_id, "at_ns": entry_id} | fields
    return pack(tuple(values[name] for name in FIELDS))


OTHERS = ((RECEIVED, 9, 2, b"a whole bucket"), (ENTRY, 1, 1, entry_of(b"u", 0)), (LEAVE, 7, 3, b""))


def no_accounts() -> Accounts:
    """Of a file that is new, in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statement in KIND.schema:
        db.execute(statement)
    return Accounts(db)


def all_rows(driver: ShardDriver, reader: HistoryReader) -> None:
    for user in driver.users:
        assert reader.history(2, user, NEWEST, 10**6).rows == driver.history(user, limit=10**6)


# -- projection --------------------------------------------------------------------------------------------------------

NANOS = st.one_of(st.integers(-(2**62), 2**62), st.sampled_from([0, -1, 1, -INT64_MAX, INT64_MAX]))
FRAC = st.one_of(st.integers(0, NANO - 1), st.sampled_from([0, 1, NANO - 1]))


@given(
    before=st.tuples(st.integers(-(2**62), 2**62), FRAC),
    amount=st.tuples(st.integers(-(2**61), 2**61), FRAC),
    accrued=st.tuples(st.one_of(st.integers(0, 2**62), st.integers(2**63 - 2, 2**64 - 2)), FRAC),
    tails=st.tuples(*[st.binary(max_size=20)] * 5),
    op=st.sampled_from([ops.ADJUST, ops.TOP_UP, ops.CHANGE_RATE, ops.HOLD, ops.THRESHOLD, ops.EXHAUST, ops.CLOSE]),
    stands=st.tuples(*[st.integers(0, INT64_MAX)] * 4),
)
def test_a_row_is_what_the_ledger_defines_to_the_last_fraction(
    before: tuple[int, int],
    amount: tuple[int, int],
    accrued: tuple[int, int],
    tails: tuple[bytes, ...],
    op: int,
    stands: tuple[int, ...],
) -> None:
    """For any fractions, also accruals beyond an int64: the row is `entry.history_row` of the same entry."""
    after = before[0] * NANO + before[1] + amount[0] * NANO + amount[1]
    key, request_id, message, actor, note = tails
    rate, line_rate, limit, holds = stands
    body = entry_of(
        b"u", 5, op=op, at_ns=17, a=0, b=9, flags=3, rate=rate, line_rate=line_rate,
        credit_limit_nanos=limit, holds_nanos=holds,
        amount_nanos=amount[0], amount_frac=amount[1], accrued_nanos=accrued[0], accrued_frac=accrued[1],
        balance_nanos=after // NANO, balance_frac=after % NANO,
        key=key, request_id=request_id, message=message, actor=actor, note=note,
    )  # fmt: skip
    group, accounts = Group(), no_accounts()
    accounts.advance(b"u", 8)
    assert project(batch_of((ENTRY, 1, 7, body)), 40, accounts, group) == 41
    assert accounts.advance(b"u", 42) == (1, 41)
    (page,) = pages_of(group.part, 41)
    assert page.is_sound
    (row,) = page.open().rows()
    assert row[:3] == (41, 8, b"u")
    assert row.generation == 7
    assert as_map(row) == history_row(unpack(body))


def test_only_entries_with_an_id_are_rows_and_departures_are_kept() -> None:
    group = Group()
    payload = batch_of(
        (RECEIVED, 9, 2, b"a whole bucket"),
        (ENTRY, 1, 1, entry_of(b"u", 0)),
        (LEAVE, 7, 3, b""),
        (LEAVE, 8, 3, CAME_TO_NOTHING),
        (ENTRY, 1, 1, entry_of(b"u", MARK_EVERY)),
    )
    assert project(payload, 0, no_accounts(), group) == 1
    (page,) = pages_of(group.part, 1)
    assert [row.entry_id for row in page.open().rows()] == [MARK_EVERY]
    assert group.marks == [(1, MARK_EVERY, 1)]
    assert group.left == [(7, 3)]
    records = [record[:3] for record in split_batch(slim(payload))]
    assert records == [(RECEIVED, 9, 2), (ENTRY, 1, 1), (LEAVE, 7, 3), (LEAVE, 8, 3), (ENTRY, 1, 1)]
    assert b"a whole bucket" not in slim(payload)
    again = Group()
    assert project(slim(payload), 0, no_accounts(), again) == 1
    assert pages_of(again.part, 1) == [page]


def test_runs_of_rows_between_other_records_are_the_same_rows() -> None:
    """The bytes of rows are taken over in runs: wherever one is broken off, each row is its own entry."""
    bodies = [entry_of(b"u%d" % (number % 3), number + 1, message=b"m" * number) for number in range(80)]
    broken = [b for number, body in enumerate(bodies) for b in ((ENTRY, 1, 1, body), *OTHERS[: number % 4])]
    group, plain = Group(), Group()
    assert project(batch_of(*broken), 0, no_accounts(), group) == len(bodies)
    assert project(batch_of(*[(ENTRY, 1, 1, body) for body in bodies]), 0, no_accounts(), plain) == len(bodies)
    pages = pages_of(group.part, 1)
    assert pages == pages_of(plain.part, 1)
    assert [page.length for page in pages] == [PAGE_ROWS, PAGE_ROWS, len(bodies) - 2 * PAGE_ROWS]
    rows = [row for page in pages for row in page.open().rows()]
    assert [(row.seq, row.older) for row in rows] == [(at + 1, max(0, at - 2)) for at in range(len(bodies))]
    assert [row.message for row in rows] == [b"m" * number for number in range(80)]


def test_a_row_of_the_first_format_is_what_the_ledger_makes_of_it() -> None:
    """Entries that commit f25b2ad wrote are kept as they are, and read as the ledger reads them."""
    entry = unpack(entry_of(b"u", 3, op=ops.SET_RATE, a=7, rate=7, line_rate=7, key=b"vm", message=b"m"))
    group = Group()
    assert project(batch_of((ENTRY, 1, 2, pack_first(entry))), 0, no_accounts(), group) == 1
    (row,) = pages_of(group.part, 1)[0].open().rows()
    assert as_map(row) == history_row(entry)
    assert row.generation == 2


def test_a_page_without_some_of_its_rows_holds_the_others_where_they_were() -> None:
    group = Group()
    project(batch_of(*[(ENTRY, 1, 1, entry_of(b"u", number)) for number in range(1, 11)]), 5, no_accounts(), group)
    (page,) = pages_of(group.part, 6)
    pruned = page.open().without([6, 9, 10])
    assert pruned is not None
    assert pruned.is_sound
    opened_again = pruned.open()
    assert [(row.seq, row.older, row.entry_id) for row in opened_again.rows()] == [
        (row.seq, row.older, row.entry_id) for row in page.open().rows() if row.seq not in (6, 9, 10)
    ]
    assert [opened_again.row(seq) for seq in (6, 9, 10)] == [None] * 3
    assert opened_again.without([7, 8, 11, 12, 13, 14, 15]) is None


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_page_of_which_anything_changed_is_not_sound(at: int) -> None:
    group = Group()
    project(batch_of((ENTRY, 1, 1, entry_of(b"u", 1))), 0, no_accounts(), group)
    (page,) = pages_of(group.part, 1)
    changed = page._replace(packed=page.packed[:-1] + bytes((page.packed[-1] ^ 1,)))
    assert not (changed, page._replace(first=2), page._replace(length=2))[at].is_sound


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_bytes_that_are_no_batch_are_not_projected(cut: int) -> None:
    payload = batch_of((ENTRY, 1, 1, entry_of(b"u", 1, message=b"x" * 300)))
    for broken in (payload[:-cut], payload + b"\0" * cut):
        with pytest.raises((AssertionError, IndexError, ValueError, struct.error)):
            project(broken, 0, no_accounts(), Group())


# -- the file ----------------------------------------------------------------------------------------------------------


def test_everything_is_there_in_order_after_any_grouping_and_reopening(data_dir: Path) -> None:
    driver = ShardDriver(seed=3)
    store = opened(data_dir)
    rng = random.Random(3)
    for position in range(1, 121):
        store.take(position, driver.batch(rng.randrange(1, 40)))
        if rng.random() < 0.3:
            store.flush()
        if rng.random() < 0.1:
            store.checkpoint() if not store.flush() else None
        if rng.random() < 0.1:
            store.close()
            store = opened(data_dir, head=position)
            assert store.position == position
    store.flush()
    reader = reader_of(data_dir, store)
    all_rows(driver, reader)
    for user in driver.users:
        expected = driver.history(user, limit=10**6)
        assert expected, "every user has a history in this scene"
        before = NEWEST
        paged = []
        while rows := reader.history(2, user, before, 7).rows:
            paged += rows
            before = rows[-1]["entry_id"]
        assert paged == expected


def test_any_page_of_a_long_history_is_reached_over_a_mark(data_dir: Path) -> None:
    """A page far from the newest row walks few rows beside its own: the marks are where they must be."""
    driver = ShardDriver(users=2)
    store = opened(data_dir)
    for position in range(1, 31):
        store.take(position, driver.batch(60))
    store.flush()
    reader = reader_of(data_dir, store)
    for user in driver.users:
        newest = driver.rows[user][-1]["entry_id"]
        assert newest > 5 * MARK_EVERY
        for before in [1, 2, 3, *range(2, newest + 3, 17), MARK_EVERY, MARK_EVERY + 1, newest, newest + 1, NEWEST]:
            assert reader.history(2, user, before, 3).rows == driver.history(user, before, 3)
        (number,) = store.db.execute("SELECT number FROM users WHERE user_id = ?", (user,)).fetchone()
        marks = store.db.execute("SELECT entry_id FROM marks WHERE number = ?", (number,)).fetchall()
        assert [mark for (mark,) in marks] == [row["entry_id"] for row in driver.rows[user] if not row["entry_id"] % 64]


def test_a_user_who_is_not_there_has_no_rows(data_dir: Path) -> None:
    store = opened(data_dir)
    assert rows_of(store.db, b"nobody", NEWEST, 10) == (None, [])


def test_what_was_not_committed_is_gone_and_comes_again(data_dir: Path) -> None:
    driver = ShardDriver()
    store = opened(data_dir)
    for position in range(1, 6):
        store.take(position, driver.batch())
    store.flush()
    store.take(6, driver.batch())
    store.db.close()  # as when the process is killed
    store = opened(data_dir, head=6)
    assert store.position == 5
    with pytest.raises(AssertionError):
        store.take(7, driver.batches[5])
    store.take(6, driver.batches[5])
    store.flush()
    all_rows(driver, reader_of(data_dir, store))


def test_of_two_writers_one_finds_another_position_and_ends(data_dir: Path) -> None:
    driver = ShardDriver()
    store, orphan = opened(data_dir), opened(data_dir)
    assert store.position == orphan.position == 0
    store.take(1, driver.batch())
    store.flush()
    with pytest.raises(Overtaken):
        orphan.take(1, driver.batches[0])
    orphan.db.close()
    store.take(2, driver.batch())
    store.flush()
    all_rows(driver, reader_of(data_dir, store))


def test_more_accounts_than_are_remembered(data_dir: Path) -> None:
    driver = ShardDriver(users=30)
    opened(data_dir).close()
    store = Store(file_of(str(data_dir), 0), 0, UnsyncedDisk(), users_max=3)
    for position in range(1, 60):
        store.take(position, driver.batch())
        store.flush()
        assert len(store._accounts.numbers) <= 3
    all_rows(driver, reader_of(data_dir, store))


def test_files_are_private_and_appear_whole(data_dir: Path) -> None:
    path = Path(file_of(str(data_dir), 0))
    aside = Path(f"{path}.new")
    aside.write_bytes(b"left by a process that was killed while it made the file")
    store = opened(data_dir)
    store.take(1, ShardDriver().batch())
    store.flush()
    assert not aside.exists()
    for name in os.listdir(data_dir):
        assert (data_dir / name).stat().st_mode & 0o777 == 0o600, name


def test_a_file_that_is_none_is_kept_and_a_new_one_is_made(data_dir: Path) -> None:
    path = Path(file_of(str(data_dir), 0))
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.close()
    before = path.read_bytes()
    opened(data_dir).close()
    assert (data_dir / "damaged-1-shard-0.sqlite").read_bytes() == before
    opened(data_dir, shard=1).close()
    os.rename(file_of(str(data_dir), 1), file_of(str(data_dir), 2))
    with pytest.raises(StoreError, match="the history of shard 1"):
        opened(data_dir, shard=2)


def test_a_file_of_a_newer_version_is_refused_and_stays_as_it_is(data_dir: Path) -> None:
    opened(data_dir).close()
    path = Path(file_of(str(data_dir), 0))
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {KIND.version + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"of version {KIND.version + 1}"):
        opened(data_dir)
    assert path.read_bytes() == before


# -- fitting into its journal ------------------------------------------------------------------------------------------


def test_a_new_file_begins_where_the_journal_does(data_dir: Path) -> None:
    store = opened(data_dir, first=41, head=50)
    assert (store.position, store.begins) == (40, 41)
    driver = ShardDriver()
    store.take(41, driver.batch())
    store.close()
    assert opened(data_dir, first=41, head=50).position == 41


def test_a_hole_between_file_and_journal_is_put_on_record_and_seen_in_each_answer(data_dir: Path) -> None:
    driver = ShardDriver(users=1)
    user = driver.users[0]
    store = opened(data_dir)
    for position in range(1, 10):
        payload = driver.batch()
        if position <= 3:
            store.take(position, payload)
    store.close()
    store, remarks = open_store(ShardFile(str(data_dir), 0, 7, 9, UnsyncedDisk()), suspect=False)
    assert store.position == 6
    assert "batches 4 to 6 (3) are in neither" in remarks[0]
    assert store.db.execute("SELECT position FROM losses").fetchall() == [(6,)]
    for position in range(7, 10):
        store.take(position, driver.batches[position - 1])
    store.flush()
    page = reader_of(data_dir, store).history(2, user, NEWEST, 10**6)
    assert not page.is_whole
    (gap,) = [row for row in page.rows if row["operation"] == MISSING]
    at = page.rows.index(gap)
    newer, older = page.rows[at - 1], page.rows[at + 1]
    assert gap["entry_id"] == older["entry_id"] + 1
    assert gap["whole_from_ns"] == newer["at_ns"]
    assert older["balance_after_nanos"] + gap["amount_nanos"] == gap["balance_after_nanos"]
    assert gap["balance_after_nanos"] - newer["accrued_nanos"] == newer["balance_before_nanos"]
    expected = driver.history(user, limit=10**6)
    assert page.rows[:at] == expected[:at]
    assert page.rows[at + 1 :] == expected[-len(page.rows) + at + 1 :]


def test_pages_over_a_gap_hold_each_row_once(data_dir: Path) -> None:
    """However small the pages, and wherever the gap lies in them, the same rows come."""
    driver = ShardDriver(users=1)
    user = driver.users[0]
    store = opened(data_dir, first=4, head=3)
    for position in range(1, 10):
        payload = driver.batch(5)
        if position > 3:
            store.take(position, payload)
    store.flush()
    reader = reader_of(data_dir, store)
    all_at_once = reader.history(2, user, NEWEST, 10**6).rows
    assert (all_at_once[-1]["operation"], all_at_once[-1]["entry_id"]) == (MISSING, 1)
    for limit in (1, 2, 3, 7):
        before, paged = NEWEST, []
        while rows := reader.history(2, user, before, limit).rows:
            assert len(rows) <= limit
            paged += rows
            before = rows[-1]["entry_id"]
        assert paged == all_at_once, limit


def test_newest_rows_that_are_missing_are_said_as_well(data_dir: Path) -> None:
    driver = ShardDriver(users=1)
    store = opened(data_dir)
    store.take(1, driver.batch())
    store.flush()
    user = driver.users[0]
    newest = driver.rows[user][-1]["entry_id"]
    reader = reader_of(data_dir, store)
    assert reader.history(2, user, NEWEST, 100, Newest(newest, 9, 77)).is_whole
    page = reader.history(2, user, NEWEST, 100, Newest(newest + 2, 9, 77))
    assert not page.is_whole
    gap, before = page.rows[:2]
    assert (gap["entry_id"], gap["whole_from_ns"], gap["balance_after_nanos"]) == (newest + 1, 77, 9)
    assert before["balance_after_nanos"] + gap["amount_nanos"] == 9
    (row,) = reader.history(2, b"nobody", NEWEST, 100, Newest(3, 5, 77)).rows
    assert (row["operation"], row["entry_id"], row["amount_nanos"]) == (MISSING, 1, 5)


def test_a_file_ahead_of_its_journal_is_cut_back_to_what_both_know(data_dir: Path) -> None:
    """A power cut took batches that the weaker sync modes had not made durable: they never happened."""
    lost, continued = ShardDriver(seed=5), ShardDriver(seed=5)
    store = opened(data_dir)
    for position in range(1, 31):
        store.take(position, lost.batch())
        if position % 3 == 0:
            store.flush()
    store.take(31, batch_of((LEAVE, 2, 1, b"")))
    store.close()
    for _ in range(20):
        continued.batch()
    continued.rng.seed(77)  # from here on another past
    with pytest.raises(Ahead, match="up to batch 31, its journal only up to 20"):
        opened(data_dir, head=20)
    store, remarks = open_store(ShardFile(str(data_dir), 0, 1, 20, UnsyncedDisk()), suspect=False, accept_loss=True)
    assert store.position == 18
    assert "ahead-1-shard-0.sqlite keeps what it was" in remarks[0]
    evidence = sqlite3.connect(data_dir / "ahead-1-shard-0.sqlite")
    assert evidence.execute("SELECT position FROM about").fetchone() == (31,)
    evidence.close()
    for position in range(19, 41):
        store.take(position, continued.batch() if position > 20 else continued.batches[position - 1])
    store.flush()
    assert store.db.execute("SELECT count(*) FROM departures").fetchone() == (0,)
    all_rows(continued, reader_of(data_dir, store))
    store.close()
    assert opened(data_dir, head=40).position == 40


def test_a_file_ahead_whose_past_the_journal_has_not_begins_anew_only_where_that_is_accepted(data_dir: Path) -> None:
    driver = ShardDriver()
    store = opened(data_dir)
    for position in range(1, 10):
        store.take(position, driver.batch())
    store.close()
    with pytest.raises(Ahead, match="up to batch 9, its journal only up to 5"):
        opened(data_dir, first=3, head=5)
    store = opened(data_dir, head=9)
    all_rows(driver, reader_of(data_dir, store))
    store.close()
    store, _ = open_store(ShardFile(str(data_dir), 0, 3, 5, UnsyncedDisk()), suspect=False, accept_loss=True)
    assert (store.position, store.begins) == (2, 3)
    assert store.db.execute("SELECT count(*) FROM pages").fetchone() == (0,)


def test_only_what_is_synced_counts_as_durable(data_dir: Path) -> None:
    driver = ShardDriver()
    store = opened(data_dir)
    assert store.durable == 0
    store.take(1, driver.batch())
    store.flush()
    assert (store.position, store.durable) == (1, 0)
    assert store.checkpoint()
    assert store.durable == 1
    reader = connect(file_of(str(data_dir), 0), KIND)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM pages").fetchone()
    store.take(2, driver.batch())
    store.flush()
    assert not store.checkpoint(), "a reader stands in the way"
    assert store.durable == 1
    reader.execute("COMMIT")
    assert store.checkpoint()
    assert store.durable == 2


# -- several files -----------------------------------------------------------------------------------------------------


def test_the_rows_of_a_user_whose_bucket_moved_come_out_of_all_files(data_dir: Path) -> None:
    driver = ShardDriver()
    stores_of = {shard: opened(data_dir, shard=shard) for shard in (0, 1)}
    positions = {0: 0, 1: 0}
    rng = random.Random(2)
    for _ in range(80):  # buckets wander from shard to shard
        shard = rng.choice([0, 1])
        positions[shard] += 1
        stores_of[shard].take(positions[shard], driver.batch(5))
        stores_of[shard].flush()
    for shard, store in stores_of.items():
        all_rows(driver, reader_of(data_dir, store, shard))
    reader = reader_of(data_dir, stores_of[0])
    for user in driver.users[:5]:
        for before in range(1, driver.rows[user][-1]["entry_id"] + 2):
            assert reader.history(2, user, before, 4).rows == driver.history(user, before, 4)
    reader.close()


def test_a_file_that_appears_later_is_read_and_one_that_goes_is_not(data_dir: Path) -> None:
    mine, other_scene = ShardDriver(seed=1), ShardDriver(seed=2)
    store = opened(data_dir)
    reader = reader_of(data_dir, store)
    user = mine.users[0]
    assert reader.history(2, user, NEWEST, 9).rows == []
    later = opened(data_dir, shard=5)
    later.take(1, other_scene.batch(200))
    later.close()
    assert reader.history(2, user, NEWEST, 9).rows == other_scene.history(user, limit=9)
    assert reader.history(1, user, NEWEST, 9).rows == [], "a bucket that was never elsewhere"
    os.unlink(file_of(str(data_dir), 5))
    assert reader.history(2, user, NEWEST, 9).rows == []


def test_what_a_former_owner_has_not_written_yet_is_missing(data_dir: Path) -> None:
    here, there = opened(data_dir), opened(data_dir, shard=1)
    reader = reader_of(data_dir, here)
    assert reader.missing(7, 1) == []
    assert reader.missing(7, 3) == [1, 2]
    there.take(1, batch_of((LEAVE, 7, 2, b""), (LEAVE, 8, 1, b"")))
    there.flush()
    assert reader.missing(7, 3) == [1]
    here.take(1, batch_of((LEAVE, 7, 1, b"")))
    here.flush()
    assert reader.missing(7, 3) == []
    assert reader.missing(7, 4) == [3]
    assert reader.missing(8, 2) == []


def test_a_damaged_file_of_another_shard_is_answered_as_missing_and_ends_nobody(data_dir: Path) -> None:
    """Whoever asks is not the one whose file is damaged: the answer comes, and says from when it is whole."""
    driver = ShardDriver()
    here, there = opened(data_dir), opened(data_dir, shard=1)
    there.take(1, driver.batch(100))
    there.close()
    here.take(1, driver.batch(100))
    here.flush()
    reader = reader_of(data_dir, here)
    user = max(driver.users, key=lambda name: len(reader.history(1, name, NEWEST, 1000).rows))
    expected = driver.history(user, limit=1000)
    assert reader.history(2, user, NEWEST, 1000).rows == expected
    other_file = sqlite3.connect(file_of(str(data_dir), 1))
    other_file.execute("UPDATE pages SET checksum = checksum + 1")
    other_file.commit()
    other_file.close()
    page = reader.history(2, user, NEWEST, 1000)
    assert not page.is_whole
    *own_rows, gap = page.rows
    assert own_rows == expected[: len(own_rows)]
    assert (gap["operation"], gap["entry_id"], gap["whole_from_ns"]) == (MISSING, 1, own_rows[-1]["at_ns"])
    assert reader.damaged == {1}
    with pytest.raises(Elsewhere, match="the history of shard 1 is damaged"):
        feed_page(reader, "", 100, {}, all_written=True)
    assert code_of(Elsewhere("")) == Exit.AGAIN, "the question is refused, and the process goes on"


@pytest.mark.parametrize("wrong", ["heads", "marks"])
def test_a_chain_that_leads_astray_is_seen_where_a_file_is_suspected(data_dir: Path, wrong: str) -> None:
    driver = ShardDriver(users=2)
    store = opened(data_dir)
    for position in range(1, 6):
        store.take(position, driver.batch(60))
    store.flush()
    assert rows_are_sound(store.db)
    change = {"heads": "UPDATE heads SET newest = zeroblob(1024)", "marks": "UPDATE marks SET seq = seq + 1"}
    store.db.execute(change[wrong])
    assert not rows_are_sound(store.db)
    store.close()
    again, remarks = open_store(ShardFile(str(data_dir), 0, 1, 5, UnsyncedDisk()), suspect=True)
    assert "it was damaged" in remarks[0]
    for position in range(1, 6):
        again.take(position, driver.batches[position - 1])
    again.flush()
    all_rows(driver, reader_of(data_dir, again))


@pytest.mark.parametrize(
    "wrong",
    [
        "DELETE FROM pages",
        "DELETE FROM pages WHERE first > 100",
        "UPDATE about SET position = 4",
        "UPDATE about SET position = 6",
        "UPDATE about SET position = 'five'",
        "UPDATE groups SET position = 4 WHERE position = 5",
        "DELETE FROM groups WHERE position = 5; UPDATE about SET position = 4",  # set back, and the pages were not
    ],
)
@pytest.mark.parametrize("first", [1, 3])
def test_a_file_whose_end_does_not_agree_with_itself_is_not_written_on(data_dir: Path, wrong: str, first: int) -> None:
    """Else batches would be taken twice, or left out, or rows get numbers that others have."""
    driver = ShardDriver(users=2)
    store = opened(data_dir)
    for position in range(1, 6):
        store.take(position, driver.batch(60))
        store.flush()
    for statement in wrong.split(";"):
        store.db.execute(statement)
    assert not rows_are_sound(store.db)
    store.close()
    with pytest.raises(Damaged, match="does not agree with itself"):
        opened(data_dir, first=first, head=7)
    again, remarks = open_store(ShardFile(str(data_dir), 0, first, 7, UnsyncedDisk()), suspect=True)
    assert "it was damaged" in remarks[0]
    for position in range(again.position + 1, 8):
        again.take(position, driver.batches[position - 1] if position < 6 else driver.batch(20))
    again.flush()
    assert rows_are_sound(again.db)
    reader = reader_of(data_dir, again)
    for user in driver.users:
        rows = reader.history(2, user, NEWEST, 10**6).rows
        expected = {row["entry_id"]: row for row in driver.history(user, limit=10**6)}
        entry_rows = [row for row in rows if row["operation"] != MISSING]
        assert all(row == expected[row["entry_id"]] for row in entry_rows)
        assert len({row["entry_id"] for row in entry_rows}) == len(entry_rows), "each entry once"
        assert len(entry_rows) == len(expected) or any(row["operation"] == MISSING for row in rows)


def test_a_bucket_has_not_left_a_file_that_is_made_again_before_its_rows_are_there_again(data_dir: Path) -> None:
    """Otherwise readers take the rows that are still to come for lost ones."""
    driver = ShardDriver(users=2)
    store = opened(data_dir)
    for position in range(1, 4):
        store.take(position, driver.batch(60))
        store.flush()
    left = batch_of((LEAVE, 2, 1, b""))
    store.take(4, left)
    store.flush()
    store.db.execute("UPDATE heads SET newest = zeroblob(1024)")
    store.close()
    again, remarks = open_store(ShardFile(str(data_dir), 0, 2, 4, UnsyncedDisk()), suspect=True)
    assert "it was damaged" in remarks[0]
    assert again.position == 1
    elsewhere = reader_of(data_dir, opened(data_dir, shard=1), 1)
    assert elsewhere.missing(2, 2) == [1], "the rows of batches 2 and 3 are still to come"
    for position in (2, 3):
        again.take(position, driver.batches[position - 1])
    again.take(4, left)
    again.flush()
    assert elsewhere.missing(2, 2) == []
    all_rows(driver, elsewhere)


def test_rows_that_are_lost_at_the_end_keep_their_numbers(data_dir: Path) -> None:
    driver = ShardDriver(users=2)
    store = opened(data_dir)
    for position in range(1, 4):
        store.take(position, driver.batch(60))
        store.flush()
    seq = store.seq
    store.note_loss("the end")
    store.db.execute("DELETE FROM pages WHERE first > 60")
    store.close()
    again = opened(data_dir, head=4)
    again.take(4, driver.batch(1))
    again.flush()
    assert again.seq == seq + 1


@pytest.mark.parametrize("numbers", [127, 129])
def test_a_chunk_of_another_length_is_not_believed(numbers: int) -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE heads (chunk INTEGER, newest BLOB)")
    db.execute("INSERT INTO heads VALUES (0, zeroblob(?))", (numbers * 8,))
    with pytest.raises(ValueError, match=f"{numbers * 8} bytes"):
        Accounts(db).chunk_of(0)
