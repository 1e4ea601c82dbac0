"""The files of followers on a medium that fails: real SQLite files, and what a fault leaves of them.

SQLite reaches its files by itself, so they are real ones, best in a memory directory; what a medium would hold of them
is kept beside. Write-back of a file, and of its log, may fail without a word (`FailingDisk.fail`): from then on reads
see what was written, and the medium keeps what it had. It may fail aloud (`Files.fails_aloud`): in the middle of the
next checkpoint the system refuses a write, which SQLite takes for an error of the disk, and of the pages written before
it the medium lacks what it likes, whatever reads see. Where a process ends (`Files.let_go`), its file is as memory has
it, or as the medium has it where memory is forgotten, too; where the power goes, of what was not synced any 512 bytes
may be missing; where it goes in the middle of a checkpoint (`Files.tear_checkpoint`), that holds for the file itself.

What is synced: the file at each checkpoint, the log as it was when the last checkpoint began (`log_is_synced`).
"""

from __future__ import annotations

import os
import random
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from billing.follower.store import FollowerStore
from shards.system.disk import RealDisk

T = TypeVar("T")

SECTOR_BYTES: Final = 512  # what the medium writes whole, or not at all
LOG_HEADER_BYTES: Final = 32  # of a write-ahead log
PAGE_BYTES: Final = 4096
MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a directory in memory, as `tempfile` takes it


class FailingDisk(RealDisk):
    """A disk whose write-back fails for some files, without a word: reads see what was written, the medium does not.

    It is a file that fails, not a name: the file that is put in its place is another one.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}  # path -> what the medium has

    def fail(self, *paths: str) -> None:
        for path in paths:
            if os.path.exists(path):
                self.kept.setdefault(path, Path(path).read_bytes())

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        if path in self.kept:
            return self.kept[path][offset : offset + length]
        return super().read_medium(path, offset, length)

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        self.kept.pop(target, None)
        if source in self.kept:
            self.kept[target] = self.kept.pop(source)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.kept.pop(path, None)

    def content(self, path: str) -> bytes | None:
        """What is there of a file once nothing of it is in memory any more; None where it is not there."""
        if path in self.kept:
            return self.kept.pop(path)
        return read(path)


class Files:
    """The file of one follower and its write-ahead log."""

    def __init__(self, path: str, disk: FailingDisk, rng: random.Random) -> None:
        self.path = path
        self.log_path = f"{path}-wal"
        self._disk = disk
        self._rng = rng
        self._synced_log = b""  # the log as the medium has it
        self.fails_aloud = False  # the next checkpoint does

    def log_is_synced(self) -> None:
        """The log is on the medium as it is now."""
        self._synced_log = read(self.log_path) or b""

    def fail(self) -> None:
        """From now on nothing that is written to the file, and maybe to its log, comes to the medium."""
        log = [self.log_path] if self._rng.random() < 0.5 else []
        self._disk.fail(self.path, *log)

    def checkpoint(self, work: Callable[[], T]) -> T:
        """What comes of `work`, which commits and makes durable: well, or with an error of the disk amid it.
        Raises what `work` raises.
        """
        if not self.fails_aloud:
            try:
                return work()
            finally:
                self.log_is_synced()
        self.fails_aloud = False
        content_before, identity = read(self.path), self._identity()
        size = max(len(read(name) or b"") for name in (self.path, self.log_path))
        try:
            with _writes_refused_from(self._rng.randrange(size + 1)):
                result = work()
        except BaseException:
            content_after = read(self.path)
            if (
                content_before is not None
                and content_after is not None
                and content_after != content_before
                and self._identity() == identity
            ):
                self.log_is_synced()  # SQLite does that before it touches the file
                self._disk.kept.setdefault(self.path, _whole_pages(self._torn(content_before, content_after)))
            raise
        self.log_is_synced()
        return result

    def _identity(self) -> int:
        """Which file stands under the name; 0: none."""
        return os.stat(self.path).st_ino if os.path.exists(self.path) else 0

    def let_go(self, db: sqlite3.Connection | None, *, forgets: bool, power: bool = False) -> None:
        """The process that had `db` open has ended, without closing it. `forgets`: what the medium does not hold is
        gone from memory as well; with `power`, so is what was not synced.
        """
        names = self.path, self.log_path
        images = {name: self._disk.content(name) if forgets else read(name) for name in names}
        if db is not None:
            db.close()  # which lets SQLite write: the files are put back as they were
        if power and (log := images[self.log_path]):
            images[self.log_path] = self._torn(_with_header(self._synced_log, log), log)
        for name in (*names, f"{self.path}-shm"):
            if os.path.exists(name):
                os.unlink(name)
            if (image := images.get(name)) is not None:
                _write(name, image)

    def tear_checkpoint(self, store: FollowerStore) -> bool:
        """The process of `store` has ended, and the power goes, while pages were copied from a log that was synced into
        the file; False where nothing was done, since what is on the medium is known of whole files only. The caller
        lets the power go for all files next. Raises what a checkpoint does.
        """
        if self._disk.kept:
            return False
        content_before, log = Path(self.path).read_bytes(), read(self.log_path) or b""
        store.checkpoint()
        content_after = Path(self.path).read_bytes()
        self.let_go(store.db, forgets=False)
        Path(self.path).write_bytes(_whole_pages(self._torn(content_before, content_after)))
        _write(self.log_path, log)
        self._synced_log = log
        return True

    def _torn(self, old: bytes, new: bytes) -> bytes:
        """What the loss of power leaves of a file that was `old` on the medium and was written to: of each sector the
        one or the other, and the end of the file anywhere between the two.
        """
        share = self._rng.choice((0.0, 0.5, 0.9, 1.0))
        mixed = bytearray(new[: len(old)] + bytes(max(0, len(new) - len(old))))
        for offset in range(0, len(new), SECTOR_BYTES):
            chosen = new if self._rng.random() < share else old
            end = min(offset + SECTOR_BYTES, len(new))
            mixed[offset:end] = chosen[offset:end].ljust(end - offset, b"\0")
        return bytes(mixed[: self._rng.randrange(min(len(old), len(new)), len(new) + 1)])


def _with_header(synced: bytes, log: bytes) -> bytes:
    """What the medium has of a log at least: its header is synced when the log begins anew, before any frame is
    written (https://sqlite.org/src/info/ff5be73dee), so that frames of the old log never count under a part of the new.
    """
    return log[:LOG_HEADER_BYTES] + synced[LOG_HEADER_BYTES:] if synced else synced


def _whole_pages(content: bytes) -> bytes:
    return content + bytes(-len(content) % PAGE_BYTES)


@contextmanager
def _writes_refused_from(offset: int) -> Iterator[None]:
    """The operating system refuses what this process would write to any file from there on, with EFBIG."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def _write(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    os.chmod(name, 0o600)


def read(name: str) -> bytes | None:
    """A file as memory has it; None where it is not there."""
    return Path(name).read_bytes() if os.path.exists(name) else None
