"""`history.keep_days`: gives up the oldest rows of a history file, so that what is kept still answers rightly.

A row may go once a later row of its account in the file is older than the limit: the balance at any instant since the
limit follows from that later one. So an account keeps of its rows before the limit the newest, and no other, however
long its machines have been running: the rates of their lines are kept beside that row, as its opening (`openings`).
What goes is always the beginning of an account's rows in a file; its chain ends where the kept ones begin, and readers
show an opening in the place of what is gone.

**Statements since the limit stay exact**, also where an account's rows stand in several files, of which each is cut by
itself. Of all openings of an account, call the newest one T. What was deleted lies below T, since a file deletes only
below its own opening; so all rows behind T are there, and whoever asks about an instant since the limits begins at T or
behind it and comes to T before any gap. When a file makes an opening above T, its walk back comes to T in the same way;
so the newest opening has always been exact. One that is made below T may not be, and is never come to.

A pass looks at all rows before the limit in two walks: one finds the row that each account keeps, the other deletes;
between them the openings are written. All go in slices, each a transaction of its own, between which batches and
questions are served. A pass that is broken off is begun anew by the next process. `cuts` says how far rows are gone, so
that the feed refuses whoever has not had them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Final

from billing.follower.store import StoreError, code_of, reason_of
from billing.history.history_reader import EVERYWHERE, HistoryReader
from billing.history.period import Lines
from billing.history.period_reader import Chain, Standing
from billing.history.projection import MARK_EVERY
from billing.history.store import Store
from shards.exits import Exit

SLICE_ROWS: Final = 5_000
SLICE_OPENINGS: Final = 200
DAY_NS: Final = 86_400 * 10**9
_OLD: Final = "SELECT seq, number, entry_id, at_ns, older FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"
_OPENED: Final = "SELECT seq FROM openings WHERE number = ?"
_USER: Final = "SELECT user_id FROM users WHERE number = ?"

Old = tuple[int, int, int, int, int]


class Postponed(Exception):
    """Another file cannot be read just now, and nothing is deleted until it can be; why."""


def prune(store: Store, reader: HistoryReader, limit_ns: int) -> Iterator[None]:
    """Deletes what may go for the limit; yields between slices, before which what the store was handed is committed.
    `reader`: of all files, through the store's connection. Raises Postponed, and what the store raises.
    """
    kept: dict[int, tuple[int, int]] = {}  # number of an account -> (seq, entry_id) of its newest row before the limit
    end = 0
    for rows in _slices(store.db, limit_ns):
        for seq, number, entry_id, _, older in rows:
            if older:
                kept[number] = seq, entry_id
            end = seq
        yield
    yield from _open(store, reader, kept)
    at = 0
    while at < end:
        store.flush()
        rows = store.db.execute(_OLD, (at, SLICE_ROWS)).fetchall()
        gone = [row for row in rows if row[0] <= end and row[0] < kept.get(row[1], (0, 0))[0]]
        if gone:
            marks = [(number, entry_id) for _, number, entry_id, _, _ in gone if not entry_id % MARK_EVERY]
            store.delete([row[0] for row in gone], marks, limit_ns)
        at = rows[-1][0] if rows else end
        yield


def _open(store: Store, reader: HistoryReader, kept: dict[int, tuple[int, int]]) -> Iterator[None]:
    """Writes the openings of the rows before which something will be deleted."""
    left = iter(kept.items())
    while some := list(islice(left, SLICE_OPENINGS)):
        found = []
        for number, (seq, entry_id) in some:
            if store.db.execute(_OPENED, (number,)).fetchone() != (seq,):
                lines = yield from _lines(store, reader, number, entry_id)
                found.append((number, entry_id, seq, lines))
        store.flush()
        if found:
            store.open_with(found)
        yield


def _lines(store: Store, reader: HistoryReader, number: int, entry_id: int) -> Generator[None, None, Lines]:
    """The rate lines of an account behind one of its rows."""
    (user_id,) = store.db.execute(_USER, (number,)).fetchone()
    chain = Chain(reader, EVERYWHERE, user_id, Standing())
    try:
        return (yield from chain.lines_at(chain.point_at(entry_id)))
    except (sqlite3.Error, StoreError, OSError) as error:
        if code_of(error) == Exit.DAMAGED:
            raise
        raise Postponed(reason_of(error)) from error


def _slices(db: sqlite3.Connection, limit_ns: int) -> Iterator[list[Old]]:
    """The rows before the limit, in the order of the journal: up to the first one behind it."""
    at = 0
    while rows := db.execute(_OLD, (at, SLICE_ROWS)).fetchall():
        before = next((index for index, row in enumerate(rows) if row[3] >= limit_ns), len(rows))
        yield rows[:before]
        if before < len(rows):
            return
        at = rows[-1][0]
