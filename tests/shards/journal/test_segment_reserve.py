"""A full disk strikes between segments, never within a commit; and what a commit costs."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from shards.journal import Unavailable
from shards.system.disk import is_full
from tests.shards.journal.contract import content
from tests.shards.journal.journal_machine import SHARD, JournalMachine, fill, payload_of
from tests.simulation.disk import Crashed

SEGMENT = 8192


def test_a_commit_is_one_write_and_one_sync() -> None:
    machine = JournalMachine(segment_bytes=65_536)
    journal = machine.opened()
    before = len(machine.disk.trace)
    fill(journal, 20)
    assert machine.disk.trace[before:] == ["write segment-0000000001", "fdatasync segment-0000000001"] * 20


@pytest.mark.parametrize(("sync", "syncs"), [("always", 20), ("interval", 7), ("never", 0)])
def test_the_sync_mode_decides_how_often_it_syncs(sync: str, syncs: int) -> None:
    machine = JournalMachine(segment_bytes=65_536)
    journal = machine.opened(sync=sync)
    before = len(machine.disk.trace)
    fill(journal, 20)  # a millisecond each, and the interval is three
    calls = machine.disk.trace[before:]
    assert sum(call.startswith("write") for call in calls) == 20
    assert sum(call.startswith("fdatasync") for call in calls) == syncs


def test_a_barrier_makes_durable_what_the_interval_left() -> None:
    machine = JournalMachine()
    journal = machine.opened(sync="interval")
    fill(journal, 2)
    journal.idle_barrier()
    machine.lose_power()
    assert machine.opened().head == 2


@pytest.mark.parametrize("calls_ahead", [1, 2, 3, 4])
def test_a_barrier_never_proves_what_was_not_durable_before_it(calls_ahead: int) -> None:
    ends = set()
    for seed in range(60):
        machine = JournalMachine(seed)
        journal = machine.opened(sync="interval")
        expected = fill(journal, 3, 700)  # the first is synced, the others wait
        machine.disk.fail("power", calls_ahead=calls_ahead)
        try:
            journal.idle_barrier()
        except Crashed:
            ends.add(calls_ahead)
        machine.lose_power()
        journal = machine.opened(sync="interval")
        assert journal.head >= 1
        assert list(journal.replay(1)) == expected[: journal.head]
    assert ends == ({calls_ahead} if calls_ahead <= 3 else set()), "a sync, a write, a sync"


def test_no_batch_shares_a_sector_with_another() -> None:
    machine = JournalMachine(segment_bytes=65_536)
    journal = machine.opened()
    for size in range(1, 1200, 37):
        fill(journal, 1, size)
        if size % 2:
            journal.idle_barrier()
    segment = machine.batches(machine.segments()[0])
    sectors = [set(range(batch.offset // 512, (batch.end - 1) // 512 + 1)) for batch in segment.batches]
    assert sum(map(len, sectors)) == len(set().union(*sectors))


def test_the_next_segment_stands_ready_before_it_is_needed() -> None:
    machine = JournalMachine(segment_bytes=SEGMENT)
    journal = machine.opened()
    fill(journal, 50, 200)
    allocations = [number for number, call in enumerate(machine.disk.trace) if call == "allocate spare"]
    begun = [number for number, call in enumerate(machine.disk.trace) if call == "rename spare"]
    assert len(begun) > 4
    for earlier, later in pairwise(begun):
        ready = [number for number in allocations if earlier < number < later]
        assert ready
        between = machine.disk.trace[ready[-1] : later]
        assert any(call.startswith("write segment-") for call in between), "batches were written after it stood ready"


def test_when_idle_the_next_segment_is_made_by_the_barrier() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    while len(machine.segments()) < 2:
        fill(journal, 1, 200)
    assert "spare" not in machine.names()
    journal.idle_barrier()
    assert "spare" in machine.names()


@pytest.mark.parametrize("size", [4000, 5000, 8192, 100_000])
def test_a_batch_that_is_larger_than_a_segment_gets_one_of_its_own(size: int) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    expected = fill(journal, 1) + fill(journal, 1, size) + fill(journal, 2)
    machine.kill()
    assert content(machine.opened())[2] == expected


def test_a_full_disk_is_met_only_when_a_segment_begins() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    machine.medium.capacity_bytes = machine.medium.used_bytes()
    refusal = None
    while refusal is None:
        before = len(machine.disk.trace)
        try:
            journal.append(payload_of(journal.head + 1, 300))
        except Unavailable as error:
            refusal = error
    assert journal.head > 10, "the live segment and the one prepared ahead are used to their ends"
    assert "No space" in str(refusal)
    assert not [call for call in machine.disk.trace[before:] if call.startswith("write segment-")]
    assert len(machine.segments()) == 2


def test_the_disk_is_not_asked_for_room_at_every_append() -> None:
    machine = JournalMachine(segment_bytes=65_536)
    journal = machine.opened()
    while len(machine.segments()) < 2:
        fill(journal, 1, 500)
    machine.medium.capacity_bytes = machine.medium.used_bytes()
    before = len(machine.disk.trace)
    while (calls := machine.disk.trace[before:]).count("write segment-0000000002") < 100:
        fill(journal, 1, 100)
    assert calls.count("create spare") < 5


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk(kind: int) -> None:
    assert is_full(OSError(kind, "x"))
    assert not is_full(OSError(errno.EIO, "x"))


# -- the ballast -----------------------------------------------------------------------------------------------------


def full(ballast_bytes: int) -> JournalMachine:
    """A journal that was killed when the disk was full to the last byte."""
    machine = JournalMachine()
    journal = machine.opened(ballast_bytes=ballast_bytes)
    fill(journal, 30, 300)
    journal.idle_barrier()
    machine.kill()
    machine.medium.capacity_bytes = machine.medium.used_bytes()
    machine.remove("spare")
    machine.medium.capacity_bytes -= SEGMENT
    return machine


def test_without_ballast_a_journal_on_a_full_disk_cannot_be_opened_until_there_is_room() -> None:
    machine = full(0)
    for _ in range(3):
        with pytest.raises(Unavailable):
            machine.opened()
        machine.kill()
    machine.medium.capacity_bytes = None
    assert machine.opened().head == 30


def test_with_ballast_it_can_be_opened_read_and_trimmed() -> None:
    machine = full(2 * SEGMENT)
    journal = machine.opened(ballast_bytes=2 * SEGMENT)
    assert any("ballast" in warning for warning in journal.warnings)
    assert len(content(journal)[2]) == 30
    assert "ballast" not in machine.names()
    for position in (20, 29):
        journal.save_snapshot(position, [b"x"])
    journal.trim(29)
    journal.idle_barrier()
    assert "ballast" in machine.names(), "it is made again when trimming has made room"
    fill(journal, 10, 300)
    machine.kill()
    assert machine.opened(ballast_bytes=2 * SEGMENT).head == 40


def test_a_snapshot_that_finds_no_room_has_the_ballast_s_at_the_next_try() -> None:
    machine = JournalMachine()
    journal = machine.opened(ballast_bytes=2 * SEGMENT)
    fill(journal, 30, 300)
    journal.idle_barrier()
    machine.medium.capacity_bytes = machine.medium.used_bytes()
    with pytest.raises(Unavailable):
        journal.save_snapshot(10, [b"x" * 5000])
    journal.idle_barrier()
    journal.save_snapshot(10, [b"x" * 5000])
    assert content(journal)[0] == 10
    assert journal.append(b"x") == 31


def test_opening_twice_after_no_room_is_the_same_object() -> None:
    machine = full(0)
    journal = machine.journal()
    with pytest.raises(Unavailable):
        journal.open(SHARD, "test")
    machine.medium.capacity_bytes = None
    assert journal.open(SHARD, "test").head == 30
