"""A journal written as files from what a reader shows: the same log, which goes on from where it ends."""

from __future__ import annotations

import pytest

from shards.journal import Gap, JournalError
from shards.journal.file.journal import FileJournal
from shards.journal.file.reader import FileReader
from shards.journal.file.writing import write_journal
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, START_NS, JournalMachine, file_journal, fill

COPY = "/copy"


def written(machine: JournalMachine, position: int) -> None:
    reader = FileReader(machine.process(), DIRECTORY, SHARD)
    machine.disk.mkdir(COPY)
    write_journal(machine.disk, COPY, SHARD, reader, position, START_NS, lambda: machine.rng.getrandbits(64))


def opened(machine: JournalMachine) -> FileJournal:
    """As the next daemon finds it after the machine was started anew."""
    machine.lose_power()
    journal = file_journal(COPY, machine.process(), machine.tick, machine.rng, "always", machine.segment_bytes)
    journal.open(SHARD, "test")
    return journal


@pytest.mark.parametrize("position", [0, 1, 7, 39, 40])
def test_it_is_the_log_up_to_its_position_and_goes_on_from_there(position: int) -> None:
    machine = JournalMachine()
    batches = fill(machine.opened(), 40, 300)
    written(machine, position)
    copy = opened(machine)
    assert copy.head == position
    assert list(copy.replay(1)) == batches[:position]
    assert copy.append(b"more") == position + 1


@pytest.mark.parametrize("position", [20, 25, 30, 40])
def test_snapshots_that_hold_no_more_than_it_come_along(position: int) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    batches = []
    for end in (10, 20, 30):
        batches += fill(journal, 10, 300)
        journal.save_snapshot(end, [b"as of %d" % end])
        journal.trim(end)
    batches += fill(journal, 10, 300)
    written(machine, position)
    copy = opened(machine)
    loaded = copy.load_snapshot()
    newest = min(position // 10 * 10, 30)
    assert loaded is not None
    assert (loaded.position, list(loaded.chunks)) == (newest, [b"as of %d" % newest])
    assert list(copy.replay(newest + 1)) == batches[newest:position]


def test_a_log_that_does_not_reach_back_far_enough_is_refused() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    for end in (100, 200, 300):
        fill(journal, 100, 300)
        journal.save_snapshot(end, [b"x"])
        journal.trim(end)
    with pytest.raises(Gap):
        written(machine, 150)


def test_a_lost_end_of_it_is_noticed() -> None:
    machine = JournalMachine()
    fill(machine.opened(), 10, 300)
    written(machine, 10)
    name = f"{COPY}/segment-0000000001"
    content = bytes(machine.medium.node(name).content)
    machine.medium.replace(name, content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(JournalError):
        opened(machine)
