"""The resolver: its silence has an end, and it holds up no other name."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shards.system.names import AddressInfo, Names, ask, is_number

SOON_S, LONG_S = 0.001, 60.0


class Resolver:
    """Answers each name with its one address once it `speaks`."""

    def __init__(self) -> None:
        self.speaks = threading.Event()
        self.speaks.set()
        self.address = "127.0.0.2"
        self.error: OSError | None = None
        self.asked: list[str] = []

    def resolve(self, host: str, port: int, **_: Any) -> list[AddressInfo]:
        self.asked.append(host)
        assert self.speaks.wait(LONG_S)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (self.address, port))]


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    started = Resolver()
    yield started
    started.speaks.set()


def first_of(addresses: list[AddressInfo]) -> Any:
    return addresses[0][4]


def test_a_name_that_was_never_answered_is_an_error_in_time_and_then_found(resolver: Resolver) -> None:
    names = Names(resolver.resolve)
    resolver.speaks.clear()
    for _ in range(3):
        with pytest.raises(OSError, match=r"the resolver has not answered for log\.example within 0\.001 s"):
            names.addresses("log.example", 4222, SOON_S, SOON_S)
    assert resolver.asked == ["log.example"], "one question at a time"
    resolver.speaks.set()
    assert first_of(names.addresses("log.example", 4222, SOON_S, LONG_S)) == ("127.0.0.2", 4222)


def test_while_the_resolver_is_silent_or_refuses_the_former_addresses_count(resolver: Resolver) -> None:
    names = Names(resolver.resolve)
    assert first_of(names.addresses("log.example", 4222, LONG_S, LONG_S)) == ("127.0.0.2", 4222)
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert first_of(names.addresses("log.example", 4222, LONG_S, LONG_S)) == ("127.0.0.2", 4222)
    resolver.error, resolver.address = None, "127.0.0.3"
    resolver.speaks.clear()
    assert first_of(names.addresses("log.example", 4222, SOON_S, LONG_S)) == ("127.0.0.2", 4222)
    resolver.speaks.set()
    assert first_of(names.addresses("log.example", 4222, LONG_S, LONG_S)) == ("127.0.0.3", 4222)


async def test_a_loop_goes_on_with_the_former_addresses_or_gets_an_error_in_time(resolver: Resolver) -> None:
    names = Names(resolver.resolve)
    resolver.speaks.clear()
    with pytest.raises(OSError, match=r"the resolver has not answered for log\.example within 0\.001 s"):
        await names.look_up("log.example", 4222, LONG_S, SOON_S)
    resolver.speaks.set()
    assert first_of(await names.look_up("log.example", 4222, LONG_S, LONG_S)) == ("127.0.0.2", 4222)
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert first_of(await names.look_up("log.example", 4222, LONG_S, LONG_S)) == ("127.0.0.2", 4222)
    with pytest.raises(socket.gaierror):
        await names.look_up("other.example", 4222, LONG_S, LONG_S)
    resolver.error = None
    resolver.speaks.clear()
    assert first_of(await names.look_up("log.example", 4222, SOON_S, LONG_S)) == ("127.0.0.2", 4222)


def test_a_silent_name_holds_up_neither_another_one_nor_a_number(resolver: Resolver) -> None:
    resolver.speaks.clear()
    silent = [ask(f"silent{number}.example", 1, resolver.resolve) for number in range(40)]
    assert first_of(ask("spoken.example", 2, Resolver().resolve).result(LONG_S)) == ("127.0.0.2", 2)
    assert first_of(ask("127.0.0.1", 3).result(0)) == ("127.0.0.1", 3)
    assert not any(answer.done() for answer in silent)


def test_what_is_a_number() -> None:
    numbers = ["127.0.0.1", "::1", "fe80::1%eth0"]
    assert [is_number(host) for host in (*numbers, "localhost", "1.example", "")] == [True] * 3 + [False] * 3
