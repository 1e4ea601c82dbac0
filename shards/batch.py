"""The payload of a shard's journal: batches of records, as bytes.

A batch is `u32 count`, then count × (`u32 length`, record); a record is `kind u8 | bucket u16 | generation u32`
(little-endian) and a body:

    ENTRY     1   body: an entry of the machine
    OWN       2   body: empty; the bucket is made, empty, at this generation
    LEAVE     3   body: empty where this shard has given the bucket away; 1 where a move to this shard was aborted
    RECEIVED  4   body: the whole bucket as the machine dumps it, moved here at this generation

The journal has the checksums. A batch that has a good checksum and does not parse is damage all the same:
`BatchCorrupt`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from shards import exits

ENTRY = 1
OWN = 2
LEAVE = 3
RECEIVED = 4

CAME_TO_NOTHING = b"\x01"  # body of a LEAVE: the bucket was never this shard's at that generation
ENVELOPE = struct.Struct("<BHI")
LENGTH = struct.Struct("<I")
POSITION = struct.Struct("<q")
_LENGTHS = [LENGTH.pack(length) for length in range(1024)]


class BatchCorrupt(Exception):
    """A batch with a good checksum does not parse, or contradicts the state of this shard."""

    ending: ClassVar[exits.Ending] = exits.DAMAGED


def split_batch(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields the records of a batch: (kind, bucket id, generation, body). Raises BatchCorrupt."""
    if len(payload) < 4:
        raise BatchCorrupt(f"a batch of {len(payload)} bytes")
    (count,) = LENGTH.unpack_from(payload)
    offset = 4
    for _ in range(count):
        (length,) = LENGTH.unpack_from(payload, offset) if offset + 4 <= len(payload) else (0,)
        offset += 4
        if length < ENVELOPE.size or offset + length > len(payload):
            raise BatchCorrupt(f"a record of {length} bytes at {offset} of {len(payload)}")
        kind, bucket_id, generation = ENVELOPE.unpack_from(payload, offset)
        yield kind, bucket_id, generation, payload[offset + ENVELOPE.size : offset + length]
        offset += length
    if offset != len(payload):
        raise BatchCorrupt(f"{len(payload) - offset} bytes behind the last record")


def join_batch(
    own_records: Sequence[tuple[int, int, int, bytes]],
    entries: Sequence[tuple[int, bytes]],
    prefix: Mapping[int, bytes],
) -> bytes:
    """Returns a batch: the shard's own records (kind, bucket id, generation, body), then entries (bucket id, body).

    `prefix`: bucket id -> the packed envelope of its entries, packed once per ownership and not once per record.
    """
    parts = [LENGTH.pack(len(own_records) + len(entries))]
    for kind, bucket_id, generation, body in own_records:
        parts += (LENGTH.pack(ENVELOPE.size + len(body)), ENVELOPE.pack(kind, bucket_id, generation), body)
    for bucket_id, body in entries:
        length = len(body) + 7
        parts += (_LENGTHS[length] if length < 1024 else LENGTH.pack(length), prefix[bucket_id], body)
    return b"".join(parts)


def slim(payload: bytes) -> bytes:
    """Returns the batch without the content of moved buckets, which may be large and which followers do not need."""
    records = []
    for kind, bucket_id, generation, body in split_batch(payload):
        content = b"" if kind == RECEIVED else body
        records.append(LENGTH.pack(ENVELOPE.size + len(content)) + ENVELOPE.pack(kind, bucket_id, generation) + content)
    return LENGTH.pack(len(records)) + b"".join(records)
