"""How connections come about: several addresses of which one lives, IPv6 first and dead, names that stop resolving."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from billing.expirationd.dialing import Dialer, Unreachable
from shards.system.clock import MACHINE_CLOCKS


class Protocol(asyncio.Protocol):
    """A connection of which only that it came about matters."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


class Names(Dialer):
    """A dialer whose resolver is a list: each answer is taken once, the last one for ever."""

    def __init__(self, answers: list[list[Any] | OSError], port: int, connect_timeout_s: float = 20.0) -> None:
        super().__init__(f"http://endpoint.example:{port}", connect_timeout_s, None, MACHINE_CLOCKS.boot_ns)
        self.answers = answers
        self.asked = 0

    async def look_up(self) -> list[Any]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def ip4(port: int, host: str = "127.0.0.1") -> Any:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def ip6(port: int) -> Any:
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", port, 0, 0))


async def reaches(dialer: Dialer) -> Any:
    protocol = await dialer.connect(Protocol)
    peer = protocol.transport.get_extra_info("peername")
    protocol.transport.close()
    return peer


async def test_ipv6_first_and_dead() -> None:
    async with listening() as port:
        dialer = Names([[ip6(port), ip4(port)]], port)
        assert (await reaches(dialer))[:2] == ("127.0.0.1", port)


async def test_twenty_addresses_of_which_one_lives_and_that_one_is_tried_first_from_then_on() -> None:
    async with listening() as port:
        dead = [ip4(port, f"127.0.0.{number}") for number in range(2, 21)]
        dialer = Names([[*dead, ip4(port)]], port)
        assert await reaches(dialer) == ("127.0.0.1", port)
        assert dialer.addresses[0] == ip4(port)
        assert await reaches(dialer) == ("127.0.0.1", port)


async def test_a_name_that_does_not_resolve_any_more_is_reached_where_it_was() -> None:
    async with listening() as port:
        dialer = Names([[ip4(port)], socket.gaierror(socket.EAI_AGAIN, "try again")], port)
        await reaches(dialer)
        dialer.forget()
        await reaches(dialer)
        assert dialer.asked == 2


async def test_an_address_that_refuses_has_the_name_resolved_again_at_once() -> None:
    async with listening() as port:
        dialer = Names([[ip4(1)], [ip4(port)]], port)
        with pytest.raises(Unreachable, match="connection refused"):
            await reaches(dialer)
        assert await reaches(dialer) == ("127.0.0.1", port)
        assert dialer.asked == 2


async def test_a_name_that_moves_is_followed_once_it_is_asked_for_again() -> None:
    async with listening() as old, listening() as new:
        dialer = Names([[ip4(old)], [ip4(new)]], old)
        assert await reaches(dialer) == ("127.0.0.1", old)
        assert await reaches(dialer) == ("127.0.0.1", old), "an answer holds for a while"
        dialer.forget()
        assert await reaches(dialer) == ("127.0.0.1", new)
        assert dialer.addresses == [ip4(new)]


async def test_a_name_that_never_resolved_is_unreachable_and_asked_for_again() -> None:
    dialer = Names([socket.gaierror(socket.EAI_NONAME, "unknown")], 80)
    for _ in range(2):
        with pytest.raises(Unreachable, match="the name does not resolve"):
            await reaches(dialer)
    assert dialer.asked == 2


async def test_a_server_that_dies_in_the_middle_of_the_handshake() -> None:
    class Dies(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.abort()

    server = await asyncio.get_running_loop().create_server(Dies, "127.0.0.1", 0)
    dialer = Dialer(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", 20.0, None, MACHINE_CLOCKS.boot_ns)
    with pytest.raises(Unreachable):
        await reaches(dialer)
    server.close()


async def test_a_handshake_that_never_ends_has_an_end() -> None:
    async with listening() as port:
        dialer = Dialer(f"https://127.0.0.1:{port}", 0.2, None, MACHINE_CLOCKS.boot_ns)
        with pytest.raises(Unreachable, match=r"no connection within 0\.2 s"):
            await reaches(dialer)


async def test_while_the_resolver_is_silent_the_former_addresses_are_reached_and_its_answer_counts_once_it_comes() -> (
    None
):
    class Silent(Names):
        may_answer = asyncio.Event()

        async def look_up(self) -> list[Any]:
            addresses = await super().look_up()
            if self.asked > 1:
                await self.may_answer.wait()
            return addresses

    async with listening() as old, listening() as new:
        dialer = Silent([[ip4(old)], [ip4(new)]], old)
        await reaches(dialer)
        dialer.forget()
        for _ in range(3):
            assert await reaches(dialer) == ("127.0.0.1", old)
        dialer.may_answer.set()
        while dialer.addresses != [ip4(new)]:
            await asyncio.sleep(0)
        assert await reaches(dialer) == ("127.0.0.1", new)
        assert dialer.asked == 2


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "x" * 64 + ".example"])
async def test_a_name_that_cannot_be_one_is_unreachable(host: str) -> None:
    with pytest.raises(Unreachable, match="the name does not resolve"):
        await reaches(Dialer(f"https://{host}", 20.0, None, MACHINE_CLOCKS.boot_ns))


async def test_an_address_that_ends_the_handshake_is_tried_last() -> None:
    class Ends(Protocol):
        def data_received(self, data: bytes) -> None:
            self.transport.close()

    server = await asyncio.get_running_loop().create_server(Ends, "127.0.0.1", 0)
    bad = ip4(server.sockets[0].getsockname()[1])
    async with listening() as port:
        dialer = Names([[bad, ip4(port)]], port)
        dialer._tls = ssl.create_default_context()
        with pytest.raises(Unreachable):
            await reaches(dialer)
        assert dialer.addresses == [ip4(port), bad]
    server.close()


async def test_names_whose_resolver_is_silent_hold_up_neither_another_name_nor_a_number() -> None:
    answers = threading.Event()

    def resolver(host: str, port: int, **options: Any) -> list[Any]:
        if host.startswith("silent"):
            assert answers.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [ip4(port)]

    async with listening() as port:

        def dialer(host: str) -> Dialer:
            return Dialer(f"http://{host}:{port}", 60.0, None, MACHINE_CLOCKS.boot_ns, resolver)

        silent = [asyncio.create_task(dialer(f"silent{number}.example").connect(Protocol)) for number in range(40)]
        try:
            await asyncio.sleep(0)
            assert await reaches(dialer("endpoint.example")) == ("127.0.0.1", port)
            assert await reaches(dialer("127.0.0.1")) == ("127.0.0.1", port)
            assert not any(task.done() for task in silent)
        finally:
            answers.set()
        outcomes = await asyncio.gather(*silent, return_exceptions=True)
        assert {str(outcome) for outcome in outcomes} == {"the name does not resolve"}
