"""The contract of a journal where the machine fails: a loss of power, and no room any more.

The test module of a backend whose power can be cut derives its class from `PowerContract`, and where its storage can be
filled from `RoomContract`; see `tests.shards.journal.contract`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.journal import Journal, Unavailable
from tests.shards.journal.contract import OWNER, Backend, content, payload_of


class PowerContract:
    """See the module. Each test is one sentence of `shards.journal`."""

    @pytest.mark.parametrize("sync", ["interval", "never"])
    def test_what_was_to_be_durable_is_so_in_the_weaker_modes_too(self, backend: Backend, sync: str) -> None:
        for _ in range(20):
            journal = backend.journal(sync)
            head = journal.open(7, OWNER).head
            for number in range(head + 1, head + 8):
                journal.append(payload_of(number, 300))
            assert journal.append(b"firm", durable=True) == head + 8
            journal.append(payload_of(head + 9, 300))
            backend.lose_power()
            journal = backend.journal(sync)
            assert journal.open(7, OWNER).head in (head + 8, head + 9)
            assert dict(journal.replay(head + 1))[head + 8] == b"firm"
            journal.close()

    @pytest.mark.parametrize("barrier", [False, True])
    def test_what_was_answered_is_there_after_a_loss_of_power(self, backend: Backend, barrier: bool) -> None:
        expected: list[tuple[int, bytes]] = []
        for life in range(20):
            journal = backend.journal()
            assert journal.open(7, OWNER)[:2] == (life + 1, len(expected))
            assert content(journal) == (-1, None, expected)
            for _ in range(life % 4):
                payload = payload_of(len(expected) + 1, 100 * life + 1)
                expected.append((journal.append(payload), payload))
            if barrier:
                journal.idle_barrier()
            backend.lose_power()

    @pytest.mark.parametrize("sync", ["interval", "never"])
    def test_the_weaker_modes_lose_only_the_end_and_only_with_the_power(self, backend: Backend, sync: str) -> None:
        for _ in range(20):
            journal = backend.journal(sync)
            head = journal.open(7, OWNER).head
            before = list(journal.replay(1))
            written = before + [(head + number, payload_of(head + number, 1500)) for number in range(1, 13)]
            for _, payload in written[head:]:
                journal.append(payload)
            backend.lose_power()
            journal = backend.journal(sync)
            recovered_head = journal.open(7, OWNER).head
            assert head <= recovered_head <= len(written)
            assert list(journal.replay(1)) == written[:recovered_head]
            journal.close()

    @pytest.mark.parametrize("sync", ["interval", "never"])
    def test_what_a_snapshot_holds_is_durable_in_the_weaker_modes_too(self, backend: Backend, sync: str) -> None:
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


class RoomContract:
    """See the module. Each test is one sentence of `shards.journal`."""

    def test_without_room_nothing_is_written_and_with_room_it_goes_on(self, backend: Backend) -> None:
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
