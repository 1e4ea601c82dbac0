"""A copy of what all shards still have to tell, for a backup, made while their notifiers go on.

**As of one instant.** The copy of a shard's file ends with the batch at which the backup cuts its journal: what came
behind that is taken out again, and what the notifier had not taken yet is read from the journal. So the copy needs
nothing of the journal beside it. What was told before the copy was made is not owed in it; what is told later is told
again by a daemon that is restored from it, under the same id.

**All files together.** A notice whose bucket has moved is copied from one shard's file into another's, which proves
that, and then it is deleted in the first. Files that are read one after the other might hold it in neither. So all are
held as they are before the first is copied: what is written into a file that a reader holds cannot be proved, and what
is not proved is deleted nowhere.

**Of a shard that another host serves** there is no file here. Its copy begins behind the batch up to which that host is
known to have told everything, and takes what the log holds since: some of it was told already. Where nothing is known
of that, as of a shard that has just begun to be served, and this host tells notices, it takes all that the log holds.
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
    position: int  # its last batch
    is_here: bool  # this host serves it
    settled: int  # the batch up to which other hosts are known to have told everything; −1: none is


class BackupCut(NamedTuple):
    """The instant of a backup, at which the journals of all shards are cut. No bucket moves until it is over."""

    at_ns: int  # wall time
    shards: Sequence[CutShard]
    reader_of: Callable[[int], Reader]  # of a shard's journal
    is_apart: bool  # several hosts serve, so that files of shards may be other hosts'


class Copied(NamedTuple):
    """What became of the notices of a shard."""

    shard: int
    owed: int
    settled: int  # as `Store.settled`
    names: list[str]  # of the files made
    remarks: list[str]  # for the operator


def copy_notices(
    disk: Disk, source: str, target: str, cut: BackupCut, file_id: Callable[[], int], renew: Callable[[], None]
) -> list[Copied]:
    """Copies the files in `source` to the directory `target`, which is made where there is anything to copy, and syncs
    them; nothing of a shard that has nobody to tell. `file_id` makes names of files, 62 random bits each; `renew` is
    called now and then. Raises StoreError, Unproved, JournalError, OSError.
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
    """A connection that sees the file as it is now, for as long as it is open."""
    db = connect(path, KIND)
    try:
        db.execute("BEGIN")
        db.execute("SELECT position FROM about").fetchone()  # a transaction begins to see with its first query
    except BaseException:
        db.close()
        raise
    return db


def _copy(db: sqlite3.Connection, source: str, file: ShardFile, renew: Callable[[], None]) -> None:
    """Copies what a connection sees, without what came behind the cut."""
    target, shard, _, position, disk = file
    if disk.exists(begun_of(source, shard)):
        write_file(disk, begun_of(target, shard), read_file(disk, begun_of(source, shard)))
    path = file.path
    disk.close(disk.create(path))  # with this project's mode, before SQLite makes it with another
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
