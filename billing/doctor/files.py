"""Reads one file by offset, ahead, however large the file is. The readers of this room use it.

It opens the file for reading only, and keeps at most one piece of the file, or what was asked for, in memory. A file of
SQLite that another process keeps locked cannot be read and proves nothing (`InUse`).
"""

from __future__ import annotations

from types import TracebackType

from shards.system.disk import Disk

PIECE_BYTES = 1 << 20
_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")


class InUse(Exception):
    """Another process keeps a file locked."""


def check_free(error: Exception, path: str) -> None:
    """Raises InUse where this error of SQLite says that another process keeps the file locked."""
    if getattr(error, "sqlite_errorname", "").startswith(_LOCKED):
        text = f"another process keeps {path} locked ({error}); it may be left of a daemon"
        raise InUse(f"{text}. `fuser -v {path}` names it: end it, or look at a copy") from None


class File:
    """A file opened for reading. Every method raises OSError if the file cannot be read: a failed read is never taken
    for the end of the data.
    """

    def __init__(self, disk: Disk, path: str) -> None:
        self.path = path
        self._disk = disk
        self._handle = disk.open(path)
        self.size = disk.size(self._handle)
        self._start = 0
        self._piece = b""

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only at the end of the file."""
        start = offset - self._start
        if start >= 0 and start + length <= len(self._piece):
            return self._piece[start : start + length]
        wanted = max(0, min(max(length, PIECE_BYTES), self.size - offset))
        parts = []
        got = 0
        while got < wanted:
            part = self._disk.pread(self._handle, wanted - got, offset + got)
            if not part:
                break
            parts.append(part)
            got += len(part)
        self._start, self._piece = offset, b"".join(parts)
        return self._piece[:length]

    def used_end(self, start: int) -> int:
        """The offset behind the last byte at or after `start` that is not zero; `start` if all are zero."""
        end = start
        for offset in range(start, self.size, PIECE_BYTES):
            used = len(self.at(offset, PIECE_BYTES).rstrip(b"\0"))
            if used:
                end = offset + used
        return end

    def find(self, pattern: bytes, start: int) -> int:
        """The first offset at or after `start` at which the pattern begins; -1 if it does not occur."""
        overlap = len(pattern) - 1
        offset = start
        while offset < self.size:
            index = self.at(offset, PIECE_BYTES).find(pattern)
            if index >= 0:
                return offset + index
            offset += PIECE_BYTES - overlap
        return -1

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._handle >= 0:
            self._disk.close(self._handle)
            self._handle = -1

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
