"""The feed of all entries: the rows of all files of a directory, once each, and those of an account in their order.

A page takes the rows behind the cursor from each file, in the file's order, and merges them by their instants. A row,
and with it all rows behind it in its file, waits until the row of its account's preceding entry has been returned: that
row is in another file if the account's bucket moved between the two entries. Because the entry_ids of an account are
consecutive, no list of moves is needed to find it.

**A row that is in no file** is either lost (its file was damaged, or `history.keep_days` deleted the row) or not
written yet by a follower that is behind. So the caller first asks each shard for its newest row, which makes the shard
commit what is durable, and passes the answers as `bounds`: no row above them is returned. A page that meets a row whose
preceding entry is in no file ends there and reports it (`Feed.waits`). The caller then asks all shards a second time,
and asks for the page again with the same bounds and `all_written`. The bounds were made after the missing entries, so
if these exist at all, they are in the files by then, and the row is returned. Without a missing row one round is
enough.

**A cursor is refused** (`UnknownCursor`) where a file that it names does not exist here, was replaced by another one,
or has taken back or deleted rows behind the cursor: a reader that went on would lose entries, or keep entries that were
undone. A reader that begins starts behind the newest row that was deleted. Older rows which their accounts keep are not
part of the feed any more, since a cursor behind such a row would look like one that lacks the deleted rows.

The module only reads.
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
Bounds = Mapping[int, int]  # shard -> the last row to return


class UnknownCursor(Exception):
    """The feed cannot continue from this cursor; the text says why."""


class Elsewhere(StoreError):
    """The file of another shard is damaged. The feed waits for its repair: a page without its rows would lose
    them.
    """

    code = Exit.AGAIN


@contextmanager
def _of(shard: int, own_shard: int) -> Iterator[None]:
    """Turns damage that is found in the file of another shard into Elsewhere."""
    try:
        yield
    except UNREADABLE as error:
        if shard == own_shard or code_of(error) != Exit.DAMAGED:
            raise
        text = f"the history of shard {shard} is damaged ({reason_of(error)}): `billing rebuild` makes a new one of it"
        raise Elsewhere(text) from error


class Feed(NamedTuple):
    """A page of the feed: rows, each with the cursor behind it. `waits`: the page ended at a row whose preceding entry
    is in no file; `bounds`: by shard, the last row up to which the page reads.
    """

    rows: list[Shown]
    waits: bool
    bounds: dict[int, int]


class _Head(NamedTuple):
    """The next row of a file, and the row that has to be returned before it."""

    row: Row
    needs: tuple[int, int] | None  # (shard, seq) of the row that has to be returned before it


class _File:
    """The rows of one file that are still to be returned."""

    def __init__(self, db: sqlite3.Connection, sequence: int, bound: int) -> None:
        self.head: _Head | None = None
        self.has_ended = False
        self.rows = Pages(db).following(sequence, bound)
        self.older = Pages(db)


def page(reader: HistoryReader, cursor: str, limit: int, bounds: Bounds, *, all_written: bool) -> Feed:
    """Returns at most `limit` rows behind `cursor`; see the module. Raises UnknownCursor, Elsewhere, Damaged,
    sqlite3.Error, StoreError, OSError.
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
    """Returns the rows of a page, and whether a row waits for one that is in no file. Advances `places`. `own_shard`:
    the shard whose process reads.
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
NOWHERE: Final = -1  # instead of a shard: the row is in no file


def _next(own_shard: int, dbs: Dbs, shard: int, file: _File, all_written: bool) -> _Head | None:
    """Returns the next row of a file; None behind the last."""
    row = next((row for row in file.rows if row.operation != OPENING_ROW), None)  # an opening row is no entry
    if row is None:
        return None
    before_id = row.entry_id - 1
    if not before_id or row.generation == 1:  # a bucket of the first generation has always been here
        return _Head(row, None)
    if row.older:
        older = file.older.row(row.older)
        if older is None or older.entry_id == before_id:  # None: it was here, and was deleted
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
    """Returns the seq of the row behind which the feed begins: the newest one that `history.keep_days` deleted,
    or 0.
    """
    deleted: int = db.execute(_DELETED).fetchone()[0]
    return deleted


def identity_of(db: sqlite3.Connection) -> bytes:
    """Returns the file's present identity in cursors."""
    identity: bytes = db.execute("SELECT identity FROM identities WHERE seq_max IS NULL").fetchone()[0]
    return identity


def checked(shard: int, db: sqlite3.Connection | None, place: Place) -> Place:
    """Returns a place in a file with the file's present identity. Raises UnknownCursor."""
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
