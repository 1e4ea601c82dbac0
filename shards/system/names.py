"""Names of hosts: the system's resolver, whose silence has an end here, and what it answered last.

The resolver blocks for as long as its servers are silent, and takes no deadline. So each name is asked for on a thread
of its own, one at a time. Who has waited for as long as it may goes on with the addresses that the name had before, and
so does who gets no answer: a connection, and over TLS the certificate, proves that they are still right. A number is no
question to the resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from shards.system.own_thread import on_own_thread, settle

AddressInfo = tuple[Any, Any, int, str, Any]  # as `socket.getaddrinfo` returns it
Resolve = Callable[..., list[AddressInfo]]  # (host, port, type=…): `socket.getaddrinfo`, or another one


def ask(host: str, port: int, resolve: Resolve = socket.getaddrinfo) -> Future[list[AddressInfo]]:
    """The addresses of a host for connections of a stream, or what the resolver raised; at once for a number."""
    look_up = partial(resolve, host, port, type=socket.SOCK_STREAM)
    if not is_number(host):
        return on_own_thread(f"resolves {host}", look_up)
    answer: Future[list[AddressInfo]] = Future()
    settle(answer, look_up)
    return answer


def is_number(host: str) -> bool:
    """Whether it is an address of IPv4 or IPv6, and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])  # behind it, the zone of an address of IPv6
    except ValueError:
        return False
    return True


class Names:
    """The addresses of hosts: for threads that may be blocked for a while, several at a time, and for a loop."""

    def __init__(self, resolve: Resolve = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], Future[list[AddressInfo]]] = {}
        self._known: dict[tuple[str, int], list[AddressInfo]] = {}

    def addresses(self, host: str, port: int, wait_s: float, first_wait_s: float) -> list[AddressInfo]:
        """The addresses of a host: waits for the resolver for `wait_s`, or for `first_wait_s` while none are known, and
        then returns the former ones. Raises OSError where none are known.
        """
        answer, known = self._ask(host, port)
        try:
            return answer.result(first_wait_s if known is None else wait_s)
        except OSError as error:
            return self._former(host, known, first_wait_s, error)

    async def look_up(self, host: str, port: int, wait_s: float, first_wait_s: float) -> list[AddressInfo]:
        """The same, on a loop, which goes on meanwhile."""
        answer, known = self._ask(host, port)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), first_wait_s if known is None else wait_s)
        except OSError as error:
            return self._former(host, known, first_wait_s, error)

    def _ask(self, host: str, port: int) -> tuple[Future[list[AddressInfo]], list[AddressInfo] | None]:
        """What will hold the resolver's answer, asked for now or before, and the former one."""
        name = host, port
        with self._lock:
            answer = self._asked.get(name)
            if answer is None or answer.done():
                answer = self._asked[name] = ask(host, port, self._resolve)
                answer.add_done_callback(lambda answered: self._take(name, answered))
            return answer, self._known.get(name)

    @staticmethod
    def _former(host: str, known: list[AddressInfo] | None, waited_s: float, error: OSError) -> list[AddressInfo]:
        """The former addresses, where the resolver refused or did not answer in time; raises OSError without any."""
        if known is not None:
            return known
        if isinstance(error, TimeoutError):
            raise OSError(f"the resolver has not answered for {host} within {waited_s:g} s") from None
        raise error

    def _take(self, name: tuple[str, int], answered: Future[list[AddressInfo]]) -> None:
        """Keeps an answer, also where nobody waits for it any more."""
        if answered.exception() is None:
            self._known[name] = answered.result()
