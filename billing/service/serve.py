"""The main process: joins configuration, sockets, supervisor and admin server.

`serve` reads the configuration and binds every listening socket, so that a port in use is reported before anything
starts, and clients still queue while a worker restarts. Then it runs the supervisor beside the admin server until
SIGTERM or SIGINT. `billing.service.working` is the worker process.

Exit codes: `shards.exits`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from billing.admin.recent import Recent
from billing.admin.worker_queries import QueryReplies
from billing.api.connection_limits import raise_limit
from billing.audit.recorder import Recorder
from billing.config.load import ConfigError, load, log_of
from billing.config.reload import Reload
from billing.config.schema import Config
from billing.history.replica_link import ReplicaLink
from billing.service.acts import Acts
from billing.service.beginning import WORKER, asked_to, asked_to_stop
from billing.service.introduction import calls_of, doors_of, introduction
from billing.service.listeners import bind, is_loopback, take_away
from billing.service.logs import set_up
from billing.service.service import STOPPING, Service
from billing.service.supervisor_settings import settings_of
from billing.service.systemd import ServiceManager, handed_over
from shards.exits import Exit, ending_of, text_of
from shards.journal import Fenced
from shards.supervisor.registry import LOCK
from shards.supervisor.supervisor import Supervisor
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from shards.system.host import REAL

log = logging.getLogger("billing.service.serve")


class ServeDependencies(NamedTuple):
    """What the daemon is built with. A test whose log is not one of `shards.journal.backends` passes its own."""

    worker: list[str]  # the command of a worker process; the number of its control descriptor is appended
    log_of: Callable[[Config], dict[str, Any]]  # the log, as `shards.journal.backends` takes it


def serve(file: Path | None, dependencies: ServeDependencies | None = None) -> int:
    """Runs the daemon in the foreground; returns its exit code."""
    if not __debug__:
        print("billing: started with -O or PYTHONOPTIMIZE, under which nothing checks itself", file=sys.stderr)
        return Exit.CONFIG
    os.umask(0o077)
    raise_limit()
    try:
        config = load(file, os.environ).config
        if is_served(config.daemon.data_dir):
            print(f"billing: another daemon runs on {config.daemon.data_dir}", file=sys.stderr)
            return Exit.CONFIG
        listeners, admin, socket_files = bind(config, handed_over(os.environ))
    except ConfigError as error:
        print(f"billing: {text_of(error)}", file=sys.stderr)
        return Exit.CONFIG
    recent = set_up(config.log, os.environ)
    log.info("%s", introduction(file, config, os.getpid()))
    log.info("%s", doors_of(listeners, admin, has_tls=_has_tls(config, admin)))
    log.info("%s", calls_of(config))
    try:
        if asked_to_stop():
            log.info("stopped before anything was started")
            return Exit.CLEAN
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            isolated = ["-I"] if sys.flags.isolated else []
            dependencies = dependencies or ServeDependencies(
                [sys.executable, *isolated, "-X", "utf8=1", "-m", "billing", WORKER], log_of
            )
            return runner.run(_run(file, config, listeners, admin, recent, dependencies))
    finally:
        take_away(socket_files)


def is_served(data_dir: str) -> bool:
    """Whether another daemon runs on this data directory, by trying its lock. Called before the addresses are bound,
    since the other daemon holds those as well, and the operator is to learn the real reason. The lock is released
    again; the supervisor takes it later and keeps it.
    """
    disk, path = RealDisk(), f"{data_dir}/{LOCK}"
    try:
        if not disk.exists(path):
            return False
        disk.close(disk.lock(path))
    except BlockingIOError:
        return True
    except OSError:
        return False  # the supervisor takes the lock later, and reports faults of the directory
    return False


async def _run(
    file: Path | None,
    config: Config,
    listeners: list[tuple[str, socket.socket]],
    admin: socket.socket | None,
    recent: Recent,
    dependencies: ServeDependencies,
) -> int:
    """Builds and runs the main process inside the event loop; returns its exit code."""
    return await _Daemon(file, config, listeners, recent, dependencies).serve(admin)


class _Daemon:
    """The parts of the main process. Made in the running loop; `serve` is called once, and ends them."""

    def __init__(
        self,
        file: Path | None,
        config: Config,
        listeners: list[tuple[str, socket.socket]],
        recent: Recent,
        dependencies: ServeDependencies,
    ) -> None:
        """Builds the supervisor and the parts around it. Nothing runs yet."""
        self._config = config  # in force
        self._log_settings = dependencies.log_of(config)
        replies, settings = QueryReplies(), settings_of(config, self._log_settings)
        self._supervisor = Supervisor(
            settings, dependencies.worker, config.to_json(), listeners, on_reply=replies.on_reply
        )
        self._manager = ServiceManager(os.environ)
        self._audit = Recorder(RealDisk(), config.daemon.data_dir, "main", MACHINE_CLOCKS.wall_ns)
        self._acts = Acts(self._audit, self._supervisor)
        on_refused, replica = self._audit.refused_sign_in, _replica(config, self._log_settings)
        self._service = Service(config, self._supervisor, self._manager, recent, replies, on_refused, replica)
        self._reload = Reload(file, os.environ, config, self._take_up)

    async def serve(self, admin: socket.socket | None) -> int:
        """Runs the supervisor, and the admin server beside it, until the supervisor ends; returns the exit code."""
        self._hear_signals()
        loop = asyncio.get_running_loop()
        tasks = (
            loop.create_task(self._service.run(admin, has_tls=_has_tls(self._config, admin))),
            loop.create_task(self._acts.note_start()),
        )
        began_ns = MACHINE_CLOCKS.boot_ns()
        gc.freeze()  # else collections, which each second's figures set off, would walk all modules again
        try:
            code = await self._supervisor.run()
        except Exception as error:
            return self._code_of(error)
        finally:
            await self._end(tasks)
        log.info("stopped with exit code %d after %.0f s", code, (MACHINE_CLOCKS.boot_ns() - began_ns) / 1e9)
        return code

    def _code_of(self, error: Exception) -> int:
        """The exit code for the error that ended the supervisor, which is logged."""
        code, text = ending_of(error).code, text_of(error)
        if isinstance(error, Fenced):
            code, text = Exit.CONFIG, f"another daemon runs on {self._config.daemon.data_dir}: {error}"
        if code == Exit.BUG:
            log.critical("the daemon ends on a bug", exc_info=True)
        else:
            log.critical("the daemon ends with exit code %d: %s", code, text)
        return code

    async def _end(self, tasks: tuple[asyncio.Task[None], ...]) -> None:
        """Cancels the tasks that ran beside the supervisor, and waits until the operators' record is on the disk."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._manager.close()
        await self._audit.close()

    # -- signals ----------------------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        """Lets the loop handle signals, and acts on a signal that came before."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._begin_reload)
        if asked_to_stop():
            self._stop(signal.SIGTERM)
        elif asked_to(signal.SIGHUP):
            loop.call_soon(self._begin_reload)

    def _stop(self, number: signal.Signals) -> None:
        self._acts.note_stop(number)
        log.info("stopping: what was asked for is answered, and each shard makes a snapshot")
        self._manager.stopping(STOPPING)
        self._supervisor.stop()

    def _begin_reload(self) -> None:
        if self._supervisor.is_stopping:
            log.info("the configuration was not reloaded: the daemon is stopping, and its next start reads it")
            return
        self._supervisor.spawn(self._service.reloading(self._reload))

    async def _take_up(self, changed: Config) -> None:
        """Puts a changed configuration into force: records the reload, and hands it to the service and supervisor."""
        before, self._config = self._config, changed
        self._acts.note_reload(before, changed)
        self._service.reloaded(changed)
        drained = self._acts.drained()
        await self._supervisor.reload(settings_of(changed, self._log_settings), changed.to_json())
        self._acts.note_drains(drained)


def _has_tls(config: Config, admin: socket.socket | None) -> bool:
    """Whether the admin server speaks TLS with the RPC door's certificate: if there is one and the socket, bound or
    handed over, is beyond loopback.
    """
    return admin is not None and bool(config.rpc.tls_cert) and not is_loopback(admin)


def _replica(config: Config, log_settings: dict[str, Any]) -> ReplicaLink | None:
    """The link to the process that follows the shards of other hosts; None unless several hosts share the log."""
    if not config.journal.is_shared:
        return None
    directory, keep_days = f"{config.daemon.data_dir}/history", config.history.keep_days
    return ReplicaLink(directory, log_settings, keep_days, REAL.spawn, MACHINE_CLOCKS.boot_ns)
