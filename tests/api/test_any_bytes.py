"""Whatever bytes come, in whatever pieces: only declared answers, the same ones however the stream is cut, and one for
each request before the first garbage.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.methods import METHODS, parse
from billing.api.msgpack_rpc import Connection
from billing.ledger.errors import KINDS, Refused
from tests.api.outside import Clock, FakeGate


class Pipe:
    """A transport in memory: keeps what is written, and takes part in nothing else."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 5) if name == "peername" else None

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert 0 < low < high

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class SyncFakeGate(FakeGate):
    """Answers when it is told to, without a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.holds_back = True


def converse(stream: bytes, cuts: list[int]) -> tuple[list[Any], list[Any], bool]:
    """(replies in no order, what the gate was asked, whether it was ended) of a connection, its input in pieces."""
    gate, pipe = SyncFakeGate(), Pipe()
    connection = Connection(Door(gate, Guard(), Clock(), dict, Limits(trial_in_flight_max=4096)))  # none has to wait
    connection.connection_made(pipe)  # type: ignore[arg-type]
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in pairwise(edges):
        connection.data_received(stream[begin:end])
        gate.release()
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
    unpacker.feed(bytes(pipe.written))
    return sorted(unpacker, key=repr), list(gate.asked), pipe.closed


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(["u", "12.5", "second", "r1", 5, 2**53]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["request_id", "message", "per", "mode", "limit"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
methods = st.sampled_from(sorted(METHODS)) | st.text(max_size=8)
requests = st.tuples(st.just(0), st.integers(0, 2**32 - 1), methods, st.none() | st.lists(values, max_size=4)).map(list)
notifications = st.tuples(st.just(2), methods, st.none() | st.lists(values, max_size=4)).map(list)
good = st.lists(requests | notifications, max_size=6)
cuts = st.lists(st.integers(0, 2**16), max_size=8)


@settings(max_examples=300)
@given(good, st.binary(max_size=40) | values.map(msgpack.packb), cuts)
@example([], b"\x9f" * 2000, [])
@example([[0, 1, "ping", None]], b"\xc1", [3])
def test_any_bytes_get_declared_answers_however_they_are_cut(
    frames: list[list[Any]], tail: bytes, cuts: list[int]
) -> None:
    stream = b"".join(map(msgpack.packb, frames)) + tail
    replies, calls, ended = converse(stream, [])
    assert (replies, calls, ended) == converse(stream, cuts)
    assert (replies, calls, ended) == converse(stream, list(range(len(stream))))
    expected = [frame[1] for frame in frames if frame[0] == 0]
    answered = [reply[1] for reply in replies if reply[1] is not None]
    assert not Counter(expected) - Counter(answered)
    assert len(answered) <= len(expected) + len(tail) // 4  # garbage may be a request after all
    for kind, _, error, _ in replies:
        assert kind == 1
        if isinstance(error, str):
            assert error.partition(": ")[0] in KINDS
        else:
            assert error is None or error["name"] in KINDS
    assert [reply[1] for reply in replies].count(None) == (1 if ended else 0)


@settings(max_examples=500)
@given(methods, st.none() | st.lists(values, max_size=5) | values)
def test_any_values_are_parsed_or_refused(method: str, params: Any) -> None:
    try:
        call = parse(method, params)
    except Refused:
        return
    assert 0 <= len(call.user_id) <= 128
    for field in call.body:
        assert type(field) in (int, bytes, str) or all(type(word) is str for word in field), "a set of words"
