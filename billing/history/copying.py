"""A copy of one shard's history, made while its projector goes on writing.

SQLite's own online copy: what it holds is one state between two transactions. It may be ahead of the journal that is
copied beside it, or behind; a projector cuts back or catches up when it opens the file (see `store`), so the two need
no common instant. Where there is no history yet, none is made.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

from billing.history.store import HistoryError
from shards.system.disk import Disk

PAGES_A_STEP = 1024  # between two steps the projector may write


def copy_history(disk: Disk, source: str, target: str) -> bool:
    """Copies the file `source` to `target`, which must not exist, and syncs it; False where there is none. Raises
    HistoryError, OSError.
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
    except sqlite3.Error as error:
        raise HistoryError(f"{source} cannot be copied: {error}") from error
    handle = disk.open(target, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    return True
