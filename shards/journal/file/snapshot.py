"""Snapshots: the state up to a position as opaque chunks in one file, used only where every byte of it is right.

    file    = head, { chunk }, footer
    head    = "BSNP", version u16 (1), 0 u16, shard u32, chain u32, position u64, epoch u64, created_ns i64, crc u32
    chunk   = "\\xb1CHK", length u32, crc u32, hcrc u32, then `length` bytes
    footer  = "\\xb1FIN", count u32, reached u64, length u64 (of the file), digest 16 bytes, crc u32
    hcrc    = CRC-32C of the 12 bytes before it; a chunk's crc goes on from that of the chunk before, the first from the
              head's; the digest is BLAKE2b-128 of all bytes before it; the footer's crc is over the footer before it.

`chain` is the journal's chain at `position`, so a snapshot can only be continued by the log it was taken from.
`reached` is the last durable position when the snapshot was finished: chunks may hold effects up to there, so a log
that ends earlier has lost batches.

A snapshot is written under a temporary name, synced, read back from the medium and checked; only then does it get its
own name. Every 4 MiB are synced by themselves, so that the journal's own syncs never wait behind a large one. An
unfinished file never carries the name of a snapshot, so one that is wrong was damaged later.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from shards.journal.file.record import Malformed, check_version
from shards.system.disk import Disk, write_all

PREFIX = "snapshot-"
WRITE_BYTES = 256 << 10
SYNC_BYTES = 4 << 20

_HEAD = struct.Struct("<4sHxxIIQQq")
_CHUNK = struct.Struct("<4sII")
_FOOTER = struct.Struct("<4sIQQ16s")
_U32 = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + 4
_CHUNK_BYTES = _CHUNK.size + 4
_FOOTER_BYTES = _FOOTER.size + 4
_HEAD_MAGIC, _CHUNK_MAGIC, _FOOTER_MAGIC = b"BSNP", b"\xb1CHK", b"\xb1FIN"
_VERSION = 1
_DIGEST_AT = _FOOTER.size - 16


class Head(NamedTuple):
    """The fields at the beginning of a snapshot."""

    shard: int
    chain: int
    position: int
    epoch: int
    created_ns: int


class Checked(NamedTuple):
    """A snapshot that was read whole and found right."""

    name: str
    head: Head
    chunk_count: int
    reached: int
    length: int


def name_of(position: int) -> str:
    """Returns the file name of the snapshot at this position. Names sort as positions do."""
    return f"{PREFIX}{position:020d}"


def position_of(name: str) -> int:
    """Returns the position in a snapshot's file name; -1 where the name is none of a snapshot."""
    digits = name[len(PREFIX) :]
    return int(digits) if name.startswith(PREFIX) and len(digits) == 20 and digits.isdecimal() else -1


def write(disk: Disk, path: str, head: Head, chunks: Iterable[bytes], reached: Callable[[], int]) -> None:
    """Writes and syncs a new file. Calls `reached` after the last chunk. Raises OSError, and what the
    iterator raises.
    """
    handle = disk.create(path)
    try:
        _write(disk, handle, head, chunks, reached)
        disk.fsync(handle)
        disk.drop_cache(handle)
    finally:
        disk.close(handle)


def _write(disk: Disk, handle: int, head: Head, chunks: Iterable[bytes], reached: Callable[[], int]) -> None:
    digest = hashlib.blake2b(digest_size=16)
    pending: list[bytes] = []
    pending_bytes = written = synced = count = 0

    def put(data: bytes) -> None:
        nonlocal pending, pending_bytes, written, synced
        digest.update(data)
        pending.append(data)
        pending_bytes += len(data)
        if pending_bytes >= WRITE_BYTES:
            write_all(disk, handle, b"".join(pending), written)
            written += pending_bytes
            pending, pending_bytes = [], 0
            if written - synced >= SYNC_BYTES:
                disk.fdatasync(handle)
                synced = written

    body = _HEAD.pack(_HEAD_MAGIC, _VERSION, *head)
    crc = crc32c(body)
    put(body + _U32.pack(crc))
    for chunk in chunks:
        crc = crc32c(chunk, crc)
        frame = _CHUNK.pack(_CHUNK_MAGIC, len(chunk), crc)
        put(frame + _U32.pack(crc32c(frame)))
        put(chunk)
        count += 1
    length = written + pending_bytes + _FOOTER_BYTES
    body = _FOOTER.pack(_FOOTER_MAGIC, count, reached(), length, bytes(16))[:_DIGEST_AT]
    digest.update(body)
    body += digest.digest()
    pending.append(body + _U32.pack(crc32c(body)))
    write_all(disk, handle, b"".join(pending), written)


def check(disk: Disk, directory: str, name: str, shard: int) -> Checked:
    """Reads a snapshot whole. Raises Malformed where anything in it is wrong, OSError where it cannot be read."""
    reader = Reader(disk, f"{directory}/{name}")
    try:
        for _ in reader.chunks():
            pass
    finally:
        reader.close()
    if reader.head.shard != shard:
        raise Malformed(f"it belongs to shard {reader.head.shard}, not to {shard}")
    return Checked(name, reader.head, reader.count, reader.reached, reader.size)


def count_of(disk: Disk, path: str) -> int:
    """Returns the number of chunks of a snapshot that was checked before, from its footer alone. Raises OSError."""
    handle = disk.open(path)
    try:
        footer = disk.pread(handle, _FOOTER_BYTES, max(0, disk.size(handle) - _FOOTER_BYTES))
    finally:
        disk.close(handle)
    count: int = _FOOTER.unpack_from(footer)[1] if len(footer) == _FOOTER_BYTES else 0
    return count


class Reader:
    """Reads one snapshot from beginning to end, and checks it on the way."""

    def __init__(self, disk: Disk, path: str) -> None:
        """Opens the file and reads its head. Raises Malformed, OSError."""
        self._disk = disk
        self._handle = disk.open(path)
        self.count = 0
        self.reached = 0
        try:
            self.size = disk.size(self._handle)
            data = self._read(0, _HEAD_BYTES)
            magic, version, *fields = _HEAD.unpack_from(data)
            self._crc = crc32c(data[:-4])
            if _U32.unpack(data[-4:])[0] != self._crc:
                raise Malformed("the checksum of its head is wrong")
            if magic == _HEAD_MAGIC:
                check_version("snapshot", version, _VERSION)
            if (magic, version) != (_HEAD_MAGIC, _VERSION):
                raise Malformed(f"not a snapshot this version can read: {magic!r} version {version}")
        except BaseException:
            self.close()
            raise
        self.head = Head._make(fields)
        self._digest = hashlib.blake2b(data, digest_size=16)

    def chunks(self) -> Iterator[bytes]:
        """Yields each chunk once its checksum was found right; `count` and `reached` are valid at the end.

        Only reading to the end proves the whole: the digest is checked last. Raises Malformed, OSError.
        """
        at, crc = _HEAD_BYTES, self._crc
        while True:
            frame = self._read(at, _CHUNK_BYTES)
            magic, length, chunk_crc = _CHUNK.unpack_from(frame)
            if magic == _FOOTER_MAGIC:
                break
            if magic != _CHUNK_MAGIC or _U32.unpack(frame[-4:])[0] != crc32c(frame[:-4]):
                raise Malformed(f"no chunk begins at offset {at}")
            chunk = self._read(at + _CHUNK_BYTES, length)
            crc = crc32c(chunk, crc)
            if crc != chunk_crc:
                raise Malformed(f"the checksum of the chunk at offset {at} is wrong")
            self._digest.update(frame)
            self._digest.update(chunk)
            self.count += 1
            yield chunk
            at += _CHUNK_BYTES + length
        self._finish(at)

    def _finish(self, at: int) -> None:
        footer = self._read(at, _FOOTER_BYTES)
        _, count, self.reached, length, digest = _FOOTER.unpack_from(footer)
        if _U32.unpack(footer[-4:])[0] != crc32c(footer[:-4]):
            raise Malformed(f"the checksum of the footer at offset {at} is wrong")
        self._digest.update(footer[:_DIGEST_AT])
        if digest != self._digest.digest() or count != self.count or not length == self.size == at + _FOOTER_BYTES:
            raise Malformed("its digest, count or length is wrong")

    def _read(self, at: int, length: int) -> bytes:
        if at + length > self.size:
            raise Malformed(f"it ends at offset {self.size}, within what begins at {at}")
        data = self._disk.pread(self._handle, length, at)
        while len(data) < length:
            chunk = self._disk.pread(self._handle, length - len(data), at + len(data))
            if not chunk:
                raise Malformed(f"it ends within what begins at offset {at}")
            data += chunk
        return data

    def close(self) -> None:
        """Closes the file. May be repeated."""
        if self._handle >= 0:
            self._disk.close(self._handle)
            self._handle = -1
