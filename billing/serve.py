"""The one place where everything is joined: configuration, sockets, supervisor, admin server; and, in a worker process,
the application that the shards room hosts.

`serve` is the main process: it reads the configuration, binds every listening socket (so that a port in use is told
before anything starts, and a restarted worker finds its clients still queueing), and runs the supervisor beside the
admin server until SIGTERM or SIGINT. `work` is a worker process.

Exit codes: 0 clean stop, 78 configuration, 65 damaged data, 74 disk failure, 70 a bug.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import uvloop

from billing.addresses import parse_listen
from billing.config import Config
from billing.config_load import EXIT_CONFIG, ConfigError, Fault, load
from billing.reload import Reload
from billing.shares import parse_shards, parse_weights
from shards.disk import DirectoryRefused
from shards.journal import Corrupt, Fenced, Gap, JournalError
from shards.mover import Caps
from shards.registry import Conflict
from shards.restarts import EXIT_BUG, EXIT_DAMAGED, EXIT_DISK
from shards.supervisor import Settings, Supervisor

log = logging.getLogger("billing.serve")

BACKLOG = 4096


def serve(file: Path | None) -> int:
    """Runs the daemon in the foreground; returns its exit code."""
    try:
        config = load(file, os.environ).config
        listeners, admin = _bind(config)
    except ConfigError as error:
        print(f"billing: the configuration cannot be run:\n{error}", file=sys.stderr)
        return EXIT_CONFIG
    logging.basicConfig(
        level=config.log.level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(file, config, listeners, admin))


async def _run(
    file: Path | None, config: Config, listeners: list[tuple[str, socket.socket]], admin: socket.socket | None
) -> int:
    command = [sys.executable, "-m", "billing", "worker"]
    supervisor = Supervisor(_settings(config), command, config.to_json().encode(), listeners)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    reload = Reload(
        file, os.environ, config, lambda changed: supervisor.reload(_settings(changed), changed.to_json().encode())
    )
    loop.add_signal_handler(signal.SIGHUP, lambda: supervisor.spawn(reload()))
    admin_task = loop.create_task(_serve_admin(admin, supervisor))
    try:
        code = await supervisor.run()
    except (Conflict, DirectoryRefused) as error:
        print(f"billing: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except Fenced as error:
        print(f"billing: another daemon runs on {config.daemon.data_dir}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (Corrupt, Gap) as error:
        print(f"billing: the data are damaged: {error}", file=sys.stderr)
        return EXIT_DAMAGED
    except (JournalError, OSError) as error:
        print(f"billing: the disk failed: {error}", file=sys.stderr)
        return EXIT_DISK
    except Exception:
        log.critical("the daemon ends on a bug", exc_info=True)
        return EXIT_BUG
    finally:
        admin_task.cancel()
        await asyncio.gather(admin_task, return_exceptions=True)
    return code


async def _serve_admin(listener: socket.socket | None, supervisor: Supervisor) -> None:
    if listener is None:
        return
    await asyncio.sleep(0)  # the workers are started first: the web framework takes long to import
    from billing.ops.admin import serve_admin

    await serve_admin(listener, supervisor)


def _settings(config: Config) -> Settings:
    return Settings(
        data_dir=config.daemon.data_dir,
        weights={
            shard_id: parse_weights(config.shards.weights).get(shard_id, 1)
            for shard_id in range(1, config.shards.workers + 1)
        },
        bucket_count=config.shards.bucket_count,
        slew_ppm_max=config.clock.slew_ppm_max,
        journal={
            "kind": config.journal.kind,
            "sync": config.journal.sync,
            "segment_bytes": config.journal.segment_bytes,
            "sync_interval_ns": config.journal.sync_interval_ms * 1_000_000,
        },
        worker=(config.journal.idle_barrier_ms / 1000, config.journal.snapshot_bytes),
        caps=Caps(config.shards.moves_max, config.shards.sending_max, config.shards.receiving_max),
        locked=parse_shards(config.shards.locked),
        direct_host=parse_listen(config.rpc.listen).host if config.rpc.direct and config.rpc.listen else "",
    )


def _bind(config: Config) -> tuple[list[tuple[str, socket.socket]], socket.socket | None]:
    """Every socket that clients of any worker connect to, and the admin server's. Raises ConfigError."""
    listeners: list[tuple[str, socket.socket]] = []
    admin = None
    faults = []
    if config.rpc.listen:
        try:
            listeners.append(("tcp", _bind_tcp(config.rpc.listen)))
        except OSError as error:
            faults.append(Fault("rpc.listen", "", f"{config.rpc.listen} cannot be listened on: {error.strerror}"))
    if config.admin.listen:
        try:
            admin = _bind_tcp(config.admin.listen)
        except OSError as error:
            faults.append(Fault("admin.listen", "", f"{config.admin.listen} cannot be listened on: {error.strerror}"))
    if config.rpc.unix_socket:
        try:
            listeners.append(("unix", _bind_unix(config.rpc.unix_socket)))
        except OSError as error:
            faults.append(Fault("rpc.unix_socket", "", f"cannot be listened on: {error.strerror or error}"))
    if faults:
        raise ConfigError(faults)
    for _, listener in listeners:
        listener.setblocking(False)
    return listeners, admin


def _bind_tcp(text: str) -> socket.socket:
    address = parse_listen(text)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)


def _bind_unix(path: str) -> socket.socket:
    """A listening unix socket, 0660. What another daemon still listens on is left alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileExistsError(0, f"{path} is there and is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise FileExistsError(0, "another process listens on it")
            os.unlink(path)
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def work(control_descriptor: int) -> int:
    """A worker process: hosts one shard of the billing application; returns its exit code."""
    from billing.application import build
    from shards.process import run

    return run(control_descriptor, build)
