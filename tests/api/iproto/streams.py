"""A whole conversation with the Tarantool door in memory: bytes in, in pieces, and the replies that came."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.iproto import protocol
from billing.api.iproto.connection import TarantoolConnection
from billing.ledger import commands as ops
from tests.api.outside import Clock
from tests.api.test_any_bytes import Pipe, SyncFakeGate

Told = tuple[int, int, Any]  # type, SYNC, data or error


class TarantoolPipe(Pipe):
    """What the door does to a transport beside writing."""

    def set_write_buffer_limits(self, high: int, low: int | None = None) -> None:
        assert high > 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def salt_of(count: int) -> bytes:
    return bytes(range(count))


def converse(stream: bytes, cuts: list[int], guard: Guard) -> tuple[list[Told], list[Any], bool]:
    """(replies as they came, what the gate was asked, whether it was ended) of a connection, its input in pieces."""
    gate, pipe = SyncFakeGate(), TarantoolPipe()
    gate.replies[str(ops.DEBIT)] = {"available_nanos": 550 * 10**9, "outcome": "ok"}
    door = Door(gate, guard, Clock(), dict, Limits(trial_in_flight_max=4096))
    connection = TarantoolConnection(door, salt_of)
    connection.connection_made(pipe)  # type: ignore[arg-type]
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in pairwise(edges):
        connection.data_received(stream[begin:end])
        gate.release()
    return told_in(bytes(pipe.written[protocol.GREETING_BYTES :])), list(gate.asked), pipe.closed


def told_in(written: bytes) -> list[Told]:
    """The replies in these bytes, which are whole packets."""
    replies: list[Told] = []
    while written:
        size = int.from_bytes(written[1:5], "big")
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(written[5 : 5 + size])
        header, body = unpacker.unpack(), unpacker.unpack()
        assert unpacker.tell() == size, "a packet says its own length"
        replies.append((header[0], header[1], body.get(0x30, body.get(0x31))))
        written = written[5 + size :]
    return replies
