"""What a host concludes about buckets that other hosts move to it: from the map's log, and from nothing else."""

from __future__ import annotations

import pytest

from shards.buckets import HASH_NAME, BucketMap
from shards.control import Arriving, MoveAbort
from shards.supervisor.far_side import Arrivals
from shards.supervisor.placement import Shares

TARGET, SOURCE = 2, 1
ARRIVING = Arriving(9, 1, 2, SOURCE, (3, 2))  # bucket 1, to be at generation 2, of life 2 of ownership 3


def arrivals_of(*records: list[object]) -> tuple[Arrivals, BucketMap, Shares]:
    bucket_map, shares = BucketMap(), Shares()
    first: list[list[object]] = [["create", 4, HASH_NAME, [SOURCE, TARGET, 3]], ["own", SOURCE, 3, "a", "id"]]
    for record in [*first, *records]:
        if not shares.apply(record):
            bucket_map.apply(record)
    arrivals = Arrivals()
    arrivals.note(TARGET, ARRIVING)
    return arrivals, bucket_map, shares


@pytest.mark.parametrize(
    ("records", "is_over"),
    [
        ([["life", SOURCE, 3, 2]], False),
        ([["life", SOURCE, 3, 1]], False),  # the map is behind: the source's worker is newer than what it knows
        ([["life", SOURCE, 3, 2], ["at", SOURCE, 3, "h:1", ""], ["wish", SOURCE, 3, "b"]], False),
        ([["life", SOURCE, 3, 3]], True),
        ([["life", SOURCE, 3, 2], ["own", SOURCE, 4, "b", "other"]], True),
        ([["life", SOURCE, 3, 2], ["assign", 1, TARGET, 2]], False),  # it was decided
        ([["assign", 1, TARGET, 2], ["own", SOURCE, 4, "b", "other"]], False),
        ([["assign", 1, 3, 2]], True),  # for another shard, by a later life of the source
    ],
)
def test_a_copy_is_dropped_once_the_map_says_that_it_can_never_be_decided(
    records: list[list[object]], is_over: bool
) -> None:
    arrivals, bucket_map, shares = arrivals_of(*records)
    assert arrivals.aborted(bucket_map, shares) == ([(TARGET, MoveAbort(9, 1))] if is_over else [])
    if is_over:
        assert arrivals.aborted(bucket_map, shares) == [], "once"


def test_the_next_life_of_a_worker_goes_by_the_map_alone() -> None:
    arrivals, bucket_map, shares = arrivals_of(["life", SOURCE, 3, 3])
    arrivals.forget(TARGET)
    assert arrivals.aborted(bucket_map, shares) == []
