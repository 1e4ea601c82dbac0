"""Histories that are not what was written: a page with another entry, link or number of rows in it, well formed and
with the right checksum, as a writer that is wrong would have written it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from billing.history.page import RECORD_HEAD_BYTES, Page, Part, Row, pages_of
from billing.history.store import INSERT_PAGE, Pages
from billing.ledger.entry import Entry, pack, unpack
from shards.batch import LENGTH

NEWEST = 2**63 - 1


def rows(db: sqlite3.Connection) -> list[Row]:
    """All rows of a file, in order."""
    return list(Pages(db).following(0, NEWEST))


def rewritten(db: sqlite3.Connection, seq: int, change: Callable[[int, bytes], tuple[int, bytes]]) -> None:
    """Writes the page of a row again, with what `change` makes of the row's older seq and its record."""
    page = Page._make(db.execute("SELECT * FROM pages WHERE first <= ? ORDER BY first DESC LIMIT 1", (seq,)).fetchone())
    opened, part = page.open(), Part()
    for at, (older, record) in enumerate(zip(opened.older(), opened.records(), strict=True), page.first):
        part.add(*(change(older, record) if at == seq else (older, record)))
    db.execute("DELETE FROM pages WHERE first = ?", (page.first,))
    db.executemany(INSERT_PAGE, pages_of(part, page.first))


def entry_changed(db: sqlite3.Connection, seq: int, change: Callable[[Entry], Entry]) -> None:
    """Changes the entry of a row."""

    def changed(older: int, record: bytes) -> tuple[int, bytes]:
        body = pack(change(Entry._make(unpack(record[RECORD_HEAD_BYTES:]))))
        head = record[LENGTH.size : RECORD_HEAD_BYTES]
        return older, LENGTH.pack(len(head) + len(body)) + head + body

    rewritten(db, seq, changed)


def row_deleted(db: sqlite3.Connection, seq: int) -> None:
    """Deletes a row."""
    rewritten(db, seq, lambda older, _: (older, b""))


def link_changed(db: sqlite3.Connection, seq: int, to: int) -> None:
    """Makes a row say that the account's row before is another one."""
    rewritten(db, seq, lambda _, record: (to, record))


def row_added(db: sqlite3.Connection, like: int, change: Callable[[Entry], Entry]) -> None:
    """A row behind the last one, which `change` makes of the entry of another."""
    last = rows(db)[-1].seq
    part = Part()
    page = Page._make(
        db.execute("SELECT * FROM pages WHERE first <= ? ORDER BY first DESC LIMIT 1", (like,)).fetchone()
    )
    part.add(like, page.open().records()[like - page.first])
    db.executemany(INSERT_PAGE, pages_of(part, last + 1))
    entry_changed(db, last + 1, change)
