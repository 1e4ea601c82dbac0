"""Daemons whose log is on nats-servers, commands with their configuration, and somebody who calls them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.commands import carried_out_beside
from tests.system.daemon import Daemon
from tests.system.rpc import ConnectionLost, Rpc

USERS = [f"user-{number}" for number in range(24)]
SHARDS = 2  # of a daemon that is not told otherwise
WAIT_S = 120.0


def daemon_on(servers: NatsCluster, directory: Path, **settings: object) -> Daemon:
    directory.mkdir(exist_ok=True)
    keys: dict[str, object] = {
        "journal.kind": "jetstream",
        "cluster.servers": servers.urls,
        "cluster.shards": SHARDS,
        "shards.workers": SHARDS,
        "shards.bucket_count": 32,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return Daemon(directory, **keys)


def billing(daemon: Daemon, *arguments: str) -> tuple[int, str]:
    """(exit code, all that it said) of a command with this daemon's configuration; a daemon is a process of its own."""
    words = (*arguments, "--config", str(daemon.config))
    if arguments[0] != "serve":
        return run(*words)
    command = [sys.executable, "-m", "billing", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return result.returncode, result.stdout + result.stderr


def run(*arguments: object) -> tuple[int, str]:
    """(exit code, all that it said) of a command that asks a daemon."""
    result = carried_out_beside(*arguments)
    return result.returncode, result.stdout + result.stderr


def ready_page(host: Daemon) -> tuple[int, str]:
    """Status and text of /readyz; (0, "") where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{host.admin_port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_said(host: Daemon, words: str) -> None:
    """Returns when the host's own log has these words."""
    deadline = time.monotonic() + WAIT_S
    while words not in (text := host.log.read_text()):
        assert time.monotonic() < deadline, f"{words}:\n{text}"
        time.sleep(0.05)


class Caller:
    """Tops users up, each time with a request id, and calls again with the same one until it is answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.balances = dict.fromkeys(USERS, 0)
        self.answers = 0
        self.last_at_ns = 0  # of the last answer to a change
        self.refusals = 0
        self._rpc: Rpc | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: str, *params: Any) -> Any:
        """The result; what was refused or lost is asked again."""
        while True:
            try:
                rpc = await self._connected()
                error, result = await asyncio.wait_for(rpc.call(method, *params), 60)
            except (ConnectionLost, OSError, TimeoutError):
                self._rpc = None
            else:
                if error is None:
                    return result
                assert error.startswith("UNAVAILABLE"), error
            self.refusals += 1
            await asyncio.sleep(0.2)

    async def _connected(self) -> Rpc:
        """The connection that all calls share."""
        async with self._connecting:
            if self._rpc is None:
                self._rpc = await Rpc.connect(self.port)
            return self._rpc

    async def round(self) -> None:
        """Tops every user up, all at once."""
        await asyncio.gather(*map(self._top_up, USERS))

    async def _top_up(self, user: str) -> None:
        self.answers += 1
        amount, options = 1000 + self.answers, {"request_id": f"r{self.answers}"}
        reply = await self.call("top_up", user, amount, options)
        self.balances[user] += amount
        self.last_at_ns = max(self.last_at_ns, reply["at_ns"])
        assert reply["balance_nanos"] == self.balances[user], (user, reply, self.balances[user])

    async def check(self) -> None:
        """Asks for every balance, and for every history, all at once."""
        await asyncio.gather(*map(self._check, USERS))

    async def _check(self, user: str) -> None:
        reply = await self.call("get_account", user)
        assert reply["balance_nanos"] == self.balances[user], (user, reply, self.balances[user])
        rows = await self.call("history", user, {"limit": 1000})
        told = sum(row["amount_nanos"] for row in rows if row["operation"] == "top_up")
        assert told == self.balances[user], (user, told, self.balances[user])
