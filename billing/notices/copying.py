"""A copy of the notices that all shards still owe, for a backup, made while their notifiers go on.

**As of one instant.** The copy of a shard's file ends with the batch at which the backup cuts its journal: notices of
later batches are removed from it, and batches that the notifier had not taken yet are read from the journal. So the
copy needs nothing of the journal beside it. Notices that were acknowledged before the copy was made are not owed in it.
A daemon that is restored from it sends those acknowledged later again, under the same ids.

**All files together.** A notice whose bucket has moved is copied from one shard's file into another's; once the other
file is proved, the notice is deleted from the first. Files that are read one after the other might hold it in neither.
So all files are held by read transactions before the first is copied: what is written to a file with a reader cannot be
proved, and nothing is deleted before it is proved elsewhere.

**A shard that another host serves** has no file here. Its copy begins behind the batch up to which that host is known
to have sent everything, and takes all later batches of the log: some of their notices were sent already. Where no such
batch is known, as for a shard that has just begun to be served, and this host sends notices, the copy takes everything
that the log holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Final, NamedTuple

from billing.follower.store import ShardFile, StoreError, connect, file_of
from billing.notices.opening import begun_of, ensure_file, open_store
from billing.notices.store import KIND, Store
from shards.journal import Reader
from shards.system.disk import Disk, private_directory, read_file, write_file

PAGES_A_STEP: Final = 1024
ROWS_AT_ONCE: Final = 20_000


class CutShard(NamedTuple):
    """A shard whose journal is cut for a backup."""

    shard: int
    position: int  # the journal's last batch
    is_here: bool  # this host serves it
    settled: int  # the batch up to which other hosts are known to have sent everything; −1: none is known


class BackupCut(NamedTuple):
    """The instant of a backup, at which the journals of all shards are cut. No bucket moves until the backup
    has ended.
    """

    at_ns: int  # wall time
    shards: Sequence[CutShard]
    reader_of: Callable[[int], Reader]  # opens a shard's journal
    is_apart: bool  # several hosts serve: files of shards may be on other hosts


class Copied(NamedTuple):
    """The copy of one shard's notices."""

    shard: int
    owed: int
    settled: int  # see `Store.settled`
    names: list[str]  # names of the files made
    remarks: list[str]  # for the operator


def copy_notices(
    disk: Disk, source: str, target: str, cut: BackupCut, file_id: Callable[[], int], renew: Callable[[], None]
) -> list[Copied]:
    """Copies the files in `source` to the directory `target`, and syncs them; no file for a shard that sends no
    notices. `target` is created if there is anything to copy. `file_id` makes identities of files, 62 random bits each;
    `renew` is called now and then. Raises StoreError, Unproved, JournalError, OSError.
    """
    copied = []
    try:
        with ExitStack() as stack:
            opened: dict[int, sqlite3.Connection] = {}
            for shard in cut.shards:
                if shard.is_here and disk.exists(file_of(source, shard.shard)):
                    opened[shard.shard] = stack.enter_context(closing(_held(file_of(source, shard.shard))))
            to_copy = [
                shard
                for shard in cut.shards
                if shard.shard in opened or (not shard.is_here and (opened or shard.settled >= 0))
            ]
            if to_copy:
                private_directory(disk, target)
            for number, position, _, settled in to_copy:
                with closing(cut.reader_of(number)) as reader:
                    file = ShardFile(target, number, reader.first, position, disk)
                    if number in opened:
                        _copy(opened[number], source, file, renew)
                    else:
                        begin = min(settled if settled >= 0 else reader.first - 1, position)
                        ensure_file(file, file_id(), cut.at_ns, begin)
                    copied.append(_brought_up(file, file_id(), cut, reader, renew))
    except sqlite3.Error as error:
        raise StoreError(f"the notices in {source} cannot be copied: {error}") from error
    if copied:
        disk.fsync_dir(target)
    return copied


def _held(path: str) -> sqlite3.Connection:
    """Returns a connection that sees the present state of the file as long as it is open."""
    db = connect(path, KIND)
    try:
        db.execute("BEGIN")
        db.execute("SELECT position FROM about").fetchone()  # SQLite takes a transaction's snapshot at its first query
    except BaseException:
        db.close()
        raise
    return db


def _copy(db: sqlite3.Connection, source: str, file: ShardFile, renew: Callable[[], None]) -> None:
    """Copies the database of a connection, without the notices of batches behind the cut."""
    target, shard, _, position, disk = file
    if disk.exists(begun_of(source, shard)):
        write_file(disk, begun_of(target, shard), read_file(disk, begun_of(source, shard)))
    path = file.path
    disk.close(disk.create(path))  # with this project's file mode, before SQLite creates it with another
    with closing(sqlite3.connect(path)) as copy:
        db.backup(copy, pages=PAGES_A_STEP, progress=lambda status, remaining, total: renew())
    store = Store(target, shard, disk)
    store.cut_back_to(position)
    store.close()


def _brought_up(file: ShardFile, file_id: int, cut: BackupCut, reader: Reader, renew: Callable[[], None]) -> Copied:
    """Takes the batches up to the cut, and makes the file durable."""
    store, remarks = open_store(file, suspect=False, file_id=file_id, now_ns=cut.at_ns)
    store.is_apart = cut.is_apart
    if store.position < file.head:
        for position, payload in reader.replay(store.position + 1):
            store.take(position, payload, cut.at_ns)
            if store.changes >= ROWS_AT_ONCE:
                store.flush()
                renew()
            if position == file.head:
                break
        store.flush()
    owed, settled = store.owed(), store.settled()
    store.close()
    path, disk = file.path, file.disk
    handle = disk.open(path, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    paths = (path, begun_of(file.directory, file.shard))
    return Copied(file.shard, owed, settled, [path.rpartition("/")[2] for path in paths if disk.exists(path)], remarks)
