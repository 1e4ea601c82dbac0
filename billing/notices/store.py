"""The file of one shard's owed notices: SQLite, written by its notifier, a projection of the shard's journal.

    about       one row: shard, position (the last batch that is in it)
    owed        seq, bucket_id, generation, user_id, position, at_ns, name, body: a notice not acknowledged yet
    departures  (bucket_id, generation, position) that this shard gave away
    arrivals    (bucket_id, generation, position, pending) that this shard was given, and has still

**What is owed.** Every notice of every batch from the file's beginning on, less those acknowledged. Batches and the
position of the last one are one transaction, so a notice is owed exactly once; an acknowledgement is committed behind
the answer, so after kill -9 the last few are posted again, under the same id.

**A bucket that moves** leaves its owed notices behind, in the file of the shard that recorded them. Its new shard
claims them (`claim`): once the departure is on record there, they are copied here, durably, and only then deleted
there. Until that is done the bucket's own notices wait, because order is promised per account. An interrupted claim
copies again what was copied already: twice is allowed, never is not.

**On disk** is where a backlog grows, by some 800 bytes a notice, never in memory. The journal is needed from
`durable` on. Behind its journal it is fed. Ahead of it (a power cut under a weaker `journal.sync`; a backup) it is cut
back. Where batches between the two are in neither, they were told by nobody: `found` says how many, and goes on.
"""

from __future__ import annotations

import os.path
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

from billing.notices.notice import notices_of
from shards.batch import ENTRY, LEAVE, OWN, RECEIVED, split_batch
from shards.system.disk import Disk, private_directory

APPLICATION_ID: Final = 0x424E4F54  # "BNOT"
VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 10.0

_SCHEMA: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE about (shard INTEGER NOT NULL, position INTEGER NOT NULL)",
    """CREATE TABLE owed (
        seq INTEGER PRIMARY KEY, bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, user_id BLOB NOT NULL,
        position INTEGER NOT NULL, at_ns INTEGER NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX owed_user ON owed (user_id, seq)",
    "CREATE INDEX owed_bucket ON owed (bucket_id, generation, seq)",
    """CREATE TABLE departures (
        bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
        PRIMARY KEY (bucket_id, generation)) WITHOUT ROWID""",
    """CREATE TABLE arrivals (
        bucket_id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, position INTEGER NOT NULL,
        pending INTEGER NOT NULL)""",
)
_INSERT: Final = "INSERT INTO owed VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DEPARTED: Final = """
    SELECT seq, owed.generation, user_id, owed.position, at_ns, name, body
    FROM owed JOIN departures USING (bucket_id, generation)
    WHERE bucket_id = ? AND owed.generation < ? ORDER BY owed.generation, seq"""

_OWN: Final = """
    SELECT seq, generation, user_id, position, at_ns, name, body
    FROM owed WHERE bucket_id = ? AND generation = ? ORDER BY seq"""

Row = tuple[int, int, int, bytes, int, str, bytes]  # seq, bucket_id, generation, user_id, at_ns, name, body
_ROW: Final = "seq, bucket_id, generation, user_id, at_ns, name, body"


class NoticesError(Exception):
    """The file cannot be used, and why; nothing was changed."""


def file_of(directory: str, shard: int) -> str:
    """Where a shard's owed notices stand."""
    return f"{directory}/shard-{shard}.sqlite"


def found(directory: str, shard: int, head: int, disk: Disk) -> None:
    """Sees to it that the file is there: where it is not, notices begin behind the journal's batch `head`."""
    try:
        private_directory(disk, directory)
    except FileExistsError:  # another shard made it just now
        private_directory(disk, directory)
    path = file_of(directory, shard)
    if disk.exists(path):
        return
    aside = f"{path}.new"
    for name in (aside, f"{aside}-journal", f"{aside}-wal", f"{aside}-shm"):
        if disk.exists(name):
            disk.unlink(name)
    disk.close(disk.create(aside))
    db = sqlite3.connect(aside, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("INSERT INTO about VALUES (?, ?)", (shard, head))
    finally:
        db.close()
    handle = disk.open(aside, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.rename(aside, path)
    disk.fsync_dir(os.path.dirname(path))


def abandon(directory: str, shard: int, disk: Disk) -> bool:
    """Gives up what a shard owes, where nobody is to be told any more; False where there was nothing."""
    path = file_of(directory, shard)
    if not disk.exists(path):
        return False
    for name in (path, f"{path}-wal", f"{path}-shm"):
        if disk.exists(name):
            disk.unlink(name)
    return True


def connect(path: str) -> sqlite3.Connection:
    """A connection to a file that exists. Raises sqlite3.Error, NoticesError."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = sqlite3.connect(f"file:{quoted}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    made_by = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
    if made_by != (APPLICATION_ID, VERSION):
        db.close()
        raise NoticesError(f"{path} is no file of notices of this version: {made_by[0]:#x} version {made_by[1]}")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    return db


class Store:
    """The writing side. Any exception is its end: what is committed stands, the rest comes again."""

    def __init__(self, directory: str, shard: int, disk: Disk) -> None:
        """Opens the file, which `found` has made. Raises NoticesError, sqlite3.Error, OSError."""
        self.directory = directory
        self.shard = shard
        self._disk = disk
        self._path = file_of(directory, shard)
        self.db = db = connect(self._path)
        db.execute("PRAGMA synchronous = NORMAL")
        of_shard, self.position = db.execute("SELECT shard, position FROM about").fetchone()
        if of_shard != shard:
            raise NoticesError(f"{self._path} is of shard {of_shard}")
        self.durable = 0
        self._load()

    def _load(self) -> None:
        db = self.db
        self.seq = db.execute("SELECT coalesce(max(seq), 0) FROM owed").fetchone()[0]
        self.owed = db.execute("SELECT count(*) FROM owed").fetchone()[0]
        self.departed: set[tuple[int, int]] = set(db.execute("SELECT bucket_id, generation FROM departures"))
        arrivals = db.execute("SELECT bucket_id, generation, pending FROM arrivals").fetchall()
        self.here: dict[int, int] = {bucket_id: generation for bucket_id, generation, _ in arrivals}
        self.pending: dict[int, int] = {bucket_id: generation for bucket_id, generation, waits in arrivals if waits}
        self._rows: list[tuple[Any, ...]] = []
        self._acknowledged: list[tuple[int]] = []
        self._taken = self.position
        self._changes: list[tuple[str, tuple[int, ...]]] = []  # of departures and arrivals

    def settle(self, first: int, head: int) -> int:
        """Brings the file into a journal that holds the batches `first` to `head`; the number of batches that are in
        neither, which nobody is told of.
        """
        db, missing = self.db, 0
        if self.position > head:
            db.execute("BEGIN IMMEDIATE")
            for table in ("owed", "departures", "arrivals"):
                db.execute(f"DELETE FROM {table} WHERE position > ?", (head,))
            db.execute("UPDATE about SET position = ?", (head,))
            db.execute("COMMIT")
            self.position = head
        elif self.position + 1 < first:
            missing = first - 1 - self.position
            db.execute("UPDATE about SET position = ?", (first - 1,))
            self.position = first - 1
        self._load()
        self.checkpoint()
        return missing

    # -- batches -----------------------------------------------------------------------------------------------------

    def take(self, position: int, payload: bytes) -> list[int]:
        """Adds the batch at `position`, the one after the last; the buckets that left with it."""
        assert position == self._taken + 1, f"batch {position} after {self._taken}"
        left = []
        for index, (kind, bucket_id, generation, body) in enumerate(split_batch(payload)):
            if kind == ENTRY:
                for notice in notices_of(body, bucket_id, f"{self.shard}-{position}-{index}"):
                    self.seq += 1
                    user_id, at_ns, name, posted = notice
                    self._rows.append((self.seq, bucket_id, generation, user_id, position, at_ns, name, posted))
            elif kind == RECEIVED:
                self.here[bucket_id] = self.pending[bucket_id] = generation
                arrival = (bucket_id, generation, position)
                self.departed.discard((bucket_id, generation))  # a move that had come to nothing is tried again
                again = "DELETE FROM departures WHERE bucket_id = ? AND generation = ?"
                self._changes.append((again, (bucket_id, generation)))
                self._changes.append(("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?, 1)", arrival))
            elif kind == LEAVE:
                left.append(bucket_id)
                self.here.pop(bucket_id, None)
                self.pending.pop(bucket_id, None)
                self.departed.add((bucket_id, generation))
                departure = (bucket_id, generation, position)
                self._changes.append(("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", departure))
                self._changes.append(("DELETE FROM arrivals WHERE bucket_id = ?", (bucket_id,)))
            else:
                assert kind == OWN, f"a record of kind {kind}"
        self._taken = position
        return left

    def acknowledge(self, seq: int) -> None:
        """This notice had its 2xx; recorded with the next `flush`."""
        self._acknowledged.append((seq,))

    @property
    def changes(self) -> int:
        """What waits for `flush`."""
        return len(self._rows) + len(self._acknowledged)

    def flush(self) -> bool:
        """Commits; False where there was nothing."""
        if self._taken == self.position and not self._acknowledged:
            return False
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        db.executemany(_INSERT, self._rows)
        if self._acknowledged:
            db.executemany("DELETE FROM owed WHERE seq = ?", self._acknowledged)
        for statement, values in self._changes:
            db.execute(statement, values)
        db.execute("UPDATE about SET position = ?", (self._taken,))
        db.execute("COMMIT")
        self.owed += len(self._rows) - len(self._acknowledged)
        self._rows, self._acknowledged, self._changes = [], [], []
        self.position = self._taken
        return True

    def checkpoint(self) -> bool:
        """Makes what is committed durable; False where another process stands in the way: then later."""
        busy, log, moved = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or log != moved:
            return False
        self.durable = max(self.position, 0)
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    def after(self, seq: int, limit: int) -> list[Row]:
        """Owed notices behind `seq`, in order. All of it is committed."""
        return self.db.execute(f"SELECT {_ROW} FROM owed WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)).fetchall()

    def of_user(self, user_id: bytes, after: int, up_to: int, limit: int) -> list[Row]:
        """The same of one user, up to `up_to`."""
        query = f"SELECT {_ROW} FROM owed WHERE user_id = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        return self.db.execute(query, (user_id, after, up_to, limit)).fetchall()

    def oldest_ns(self) -> int:
        """The instant of what is owed longest; 0 where nothing is."""
        found = self.db.execute("SELECT at_ns FROM owed ORDER BY seq LIMIT 1").fetchone()
        return 0 if found is None else int(found[0])

    # -- moves -------------------------------------------------------------------------------------------------------

    def claim(self, bucket_id: int, whatever: bool) -> bool:
        """Takes over what former shards of a bucket that is here still owe of it; False while the departure from the
        last one is not on record, unless `whatever`. Afterwards the bucket's own notices stand behind what came, under
        new seqs. All batches taken are committed before.
        """
        generation = self.here[bucket_id]
        others = self._others()
        try:
            known = "SELECT 1 FROM departures WHERE bucket_id = ? AND generation = ?"
            departed = any(db.execute(known, (bucket_id, generation - 1)).fetchone() for db in [self.db, *others])
            if not departed and not whatever:
                return False
            came = [(db, row) for db in [self.db, *others] for row in db.execute(_DEPARTED, (bucket_id, generation))]
            came.sort(key=lambda one: (one[1][1], one[1][0]))
            own = [row[0] for db, row in came if db is self.db]
            self._take_over(bucket_id, generation, [row for _, row in came], own)
            for db in others:
                if seqs := [(row[0],) for of, row in came if of is db]:
                    db.execute("BEGIN IMMEDIATE")
                    db.executemany("DELETE FROM owed WHERE seq = ?", seqs)
                    db.execute("COMMIT")
        finally:
            for db in others:
                db.close()
        return True

    def orphans(self) -> set[int]:
        """Buckets that are here and of which some file still has what a former shard owed."""
        others = self._others()
        try:
            query = "SELECT DISTINCT bucket_id FROM departures JOIN owed USING (bucket_id, generation)"
            return self.here.keys() & {bucket_id for db in [self.db, *others] for (bucket_id,) in db.execute(query)}
        finally:
            for db in others:
                db.close()

    def _others(self) -> list[sqlite3.Connection]:
        """The files of the other shards."""
        own = os.path.basename(self._path)
        names = [name for name in self._disk.listdir(self.directory) if name.startswith("shard-") and name != own]
        return [connect(f"{self.directory}/{name}") for name in names if name.endswith(".sqlite")]

    def _take_over(self, bucket_id: int, generation: int, came: list[tuple[Any, ...]], own: Iterable[int]) -> None:
        waits = bucket_id in self.pending
        if not waits and not came:
            return
        db = self.db
        db.execute("PRAGMA synchronous = FULL")  # nothing is deleted elsewhere before it is durable here
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM owed WHERE seq = ?", ((seq,) for seq in own))
        rows = [(*row[:3], self.position, *row[4:]) for row in came]
        if waits:
            rows += db.execute(_OWN, (bucket_id, generation)).fetchall()
            db.execute("DELETE FROM owed WHERE bucket_id = ? AND generation = ?", (bucket_id, generation))
        for _, _, user_id, position, at_ns, name, body in rows:
            self.seq += 1
            db.execute(_INSERT, (self.seq, bucket_id, generation, user_id, position, at_ns, name, body))
        db.execute("UPDATE arrivals SET pending = 0 WHERE bucket_id = ?", (bucket_id,))
        db.execute("COMMIT")
        db.execute("PRAGMA synchronous = NORMAL")
        self.owed = db.execute("SELECT count(*) FROM owed").fetchone()[0]
        self.pending.pop(bucket_id, None)

    def close(self) -> None:
        """Commits, makes it durable, and closes."""
        self.flush()
        self.checkpoint()
        self.db.close()
