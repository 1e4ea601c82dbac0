"""Damage of every kind at every place: opening finds all that was answered, or refuses. It is never silently wrong.

A small journal with a switch of segments, snapshots and a manifest is damaged in one place at a time: every fifteenth
bit turned over, every file cut off at every third byte, every sector zeroed or changed for its neighbour. It stands in
three states: closed cleanly; ended by a loss of power after an idle barrier; killed after one, on a machine that runs
on.

`python -m tests.torture.damage`, a campaign of `make torture`, turns over every bit of a journal of 64 KiB in all three
states, and cuts its files off at every byte.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.shards.journal.journal_machine import DIRECTORY
from tests.shards.journal.specimen import STATES, Specimen, cut_off, flip, sectors, zeros_from
from tests.simulation.disk import SECTOR_BYTES


@pytest.fixture(scope="module", params=STATES)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    return Specimen(request.param)


def test_no_single_bit_makes_it_silently_wrong() -> None:
    specimen = Specimen(STATES[0])
    verdicts: Counter[str] = Counter()
    for name in specimen.names:
        bits = 8 * len(specimen.medium.node(f"{DIRECTORY}/{name}").content)
        verdicts += flip(specimen, name, range(0, bits, 15))  # one in every other byte, each of the eight in turn
    assert sum(verdicts.values()) >= 131_072 // 15
    assert verdicts["refused"] > 50_000 // 15
    assert verdicts["whole"] > 10_000 // 15, "what no batch stands on may rot"


def test_no_single_bit_of_what_counts_makes_it_silently_wrong(specimen: Specimen) -> None:
    """The bytes that are not zero, in every state: those that something stands on."""
    verdicts: Counter[str] = Counter()
    for name in specimen.names:
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        for at in [at for at in range(len(content)) if content[at]]:
            content[at] ^= (was := 1 << (at & 7))
            verdicts[specimen.look(f"byte {at} of {name}")] += 1
            content[at] ^= was
    assert verdicts["refused"] > 2500


def test_no_file_cut_off_at_any_byte_makes_it_silently_wrong(specimen: Specimen) -> None:
    for name in specimen.names:
        lengths = range(0, len(specimen.medium.node(f"{DIRECTORY}/{name}").content), 3)
        assert sum(cut_off(specimen, name, lengths).values()) == len(lengths)


def test_a_log_that_turns_to_zeros_from_any_byte_on_is_a_prefix_or_refused(specimen: Specimen) -> None:
    """As if the end had never been written: after a clean stop that is known to be wrong; else it is what a loss of
    power leaves of what was not synced, and what remains must be a prefix."""
    name = specimen.names[-3]
    assert name.startswith("segment-")
    heads = zeros_from(specimen, name, range(4096, specimen.segment_bytes, 3))
    if specimen.state == "closed":
        assert heads == {len(specimen.log)}
    else:
        assert heads == set(range(min(heads), len(specimen.log) + 1))


def test_no_lost_or_misplaced_sector_makes_it_silently_wrong(specimen: Specimen) -> None:
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


@pytest.mark.parametrize("seed", range(2))
def test_no_few_bits_together_make_it_silently_wrong(specimen: Specimen, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        name = rng.choice(specimen.names)
        content = specimen.medium.node(f"{DIRECTORY}/{name}").content
        intact = bytes(content)
        near = rng.randrange(len(intact))
        for _ in range(rng.choice([2, 3, 8])):
            content[min(near + rng.randrange(200), len(intact) - 1)] ^= rng.randrange(1, 256)
        specimen.look(f"{name}: bytes near {near}")
        content[:] = intact
