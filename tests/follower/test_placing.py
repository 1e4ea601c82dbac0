"""A new file takes its name with nothing beside it that is another file's, whenever the power goes."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from billing.follower.store import Kind, make
from shards.system.disk import RealDisk

KIND = Kind("rows", application_id=1, version=1, older=(), schema=("CREATE TABLE rows (text TEXT NOT NULL)",))


class PowerLost(Exception):
    pass


class Failing(RealDisk):
    """A disk that is gone after so many changes of its directory."""

    def __init__(self, steps_left: int) -> None:
        self.steps_left = steps_left

    def _counted(self) -> None:
        if self.steps_left == 0:
            raise PowerLost
        self.steps_left -= 1

    def rename(self, source: str, target: str) -> None:
        self._counted()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._counted()
        super().unlink(path)


def filled(path: Path, value: str, disk: RealDisk) -> None:
    def fill(db: sqlite3.Connection) -> None:
        db.executemany("INSERT INTO rows VALUES (?)", [(value * 100,)] * 1000)

    make(str(path), KIND, disk, fill)


def values_in(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {text[0] for (text,) in db.execute("SELECT text FROM rows")}


@pytest.mark.parametrize("changes", range(6))
def test_a_log_that_a_file_left_behind_is_never_that_of_the_file_made_in_its_place(
    data_dir: Path, changes: int
) -> None:
    path, log = data_dir / "rows.sqlite", data_dir / "rows.sqlite-wal"
    filled(path, "a", RealDisk())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:  # killed with a log: the log is kept aside
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA synchronous = OFF")  # the same log, without three thousand waits for the disk
        db.executemany("INSERT INTO rows VALUES (?)", [("b" * 100,)] * 3000)
        shutil.copy(log, data_dir / "kept")
    path.unlink()  # somebody moved it away, and not what stood beside it
    shutil.copy(data_dir / "kept", log)
    try:
        filled(path, "c", Failing(changes))
    except PowerLost:
        pass
    else:
        assert changes > 0
    if path.exists():
        assert values_in(path) == {"c"}
