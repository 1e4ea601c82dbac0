"""A journal as the examination has it, and one that is no files: read through `shards.journal.Reader`.

`billing.doctor.directory` reads files with code that it shares with nobody. What a log on servers holds is read by its
backend, which proves that nothing is missing or altered on the way; entries, states and sums are the doctor's own here
as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from billing.doctor.report import Report
from shards.journal import JournalError, Reader, Unavailable, Unknown

HEAD_BYTES = 64  # of a part of a snapshot, by which is seen what it stands for


class Batch(Protocol):
    """One batch that is right."""

    @property
    def position(self) -> int: ...

    @property
    def payload(self) -> bytes: ...


class Snapshot(Protocol):
    """One snapshot that is right."""

    @property
    def name(self) -> str: ...

    @property
    def position(self) -> int: ...


class Damage(NamedTuple):
    """Where a log can no longer be followed."""

    path: str
    offset: int
    position: int  # the first batch that is not right
    newest: bool  # it is in the newest segment
    batches_behind: int  # in the same segment, recognised by their headers


class Log(Protocol):
    """One journal; `shard` 0 is the map's. `batches` is to be exhausted once; then `head` and `damage` are known."""

    path: str  # as findings name it
    shard: int
    head: int
    damage: Damage | None
    bytes_read: int
    last_time_ns: int  # of the batches yielded; 0: not known
    life_began_ns: int  # time of the first batch that the last opening's owner wrote; 0: not known

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """The right ones, ascending."""

    @property
    def bytes_total(self) -> int:
        """What `batches` will walk over; 0: not known."""

    @property
    def first_position(self) -> int:
        """The first position that the log holds or will hold; 0 where nothing of it can be read."""

    def heads(self, snapshot: Snapshot) -> Iterator[bytes]:
        """The first HEAD_BYTES of each of its parts."""

    def part(self, snapshot: Snapshot, index: int) -> bytes:
        """One of its parts."""

    def batches(self) -> Iterator[Batch]:
        """Every batch in order; then the end is judged."""


S = TypeVar("S", bound=Snapshot)


def base_of(first_position: int, snapshots: Sequence[S]) -> S | None:
    """The oldest snapshot from which a log goes on; None where it goes back to position 1, or where none fits."""
    if first_position <= 1:
        return None
    return next((snapshot for snapshot in snapshots if snapshot.position >= first_position - 1), None)


class Kept(NamedTuple):
    """A snapshot that a reader shows."""

    name: str
    position: int


class Read(NamedTuple):
    """A batch that a reader shows."""

    position: int
    payload: bytes


class ReadLog:
    """One journal by its reader. Unavailable and Unknown pass through; whatever else is wrong with it is a fault."""

    def __init__(self, reader: Reader, path: str, shard: int, report: Report) -> None:
        self.path = path
        self.shard = shard
        self.head = 0
        self.damage: Damage | None = None
        self.bytes_read = self.bytes_total = 0
        self.last_time_ns = self.life_began_ns = 0
        self.first_position = 0
        self.snapshots: list[Kept] = []
        self._reader = reader
        self._report = report
        self._read: dict[int, tuple[int, Iterator[bytes]]] = {}  # position of a snapshot -> (next part, the parts)
        try:
            self.first_position = reader.first
            self.snapshots = [
                Kept(f"snapshot {snapshot.position}", snapshot.position) for snapshot in reader.snapshots()
            ]
            report.count("files", "snapshots", len(self.snapshots))
        except JournalError as error:
            self._tell(error, 1)

    def _tell(self, error: JournalError, position: int) -> None:
        if isinstance(error, Unavailable | Unknown):
            raise error
        self.damage = Damage(self.path, 0, position, True, 0)
        self._report.fault("files", str(error), file=self.path, position=position)

    def heads(self, snapshot: Snapshot) -> Iterator[bytes]:
        """As `Log.heads`."""
        try:
            for part in self._reader.chunks(snapshot.position):
                yield part[:HEAD_BYTES]
        except JournalError as error:
            self._tell(error, snapshot.position)

    def part(self, snapshot: Snapshot, index: int) -> bytes:
        """As `Log.part`; quick where parts are asked for in order. Empty where it cannot be read, which is a fault."""
        at, parts = self._read.get(snapshot.position, (index + 1, iter(())))
        try:
            if index < at:
                at, parts = 0, self._reader.chunks(snapshot.position)
            for number, part in enumerate(parts, at):
                if number == index:
                    self._read[snapshot.position] = index + 1, parts
                    return part
        except JournalError as error:
            self._tell(error, snapshot.position)
        return b""

    def batches(self) -> Iterator[Batch]:
        """As `Log.batches`."""
        if self.damage is not None:
            return
        self.head = self.first_position - 1
        try:
            for position, payload in self._reader.replay(self.first_position):
                self.head = position
                self.bytes_read += len(payload)
                self._report.count("files", "batches")
                yield Read(position, payload)
        except JournalError as error:
            self._tell(error, self.head + 1)
