"""The files of the operators' record: see `billing.audit`."""

from __future__ import annotations

import json
from typing import Any, Final

from shards.system.disk import Disk, private_directory, read_all, write_all

FILE_BYTES_MAX: Final = 1 << 20
FILES_KEPT: Final = 16  # of each process, beside the one that is written
DIRECTORY: Final = "audit"

Record = dict[str, Any]


class Trail:
    """The file that one process appends to. It waits for the disk."""

    def __init__(self, disk: Disk, directory: str, name: str) -> None:
        """`directory`: of all files; made with the first record. `name`: of this process."""
        self._disk = disk
        self._directory = directory
        self._name = name
        self._path = f"{directory}/{name}.jsonl"
        self._handle = -1
        self._size = 0

    def append(self, record: Record) -> None:
        """Writes a record, durably. Raises OSError, DirectoryRefused."""
        if self._handle >= 0 and self._size >= FILE_BYTES_MAX:
            self._rotate()
        if self._handle < 0:
            self._open()
        data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
        write_all(self._disk, self._handle, data, self._size)
        self._disk.fsync(self._handle)
        self._size += len(data)

    def _open(self) -> None:
        disk = self._disk
        try:
            private_directory(disk, self._directory)
        except FileExistsError:  # another process made it just now
            private_directory(disk, self._directory)
        if not disk.exists(self._path):
            self._handle = disk.create(self._path)
            disk.fsync_dir(self._directory)
            return
        self._handle = disk.open(self._path, write=True)
        self._size = disk.size(self._handle)
        if self._size and disk.pread(self._handle, 1, self._size - 1) != b"\n":  # its writer was killed within a line
            write_all(disk, self._handle, b"\n", self._size)
            self._size += 1

    def _rotate(self) -> None:
        disk = self._disk
        disk.close(self._handle)
        self._handle, self._size = -1, 0
        numbers = numbered(disk, self._directory, self._name)
        disk.rename(self._path, f"{self._directory}/{self._name}.{max(numbers, default=0) + 1}.jsonl")
        for number in numbers[: max(0, len(numbers) + 1 - FILES_KEPT)]:
            disk.unlink(f"{self._directory}/{self._name}.{number}.jsonl")
        disk.fsync_dir(self._directory)

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            self._disk.close(self._handle)
            self._handle = -1


def numbered(disk: Disk, directory: str, name: str) -> list[int]:
    """The numbers of the files of a process that were ended, ascending."""
    found = [
        text.removeprefix(f"{name}.").removesuffix(".jsonl")
        for text in disk.listdir(directory)
        if text.startswith(f"{name}.") and text.endswith(".jsonl")
    ]
    return sorted(int(number) for number in found if number.isascii() and number.isdecimal())


def read_trails(disk: Disk, directory: str) -> tuple[list[Record], list[str]]:
    """All records of all processes, oldest first, and what of them cannot be read."""
    records: list[Record] = []
    faults = []
    names = disk.listdir(directory) if disk.exists(directory) else []
    for name in sorted(name for name in names if name.endswith(".jsonl")):
        try:
            handle = disk.open(f"{directory}/{name}")
        except FileNotFoundError:  # it got its number just now: it is read under that, or was read
            continue
        try:
            lines = read_all(disk, handle).splitlines()
        finally:
            disk.close(handle)
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                records.append({key: record[key] for key in ("at_ns", "actor", "act", "details")})
            except (ValueError, KeyError, TypeError):
                faults.append(f"{directory}/{name}:{number} is no record")
    records.sort(key=lambda record: int(record["at_ns"]))
    return records, faults
