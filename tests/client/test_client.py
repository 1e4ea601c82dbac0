"""The client against the door, and against servers that lie, stall and vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

import billing.client
from billing.api.auth import Guard
from billing.api.wire import FRAME_BYTES_MAX
from billing.client import (
    Client,
    Forbidden,
    FrameTooLarge,
    InsufficientFunds,
    InvalidAmount,
    Unauthenticated,
    Unavailable,
    wire,
)
from billing.client.connection import Address, parse_address
from billing.client.errors import CLASSES, BillingError, error_of
from billing.ledger.commands import TOP_UP
from billing.ledger.errors import KINDS, Refused
from tests.api.outside import DoorHarness, open_harness
from tests.api.test_auth import TOKENS
from tests.system.ports import free_port


def address_of(harness: DoorHarness) -> str:
    return f"{harness.address[0]}:{harness.address[1]}"


Session = Callable[[msgpack.Unpacker, asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def open_liar(session: Session) -> AsyncIterator[str]:
    """A server that answers the sign-in and then does what `session` does; it is told how many came before."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        unpacker = msgpack.Unpacker()
        try:
            hello = await request(unpacker, reader)
            writer.write(msgpack.packb([1, hello[1], None, {}]))
            await session(unpacker, reader, writer, count)
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def request(unpacker: msgpack.Unpacker, reader: asyncio.StreamReader) -> Any:
    while True:
        for message in unpacker:
            return message
        data = await reader.read(65_536)
        if not data:
            raise EOFError
        unpacker.feed(data)


async def test_a_call_is_answered(harness: DoorHarness) -> None:
    async with Client(address_of(harness)) as client:
        assert await client.top_up("ü", "12.5", request_id="r", message="m") == {
            "user_id": "ü",
            "bucket_id": harness.gate.bucket_of("ü".encode()),
        }
        assert await client.ping() == "pong"
        assert await client.bucket_id(1) == 477
    assert harness.gate.commands == [(TOP_UP, "ü".encode(), 12_500_000_000, 0, 0, b"", b"r", b"m", b"", b"")]


async def test_calls_made_at_once_travel_together(harness: DoorHarness) -> None:
    async with Client(address_of(harness)) as client:
        replies = await asyncio.gather(*(client.top_up(user, nanos=5) for user in range(3000)))
    assert [reply["user_id"] for reply in replies] == [str(user) for user in range(3000)]


async def test_a_refusal_is_raised_by_its_name_with_its_details(harness: DoorHarness) -> None:
    harness.gate.replies["2"] = None
    async with Client(address_of(harness)) as client:
        with pytest.raises(InvalidAmount) as caught:
            await client.debit("u", nanos=0)
        assert (caught.value.name, caught.value.code, caught.value.retry, caught.value.applied) == (
            *("INVALID_AMOUNT", 105, False, "no"),
        )
        harness.gate.replies["get_account"] = Refused("INSUFFICIENT_FUNDS", "no", {"shortfall_nanos": 7})
        with pytest.raises(InsufficientFunds, match="INSUFFICIENT_FUNDS: no") as short:
            await client.get_account("u")
        assert short.value.details == {"shortfall_nanos": 7}


def test_each_error_name_has_its_class() -> None:
    assert CLASSES.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        error = CLASSES[name]("text")
        assert (error.name, error.code, error.retry) == (name, *kind)
        assert getattr(billing.client, type(error).__name__) is type(error)
    names = {each.__name__ for each in CLASSES.values()}
    assert set(billing.client.__all__) == {"Batch", "Client", "SyncClient", "BillingError", *names}


def test_errors_of_any_form_are_understood() -> None:
    newer = error_of({"name": "NEVER_HEARD", "code": 999, "message": "m", "retry": True, "applied": "unknown", "x": 1})
    assert type(newer) is BillingError
    assert (newer.name, newer.code, newer.retry, newer.applied, newer.details) == (
        *("NEVER_HEARD", 999, True, "unknown", {"x": 1}),
    )
    plain = error_of("STALE_RATE: not newer")
    assert (type(plain), plain.message) == (CLASSES["STALE_RATE"], "not newer")
    assert str(error_of("something else")) == "something else"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:3311", Address("127.0.0.1", 3311, "")),
        ("[::1]:3311", Address("::1", 3311, "")),
        ("unix:/run/billing.sock", Address("", 0, "/run/billing.sock")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", "host:0", "host:65536", "::1:3311", "unix:", "host:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Client(text)


async def test_a_unix_socket_is_an_address(data_dir: Path) -> None:
    async with open_harness(path=str(data_dir / "rpc.sock")) as harness, Client(f"unix:{harness.address}") as client:
        assert await client.ping() == "pong"


async def test_a_token_signs_in_and_a_wrong_one_says_so_at_once() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        async with Client(address_of(harness), token="shop") as client:
            assert (await client.top_up("u", nanos=5))["user_id"] == "u"
        with pytest.raises(Unauthenticated):
            await Client(address_of(harness), token="wrong").connect()


async def test_batches_have_a_callback_for_each_command_and_no_task(harness: DoorHarness) -> None:
    answers: list[tuple[Any, Any]] = []
    async with Client(address_of(harness)) as client:
        tasks_before = len(asyncio.all_tasks())
        for amount in range(5):
            client.send("top_up", ["u", amount], lambda *answer: answers.append(answer))
        client.flush()
        assert client.pending == 5
        assert len(asyncio.all_tasks()) == tasks_before
        assert answers == []
        await harness.until(lambda: len(answers) == 5)
        assert client.pending == 0
    refused = [error for error, _ in answers if error is not None]
    assert [type(error) for error in refused] == [InvalidAmount]
    client.send("ping", [], lambda *answer: answers.append(answer))
    await harness.until(lambda: len(answers) == 6)
    assert (type(answers[5][0]), answers[5][0].applied) == (Unavailable, "no")


@pytest.mark.parametrize(
    ("user_id", "message", "error"),
    [
        ("u", 2**64, OverflowError),
        ("u", object(), TypeError),
        ("u\udc80", "m", UnicodeEncodeError),
        ("u", "m" * 70_000, FrameTooLarge),
    ],
)
async def test_what_cannot_be_sent_is_its_own_callers_fault(
    harness: DoorHarness, user_id: str, message: Any, error: type[Exception]
) -> None:
    async with Client(address_of(harness)) as client:
        calls = [client.top_up(f"u{number}", nanos=5) for number in range(3)]
        calls.insert(1, client.call("top_up", user_id, 7, message=message, request_id="r"))
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert type(replies.pop(1)) is error
        assert [reply["user_id"] for reply in replies if isinstance(reply, dict)] == ["u0", "u1", "u2"]
    assert [command[2] for command in harness.gate.commands] == [5, 5, 5]


def test_the_client_knows_the_longest_frame() -> None:
    assert wire.FRAME_BYTES_MAX == FRAME_BYTES_MAX


async def test_a_lost_connection_is_unknown_for_what_was_sent() -> None:
    async def vanish(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        await request(unpacker, reader)

    async with open_liar(vanish) as address, Client(address) as client:
        with pytest.raises(Unavailable, match="the connection was lost") as caught:
            await client.top_up("u", nanos=5)
        assert (caught.value.applied, caught.value.retry) == ("unknown", True)


async def test_without_a_request_id_nothing_is_sent_twice() -> None:
    methods = []

    async def vanish_once(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        while True:
            message = await request(unpacker, reader)
            methods.append(message[2])
            if count == 1:
                return
            writer.write(msgpack.packb([1, message[1], None, {}]))

    async with open_liar(vanish_once) as address, Client(address) as client:
        with pytest.raises(Unavailable):
            await client.top_up("u", nanos=5)
        assert await client.debit("u", nanos=5) == {}  # it has connected again by itself
    assert methods == ["top_up", "debit"]


async def test_with_a_request_id_it_is_repeated_until_it_is_answered() -> None:
    calls = []

    async def vanish_twice(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        while True:
            message = await request(unpacker, reader)
            calls.append(message[2:])
            if count < 3:
                return
            error = {"name": "BUCKET_MOVING", "code": 401, "message": "", "retry": True, "applied": "no"}
            writer.write(msgpack.packb([1, message[1], error if len(calls) < 5 else None, {"done": True}]))

    async with open_liar(vanish_twice) as address, Client(address, jitter=lambda: 0.0) as client:
        assert await client.top_up("u", nanos=5, request_id="r1") == {"done": True}
    assert calls == [["top_up", ["u", 5, {"request_id": "r1"}]]] * 5


async def test_a_repeat_that_is_not_let_in_does_not_deny_what_the_first_attempt_did() -> None:
    """The call was carried out, its token was taken out of the file, and its connection ended with its answer."""

    async def carry_out_and_vanish(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        while True:
            message = await request(unpacker, reader)
            if count == 1:
                return
            error = {"name": "FORBIDDEN", "code": 301, "message": "not any more", "retry": False, "applied": "no"}
            writer.write(msgpack.packb([1, message[1], error, None]))

    async with open_liar(carry_out_and_vanish) as address, Client(address) as client:
        with pytest.raises(Forbidden) as caught:
            await client.top_up("u", nanos=5, request_id="r")
        assert caught.value.applied == "unknown"
        assert str(caught.value) == "FORBIDDEN: not any more"
        with pytest.raises(Forbidden) as caught:
            await client.top_up("u", nanos=5, request_id="r")
        assert caught.value.applied == "no"


async def test_reads_are_repeated_too() -> None:
    async def vanish_once(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        message = await request(unpacker, reader)
        if count > 1:
            writer.write(msgpack.packb([1, message[1], None, {"count": count}]))
            await reader.read()

    async with open_liar(vanish_once) as address, Client(address) as client:
        assert await client.get_account("u") == {"count": 2}


async def test_who_has_no_answer_in_time_is_told_why_the_last_attempt_was_refused() -> None:
    """A shard that is silent is named by the daemon before the client's time is up, and asked again until it is."""

    async def refuse_once(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        message = await request(unpacker, reader)
        error = {"name": "UNAVAILABLE", "code": 400, "message": "shard 2: silent", "retry": True, "applied": "no"}
        writer.write(msgpack.packb([1, message[1], error, None]))
        await reader.read()

    async with open_liar(refuse_once) as address, Client(address) as client:
        with pytest.raises(Unavailable, match=r"no answer within 1 s: shard 2: silent") as caught:
            await client.call("accounts", timeout_s=1.0)
        assert caught.value.applied == "unknown"


async def test_a_refusal_is_not_repeated(harness: DoorHarness) -> None:
    async with Client(address_of(harness)) as client:
        harness.gate.replies["get_account"] = Refused("UNKNOWN_ACCOUNT", "no")
        with pytest.raises(CLASSES["UNKNOWN_ACCOUNT"]):
            await client.get_account("u")
    assert len(harness.gate.asked) == 1


async def test_no_answer_in_time_is_unknown_and_its_late_answer_harms_nobody(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    async with Client(address_of(harness)) as client:
        with pytest.raises(Unavailable, match=r"no answer within 1 s") as caught:
            await client.call("top_up", "u", 5, timeout_s=1.0)
        assert caught.value.applied == "unknown"
        harness.gate.holds_back = False
        harness.gate.release()
        assert (await client.top_up("v", nanos=5))["user_id"] == "v"


async def test_nobody_there_is_applied_no_and_says_why() -> None:
    client = Client(f"127.0.0.1:{free_port()}", timeout_s=3600.0)
    with pytest.raises(Unavailable, match="cannot connect") as caught:
        await client.top_up("u", nanos=5, request_id="r1")  # at once, whatever may be repeated
    assert caught.value.applied == "no"
    client.close()
    with pytest.raises(Unavailable, match="the client is closed"):
        await client.ping()


async def test_a_daemon_that_comes_up_late_is_found() -> None:
    port = free_port()
    client = Client(f"127.0.0.1:{port}", jitter=lambda: 0.0)
    waiting = asyncio.ensure_future(client.connect(tries=None))
    await asyncio.sleep(0.05)

    async def answer(unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            message = await request(unpacker, reader)
            writer.write(msgpack.packb([1, message[1], None, message[2]]))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(msgpack.Unpacker(), reader, writer)
        except EOFError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await waiting
    assert await client.ping() == "ping"
    client.close()
    server.close()


@pytest.mark.parametrize("lie", [b"\xc1", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x93\x02\xa4push\x90", b"\x05"])
async def test_a_server_that_speaks_something_else_is_left(lie: bytes) -> None:
    async def speak(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        await request(unpacker, reader)
        writer.write(lie)
        await reader.read()

    async with open_liar(speak) as address, Client(address) as client:
        with pytest.raises(Unavailable) as caught:
            await client.top_up("u", nanos=5)
        assert caught.value.applied == "unknown"


async def test_what_the_server_said_of_the_connection_is_told() -> None:
    async def complain(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        await request(unpacker, reader)
        writer.write(msgpack.packb([1, None, "FRAME_TOO_LARGE: a frame may have 65536 bytes", None]))

    async with open_liar(complain) as address, Client(address) as client:
        with pytest.raises(Unavailable, match="the connection was lost: FRAME_TOO_LARGE: a frame may have 65536 bytes"):
            await client.top_up("u", nanos=5)


async def test_closing_leaves_nothing_hanging(harness: DoorHarness) -> None:
    harness.gate.holds_back = True
    client = Client(address_of(harness))
    await client.connect()
    top_up = asyncio.ensure_future(client.top_up("u", nanos=5))
    await harness.until(lambda: harness.gate.asked)
    client.close()
    with pytest.raises(Unavailable) as caught:
        await top_up
    assert caught.value.applied == "unknown"
