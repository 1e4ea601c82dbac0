"""Which buckets should move so that the load is even: a plan, computed without I/O.

Every shard should own buckets in proportion to its weight; one of weight 0 should own none (it is being drained). A
*locked* shard keeps exactly what it has, and pinned buckets stay where they are: where a shard has more of them than
its share, the others share the rest. The plan moves buckets from the shard furthest above its share to the shard
furthest below, until none is off. Of the buckets a shard can give, those with the highest numbers go first, so the same
map and the same weights always make the same plan. It never moves more than evenness needs.
"""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from shards.buckets import BucketMap

NOTHING: frozenset[int] = frozenset()


class Step(NamedTuple):
    """One move of a plan."""

    bucket_id: int
    source: int
    target: int


def shares(bucket_map: BucketMap, locked: Set[int] = NOTHING) -> dict[int, int]:
    """How many buckets each shard should own; the shares add up to all buckets."""
    pinned = dict.fromkeys(bucket_map.weights, 0)
    for bucket_id in bucket_map.pinned:
        pinned[bucket_map.owner[bucket_id]] += 1
    fixed = {shard_id: len(bucket_map.buckets_of(shard_id)) for shard_id in bucket_map.weights if shard_id in locked}
    while True:
        free = {shard_id: weight for shard_id, weight in bucket_map.weights.items() if shard_id not in fixed}
        if not sum(free.values()):  # nobody could take anything
            return fixed | {shard_id: len(bucket_map.buckets_of(shard_id)) for shard_id in free}
        result = _divide(bucket_map.bucket_count - sum(fixed.values()), free)
        stuck = {shard_id: pinned[shard_id] for shard_id in free if pinned[shard_id] > result[shard_id]}
        if not stuck:
            return fixed | result
        fixed |= stuck


def _divide(count: int, weights: dict[int, int]) -> dict[int, int]:
    """Divides `count` by weight; remainders go to the largest fractions, then to the lowest shard ids."""
    total = sum(weights.values())
    result = {shard_id: count * weight // total for shard_id, weight in weights.items()}
    remaining = count - sum(result.values())
    for shard_id in sorted(weights, key=lambda candidate: (-(count * weights[candidate] % total), candidate)):
        if remaining and weights[shard_id]:
            result[shard_id] += 1
            remaining -= 1
    return result


def plan(bucket_map: BucketMap, locked: Set[int] = NOTHING) -> list[Step]:
    """The moves that even out the load, in the order in which to make them."""
    wanted = shares(bucket_map, locked)
    owned = {shard_id: bucket_map.buckets_of(shard_id) for shard_id in wanted}
    surplus = {shard_id: len(owned[shard_id]) - wanted[shard_id] for shard_id in wanted}
    movable = {
        shard_id: [bucket_id for bucket_id in buckets if bucket_id not in bucket_map.pinned]
        for shard_id, buckets in owned.items()
    }
    steps: list[Step] = []
    while True:
        sources = [shard_id for shard_id in wanted if surplus[shard_id] > 0 and movable[shard_id]]
        targets = [shard_id for shard_id in wanted if surplus[shard_id] < 0]
        if not sources or not targets:
            return steps
        source = max(sources, key=lambda candidate: (surplus[candidate], -candidate))
        target = min(targets, key=lambda candidate: (surplus[candidate], candidate))
        steps.append(Step(movable[source].pop(), source, target))
        surplus[source] -= 1
        surplus[target] += 1
