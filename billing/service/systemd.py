"""systemd's protocols: reports the state of this process to systemd, and takes the sockets that systemd hands over.

`ServiceManager` speaks the protocol of sd_notify(3): datagrams of `NAME=value` lines to the unix socket in
`NOTIFY_SOCKET`. `handed_over` takes the sockets of sd_listen_fds(3): descriptors from 3 on, `LISTEN_FDS` of them, meant
for the process `LISTEN_PID`, named by `LISTEN_FDNAMES`. Both do nothing if these variables are not set. Both remove the
variables from the environment, so that no child process takes them for its own.

The project has its own module because the protocols are so short; the libraries for them are unmaintained or wrap
libsystemd, which may not be installed. A manager that does not listen never raises: the daemon goes on serving.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from billing.config.load import ConfigError, Fault
from shards.system.host import SharedSocket

FIRST_DESCRIPTOR: Final = 3
DESCRIPTORS_MAX: Final = 16


class ServiceManager:
    """Tells the service manager how this process is doing."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        watchdog = environ.pop("WATCHDOG_USEC", "")
        meant = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        self._status, self._ready = "", False
        self.is_stopping = False  # the orderly end has begun; nothing is ready or reloading after it
        self.watchdog_ns = int(watchdog) * 1000 if meant and watchdog.isdigit() else 0  # 0: this process has none
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def listening(self) -> bool:
        """Whether this process has a service manager to report to."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Reports that the daemon is ready: every bucket is served, or this host stands by."""
        if self.is_stopping:
            return
        self._status, self._ready = status, True
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Sends one line for `systemctl status`, if it has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={_line(status)}")

    def extend(self, seconds: int) -> None:
        """Asks for that many more seconds from now for the start."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")

    def reloading(self) -> None:
        """Reports that a reload begins; `reloaded` reports its end."""
        self._send("RELOADING=1")

    def reloaded(self) -> None:
        """Reports that the reload is over. Sends nothing before the first `ready`, for which READY=1 would count, nor
        after `stopping`.
        """
        if self._ready and not self.is_stopping:
            self._send("READY=1")

    def stopping(self, status: str) -> None:
        """Reports that the orderly end begins."""
        self._status, self.is_stopping = status, True
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Feeds the watchdog."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Closes the socket; later reports are dropped."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return  # nobody listens, or the manager's queue is full: the next report may get through


def handed_over(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The listening sockets that the service manager opened for this process, each with its name ("" for none). Raises
    ConfigError where there are more than `DESCRIPTORS_MAX`, or a descriptor is no socket: clients of one that was
    overlooked would wait for ever.
    """
    count = environ.pop("LISTEN_FDS", "")
    meant = environ.pop("LISTEN_PID", "") == str(os.getpid())
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not meant or not count.isdigit():
        return []
    if int(count) > DESCRIPTORS_MAX:
        raise ConfigError(
            [Fault("LISTEN_FDS", "environment", f"expected {DESCRIPTORS_MAX} sockets at most, got {count}")]
        )
    handed: list[tuple[str, socket.socket]] = []
    faults: list[Fault] = []
    for index in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + index
        try:
            listener = SharedSocket(fileno=descriptor)
        except OSError as error:
            text = f"expected a socket as descriptor {descriptor}: {error.strerror}"
            faults.append(Fault("LISTEN_FDS", "environment", text))
            continue
        listener.set_inheritable(False)
        listener.setblocking(False)
        handed.append((names[index] if index < len(names) else "", listener))
    if faults:
        raise ConfigError(faults)
    return handed


def _line(text: str) -> str:
    return " ".join(text.split())
