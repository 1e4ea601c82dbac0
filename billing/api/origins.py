"""The peer of a connection, as the kernel reports it, and how many connections each origin has.

Connections are counted by **origin**: over the unix socket, the user of the peer's process (`uid 1000`); over TCP, its
address (`192.0.2.7`) or, for IPv6, the /64 of its address, because a client with one address of a /64 has all of them.
`Origins` counts connections, and logs how many were turned away: the first at once, later ones at most once a minute.

This module decides nothing and refuses no connection.
"""

import ipaddress
import logging
import os
import socket
import struct
from asyncio import BaseTransport
from typing import Final

log = logging.getLogger("billing.api")

TELL_INTERVAL_NS: Final = 60_000_000_000

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class Rarely:
    """Counts events for the log: the first is due at once, later ones together, at most once in `TELL_INTERVAL_NS`."""

    __slots__ = ("_told_ns", "count")

    def __init__(self) -> None:
        self.count = 0  # events since the last log message
        self._told_ns = -TELL_INTERVAL_NS

    def due(self, now_ns: int) -> int:
        """Returns how many events are to be logged now, and begins to count anew; 0 where none are."""
        if not self.count or now_ns - self._told_ns < TELL_INTERVAL_NS:
            return 0
        count, self.count, self._told_ns = self.count, 0, now_ns
        return count


class Origins:
    """Counts connections by origin."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._turned_away = Rarely()
        self._latest = ("", "")  # the origin turned away last, and why

    def enter(self, origin: str) -> int:
        """Adds a connection of `origin`; returns how many the origin has now."""
        count = self._counts.get(origin, 0) + 1
        self._counts[origin] = count
        return count

    def leave(self, origin: str) -> None:
        """Removes a connection of `origin`."""
        count = self._counts[origin] - 1
        if count:
            self._counts[origin] = count
        else:
            del self._counts[origin]

    def turned_away(self, origin: str, why: str, now_ns: int) -> None:
        """Counts a connection that was closed because there are too many, and logs that where it is due."""
        self._turned_away.count += 1
        self._latest = (origin, why)
        self.tell(now_ns)

    def tell(self, now_ns: int) -> None:
        """Logs how many connections were turned away, where that is due."""
        count = self._turned_away.due(now_ns)
        if count:
            log.warning("connections turned away: %d, the last one from %s: %s", count, *self._latest)


def origin_of(transport: BaseTransport) -> str:
    """Returns the origin by which a connection is counted."""
    if is_unix(transport):
        return f"uid {peer_uid(transport)}"
    return origin_of_peer(transport.get_extra_info("peername"))


def origin_of_peer(peer: object) -> str:
    """Returns the origin of a TCP connection; `peer`: what `getpeername` of its socket returns."""
    address = _address_in(peer)
    if address is None:
        return "an unknown address"
    return str(address) if address.version == 4 else f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"


def is_unix(transport: BaseTransport) -> bool:
    """Whether this is a connection over the unix socket."""
    connected = _socket_of(transport)
    return connected is not None and connected.family == socket.AF_UNIX


def is_loopback(transport: BaseTransport) -> bool:
    """Whether the peer is on this host, by its address."""
    address = _address_of(transport)
    return address is not None and address.is_loopback


def peer_uid(transport: BaseTransport) -> int:
    """The user of the process at the other end of a unix socket; -1 where the kernel does not say."""
    connected = _socket_of(transport)
    if connected is None:
        return -1
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


def is_trusted(uid: int) -> bool:
    """Whether this user needs no token: root, and the daemon's own."""
    return uid in (0, os.geteuid())


def _socket_of(transport: BaseTransport) -> socket.socket | None:
    sock: socket.socket | None = transport.get_extra_info("socket")
    return sock


def _address_of(transport: BaseTransport) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The peer's address."""
    return _address_in(transport.get_extra_info("peername"))


def _address_in(peer: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the IP address in what `getpeername` returns, None without one; an IPv4-mapped IPv6 address as IPv4."""
    if not isinstance(peer, tuple) or not peer:
        return None
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
