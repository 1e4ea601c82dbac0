"""The contract of a journal as tests: every backend passes them, through the seam alone.

A backend's test module derives a class from `JournalContract`, and from its other parts `SnapshotContract` and
`BesideContract`, where its machine can be made to fail also from those of `contract_machine`, and gives it a fixture
`backend`, a `Backend`. Nothing here knows of files, segments or offsets.
"""

from __future__ import annotations

import random
from typing import Protocol

import pytest

from shards.journal import Fenced, Gap, Journal, JournalError, Reader

OWNER = "worker-7 pid 4711"


class Backend(Protocol):
    """One storage, processes that come and go, and one machine under them."""

    can_lose_power: bool

    def journal(self, sync: str = "always") -> Journal:
        """A new journal object in a new process; earlier ones live on until `kill`."""

    def reader(self) -> Reader:
        """Reads shard 7 in a new process, and owns nothing."""

    def kill(self) -> None:
        """Ends all processes, as kill -9 does."""

    def lose_power(self) -> None:
        """Ends all processes and everything that was not durable."""

    def fill(self) -> None:
        """There is no room any more."""

    def free(self) -> None:
        """There is room again."""

    def step_clock(self, by_ns: int) -> None:
        """Turns the clock that stamps batches."""


def content(journal: Journal) -> tuple[int, list[bytes] | None, list[tuple[int, bytes]]]:
    """All that a journal says of the past: snapshot position (-1: none), its chunks, the batches behind it."""
    snapshot = journal.load_snapshot()
    if snapshot is None:
        return -1, None, list(journal.replay(1))
    return snapshot.position, list(snapshot.chunks), list(journal.replay(snapshot.position + 1))


def payload_of(position: int, size: int = 40) -> bytes:
    return (b"%d " % position * size)[:size]


class JournalContract:
    """See the module. Each test is one sentence of `shards.journal`."""

    # -- opening -----------------------------------------------------------------------------------------------------

    def test_a_new_journal_is_empty_and_its_first_epoch_is_1(self, backend: Backend) -> None:
        journal = backend.journal()
        assert journal.open(7, OWNER)[:2] == (1, 0)
        assert journal.head == 0
        assert content(journal) == (-1, None, [])

    def test_each_opening_raises_the_epoch(self, backend: Backend) -> None:
        for epoch in range(1, 6):
            journal = backend.journal()
            assert journal.open(7, OWNER).epoch == epoch
            if epoch % 2:
                journal.close()
            else:
                backend.kill()

    def test_of_two_owners_one_is_fenced(self, backend: Backend) -> None:
        older, newer = backend.journal(), backend.journal()
        older.open(7, "older")
        older.append(b"one")
        try:
            newer.open(7, "newer")
        except Fenced:
            assert older.append(b"two") == 2
            older.close()
            assert newer.open(7, "newer")[:2] == (2, 2)
        else:
            with pytest.raises(Fenced):
                older.append(b"two")
            with pytest.raises(Fenced):
                older.append(b"two")
        assert newer.append(b"three") == newer.head

    def test_an_owner_that_was_killed_holds_nothing(self, backend: Backend) -> None:
        backend.journal().open(7, "older")
        backend.kill()
        assert backend.journal().open(7, "newer").epoch == 2

    def test_a_name_that_is_too_long_is_refused_before_anything_happens(self, backend: Backend) -> None:
        journal = backend.journal()
        with pytest.raises(ValueError, match="64"):
            journal.open(7, "x" * 65)
        assert journal.open(7, "x" * 64).epoch == 1

    @pytest.mark.parametrize("call", ["append", "idle_barrier", "replay", "load_snapshot", "save_snapshot", "trim"])
    def test_nothing_works_before_open_or_after_close(self, backend: Backend, call: str) -> None:
        arguments = {"append": (b"x",), "replay": (1,), "save_snapshot": (0, []), "trim": (0,)}.get(call, ())
        journal = backend.journal()
        with pytest.raises(JournalError):
            getattr(journal, call)(*arguments)
        journal.open(7, OWNER)
        journal.close()
        with pytest.raises(JournalError):
            getattr(journal, call)(*arguments)
        journal.close()

    # -- the sequence ------------------------------------------------------------------------------------------------

    def test_positions_count_from_1_without_a_gap(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        assert [journal.append(payload_of(number)) for number in range(1, 50)] == list(range(1, 50))
        assert journal.head == 49

    def test_replay_yields_what_was_appended_from_any_position(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        sizes = [1, 2, 511, 512, 513, 5000, 40, 40_000, 3, 100]  # some larger than what a backend puts in one piece
        batches = [(number, payload_of(number, size)) for number, size in enumerate(sizes, 1)]
        for position, payload in batches:
            assert journal.append(payload) == position
        for start in range(1, len(batches) + 2):
            assert list(journal.replay(start)) == batches[start - 1 :]
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == len(batches)
        for start in range(1, len(batches) + 2):
            assert list(journal.replay(start)) == batches[start - 1 :]

    def test_payloads_may_look_like_anything(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        payloads = [b"\0", b"\0" * 3000, b"\xff" * 600, b"\xb1BAT" * 200, b"\xb1END", bytes(range(256)) * 5]
        for payload in payloads:
            journal.append(payload)
        backend.kill()
        journal = backend.journal()
        journal.open(7, OWNER)
        assert [payload for _, payload in journal.replay(1)] == payloads

    def test_an_empty_payload_is_refused(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        with pytest.raises(ValueError, match="payload"):
            journal.append(b"")
        assert journal.append(b"x") == 1

    @pytest.mark.parametrize("start", [-1, 0, 5, 100])
    def test_replay_of_what_is_not_there_is_a_gap(self, backend: Backend, start: int) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        for _ in range(3):
            journal.append(b"x")
        with pytest.raises(Gap):
            list(journal.replay(start))
        assert list(journal.replay(4)) == []

    def test_barriers_are_invisible(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        journal.idle_barrier()
        for number in range(1, 6):
            assert journal.append(payload_of(number)) == number
            for _ in range(number):
                journal.idle_barrier()
        assert list(journal.replay(1)) == [(number, payload_of(number)) for number in range(1, 6)]
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == 5
        journal.idle_barrier()
        assert [position for position, _ in journal.replay(1)] == [1, 2, 3, 4, 5]

    def test_time_stamps_never_decrease(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        assert journal.last_time_ns == 0
        journal.append(b"x")
        first = journal.last_time_ns
        assert first > 0
        backend.step_clock(-3_600_000_000_000)
        journal.append(b"x")
        assert journal.last_time_ns == first
        backend.kill()
        journal = backend.journal()
        journal.open(7, OWNER)
        assert journal.last_time_ns == first
        backend.step_clock(7_200_000_000_000)
        journal.append(b"x")
        assert journal.last_time_ns > first

    # -- durability --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("sync", ["always", "interval", "never"])
    @pytest.mark.parametrize("barrier", [False, True])
    @pytest.mark.parametrize("end", ["close", "kill"])
    def test_what_was_answered_is_there_after_the_process_ended(
        self, backend: Backend, sync: str, barrier: bool, end: str
    ) -> None:
        expected: list[tuple[int, bytes]] = []
        for life in range(4):
            journal = backend.journal(sync)
            assert journal.open(7, OWNER)[:2] == (life + 1, len(expected))
            assert content(journal) == (-1, None, expected)
            for _ in range(5):
                payload = payload_of(len(expected) + 1, 300)
                expected.append((journal.append(payload), payload))
            if barrier:
                journal.idle_barrier()
            journal.close() if end == "close" else backend.kill()

    # -- all of it ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(12))
    def test_any_order_of_calls_ends_and_starts_keeps_what_was_answered(self, backend: Backend, seed: int) -> None:
        rng = random.Random(seed)
        journal, opened = backend.journal(), 0
        batches: list[tuple[int, bytes]] = []
        snapshot: tuple[int, list[bytes] | None] = (-1, None)
        ends = ["close", "kill", *(["power"] if backend.can_lose_power else [])]
        for _ in range(150):
            if not opened:
                journal = backend.journal()
                assert journal.open(7, OWNER).head == len(batches)
                assert content(journal) == (*snapshot, batches[max(snapshot[0], 0) :])
                opened = 1
            match rng.choices(["append", "barrier", "snapshot", "trim", "end"], [60, 12, 8, 8, 12])[0]:
                case "append":
                    payload = rng.randbytes(rng.choice([1, 30, 500, 3000]))
                    batches.append((journal.append(payload), payload))
                    assert batches[-1][0] == len(batches)
                case "barrier":
                    journal.idle_barrier()
                case "snapshot":
                    position = rng.randint(max(snapshot[0], len(batches) - 3, 0), len(batches))
                    chunks = [rng.randbytes(rng.randrange(900)) for _ in range(rng.randrange(5))]
                    snapshot = position, chunks
                    journal.save_snapshot(position, chunks)
                case "trim":
                    if snapshot[0] >= 0:
                        journal.trim(rng.randint(0, snapshot[0]))
                case "end":
                    {"close": journal.close, "kill": backend.kill, "power": backend.lose_power}[rng.choice(ends)]()
                    opened = 0
