"""One shard's part of a page of the feed of all entries, where hosts share the journal and each has its own files.

A host's files of the shards that others serve may be a little behind. So the worker that is asked for a page asks every
shard for its rows behind the cursor (`part`) and merges them: by their instants, and each account's in their order. A
row whose account's preceding entry is in another shard's file (its bucket moved between the two) is marked `follows`;
to find those entries, each shard is asked a second time (`locate`). An entry that no shard locates is lost, since
everything that a bucket's former owner wrote was durable before the bucket left.

A place is one in the journal (`cursor`, `batches`), which means the same on every host. Rows that were written before
the file recorded their batches have places in the file, which are valid on this host alone: a reader that stops among
these has to begin again after a takeover, and is told so.

The module only reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from billing.history import batches
from billing.history.cursor import Place
from billing.history.entries import UnknownCursor, begin_of, checked, identity_of
from billing.history.history_reader import Shown, as_map, rows_of
from billing.history.page import OPENING_ROW, Row
from billing.history.store import Pages
from billing.ledger.entry import text


class PartRow(NamedTuple):
    """A row of the feed. `place`: behind the row. `follows`: the account's preceding entry is not in this file."""

    at_ns: int
    place: Place
    follows: bool
    user_id: bytes
    shown: Shown


class Part(NamedTuple):
    """Rows of one shard. `begins`: the place before them, None for the beginning; `ends`: the end of the file, None
    where the file has more rows.
    """

    shard: int
    begins: Place | None
    rows: list[PartRow]
    ends: Place | None


def part(db: sqlite3.Connection, shard: int, log: bytes, place: Place | None, limit: int, position: int) -> Part:
    """Returns at most `limit` rows behind `place`; None is the beginning. `log`: the identity of the log in cursors;
    `position`: the last batch in the file. Raises UnknownCursor, Damaged, sqlite3.Error.
    """
    places = batches.Places(db, identity_of(db), log)
    seq = begin_of(db) if place is None else _row_behind(db, shard, log, place, position)
    rows: list[PartRow] = []
    older = Pages(db)
    for row in Pages(db).following(seq, 1 << 62):
        if row.operation == OPENING_ROW:
            continue  # an opening row is no entry
        if len(rows) == limit:
            return Part(shard, place, rows, None)
        shown = {"user_id": text(row.user_id), **as_map(row)}
        rows.append(PartRow(row.at_ns, places.behind(row.seq), _follows(row, older), row.user_id, shown))
    return Part(shard, place, rows, places.at_the_end_of(position))


def locate(db: sqlite3.Connection, log: bytes, wanted: Iterable[tuple[bytes, int]]) -> list[tuple[bytes, int, Place]]:
    """Returns those of the entries (user_id, entry_id) that are in the file, each with the place behind it. Raises the
    errors of `part`.
    """
    located = []
    for user_id, entry_id in wanted:
        _, rows = rows_of(db, user_id, entry_id + 1, 1)
        if rows and rows[0].entry_id == entry_id:
            place = batches.Places(db, identity_of(db), log).behind(rows[0].seq)
            located.append((user_id, entry_id, place))
    return located


def _follows(row: Row, pages: Pages) -> bool:
    if row.entry_id == 1 or row.generation == 1:  # a bucket of the first generation has always been here
        return False
    if not row.older:
        return True
    older = pages.row(row.older)
    return older is not None and older.entry_id != row.entry_id - 1  # None: it was here, and was deleted


def _row_behind(db: sqlite3.Connection, shard: int, log: bytes, place: Place, position: int) -> int:
    """Returns the seq of the last row that a reader at this place has read. Raises UnknownCursor."""
    if not place.is_of_log:
        return checked(shard, db, place).sequence
    if place.identity != log:
        raise UnknownCursor("the cursor is of another daemon's log; begin again")
    if place.sequence - (not place.rows) > position:
        raise UnknownCursor(
            f"the cursor has entries of shard {shard} up to batch {place.sequence}, and its journal ends with batch "
            f"{position}; begin again"
        )
    seq = batches.row_of(db, place.sequence, place.rows)
    if seq is None:
        raise UnknownCursor(
            f"this host's history of shard {shard} begins behind batch {place.sequence}, which the cursor has: what "
            "lies between is gone from the log (cluster.retain_bytes); begin again"
        )
    return checked(shard, db, Place(identity_of(db), seq)).sequence
