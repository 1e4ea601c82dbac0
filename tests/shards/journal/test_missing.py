"""Files that are gone, doubled, of another shard, or older than they were: a gap or damage, never a shorter log."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from shards.journal import Corrupt, Gap
from shards.journal.file.recovery import MANIFEST
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine, fill
from tests.shards.journal.test_policy import newest, refused
from tests.simulation.disk import Crashed, Fault


@pytest.fixture
def machine() -> JournalMachine:
    """Thirty batches in several segments, killed."""
    machine = JournalMachine()
    fill(machine.opened(), 30, 300)
    machine.kill()
    assert len(machine.segments()) > 3
    return machine


@pytest.mark.parametrize("number", [0, 1, 2, -2, -1])
def test_a_segment_that_is_gone_is_a_gap(machine: JournalMachine, number: int) -> None:
    name = machine.segments()[number]
    machine.remove(name)
    refused(machine, Gap)


def test_all_segments_gone_is_a_gap(machine: JournalMachine) -> None:
    for name in machine.segments():
        machine.remove(name)
    refused(machine, Gap)


def test_a_manifest_that_is_gone_is_a_gap(machine: JournalMachine) -> None:
    machine.remove(MANIFEST)
    assert refused(machine, Gap).file == f"{DIRECTORY}/{MANIFEST}"


def test_everything_but_a_snapshot_gone_is_a_gap(machine: JournalMachine) -> None:
    machine.opened().save_snapshot(20, [b"x"])
    machine.kill()
    for name in [*machine.segments(), MANIFEST]:
        machine.remove(name)
    refused(machine, Gap)


def test_a_copy_under_another_name_is_corrupt(machine: JournalMachine) -> None:
    machine.replace("segment-0000000009", machine.content(machine.segments()[0]))
    assert "segment 1" in str(refused(machine))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_older_version_of_a_segment_that_another_follows_is_corrupt(number: int) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    versions: dict[str, bytes] = {}
    for _ in range(30):
        fill(journal, 1, 300)
        name = newest(machine).name
        versions.setdefault(name, machine.content(name))
    machine.kill()
    name = machine.segments()[number]
    machine.replace(name, versions[name])
    refused(machine)


def test_an_older_version_of_the_newest_segment_is_corrupt_after_a_clean_stop() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 2)
    name = newest(machine).name
    older = machine.content(name)
    fill(journal, 2)
    journal.close()
    machine.replace(name, older)
    assert "closed at position 4" in str(refused(machine))


def test_an_older_version_of_the_manifest_does_no_harm(machine: JournalMachine) -> None:
    manifest = machine.content(MANIFEST)
    newer_than = machine.segments()[-1]
    fill(machine.opened(), 30, 300)
    machine.kill()
    machine.replace(MANIFEST, manifest)
    unnamed = next(name for name in machine.segments() if name > newer_than)
    first_position = machine.batches(unnamed).header.first_position
    journal = machine.opened()
    assert journal.head == 60
    assert newest(machine).header.first_position == first_position, "all that it does not name is written anew"
    assert [position for position, _ in journal.replay(1)] == list(range(1, 61))


def test_an_older_version_of_the_manifest_does_no_harm_even_if_opening_ends_over_and_over() -> None:
    def older_manifest(seed: int) -> JournalMachine:
        machine = JournalMachine(seed)
        fill(machine.opened(), 2, 300)
        machine.kill()
        manifest = machine.content(MANIFEST)
        fill(machine.opened(), 12, 300)
        machine.kill()
        machine.replace(MANIFEST, manifest)
        return machine

    machine = older_manifest(1)
    machine.opened()
    named = machine.disk.trace.index("rename spare") + 1  # the call after it makes the new name durable
    for call in range(1, 200):
        for seed in range(3):
            machine = older_manifest(seed)
            for fault in (Fault(named + 1, "kill"), Fault(call, "power")):
                try:
                    machine.journal(fault=fault).open(SHARD, "test")
                except Crashed:
                    continue
            ended = not machine.disk.fired
            machine.lose_power()
            journal = machine.opened()
            assert [position for position, _ in journal.replay(1)] == list(range(1, 15))
        if ended:
            return
    raise AssertionError("no opening ever came to its end")


@pytest.mark.parametrize("number", [1, 2, -2, -1])
def test_a_segment_of_another_log_is_corrupt(machine: JournalMachine, number: int) -> None:
    """Two directories were mixed up: same shard, same positions and sizes, other batches."""
    foreign_machine = JournalMachine(seed=2)
    journal = foreign_machine.opened()
    for position in range(1, 31):
        journal.append(bytes([position]) * 300)
    assert foreign_machine.segments() == machine.segments()
    name = machine.segments()[number]
    machine.replace(name, foreign_machine.content(name))
    refused(machine)


def test_a_log_that_ends_before_what_a_snapshot_saw_is_corrupt() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)

    def chunks() -> Iterator[bytes]:
        fill(journal, 2)
        yield b"holds effects of batch 5"

    journal.save_snapshot(2, chunks())
    machine.kill()
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[4].offset, bytes(len(segment.data) - segment.batches[4].offset))
    machine.lose_power()
    error = refused(machine)
    assert "when 5 was durable" in str(error)
    assert error.position == 5


@pytest.mark.parametrize("shard", [0, 8])
def test_the_journal_of_another_shard_is_refused(machine: JournalMachine, shard: int) -> None:
    with pytest.raises(Corrupt, match="shard 7"):
        machine.journal().open(shard, "test")


@pytest.mark.parametrize("length", [0, 100, 4095, 4096, 5000, 8191])
def test_a_newest_segment_of_another_length_is_corrupt(machine: JournalMachine, length: int) -> None:
    name = machine.segments()[-1]
    machine.replace(name, machine.content(name)[:length])
    assert refused(machine).file == f"{DIRECTORY}/{name}"


def test_a_newest_segment_that_is_longer_is_corrupt(machine: JournalMachine) -> None:
    name = machine.segments()[-1]
    machine.replace(name, machine.content(name) + bytes(4096))
    assert refused(machine).file == f"{DIRECTORY}/{name}"


def test_other_files_in_the_directory_do_no_harm(machine: JournalMachine) -> None:
    for name in ("notes.txt", "segment-1", "segment-000000000x", "snapshot-1", "segment-0000000001.torn-5", "x.tmp"):
        machine.replace(name, b"x")
    assert machine.opened().head == 30
    assert "x.tmp" not in machine.names()
    assert "notes.txt" in machine.names()


def test_opening_and_closing_over_and_over_takes_no_more_room() -> None:
    machine = JournalMachine(segment_bytes=65_536)
    machine.opened().close()
    stored = []
    for life in range(12):
        journal = machine.opened()
        journal.append(b"one batch a life")
        stored.append(machine.medium.used_bytes())
        journal.close() if life % 2 else machine.kill()
    growth = [after - before for before, after in pairwise(stored)]
    assert max(growth) < 8192, "an old segment keeps only the blocks that its batches take"


@pytest.mark.parametrize("what", ["kill", "power"])
@pytest.mark.parametrize("used", [False, True])
def test_an_opening_that_always_ends_at_the_same_call_takes_no_more_room(what: str, used: bool) -> None:
    for call in range(1, 200):
        machine = JournalMachine(seed=call)
        if used:
            fill(machine.opened(), 8, 300)
            machine.kill()
        most = len(machine.segments()) + 3 if used else 3
        for _ in range(12):
            try:
                machine.journal(fault=Fault(call, what)).open(SHARD, "test")
            except Crashed:
                crashed = True
            else:
                crashed = False
                machine.kill()
            if DIRECTORY in machine.medium.directories:
                assert len(machine.segments()) <= most
        assert machine.opened().head == (8 if used else 0)
        if not crashed:
            return
    raise AssertionError("no opening ever came to its end")
