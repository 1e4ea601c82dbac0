"""From listening sockets to doors: which protocol is spoken on which.

    kind of socket   protocol
    tcp, direct      MessagePack-RPC
    unix             MessagePack-RPC
    http             HTTP and JSON
    tarantool        Tarantool's protocol

All doors of a worker share one `Door`, that is their guard, their limits and their counters, and over TCP the same TLS
and the same count of handshakes under way.
`billing.config.doors` has the table of protocols.
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
    """What listens in one worker."""

    def __init__(
        self, door: Door, tls: ssl.SSLContext | None, wall_now_ns: Callable[[], int], random_bytes: RandomBytes
    ) -> None:
        """`tls`: of all TCP doors; None: they speak plainly. `wall_now_ns`: what HTTP dates its answers by;
        `random_bytes`: what salts are made of.
        """
        self.door = door
        self._plain = PlainEntrance()
        self._tls = None if tls is None else TlsEntrance(tls, self._turned_away)
        self._wall_now_ns = wall_now_ns
        self._random_bytes = random_bytes
        self._listeners: list[Listener] = []

    def listen(self, kind: str, listener: socket.socket) -> None:
        """Lets clients in by one more socket."""
        entrance = self._plain if kind == "unix" or self._tls is None else self._tls
        self._listeners.append(Listener(listener, entrance, self._protocol(kind)))

    def take_tls(self, tls: ssl.SSLContext) -> None:
        """Shakes hands by another context from the next connection on; where TCP is plain, it stays so."""
        if self._tls is not None:
            self._tls.take_context(tls)

    def _turned_away(self, origin: str) -> None:
        """A handshake made room for others."""
        self.door.drops += 1
        self.door.origins.turned_away(origin, "too many TLS handshakes under way", self.door.clock())

    def _protocol(self, kind: str) -> Callable[[], asyncio.BaseProtocol]:
        """What makes a connection of this kind."""
        # The modules of a protocol are loaded where one of its doors opens: most workers have no use for them.
        factory: Factory = import_module(door_of(kind).module).connection_factory
        return factory(self.door, self._wall_now_ns, self._random_bytes)

    async def stop_listening(self) -> None:
        """No new connections; those that there are stay, and are known when this returns."""
        for listener in self._listeners:
            listener.close()
        await self._plain.settle()
