"""Snapshot files: their bytes, how one comes to be, and what opening does when the newest is not good."""

from __future__ import annotations

import errno

import pytest

from shards.journal import Corrupt, Unknown
from shards.journal.file import snapshot
from shards.journal.file.record import Malformed
from tests.shards.journal.contract import content
from tests.shards.journal.journal_machine import DIRECTORY, JournalMachine, fill, payload_of
from tests.shards.journal.test_policy import refused

HEAD = snapshot.Head(7, 0x01020304, 5, 2, 1_727_000_000_000_000_000)


def written(machine: JournalMachine, chunks: list[bytes], name: str = "x") -> bytes:
    disk = machine.process()
    disk.mkdir(DIRECTORY)
    snapshot.write(disk, f"{DIRECTORY}/{name}", HEAD, chunks, lambda: 9)
    return machine.content(name)


def test_the_bytes_of_a_snapshot_are_these() -> None:
    data = written(JournalMachine(), [b"hello", b""])
    assert data.hex() == (
        "42534e500100000007000000040302010500000000000000020000000000000000801997"
        "5989f717"
        "878457aa"
        "b143484b050000000feb0988ae53bb42"
        "68656c6c6f"
        "b143484b000000000feb0988e4ac9a2a"
        "b146494e0200000009000000000000007d00000000000000"
        "382965cbb3315391e10cd4e8c5d7bf56"
        "4b599987"
    )


@pytest.mark.parametrize("chunks", [[], [b""], [b"a", b"b" * 300_000, b"", b"c"], [b"x" * 1000] * 5000])
def test_what_is_written_is_read(chunks: list[bytes]) -> None:
    machine = JournalMachine()
    data = written(machine, chunks)
    checked = snapshot.check(machine.disk, DIRECTORY, "x", 7)
    assert checked == ("x", HEAD, len(chunks), 9, len(data))
    assert list(snapshot.Reader(machine.disk, f"{DIRECTORY}/x").chunks()) == chunks


def test_a_long_snapshot_is_synced_piece_by_piece() -> None:
    machine = JournalMachine()
    written(machine, [b"x" * 100_000] * 120)
    syncs = [number for number, call in enumerate(machine.disk.trace) if call == "fdatasync x"]
    assert len(syncs) == 2
    assert machine.disk.trace[-2:] == ["fsync x", "drop_cache x"]


def test_a_snapshot_of_another_shard_is_malformed() -> None:
    machine = JournalMachine()
    written(machine, [b"x"])
    with pytest.raises(Malformed, match="shard 7, not to 8"):
        snapshot.check(machine.disk, DIRECTORY, "x", 8)


def test_chunks_that_changed_places_are_malformed() -> None:
    machine = JournalMachine()
    data = written(machine, [b"one!!", b"two!!"])
    first, size = 44, 16 + 5
    first_chunk, two = data[first : first + size], data[first + size : first + 2 * size]
    machine.replace("x", data[:first] + two + first_chunk + data[first + 2 * size :])
    with pytest.raises(Malformed, match="offset 44"):
        snapshot.check(machine.disk, DIRECTORY, "x", 7)


def test_a_footer_of_other_chunks_is_malformed_though_every_checksum_is_right() -> None:
    machine = JournalMachine()
    hello, two = written(machine, [b"hello"], "one"), written(JournalMachine(), [b"hullo"])
    machine.replace("x", two[:-44] + hello[-44:])
    with pytest.raises(Malformed, match="digest"):
        snapshot.check(machine.disk, DIRECTORY, "x", 7)


def test_names_sort_as_positions_and_nothing_else_is_one() -> None:
    positions = [0, 9, 10, 2**63 - 1]
    names = [snapshot.name_of(position) for position in positions]
    assert names == sorted(names)
    assert [snapshot.position_of(name) for name in names] == positions
    for wrong_name in (
        "snapshot-1",
        names[1] + ".tmp",
        names[1] + ".damaged",
        "snapshot-" + "x" * 20,
        "segment-0000000001",
    ):
        assert snapshot.position_of(wrong_name) == -1


# -- how one comes to be ---------------------------------------------------------------------------------------------


def test_it_is_synced_read_back_renamed_and_the_directory_synced_before_older_ones_go() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)
    for position in (1, 2):
        journal.save_snapshot(position, [b"x"])
    before = len(machine.disk.trace)
    journal.save_snapshot(3, [b"x"])
    oldest, _, new = (snapshot.name_of(position) for position in (1, 2, 3))
    calls = [call for call in machine.disk.trace[before:] if not call.startswith("read")]
    assert calls == [
        f"create {new}.tmp", f"write {new}.tmp", f"fsync {new}.tmp", f"drop_cache {new}.tmp", f"open {new}.tmp",
        f"rename {new}.tmp", "fsync_dir data", f"unlink {oldest}",
    ]  # fmt: skip


def test_one_that_reads_back_otherwise_is_the_end_and_gets_no_name() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)
    name = snapshot.name_of(2)

    class Rotting(type(machine.disk)):  # type: ignore[misc]
        def drop_cache(self, handle: int) -> None:
            self.medium.flip(f"{DIRECTORY}/{name}.tmp", 500)

    machine.disk.__class__ = Rotting
    with pytest.raises(Unknown, match="reading a snapshot back"):
        journal.save_snapshot(2, [b"x" * 100])
    with pytest.raises(Unknown):
        journal.append(b"x")
    machine.kill()
    assert machine.names("snapshot-") == []
    assert machine.opened().head == 3


def test_segments_go_only_behind_the_older_of_two_snapshots() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 40, 300)
    first = machine.segments()[0]
    journal.save_snapshot(20, [b"x"])
    journal.trim(20)
    assert first in machine.segments(), "with one snapshot there must be a way without it"
    journal.save_snapshot(35, [b"x"])
    journal.trim(35)
    assert first not in machine.segments()
    oldest = machine.batches(machine.segments()[0])
    assert oldest.header.first_position <= 21 <= oldest.batches[-1].position + 1
    removed = [call for call in machine.disk.trace if call.startswith("unlink segment-")]
    assert removed == sorted(removed), "oldest first"
    assert machine.disk.trace[-1] == "fsync_dir data"


# -- the newest is not good ------------------------------------------------------------------------------------------


def with_two_snapshots() -> JournalMachine:
    """Batches 1 to 40; snapshots at 10, 20 and 30, of which two are kept; trimmed."""
    machine = JournalMachine()
    journal = machine.opened()
    for position in (10, 20, 30):
        fill(journal, 10, 300)
        journal.save_snapshot(position, [b"as of %d" % position])
        journal.trim(position)
    fill(journal, 10, 300)
    machine.kill()
    assert [snapshot.position_of(name) for name in machine.names("snapshot-")] == [20, 30]
    return machine


def log(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(number, payload_of(number, 300)) for number in range(first, last + 1)]


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "gone", "older content"])
def test_a_newest_one_that_is_not_good_is_passed_over_if_the_log_behind_the_older_is_whole(damage: str) -> None:
    machine = with_two_snapshots()
    older, newest = machine.names("snapshot-")
    match damage:
        case "flip":
            machine.medium.flip(f"{DIRECTORY}/{newest}", 500)
        case "short":
            machine.replace(newest, machine.content(newest)[:-1])
        case "empty":
            machine.replace(newest, b"")
        case "gone":
            machine.remove(newest)
        case "older content":
            machine.replace(newest, machine.content(older))
    journal = machine.opened()
    assert content(journal) == (20, [b"as of 20"], log(21, 40))
    if damage != "gone":
        assert machine.names(f"{newest}.damaged")
        assert any(newest in warning for warning in journal.warnings)
    journal.save_snapshot(40, [b"as of 40"])
    machine.kill()
    assert content(machine.opened()) == (40, [b"as of 40"], [])


def test_without_the_log_behind_the_older_it_is_corrupt() -> None:
    machine = with_two_snapshots()
    newest = machine.names("snapshot-")[-1]
    machine.medium.flip(f"{DIRECTORY}/{newest}", 500)
    for name in machine.segments():
        if machine.batches(name).header.first_position <= 25:
            machine.remove(name)
    error = refused(machine)
    assert error.file == f"{DIRECTORY}/{newest}"


def test_no_good_snapshot_and_a_trimmed_log_is_corrupt() -> None:
    machine = with_two_snapshots()
    for name in machine.names("snapshot-"):
        machine.medium.flip(f"{DIRECTORY}/{name}", 500)
    assert refused(machine).file == f"{DIRECTORY}/{machine.names('snapshot-')[-1]}"


def test_no_good_snapshot_and_the_whole_log_is_enough() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 10)
    journal.save_snapshot(5, [b"x"])
    machine.kill()
    machine.medium.flip(f"{DIRECTORY}/{snapshot.name_of(5)}", 500)
    journal = machine.opened()
    assert content(journal) == (-1, None, [(number, payload_of(number)) for number in range(1, 11)])


def test_a_snapshot_of_another_log_is_corrupt() -> None:
    """Two directories were mixed up: same shard, same positions, other batches."""
    foreign_machine = JournalMachine(seed=2)
    journal = foreign_machine.opened()
    fill(journal, 10, 99)
    journal.save_snapshot(8, [b"x"])
    machine = JournalMachine()
    fill(machine.opened(), 10, 100)
    machine.kill()
    machine.replace(snapshot.name_of(8), foreign_machine.content(snapshot.name_of(8)))
    assert "not taken from this log" in str(refused(machine))


def test_damage_while_it_is_loaded_is_corrupt() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 2)
    journal.save_snapshot(2, [b"a" * 100, b"b" * 100])
    loaded = journal.load_snapshot()
    assert loaded is not None
    assert next(loaded.chunks) == b"a" * 100
    machine.medium.flip(f"{DIRECTORY}/{snapshot.name_of(2)}", 8 * 200)
    with pytest.raises(Corrupt, match="damaged"):
        next(loaded.chunks)


def test_an_error_while_it_is_loaded_is_the_end() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 2)
    journal.save_snapshot(2, [b"a" * 100])
    for calls_ahead in (1, 2, 4):  # open, and reads
        machine.kill()
        journal = machine.opened()
        loaded = journal.load_snapshot()
        assert loaded is not None
        machine.disk.fail(errno.EIO, calls_ahead=calls_ahead)
        with pytest.raises(Unknown):
            list(loaded.chunks)
        assert machine.disk.fired
