"""What the raw messages of a shard's journal must say, whoever wrote them: a reader of its own, from the description of
the format in `shards/journal/jetstream/record.py`, which shares no code with what writes them.

    replicas    all of them hold the same messages, from the first one on
    chain       checksums hold; each record follows the one before it; a batch is there once its last part is
    epochs      rise by one with each owner; nothing follows a seal but an epoch
    grants      an owner's grant never shrinks before its seal; what it stamps lies below its grant; and the next owner
                stamps nothing before the end of it: every billing instant belongs to one epoch
    answers     each request id of an answered command is in exactly one entry
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from tests.shards.journal.nats_cluster import NatsCluster
from tests.shards.journal.replicas import read_replicas
from tests.simulation.decode import item_of, records_of

BATCH, EPOCH, BEAT, SEAL = 1, 2, 3, 4
ENTRY = 1  # the kind of a record within a batch

_HEAD = struct.Struct("<4sBBHIQQIIqqII")


class Raw(NamedTuple):
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


class Told(NamedTuple):
    """What a journal's messages say."""

    messages: int
    epochs: int
    requests: Counter[str]  # request id -> in how many entries


def raw_of(message: bytes) -> Raw:
    """AssertionError where it is no record."""
    magic, *fields, length, crc = _HEAD.unpack_from(message)
    body = message[_HEAD.size :]
    assert magic == b"BJS\x01", magic
    assert length == len(body), f"{length} bytes are said, and {len(body)} are there"
    assert crc == crc32c(body, crc32c(message[: _HEAD.size - 4])), "the checksum is wrong"
    return Raw._make((*fields, body))


def payloads_of(records: Iterable[Raw], shard: int) -> Iterator[bytes]:
    """The batches, each once it is whole. AssertionError where epochs, chain or grants are not as they must be."""
    epoch = position = chain = time_ns = until_ns = taken_ns = 0
    part_chain, parts, sealed = 0, list[bytes](), True
    for record in records:
        assert record.shard == shard
        if record.kind == EPOCH:
            assert record.epoch == epoch + 1, f"epoch {record.epoch} follows epoch {epoch}"
            assert record.until_ns == until_ns, "the new owner does not begin where the last grant ended"
            epoch, sealed, taken_ns = record.epoch, False, record.until_ns
        assert record.epoch == epoch, f"a record of epoch {record.epoch} in epoch {epoch}"
        assert not sealed, "a record behind a seal"
        assert record.time_ns >= time_ns, "instants go back"
        sealed = record.kind == SEAL
        assert sealed or record.until_ns >= until_ns, "a grant shrinks"
        if record.kind == BATCH:
            parts, part_chain = (parts, part_chain) if record.part else ([], chain)
            assert (record.part, record.position) == (len(parts), position + 1)
            assert record.prev_chain == part_chain, f"the chain of position {record.position} is broken"
            assert record.chain == crc32c(record.body, part_chain), f"the chain of position {record.position} is wrong"
            assert taken_ns <= record.time_ns < record.until_ns, (
                f"epoch {epoch} stamps {record.time_ns}, which is not within its grant, {taken_ns} to {record.until_ns}"
            )
            parts.append(record.body)
            part_chain = record.chain
            if record.last:
                position, chain = record.position, record.chain
                yield b"".join(parts)
        else:
            assert (record.position, record.chain) == (position, chain), "it names another place than the log is at"
        time_ns, until_ns = record.time_ns, record.until_ns
        assert until_ns >= time_ns, "a seal gives back what was stamped"


def told_by(messages: Iterable[bytes], shard: int) -> Told:
    """Everything in them. AssertionError."""
    records = [raw_of(message) for message in messages]
    requests: Counter[str] = Counter()
    for payload in payloads_of(records, shard):
        for kind, _, _, body in records_of(payload):
            if kind == ENTRY and (request_id := item_of(body).request_id):
                requests[request_id.decode()] += 1
    return Told(len(records), records[-1].epoch if records else 0, requests)


def prove_streams(servers: NatsCluster, shards: int, answered: set[str]) -> Counter[str]:
    """All replicas of all streams. Nothing runs on them. Counts. AssertionError."""
    counts: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    for name in ["M", *(f"S_{shard}" for shard in range(1, shards + 1))]:
        first, *others = read_replicas(servers, name)
        assert all(other == first for other in others), f"the replicas of {name} differ"
        counts["messages of replicas compared"] += len(first) * len(servers.ports)
    for shard in range(1, shards + 1):
        first, *others = read_replicas(servers, f"J_{shard}")
        assert all(other == first for other in others), f"the replicas of J_{shard} differ"
        assert [sequence for sequence, _ in first] == list(range(1, len(first) + 1)), "a hole"
        told = told_by([message for _, message in first], shard)
        counts["messages of replicas compared"] += len(first) * len(servers.ports)
        counts["epochs"] += told.epochs
        requests.update(told.requests)
    assert not (lost := answered - set(requests)), f"answered, and in no stream: {sorted(lost)[:10]}"
    doubled = [one for one in answered if requests[one] != 1]
    assert not doubled, f"in more than one entry: {doubled[:10]}"
    counts["answers found in the raw streams"] = len(answered)
    return counts
