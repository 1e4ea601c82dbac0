"""The sockets that clients and operators connect to: bound here, or handed over by the service manager.

They are bound before anything starts, so that an address in use is told at once, and by the main process, so that a
restarted worker finds its clients still queueing. Where several hosts share the log, clients are refused instead until
this host serves, so that they go to the one that does; only operators are listened to.

A socket that was handed over (`systemd.handed_over`) takes the place of the one that its name stands for: `rpc`,
`http`, `tarantool`, `admin` or `unix`. Without such a name, a unix socket is `unix`, one on the port of `admin.listen`,
`http.listen` or `tarantool.listen` is that, and any other is `rpc`. The rule of the configuration holds for those, too:
beyond loopback only with tokens or client certificates.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from typing import Final, NamedTuple

from billing.addresses import parse_listen
from billing.config.doors import ADMIN, DOORS, RPC, listens_of
from billing.config.load import ConfigError, Fault
from billing.config.schema import Config
from shards.system.host import BACKLOG, bind_tcp, bound_peers

UNIX: Final = "unix"
KEYS: Final = {
    UNIX: "rpc.unix_socket",
    **{section: f"{section}.listen" for section in (*(door.section for door in DOORS), ADMIN)},
}
# What workers know a listener of this role by.
KINDS: Final = {UNIX: "unix", **{door.section: door.kind for door in DOORS}}

Listeners = list[tuple[str, socket.socket]]  # (kind, socket); see billing.api.opening


class Bound(NamedTuple):
    """The sockets of a daemon."""

    listeners: Listeners  # that clients of any worker connect to
    admin: socket.socket | None
    socket_files: list[tuple[str, int]]  # path and inode of each unix socket that `take_away` is to remove at the end


def bind(config: Config, handed: list[tuple[str, socket.socket]]) -> Bound:
    """Every socket, bound. Raises ConfigError."""
    listeners: Listeners = []
    socket_files: list[tuple[str, int]] = []
    admin = None
    faults = []
    is_shared = config.journal.is_shared
    taken_roles = set()
    for name, handed_socket in handed:
        role = role_of(name, handed_socket, config)
        taken_roles.add(role)
        fault = _fault(role, handed_socket, config)
        if fault:
            faults.append(Fault(KEYS[role], "handed over", fault))
        elif role == ADMIN:
            admin = handed_socket
        else:
            listeners.append((KINDS[role], handed_socket))
    for role, listen in listens_of(config).items():
        if not listen or role in taken_roles:
            continue
        try:
            bound = _bind_tcp(listen, 0 if role != ADMIN and is_shared else BACKLOG)
        except (OSError, UnicodeError) as error:
            faults.append(Fault(KEYS[role], "", f"{listen} cannot be listened on: {reason_of(error)}"))
            continue
        if role == ADMIN:
            admin = bound
        else:
            listeners.append((KINDS[role], bound))
    if config.rpc.unix_socket and UNIX not in taken_roles:
        try:
            listeners.append(("unix", _bind_unix(config.rpc.unix_socket, 0 if is_shared else BACKLOG)))
            socket_files.append((config.rpc.unix_socket, os.stat(config.rpc.unix_socket).st_ino))
        except OSError as error:
            text = f"{config.rpc.unix_socket} cannot be listened on: {reason_of(error)}"
            faults.append(Fault("rpc.unix_socket", "", text))
    if faults:
        take_away(socket_files)
        raise ConfigError(faults)
    for kind, listener in listeners:
        listener.setblocking(False)
        if kind != KINDS[UNIX]:
            bound_peers(listener)
    return Bound(listeners, admin, socket_files)


def take_away(socket_files: list[tuple[str, int]]) -> None:
    """Removes the files of unix sockets, unless another process has put its own there meanwhile."""
    for path, inode in socket_files:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                os.unlink(path)


def reason_of(error: OSError | UnicodeError) -> str:
    """Why an address cannot be listened on, in the system's words and without the address once more."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error.strerror or error) if isinstance(error, OSError) else "this is no name of a host"
    return os.strerror(error.errno)


def is_loopback(bound: socket.socket) -> bool:
    """Whether a TCP socket is bound to an address that only this host reaches."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def role_of(name: str, handed: socket.socket, config: Config) -> str:
    """What a socket that was handed over is for."""
    if name in KEYS:
        return name
    if handed.family == socket.AF_UNIX:
        return UNIX
    port = handed.getsockname()[1]
    ports = {role: parse_listen(listen).port for role, listen in listens_of(config).items() if listen}
    return next((role for role in reversed(ports) if ports[role] == port), RPC.section)


def _fault(role: str, handed: socket.socket, config: Config) -> str:
    """Why a socket that was handed over cannot be used; empty where it can."""
    if handed.type != socket.SOCK_STREAM or not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "expected a listening stream socket (ListenStream=, Accept=no)"
    if (handed.family == socket.AF_UNIX) != (role == UNIX):
        return f"expected a {'unix' if role == UNIX else 'TCP'} socket under this name"
    if role == UNIX or config.rpc.tokens_file or config.rpc.tls_client_ca:
        return ""
    if is_loopback(handed):
        return ""
    return f"expected rpc.tokens_file or rpc.tls_client_ca, since {handed.getsockname()[0]} is not loopback"


def _bind_tcp(text: str, backlog: int) -> socket.socket:
    address = parse_listen(text)
    return bind_tcp(address.host, address.port, backlog)


def _bind_unix(path: str, backlog: int) -> socket.socket:
    """A unix socket, 0660, that listens unless `backlog` is 0. What another daemon still listens on is left alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileExistsError(0, f"{path} is there and is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise FileExistsError(0, "another process listens on it")
            os.unlink(path)
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        if backlog:
            listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
