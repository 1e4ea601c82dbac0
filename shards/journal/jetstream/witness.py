"""What this host has seen of a stream, kept beside it: so a stream that has lost its end is told from a short one.

    witness = sequence u64, chain u32, crc u32        one file per shard, in this host's own data directory

It is written every so often and never synced: it is evidence, and evidence that is missing proves nothing. What it says
was acknowledged, so a stream that does not reach it, or is another there, has lost what was answered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from crc32c import crc32c

from shards.journal import Corrupt, Gap
from shards.system.disk import Disk

EVERY_NS = 1_000_000_000

_FORM = struct.Struct("<QII")


class Witness:
    """One shard's. A path of "" remembers nothing."""

    def __init__(self, disk: Disk, path: str, boot_ns: Callable[[], int]) -> None:
        self._disk = disk
        self._path = path
        self._boot_ns = boot_ns
        self._written_ns = -EVERY_NS

    def saw(self, sequence: int, chain: int, at_once: bool = False) -> None:
        """This sequence is there; the log's chain at it is this. OSErrors are passed over: it is evidence only."""
        now_ns = self._boot_ns()
        if not self._path or (now_ns - self._written_ns < EVERY_NS and not at_once):
            return
        self._written_ns = now_ns
        body = _FORM.pack(sequence, chain, 0)[:-4]
        try:
            there = self._disk.exists(self._path)
            handle = self._disk.open(self._path, write=True) if there else self._disk.create(self._path)
            try:
                self._disk.pwrite(handle, body + crc32c(body).to_bytes(4, "little"), 0)
            finally:
                self._disk.close(handle)
        except OSError:
            return

    def check(self, stream: str, last: int, chain_at: Callable[[int], int]) -> None:
        """Raises Corrupt where the stream does not hold what was seen."""
        if not self._path or not self._disk.exists(self._path):
            return
        try:
            handle = self._disk.open(self._path)
            try:
                data = self._disk.pread(handle, _FORM.size, 0)
            finally:
                self._disk.close(handle)
        except OSError:
            return
        if len(data) != _FORM.size:
            return
        sequence, chain, crc = _FORM.unpack(data)
        if crc != crc32c(data[:-4]):
            return
        if last < sequence:
            raise Corrupt(f"{stream} ends at sequence {last}; this host has seen sequence {sequence}: its end is lost")
        try:
            found = chain_at(sequence)
        except Gap:
            return  # trimmed since
        if found != chain:
            raise Corrupt(f"{stream} is another at sequence {sequence} than this host has seen: its end was lost")
