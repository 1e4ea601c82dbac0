"""`history.keep_days`: what is kept answers every question since the limit as all rows did, and the rest is gone."""

from __future__ import annotations

import random
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest

from billing.cli.statement_command import csv_rows, faults_of
from billing.follower.store import ShardFile
from billing.history.entries import UnknownCursor, page
from billing.history.history_reader import EVERYWHERE, HistoryReader, Shown
from billing.history.page import OPENING_ROW
from billing.history.period_reader import Chain, balance_at, shown, statement
from billing.history.retention import Postponed, prune
from billing.history.store import Pages, Store, open_store, rows_are_sound
from billing.ledger.money import INT64_MAX
from shards.batch import ENTRY
from tests.history import tampering
from tests.history.books import AccountLife, lives
from tests.history.shard_driver import ShardDriver
from tests.history.test_entries import end_of
from tests.history.test_period import File, answer_of, life_of, standing_of
from tests.history.test_store import batch_of, opened, reader_of
from tests.ledger.driver import HOUR, LedgerDriver
from tests.shards.system.unsynced import UnsyncedDisk


def prune_all(file: File, limit_ns: int) -> None:
    for _ in prune(file.store, file.reader, limit_ns):
        pass


def ids_of(store: Store) -> list[int]:
    return [row.entry_id for row in tampering.rows(store.db)]


@pytest.mark.parametrize("seed", [11, 12, 13, 14, 15, 16])
def test_statements_since_the_limit_stay_as_they_were_however_often_it_is_cut(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    life = max(lives(seed, 600), key=lambda life: len(life.points))
    file = File(tmp_path, life, life.timeline.entries[0].user_id)
    limits = sorted(draw.choice(life.instants) + draw.choice((-1, 0, 1)) for _ in range(5))
    for limit_ns in limits:
        prune_all(file, limit_ns)
        old = sum(at_ns < limit_ns for at_ns in life.instants)
        assert ids_of(file.store) == list(range(max(1, old), len(life.points) + 1)), "one row before the limit is kept"
        assert rows_are_sound(file.store.db)
        for _ in range(30):
            from_ns, to_ns = sorted(max(at_ns, limit_ns) for at_ns in life.cuts(draw, 2))
            answer = file.statement(from_ns, to_ns)
            del answer["entries"]
            wanted = shown(file.user, life.period(from_ns, to_ns), False, [])
            del wanted["entries"]
            assert answer == wanted
            then, behind = file.balance_at(from_ns), life.period(from_ns, from_ns + 1)
            assert int(then["exact_balance"]) == behind.opening + behind.credits - behind.debits


class MovedAccount:
    """The rows of one account in the files of three shards, between which its bucket moved at random."""

    def __init__(self, home: Path, life: AccountLife, draw: random.Random) -> None:
        self.life = life
        self.user = life.timeline.entries[0].user_id
        self.stores = [opened(home, shard=shard) for shard in range(3)]
        self.readers = [
            HistoryReader(str(home), shard, store.db, UnsyncedDisk()) for shard, store in enumerate(self.stores)
        ]
        self.shards: list[int] = []  # at which each entry was made
        positions, shard = [0, 0, 0], 0
        for packed in life.packed:
            if draw.random() < 0.05:
                shard = draw.randrange(3)
            positions[shard] += 1
            self.shards.append(shard)
            self.stores[shard].take(positions[shard], batch_of((ENTRY, 1, 1, packed)))
        for store in self.stores:
            store.flush()

    def statement(self, shard: int, from_ns: int, to_ns: int) -> dict[str, object]:
        chain = Chain(self.readers[shard], EVERYWHERE, self.user, standing_of(self.life))
        return answer_of(statement(chain, self.user, from_ns, to_ns, True, 1000, INT64_MAX))[0]

    def rows_kept(self, shard: int, limit_ns: int) -> list[int]:
        """The entry_ids of the rows that a file keeps for a limit."""
        here = [number for number, at in enumerate(self.shards) if at == shard]
        old = [number for number in here if self.life.instants[number] < limit_ns]
        return [number + 1 for number in here if number not in old[:-1]]


@pytest.mark.parametrize("seed", range(31, 39))
def test_rows_in_several_files_are_cut_apart_and_statements_since_then_stay_exact(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    life = max(lives(seed, 600), key=lambda life: len(life.points))
    files = MovedAccount(tmp_path, life, draw)
    limits = [0, 0, 0]
    for _ in range(6):
        shard = draw.randrange(3)
        limits[shard] = max(limits[shard], draw.choice(life.instants) + draw.choice((-1, 0, 1)))
        slices = prune(files.stores[shard], files.readers[shard], limits[shard])
        for _ in range(draw.choice((2, 3, 100))):  # a pass may be broken off
            next(slices, None)
        assert isinstance(slices, Generator)
        slices.close()
        for _ in range(20):
            from_ns, to_ns = sorted(max(at_ns, *limits) for at_ns in life.cuts(draw, 2))
            answer = files.statement(draw.randrange(3), from_ns, to_ns)
            del answer["entries"]
            wanted = shown(files.user, life.period(from_ns, to_ns), False, [])
            del wanted["entries"]
            assert answer == wanted
    for shard, (store, reader) in enumerate(zip(files.stores, files.readers, strict=True)):
        for _ in prune(store, reader, limits[shard]):
            pass
        assert ids_of(store) == files.rows_kept(shard, limits[shard])


def test_a_row_stands_where_the_history_was_cut_and_says_from_when_it_is_whole(tmp_path: Path) -> None:
    driver = LedgerDriver()
    for number in range(10):
        driver.top_up("u", 100, at=10 * number)
    file = File(tmp_path, life_of(driver), b"u")
    prune_all(file, 55)
    page = file.reader.history(1, b"u", INT64_MAX, 100)
    assert [row["entry_id"] for row in page.rows] == [10, 9, 8, 7, 6, 1]
    opening = page.rows[-1]
    assert (opening["operation"], opening["balance_after_nanos"], opening["whole_from_ns"]) == ("opening", 500, 50)
    assert opening["message"] == "the rows of entries 1 to 5 were deleted by history.keep_days"
    assert page.is_whole, "nobody waits for what was deleted"
    answer, _ = answer_of(statement(file.chain(), b"u", 0, 100, False, 100, INT64_MAX))
    assert answer["whole_from_ns"] == 50
    assert [row["entry_id"] for row in answer["entries"]] == [1, 6, 7, 8, 9, 10]
    assert answer["entries"][0] == opening
    assert (answer["entries_count"], answer["first_entry_id"], answer["credits_nanos"]) == (5, 6, 1000)
    then, _ = answer_of(balance_at(file.chain(), b"u", 45, INT64_MAX))
    assert (then["state"], then["available_nanos"], then["whole_from_ns"]) == (None, None, 50)
    assert int(answer_of(balance_at(file.chain(), b"u", 95, INT64_MAX))[0]["balance_nanos"]) == 1000


def test_the_command_s_columns_sum_to_the_period_s_also_over_a_cut(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=0)
    driver.set_rate("u", HOUR, at=5)
    for number in range(1, 10):
        driver.debit("u", 10, at=10 * number)
    file = File(tmp_path, life_of(driver), b"u")
    uncut = file.statement(0, 100)
    prune_all(file, 55)
    cut, _ = answer_of(statement(file.chain(), b"u", 0, 100, False, 100, INT64_MAX))
    for answer in (uncut, cut):
        assert faults_of(answer, answer["entries"]) == []
        lines = csv_rows(answer, answer["entries"])
        assert sum(line["accrued_nanos"] for line in lines) == answer["accrued_nanos"]
        assert sum(line["amount_nanos"] for line in lines) == answer["credits_nanos"] - answer["debits_nanos"]
        assert min(line["accrued_nanos"] for line in lines) >= 0
    assert uncut["closing_nanos"] == cut["closing_nanos"] == 1000 - 95 - 90


def test_a_machine_that_has_run_for_a_year_keeps_no_row_of_then(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**12, at=0)
    driver.set_rate("u", HOUR, at=10, resource="gone")
    driver.set_rate("u", 0, at=20, resource="gone")
    driver.set_rate("u", 3 * HOUR, at=30, resource="vm")
    for number in range(20):
        driver.top_up("u", 1, at=100 + number)
    file = File(tmp_path, life_of(driver), b"u")
    prune_all(file, 105)
    prune_all(file, 115)
    assert ids_of(file.store)[0] == 4 + 15
    answer = file.statement(116, 119)
    assert [(line["resource"], line["accrued_nanos"]) for line in answer["resources"]] == [("vm", 9)]
    assert file.store.db.execute("SELECT count(*) FROM openings").fetchone() == (1,)


def test_openings_live_through_the_making_of_a_new_file_and_a_false_one_is_seen(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**12, at=0)
    driver.set_rate("u", HOUR, at=10, resource="vm")
    for number in range(20):
        driver.top_up("u", 1, at=100 + number)
    file = File(tmp_path, life_of(driver), b"u")
    prune_all(file, 110)
    uncut = file.statement(111, 118)
    tampering.row_added(file.store.db, 22, lambda entry: entry._replace(entry_id=23))
    file.store.db.execute("UPDATE pages SET checksum = checksum + 1 WHERE first = 23")  # as damage would
    file.store.close()
    store, remarks = open_store(ShardFile(str(tmp_path), 0, 22, 22, UnsyncedDisk()), suspect=True)
    assert "it was damaged" in remarks[0]
    chain = Chain(reader_of(tmp_path, store), 1, b"u", standing_of(file.life))
    again, _ = answer_of(statement(chain, b"u", 111, 118, True, 1000, INT64_MAX))
    assert again["resources"] == uncut["resources"]
    assert [(line["resource"], line["accrued_nanos"]) for line in uncut["resources"]] == [("vm", 7)]
    store.db.execute("UPDATE openings SET entry_id = entry_id + 1")
    assert not rows_are_sound(store.db)


def test_nothing_is_deleted_while_another_file_cannot_be_read(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**12, at=0)
    driver.set_rate("u", HOUR, at=10, resource="vm")
    for number in range(20):
        driver.top_up("u", 1, at=100 + number)
    other_file = opened(tmp_path, shard=1)
    other_file.db.execute("PRAGMA user_version = 3")  # its own process has not converted it yet
    other_file.close()
    file = File(tmp_path, life_of(driver), b"u")
    with pytest.raises(Postponed, match="version"):
        prune_all(file, 110)
    assert len(ids_of(file.store)) == 22


def kept_below(store: Store, seq: int) -> list[int]:
    return [row.seq for row in Pages(store.db).following(0, seq - 1) if row.operation != OPENING_ROW]


def read_by_ones(reader: HistoryReader) -> list[Shown]:
    """The feed from its beginning, in pages of one row."""
    rows: list[Shown] = []
    while rows_read := page(reader, rows[-1]["cursor"] if rows else "", 1, {}, all_written=True).rows:
        rows += rows_read
    return rows


def test_batches_come_in_between_and_the_feed_refuses_who_has_not_had_what_went(data_dir: Path) -> None:
    driver = ShardDriver(users=5)
    store = opened(data_dir)
    store.take(1, driver.batch(200))
    store.flush()
    reader = reader_of(data_dir, store)
    early = page(reader, "", 3, {}, all_written=True).rows[-1]["cursor"]
    late = end_of(store)
    limit_ns, position = driver.now_ns, 1
    old = {user: [row["entry_id"] for row in rows if row["at_ns"] < limit_ns] for user, rows in driver.rows.items()}
    for _ in prune(store, reader, limit_ns):
        position += 1
        store.take(position, driver.batch(20))
    store.flush()
    for user, ids in old.items():
        rows = [row for row in reader.history(1, user, INT64_MAX, 1000).rows if row["operation"] != "opening"]
        assert rows == driver.history(user)[: len(rows)]
        assert rows[-1]["entry_id"] == ids[-1]
        assert all(older["entry_id"] == newer["entry_id"] - 1 for newer, older in pairwise(rows))
    with pytest.raises(UnknownCursor, match="keep_days"):
        page(reader, early, 10, {}, all_written=True)
    assert page(reader, late, 10, {}, all_written=True).rows
    everything = page(reader, "", 10_000, {}, all_written=False)
    assert not everything.waits
    (deleted,) = store.db.execute("SELECT seq FROM cuts").fetchone()
    assert kept_below(store, deleted), "an account keeps a row that is older than what another's lost"
    assert everything.rows == read_by_ones(reader), "who begins again is never refused"
    assert [row["entry_id"] for row in everything.rows] == [
        row.entry_id for row in Pages(store.db).following(deleted, INT64_MAX) if row.operation != OPENING_ROW
    ]
    store.close()
    again = opened(data_dir, head=position)
    assert rows_are_sound(again.db)
