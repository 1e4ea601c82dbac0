"""A copy of a journal's files: up to any position the same log, closed there, and nothing of it can be lost unseen."""

from __future__ import annotations

import pytest

from shards.journal import Corrupt, JournalError
from shards.journal.file.copying import copy_until
from shards.journal.file.journal import FileJournal
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine, file_journal, fill

COPY = "/copy"


def copied(machine: JournalMachine, position: int) -> list[str]:
    disk = machine.process()
    disk.mkdir(COPY)
    return copy_until(disk, DIRECTORY, COPY, SHARD, position)


def opened(machine: JournalMachine) -> FileJournal:
    """The copy, as the next daemon finds it after the machine was started anew."""
    machine.lose_power()
    journal = file_journal(COPY, machine.process(), machine.tick, machine.rng, "always", machine.segment_bytes)
    journal.open(SHARD, "test")
    return journal


@pytest.mark.parametrize("position", range(1, 41))
def test_a_copy_is_the_log_up_to_its_position_and_goes_on_from_there(position: int) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    batches = fill(journal, 40, 300)  # a segment holds about 12
    copied(machine, position)
    fill(journal, 3)
    copy = opened(machine)
    assert copy.head == position
    assert list(copy.replay(1)) == batches[:position]
    assert copy.append(b"more") == position + 1


def test_an_empty_journal_can_be_copied() -> None:
    machine = JournalMachine()
    machine.opened()
    copied(machine, 0)
    assert opened(machine).head == 0


def test_snapshots_up_to_the_position_are_in_it_and_no_later_ones() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    batches = fill(journal, 20, 300)
    journal.save_snapshot(20, [b"as of 20"])
    batches += fill(journal, 20, 300)
    journal.save_snapshot(40, [b"as of 40"])
    names = copied(machine, 30)
    assert sorted(name for name in names if name.startswith("snapshot")) == ["snapshot-00000000000000000020"]
    copy = opened(machine)
    snapshot = copy.load_snapshot()
    assert snapshot is not None
    assert (snapshot.position, b"".join(snapshot.chunks)) == (20, b"as of 20")
    assert list(copy.replay(21)) == batches[20:30]


def test_a_position_that_was_never_written_is_refused() -> None:
    machine = JournalMachine()
    fill(machine.opened(), 5)
    with pytest.raises(Corrupt):
        copied(machine, 6)


def test_whatever_is_missing_or_changed_in_a_copy_is_recognised_its_last_batch_included() -> None:
    """Every byte of the copy's last segment that says something, changed in turn; and every file, missing."""
    machine = JournalMachine()
    batches = fill(machine.opened(), 15, 300)
    names = copied(machine, 15)
    machine.lose_power()
    intact = {name: bytes(machine.medium.node(f"{COPY}/{name}").content) for name in names}
    damaged: list[tuple[str, int | None]] = [(name, None) for name in names if name != "segment-0000000001"]
    last = max(name for name in names if name.startswith("segment"))
    used = len(intact[last].rstrip(b"\0"))
    damaged += [(last, offset) for offset in range(0, used, 7)]
    silent = []
    for name, offset in damaged:
        path = f"{COPY}/{name}"
        if offset is None:
            machine.medium.remove(path)
        else:
            data = bytearray(intact[name])
            data[offset] ^= 0x10
            machine.medium.replace(path, bytes(data))
        journal = file_journal(COPY, machine.process(), machine.tick, machine.rng, "always", machine.segment_bytes)
        try:
            journal.open(SHARD, "test")
        except JournalError:
            pass
        else:
            if journal.head < 15 or list(journal.replay(1)) != batches:
                silent.append((name, offset))
        machine.kill()
        for copied_name, content in intact.items():
            machine.medium.replace(f"{COPY}/{copied_name}", content)
        for extra in set(machine.medium.directories[COPY].names) - set(intact):
            machine.medium.remove(f"{COPY}/{extra}")
    assert silent == []
