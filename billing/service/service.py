"""What runs beside the supervisor: the figure sampler, reports to the service manager, and the operators' pages.

The messages to the service manager, made of the sampler's figures:

    READY       once, when every shard has recovered durably and every bucket is served (`/readyz` answers 200, unless a
                disk is full), or when this host stands by because another one serves (`/readyz` answers 503, and which)
    STATUS      what the daemon is doing: "recovering shard 1: 62 %", "serving 2 shards, 1,204 accounts, nothing owed"
    WATCHDOG    while every worker's loop and last sync are fresh; if one worker hangs, no WATCHDOG is sent, and systemd
                ends all processes of the daemon
    EXTEND_…    until READY, so that systemd does not take a long recovery for a failed start. This holds also while a
                shard is held and the others serve: an operator has to mend that, a restart would not
    RELOADING   from SIGHUP until the reload is over
    STOPPING    when the orderly end begins (sent by `billing.service.serve`); STATUS says no more of serving then

**The operators' pages** take more CPU to load than all the rest of the main process. They are loaded when the first
visitor connects, or else `PAGES_AFTER_S` after the start, when the workers no longer need the cores to load. They are
not loaded later than that: an upgrade may replace their files by another version.

This module stops the daemon only on a bug of its own (`Service.run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from billing.admin.figure_sampler import FigureSampler
from billing.admin.recent import Recent
from billing.admin.worker_queries import QueryReplies
from billing.api.tls import server_context
from billing.config.schema import Config
from billing.history.replica_link import BATCHES, ReplicaLink
from billing.service.systemd import ServiceManager
from shards.counting import counted
from shards.exits import Exit
from shards.supervisor.supervisor import Supervisor
from shards.supervisor.unserved import Unserved

if TYPE_CHECKING:
    from billing.admin.server import Site

log = logging.getLogger("billing.service")

LOOK_S: Final = 0.5
EXTEND_S: Final = 60
PAGES_AFTER_S: Final = 10.0
STOPPING: Final = "stopping: what was asked for is answered, and a snapshot is made"


class Service:
    """The parts around a supervisor: the figure sampler, the service manager, HTTP for operators."""

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        notifier: ServiceManager,
        recent: Recent,
        replies: QueryReplies,
        refused_sign_in: Callable[[str], None],
        replica: ReplicaLink | None = None,
    ) -> None:
        """`replies`: the same object whose `on_reply` the supervisor has. `refused_sign_in` is called with the address
        from which an unknown token came. `replica`: given if several hosts share the log.
        """
        self._config = config
        self._replies = replies
        self._refused_sign_in = refused_sign_in
        self._supervisor = supervisor
        self._notifier = notifier
        self._sampler = FigureSampler(supervisor, recent)
        self._site: Site | None = None
        self._replica = replica
        if replica is not None:
            self._sampler.replicas = replica.followed
            replica.ask = supervisor.ask_host
            supervisor.operator_api.extra_operations[BATCHES] = replica.read
            supervisor.operator_api.history_lacks = replica.lacks

    async def run(self, admin: socket.socket | None, *, has_tls: bool) -> None:
        """Runs until cancelled. A bug here stops the daemon, because nothing would watch the daemon any more.
        `has_tls`: whether the pages speak TLS as the RPC door does.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sampler.run())
                tasks.create_task(attend(self._sampler, self._notifier))
                if self._replica is not None:
                    tasks.create_task(keep_followed(self._replica, self._supervisor))
                if admin is not None:
                    await visited(admin, PAGES_AFTER_S)
                    web = await asyncio.to_thread(import_module, "billing.admin.server")
                    self._site = web.Site(self._config, self._sampler, self._replies, self._refused_sign_in)
                    tls = server_context(self._config) if has_tls else None
                    tasks.create_task(web.serve_admin(admin, self._site, tls))
        except Exception:
            log.critical("the daemon ends on a bug", exc_info=True)
            self._supervisor.stop(Exit.BUG)

    async def reloading(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Carries out a reload, and reports its begin and its end to the service manager."""
        self._notifier.reloading()
        try:
            await reload()
        finally:
            self._notifier.reloaded()

    def reloaded(self, config: Config) -> None:
        """Applies a changed configuration to the operators' pages, their tokens and their certificate, and to the
        replica's log level.
        """
        self._config = config
        if self._replica is not None:
            self._replica.tell_log_level()
        if self._site is not None:
            self._site.take_up(config)


async def visited(listener: socket.socket, wait_s: float) -> None:
    """Returns once a client has connected to a listening socket, or after `wait_s`. Accepts no connection."""
    loop, somebody = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, somebody.set)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(somebody.wait(), wait_s)
    finally:
        loop.remove_reader(listener)


async def keep_followed(replica: ReplicaLink, supervisor: Supervisor) -> None:
    """Lets this host's histories follow the shards whose journals other hosts write, until the daemon stops."""
    try:
        while not supervisor.is_stopping:
            hosts = {node for node in supervisor.elsewhere().values() if node}
            replica.follow(supervisor.written_elsewhere(), hosts)
            await supervisor.wait_changed()
    finally:
        await replica.close()


async def attend(sampler: FigureSampler, notifier: ServiceManager) -> None:
    """Reports to the service manager every `LOOK_S` and at each change, until cancelled."""
    if not notifier.listening:
        return
    supervisor = sampler.supervisor
    ready = False
    while True:
        unserved = supervisor.unserved()
        if notifier.is_stopping:
            notifier.status("; ".join((STOPPING, *(stall.text for stall in sampler.overdue()))))
        else:
            status = status_of(sampler, [*unserved, *supervisor.refusing()])
            if not ready and (not unserved or supervisor.registry.stands_by):
                ready = True
                notifier.ready(status)
            notifier.status(status)
        if not sampler.overdue():
            notifier.alive()
            if not ready:
                notifier.extend(EXTEND_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(supervisor.wait_changed(), LOOK_S)


def status_of(sampler: FigureSampler, unserved: list[Unserved]) -> str:
    """One line for `systemctl status`."""
    troubles = [*map(doing, unserved), *(stall.text for stall in sampler.overdue())]
    if troubles:
        return "; ".join(troubles)
    owed = sampler.total("pending_cutoffs")
    shards, accounts = counted(len(sampler.supervisor.workers), "shard"), counted(sampler.total("accounts"), "account")
    return f"serving {shards}, {accounts}, {counted(owed, 'cutoff') if owed else 'nothing'} owed"


def doing(unserved: Unserved) -> str:
    """Why a shard is not served, in words for the status line: "recovering shard 1: 62 %"."""
    if unserved.state == "recovering":
        share = unserved.why.removeprefix("recovering")
        return f"recovering shard {unserved.shard_id}{':' if share else ''}{share}"
    return unserved.text
