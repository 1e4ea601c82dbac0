"""What a server says out of turn: a second answer, an answer before the call, and TLS that is negotiated anew."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.expirationd.fake_obligations import FakeObligations, sending, settings
from tests.system.ports import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NO = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
CERTIFICATE = Path(__file__).parent / "tls" / "valid.pem"
WAIT_S = 60.0


class RawConnection(asyncio.Protocol):
    """A connection on which a test says what it likes."""

    def __init__(
        self, speakers: list[RawConnection], greeting: bytes, on_request: Callable[[RawConnection], bytes]
    ) -> None:
        self.said, self.greeting, self.on_request = speakers, greeting, on_request
        self.requests: list[bytes] = []
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.said.append(self)
        self.transport.write(self.greeting)

    def data_received(self, data: bytes) -> None:
        self.requests.append(data)
        self.transport.write(self.on_request(self))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True


async def speaking(
    greetings: list[bytes], on_request: Callable[[RawConnection], bytes]
) -> tuple[str, list[RawConnection], asyncio.Server]:
    """A server whose n-th connection is greeted with the n-th of these, and with nothing after them."""
    speakers: list[RawConnection] = []

    def speaker() -> RawConnection:
        return RawConnection(speakers, greetings[len(speakers)] if len(speakers) < len(greetings) else b"", on_request)

    server = await asyncio.get_running_loop().create_server(speaker, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/off", speakers, server


async def test_a_second_answer_in_a_later_segment_ends_the_connection_and_answers_nobody() -> None:
    obligations = FakeObligations()
    url, speakers, server = await speaking([], lambda speaker: OK if speaker is speakers[0] else NO)
    async with sending(obligations, settings(url)) as delivery:
        obligations.exhaust(delivery, b"first")
        await obligations.until(obligations.nothing_owed)
        speakers[0].transport.write(OK)  # once more, and nobody asked
        await obligations.until(lambda: speakers[0].ended)
        obligations.exhaust(delivery, b"second")
        await obligations.until(lambda: bool(obligations.errors()))
        assert obligations.outcomes(b"second")[:2] == ["started", "failed"], (
            "the second answer was not taken for its own"
        )
        assert len(speakers[0].requests) == 1
    server.close()


async def test_an_answer_before_the_call_is_not_taken_for_its_answer() -> None:
    obligations = FakeObligations()
    url, speakers, server = await speaking([OK], lambda _: NO)
    async with sending(obligations, settings(url)) as delivery:
        delivery.endpoints[0].open_ahead()
        await obligations.until(lambda: bool(speakers) and speakers[0].ended)
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: bool(obligations.errors()))
        assert obligations.errors()[0] == "status 404"
        assert speakers[0].requests == []
        assert not obligations.nothing_owed()
    server.close()


async def until_heard(stream: asyncio.StreamReader, needle: bytes) -> None:
    """Reads until these words came."""
    async with asyncio.timeout(WAIT_S):
        heard = b""
        while needle not in heard:
            more = await stream.read(4096)
            assert more, f"it ended after {heard!r}"
            heard += more


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_tls_that_is_negotiated_anew_in_the_middle_of_a_call_costs_at_most_the_connection() -> None:
    """OpenSSL's own server asks for it while the answer is awaited, under TLS 1.2, which still knows it."""
    obligations, port = FakeObligations(), free_port()
    command = ["openssl", "s_server", "-tls1_2", "-crlf", "-accept", f"127.0.0.1:{port}", "-cert", str(CERTIFICATE)]
    server = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    heard, stdin = cast(Any, server.stdout), cast(Any, server.stdin)
    try:
        await until_heard(heard, b"ACCEPT")
        trust = ssl.create_default_context(cafile=str(CERTIFICATE))
        chosen = settings(f"https://localhost:{port}/off", tls=trust, connect_timeout_s=30.0, timeout_s=30.0)
        async with sending(obligations, chosen) as delivery:
            obligations.exhaust(delivery, b"u")
            await until_heard(heard, b"GET /off")
            stdin.write(b"R\n")
            for _ in range(20):  # calls that ended with their connection come again
                stdin.write(b"HTTP/1.1 204 No Content\n\n")
                await stdin.drain()
                if obligations.nothing_owed() or obligations.errors():
                    break
                await asyncio.sleep(0.05)
            await obligations.until(lambda: obligations.nothing_owed() or bool(obligations.errors()))
            assert set(obligations.errors()) <= {"connection lost before an answer"}
            assert obligations.broken == []
    finally:
        server.terminate()
        await server.wait()
