"""The operating system as the daemon's processes use it, beside the sockets of the event loop.

It is passed in as one value, `Host`. A simulation passes clocks of its own, a forgetful disk, and processes that end at
any step. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

from shards.exits import OF_THE_PLACE
from shards.system.clock import MACHINE_CLOCKS, Alarm, Clocks
from shards.system.disk import Disk, RealDisk
from shards.system.links import SocketDirectory
from shards.system.serial_executor import SerialExecutor

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb"
SEND_BUFFER_BYTES = 64 * 1024  # of payload; the kernel doubles it for its own needs
# Connections that the kernel holds until they are accepted. A restart brings all clients back at once; a client that
# does not fit retries after 1, 3 and 7 s. `create_server` has to be given this too, or it sets its own default (100).
BACKLOG = 4096


class Child(Protocol):
    """A process that this one has started."""

    @property
    def pid(self) -> int:
        """Its process id, for people."""

    async def wait(self) -> int:
        """Waits until the process has ended and returns its exit code; negative where a signal ended it."""

    def terminate(self) -> None:
        """Asks the process to end in its own time; one that does not handle the signal yet ends at once. Raises
        ProcessLookupError where it is gone.
        """

    def kill(self) -> None:
        """Ends the process at once."""


class SharedSocket(socket.socket):
    """A socket that another process holds as well and goes on using when this one has ended, so nobody may shut it
    down.
    """


Spawn = Callable[[list[str], list[socket.socket]], Awaitable[tuple[Child, socket.socket]]]


class Host(NamedTuple):
    """The operating system as one process uses it."""

    clocks: Clocks
    disk: Disk
    executor: Callable[[str, asyncio.AbstractEventLoop], SerialExecutor]
    alarm: Callable[[], Alarm]
    sockets: Callable[[str], SocketDirectory]
    spawn: Spawn
    exit: Callable[[int], NoReturn]
    inherited: Callable[[int], socket.socket]  # the socket of a descriptor that a started process has inherited
    pid: Callable[[], int]
    randbits: Callable[[int], int]  # an integer of this many random bits
    bind: Callable[[str, int, int], socket.socket]  # as `bind_tcp`


def in_foreground() -> bool:
    """Returns whether the keys of a terminal, on one of descriptors 0 to 2, send signals to this process. Where they do
    not, as under systemd, children stay in its session: the kernel weighs processes of one session by their niceness,
    and sessions alike.
    """
    for descriptor in range(3):
        with contextlib.suppress(OSError):  # it is closed, or no terminal of this session
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                return True
    return False


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a child, where this process has `environ`: the same, with a setting (GLIBC_TUNABLES)
    by which its C library asks for pages of 2 MiB, unless whoever started this process has set that already.

    Accounts are looked up at random, in rows and indexes that malloc hands out. With a million of them and pages of 4
    KiB, each look-up misses the processor's cache of page addresses (TLB) several times. The kernel gives such pages
    where /sys/kernel/mm/transparent_hugepage/enabled says `madvise`, as most distributions set it; with `always`
    nothing changes, and other C libraries ignore the setting.
    """
    tunables = environ.get(TUNABLES, "")
    if HUGE_PAGES in tunables:
        return dict(environ)
    return {**environ, TUNABLES: ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))}


async def spawn(command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
    """Starts `command`, to which it adds the number of the child's end of a control socket. Returns the child and the
    other end.

    The child inherits that end and the sockets of `inherited`, nothing else. Where a terminal's ^C reaches this
    process, it does not reach the child, which is told over its socket: an interpreter that is loading would print a
    trace. Raises OSError where the process cannot be started.
    """
    parent_end, child_end = socket.socketpair()
    parent_end.setblocking(False)
    with child_end:
        descriptors = [child_end.fileno(), *(inherited_socket.fileno() for inherited_socket in inherited)]
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                str(child_end.fileno()),
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(os.environ),
                start_new_session=in_foreground(),
            )
        except OSError as error:
            parent_end.close()
            if error.filename is None and error.errno in OF_THE_PLACE:
                error.filename = command[0]  # asyncio does not say it
            raise
    return child, parent_end


def inherited(descriptor: int) -> socket.socket:
    """Returns the socket of an inherited descriptor, and keeps it from children of this process, which may
    outlive it.
    """
    inherited_socket = socket.socket(fileno=descriptor)
    inherited_socket.set_inheritable(False)
    return inherited_socket


def bound_peers(listener: socket.socket) -> None:
    """Sets what connections of this TCP listener inherit.

    A peer that is gone without a word is noticed: it is probed after 30 s of silence, every 10 s, and given up after 30
    s without an acknowledgement. It is not given up sooner, since it is for the door to drop a peer that takes nothing
    for so long. The kernel also keeps little for a peer that does not read: by itself it takes megabytes, and all the
    work for these is done before anybody else has a turn.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Returns family and address to listen on; of a name with both families the IPv4 one. Raises OSError."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def bind_tcp(host: str, port: int, backlog: int) -> socket.socket:
    """Returns a TCP socket of the family of the host's address; a name with both families is bound as IPv4. Port 0
    takes a free one. The socket listens; where `backlog` is 0, it refuses connections until somebody listens on it.
    Raises OSError.
    """
    family, address = resolved(host, port)
    if backlog:
        return socket.create_server(address, family=family, backlog=backlog)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def listen_on(host: str) -> socket.socket:
    """Returns a listening socket on a port that the kernel chooses. Raises OSError."""
    listener = bind_tcp(host, 0, 1024)
    listener.setblocking(False)
    bound_peers(listener)
    return listener


def split_address(text: str) -> tuple[str, int]:
    """Returns host and port of `host:port` or `[v6]:port`. Raises ValueError where `text` is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"expected host:port, got {text}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_of(listener: socket.socket) -> str:
    """Returns the address at which a TCP socket listens, as `host:port` or `[v6]:port`."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


REAL = Host(
    MACHINE_CLOCKS,
    RealDisk(),
    SerialExecutor,
    Alarm,
    SocketDirectory,
    spawn,
    os._exit,
    inherited,
    os.getpid,
    secrets.randbits,
    bind_tcp,
)
