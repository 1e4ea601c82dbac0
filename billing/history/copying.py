"""A copy of one shard's history, made while its projector goes on writing.

SQLite's own online copy: what it holds is one state between two transactions. It may be ahead of the journal that is
copied beside it, and is cut back then (`copy_history`).

It may be behind as well: a projector is fed a little later than commands are answered, and may have been ended or
stopped; of a shard that another host serves, this one's file may not be there yet. The log holds what a projector has
not proved, but the journal in a backup begins behind a snapshot, so the copy takes the rest from the log itself and
ends with the journal's last batch (`copy_up_to`). What neither has any more is missing, and said to be, in every
answer.

The copy has an identity of its own (see `cursor`), because a daemon that is restored from it makes other entries from
there on than the one that goes on.
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
    """Copies the file `source` of a shard to `target`, which must not exist, and syncs it; False where there is none.
    `head`: the last batch of the journal beside the copy. Raises StoreError, OSError.
    """
    if not disk.exists(source):
        return False
    disk.close(disk.create(target))  # with this project's mode, before SQLite makes it with another
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
    """Makes the history of a shard in the directory `target`, out of the file in `source`, if there is one, and of the
    shard's log; False where the log is empty. `cut`: the shard and the last batch that counts; `is_shared` as
    `open_store` takes it; `renew` is called now and then. Raises StoreError, sqlite3.Error, JournalError, OSError.
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
