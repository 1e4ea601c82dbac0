"""Opens the doors of a worker on its listening sockets. The kind of a socket decides its protocol:

    kind of socket   protocol
    tcp, direct      MessagePack-RPC
    unix             MessagePack-RPC
    http             HTTP and JSON
    tarantool        Tarantool's protocol

All doors of a worker share one `Door`, which has their guard, limits and counters. The doors over TCP also share one
TLS context and one limit of handshakes. `billing.config.doors` has the table of protocols.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from importlib import import_module

from billing.api.door import Door
from billing.api.listener import Listener, PlainEntrance
from billing.api.tls_entrance import TlsEntrance
from billing.config.doors import door_of

RandomBytes = Callable[[int], bytes]
Factory = Callable[[Door, Callable[[], int], RandomBytes], Callable[[], asyncio.BaseProtocol]]


class Doors:
    """The listeners of one worker."""

    def __init__(
        self, door: Door, tls: ssl.SSLContext | None, wall_now_ns: Callable[[], int], random_bytes: RandomBytes
    ) -> None:
        """`tls`: for all TCP doors; None: plain TCP. `wall_now_ns`: the clock for HTTP's header Date. `random_bytes`:
        makes salts.
        """
        self.door = door
        self._plain = PlainEntrance()
        self._tls = None if tls is None else TlsEntrance(tls, self._turned_away)
        self._wall_now_ns = wall_now_ns
        self._random_bytes = random_bytes
        self._listeners: list[Listener] = []

    def listen(self, kind: str, listener: socket.socket) -> None:
        """Accepts clients on one more socket; `kind` as in the table above."""
        entrance = self._plain if kind == "unix" or self._tls is None else self._tls
        self._listeners.append(Listener(listener, entrance, self._protocol(kind)))

    def take_tls(self, tls: ssl.SSLContext) -> None:
        """Uses another TLS context from the next connection on; plain TCP stays plain."""
        if self._tls is not None:
            self._tls.take_context(tls)

    def _turned_away(self, origin: str) -> None:
        """Counts and logs a handshake that was ended to make room for another one."""
        self.door.drops += 1
        self.door.origins.turned_away(origin, "too many TLS handshakes under way", self.door.clock())

    def _protocol(self, kind: str) -> Callable[[], asyncio.BaseProtocol]:
        """Returns the factory of connections for a kind of socket."""
        # The modules of a protocol are loaded only where one of its doors opens: most workers do not need them.
        factory: Factory = import_module(door_of(kind).module).connection_factory
        return factory(self.door, self._wall_now_ns, self._random_bytes)

    async def stop_listening(self) -> None:
        """Accepts no further connections; open ones stay. When this returns, each connection that was accepted without
        TLS has its protocol.
        """
        for listener in self._listeners:
            listener.close()
        await self._plain.settle()
