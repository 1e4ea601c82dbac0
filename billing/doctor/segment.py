"""Parses segments and the manifest a second time: from the grammar in `shards.journal.file.record`, not with its code.

    block   "BWAL" u16 u8 | sync u8 | shard u32 | salt u64 | segment_id u64 | first_position u64 | length u64
            | prev_chain u32 | align u32 | epoch u64 | created_ns i64 | last_time_ns i64 | boot_id 16 | owner 64
            | zeros | crc u32
    batch   "\\xb1BAT" | hcrc u32 | chain u32 | length u32 | position u64 | flags u32 | prev_chain u32 | durable u64
            | segment_id u32 | time_ns i64 | payload | "\\xb1END" | zeros up to a multiple of align

`read_batch` returns the whole, valid batch at a place in a file, or raises the reason why there is none. `directory`
judges what a missing batch means (the end, a torn tail, damage).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from crc32c import crc32c

from billing.doctor.files import File

BLOCK_BYTES: Final = 4096
HEADER_BYTES: Final = 52
MANIFEST_BYTES: Final = 72
BATCH_MAGIC: Final = b"\xb1BAT"
BATCH_END: Final = b"\xb1END"
BARRIER: Final = 1

_BLOCK = struct.Struct("<4sHBBIQQQQIIQqq16s64s")
_HEADER = struct.Struct("<4sIIIQIIQIq")
_MANIFEST = struct.Struct("<4sHHIIQQQQI")

assert _HEADER.size == HEADER_BYTES


class Unreadable(Exception):
    """The bytes at a place are not what the format requires; the text says why."""


class Block(NamedTuple):
    """The first 4096 bytes of a segment."""

    sync: int  # 1: every batch was synced before the next was written
    shard: int
    salt: int
    segment_id: int
    first_position: int
    length: int
    prev_chain: int
    align: int
    epoch: int
    created_ns: int
    last_time_ns: int
    boot_id: bytes
    owner: bytes


class Manifest(NamedTuple):
    """Names the active segment. `head` and `head_chain` are set only after a clean stop."""

    clean: int
    shard: int
    prev_chain: int
    epoch: int
    segment_id: int
    first_position: int
    head: int
    head_chain: int


class Batch(NamedTuple):
    """One valid batch or barrier. It ends at the offset `end`; the following one begins at `next_offset`."""

    offset: int
    position: int
    barrier: bool
    durable: int
    time_ns: int
    chain: int
    payload: bytes
    end: int
    next_offset: int


def read_block(data: bytes) -> Block:
    """Parses the first block of a segment. Raises Unreadable."""
    if len(data) < BLOCK_BYTES:
        raise Unreadable(f"the file has {len(data)} bytes and no whole first block")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Unreadable("the checksum of the first block is wrong")
    magic, version, checksum, *fields = _BLOCK.unpack_from(data)
    if (magic, version, checksum) != (b"BWAL", 1, 1):
        raise Unreadable(f"no segment of a known kind: {magic!r} {version} {checksum}")
    if data[_BLOCK.size : -4].strip(b"\0"):
        raise Unreadable("the rest of the first block is not zero")
    return Block._make(fields)


def read_manifest(data: bytes) -> Manifest:
    """Parses a whole manifest file. Raises Unreadable."""
    if len(data) != MANIFEST_BYTES:
        raise Unreadable(f"the manifest has {len(data)} bytes, not {MANIFEST_BYTES}")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Unreadable("the checksum of the manifest is wrong")
    magic, version, *fields = _MANIFEST.unpack_from(data)
    if (magic, version) != (b"BMAN", 1):
        raise Unreadable(f"no manifest of a known kind: {magic!r} {version}")
    manifest = Manifest._make(fields)
    if manifest.clean > 1:
        raise Unreadable(f"the mark of a clean stop is {manifest.clean}")
    return manifest


def write_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest. Only `cut` writes one."""
    body = _MANIFEST.pack(b"BMAN", 1, *manifest).ljust(MANIFEST_BYTES - 4, b"\0")
    return body + crc32c(body).to_bytes(4, "little")


def salted(block: Block) -> int:
    """The initial value for the checksum of each batch header in this segment, derived from its salt."""
    return crc32c(block.salt.to_bytes(8, "little"))


def read_batch(file: File, block: Block, seed: int, offset: int, chain: int, following: int) -> Batch:
    """Parses the batch at an offset. It must continue `chain` and have the position `following`, or, as a barrier, the
    position before. Raises Unreadable.
    """
    header = file.at(offset, HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise Unreadable("the file ends within a batch's header")
    magic, hcrc, own_chain, length, position, flags, prev_chain, durable, segment_id, time_ns = _HEADER.unpack(header)
    if magic != BATCH_MAGIC:
        raise Unreadable("no batch begins here")
    if crc32c(header[8:], seed) != hcrc:
        raise Unreadable("the checksum of the batch's header is wrong")
    barrier = flags == BARRIER
    if flags not in (0, BARRIER) or barrier != (length == 0):
        raise Unreadable(f"the batch has flags {flags} and {length} bytes")
    if segment_id != block.segment_id & 0xFFFFFFFF:
        raise Unreadable(f"the batch belongs to segment {segment_id}")
    if position != following - barrier:
        raise Unreadable(f"the batch has position {position}, after {following - 1}")
    if prev_chain != chain:
        raise Unreadable("the batch does not go on from the one before")
    payload_at = offset + HEADER_BYTES
    payload = file.at(payload_at, length)
    end = payload_at + length + len(BATCH_END)
    if len(payload) < length or file.at(payload_at + length, len(BATCH_END)) != BATCH_END:
        raise Unreadable("the batch has no end")
    if crc32c(payload, chain) != own_chain:
        raise Unreadable("the checksum of the batch's payload is wrong")
    if durable > position - (not barrier):
        raise Unreadable(f"the batch at position {position} says that {durable} was durable before it")
    return Batch(offset, position, barrier, durable, time_ns, own_chain, payload, end, end + -end % block.align)


def claimed_end(file: File, seed: int, offset: int) -> int:
    """The offset at which the batch at `offset` would end, by its header; -1 if the header is not valid."""
    header = file.at(offset, HEADER_BYTES)
    if len(header) == HEADER_BYTES and header[:4] == BATCH_MAGIC:
        _, hcrc, _, length, *_ = _HEADER.unpack(header)
        if crc32c(header[8:], seed) == hcrc:
            return offset + HEADER_BYTES + int(length) + len(BATCH_END)
    return -1


def headers_behind(file: File, block: Block, seed: int, offset: int) -> tuple[int, int]:
    """(the number of valid batch headers of this segment behind `offset`, barriers not counted; the offset of the first
    header that proves that everything before it had been synced, or -1). Headers are searched for at every byte, since
    behind damage no length can be trusted.
    """
    count, proof = 0, -1
    at = file.find(BATCH_MAGIC, offset + 1)
    while at >= 0:
        header = file.at(at, HEADER_BYTES)
        if len(header) == HEADER_BYTES:
            _, hcrc, _, _, position, flags, _, durable, segment_id, _ = _HEADER.unpack(header)
            if crc32c(header[8:], seed) == hcrc and segment_id == block.segment_id & 0xFFFFFFFF:
                count += not flags & BARRIER
                if proof < 0 and durable == position - (not flags & BARRIER):
                    proof = at
        at = file.find(BATCH_MAGIC, at + 1)
    return count, proof
