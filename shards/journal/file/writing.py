"""Writes a journal as files from a `Reader` of a log of any kind, as if it was closed cleanly at a position.

    1 snapshots    those that hold no effect behind the position
    2 batches      from behind the older snapshot on, or from position 1, in segments of `SEGMENT_BYTES` and more
    3 manifest     says that the journal was closed at that position, with the chain there

Every kind of log has the same chain, so the files continue it. Batches are stamped with the instant that the caller
names, because a reader does not show their own stamps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shards.journal import Gap, Reader, Retained
from shards.journal.file import snapshot
from shards.journal.file.active_segment import length_for
from shards.journal.file.record import (
    BLOCK_BYTES,
    FIRST_CHAIN,
    Manifest,
    SegmentHeader,
    aligned,
    pack_batch,
    pack_block,
    pack_manifest,
    salt_seed,
)
from shards.journal.file.recovery import MANIFEST, segment_name
from shards.system.disk import Disk, write_all, write_file

SEGMENT_BYTES = 64 << 20
ALIGN_BYTES = 512
EPOCH = 1


def write_journal(
    disk: Disk, target: str, shard: int, reader: Reader, position: int, at_ns: int, salt: Callable[[], int]
) -> list[str]:
    """Writes the journal up to `position` into the empty directory `target`, and syncs it. Returns the names of the
    files made. Raises Gap (the log does not reach back far enough), what the reader raises, OSError.
    """
    retained = [row for row in reader.snapshots() if row.reached <= position]
    after, chain = (retained[0].position, retained[0].chain) if retained else (0, FIRST_CHAIN)
    if after < position and reader.first > after + 1:
        raise Gap(f"positions {after + 1} to {reader.first - 1} are not in the log any more", position=after + 1)
    snapshot_names = []
    for row in retained:
        snapshot_names.append(_write_snapshot(disk, target, shard, reader, row, at_ns))
    segments = _Segments(disk, target, shard, at_ns, salt)
    for following, payload in _until(reader, after + 1, position):
        chain = segments.add(following, chain, payload)
    names, last = segments.end(after + 1, chain)
    manifest = Manifest(1, shard, last.prev_chain, EPOCH, last.segment_id, last.first_position, position, chain)
    write_file(disk, f"{target}/{MANIFEST}", pack_manifest(manifest))
    return [*snapshot_names, *names, MANIFEST]


def _until(reader: Reader, start: int, position: int) -> Iterator[tuple[int, bytes]]:
    if start > position:
        return
    for row in reader.replay(start):
        yield row
        if row[0] == position:
            return
    raise Gap(f"the log ends before position {position}", position=position)


def _write_snapshot(disk: Disk, target: str, shard: int, reader: Reader, row: Retained, at_ns: int) -> str:
    name = snapshot.name_of(row.position)
    head = snapshot.Head(shard, row.chain, row.position, EPOCH, at_ns)
    snapshot.write(disk, f"{target}/{name}", head, reader.chunks(row.position), lambda: row.reached)
    return name


class _Segments:
    """Gathers batches and writes them as segments."""

    def __init__(self, disk: Disk, target: str, shard: int, at_ns: int, salt: Callable[[], int]) -> None:
        self._disk, self._target, self._shard, self._at_ns, self._salt = disk, target, shard, at_ns, salt
        self._payloads: list[tuple[int, int, bytes]] = []  # (position, chain before it, payload)
        self._bytes = 0
        self._last: SegmentHeader | None = None
        self._names: list[str] = []

    def add(self, position: int, prev_chain: int, payload: bytes) -> int:
        """Takes a batch and returns the chain behind it."""
        self._payloads.append((position, prev_chain, payload))
        self._bytes += len(payload)
        chain = pack_batch(0, 0, prev_chain, position, 0, 0, 0, payload)[0]
        if self._bytes >= SEGMENT_BYTES:
            self._write(position, prev_chain)
        return chain

    def end(self, following: int, chain: int) -> tuple[list[str], SegmentHeader]:
        """Writes the rest. Returns (the names of all files, the header of the last). Without a batch it writes one
        empty segment.
        """
        if self._payloads or self._last is None:
            self._write(following, chain)
        assert self._last is not None
        return self._names, self._last

    def _write(self, position: int, chain: int) -> None:
        first, prev_chain = (self._payloads[0][0], self._payloads[0][1]) if self._payloads else (position, chain)
        segment_id, salt = len(self._names) + 1, self._salt()
        body = bytearray()
        for position, before, payload in self._payloads:
            _, batch = pack_batch(
                salt_seed(salt), segment_id, before, position, 0, position - 1, self._at_ns, payload
            )  # fmt: skip
            body += bytes(aligned(len(body), ALIGN_BYTES) - len(body)) + batch
        length = length_for(len(body), ALIGN_BYTES)
        header = SegmentHeader(
            1, self._shard, salt, segment_id, first, length, prev_chain, ALIGN_BYTES, EPOCH, self._at_ns, self._at_ns,
            bytes(16), b"written from a log",
        )  # fmt: skip
        assert BLOCK_BYTES % ALIGN_BYTES == 0
        name = segment_name(segment_id)
        handle = self._disk.create(f"{self._target}/{name}")
        try:
            write_all(self._disk, handle, pack_block(header) + bytes(body), 0)
            self._disk.truncate(handle, length)
            self._disk.fsync(handle)
        finally:
            self._disk.close(handle)
        self._names.append(name)
        self._last = header
        self._payloads, self._bytes = [], 0
