"""Two hosts that serve at once over one log, each some of the shards: who has which, and what each says of itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path

from billing.config.load import load, log_of
from shards.journal import backends
from shards.supervisor.registry import shares_of
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.daemon import Daemon
from tests.system.log_hosts import WAIT_S, Caller, daemon_on, ready_page
from tests.system.private_files import private_file


async def two_hosts(servers: NatsCluster, directory: Path, shards: int, **keys: object) -> list[Daemon]:
    """Hosts that know the secret of their links; nothing runs yet."""
    shared: dict[str, object] = {
        "cluster__shards": shards,
        "shards__workers": shards,
        "cluster__listen": "127.0.0.1:0",
        "cluster__secret_file": private_file(directory / "secret", "of the links\n"),
    }
    daemons = [daemon_on(servers, directory / name, cluster__node=name, **shared, **keys) for name in ("a", "b")]
    servers.make_all(shards)
    return daemons


async def both_serve(hosts: list[Daemon]) -> None:
    """Starts both; returns when each serves one of two shards."""
    for host in hosts:
        host.launch()
    await wait_owners(hosts[0], "a", "b")
    for host in hosts:
        await wait_page(host, 200, "ready")


async def owners(host: Daemon, shards: int) -> list[str | None]:
    """The host of each shard, by the map's log, which is asked without a process of its own: this is asked often."""

    def read() -> list[bytes]:
        settings = log_of(load(host.config, {}).config) | {"directory": ""}
        log = backends.open(settings, REAL).map_log(lambda: 0)
        with closing(log):
            return log.load("test")[1]

    owns = shares_of(await asyncio.to_thread(read)).owns
    return [owns[shard].node or None if shard in owns else None for shard in range(1, shards + 1)]


async def wait_owners(host: Daemon, *owners_awaited: str) -> None:
    """Returns when the shards' hosts are these, in any order."""
    deadline = time.monotonic() + WAIT_S
    while (owners_now := await owners(host, len(owners_awaited))) != list(owners_awaited) and sorted(
        map(str, owners_now)
    ) != sorted(owners_awaited):
        assert time.monotonic() < deadline, f"{owners_now}\n{host.log.read_text()}"
        await asyncio.sleep(0.2)


async def wait_page(host: Daemon, status: int, text: str) -> None:
    """Returns when /readyz says so."""
    deadline = time.monotonic() + WAIT_S
    while (page := await asyncio.to_thread(ready_page, host))[0] != status or text not in page[1]:
        assert time.monotonic() < deadline, f"{page}\n{host.log.read_text()}"
        await asyncio.sleep(0.1)


async def at_every_door(caller: Caller, *hosts: Daemon) -> None:
    """Changes and reads of all users, wherever they are asked for."""
    for host in hosts:
        caller.port, caller._rpc = host.rpc_port, None
        await caller.round()
        await caller.check()
