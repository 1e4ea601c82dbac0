"""Reading a journal's files beside its owner: what is whole is shown, and what was trimmed is a gap."""

from __future__ import annotations

import errno
from itertools import count

import pytest

from shards.journal import Absent, Corrupt, Gap, JournalError, Retained, Unfit, Unknown
from shards.journal.file.reader import FileReader
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine, fill, payload_of
from tests.simulation.disk import Fault


def reader_of(machine: JournalMachine) -> FileReader:
    return FileReader(machine.process(), DIRECTORY, SHARD)


def test_it_shows_what_its_owner_goes_on_appending() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    owner = machine.disk
    expected = fill(journal, 10)
    reader = FileReader(owner, DIRECTORY, SHARD)
    assert (reader.first, reader.head) == (1, 10)
    assert list(reader.replay(1)) == expected
    expected += fill(journal, 200)
    journal.idle_barrier()
    assert reader.head == 210
    assert list(reader.replay(7)) == expected[6:]
    assert list(reader.replay(211)) == []
    with pytest.raises(Gap):
        reader.replay(212)


def test_snapshots_are_shown_with_where_they_belong_and_trimming_is_a_gap() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    reader = FileReader(machine.disk, DIRECTORY, SHARD)
    assert reader.snapshots() == []
    for position in (100, 200, 300):
        fill(journal, 100)
        journal.save_snapshot(position, [b"as of ", b"%d" % position])
        journal.trim(position)
    rows = reader.snapshots()
    assert [(row.position, row.reached) for row in rows] == [(200, 200), (300, 300)]
    assert len({row.chain for row in rows}) == 2
    assert list(reader.chunks(200)) == [b"as of ", b"200"]
    with pytest.raises(Gap):
        list(reader.chunks(100))
    assert 1 < reader.first <= 201
    with pytest.raises(Gap):
        reader.replay(1)
    assert next(reader.replay(reader.first)) == (reader.first, payload_of(reader.first))


def test_a_batch_that_is_not_whole_yet_is_not_shown_and_one_that_was_is_damage() -> None:
    machine = JournalMachine()
    fill(machine.opened(), 40)
    machine.kill()
    newest = machine.batches(machine.segments()[-1])
    machine.damage(newest.name, newest.batches[-1].offset + 60, b"\xff\xff")
    reader = reader_of(machine)
    assert reader.head == newest.batches[-1].position - 1
    oldest = machine.batches(machine.segments()[0])
    machine.damage(oldest.name, oldest.batches[1].offset + 60, b"\xff\xff")
    with pytest.raises(Corrupt):
        list(reader_of(machine).replay(1))


def test_a_damaged_snapshot_is_none() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)
    journal.save_snapshot(2, [b"two"])
    journal.save_snapshot(3, [b"three"])
    machine.kill()
    machine.damage(machine.names("snapshot-")[-1], 60, b"\xff\xff\xff")
    reader = reader_of(machine)
    assert [row.position for row in reader.snapshots()] == [2]
    assert isinstance(reader.snapshots()[0], Retained)
    with pytest.raises(Corrupt):
        list(reader.chunks(3))


def test_there_is_no_journal_where_there_is_no_directory() -> None:
    machine = JournalMachine()
    machine.opened()
    with pytest.raises(Absent, match=f"^there is no directory {DIRECTORY}/none$"):
        FileReader(machine.disk, f"{DIRECTORY}/none", SHARD)
    with pytest.raises(Absent, match=f"^there is no directory {DIRECTORY}/nowhere$"):
        FileReader(machine.disk, f"{DIRECTORY}/nowhere/shard-1", SHARD)


def test_files_of_another_user_are_not_a_failed_disk() -> None:
    """Whichever call is not permitted: the operator has to be another user, and the disk is sound."""
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 20)
    journal.save_snapshot(20, [b"state"])
    machine.kill()
    for what, kind in ((errno.EACCES, Unfit), (errno.EIO, Unknown)):
        kinds = set()
        for call in count(3):  # the first two calls ask whether the directories exist
            disk = machine.process(Fault(call, what))
            reader = FileReader(disk, DIRECTORY, SHARD)
            try:
                reader.snapshots()
                list(reader.replay(1))
            except JournalError as error:
                kinds.add(type(error))
            if not disk.fired:
                break
        assert kinds == {kind}
