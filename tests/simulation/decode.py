"""The auditor's reader of journals: written from the formats' descriptions, sharing no code with what writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from crc32c import crc32c

NANO = 3600 * 10**9  # internal units in a nano

_HEADER = struct.Struct("<4sIIIQIIQIq")
_ENTRY = struct.Struct("<BBHHqqqqqqqQqqqqqqqqqqqBBBHBBH")
OUTSIDE = {
    1: "top_up", 2: "set_rate", 3: "change_rate", 4: "debit", 5: "set_credit_limit", 6: "hold", 7: "capture",
    8: "release", 9: "adjust", 10: "set_thresholds", 11: "close_account",
    12: "set_class",
}  # fmt: skip
EXHAUST, HOLD_EXPIRED, THRESHOLD, CREDIT_EXPIRED, LEASE_EXPIRED, GRACE_ENDED = range(32, 38)
CUTOFF_STARTED, CUTOFF_DELIVERED, CUTOFF_FAILED = 48, 49, 50
EXHAUSTED, CROSSED, RESTORED, REFUSED, OPENED = 1, 2, 4, 8, 16


class Segment(NamedTuple):
    """The first block of a segment, where it is whole."""

    salt: int
    segment_id: int
    first_position: int
    chain: int
    align: int


def segment_of(content: bytes) -> Segment | None:
    """None where the block is not whole."""
    block = content[:4096]
    if block[:4] != b"BWAL" or int.from_bytes(block[4092:4096], "little") != crc32c(block[:4092]):
        return None
    salt, segment_id, first = struct.unpack_from("<QQQ", block, 12)
    chain, align = struct.unpack_from("<II", block, 44)
    return Segment(salt, segment_id, first, chain, align)


BATCH_HEADER_BYTES = 52


def batches_of(content: bytes, segment: Segment, offset: int, chain: int) -> Iterator[tuple[int, bytes, int, int, int]]:
    """(position, payload, offset behind it, chain, its stamp) from `offset` on, as long as they are whole; barriers are
    passed with position 0.
    """
    seed = crc32c(segment.salt.to_bytes(8, "little"))
    while offset + 56 <= len(content):
        magic, hcrc, payload_crc, length, position, flags, chain_before, _, _, at_ns = _HEADER.unpack_from(
            content, offset
        )
        if magic != b"\xb1BAT" or crc32c(content[offset + 8 : offset + 52], seed) != hcrc or chain_before != chain:
            return
        payload = bytes(content[offset + 52 : offset + 52 + length])
        if crc32c(payload, chain) != payload_crc or content[offset + 52 + length : offset + 56 + length] != b"\xb1END":
            return
        offset += 56 + length
        offset += -offset % segment.align
        chain = payload_crc
        if not flags & 1:
            yield position, payload, offset, chain, at_ns
        else:
            yield 0, b"", offset, chain, at_ns


def records_of(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, bucket, generation, body) of a batch of a shard."""
    count = int.from_bytes(payload[:4], "little")
    offset = 4
    for _ in range(count):
        length = int.from_bytes(payload[offset : offset + 4], "little")
        kind, bucket, generation = struct.unpack_from("<BHI", payload, offset + 4)
        yield kind, bucket, generation, payload[offset + 11 : offset + 4 + length]
        offset += 4 + length
    assert offset == len(payload), "a batch holds more than its records"


class Item(NamedTuple):
    """An entry, money in internal units."""

    op: int
    flags: int
    refusal: int
    a: int
    b: int
    c: int
    at_ns: int
    entry_id: int
    amount: int
    accrued: int
    balance: int
    rate: int
    limit_nanos: int
    holds_nanos: int
    exhausts_at_ns: int
    seq: int
    user: bytes
    key: bytes
    request_id: bytes
    message: bytes
    line_rate: int
    options: bytes
    note: bytes

    @property
    def available(self) -> int:
        return self.balance + (self.limit_nanos - self.holds_nanos) * NANO


def number_option(options: bytes, *tags: int) -> int:
    """The first number among an entry's options with one of these tags; -1 where there is none."""
    offset = 0
    while offset < len(options):
        tag, length = options[offset], options[offset + 1]
        if tag in tags:
            return int.from_bytes(options[offset + 2 : offset + 2 + length], "little", signed=True)
        offset += 2 + length
    return -1


def item_of(body: bytes) -> Item:
    """The entry of a record."""
    f: tuple[Any, ...] = _ENTRY.unpack_from(body)
    assert f[0] == 0xF2, f"an entry of the format {f[0]:#x}"
    f = f[1:]
    lengths, offset, tails = f[22:], _ENTRY.size, []
    for length in lengths:
        tails.append(body[offset : offset + length])
        offset += length
    assert offset == len(body), "an entry's tails do not fill it"
    return Item._make((
        *f[:8], f[8] * NANO + f[9], f[10] * NANO + f[11], f[12] * NANO + f[13], f[14], *f[16:20], *tails[:4],
        f[15], tails[4], tails[6],
    ))  # fmt: skip
