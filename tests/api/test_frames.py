"""The wire, byte by byte: every form in which clients of other languages write the same request, and what is none.

Frames are literal bytes here, so that no encoder of ours or of a library decides what is tested.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import pytest

from billing.ledger.commands import SET_RATE, TOP_UP
from tests.api.outside import DoorHarness, open_harness

TOP_UP_U_5 = (TOP_UP, b"u", 5, 0, 0, b"", b"", b"", b"", b"")


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\x05", id="shortest forms"),
        pytest.param(b"\x94\x00\x01\xc4\x06top_up\x92\xc4\x01u\x05", id="method and user as bin"),
        pytest.param(b"\x94\x00\x01\xd9\x06top_up\x92\xd9\x01u\x05", id="str 8"),
        pytest.param(b"\x94\x00\x01\xda\x00\x06top_up\x92\xda\x00\x01u\x05", id="str 16, as old raw"),
        pytest.param(b"\x94\x00\x01\xdb\x00\x00\x00\x06top_up\x92\xdb\x00\x00\x00\x01u\x05", id="str 32"),
        pytest.param(b"\x94\x00\x01\xc5\x00\x06top_up\x92\xc6\x00\x00\x00\x01u\x05", id="bin 16 and 32"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xcc\x05", id="uint 8"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xcd\x00\x05", id="uint 16"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xce\x00\x00\x00\x05", id="uint 32"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xcf" + bytes(7) + b"\x05", id="uint 64"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xd0\x05", id="int 8"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xd3" + bytes(7) + b"\x05", id="int 64"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xcb\x40\x14" + bytes(6), id="whole float 64"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xca\x40\xa0\x00\x00", id="whole float 32"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x92\xa1u\xab0.000000005", id="decimal coins"),
        pytest.param(b"\x94\xcc\x00\xd2\x00\x00\x00\x01\xa6top_up\x92\xa1u\x05", id="wide type and msgid"),
        pytest.param(b"\xdc\x00\x04\x00\x01\xa6top_up\xdc\x00\x02\xa1u\x05", id="array 16"),
        pytest.param(b"\xdd\x00\x00\x00\x04\x00\x01\xa6top_up\xdd\x00\x00\x00\x02\xa1u\x05", id="array 32"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x93\xa1u\x05\x80", id="empty options"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x93\xa1u\x05\xc0", id="nil options"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x93\xa1u\x05\x90", id="an empty array as options"),
        pytest.param(b"\x94\x00\x01\xa6top_up\x93\xa1u\x05\xde\x00\x01\xa7message\xc0", id="map 16, nil option"),
    ],
)
async def test_one_request_in_many_forms(harness: DoorHarness, frame: bytes) -> None:
    wire = await harness.connect()
    assert await wire.ask(frame) == [1, 1, None, {"user_id": "u", "bucket_id": harness.gate.bucket_of(b"u")}]
    assert harness.gate.asked == [("submit", TOP_UP_U_5)]


@pytest.mark.parametrize("msgid", [0, 1, 127, 128, 65_535, 2**31, 2**32 - 1])
async def test_any_unsigned_32_bit_msgid_comes_back(harness: DoorHarness, msgid: int) -> None:
    wire = await harness.connect()
    assert await wire.ask(msgpack.packb([0, msgid, "ping", []])) == [1, msgid, None, "pong"]


async def test_the_reply_to_ping_is_these_bytes(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(b"\x94\x00\x01\xa4ping\x90")
    assert await wire.reader.readexactly(9) == b"\x94\x01\x01\xc0\xa4pong"


@pytest.mark.parametrize("params", [b"\xc0", b"\x90", b"\x80", b"\x91\x80", b"\x91\xc0", b"\x91\x90"])
async def test_params_may_be_nil_or_empty_in_any_way(harness: DoorHarness, params: bytes) -> None:
    wire = await harness.connect()
    assert await wire.ask(b"\x94\x00\x09\xa4ping" + params) == [1, 9, None, "pong"]


async def test_options_carry_texts_in_any_form(harness: DoorHarness) -> None:
    wire = await harness.connect()
    frame = (
        b"\x94\x00\x01\xa8set_rate\x93\x2a\x07\x83\xc4\x03per\xa4hour\xaarequest_id\xc4\x02\xff\x00\xa8resource\xa2vm"
    )
    assert (await wire.ask(frame))[2] is None
    assert harness.gate.commands == [(SET_RATE, b"42", 7, -1, -1, b"vm", b"\xff\x00", b"", b"", b"")]


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (b"\x94\x00\x03\xa6nobody\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\x07\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\x90\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\x80\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\xc0\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\xa7top_up\xff\x90", "UNKNOWN_METHOD"),
        (b"\x94\x00\x03\xa6top_up\xc0", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x90", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x91\xa1u", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x94\xa1u\x05\x80\x80", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x80", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x82\xa1u\x05\xa1v\x05", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\xa1u", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x05", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x05", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x91\xc0", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x81\xa3ttl\x01", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x81\x05\x01", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x82\x90\x01\x90\x01", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x93\xa1u\x05\x82\xa7message\xa1a\xa7message\xa1b", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa4ping\x91\x05", "INVALID_PARAMS"),
        (b"\x94\x00\x03\xa6top_up\x92\xa0\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xff\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xc3\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xc0\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xa2\xc3\x28\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xcb\x3f\xf8" + bytes(6) + b"\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xcb\xbf\xf0" + bytes(6) + b"\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xcb\x43\x50" + bytes(6) + b"\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xcb\x7f\xf8" + bytes(6) + b"\x05", "INVALID_USER_ID"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\x00", "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xff", "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xc3", "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xc0", "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xcb\x3f\xf8" + bytes(6), "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xcb\x7f\xf8" + bytes(6), "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xcb\x7f\xf0" + bytes(6), "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xcf\x80" + bytes(7), "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa6top_up\x92\xa1u\xa5a lot", "INVALID_AMOUNT"),
        (b"\x94\x00\x03\xa8set_rate\x92\xa1u\xff", "INVALID_RATE"),
        (b"\x94\x00\x03\xa8set_rate\x93\xa1u\x05\x81\xa3per\xa3day", "INVALID_RATE"),
    ],
)
async def test_a_bad_request_gets_its_error_and_nothing_else_happens(
    harness: DoorHarness, frame: bytes, name: str
) -> None:
    wire = await harness.connect()
    kind, msgid, error, result = await wire.ask(frame)
    assert (kind, msgid, result) == (1, 3, None)
    assert error.startswith(name + ": ")
    assert harness.gate.asked == []
    assert await wire.alive()


LONG = b"\xda\x10\x01" + b"x" * 4097
TIMESTAMP = b"\xd6\xff\x65\x54\x11\x00"
NOT_TAKEN = [
    pytest.param(LONG, id="a text of 4097 bytes"),
    pytest.param(b"\xc5\x10\x01" + b"x" * 4097, id="a bin of 4097 bytes"),
    pytest.param(b"\xdb\x00\x00\xc0\x00" + b"x" * 0xC000, id="a text of 48 KiB"),
    pytest.param(TIMESTAMP, id="a timestamp of 32 bits"),
    pytest.param(b"\xd7\xff" + bytes(8), id="a timestamp of 64 bits"),
    pytest.param(b"\xc7\x0c\xff" + bytes(12), id="a timestamp of 96 bits"),
    pytest.param(b"\xc7\x03\xff\x01\x02\x03", id="a timestamp of no size there is"),
    pytest.param(b"\xd4\x05\x01", id="an extension"),
    pytest.param(b"\xc8\x01\x00\x05" + bytes(256), id="a long extension"),
    pytest.param(b"\xdc\x00\x41" + b"\xc0" * 65, id="an array of 65"),
    pytest.param(b"\xde\x00\x21" + b"\xc0\xcd\x01\x02" * 33, id="a map of 33"),
    pytest.param(b"\x91" * 5000 + b"\x90", id="arrays 5000 deep"),
    pytest.param(b"\x81\xa1k" * 2000 + b"\xcb" + bytes(8), id="maps 2000 deep"),
]


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize("value", NOT_TAKEN)
async def test_a_value_that_is_not_taken_is_refused_to_its_request_and_the_connection_lives(
    harness: DoorHarness, value: bytes, step: int
) -> None:
    if step == 1 and len(value) > 8192:
        step = 37
    wire = await harness.connect()
    stream = (
        b"\x94\x00\x01\xa4ping\x90"
        + (b"\x94\x00\xce\x00\x01\x00\x02\xa6top_up\x93\xa1u\x05\x81\xa7message" + value)
        + (b"\x93\x02\xa6top_up\x92\xa1u" + value)
        + (b"\x94\x00\x04" + value + b"\x90")
        + b"\x94\x00\x05\xa6top_up\x92\xa1u\x05"
    )
    for at in range(0, len(stream), step):
        wire.send(stream[at : at + step])
    replies = {reply[1]: reply for reply in [await wire.reply() for _ in range(4)]}
    assert list(sorted(replies)) == [1, 4, 5, 0x10002]
    assert replies[1][2:] == [None, "pong"]
    assert replies[0x10002][2].startswith("INVALID_PARAMS: a text may have 4096 bytes")
    assert replies[4][2].startswith("INVALID_PARAMS: ")
    assert replies[5][2] is None
    assert harness.gate.asked == [("submit", TOP_UP_U_5)]
    assert await wire.alive()


async def test_a_frame_that_is_passed_over_has_the_deadline_of_any_other(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(b"\x94\x00\x01\xa6top_up\x92\xa1u" + LONG[:-1])
    await harness.settle()
    harness.clock.now_ns += 11_000_000_000
    harness.door.sweep()
    assert (await wire.reply())[2].startswith("PROTOCOL_ERROR: a frame was left unfinished")
    assert await wire.is_closed()


async def test_a_user_id_may_be_a_whole_float(harness: DoorHarness) -> None:
    wire = await harness.connect()
    reply = await wire.ask(b"\x94\x00\x01\xa6top_up\x92\xcb\x41\xe0" + bytes(6) + b"\x05")  # 2**31
    assert reply[3]["user_id"] == "2147483648"


async def test_notifications_are_applied_without_a_reply_and_unknown_ones_ignored(harness: DoorHarness) -> None:
    wire = await harness.connect()
    wire.send(b"\x93\x02\xa6top_up\x92\xa1u\x05")
    wire.send(
        b"\x93\x02\xa6nobody\x90\x93\x02\x05\xc0\x93\x02\xa6top_up\x92\xa1u\x00\x93\x02\xa4ping\x90\x93\x02\xa7methods\xc0"
    )
    assert await wire.alive()
    await harness.settle()
    assert harness.gate.asked == [("submit", TOP_UP_U_5)]
    assert await wire.alive()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00",
        b"\xc0",
        b"\xa4ping",
        b"\xa4\x00\x01\x02\x03",
        b"\x90",
        b"\x91\x00",
        b"\x93\x00\x01\xa4ping",
        b"\x95\x00\x01\xa4ping\x90\x90",
        b"\x94\x00\xff\xa4ping\x90",
        b"\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa4ping\x90",
        b"\x94\x00\xc3\xa4ping\x90",
        b"\x94\x00\xa11\xa4ping\x90",
        b"\x94\x00\xc0\xa4ping\x90",
        b"\x94\x00\xcb\x3f\xf0" + bytes(6) + b"\xa4ping\x90",
        b"\x94\xc2\x01\xa6top_up\x92\xa1u\x05",
        b"\x94\x00\xff\xa6top_up\x92\xa1u\x05",
        b"\x94\x00\xc3\xa6top_up\x92\xa1u\x05",
        b"\x94\x01\x01\xc0\xa4pong",
        b"\x93\x01\xa4ping\x90",
        b"\x94\x02\x01\xa4ping\x90",
        b"\x84\x00\x01\xa4ping\x90\x00\x00\x00\x00",
        b"\x94\x00\xff\xa4ping\x91\xd6\xff\x00\x00\x00\x00",
        b"\x95\x00\x01\xa4ping\x90\xd6\xff\x00\x00\x00\x00",
        b"\x94\x00\x01\xa4ping\x92\xd6\xff\x00\x00\x00\x00\xc1",
        b"\x94\x00\x01\xa4ping\xdd\xff\xff\xff\xff",
    ],
)
async def test_garbage_gets_one_error_and_the_end_and_harms_nobody_else(harness: DoorHarness, garbage: bytes) -> None:
    wire, neighbour = await harness.connect(), await harness.connect()
    wire.send(b"\x94\x00\x01\xa6top_up\x92\xa1u\x05" + garbage + b"\x94\x00\x02\xa6top_up\x92\xa1u\x05")
    assert (await wire.reply())[:3] == [1, 1, None]  # what came before it is answered
    kind, msgid, error, result = await wire.reply()
    assert (kind, msgid, result) == (1, None, None)
    assert error.startswith(("PROTOCOL_ERROR: ", "FRAME_TOO_LARGE: "))
    assert await wire.is_closed()
    assert harness.gate.asked == [("submit", TOP_UP_U_5)]  # and what came after it is not carried out
    assert await neighbour.alive()


async def test_an_error_is_a_string_until_a_client_asks_for_maps(harness: DoorHarness) -> None:
    wire = await harness.connect()
    assert (await wire.call("top_up", "u", 0))[0] == "INVALID_AMOUNT: amount must be above zero"
    assert (await wire.call("hello", {"errors": "map"}))[1]["errors"] == "map"
    assert (await wire.call("top_up", "u", 0))[0] == {
        "code": 105,
        "name": "INVALID_AMOUNT",
        "message": "amount must be above zero",
        "retry": False,
        "applied": "no",
    }
    assert (await wire.call("hello", {"errors": "string"}))[1]["errors"] == "string"
    assert (await wire.call("top_up", "u", 0))[0] == "INVALID_AMOUNT: amount must be above zero"
    assert (await wire.call("hello", {"errors": "list"}))[0].startswith("INVALID_PARAMS: ")


async def test_an_unknown_option_is_named_but_never_its_bytes(harness: DoorHarness) -> None:
    wire = await harness.connect()
    error, _ = await wire.call("debit", "u", 5, {"modus": "strict"})
    assert error == "INVALID_PARAMS: unknown option: modus; options are mode, request_id, message"
    error, _ = await wire.call("debit", "u", 5, {b"\x1b[31m\xff": 1})
    assert error.startswith("INVALID_PARAMS: unknown option: an option without a plain name; ")


async def test_a_frame_may_come_byte_by_byte(harness: DoorHarness) -> None:
    wire = await harness.connect()
    for byte in b"\x94\x00\x01\xa6top_up\x93\xa1u\x05\x81\xa7message\xa2hi" * 2:
        wire.send(bytes([byte]))
        await wire.writer.drain()
    assert [(await wire.reply())[:3] for _ in range(2)] == [[1, 1, None]] * 2
    assert harness.gate.commands == [(TOP_UP, b"u", 5, 0, 0, b"", b"", b"hi", b"", b"")] * 2


async def test_a_unix_socket_serves_the_same(data_dir: Path) -> None:
    async with open_harness(path=str(data_dir / "rpc.sock")) as harness:
        wire = await harness.connect()
        assert (await wire.ask(b"\x94\x00\x01\xa6top_up\x92\xa1u\x05"))[:3] == [1, 1, None]
        assert harness.gate.asked == [("submit", (*TOP_UP_U_5[:-1], b"uid:%d" % os.geteuid()))]
