"""A daemon for a tool: the real daemon and the real receiver as child processes, on a directory that is removed with
them.

It is for tools that need a daemon to show or to judge something. The daemon runs on the operator's configuration,
except for what a trial must never touch: its data live in a new temporary directory, its cutoffs go to the receiver
started here and nowhere else, and it sends nothing to `cutoff.restore_url` or `notify.url`. If another process has
taken a port, a free one is used, and `notes` says so. Each port is bound only once: this module binds the daemon's
ports and hands the sockets over (`handing_over`); the receiver binds its own port and prints where it listens.

    async with OwnDaemon(config_file, environ) as daemon:
        async with Client(daemon.rpc) as client: ...

Inside the block every bucket is served. Leaving it ends the daemon, then the receiver, then removes the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp

from billing.addresses import parse_listen
from billing.cli.finding import config_file
from billing.config.load import load
from billing.config.schema import Config
from billing.trial.child_processes import Child, ChildError
from billing.trial.handing_over import handed_over_by
from billing.trial.log_servers import make_streams, servers
from shards.system.host import BACKLOG

READY_WAIT_S: Final = 120.0  # long enough for a busy laptop; a child that ends is noticed at once
READY_POLL_S: Final = 0.05
ANY_PORT: Final = "127.0.0.1:0"
BILLING: Final = (sys.executable, "-m", "billing")
LISTENING: Final = "listening on "  # the receiver's first line: this, and its URL

# Keys that a trial never takes from the configuration.
SET_ASIDE: Final = {
    "journal.kind": "file",
    "rpc.unix_socket": "",
    "rpc.tokens_file": "",
    "rpc.tls_cert": "",
    "rpc.tls_key": "",
    "rpc.tls_client_ca": "",
    "cutoff.restore_url": "",
    "cutoff.hold_above": "-1",
    "cutoff.recheck_s": "0",
    "cutoff.after_exhaustion": "clamp",
    "notify.url": "",
}


def default_config_file() -> Path | None:
    """The configuration file that a command uses if none is named; None if there is none."""
    return config_file(None, os.environ)


def answers(address: str) -> bool:
    """Whether a process accepts connections at this address now."""
    host, port = parse_listen(address)
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def receiver_address(config: Config) -> str:
    """`host:port` of `cutoff.url`."""
    parts = urlsplit(config.cutoff.url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


class OwnDaemon:
    """See the module. Inside the block `rpc`, `http`, `admin` and `cutoff` are addresses `host:port`, `config` is the
    daemon's configuration, and `pid` its main process.
    """

    def __init__(
        self,
        file: Path | None,
        environ: Mapping[str, str],
        *,
        parent: Path | None = None,
        receiver_options: Sequence[str] = (),
        free_ports: bool = False,
        log_servers: int = 0,
    ) -> None:
        """`parent`: the directory in which the temporary directory is made; None for the system's default.
        `receiver_options`: options of `billing receiver`. `free_ports`: whether to use free ports instead of the
        configured ones. `log_servers`: the number of nats-servers to start, which then keep the log; 0 for a journal in
        files. Raises ConfigError if the operator's configuration cannot be run.
        """
        wanted = load(file, {**environ, **_as_environment(SET_ASIDE)}).config
        self.notes: list[str] = []
        self.rpc = ANY_PORT if free_ports else wanted.rpc.listen or ANY_PORT
        self.http = ANY_PORT if free_ports else wanted.http.listen or ANY_PORT
        self.admin = ANY_PORT if free_ports else wanted.admin.listen or ANY_PORT
        self.cutoff = ANY_PORT if free_ports else _loopback_of(wanted)
        self._file = file
        self._environ = dict(environ)
        self._parent = parent
        self._receiver_options = list(receiver_options)
        self._log_servers = log_servers
        self._stack = contextlib.AsyncExitStack()
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        """Starts receiver and daemon, and waits until every bucket is served. Raises ChildError."""
        try:
            directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="billing-", dir=self._parent))
            await self._start_receiver()
            wanted = {"rpc": self.rpc, "http": self.http, "admin": self.admin}
            sockets = {role: self._bound(f"{role}.listen", listen) for role, listen in wanted.items()}
            self.rpc, self.http, self.admin = map(_address_of, sockets.values())
            settings = {
                **SET_ASIDE,
                "daemon.data_dir": str(Path(directory) / "data"),
                "rpc.listen": self.rpc,
                "http.listen": self.http,
                "admin.listen": self.admin,
                "cutoff.url": f"http://{self.cutoff}/cutoff?user_id={{user_id}}",
            }
            if self._log_servers:
                settings |= await self._start_log(Path(directory))
            environment = self.environment = {**self._environ, **_as_environment(settings)}
            self.config = load(self._file, environment).config
            if self._log_servers:
                await make_streams(self.config)
            config = ["--config", str(self._file)] if self._file else []
            command = handed_over_by(sockets, [*BILLING, "serve", *config])
            descriptors = [listener.fileno() for listener in sockets.values()]
            daemon = Child("billing serve", command, environment, descriptors=descriptors)
            await self._start(daemon)
            for listener in sockets.values():
                listener.close()
            self.pid = daemon.pid
            await self.ready()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def broken(self) -> ChildError:
        """Waits until one of the processes ends by itself. Returns an error that names it."""
        endings = {asyncio.create_task(child.ended()): child for child in self._children}
        try:
            done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for ending in endings:
                ending.cancel()
        ending = done.pop()
        return endings[ending].complaint(f"ended with exit code {ending.result()}")

    async def _start(self, child: Child) -> None:
        self._stack.push_async_callback(child.end)
        await child.start()
        self._children.append(child)

    async def _start_log(self, directory: Path) -> dict[str, str]:
        """Starts the servers of the log. Returns the settings that make the daemon use them. Raises ChildError."""
        children, urls = servers(directory, self._log_servers, self._environ)
        for child in children:
            await self._start(child)
        return {
            "journal.kind": "jetstream",
            "cluster.servers": " ".join(urls),
            "cluster.shards": "2",
            "shards.workers": "2",
            "cluster.replicas": str(self._log_servers),
            "cluster.credentials_file": "",
        }

    async def _start_receiver(self) -> None:
        """Starts the receiver at its address, or at a free port if that is taken, and reads from its output where it
        listens. Raises ChildError.
        """
        for address in (self.cutoff, ANY_PORT):
            listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def on_line(line: str, listening: asyncio.Future[str] = listening) -> None:
                if line.startswith(LISTENING) and not listening.done():
                    listening.set_result(urlsplit(line.removeprefix(LISTENING)).netloc)

            arguments = [*BILLING, "receiver", "--quiet", "--listen", address, *self._receiver_options]
            child = Child("billing receiver", arguments, self._environ, on_line)
            self._stack.push_async_callback(child.end)
            await child.start()
            ended = asyncio.create_task(child.ended())
            either: set[asyncio.Future[Any]] = {listening, ended}
            await asyncio.wait(either, timeout=READY_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                ended.cancel()
                if address == ANY_PORT != self.cutoff:
                    self.notes.append(f"{self.cutoff} (cutoff.url) is taken: {listening.result()} instead")
                self.cutoff = listening.result()
                self._children.append(child)
                return
            ended.cancel()
        raise child.complaint("does not listen")

    def _bound(self, key: str, wanted: str) -> socket.socket:
        """A listening socket at the wanted address if that is free, else at a free port of the same host. Leaving the
        block closes it.
        """
        host, port = parse_listen(wanted)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError:
            listener = socket.create_server((host, 0), family=family, backlog=BACKLOG)
            self.notes.append(f"{wanted} ({key}) is taken: {_address_of(listener)} instead")
        return self._stack.enter_context(listener)

    async def ready(self) -> None:
        """Waits until the receiver answers and the daemon serves every bucket."""
        pages = [f"http://{self.cutoff}/stats", f"http://{self.admin}/readyz"]
        last_reply = "no answer"
        try:
            async with asyncio.timeout(READY_WAIT_S), aiohttp.ClientSession() as session:
                while pages:
                    for child in self._children:
                        if not child.running:
                            raise child.complaint(f"ended with exit code {await child.ended()}")
                    try:
                        async with session.get(pages[0]) as answer:
                            if answer.status == 200:
                                del pages[0]
                                continue
                            last_reply = await answer.text()
                    except aiohttp.ClientError as error:
                        last_reply = str(error)
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            raise self._children[-1].complaint(
                f"is not ready after {READY_WAIT_S:g} s ({last_reply.strip()})"
            ) from None


def _address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _loopback_of(config: Config) -> str:
    """The address at which the receiver listens: that of `cutoff.url` if it is plain HTTP on loopback, else a free
    port.
    """
    address = receiver_address(config)
    try:
        local = config.cutoff.url.startswith("http://") and parse_listen(address).loopback
    except ValueError:
        local = False
    return address if local else ANY_PORT


def _as_environment(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"BILLING_{key.upper().replace('.', '__')}": value for key, value in settings.items()}
