"""What the daemon's processes have of the operating system, beside the sockets of the event loop.

It is passed in as one value. A simulation passes clocks of its own, a forgetful disk, and processes that end at any
step. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, NoReturn, Protocol

from shards.system.clock import MACHINE_CLOCKS, Alarm, Clocks
from shards.system.disk import Disk, RealDisk
from shards.system.links import SocketDirectory
from shards.system.serial_executor import SerialExecutor

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb"
SEND_BUFFER_BYTES = 64 * 1024  # of payload; the kernel doubles it for its own needs
# Connections that the kernel holds until they are accepted. A restart brings all clients back at once; who does not fit
# asks again after 1, 3 and 7 s. `create_server` has to be given it too: it sets a number of its own (100).
BACKLOG = 4096


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number, for people."""

    async def wait(self) -> int:
        """Returns its exit code once it has ended; negative where a signal ended it."""

    def terminate(self) -> None:
        """Asks it to end in its own time; one that does not listen yet ends at once. ProcessLookupError: it is gone."""

    def kill(self) -> None:
        """Ends it at once."""


class SharedSocket(socket.socket):
    """A socket that another process holds as well, and goes on with when this one has ended: it is not shut down."""


Spawn = Callable[[list[str], list[socket.socket]], Awaitable[tuple[Child, socket.socket]]]


class Host(NamedTuple):
    """One process's way to the operating system."""

    clocks: Clocks
    disk: Disk
    executor: Callable[[str, asyncio.AbstractEventLoop], SerialExecutor]
    alarm: Callable[[], Alarm]
    sockets: Callable[[str], SocketDirectory]
    spawn: Spawn
    exit: Callable[[int], NoReturn]
    inherited: Callable[[int], socket.socket]  # the socket that a number stands for in a started process
    pid: Callable[[], int]
    randbits: Callable[[int], int]  # so many random bits
    bind: Callable[[str, int, int], socket.socket]  # as `bind_tcp`


def in_foreground() -> bool:
    """Whether the keys of a terminal, on one of descriptors 0 to 2, send signals to this process. Elsewhere, as under
    systemd, children stay in its session: the kernel weighs processes of one session by their niceness, and sessions
    alike.
    """
    for descriptor in range(3):
        with contextlib.suppress(OSError):  # it is closed, or no terminal of this session
            if os.tcgetpgrp(descriptor) == os.getpgrp():
                return True
    return False


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a child's environment is, where this process has `environ`: the same, and its C library asks for pages of
    2 MiB (mallopt, GLIBC_TUNABLES), unless whoever started this process decides that.

    Accounts are looked up at random, in rows and indexes that malloc hands out: with a million of them each look-up
    misses the processor's cache of page addresses several times, with pages of 4 KiB. The kernel gives what is asked
    for where /sys/kernel/mm/transparent_hugepage/enabled says `madvise`, as most distributions set it; with `always`
    nothing changes, and other C libraries do not look.
    """
    tunables = environ.get(TUNABLES, "")
    if HUGE_PAGES in tunables:
        return dict(environ)
    return {**environ, TUNABLES: ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))}


async def spawn(command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
    """Starts a process: `command`, and the number of its end of a control socket, whose other end is returned. It
    inherits that and the sockets named, nothing else. Where a terminal's ^C reaches this process, it does not reach the
    child, which is told over its socket: an interpreter that is being loaded would print a trace. OSError: it cannot be
    started.
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
        except OSError:
            parent_end.close()
            raise
    return child, parent_end


def inherited(descriptor: int) -> socket.socket:
    """The socket of an inherited descriptor, which a child that outlives this process must not hold on to."""
    inherited_socket = socket.socket(fileno=descriptor)
    inherited_socket.set_inheritable(False)
    return inherited_socket


def bound_peers(listener: socket.socket) -> None:
    """What connections of this TCP listener inherit. A peer who is gone without a word is noticed: probed after 30 s of
    silence, every 10 s, and given up after 30 s without an acknowledgement. Not sooner, since a peer that takes nothing
    for so long is the door's to drop. And the kernel keeps little for a peer that does not read: left alone, it takes
    megabytes, and all of that is worked for before anybody else has a turn.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def bind_tcp(host: str, port: int, backlog: int) -> socket.socket:
    """A TCP socket of the family that the host's address has; a name with both is bound as IPv4. Port 0 takes a free
    one. It listens, or where `backlog` is 0 refuses connections until somebody listens on it. OSError.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
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
    """A listening socket on a port that the kernel chooses. OSError."""
    listener = bind_tcp(host, 0, 1024)
    listener.setblocking(False)
    bound_peers(listener)
    return listener


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. ValueError where it is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"expected host:port, got {text}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_of(listener: socket.socket) -> str:
    """Where a TCP socket listens, as `host:port` or `[v6]:port`."""
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
