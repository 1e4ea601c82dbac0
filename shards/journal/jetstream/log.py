"""Reads a shard's journal in its stream: finds positions, and replays the batches behind one.

Every record that is read is checked, and every record of a replay is checked against the one before it (`Walk`). Where
the sequence jumps, records are missing: they were trimmed where the reading begins, and are damage anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shards.journal import Corrupt, Gap, LastSign
from shards.journal.jetstream.record import BATCH, FIRST_CHAIN, SEAL, Malformed, Record, Walk, unpack
from shards.journal.jetstream.streams import Stored, Stream


class Place(NamedTuple):
    """The end of a position: the sequence of the record that completed its batch, and the chain there."""

    position: int
    sequence: int
    chain: int


def record_of(stored: Stored, shard: int, stream: str) -> Record:
    """Decodes a message as a record of this shard. Raises Corrupt, which names the sequence."""
    try:
        record = unpack(stored.payload)
        if record.shard != shard:
            raise Malformed(f"the record belongs to shard {record.shard}, not to {shard}")
    except Malformed as fault:
        raise Corrupt(f"{stream}, sequence {stored.sequence}: {fault}") from None
    return record


def record_at(stream: Stream, sequence: int, shard: int) -> Record:
    """Returns the record at this sequence. Raises Gap (it is gone), Corrupt, Unavailable."""
    stored = stream.message(sequence)
    if stored is None:
        raise Gap(f"{stream.name}: sequence {sequence} is missing")
    return record_of(stored, shard, stream.name)


def newest_of(stream: Stream, shard: int) -> tuple[int, Record] | None:
    """Returns the newest record and its sequence; None where there is none. Raises Corrupt, Unavailable."""
    stored = stream.last_of(f"J.{shard}")
    return None if stored is None else (stored.sequence, record_of(stored, shard, stream.name))


def sign_of(newest: tuple[int, Record] | None) -> LastSign:
    """Returns the sign of the shard's owner in its newest record."""
    if newest is None:
        return LastSign(0, True)
    sequence, record = newest
    position = record.position - (record.kind == BATCH and not record.last)
    return LastSign(sequence, record.kind == SEAL, record.epoch, record.until_ns, position)


def end_of(stream: Stream, first: int, last: int, shard: int) -> tuple[Place, Record]:
    """Returns the end of the last whole batch at or before the record at `last`, and that record. Raises Gap, Corrupt,
    Unavailable.
    """
    newest = record = record_at(stream, last, shard)
    sequence = last
    while record.kind == BATCH and not record.last:  # parts of a batch that was never completed
        begun = record_at(stream, sequence - record.part, shard)
        sequence -= record.part + 1
        if sequence < first:
            return Place(record.position - 1, sequence, begun.prev_chain), newest
        record = record_at(stream, sequence, shard)
    return Place(record.position, sequence, record.chain), newest


def locate(stream: Stream, first: int, last: int, position: int, shard: int) -> Place:
    """Returns where this position ends, by binary search between two sequences. Raises Gap where it was trimmed,
    Corrupt, Unavailable.
    """
    if position == 0 and first <= 1:
        return Place(0, 0, FIRST_CHAIN)
    low, high = first, last
    while low < high:  # the first record at which the log is at this position or beyond it
        middle = (low + high) // 2
        record = record_at(stream, middle, shard)
        reached = record.position - (record.kind == BATCH and not record.last)
        if reached >= position:
            high = middle
        else:
            low = middle + 1
    record = record_at(stream, low, shard)
    if record.kind == BATCH and record.position == position and record.last:
        return Place(position, low, record.chain)
    if low == first and record.kind == BATCH and record.part == 0 and record.position == position + 1:
        return Place(position, first - 1, record.prev_chain)
    if low == first and record.kind != BATCH and record.position == position:
        return Place(position, first - 1, record.chain)
    raise Gap(f"position {position} is not in {stream.name} any more", position=position)


def first_position(stream: Stream, first: int, last: int, shard: int) -> int:
    """Returns the oldest position that a replay can begin with. Raises Corrupt, Unavailable."""
    if first > last:
        return 1
    record = record_at(stream, first, shard)
    return record.position if record.kind == BATCH and record.part == 0 else record.position + 1


def _epoch_at(stream: Stream, sequence: int, shard: int) -> int:
    """Returns the epoch of the record at this sequence; 0 where it was trimmed. Raises Corrupt, Unavailable."""
    stored = stream.message(sequence) if sequence else None
    return 0 if stored is None else record_of(stored, shard, stream.name).epoch


def replayed(stream: Stream, shard: int, after: Place, last: int, until: int) -> Iterator[tuple[int, bytes]]:
    """Yields (position, payload) behind `after`, up to position `until`; the record at `last` is at `until` or beyond
    it.

    Raises Corrupt, Gap, Unavailable.
    """
    walk = Walk(shard, after.position, after.chain, _epoch_at(stream, after.sequence, shard))
    following = after.sequence + 1
    if walk.position >= until:
        return
    for stored in stream.walk(following, last):
        if stored.sequence != following:
            if following == after.sequence + 1:
                raise Gap(f"{stream.name}: the beginning was trimmed meanwhile", position=after.position + 1)
            raise Corrupt(f"{stream.name}: sequences {following} to {stored.sequence - 1} are missing")
        following += 1
        try:
            payload = walk.take(record_of(stored, shard, stream.name))
        except Malformed as fault:
            raise Corrupt(f"{stream.name}, sequence {stored.sequence}: {fault}", position=walk.position + 1) from None
        if payload is not None:
            yield walk.position, payload
            if walk.position >= until:
                return
    raise Corrupt(f"{stream.name} ends at position {walk.position}, and was at {until}", position=walk.position + 1)
