"""The daemon as a service: watched, told of, and looked at, beside the supervisor that runs it.

What the service manager is told, from the sampler's figures:

    READY       once, when every shard has recovered durably and every bucket is served (`/readyz` says 200, unless a
                disk is full), or when this host stands by since another one serves (`/readyz` says 503, and which)
    STATUS      what it is doing: "recovering shard 1: 62 %", "serving 2 shards, 1,204 accounts, nothing owed"
    WATCHDOG    while every worker's loop and last sync are fresh; one that hangs starves it, and systemd ends the lot
    EXTEND_…    while the start goes on, so that a long recovery is no failed start; also where a shard is held and the
                others serve: that is for an operator to mend, not for a restart
    RELOADING   from SIGHUP until what may change has changed
    STOPPING    when the orderly end begins

**The pages for operators** take more CPU to load than all the rest of the main process. So they are loaded when the
first visitor comes, and by themselves `PAGES_AFTER_S` after the start, when the workers have had the cores. They are
not left until later still: an upgrade may put files of another version in their place.

It never ends anything itself.
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


class Service:
    """What is around a supervisor: the figure sampler, the service manager, HTTP for operators."""

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
        """`replies`: those that the supervisor was given. `refused_sign_in` is told at which address a token was shown
        that is not known. `replica`: where several hosts share the log.
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
        """Runs until cancelled. A bug in it ends the daemon: nobody would watch it any more. `has_tls`: whether the
        pages speak TLS as the RPC door does.
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
                    tls = server_context(self._config.rpc) if has_tls else None
                    tasks.create_task(web.serve_admin(admin, self._site, tls))
        except Exception:
            log.critical("the daemon ends on a bug", exc_info=True)
            self._supervisor.stop(Exit.BUG)

    async def reloading(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Carries out a reload, of which the service manager is told."""
        self._notifier.reloading()
        try:
            await reload()
        finally:
            self._notifier.reloaded()

    def reloaded(self, config: Config) -> None:
        """Takes up what has changed: who may read, and the certificate of the pages."""
        self._config = config
        if self._site is not None:
            self._site.take_up(config)


async def visited(listener: socket.socket, wait_s: float) -> None:
    """Returns once somebody has connected to a listening socket, or after so many seconds; accepts nobody."""
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
    """Keeps the service manager informed until cancelled."""
    if not notifier.listening:
        return
    supervisor = sampler.supervisor
    ready = False
    while True:
        unserved = supervisor.unserved()
        if not ready and (not unserved or supervisor.registry.stands_by):
            ready = True
            notifier.ready(status_of(sampler, [*unserved, *supervisor.refusing()]))
        notifier.status(status_of(sampler, [*unserved, *supervisor.refusing()]))
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
    """Why a shard is not served, as what is being done about it: "recovering shard 1: 62 %"."""
    if unserved.state == "recovering":
        share = unserved.why.removeprefix("recovering")
        return f"recovering shard {unserved.shard_id}{':' if share else ''}{share}"
    return unserved.text
