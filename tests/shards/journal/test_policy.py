"""Torn or corrupt: what opening does with an end of the log that is not right, rule by rule of `recovery`."""

from __future__ import annotations

import errno

import pytest

from shards.exits import Exit, ending_of
from shards.journal import Corrupt, JournalError, Starved, Unfit, Unknown
from shards.journal.file.record import BARRIER, HEADER_BYTES, pack_batch, salt_seed
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine, Segment, fill
from tests.simulation.disk import Crashed, Fault


def machine_with(count: int = 5, *, size: int = 100, barrier: bool = False, sync: str = "always") -> JournalMachine:
    """A machine whose journal holds so many batches in one segment, killed."""
    machine = JournalMachine()
    journal = machine.opened(sync=sync)
    fill(journal, count, size)
    if barrier:
        journal.idle_barrier()
    machine.kill()
    return machine


def refused(machine: JournalMachine, kind: type[JournalError] = Corrupt) -> JournalError:
    """Opening is refused, and nothing on the disk is different afterwards."""
    before = {name: machine.content(name) for name in machine.names()}
    with pytest.raises(kind) as caught:
        machine.opened()
    machine.kill()
    assert {name: machine.content(name) for name in machine.names()} == before
    return caught.value


def newest(machine: JournalMachine) -> Segment:
    return machine.batches(machine.segments()[-1])


def reboot(machine: JournalMachine) -> None:
    """The machine was started anew, and nothing was lost by it."""
    for node in machine.medium.directories[DIRECTORY].names.values():
        node.synced()
    machine.medium.directories[DIRECTORY].synced()
    machine.lose_power()


# -- rule 1: something good behind it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["header", "payload", "end"])
@pytest.mark.parametrize("number", [0, 2, 3])
@pytest.mark.parametrize("rebooted", [False, True])
def test_a_damaged_batch_with_a_good_one_behind_it_is_corrupt(part: str, number: int, rebooted: bool) -> None:
    machine = machine_with(5)
    segment = newest(machine)
    batch = segment.batches[number]
    at = {"header": batch.offset + 20, "payload": batch.payload_at + 7, "end": batch.payload_end + 2}[part]
    machine.damage(segment.name, at, b"\xaa\x55")
    if rebooted:
        reboot(machine)
    error = refused(machine)
    assert (error.file, error.offset, error.position) == (f"{DIRECTORY}/{segment.name}", batch.offset, number + 1)


def test_a_batch_that_became_zeros_with_a_good_one_behind_it_is_corrupt() -> None:
    machine = machine_with(5)
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[1].offset, bytes(1024))
    reboot(machine)
    assert refused(machine).position == 2


def test_a_barrier_proves_the_batch_before_it() -> None:
    for barrier in (False, True):
        machine = machine_with(5, barrier=barrier)
        segment = newest(machine)
        last = segment.batches[4]
        machine.damage(segment.name, last.payload_at, b"\xaa\x55")
        reboot(machine)
        if barrier:
            assert refused(machine).position == 5
        else:  # nothing says that it was ever answered: it may be a write that the loss of power tore
            assert machine.opened().head == 4


def test_a_damaged_barrier_with_a_batch_behind_it_is_corrupt() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)
    journal.idle_barrier()
    fill(journal, 1)
    machine.kill()
    segment = newest(machine)
    assert [batch.flags for batch in segment.batches] == [0, 0, 0, BARRIER, 0]
    machine.damage(segment.name, segment.batches[3].offset + 20, b"\xaa")
    reboot(machine)
    assert refused(machine).position == 4


def test_a_damaged_barrier_at_the_end_costs_nothing() -> None:
    machine = machine_with(3, barrier=True)
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[3].offset + 20, b"\xaa")
    reboot(machine)
    journal = machine.opened()
    assert journal.head == 3
    assert [position for position, _ in journal.replay(1)] == [1, 2, 3]


def test_damage_in_a_segment_that_another_follows_is_corrupt_even_at_its_end() -> None:
    machine = machine_with(30, size=300)
    first, *_ = machine.segments()
    assert len(machine.segments()) > 2
    last = machine.batches(first).batches[-1]
    machine.damage(first, last.payload_at, b"\xaa\x55")
    reboot(machine)
    error = refused(machine)
    assert (error.file, error.position) == (f"{DIRECTORY}/{first}", last.position)


def test_bytes_that_imitate_a_later_header_do_not_make_a_torn_batch_corrupt() -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 2)
    header = newest(machine).header
    imitation = pack_batch(salt_seed(header.salt ^ 1), header.segment_id, 0, 9, 0, 8, 0, b"x")[1]
    journal.append(imitation * 5)
    machine.kill()
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[2].payload_end, bytes(4))
    reboot(machine)
    assert machine.opened().head == 2


def test_batches_that_nothing_proves_durable_may_tear_in_any_order() -> None:
    """Without a sync between them a later one may be on the disk and an earlier one not: a loss of power, no damage."""
    machine = machine_with(5, sync="never")
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[2].payload_at, b"\xaa\x55")
    reboot(machine)
    assert machine.opened(sync="never").head == 2


def test_after_a_sync_between_them_they_may_not() -> None:
    machine = JournalMachine()
    journal = machine.opened(sync="interval")  # a sync comes about every third append
    fill(journal, 7)
    machine.kill()
    segment = newest(machine)
    proofs = [batch.position for batch in segment.batches if batch.durable == batch.position - 1 and batch.position > 2]
    assert 0 < len(proofs) < 5
    machine.damage(segment.name, segment.batches[proofs[0] - 2].payload_at, b"\xaa\x55")
    reboot(machine)
    assert refused(machine).position == proofs[0] - 1


# -- rule 2: closed cleanly -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "gone", "behind"])
def test_after_a_clean_stop_nothing_passes_for_a_torn_tail(damage: str) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 5)
    journal.close()
    segment = newest(machine)
    last = segment.batches[-1]
    match damage:
        case "torn":
            machine.damage(segment.name, last.payload_at + 50, bytes(60))
        case "gone":
            machine.damage(segment.name, last.offset, bytes(512))
        case "behind":
            machine.damage(segment.name, last.offset + 512, b"\1")
    reboot(machine)
    error = refused(machine)
    assert error.file == f"{DIRECTORY}/{segment.name}"
    assert error.offset == (last.offset + 512 if damage == "behind" else last.offset)


def test_a_clean_stop_counts_only_until_the_next_opening() -> None:
    machine = JournalMachine()
    for life in range(3):
        journal = machine.opened()
        fill(journal, 2)
        if life < 2:
            journal.close()
    machine.kill()
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[-1].payload_at, b"\xaa")
    reboot(machine)
    assert machine.opened().head == 5


# -- rule 3: the kernel still has every byte --------------------------------------------------------------------------


def test_damage_to_the_last_batch_without_a_new_start_of_the_machine_is_corrupt() -> None:
    machine = machine_with(5)
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[4].payload_at, b"\xaa\x55")
    assert refused(machine).position == 5


@pytest.mark.parametrize("kept_bytes", [1, 4, 8, 51, 52, 60, 151, 155])
def test_a_last_batch_cut_short_by_a_kill_is_torn(kept_bytes: int) -> None:
    machine = machine_with(4)
    journal = machine.opened()
    fill(journal, 1)
    machine.kill()
    segment = newest(machine)
    batch = segment.batches[-1]
    assert batch.end - batch.offset == HEADER_BYTES + 104 == 156
    machine.damage(segment.name, batch.offset + kept_bytes, bytes(156 - kept_bytes))
    journal = machine.opened()
    assert journal.head == 4
    assert "torn" in journal.warnings[0]


def test_something_behind_a_gap_of_zeros_is_not_cut_short() -> None:
    machine = machine_with(5)
    segment = newest(machine)
    machine.damage(segment.name, segment.batches[-1].offset + 1024, b"\1")
    error = refused(machine)
    assert error.position == 6


# -- rule 4: a torn tail ----------------------------------------------------------------------------------------------


def test_a_torn_tail_is_kept_aside_and_the_log_goes_on_in_a_new_segment() -> None:
    machine = machine_with(5)
    torn = newest(machine)
    machine.damage(torn.name, torn.batches[4].payload_at + 10, bytes(90))
    before = machine.content(torn.name)
    reboot(machine)
    journal = machine.opened()
    (copy,) = machine.names(f"{torn.name}.torn-")
    assert machine.content(copy) == before.rstrip(b"\0")
    assert journal.head == 4
    assert f"offset {torn.batches[4].offset}" in journal.warnings[0]
    assert journal.append(b"new five") == 5
    machine.kill()
    assert newest(machine).name != torn.name
    assert [payload for _, payload in machine.opened().replay(5)] == [b"new five"]


def test_no_life_ever_writes_to_a_segment_of_an_earlier_one() -> None:
    machine = JournalMachine()
    for life in range(6):
        earlier = set(machine.segments()) if life else set()
        journal = machine.opened()
        fill(journal, 25, 200)
        journal.idle_barrier()
        written = {call.split()[1] for call in machine.disk.trace if call.startswith(("write", "allocate"))}
        assert not written & earlier
        machine.lose_power() if life % 2 else machine.kill()
    assert machine.opened().head == 150


def test_a_torn_tail_is_copied_once_however_often_opening_is_tried() -> None:
    machine = machine_with(5)
    torn = newest(machine)
    machine.damage(torn.name, torn.batches[4].payload_at, bytes(100))
    reboot(machine)
    for call in range(1, 60):
        journal = machine.journal(fault=Fault(call, "kill"))
        try:
            journal.open(SHARD, "test")
        except Crashed:
            continue
        break
    assert len(machine.names(f"{torn.name}.torn-")) == 1
    assert journal.head == 4


# -- rule 5: a read error is not the end of the log -------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.EACCES])
def test_a_read_error_is_not_the_end_of_the_log(error: int) -> None:
    machine = machine_with(30, size=300)
    reads = [number for number, call in enumerate(trace_of_opening(machine), 1) if call.startswith(("read", "open"))]
    assert len(reads) > 10
    for call in reads:
        journal = machine.journal(fault=Fault(call, error))
        with pytest.raises((Unknown, Unfit)):  # unfit: a place that may not be read or written, not a disk that failed
            journal.open(SHARD, "test")
        with pytest.raises(JournalError):
            journal.append(b"x")
        machine.kill()
    assert machine.opened().head == 30


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_lack_of_descriptors_or_memory_is_no_failed_disk_and_passes(error: int) -> None:
    machine = machine_with(30, size=300)
    for call in range(1, len(trace_of_opening(machine)) + 1):
        lacking = machine.journal(fault=Fault(call, error))
        with pytest.raises(Starved) as lack:
            lacking.open(SHARD, "test")
        assert ending_of(lack.value).code == Exit.AGAIN
        assert "the disk failed" not in str(lack.value)
        machine.kill()
    assert machine.opened().head == 30


def trace_of_opening(machine: JournalMachine) -> list[str]:
    copied_machine = JournalMachine(medium=machine.medium.copy())
    copied_machine.opened()
    return copied_machine.disk.trace


# -- the page cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_what_only_the_cache_knows_is_written_anew_before_anybody_hears_of_it(lives: int) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 3)
    calls = machine.disk.calls
    machine.kill()
    machine = (
        JournalMachine()
    )  # the same again, but the sync of the fourth batch fails: the cache has it, the disk never will
    journal = machine.opened(fault=Fault(calls + 2, errno.EIO))
    fill(journal, 3)
    with pytest.raises(Unknown):
        journal.append(b"never answered")
    machine.kill()
    for _ in range(lives):
        journal = machine.opened()
        assert journal.head == 4
        machine.kill()
    machine.lose_power()
    journal = machine.opened()
    assert list(journal.replay(4)) == [(4, b"never answered")]


def test_what_is_proven_durable_is_not_written_anew() -> None:
    machine = machine_with(6, size=1000, barrier=True)
    machine.opened()
    assert newest(machine).batches == []
    assert newest(machine).header.first_position == 7
    machine = machine_with(6, size=1000)
    machine.opened()
    assert [(batch.position, batch.flags) for batch in newest(machine).batches] == [(6, 0), (6, BARRIER)]


@pytest.mark.parametrize("what", [errno.EIO, "short"])
@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_failed_write_or_sync_is_never_repeated(call: str, what: int | str) -> None:
    machine = JournalMachine()
    journal = machine.opened()
    fill(journal, 2)
    number = machine.disk.calls + (1 if call == "write" else 2)
    machine = JournalMachine()
    journal = machine.opened(fault=Fault(number, what))
    fill(journal, 2)
    if what == "short" and call == "write":
        assert journal.append(b"x" * 100) == 3
        assert machine.disk.trace[-3:] == ["write segment-0000000001"] * 2 + ["fdatasync segment-0000000001"]
        return
    if what == "short":
        return
    for _ in range(3):
        with pytest.raises(Unknown) as caught:
            journal.append(b"x")
    for refused_call in (journal.idle_barrier, journal.load_snapshot, lambda: journal.trim(0)):
        with pytest.raises(Unknown):
            refused_call()
    assert (caught.value.file, caught.value.position) == (f"{DIRECTORY}/segment-0000000001", 3)
    journal.close()
    assert machine.disk.trace[number - 1] == f"{call} segment-0000000001"
    assert len(machine.disk.trace) == number, "no other call after the one that failed"
