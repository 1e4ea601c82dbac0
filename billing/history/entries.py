"""The feed of all entries: the rows of all files of a directory, once each, and those of an account in their order.

A page takes from each file the rows behind the cursor, in the file's order, and merges them by their instants. A row
stays back, and with it what follows in its file, until the row of its account's entry before is out: that one stands in
another file where the account's bucket moved between the two. Which row that is is known without a list of moves,
because the entry_ids of an account follow each other.

**A row that is in no file** is either lost (its file was damaged, or cut by `history.keep_days`) or not written yet by
a follower that is behind. So the caller asks all shards first how far their files are, which makes them write what is
durable, and gives the answers as `bounds`: no row above them is taken. A page that meets a row whose entry before is
in no file ends there and says so (`Feed.waits`); the caller asks all shards a second time, and then again with the same
bounds and `all_written`: the bounds were made after the missing entries, so whatever exists of these is in the files by
then, and the row goes out. Without a missing row one round is enough.

**A cursor is refused** (`UnknownCursor`) where a file that it names is not here, is another one by now, or has taken
back or deleted rows behind it: whoever goes on then would lose entries, or have entries that never were. Whoever begins
does so behind the newest row that was deleted: an older one that its account keeps is no part of the feed any more,
since a cursor behind it could not be told from one that has not had what was deleted.

It only reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from billing.follower.store import UNREADABLE, StoreError, code_of, reason_of
from billing.history.cursor import NoCursor, Place, decode, encode
from billing.history.history_reader import HistoryReader, Shown, as_map, rows_of
from billing.history.page import OPENING_ROW, Row
from billing.history.store import Pages
from billing.history.tables import SEQ
from billing.ledger.entry import text
from shards.exits import Exit

Dbs = Mapping[int, sqlite3.Connection]  # by shard
Bounds = Mapping[int, int]  # shard -> the last sequence that is taken


class UnknownCursor(Exception):
    """The feed cannot go on behind this cursor, and why."""


class Elsewhere(StoreError):
    """The file of another shard is damaged. The feed waits for its repair: a page without its rows would lose them."""

    code = Exit.AGAIN


@contextmanager
def _of(shard: int, own_shard: int) -> Iterator[None]:
    """Damage that is found in the file of another shard becomes Elsewhere."""
    try:
        yield
    except UNREADABLE as error:
        if shard == own_shard or code_of(error) != Exit.DAMAGED:
            raise
        text = f"the history of shard {shard} is damaged ({reason_of(error)}): `billing rebuild` makes a new one of it"
        raise Elsewhere(text) from error


class Feed(NamedTuple):
    """A page of the feed: rows, each with the cursor behind it. `waits`: it ended at a row whose entry before is in no
    file; `bounds`: up to where it read each file.
    """

    rows: list[Shown]
    waits: bool
    bounds: dict[int, int]


class _Head(NamedTuple):
    """The next row of a file, and what it stays back for."""

    row: Row
    needs: tuple[int, int] | None  # (shard, sequence) of the row that goes before it


class _File:
    """What is left to be taken of one file."""

    def __init__(self, db: sqlite3.Connection, sequence: int, bound: int) -> None:
        self.head: _Head | None = None
        self.has_ended = False
        self.rows = Pages(db).following(sequence, bound)
        self.older = Pages(db)


def page(reader: HistoryReader, cursor: str, limit: int, bounds: Bounds, *, all_written: bool) -> Feed:
    """At most `limit` rows behind `cursor`; see the module. Raises UnknownCursor, Elsewhere, Damaged, sqlite3.Error,
    StoreError, OSError.
    """
    dbs = reader.by_shard()
    try:
        cursor_places = decode(cursor)
    except NoCursor as error:
        raise UnknownCursor(f"{error}; the empty text is the beginning") from None
    places, ends = {}, {}
    for shard in dbs.keys() | cursor_places.keys():
        with _of(shard, reader.shard):
            place = cursor_places.get(shard)
            if place is None:
                places[shard] = Place(identity_of(dbs[shard]), begin_of(dbs[shard]))
            else:
                places[shard] = checked(shard, dbs.get(shard), place)
            ends[shard] = bounds[shard] if shard in bounds else _newest(dbs[shard])
    files = {shard: _File(db, places[shard].sequence, ends[shard]) for shard, db in dbs.items()}
    rows, waits = _merged(reader.shard, dbs, files, places, limit, all_written)
    return Feed(rows, waits, ends)


def _merged(
    own_shard: int, dbs: Dbs, files: dict[int, _File], places: dict[int, Place], limit: int, all_written: bool
) -> tuple[list[Shown], bool]:
    """The rows of a page, and whether one waits that is needed before; `places` goes on with them. `own_shard`: the
    shard whose process reads.
    """
    rows: list[Shown] = []
    waits = False
    while len(rows) < limit:
        ready = []
        for shard, file in files.items():
            if file.head is None and not file.has_ended:
                with _of(shard, own_shard):
                    file.head = _next(own_shard, dbs, shard, file, all_written)
                file.has_ended = file.head is None
            if file.head is None:
                continue
            needed, sequence = file.head.needs or (shard, 0)
            if needed == NOWHERE:
                waits = True
            elif places[needed].sequence >= sequence:
                ready.append((file.head.row.at_ns, shard))
        if not ready:
            break
        _, shard = min(ready)
        head = files[shard].head
        assert head is not None
        files[shard].head = None
        places[shard] = Place(places[shard].identity, head.row.seq)
        rows.append({"cursor": encode(places), "user_id": text(head.row.user_id), **as_map(head.row)})
    return rows, waits


_DELETED: Final = "SELECT coalesce(max(seq), 0) FROM cuts"
NOWHERE: Final = -1  # in the place of a shard: the row is in no file


def _next(own_shard: int, dbs: Dbs, shard: int, file: _File, all_written: bool) -> _Head | None:
    """The next row of a file; None behind the last."""
    row = next((row for row in file.rows if row.operation != OPENING_ROW), None)  # which is no entry
    if row is None:
        return None
    before_id = row.entry_id - 1
    if not before_id or row.generation == 1:  # a bucket of the first generation was never elsewhere
        return _Head(row, None)
    if row.older:
        older = file.older.row(row.older)
        if older is None or older.entry_id == before_id:  # else it was here, and is deleted
            return _Head(row, None)
    for other, db in dbs.items():
        if other != shard:
            with _of(other, own_shard):
                _, rows = rows_of(db, row.user_id, row.entry_id, 1)
            if rows and rows[0].entry_id == before_id:
                return _Head(row, (other, rows[0].seq))
    return _Head(row, None if all_written else (NOWHERE, 0))


def _newest(db: sqlite3.Connection) -> int:
    newest: int = db.execute(SEQ).fetchone()[0]
    return newest


def begin_of(db: sqlite3.Connection) -> int:
    """The row behind which the feed begins: the newest one that `history.keep_days` deleted; 0 where none was."""
    deleted: int = db.execute(_DELETED).fetchone()[0]
    return deleted


def identity_of(db: sqlite3.Connection) -> bytes:
    """What the file is called in cursors at present."""
    identity: bytes = db.execute("SELECT identity FROM identities WHERE seq_max IS NULL").fetchone()[0]
    return identity


def checked(shard: int, db: sqlite3.Connection | None, place: Place) -> Place:
    """A place in a file, in the file as it is now. Raises UnknownCursor."""
    if db is None:
        raise UnknownCursor(f"there is no history of shard {shard} here: the cursor is of another daemon")
    row = db.execute("SELECT seq_max FROM identities WHERE identity = ?", (place.identity,)).fetchone()
    if row is None:
        raise UnknownCursor(
            f"the cursor is of another daemon, or the history of shard {shard} was made anew since; begin again"
        )
    if row[0] is not None and place.sequence > row[0]:
        raise UnknownCursor(
            f"the history of shard {shard} has taken back entries behind row {row[0]}, which the cursor has: "
            "its journal lost them, or it was restored from a backup; begin again"
        )
    if place.sequence < begin_of(db):
        raise UnknownCursor(
            f"entries of shard {shard} behind the cursor are older than history.keep_days, and deleted; begin again"
        )
    return Place(identity_of(db), place.sequence)
