"""Requests out of bytes: however they are cut, and wherever the loop over them is left, the same frames come out."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.api.request_reader import BETWEEN, INSIDE, PASSING_OVER, NotTaken, RequestReader
from billing.api.wire import ARRAY_LENGTH_MAX, SLICE_BYTES_MAX, TEXT_BYTES_MAX, make_unpacker
from billing.ledger.errors import Refused

FRAME_BYTES_MAX = 64 * 1024
PING = msgpack.packb([0, 1, "ping", []])
TOP_UP = msgpack.packb([0, 2, "top_up", ["user", 5_000_000_000, {"message": "x" * 300}]])
NOTE = msgpack.packb([2, "ping", []])
LONG = msgpack.packb([0, 7, "top_up", ["u" * (TEXT_BYTES_MAX + 1), 1]])
STAMP = msgpack.packb([0, 8, "top_up", [msgpack.Timestamp(1), 1]])
CROWD = msgpack.packb([0, 9, "set_thresholds", [0] * (ARRAY_LENGTH_MAX + 1)])
SILENT = msgpack.packb([2, "top_up", ["u" * (TEXT_BYTES_MAX + 1), 1]])
STREAM = [PING, TOP_UP, LONG, PING, STAMP, NOTE, SILENT, TOP_UP, PING]
EXPECTED: list[Any] = [
    [0, 1, b"ping", []],
    [0, 2, b"top_up", [b"user", 5_000_000_000, ((b"message", b"x" * 300),)]],
    NotTaken(7),
    [0, 1, b"ping", []],
    NotTaken(8),
    [2, b"ping", []],
    NotTaken(None),
    [0, 2, b"top_up", [b"user", 5_000_000_000, ((b"message", b"x" * 300),)]],
    [0, 1, b"ping", []],
]


class Pool:
    """Lends decoders, and sees that each comes back clean."""

    def __init__(self) -> None:
        self.lent = 0
        self.unpackers: list[Any] = []

    def lend_unpacker(self) -> Any:
        self.lent += 1
        return self.unpackers.pop() if self.unpackers else make_unpacker()

    def take_back(self, unpacker: Any) -> None:
        with pytest.raises(StopIteration):
            next(unpacker)
        self.unpackers.append(unpacker)


def new_reader(frame_bytes_max: int = FRAME_BYTES_MAX) -> tuple[RequestReader, Pool]:
    pool = Pool()
    return RequestReader(pool, frame_bytes_max), pool


def all_of(reader: RequestReader, length: int = SLICE_BYTES_MAX) -> list[Any]:
    frames = []
    more = reader.has_input
    while more:
        reader.next_slice(length)
        frames += list(reader.frames())
        more = reader.end_slice()
    return frames


@given(st.lists(st.integers(1, 5000), max_size=30), st.integers(1, 5000))
def test_however_it_is_cut_the_same_frames_come_out(cuts: list[int], length: int) -> None:
    reader, _ = new_reader()
    data, frames = b"".join(STREAM), []
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        reader.feed(memoryview(bytearray(piece)))
        frames += all_of(reader, length)
    assert frames == EXPECTED
    assert reader.progressed
    assert reader.state == BETWEEN
    assert not reader.has_input


@given(st.lists(st.integers(0, 4), max_size=60), st.lists(st.integers(1, 9000), max_size=12))
def test_wherever_the_loop_is_left_nothing_is_lost_and_nothing_comes_twice(counts: list[int], cuts: list[int]) -> None:
    reader, _ = new_reader()
    data, frames = b"".join(STREAM * 3), []
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        buffer = bytearray(piece)
        reader.feed(memoryview(buffer))
        more = reader.has_input
        while more:
            reader.next_slice(SLICE_BYTES_MAX)
            most = counts.pop() if counts else 100
            is_left = False
            for frame in reader.frames():
                frames.append(frame)
                most -= 1
                if most <= 0:
                    is_left = True
                    break
            if is_left:
                reader.keep()
                buffer[:] = b"\xc1" * len(buffer)  # the buffer of reads is used again
                break
            more = reader.end_slice()
        reader.feed(b"")
        frames += all_of(reader)
    assert frames == EXPECTED * 3


def test_states_are_named_and_a_decoder_is_kept_only_within_a_frame() -> None:
    reader, pool = new_reader()
    assert reader.state == BETWEEN
    reader.feed(PING[:3])
    assert all_of(reader) == []
    assert reader.state == INSIDE
    reader.feed(PING[3:])
    assert all_of(reader) == EXPECTED[:1]
    assert reader.state == BETWEEN
    reader.rest()
    assert (pool.lent, len(pool.unpackers)) == (1, 1)
    reader.feed(CROWD[:50])
    assert all_of(reader) == []
    assert reader.state == PASSING_OVER
    reader.feed(CROWD[50:] + PING)
    assert all_of(reader) == [NotTaken(9), EXPECTED[0]]
    assert reader.state == BETWEEN


def test_a_frame_that_grows_too_large_is_refused_while_it_is_small() -> None:
    reader, _ = new_reader(1000)
    reader.feed(msgpack.packb([0, 1, "top_up", ["x" * 400] * 40]))
    with pytest.raises(Refused, match="FRAME_TOO_LARGE"):
        all_of(reader, 256)
    reader, _ = new_reader(1000)
    reader.feed(b"\x94\x00\x07\xa4ping\xdd\x00\x01\x00\x00")  # an array of 65,536 values begins
    with pytest.raises(Refused, match="FRAME_TOO_LARGE"):
        all_of(reader)


def test_what_is_no_message_pack_cannot_be_followed() -> None:
    reader, _ = new_reader()
    reader.feed(PING + b"\xc1garbage")
    reader.next_slice(SLICE_BYTES_MAX)
    assert list(reader.frames()) == EXPECTED[:1]
    assert reader.end_slice()
    with pytest.raises(Refused, match="PROTOCOL_ERROR"):
        all_of(reader)


def test_what_is_closed_gives_up_everything() -> None:
    reader, _ = new_reader()
    reader.feed(PING * 10 + TOP_UP[:40])
    reader.next_slice(20)
    next(iter(reader.frames()))
    reader.close()
    assert (reader.state, reader.has_input, all_of(reader)) == (BETWEEN, False, [])


@given(st.lists(st.one_of(st.just(0), st.integers(1, 400)), max_size=40))
def test_a_read_that_is_one_frame_is_taken_at_once_and_any_other_is_left_as_it_is(cuts: list[int]) -> None:
    reader, _ = new_reader()
    data, frames_read, single_frames = b"".join(STREAM), list[Any](), 0
    frames = [len(b"".join(STREAM[:count])) for count in range(len(STREAM) + 1)]  # where frames end
    while data:
        cut = cuts.pop() if cuts else 0
        end = next(end for end in frames if end > len(b"".join(STREAM)) - len(data))
        size = cut or end - len(b"".join(STREAM)) + len(data)  # 0: up to where the frame ends
        piece, data = data[:size], data[size:]
        frame = reader.single(memoryview(bytearray(piece)))
        if frame is not None:
            single_frames += 1
            frames_read.append(frame)
            continue
        reader.feed(piece)
        frames_read += all_of(reader)
        reader.rest()
    assert frames_read == EXPECTED
    assert reader.state == BETWEEN
    if not cuts:
        assert single_frames or len(frames_read) == len(EXPECTED)


def test_every_frame_that_is_taken_comes_out_of_a_read_of_its_own_at_once() -> None:
    reader, pool = new_reader()
    for frame in (PING, TOP_UP, NOTE):
        assert reader.single(frame) == msgpack.unpackb(frame, raw=True, object_pairs_hook=tuple)
    for data in (LONG, STAMP, CROWD, SILENT, PING + PING, PING + PING[:3], TOP_UP[:-1], b"", b"\xc1"):
        assert reader.single(data) is None
    assert not pool.lent
    reader.feed(PING[:2])
    all_of(reader)
    assert reader.single(PING) is None, "a frame has begun"
