"""A name with several addresses of which one takes connections and serves nobody: the calls get to the others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from billing.expirationd.delivery import Delivery, DeliverySettings
from tests.expirationd.fake_obligations import LONG_S, FakeObligations, receiving, sending, settings
from tests.expirationd.test_dialing import Names, ip4

TLS = Path(__file__).parent / "tls"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Server:
    """A server on one address. It answers each request with `answer`, b"" never, and None by a reset; the user `sick`
    it never answers.
    """

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.requests = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                if self.answer is None:
                    writer.transport.abort()
                elif b"user_id=sick" not in request:
                    writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def serving(answer: bytes | None) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@asynccontextmanager
async def calling(obligations: FakeObligations, chosen: DeliverySettings, *ports: int) -> AsyncIterator[Delivery]:
    """A delivery for whose endpoint the resolver names these ports, in this order."""
    async with sending(obligations, chosen) as delivery:
        names = Names([[ip4(port) for port in ports]], ports[0], chosen.connect_timeout_s)
        names._tls = delivery.endpoints[0]._dialer._tls
        names.host = delivery.endpoints[0]._dialer.host
        delivery.endpoints[0]._dialer = names
        yield delivery


@pytest.mark.parametrize("answer", [b"", None, b"nonsense\r\n", UNAVAILABLE], ids=["silent", "reset", "garbage", "503"])
@pytest.mark.parametrize("users", [1, 8])
async def test_an_address_that_serves_nobody_is_left(answer: bytes | None, users: int) -> None:
    obligations = FakeObligations()
    chosen = settings("http://endpoint.example/off", timeout_s=0.3 if answer == b"" else LONG_S)
    async with (
        serving(answer) as bad,
        serving(NO_CONTENT) as good,
        calling(obligations, chosen, bad.port, good.port) as delivery,
    ):
        for number in range(users):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(obligations.nothing_owed)
        assert good.requests == users
        assert bad.requests >= 1


async def test_what_one_user_meets_says_nothing_of_the_address() -> None:
    obligations = FakeObligations()
    chosen = settings("http://endpoint.example/off", timeout_s=0.3)
    async with (
        serving(NO_CONTENT) as good,
        serving(b"") as bad,
        calling(obligations, chosen, good.port, bad.port) as delivery,
    ):
        obligations.exhaust(delivery, b"sick")
        number = 0
        while len(obligations.errors()) < 3:
            number += 1
            user = b"u%d" % number
            obligations.exhaust(delivery, user)
            await obligations.until(lambda user=user: not obligations.cutoffs[user])  # type: ignore[misc]
        assert bad.requests == 0
        assert good.requests >= number + 3


async def test_an_address_whose_certificate_has_expired_is_left() -> None:
    contexts = []
    for name in ("expired.pem", "valid.pem"):
        contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        contexts[-1].load_cert_chain(TLS / name)
    trust = ssl.create_default_context(cafile=str(TLS / "valid.pem"))
    obligations = FakeObligations()
    async with receiving(tls=contexts[0]) as expired, receiving(tls=contexts[1]) as valid:
        chosen = settings("https://localhost/off", tls=trust)
        async with calling(obligations, chosen, expired.port, valid.port) as delivery:
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
            assert len(obligations.errors()) == 1
            assert obligations.errors()[0].startswith("TLS: ")
            assert [call.user_id for call in valid.calls] == ["u"]
