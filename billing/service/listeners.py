"""The sockets that clients and operators connect to: bound here, or handed over by the service manager.

The main process binds the sockets before anything starts, so that it reports an address in use at once. The sockets
are the main process's own, so clients still queue on them while a worker restarts. Where several hosts share the log,
this host does not listen for clients until it serves: their connections are refused, and they go to the host that
serves. It listens for operators at once.

A socket that was handed over (`systemd.handed_over`) takes the place of the socket that its name stands for: `rpc`,
`http`, `tarantool`, `admin` or `unix`. A socket without such a name is `unix` if it is a unix socket; `admin`, `http`
or `tarantool` if it is at `admin.listen`, `http.listen` or `tarantool.listen`, or on the port of one and at the address
of none; otherwise `rpc`. There may be several of each but `admin`. As the configuration demands of its own addresses, a
socket beyond loopback needs tokens or client certificates.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from typing import Final, NamedTuple

from billing.addresses import Listen, parse_listen
from billing.config.doors import ADMIN, DOORS, RPC, listens_of
from billing.config.load import ConfigError, Fault
from billing.config.schema import Config
from shards.system.host import BACKLOG, address_of, bind_tcp, bound_peers, resolved

UNIX: Final = "unix"
KEYS: Final = {
    UNIX: "rpc.unix_socket",
    **{section: f"{section}.listen" for section in (*(door.section for door in DOORS), ADMIN)},
}
# Role -> the kind by which workers know a listener of this role.
KINDS: Final = {UNIX: "unix", **{door.section: door.kind for door in DOORS}}

Listeners = list[tuple[str, socket.socket]]  # (kind, socket); see billing.api.opening


class Bound(NamedTuple):
    """The sockets of a daemon."""

    listeners: Listeners  # clients of any worker connect to these
    admin: socket.socket | None
    socket_files: list[tuple[str, int]]  # path and inode of each unix socket that `take_away` is to remove at the end


def bind(config: Config, handed: list[tuple[str, socket.socket]]) -> Bound:
    """Binds every socket of the configuration that was not handed over, and takes those that were (`handed`: name and
    socket). Raises ConfigError with all faults.
    """
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
        elif role == ADMIN and admin is not None:
            faults.append(
                Fault(KEYS[role], "handed over", f"expected one socket, got another at {address_of(handed_socket)}")
            )
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
    """Removes the files of unix sockets. A file that another process has put in the place meanwhile stays."""
    for path, inode in socket_files:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                os.unlink(path)


def reason_of(error: OSError | UnicodeError) -> str:
    """Why the daemon cannot listen on an address: the system's text, without the address, which the caller names."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error.strerror or error) if isinstance(error, OSError) else "this is no name of a host"
    return os.strerror(error.errno)


def is_loopback(bound: socket.socket) -> bool:
    """Whether a TCP socket is bound to an address that only this host reaches."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def role_of(name: str, handed: socket.socket, config: Config) -> str:
    """The role of a socket that was handed over, a key of `KEYS`."""
    if name in KEYS:
        return name
    if handed.family == socket.AF_UNIX:
        return UNIX
    host, port = handed.getsockname()[:2]
    listens = {role: parse_listen(listen) for role, listen in listens_of(config).items() if listen}
    at_port = [role for role in reversed(listens) if listens[role].port == port]
    at_address = [role for role in at_port if _host_of(listens[role]) == host]
    return [*at_address, *at_port, RPC.section][0]


def _host_of(listen: Listen) -> str:
    """The number of the host of an address; "" where its name cannot be resolved now."""
    try:
        return str(resolved(*listen)[1][0])
    except (OSError, UnicodeError):
        return ""


def _fault(role: str, handed: socket.socket, config: Config) -> str:
    """Why a socket that was handed over cannot be used; "" if it can."""
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
    """Binds a unix socket with mode 0660, which listens unless `backlog` is 0. Removes a stale socket file first.
    Raises OSError, for example if another process listens on the path.
    """
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
