"""IPROTO byte by byte: what a client sends in any pieces, what the server answers, and what ends a connection."""

from __future__ import annotations

from base64 import b64decode

import msgpack
import pytest

from billing.api.iproto import protocol
from billing.api.iproto.protocol import Decoder, ProtocolError
from billing.ledger.errors import Refused

PING = bytes.fromhex("06 82 00 40 01 01 80")
PONG = bytes.fromhex("ce 00 00 00 10 83 00 00 01 cf 00 00 00 00 00 00 00 01 05 01 80")
CALL = bytes.fromhex("82 00 0a 01 07") + msgpack.packb({0x22: "top_up", 0x21: ["ann", "5"]})
CALLED = (10, 7, {0x22: b"top_up", 0x21: [b"ann", b"5"]})


def sized(packet: bytes, width: int) -> bytes:
    """A packet behind its size, a MessagePack integer of so many bytes."""
    heads = {1: b"\xcc", 2: b"\xcd", 4: b"\xce", 8: b"\xcf"}
    return heads[width] + len(packet).to_bytes(width, "big") + packet


def test_the_example_of_the_docstring() -> None:
    assert list(Decoder().feed(PING)) == [(protocol.PING, 1, {})]
    assert protocol.done(1) == PONG


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_size_may_have_any_width(width: int) -> None:
    assert list(Decoder().feed(sized(CALL, width))) == [CALLED]


def test_a_stream_may_come_in_any_pieces() -> None:
    stream = sized(CALL, 4) + PING + sized(CALL, 1)
    for cut in range(len(stream)):
        decoder = Decoder()
        packets = [*decoder.feed(stream[:cut]), *decoder.feed(stream[cut:])]
        assert [kind for kind, _, _ in packets] == [10, 64, 10]
        assert not decoder.waits
    one_by_one = Decoder()
    assert len([request for byte in stream for request in one_by_one.feed(bytes([byte]))]) == 3


def test_a_request_may_leave_its_body_out() -> None:
    assert list(Decoder().feed(bytes.fromhex("05 82 00 40 01 00"))) == [(64, 0, {})]


@pytest.mark.parametrize(
    "packet",
    [
        b"\x90",  # no size
        b"\xc0",
        sized(b"", 1),
        sized(b"\x80", 1),  # no REQUEST_TYPE
        sized(b"\x90\x80", 1),  # no map
        sized(b"\x82\x00\x40\x00\x41\x80", 1),  # a key twice
        sized(b"\x81\xa1a\x01", 1),  # a key that is no integer
        sized(b"\x82\x00\x40\x01\x01\x80\x80", 1),  # more behind the body
        sized(b"\x82\x00\x40\x01\x01\xdf", 1),  # an unfinished body
        sized(b"\x82\x00\xa1a\x01\x01", 1),
        sized(b"\x82\x00\x40\x01\xff", 1),  # SYNC below zero
        b"\xce\x7f\xff\xff\xff",  # larger than may be
        b"\xcf" + b"\xff" * 8,
        sized(b"\x82\x00\x0a\x01\xc7\x01\x05\x05\x80", 1),  # an extension type in the header
    ],
)
def test_what_cannot_be_followed_ends_the_connection(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(packet))


NOT_TAKEN = [
    msgpack.packb({0x22: "top_up", 0x21: ["ann", "5", {"message": "x" * 5000}]}),
    msgpack.packb({0x22: "top_up", 0x21: ["ann", msgpack.ExtType(1, b"\x01\x1c")]}),  # a decimal of Tarantool
    msgpack.packb({0x22: "entries", 0x21: [0] * 100}),
    b"\x81\x21" + b"\x91" * 2000,  # nested too deep
]


@pytest.mark.parametrize("body", NOT_TAKEN)
def test_a_body_that_is_not_taken_costs_its_own_request_only(body: bytes) -> None:
    stream = sized(CALL, 2) + sized(b"\x82\x00\x0a\x01\x08" + body, 4) + PING + sized(CALL, 1)
    wanted = [CALLED, (10, 8, None), (protocol.PING, 1, {}), CALLED]
    for cut in {*range(0, len(stream), 7), *range(len(stream) - 60, len(stream))}:
        decoder = Decoder()
        assert [*decoder.feed(stream[:cut]), *decoder.feed(stream[cut:])] == wanted
        assert not decoder.waits
    one_by_one = Decoder()
    assert [request for byte in stream for request in one_by_one.feed(bytes([byte]))] == wanted
    last = Decoder()
    assert list(last.feed(stream[: -len(sized(CALL, 1)) - len(PING)])) == wanted[:2]
    assert not last.waits


def test_requests_before_garbage_are_still_carried_out() -> None:
    decoder = Decoder()
    packets = decoder.feed(PING + b"\xc0")
    assert next(packets)[0] == protocol.PING
    with pytest.raises(ProtocolError):
        next(packets)


def test_the_greeting_has_128_bytes_and_carries_the_salt() -> None:
    salt = bytes(range(32))
    greeting = protocol.greeting(salt, "00000000-0000-0000-0000-000000000000")
    assert len(greeting) == protocol.GREETING_BYTES
    assert greeting.startswith(b"Tarantool 2.6.0 (Binary) ")
    assert b64decode(greeting[64:127].strip()) == salt


def test_a_scramble_proves_its_password_and_no_other() -> None:
    salt, proof = bytes(range(32)), protocol.proof_of(b"secret")
    assert protocol.proves(protocol.scramble_of(b"secret", salt), salt, proof)
    assert not protocol.proves(protocol.scramble_of(b"Secret", salt), salt, proof)
    assert not protocol.proves(protocol.scramble_of(b"secret", salt[::-1]), salt, proof)
    assert not protocol.proves(b"", salt, proof)


@pytest.mark.parametrize("sync", [0, 1, 2**64 - 1])
def test_replies_carry_the_sync_and_decode(sync: int) -> None:
    for reply, kind, body in (
        (protocol.values(sync, msgpack.packb([{"a": 1}])), 0, {0x30: [{"a": 1}]}),
        (protocol.error(sync, 32, "нет"), 0x8000 | 32, {0x31: "нет"}),
        (protocol.refusal(sync, Refused("UNKNOWN_METHOD", "x"), "f"), 0x8021, {0x31: "Procedure 'f' is not defined"}),
        (protocol.refusal(sync, Refused("FORBIDDEN", "x"), "f"), 0x802A, {0x31: "FORBIDDEN: x"}),
    ):
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(reply)
        size, header, reply_body = unpacker.unpack(), unpacker.unpack(), unpacker.unpack()
        assert size == len(reply) - 5
        assert header == {0: kind, 1: sync, 5: 1}
        assert reply_body == body
