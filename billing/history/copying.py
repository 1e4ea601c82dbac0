"""A copy of one shard's history, made while its projector goes on writing.

SQLite's own online copy: what it holds is one state between two transactions. It may be ahead of the journal that is
copied beside it, and is cut back then; where it is behind, a projector catches up when it opens the file (see `store`).
Where there is no history yet, none is made.

The copy has an identity of its own (see `cursor`), because a daemon that is restored from it makes other entries from
there on than the one that goes on.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

from billing.follower.store import StoreError
from billing.history.store import Store
from shards.system.disk import Disk

PAGES_A_STEP = 1024  # between two steps the projector may write


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
