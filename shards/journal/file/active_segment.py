"""The active segment: the one file that batches are written to, each with one write and at most one sync.

Batches begin at multiples of `align`, so a write never touches a sector that holds an acknowledged batch. Behind each
batch there is always room for a barrier. An OSError of `put` or `sync` ends the journal; neither is ever repeated.
"""

from __future__ import annotations

from shards.journal.file.record import BLOCK_BYTES, OVERHEAD_BYTES, aligned, pack_batch, salt_seed
from shards.journal.file.replay import Segment
from shards.system.disk import Disk, write_all


class ActiveSegment:
    """Knows the offset of the next batch and how much room is left."""

    def __init__(self, disk: Disk, handle: int, segment: Segment, body_bytes: int) -> None:
        """`body_bytes`: the length of what the segment holds behind its first block already."""
        self._disk = disk
        self.handle = handle
        self.segment = segment
        self._seed = salt_seed(segment.header.salt)
        self._id = segment.header.segment_id
        self._align = segment.header.align
        self.offset = aligned(BLOCK_BYTES + body_bytes, self._align)
        self._payload_end_max = segment.header.length - self._align - 2 * OVERHEAD_BYTES

    def fits(self, payload_bytes: int) -> bool:
        """Returns whether a batch with a payload of this size fits, with a barrier behind it."""
        return self.offset + payload_bytes <= self._payload_end_max

    @property
    def is_filling(self) -> bool:
        """Whether more than three quarters are used, so that the next segment should be prepared."""
        return self.offset > self.segment.header.length // 4 * 3

    def put(
        self, prev_chain: int, position: int, flags: int, durable: int, time_ns: int, payload: bytes, sync: bool
    ) -> int:
        """Writes one batch or barrier at the end, syncs it where `sync` is set, and returns its chain.
        Raises OSError.
        """
        chain, data = pack_batch(self._seed, self._id, prev_chain, position, flags, durable, time_ns, payload)
        written = self._disk.pwrite(self.handle, data, self.offset)
        if written < len(data):
            write_all(self._disk, self.handle, data[written:], self.offset + written)
        if sync:
            self._disk.fdatasync(self.handle)
        self.offset = aligned(self.offset + len(data), self._align)
        return chain

    def sync(self) -> None:
        """Makes everything written durable. Raises OSError."""
        self._disk.fdatasync(self.handle)


def length_for(content_bytes: int, align: int) -> int:
    """Returns the length of a segment that has room behind its first block for this content, the overhead of one batch,
    and a barrier.
    """
    return aligned(BLOCK_BYTES + content_bytes + 2 * (align + OVERHEAD_BYTES), BLOCK_BYTES)
