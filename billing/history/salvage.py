"""Makes a new history file of what is good in another one: a damaged copy, or a file of an older version.

A row is good where its checksum says so (rows of version 1 have none, and are taken as they are) and its user is known.
Good rows keep their seq, so that what is missing between them stays visible; the chains and marks are worked out anew.

Where the journal reaches back to the end of a transaction of the damaged file, the rows behind that are left to the
journal, which makes them again: only what is damaged before that is lost.

SQLite gives up at a page that does not hold. Rows are therefore read by key, and after a failure the search goes on
behind it: by steps that double, then back by halves, to the first key that can be read again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, Final
from zlib import crc32

import msgspec

from billing.follower.store import Damaged, Kind, connect
from billing.history.openings import is_sound
from billing.history.projection import COLUMNS, MARK_EVERY

AT_ONCE: Final = 1_000
KEY_MAX: Final = 2**62

_encode: Final = msgspec.msgpack.Encoder().encode


def salvage(db: sqlite3.Connection, source: str, shard: int, first: int, kind: Kind) -> str:
    """Fills `db`, a new file in its first transaction, from `source`; says what came of it. `first`: the oldest batch
    that the journal holds. Raises StoreError, sqlite3.Error.
    """
    old = connect(source, kind, versions=(kind.version, *kind.older))
    try:
        return _salvage(db, old, shard, first)
    finally:
        old.close()


def _salvage(db: sqlite3.Connection, old: sqlite3.Connection, shard: int, first: int) -> str:
    groups = _plain(old, "SELECT position, seq FROM groups")
    about = _plain(old, "SELECT begins, position FROM about")
    begins, position = about[0] if about else (1, max(groups)[0] if groups else -1)
    if position < 0:
        raise Damaged("nothing in it says which batch it ends with")
    seq_max = KEY_MAX
    reached = [group for group in groups if group[0] >= first - 1]
    if reached:
        position, seq_max = min(reached)
    names = {name for _, name, *_ in _plain(old, "PRAGMA table_info(entries)")}
    has_checksum = "checksum" in names
    taken = [column.name if column.name in names else "NULL" for column in COLUMNS]
    selected = ", ".join([*taken, "checksum" if has_checksum else "NULL"])
    users: dict[int, bytes] = dict(_by_key(old, "SELECT number, user_id FROM users", "number"))
    newest: dict[int, int] = {}
    cut = max((seq for seq, _ in _plain(old, "SELECT seq, at_ns FROM cuts")), default=0)  # deleted up to there
    kept = bad = 0
    last = 0
    for *row, checksum in _by_key(old, f"SELECT {selected} FROM entries", "seq"):
        if row[0] > seq_max:
            break
        if row[2] not in users or (has_checksum and checksum != crc32(_encode(row))):
            bad += 1
            continue
        bad += max(0, row[0] - max(last, cut) - 1)
        last = row[0]
        fresh = _relinked(row, names, newest)
        db.execute(
            f"INSERT INTO entries VALUES ({', '.join('?' * (len(COLUMNS) + 1))})", (*fresh, crc32(_encode(fresh)))
        )
        if not fresh[3] % MARK_EVERY:
            db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (fresh[2], fresh[3], fresh[0]))
        kept += 1
    db.executemany("INSERT INTO users VALUES (?, ?)", [(number, users[number]) for number in newest])
    db.executemany("INSERT INTO heads VALUES (?, ?)", newest.items())
    for departure in _plain(old, "SELECT bucket_id, generation, position FROM departures"):
        db.execute("INSERT OR REPLACE INTO departures VALUES (?, ?, ?)", departure)
    rows = [(slot, *group) for slot, group in enumerate(sorted(one for one in groups if one[0] <= position))]
    db.executemany("INSERT INTO groups VALUES (?, ?, ?)", rows)
    db.execute("INSERT INTO about VALUES (?, ?, ?)", (shard, position, begins))
    tables = {name for (name,) in _plain(old, "SELECT name FROM sqlite_master")}
    for table, columns in (("losses", "position, text"), ("cuts", "seq, at_ns")):
        if table in tables:
            db.executemany(f"INSERT INTO {table} VALUES (?, ?)", _plain(old, f"SELECT {columns} FROM {table}"))
    if "openings" in tables:
        sound = [row for row in _plain(old, f"SELECT * FROM openings WHERE seq <= {seq_max}") if is_sound(row)]
        db.executemany("INSERT INTO openings VALUES (?, ?, ?, ?, ?)", sound)
    text = f"{kept} good rows up to batch {position}; {bad} are lost"
    if bad:
        db.execute("INSERT INTO losses VALUES (?, ?)", (position, text))
    return text


def _relinked(row: list[Any], names: set[str], newest: dict[int, int]) -> tuple[Any, ...]:
    """A row in its account's new chain, with what an older version of it had not."""
    fresh: list[Any] = [
        value if column.name in names else column.absent for value, column in zip(row, COLUMNS, strict=True)
    ]
    number = fresh[2]
    fresh[1] = newest.get(number, 0)
    newest[number] = fresh[0]
    return tuple(fresh)


def _plain(db: sqlite3.Connection, query: str) -> list[Any]:
    """The rows of a small table; none where it is damaged."""
    try:
        return db.execute(query).fetchall()
    except sqlite3.DatabaseError:
        return []


def _by_key(db: sqlite3.Connection, query: str, key: str) -> Iterator[Any]:
    """All rows of a table that can be read, in the order of its integer key, which is the first column."""
    following = f"{query} WHERE {key} >= ? ORDER BY {key} LIMIT ?"
    at, most = 0, AT_ONCE
    while at <= KEY_MAX:
        try:
            rows = db.execute(following, (at, most)).fetchall()
        except sqlite3.DatabaseError:
            if most > 1:
                most = max(1, most // 10)
                continue
            at, most = _behind_damage(db, following, at), AT_ONCE
            continue
        yield from rows
        if not rows:
            return
        at = rows[-1][0] + 1


def _behind_damage(db: sqlite3.Connection, following: str, at: int) -> int:
    """The least key above `at` from which a row can be read again, or beyond `KEY_MAX`."""

    def reads(key: int) -> bool:
        try:
            db.execute(following, (key, 1)).fetchall()
        except sqlite3.DatabaseError:
            return False
        return True

    low, step = at, 1
    while low + step <= KEY_MAX and not reads(low + step):
        low, step = low + step, step * 2
    if low + step > KEY_MAX:
        return KEY_MAX + 1
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reads(middle) else (middle, high)
    return high
