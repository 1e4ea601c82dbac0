"""Reads what can still be read of a table in a damaged SQLite file.

SQLite fails at a page that it cannot read. Rows are therefore read by key, and after a failure the search goes on
behind it: by steps that double, then by bisection, to the first key that can be read again. The row before the page is
read alone: Python's module fetches a row ahead, and where that fails, the one it had is lost with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, Final

AT_ONCE: Final = 1_000
KEY_MAX: Final = 2**62


def rows_by_key(db: sqlite3.Connection, query: str, key: str) -> Iterator[Any]:
    """Yields all rows of a table that can be read, in the order of its integer key, which is the first column."""
    following = f"{query} WHERE {key} >= ? ORDER BY {key} LIMIT ?"
    at, most = 0, AT_ONCE
    while at <= KEY_MAX:
        try:
            rows = db.execute(following, (at, most)).fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError):
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
    """Returns a key above `at`, found by doubling steps and bisection, from which a row can be read again; beyond
    `KEY_MAX` where none can.
    """

    def reads(key: int) -> bool:
        try:
            db.execute(following, (key, 1)).fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError):
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
