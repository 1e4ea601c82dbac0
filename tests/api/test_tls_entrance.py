"""TLS handshakes under way are bounded in each process, and whoever shakes hands at once gets in beside a crowd."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import trustme

from billing.api.listener import Listener
from billing.api.tls_entrance import TlsEntrance

MOST = 8
WAIT_S = 60.0


class Upper(asyncio.Protocol):
    """Answers in capitals."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(bytes(data).upper())


class EntranceHarness(NamedTuple):
    port: int
    entrance: TlsEntrance
    turned_away: list[str]
    trust: ssl.SSLContext

    def silent(self) -> socket.socket:
        """A connection that never says anything."""
        return socket.create_connection(("127.0.0.1", self.port))

    async def answer_to(self, text: bytes) -> bytes:
        """What a client is answered that shakes hands and asks at once."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname="localhost"
        )
        writer.write(text)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.readexactly(len(text))
        writer.close()
        return answer

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.entrance.under_way != count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[EntranceHarness]:
    authority = trustme.CA()
    context, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(trust)
    turned_away: list[str] = []
    entrance = TlsEntrance(context, turned_away.append, handshakes_max=MOST)
    listener = socket.create_server(("127.0.0.1", 0))
    listening = Listener(listener, entrance, Upper)
    yield EntranceHarness(listener.getsockname()[1], entrance, turned_away, trust)
    listening.close()
    entrance.close()


async def test_who_shakes_hands_gets_in_beside_a_crowd_that_says_nothing(harness: EntranceHarness) -> None:
    crowd = [harness.silent() for _ in range(5 * MOST)]
    async with asyncio.timeout(WAIT_S):
        while len(harness.turned_away) < 4 * MOST:
            await asyncio.sleep(0.005)
    assert harness.entrance.under_way == MOST
    assert await harness.answer_to(b"hello") == b"HELLO"
    assert set(harness.turned_away) == {"127.0.0.1"}
    for client in crowd:
        client.close()
    await harness.until(0)


async def test_the_oldest_makes_room_and_is_closed(harness: EntranceHarness) -> None:
    crowd = [harness.silent() for _ in range(MOST)]
    await harness.until(MOST)
    last = harness.silent()
    loop = asyncio.get_running_loop()
    crowd[0].setblocking(False)
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(crowd[0], 1) == b""
    assert harness.entrance.under_way == MOST
    for client in (*crowd, last):
        client.close()
    await harness.until(0)


async def test_garbage_and_silence_end_the_handshake_and_are_not_counted_any_more(harness: EntranceHarness) -> None:
    with harness.silent() as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
        await harness.until(0)
    patient_s, harness.entrance.handshake_s = harness.entrance.handshake_s, 0.05
    with harness.silent() as silent:
        silent.setblocking(False)
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
        await harness.until(0)
    assert harness.turned_away == []
    harness.entrance.handshake_s = patient_s
    assert await harness.answer_to(b"still there") == b"STILL THERE"


async def test_many_at_once_are_all_served(harness: EntranceHarness) -> None:
    echoes = await asyncio.gather(*(harness.answer_to(b"client %d" % number) for number in range(MOST)))
    assert echoes == [b"CLIENT %d" % number for number in range(MOST)]
