"""What the raw messages of a shard's journal must say, whoever wrote them: a reader of its own, from the description of
the format in `shards/journal/jetstream/record.py`, which shares no code with what writes them.

    replicas    all of them hold the same messages, from the first one on
    chain       checksums hold; each record follows the one before it; a batch is there once its last part is
    epochs      rise by one with each owner; nothing follows a seal but an epoch
    grants      an owner's grant never shrinks before its seal; what it stamps lies below its grant; and the next owner
                stamps nothing before the end of it: every billing instant belongs to one epoch
    answers     each request id of an answered command is in exactly one entry

`RawStreams` reads on from where it stood: what was read after one fault is not read again after the next one.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from typing import NamedTuple

from crc32c import crc32c

from tests.shards.journal.nats_cluster import NatsCluster
from tests.shards.journal.replicas import last_of, read_from, read_replicas
from tests.simulation.decode import item_of, records_of

BATCH, EPOCH, BEAT, SEAL = 1, 2, 3, 4
ENTRY = 1  # the kind of a record within a batch

_HEAD = struct.Struct("<4sBBHIQQIIqqII")


class RawRecord(NamedTuple):
    """One message."""

    kind: int
    last: int
    part: int
    shard: int
    epoch: int
    position: int
    prev_chain: int
    chain: int
    time_ns: int
    until_ns: int
    body: bytes


def raw_of(message: bytes) -> RawRecord:
    """AssertionError where it is no record."""
    magic, *fields, length, crc = _HEAD.unpack_from(message)
    body = message[_HEAD.size :]
    assert magic == b"BJS\x01", magic
    assert length == len(body), f"{length} bytes are said, and {len(body)} are there"
    assert crc == crc32c(body, crc32c(message[: _HEAD.size - 4])), "the checksum is wrong"
    return RawRecord._make((*fields, body))


class RawWalk:
    """Follows the records of one shard from the first one on. AssertionError where anything is not as it must be."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.epoch = self._position = self._chain = self._time_ns = self._until_ns = self._taken_ns = 0
        self._part_chain = 0
        self._parts: list[bytes] = []
        self._sealed = True

    def take(self, record: RawRecord) -> bytes | None:
        """The payload that the record makes whole, if any."""
        assert record.shard == self.shard
        if record.kind == EPOCH:
            assert record.epoch == self.epoch + 1, f"epoch {record.epoch} follows epoch {self.epoch}"
            assert record.until_ns == self._until_ns, "the new owner does not begin where the last grant ended"
            self.epoch, self._sealed, self._taken_ns = record.epoch, False, record.until_ns
        assert record.epoch == self.epoch, f"a record of epoch {record.epoch} in epoch {self.epoch}"
        assert not self._sealed, "a record behind a seal"
        assert record.time_ns >= self._time_ns, "instants go back"
        self._sealed = record.kind == SEAL
        assert self._sealed or record.until_ns >= self._until_ns, "a grant shrinks"
        payload = None
        if record.kind == BATCH:
            payload = self._batch(record)
        else:
            named = record.position, record.chain
            assert named == (self._position, self._chain), "it names another place than the log is at"
        self._time_ns, self._until_ns = record.time_ns, record.until_ns
        assert self._until_ns >= self._time_ns, "a seal gives back what was stamped"
        return payload

    def _batch(self, record: RawRecord) -> bytes | None:
        if not record.part:
            self._parts, self._part_chain = [], self._chain
        assert (record.part, record.position) == (len(self._parts), self._position + 1)
        chain_before = self._part_chain
        assert record.prev_chain == chain_before, f"the chain of position {record.position} is broken"
        assert record.chain == crc32c(record.body, chain_before), f"the chain of position {record.position} is wrong"
        assert self._taken_ns <= record.time_ns < record.until_ns, (
            f"epoch {self.epoch} stamps {record.time_ns}, which is not within its grant, "
            f"{self._taken_ns} to {record.until_ns}"
        )
        self._parts.append(record.body)
        self._part_chain = record.chain
        if not record.last:
            return None
        self._position, self._chain = record.position, record.chain
        return b"".join(self._parts)


class RawStreams:
    """All journals of a cluster, as every server's replica has them."""

    def __init__(self, servers: NatsCluster, shards: int) -> None:
        self._servers = servers
        self._walks = [RawWalk(shard) for shard in range(1, shards + 1)]
        self._read = [0] * shards  # the last sequence that was read of each
        self._digests = [hashlib.sha256() for _ in range(shards)]  # of everything that was read
        self._found: Counter[str] = Counter()  # request id -> in how many entries
        self.counts: Counter[str] = Counter()

    @property
    def epochs(self) -> int:
        return sum(walk.epoch for walk in self._walks)

    def read_on(self, answered: set[str]) -> None:
        """Reads what has come since, of each server; `answered` are the request ids of all answers until now."""
        for number, walk in enumerate(self._walks):
            name = f"J_{walk.shard}"
            first, last = self._read[number] + 1, last_of(self._servers, name)
            messages, *others = [read_from(url, name, first, last) for url in self._servers.urls]
            assert all(other == messages for other in others), f"the replicas of {name} differ from sequence {first} on"
            assert [sequence for sequence, _ in messages] == list(range(first, last + 1)), f"{name} has a hole"
            self.counts["messages compared"] += len(messages) * len(self._servers.urls)
            self._read[number] = last
            for _, message in messages:
                self._digests[number].update(message)
                if payload := walk.take(raw_of(message)):
                    self._count(payload)
        self.hold_against(answered)

    def _count(self, payload: bytes) -> None:
        for kind, _, _, body in records_of(payload):
            if kind == ENTRY and (request_id := item_of(body).request_id):
                self._found[request_id.decode()] += 1

    def hold_against(self, answered: set[str]) -> None:
        """Each of these request ids is in exactly one entry."""
        assert not (missing := answered - set(self._found)), f"answered, and in no stream: {sorted(missing)[:10]}"
        doubled = [request_id for request_id in answered if self._found[request_id] != 1]
        assert not doubled, f"in more than one entry: {doubled[:10]}"
        self.counts["answers found"] = len(answered)

    def read_as_leaders(self) -> None:
        """Everything once more, nothing being published, with each server as the leader of each stream in its turn:
        what was read before is there unchanged.
        """
        for name in ["M", *(f"S_{walk.shard}" for walk in self._walks)]:
            messages, *others = read_replicas(self._servers, name)
            assert all(other == messages for other in others), f"the replicas of {name} differ"
            self.counts["messages compared"] += len(messages) * len(self._servers.urls)
        for number, walk in enumerate(self._walks):
            for replica in read_replicas(self._servers, f"J_{walk.shard}"):
                assert [sequence for sequence, _ in replica] == list(range(1, self._read[number] + 1)), "a hole"
                digest = hashlib.sha256()
                for _, message in replica:
                    digest.update(message)
                assert digest.digest() == self._digests[number].digest(), f"J_{walk.shard} is not what it was"
                self.counts["messages compared"] += len(replica)
