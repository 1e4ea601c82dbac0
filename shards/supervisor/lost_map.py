"""A map of the buckets that is gone while shards are there: refused at a start, and made again from the shards.

A map founded anew would deal the buckets out evenly, whatever shard holds them: users would be served from where their
money is not. So a start on shards without a map ends (`MapLost`, 65), and `billing rebuild --map` makes the map again,
from what each shard's own log says that it holds:

- A shard's newest snapshot names each bucket that it held with its generation, and how far its part goes; the records
  behind it say what was made, taken over and given up since (`shards.batch`).
- Of two shards that hold a bucket, the later generation has it, as ever. One exception: the later one is a copy that
  arrived by a move and to which nothing has happened since. Nobody knows whether that move was decided, and the source
  may have served on; so the bucket stays at the source, which has everything in both cases.

Pins, weights and the anchor of billing time are not in the shards. The configuration gives the weights at the next
start; no instant of an account goes back, since each journal keeps its own. Nothing here does I/O of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import msgspec

from shards import exits
from shards.batch import ENTRY, ENVELOPE, LEAVE, OWN, POSITION, RECEIVED, split_batch
from shards.buckets import BucketMap
from shards.journal import Reader


class MapLost(Exception):
    """The map is gone, or cannot be restored from the shards; the text says what to do."""

    ending: ClassVar[exits.Ending] = exits.DAMAGED


class Held(NamedTuple):
    """How a shard holds a bucket. `untouched`: it arrived by a move, and no command has been applied to it since."""

    generation: int
    untouched: bool


def refuse(shards: Sequence[int]) -> None:
    """Raises MapLost where there are shards but no map."""
    if shards:
        listed = f"shard {shards[0]} is" if len(shards) == 1 else f"shards {', '.join(map(str, shards))} are"
        raise MapLost(
            f"the map of the buckets is gone, and {listed} there: who owns which bucket is not known. Put the map back "
            "from where it went, or restore a backup; `billing rebuild --map` makes it again from what the shards hold"
        )


def held_by(reader: Reader) -> dict[int, Held]:
    """Bucket id -> how the shard of this log holds it. Raises BatchCorrupt and the journal's errors."""
    held: dict[int, Held] = {}
    loaded: dict[int, int] = {}  # bucket id -> position up to which its part of the snapshot goes
    retained = reader.snapshots()
    start = 1
    if retained:
        start = retained[-1].position + 1
        for part in reader.chunks(retained[-1].position):
            kind, bucket_id, generation = ENVELOPE.unpack_from(part)
            (loaded[bucket_id],) = POSITION.unpack_from(part, ENVELOPE.size)
            if kind != LEAVE:
                held[bucket_id] = Held(generation, kind == RECEIVED)
    for position, payload in reader.replay(start):
        for kind, bucket_id, generation, _ in split_batch(payload):
            if position <= loaded.get(bucket_id, -1):
                continue
            if kind in (OWN, RECEIVED):
                held[bucket_id] = Held(generation, kind == RECEIVED)
            elif kind == ENTRY:
                held[bucket_id] = Held(generation, False)
            elif kind == LEAVE:
                held.pop(bucket_id, None)
    return held


def map_of(shards: Mapping[int, Mapping[int, Held]], bucket_count: int) -> BucketMap:
    """The map that agrees with what the shards hold; `shards`: shard id -> the result of `held_by`. Raises MapLost
    where a bucket is in no shard, or a shard holds a bucket beyond `bucket_count`.
    """
    bucket_map = BucketMap()
    bucket_map.bucket_count = bucket_count
    bucket_map.weights = dict.fromkeys(sorted(shards), 1)
    bucket_map.owner = array("H", bytes(2 * (bucket_count + 1)))
    bucket_map.generation = array("I", bytes(4 * (bucket_count + 1)))
    claims: dict[int, list[tuple[bool, int, int]]] = {}
    for shard_id, buckets in shards.items():
        for bucket_id, held in buckets.items():
            claims.setdefault(bucket_id, []).append((not held.untouched, held.generation, shard_id))
    if unexpected := sorted(bucket_id for bucket_id in claims if not 1 <= bucket_id <= bucket_count):
        raise MapLost(f"a shard holds bucket {unexpected[0]}: shards.bucket_count was not {bucket_count}")
    if missing := [bucket_id for bucket_id in range(1, bucket_count + 1) if bucket_id not in claims]:
        raise MapLost(
            f"{_counted(missing)} in no shard: a shard is missing, or shards.bucket_count was not {bucket_count}. "
            "Nothing was changed"
        )
    for bucket_id, claims_of_bucket in claims.items():
        _, bucket_map.generation[bucket_id], bucket_map.owner[bucket_id] = max(claims_of_bucket)
    return bucket_map


def says_who_owns(payload: bytes) -> bool:
    """Whether a decision in the map's log founds a map; a host that stands by writes its claim to the same log."""
    return any(record[0] in ("create", "map") for record in msgspec.msgpack.decode(payload))


def records_of(bucket_map: BucketMap) -> list[list[object]]:
    """The records that make `bucket_map` the map; every shard in it counts as one that has served."""
    return [
        ["map", bucket_map.encode()],
        *(["founded", shard_id] for shard_id in bucket_map.weights),
        ["uneven", False],
    ]


def _counted(buckets: Iterable[int]) -> str:
    numbers = list(buckets)
    return f"bucket {numbers[0]} is" if len(numbers) == 1 else f"{len(numbers)} buckets, first {numbers[0]}, are"
