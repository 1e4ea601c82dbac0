"""Whether the data were restored from a backup, and nobody has said yet that the application may act on what was due.

Each host has a file for its workers, the mark; the application reads it at its start, writes into it when it first
served, and removes it at its release. Where a log is shared, the map's log has the same, so that a host which never
saw the backup has the mark, too, before its first worker starts:

    ["restored", taken_at_ns, first_served_ns]   by the restore, and again once a worker has served; 0: none has yet
    ["released", taken_at_ns]                    it may act; every host removes its mark of this backup

A host that has had the mark keeps which backup it was of (`BROUGHT`), so that a mark that is gone was released there,
also where the host ended before it could say so.

A restore that is under way, or was cut off, is known by the directory in which it makes the files (`RESTORING` within a
data directory, else one beside it). No daemon may begin there: it would begin without data. The one beside it counts
also where the data directory is there and empty, as systemd makes it before each start (`StateDirectory=`).
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final, NamedTuple

from shards.journal import Unfit
from shards.system.disk import LOST_AND_FOUND, Disk, read_file, write_file

UNFINISHED: Final = ".unfinished"  # behind the name of a directory that is being made
RESTORING: Final = f"restored{UNFINISHED}"  # a directory within a data directory that was there before its restore
RESTORED: Final = "restored"  # the mark's name in the data directory
TAKEN_AT: Final = "taken_at_ns"
BROUGHT: Final = "restored.brought"  # beside it: the backup of the mark that this host has had
FIRST_SERVED: Final = "first_served_ns"  # billing time when the restored daemon first came up


def check_restored(disk: Disk, data_dir: str) -> None:
    """Raises Unfit where a restore of this directory is under way, or was cut off."""
    path = f"{data_dir}/{RESTORING}"
    if not (disk.exists(path) and disk.listdir(path)):  # all of it is in its place: the directory itself is left
        path = data_dir.rstrip("/") + UNFINISHED
        is_empty = not disk.exists(data_dir) or not set(disk.listdir(data_dir)) - {LOST_AND_FOUND}
        if not (is_empty and disk.exists(path)):
            return
    text = "a backup is being restored, or its restore was cut off: once none runs, remove this and all that is in"
    raise Unfit(f"{text} {data_dir}, and restore again", file=path)


class Restored(NamedTuple):
    """What the map's log says. `taken_at_ns`: the instant of the backup; 0: nothing was restored."""

    taken_at_ns: int = 0
    first_served_ns: int = 0
    is_released: bool = False

    def after(self, record: Any) -> Restored | None:
        """Returns what the log says with this record; None where the record is of another kind."""
        match record:
            case ["restored", int(taken_at_ns), int(first_served_ns)]:
                return Restored(taken_at_ns, first_served_ns)
            case ["released", int(taken_at_ns)]:
                return self._replace(is_released=True) if taken_at_ns == self.taken_at_ns else self
        return None

    def records(self) -> list[list[Any]]:
        """Records that stand for all records until now."""
        if not self.taken_at_ns:
            return []
        released = [["released", self.taken_at_ns]] if self.is_released else []
        return [["restored", self.taken_at_ns, self.first_served_ns], *released]


class Mark:
    """The mark in the data directory of this host."""

    def __init__(self, disk: Disk, data_dir: str) -> None:
        self._disk = disk
        self._path = f"{data_dir}/{RESTORED}"
        self._brought_path = f"{data_dir}/{BROUGHT}"
        self._brought: int | None = None  # the backup of the mark that was here; 0: none was; None: not read yet

    def follow(self, restored: Restored) -> None:
        """Makes or removes the mark as the map's log says. Raises OSError."""
        if not restored.taken_at_ns:
            return
        is_there = self._disk.exists(self._path)
        if restored.is_released:
            if is_there and self._content().get(TAKEN_AT) == restored.taken_at_ns:
                self._disk.unlink(self._path)
        elif not is_there and not self._is_brought(restored):
            self._write(restored)
        elif is_there and restored.first_served_ns:  # it may have been made before any host had served
            content = self._content()
            if content.get(TAKEN_AT) == restored.taken_at_ns and FIRST_SERVED not in content:
                self._write(restored)
        if not self._is_brought(restored):  # behind the mark: where only this is there, the mark was released
            write_file(self._disk, self._brought_path, b"%d\n" % restored.taken_at_ns)
            self._brought = restored.taken_at_ns

    def _is_brought(self, restored: Restored) -> bool:
        if self._brought is None:
            self._brought = 0
            with contextlib.suppress(FileNotFoundError, ValueError):
                self._brought = int(read_file(self._disk, self._brought_path))
        return self._brought == restored.taken_at_ns

    def _write(self, restored: Restored) -> None:
        content = {TAKEN_AT: restored.taken_at_ns}
        if restored.first_served_ns:
            content[FIRST_SERVED] = restored.first_served_ns
        write_file(self._disk, self._path, json.dumps(content).encode())

    def news(self, restored: Restored) -> list[list[Any]]:
        """Returns the records that the map's log lacks by the mark of this host. Raises OSError."""
        if not restored.taken_at_ns or restored.is_released or not self._is_brought(restored):
            return []
        if not self._disk.exists(self._path):
            return [["released", restored.taken_at_ns]]
        first_ns = 0 if restored.first_served_ns else self._content().get(FIRST_SERVED, 0)
        return [["restored", restored.taken_at_ns, first_ns]] if first_ns else []

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(read_file(self._disk, self._path) or b"{}")
        except (ValueError, FileNotFoundError):
            return {}
        return content if isinstance(content, dict) else {}
