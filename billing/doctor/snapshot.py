"""Parses snapshots a second time: from the grammar in `shards.journal.file.snapshot`, not with its code.

    head    "BSNP" | u16 1 | u16 0 | shard u32 | chain u32 | position u64 | epoch u64 | created_ns i64 | crc u32
    chunk   "\\xb1CHK" | length u32 | crc u32 | hcrc u32 | bytes
    footer  "\\xb1FIN" | count u32 | reached u64 | length u64 | BLAKE2b-128 of all before | crc u32

`examine` reads the whole file once. Afterwards its caller can read single chunks by their offsets, so no snapshot has
to fit into memory.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from crc32c import crc32c

from billing.doctor.files import File
from billing.doctor.segment import Unreadable

PREFIX: Final = "snapshot-"

_HEAD = struct.Struct("<4sHHIIQQqI")
_CHUNK = struct.Struct("<4sIII")
_FOOTER = struct.Struct("<4sIQQ16sI")
_DIGEST_AT: Final = 24


class Chunk(NamedTuple):
    """The place of one chunk's bytes in the file."""

    offset: int
    length: int


class Snapshot(NamedTuple):
    """A snapshot file of which every byte was checked."""

    name: str
    shard: int
    chain: int
    position: int
    epoch: int
    reached: int
    chunks: list[Chunk]


def position_of(name: str) -> int:
    """The position in the name of a snapshot's file; -1 for any other name."""
    digits = name.removeprefix(PREFIX)
    return int(digits) if name.startswith(PREFIX) and len(digits) == 20 and digits.isdecimal() else -1


def examine(file: File, name: str) -> Snapshot:
    """Reads and checks a whole snapshot file. Raises Unreadable."""
    head = file.at(0, _HEAD.size)
    if len(head) < _HEAD.size:
        raise Unreadable(f"the file has {len(head)} bytes and no whole head")
    magic, version, zero, shard, chain, position, epoch, _, head_crc = _HEAD.unpack(head)
    crc = crc32c(head[:-4])
    if crc != head_crc:
        raise Unreadable("the checksum of the head is wrong")
    if (magic, version, zero) != (b"BSNP", 1, 0):
        raise Unreadable(f"no snapshot of a known kind: {magic!r} {version}")
    if position != position_of(name):
        raise Unreadable(f"it holds position {position}")
    digest = hashlib.blake2b(head, digest_size=16)
    offset, chunks = _HEAD.size, []
    while file.at(offset, 4) == b"\xb1CHK":
        frame = file.at(offset, _CHUNK.size)
        if len(frame) < _CHUNK.size:
            raise Unreadable(f"it ends within the chunk at offset {offset}")
        _, length, chunk_crc, frame_crc = _CHUNK.unpack(frame)
        if crc32c(frame[:-4]) != frame_crc:
            raise Unreadable(f"the checksum of the chunk's head at offset {offset} is wrong")
        data = file.at(offset + _CHUNK.size, length)
        crc = crc32c(data, crc)
        if len(data) < length or crc != chunk_crc:
            raise Unreadable(f"the checksum of the chunk at offset {offset} is wrong")
        digest.update(frame)
        digest.update(data)
        chunks.append(Chunk(offset + _CHUNK.size, length))
        offset += _CHUNK.size + length
    footer = file.at(offset, _FOOTER.size)
    if len(footer) < _FOOTER.size or footer[:4] != b"\xb1FIN":
        raise Unreadable(f"neither a chunk nor the footer begins at offset {offset}")
    _, count, reached, length, told_digest, footer_crc = _FOOTER.unpack(footer)
    if crc32c(footer[:-4]) != footer_crc:
        raise Unreadable(f"the checksum of the footer at offset {offset} is wrong")
    digest.update(footer[:_DIGEST_AT])
    if told_digest != digest.digest():
        raise Unreadable("its digest is wrong")
    if count != len(chunks) or length != file.size or offset + _FOOTER.size != file.size:
        raise Unreadable("its length or the number of its chunks is wrong")
    return Snapshot(name, shard, chain, position, epoch, reached, chunks)
