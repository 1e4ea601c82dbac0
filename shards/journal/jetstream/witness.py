"""Remembers on this host the end of a stream that it has seen, so that a stream that has lost its end is recognised.

    witness   = sequence u64, chain u32, nonce_crc u32, crc u32   one file per stream, in this host's own data directory
    nonce_crc = CRC-32C of a nonce in the stream's metadata, which a stream made in its place does not have; 0 for
                journals

The file is written now and then, for most records at most once a second, and never synced: it is evidence, and missing
evidence proves nothing. The sequence in it was acknowledged. So a stream that ends before that sequence, or has another
chain there, has lost acknowledged records. A host that stands by sees a stream as well as one that serves. The sequence
in the file never falls, except for a stream that was made anew. Only the map may be made anew, because it can be built
from the shards (`billing rebuild --map`); where a journal was made anew, all its records are lost.

Several processes of a host write one file. So the file is read before the stream is asked where it ends: otherwise a
newer sequence that another process writes in between would look like a lost end.
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
    """A sequence that a stream has held, and the chain at it; sequence 0: nothing is known."""

    sequence: int
    chain: int
    nonce_crc: int = 0


NOTHING = Seen(0, 0)


class Witness:
    """Remembers the end of one stream. With the path "" it remembers nothing."""

    def __init__(self, disk: Disk, path: str, boot_ns: Callable[[], int]) -> None:
        self._disk = disk
        self._path = path
        self._boot_ns = boot_ns
        self._written_ns = -EVERY_NS
        self._known: Seen | None = None  # the content of the file; None: not read yet

    def saw(self, sequence: int, chain: int, at_once: bool = False, nonce: str = "") -> None:
        """Records that the stream holds this sequence, with this chain. Ignores OSErrors, because the file is evidence
        only.
        """
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
        """Raises Corrupt where a stream that ends with `last` does not hold what this host has seen."""
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
        """Returns what the file names. To be called before the stream is asked where it ends."""
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
