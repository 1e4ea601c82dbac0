"""The cursor: the position of a reader in the feed of all entries, as text. Pure.

**In a file.** The rows of one shard's history file are numbered from 1, in the order of its journal. A reader has read
all rows of a file up to some number, so a cursor holds, for each file, the file's identity and that number. The
identity is drawn at random when the file is created, and again whenever rows that somebody may have read are taken back
(see `store`). So a number never comes to mean another row unnoticed.

**In a log** that several hosts share, each host has its own files, and the same row has different numbers in the files
of two hosts. The journal is common to all of them: a place in it is the log's identity, a batch, and how many rows of
that batch were read; all batches before it were read.

    cursor   = base64url of (version u8, places, crc32 of all before it u32), without padding
    place    = shard u32, identity (IDENTITY_BYTES), sequence u64; shards rising                 version 1
               the same and rows u32: OF_FILE, or the rows of batch `sequence` that were read    version 2

Version 2 is written where at least one place is in a log. Numbers are little-endian. The empty text is the cursor
before the first entry. A shard that is not in a cursor is read from its first row on. Example: a cursor behind rows 1
to 7 of shard 0, whose identity is `abcdefgh`, holds 01, 00000000, 6162636465666768, 0700000000000000 and four bytes of
checksum. A cursor behind the first 3 rows of batch 7 of a log holds 02, 00000000, the log's identity, 0700000000000000,
03000000 and the checksum.
"""

from __future__ import annotations

import struct
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NoBase64
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

IDENTITY_BYTES: Final = 8
OF_FILE: Final = 0xFFFFFFFF  # instead of a number of rows: the place is in a file
_OF_FILES: Final = b"\x01"
_OF_LOG: Final = b"\x02"
_PLACES: Final = {
    _OF_FILES: struct.Struct(f"<I{IDENTITY_BYTES}sQ"),
    _OF_LOG: struct.Struct(f"<I{IDENTITY_BYTES}sQI"),
}
_CHECKSUM: Final = struct.Struct("<I")


class Place(NamedTuple):
    """The position of a reader in one shard's history."""

    identity: bytes  # of the file or the log
    sequence: int  # the last row that was read, or a batch
    rows: int = OF_FILE  # how many rows of that batch were read

    @property
    def is_of_log(self) -> bool:
        """Whether it is a place in the journal, which every host knows."""
        return self.rows != OF_FILE


Places = Mapping[int, Place]  # by shard


class NoCursor(ValueError):
    """The text is not a cursor."""


def encode(places: Places) -> str:
    """Returns the cursor that holds these places."""
    version = _OF_LOG if any(place.is_of_log for place in places.values()) else _OF_FILES
    pack, width = _PLACES[version].pack, 2 + (version == _OF_LOG)
    packed = version + b"".join(pack(shard, *places[shard][:width]) for shard in sorted(places))
    return urlsafe_b64encode(packed + _CHECKSUM.pack(crc32(packed))).decode().rstrip("=")


def decode(text: str) -> dict[int, Place]:
    """Returns the places that a cursor holds. Raises NoCursor."""
    if not text:
        return {}
    try:
        raw = b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, NoBase64):
        raise NoCursor("it is no text that this daemon gave out") from None
    packed, checksum = raw[: -_CHECKSUM.size], raw[-_CHECKSUM.size :]
    form = _PLACES.get(packed[:1])
    if form is None or checksum != _CHECKSUM.pack(crc32(packed)) or (len(packed) - 1) % form.size:
        raise NoCursor("it is no text that this daemon gave out, or not the whole of it")
    return {shard: Place(*place) for shard, *place in form.iter_unpack(packed[1:])}


def identity_of_log(name: str) -> bytes:
    """Returns the identity of the log of this name in cursors."""
    return blake2b(name.encode(), digest_size=IDENTITY_BYTES).digest()
