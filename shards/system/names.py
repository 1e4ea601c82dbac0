"""Names of hosts: the system's resolver, whose silence has an end here, and what it answered last.

The resolver blocks for as long as its servers are silent, and takes no deadline. So each name is asked for on a thread
of its own, one at a time. Who has waited for as long as it may goes on with the addresses that the name had before, and
so does who gets no answer: a connection, and over TLS the certificate, proves that they are still right. A number is no
question to the resolver.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

AddressInfo = tuple[Any, Any, int, str, Any]  # as `socket.getaddrinfo` returns it
Resolve = Callable[..., list[AddressInfo]]  # (host, port, type=…): `socket.getaddrinfo`, or another one


def ask(host: str, port: int, resolve: Resolve = socket.getaddrinfo) -> Future[list[AddressInfo]]:
    """The addresses of a host for connections of a stream, or what the resolver raised; at once for a number."""
    answer: Future[list[AddressInfo]] = Future()
    answer.set_running_or_notify_cancel()  # from now on nobody can cancel it

    def give() -> None:
        try:
            answer.set_result(resolve(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answer.set_exception(error)

    if is_number(host):
        give()
    else:
        threading.Thread(target=give, name=f"resolves {host}", daemon=True).start()
    return answer


def is_number(host: str) -> bool:
    """Whether it is an address of IPv4 or IPv6, and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])  # behind it, the zone of an address of IPv6
    except ValueError:
        return False
    return True


class Names:
    """The addresses of hosts, for threads that may be blocked for a while, several of them at a time."""

    def __init__(self, resolve: Resolve = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], Future[list[AddressInfo]]] = {}
        self._known: dict[tuple[str, int], list[AddressInfo]] = {}

    def addresses(self, host: str, port: int, wait_s: float, first_wait_s: float) -> list[AddressInfo]:
        """The addresses of a host: waits for the resolver for `wait_s`, or for `first_wait_s` while none are known, and
        then returns the former ones. Raises OSError where none are known.
        """
        name = host, port
        with self._lock:
            answer = self._asked.get(name)
            if answer is None or answer.done():
                answer = self._asked[name] = ask(host, port, self._resolve)
                answer.add_done_callback(lambda answered: self._take(name, answered))
            known = self._known.get(name)
        try:
            return answer.result(first_wait_s if known is None else wait_s)
        except OSError as error:
            if known is not None:
                return known
            if isinstance(error, TimeoutError):
                raise OSError(f"the resolver has not answered for {host} within {first_wait_s:g} s") from None
            raise

    def _take(self, name: tuple[str, int], answered: Future[list[AddressInfo]]) -> None:
        """Keeps an answer, also where nobody waits for it any more."""
        if answered.exception() is None:
            self._known[name] = answered.result()
