"""The feed where hosts share the journals: pages put together of all shards' parts, at any host, behind one cursor."""

from __future__ import annotations

import random
from base64 import b64decode
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from billing.follower.store import ShardFile
from billing.history import cursor
from billing.history.cursor import Place, identity_of_log
from billing.history.entries import UnknownCursor
from billing.history.feed_part import locate, part
from billing.history.store import Store, open_store
from billing.worker.feed import ROWS_A_SLICE, SharedFeedQuestion, merged, place_in, places_of
from shards.batch import ENTRY
from tests.history.test_entries import had, in_order
from tests.history.test_store import batch_of, entry_of
from tests.shards.system.unsynced import UnsyncedDisk

LOG = identity_of_log("the log of the tests")


class Journals:
    """The journals of all shards, and who wrote what."""

    def __init__(self, count: int) -> None:
        self.batches: list[list[bytes]] = [[] for _ in range(count)]
        self.next_ids: dict[bytes, int] = {}
        self.rows: list[tuple[bytes, int]] = []
        self.now_ns = 0

    def write(self, shard: int, *users: bytes) -> None:
        """A batch with the next entry of each of these users; without any, one that makes no row."""
        records = []
        for user in users:
            self.now_ns += 1
            entry_id = self.next_ids[user] = self.next_ids.get(user, 0) + 1
            records.append((ENTRY, 1, 2, entry_of(user, entry_id, at_ns=self.now_ns)))
            self.rows.append((user, entry_id))
        self.batches[shard].append(batch_of(*records))


class Host:
    """One host's files of all shards, as far as it has read the journals."""

    def __init__(self, directory: Path, journals: Journals, *, first: int = 1, is_shared: bool = True) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.journals = journals
        self.stores = [self.opened(shard, first=first, is_shared=is_shared) for shard in range(len(journals.batches))]

    def opened(self, shard: int, *, first: int = 1, is_shared: bool = True) -> Store:
        head = len(self.journals.batches[shard])
        file = ShardFile(str(self.directory), shard, first, head, UnsyncedDisk())
        return open_store(file, suspect=False, is_shared=is_shared)[0]

    def catch_up(self, rng: random.Random | None = None) -> None:
        """Reads all journals to their ends, in transactions of any size."""
        for store in self.stores:
            for position in range(store.position + 1, len(self.journals.batches[store.shard]) + 1):
                if position > store._last_taken:
                    store.take(position, self.journals.batches[store.shard][position - 1])
                if rng is not None and rng.random() < 0.3:
                    store.flush()
            store.flush()

    def again(self) -> None:
        """Its files are closed and opened, as after a restart."""
        for store in self.stores:
            store.close()
        self.stores = [self.opened(store.shard) for store in self.stores]


def page(hosts: list[Host], at: str, limit: int, rows_a_shard: int = 1000) -> list[dict[str, Any]]:
    """A page, of which `hosts` gives for each shard the one that serves it."""
    parts = [
        part(store.db, store.shard, LOG, place_in(at.encode(), store.shard), rows_a_shard, store.position)
        for store in (host.stores[shard] for shard, host in enumerate(hosts))
    ]
    wanted = [(row.user_id, row.shown["entry_id"] - 1) for slice_of in parts for row in slice_of.rows if row.follows]
    places = places_of((shard, locate(host.stores[shard].db, LOG, wanted)) for shard, host in enumerate(hosts))
    return rows_in(merged(list(parts), places, limit))


def rows_in(slices: Generator[None, None, object]) -> list[dict[str, Any]]:
    try:
        while True:
            next(slices)
    except StopIteration as end:
        rows: list[dict[str, Any]] = end.value
        return rows


@pytest.mark.parametrize("seed", range(5))
def test_each_entry_once_and_in_order_whichever_host_serves_a_shard_when_a_page_is_asked_for(
    tmp_path: Path, seed: int
) -> None:
    """Users write at shards at random, as if their buckets moved; every host reads the journals in transactions of its
    own; each page takes every shard from any host, and ends anywhere.
    """
    rng = random.Random(seed)
    journals = Journals(3)
    hosts = [Host(tmp_path / name, journals) for name in "ab"]
    users = [b"user_%d" % number for number in range(6)]
    rows: list[tuple[bytes, int]] = []
    at = ""
    for _ in range(150):
        for _ in range(rng.randrange(4)):
            journals.write(rng.randrange(3), *rng.sample(users, rng.randrange(4)))
        for host in hosts:
            host.catch_up(rng)
        if rng.random() < 0.1:
            rng.choice(hosts).again()
        page_rows = page([rng.choice(hosts) for _ in range(3)], at, rng.randrange(1, 9), rng.choice([1, 3, 1000]))
        rows += had(page_rows)
        at = page_rows[-1]["cursor"] if page_rows else at
    while page_rows := page([rng.choice(hosts) for _ in range(3)], at, 7):
        rows += had(page_rows)
        at = page_rows[-1]["cursor"]
    assert sorted(rows) == sorted(journals.rows), "each exactly once"
    assert in_order(rows)


def test_a_host_that_came_after_the_log_was_trimmed_goes_on_where_the_cursor_has_all_before(tmp_path: Path) -> None:
    """Shard 1 was quiet: a reader who is at its end needs nothing that was trimmed."""
    journals = Journals(2)
    journals.write(0, b"anna", b"bert")
    journals.write(1, b"carl")
    for _ in range(8):
        journals.write(0, b"anna")
        journals.write(1)
    old = Host(tmp_path / "old", journals)
    old.catch_up()
    rows = page([old, old], "", 100)
    at = rows[-1]["cursor"]
    journals.write(0, b"anna")
    journals.write(1, b"carl")
    new = Host(tmp_path / "new", journals, first=9)
    new.catch_up()
    page_rows = page([new, new], at, 100)
    assert had(rows) + had(page_rows) == journals.rows
    with pytest.raises(UnknownCursor, match=r"this host's history of shard 0 begins behind batch 1"):
        page([new, new], rows[0]["cursor"], 100)


def test_rows_of_before_have_places_of_this_host_alone(tmp_path: Path) -> None:
    """A file that was made before rows kept their batches."""
    journals = Journals(1)
    for _ in range(3):
        journals.write(0, b"anna", b"bert")
    here = Host(tmp_path / "here", journals, is_shared=False)
    here.catch_up()
    here.again()  # by a version that keeps batches
    journals.write(0, b"anna", b"bert")
    here.catch_up()
    there = Host(tmp_path / "there", journals)
    there.catch_up()
    rows = page([here], "", 100)
    assert had(rows) == journals.rows
    for number, row in enumerate(rows, 1):
        assert had(page([here], row["cursor"], 100)) == journals.rows[number:]
        if number < 6:
            with pytest.raises(UnknownCursor, match="the cursor is of another daemon, or the history"):
                page([there], row["cursor"], 100)
        else:
            assert had(page([there], row["cursor"], 100)) == journals.rows[number:]


def test_cursors_of_other_logs_and_from_the_future_are_refused(tmp_path: Path) -> None:
    journals = Journals(1)
    journals.write(0, b"anna", b"bert")
    host = Host(tmp_path / "host", journals)
    host.catch_up()
    for cursor_places, why in (
        (Place(identity_of_log("another"), 1, 1), "another daemon's log"),
        (Place(LOG, 2, 1), "up to batch 2, and its journal ends with batch 1"),
        (Place(LOG, 3, 0), "up to batch 3, and its journal ends with batch 1"),
        (Place(LOG, 1, 3), "begins behind batch 1"),
    ):
        with pytest.raises(UnknownCursor, match=why):
            page([host], cursor.encode({0: cursor_places}), 10)
    assert page([host], cursor.encode({0: Place(LOG, 2, 0)}), 10) == []


def test_a_row_waits_until_the_one_before_it_is_out_and_not_for_one_that_is_lost(tmp_path: Path) -> None:
    journals = Journals(2)
    journals.write(1, b"bert", b"bert", b"anna")
    journals.write(0, b"anna")
    journals.next_ids[b"carl"] = 7
    journals.write(0, b"carl")
    host = Host(tmp_path / "host", journals)
    host.catch_up()
    assert had(page([host, host], "", 10, rows_a_shard=2)) == [(b"bert", 1), (b"bert", 2)], "anna's second waits"
    rows = page([host, host], "", 10)
    assert had(rows) == [(b"bert", 1), (b"bert", 2), (b"anna", 1), (b"anna", 2), (b"carl", 8)]


def test_a_long_page_lets_others_in(tmp_path: Path) -> None:
    journals = Journals(1)
    journals.write(0, *[b"user_%d" % number for number in range(3 * ROWS_A_SLICE)])
    host = Host(tmp_path / "host", journals)
    host.catch_up()
    slice_read = part(host.stores[0].db, 0, LOG, None, 1000, 1)
    assert len(list(merged([slice_read], {}, 1000))) == 3


def test_a_file_that_is_cut_back_forgets_the_batches_behind(tmp_path: Path) -> None:
    journals = Journals(1)
    host = Host(tmp_path / "host", journals)
    for _ in range(4):
        journals.write(0, b"anna")
        host.catch_up()
    host.stores[0].cut_back_to(2)
    journals.batches[0][2:] = []
    journals.next_ids[b"anna"] = 2
    journals.rows[2:] = []
    journals.write(0, b"bert", b"anna")
    host.catch_up()
    rows = page([host], "", 10)
    assert had(rows) == journals.rows
    for number, row in enumerate(rows, 1):
        assert had(page([host], row["cursor"], 10)) == journals.rows[number:]


def test_a_shard_that_cannot_be_asked_is_the_answer() -> None:
    answers: list[object] = []
    question = SharedFeedQuestion(
        lambda *question: None, "", 10, 2, lambda slices, done: done(rows_in(slices)), answers.append
    )
    question.ask()
    question.refuse(None, "shard 2 is down")
    question.answer(None, [(1, None, [], (LOG, 1, 0)), (2, None, [], (LOG, 1, 0))])
    assert answers == ["shard 2 is down", []]


def test_the_place_in_a_log_of_the_docstring() -> None:
    raw = b64decode(cursor.encode({0: Place(LOG, 7, 3)}) + "==", b"-_")
    assert raw[:-4].hex() == "02" + "00000000" + LOG.hex() + "0700000000000000" + "03000000"
    both = {0: Place(LOG, 7, 3), 4: Place(b"abcdefgh", 9)}
    assert cursor.decode(cursor.encode(both)) == both
