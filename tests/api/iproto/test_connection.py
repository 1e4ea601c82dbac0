"""A connection of the Tarantool door: who may do what, when it ends, and that a slow client costs little."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest

from billing.api.auth import Guard
from billing.api.door import LIMITS, Limits
from billing.api.iproto import protocol
from billing.api.iproto.connection import connection_factory
from billing.api.methods import LISTING_WEIGHT
from billing.api.wire import NOT_TAKEN
from billing.ledger import commands as ops
from tests.api.outside import DoorHarness, open_harness

TOKENS = "".join(
    f"{name}:{role}:{hashlib.sha256(name.encode()).hexdigest()}:{protocol.proof_of(name.encode()).hex()}\n"
    for name, role in (("operator", "admin"), ("reader", "read"))
)


class Connector:
    """A Tarantool connector in literal bytes; a name of the tokens file is its own token."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.salt = b""

    async def greeted(self) -> None:
        greeting = await self.reader.readexactly(protocol.GREETING_BYTES)
        self.salt = b64decode(greeting[64:127].strip())

    def send(self, kind: int, body: dict[int, Any] | None = None, sync: int = 1) -> None:
        packet = msgpack.packb({0: kind, 1: sync}) + (b"" if body is None else msgpack.packb(body))
        self.writer.write(msgpack.packb(len(packet)) + packet)

    def call(self, name: str, *arguments: Any, sync: int = 1, kind: int = protocol.CALL) -> None:
        self.send(kind, {protocol.FUNCTION_NAME: name, protocol.TUPLE: list(arguments)}, sync)

    def sign_in(self, name: str, token: str | None = None) -> None:
        scramble = protocol.scramble_of((token or name).encode(), self.salt)
        self.send(protocol.AUTH, {protocol.USER_NAME: name, protocol.TUPLE: ["chap-sha1", scramble]})

    async def reply(self) -> tuple[int, int, Any]:
        """(type, sync, data or error) of the next reply."""
        head = await self.reader.readexactly(5)
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(await self.reader.readexactly(int.from_bytes(head[1:], "big")))
        header, body = unpacker.unpack(), unpacker.unpack()
        return header[0], header[1], body.get(0x30, body.get(0x31))

    async def is_closed(self) -> bool:
        return await self.reader.read() == b""


@asynccontextmanager
async def connector(harness: DoorHarness) -> AsyncIterator[Connector]:
    server = await asyncio.get_running_loop().create_server(
        connection_factory(harness.door, lambda: 0, lambda count: bytes(range(count))), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    tarantool = Connector(reader, writer)
    await tarantool.greeted()
    try:
        yield tarantool
    finally:
        writer.close()
        server.close()


@pytest.fixture
async def guarded() -> AsyncIterator[DoorHarness]:
    async with open_harness(guard=Guard(TOKENS)) as opened:
        yield opened


async def test_a_call_is_answered_under_its_sync_once_durable(harness: DoorHarness) -> None:
    async with connector(harness) as tarantool:
        tarantool.call("top_up", "ann", "5", sync=7)
        tarantool.send(protocol.SELECT, {protocol.SPACE_ID: 281}, 8)
        tarantool.send(protocol.ID, {}, 9)
        replies = {sync: (kind, data) for kind, sync, data in [await tarantool.reply() for _ in range(3)]}
    assert replies[7][1][0]["user_id"] == "ann"
    assert replies[8] == (0, [])
    assert replies[9][0] == 0
    assert harness.gate.commands[0][1:3] == (b"ann", 5 * 10**9)


async def test_nothing_else_is_carried_out(harness: DoorHarness) -> None:
    async with connector(harness) as tarantool:
        for kind in (2, 3, 4, 5, 8, 9, 11, 13, 65, 66, 200):  # INSERT … EVAL … EXECUTE, PREPARE, JOIN, SUBSCRIBE
            tarantool.send(kind, {0x27: "return 1"})
            reply = await tarantool.reply()
            assert (reply[0], reply[2]) == (0x8000 | protocol.ER_UNKNOWN_REQUEST_TYPE, f"Unknown request type {kind}")
        tarantool.call("box.schema.space.create", "x")
        assert (await tarantool.reply())[2] == "Procedure 'box.schema.space.create' is not defined"
    assert harness.gate.asked == []


async def test_before_the_sign_in_nothing_is_done(guarded: DoorHarness) -> None:
    async with connector(guarded) as tarantool:
        tarantool.call("top_up", "ann", "5")
        assert (await tarantool.reply())[0] == 0x8000 | protocol.ER_ACCESS_DENIED
        tarantool.send(protocol.SELECT, {protocol.SPACE_ID: 281})
        assert (await tarantool.reply())[0] == 0x8000 | protocol.ER_ACCESS_DENIED
        tarantool.send(protocol.PING)
        assert (await tarantool.reply())[0] == 0
        tarantool.sign_in("operator")
        assert (await tarantool.reply())[0] == 0
        tarantool.call("top_up", "ann", "5")
        assert (await tarantool.reply())[0] == 0
    assert len(guarded.gate.commands) == 1


async def test_a_role_holds_here_as_at_every_door(guarded: DoorHarness) -> None:
    async with connector(guarded) as tarantool:
        tarantool.sign_in("reader")
        tarantool.call("top_up", "ann", "5")
        tarantool.call("get_account", "ann")
        kinds = [(await tarantool.reply())[0] for _ in range(3)]
    assert kinds == [0, 0x8000 | protocol.ER_ACCESS_DENIED, 0]
    assert not guarded.gate.commands


@pytest.mark.parametrize(("name", "token"), [("operator", "Operator"), ("nobody", "nobody"), ("guest", "")])
async def test_a_wrong_proof_ends_the_connection_and_what_was_pipelined_behind_it(
    guarded: DoorHarness, name: str, token: str
) -> None:
    async with connector(guarded) as tarantool:
        tarantool.sign_in(name, token)
        for _ in range(5):
            tarantool.call("top_up", "ann", "5")
        assert (await tarantool.reply())[0] == 0x8000 | protocol.ER_PASSWORD_MISMATCH
        assert await tarantool.is_closed()
    assert guarded.gate.asked == []
    assert guarded.door.handshakes == 0


@pytest.mark.parametrize("routed", [False, True])
async def test_a_wrong_token_in_a_call_of_hello_ends_the_connection_as_a_wrong_proof_does(
    guarded: DoorHarness, routed: bool
) -> None:
    async with connector(guarded) as tarantool:
        tarantool.sign_in("reader")
        tarantool.call("hello", {"errors": "string"})
        hello = [{"token": "guess"}]
        if routed:
            tarantool.call("vshard.router.callrw", 1, "hello", hello)
        else:
            tarantool.call("hello", *hello)
        tarantool.call("hello", {"token": "operator"})
        tarantool.call("top_up", "ann", "5")
        kinds = [(await tarantool.reply())[0] for _ in range(3)]
        assert kinds == [0, 0, 0x8000 | protocol.ER_ACCESS_DENIED]
        assert await tarantool.is_closed()
    assert guarded.gate.asked == []


@pytest.mark.parametrize("says_it", [False, True])
async def test_a_guest_has_an_empty_password_and_keeps_what_its_connection_may(
    harness: DoorHarness, guarded: DoorHarness, says_it: bool
) -> None:
    """As connectors send it for `guest@host:3301`: without credentials, or with a proof of the empty password."""
    for door, right in ((harness, True), (guarded, False)):
        async with connector(door) as tarantool:
            scramble = protocol.scramble_of(b"", tarantool.salt)
            tuple_ = ["chap-sha1", scramble] if says_it else []
            tarantool.send(protocol.AUTH, {protocol.USER_NAME: "guest", protocol.TUPLE: tuple_})
            assert (await tarantool.reply())[0] == (0 if right else 0x8000 | protocol.ER_PASSWORD_MISMATCH)
            if right:
                tarantool.call("top_up", "ann", "5")
                assert (await tarantool.reply())[0] == 0
                tarantool.sign_in("guest", "wrong")
                assert (await tarantool.reply())[0] == 0x8000 | protocol.ER_PASSWORD_MISMATCH
            assert await tarantool.is_closed()


async def test_a_value_that_is_not_taken_is_refused_to_its_call_and_all_others_are_answered(
    harness: DoorHarness, guarded: DoorHarness
) -> None:
    async with connector(harness) as tarantool:
        tarantool.call("top_up", "ann", "5", sync=1)
        tarantool.call("top_up", "ann", msgpack.ExtType(1, b"\x01\x1c"), sync=2)  # a decimal of Tarantool
        tarantool.call("top_up", "ann", "5", {"message": "x" * 5000}, sync=3)
        tarantool.call("debit", "ann", "1", sync=4)
        replies = {sync: (kind, data) for kind, sync, data in [await tarantool.reply() for _ in range(4)]}
    assert {sync: kind for sync, (kind, _) in replies.items()} == {
        **dict.fromkeys((1, 4), 0),
        **dict.fromkeys((2, 3), 0x8000 | protocol.ER_PROC_LUA),
    }
    assert replies[2][1] == replies[3][1] == f"INVALID_PARAMS: {NOT_TAKEN}"
    assert len(harness.gate.commands) == 2
    async with connector(guarded) as tarantool:
        tarantool.call("top_up", "ann", msgpack.ExtType(1, b"\x01\x1c"))
        assert (await tarantool.reply())[0] == 0x8000 | protocol.ER_INVALID_MSGPACK
        assert await tarantool.is_closed()


async def test_garbage_is_answered_once_and_ends_this_connection_alone(harness: DoorHarness) -> None:
    async with connector(harness) as broken, connector(harness) as whole_one:
        broken.writer.write(b"GET / HTTP/1.1\r\n\r\n" + b"\xc1" * 100)
        assert (await broken.reply())[0] == 0x8000 | protocol.ER_INVALID_MSGPACK
        assert await broken.is_closed()
        whole_one.call("ping")
        assert (await whole_one.reply())[2] == ["pong"]


@pytest.mark.parametrize(("name", "weight"), [("top_up", 1), ("history", LISTING_WEIGHT)])
async def test_of_one_read_no_more_is_in_flight_than_may_be(name: str, weight: int) -> None:
    most = 2 * LISTING_WEIGHT
    count = 3 * most // weight + 1
    arguments = ["u", 5] if weight == 1 else ["u"]
    async with open_harness(Limits(in_flight_max=most)) as harness:
        harness.gate.holds_back = True
        async with connector(harness) as wire:
            for sync in range(count):
                wire.call(name, *arguments, sync=sync)
            wire.send(protocol.PING, sync=count)
            wire.writer.write_eof()
            await harness.until(lambda: len(harness.gate.asked) == most // weight)
            await harness.settle()
            assert (len(harness.gate.asked), harness.door.in_flight) == (most // weight, most)
            harness.clock.pass_s(60)
            harness.door.sweep()  # the client has sent all it was to send: no deadline is over
            harness.gate.holds_back = False
            harness.gate.release()
            assert sorted([(await wire.reply())[1] for _ in range(count + 1)]) == list(range(count + 1))
            assert await wire.is_closed()
    assert harness.door.in_flight == 0


async def test_a_client_that_reads_nothing_is_not_answered_on_and_on(harness: DoorHarness) -> None:
    async with connector(harness) as wire:
        count = 3_000
        for sync in range(count):
            wire.call("methods", sync=sync)
        carried_out = -1
        while carried_out != harness.door.calls[b"methods"] or not carried_out:
            carried_out = harness.door.calls[b"methods"]
            await harness.settle()
        assert carried_out < count / 2
        assert [(await wire.reply())[1] for _ in range(count)] == list(range(count))


async def test_a_half_closed_client_still_gets_its_answers(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    async with connector(harness) as wire:
        for sync in range(3):
            wire.call("top_up", "u", 5, sync=sync)
        wire.writer.write_eof()
        await harness.until(lambda: len(harness.gate.asked) == 3)
        await harness.settle()
        harness.gate.release()
        assert [(await wire.reply())[:2] for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]
        assert await wire.is_closed()
    await harness.until(lambda: not harness.door.connections)


async def test_half_a_packet_and_half_a_sign_in_have_a_deadline(guarded: DoorHarness) -> None:
    async with connector(guarded) as silent, connector(guarded) as half:
        half.sign_in("operator")
        assert (await half.reply())[0] == 0
        half.writer.write(b"\xce\x00")
        await guarded.until(lambda: len(guarded.door._watched) == 2)
        guarded.clock.pass_s(LIMITS.handshake_deadline_ns / 10**9 + 1)
        guarded.door.sweep()
        assert await silent.is_closed()
        guarded.clock.pass_s(LIMITS.frame_deadline_ns / 10**9 + 1)
        guarded.door.sweep()
        assert await half.is_closed()


async def test_the_procedures_of_the_system_it_replaces(harness: DoorHarness) -> None:
    account = {"available_nanos": 550 * 10**9, "outcome": "ok"}
    harness.gate.replies[str(ops.DEBIT)] = account
    async with connector(harness) as tarantool:
        tarantool.call("decrease_balance", "ann", 200)
        assert (await tarantool.reply())[2] == ["остаток средств: 550"]
        tarantool.call("decrease_balance", "ann", 200.0, kind=protocol.CALL_16)
        assert (await tarantool.reply())[2] == [["остаток средств: 550"]]
        tarantool.call("increase_balance", "ann", 500)
        assert (await tarantool.reply())[2] == []
        tarantool.call("increase_balance", "ann", 0.5)
        assert (await tarantool.reply())[2].startswith("INVALID_AMOUNT")
        tarantool.call("vshard.router.callrw", 477, "write", "top_up", ["ann", "5"], {"timeout": 1})
        assert (await tarantool.reply())[0] == 0
    assert [command[2] for command in harness.gate.commands] == [200 * 10**9, 200 * 10**9, 500 * 10**9, 5 * 10**9]
