"""A client that waits for each reply: a read of one request is answered as among others, and with few calls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import msgpack
import pytest

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.methods import Method
from billing.api.msgpack_rpc import SINGLE_BYTES_MAX, Connection
from tests.api.outside import Clock, FakeGate
from tests.conftest import REPOSITORY

BILLING = str(REPOSITORY / "billing")
CALLS_MAX = 21  # of Python within `billing`, from a read to its reply; it was 43
RATED = Limits(requests_per_s_max=10**9)  # which the way of one request leaves to that of many


class Socket(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = bytearray()
        self.paused = False
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is kept back."""

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The end."""

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True


class TellingGate(FakeGate):
    """Says how many requests were handed over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[int] = []

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Any]]) -> None:
        self.handed.append(len(requests))
        super().submit_all(requests)


class OneClient:
    """A connection, with what it is answered."""

    def __init__(self, limits: Limits) -> None:
        self.gate, self.clock = FakeGate(), Clock()
        self.gate.holds_back = True
        self.door = Door(self.gate, Guard(), self.clock, dict, limits)
        self.connection = Connection(self.door)
        self.socket = Socket()
        self.connection.connection_made(self.socket)

    def read(self, data: bytes) -> None:
        self.connection.data_received(data)
        self.gate.turn()

    def answer(self) -> None:
        self.clock.pass_s(0.003)
        self.gate.release()

    def observed(self) -> tuple[Any, ...]:
        """All that anybody can see of it."""
        figures = self.door.figures()
        return bytes(self.socket.written), self.socket.paused, self.gate.asked, figures


def request(msgid: int, method: str, *params: Any) -> bytes:
    packed: bytes = msgpack.packb([0, msgid, method, list(params)])
    return packed


READS = [
    request(1, "top_up", "ann", 5),
    request(2, "top_up", "ann", "0.5", {"request_id": "r", "message": "x" * 100}),
    request(3, "debit", "ann", -1),  # refused
    request(4, "debit", "ann", 1, {"nothing": 1}),  # refused
    request(5, "set_rate", "ann", 1, {"per": "hour"}),
    request(6, "get_account", "ann"),  # no command
    request(7, "ping"),
    request(8, "nothing"),
    request(2**32 - 1, "debit", "bob", 1),
    msgpack.packb([2, "top_up", ["ann", 5]]),  # a notification
    request(9, "top_up", "ann", "5" * SINGLE_BYTES_MAX),  # longer than what is tried
    request(10, "top_up", "ann", 1) + request(11, "top_up", "ann", 2),
    request(12, "top_up", "ann", 1)[:-1],
    request(12, "top_up", "ann", 1)[-1:],
    request(13, "top_up", "ann", msgpack.Timestamp(1)),  # passed over
    request(14, "top_up", "ann", 3),
    request(2**32, "top_up", "ann", 3),  # garbage: the end
    request(15, "top_up", "ann", 3),
]


async def test_a_read_of_one_request_is_answered_as_by_the_way_of_many() -> None:
    single, many = OneClient(Limits()), OneClient(RATED)
    for data in READS:
        for client in (single, many):
            client.read(data)
            client.answer()
        assert single.observed() == many.observed(), data


@pytest.mark.parametrize("answered_at_once", [1, 3, 50])
async def test_no_more_are_in_flight_than_may_be(answered_at_once: int) -> None:
    single, many = OneClient(Limits()), OneClient(RATED)
    for number in range(100):
        for client in (single, many):
            client.read(request(number, "top_up", "ann", 1 + number))
            if number % answered_at_once == 0:
                client.clock.pass_s(0.003)
                client.gate.release(answered_at_once)
        assert single.observed() == many.observed(), number
    await asyncio.sleep(0)
    assert single.door.in_flight <= Limits().trial_in_flight_max


async def test_from_a_read_of_one_request_to_its_reply_there_are_few_calls() -> None:
    client, calls = OneClient(Limits()), list[str]()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(BILLING):
            calls.append(frame.f_code.co_qualname)

    data = request(1, "top_up", "ann", 5, {"request_id": "0123456789"})
    client.read(data)  # what is made once
    client.answer()
    sys.setprofile(count)
    try:
        client.read(data)
        client.answer()
    finally:
        sys.setprofile(None)
    assert client.socket.written.count(b"\x94\x01") == 2
    assert len(calls) <= CALLS_MAX, calls


async def test_reads_of_one_turn_are_handed_over_together_and_in_their_order() -> None:
    clients = [OneClient(Limits())]
    gate, door = TellingGate(), clients[0].door
    door.gate = gate
    gate.holds_back = True
    for _ in range(3):
        neighbour = OneClient(Limits())
        neighbour.connection = Connection(door)
        neighbour.connection.connection_made(neighbour.socket)
        clients.append(neighbour)
    for number, client in enumerate(clients):
        client.connection.data_received(request(number, "top_up", "ann", 1 + number))
    assert not gate.asked, "their turn has not come"
    clients[1].connection.data_received(request(9, "debit", "ann", 1))  # behind what it asked for
    gate.turn()
    assert [command[2] for command in gate.commands] == [1, 2, 3, 4, 1]
    assert gate.handed == [4, 1]


@pytest.mark.parametrize("end", ["eof", "lost", "end", "drain", "long"])
async def test_whatever_happens_to_a_connection_waits_for_what_it_has_read(end: str) -> None:
    client = OneClient(Limits())
    connection = client.connection
    connection.data_received(request(1, "top_up", "ann", 7))
    if end == "eof":
        connection.eof_received()
    elif end == "lost":
        connection.connection_lost(None)
    elif end == "end":
        connection.end(b"")
    elif end == "drain":
        client.door.drain()
    else:
        connection.data_received(request(2, "top_up", "ann", 8, {"message": "x" * SINGLE_BYTES_MAX}))
    assert [command[2] for command in client.gate.commands] == [7, 8][: 1 + (end == "long")]
    client.answer()
    assert bool(client.socket.written) == (end != "lost")
    assert client.door.in_flight == 0


def end_of(client: OneClient, part: str) -> list[int]:
    """How many requests of a method took how long, by the bounds of the histogram."""
    histogram: dict[str, Any] = client.door.latency.figures()["msgpack_rpc"][part]
    return [bound for bound, count in zip(histogram["bounds"], histogram["counts"], strict=False) if count]


async def test_latency_begins_when_a_request_was_read_whatever_it_is() -> None:
    client = OneClient(Limits())
    for number, method in enumerate(["get_account", "top_up"]):
        client.connection.data_received(request(number, method, "ann", *[5][:number]))
        client.clock.pass_s(0.004)
        client.gate.turn()
        client.gate.release()
        assert end_of(client, method) == [5_000_000]


async def test_a_frame_that_came_in_time_is_not_missed_by_the_sweep() -> None:
    client = OneClient(Limits())
    frame = request(1, "get_account", "ann")
    client.read(frame[:5])
    client.connection.data_received(frame[5:])
    client.clock.pass_s(30)
    client.door.sweep()
    client.answer()
    assert client.door.drops == 0
    assert client.socket.written.count(b"\x94\x01") == 1


class Buggy(Connection):
    """Its requests for anything but a command meet a bug."""

    def _method_of(self, name: object) -> Method:
        raise AttributeError("a bug")


async def test_a_bug_ends_the_connection_that_meets_it_and_no_other() -> None:
    loop, bugs = asyncio.get_running_loop(), list[BaseException]()
    loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))
    client, bystander = OneClient(Limits()), OneClient(Limits())
    buggy, socket = Buggy(client.door), Socket()
    buggy.connection_made(socket)
    bystander.connection = Connection(client.door)
    bystander.connection.connection_made(bystander.socket)
    client.connection.data_received(request(1, "top_up", "ann", 7))
    buggy.data_received(request(1, "get_account", "ann"))
    bystander.connection.data_received(request(1, "top_up", "ann", 8))
    client.gate.turn()
    assert [command[2] for command in client.gate.commands] == [7, 8]
    client.answer()
    assert (socket.ended, client.socket.ended, bystander.socket.ended) == (True, False, False)
    assert [str(error) for error in bugs] == ["a bug"]
    assert client.door.in_flight == 0
