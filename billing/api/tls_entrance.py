"""The TLS handshakes of a process: a connection is counted and limited from its first byte, before its handshake ends.

A server of asyncio reports a TLS connection only after its handshake. A client that opens many connections and sends
nothing would hold a descriptor and some 200 KiB for each, uncounted. Here each connection is accepted by hand, and its
handshake is a task of its own:

    accepted -> handshake under way -> the door's own protocol
                     |-- too long, garbage, or one too many: closed without an error

At most `handshakes_max` are under way. A handshake beyond that number ends the oldest handshake of the origin that has
the most. So many handshakes from one address harm that address alone, and a client that completes its handshake at once
gets in beside them.

This module never reads the bytes of a client, and decides nothing about roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final

from billing.api.origins import origin_of_peer

HANDSHAKE_S: Final = 5.0
HANDSHAKES_MAX: Final = 64

log = logging.getLogger("billing.api")


class TlsEntrance:
    """The handshakes under way in one process; made inside a running loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        turned_away: Callable[[str], object],
        handshakes_max: int = HANDSHAKES_MAX,
        handshake_s: float = HANDSHAKE_S,
    ) -> None:
        """`turned_away` is called with the origin of each handshake that is ended to make room."""
        self.handshake_s = handshake_s
        self._context = context
        self._handshakes_max = handshakes_max
        self._turned_away = turned_away
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[asyncio.Task[None], tuple[str, socket.socket]] = {}  # -> origin, socket; oldest first

    @property
    def has_room(self) -> bool:
        """Always True: a new handshake may end another one."""
        return True

    @property
    def under_way(self) -> int:
        """The number of handshakes that are not over."""
        return len(self._under_way)

    def take_context(self, context: ssl.SSLContext) -> None:
        """Uses another certificate and other authorities from the next connection on."""
        self._context = context

    def begin(self, connection: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Begins the handshake of a connection that was just accepted."""
        connection.setblocking(False)
        task = self._loop.create_task(self._shake_hands(connection, protocol))
        self._under_way[task] = origin_of_peer(connection.getpeername()), connection
        task.add_done_callback(self._on_done)
        if len(self._under_way) > self._handshakes_max:
            self._make_room()

    async def _shake_hands(self, connection: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        with contextlib.suppress(OSError):  # ssl.SSLError is one; the other cause is a client that has gone
            await self._loop.connect_accepted_socket(
                protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self.handshake_s,
                ssl_shutdown_timeout=self.handshake_s,
            )
            return
        connection.close()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a new connection met a bug", exc_info=error)

    def _make_room(self) -> None:
        crowds = Counter(origin for origin, _ in self._under_way.values())
        largest = max(crowds.values())
        oldest = next(task for task, (origin, _) in self._under_way.items() if crowds[origin] == largest)
        origin, connection = self._under_way.pop(oldest)
        self._turned_away(origin)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # the handshake fails then, and its task closes the connection

    def close(self) -> None:
        """Ends all handshakes."""
        for task in list(self._under_way):
            task.cancel()
