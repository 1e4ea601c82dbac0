"""A file journal on a simulated disk, and the small things its tests say often."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from shards.journal.file.journal import FileJournal, FileSettings
from shards.journal.file.record import Batch, SegmentHeader, unpack_block, walk
from shards.system.disk import Disk
from tests.simulation.disk import Fault, Medium, SimDisk

DIRECTORY = "/data"
SHARD = 7
START_NS = 1_727_000_000_000_000_000


class JournalMachine:
    """One machine with one journal directory; processes come and go."""

    def __init__(self, seed: int = 1, *, medium: Medium | None = None, segment_bytes: int = 8192) -> None:
        self.rng = random.Random(seed)
        self.medium = medium or Medium()
        self.segment_bytes = segment_bytes
        self.now_ns = START_NS
        self.disk = SimDisk(self.medium, self.rng)

    def process(self, fault: Fault | None = None) -> SimDisk:
        """A new process; the one before lives on."""
        self.disk = SimDisk(self.medium, self.rng, fault)
        return self.disk

    def journal(self, *, sync: str = "always", fault: Fault | None = None, ballast_bytes: int = 0) -> FileJournal:
        """A new journal object in a new process."""
        return file_journal(
            DIRECTORY, self.process(fault), self.tick, self.rng, sync, self.segment_bytes, ballast_bytes
        )

    def opened(self, *, sync: str = "always", fault: Fault | None = None, ballast_bytes: int = 0) -> FileJournal:
        journal = self.journal(sync=sync, fault=fault, ballast_bytes=ballast_bytes)
        journal.open(SHARD, "test")
        return journal

    def tick(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def kill(self) -> None:
        self.disk.kill()

    def lose_power(self) -> None:
        self.medium.lose_power(self.rng)

    # -- looking into the files --------------------------------------------------------------------------------------

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.medium.directories[DIRECTORY].names if name.startswith(prefix))

    def content(self, name: str) -> bytes:
        return bytes(self.medium.node(f"{DIRECTORY}/{name}").content)

    def replace(self, name: str, content: bytes) -> None:
        self.medium.replace(f"{DIRECTORY}/{name}", content)

    def remove(self, name: str) -> None:
        self.medium.remove(f"{DIRECTORY}/{name}")

    def segments(self) -> list[str]:
        return [name for name in self.names("segment-") if len(name) == len("segment-0000000001")]

    def batches(self, name: str) -> Segment:
        data = self.content(name)
        header = unpack_block(data)
        return Segment(name, data, header, list(walk(data, header)))

    def damage(self, name: str, offset: int, data: bytes) -> None:
        """Other bytes at this place of a file, on the medium and in the cache."""
        old = self.content(name)
        self.replace(name, old[:offset] + data + old[offset + len(data) :])


class Segment(NamedTuple):
    """A segment file taken apart."""

    name: str
    data: bytes
    header: SegmentHeader
    batches: list[Batch]


def file_journal(
    directory: str,
    disk: Disk,
    now_ns: Callable[[], int],
    rng: random.Random,
    sync: str,
    segment_bytes: int,
    ballast_bytes: int = 0,
) -> FileJournal:
    return FileJournal(
        directory,
        disk,
        FileSettings(sync, 3_000_000, segment_bytes, ballast_bytes),
        now_ns=now_ns,
        salt=lambda: rng.getrandbits(64),
    )


def payload_of(position: int, size: int = 100) -> bytes:
    return (b"%d " % position * size)[:size]


def fill(journal: FileJournal, count: int, size: int = 100) -> list[tuple[int, bytes]]:
    """Appends so many batches and returns them with their positions."""
    return [
        (journal.append(payload), payload) for payload in (payload_of(journal.head + 1, size) for _ in range(count))
    ]
