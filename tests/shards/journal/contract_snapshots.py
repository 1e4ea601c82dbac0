"""The part of a journal's contract about snapshots and trimming, as tests through the seam alone.

A backend's test module derives its class from `SnapshotContract`, too; see `tests.shards.journal.contract`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.journal import Gap
from tests.shards.journal.contract import OWNER, Backend, content, payload_of


class SnapshotContract:
    """See the module. Each test is one sentence of `shards.journal`."""

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

    def test_a_reader_sees_one_snapshot_at_a_position_also_of_a_shard_that_was_still(self, backend: Backend) -> None:
        for life in range(1, 4):
            journal = backend.journal()
            journal.open(7, OWNER)
            if life == 1:
                journal.append(payload_of(1))
            journal.save_snapshot(1, [b"of life %d" % life])
            journal.close()
        reader = backend.reader()
        assert [row.position for row in reader.snapshots()] == [1]
        assert list(reader.chunks(1)) == [b"of life 3"]
        reader.close()

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
