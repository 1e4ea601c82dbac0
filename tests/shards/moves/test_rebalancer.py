"""The plan: even by weight, no move too many, pins and locks honoured."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shards.buckets import HASH_NAME, BucketMap
from shards.moves.rebalancer import plan, shares


def map_of(count: int, weights: dict[int, int], pinned: dict[int, int] | None = None) -> BucketMap:
    """`count` buckets dealt out over as many shards as there are weights; `pinned`: bucket -> shard it sits on."""
    bucket_map = BucketMap()
    bucket_map.apply(["create", count, HASH_NAME, sorted(weights)])
    for shard_id, weight in weights.items():
        bucket_map.apply(["weight", shard_id, weight])
    for bucket_id, shard_id in (pinned or {}).items():
        if bucket_map.owner[bucket_id] != shard_id:
            bucket_map.apply(["assign", bucket_id, shard_id, bucket_map.generation[bucket_id] + 1])
        bucket_map.apply(["pin", bucket_id])
    return bucket_map


def carried_out(bucket_map: BucketMap, locked: frozenset[int] = frozenset()) -> dict[int, int]:
    """How many buckets each shard has after the plan."""
    for bucket_id, source, target in plan(bucket_map, locked):
        assert bucket_map.owner[bucket_id] == source
        assert bucket_id not in bucket_map.pinned
        assert not {source, target} & locked
        bucket_map.apply(["assign", bucket_id, target, bucket_map.generation[bucket_id] + 1])
    return {shard_id: len(bucket_map.buckets_of(shard_id)) for shard_id in bucket_map.weights}


def test_shares_go_by_weight() -> None:
    assert carried_out(map_of(3000, {1: 1, 2: 1, 3: 1})) == {1: 1000, 2: 1000, 3: 1000}
    assert carried_out(map_of(60, {1: 3, 2: 2, 3: 1})) == {1: 30, 2: 20, 3: 10}
    assert carried_out(map_of(10, {1: 1, 2: 1, 3: 1})) == {1: 4, 2: 3, 3: 3}


def test_a_shard_of_weight_0_is_drained() -> None:
    assert carried_out(map_of(3000, {1: 1, 2: 0})) == {1: 3000, 2: 0}


def test_where_all_weights_are_0_nothing_moves() -> None:
    assert plan(map_of(30, {1: 0, 2: 0})) == []


def test_who_has_more_pinned_than_its_share_keeps_them_and_the_others_share_the_rest() -> None:
    pinned = {bucket_id: 1 for bucket_id in range(1, 61)}
    bucket_map = map_of(90, {1: 1, 2: 1, 3: 1}, pinned)
    for bucket_id in range(61, 91):
        if bucket_map.owner[bucket_id] != 2:
            bucket_map.apply(["assign", bucket_id, 2, bucket_map.generation[bucket_id] + 1])
    assert carried_out(bucket_map) == {1: 60, 2: 15, 3: 15}


def test_a_locked_shard_neither_gives_nor_takes() -> None:
    bucket_map = map_of(90, {1: 1, 2: 1, 3: 4})
    assert carried_out(bucket_map, frozenset({2})) == {1: 12, 2: 30, 3: 48}


@given(
    st.integers(1, 200),
    st.dictionaries(st.integers(1, 6), st.integers(0, 9), min_size=1, max_size=6),
    st.sets(st.integers(1, 200), max_size=60),
    st.sets(st.integers(1, 6), max_size=3),
    st.randoms(use_true_random=False),
)
def test_any_plan_is_even_minimal_and_final(
    count: int, weights: dict[int, int], pinned: set[int], locked: set[int], rng: Random
) -> None:
    shards = sorted(weights)
    bucket_map = map_of(count, weights)
    for bucket_id in range(1, count + 1):
        target = rng.choice(shards)
        if target != bucket_map.owner[bucket_id]:
            bucket_map.apply(["assign", bucket_id, target, 2])
    for bucket_id in pinned:
        if bucket_id <= count:
            bucket_map.apply(["pin", bucket_id])
    wanted = shares(bucket_map, frozenset(locked))
    before = {shard_id: len(bucket_map.buckets_of(shard_id)) for shard_id in shards}
    steps = plan(bucket_map, frozenset(locked))
    assert steps == plan(bucket_map, frozenset(locked)), "the same map makes the same plan"
    assert len({step.bucket_id for step in steps}) == len(steps)
    assert len(steps) <= sum(max(0, before[shard] - wanted[shard]) for shard in shards), "no move too many"
    after = carried_out(bucket_map, frozenset(locked))
    assert after == wanted
    assert plan(bucket_map, frozenset(locked)) == []
