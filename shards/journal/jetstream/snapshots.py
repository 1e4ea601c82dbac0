"""Snapshots in a stream of their own: messages of at most 256 KiB with a piece each, and a manifest behind them.

    S.k        piece      "BJP\\x01", shard u32, epoch u64, position u64, number u32, crc u32, then a piece of the whole
    S.k.whole  manifest   "BJM\\x01", shard u32, epoch u64, position u64, chain u32, sequence u64, reached u64,
                          first u64, pieces u32, length u64, previous u64, digest 16 bytes, crc u32
    whole   = { length u32, chunk }            cut into pieces of PIECE_BYTES_MAX, also within a chunk
    crc     = CRC-32C of everything else in the message; digest = BLAKE2b-128 of the whole

`chain` and `sequence` are those of the journal's batch at `position`; `first` is the sequence of piece 0, `previous`
that of the manifest before, 0 for none. The manifest is published last, behind its pieces, so an unfinished snapshot
has none; a later purge deletes its pieces. Two owners cannot mix their pieces: each is published at the sequence
behind the last. Two snapshots are kept.

Where a piece is damaged, its snapshot is passed over for the one before (`Malformed`). Pieces that are sound but do not
belong to the manifest cannot come of damage: somebody has put an older snapshot under a newer manifest, and nothing of
that stream is used (`Corrupt`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from shards.journal import Corrupt
from shards.journal.jetstream.record import RECORD_BYTES_MAX, Malformed
from shards.journal.jetstream.streams import Stored, Stream

KEPT = 2

_PIECE = struct.Struct("<4sIQQI")
_MANIFEST = struct.Struct("<4sIQQIQQQIQQ16s")
_U32 = struct.Struct("<I")
_PIECE_MAGIC, _MANIFEST_MAGIC = b"BJP\x01", b"BJM\x01"
_PIECE_HEAD_BYTES = _PIECE.size + _U32.size
PIECE_BYTES_MAX = RECORD_BYTES_MAX - _PIECE_HEAD_BYTES


class Manifest(NamedTuple):
    """The description of a snapshot, which makes the pieces before it one."""

    shard: int
    epoch: int
    position: int
    chain: int
    sequence: int  # of the journal's record that made `position` whole; 0 where position is 0
    reached: int
    first: int
    pieces: int
    length: int
    previous: int
    digest: bytes


def pack_manifest(manifest: Manifest) -> bytes:
    """Returns the message of a manifest."""
    packed = _MANIFEST.pack(_MANIFEST_MAGIC, *manifest)
    return packed + _U32.pack(crc32c(packed))


def unpack_manifest(message: bytes, shard: int) -> Manifest:
    """Parses the message of a manifest. Raises Malformed."""
    if len(message) != _MANIFEST.size + 4 or _U32.unpack(message[-4:])[0] != crc32c(message[:-4]):
        raise Malformed("the checksum or length of a snapshot's manifest is wrong")
    magic, *fields = _MANIFEST.unpack(message[:-4])
    manifest = Manifest(*fields)
    if magic != _MANIFEST_MAGIC:
        raise Malformed(f"not a manifest this version can read: it begins with {magic!r}")
    if manifest.shard != shard:
        raise Malformed(f"the manifest belongs to shard {manifest.shard}, not to {shard}")
    return manifest


def pack_piece(shard: int, epoch: int, position: int, number: int, piece: bytes) -> bytes:
    """Returns the message of a piece."""
    packed = _PIECE.pack(_PIECE_MAGIC, shard, epoch, position, number)
    return b"".join((packed, _U32.pack(crc32c(piece, crc32c(packed))), piece))


def pieces_of(chunks: Iterable[bytes], digest: hashlib.blake2b) -> Iterator[bytes]:
    """Yields the snapshot in pieces as its chunks come, and updates `digest`."""
    pending = bytearray()
    for chunk in chunks:
        pending += _U32.pack(len(chunk))
        pending += chunk
        while len(pending) >= PIECE_BYTES_MAX:
            piece = bytes(pending[:PIECE_BYTES_MAX])
            del pending[:PIECE_BYTES_MAX]
            digest.update(piece)
            yield piece
    if pending:
        digest.update(pending)
        yield bytes(pending)


def subjects_of(shard: int) -> tuple[str, str]:
    """Returns (the subject of pieces, that of manifests)."""
    return f"S.{shard}", f"S.{shard}.whole"


def manifests_of(stream: Stream, shard: int) -> list[Manifest]:
    """Returns the manifests of the snapshots that are kept, oldest first. Raises Malformed, Unavailable."""
    manifests: list[Manifest] = []
    stored = stream.last_of(subjects_of(shard)[1])
    while stored is not None and len(manifests) < KEPT:
        manifest = unpack_manifest(stored.payload, shard)
        manifests.insert(0, manifest)
        stored = stream.message(manifest.previous) if manifest.previous else None
    return manifests


def chunks_of(stream: Stream, manifest: Manifest) -> Iterator[bytes]:
    """Yields the chunks, each of checked bytes; only reading to the end proves the whole. Raises Malformed, Corrupt,
    Unavailable.
    """
    digest = hashlib.blake2b(digest_size=16)
    pending = bytearray()
    number = length = 0
    for stored in stream.walk(manifest.first, manifest.first + manifest.pieces - 1):
        piece = _piece(stored, manifest, number)
        digest.update(piece)
        pending += piece
        length += len(piece)
        number += 1
        at = 0
        while len(pending) - at >= 4:
            end = at + 4 + int(_U32.unpack_from(pending, at)[0])
            if end > len(pending):
                break
            yield bytes(pending[at + 4 : end])
            at = end
        del pending[:at]
    if number != manifest.pieces:
        raise Malformed(f"the snapshot at position {manifest.position} has {number} pieces of {manifest.pieces}")
    if pending or length != manifest.length or digest.digest() != manifest.digest:
        raise Corrupt(
            f"{stream.name}: other pieces than its own lie under the manifest of position {manifest.position}"
        )


def check(stream: Stream, manifest: Manifest) -> None:
    """Reads the snapshot whole. Raises Malformed, Corrupt, Unavailable."""
    for _ in chunks_of(stream, manifest):
        continue


def _piece(stored: Stored, manifest: Manifest, number: int) -> bytes:
    message = stored.payload
    if stored.sequence != manifest.first + number or len(message) < _PIECE_HEAD_BYTES:
        raise Malformed(f"piece {number} of the snapshot at position {manifest.position} is missing")
    head = message[: _PIECE.size]
    piece = message[_PIECE_HEAD_BYTES:]
    if _U32.unpack_from(message, _PIECE.size)[0] != crc32c(piece, crc32c(head)):
        raise Malformed(f"piece {number} of the snapshot at position {manifest.position} is damaged")
    magic, *fields = _PIECE.unpack(head)
    if magic != _PIECE_MAGIC:
        raise Malformed(f"not a piece this version can read: it begins with {magic!r}")
    if fields != [manifest.shard, manifest.epoch, manifest.position, number]:
        shard, epoch, position, piece_number = fields
        raise Corrupt(
            f"S_{manifest.shard}, sequence {stored.sequence}: piece {piece_number} of shard {shard} at position "
            f"{position} in epoch {epoch} lies under the manifest of position {manifest.position}: an older snapshot, "
            "or another's"
        )
    return piece
