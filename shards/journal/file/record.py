"""The bytes of a journal: segments of batches, and the manifest, which names the active segment. Pure.

The unit is a group commit: one batch is one write and one checksum, all or nothing. All integers are little-endian.

    segment   = block, { batch, zero padding to a multiple of `align` }, zeros to `length`
    block     = 4096 bytes: "BWAL", version u16 (1), checksum u8 (1: CRC-32C), sync u8 (1: always), shard u32, salt u64,
                segment_id u64, first_position u64, length u64 (of the file), prev_chain u32, align u32, epoch u64,
                created_ns i64, last_time_ns i64 (no new batch is before it), boot_id 16 bytes, owner 64 bytes (UTF-8,
                zero-padded), zeros, and last crc u32 of all before
    batch     = header, payload, "\\xb1END"
    header    = "\\xb1BAT", hcrc u32, chain u32, length u32, position u64, flags u32, prev_chain u32, durable u64,
                segment_id u32 (its low half), time_ns i64
    hcrc      = CRC-32C of the salt (8 bytes) and of the header from `chain` on
    chain     = CRC-32C of the payload, going on from prev_chain; the chain before position 1 is 0
    flags     = bit 0: an idle barrier. No payload, and the position of the batch before it.
    manifest  = 72 bytes: "BMAN", version u16 (1), clean u16, shard u32, prev_chain u32, epoch u64, segment_id u64,
                first_position u64, head u64, head_chain u32, zeros, and last crc u32 of all before

The purpose of each part:

- `hcrc` covers the header alone, so that `length` is checked before it is used. The salt, random per segment, keeps
  payload bytes, which clients choose, from passing for a header.
- `chain` ties each payload to all before it: a batch that was moved, repeated or copied from elsewhere does not fit.
- `durable` is the highest position known to be durable when this batch was written. A batch whose `durable` is the
  position before it (see `is_proof`) proves that all bytes before it in its segment had been synced.
- The end mark is not zero, so a batch whose write was cut off (its rest is zeros) can be told from a damaged one.
- An older segment ends where a newer one begins (`first_position`), whatever bytes it holds behind that.
- The manifest is replaced before the first batch of a new segment is acknowledged, so the loss of the newest segment is
  noticed. `clean` is 1 after a clean stop; then `head` and `head_chain` say where the sequence ends.

Example: the fields of a segment's first block (156 bytes), and its first batch, "hello", position 1:

    4257414c 0100 01 01 07000000 8877665544332211 0100000000000000  BWAL v1 crc32c always, shard 7, salt, segment 1
    0100000000000000 0020000000000000 00000000 00020000             first position 1, 8192 bytes, chain 0, align 512
    0100000000000000 008819975989f717 0000000000000000              epoch 1, created_ns 1727000000000002048, no batch
    000102030405060708090a0b0c0d0e0f 776f726b65722d37 00…           boot id, owner "worker-7"; crc 507d78f4

    b1424154 2956bcf0 4cbb719a 05000000 0100000000000000            hcrc, chain, 5 bytes, position 1
    00000000 00000000 0000000000000000 01000000 018819975989f717    no flags, chain 0, durable 0, segment 1, time_ns
    68656c6c6f b1454e44                                             hello, end
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

BLOCK_BYTES = 4096
HEADER_BYTES = 52
END = b"\xb1END"
OVERHEAD_BYTES = HEADER_BYTES + len(END)
OWNER_BYTES_MAX = 64
MANIFEST_BYTES = 72
BARRIER = 1  # flag
FIRST_CHAIN = 0

_BLOCK = struct.Struct("<4sHBBIQQQQIIQqq16s64s")
_BATCH = struct.Struct("<4sIIIQIIQIq")
_BATCH_TAIL = struct.Struct("<IIQIIQIq")  # the header from `chain` on, which hcrc covers
_MANIFEST = struct.Struct("<4sHHIIQQQQI16x")
_U32 = struct.Struct("<I")
_BLOCK_MAGIC = b"BWAL"
_BATCH_MAGIC = b"\xb1BAT"
_MANIFEST_MAGIC = b"BMAN"
_ZEROS = bytes(1 << 16)
_VERSION = 1
_CRC32C = 1

assert _BLOCK.size <= BLOCK_BYTES - 4
assert _BATCH.size == HEADER_BYTES == 8 + _BATCH_TAIL.size
assert _MANIFEST.size + 4 == MANIFEST_BYTES


class Malformed(Exception):
    """A block or manifest that this code did not write, or that was changed since."""


class Newer(Malformed):
    """The bytes are sound, and a newer version wrote them in a format of its own."""


def check_version(what: str, version: int, readable: int) -> None:
    """Raises Newer where a newer version wrote these bytes. To be called once checksum and magic are known
    to be right.
    """
    if version > readable:
        raise Newer(
            f"the {what} has format {version}, and this version reads format {readable}: start the version that wrote "
            "it, or restore a backup that this version took; nothing was changed"
        )


class SegmentHeader(NamedTuple):
    """The fields of a segment's first block."""

    sync: int  # 1: each batch is synced before the next is written; 0: the mode is "interval" or "never"
    shard: int
    salt: int
    segment_id: int
    first_position: int
    length: int  # bytes of the whole file
    prev_chain: int
    align: int
    epoch: int
    created_ns: int
    last_time_ns: int  # no batch that is appended to the segment is stamped before it
    boot_id: bytes
    owner: bytes


class Manifest(NamedTuple):
    """Names the active segment and, after a clean stop, the position at which the log ends."""

    clean: int
    shard: int
    prev_chain: int
    epoch: int
    segment_id: int
    first_position: int
    head: int
    head_chain: int


class Batch(NamedTuple):
    """One batch or barrier as it was read: its offset, the fields of its header, and where its payload
    begins and ends.
    """

    offset: int
    position: int
    flags: int
    durable: int
    time_ns: int
    prev_chain: int
    chain: int
    payload_at: int
    payload_end: int

    @property
    def end(self) -> int:
        return self.payload_end + len(END)


def pack_block(header: SegmentHeader) -> bytes:
    """Returns the first 4096 bytes of a segment."""
    fields = _BLOCK.pack(_BLOCK_MAGIC, _VERSION, _CRC32C, *header)
    body = fields.ljust(BLOCK_BYTES - 4, b"\0")
    return body + _U32.pack(crc32c(body))


def unpack_block(block: bytes) -> SegmentHeader:
    """Parses a segment's first block. Raises Malformed."""
    if len(block) < BLOCK_BYTES:
        raise Malformed(f"the file ends within its first block, after {len(block)} bytes")
    body = block[: BLOCK_BYTES - 4]
    if _U32.unpack_from(block, BLOCK_BYTES - 4)[0] != crc32c(body):
        raise Malformed("the checksum of the segment's first block is wrong")
    magic, version, checksum, *fields = _BLOCK.unpack_from(body)
    if magic == _BLOCK_MAGIC:
        check_version("segment", version, _VERSION)
    if (magic, version, checksum) != (_BLOCK_MAGIC, _VERSION, _CRC32C):
        raise Malformed(f"not a segment this version can read: {magic!r} version {version} checksum {checksum}")
    fields[-1] = fields[-1].rstrip(b"\0")
    return SegmentHeader._make(fields)


def pack_manifest(manifest: Manifest) -> bytes:
    """Returns the content of the manifest's file."""
    clean, shard, prev_chain, epoch, segment_id, first_position, head, head_chain = manifest
    body = _MANIFEST.pack(
        _MANIFEST_MAGIC, _VERSION, clean, shard, prev_chain, epoch, segment_id, first_position, head, head_chain
    )
    return body + _U32.pack(crc32c(body))


def unpack_manifest(data: bytes) -> Manifest:
    """Parses the content of the manifest's file. Raises Malformed."""
    if len(data) != MANIFEST_BYTES:
        raise Malformed(f"the manifest has {len(data)} bytes instead of {MANIFEST_BYTES}")
    if _U32.unpack_from(data, MANIFEST_BYTES - 4)[0] != crc32c(data[:-4]):
        raise Malformed("the checksum of the manifest is wrong")
    magic, version, *fields = _MANIFEST.unpack_from(data)
    if magic == _MANIFEST_MAGIC:
        check_version("manifest", version, _VERSION)
    if (magic, version) != (_MANIFEST_MAGIC, _VERSION):
        raise Malformed(f"not a manifest this version can read: {magic!r} version {version}")
    return Manifest._make(fields)


def salt_seed(salt: int) -> int:
    """Returns the initial value of the CRC of each batch header in a segment with this salt."""
    return crc32c(salt.to_bytes(8, "little"))


def pack_batch(
    seed: int, segment_id: int, prev_chain: int, position: int, flags: int, durable: int, time_ns: int, payload: bytes
) -> tuple[int, bytes]:
    """Returns (its chain, the bytes of a whole batch). `seed` comes from `salt_seed`."""
    chain = crc32c(payload, prev_chain)
    tail = _BATCH_TAIL.pack(chain, len(payload), position, flags, prev_chain, durable, segment_id & 0xFFFFFFFF, time_ns)
    return chain, b"".join((_BATCH_MAGIC, _U32.pack(crc32c(tail, seed)), tail, payload, END))


def aligned(offset: int, align: int) -> int:
    """Returns the next multiple of `align`, or `offset` where it is one."""
    return (offset + align - 1) // align * align


def is_proof(batch: Batch) -> bool:
    """Returns whether this batch was written only after all bytes before it in its segment had been synced."""
    return batch.durable == (batch.position if batch.flags & BARRIER else batch.position - 1)


def walk(data: bytes, header: SegmentHeader) -> Iterator[Batch]:
    """Yields the batches and barriers of a segment in order, each one wholly checked, and ends before the first bad
    one.

    `data` is the whole file. `shards.journal.file.recovery` decides what the end means.
    """
    view = memoryview(data)
    seed, low_id, align, size = salt_seed(header.salt), header.segment_id & 0xFFFFFFFF, header.align, len(data)
    offset, following, chain = BLOCK_BYTES, header.first_position, header.prev_chain
    while offset + OVERHEAD_BYTES <= size:
        magic, hcrc, next_chain, length, position, flags, prev_chain, durable, segment_id, time_ns = _BATCH.unpack_from(
            data, offset
        )
        payload_at = offset + HEADER_BYTES
        if magic != _BATCH_MAGIC or crc32c(view[offset + 8 : payload_at], seed) != hcrc:
            return
        if segment_id != low_id or prev_chain != chain:
            return
        if position != (following - 1 if flags & BARRIER else following) or bool(flags & BARRIER) != (length == 0):
            return
        if durable > (position if flags & BARRIER else position - 1):
            return
        payload_end = payload_at + length
        if payload_end + 4 > size or data[payload_end : payload_end + 4] != END:
            return
        if crc32c(view[payload_at:payload_end], chain) != next_chain:
            return
        yield Batch(offset, position, flags, durable, time_ns, chain, next_chain, payload_at, payload_end)
        chain = next_chain
        following = position + 1
        offset = (payload_end + 3 + align) // align * align


def later_proof(data: bytes, header: SegmentHeader, after: int) -> int:
    """Returns the offset of a good batch header behind `after` which proves that the bytes before it were synced; -1 if
    there is none.

    It looks for headers at every byte, because no length can be trusted behind damage.
    """
    seed, low_id = salt_seed(header.salt), header.segment_id & 0xFFFFFFFF
    offset = data.find(_BATCH_MAGIC, after + 1)
    while 0 <= offset <= len(data) - HEADER_BYTES:
        _, hcrc, chain, _, position, flags, prev_chain, durable, segment_id, time_ns = _BATCH.unpack_from(data, offset)
        if hcrc == crc32c(data[offset + 8 : offset + HEADER_BYTES], seed) and segment_id == low_id:
            batch = Batch(offset, position, flags, durable, time_ns, prev_chain, chain, 0, 0)
            if is_proof(batch):
                return offset
        offset = data.find(_BATCH_MAGIC, offset + 1)
    return -1


def claimed_end(data: bytes, header: SegmentHeader, offset: int) -> int:
    """Returns where the batch at `offset` ends according to its header; -1 where the header is bad."""
    tail = data[offset + 8 : offset + HEADER_BYTES]
    if len(tail) == _BATCH_TAIL.size and data[offset : offset + 4] == _BATCH_MAGIC:
        hcrc = _U32.unpack_from(data, offset + 4)[0]
        if hcrc == crc32c(tail, salt_seed(header.salt)):
            return offset + OVERHEAD_BYTES + int(_BATCH_TAIL.unpack(tail)[1])
    return -1


def used_end(data: bytes, start: int) -> int:
    """Returns the offset behind the last byte from `start` on that is not zero; `start` where all are zero."""
    end = len(data)
    while end > start:
        begin = max(start, end - len(_ZEROS))
        part = data[begin:end]
        if part != _ZEROS[: len(part)]:
            return begin + len(part.rstrip(b"\0"))
        end = begin
    return start
