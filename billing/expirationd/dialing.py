"""Opens a connection to an endpoint: resolves its name, tries its addresses, makes the TLS handshake.

aiohappyeyeballs tries the addresses in the order of RFC 8305 (families in turns, the next address `NEXT_ADDRESS_S`
after the last); the address that worked last is tried first. An address that takes a connection and fails in the
handshake is tried last from then on, and so is one that serves nobody (`demote`). A name is resolved again after
`RESOLVED_S`, and before the next attempt if no address could be connected to. While a name does not resolve, or the
resolver has not answered within `RESOLVER_S`, its former addresses are tried: a connection, and for `https` the
certificate, proves that they are still right.

The loop's own threads for the resolver are so few that two names for which it is silent would hold up all others. So
each endpoint asks on a thread of its own (`names`), one question at a time.

This module sends nothing except what TLS sends.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from shards.system.names import AddressInfo, Resolve, ask

if TYPE_CHECKING:
    import ssl

RESOLVED_S: Final = 10
RESOLVER_S: Final = 0.2
NEXT_ADDRESS_S: Final = 0.1
ADDRESSES_MAX: Final = 64
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SECOND_NS: Final = 10**9

Protocol = TypeVar("Protocol", bound=asyncio.Protocol)


class Unreachable(Exception):
    """No connection could be opened; the message gives the reason in a few words."""


class Dialer:
    """Connects to one origin (`scheme://host[:port]`). `tls` replaces the system's certificate authorities (None:
    these); `boot_ns` reads the boot clock; `resolve` is the resolver, which may block.
    """

    def __init__(
        self,
        origin: str,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None,
        boot_ns: Callable[[], int],
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._boot_ns = boot_ns
        self._resolve_name = resolve
        parts = urlsplit(origin)
        assert parts.hostname is not None, origin
        self.host = parts.hostname
        self.port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self.connect_timeout_s = connect_timeout_s
        self._tls = _trust(tls) if parts.scheme == "https" else None
        self.addresses: list[AddressInfo] = []
        self._resolved_ns = 0
        self._resolving: asyncio.Future[None] | None = None

    async def connect(self, protocol_of: Callable[[], Protocol]) -> Protocol:
        """Opens a connection and returns its protocol; raises Unreachable."""
        import ssl

        try:
            async with asyncio.timeout(self.connect_timeout_s):
                return await self._connect(protocol_of)
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"TLS: {error.verify_message or 'certificate refused'}") from None
        except ssl.SSLError as error:
            raise Unreachable(f"TLS: {error.reason or 'handshake failed'}") from None
        except socket.gaierror:
            raise Unreachable("the name does not resolve") from None
        except TimeoutError:
            raise Unreachable(f"no connection within {self.connect_timeout_s:g} s") from None
        except (OSError, RuntimeError) as error:  # of several addresses that failed in several ways, either
            self.forget()
            raise Unreachable(_reason(error)) from None
        except ValueError as error:  # the name cannot be one of the domain name system
            raise Unreachable(f"the name does not resolve: {error}") from None

    async def _connect(self, protocol_of: Callable[[], Protocol]) -> Protocol:
        from aiohappyeyeballs import start_connection

        loop = asyncio.get_running_loop()
        now_ns = self._boot_ns()
        if not self._resolved_ns or now_ns - self._resolved_ns >= RESOLVED_S * _SECOND_NS:
            await self._resolve()
        addresses = self.addresses
        connection = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
        try:
            peer = connection.getpeername()
        except OSError:  # it has ended already
            connection.close()
            raise
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            unheard_ms = int(self.connect_timeout_s * 1000)  # bytes unacknowledged for so long end the connection
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unheard_ms)
            if self._tls is None:
                _, protocol = await loop.create_connection(protocol_of, sock=connection)
            else:
                _, protocol = await loop.create_connection(
                    protocol_of,
                    sock=connection,
                    ssl=self._tls,
                    server_hostname=self.host,
                    ssl_handshake_timeout=self.connect_timeout_s,
                    ssl_shutdown_timeout=1.0,
                )
        except BaseException:
            connection.close()
            self.demote(peer)
            raise
        if self.addresses[0][4][:2] != peer[:2]:
            self.addresses = sorted(self.addresses, key=lambda address: address[4][:2] != peer[:2])
        return protocol

    async def _resolve(self) -> None:
        """Resolves the name; all callers that wait at the same time share one request to the resolver."""
        if self._resolving is None:
            self._resolving = asyncio.ensure_future(self._ask())
            self._resolving.add_done_callback(self._on_resolved)
        if not self.addresses:
            await asyncio.shield(self._resolving)
        elif not (await asyncio.wait({self._resolving}, timeout=RESOLVER_S))[0]:
            self._resolved_ns = self._boot_ns()  # until it answers, nobody else waits for it

    async def look_up(self) -> list[AddressInfo]:
        """The addresses of the name, from the system's resolver."""
        return await asyncio.wrap_future(ask(self.host, self.port, self._resolve_name))

    def demote(self, peer: tuple[str, int]) -> bool:
        """Nobody is served at the address of this peer: it is tried last from now on. Returns whether it was tried
        first, and there is another one.
        """
        first, *others = self.addresses
        self.addresses = sorted(self.addresses, key=lambda address: address[4][:2] == peer[:2])
        return bool(others) and first[4][:2] == peer[:2]

    def forget(self) -> None:
        """Has the name resolved again before the next connection."""
        self._resolved_ns = 0

    async def _ask(self) -> None:
        try:
            resolved = await self.look_up()
        except socket.gaierror:
            if not self.addresses:
                raise
        else:
            addresses = list(dict.fromkeys(resolved))[:ADDRESSES_MAX]
            worked = self.addresses[:1]
            self.addresses = sorted(addresses, key=lambda address: address not in worked)
        self._resolved_ns = self._boot_ns()

    def _on_resolved(self, resolving: asyncio.Future[None]) -> None:
        self._resolving = None
        if not resolving.cancelled():
            resolving.exception()  # the callers that wait get it; perhaps none waits any more


def _trust(tls: ssl.SSLContext | None) -> ssl.SSLContext:
    import ssl

    if tls is not None:
        return tls
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: BaseException) -> str:
    """The reason for a failed connection, in a few words; of several addresses, that of the last one."""
    number = getattr(error, "errno", None)
    if number:
        return os.strerror(number).lower()
    return "connection lost" if isinstance(error, ConnectionError) else "no address can be connected to"
