"""The whole daemon on a log that is no files: nothing above the journal's seam knows what kind of log it has."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shards.journal.memory import MemoryServer
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.rpc import ConnectionLost, Rpc

USERS = [f"user-{number}" for number in range(40)]


class MemoryDaemon(Daemon):
    """Its log lives in the process of the test, on a socket."""

    log_path = ""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.shards.journal.memory_daemon", "serve", str(self.config), self.log_path]


@pytest.fixture
def daemon(data_dir: Path) -> Iterator[Daemon]:
    server = MemoryServer(str(data_dir / "memory.sock"))
    daemon = MemoryDaemon(data_dir, shards__workers=2, shards__bucket_count=32)
    daemon.log_path = str(data_dir / "memory.sock")
    with killed_in_the_end(daemon):
        yield daemon
    server.close()


async def rpc_reply(daemon: Daemon, method: str) -> tuple[Any, Any]:
    """The reply over a connection of its own; where there is none, the error says so."""
    try:
        rpc = await Rpc.connect(daemon.rpc_port)
        return await asyncio.wait_for(rpc.call(method), 60)
    except (ConnectionLost, OSError) as error:
        return str(error), None


async def test_a_daemon_on_another_log_keeps_what_it_answered_over_kills_and_stops(daemon: Daemon) -> None:
    daemon.start()
    balances = dict.fromkeys(USERS, 0)
    for life in range(3):
        rpc = await Rpc.connect(daemon.rpc_port)
        for number, user in enumerate(USERS):
            error, reply = await rpc.call("top_up", user, 1000 + number)
            assert error is None, error
            balances[user] += 1000 + number
            assert reply["balance_nanos"] == balances[user]
        for user in USERS:
            error, reply = await rpc.call("get_account", user)
            assert error is None, error
            assert reply["balance_nanos"] == balances[user]
        if life == 0:
            for pid in daemon.worker_pids():
                daemon.kill(pid)
            while (await rpc_reply(daemon, "ping"))[0] is not None:
                await asyncio.sleep(0.05)
            daemon.wait_ready()
        elif life == 1:
            daemon.kill()
            daemon.start()
    rpc = await Rpc.connect(daemon.rpc_port)
    for user in USERS:
        error, reply = await rpc.call("history", user)
        assert error is None, error
        assert sum(row["amount_nanos"] for row in reply) == balances[user]
    assert daemon.stop() == 0
    assert not [name for name in (daemon.directory / "data").iterdir() if name.name.startswith(("map", "shard"))]
    daemon.start()
    rpc = await Rpc.connect(daemon.rpc_port)
    error, reply = await rpc.call("get_account", USERS[0])
    assert error is None, error
    assert reply["balance_nanos"] == balances[USERS[0]]
