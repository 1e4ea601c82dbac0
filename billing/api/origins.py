"""Who is at the other end of a connection, as far as the kernel knows, and how many connections each of them has.

An **origin** is what connections are counted by: the user of a process over the unix socket (`uid 1000`), the address
over TCP (`192.0.2.7`); of IPv6 the /64, since whoever has one of its addresses has all of them. `Origins` counts, and
tells of connections that were turned away: at once, but no oftener than once a minute, with how many there were since.

It decides nothing and refuses nobody.
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
    """Lets something be told at once, and then at most once in `TELL_INTERVAL_NS`."""

    __slots__ = ("_told_ns", "count")

    def __init__(self) -> None:
        self.count = 0  # what has happened since it was told
        self._told_ns = -TELL_INTERVAL_NS

    def due(self, now_ns: int) -> int:
        """How often it has happened, where that is to be told now; else 0."""
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
        """One more from there; how many there are now."""
        count = self._counts.get(origin, 0) + 1
        self._counts[origin] = count
        return count

    def leave(self, origin: str) -> None:
        """One less from there."""
        count = self._counts[origin] - 1
        if count:
            self._counts[origin] = count
        else:
            del self._counts[origin]

    def turned_away(self, origin: str, why: str, now_ns: int) -> None:
        """A connection was closed because there are too many."""
        self._turned_away.count += 1
        self._latest = (origin, why)
        self.tell(now_ns)

    def tell(self, now_ns: int) -> None:
        """Tells what is to be told."""
        count = self._turned_away.due(now_ns)
        if count:
            log.warning("connections turned away: %d, the last one from %s: %s", count, *self._latest)


def origin_of(transport: BaseTransport) -> str:
    """What a connection is counted by."""
    if is_unix(transport):
        return f"uid {peer_uid(transport)}"
    return origin_of_peer(transport.get_extra_info("peername"))


def origin_of_peer(peer: object) -> str:
    """The same, of a TCP connection that has no transport yet; `peer`: as its socket names it."""
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
    """The address in a socket's name for its peer; an IPv4 address that came as an IPv6 one is IPv4."""
    if not isinstance(peer, tuple) or not peer:
        return None
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
