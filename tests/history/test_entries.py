"""The feed: every row of every file once, an account's in their order, wherever its bucket was; cursors that lie."""

from __future__ import annotations

import random
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.follower.store import ShardFile, file_of
from billing.history import cursor
from billing.history.copying import copy_history
from billing.history.cursor import OF_FILE, NoCursor, Place
from billing.history.entries import UnknownCursor, page
from billing.history.history_reader import HistoryReader
from billing.history.store import Store, open_store
from shards.batch import ENTRY
from tests.history.test_store import batch_of, entry_of, opened
from tests.shards.system.unsynced import UnsyncedDisk

DISK = UnsyncedDisk()


class Shards:
    """The files of several shards, fed as their journals are, and one reader of all."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.stores = [opened(directory, shard=shard) for shard in range(count)]
        self.positions = [0] * count
        self.next_ids: dict[bytes, int] = {}
        self.rows: list[tuple[bytes, int]] = []  # (user, entry_id) of all rows
        self.now_ns = 0

    def write(self, shard: int, user: bytes, *, flush: bool = True) -> None:
        """The next entry of a user, in the journal of this shard."""
        self.now_ns += 1
        entry_id = self.next_ids[user] = self.next_ids.get(user, 0) + 1
        self.positions[shard] += 1
        body = entry_of(user, entry_id, at_ns=self.now_ns)
        self.stores[shard].take(self.positions[shard], batch_of((ENTRY, 1, 2, body)))
        self.rows.append((user, entry_id))
        if flush:
            self.stores[shard].flush()

    def bounds(self) -> dict[int, int]:
        """What all shards answer when they are asked how far they are."""
        for store in self.stores:
            store.flush()
        return {store.shard: store.seq for store in self.stores}

    def reader(self, shard: int = 0) -> HistoryReader:
        return HistoryReader(str(self.directory), shard, self.stores[shard].db, DISK)


def had(rows: list[dict[str, Any]]) -> list[tuple[bytes, int]]:
    return [(row["user_id"].encode(), row["entry_id"]) for row in rows]


def in_order(rows: list[tuple[bytes, int]]) -> bool:
    """Whether each user's entries follow each other from 1 on."""
    last: dict[bytes, int] = {}
    for user, entry_id in rows:
        if entry_id != last.get(user, 0) + 1:
            return False
        last[user] = entry_id
    return True


@given(
    places=st.dictionaries(
        st.integers(0, 2**32 - 1),
        st.builds(
            Place, st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1), st.just(OF_FILE) | st.integers(0, 999)
        ),
        max_size=20,
    )
)
def test_a_cursor_says_its_places_and_no_other_text_does(places: dict[int, Place]) -> None:
    text = cursor.encode(places)
    assert cursor.decode(text) == places
    changed = text[:5] + ("B" if text[5] != "B" else "C") + text[6:]
    for text_changed in (text[:-1], text + "A", changed, "é" + text, "!" + text):
        with pytest.raises(NoCursor):
            cursor.decode(text_changed)


def test_the_cursor_of_the_docstring() -> None:
    raw = b64decode(cursor.encode({0: Place(b"abcdefgh", 7)}) + "==", b"-_")
    assert raw[:-4].hex() == "01" + "00000000" + "6162636465666768" + "0700000000000000"
    assert cursor.decode("") == {}


@pytest.mark.parametrize("seed", range(5))
def test_each_entry_once_and_in_order_however_users_move_and_pages_are_cut(data_dir: Path, seed: int) -> None:
    """Users write at shards at random, as if their buckets moved at any time; readers come in between, from any shard,
    with pages of any size, and store nothing but the cursor of their last row.
    """
    rng = random.Random(seed)
    shards = Shards(data_dir, 3)
    users = [b"user_%d" % number for number in range(6)]
    rows: list[tuple[bytes, int]] = []
    at = ""
    for _ in range(300):
        for _ in range(rng.randrange(6)):
            shards.write(rng.randrange(3), rng.choice(users))
        next_page = page(shards.reader(rng.randrange(3)), at, rng.randrange(1, 9), shards.bounds(), all_written=False)
        assert not next_page.waits
        rows += had(next_page.rows)
        at = next_page.rows[-1]["cursor"] if next_page.rows else at
    while (next_page := page(shards.reader(), at, 7, shards.bounds(), all_written=False)).rows:
        rows += had(next_page.rows)
        at = next_page.rows[-1]["cursor"]
    assert sorted(rows) == sorted(shards.rows), "each exactly once"
    assert in_order(rows)


def test_a_row_waits_for_the_one_before_it_in_a_file_that_is_behind(data_dir: Path) -> None:
    """Shard 0 has not written the user's first entry when shard 1 has written the second: nobody gets the second before
    it. What is bounded by the answers of all shards is taken once all of them have written.
    """
    shards = Shards(data_dir, 2)
    shards.write(0, b"anna", flush=False)
    shards.write(1, b"anna")
    shards.write(1, b"bert")
    behind = {0: 0, 1: 2}
    next_page = page(shards.reader(1), "", 10, behind, all_written=False)
    assert (next_page.rows, next_page.waits, next_page.bounds) == ([], True, behind)
    shards.stores[0].flush()
    assert page(shards.reader(1), "", 10, behind, all_written=True).rows == []  # the first lies above its bound
    next_page = page(shards.reader(1), "", 10, shards.bounds(), all_written=False)
    assert had(next_page.rows) == [(b"anna", 1), (b"anna", 2), (b"bert", 1)]


def test_a_row_that_is_lost_holds_nothing_up_once_all_have_written(data_dir: Path) -> None:
    shards = Shards(data_dir, 2)
    shards.next_ids[b"anna"] = 7
    shards.write(1, b"anna")
    next_page = page(shards.reader(), "", 10, shards.bounds(), all_written=False)
    assert (next_page.rows, next_page.waits) == ([], True)
    assert had(page(shards.reader(), "", 10, next_page.bounds, all_written=True).rows) == [(b"anna", 8)]


def test_a_shard_that_came_later_is_read_from_its_beginning(data_dir: Path) -> None:
    shards = Shards(data_dir, 1)
    shards.write(0, b"anna")
    at = page(shards.reader(), "", 10, shards.bounds(), all_written=False).rows[-1]["cursor"]
    shards.stores.append(opened(data_dir, shard=1))
    shards.positions.append(0)
    shards.write(1, b"anna")
    assert had(page(shards.reader(), at, 10, shards.bounds(), all_written=False).rows) == [(b"anna", 2)]


def end_of(store: Store) -> str:
    """The cursor behind the last row of a shard that stands alone."""
    reader = HistoryReader(str(Path(store.path).parent), store.shard, store.db, DISK)
    return str(page(reader, "", 1000, {}, all_written=True).rows[-1]["cursor"])


def refusal(store: Store, at: str) -> str:
    reader = HistoryReader(str(Path(store.path).parent), store.shard, store.db, DISK)
    with pytest.raises(UnknownCursor) as caught:
        page(reader, at, 10, {}, all_written=True)
    return str(caught.value)


def test_a_cursor_of_another_daemon_is_refused(data_dir: Path, tmp_path: Path) -> None:
    shards_here, shards_there = Shards(data_dir, 1), Shards(tmp_path, 2)
    for shards in (shards_here, shards_there):
        shards.write(0, b"anna")
    shards_there.write(1, b"bert")
    assert "of another daemon" in refusal(shards_here.stores[0], end_of(shards_there.stores[0]))
    assert "no text that this daemon gave out" in refusal(shards_here.stores[0], "bm9uZQ")


def test_a_history_that_was_cut_back_refuses_who_has_read_on(data_dir: Path) -> None:
    """The journal lost what the file has, which was accepted: whoever has read those rows is told; others go on."""
    shards = Shards(data_dir, 1)
    shards.write(0, b"anna")
    early = end_of(shards.stores[0])
    shards.write(0, b"anna")
    late = end_of(shards.stores[0])
    shards.stores[0].close()
    store, _ = open_store(ShardFile(str(data_dir), 0, 1, 1, DISK), suspect=False, accept_loss=True)
    shards.stores[0], shards.positions[0], shards.next_ids[b"anna"] = store, 1, 1
    shards.write(0, b"anna")
    assert "has taken back entries behind row 1" in refusal(store, late)
    assert had(page(shards.reader(), early, 10, {}, all_written=True).rows) == [(b"anna", 2)]


def test_a_copy_goes_on_for_who_had_no_more_than_it_holds(data_dir: Path, tmp_path: Path) -> None:
    """A daemon restored from a backup makes other entries than the one that went on: their cursors part there."""
    shards = Shards(data_dir, 1)
    shards.write(0, b"anna")
    early = end_of(shards.stores[0])
    assert copy_history(DISK, file_of(str(data_dir), 0), file_of(str(tmp_path), 0), 0, 1)
    shards.write(0, b"anna")
    late = end_of(shards.stores[0])
    store = opened(tmp_path, head=1)
    store.take(2, batch_of((ENTRY, 1, 2, entry_of(b"anna", 2, at_ns=77))))
    store.flush()
    assert "has taken back entries behind row 1" in refusal(store, late)
    reader = HistoryReader(str(tmp_path), 0, store.db, DISK)
    (row,) = page(reader, early, 10, {}, all_written=True).rows
    assert (row["entry_id"], row["at_ns"]) == (2, 77)
    assert "of another daemon" in refusal(shards.stores[0], row["cursor"])


def test_a_history_that_was_made_anew_refuses_all_cursors_before(data_dir: Path) -> None:
    shards = Shards(data_dir, 1)
    shards.write(0, b"anna")
    at = end_of(shards.stores[0])
    shards.stores[0].close()
    path = Path(file_of(str(data_dir), 0))
    path.write_bytes(path.read_bytes()[:100] + bytes(4000) + path.read_bytes()[4100:])
    store, remarks = open_store(ShardFile(str(data_dir), 0, 1, 1, DISK), suspect=True)
    assert "made anew" in remarks[0]
    assert "made anew" in refusal(store, at)
