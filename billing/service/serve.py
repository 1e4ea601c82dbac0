"""The main process, where everything is joined: configuration, sockets, supervisor, admin server.

`serve` reads the configuration, binds every listening socket (so that a port in use is told before anything starts, and
a restarted worker finds its clients still queueing), and runs the supervisor beside the admin server until SIGTERM or
SIGINT. What a worker process is made of stands in `billing.service.working`.

Exit codes: `shards.exits`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from billing import __version__
from billing.addresses import parse_listen
from billing.admin.recent import Recent
from billing.admin.worker_queries import QueryReplies
from billing.api.connection_limits import raise_limit
from billing.api.tls import server_context
from billing.audit.recorder import Recorder
from billing.config.load import ConfigError, load, log_of, shard_count
from billing.config.reload import Reload, differences
from billing.config.schema import Config, shown_text
from billing.config.shares import parse_shards, parse_weights
from billing.history.replica_link import ReplicaLink
from billing.service.beginning import WORKER, asked_to, asked_to_stop
from billing.service.introduction import calls_of, doors_of, introduction
from billing.service.listeners import bind, take_away
from billing.service.logs import set_up
from billing.service.service import Service
from billing.service.systemd import ServiceManager, handed_over
from shards.control import WorkerSettings
from shards.exits import Exit, ending_of, text_of
from shards.journal import Fenced
from shards.moves.mover import Caps
from shards.supervisor.registry import LOCK
from shards.supervisor.settings import ShareSettings, SupervisorSettings
from shards.supervisor.supervisor import Supervisor
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from shards.system.host import REAL

log = logging.getLogger("billing.service.serve")


class Parts(NamedTuple):
    """What the daemon is made with; a test with another log than those of `shards.journal.backends` passes its own."""

    worker: list[str]  # starts a worker process, to which the number of its control descriptor is appended
    log_of: Callable[[Config], dict[str, Any]]  # the log, as `shards.journal.backends` takes it


def serve(file: Path | None, parts: Parts | None = None) -> int:
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
        listeners, admin, made = bind(config, handed_over(os.environ))
    except ConfigError as error:
        print(f"billing: {text_of(error)}", file=sys.stderr)
        return Exit.CONFIG
    recent = set_up(config.log, os.environ)
    log.info("%s", introduction(file, config, os.getpid()))
    log.info("%s", doors_of(listeners, admin, has_tls=_admin_tls(config) is not None))
    log.info("%s", calls_of(config))
    try:
        if asked_to_stop():
            log.info("stopped before anything was started")
            return Exit.CLEAN
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            isolated = ["-I"] if sys.flags.isolated else []
            parts = parts or Parts([sys.executable, *isolated, "-X", "utf8=1", "-m", "billing", WORKER], log_of)
            return runner.run(_run(file, config, listeners, admin, recent, parts))
    finally:
        take_away(made)


def is_served(data_dir: str) -> bool:
    """Whether another daemon runs on these data: asked before the addresses are tried, which it holds, too. The
    supervisor takes the lock for good.
    """
    disk, path = RealDisk(), f"{data_dir}/{LOCK}"
    if not disk.exists(path):
        return False
    try:
        disk.close(disk.lock(path))
    except BlockingIOError:
        return True
    except OSError:
        return False  # the process that takes the lock for good reports faults of the directory
    return False


async def _run(
    file: Path | None,
    config: Config,
    listeners: list[tuple[str, socket.socket]],
    admin: socket.socket | None,
    recent: Recent,
    parts: Parts,
) -> int:
    log_settings = parts.log_of(config)
    replies = QueryReplies()
    settings, configuration = _settings(config, log_settings), config.to_json()
    supervisor = Supervisor(settings, parts.worker, configuration, listeners, told=replies.told)
    notifier = ServiceManager(os.environ)
    loop = asyncio.get_running_loop()
    audit = Recorder(RealDisk(), config.daemon.data_dir, "main", MACHINE_CLOCKS.wall_ns)
    replica = _replica(config, log_settings)
    service = Service(config, supervisor, notifier, recent, replies, audit.refused_sign_in, replica)
    in_force = [config]

    def stop(number: signal.Signals) -> None:
        audit.record("", "stop", {"signal": number.name})
        log.info("stopping: what was asked for is answered, and each shard makes a snapshot")
        notifier.stopping("stopping: what was asked for is answered, and a snapshot is made")
        supervisor.stop()

    def drained() -> set[int]:
        return {shard_id for shard_id, weight in supervisor.map.weights.items() if weight == 0}

    def note_drains(before: set[int]) -> None:
        if added := sorted(drained() - before):
            audit.record("", "drain", {"shards": added})

    async def note_start() -> None:
        while supervisor.time.clock is None:
            await supervisor.wait_changed()
        audit.record("", "start", {"version": __version__, "shards": sorted(supervisor.map.weights)})
        note_drains(set())

    async def take_up(changed: Config) -> None:
        changes, _ = differences(in_force.pop(), changed)
        in_force.append(changed)
        changed_to = {}
        for path in changes:
            section, key = path.split(".")
            changed_to[path] = shown_text(changed, section, key)
        audit.record("", "reload", changed_to)
        service.reloaded(changed)
        before = drained()
        await supervisor.reload(_settings(changed, log_settings), changed.to_json())
        note_drains(before)

    reload = Reload(file, os.environ, config, take_up)

    def begin_reload() -> None:
        supervisor.spawn(service.reloading(reload))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, begin_reload)
    if asked_to_stop():  # it came before the loop heard for itself
        stop(signal.SIGTERM)
    elif asked_to(signal.SIGHUP):
        loop.call_soon(begin_reload)
    attending = loop.create_task(service.run(admin, _admin_tls(config)))
    starting = loop.create_task(note_start())
    began_ns = MACHINE_CLOCKS.boot_ns()
    gc.freeze()  # what is loaded is for good: the figures of each second made collections walk all of it again
    try:
        code = await supervisor.run()
    except Fenced as error:
        print(f"billing: another daemon runs on {config.daemon.data_dir}: {error}", file=sys.stderr)
        return Exit.CONFIG
    except Exception as error:
        ending = ending_of(error)
        if ending.code == Exit.BUG:
            log.critical("the daemon ends on a bug", exc_info=True)
        else:
            print(f"billing: {text_of(error)}", file=sys.stderr)
        return ending.code
    finally:
        attending.cancel()
        starting.cancel()
        await asyncio.gather(attending, starting, return_exceptions=True)
        notifier.close()
        await audit.close()
    log.info("stopped with exit code %d after %.0f s", code, (MACHINE_CLOCKS.boot_ns() - began_ns) / 1e9)
    return code


def _admin_tls(config: Config) -> ssl.SSLContext | None:
    """Beyond loopback the admin server speaks TLS as the RPC door does."""
    if not config.admin.listen or parse_listen(config.admin.listen).loopback:
        return None
    return server_context(config.rpc)


def _settings(config: Config, log_settings: dict[str, Any]) -> SupervisorSettings:
    return SupervisorSettings(
        data_dir=config.daemon.data_dir,
        weights={
            shard_id: parse_weights(config.shards.weights).get(shard_id, 1)
            for shard_id in range(1, shard_count(config) + 1)
        },
        bucket_count=config.shards.bucket_count,
        slew_ppm_max=config.clock.slew_ppm_max,
        clock_error_ns_max=config.clock.error_ms_max * 1_000_000,
        journal=log_settings,
        worker=WorkerSettings(config.journal.idle_barrier_ms / 1000, config.journal.snapshot_bytes),
        caps=Caps(config.shards.moves_max, config.shards.sending_max, config.shards.receiving_max),
        locked=parse_shards(config.shards.locked),
        direct_host=parse_listen(config.rpc.listen).host if config.rpc.direct and config.rpc.listen else "",
        share=_share(config) if config.journal.is_shared and config.cluster.listen else None,
    )


def _replica(config: Config, log_settings: dict[str, Any]) -> ReplicaLink | None:
    """What follows the shards of other hosts, where several share the log."""
    if not config.journal.is_shared:
        return None
    directory, keep_days = f"{config.daemon.data_dir}/history", config.history.keep_days
    return ReplicaLink(directory, log_settings, keep_days, REAL.spawn, MACHINE_CLOCKS.boot_ns)


def _share(config: Config) -> ShareSettings:
    cluster = config.cluster
    advertised = cluster.advertise or config.rpc.listen
    host = advertised.rpartition(":")[0]
    certificates = (cluster.tls_cert, cluster.tls_key, cluster.tls_ca) if cluster.tls_cert else None
    workers = min(config.shards.workers, cluster.shards)
    return ShareSettings(workers, cluster.listen, host, cluster.secret_file, certificates)
