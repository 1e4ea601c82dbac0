"""The daemon under load: an own daemon, which the load test starts and removes, or one that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from billing.api.methods import METHODS, allowed
from billing.client.errors import Forbidden
from billing.config.load import as_effective, load
from billing.trial.child_processes import Child
from billing.trial.loadtest.columns import NAMES
from billing.trial.loadtest.signing_in import SignIn
from billing.trial.own_daemon import OwnDaemon, answers, default_config_file, receiver_address

RECEIVER_KEEPS = 2_000_000


class Target(NamedTuple):
    """The daemon under load. `address`, `admin`, `receiver`: where it and its receiver listen; `pid`: its main process,
    None if unknown; `own_daemon`: set if the load test started it, so that chaos may harm it.
    """

    address: str
    admin: str
    receiver: str
    cutoff_url: str
    pid: int | None
    own_daemon: OwnDaemon | None
    configuration: str
    facts: dict[str, Any]
    sign_in: SignIn

    async def ready(self) -> None:
        """Waits until an own daemon serves every bucket again."""
        if self.own_daemon is not None:
            await self.own_daemon.ready()


async def own_target(
    stack: contextlib.AsyncExitStack, file: Path | None, workers: int, sync: str, parent: Path | None
) -> tuple[Target, list[str]]:
    """Starts an own daemon with its receiver, which end when the stack is closed. Returns it, and notes on addresses
    that differ from the configured ones.
    """
    environ = dict(os.environ)
    if workers:
        environ["BILLING_SHARDS__WORKERS"] = str(workers)
    if sync:
        environ["BILLING_JOURNAL__SYNC"] = sync
    file = file or default_config_file()
    keep = ["--keep", str(RECEIVER_KEEPS)]
    daemon = await stack.enter_async_context(
        OwnDaemon(file, environ, parent=parent, receiver_options=keep, free_ports=True)
    )
    facts = await _facts(daemon.rpc, SignIn())
    shown = as_effective(load(file, daemon.environment))
    target = Target(
        daemon.rpc, daemon.admin, daemon.cutoff, daemon.config.cutoff.url, daemon.pid, daemon, shown, facts, SignIn()
    )
    return target, daemon.notes


async def running_target(
    stack: contextlib.AsyncExitStack, address: str, sign_in: SignIn, receiver: str | None, file: Path | None
) -> Target:
    """A daemon that runs already. Its cutoffs are read from `receiver`, by default the address of `cutoff.url`; if no
    process listens there, a receiver is started there, which ends when the stack is closed.
    """
    config = load(file or default_config_file(), os.environ).config
    await _check_may(address, sign_in)
    receiver = receiver or receiver_address(config)
    if not answers(receiver):
        await _start_receiver(stack, receiver, os.environ)
    facts = await _facts(address, sign_in)
    admin = config.admin.listen if config.admin.listen and answers(config.admin.listen) else ""
    return Target(address, admin, receiver, config.cutoff.url, _main_pid(facts), None, "", facts, sign_in)


async def _start_receiver(stack: contextlib.AsyncExitStack, address: str, environ: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "billing", "receiver", "--quiet", "--listen", address]
    child = Child("billing receiver", [*command, "--keep", str(RECEIVER_KEEPS)], environ)
    stack.push_async_callback(child.end)
    await child.start()
    while not answers(address):
        if not child.running:
            raise child.complaint(f"ended with exit code {await child.ended()}")
        await asyncio.sleep(0.05)


async def _check_may(address: str, sign_in: SignIn) -> None:
    """Raises Forbidden if the token's roles do not allow all methods that a load test calls."""
    async with sign_in.client(address) as client:
        roles = frozenset((await client.call("hello", errors="map", token=sign_in.token))["roles"])
    refused = sorted({name for name in NAMES if not allowed(METHODS[name], roles)})
    if refused:
        needed = ", ".join(sorted({METHODS[name].role for name in NAMES}))
        may = ", ".join(sorted(roles))
        raise Forbidden(f"the token's roles are {may}; a load test calls {', '.join(refused)} too, and needs {needed}")


async def _facts(address: str, sign_in: SignIn) -> dict[str, Any]:
    async with sign_in.client(address) as client:
        info = await client.server_info()
        shards = await client.shards_info()
    return {
        "version": info["version"],
        "workers": len(shards),
        "journal_sync": info["journal_sync"],
        "after_exhaustion": info["after_exhaustion"],
        "bucket_count": info["bucket_count"],
        "worker_pids": [row["worker_pid"] for row in shards],
    }


def _main_pid(facts: dict[str, Any]) -> int | None:
    """The process id of the workers' parent; None if the workers are not on this host or cannot be read."""
    with contextlib.suppress(psutil.Error):
        parents = {
            psutil.Process(pid).ppid() for pid in facts["worker_pids"] if "billing" in psutil.Process(pid).cmdline()
        }
        if len(parents) == 1:
            return parents.pop()
    return None
