"""The file of one shard's owed notices: a follower's file (`follower.store`), written by the shard's notifier alone.

    about       one row: shard, position (the last batch in it), seq (the highest that was ever given), file_id (unique
                among all files ever made), made_ns (wall instant at which it was made anew because its past was lost;
                0: it was not)
    owed        seq, bucket_id, generation, user_id, position, at_ns, name, body, checksum: not acknowledged yet.
                position: of the batch that made it; 0 if it was taken over, since this journal does not have the batch
    departures  (bucket_id, generation, position, pending) of buckets that this shard gave away; pending: notices that
                the bucket's earlier shards owed had not been taken over here
    arrivals    (bucket_id, generation, position, pending, arrived_ns) of buckets that this shard received and still
                has; pending 1: its notices wait for those that former shards owe; 2: they wait no more, but those may
                still come
    claims      (bucket_id, file_id, seq, proved): that file's notices of the bucket up to seq were copied to this file

Every row has a checksum, since nothing else would show that a changed one is wrong: a batch would be skipped, or an
order be broken, unnoticed.

**What is owed.** Every notice of every batch from the file's beginning on, less those acknowledged. Batches and the
position of the last one are written in one transaction, so a notice is owed exactly once. An acknowledgement is
committed after the answer, so after kill -9 the last few notices are posted again, under the same ids.

**A bucket that moves** leaves its owed notices behind, in the file of the shard that recorded them. Until its new shard
has them, the bucket's own notices wait there: order is promised per account, however slow the former shard is. The new
shard copies them (`claim`) once the departure is recorded in some file: every notice of that time is then recorded,
too. If the former shard had not taken over the notices of its predecessors, their departures must also be recorded.
Other shards rely on a claim once it is `proved`: then the former shard deletes the copied notices (`delete_claimed`).
No process writes to the file of another shard. The wait ends without a recorded departure in two cases: at once, where
a file of another shard had to be made anew after the bucket arrived, since the departure may be lost for good; and when
the notifier's limit is reached (`give_up`): then the notices recorded so far are taken over, and later ones are taken
over when they are recorded, late rather than never.

**Where these files are on several hosts** (`is_apart`), the former shard of a bucket goes on sending the notices that
it owes, and a bucket that arrived waits for nothing.

**A backlog grows on the disk**, by some 800 bytes per notice, never in memory. The journal is needed from the batch
after `durable` on. Behind its journal the file is fed; ahead of it, it is refused (`Ahead`). `opening` describes how a
file is created, and how a missing or damaged one is replaced.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from zlib import crc32

import msgspec

from billing.follower.store import (
    UNREADABLE,
    Ahead,
    Damaged,
    FollowerStore,
    Kind,
    StoreError,
    Unconverted,
    code_of,
    connect,
    file_of,
    keep_copy,
    lost_batches,
    reason_of,
    shard_files,
)
from billing.notices.notice import notices_of
from shards.batch import ENTRY, LEAVE, OWN, RECEIVED, split_batch
from shards.counting import counted
from shards.exits import Exit
from shards.system.disk import Disk

OWED: Final = ("seq", "bucket_id", "generation", "user_id", "position", "at_ns", "name", "body")
KIND: Final = Kind(
    "notices",
    application_id=0x424E4F54,  # "BNOT"
    version=3,
    older=(1, 2),
    schema=(
        """CREATE TABLE about (
            shard INTEGER NOT NULL, position INTEGER NOT NULL, seq INTEGER NOT NULL, file_id INTEGER NOT NULL,
            made_ns INTEGER NOT NULL, checksum INTEGER NOT NULL)""",
        """CREATE TABLE owed (
            seq INTEGER PRIMARY KEY, bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, user_id BLOB NOT NULL,
            position INTEGER NOT NULL, at_ns INTEGER NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
            checksum INTEGER NOT NULL)""",
        "CREATE INDEX owed_user ON owed (user_id, seq)",
        "CREATE INDEX owed_bucket ON owed (bucket_id, generation, seq)",
        """CREATE TABLE departures (
            bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
            pending INTEGER NOT NULL, checksum INTEGER NOT NULL,
            PRIMARY KEY (bucket_id, generation)) WITHOUT ROWID""",
        """CREATE TABLE arrivals (
            bucket_id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, position INTEGER NOT NULL,
            pending INTEGER NOT NULL, arrived_ns INTEGER NOT NULL, checksum INTEGER NOT NULL)""",
        """CREATE TABLE claims (
            bucket_id INTEGER NOT NULL, file_id INTEGER NOT NULL, seq INTEGER NOT NULL, proved INTEGER NOT NULL,
            checksum INTEGER NOT NULL, PRIMARY KEY (bucket_id, file_id)) WITHOUT ROWID""",
    ),
)
ELSEWHERE: Final = 0  # position of a notice that was taken over, which a batch of another journal made
LOOKED_AT_ONCE: Final = 1000  # how many notices of buckets that left are checked at once
INSERT: Final = "INSERT INTO owed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
FOUND: Final = "INSERT INTO about VALUES (?, ?, ?, ?, ?, ?)"
DEPARTED: Final = "INSERT OR REPLACE INTO departures VALUES (?, ?, ?, ?, ?)"
ARRIVED: Final = "INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?, ?, ?, ?)"
CLAIMED: Final = "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)"
Row = tuple[int, int, int, bytes, int, str, bytes]  # seq, bucket_id, generation, user_id, at_ns, name, body

_encode: Final = msgspec.msgpack.Encoder().encode


def checksum_of(row: Sequence[Any]) -> int:
    """Returns the checksum of a row: of its columns in their order, without the checksum."""
    return crc32(_encode(row))


def signed(*row: Any) -> tuple[Any, ...]:
    """Returns the row with its checksum."""
    return (*row, checksum_of(row))


def is_signed(row: Sequence[Any]) -> bool:
    """Whether a row matches the checksum in its last column."""
    return bool(row[-1] == checksum_of(row[:-1]))


def ends_agree(db: sqlite3.Connection) -> bool:
    """Whether the row of `about` matches its checksum."""
    return all(map(is_signed, db.execute("SELECT * FROM about")))


class Elsewhere(StoreError):
    """The file of another shard is damaged, or not converted yet. Its notices are awaited until it is: by its own
    process, or where its shard is gone, by `billing rebuild` (damage) or the process of the first shard (conversion).
    """

    code = Exit.AGAIN


@contextmanager
def _elsewhere(path: str) -> Iterator[None]:
    """Turns damage that is found in the file of another shard into Elsewhere, and an older version of it as well."""
    try:
        yield
    except Unconverted as error:
        raise Elsewhere(str(error)) from error
    except UNREADABLE as error:
        if code_of(error) != Exit.DAMAGED:
            raise
        raise Elsewhere(f"{path} is damaged ({reason_of(error)})") from error


class Store(FollowerStore):
    """The writer of the file; see `FollowerStore`."""

    def __init__(self, directory: str, shard: int, disk: Disk) -> None:
        """Opens an existing file (`opening.ensure_file` creates it). Raises StoreError, Unproved, sqlite3.Error,
        OSError.
        """
        self.directory = directory
        super().__init__(file_of(directory, shard), KIND, shard, disk)
        self.is_apart = False  # the files of other shards may be on other hosts

    def read_where(self) -> None:
        db = self.db
        ((_, self.position, seq, self.file_id, self.made_ns),) = self._signed(db, "SELECT * FROM about")
        self.seq = max(seq, db.execute("SELECT coalesce(max(seq), 0) FROM owed").fetchone()[0])  # the file may be new
        departures = self._signed(db, "SELECT * FROM departures")
        self.departed: set[tuple[int, int]] = {(bucket_id, generation) for bucket_id, generation, *_ in departures}
        arrivals = self._signed(db, "SELECT * FROM arrivals")
        self.here: dict[int, int] = {bucket_id: generation for bucket_id, generation, *_ in arrivals}
        waiting = [(bucket_id, generation, pending) for bucket_id, generation, _, pending, _ in arrivals]
        self.pending: dict[int, int] = {bucket_id: generation for bucket_id, generation, waits in waiting if waits == 1}
        self.given_up: dict[int, int] = {
            bucket_id: generation for bucket_id, generation, waits in waiting if waits == 2
        }
        self._rows: list[tuple[Any, ...]] = []
        self._acknowledged: list[tuple[int]] = []
        self._last_taken = self.position
        self._looked_seq = 0  # the notices of buckets that left were checked up to this seq
        self._changes: list[tuple[str, tuple[int, ...]]] = []  # statements on departures and arrivals

    def write_where(self, position: int) -> None:
        about = self.shard, position, self.seq, self.file_id, self.made_ns
        self.db.execute("UPDATE about SET position = ?, seq = ?, checksum = ?", (*about[1:3], checksum_of(about)))

    def settle(self, first: int, head: int, *, accept_loss: bool = False) -> list[str]:
        """Aligns the file with a journal that holds the batches `first` to `head`. Returns remarks. Raises Ahead."""
        db, remarks = self.db, []
        if self.position > head:
            text = f"{self.path} goes up to batch {self.position}, its journal only up to {head}"
            if not accept_loss:
                raise Ahead(f"{text}: the journal has lost what lies between, or is an older copy")
            kept_path = keep_copy(db, self.path, "ahead", self._disk)
            self.cut_back_to(head)
            remarks.append(f"{text}: it was cut back, and {kept_path} keeps what it was")
        elif missing := lost_batches(self.position, first):
            db.execute("BEGIN IMMEDIATE")
            self.commit(first - 1)
            lost = counted(missing, "batch", "batches")
            remarks.append(f"in neither file nor journal, so that nobody is told of it: {lost}")
        self.read_where()
        self.checkpoint()
        return remarks

    def cut_back_to(self, head: int) -> None:
        """Deletes everything that batches behind `head` made. Notices taken over from other shards stay: no batch of
        this journal made them.
        """
        if self.position <= head:
            return
        self.begin()
        for table in ("owed", "departures", "arrivals"):
            self.db.execute(f"DELETE FROM {table} WHERE position > ?", (head,))
        self.commit(head)
        self.read_where()

    # -- batches -----------------------------------------------------------------------------------------------------

    def take(self, position: int, payload: bytes, now_ns: int) -> list[int]:
        """Adds the batch at `position`, the one after the last. Returns the buckets that left with it. `now_ns`: wall
        time.
        """
        assert position == self._last_taken + 1, f"batch {position} after {self._last_taken}"
        left_buckets = []
        for index, (kind, bucket_id, generation, body) in enumerate(split_batch(payload)):
            if kind == ENTRY:
                for notice in notices_of(body, bucket_id, f"{self.shard}-{position}-{index}"):
                    self.seq += 1
                    user_id, at_ns, name, posted = notice
                    self._rows.append(signed(self.seq, bucket_id, generation, user_id, position, at_ns, name, posted))
            elif kind == RECEIVED:
                self.here[bucket_id] = generation
                if not self.is_apart:
                    self.pending[bucket_id] = generation
                self.given_up.pop(bucket_id, None)
                self.departed.discard((bucket_id, generation))  # a cancelled move is tried again
                forget_departure = "DELETE FROM departures WHERE bucket_id = ? AND generation = ?"
                self._changes.append((forget_departure, (bucket_id, generation)))
                self._changes.append((ARRIVED, signed(bucket_id, generation, position, int(not self.is_apart), now_ns)))
            elif kind == LEAVE:
                if not self.is_apart:
                    left_buckets.append(bucket_id)
                self.here.pop(bucket_id, None)
                pending = bucket_id in self.pending or bucket_id in self.given_up
                self.pending.pop(bucket_id, None)
                self.given_up.pop(bucket_id, None)
                if not body and not self.is_apart:
                    self.departed.add((bucket_id, generation))
                    self._changes.append((DEPARTED, signed(bucket_id, generation, position, int(pending))))
                self._changes.append(("DELETE FROM arrivals WHERE bucket_id = ?", (bucket_id,)))
            else:
                assert kind == OWN, f"a record of kind {kind}"
        self._last_taken = position
        return left_buckets

    def acknowledge(self, seq: int) -> None:
        """Notes that this notice was answered with 2xx; committed with the next `flush`."""
        self._acknowledged.append((seq,))

    @property
    def changes(self) -> int:
        """The number of notices and acknowledgements that wait for `flush`."""
        return len(self._rows) + len(self._acknowledged)

    def flush(self) -> bool:
        """Commits; False where there was nothing to commit."""
        if self._last_taken == self.position and not self._acknowledged:
            return False
        db = self.db
        self.begin()
        db.executemany(INSERT, self._rows)
        if self._acknowledged:
            db.executemany("DELETE FROM owed WHERE seq = ?", self._acknowledged)
        for statement, values in self._changes:
            db.execute(statement, values)
        self.commit(self._last_taken)
        self._rows, self._acknowledged, self._changes = [], [], []
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    def owed(self) -> int:
        """The number of notices in this file that are owed."""
        return int(self.db.execute("SELECT count(*) FROM owed").fetchone()[0])

    def settled(self) -> int:
        """The batch up to which all notices were sent; −1 while any notice is owed that was taken over from another
        shard.

        Positions rise with seqs, except for buckets that arrived: a claim puts their notices behind others of later
        batches. Within such a bucket they rise all the same.
        """
        first_rows = [self.db.execute("SELECT position FROM owed ORDER BY seq LIMIT 1").fetchone()]
        first = "SELECT position FROM owed WHERE bucket_id = ? ORDER BY generation, seq LIMIT 1"
        first_rows += [
            self.db.execute(first, (bucket_id,)).fetchone()
            for bucket_id in self.here.keys() | {bucket_id for bucket_id, _ in self.departed}
        ]
        return min([self.position, *(int(oldest[0]) - 1 for oldest in first_rows if oldest is not None)])

    def oldest_ns(self) -> int:
        """The instant of the owed notice with the lowest seq; 0 where none is owed."""
        oldest = self.db.execute("SELECT at_ns FROM owed ORDER BY seq LIMIT 1").fetchone()
        return 0 if oldest is None else int(oldest[0])

    def after(self, seq: int, limit: int) -> list[Row]:
        """Returns at most `limit` owed notices behind `seq`, in order; all of them are committed. Raises Damaged."""
        return self._sound("SELECT * FROM owed WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))

    def of_user(self, user_id: bytes, after: int, up_to: int, limit: int) -> list[Row]:
        """Returns at most `limit` owed notices of one user, behind `after` and up to `up_to`, in order. Raises
        Damaged.
        """
        query = "SELECT * FROM owed WHERE user_id = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        return self._sound(query, (user_id, after, up_to, limit))

    def _sound(self, query: str, values: tuple[int | bytes, ...]) -> list[Row]:
        """Returns the rows of a query without their positions. Raises Damaged where a checksum fails."""
        rows: list[Row] = []
        for *row, checksum in self.db.execute(query, values):
            if checksum != checksum_of(row):
                raise Damaged(f"notice {row[0]} is not what was written")
            seq, bucket_id, generation, user_id, _, at_ns, name, body = row
            rows.append((seq, bucket_id, generation, user_id, at_ns, name, body))
        return rows

    # -- moves -------------------------------------------------------------------------------------------------------

    def claim(self, bucket_id: int) -> bool:
        """Takes over the notices that former shards of a bucket of this shard still owe. Returns False while the
        departure from one of them is not recorded. Afterwards the bucket's own notices are behind those taken over,
        under new seqs; other shards rely on the claim once it is proved (`checkpoint`). All batches taken must be
        committed.
        """
        generation = self.here[bucket_id]
        other_dbs: list[sqlite3.Connection] = []
        try:
            self._open_others(other_dbs)
            if not self._all_departed(bucket_id, generation, other_dbs):
                return False
            inherited, claims = self._owed_elsewhere(bucket_id, generation, other_dbs)
            self._take_over(bucket_id, generation, inherited, claims, 0)
        except Elsewhere:
            return False
        finally:
            for db in other_dbs:
                db.close()
        return True

    def give_up(self, bucket_id: int) -> None:
        """Ends the wait of a bucket for a departure that is not recorded: takes over the notices that its former shards
        owe now, as far as they can be read, and releases its own notices. `claim` is called again later for the rest.
        """
        generation = self.here[bucket_id]
        other_dbs: list[sqlite3.Connection] = []
        try:
            self._open_others(other_dbs)
            inherited, claims = self._owed_elsewhere(bucket_id, generation, other_dbs)
        except Elsewhere:
            inherited, claims = [], []
        finally:
            for db in other_dbs:
                db.close()
        self._take_over(bucket_id, generation, inherited, claims, 2)

    def _all_departed(self, bucket_id: int, generation: int, other_dbs: list[sqlite3.Connection]) -> bool:
        query = "SELECT * FROM departures WHERE bucket_id = ? AND generation = ?"
        for former in range(generation - 1, 0, -1):
            departed = [row[3] for db in [self.db, *other_dbs] for row in self._signed(db, query, bucket_id, former)]
            if not departed:
                return self._may_be_lost(bucket_id, other_dbs)
            if departed == [0]:
                return True
        return True

    def _may_be_lost(self, bucket_id: int, other_dbs: list[sqlite3.Connection]) -> bool:
        ((*_, arrived_ns),) = self._signed(self.db, "SELECT * FROM arrivals WHERE bucket_id = ?", bucket_id)
        return any(made_ns > arrived_ns for db in other_dbs for *_, made_ns in self._signed(db, "SELECT * FROM about"))

    def _owed_elsewhere(
        self, bucket_id: int, generation: int, other_dbs: list[sqlite3.Connection]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[int, int]]]:
        """Returns the bucket's rows that its former shards owe and nobody has taken over, in order; and (file_id, seq)
        of the last one in each file.
        """
        files = [self.db, *other_dbs]
        claimed: dict[int, int] = {}
        for db in files:
            for _, file_id, seq, _ in self._signed(db, "SELECT * FROM claims WHERE bucket_id = ?", bucket_id):
                claimed[file_id] = max(seq, claimed.get(file_id, 0))
        inherited: list[tuple[Any, ...]] = []
        claims = []
        query = "SELECT * FROM owed WHERE bucket_id = ? AND generation < ? AND seq > ? ORDER BY seq"
        for db in files:
            ((_, _, _, file_id, _),) = self._signed(db, "SELECT * FROM about")
            rows = self._read(db, query, bucket_id, generation, claimed.get(file_id, 0))
            for row in rows:
                if not is_signed(row):
                    self._refuse(db, f"notice {row[0]} is not what was written")
                inherited.append(row[:-1])
            if rows and db is not self.db:
                claims.append((file_id, rows[-1][0]))
        inherited.sort(key=lambda row: (row[2], row[0]))
        return inherited, claims

    def _take_over(
        self,
        bucket_id: int,
        generation: int,
        inherited: list[tuple[Any, ...]],
        claims: list[tuple[int, int]],
        pending: int,
    ) -> None:
        """Writes the inherited notices before the bucket's own. `pending`: the new value in `arrivals`."""
        db = self.db
        self.begin()
        query = "SELECT * FROM owed WHERE bucket_id = ? AND generation = ? ORDER BY seq"
        own_rows = []
        for row in db.execute(query, (bucket_id, generation)).fetchall():
            if not is_signed(row):
                raise Damaged(f"notice {row[0]} is not what was written")
            own_rows.append(row[:-1])
        delete_former = "DELETE FROM owed WHERE bucket_id = ? AND generation = ? AND seq = ?"
        db.executemany(delete_former, [(bucket_id, row[2], row[0]) for row in inherited if row[1] == bucket_id])
        db.execute("DELETE FROM owed WHERE bucket_id = ? AND generation = ?", (bucket_id, generation))
        behind = [(*row[:4], ELSEWHERE, *row[5:]) for row in inherited]
        for _, _, _, *rest in [*behind, *own_rows]:  # their old checksums were checked before; they get new ones here
            self.seq += 1
            db.execute(INSERT, signed(self.seq, bucket_id, generation, *rest))
        for file_id, seq in claims:
            db.execute(CLAIMED, signed(bucket_id, file_id, seq, 0))
        ((*arrival, _, arrived_ns),) = self._signed(db, "SELECT * FROM arrivals WHERE bucket_id = ?", bucket_id)
        db.execute(ARRIVED, signed(*arrival, pending, arrived_ns))
        self.commit(self.position)
        self.pending.pop(bucket_id, None)
        self.given_up.pop(bucket_id, None)
        if pending:
            self.given_up[bucket_id] = generation

    def publish_claims(self) -> None:
        """Marks all claims as proved, after a checkpoint: the former shards may delete the notices."""
        assert not self.db.in_transaction
        if claims := self._signed(self.db, "SELECT * FROM claims WHERE proved = 0"):
            self.begin()
            self.db.executemany(CLAIMED, [signed(*claim, 1) for *claim, _ in claims])
            self.commit(self.position)

    def delete_claimed(self) -> int:
        """Deletes the notices that other shards have taken over and proved; and those that were acknowledged before
        their bucket was taken over, where this file was set back since and owes them again. Returns how many. Raises
        Damaged.
        """
        self._look_at_departed()
        other_dbs: list[sqlite3.Connection] = []
        try:
            self._open_others(other_dbs)
            query = "SELECT * FROM claims WHERE file_id = ? AND proved = 1"
            claimed = [(row[0], row[2]) for db in other_dbs for row in self._signed(db, query, self.file_id)]
            taken_over = {bucket: generation for db in other_dbs for bucket, generation in self._taken_over(db)}
        except Elsewhere:
            return 0
        finally:
            for db in other_dbs:
                db.close()
        departed = "(bucket_id, generation) IN (SELECT bucket_id, generation FROM departures)"
        up_to = f"FROM owed WHERE bucket_id = ? AND seq <= ? AND {departed}"
        older = f"FROM owed WHERE bucket_id = ? AND generation < ? AND {departed}"
        candidates = [(up_to, claim) for claim in claimed] + [(older, arrival) for arrival in taken_over.items()]
        deletions = [
            (clause, arguments)
            for clause, arguments in candidates
            if self.db.execute(f"SELECT 1 {clause} LIMIT 1", arguments).fetchone()
        ]
        if not deletions:
            return 0
        self.begin()
        deleted = sum(self.db.execute(f"DELETE {clause}", arguments).rowcount for clause, arguments in deletions)
        self.commit(self.position)
        return deleted

    def _taken_over(self, db: sqlite3.Connection) -> list[tuple[int, int]]:
        """Returns (bucket, generation) of each arrival in another shard's file that has taken over all earlier notices,
        and has proved them. An arrival before this file was made is left out: what this file owed may not have been
        awaited then (`_may_be_lost`), and is not known to be sent.
        """
        unproved = {row[0] for row in self._signed(db, "SELECT * FROM claims WHERE proved = 0")}
        arrivals = []
        for bucket_id, generation, _, _, arrived_ns in self._signed(db, "SELECT * FROM arrivals WHERE pending = 0"):
            if bucket_id not in unproved and self.made_ns <= arrived_ns:
                arrivals.append((bucket_id, generation))
        return arrivals

    def _look_at_departed(self) -> None:
        """Checks the checksums of notices that other shards are to take over, the next ones with each call: a damaged
        one makes the other shards wait, and only this process can repair it. Raises Damaged.
        """
        query = """SELECT owed.* FROM owed JOIN departures USING (bucket_id, generation) WHERE seq > ?
            ORDER BY seq LIMIT ?"""
        rows = self._sound(query, (self._looked_seq, LOOKED_AT_ONCE))
        self._looked_seq = rows[-1][0] if len(rows) == LOOKED_AT_ONCE else 0

    def has_departed(self) -> bool:
        """Whether the file still has notices of buckets that have left."""
        query = "SELECT 1 FROM owed JOIN departures USING (bucket_id, generation) LIMIT 1"
        return self.db.execute(query).fetchone() is not None

    def _open_others(self, other_dbs: list[sqlite3.Connection]) -> None:
        """Adds connections to the files of the other shards. Raises Elsewhere."""
        for shard, path in sorted(shard_files(self.directory, self._disk).items()):
            if shard != self.shard:
                with _elsewhere(path):
                    other_dbs.append(connect(path, KIND))

    def _read(self, db: sqlite3.Connection, query: str, *values: int) -> list[Any]:
        """Returns the rows of a query on this file or another shard's. Raises Elsewhere."""
        if db is self.db:
            return db.execute(query, values).fetchall()
        with _elsewhere("a file of another shard"):
            return db.execute(query, values).fetchall()

    def _signed(self, db: sqlite3.Connection, query: str, *values: int) -> list[tuple[int, ...]]:
        """Returns the rows of a query for whole rows of integers, without their checksums. Raises Elsewhere,
        Damaged.
        """
        rows = self._read(db, query, *values)
        if not all(is_signed(row) and all(type(value) is int for value in row) for row in rows):
            self._refuse(db, "a row is not what was written")
        return [row[:-1] for row in rows]

    def _refuse(self, db: sqlite3.Connection, what: str) -> NoReturn:
        """Raises Damaged, or Elsewhere for the file of another shard: what was read is not what was written."""
        raise Damaged(what) if db is self.db else Elsewhere(f"a file of another shard is damaged: {what}")

    def close(self) -> None:
        """Commits, makes the file durable, and closes it."""
        self.flush()
        super().close()
