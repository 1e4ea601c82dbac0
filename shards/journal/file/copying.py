"""A copy of a journal's files up to one position, made while its owner goes on appending.

Only what cannot change any more is read of the source: batches up to a position that the owner says is durable, whole
segments before the one in which that position lies, and snapshots that were finished by then. The caller sees to it
that nothing is trimmed and no snapshot is made meanwhile.

The copy is a journal that was closed cleanly at that position: its manifest says so, with the chain there. So `open`
recognises whatever is missing or changed in the copy later, its very last batch included.
"""

from __future__ import annotations

from shards.journal import Corrupt
from shards.journal.file.record import BLOCK_BYTES, Manifest, SegmentHeader, pack_manifest, walk
from shards.journal.file.recovery import MANIFEST, TEMPORARY, is_segment, open_segment
from shards.journal.file.replay import reaching
from shards.journal.file.snapshot import check, position_of
from shards.system.disk import Disk, read_file, write_all, write_file


def copy_until(disk: Disk, source: str, target: str, shard: int, position: int) -> list[str]:
    """Copies the journal in directory `source` to the empty directory `target`, and syncs it. Returns the names of the
    files made. Raises Corrupt (the source has no whole log up to `position`), Malformed, OSError.
    """
    names = [name for name in disk.listdir(source) if not name.endswith(TEMPORARY)]
    segments = [open_segment(disk, source, name, shard) for name in sorted(names) if is_segment(name)]
    chosen = reaching(segments, segments[0].header.first_position, position) if segments else []
    if not chosen:
        raise Corrupt("no segment reaches the position to copy up to", file=source, position=position)
    copied_names = []
    for name in names:
        if 0 <= position_of(name) <= position and check(disk, source, name, shard).reached <= position:
            _put(disk, f"{target}/{name}", read_file(disk, f"{source}/{name}"), 0)
            copied_names.append(name)
    for segment in chosen:
        data = read_file(disk, f"{source}/{segment.name}")
        if segment is chosen[-1]:
            data, chain = _until(f"{source}/{segment.name}", data, segment.header, position)
            manifest = Manifest(
                1, shard, segment.header.prev_chain, segment.header.epoch, segment.header.segment_id,
                segment.header.first_position, position, chain,
            )  # fmt: skip
        _put(disk, f"{target}/{segment.name}", data, segment.header.length)
        copied_names.append(segment.name)
    write_file(disk, f"{target}/{MANIFEST}", pack_manifest(manifest))
    return [*copied_names, MANIFEST]


def _until(path: str, data: bytes, header: SegmentHeader, position: int) -> tuple[bytes, int]:
    """Returns the segment's bytes up to the end of the batch at `position`, and the chain there."""
    end, chain, reached = BLOCK_BYTES, header.prev_chain, header.first_position - 1
    for batch in walk(data, header):
        if batch.position > position:
            break
        end, chain, reached = batch.end, batch.chain, batch.position
    if reached != position:
        raise Corrupt("no good batch where one was written", file=path, offset=end, position=reached + 1)
    return data[:end], chain


def _put(disk: Disk, path: str, data: bytes, length: int) -> None:
    """Creates a synced file of this content, with zeros up to `length`. Its name becomes durable with the
    manifest's.
    """
    handle = disk.create(path)
    try:
        write_all(disk, handle, data, 0)
        if length > len(data):
            disk.truncate(handle, length)
        disk.fsync(handle)
    finally:
        disk.close(handle)
