"""The map in the stream `M`. Any supervisor may decide, at the sequence behind the last one that it has read.

    M.decision   decision   "BJD\\x01", version u64, chain u32, crc u32, then the decision
    M.state      state      "BJT\\x01", version u64, chain u32, crc u32, then the map as of `version`
    chain = CRC-32C of the decision, going on from the chain of the version before; the first goes on from 0
    crc   = CRC-32C of everything else in the message

Versions count from 1 without a gap. A state carries the version and chain of the last decision before it; messages
below the newest state are purged. Nobody owns the map: of two supervisors that decide at once, the stream takes the
message of the first at the next sequence, and the second one is `Overtaken`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from crc32c import crc32c

from shards.journal import Corrupt, Gap, Overtaken, Retained, Unknown
from shards.journal.jetstream.connection import Connection
from shards.journal.jetstream.publisher import Publisher, Taken
from shards.journal.jetstream.streams import ReadStream, Refused, Stored, Stream, opening
from shards.journal.jetstream.witness import NOTHING, Witness

NAME, DECISION, STATE = "M", "M.decision", "M.state"
MADE = "billing.made"  # a key of a stream's metadata, whose value no other stream was ever made with
LOAD_PATIENCE_S, PATIENCE_S = 2.0, 10.0

_HEAD = struct.Struct("<4sQI")
_U32 = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + 4
_MAGIC = {DECISION: b"BJD\x01", STATE: b"BJT\x01"}


def pack(subject: str, version: int, chain: int, payload: bytes) -> bytes:
    """Returns the message for this subject."""
    head = _HEAD.pack(_MAGIC[subject], version, chain)
    return b"".join((head, _U32.pack(crc32c(payload, crc32c(head))), payload))


def unpack(stored: Stored) -> tuple[int, int, bytes]:
    """Returns (version, chain, payload) of a message. Raises Corrupt."""
    message = stored.payload
    where = f"{NAME}, sequence {stored.sequence}"
    if len(message) < _HEAD_BYTES or stored.subject not in _MAGIC:
        raise Corrupt(f"{where}: neither a decision nor a state")
    magic, version, chain = _HEAD.unpack_from(message)
    payload = message[_HEAD_BYTES:]
    if magic != _MAGIC[stored.subject]:
        raise Corrupt(f"{where}: not a message this version can read: it begins with {magic!r}")
    if _U32.unpack_from(message, _HEAD.size)[0] != crc32c(payload, crc32c(message[: _HEAD.size])):
        raise Corrupt(f"{where}: its checksum is wrong")
    return version, chain, payload


class Decisions:
    """Checks the messages of the map one after the other."""

    def __init__(self) -> None:
        self.version = self.chain = self.sequence = 0

    def take(self, stored: Stored) -> tuple[int, bytes, bool]:
        """Returns (version, payload, whether it is a state, which replaces all before it). Raises Corrupt."""
        version, chain, payload = unpack(stored)
        is_state = stored.subject == STATE
        if self.sequence and stored.sequence != self.sequence + 1:
            raise Corrupt(f"{NAME}: sequences {self.sequence + 1} to {stored.sequence - 1} are missing")
        if is_state:
            if self.sequence and (version, chain) != (self.version, self.chain):
                raise Corrupt(f"{NAME}, sequence {stored.sequence}: a state of version {version} at {self.version}")
        elif version != self.version + 1 or chain != crc32c(payload, self.chain):
            raise Corrupt(f"{NAME}, sequence {stored.sequence}: version {version} does not follow {self.version}")
        self.version, self.chain, self.sequence = version, chain, stored.sequence
        return version, payload, is_state


class JetStreamMapLog:
    """Implements `shards.journal.MapLog`. A stream that does not hold the end which this host has seen is
    Corrupt.
    """

    def __init__(self, connection: Connection, boot_ns: Callable[[], int], witness: Witness | None = None) -> None:
        """`witness`: remembers the end of the stream for this host; None: nobody does."""
        self._connection = connection
        self._witness = witness
        self._nonce = ""  # the stream's value of MADE, which tells it from a stream made in its place
        self._boot_ns = boot_ns
        self._stream = Stream(connection, NAME, LOAD_PATIENCE_S, boot_ns)
        self._decisions = Decisions()
        self._publisher = Publisher(self._stream, 0, boot_ns)
        self._callbacks: list[Callable[[int, bytes], None]] = []

    @property
    def version(self) -> int:
        return self._decisions.version

    @property
    def warnings(self) -> list[str]:
        return []

    def is_newest(self) -> bool:
        with opening():
            return self._stream.state().last == self._decisions.sequence

    def load(self, owner: str) -> tuple[int, list[bytes]]:
        known_version = self._decisions.version
        self._decisions = Decisions()
        self._stream.patience_s = LOAD_PATIENCE_S
        payloads: list[bytes] = []
        with opening():
            for version, payload, is_state in self._messages():
                payloads = [payload] if is_state else [*payloads, payload]
                if known_version and version > known_version and not is_state:
                    self._tell(version, payload)
        self._stream.patience_s = PATIENCE_S
        self._publisher.sequence = self._decisions.sequence
        self._saw()
        return self._decisions.version, payloads

    def _messages(self) -> Iterator[tuple[int, bytes, bool]]:
        witnessed = NOTHING if self._witness is None else self._witness.last_seen()
        state = self._stream.state()
        if self._witness is not None:
            self._nonce = str((state.config.get("metadata") or {}).get(MADE, ""))
            self._witness.check(witnessed, NAME, state.last, self._chain_at, self._nonce)
        newest = self._stream.last_of(STATE)
        first = newest.sequence if newest is not None else state.first
        if state.last and first > state.last:
            raise Corrupt(f"{NAME} is empty, and was at sequence {state.last}")
        for stored in self._stream.walk(first, state.last):
            yield self._decisions.take(stored)
        if self._decisions.sequence != state.last:
            raise Corrupt(f"{NAME} ends at sequence {self._decisions.sequence}, and was at {state.last}")

    def _saw(self) -> None:
        if self._witness is not None:
            self._witness.saw(self._decisions.sequence, self._decisions.chain, at_once=True, nonce=self._nonce)

    def _chain_at(self, sequence: int) -> int:
        stored = self._stream.message(sequence)
        if stored is None:
            raise Gap(f"{NAME}: sequence {sequence} is missing")
        return unpack(stored)[1]

    def follow(self, callback: Callable[[int, bytes], None]) -> None:
        self._callbacks.append(callback)

    def _tell(self, version: int, payload: bytes) -> None:
        for callback in self._callbacks:
            callback(version, payload)

    def decide(self, version: int, payload: bytes) -> int:
        if version != self._decisions.version:
            raise Overtaken(self._decisions.version)
        chain = crc32c(payload, self._decisions.chain)
        message = pack(DECISION, version + 1, chain, payload)
        try:
            sequence = self._publisher.put(DECISION, message)
        except Taken as taken:
            raise Overtaken(unpack(taken.stored)[0]) from None
        self._decisions.take(Stored(sequence, DECISION, message))
        self._saw()
        return version + 1

    def compact(self, version: int, payload: bytes) -> None:
        if version != self._decisions.version:
            return  # another supervisor has decided since; the map is compacted another time
        message = pack(STATE, version, self._decisions.chain, payload)
        try:
            sequence = self._publisher.put(STATE, message)
            self._decisions.take(Stored(sequence, STATE, message))
            self._saw()
            self._stream.purge(sequence)
        except Taken:
            return
        except Refused as error:
            raise Unknown(f"compacting the map: {error}") from error

    def close(self) -> None:
        self._connection.close()


class MapReader:
    """Implements `shards.journal.Reader`: the map's decisions are its positions, the map's state its only
    snapshot.
    """

    def __init__(self, connection: Connection, boot_ns: Callable[[], int]) -> None:
        self._connection = connection
        self._stream = ReadStream(connection, NAME, PATIENCE_S, boot_ns)

    def _walked(self) -> list[tuple[int, bytes, bool, int]]:
        decisions = Decisions()
        state = self._stream.state()
        newest = self._stream.last_of(STATE)
        first = newest.sequence if newest is not None else state.first
        return [(*decisions.take(stored), decisions.chain) for stored in self._stream.walk(first, state.last)]

    @property
    def first(self) -> int:
        decisions = [version for version, _, is_state, _ in self._walked() if not is_state]
        return decisions[0] if decisions else self.head + 1

    @property
    def head(self) -> int:
        walked = self._walked()
        return walked[-1][0] if walked else 0

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        rows = [(version, payload) for version, payload, is_state, _ in self._walked() if not is_state]
        if start < 1 or (rows and start < rows[0][0]):
            raise Gap(f"version {start} is not in {NAME} any more", position=start)
        return iter([row for row in rows if row[0] >= start])

    def snapshots(self) -> list[Retained]:
        states = {version: chain for version, _, is_state, chain in self._walked() if is_state}
        return [Retained(version, chain, version) for version, chain in states.items()]

    def chunks(self, position: int) -> Iterator[bytes]:
        for version, payload, is_state, _ in self._walked():
            if is_state and version == position:
                yield payload
                return
        raise Gap("there is no such state of the map", position=position)

    def close(self) -> None:
        self._connection.close()
