"""The log on three nats-servers on this machine, compared with the log in files, in the same run and in turns.

    python -m benchmarks.log_on_servers

Three figures of each kind of log:

    a batch         the journal alone, one appended after the other: 100 entries of 160 bytes each. CPU of the thread
                    that appends (`batch_cpu_us`), and a hundredth of it (`entry_cpu_us`)
    one in flight   the whole daemon, one worker, one command at a time: p50, p99
    many            the same with `--depth` in flight: commands a second, CPU of the daemon per command

With servers, `servers_cpu_us_per_command` is the CPU of all three of them. They share the cores with the daemon, so the
commands a second are fewer than with servers on other machines. `floor_sync_ms` is one append and fdatasync to the disk
that all of them write to; each server does one for each batch.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import mixed_frames, opened, run
from benchmarks.figures import add_arguments, quantiles_ms, show_each
from benchmarks.floor import sync_ms
from billing.config.load import load, log_of
from shards.journal import Backend, Journal, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.daemon import Daemon, cpu_seconds_of

ENTRIES, ENTRY_BYTES = 100, 160
SHARD = 1
FILES, SERVERS = "files", "servers"
MANY = ("commands_per_s", "p50_ms", "p99_ms", "server_cpu_us_per_command", "servers_cpu_us_per_command")


class Servers(Daemon):
    """A daemon, with the CPU of the log's servers counted separately."""

    cluster: NatsCluster | None = None

    def servers_cpu_seconds(self) -> float:
        """The CPU seconds that the servers have used so far."""
        assert self.cluster is not None
        return sum(cpu_seconds_of(process.pid) for process in self.cluster.processes if process is not None)


def appended(journal: Journal, batches: int) -> dict[str, float]:
    """Appends `batches` batches, one after the other, to a journal that it opens and closes. Returns figures."""
    payload = bytes(range(256)) * (ENTRIES * ENTRY_BYTES // 256)
    journal.open(SHARD, "benchmark")
    for _ in range(batches // 10):
        journal.append(payload)
    took, cpu_s = [], time.thread_time()
    for _ in range(batches):
        began = time.perf_counter()
        journal.append(payload)
        took.append(time.perf_counter() - began)
    batch_us = (time.thread_time() - cpu_s) / batches * 1e6
    journal.close()
    return {
        "batch_cpu_us": round(batch_us, 1),
        "entry_cpu_us": round(batch_us / ENTRIES, 2),
        **{f"batch_{name}": value for name, value in quantiles_ms(took).items()},
    }


def daemon_of(kind: str, directory: Path, cluster: NatsCluster, number: int) -> Servers:
    """Returns a daemon with one worker, on a new log of this kind."""
    data_directory = directory / f"{kind}-{number}"
    data_directory.mkdir(mode=0o700)
    keys: dict[str, object] = {"shards.workers": 1, "journal.segment_bytes": 64 << 20}
    if kind == FILES:
        return Servers(data_directory, **keys)
    daemon = Servers(
        data_directory, **keys, **{"journal.kind": "jetstream", "cluster.servers": cluster.urls, "cluster.shards": 1}
    )
    daemon.cluster = cluster
    for name in ("M", "J_1", "S_1"):
        cluster.ask(f"STREAM.DELETE.{name}")
    backend = backend_of(daemon)
    assert isinstance(backend, JetStreamBackend)
    backend.make()
    return daemon


def backend_of(daemon: Daemon) -> Backend:
    """Opens the log that a daemon's configuration names."""
    return backends.open(log_of(load(daemon.config, {}).config), REAL)


async def served(daemon: Servers, frames: list[bytes], depth: int, seconds: float) -> dict[str, Any]:
    """Sends commands to a daemon, `depth` in flight. Returns the figures, with the servers' CPU where there are
    any.
    """
    if daemon.cluster is None:
        return await run(daemon, [frames], depth, seconds)
    before, began = daemon.servers_cpu_seconds(), time.perf_counter()
    figures = await run(daemon, [frames], depth, seconds)
    used_s, took_s = daemon.servers_cpu_seconds() - before, time.perf_counter() - began
    return figures | {"servers_cpu_us_per_command": round(used_s / took_s / figures["commands_per_s"] * 1e6, 2)}


async def measure(
    arguments: argparse.Namespace, cluster: NatsCluster, directory: Path
) -> dict[str, list[dict[str, Any]]]:
    """Returns {kind: the figures of its runs}."""
    runs: dict[str, list[dict[str, Any]]] = {FILES: [], SERVERS: []}
    for number in range(arguments.runs):
        for kind, mine in runs.items():
            backend = backend_of(daemon_of(kind, directory, cluster, number))
            Path(directory / f"{kind}-{number}" / "data").mkdir(mode=0o700)
            mine.append(appended(backend.journal(SHARD, REAL.clocks.boot_ns), arguments.batches))
    frames = mixed_frames(arguments.accounts, 100_000, arguments.seed)
    daemons = {kind: daemon_of(kind, directory, cluster, arguments.runs) for kind in runs}
    with daemons[FILES], daemons[SERVERS]:
        for daemon in daemons.values():
            await opened(daemon, arguments.accounts)
        for number in range(arguments.runs):
            for kind, daemon in daemons.items():
                alone = await served(daemon, frames, 1, arguments.seconds)
                many = await served(daemon, frames, arguments.depth, arguments.seconds)
                runs[kind][number] |= {
                    **{f"alone_{name}": alone[name] for name in ("p50_ms", "p99_ms")},
                    **{name: many[name] for name in MANY if name in many},
                    "floor_sync_ms": sync_ms(str(directory)),
                }
    return runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--batches", type=int, default=2000)
    add_arguments(parser, runs=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        (directory / "nats").mkdir()
        cluster = NatsCluster(directory / "nats")
        try:
            cluster.start()
            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
            runs_by_kind = runner.run(measure(arguments, cluster, directory))
        finally:
            cluster.close()
    show_each(arguments, runs_by_kind)


if __name__ == "__main__":
    main()
