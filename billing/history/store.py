"""The file of one shard's history: SQLite, written by one projector, read by any process of the host.

    about       one row: shard, begins (first batch it is made of), position (last batch that is in it; -1: not settled)
    users       number, user_id
    heads       number of a user, newest (seq of the newest row)
    entries     the rows, in the order of the journal: the columns of `projection.COLUMNS`
    marks       (number, entry_id) -> seq, for every `MARK_EVERY`th entry
    departures  (bucket_id, generation) that this shard gave away, and the position at the end of its transaction
    groups      (position, seq) at the end of the last `GROUPS_KEPT` transactions: where it can be cut back to

**Exactly once.** A group of batches and the position of its last one are one transaction. It opens with a look at
whether the position is still the one this process knows, so an orphan of an earlier life cannot write beside its
successor: one of the two finds another position and ends.

**What is durable.** A commit survives kill -9. The loss of power it survives once `checkpoint` has said so: then
everything up to `durable` is in the file proper and synced. The journal is needed from there on. A file never
stands under its name before it is whole (made aside, synced, renamed), and is 0600.

**Behind its journal** it is fed. **Ahead of it** (a power cut took batches that were not synced, under a weaker
`journal.sync`; or a backup) it is cut back to a group that the journal still knows, and fed from there; where the
journal does not reach back to one, nothing is touched and `Hole` says so.

Why a chain, in the order of the journal: kept together by user, 50,000 entries a second of users at random dirty 50,000
pages a second; as they come in, a few thousand. Measured with 100,000 users, an entry costs 2.5 µs of SQLite this way,
6 to 9 with an index over (user, entry_id), 11 to 14 clustered by it, and those two grow with the file.
"""

from __future__ import annotations

import os.path
import sqlite3
from itertools import islice
from typing import Final

from billing.history.projection import COLUMNS, Group, Place, project
from shards.system.disk import Disk

APPLICATION_ID: Final = 0x42484953  # "BHIS"
VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 10.0  # how long a transaction waits for an orphan's last one
CACHE_KIB: Final = 32 * 1024
PLACES_MAX: Final = 250_000  # accounts whose place is remembered; of others it is looked up
GROUPS_KEPT: Final = 4096
INSERT_ROWS: Final = 1_000  # rows go into the open transaction by so many

_SCHEMA: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE about (shard INTEGER NOT NULL, begins INTEGER NOT NULL, position INTEGER NOT NULL)",
    "CREATE TABLE users (number INTEGER PRIMARY KEY, user_id BLOB NOT NULL UNIQUE)",
    "CREATE TABLE heads (number INTEGER PRIMARY KEY, newest INTEGER NOT NULL)",
    """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, older INTEGER NOT NULL, number INTEGER NOT NULL, entry_id INTEGER NOT NULL,
        at_ns INTEGER NOT NULL, operation INTEGER NOT NULL, amount INTEGER NOT NULL, accrued INTEGER NOT NULL,
        balance INTEGER NOT NULL, message BLOB, request_id BLOB)""",
    """CREATE TABLE marks (
        number INTEGER NOT NULL, entry_id INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (number, entry_id)) WITHOUT ROWID""",
    """CREATE TABLE departures (
        bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
        PRIMARY KEY (bucket_id, generation)) WITHOUT ROWID""",
    "CREATE TABLE groups (slot INTEGER PRIMARY KEY, position INTEGER NOT NULL, seq INTEGER NOT NULL)",
)
PLACE: Final = "SELECT number, newest FROM users JOIN heads USING (number) WHERE user_id = ?"
_UPDATE_HEADS: Final = "INSERT OR REPLACE INTO heads SELECT number, max(seq) FROM entries WHERE seq > ? GROUP BY number"
_INSERT_ENTRY: Final = f"INSERT INTO entries VALUES ({', '.join('?' * len(COLUMNS))})"


class HistoryError(Exception):
    """The file cannot be written to, and why; nothing was changed."""


class Hole(HistoryError):
    """Between the file and the journal batches are missing, or they contradict each other."""


class Overtaken(HistoryError):
    """Another projector has written to the file meanwhile."""


def file_of(directory: str, shard: int) -> str:
    """Where a shard's history stands."""
    return f"{directory}/shard-{shard}.sqlite"


def connect(path: str, *, write: bool = False) -> sqlite3.Connection:
    """A connection to a history file that exists, for reading or for both. Raises sqlite3.Error, HistoryError."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = sqlite3.connect(
        f"file:{quoted}?mode={'rw' if write else 'ro'}", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
    )
    made_by = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
    if made_by != (APPLICATION_ID, VERSION):
        db.close()
        raise HistoryError(f"{path} is no history file of this version: {made_by[0]:#x} version {made_by[1]}")
    return db


def _make(path: str, shard: int, disk: Disk) -> None:
    """A new file, not settled yet; under its name only once it is whole."""
    aside = f"{path}.new"
    for name in (aside, f"{aside}-journal", f"{aside}-wal", f"{aside}-shm"):
        if disk.exists(name):
            disk.unlink(name)
    disk.close(disk.create(aside))
    db = sqlite3.connect(aside, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")  # the file's for good
        db.execute("BEGIN")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("INSERT INTO about VALUES (?, 0, -1)", (shard,))
        db.execute("COMMIT")
    finally:
        db.close()
    handle = disk.open(aside, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.rename(aside, path)
    disk.fsync_dir(os.path.dirname(path))


class Store:
    """The writing side. Any exception but Hole is its end: what is in the file then stands, what is not comes again."""

    def __init__(self, path: str, shard: int, disk: Disk, *, places_max: int = PLACES_MAX) -> None:
        """Opens the file, or makes it. Raises HistoryError, sqlite3.Error, OSError."""
        if not disk.exists(path):
            _make(path, shard, disk)
        self._path = path
        self._places_max = places_max
        self.db = db = connect(path, write=True)
        for pragma in ("synchronous = NORMAL", "wal_autocheckpoint = 0", f"cache_size = -{CACHE_KIB}"):
            db.execute(f"PRAGMA {pragma}")
        (found,) = db.execute("SELECT shard FROM about").fetchone()
        if found != shard:
            raise HistoryError(f"{path} is the history of shard {found}")
        self.durable = 0  # the journal is needed from the batch after this one
        self._places: dict[bytes, Place] = {}
        self._group = Group()
        self._inserted = 0  # rows of it that are in the transaction already
        self._open = False  # whether a transaction is
        self._read_where()
        self.checkpoint()

    def _read_where(self) -> None:
        """Where the file ends."""
        db = self.db
        self.begins, self.position = db.execute("SELECT begins, position FROM about").fetchone()
        self.seq = db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]
        self._committed_seq = self.seq
        self._slot = db.execute("SELECT slot FROM groups ORDER BY position DESC LIMIT 1").fetchone()
        self._taken = self.position  # the last batch in the open group
        self._places.clear()

    def settle(self, first: int, head: int) -> int:
        """Brings the file into a journal that holds the batches `first` to `head`; the position to feed it from is
        the one after what this returns. Raises Hole.
        """
        assert not self._open
        if self.position < 0:
            self.db.execute("UPDATE about SET begins = ?, position = ?", (first, first - 1))
            self._read_where()
            self.checkpoint()
        elif self.position > head:
            self._cut_back(first, head)
        if self.position + 1 < first:
            raise Hole(
                f"{self._path} ends with batch {self.position}, the journal begins with batch {first}; what lies "
                "between is in neither. Restore the file from a backup, or move it away to begin anew without the past"
            )
        return int(self.position)

    def _cut_back(self, first: int, head: int) -> None:
        db = self.db
        groups = db.execute("SELECT position, seq FROM groups WHERE position <= ?", (head,)).fetchall()
        position, seq = max([(self.begins - 1, 0), *groups])
        if not first - 1 <= position <= head:
            raise Hole(
                f"{self._path} goes up to batch {self.position}, the journal only up to {head}, and it does not reach "
                f"back to batch {position + 1}: an older backup of either"
            )
        db.execute("BEGIN IMMEDIATE")
        newest = db.execute("SELECT min(older), number FROM entries WHERE seq > ? GROUP BY number", (seq,)).fetchall()
        db.executemany("UPDATE heads SET newest = ? WHERE number = ?", newest)
        db.execute("DELETE FROM users WHERE number IN (SELECT number FROM heads WHERE newest = 0)")
        db.execute("DELETE FROM heads WHERE newest = 0")
        for table in ("entries", "marks"):
            db.execute(f"DELETE FROM {table} WHERE seq > ?", (seq,))
        for table in ("departures", "groups"):
            db.execute(f"DELETE FROM {table} WHERE position > ?", (position,))
        db.execute("UPDATE about SET position = ?", (position,))
        db.execute("COMMIT")
        self._read_where()
        self.checkpoint()

    # -- writing -----------------------------------------------------------------------------------------------------

    @property
    def rows_open(self) -> int:
        """Rows that wait for `flush`."""
        return self._inserted + len(self._group.rows)

    def take(self, position: int, payload: bytes) -> None:
        """Adds the batch at `position`, the one after the last, to the open group."""
        assert position == self._taken + 1, f"batch {position} after {self._taken}"
        if not self._open:
            self._begin()
        self.seq = project(payload, self.seq, self._places, self._place_of, self._group)
        self._taken = position
        if len(self._group.rows) >= INSERT_ROWS:
            self._insert()

    def _insert(self) -> None:
        """Rows into the open transaction, while they are in the processor's cache."""
        rows, marks = self._group.rows, self._group.marks
        self.db.executemany(_INSERT_ENTRY, rows)
        self.db.executemany("INSERT INTO marks VALUES (?, ?, ?)", marks)
        self._inserted += len(rows)
        rows.clear()
        marks.clear()

    def _begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self._open = True
        (position,) = self.db.execute("SELECT position FROM about").fetchone()
        if position != self.position:
            raise Overtaken(f"{self._path} is at batch {position}, not {self.position}: another process writes to it")

    def _place_of(self, user_id: bytes) -> Place:
        """The place of an account that is not remembered, or new."""
        found = self.db.execute(PLACE, (user_id,)).fetchone()
        if found is None:
            found = self.db.execute("INSERT INTO users (user_id) VALUES (?)", (user_id,)).lastrowid, 0
        place = self._places[user_id] = list(found)
        return place

    def flush(self) -> bool:
        """Commits the open group; False where there is none."""
        if not self._open:
            return False
        db, group = self.db, self._group
        self._insert()
        db.execute(_UPDATE_HEADS, (self._committed_seq,))
        left = [(*departure, self._taken) for departure in group.left]
        db.executemany("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", left)
        slot = 0 if self._slot is None else (self._slot[0] + 1) % GROUPS_KEPT
        db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", (slot, self._taken, self.seq))
        db.execute("UPDATE about SET position = ?", (self._taken,))
        db.execute("COMMIT")
        self._open, self._slot = False, (slot,)
        self.position, self._committed_seq = self._taken, self.seq
        self._group, self._inserted = Group(), 0
        for user_id in list(islice(self._places, max(0, len(self._places) - self._places_max))):
            del self._places[user_id]  # who was met first; only now that the file knows their newest row
        return True

    def checkpoint(self) -> bool:
        """Makes what is committed durable; False where a reader stands in the way: then later."""
        assert not self._open
        busy, log, moved = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or log != moved:
            return False
        self.durable = max(self.position, 0)
        return True

    def close(self) -> None:
        """Commits, makes it durable, and closes."""
        self.flush()
        self.checkpoint()
        self.db.close()
