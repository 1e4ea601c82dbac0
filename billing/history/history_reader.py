"""An account's rows out of all files of a directory: its shard's own, and those of shards its bucket was at before.

The rows of one file are a chain, newest first; those of several are merged by entry_id, which rises for an account
wherever it is. The own file is read through its writer's connection, so all that was handed over before the question is
seen. The others are fed by other processes, maybe later; that they have all there is to know of a bucket they prove by
its departures: ownership passed from generation to generation, one at a time, so once the departures of all generations
before the present one are there, so is every row made under them (`missing`).

It only reads. A file of another shard is opened when it is first seen, and let go when its name is gone.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from billing.history.store import PLACE, connect
from billing.ledger.commands import NAMES
from billing.ledger.entry import text
from shards.system.disk import Disk

_ROW: Final = "entry_id, at_ns, operation, amount, accrued, balance, message, request_id"
_CHAIN: Final = f"""
    WITH RECURSIVE chain(older, {_ROW}) AS (
        SELECT older, {_ROW} FROM entries WHERE seq = ?
        UNION ALL
        SELECT e.older, {", ".join("e." + name for name in _ROW.split(", "))}
        FROM chain JOIN entries AS e ON e.seq = chain.older)
    SELECT {_ROW} FROM chain WHERE entry_id < ? LIMIT ?"""
_FROM_MARK: Final = "SELECT seq FROM marks WHERE number = ? AND entry_id >= ? ORDER BY entry_id LIMIT 1"

Row = tuple[int, int, int, int, int, int, bytes | None, bytes | None]  # in the order of `_ROW`; accrued as stored


def rows_of(db: sqlite3.Connection, user_id: bytes, before: int, limit: int) -> list[Row]:
    """At most `limit` rows of an account in one file with an entry_id below `before`, newest first.

    Walks at most `projection.MARK_EVERY` rows beside those it returns.
    """
    found = db.execute(PLACE, (user_id,)).fetchone()
    if found is None:
        return []
    number, newest = found
    mark = db.execute(_FROM_MARK, (number, before)).fetchone()
    rows: list[Row] = db.execute(_CHAIN, (newest if mark is None else mark[0], before, limit)).fetchall()
    return rows


def as_map(row: Row) -> dict[str, object]:
    """The row as `history` answers it; the same as `entry.history_row` makes of the entry."""
    entry_id, at_ns, operation, amount, accrued, balance, message, request_id = row
    return {
        "entry_id": entry_id,
        "at_ns": at_ns,
        "operation": NAMES[operation],
        "amount_nanos": amount,
        "accrued_nanos": accrued if accrued >= 0 else accrued + (1 << 64),
        "balance_before_nanos": balance - amount,
        "balance_after_nanos": balance,
        "message": text(message) if message else "",
        "request_id": text(request_id) if request_id else None,
    }


def shard_files(directory: str, disk: Disk) -> dict[str, str]:
    """name -> path of all history files in a directory."""
    return {
        name: f"{directory}/{name}"
        for name in disk.listdir(directory)
        if name.startswith("shard-") and name.endswith(".sqlite")
    }


class HistoryReader:
    """All files of one directory, read from the process that writes one of them."""

    def __init__(self, directory: str, own_name: str, own: sqlite3.Connection, disk: Disk) -> None:
        """own_name: the file that `own` is connected to."""
        self._directory = directory
        self._own_name = own_name
        self._own = own
        self._disk = disk
        self._others: dict[str, sqlite3.Connection] = {}
        self._whole: dict[int, int] = {}  # bucket id -> generation up to which nothing is missing

    def _connections(self) -> list[sqlite3.Connection]:
        """The own file and those of others as they are now. Raises sqlite3.Error, HistoryError, OSError."""
        files = shard_files(self._directory, self._disk)
        files.pop(self._own_name, None)
        for name in self._others.keys() - files.keys():
            self._others.pop(name).close()
        for name in files.keys() - self._others.keys():
            self._others[name] = connect(files[name])
        return [self._own, *self._others.values()]

    def missing(self, bucket_id: int, generation: int) -> list[int]:
        """The generations before this one whose rows may not all be in the files yet; empty when nothing is missing."""
        if generation <= self._whole.get(bucket_id, 1):
            return []
        departed = {
            departure
            for db in self._connections()
            for (departure,) in db.execute("SELECT generation FROM departures WHERE bucket_id = ?", (bucket_id,))
        }
        missing = [former for former in range(1, generation) if former not in departed]
        if not missing:
            self._whole[bucket_id] = generation
        return missing

    def history(self, generation: int, user_id: bytes, before: int, limit: int) -> list[dict[str, object]]:
        """The account's rows below `before`, newest first, at most `limit`, as `history` answers them. A bucket of the
        first generation was never elsewhere: then only the own file is read, whatever became of others.
        """
        rows: list[Row] = []
        for db in [self._own] if generation <= 1 else self._connections():
            rows += rows_of(db, user_id, before, limit)
        rows.sort(reverse=True, key=lambda row: row[0])
        return [as_map(row) for row in rows[:limit]]

    def close(self) -> None:
        """Closes the other files."""
        for db in self._others.values():
            db.close()
        self._others.clear()
