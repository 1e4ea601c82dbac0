"""The part of a journal's contract about snapshots, trimming and lack of room, as tests through the seam alone.

A backend's test module derives its class from `SnapshotContract`, too; see `tests.shards.journal.contract`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.journal import Gap, Journal, Unavailable
from tests.shards.journal.contract import OWNER, Backend, content, payload_of


class SnapshotContract:
    """See the module. Each test is one sentence of `shards.journal`."""

    # -- room --------------------------------------------------------------------------------------------------------

    def test_without_room_nothing_is_written_and_with_room_it_goes_on(self, backend: Backend) -> None:
        if not backend.can_fill:
            pytest.skip("the disk of this machine cannot be filled")
        journal = backend.journal()
        journal.open(7, OWNER)
        expected = [(journal.append(b"first"), b"first")]
        backend.fill()
        refused = 0
        while not refused and len(expected) < 10_000:
            payload = payload_of(len(expected) + 1, 500)
            try:
                expected.append((journal.append(payload), payload))
            except Unavailable:
                refused += 1
        assert refused
        for _ in range(3):
            with pytest.raises(Unavailable):
                journal.append(payload_of(0, 500))
        journal.idle_barrier()
        assert list(journal.replay(1)) == expected
        backend.free()
        for number in range(len(expected) + 1, len(expected) + 40):
            expected.append((journal.append(payload_of(number, 500)), payload_of(number, 500)))
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == len(expected)
        assert list(journal.replay(1)) == expected

    def test_without_room_a_snapshot_is_not_stored_and_the_journal_goes_on(self, backend: Backend) -> None:
        if not backend.can_fill:
            pytest.skip("the disk of this machine cannot be filled")
        journal = backend.journal()
        journal.open(7, OWNER)
        journal.append(b"x")
        journal.save_snapshot(1, [b"small"])
        backend.fill()
        with pytest.raises(Unavailable):
            journal.save_snapshot(1, [b"large" * 20_000])
        assert content(journal) == (1, [b"small"], [])
        backend.free()
        assert journal.append(b"y") == 2
        journal.save_snapshot(2, [b"large" * 20_000])
        assert content(journal) == (2, [b"large" * 20_000], [])

    # -- snapshots ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("chunks", [[], [b""], [b"a"], [b"", b"a" * 10_000, b"", b"\0"], [b"x"] * 300])
    def test_a_snapshot_comes_back_as_it_was_saved(self, backend: Backend, chunks: list[bytes]) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        assert journal.load_snapshot() is None
        for number in range(1, 8):
            journal.append(payload_of(number))
        journal.save_snapshot(5, iter(chunks))
        expected = (5, chunks, [(6, payload_of(6)), (7, payload_of(7))])
        assert content(journal) == expected
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == 7
        assert content(journal) == expected

    def test_the_newest_snapshot_counts(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        for number in range(1, 30):
            journal.append(payload_of(number))
            journal.save_snapshot(number, [b"as of %d" % number])
            assert content(journal) == (number, [b"as of %d" % number], [])
        journal.save_snapshot(29, [b"the same once more"])
        with pytest.raises(ValueError, match="28"):
            journal.save_snapshot(28, [b"older"])
        with pytest.raises(ValueError, match="30"):
            journal.save_snapshot(30, [b"of what is not there"])
        assert content(journal) == (29, [b"the same once more"], [])
        backend.kill()
        journal = backend.journal()
        journal.open(7, OWNER)
        assert content(journal) == (29, [b"the same once more"], [])
        assert journal.append(b"next") == 30

    def test_a_snapshot_before_the_first_batch(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        journal.save_snapshot(0, [b"empty buckets"])
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == 0
        assert content(journal) == (0, [b"empty buckets"], [])

    def test_batches_go_on_while_a_snapshot_is_made(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        for number in range(1, 20):
            journal.append(payload_of(number, 300))

        def chunks() -> Iterator[bytes]:
            for number in range(20, 80):
                journal.append(payload_of(number, 300))
                yield b"bucket as of %d" % number

        journal.save_snapshot(10, chunks())
        expected = (
            10,
            [b"bucket as of %d" % number for number in range(20, 80)],
            [(number, payload_of(number, 300)) for number in range(11, 80)],
        )
        assert content(journal) == expected
        backend.kill()
        journal = backend.journal()
        assert journal.open(7, OWNER).head == 79
        assert content(journal) == expected

    @pytest.mark.parametrize("sync", ["interval", "never"])
    def test_what_a_snapshot_holds_is_durable_in_the_weaker_modes_too(self, backend: Backend, sync: str) -> None:
        if not backend.can_lose_power:
            pytest.skip("the power of this machine cannot be cut")
        for life in range(20):
            journal = backend.journal(sync)
            head = journal.open(7, OWNER).head
            for number in range(head + 1, head + 5):
                journal.append(payload_of(number, 300))

            def chunks(journal: Journal = journal, life: int = life) -> Iterator[bytes]:
                journal.append(payload_of(journal.head + 1, 300))
                yield b"life %d" % life

            journal.save_snapshot(head + 4, chunks())
            backend.lose_power()
            journal = backend.journal(sync)
            assert journal.open(7, OWNER).head == head + 5
            assert content(journal) == (head + 4, [b"life %d" % life], [(head + 5, payload_of(head + 5, 300))])
            journal.close()

    def test_a_snapshot_whose_chunks_fail_leaves_no_trace(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        journal.append(b"x")
        journal.save_snapshot(0, [b"good"])

        def chunks() -> Iterator[bytes]:
            yield b"bad" * 1000
            raise KeyError("the bucket is gone")

        before = journal.stored_bytes
        with pytest.raises(KeyError):
            journal.save_snapshot(1, chunks())
        assert journal.stored_bytes == before
        assert content(journal) == (0, [b"good"], [(1, b"x")])
        journal.save_snapshot(1, [b"better"])
        assert content(journal) == (1, [b"better"], [])

    def test_trimming_forgets_nothing_that_is_needed(self, backend: Backend) -> None:
        journal = backend.journal()
        journal.open(7, OWNER)
        with pytest.raises(ValueError, match="snapshot"):
            journal.trim(1)
        sizes = []
        for number in range(1, 400):
            assert journal.append(payload_of(number, 300)) == number
            if number % 40 == 0:
                journal.save_snapshot(number - 5, [b"as of %d" % number])
                with pytest.raises(ValueError, match="snapshot"):
                    journal.trim(number)
                journal.trim(number - 5)
                sizes.append(journal.stored_bytes)
        assert max(sizes[3:]) < 2 * min(sizes[3:]), "what is stored does not grow without end"
        expected = (355, [b"as of 360"], [(number, payload_of(number, 300)) for number in range(356, 400)])
        assert content(journal) == expected
        with pytest.raises(Gap):
            list(journal.replay(1))
        for end in (journal.close, backend.kill):
            end()
            journal = backend.journal()
            assert journal.open(7, OWNER).head == 399
            assert content(journal) == expected
