"""Reads the journal in a directory: finds its files, checks that they fit together, and yields its batches in order.

Opening reads the first block of each segment, the manifest, and every byte of every snapshot; `batches` then reads the
log once, in order. At the first place where no valid batch begins, it judges what it finds:

- zeros to the end of the newest segment are the end of the log;
- an unfinished write at the very end, which cannot have been acknowledged, is a *torn tail*: a note, not a fault. It is
  torn only if nothing was written behind it, the journal was not closed, and the bytes are cut short or the machine has
  been restarted since (RELIABILITY §3.2);
- everything else is *damage*: a fault, with file, offset and position. Nothing behind it in the journal can be checked.

A segment ends at the position where the next one begins, whatever its file holds behind that: an opening of the journal
writes batches that may have been only in a cache again, into a new segment. A segment that does not begin before a
newer one is wholly replaced by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from billing.doctor.files import File
from billing.doctor.log import HEAD_BYTES, Damage
from billing.doctor.log import Snapshot as AnySnapshot
from billing.doctor.report import Report
from billing.doctor.segment import (
    BLOCK_BYTES,
    HEADER_BYTES,
    Batch,
    Block,
    Manifest,
    Unreadable,
    claimed_end,
    headers_behind,
    read_batch,
    read_block,
    read_manifest,
    salted,
)
from billing.doctor.snapshot import Chunk, Snapshot, examine, position_of
from shards.system.disk import Disk

PREFIX: Final = "segment-"
MANIFEST: Final = "manifest"


class Segment(NamedTuple):
    """A segment's file. `block` is None if the first block cannot be read."""

    path: str
    size: int
    block: Block | None


class Directory:
    """The files of one journal. `shard` 0 is the map's."""

    def __init__(self, disk: Disk, path: str, shard: int, report: Report) -> None:
        self.disk = disk
        self.path = path
        self.shard = shard
        self.report = report
        self.segments: list[Segment] = []
        self.snapshots: list[Snapshot] = []  # the valid ones, ascending
        self.manifest: Manifest | None = None
        self.head = 0  # the position of the last batch that `batches` has yielded
        self.damage: Damage | None = None
        self.bytes_read = 0
        self.last_time_ns = 0  # of the batches yielded
        self.life_began_ns = 0  # time of the first batch that the last opening's owner wrote
        self.names = disk.listdir(path)
        for name in self.names:
            digits = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and len(digits) == 10 and digits.isdecimal():
                self._open_segment(name, int(digits))
            elif position_of(name) >= 0:
                self._open_snapshot(name)
            elif ".torn-" in name or name.endswith(".damaged") or ".cut-" in name:
                report.note(f"{path}/{name} was kept as evidence of an earlier fault")
        if MANIFEST in self.names:
            self._open_manifest()
        self._drop_replaced()

    @property
    def bytes_total(self) -> int:
        """The bytes that `batches` will read, zeros included."""
        return sum(segment.size for segment in self.segments)

    def _fault(self, text: str, path: str, offset: int = -1, position: int = -1) -> None:
        self.report.fault("files", text, file=path, offset=offset, position=position)

    def _open_segment(self, name: str, segment_id: int) -> None:
        path = f"{self.path}/{name}"
        block = None
        with File(self.disk, path) as file:
            try:
                block = read_block(file.at(0, BLOCK_BYTES))
                if (block.segment_id, block.shard) != (segment_id, self.shard):
                    raise Unreadable(f"it is segment {block.segment_id} of shard {block.shard}")
                if not 1 <= block.align <= BLOCK_BYTES:
                    raise Unreadable(f"its batches are aligned to {block.align}")
            except Unreadable as reason:
                block = None
                self._fault(str(reason), path, 0)
            self.segments.append(Segment(path, file.size, block))

    def _open_snapshot(self, name: str) -> None:
        path = f"{self.path}/{name}"
        with File(self.disk, path) as file:
            try:
                snapshot = examine(file, name)
                if snapshot.shard != self.shard:
                    raise Unreadable(f"it belongs to shard {snapshot.shard}")
            except Unreadable as reason:
                self._fault(str(reason), path)
                return
        self.snapshots.append(snapshot)
        self.report.count("files", "snapshots")

    def _open_manifest(self) -> None:
        path = f"{self.path}/{MANIFEST}"
        with File(self.disk, path) as file:
            try:
                self.manifest = read_manifest(file.at(0, file.size))
            except Unreadable as reason:
                self._fault(str(reason), path, 0)
                return
        self._check_manifest(self.manifest, path)

    def _check_manifest(self, manifest: Manifest, path: str) -> None:
        if manifest.shard != self.shard:
            self._fault(f"the manifest belongs to shard {manifest.shard}", path, 0)
        for segment in self.segments:
            block = segment.block
            if block is None:
                continue
            if block.epoch > manifest.epoch and block.segment_id <= manifest.segment_id:
                self._fault(f"its epoch {block.epoch} is above the manifest's {manifest.epoch}", segment.path, 0)
            if block.segment_id == manifest.segment_id and (block.first_position, block.prev_chain) != (
                manifest.first_position,
                manifest.prev_chain,
            ):
                self._fault("it is not the segment that the manifest names", segment.path, 0)
        if not any(segment.path.endswith(f"{PREFIX}{manifest.segment_id:010d}") for segment in self.segments):
            text = f"the newest segment, {manifest.segment_id}, is missing"
            self._fault(text, path, position=manifest.first_position)

    def _drop_replaced(self) -> None:
        holding: list[Segment] = []
        begins = -1  # first position of the segment before this one in the loop
        for segment in reversed(self.segments):
            if segment.block is None or begins < 0 or segment.block.first_position < begins:
                holding.insert(0, segment)
                begins = segment.block.first_position if segment.block is not None else begins
            else:
                self.report.count("files", "segments taken over")
        self.segments = holding

    # -- where a replay can begin -----------------------------------------------------------------------------------

    @property
    def first_position(self) -> int:
        """The first position that the log holds or will hold; 0 if the first segment is missing or unreadable."""
        first = self.segments[0].block if self.segments else None
        return first.first_position if first is not None else 0

    def heads(self, snapshot: AnySnapshot) -> Iterator[bytes]:
        """As `Log.heads`."""
        with File(self.disk, f"{self.path}/{snapshot.name}") as file:
            for chunk in self._chunks(snapshot):
                yield file.at(chunk.offset, min(chunk.length, HEAD_BYTES))

    def part(self, snapshot: AnySnapshot, index: int) -> bytes:
        """As `Log.part`."""
        chunk = self._chunks(snapshot)[index]
        with File(self.disk, f"{self.path}/{snapshot.name}") as file:
            return file.at(chunk.offset, chunk.length)

    def _chunks(self, snapshot: AnySnapshot) -> list[Chunk]:
        assert isinstance(snapshot, Snapshot)
        return snapshot.chunks

    # -- the log ----------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """Yields every batch in order, without barriers; then judges the end. Must be exhausted, once."""
        head, chain, time_ns = self.first_position - 1, 0, 0
        chains = {snapshot.position: snapshot for snapshot in self.snapshots}
        epoch = before_life_ns = 0
        for number, segment in enumerate(self.segments):
            block = segment.block
            if block is None:
                self.damage = Damage(segment.path, 0, head + 1, number == len(self.segments) - 1, 0)
                return
            if number == 0:
                chain = block.prev_chain
                if block.first_position == 1 and chain:
                    self._fault("the first segment does not begin a chain", segment.path, 0)
                self._check_chain(chains, head, chain)
            self.report.count("files", "segments")
            if block.epoch > epoch:
                epoch, before_life_ns, self.life_began_ns = block.epoch, block.last_time_ns, 0
            newer = self.segments[number + 1].block if number + 1 < len(self.segments) else None
            if (block.first_position, block.prev_chain) != (head + 1, chain):
                text = f"it begins at position {block.first_position} and does not go on from position {head}"
                self._damage(segment.path, 0, head + 1, newer is None, text)
                return
            until = newer.first_position - 1 if newer is not None else -1
            with File(self.disk, segment.path) as file:
                seed, offset, reason = salted(block), BLOCK_BYTES, ""
                while True:
                    try:
                        batch = read_batch(file, block, seed, offset, chain, head + 1)
                    except Unreadable as unreadable:
                        reason = str(unreadable)
                        break
                    if newer is not None and batch.position > until:
                        break
                    offset, chain, head = batch.next_offset, batch.chain, batch.position
                    if batch.time_ns < time_ns:
                        self._fault("its time lies before that of the batch before", segment.path, batch.offset, head)
                    time_ns = max(time_ns, batch.time_ns)
                    if file.at(batch.end, batch.next_offset - batch.end).strip(b"\0"):
                        self._fault("what pads the batch is not zero", segment.path, batch.end, head)
                    if not batch.barrier:
                        self.head, self.last_time_ns = head, time_ns
                        if not self.life_began_ns and time_ns > before_life_ns:  # not one written again
                            self.life_began_ns = time_ns
                        self.bytes_read += batch.next_offset - batch.offset
                        self.report.count("files", "batches")
                        self._check_chain(chains, head, chain)
                        yield batch
                if newer is not None and head < until:
                    self._damage(segment.path, offset, head + 1, False, reason)
                    return
                if newer is None:
                    self._judge_end(file, segment, block, seed, offset, head + 1, reason)
        self.head = max(head, 0)
        if self.damage is None:
            self._check_end(chain)

    def _damage(self, path: str, offset: int, position: int, newest: bool, reason: str, behind: int = 0) -> None:
        self.damage = Damage(path, offset, position, newest, behind)
        self._fault(reason, path, offset, position)

    def _check_chain(self, chains: dict[int, Snapshot], position: int, chain: int) -> None:
        snapshot = chains.get(position)
        if snapshot is not None and snapshot.chain != chain:
            self._fault("the snapshot was not taken from this log", f"{self.path}/{snapshot.name}", position=position)

    def _judge_end(
        self, file: File, segment: Segment, block: Block, seed: int, offset: int, position: int, reason: str
    ) -> None:
        """Judges the bytes from `offset` on, behind the last valid batch of the newest segment: the end, a torn tail,
        or damage. `position`: the next batch would have this one. `reason`: why no batch begins there.
        """
        if file.size != block.length:
            text = f"the file has {file.size} bytes, but was made with {block.length}"
            self._damage(segment.path, file.size, position, True, text)
            return
        end = file.used_end(offset)
        if end == offset:
            return
        behind, proof = headers_behind(file, block, seed, offset)
        claimed = claimed_end(file, seed, offset)
        if proof >= 0:
            reason = f"{reason}; a batch that was written after it had been durable follows at offset {proof}"
        elif self.manifest is not None and self.manifest.clean:
            reason = f"{reason}; the journal was closed cleanly"
        elif block.sync and 0 <= claimed < end:
            reason = f"{reason}; more was written behind it"
        elif block.boot_id == self.disk.boot_id() and end >= (claimed if claimed >= 0 else offset + HEADER_BYTES):
            reason = f"{reason}; it is not cut short, and the machine has been up since"
        else:
            self.report.note(
                f"{segment.path}: {end - offset} bytes of an unfinished batch at offset {offset}, position {position}: "
                "a torn tail that nobody was answered; the next start cuts it off"
            )
            self.report.count("files", "torn tails")
            return
        self._damage(segment.path, offset, position, True, reason, behind)

    def _check_end(self, chain: int) -> None:
        manifest = self.manifest
        if MANIFEST not in self.names and (self.head or self.snapshots):
            self._fault("the manifest is missing", f"{self.path}/{MANIFEST}")
        if manifest is not None and manifest.clean and (manifest.head, manifest.head_chain) != (self.head, chain):
            text = f"the journal was closed at position {manifest.head}, but its log ends otherwise, at {self.head}"
            self._fault(text, f"{self.path}/{MANIFEST}", position=self.head)
        for snapshot in self.snapshots:
            if max(snapshot.position, snapshot.reached) > self.head:
                text = f"the log ends at position {self.head}, but {snapshot.reached} was durable when it was finished"
                self._fault(text, f"{self.path}/{snapshot.name}", position=snapshot.position)
