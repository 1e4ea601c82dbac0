"""The bytes of a journal's messages in a stream, and the rules by which they follow each other. Pure.

    record  = "BJS\\x01", kind u8, last u8, part u16, shard u32, epoch u64, position u64, prev_chain u32, chain u32,
              time_ns i64, until_ns i64, length u32, crc u32, then `length` bytes
    crc     = CRC-32C of all fields before it, and of the bytes behind it
    chain   = CRC-32C of the bytes, going on from prev_chain; the chain before position 1 is 0. A journal in files with
              the same payloads has the same chain
    kind    = 1 batch    bytes: a part of a batch, `part` counting from 0; the batch exists once its `last` part does
              2 epoch    bytes: the owner's name. The records behind it are of this epoch
              3 beat     no bytes. The owner lives; a beat takes no position
              4 seal     the owner has stopped; only an epoch may follow
    All integers are little-endian.

`until_ns` is the billing instant up to which, exclusive, the owner may act. `time_ns` is the stamp of the batch, in
other records of the last batch. Epoch, beat and seal carry the position and chain of the last whole batch before them.
A batch of which a part failed is begun anew with part 0, or given up: parts without a last one are ignored.

Example, "hi" as batch 1 of shard 7 in epoch 1, stamped 1000, granted until 2000 (62 bytes):

    424a5301 01 01 0000 07000000 0100000000000000 0100000000000000 00000000 c2d99df5
    e803000000000000 d007000000000000 02000000 42bd4bc0 6869
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

BATCH, EPOCH, BEAT, SEAL = 1, 2, 3, 4
KINDS = {BATCH: "batch", EPOCH: "epoch", BEAT: "beat", SEAL: "seal"}
FIRST_CHAIN = 0
RECORD_BYTES_MAX = 256 * 1024

_MAGIC = b"BJS\x01"
_HEAD = struct.Struct("<4sBBHIQQIIqqI")
_U32 = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _U32.size
PART_BYTES_MAX = RECORD_BYTES_MAX - HEAD_BYTES


class Malformed(Exception):
    """A message that is not in this format, or does not follow the one before it."""


class Record(NamedTuple):
    """One message of a journal's stream."""

    kind: int
    last: int  # 1: with this part the batch is whole; 1 for every other kind
    part: int
    shard: int
    epoch: int
    position: int
    prev_chain: int
    chain: int
    time_ns: int
    until_ns: int
    body: bytes


def pack(record: Record) -> bytes:
    """Returns the message."""
    body = record.body
    packed = _HEAD.pack(_MAGIC, *record[:-1], len(body))
    return b"".join((packed, _U32.pack(crc32c(body, crc32c(packed))), body))


def unpack(message: bytes) -> Record:
    """Parses a message. Raises Malformed where it is no record, or was changed."""
    if len(message) < HEAD_BYTES:
        raise Malformed(f"a message of {len(message)} bytes is no record")
    magic, *head, length = _HEAD.unpack_from(message)
    if magic != _MAGIC:
        raise Malformed(f"not a record this version can read: it begins with {magic!r}")
    body = message[HEAD_BYTES:]
    crc = crc32c(body, crc32c(message[: _HEAD.size]))
    if length != len(body) or _U32.unpack_from(message, _HEAD.size)[0] != crc:
        raise Malformed("the checksum or length of a record is wrong")
    if head[0] not in KINDS:
        raise Malformed(f"a record of the unknown kind {head[0]}")
    return Record._make((*head, body))


class Walk:
    """Checks records one after the other and joins their parts to batches. It begins behind `position`, whose chain is
    `chain`. `epoch` 0: not known; the first record tells it.
    """

    def __init__(self, shard: int, position: int, chain: int, epoch: int = 0) -> None:
        self.shard = shard
        self.position = position  # of the last whole batch
        self.chain = chain
        self.epoch = epoch
        self.time_ns = 0
        self.until_ns = 0
        self.sealed = False
        self._parts: list[bytes] = []
        self._chain = chain  # behind the last part

    def take(self, record: Record) -> bytes | None:
        """Returns the payload of the batch that this record completes; None where it completes none. Raises
        Malformed.
        """
        if record.shard != self.shard:
            raise Malformed(f"the record belongs to shard {record.shard}, not to {self.shard}")
        if record.time_ns < self.time_ns:
            raise Malformed("the record is stamped earlier than the one before it")
        if record.kind == EPOCH:
            if record.epoch <= self.epoch:
                raise Malformed(f"epoch {record.epoch} follows epoch {self.epoch}")
            self.epoch, self.sealed = record.epoch, False
        elif self.epoch and record.epoch != self.epoch:
            raise Malformed(f"a record of epoch {record.epoch} stands in epoch {self.epoch}")
        elif self.sealed:
            raise Malformed("a record follows a seal")
        self.epoch = record.epoch
        self.time_ns, self.until_ns = record.time_ns, record.until_ns
        if record.kind == BATCH:
            return self._batch(record)
        self._other(record)
        return None

    def _batch(self, record: Record) -> bytes | None:
        if record.part == 0:
            self._parts, self._chain = [], self.chain
        if record.part != len(self._parts) or record.position != self.position + 1 or record.prev_chain != self._chain:
            raise Malformed(
                f"part {record.part} of position {record.position} does not follow position {self.position}, "
                f"of which {len(self._parts)} parts came behind"
            )
        if crc32c(record.body, record.prev_chain) != record.chain:
            raise Malformed(f"the chain of position {record.position} is broken")
        self._parts.append(record.body)
        self._chain = record.chain
        if not record.last:
            return None
        payload = b"".join(self._parts)
        self._parts = []
        self.position, self.chain = record.position, record.chain
        return payload

    def _other(self, record: Record) -> None:
        if record.position != self.position or record.chain != self.chain:
            raise Malformed(
                f"the {KINDS[record.kind]} names position {record.position}, the log is at {self.position}, "
                "or is not the same up to there"
            )
        self._parts, self._chain = [], self.chain
        self.sealed = record.kind == SEAL
