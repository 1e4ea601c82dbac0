"""A small journal with a switch of segments, snapshots and a manifest, and what it says when nothing is wrong with it.

It stands in one of three states: closed cleanly; ended by a loss of power after an idle barrier; killed after one, on a
machine that runs on. It is damaged in one place at a time, and must then say the same, or be refused.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from shards.journal import Corrupt, Gap
from shards.journal.file import snapshot
from shards.journal.file.record import used_end
from shards.journal.file.recovery import MANIFEST, Recovery, examine
from shards.journal.file.replay import batches, covering
from tests.shards.journal.contract import content as said_by
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine
from tests.simulation.disk import SECTOR_BYTES, SimDisk

STATES = ("lost power", "killed", "closed")
OPENED_EVERY = 97  # of so many damages, one is also looked at through the whole of opening


class Specimen:
    """A journal, and what it says when nothing is wrong with it."""

    def __init__(self, state: str, segment_bytes: int = 8192) -> None:
        self.state = state
        self.segment_bytes = segment_bytes
        rng = random.Random(state)
        machine = JournalMachine(seed=3, segment_bytes=segment_bytes)
        journal = machine.opened()
        self.snapshots: dict[int, list[bytes]] = {0: []}
        self.log: list[tuple[int, bytes]] = []
        while (
            len(machine.segments()) < 2
            or journal.head < machine.batches(machine.segments()[1]).header.first_position + 2
        ):
            payload = rng.randbytes(rng.randrange(300, 500))
            self.log.append((journal.append(payload), payload))
            if journal.head in (1, 3):
                self.snapshots[journal.head] = [rng.randbytes(200), rng.randbytes(100)]
                journal.save_snapshot(journal.head, self.snapshots[journal.head])
        journal.idle_barrier()
        journal.close() if state == "closed" else machine.kill()
        if state == "lost power":
            machine.lose_power()
        self.medium = machine.medium
        machine.remove("spare")
        if "lock" in machine.names():
            machine.remove("lock")
        self.names = machine.names()
        self.rng = random.Random(1)
        self.disk = SimDisk(self.medium, self.rng)
        self.boot_id = self.disk.boot_id()
        self.looked = 0
        assert self.look("nothing") == "whole"

    def say(self, recovery: Recovery) -> tuple[int, int, list[bytes], list[tuple[int, bytes]]]:
        """(head, position of the snapshot, its chunks, the batches behind it), read as the journal reads them."""
        base, chunks = 0, []
        if recovery.snapshots:
            base = snapshot.position_of(recovery.snapshots[-1])
            chunks = list(snapshot.Reader(self.disk, f"{DIRECTORY}/{recovery.snapshots[-1]}").chunks())
        index = covering(recovery.segments, base + 1)
        log = batches(self.disk, DIRECTORY, recovery.segments[index:], base + 1, recovery.log.head)
        return recovery.log.head, base, chunks, list(log)

    def look(self, what: str) -> str:
        """Judge the journal as it stands now: "refused" or "whole", and nothing else may it be."""
        self.disk = SimDisk(self.medium, self.rng)
        try:
            recovery = examine(self.disk, DIRECTORY, SHARD, self.boot_id)
        except (Corrupt, Gap):
            verdict = "refused"
        else:
            self.compare(self.say(recovery), what)
            verdict = "whole"
        self.looked += 1
        if self.looked % OPENED_EVERY == 0:
            self.open(what, verdict)
        return verdict

    def open(self, what: str, verdict: str) -> None:
        """The whole of opening comes to the same verdict, twice."""
        machine = JournalMachine(medium=self.medium.copy(), segment_bytes=self.segment_bytes)
        for _ in range(2):
            try:
                journal = machine.opened()
            except (Corrupt, Gap):
                assert verdict == "refused", what
            else:
                assert verdict == "whole", what
                position, chunks, log = said_by(journal)
                self.compare((journal.head, max(position, 0), chunks or [], log), what)
            machine.kill()

    def compare(self, content_read: tuple[int, int, list[bytes], list[tuple[int, bytes]]], what: str) -> None:
        """All that was answered, by way of whichever snapshot."""
        assert content_read[0] == len(self.log), f"{what}: it ends at {content_read[0]}"
        self.compare_prefix(content_read, what)

    def compare_prefix(self, content_read: tuple[int, int, list[bytes], list[tuple[int, bytes]]], what: str) -> None:
        head, base, chunks, log = content_read
        assert chunks == self.snapshots[base], f"{what}: another snapshot"
        assert log == self.log[base:head], f"{what}: other batches"


def flip(specimen: Specimen, name: str, bits: range) -> Counter[str]:
    """These bits of a file, one after the other; what became of each."""
    verdicts: Counter[str] = Counter()
    content = specimen.medium.node(f"{DIRECTORY}/{name}").content
    for bit in bits:
        content[bit >> 3] ^= 1 << (bit & 7)
        verdicts[specimen.look(f"bit {bit} of {name}")] += 1
        content[bit >> 3] ^= 1 << (bit & 7)
    return verdicts


def cut_off(specimen: Specimen, name: str, lengths: range) -> Counter[str]:
    """The file cut off at each of these lengths."""
    content = specimen.medium.node(f"{DIRECTORY}/{name}").content
    intact = bytes(content)
    verdicts: Counter[str] = Counter()
    for length in lengths:
        content[:] = intact[:length]
        verdicts[specimen.look(f"{name} cut off at {length}")] += 1
    content[:] = intact
    if name.startswith("segment-"):
        zeros = len(intact) - used_end(intact, 0)
        assert verdicts["whole"] <= zeros, "at most the zeros at the end of the older one"
    elif name == MANIFEST:
        assert verdicts["whole"] == 0
    else:
        assert verdicts["refused"] == 0, "there is an older snapshot, and the log behind it"
    return verdicts


def zeros_from(specimen: Specimen, name: str, lengths: range) -> set[int]:
    """The newest segment, zeros from each of these offsets on; the heads that were found. A prefix, or refused."""
    content = specimen.medium.node(f"{DIRECTORY}/{name}").content
    intact = bytes(content)
    heads = set()
    for length in lengths:
        content[length:] = bytes(len(intact) - length)
        specimen.disk = SimDisk(specimen.medium, specimen.rng)
        try:
            recovery = examine(specimen.disk, DIRECTORY, SHARD, specimen.boot_id)
        except (Corrupt, Gap):
            content[:] = intact
            continue
        heads.add(recovery.log.head)
        content_read = specimen.say(recovery)
        content[:] = intact
        specimen.compare_prefix(content_read, f"zeros from {length}")
    return heads


def sectors(specimen: Specimen) -> Iterator[tuple[str, bytearray, int]]:
    for name in specimen.names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        for at in range(0, len(content), SECTOR_BYTES):
            yield name, content, at
