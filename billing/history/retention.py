"""`history.keep_days`: gives up the oldest rows of a history file, so that what is kept still answers rightly.

A row may go once a later row of its account is older than the limit: the balance at any instant since the limit follows
from that later one. A machine that runs needs more: whose money it is, by resource, follows from the row that set its
line's rate. So an account keeps all its rows from the newest one before the limit on, and from before that where a
line's rate of then was set earlier. What goes is always the beginning of an account's rows in a file; its chain ends
where the kept ones begin, and readers say from when it is whole, as of rows that are lost.

A pass looks at all rows before the limit in two walks: one finds from where each account's rows are kept, the other
deletes. Both go in slices of `SLICE_ROWS`, each a transaction of its own, between which batches and questions are
served. A pass that is broken off is begun anew by the next process. `cuts` says how far rows are gone, so that the feed
refuses whoever has not had them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from billing.history.projection import MARK_EVERY
from billing.history.store import Store
from billing.ledger.commands import OF_LINES

SLICE_ROWS: Final = 5_000
DAY_NS: Final = 86_400 * 10**9
_OLD: Final = """
    SELECT seq, number, entry_id, at_ns, operation, rate, value, resource FROM entries
    WHERE seq > ? ORDER BY seq LIMIT ?"""


class _Standing:
    """Of one account: what its rows up to here leave."""

    __slots__ = ("lines", "newest")

    def __init__(self) -> None:
        self.newest = 0  # seq of its newest row before the limit
        self.lines: dict[bytes, int] = {}  # seq of the row that set it, of each line above zero

    def kept_from(self) -> int:
        """The seq of the first row that is kept."""
        return min([self.newest, *self.lines.values()])


def prune(store: Store, limit_ns: int) -> Iterator[None]:
    """Deletes what may go for the limit; yields between slices, before which what the store was handed is committed."""
    standings: dict[int, _Standing] = {}
    end = 0
    for rows in _slices(store.db, limit_ns):
        for seq, number, _, _, operation, rate, value, resource in rows:
            standing = standings.get(number)
            if standing is None:
                standing = standings[number] = _Standing()
            standing.newest = end = seq
            if rate == 0:
                standing.lines.clear()
            elif operation in OF_LINES and resource is not None:
                if value == 0:
                    standing.lines.pop(resource, None)
                else:
                    standing.lines[resource] = seq
        yield
    kept_from = {number: standing.kept_from() for number, standing in standings.items()}
    standings.clear()
    at = 0
    while at < end:
        store.flush()
        rows = store.db.execute(_OLD, (at, SLICE_ROWS)).fetchall()
        gone = [row for row in rows if row[0] <= end and row[0] < kept_from.get(row[1], 0)]
        if gone:
            store.delete(
                [row[0] for row in gone], [(row[1], row[2]) for row in gone if not row[2] % MARK_EVERY], limit_ns
            )
        at = rows[-1][0] if rows else end
        yield


def _slices(db: sqlite3.Connection, limit_ns: int) -> Iterator[list[tuple[int, int, int, int, int, int, int, bytes]]]:
    """The rows before the limit, in the order of the journal: up to the first one behind it."""
    at = 0
    while rows := db.execute(_OLD, (at, SLICE_ROWS)).fetchall():
        before = next((index for index, row in enumerate(rows) if row[3] >= limit_ns), len(rows))
        yield rows[:before]
        if before < len(rows):
            return
        at = rows[-1][0]
