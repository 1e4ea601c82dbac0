"""What this host has seen of a stream, kept beside it: so a stream that has lost its end is told from a short one.

    witness   = sequence u64, chain u32, nonce_crc u32, crc u32   one file per stream, in this host's own data directory
    nonce_crc = CRC-32C of what tells the stream from one that was made in its place; 0 where that makes no difference

It is written every so often and never synced: it is evidence, and evidence that is missing proves nothing. The sequence
in it was acknowledged. So a stream that ends before that sequence, or has another chain there, has lost records that
were answered. A host that stands by sees a stream as well as one that serves. What was seen once stays seen: the file
never goes back, but for a stream that was made anew. Only the map may be that, for it can be made again from the shards
(`billing rebuild --map`); of a journal that was made anew everything is lost, whatever it is called.

Several processes of a host write one file, so what it names is read before the stream is asked where it ends: what
another process sees in between is no end that was lost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from crc32c import crc32c

from shards.journal import Corrupt, Gap
from shards.system.disk import Disk

EVERY_NS = 1_000_000_000

_FORM = struct.Struct("<QIII")


class Seen(NamedTuple):
    """A sequence that was there, and the chain at it; sequence 0: nothing is known."""

    sequence: int
    chain: int
    nonce_crc: int = 0


NOTHING = Seen(0, 0)


class Witness:
    """Of one stream. A path of "" remembers nothing."""

    def __init__(self, disk: Disk, path: str, boot_ns: Callable[[], int]) -> None:
        self._disk = disk
        self._path = path
        self._boot_ns = boot_ns
        self._written_ns = -EVERY_NS
        self._known: Seen | None = None  # what the file names; None: it was not read yet

    def saw(self, sequence: int, chain: int, at_once: bool = False, nonce: str = "") -> None:
        """This sequence is there; the log's chain at it is this. OSErrors are passed over: it is evidence only."""
        now_ns = self._boot_ns()
        if not self._path or (now_ns - self._written_ns < EVERY_NS and not at_once):
            return
        known = self.last_seen() if self._known is None else self._known
        saw = Seen(sequence, chain, _crc_of(nonce))
        if sequence <= known.sequence and saw.nonce_crc == known.nonce_crc:
            self._known = known
            return
        self._written_ns, self._known = now_ns, saw
        body = _FORM.pack(*saw, 0)[:-4]
        try:
            there = self._disk.exists(self._path)
            handle = self._disk.open(self._path, write=True) if there else self._disk.create(self._path)
            try:
                self._disk.pwrite(handle, body + crc32c(body).to_bytes(4, "little"), 0)
            finally:
                self._disk.close(handle)
        except OSError:
            return

    def check(self, witnessed: Seen, stream: str, last: int, chain_at: Callable[[int], int], nonce: str = "") -> None:
        """Raises Corrupt where the stream, which has ended with `last` since, does not hold what was seen."""
        sequence, chain, _ = witnessed
        if not sequence or witnessed.nonce_crc != _crc_of(nonce):
            return
        if last < sequence:
            raise Corrupt(f"{stream} ends at sequence {last}; this host has seen sequence {sequence}: its end is lost")
        try:
            present_chain = chain_at(sequence)
        except Gap:
            return  # trimmed since
        if present_chain != chain:
            raise Corrupt(f"{stream} is another at sequence {sequence} than this host has seen: its end was lost")

    def last_seen(self) -> Seen:
        """What the file names. To be asked before the stream is asked where it ends."""
        try:
            if not self._path or not self._disk.exists(self._path):
                return NOTHING
            handle = self._disk.open(self._path)
            try:
                data = self._disk.pread(handle, _FORM.size, 0)
            finally:
                self._disk.close(handle)
        except OSError:
            return NOTHING
        if len(data) != _FORM.size:
            return NOTHING
        *fields, crc = _FORM.unpack(data)
        return Seen(*fields) if crc == crc32c(data[:-4]) else NOTHING


def _crc_of(nonce: str) -> int:
    return crc32c(nonce.encode())
