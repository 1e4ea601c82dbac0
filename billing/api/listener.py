"""Accepts connections by hand, and not by a server of asyncio.

    listening socket -> accepted, at most `ACCEPTS_AT_ONCE` under way -> entrance -> the door's own protocol

A server of asyncio on uvloop accepts one connection per turn of the loop. Under load a turn takes milliseconds, and
many clients that reconnect at once would wait one turn each. This listener accepts several connections per turn, but
so few that open connections are not delayed. Some turns pass before an accepted connection has its protocol, and until
then no door counts it: an entrance without TLS has at most `ACCEPTS_AT_ONCE` such connections over all its sockets, and
`connection_limits` reserves descriptors for them. Where no connection can be accepted (there are no descriptors), the
listener pauses for `REST_S`.

The entrance passes an accepted connection to its protocol: without TLS (`PlainEntrance`), or after a TLS handshake
(`billing.api.tls_entrance`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol

from shards.system.host import BACKLOG

ACCEPTS_AT_ONCE: Final = 16
REST_S: Final = 1.0
Factory = Callable[[], asyncio.BaseProtocol]

log = logging.getLogger("billing.api")


class Entrance(Protocol):
    """The part of an entrance that a listener needs."""

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be accepted now."""

    def begin(self, connection: socket.socket, protocol: Factory) -> None:
        """Takes a connection that was just accepted. Raises OSError where the client has gone already."""


class PlainEntrance:
    """Passes connections to their protocol without TLS."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be accepted now."""
        return len(self._under_way) < ACCEPTS_AT_ONCE

    async def settle(self) -> None:
        """Returns when each accepted connection has its protocol."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def begin(self, connection: socket.socket, protocol: Factory) -> None:
        """Begins to connect an accepted socket to its protocol."""
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection, protocol))
        self._under_way.add(task)
        task.add_done_callback(self._on_done)

    async def _connect(self, connection: socket.socket, protocol: Factory) -> None:
        try:
            await self._loop.connect_accepted_socket(protocol, connection)
        except OSError:  # the client has gone
            connection.close()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a new connection met a bug", exc_info=error)

    def close(self) -> None:
        """Cancels the connections that have no protocol yet."""
        for task in list(self._under_way):
            task.cancel()


class Listener:
    """One listening socket, which `close` closes. It has to be bound; the listener itself calls `listen`."""

    def __init__(self, listener: socket.socket, entrance: Entrance, protocol: Factory) -> None:
        self._listener = listener
        self._entrance = entrance
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._go_on()

    def _go_on(self) -> None:
        self._rest = None
        self._loop.add_reader(self._listener, self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if not self._entrance.has_room:
                return  # the socket stays readable, so the next turn comes here again
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process has accepted the connection, or the client has gone
            except OSError as error:
                log.error("no connection can be accepted for %g s: %s", REST_S, error.strerror)
                self._loop.remove_reader(self._listener)
                self._rest = self._loop.call_later(REST_S, self._go_on)
                return
            try:
                self._entrance.begin(connection, self._protocol)
            except OSError:  # the client has gone already
                connection.close()

    def close(self) -> None:
        """Accepts no further connections; accepted ones stay open."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
