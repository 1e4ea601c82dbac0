"""The batch of the journal from which each row of a history file came: so a cursor of the feed means the same on any
host.

    batches   position, seq: the seq of the last row of batches up to `position`; a line for each batch that has a row

The table is in the files of shards whose journal several hosts share. Its first line is the end of the file when the
table was created, whether that batch has a row or not: rows before it are known by their seq alone. Lines are written
in the transaction of their rows, and removed with them where the file is cut back. Where a gap was filled (`mending`),
the last batch of the gap has a line whether it has a row or not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from billing.history.cursor import Place

INSERT: Final = "INSERT OR REPLACE INTO batches VALUES (?, ?)"
CUT: Final = "DELETE FROM batches WHERE position > ?"
_CREATE: Final = "CREATE TABLE batches (position INTEGER PRIMARY KEY, seq INTEGER NOT NULL)"
_IS_THERE: Final = "SELECT 1 FROM sqlite_master WHERE name = 'batches'"
_FIRST: Final = "SELECT position, seq FROM batches ORDER BY position LIMIT 1"
_BEFORE: Final = "SELECT position, seq FROM batches WHERE position < ? ORDER BY position DESC LIMIT 1"
_BEHIND: Final = "SELECT position, seq FROM batches WHERE position > ? ORDER BY position LIMIT 1"
_UP_TO: Final = "SELECT position, seq FROM batches WHERE position <= ? ORDER BY position DESC LIMIT 1"
_BETWEEN: Final = "SELECT position, seq FROM batches WHERE position BETWEEN ? AND ? ORDER BY position"
_LAST: Final = "SELECT coalesce(max(position), -1) FROM batches"


class Line(NamedTuple):
    """A line of the table."""

    position: int
    seq: int


def are_kept(db: sqlite3.Connection) -> bool:
    """Whether the file has the table."""
    return db.execute(_IS_THERE).fetchone() is not None


def keep(db: sqlite3.Connection, position: int, seq: int) -> None:
    """Creates the table, in the open transaction. `position` and `seq`: the last batch and the last row of the
    file.
    """
    db.execute(_CREATE)
    db.execute(INSERT, (position, seq))


def first_line(db: sqlite3.Connection) -> Line:
    """Returns the first line: the end of the file when the table was created."""
    return Line._make(db.execute(_FIRST).fetchone())


def line_up_to(db: sqlite3.Connection, position: int) -> Line | None:
    """Returns the last line at or before the batch `position`; None where the file does not know these batches."""
    row = db.execute(_UP_TO, (position,)).fetchone()
    return None if row is None else Line._make(row)


def lines(db: sqlite3.Connection, first: int, last: int) -> Iterator[Line]:
    """Yields the lines of the batches `first` to `last`, in order."""
    return map(Line._make, db.execute(_BETWEEN, (first, last)))


def batch_of(db: sqlite3.Connection, seq: int) -> int:
    """Returns the batch that a row came from; if that is unknown, the last batch that it can have come from."""
    line = first_line(db)
    return line.position if seq <= line.seq else Places(db, b"", b"").behind(seq).sequence


def row_of(db: sqlite3.Connection, position: int, rows: int) -> int | None:
    """Returns the seq of the last row that a reader has if it has read all batches before `position`, and `rows` rows
    of that one; None where the file does not know.
    """
    line_before = db.execute(_BEFORE, (position,)).fetchone()
    if line_before is None:
        return None
    last: int = line_before[1]
    if rows:
        line = db.execute(_BEHIND, (position - 1,)).fetchone()
        if line is None or line[0] != position or last + rows > line[1]:
            return None
    return last + rows


class Places:
    """The places behind rows of one file. Callers ask for them in the order of the rows' seqs."""

    def __init__(self, db: sqlite3.Connection, identity: bytes, log: bytes) -> None:
        """`identity`: of the file; `log`: the identity of the log."""
        self._db = db
        self._identity = identity
        self._log = log
        first = db.execute(_FIRST).fetchone()
        self._first, self._unknown = first  # up to this row the batches are not known, except the end of the last
        self._before = first  # the last line whose rows end before the requested row
        self._batch: tuple[int, int] | None = None  # the next line

    def behind(self, seq: int) -> Place:
        """Returns the place of a reader that has read this row and all before it."""
        if seq < self._unknown:
            return Place(self._identity, seq)
        if seq == self._unknown:
            return self.at_the_end_of(self._first)
        if self._batch is None:
            self._before = self._found_before(seq)
        while self._batch is None or self._batch[1] < seq:
            self._before = self._before if self._batch is None else self._batch
            self._batch = self._db.execute(_BEHIND, (self._before[0],)).fetchone()
            assert self._batch is not None, f"no batch has row {seq}"
        return Place(self._log, self._batch[0], seq - self._before[1])

    def at_the_end_of(self, position: int) -> Place:
        """Returns the place of a reader that has read everything up to this batch."""
        return Place(self._log, position + 1, 0)

    def _found_before(self, seq: int) -> tuple[int, int]:
        """Returns the last line whose rows end before the row `seq`, by bisection: seqs rise with positions."""
        low, high = self._before[0], self._db.execute(_LAST).fetchone()[0]
        nearest: tuple[int, int] = self._before
        while low <= high:
            middle = (low + high) // 2
            line = self._db.execute(_BEFORE, (middle + 1,)).fetchone()
            if line[1] < seq:
                nearest, low = line, middle + 1
            else:
                high = line[0] - 1
        return nearest
