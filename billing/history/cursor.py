"""How far a reader of the feed of all entries is, as a text: the cursor. Pure.

The rows of one shard's history file are numbered from 1 on, in the order of its journal. A reader has had all rows of a
file up to some number, so a cursor is, for each file, the file's identity and that number. What a file is, its identity
says: it is drawn when the file is made, and again whenever rows that somebody may have read are taken back (see
`store`). So a number never comes to mean another row behind a reader's back.

    cursor   = base64url of (version u8 = 1, places, crc32 of all before it u32), without padding
    place    = shard u32, identity (IDENTITY_BYTES), sequence u64; shards rising

Numbers are little-endian. The empty text is the cursor before the first entry. A shard that is not in a cursor is read
from its first row on. Example: the cursor that has had the rows 1 to 7 of shard 0, whose identity is `abcdefgh`, holds
01, 00000000, 6162636465666768, 0700000000000000 and four bytes of checksum.
"""

from __future__ import annotations

import struct
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NoBase64
from collections.abc import Mapping
from typing import Final, NamedTuple
from zlib import crc32

IDENTITY_BYTES: Final = 8
_VERSION: Final = b"\x01"
_PLACE: Final = struct.Struct(f"<I{IDENTITY_BYTES}sQ")
_CHECKSUM: Final = struct.Struct("<I")


class Place(NamedTuple):
    """How far a reader is in one file."""

    identity: bytes
    sequence: int


Places = Mapping[int, Place]  # by shard


class NoCursor(ValueError):
    """A text that no cursor is."""


def encode(places: Places) -> str:
    """The cursor of these places."""
    packed = _VERSION + b"".join(_PLACE.pack(shard, *places[shard]) for shard in sorted(places))
    return urlsafe_b64encode(packed + _CHECKSUM.pack(crc32(packed))).decode().rstrip("=")


def decode(text: str) -> dict[int, Place]:
    """The places of a cursor. Raises NoCursor."""
    if not text:
        return {}
    try:
        raw = b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, NoBase64):
        raise NoCursor("it is no text that this daemon gave out") from None
    packed, checksum = raw[: -_CHECKSUM.size], raw[-_CHECKSUM.size :]
    if packed[:1] != _VERSION or checksum != _CHECKSUM.pack(crc32(packed)) or (len(packed) - 1) % _PLACE.size:
        raise NoCursor("it is no text that this daemon gave out, or not the whole of it")
    return {shard: Place(identity, sequence) for shard, identity, sequence in _PLACE.iter_unpack(packed[1:])}
