"""The file of one shard's history: a follower's file (`follower.store`) with a row for each entry.

    about       one row: shard, position (the last batch in it; -1: not set yet), begins (the first batch it is made of)
    users       number, user_id
    heads       the newest row of each user: see `accounts`
    pages       the rows, in the order of the journal, some dozens at a time: see `page`
    marks       (number, entry_id) -> seq, for every `MARK_EVERY`th entry
    departures  (bucket_id, generation) that this shard gave away, and the position at the end of that transaction
    groups      (position, seq) at the end of the last `GROUPS_KEPT` transactions: where it can be cut back to
    losses      position, text: batches that are in neither the file nor the journal, and why
    identities  identity, seq_max: the file's identities in cursors of the feed (`cursor`); the one without seq_max is
                the present one, earlier ones stand for the rows up to their seq_max
    cuts        (seq, at_ns): the newest row that `history.keep_days` deleted, and the limit; no row where none was
    openings    the rate lines at the oldest row that an account keeps, where rows were deleted (`openings`)
    batches     where several hosts share the journal: which batch a row came from (`batches`)

**Exactly once.** A group of batches and the position of its last one are written in one transaction.

**Behind its journal**, the file is fed. Where the journal does not reach back to its position, the batches between are
lost: that is recorded, and readers see it in the rows, because their entry_ids have a gap. **Ahead of its journal**,
the file proves that the journal lost batches: `Ahead` names both positions, and nothing is changed. Only where the
caller accepts that loss (a weaker `journal.sync` and a loss of power; the operator's word), the file is cut back to a
group that the journal has, and a copy of the file is kept beside it. Rows that are cut back may have been read, and
other rows will get their numbers: so the file gets another identity.

**Pages prove themselves.** Each has a checksum, which every reader checks. **The end of the file** is written twice, in
`about` and in the newest of `groups`, which also has the number of rows. If these disagree, or if rows are found behind
that end, or are missing before it and no record says so, the file is damaged. Otherwise batches could be taken twice,
or two rows get the same number, and nothing could tell them apart later.

Why a chain, in the order of the journal: kept together by user, 50,000 entries a second of random users dirty 50,000 of
SQLite's pages a second; in order of arrival, a few thousand. Measured with 100,000 users, an entry as a row of its own
costs 2.5 µs of SQLite this way, 6 to 9 with an index over (user, entry_id), 11 to 14 clustered by it, and those two
grow with the file. Why pages of records: parsing an entry that the worker has just packed, binding eighteen columns and
packing them again is most of the cost of an SQLite row per entry, and few rows are ever asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

from billing.follower.store import (
    Ahead,
    Damaged,
    FollowerStore,
    ShardFile,
    file_of,
    keep_copy,
    lost_batches,
    make,
    make_of,
    opened,
)
from billing.history import batches, openings
from billing.history.accounts import USERS_MAX, Accounts, chain_end_of
from billing.history.cursor import IDENTITY_BYTES
from billing.history.page import PAGE_ROWS, OpenPage, Page, Part, Row, pages_of
from billing.history.period import Lines
from billing.history.projection import MARK_EVERY, Group, project
from billing.history.salvage import salvage
from billing.history.tables import KIND, NEWEST_GROUP, SEQ, ends_agree
from shards.system.disk import Disk

__all__ = ["Pages", "Store", "file_of", "open_store"]

GROUPS_KEPT: Final = 4096
INSERT_ROWS: Final = 32 * PAGE_ROWS  # rows per write into the open transaction

INSERT_PAGE: Final = "INSERT INTO pages VALUES (?, ?, ?, ?)"
_DELETE_MARK: Final = "DELETE FROM marks WHERE number = (SELECT number FROM users WHERE user_id = ?) AND entry_id = ?"
_HOLDING: Final = "SELECT * FROM pages WHERE first <= ? ORDER BY first DESC LIMIT 1"
_BEHIND: Final = "SELECT * FROM pages WHERE first > ? ORDER BY first LIMIT 1"


class Pages:
    """Reads the pages of one file. It caches the last one, as the rows of an account are often neighbours; so an object
    serves one question only. All methods raise Damaged where a page does not match its checksum, and sqlite3.Error.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._page = OpenPage(0, 0, b"")

    def _of(self, query: str, seq: int) -> OpenPage | None:
        row = self._db.execute(query, (seq,)).fetchone()
        if row is None:
            return None
        page = Page._make(row)
        if not page.is_sound:
            raise Damaged(f"the page of the rows from {page.first} on is not what was written")
        return page.open()

    def row(self, seq: int) -> Row | None:
        """Returns a row by its seq; None where it is not in the file."""
        page = self._page
        if not page.first <= seq < page.first + page.length:
            holding = self._of(_HOLDING, seq)
            if holding is None or seq >= holding.first + holding.length:
                return None
            page = self._page = holding
        return page.row(seq)

    def chain(self, seq: int) -> Iterator[Row]:
        """Yields the row of this seq and the earlier rows of its account, newest first, as far as they are in
        the file.
        """
        while seq and (row := self.row(seq)) is not None:
            yield row
            seq = row.older

    def behind(self, seq: int) -> Iterator[OpenPage]:
        """Yields the pages with rows behind `seq`, in order; each is read when it is asked for."""
        page = self._of(_HOLDING, seq)
        if page is not None and page.first + page.length - 1 > seq:
            yield page
        at = seq if page is None else page.first
        while (page := self._of(_BEHIND, at)) is not None:
            yield page
            at = page.first

    def following(self, seq: int, end: int) -> Iterator[Row]:
        """Yields the rows behind `seq` up to `end`, in order."""
        for page in self.behind(seq):
            for row in page.rows():
                if row.seq > end:
                    return
                if row.seq > seq:
                    yield row


def rows_are_sound(db: sqlite3.Connection) -> bool:
    """Whether every page of a file of this version matches its checksum, no row is missing between the others, and the
    chain of each account leads from its newest row over all of them.
    """
    if db.execute("PRAGMA user_version").fetchone() != (KIND.version,):
        return True  # older rows are checked one by one when they are converted
    may_lack = db.execute("SELECT (SELECT count(*) FROM losses) + (SELECT count(*) FROM cuts)").fetchone() != (0,)
    if not ends_agree(db):
        return False
    expected = 1
    newest: dict[bytes, int] = {}
    marks = set(db.execute("SELECT user_id, entry_id, seq FROM marks JOIN users USING (number)"))
    for page in map(Page._make, db.execute("SELECT * FROM pages ORDER BY first")):
        if not page.is_sound or (page.first != expected and not may_lack):
            return False
        expected = page.first + page.length
        for row in page.open().rows():
            if row.older != newest.get(row.user_id, 0) and (row.user_id in newest or not may_lack):
                return False
            newest[row.user_id] = row.seq
            if not row.entry_id % MARK_EVERY and (row.user_id, row.entry_id, row.seq) not in marks:
                return False
    if any((chain_end := chain_end_of(db, user_id)) is None or chain_end[1] != seq for user_id, seq in newest.items()):
        return False
    return all(map(openings.is_sound, db.execute("SELECT * FROM openings")))


def open_store(
    file: ShardFile, *, suspect: bool, accept_loss: bool = False, is_shared: bool = False
) -> tuple[Store, list[str]]:
    """Opens the store of a shard and aligns it with its journal. Returns it, and remarks for the operator. A missing
    file is created; a damaged one, or one of an older version, is made anew from its sound pages. The store is fed from
    the batch after its position. `is_shared`: other hosts have files of the same journal, so the batch of each row is
    recorded. Raises StoreError (Ahead), Unproved, sqlite3.Error, OSError.
    """
    _, shard, first, head, disk = file
    path = file.path
    remarks = []
    if not disk.exists(path):
        make(path, KIND, disk, lambda db: _fill_new(db, shard))
    elif source := opened(path, KIND, disk, suspect, rows_are_sound):
        if source != path and first == 1:
            make(path, KIND, disk, lambda db: _fill_new(db, shard))
            remarks.append(f"it was damaged, and is made anew from the journal, which is whole; {source} is kept")
        else:
            remark = make_of(
                path,
                source,
                KIND,
                disk,
                lambda db: _salvaged(db, source, shard, first),
                lambda db: _fill_new(db, shard),
            )
            remarks += [remark] if remark else []
    store = Store(path, shard, disk)
    remarks += store.settle(first, head, accept_loss=accept_loss)
    if is_shared:
        store.keep_batches()
    return store, remarks


def name_anew(db: sqlite3.Connection, seq_max: int | None = None) -> None:
    """Gives the file another identity. `seq_max`: the last row up to which the earlier identities still stand for the
    same rows; None for a file that has no identity yet.
    """
    db.execute("UPDATE identities SET seq_max = min(coalesce(seq_max, :seq), :seq)", {"seq": seq_max})
    db.execute("INSERT INTO identities VALUES (randomblob(?), NULL)", (IDENTITY_BYTES,))


def _salvaged(db: sqlite3.Connection, source: str, shard: int, first: int) -> str:
    """Takes over the sound rows of another file, under a new identity: the same numbers may mean other rows now."""
    name_anew(db)
    return salvage(db, source, shard, first, KIND)


def _fill_new(db: sqlite3.Connection, shard: int) -> None:
    db.execute("INSERT INTO about VALUES (?, -1, 0)", (shard,))
    name_anew(db)


class Store(FollowerStore):
    """The writer of a history file; see `FollowerStore`."""

    def __init__(self, path: str, shard: int, disk: Disk, *, users_max: int = USERS_MAX) -> None:
        self._users_max = users_max
        self._group = Group()
        self._inserted = 0  # rows of the group that are in the transaction already
        self.arrived: set[int] = set()  # buckets that arrived with the batches taken; the caller clears it
        super().__init__(path, KIND, shard, disk)
        self._keeps_batches = batches.are_kept(self.db)

    def read_where(self) -> None:
        db = self.db
        self._accounts = Accounts(db, self._users_max)
        if not ends_agree(db):
            raise Damaged(f"{self.path}: what it says of its end does not agree with itself")
        self.begins, self.position = db.execute("SELECT begins, position FROM about").fetchone()
        _, seq = db.execute(NEWEST_GROUP).fetchone() or (0, 0)
        self.seq = max(seq, db.execute(SEQ).fetchone()[0])  # rows lost at the end keep their numbers
        self._paged = self.seq  # the last row that is in a page
        self._slot = db.execute("SELECT slot FROM groups ORDER BY position DESC LIMIT 1").fetchone()
        self._last_taken = self.position  # the last batch in the open group

    def settle(self, first: int, head: int, *, accept_loss: bool = False) -> list[str]:
        """Aligns the file with a journal that holds the batches `first` to `head`. Returns remarks. Raises Ahead."""
        remarks = []
        if self.position < 0:
            self.db.execute("UPDATE about SET begins = ?, position = ?", (first, first - 1))
            if first > 1:
                remarks.append(f"it lacks what came before batch {first}")
        elif self.position > head:
            remarks.append(self._cut_back(first, head, accept_loss))
        elif missing := lost_batches(self.position, first):
            text = f"batches {self.position + 1} to {first - 1} ({missing}) are in neither file nor journal"
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("INSERT INTO losses VALUES (?, ?)", (first - 1, text))
            self.commit(first - 1)
            remarks.append(f"{text}: it lacks them from now on")
        self.read_where()
        self.checkpoint()
        return remarks

    def _cut_back(self, first: int, head: int, accept_loss: bool) -> str:
        text = f"{self.path} goes up to batch {self.position}, its journal only up to {head}"
        if not accept_loss:
            raise Ahead(f"{text}: the journal has lost what lies between, or is an older copy")
        kept_path = keep_copy(self.db, self.path, "ahead", self._disk)
        self.cut_back_to(head)
        if self.position < first - 1:  # the journal does not reach back to it: the file begins anew with the journal
            self._cut(first - 1, 0, begins=first)
        return f"{text}: it was cut back to batch {self.position}, and {kept_path} keeps what it was"

    def cut_back_to(self, head: int) -> None:
        """Deletes all rows behind the batch `head`: the file then ends with the last transaction that ended at or
        before it.
        """
        if self.position > head:
            groups = self.db.execute("SELECT position, seq FROM groups WHERE position <= ?", (head,)).fetchall()
            self._cut(*max([(self.begins - 1, 0), *groups]), begins=self.begins)

    def cut_out(self, position: int, seq: int, begins: int) -> None:
        """Deletes all rows behind the batch `position`, whose last row is `seq`. They are not taken from the journal
        alone again.
        """
        self._cut(position, seq, begins=begins)

    def note_filled(
        self,
        begins: int,
        losses: list[tuple[int, str]],
        departures: Iterable[tuple[int, int, int]],
        opening_rows: list[tuple[int, int, int, Lines]],
        cut: tuple[int, int] | None,
    ) -> None:
        """Writes which batches the file lacks from now on, the departures of buckets, openings as in `open_with`, and
        the newest deleted row with the limit of its deletion. No rows may wait for `flush`.
        """
        self.open_with(opening_rows)
        db = self.db
        self.begin()
        db.execute("UPDATE about SET begins = ?", (begins,))
        db.execute("DELETE FROM losses")
        db.executemany("INSERT INTO losses VALUES (?, ?)", losses)
        db.executemany("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", departures)
        if cut is not None:
            db.execute("DELETE FROM cuts")
            db.execute("INSERT INTO cuts VALUES (?, ?)", cut)
        self.commit(self.position)
        self.begins = begins

    def take_identity(self) -> None:
        """Gives the file another identity; cursors of its present rows stay valid."""
        self.begin()
        name_anew(self.db, self.seq)
        self.commit(self.position)

    def keep_batches(self) -> None:
        """Records from now on which batch a row came from."""
        if not self._keeps_batches:
            self.begin()
            batches.keep(self.db, self.position, self.seq)
            self.commit(self.position)
            self._keeps_batches = True

    def open_with(self, opening_rows: list[tuple[int, int, int, Lines]]) -> None:
        """Writes openings (number, entry_id, seq, lines), for rows whose account's older ones are about to be
        deleted.
        """
        self.begin()
        for number, entry_id, seq, lines in opening_rows:
            openings.put(self.db, number, entry_id, seq, lines)
        self.commit(self.position)

    def append_rows(self, pages: list[Page], rows: list[tuple[bytes, int]]) -> None:
        """Writes rows that come from no batch, each the only one of its account: their pages, and (user_id, entry_id)
        of each. No rows may wait for `flush`.
        """
        assert pages[0].first == self.seq + 1
        self.begin()
        self.db.executemany(INSERT_PAGE, pages)
        for user_id, entry_id in rows:
            self.seq += 1
            number, older = self._accounts.advance(user_id, self.seq)
            assert not older, "an account that has rows"
            if not entry_id % MARK_EVERY:
                self.db.execute("INSERT INTO marks VALUES (?, ?, ?)", (number, entry_id, self.seq))
        self._accounts.write()
        self._paged = self.seq
        if self._keeps_batches:  # rows that follow are counted from here
            self.db.execute(batches.INSERT, (self.position, self.seq))
        self._note_end(self.position)
        self.commit(self.position)

    def note_loss(self, text: str) -> None:
        """Records a loss: rows that are in neither file nor journal."""
        self.begin()
        self.db.execute("INSERT INTO losses VALUES (?, ?)", (self.position, text))
        self.commit(self.position)

    def delete(self, seqs: list[int], marks: list[tuple[bytes, int]], limit_ns: int) -> None:
        """Deletes rows that are older than a limit, by their rising seqs, and their marks (user_id, entry_id). No rows
        may wait for `flush`.
        """
        db = self.db
        self.begin()
        for page, page_seqs in groupby(seqs, lambda seq: db.execute(_HOLDING, (seq,)).fetchone()):
            remainder = Page._make(page).open().without(list(page_seqs))
            db.execute("DELETE FROM pages WHERE first = ?", page[:1])
            if remainder is not None:
                db.execute(INSERT_PAGE, remainder)
        db.executemany(_DELETE_MARK, marks)
        (cut_seq,) = db.execute("SELECT coalesce(max(seq), 0) FROM cuts").fetchone()
        db.execute("DELETE FROM cuts")
        db.execute("INSERT INTO cuts VALUES (?, ?)", (max(cut_seq, *seqs), limit_ns))
        self.commit(self.position)

    def _cut(self, position: int, seq: int, *, begins: int) -> None:
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        ends: dict[bytes, int] = {}
        for row in Pages(db).following(seq, self.seq):
            ends.setdefault(row.user_id, row.older if row.older <= seq else 0)  # else it was deleted, and all before it
        self._accounts.set_newest(ends.items())
        self._accounts.write()
        db.execute("DELETE FROM pages WHERE first > ?", (seq,))  # a page ends where its transaction does
        for table in ("marks", "openings"):
            db.execute(f"DELETE FROM {table} WHERE seq > ?", (seq,))
        for table in ("departures", "groups"):
            db.execute(f"DELETE FROM {table} WHERE position > ?", (position,))
        if batches.are_kept(db):
            db.execute(batches.CUT, (position,))
            db.execute(batches.INSERT, (position, seq))
        db.execute("UPDATE about SET begins = ?", (begins,))
        name_anew(db, seq)
        self.commit(position)
        self.read_where()

    # -- writing -----------------------------------------------------------------------------------------------------

    @property
    def rows_open(self) -> int:
        """The number of rows that wait for `flush`."""
        return self._inserted + len(self._group.part.starts)

    def take(self, position: int, payload: bytes) -> None:
        """Adds the batch at `position`, the one after the last, to the open group."""
        assert position == self._last_taken + 1, f"batch {position} after {self._last_taken}"
        self.take_again(position, payload)

    def take_again(self, position: int, payload: bytes) -> None:
        """Adds a batch rebuilt from another file, or the next part of one. Batches before it that were not taken have
        no rows.
        """
        if not self.db.in_transaction:
            self.begin()
        seq_before = self.seq
        self.seq = project(payload, seq_before, self._accounts, self._group)
        self.arrived.update(self._group.arrived)
        self._group.arrived.clear()
        if self._keeps_batches and self.seq > seq_before:
            self._group.ends.append((position, self.seq))
        self._last_taken = position
        if len(self._group.part.starts) >= INSERT_ROWS:
            self._insert()

    def pass_over(self, position: int, *, is_known: bool = False) -> None:
        """Continues behind the batch `position`. The skipped batches are missing, or, with `is_known`, have no
        rows.
        """
        if not self.db.in_transaction:
            self.begin()
        self._last_taken = position
        if is_known and self._keeps_batches:
            self._group.ends.append((position, self.seq))

    def _insert(self) -> None:
        """Writes the rows into the open transaction as pages, while they are in the processor's cache."""
        group = self._group
        self.db.executemany(INSERT_PAGE, pages_of(group.part, self._paged + 1))
        self.db.executemany("INSERT INTO marks VALUES (?, ?, ?)", group.marks)
        if group.ends:
            self.db.executemany(batches.INSERT, group.ends)
        self._inserted += len(group.part.starts)
        self._paged = self.seq
        group.part = Part()
        group.marks.clear()
        group.ends.clear()

    def flush(self) -> bool:
        """Commits the open group; False where there is none."""
        if self._last_taken == self.position and not self.rows_open:
            return False
        db, group = self.db, self._group
        self._insert()
        self._accounts.write()
        left = [(*departure, self._last_taken) for departure in group.left]
        db.executemany("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", left)
        self._note_end(self._last_taken)
        self.commit(self._last_taken)
        self._group, self._inserted = Group(), 0
        return True

    def _note_end(self, position: int) -> None:
        """Writes into `groups` that the open transaction ends with this batch, and with the last row."""
        db = self.db
        newest = db.execute(NEWEST_GROUP).fetchone()
        slot = 0 if self._slot is None else self._slot[0]
        if newest is not None and newest[0] != position:
            slot = (slot + 1) % GROUPS_KEPT
        db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", (slot, position, self.seq))
        self._slot = (slot,)

    def close(self) -> None:
        """Commits, makes the file durable, and closes it."""
        self.flush()
        super().close()
