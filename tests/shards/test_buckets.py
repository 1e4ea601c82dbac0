"""Buckets: the hash of vshard, and a map that only records can change."""

from __future__ import annotations

import pytest

from shards.buckets import HASH_NAME, BucketMap, MapConflict, Owner, bucket_id_of, check_single_owner


def _crc32c_no_final_xor(data: bytes) -> int:
    """Bit by bit from the definition: polynomial 0x1EDC6F41 reflected, initial 0xFFFFFFFF, no final xor."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def new_map(count: int = 3000, shards: int = 2) -> BucketMap:
    bucket_map = BucketMap()
    bucket_map.apply(["create", count, HASH_NAME, list(range(1, shards + 1))])
    return bucket_map


def test_bucket_of_user_1_with_3000_buckets_is_477_as_in_vshard() -> None:
    assert bucket_id_of(b"1", 3000) == 477


@pytest.mark.parametrize("user_id", ["1", "2", "user_01", "ключ", "x" * 128, "\u0000"])
@pytest.mark.parametrize("count", [1, 2, 3000, 65535])
def test_the_hash_is_crc32c_without_final_xor(user_id: str, count: int) -> None:
    key = user_id.encode()
    assert bucket_id_of(key, count) == _crc32c_no_final_xor(key) % count + 1


def test_a_new_map_deals_the_buckets_out_evenly_at_generation_1() -> None:
    bucket_map = new_map(3000, 7)
    sizes = [len(bucket_map.buckets_of(shard_id)) for shard_id in range(1, 8)]
    assert sum(sizes) == 3000
    assert max(sizes) - min(sizes) <= 1
    assert bucket_map.owner_of(1) == Owner(1, 1)
    assert bucket_map.owner_of(3000) == Owner(7, 1)


def test_a_move_raises_the_generation_by_one_and_nothing_else_is_accepted() -> None:
    bucket_map = new_map()
    bucket_map.apply(["assign", 5, 2, 2])
    assert bucket_map.owner_of(5) == Owner(2, 2)
    for generation in (1, 2, 4):
        with pytest.raises(MapConflict, match="generation"):
            bucket_map.apply(["assign", 5, 1, generation])
    with pytest.raises(MapConflict, match="unknown shard"):
        bucket_map.apply(["assign", 5, 9, 3])
    with pytest.raises(MapConflict, match="does not exist"):
        bucket_map.apply(["assign", 3001, 1, 2])


def test_a_shard_that_owns_buckets_cannot_be_retired() -> None:
    bucket_map = new_map(4, 2)
    with pytest.raises(MapConflict, match="still owns 2"):
        bucket_map.apply(["retire", 2])
    bucket_map.apply(["assign", 3, 1, 2])
    bucket_map.apply(["assign", 4, 1, 2])
    bucket_map.apply(["retire", 2])
    assert bucket_map.weights == {1: 1}


def test_the_block_of_a_map_makes_the_same_map() -> None:
    bucket_map = new_map()
    for record in (["assign", 9, 2, 2], ["pin", 9], ["weight", 3, 2]):
        bucket_map.apply(record)
    again = BucketMap.decode(bucket_map.encode())
    assert again.encode() == bucket_map.encode()
    assert again.owner_of(9) == Owner(2, 2)
    assert again.pinned == {9}
    assert again.weights == {1: 1, 2: 1, 3: 2}


def test_each_contradiction_of_single_ownership_is_named() -> None:
    bucket_map = new_map(4, 2)
    assert check_single_owner(bucket_map, {1: [(1, 1), (2, 1)], 2: [(3, 1), (4, 1)]}) == []
    faults = check_single_owner(bucket_map, {1: [(1, 1), (3, 1)], 2: [(3, 1), (4, 2)]})
    assert [fault for fault in faults if "bucket 2 is held by nobody" in fault]
    assert [fault for fault in faults if "bucket 3 is held by shard 1 and by shard 2" in fault]
    assert [fault for fault in faults if "bucket 4: shard 2 holds generation 2" in fault]
