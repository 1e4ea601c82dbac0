"""Creates, opens and repairs the file of one shard's owed notices (`store`).

A shard's first file begins behind the journal's last batch: the URL in `notify.url` gets notices of events from then
on. Where several hosts share the log, the map holds the batch up to which everything was sent (`settled`), and a host
that takes over begins there: notices that were sent after the map was updated are sent again under the same ids.

A file that is missing or damaged is made anew as far as the journal reaches back: notices that were sent already are
sent again under the same ids. `begun-N`, a small file beside it, distinguishes a missing file from a first one.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any

from billing.follower.damage import AT_ONCE, rows_by_key
from billing.follower.store import ShardFile, StoreError, connect, file_of, make, make_of, opened
from billing.notices.store import ARRIVED, CLAIMED, DEPARTED, FOUND, INSERT, KIND, OWED, Store, is_signed, signed
from shards.system.disk import Disk, private_directory, read_file, write_file


def begun_of(directory: str, shard: int) -> str:
    """The path of the small file that records the batch behind which a shard's notices begin."""
    return f"{directory}/begun-{shard}"


def ensure_file(file: ShardFile, file_id: int, now_ns: int, begin: int | None = None) -> str:
    """Creates the file if there is none. A shard's first file begins behind the batch `begin`: the last batch that
    another host has settled, by default the journal's last. A missing file is made anew from the journal's first batch
    on. Returns a remark about that, or "". `file_id`: the identity of a new file; `now_ns`: wall time.
    """
    directory, shard, first, head, disk = file
    try:
        private_directory(disk, directory)
    except FileExistsError:  # another shard made it just now
        private_directory(disk, directory)
    path, begun = file.path, begun_of(directory, shard)
    if disk.exists(path):
        if not disk.exists(begun):  # made by an older version
            write_file(disk, begun, b"0")
        return ""
    position, made_ns, remark = head if begin is None else begin, 0, ""
    if disk.exists(begun):
        position, made_ns = max(first - 1, _begun(disk, begun)), now_ns
        remark = (
            f"its file is gone, and is made anew from batch {position + 1} on; what was told since may be told again"
        )
    else:
        write_file(disk, begun, b"%d" % position)
    make(path, KIND, disk, lambda db: _fill(db, shard, position, file_id, made_ns))
    return remark


def _begun(disk: Disk, path: str) -> int:
    with suppress(ValueError):
        return int(read_file(disk, path))
    return 0


def _fill(db: sqlite3.Connection, shard: int, position: int, file_id: int, made_ns: int) -> None:
    db.execute(FOUND, signed(shard, position, 0, file_id, made_ns))


def skip(directory: str, shard: int, settled: int, disk: Disk) -> bool:
    """Removes a file that ends before the batch `settled`, since another host has sent everything up to there. Returns
    whether it removed one.
    """
    path = file_of(directory, shard)
    if settled < 0 or not disk.exists(path):
        return False
    with suppress(StoreError, sqlite3.Error):
        db = connect(path, KIND)
        try:
            (position,) = db.execute("SELECT position FROM about").fetchone()
        finally:
            db.close()
        if position < settled:
            return abandon(directory, shard, disk)
    return False


def abandon(directory: str, shard: int, disk: Disk) -> bool:
    """Removes the file of a shard that sends no more notices; False where there was none."""
    path = file_of(directory, shard)
    if not disk.exists(path):
        return False
    for name in (path, f"{path}-wal", f"{path}-shm", begun_of(directory, shard)):
        if disk.exists(name):
            disk.unlink(name)
    return True


def rows_are_sound(db: sqlite3.Connection) -> bool:
    """Whether every row of a file of this version matches its checksum."""
    if db.execute("PRAGMA user_version").fetchone() != (KIND.version,):
        return True  # not all rows have a checksum
    tables = ("about", "owed", "departures", "arrivals", "claims")
    return all(is_signed(row) for table in tables for row in db.execute(f"SELECT * FROM {table}"))


def open_store(
    file: ShardFile, *, suspect: bool, file_id: int, now_ns: int, accept_loss: bool = False
) -> tuple[Store, list[str]]:
    """Opens the store of a shard and aligns it with its journal. Returns it, and remarks for the operator. A missing
    file is created (`ensure_file`); a damaged one, or one of an older version, is made anew from its sound rows, and is
    then fed from the journal. Raises StoreError (Ahead), Unproved, sqlite3.Error, OSError.
    """
    directory, shard, first, head, disk = file
    path = file.path
    remarks = []
    if remark := ensure_file(file, file_id, now_ns):
        remarks.append(remark)
    elif source := opened(path, KIND, disk, suspect, rows_are_sound):
        end = first - 1 if source != path else head  # a damaged file is made again as far as the journal reaches back
        made_ns = now_ns if source != path else 0
        remark = make_of(
            path,
            source,
            KIND,
            disk,
            lambda db: _salvage(db, source, shard, end, file_id, made_ns),
            lambda db: _fill(db, shard, first - 1, file_id, now_ns),
        )
        remarks += [remark] if remark else []
    store = Store(directory, shard, disk)
    remarks += store.settle(first, head, accept_loss=accept_loss)
    return store, remarks


def _salvage(db: sqlite3.Connection, source: str, shard: int, end: int, file_id: int, made_ns: int) -> str:
    """Fills `db` with the sound rows of `source` up to the batch `end`, or to its own end. Returns what came of it, as
    text.
    """
    old = connect(source, KIND, versions=(KIND.version, *KIND.older))
    salvaged = seq_max = 0
    try:
        (version,) = old.execute("PRAGMA user_version").fetchone()
        about = _numbers(old, "about", "position", version)
        position = min(end, about[0][0]) if about else end
        owed = f"SELECT {', '.join(OWED)}, {'0' if version == 1 else 'checksum'} FROM owed"
        for row in rows_by_key(old, owed, OWED[0]):
            if (version == 1 or is_signed(row)) and row[4] <= position:
                db.execute(INSERT.replace("INSERT", "INSERT OR IGNORE", 1), signed(*row[:-1]))
                salvaged, seq_max = salvaged + 1, max(seq_max, row[0])
        db.execute(FOUND, signed(shard, position, seq_max, file_id, made_ns))
        for departure in _numbers(old, "departures", "bucket_id, generation, position, pending", version):
            db.execute(DEPARTED, signed(*departure))
        for arrival in _numbers(old, "arrivals", "bucket_id, generation, position, pending, arrived_ns", version):
            db.execute(ARRIVED, signed(*arrival))
        if version > 1:
            for claim in _numbers(old, "claims", "bucket_id, file_id, seq, proved", version):
                db.execute(CLAIMED, signed(*claim))
    finally:
        old.close()
    return f"{salvaged} owed notices up to batch {position}, and of the journal behind it"


def _numbers(db: sqlite3.Connection, table: str, columns: str, version: int) -> list[tuple[int, ...]]:
    """Returns these columns of the sound rows of a table of integers. Columns that version 1 did not have are 0. Rows
    of versions 1 and 2 have no checksum, and are sound if all values are integers.
    """
    names = [name.strip() for name in columns.split(",")]
    present = [name for (name,) in _readable(db, f"SELECT name FROM pragma_table_info('{table}')")]
    rows = []
    for row in _readable(db, f"SELECT * FROM {table}"):
        if all(type(value) is int for value in row) and (version < KIND.version or is_signed(row)):
            by_name = dict(zip(present, row, strict=True))
            rows.append(tuple(by_name.get(name, 0) for name in names))
    return rows


def _readable(db: sqlite3.Connection, query: str) -> list[Any]:
    """Returns the rows of a small table up to the first page that cannot be read."""
    rows: list[Any] = []
    with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
        while found := db.execute(f"{query} LIMIT {AT_ONCE} OFFSET {len(rows)}").fetchall():
            rows += found
    with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
        while found := db.execute(f"{query} LIMIT 1 OFFSET {len(rows)}").fetchall():
            rows += found
    return rows
