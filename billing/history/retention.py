"""`history.keep_days`: deletes the oldest rows of a history file, in such a way that the rest still answers correctly.

A row may be deleted once a later row of its account in the file is older than the limit: the balance at any instant
since the limit follows from that later one. So an account keeps, of its rows before the limit, only the newest, however
long its machines have been running: the rates of their lines are stored beside that row, as its opening (`openings`).
The deleted rows are always the beginning of an account's rows in a file; its chain ends where the kept ones begin, and
readers show an opening in the place of the deleted ones.

**Statements since the limit stay exact**, even where an account's rows are in several files, each of which is cut by
itself. Of all openings of an account, call the newest one T. The deleted rows lie below T, since a file deletes only
below its own opening; so all rows behind T are present. A question about an instant since the limits begins at T or
behind it, and reaches T before any gap. When a file makes an opening above T, its walk back reaches T in the same way;
so the newest opening has always been exact. An opening that is made below T may not be exact, and is never reached.

A pass reads all rows before the limit in two walks: the first finds the row that each account keeps, the second
deletes; between them the openings are written. Each walk goes in slices, each a transaction of its own, between which
batches and questions are served. A pass that is interrupted is begun again by the next process. `cuts` records the last
deleted row, so that the feed refuses a reader that has not read all deleted rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from itertools import islice, takewhile
from typing import Final

from billing.follower.store import StoreError, code_of, reason_of
from billing.history.accounts import chain_end_of
from billing.history.history_reader import EVERYWHERE, HistoryReader
from billing.history.page import Row
from billing.history.period import Lines
from billing.history.period_reader import Chain, Standing
from billing.history.projection import MARK_EVERY
from billing.history.store import Pages, Store
from shards.exits import Exit

FIRST_S: Final = 1.0  # after the start of a process
EVERY_S: Final = 3_600.0
AGAIN_S: Final = 30.0  # after another shard's file could not be read, e.g. while it is converted
SLICE_ROWS: Final = 5_000
SLICE_OPENINGS: Final = 200
DAY_NS: Final = 86_400 * 10**9
_OPENED: Final = "SELECT seq FROM openings WHERE number = ?"

NewestOld = dict[bytes, tuple[int, int]]  # user_id -> (seq, entry_id) of its newest row before the limit


class Postponed(Exception):
    """Another file cannot be read just now, and nothing is deleted until it can be; the text says why."""


def prune(store: Store, reader: HistoryReader, limit_ns: int) -> Iterator[None]:
    """Deletes the rows that the limit allows to delete. Yields between slices; before each slice, all batches that the
    store has taken are committed. `reader`: reads all files, through the store's connection. Raises Postponed, and the
    store's errors.
    """
    newest_old: NewestOld = {}
    end = 0
    for rows in _slices(store, store.seq):
        old_rows = list(takewhile(lambda row: row.at_ns < limit_ns, rows))
        for row in old_rows:
            if row.older:
                newest_old[row.user_id] = row.seq, row.entry_id
            end = row.seq
        yield
        if len(old_rows) < len(rows):
            break
    yield from _open(store, reader, newest_old)
    for rows in _slices(store, end):
        store.flush()
        superseded = [row for row in rows if row.seq < newest_old.get(row.user_id, (0, 0))[0]]
        if superseded:
            marks = [(row.user_id, row.entry_id) for row in superseded if not row.entry_id % MARK_EVERY]
            store.delete([row.seq for row in superseded], marks, limit_ns)
        yield


def _open(store: Store, reader: HistoryReader, newest_old: NewestOld) -> Iterator[None]:
    """Writes the openings of the rows before which rows will be deleted."""
    remaining = iter(newest_old.items())
    while some := list(islice(remaining, SLICE_OPENINGS)):
        openings = []
        for user_id, (seq, entry_id) in some:
            chain_end = chain_end_of(store.db, user_id)
            assert chain_end is not None, "an account of which a row was just read"
            number = chain_end[0]
            if store.db.execute(_OPENED, (number,)).fetchone() != (seq,):
                lines = yield from _lines(reader, user_id, entry_id)
                openings.append((number, entry_id, seq, lines))
        store.flush()
        if openings:
            store.open_with(openings)
        yield


def _lines(reader: HistoryReader, user_id: bytes, entry_id: int) -> Generator[None, None, Lines]:
    """Returns the rate lines of an account behind one of its rows."""
    chain = Chain(reader, EVERYWHERE, user_id, Standing())
    reader.damaged.clear()
    try:
        lines = yield from chain.lines_at(chain.point_at(entry_id))
    except (sqlite3.Error, StoreError, OSError) as error:
        if code_of(error) == Exit.DAMAGED:
            raise
        raise Postponed(reason_of(error)) from error
    if reader.damaged:
        raise Postponed(f"the history of shard {min(reader.damaged)} is damaged")
    return lines


def _slices(store: Store, end: int) -> Iterator[list[Row]]:
    """Yields the rows up to `end`, in the order of the journal; each slice is read when it is asked for."""
    at = 0
    while rows := list(islice(Pages(store.db).following(at, end), SLICE_ROWS)):
        yield rows
        at = rows[-1].seq
