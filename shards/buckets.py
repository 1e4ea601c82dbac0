"""Which bucket a key belongs to, and which shard owns each bucket.

Keys hash into a fixed number of **buckets**; shards own buckets, never keys, and buckets move. The hash is the
one of `vshard.router.bucket_id_strcrc32`: CRC-32C with initial value 0xFFFFFFFF and no final xor, modulo the bucket
count, plus one. Buckets are numbered 1..count; with 3000 buckets the key `1` is in bucket 477.

Ownership is a pair (shard, **generation**), never a status alone. The generation of a bucket rises by one with every
change of owner, so a late message or an old backup, which carries a lower one, is recognised and refused.

`BucketMap` is the supervisor's durable knowledge of the owners, as a pure value. Only records that were made durable
first change it (`apply`), and it can be written as one block (`encode`) for a snapshot.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Set
from typing import NamedTuple

import crc32c as _crc32c
import msgspec

from shards.counting import counted

HASH_NAME = "crc32c-noxor"  # recorded in the map; data with another hash is refused
BUCKET_COUNT_MAX = 65_535  # a bucket id is two bytes in every format
GENERATION_MAX = 2**32 - 1

# The states of a bucket on a shard, by vshard's names.
ACTIVE = "active"
PINNED = "pinned"
SENDING = "sending"
RECEIVING = "receiving"
SENT = "sent"
GARBAGE = "garbage"
STATES = (ACTIVE, PINNED, SENDING, RECEIVING, SENT, GARBAGE)


def bucket_id_of(key: bytes, bucket_count: int) -> int:
    """Returns the bucket of `key` (its UTF-8 bytes), 1..bucket_count."""
    return hashed_into(bucket_count)(key)


def hashed_into(bucket_count: int) -> Callable[[bytes], int]:
    """Returns `bucket_id_of` as a function of the key alone, for callers that hash a key for every request."""
    crc32c = _crc32c.crc32c

    def bucket_of(key: bytes) -> int:
        bucket_id: int = (crc32c(key) ^ 0xFFFFFFFF) % bucket_count + 1
        return bucket_id

    return bucket_of


class Owner(NamedTuple):
    """The owner of a bucket: its shard, and the generation of that ownership."""

    shard_id: int
    generation: int


class UnknownRecord(Exception):
    """The map has no such record in this version."""


class MapConflict(Exception):
    """A record or a configuration contradicts the map; the text says which bucket or setting."""


class BucketMap:
    """Owner and generation of every bucket, pins, and the shards with their weights.

    Records (plain tuples, msgpack-able) are the only way to change it:

    - `("create", bucket_count, hash_name, [shard_id, …])`: the first record; buckets are dealt out evenly, generation 1
    - `("assign", bucket_id, shard_id, generation)`: the commit of a move; the generation must be the old one plus one
    - `("pin", bucket_id)`, `("unpin", bucket_id)`
    - `("weight", shard_id, weight)`: adds a shard (weight > 0) or drains it (weight 0)
    - `("retire", shard_id)`: forgets a shard that owns nothing
    """

    def __init__(self) -> None:
        self.bucket_count = 0
        self.hash_name = HASH_NAME
        self.weights: dict[int, int] = {}
        self.owner = array("H")  # index: bucket id; [0] is unused
        self.generation = array("I")
        self.pinned: set[int] = set()

    def owner_of(self, bucket_id: int) -> Owner:
        """Returns the present owner of a bucket."""
        return Owner(self.owner[bucket_id], self.generation[bucket_id])

    def buckets_of(self, shard_id: int) -> list[int]:
        """Returns the buckets that a shard owns, ascending."""
        owner = self.owner
        return [bucket_id for bucket_id in range(1, self.bucket_count + 1) if owner[bucket_id] == shard_id]

    def ownership_of(self, shard_id: int) -> dict[int, int]:
        """Returns bucket id -> generation of the buckets that a shard owns."""
        return {bucket_id: self.generation[bucket_id] for bucket_id in self.buckets_of(shard_id)}

    def check_record(self, record: tuple[object, ...] | list[object]) -> None:
        """Raises MapConflict where an assignment or a retirement contradicts the map; changes nothing."""
        match record:
            case ("assign", int(bucket_id), int(shard_id), int(generation)):
                self._check_bucket(bucket_id)
                if shard_id not in self.weights:
                    raise MapConflict(f"bucket {bucket_id} assigned to unknown shard {shard_id}")
                if generation != self.generation[bucket_id] + 1:
                    current = self.generation[bucket_id]
                    raise MapConflict(f"bucket {bucket_id} is at generation {current}, the record says {generation}")
            case ("retire", int(shard_id)):
                owned = self.buckets_of(shard_id)
                if owned:
                    raise MapConflict(f"shard {shard_id} still owns {counted(len(owned), 'bucket')}, first {owned[0]}")

    def apply(self, record: tuple[object, ...] | list[object]) -> None:
        """Changes the map by one record. Raises MapConflict where the record contradicts it."""
        self.check_record(record)
        match record:
            case ("create", int(count), str(hash_name), [*shards]):
                self._create(count, hash_name, [int(str(shard)) for shard in shards])
            case ("assign", int(bucket_id), int(shard_id), int(generation)):
                self.owner[bucket_id] = shard_id
                self.generation[bucket_id] = generation
            case ("pin", int(bucket_id)):
                self._check_bucket(bucket_id)
                self.pinned.add(bucket_id)
            case ("unpin", int(bucket_id)):
                self._check_bucket(bucket_id)
                self.pinned.discard(bucket_id)
            case ("weight", int(shard_id), int(weight)):
                self.weights[shard_id] = weight
            case ("retire", int(shard_id)):
                self.weights.pop(shard_id, None)
            case _:
                raise UnknownRecord(f"{record!r}")

    def follow(self, bucket_id: int, shard_id: int, generation: int) -> bool:
        """Applies an assignment to a copy of the map that may have missed earlier ones; returns False where it is known
        or outdated.
        """
        if generation <= self.generation[bucket_id]:
            return False
        self.generation[bucket_id] = generation - 1
        self.apply(["assign", bucket_id, shard_id, generation])
        return True

    def _create(self, count: int, hash_name: str, shards: list[int]) -> None:
        if self.bucket_count:
            raise MapConflict("the bucket map was created twice")
        if not 1 <= count <= BUCKET_COUNT_MAX or not shards:
            raise MapConflict(f"a map of {count} buckets on {len(shards)} shards is impossible")
        self.bucket_count = count
        self.hash_name = hash_name
        self.weights = dict.fromkeys(shards, 1)
        self.owner = array("H", bytes(2 * (count + 1)))
        self.generation = array("I", bytes(4 * (count + 1)))
        for bucket_id in range(1, count + 1):
            self.owner[bucket_id] = shards[(bucket_id - 1) * len(shards) // count]
            self.generation[bucket_id] = 1

    def _check_bucket(self, bucket_id: int) -> None:
        if not 1 <= bucket_id <= self.bucket_count:
            raise MapConflict(f"bucket {bucket_id} does not exist (1..{self.bucket_count})")

    def check(self, bucket_count: int) -> None:
        """Raises MapConflict where the configuration's number of buckets, or this version's hash, is not that of the
        data directory.
        """
        if bucket_count != self.bucket_count:
            raise MapConflict(
                f"shards.bucket_count is {bucket_count}, but the data directory was made with {self.bucket_count}; "
                "the number of buckets is fixed for the life of the data"
            )
        if self.hash_name != HASH_NAME:
            raise MapConflict(f"the data directory hashes with {self.hash_name}, this version with {HASH_NAME}")

    def encode(self) -> bytes:
        """Returns the whole map as one block."""
        return msgspec.msgpack.encode(
            (
                self.bucket_count,
                self.hash_name,
                sorted(self.weights.items()),
                self.owner.tolist(),
                self.generation.tolist(),
                sorted(self.pinned),
            )
        )

    @classmethod
    def decode(cls, block: bytes) -> BucketMap:
        """Returns the map of a block that `encode` wrote."""
        new = cls()
        count, hash_name, weights, owner, generation, pinned = msgspec.msgpack.decode(block)
        new.bucket_count = count
        new.hash_name = hash_name
        new.weights = {shard_id: weight for shard_id, weight in weights}
        new.owner = array("H", owner)
        new.generation = array("I", generation)
        new.pinned = set(pinned)
        return new


def check_single_owner(
    bucket_map: BucketMap, held: dict[int, Iterable[tuple[int, int]]], left_out: Set[int] = frozenset()
) -> list[str]:
    """Returns a line for each contradiction to "each bucket has exactly one owner".

    `held`: shard id -> the (bucket id, generation) pairs that it serves by its own journal. A fault is a bucket that
    two shards serve, or none, or another than the map says, or that is at another generation (an older backup). Buckets
    in `left_out` are not checked.
    """
    faults = []
    holders: dict[int, tuple[int, int]] = {}
    for shard_id, buckets in held.items():
        for bucket_id, generation in buckets:
            if bucket_id in left_out:
                continue
            if bucket_id in holders:
                faults.append(f"bucket {bucket_id} is held by shard {holders[bucket_id][0]} and by shard {shard_id}")
                continue
            holders[bucket_id] = (shard_id, generation)
            if (shard_id, generation) != bucket_map.owner_of(bucket_id):
                owner = bucket_map.owner_of(bucket_id)
                faults.append(
                    f"bucket {bucket_id}: shard {shard_id} holds generation {generation}, "
                    f"the map says shard {owner.shard_id} generation {owner.generation}"
                )
    for bucket_id in range(1, bucket_map.bucket_count + 1):
        if bucket_id not in holders and bucket_id not in left_out:
            faults.append(f"bucket {bucket_id} is held by nobody, the map says shard {bucket_map.owner[bucket_id]}")
    return faults


def route_of(bucket_map: BucketMap, addresses: Mapping[int, str], version: int) -> dict[str, object]:
    """Returns the routing table for a smart client: owner and generation of every bucket (index 0 is bucket 1), and the
    address of each shard's own port (None: it has none). Where the client has this `version` already, it returns the
    version alone. A version only shows whether two maps are equal; 0 stands for no map.
    """
    ports = repr([(shard_id, addresses.get(shard_id)) for shard_id in bucket_map.weights]).encode()
    map_version = 0
    for part in (ports, bucket_map.owner.tobytes(), bucket_map.generation.tobytes()):
        map_version = int(_crc32c.crc32c(part, map_version))
    map_version = map_version or 1
    if version == map_version:
        return {"version": map_version}
    return {
        "version": map_version,
        "bucket_count": bucket_map.bucket_count,
        "hash": bucket_map.hash_name,
        "shards": [{"shard_id": shard_id, "address": addresses.get(shard_id)} for shard_id in bucket_map.weights],
        "owners": bucket_map.owner.tolist()[1:],
        "generations": bucket_map.generation.tolist()[1:],
    }
