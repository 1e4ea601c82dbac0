"""Accepting connections by hand.

    listening socket -> accepted, at most `ACCEPTS_AT_ONCE` under way -> entrance -> the door's own protocol

A server of asyncio on uvloop accepts one connection a turn of the loop. So a crowd that comes back beside a load, whose
turns take milliseconds, would wait for as many turns as it has members. Here a turn accepts several, and few enough to
hold up nobody who is in. Until it has its protocol, some turns later, a connection is counted nowhere but here: no more
are under way over all sockets of an entrance, and `connection_limits` leaves room for them. Where none can be accepted
(there are no descriptors), the listener rests for `REST_S`.

The entrance decides what becomes of an accepted connection: it speaks plainly (`PlainEntrance`), or shakes hands first
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
    """What a listener needs of it."""

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be accepted now."""

    def begin(self, connection: socket.socket, protocol: Factory) -> None:
        """Takes a connection that was just accepted. OSError where it has gone already."""


class PlainEntrance:
    """Connections without TLS."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be accepted now."""
        return len(self._under_way) < ACCEPTS_AT_ONCE

    async def settle(self) -> None:
        """Returns when each connection that was accepted has come to its protocol."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def begin(self, connection: socket.socket, protocol: Factory) -> None:
        """Gives it to a protocol at once."""
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection, protocol))
        self._under_way.add(task)
        task.add_done_callback(self._on_done)

    async def _connect(self, connection: socket.socket, protocol: Factory) -> None:
        try:
            await self._loop.connect_accepted_socket(protocol, connection)
        except OSError:  # whoever went away
            connection.close()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a new connection met a bug", exc_info=error)

    def close(self) -> None:
        """Ends what has not come to its protocol."""
        for task in list(self._under_way):
            task.cancel()


class Listener:
    """One listening socket, closed with this; bound, and it need not listen yet."""

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
                return  # it is readable still, and looked at in the next turn
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process has taken it, or it has gone
            except OSError as error:
                log.error("no connection can be accepted for %g s: %s", REST_S, error.strerror)
                self._loop.remove_reader(self._listener)
                self._rest = self._loop.call_later(REST_S, self._go_on)
                return
            try:
                self._entrance.begin(connection, self._protocol)
            except OSError:  # it has gone already: nobody to count it for
                connection.close()

    def close(self) -> None:
        """No new connections; those that there are stay."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
