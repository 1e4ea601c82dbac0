"""The lines that the daemon logs about itself when it starts: version, process, files, doors, and the URLs it calls.

By these three lines an operator, in a terminal or in the journal, recognizes the daemon and finds its doors. Secrets in
the query of a URL are left out.
"""

from __future__ import annotations

import socket
from pathlib import Path

from billing import __version__
from billing.addresses import shown_url
from billing.config.doors import door_of
from billing.config.schema import Config
from shards.system.host import address_of


def introduction(file: Path | None, config: Config, pid: int) -> str:
    """The line about the process: version, process id, configuration file, data directory."""
    named = "the default configuration" if file is None else f"configuration {file.absolute()}"
    return f"billing {__version__}, process {pid}, {named}, data directory {config.daemon.data_dir}"


def doors_of(listeners: list[tuple[str, socket.socket]], admin: socket.socket | None, has_tls: bool) -> str:
    """The line about the addresses on which the daemon listens. `has_tls`: whether the dashboard speaks TLS."""
    doors = [f"{door_of(kind).protocol} at {_shown(listener)}" for kind, listener in listeners]
    if admin is not None:
        doors.append(f"dashboard http{'s' if has_tls else ''}://{_shown(admin)}/")
    return f"listening: {', '.join(doors)}"


def calls_of(config: Config) -> str:
    """The line about the URLs that the daemon calls."""
    calls = [f"cutoffs go to {shown_url(config.cutoff.url)}"]
    if config.cutoff.restore_url:
        calls.append(f"restores to {shown_url(config.cutoff.restore_url)}")
    if config.notify.url:
        calls.append(f"notices to {shown_url(config.notify.url)}")
    return ", ".join(calls)


def _shown(listener: socket.socket) -> str:
    return str(listener.getsockname()) if listener.family == socket.AF_UNIX else address_of(listener)
