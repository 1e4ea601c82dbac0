"""The files of the operators' record: see `billing.audit`."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

from shards.system.disk import Disk, private_directory, read_file, write_all

FILE_BYTES_MAX: Final = 1 << 20
FILES_KEPT: Final = 16  # per process, beside the one being written
DIRECTORY: Final = "audit"

Record = dict[str, Any]


class Trail:
    """The file that one process appends to. Its methods wait for the disk."""

    def __init__(self, disk: Disk, directory: str, name: str) -> None:
        """`directory`: holds the files of all processes; created with the first record. `name`: of this process."""
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
        if self._size and disk.pread(self._handle, 1, self._size - 1) != b"\n":  # its writer was killed
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
    """Returns the numbers of a process's rotated files, ascending."""
    numbers = [
        text.removeprefix(f"{name}.").removesuffix(".jsonl")
        for text in disk.listdir(directory)
        if text.startswith(f"{name}.") and text.endswith(".jsonl")
    ]
    return sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())


def copy_trails(disk: Disk, source: str, target: str) -> list[str]:
    """Copies the files of all processes from one directory to another, which must exist; each process's files as of one
    moment. Returns their names. Records written meanwhile are not in the copy. Raises OSError.
    """
    names = sorted({name.split(".")[0] for name in disk.listdir(source) if name.endswith(".jsonl")})
    return [file for name in names for file in _copy_of_one(disk, source, target, name)]


def _copy_of_one(disk: Disk, source: str, target: str, name: str) -> list[str]:
    """Copies the files of one process. Reads them again if one was rotated meanwhile."""
    while True:
        numbers = numbered(disk, source, name)
        contents = {}
        for file in [f"{name}.{number}.jsonl" for number in numbers] + [f"{name}.jsonl"]:
            with contextlib.suppress(FileNotFoundError):
                contents[file] = read_file(disk, f"{source}/{file}")
        if numbered(disk, source, name) == numbers:
            break
    for file, data in contents.items():
        handle = disk.create(f"{target}/{file}")
        try:
            write_all(disk, handle, data[: data.rfind(b"\n") + 1], 0)
            disk.fsync(handle)
        finally:
            disk.close(handle)
    return list(contents)
