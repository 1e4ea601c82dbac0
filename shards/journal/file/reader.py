"""Reading a journal's files without owning them: no lock is taken and nothing is written.

The owner may go on meanwhile. So the newest segment is read up to its last whole batch, whatever follows that (a batch
that is being written, a torn tail, damage: only opening can tell them apart), and every segment before it must be
whole. A segment that is trimmed during a call is a `Gap`. The files are listed anew at each call.
"""

from __future__ import annotations

from collections.abc import Iterator

from shards.journal import Absent, Corrupt, Gap, JournalError, Retained, Unfit
from shards.journal.file import snapshot
from shards.journal.file.failures import FORBIDDEN, failure_of
from shards.journal.file.record import BARRIER, Malformed, walk
from shards.journal.file.recovery import is_segment, open_segment
from shards.journal.file.replay import Segment, batches, reaching
from shards.system.disk import Disk, read_file


class FileReader:
    """Implements `shards.journal.Reader`."""

    def __init__(self, disk: Disk, directory: str, shard: int) -> None:
        """Raises Absent where there is no such journal."""
        for path in (directory.rpartition("/")[0], directory):
            if path and not disk.exists(path):
                raise Absent(f"there is no directory {path}")
        self._disk, self._directory, self._shard = disk, directory, shard

    @property
    def first(self) -> int:
        segments = self._segments()
        return segments[0].header.first_position if segments else 1

    @property
    def head(self) -> int:
        return self._head(self._segments())

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        segments = self._segments()
        head = self._head(segments)
        chosen = reaching(segments, start, head)
        if not chosen and (segments or start != 1):
            raise Gap(f"position {start} is not in the log, which ends at {head}", file=self._directory)
        return self._replay(chosen, start, head)

    def snapshots(self) -> list[Retained]:
        retained = []
        for name in self._names():
            if snapshot.position_of(name) >= 0:
                try:
                    checked = snapshot.check(self._disk, self._directory, name, self._shard)
                except (Malformed, FileNotFoundError):
                    continue  # damaged, or a newer one has just replaced it
                except OSError as error:
                    raise self._unreadable(error) from error
                retained.append(Retained(checked.head.position, checked.head.chain, checked.reached))
        return sorted(retained)

    def chunks(self, position: int) -> Iterator[bytes]:
        path = f"{self._directory}/{snapshot.name_of(position)}"
        try:
            reader = snapshot.Reader(self._disk, path)
            try:
                yield from reader.chunks()
            finally:
                reader.close()
        except FileNotFoundError:
            raise Gap("there is no such snapshot", file=path, position=position) from None
        except Malformed as fault:
            raise Corrupt(f"the snapshot is damaged: {fault}", file=path, position=position) from fault
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Does nothing: no file is open between two calls."""

    def _names(self) -> list[str]:
        try:
            return self._disk.listdir(self._directory)
        except OSError as error:
            raise self._unreadable(error) from error

    def _segments(self) -> list[Segment]:
        """Returns the segments that hold the log, ascending, without those that a newer one has taken over
        as a whole.
        """
        holding: list[Segment] = []
        for name in reversed([name for name in self._names() if is_segment(name)]):
            try:
                segment = open_segment(self._disk, self._directory, name, self._shard)
            except FileNotFoundError:
                continue  # trimmed since it was listed
            except OSError as error:
                raise self._unreadable(error) from error
            if not holding or segment.header.first_position < holding[0].header.first_position:
                holding.insert(0, segment)
        return holding

    def _head(self, segments: list[Segment]) -> int:
        if not segments:
            return 0
        newest = segments[-1]
        head = newest.header.first_position - 1
        try:
            data = read_file(self._disk, f"{self._directory}/{newest.name}")
        except OSError as error:
            raise self._unreadable(error) from error
        for batch in walk(data, newest.header):
            if not batch.flags & BARRIER:
                head = batch.position
        return head

    def _replay(self, segments: list[Segment], start: int, head: int) -> Iterator[tuple[int, bytes]]:
        try:
            yield from batches(self._disk, self._directory, segments, start, head)
        except FileNotFoundError as error:
            raise Gap("the beginning was trimmed meanwhile", file=self._directory, position=start) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> JournalError:
        if error.errno in FORBIDDEN:  # whose files are another user's
            return Unfit(f"reading is not possible: {error.strerror}", file=error.filename or self._directory)
        kind, text = failure_of("reading", error)
        return kind(text, file=self._directory)
