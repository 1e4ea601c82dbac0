"""Damage of every kind at every place: opening finds all that was answered, or refuses. It is never silently wrong.

A small journal with a switch of segments, snapshots and a manifest is damaged in one place at a time: every bit turned
over, every file cut off at every byte, every sector zeroed or changed for its neighbour. It stands in three states:
closed cleanly; ended by a loss of power after an idle barrier; killed after one, on a machine that runs on.

`TORTURE=1` in the environment takes a journal of 64 KiB instead of 16, in all three states, bit by bit.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from shards.journal import Corrupt, Gap, snapshot
from shards.journal.record import used_end
from shards.journal.recovery import MANIFEST, Found, examine
from shards.journal.replay import batches, covering
from tests.journal.contract import content as said_by
from tests.journal.rig import DIRECTORY, SHARD, Rig
from tests.simulation.disk import SECTOR_BYTES, SimDisk

TORTURE = bool(os.environ.get("TORTURE"))
STATES = ("lost power", "killed", "closed")
SEGMENT_BYTES = 32_768 if TORTURE else 8192
OPENED_EVERY = 97  # of so many damages, one is also looked at through the whole of opening


class Specimen:
    """A journal, and what it says when nothing is wrong with it."""

    def __init__(self, state: str) -> None:
        self.state = state
        rng = random.Random(state)
        rig = Rig(seed=3, segment_bytes=SEGMENT_BYTES)
        journal = rig.opened()
        self.snapshots: dict[int, list[bytes]] = {0: []}
        self.log: list[tuple[int, bytes]] = []
        while len(rig.segments()) < 2 or journal.head < rig.batches(rig.segments()[1]).header.first_position + 2:
            payload = rng.randbytes(rng.randrange(300, 500))
            self.log.append((journal.append(payload), payload))
            if journal.head in (1, 3):
                self.snapshots[journal.head] = [rng.randbytes(200), rng.randbytes(100)]
                journal.save_snapshot(journal.head, self.snapshots[journal.head])
        journal.idle_barrier()
        journal.close() if state == "closed" else rig.kill()
        if state == "lost power":
            rig.lose_power()
        self.medium = rig.medium
        rig.remove("spare")
        if "lock" in rig.names():
            rig.remove("lock")
        self.names = rig.names()
        self.rng = random.Random(1)
        self.disk = SimDisk(self.medium, self.rng)
        self.boot_id = self.disk.boot_id()
        self.looked = 0
        assert self.look("nothing") == "whole"

    def say(self, found: Found) -> tuple[int, int, list[bytes], list[tuple[int, bytes]]]:
        """(head, position of the snapshot, its chunks, the batches behind it), read as the journal reads them."""
        base, chunks = 0, []
        if found.snapshots:
            base = snapshot.position_of(found.snapshots[-1])
            chunks = list(snapshot.Reader(self.disk, f"{DIRECTORY}/{found.snapshots[-1]}").chunks())
        index = covering(found.segments, base + 1)
        log = batches(self.disk, DIRECTORY, found.segments[index:], base + 1, found.log.head)
        return found.log.head, base, chunks, list(log)

    def look(self, what: str) -> str:
        """Judge the journal as it stands now: "refused" or "whole", and nothing else may it be."""
        self.disk = SimDisk(self.medium, self.rng)
        try:
            found = examine(self.disk, DIRECTORY, SHARD, self.boot_id)
        except (Corrupt, Gap):
            verdict = "refused"
        else:
            self.compare(self.say(found), what)
            verdict = "whole"
        self.looked += 1
        if self.looked % OPENED_EVERY == 0:
            self.open(what, verdict)
        return verdict

    def open(self, what: str, verdict: str) -> None:
        """The whole of opening comes to the same verdict, twice."""
        rig = Rig(medium=self.medium.copy(), segment_bytes=SEGMENT_BYTES)
        for _ in range(2):
            try:
                journal = rig.opened()
            except (Corrupt, Gap):
                assert verdict == "refused", what
            else:
                assert verdict == "whole", what
                position, chunks, log = said_by(journal)
                self.compare((journal.head, max(position, 0), chunks or [], log), what)
            rig.kill()

    def compare(self, said: tuple[int, int, list[bytes], list[tuple[int, bytes]]], what: str) -> None:
        """All that was answered, by way of whichever snapshot."""
        assert said[0] == len(self.log), f"{what}: it ends at {said[0]}"
        self.compare_prefix(said, what)

    def compare_prefix(self, said: tuple[int, int, list[bytes], list[tuple[int, bytes]]], what: str) -> None:
        head, base, chunks, log = said
        assert chunks == self.snapshots[base], f"{what}: another snapshot"
        assert log == self.log[base:head], f"{what}: other batches"


@pytest.fixture(scope="module", params=STATES)
def specimen(request) -> Specimen:
    return Specimen(request.param)


def flip_all(specimen: Specimen, names: list[str]) -> Counter[str]:
    """Every bit of these files in turn."""
    verdicts: Counter[str] = Counter()
    for name in names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        for bit in range(len(content) * 8):
            content[bit >> 3] ^= 1 << (bit & 7)
            verdicts[specimen.look(f"bit {bit} of {name}")] += 1
            content[bit >> 3] ^= 1 << (bit & 7)
    return verdicts


@pytest.mark.parametrize("state", STATES if TORTURE else STATES[:1])
def test_no_single_bit_makes_it_silently_wrong(state):
    specimen = Specimen(state)
    verdicts = flip_all(specimen, specimen.names)
    assert sum(verdicts.values()) >= (524_288 if TORTURE else 131_072)
    assert verdicts["refused"] > 50_000
    assert verdicts["whole"] > 10_000, "what no batch stands on may rot"


def test_no_single_bit_of_what_counts_makes_it_silently_wrong(specimen):
    """The bytes that are not zero, in every state: those that something stands on."""
    verdicts: Counter[str] = Counter()
    for name in specimen.names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        for at in [at for at in range(len(content)) if content[at]]:
            content[at] ^= (was := 1 << (at & 7))
            verdicts[specimen.look(f"byte {at} of {name}")] += 1
            content[at] ^= was
    assert verdicts["refused"] > 2500


def test_no_file_cut_off_at_any_byte_makes_it_silently_wrong(specimen):
    for name in specimen.names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        whole = bytes(content)
        kinds: Counter[str] = Counter()
        for length in range(len(whole)):
            content[:] = whole[:length]
            kinds[specimen.look(f"{name} cut off at {length}")] += 1
        content[:] = whole
        if name.startswith("segment-"):
            assert kinds["whole"] <= len(whole) - used_end(whole, 0), "at most the zeros at the end of the older one"
        elif name == MANIFEST:
            assert kinds["whole"] == 0
        else:
            assert kinds["refused"] == 0, "there is an older snapshot, and the log behind it"


def test_a_log_that_turns_to_zeros_from_any_byte_on_is_a_prefix_or_refused(specimen):
    """As if the end had never been written: after a clean stop that is known to be wrong; else it is what a loss of
    power leaves of what was not synced, and what remains must be a prefix."""
    name = specimen.names[-3]
    assert name.startswith("segment-")
    content = specimen.medium.node(f"{DIRECTORY}/{name}").content
    whole = bytes(content)
    heads = set()
    for length in range(4096, len(whole)):
        content[length:] = bytes(len(whole) - length)
        specimen.disk = SimDisk(specimen.medium, specimen.rng)
        try:
            found = examine(specimen.disk, DIRECTORY, SHARD, specimen.boot_id)
        except (Corrupt, Gap):
            content[:] = whole
            continue
        heads.add(found.log.head)
        said = specimen.say(found)
        content[:] = whole
        specimen.compare_prefix(said, f"zeros from {length}")
    if specimen.state == "closed":
        assert heads == {len(specimen.log)}
    else:
        assert heads == set(range(min(heads), len(specimen.log) + 1))


def sectors(specimen: Specimen) -> Iterator[tuple[str, bytearray, int]]:
    for name in specimen.names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        for at in range(0, len(content), SECTOR_BYTES):
            yield name, content, at


def test_no_lost_or_misplaced_sector_makes_it_silently_wrong(specimen):
    for name, content, at in sectors(specimen):
        here = bytes(content[at : at + SECTOR_BYTES])
        following = bytes(content[at + SECTOR_BYTES : at + 2 * SECTOR_BYTES])
        content[at : at + len(here)] = bytes(len(here))
        specimen.look(f"{name}: sector at {at} zeroed")
        content[at : at + len(here)] = here
        if len(following) == SECTOR_BYTES:
            content[at : at + 2 * SECTOR_BYTES] = following + here
            specimen.look(f"{name}: sectors at {at} changed")
            content[at : at + 2 * SECTOR_BYTES] = following + following
            specimen.look(f"{name}: sector at {at} overwritten by the next")
            content[at : at + 2 * SECTOR_BYTES] = here + here
            specimen.look(f"{name}: sector at {at} written twice")
            content[at : at + 2 * SECTOR_BYTES] = here + following


@pytest.mark.parametrize("seed", range(20 if TORTURE else 2))
def test_no_few_bits_together_make_it_silently_wrong(specimen, seed):
    rng = random.Random(seed)
    for _ in range(1000):
        name = rng.choice(specimen.names)
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        whole = bytes(content)
        near = rng.randrange(len(whole))
        for _ in range(rng.choice([2, 3, 8])):
            content[min(near + rng.randrange(200), len(whole) - 1)] ^= rng.randrange(1, 256)
        specimen.look(f"{name}: bytes near {near}")
        content[:] = whole
