"""A journal's messages byte by byte, and what may follow what."""

from __future__ import annotations

from typing import Any

import pytest
from crc32c import crc32c

from shards.journal.jetstream.record import BATCH, BEAT, EPOCH, SEAL, Malformed, Record, Walk, pack, unpack

EXAMPLE = bytes.fromhex(
    "424a5301 01 01 0000 07000000 0100000000000000 0100000000000000 00000000 c2d99df5"
    "e803000000000000 d007000000000000 02000000 42bd4bc0 6869"
)


def record(kind: int, position: int, chain: int, body: bytes = b"", **fields: Any) -> Record:
    before = fields.pop("before", chain)
    plain = Record(kind, 1, 0, 7, 1, position, before, chain, 1000, 2000, body)
    return plain._replace(**fields)


def batch(position: int, before: int, body: bytes, **fields: int) -> Record:
    return record(BATCH, position, crc32c(body, before), body, before=before, **fields)


def test_the_example_of_the_format_is_what_is_written_and_read() -> None:
    first_batch = batch(1, 0, b"hi")
    assert pack(first_batch) == EXAMPLE
    assert unpack(EXAMPLE) == first_batch


@pytest.mark.parametrize("bit", range(len(EXAMPLE) * 8))
def test_every_flipped_bit_is_found(bit: int) -> None:
    damaged = bytearray(EXAMPLE)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Malformed):
        unpack(bytes(damaged))


@pytest.mark.parametrize("length", range(len(EXAMPLE)))
def test_a_message_that_is_cut_short_is_none(length: int) -> None:
    with pytest.raises(Malformed):
        unpack(EXAMPLE[:length])


def test_batches_epochs_beats_and_parts_follow_each_other() -> None:
    walk = Walk(7, 0, 0)
    after_one = crc32c(b"one", 0)
    half, after_two = crc32c(b"tw", after_one), crc32c(b"two", after_one)
    assert walk.take(record(EPOCH, 0, 0, b"owner")) is None
    assert walk.take(batch(1, 0, b"one")) == b"one"
    assert walk.take(record(BEAT, 1, after_one)) is None
    assert walk.take(batch(2, after_one, b"lost", last=0)) is None
    assert walk.take(batch(2, after_one, b"tw", last=0)) is None, "part 0 begins anew"
    assert walk.take(batch(2, half, b"o", part=1)) == b"two"
    assert walk.take(record(SEAL, 2, after_two)) is None
    assert walk.take(record(EPOCH, 2, after_two, b"next", epoch=2)) is None
    assert walk.take(batch(3, after_two, b"three", epoch=2)) == b"three"


@pytest.mark.parametrize(
    "following",
    [
        batch(3, crc32c(b"one", 0), b"x"),
        batch(1, 0, b"one"),
        batch(2, 1, b"x"),
        batch(2, crc32c(b"one", 0), b"x", part=1),
        batch(2, crc32c(b"one", 0), b"x", shard=8),
        batch(2, crc32c(b"one", 0), b"x", epoch=2),
        batch(2, crc32c(b"one", 0), b"x", time_ns=999),
        batch(2, crc32c(b"one", 0), b"x")._replace(body=b"y"),
        record(BEAT, 2, crc32c(b"one", 0)),
        record(BEAT, 1, 5),
        record(EPOCH, 1, crc32c(b"one", 0), epoch=1),
    ],
)
def test_what_does_not_follow_is_refused(following: Record) -> None:
    walk = Walk(7, 0, 0)
    walk.take(record(EPOCH, 0, 0))
    walk.take(batch(1, 0, b"one"))
    with pytest.raises(Malformed):
        walk.take(following)


def test_only_an_epoch_follows_a_seal() -> None:
    walk = Walk(7, 0, 0)
    walk.take(record(SEAL, 0, 0))
    with pytest.raises(Malformed, match="seal"):
        walk.take(batch(1, 0, b"x"))
