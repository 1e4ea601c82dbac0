"""Bounded memory and time: what a connection may have in flight, unread, unfinished; and how it ends."""

from __future__ import annotations

import asyncio
import socket
import struct
import tracemalloc
from typing import cast

import msgpack
import pytest

from billing.api.auth import Guard
from billing.api.door import Limits
from billing.api.msgpack_rpc import Connection
from billing.ledger.commands import TOP_UP
from tests.api.outside import DoorHarness, RawClient, open_harness

SMALL = Limits(in_flight_max=8, write_buffer_bytes_max=4096, frame_deadline_ns=3_600 * 10**9)


def top_ups(count: int, first: int = 0) -> bytes:
    return b"".join(msgpack.packb([0, msgid, "top_up", ["u", msgid + 1]]) for msgid in range(first, first + count))


async def test_thousands_of_frames_in_one_read_are_answered_once_each_in_order(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(top_ups(20_000))
    replies = await wire.replies(20_000)
    assert [reply[1] for reply in replies] == list(range(20_000))
    assert [command[2] for command in harness.gate.commands] == list(range(1, 20_001))


async def test_requests_of_all_kinds_in_one_read_keep_their_order(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(
        top_ups(2)
        + msgpack.packb([0, 2, "get_account", ["u"]])
        + msgpack.packb([0, 3, "history", ["u"]])
        + top_ups(2, first=4)
    )
    assert [reply[1] for reply in await wire.replies(6)] == list(range(6))
    assert [kind for kind, _ in harness.gate.asked] == ["submit", "submit", "read", "read", "submit", "submit"]


async def test_no_more_than_the_limit_is_in_flight_and_nothing_is_lost() -> None:
    async with open_harness(SMALL) as harness:
        harness.gate.holds_back = True
        wire = await harness.connect()
        wire.send(top_ups(100))
        await harness.until(lambda: len(harness.gate.asked) == 8)
        await harness.settle()
        assert len(harness.gate.asked) == 8
        harness.gate.release(3)
        await harness.settle()
        assert len(harness.gate.asked) == 8  # goes on when half have been answered
        harness.gate.release(1)
        await harness.until(lambda: len(harness.gate.asked) == 12)
        harness.gate.holds_back = False
        harness.gate.release()
        assert [reply[1] for reply in await wire.replies(100)] == list(range(100))
        assert len(harness.gate.asked) == 100
        assert await wire.alive()


async def test_a_full_connection_is_not_read_and_its_neighbours_are() -> None:
    async with open_harness(SMALL) as harness:
        harness.gate.holds_back = True
        wire, neighbour = await harness.connect(), await harness.connect()
        wire.send(top_ups(200_000))
        await harness.until(lambda: len(harness.gate.asked) == 8)
        assert await neighbour.alive()
        await harness.settle()
        assert wire.writer.transport.get_write_buffer_size() > 0  # the kernel is full: nobody reads
        assert len(harness.gate.asked) == 8


async def test_notifications_count_as_in_flight() -> None:
    async with open_harness(SMALL) as harness:
        harness.gate.holds_back = True
        wire = await harness.connect()
        wire.send(msgpack.packb([2, "top_up", ["u", 1]]) * 50)
        await harness.until(lambda: len(harness.gate.asked) == 8)
        await harness.settle()
        assert len(harness.gate.asked) == 8
        harness.gate.holds_back = False
        harness.gate.release()
        await harness.until(lambda: len(harness.gate.asked) == 50)
        assert await wire.alive()


async def test_a_listing_counts_for_many() -> None:
    async with open_harness(Limits(in_flight_max=600, trial_in_flight_max=600)) as harness:
        harness.gate.holds_back = True
        wire = await harness.connect()
        wire.send(b"".join(msgpack.packb([0, msgid, "history", ["u"]]) for msgid in range(10)))
        await harness.until(lambda: len(harness.gate.asked) == 4)  # one counts for nothing
        await harness.settle()
        assert len(harness.gate.asked) == 4
        harness.gate.holds_back = False
        harness.gate.release()
        assert await wire.replies(10) == [[1, msgid, None, []] for msgid in range(10)]


async def test_a_listing_that_takes_long_holds_up_no_call_over_the_same_connection() -> None:
    """Also while the client has not shown that it reads; a second one does."""
    async with open_harness(Limits(trial_in_flight_max=8)) as harness:
        wire = await harness.connect()
        harness.gate.holds_back = True
        wire.send(msgpack.packb([0, 1000, "history", ["u"]]))
        await harness.until(lambda: len(harness.gate.asked) == 1)
        listing = harness.gate.waiting.pop()
        for _ in range(3):
            wire.send(top_ups(20))
            await harness.until(lambda: len(harness.gate.waiting) == 8)
            await harness.settle()
            assert len(harness.gate.waiting) == 8, "no more than without a listing"
            while harness.gate.waiting:
                harness.gate.release()
                await harness.settle()
            assert [reply[1] for reply in await wire.replies(20)] == list(range(20))
        wire.send(msgpack.packb([0, 1001, "history", ["u"]]))
        await harness.until(lambda: len(harness.gate.waiting) == 1)
        wire.send(top_ups(1))
        await harness.settle()
        assert len(harness.gate.waiting) == 1
        harness.gate.waiting.append(listing)
        harness.gate.holds_back = False
        harness.gate.release()
        assert sorted(reply[1] for reply in await wire.replies(3)) == [0, 1000, 1001]
        assert harness.door.in_flight == 0
        harness.gate.holds_back = True
        wire.send(top_ups(20))
        await harness.until(lambda: len(harness.gate.waiting) == 8)
        await harness.settle()
        assert len(harness.gate.waiting) == 8
        harness.gate.holds_back = False
        harness.gate.release()
        assert len(await wire.replies(20)) == 20


async def test_what_another_worker_answered_is_passed_on_as_it_came() -> None:
    async with open_harness(SMALL) as harness:
        harness.gate.holds_back = True
        wire = await harness.connect()
        wire.send(top_ups(1) + msgpack.packb([0, 1, "history", ["u"]]) + msgpack.packb([2, "top_up", ["u", 1]]))
        await harness.until(lambda: len(harness.gate.asked) == 3)
        (first, _, _), (second, _, _), (third, _, _) = harness.gate.waiting
        second.relay(msgpack.packb([1, 1, None, ["from afar"]]))
        second.relay_flush()
        assert await wire.reply() == [1, 1, None, ["from afar"]]
        third.relay(msgpack.packb([1, 0, None, "for nobody"]))
        third.relay_flush()
        first.answer(0, {"own": True})
        second.relay_flush()  # does not let out what only `flush` may
        await harness.settle()
        assert first._writer.in_flight == 0
        first.flush()
        assert await wire.reply() == [1, 0, None, {"own": True}]


async def test_what_is_staged_does_not_leave_with_what_the_door_says_itself(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.send(top_ups(1))
    await harness.until(lambda: harness.gate.waiting)
    caller, token, reply = harness.gate.waiting[0]
    caller.answer(token, reply)
    assert await wire.alive()  # the first thing to arrive is the answer to ping
    caller.flush()
    assert (await wire.reply())[1] == 0


def transport_of(wire: RawClient) -> asyncio.Transport:
    return cast(asyncio.Transport, wire.writer.transport)


async def test_a_client_that_does_not_read_is_not_read_and_then_dropped() -> None:
    async with open_harness(SMALL) as harness:
        wire, neighbour = await harness.connect(receive_bytes=4096), await harness.connect()
        transport_of(wire).pause_reading()
        harness.gate.replies["get_account"] = {"text": "x" * 60_000}
        wire.send(b"".join(msgpack.packb([0, msgid, "get_account", ["u"]]) for msgid in range(1000)))
        await harness.until(lambda: harness.gate.asked)
        while True:
            before = len(harness.gate.asked)
            await harness.settle()
            if len(harness.gate.asked) == before:
                break
        assert len(harness.gate.asked) < 1000
        assert await neighbour.alive()
        harness.clock.pass_s(29)
        harness.door.sweep()
        assert len(harness.door.connections) == 2
        harness.clock.pass_s(1)
        harness.door.sweep()
        await harness.until(lambda: len(harness.door.connections) == 1)
        assert harness.door.drops == 1
        assert await neighbour.alive()


async def test_a_client_that_reads_late_gets_everything() -> None:
    async with open_harness(SMALL) as harness:
        wire = await harness.connect(receive_bytes=4096)
        transport_of(wire).pause_reading()
        harness.gate.replies["get_account"] = {"text": "x" * 60_000}
        wire.send(b"".join(msgpack.packb([0, msgid, "get_account", ["u"]]) for msgid in range(100)))
        await harness.until(lambda: harness.gate.asked)
        await harness.settle()
        harness.clock.pass_s(20)
        harness.door.sweep()
        transport_of(wire).resume_reading()
        assert [reply[1] for reply in await wire.replies(100)] == list(range(100))
        harness.clock.pass_s(1000)
        harness.door.sweep()
        assert await wire.alive()


async def test_the_doors_own_replies_are_bounded_too() -> None:
    async with open_harness() as harness:
        wire = await harness.connect(receive_bytes=4096)
        transport_of(wire).pause_reading()
        wire.send(msgpack.packb([0, 1, "methods", None]) * 20_000)  # would be 200 MB of replies
        await harness.until(lambda: cast(Connection, next(iter(harness.door.connections)))._stalled_since_ns)
        tracemalloc.start()
        try:
            await harness.settle()
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        transport_of(wire).resume_reading()
        assert (await wire.reply())[3][0]["name"] == "top_up"


async def test_half_a_frame_and_silence_ends_after_its_deadline(harness: DoorHarness) -> None:
    wire, neighbour = await harness.connect(), await harness.connect()
    wire.send(top_ups(1) + b"\x94\x00\x01\xa6top")
    await wire.reply()
    harness.clock.pass_s(9)
    harness.door.sweep()
    wire.send(b"_")  # a byte now and then does not help
    await harness.settle()
    harness.clock.pass_s(1)
    harness.door.sweep()
    assert (await wire.reply())[:3] == [1, None, "PROTOCOL_ERROR: a frame was left unfinished"]
    assert await wire.is_closed()
    assert await neighbour.alive()


async def test_each_frame_has_its_own_deadline(harness: DoorHarness) -> None:
    wire = await harness.connect()
    stream = top_ups(6)
    length = len(stream) // 6
    for end in range(length // 2, len(stream), length):
        wire.send(stream[max(0, end - length) : end])
        await harness.settle()
        harness.clock.pass_s(7)
        harness.door.sweep()
    assert [reply[1] for reply in await wire.replies(5)] == [0, 1, 2, 3, 4]


async def test_a_connection_between_two_frames_may_stay_for_ever(harness: DoorHarness) -> None:
    wire = await harness.connect()
    assert await wire.alive()
    for _ in range(3):
        harness.clock.pass_s(1_000_000)
        harness.door.sweep()
    assert await wire.alive()


@pytest.mark.parametrize(
    "opening",
    [
        b"\x94\x00\x01\xa6top_up\xdb\x7f\xff\xff\xff",
        b"\x94\x00\x01\xa6top_up" + b"\x9f" * 3 + b"\x91" * 100 + b"\xdb\x00\x01\x00\x00",
    ],
)
async def test_an_unfinished_frame_above_the_limit_ends_after_one_error(harness: DoorHarness, opening: bytes) -> None:
    wire, neighbour = await harness.connect(), await harness.connect()
    wire.send(opening + b"x" * 200_000)
    kind, msgid, error, _ = await wire.reply()
    assert (kind, msgid) == (1, None)
    assert error.startswith("FRAME_TOO_LARGE: ")
    assert await wire.is_closed()
    assert await neighbour.alive()


@pytest.mark.parametrize("part", [b"\xdc\xff\xff", b"\xde\xff\xff", b"\xdd\x7f\xff\xff\xff"])
async def test_a_part_that_no_frame_can_hold_ends_after_one_error(harness: DoorHarness, part: bytes) -> None:
    wire = await harness.connect()
    wire.send(b"\x94\x00\x01\xa6top_up" + part)
    assert (await wire.reply())[2].startswith("FRAME_TOO_LARGE: ")
    assert await wire.is_closed()
    assert harness.gate.asked == []


@pytest.mark.parametrize("bomb", [b"\xdc\x00\x40", b"\x9f", b"\x8f", b"\xde\x00\x20", b"\x91", b"\x81"])
async def test_nested_bombs_hold_little_memory(harness: DoorHarness, bomb: bytes) -> None:
    wire, neighbour = await harness.connect(), await harness.connect()
    await wire.alive()
    tracemalloc.start()
    try:
        wire.send((b"\x94\x00\x01\xa4ping" + bomb * 70_000)[:70_000])
        kind, msgid, error, _ = await wire.reply()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (kind, msgid) == (1, None)
    assert error.startswith(("PROTOCOL_ERROR: ", "FRAME_TOO_LARGE: "))
    assert peak_bytes < 2_000_000
    assert await wire.is_closed()
    assert await neighbour.alive()


async def test_a_half_closed_client_still_gets_its_answers(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.send(top_ups(3))
    wire.writer.write_eof()
    await harness.until(lambda: len(harness.gate.asked) == 3)
    await harness.settle()
    harness.gate.release()
    assert [reply[1] for reply in await wire.replies(3)] == [0, 1, 2]
    assert await wire.is_closed()
    await harness.until(lambda: not harness.door.connections)


async def test_garbage_waits_for_the_answers_before_it_however_late(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.send(top_ups(2) + b"\xc1" + top_ups(5))
    await harness.until(lambda: len(harness.gate.asked) == 2)
    await harness.settle()
    harness.gate.release(1)
    harness.gate.release(1)
    assert [reply[1] for reply in await wire.replies(3)] == [0, 1, None]
    assert await wire.is_closed()


async def test_last_words_are_read_although_more_was_sent(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(b"\xc1" + b"x" * 3_000_000)
    assert (await wire.reply())[:2] == [1, None]
    assert await wire.is_closed()
    harness.clock.pass_s(3)
    harness.door.sweep()  # the client never closed its half
    await harness.until(lambda: not harness.door.connections)


async def test_answers_for_a_client_that_is_gone_are_thrown_away(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.send(top_ups(5))
    await harness.until(lambda: len(harness.gate.asked) == 5)
    plain = wire.writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.writer.transport.abort()
    await harness.until(lambda: not harness.door.connections)
    caller = harness.gate.waiting[0][0]
    harness.gate.release()
    caller.relay(b"late")
    caller.relay_flush()
    assert harness.gate.commands == [(TOP_UP, b"u", amount, 0, 0, b"", b"", b"", b"", b"") for amount in range(1, 6)]


async def test_draining_answers_what_was_asked_and_closes(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    busy, idle = await harness.connect(), await harness.connect()
    assert await idle.alive()
    busy.send(top_ups(2))
    await harness.until(lambda: len(harness.gate.asked) == 2)
    harness.door.drain()
    assert await idle.is_closed()
    busy.send(top_ups(1))
    await harness.settle()
    harness.gate.release()
    assert [reply[1] for reply in await busy.replies(2)] == [0, 1]
    assert await busy.is_closed()
    assert len(harness.gate.asked) == 2


async def test_more_connections_than_the_limit_are_told_and_closed() -> None:
    async with open_harness(Limits(connections_max=2)) as harness:
        first, second = await harness.connect(), await harness.connect()
        assert await first.alive()
        assert await second.alive()
        third = await harness.connect()
        assert (await third.reply())[2].startswith("TOO_MANY_CONNECTIONS: ")
        assert await third.is_closed()
        assert await first.alive()


async def test_the_sweep_runs_by_itself() -> None:
    async with open_harness(Limits(frame_deadline_ns=1), Guard()) as harness:
        harness.door.start()
        wire = await harness.connect()
        wire.send(b"\x94")
        await harness.settle()
        harness.clock.pass_s(1)
        async with asyncio.timeout(60):
            assert (await wire.reply())[1] is None


@pytest.mark.parametrize("method", ["top_up", "get_account", "shards_info"])
async def test_a_broken_invariant_behind_the_gate_is_told_and_ends_the_connection(
    harness: DoorHarness, method: str
) -> None:
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    harness.gate.broken = AssertionError("the books do not add up")
    wire = await harness.connect()
    wire.send(msgpack.packb([0, 1, method, {"top_up": ["u", 5], "get_account": ["u"]}.get(method, [])]))
    assert await wire.is_closed()
    assert harness.bugs == [harness.gate.broken]
    assert errors == [harness.gate.broken]
