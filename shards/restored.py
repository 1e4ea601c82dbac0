"""Whether the data were restored from a backup, and nobody has said yet that the application may act on what was due.

Each host has a file for its workers, the mark; the application reads it at its start, writes into it when it first
served, and removes it at its release. Where a log is shared, the map's log has the same, so that a host which never
saw the backup has the mark, too, before its first worker starts:

    ["restored", taken_at_ns, first_served_ns, restored_at_ns]   by the restore, and again once a worker has served;
                                                                 first_served_ns 0: none has yet
    ["released", taken_at_ns]   it may act; every host removes its mark of this backup

A host that has had the mark keeps which backup it was of (`BROUGHT`), so that a mark that is gone was released there,
also where the host ended before it could say so.

The file `rewound` stays: it says when the data were put back to an earlier state for the last time, by a restore or by
the cut of a damaged tail. Numbers that the data gave out between that state and this instant are not known any more;
the application gives out new ones that cannot be among them. An operator who puts the data back in another way writes
the file.

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
REWOUND: Final = "rewound"  # a file in the data directory: wall time, in ns, as a decimal number
REWOUND_MIN_NS: Final = 10**18  # in 2001
FIRST_SERVED: Final = "first_served_ns"  # billing time when the restored daemon first came up


def check_restored(disk: Disk, data_dir: str) -> None:
    """Raises Unfit where a restore of this directory is under way, or was cut off, or nobody can tell when it was."""
    rewound_ns(disk, data_dir)
    path = f"{data_dir}/{RESTORING}"
    if not (disk.exists(path) and disk.listdir(path)):  # all of it is in its place: the directory itself is left
        path = data_dir.rstrip("/") + UNFINISHED
        is_empty = not disk.exists(data_dir) or not set(disk.listdir(data_dir)) - {LOST_AND_FOUND}
        if not (is_empty and disk.exists(path)):
            return
    text = "a backup is being restored, or its restore was cut off: once none runs, remove this and all that is in"
    raise Unfit(f"{text} {data_dir}, and restore again", file=path)


def rewound_ns(disk: Disk, data_dir: str) -> int:
    """When these data were put back to an earlier state for the last time, wall time; 0: never. Raises OSError; Unfit
    where the file does not say it, as where an operator wrote seconds.
    """
    path = f"{data_dir}/{REWOUND}"
    wall_ns = 0
    try:
        wall_ns = int(read_file(disk, path))
    except FileNotFoundError:
        return 0
    except ValueError:
        pass
    if wall_ns < REWOUND_MIN_NS:
        text = "this is no wall time in nanoseconds: write that of the latest restore of these data (date +%s%N)"
        raise Unfit(text, file=path)
    return wall_ns


def write_rewound(disk: Disk, data_dir: str, wall_ns: int) -> None:
    """Notes, durably, that these data were put back to an earlier state. Raises OSError."""
    write_file(disk, f"{data_dir}/{REWOUND}", b"%d\n" % wall_ns)


class Restored(NamedTuple):
    """What the map's log says. `taken_at_ns`: the instant of the backup; 0: nothing was restored. `restored_at_ns`:
    when it was restored, wall time.
    """

    taken_at_ns: int = 0
    first_served_ns: int = 0
    restored_at_ns: int = 0
    is_released: bool = False

    def record(self) -> list[Any]:
        """The record of the restore, without its release."""
        return ["restored", self.taken_at_ns, self.first_served_ns, self.restored_at_ns]

    def after(self, record: Any) -> Restored | None:
        """Returns what the log says with this record; None where the record is of another kind."""
        match record:
            case ["restored", int(taken_at_ns), int(first_served_ns), int(restored_at_ns)]:
                return Restored(taken_at_ns, first_served_ns, restored_at_ns)
            case ["released", int(taken_at_ns)]:
                return self._replace(is_released=True) if taken_at_ns == self.taken_at_ns else self
        return None

    def records(self) -> list[list[Any]]:
        """Records that stand for all records until now."""
        if not self.taken_at_ns:
            return []
        released = [["released", self.taken_at_ns]] if self.is_released else []
        return [self.record(), *released]


class Mark:
    """The mark in the data directory of this host."""

    def __init__(self, disk: Disk, data_dir: str) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._path = f"{data_dir}/{RESTORED}"
        self._brought_path = f"{data_dir}/{BROUGHT}"
        self._brought: int | None = None  # the backup of the mark that was here; 0: none was; None: not read yet

    def follow(self, restored: Restored) -> None:
        """Makes or removes the mark as the map's log says. Raises OSError and Unfit."""
        if not restored.taken_at_ns:
            return
        if rewound_ns(self._disk, self._data_dir) < restored.restored_at_ns:
            write_rewound(self._disk, self._data_dir, restored.restored_at_ns)
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
        return [restored._replace(first_served_ns=first_ns).record()] if first_ns else []

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(read_file(self._disk, self._path) or b"{}")
        except (ValueError, FileNotFoundError):
            return {}
        return content if isinstance(content, dict) else {}
