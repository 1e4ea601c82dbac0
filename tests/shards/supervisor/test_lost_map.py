"""A map that is gone: what shards hold by their logs, which of two holders has a bucket, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.batch import CAME_TO_NOTHING, ENTRY, ENVELOPE, LEAVE, OWN, POSITION, RECEIVED, join_batch
from shards.buckets import BucketMap
from shards.journal import Retained
from shards.supervisor.lost_map import Held, MapLost, held_by, map_of, records_of, refuse

Record = tuple[int, int, int, bytes]


class FakeReader:
    """A shard's log as a reader shows it: batches from position 1 on, and at most one snapshot."""

    def __init__(self, *batches: list[Record], snapshot: tuple[int, list[bytes]] | None = None) -> None:
        self._batches = batches
        self._snapshot = snapshot
        self.first, self.head = 1, len(batches)

    def snapshots(self) -> list[Retained]:
        return [] if self._snapshot is None else [Retained(self._snapshot[0], 0, self.head)]

    def chunks(self, position: int) -> Iterator[bytes]:
        assert self._snapshot is not None
        assert position == self._snapshot[0]
        return iter(self._snapshot[1])

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        for position, records in enumerate(self._batches, 1):
            if position >= start:
                yield position, join_batch(records, (), {})

    def close(self) -> None:
        """There is nothing to give back."""


def part(kind: int, bucket_id: int, generation: int, position: int) -> bytes:
    return ENVELOPE.pack(kind, bucket_id, generation) + POSITION.pack(position)


def test_a_log_tells_what_was_made_taken_over_and_given_up() -> None:
    log = FakeReader(
        [(OWN, 1, 1, b""), (OWN, 2, 1, b"")],
        [(LEAVE, 2, 1, b"")],
        [(RECEIVED, 5, 4, b"whole"), (RECEIVED, 6, 2, b"whole")],
        [(ENTRY, 6, 2, b"entry"), (RECEIVED, 7, 3, b"whole")],
        [(LEAVE, 7, 3, CAME_TO_NOTHING)],
    )
    assert held_by(log) == {1: Held(1, False), 5: Held(4, True), 6: Held(2, False)}


def test_records_that_a_part_of_the_snapshot_holds_already_are_passed_over() -> None:
    log = FakeReader(
        [(OWN, 1, 1, b""), (OWN, 2, 1, b""), (OWN, 3, 1, b"")],
        [(LEAVE, 1, 1, b"")],
        [(RECEIVED, 1, 3, b"back again")],
        [(LEAVE, 2, 1, b"")],
        snapshot=(1, [part(LEAVE, 1, 1, 2), part(OWN, 2, 1, 3), part(RECEIVED, 3, 1, 4)]),
    )
    assert held_by(log) == {1: Held(3, True), 3: Held(1, True)}


def test_the_later_generation_has_a_bucket_unless_nothing_happened_to_its_copy() -> None:
    bucket_map = map_of(
        {
            1: {1: Held(1, False), 2: Held(4, False), 3: Held(1, False)},
            2: {2: Held(5, False), 3: Held(2, True), 4: Held(2, True)},
        },
        4,
    )
    assert [tuple(bucket_map.owner_of(bucket_id)) for bucket_id in range(1, 5)] == [(1, 1), (2, 5), (1, 1), (2, 2)]
    (_, block), *rest = records_of(bucket_map)
    assert isinstance(block, bytes)
    again = BucketMap.decode(block)
    assert (again.ownership_of(1), again.ownership_of(2)) == ({1: 1, 3: 1}, {2: 5, 4: 2})
    assert rest == [["founded", 1], ["founded", 2], ["uneven", False]]


def test_buckets_that_no_shard_holds_or_that_there_cannot_be_are_named_and_nothing_is_made() -> None:
    with pytest.raises(MapLost, match="2 buckets, first 2, are in no shard"):
        map_of({1: {1: Held(1, False)}}, 3)
    with pytest.raises(MapLost, match=r"holds bucket 9: shards\.bucket_count was not 3"):
        map_of({1: {number: Held(1, False) for number in (1, 2, 3, 9)}}, 3)


def test_a_start_is_refused_only_where_shards_are_there() -> None:
    refuse([])
    with pytest.raises(MapLost, match=r"shards 1, 3 are there.*`billing rebuild --map`"):
        refuse([1, 3])
