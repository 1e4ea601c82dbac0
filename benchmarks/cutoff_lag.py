"""The lateness of a cutoff: from the exact instant of exhaustion to the GET's arrival at the endpoint.

Starts the receiver (a process of its own that stamps arrivals) and the real daemon, with `--armed` accounts that run
out far in the future. Then `--per-second` accounts a second run out for `--seconds`, beside `--commands` top-ups a
second. Reports lateness and CPU per cutoff. CPU is that of all processes of the daemon, histories included, over the
time measured, less that of a control run of the same length, just before, with the same commands and no cutoffs.

    python -m benchmarks.cutoff_lag --per-second 20 --seconds 20                       isolated
    python -m benchmarks.cutoff_lag --armed 1000000 --per-second 100 --seconds 30 --commands 5000
    python -m benchmarks.cutoff_lag --storm 10000                                      all at one instant
    python -m benchmarks.cutoff_lag --servers                                          the log on three nats-servers

Lateness is the receiver's wall clock minus `exhausted_at_ns`; billing time follows the same clock to within its dead
band of a millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.endpoint import COIN, Endpoint, many, nothing_owed, quantiles, top_ups
from benchmarks.log_on_servers import backend_of
from benchmarks.stock import fill
from shards.journal.jetstream.backend import JetStreamBackend
from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

SETTLE_S = 3.0  # lets the histories catch up
QUIET_S = 15.0  # some ten seconds after many accounts were opened, the daemon is busy for a while, once
REST_S = 20.0  # after a start, the daemon compares each timer with the ledger


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one measurement from start to end."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o700)
        endpoint = Endpoint()
        keys: dict[str, object] = {"shards.workers": arguments.workers, "cutoff.url": endpoint.url + "/cutoff"}
        if arguments.servers:
            (directory / "nats").mkdir()
            cluster = NatsCluster(directory / "nats")
            stack.callback(cluster.close)
            cluster.start()
            keys |= {"journal.kind": "jetstream", "cluster.servers": cluster.urls, "cluster.shards": arguments.workers}
        daemon = Daemon(directory, **keys, **{"journal.segment_bytes": 64 * 1024 * 1024})
        if arguments.servers:
            backend = backend_of(daemon)
            assert isinstance(backend, JetStreamBackend)
            backend.make()
        if arguments.armed:
            fill(daemon, arguments.armed, arguments.workers)
        with endpoint, daemon:
            if arguments.armed:
                await asyncio.sleep(REST_S)
            return await _measure(arguments, daemon, endpoint)


async def _measure(arguments: argparse.Namespace, daemon: Daemon, endpoint: Endpoint) -> dict[str, Any]:
    rpc = await Rpc.connect(daemon.rpc_port)
    count = arguments.storm or int(arguments.per_second * arguments.seconds)
    users = [f"dry_{index}" for index in range(count)]
    await many(rpc, [("top_up", user, COIN) for user in users])
    await many(rpc, [("top_up", f"other_{index}", 1) for index in range(10_000)])
    span = 3.0 if arguments.storm else arguments.seconds + 1.0
    # After the rates are set, debits and top-ups move each exhaustion to its instant.
    lead_ns = int((span + QUIET_S + SETTLE_S + 4) * COIN) + count * 100_000
    target = (await rpc.ask("server_info"))["now_ns"] + lead_ns
    await _aim(rpc, users, target, 0 if arguments.storm else COIN * arguments.seconds / count, lead_ns)
    await asyncio.sleep(QUIET_S)

    async def spent() -> tuple[float, list[float]]:
        before = daemon.cpu_seconds(beside=True)
        latencies: list[float] = []
        if arguments.commands:
            latencies = await top_ups(daemon.rpc_port, arguments.commands, span)
        else:
            await asyncio.sleep(span)
        await asyncio.sleep(SETTLE_S)
        return daemon.cpu_seconds(beside=True) - before, latencies

    control, control_latencies = await spent()
    while (now_ns := (await rpc.ask("server_info"))["now_ns"]) < target - 200_000_000:
        await asyncio.sleep(0.02)
    assert now_ns < target, "the control took too long"
    storm, latencies = await spent()
    await nothing_owed(rpc)
    stats = endpoint.page("/stats")
    assert stats["events"] == count, f"{stats['events']} cutoffs came of {count}"
    figures = {
        "cutoffs": count,
        "stats": stats,
        "server_cpu_us_per_cutoff": round((storm - control) / count * 1e6, 1),
        "control_cpu_s": round(control, 2),
    }
    if arguments.commands:
        figures |= {
            "commands": len(latencies),
            "commands_ms": quantiles(latencies, 1e3),
            "commands_ms_control": quantiles(control_latencies, 1e3),
        }
    return figures


async def _aim(rpc: Rpc, users: list[str], first_ns: int, step_ns: float, lead_ns: int) -> None:
    """Sets a rate for each user, and then debits or tops up the amount that moves the exhaustion to its instant.
    Instants are exact to the ten nanoseconds that one nano lasts.
    """
    rate = COIN // 10  # nanos a second: one nano lasts ten nanoseconds
    await many(rpc, [("top_up", user, lead_ns // 10 + COIN) for user in users])
    accounts = await many(rpc, [("set_rate", user, rate) for user in users])
    fixes = []
    for index, (user, account) in enumerate(zip(users, accounts, strict=True)):
        wanted_ns = first_ns + int(index * step_ns)
        excess = (account["exhausts_at_ns"] - wanted_ns) // 10
        fixes.append(("debit", user, excess) if excess > 0 else ("top_up", user, -excess or 1))
    await many(rpc, fixes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--armed", type=int, default=0)
    parser.add_argument("--per-second", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--commands", type=int, default=0, help="top-ups a second beside it")
    parser.add_argument("--storm", type=int, default=0, help="that many at one instant instead")
    parser.add_argument("--servers", action="store_true", help="the log on three nats-servers; without --armed")
    parser.add_argument("--directory", default="/tmp")
    arguments = parser.parse_args()
    if arguments.servers and arguments.armed:
        parser.error("--armed fills a log in files")
    print(json.dumps(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments)), indent=1))


if __name__ == "__main__":
    main()
