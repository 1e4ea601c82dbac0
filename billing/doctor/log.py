"""The interface of a journal for the examination (`Log`), and a journal on servers (`ReadLog`).

`billing.doctor.directory` reads the files of a journal with code of its own. A log on servers is read through its
backend (`shards.journal.Reader`), which proves that no batch is missing or altered. Entries, states and sums are
checked with the doctor's own code in both cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from billing.doctor.report import Report
from shards.journal import JournalError, Reader, Unavailable, Unknown

HEAD_BYTES = 64  # the first bytes of a snapshot's part, which include its bucket and position


class Batch(Protocol):
    """One valid batch."""

    @property
    def position(self) -> int: ...

    @property
    def payload(self) -> bytes: ...


class Snapshot(Protocol):
    """One valid snapshot."""

    @property
    def name(self) -> str: ...

    @property
    def position(self) -> int: ...


class Damage(NamedTuple):
    """The place behind which a log cannot be read."""

    path: str
    offset: int
    position: int  # of the first batch that is not valid
    newest: bool  # the damage is in the newest segment
    batches_behind: int  # batches behind the damage in the same segment, recognised by their headers


class Log(Protocol):
    """One journal; `shard` 0 is the map's. The caller exhausts `batches` once; then `head` and `damage` are known."""

    path: str  # as findings name it
    shard: int
    head: int
    damage: Damage | None
    bytes_read: int
    last_time_ns: int  # of the batches yielded; 0: not known
    life_began_ns: int  # time of the first batch that the last opening's owner wrote; 0: not known

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        """The valid ones, ascending."""

    @property
    def bytes_total(self) -> int:
        """The bytes that `batches` will read; 0: not known."""

    @property
    def first_position(self) -> int:
        """The first position that the log holds or will hold; 0 if nothing of it can be read."""

    def heads(self, snapshot: Snapshot) -> Iterator[bytes]:
        """The first HEAD_BYTES of each part of a snapshot."""

    def part(self, snapshot: Snapshot, index: int) -> bytes:
        """One part of a snapshot, by its index."""

    def batches(self) -> Iterator[Batch]:
        """Yields every batch in order; then judges the end of the log."""


S = TypeVar("S", bound=Snapshot)


def base_of(first_position: int, snapshots: Sequence[S]) -> S | None:
    """The oldest snapshot that the log continues without a gap; None if the log begins at 1, or if there is none."""
    if first_position <= 1:
        return None
    return next((snapshot for snapshot in snapshots if snapshot.position >= first_position - 1), None)


class Kept(NamedTuple):
    """A snapshot of a `ReadLog`."""

    name: str
    position: int


class Read(NamedTuple):
    """A batch of a `ReadLog`."""

    position: int
    payload: bytes


class ReadLog:
    """One journal read through its backend. Unavailable and Unknown are raised; every other error becomes a fault."""

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
        """As `Log.part`; quick if parts are asked for in order. b"", with a fault, if the part cannot be read."""
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
