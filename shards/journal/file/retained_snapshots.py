"""The snapshots of one journal directory: the two newest that are good, and how a new one takes its place.

    1  written under a temporary name and synced         after a crash the next opening removes the file
    2  read back from the medium and checked
    3  renamed, and the directory synced                 from here on it is the newest
    4  all but the two newest removed                    one that comes back after a crash does no harm

The log behind the older of the two is needed as long as both are kept: should the newer one be damaged later, the older
one and that log give the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from shards.journal.file import snapshot
from shards.journal.file.record import Malformed
from shards.journal.file.recovery import TEMPORARY
from shards.system.disk import Disk

KEPT = 2


class SnapshotFile(NamedTuple):
    """The file of one snapshot; `size` in bytes."""

    position: int
    size: int
    name: str


class RetainedSnapshots:
    """The snapshots that are kept, ascending. `save` may run in another thread than everything else."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = directory
        self._files: list[SnapshotFile] = []

    @property
    def newest(self) -> int:
        """Position of the newest one; -1 where there is none."""
        return self._files[-1].position if self._files else -1

    @property
    def count(self) -> int:
        """Number of chunks of the newest one, from its footer, which recovery has checked; it serves to report the
        progress of a recovery. 0 where there is none, or the footer cannot be read: whoever reads the snapshot meets
        the same error.
        """
        if not self._files:
            return 0
        try:
            return snapshot.count_of(self._disk, f"{self._directory}/{self._files[-1].name}")
        except OSError:
            return 0

    @property
    def fallback(self) -> int:
        """The position up to which the log may be forgotten: that of the older of two snapshots; 0 where there are
        fewer.
        """
        return self._files[-2].position if len(self._files) >= KEPT else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of all snapshots that are kept."""
        return sum(file.size for file in list(self._files))

    def fill(self, names: list[str]) -> None:
        """Begins with the files of these names, ascending. Raises OSError."""
        self._files = []
        for name in names:
            handle = self._disk.open(f"{self._directory}/{name}")
            try:
                self._files.append(SnapshotFile(snapshot.position_of(name), self._disk.size(handle), name))
            finally:
                self._disk.close(handle)

    def save(self, head: snapshot.Head, chunks: Iterable[bytes], reached: Callable[[], int]) -> None:
        """Stores a snapshot, not older than the newest. Raises Malformed where it is read back otherwise than it was
        written, OSError, and what the iterator raises. In each case the older ones stand, unless the directory itself
        could not be synced.
        """
        name = snapshot.name_of(head.position)
        path = f"{self._directory}/{name}"
        temporary = name + TEMPORARY
        try:
            snapshot.write(self._disk, path + TEMPORARY, head, chunks, reached)
            checked = snapshot.check(self._disk, self._directory, temporary, head.shard)
            if checked.head != head:
                raise Malformed("it reads back otherwise than it was written")
            self._disk.rename(path + TEMPORARY, path)
        except (Exception, GeneratorExit):
            with suppress(OSError):
                self._disk.unlink(path + TEMPORARY)
            raise
        self._disk.fsync_dir(self._directory)
        if self.newest == head.position:
            self._files.pop()
        self._files.append(SnapshotFile(head.position, checked.length, name))
        while len(self._files) > KEPT:
            self._disk.unlink(f"{self._directory}/{self._files[0].name}")
            del self._files[0]

    def load(self) -> Iterator[bytes]:
        """Yields the chunks of the newest one, each checked. Raises Malformed, OSError."""
        reader = snapshot.Reader(self._disk, f"{self._directory}/{self._files[-1].name}")
        try:
            yield from reader.chunks()
        finally:
            reader.close()
