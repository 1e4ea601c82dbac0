"""Makes a new history file of the sound rows of another one: a damaged copy, or a file of an older version.

A row is sound if its page matches its checksum; in an older version, if the row matches its own (version 1 had no
checksums: its rows are taken as they are) and its user is known. Sound rows keep their seq, so that rows missing
between them stay noticeable; users, chains and marks are built anew.

Where the journal reaches back to the end of a transaction of the damaged file, the rows behind that are not taken,
since they are made again from the journal: only damaged rows before that are lost. Departures behind that are not taken
either: they promise that every row of the bucket is there, which is true again once the journal has been read.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from billing.follower.damage import KEY_MAX, rows_by_key
from billing.follower.store import Damaged, Kind, connect
from billing.history import openings
from billing.history.accounts import USERS_MAX, Accounts, chain_end_of
from billing.history.page import PAGE_ROWS, Page, Part, Row, pages_of, record_of_older_row
from billing.history.projection import MARK_EVERY

# The columns of a row of versions 2 to 4, in their order; version 1 had those up to request_id.
OLDER_COLUMNS: Final = (
    "seq", "older", "number", "entry_id", "at_ns", "operation", "amount", "accrued", "balance", "message", "request_id",
    "flags", "frac", "rate", "value", "resource", "actor", "rare",
)  # fmt: skip

RARE: Final = struct.Struct("<qqq")  # credit limit and holds in nanos, fraction of the amount

_encode: Final = msgspec.msgpack.Encoder().encode


class Good(NamedTuple):
    """A row that is taken over."""

    seq: int
    user_id: bytes
    entry_id: int
    record: bytes


def salvage(db: sqlite3.Connection, source: str, shard: int, first: int, kind: Kind) -> str:
    """Fills `db`, a new file in its first transaction, from `source`. Returns what came of it, as text. `first`: the
    oldest batch that the journal holds. Raises StoreError, sqlite3.Error.
    """
    old = connect(source, kind, versions=(kind.version, *kind.older))
    try:
        return _salvage(db, old, shard, first, kind)
    finally:
        old.close()


def _salvage(db: sqlite3.Connection, old: sqlite3.Connection, shard: int, first: int, kind: Kind) -> str:
    groups = _numbers(old, "SELECT position, seq FROM groups")
    about = _numbers(old, "SELECT begins, position FROM about")
    begins, position = about[0] if about else (1, max(groups)[0] if groups else -1)
    if position < 0:
        raise Damaged("nothing in it says which batch it ends with")
    seq_max = KEY_MAX
    reached = [group for group in groups if group[0] >= first - 1]
    if reached:
        position, seq_max = min(reached)
    cut = max((seq for seq, _ in _numbers(old, "SELECT seq, at_ns FROM cuts")), default=0)  # the last deleted row
    is_older = old.execute("PRAGMA user_version").fetchone() != (kind.version,)
    writer = Writer(db)
    last = lost = 0
    for good in _older_rows(old) if is_older else _rows(old):
        if good.seq > seq_max:
            break
        lost += max(0, good.seq - max(last, cut) - 1)
        last = good.seq
        writer.take(good)
    writer.finish()
    if reached:
        lost += max(0, seq_max - max(last, cut))
    for departure in _numbers(
        old, f"SELECT bucket_id, generation, position FROM departures WHERE position <= {position}"
    ):
        db.execute("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", departure)
    ends = sorted(group for group in groups if group[0] <= position)
    if not ends or ends[-1][0] != position:
        ends.append((position, max(last, *(seq for _, seq in ends), 0)))
    db.executemany("INSERT INTO groups VALUES (?, ?, ?)", [(slot, *group) for slot, group in enumerate(ends)])
    db.execute("INSERT INTO about VALUES (?, ?, ?)", (shard, position, begins))
    tables = {name for (name,) in _plain(old, "SELECT name FROM sqlite_master")}
    for table, columns in (("losses", "position, text"), ("cuts", "seq, at_ns")):
        if table in tables:
            rows = _plain(old, f"SELECT {columns} FROM {table}")
            db.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", rows)
    if "openings" in tables:
        users = dict(rows_by_key(old, "SELECT number, user_id FROM users", "number"))
        for row in _plain(old, f"SELECT * FROM openings WHERE seq <= {seq_max}"):
            if openings.is_sound(row) and (chain_end := chain_end_of(db, users.get(row[0], b""))) is not None:
                openings.copy(db, row, chain_end[0])
    text = f"{writer.row_count} good rows up to batch {position}; {lost} are lost"
    if lost:
        db.execute("INSERT INTO losses VALUES (?, ?)", (position, text))
    return text


class Writer:
    """Writes rows in the order of rising seqs: pages, chains, marks, users."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._part = Part()
        self._first = 1  # seq of the first row in the part
        self._accounts = Accounts(db)
        self.row_count = 0
        self.last_seq = 0

    def take(self, good: Good) -> None:
        """Adds the next row."""
        count = len(self._part.starts)
        if count == PAGE_ROWS or good.seq != self._first + count:
            self._write_page()
            self._first = good.seq
        number, older = self._accounts.advance(good.user_id, good.seq)
        self._part.add(older, good.record)
        if not good.entry_id % MARK_EVERY:
            mark = number, good.entry_id, good.seq
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", mark)
        self.row_count += 1
        self.last_seq = good.seq

    def _write_page(self) -> None:
        self._db.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", pages_of(self._part, self._first))
        self._part = Part()
        if len(self._accounts.numbers) > USERS_MAX:
            self._accounts.write()

    def finish(self) -> None:
        """Writes the last page, and the ends of the chains."""
        self._write_page()
        self._accounts.write()


def _rows(old: sqlite3.Connection) -> Iterator[Good]:
    for row, record in good_rows(old):
        yield Good(row.seq, row.user_id, row.entry_id, record)


def good_rows(old: sqlite3.Connection) -> Iterator[tuple[Row, bytes]]:
    """Yields the sound rows of a file of the present version, each with its record."""
    for columns in rows_by_key(old, "SELECT first, count, checksum, packed FROM pages", "first"):
        try:
            if (sound := Page._make(columns)).is_sound:
                page = sound.open()
                yield from zip(page.rows(), filter(None, page.records()), strict=True)
        except (TypeError, OverflowError, struct.error):  # a damaged value of another type
            continue


def _older_rows(old: sqlite3.Connection) -> Iterator[Good]:
    """Yields the sound rows of a file of an older version, as records."""
    names = {name for _, name, *_ in _plain(old, "PRAGMA table_info(entries)")}
    has_checksum = "checksum" in names
    columns = [name if name in names else "NULL" for name in OLDER_COLUMNS]
    selected = ", ".join([*columns, "checksum" if has_checksum else "NULL"])
    users: dict[int, bytes] = dict(rows_by_key(old, "SELECT number, user_id FROM users", "number"))
    for *row, checksum in rows_by_key(old, f"SELECT {selected} FROM entries", "seq"):
        seq, _, number, entry_id, *fields, rare = row
        if number in users and not (has_checksum and checksum != crc32(_encode(row))):
            limits = RARE.unpack(rare) if rare else (0, 0, 0)
            record = record_of_older_row((users[number], entry_id, *_shown(fields), *limits))
            yield Good(seq, users[number], entry_id, record)


def _shown(fields: list[Any]) -> list[Any]:
    """Converts the columns from at_ns to actor into the form that a row has now."""
    at_ns, operation, amount, accrued, balance, message, request_id, *known, actor = fields
    if accrued < 0:  # stored as two's complement
        accrued += 1 << 64
    return [at_ns, operation, amount, accrued, balance, message or b"", request_id or b"", *known, actor or b""]


def _numbers(db: sqlite3.Connection, query: str) -> list[tuple[int, ...]]:
    """Returns those rows of a small table that hold integers only: a damaged value may be of any type."""
    return [row for row in _plain(db, query) if all(type(value) is int for value in row)]


def _plain(db: sqlite3.Connection, query: str) -> list[Any]:
    """Returns the rows of a small table; none where it is damaged."""
    try:
        return db.execute(query).fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return []
