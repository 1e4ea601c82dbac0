"""Files that are gone, doubled, of another shard, or older than they were: a gap or damage, never a shorter log."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from shards.journal import Corrupt, Gap
from shards.journal.file.recovery import MANIFEST
from tests.shards.journal.rig import DIRECTORY, SHARD, Rig, fill
from tests.shards.journal.test_policy import newest, refused
from tests.simulation.disk import Crashed, Fault


@pytest.fixture
def rig() -> Rig:
    """Thirty batches in several segments, killed."""
    rig = Rig()
    fill(rig.opened(), 30, 300)
    rig.kill()
    assert len(rig.segments()) > 3
    return rig


@pytest.mark.parametrize("number", [0, 1, 2, -2, -1])
def test_a_segment_that_is_gone_is_a_gap(rig: Rig, number: int) -> None:
    name = rig.segments()[number]
    rig.remove(name)
    refused(rig, Gap)


def test_all_segments_gone_is_a_gap(rig: Rig) -> None:
    for name in rig.segments():
        rig.remove(name)
    refused(rig, Gap)


def test_a_manifest_that_is_gone_is_a_gap(rig: Rig) -> None:
    rig.remove(MANIFEST)
    assert refused(rig, Gap).file == f"{DIRECTORY}/{MANIFEST}"


def test_everything_but_a_snapshot_gone_is_a_gap(rig: Rig) -> None:
    rig.opened().save_snapshot(20, [b"x"])
    rig.kill()
    for name in [*rig.segments(), MANIFEST]:
        rig.remove(name)
    refused(rig, Gap)


def test_a_copy_under_another_name_is_corrupt(rig: Rig) -> None:
    rig.replace("segment-0000000009", rig.content(rig.segments()[0]))
    assert "segment 1" in str(refused(rig))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_older_version_of_a_segment_that_another_follows_is_corrupt(number: int) -> None:
    rig = Rig()
    journal = rig.opened()
    versions: dict[str, bytes] = {}
    for _ in range(30):
        fill(journal, 1, 300)
        name = newest(rig).name
        versions.setdefault(name, rig.content(name))
    rig.kill()
    name = rig.segments()[number]
    rig.replace(name, versions[name])
    refused(rig)


def test_an_older_version_of_the_newest_segment_is_corrupt_after_a_clean_stop() -> None:
    rig = Rig()
    journal = rig.opened()
    fill(journal, 2)
    name = newest(rig).name
    older = rig.content(name)
    fill(journal, 2)
    journal.close()
    rig.replace(name, older)
    assert "closed at position 4" in str(refused(rig))


def test_an_older_version_of_the_manifest_does_no_harm(rig: Rig) -> None:
    manifest = rig.content(MANIFEST)
    newer_than = rig.segments()[-1]
    fill(rig.opened(), 30, 300)
    rig.kill()
    rig.replace(MANIFEST, manifest)
    unnamed = next(name for name in rig.segments() if name > newer_than)
    first_position = rig.batches(unnamed).header.first_position
    journal = rig.opened()
    assert journal.head == 60
    assert newest(rig).header.first_position == first_position, "all that it does not name is written anew"
    assert [position for position, _ in journal.replay(1)] == list(range(1, 61))


def test_an_older_version_of_the_manifest_does_no_harm_even_if_opening_ends_over_and_over() -> None:
    def older_manifest(seed: int) -> Rig:
        rig = Rig(seed)
        fill(rig.opened(), 2, 300)
        rig.kill()
        manifest = rig.content(MANIFEST)
        fill(rig.opened(), 12, 300)
        rig.kill()
        rig.replace(MANIFEST, manifest)
        return rig

    rig = older_manifest(1)
    rig.opened()
    named = rig.disk.trace.index("rename spare") + 1  # the call after it makes the new name durable
    for call in range(1, 200):
        for seed in range(3):
            rig = older_manifest(seed)
            for fault in (Fault(named + 1, "kill"), Fault(call, "power")):
                try:
                    rig.journal(fault=fault).open(SHARD, "test")
                except Crashed:
                    continue
            ended = not rig.disk.fired
            rig.lose_power()
            journal = rig.opened()
            assert [position for position, _ in journal.replay(1)] == list(range(1, 15))
        if ended:
            return
    raise AssertionError("no opening ever came to its end")


@pytest.mark.parametrize("number", [1, 2, -2, -1])
def test_a_segment_of_another_log_is_corrupt(rig: Rig, number: int) -> None:
    """Two directories were mixed up: same shard, same positions and sizes, other batches."""
    foreign_rig = Rig(seed=2)
    journal = foreign_rig.opened()
    for position in range(1, 31):
        journal.append(bytes([position]) * 300)
    assert foreign_rig.segments() == rig.segments()
    name = rig.segments()[number]
    rig.replace(name, foreign_rig.content(name))
    refused(rig)


def test_a_log_that_ends_before_what_a_snapshot_saw_is_corrupt() -> None:
    rig = Rig()
    journal = rig.opened()
    fill(journal, 3)

    def chunks() -> Iterator[bytes]:
        fill(journal, 2)
        yield b"holds effects of batch 5"

    journal.save_snapshot(2, chunks())
    rig.kill()
    segment = newest(rig)
    rig.damage(segment.name, segment.batches[4].offset, bytes(len(segment.data) - segment.batches[4].offset))
    rig.lose_power()
    error = refused(rig)
    assert "when 5 was durable" in str(error)
    assert error.position == 5


@pytest.mark.parametrize("shard", [0, 8])
def test_the_journal_of_another_shard_is_refused(rig: Rig, shard: int) -> None:
    with pytest.raises(Corrupt, match="shard 7"):
        rig.journal().open(shard, "test")


@pytest.mark.parametrize("length", [0, 100, 4095, 4096, 5000, 8191])
def test_a_newest_segment_of_another_length_is_corrupt(rig: Rig, length: int) -> None:
    name = rig.segments()[-1]
    rig.replace(name, rig.content(name)[:length])
    assert refused(rig).file == f"{DIRECTORY}/{name}"


def test_a_newest_segment_that_is_longer_is_corrupt(rig: Rig) -> None:
    name = rig.segments()[-1]
    rig.replace(name, rig.content(name) + bytes(4096))
    assert refused(rig).file == f"{DIRECTORY}/{name}"


def test_other_files_in_the_directory_do_no_harm(rig: Rig) -> None:
    for name in ("notes.txt", "segment-1", "segment-000000000x", "snapshot-1", "segment-0000000001.torn-5", "x.tmp"):
        rig.replace(name, b"x")
    assert rig.opened().head == 30
    assert "x.tmp" not in rig.names()
    assert "notes.txt" in rig.names()


def test_opening_and_closing_over_and_over_takes_no_more_room() -> None:
    rig = Rig(segment_bytes=65_536)
    rig.opened().close()
    stored = []
    for life in range(12):
        journal = rig.opened()
        journal.append(b"one batch a life")
        stored.append(rig.medium.used_bytes())
        journal.close() if life % 2 else rig.kill()
    growth = [after - before for before, after in pairwise(stored)]
    assert max(growth) < 8192, "an old segment keeps only the blocks that its batches take"


@pytest.mark.parametrize("what", ["kill", "power"])
@pytest.mark.parametrize("used", [False, True])
def test_an_opening_that_always_ends_at_the_same_call_takes_no_more_room(what: str, used: bool) -> None:
    for call in range(1, 200):
        rig = Rig(seed=call)
        if used:
            fill(rig.opened(), 8, 300)
            rig.kill()
        most = len(rig.segments()) + 3 if used else 3
        for _ in range(12):
            try:
                rig.journal(fault=Fault(call, what)).open(SHARD, "test")
            except Crashed:
                crashed = True
            else:
                crashed = False
                rig.kill()
            if DIRECTORY in rig.medium.directories:
                assert len(rig.segments()) <= most
        assert rig.opened().head == (8 if used else 0)
        if not crashed:
            return
    raise AssertionError("no opening ever came to its end")
