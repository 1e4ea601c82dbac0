"""The active segment: the one file that batches are written to, each with one write and at most one sync.

Batches begin at multiples of `align`, so a write never touches a sector that holds an answered batch. Behind each batch
there is always room for a barrier. An OSError of `put` or `sync` is the end of the journal; nothing here is repeated.
"""

from __future__ import annotations

from shards.journal.file.record import BLOCK_BYTES, OVERHEAD_BYTES, aligned, pack_batch, salt_seed
from shards.journal.file.replay import Segment
from shards.system.disk import Disk, write_all


class ActiveSegment:
    """Knows where the next batch goes and how much room is left."""

    def __init__(self, disk: Disk, handle: int, segment: Segment, body_bytes: int) -> None:
        """body_bytes: what stands behind the first block already."""
        self._disk = disk
        self.handle = handle
        self.segment = segment
        self._seed = salt_seed(segment.header.salt)
        self._id = segment.header.segment_id
        self._align = segment.header.align
        self.offset = aligned(BLOCK_BYTES + body_bytes, self._align)
        self._payload_end_max = segment.header.length - self._align - 2 * OVERHEAD_BYTES

    def fits(self, payload_bytes: int) -> bool:
        """Whether a batch of this size, and a barrier behind it, fit in."""
        return self.offset + payload_bytes <= self._payload_end_max

    @property
    def is_filling(self) -> bool:
        """Whether more than three quarters are used, so that the next segment should stand ready."""
        return self.offset > self.segment.header.length // 4 * 3

    def put(
        self, prev_chain: int, position: int, flags: int, durable: int, time_ns: int, payload: bytes, sync: bool
    ) -> int:
        """Write one batch or barrier at the end, and sync it if asked to; its chain. OSError."""
        chain, data = pack_batch(self._seed, self._id, prev_chain, position, flags, durable, time_ns, payload)
        written = self._disk.pwrite(self.handle, data, self.offset)
        if written < len(data):
            write_all(self._disk, self.handle, data[written:], self.offset + written)
        if sync:
            self._disk.fdatasync(self.handle)
        self.offset = aligned(self.offset + len(data), self._align)
        return chain

    def sync(self) -> None:
        """Make all that was written durable. OSError."""
        self._disk.fdatasync(self.handle)


def length_for(content_bytes: int, align: int) -> int:
    """Length of a segment that holds this much behind its first block: content, then a batch's overhead, a barrier."""
    return aligned(BLOCK_BYTES + content_bytes + 2 * (align + OVERHEAD_BYTES), BLOCK_BYTES)
