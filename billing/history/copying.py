"""Copies the history of one shard while its projector goes on writing.

SQLite's online backup makes the copy: it holds one state between two transactions. It may be ahead of the journal that
is copied beside it, and is then cut back (`copy_history`).

It may also be behind: a projector is fed a little later than commands are answered, and may not be running; and of a
shard that another host serves, this host's file may not exist yet. The log holds whatever a projector has not proved,
but the journal in a backup begins behind a snapshot. So the copy takes the rest from the log itself, and ends with the
journal's last batch (`copy_up_to`). Batches that neither file nor log has are missing, and every answer reports that.

The copy gets its own identity (see `cursor`), because a daemon that is restored from it writes other entries from there
on than the one that goes on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from urllib.parse import quote

from billing.follower.store import ShardFile, StoreError, file_of
from billing.history.store import Store, open_store
from shards.journal import Reader
from shards.system.disk import Disk

PAGES_A_STEP = 1024  # between two steps the projector may write
ROWS_AT_ONCE = 20_000


def copy_history(disk: Disk, source: str, target: str, shard: int, head: int) -> bool:
    """Copies the file `source` of a shard to `target`, which must not exist, and syncs it. Returns False where there is
    no such file. `head`: the last batch of the journal beside the copy. Raises StoreError, OSError.
    """
    if not disk.exists(source):
        return False
    disk.close(disk.create(target))  # with this project's file mode, before SQLite creates it with another
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(source)}?mode=ro", uri=True)) as origin,
            closing(sqlite3.connect(target)) as copy,
        ):
            origin.backup(copy, pages=PAGES_A_STEP)
        store = Store(target, shard, disk)
        store.cut_back_to(head)
        store.take_identity()
        store.close()
    except sqlite3.Error as error:
        raise StoreError(f"{source} cannot be copied: {error}") from error
    handle = disk.open(target, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    return True


def copy_up_to(
    disk: Disk,
    source: str,
    target: str,
    reader: Reader,
    cut: tuple[int, int],
    is_shared: bool,
    renew: Callable[[], None],
) -> bool:
    """Makes the history of a shard in the directory `target`, from its file in `source`, if there is one, and from the
    shard's log. Returns False where the log is empty. `cut`: the shard and the last batch to include; `is_shared`: see
    `open_store`; `renew` is called after each `ROWS_AT_ONCE` rows. Raises StoreError, sqlite3.Error, JournalError,
    OSError.
    """
    shard, position = cut
    if not position:
        return False
    copy_history(disk, file_of(source, shard), file_of(target, shard), shard, position)
    file = ShardFile(target, shard, reader.first, position, disk)
    store, _ = open_store(file, suspect=False, is_shared=is_shared)
    if store.position < position:
        for at, payload in reader.replay(store.position + 1):
            store.take(at, payload)
            if store.rows_open >= ROWS_AT_ONCE:
                store.flush()
                renew()
            if at == position:
                break
    store.close()
    handle = disk.open(file.path, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    return True
