"""Something goes wrong at the n-th call of the disk, for every n until a run comes to its end without it.

Three lives of a journal are led by a script that does everything: first opening, segments filled, barriers, snapshots,
trimming, a clean stop, recovery from a kill. In one of the lives one call fails, falls short, or is the last one of the
process or of the machine. The script knows what it was answered; after each life a fresh process must find exactly
that, plus at most the one batch that was under way.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from shards.journal import JournalError, Unavailable, Unfit, Unknown
from shards.journal.file.journal import FileJournal
from tests.shards.journal.contract import content
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, JournalMachine, fill, payload_of
from tests.simulation.disk import Crashed, Fault

LIVES = 3


class AnswerRecord:
    """What the journal has answered, and what it was doing when it did not."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bytes]] = []
        self.open_batch: bytes | None = None
        self.snapshot: tuple[int, list[bytes] | None] = (-1, None)
        self.open_snapshot: tuple[int, list[bytes] | None] | None = None
        self.unavailable = 0

    def append(self, journal: FileJournal, size: int) -> None:
        payload = payload_of(len(self.batches) + 1, size)
        self.open_batch = payload
        position = journal.append(payload)
        self.open_batch = None
        self.batches.append((position, payload))
        assert position == len(self.batches)

    def save(self, journal: FileJournal, position: int) -> None:
        snapshot = (position, [b"as of %d" % position, b"x" * 700, b""])
        self.open_snapshot = snapshot
        journal.save_snapshot(*snapshot)
        self.snapshot, self.open_snapshot = snapshot, None  # those that were not answered may be gone at any time

    def compare(self, journal: FileJournal) -> None:
        """The journal was opened: all that was answered is there; what was under way is or is not, from now on."""
        if self.open_batch is not None and journal.head == len(self.batches) + 1:
            self.batches.append((journal.head, self.open_batch))
        assert journal.head == len(self.batches)
        position, chunks, batches = content(journal)
        assert (position, chunks) in (self.snapshot, self.open_snapshot)
        assert batches == self.batches[max(position, 0) :]
        self.open_batch = None


def lead(answers: AnswerRecord, journal: FileJournal, life: int) -> None:
    """One life. Unavailable is taken as it comes; anything else ends it."""

    def attempt(call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except Unavailable:
            answers.unavailable += 1
            answers.open_batch = None

    journal.open(SHARD, f"life {life}")
    answers.compare(journal)
    for number in range(8):
        attempt(answers.append, journal, 200 + 90 * number)
        if number % 3 == 0:
            attempt(journal.idle_barrier)
    attempt(answers.append, journal, 9000)
    head = journal.head
    if head >= 3 and answers.snapshot[0] <= head - 2:
        attempt(answers.save, journal, head - 2)
        attempt(answers.append, journal, 50)
        if answers.snapshot[0] == head - 2:
            attempt(journal.trim, head - 2)
    attempt(answers.append, journal, 1500)
    if life == 1:
        journal.close()


def live(machine: JournalMachine, answers: AnswerRecord, life: int, fault: Fault | None = None) -> int:
    """One life, to its end; how often the fault fired."""
    journal = machine.journal(fault=fault, ballast_bytes=4096)
    try:
        lead(answers, journal, life)
    except (Unavailable, Unknown, Unfit, Crashed):  # unfit: a place that cannot be written, at the opening
        assert machine.disk.fired, "nothing was to go wrong in this life"
    machine.kill()
    return machine.disk.fired


@cache
def before_life(life: int) -> bytes:
    """The machine and what was answered, pickled, after the lives before this one, in which nothing goes wrong."""
    machine, answers = JournalMachine(), AnswerRecord()
    for earlier in range(life):
        live(machine, answers, earlier)
    return pickle.dumps((machine, answers))


def run(fault: Fault, faulty_life: int, seed: int) -> tuple[int, AnswerRecord]:
    """The life with the fault and those after it; (how often it fired, what was answered)."""
    machine, answers = pickle.loads(before_life(faulty_life))
    machine.rng.seed(seed)
    fired = live(machine, answers, faulty_life, fault)
    if fault.what == "power":
        machine.lose_power()
    for life in range(faulty_life + 1, LIVES):
        live(machine, answers, life)
    answers.compare(machine.opened())
    machine.lose_power()
    answers.compare(machine.opened())
    return fired, answers


@pytest.mark.parametrize("life", range(LIVES))
@pytest.mark.parametrize(
    ("what", "sticky"),
    [
        (errno.EIO, False),
        (errno.EIO, True),
        (errno.ENOSPC, False),
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EROFS, True),
        ("short", False),
        ("short", True),
    ],
)
def test_an_error_at_any_call_loses_nothing_that_was_answered(life: int, what: int | str, sticky: bool) -> None:
    call = unavailable = 0
    fired = 1
    while fired:
        call += 1
        fired, answers = run(Fault(call, what, sticky), life, seed=call)
        unavailable += answers.unavailable
    assert call > 80, "the script did little"
    assert bool(unavailable) == (what in (errno.ENOSPC, errno.EDQUOT)), (
        "a full disk, and nothing else, can be waited for"
    )


@pytest.mark.parametrize("life", range(LIVES))
@pytest.mark.parametrize(("what", "seed"), [("kill", 0), *(("power", seed) for seed in range(4))])
def test_an_end_at_any_call_loses_nothing_that_was_answered(life: int, what: str, seed: int) -> None:
    call, fired = 0, 1
    while fired:
        call += 1
        fired, _ = run(Fault(call, what), life, seed=1000 * seed + call)
    assert call > 80


# -- recovery --------------------------------------------------------------------------------------------------------


def before(seed: int, fault: Fault | None = None) -> tuple[JournalMachine, FileJournal]:
    """Batches 1 to 20 in several segments, two snapshots; not yet ended."""
    machine = JournalMachine(seed)
    journal = machine.opened(fault=fault)
    fill(journal, 12, 400)
    journal.save_snapshot(5, [b"five"])
    journal.save_snapshot(11, [b"eleven"])
    fill(journal, 8, 400)
    return machine, journal


def fresh(seed: int) -> JournalMachine:
    return JournalMachine(seed)


def killed(seed: int) -> JournalMachine:
    machine, _ = before(seed)
    machine.kill()
    return machine


def closed(seed: int) -> JournalMachine:
    machine, journal = before(seed)
    journal.close()
    return machine


def torn(seed: int) -> JournalMachine:
    """The power was lost within the write of batch 21."""
    machine, journal = before(seed)
    fill(journal, 1, 2000)
    machine, journal = before(seed, Fault(machine.disk.calls - 1, "power"))
    with pytest.raises(Crashed):
        fill(journal, 1, 2000)
    assert machine.disk.trace[-1].startswith("write segment-")
    return machine


def cached(seed: int) -> JournalMachine:
    """The sync of batch 21 failed: the cache has it, the medium does not."""
    machine, journal = before(seed)
    fill(journal, 1, 400)
    machine, journal = before(seed, Fault(machine.disk.calls, errno.EIO))
    with pytest.raises(Unknown):
        fill(journal, 1, 400)
    assert machine.disk.trace[-1].startswith("fdatasync segment-")
    machine.kill()
    return machine


def damaged(seed: int) -> JournalMachine:
    """The newer snapshot rotted."""
    machine = killed(seed)
    machine.medium.flip(f"{DIRECTORY}/{machine.names('snapshot-')[-1]}", 700)
    return machine


SCENES: dict[Callable[[int], JournalMachine], set[int]] = {
    fresh: {0}, killed: {20}, closed: {20}, torn: {20, 21}, cached: {20, 21}, damaged: {20},
}  # fmt: skip


def judged(
    machine: JournalMachine, heads: set[int], snapshot: int
) -> tuple[int, list[bytes] | None, list[tuple[int, bytes]]]:
    """Opens it, whole: what it says, which must be one of the states it may be in."""
    journal = machine.opened()
    assert journal.head in heads
    content_read = content(journal)
    assert content_read[0] == snapshot
    sizes = {21: 2000} if len(content_read[2]) and len(content_read[2][-1][1]) == 2000 else {}
    first = max(snapshot, 0) + 1
    assert content_read[2] == [(n, payload_of(n, sizes.get(n, 400))) for n in range(first, journal.head + 1)]
    machine.kill()
    return content_read


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("what", ["kill", "power", errno.EIO, errno.ENOSPC])
def test_recovery_that_ends_at_any_call_and_is_done_again_finds_the_same(
    scene: Callable[..., Any], what: int | str
) -> None:
    heads, snapshot = SCENES[scene], {fresh: -1, damaged: 5}.get(scene, 11)
    reference = judged(scene(1), heads, snapshot)
    for call in range(1, 300):
        machine = scene(call)
        fired = 0
        for attempt in (call, 1 + call // 2, call):  # and again, at an earlier call and at the same one
            journal = machine.journal(fault=Fault(attempt, what))
            try:
                journal.open(SHARD, "recovering")
            except (Crashed, Unknown, Unavailable):
                assert machine.disk.fired
            fired += machine.disk.fired
            machine.kill()
        content_read = judged(machine, heads, snapshot)
        if len(heads) == 1:
            assert content_read == reference
        machine.lose_power()
        assert judged(machine, heads, snapshot) == content_read, "what one opening has shown stays"
        if fired < 2:
            assert call > 20
            return
    raise AssertionError("no recovery ever came to its end")


@pytest.mark.parametrize("call", [lambda journal: journal.append(b"second"), lambda journal: journal.idle_barrier()])
def test_a_record_that_was_broken_off_is_followed_by_nothing_and_no_stop_is_clean(
    call: Callable[[FileJournal], object],
) -> None:
    """The log may end otherwise than the journal knows; the next start would hold a clean stop for damage."""
    machine = JournalMachine()
    journal = machine.opened()
    journal.append(b"first")

    def out_of_memory(path: str, node: object) -> None:
        raise MemoryError

    looking, machine.disk.on_sync = machine.disk.on_sync, out_of_memory
    with pytest.raises(MemoryError):
        call(journal)
    machine.disk.on_sync = looking
    with pytest.raises(JournalError, match="broken off"):
        journal.append(b"third")
    journal.close()
    again = machine.opened()
    assert [payload for _, payload in again.replay(1)] in ([b"first"], [b"first", b"second"])


def test_the_scenes_are_what_they_say() -> None:
    assert any("torn" in warning for seed in range(20) for warning in torn(seed).opened().warnings)
    assert cached(1).opened().head == 21
    lost = cached(1)
    lost.lose_power()
    assert lost.opened().head == 20
    assert any("damaged snapshot" in warning for warning in damaged(1).opened().warnings)
