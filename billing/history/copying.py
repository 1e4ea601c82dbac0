"""A copy of one shard's history, made while its projector goes on writing.

SQLite's own online copy: what it holds is one state between two transactions. It may be ahead of the journal that is
copied beside it, and is cut back then; where it is behind, a projector catches up when it opens the file (see `store`).
Where there is no history yet, none is made.

Of a shard that another host serves, this one's file may be behind, or not be there yet: the copy is made of that and of
the log (`copy_elsewhere`). What neither has any more is missing, and said to be, in every answer.

The copy has an identity of its own (see `cursor`), because a daemon that is restored from it makes other entries from
there on than the one that goes on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any
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


def copy_elsewhere(
    disk: Disk, source: str, target: str, reader: Reader, row: Mapping[str, Any], renew: Callable[[], None]
) -> bool:
    """Makes the history of a shard that another host serves in the directory `target`, out of what is in `source` and
    of its log up to a batch; False where there is none. `row`: `shard_id` and `position`; `renew` is called now and
    then. Raises StoreError, sqlite3.Error, JournalError, OSError.
    """
    shard, position = row["shard_id"], row["position"]
    if not position:
        return False
    copy_history(disk, file_of(source, shard), file_of(target, shard), shard, position)
    file = ShardFile(target, shard, reader.first, position, disk)
    store, _ = open_store(file, suspect=False, is_shared=True)
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
