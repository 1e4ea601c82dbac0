"""How late a cutoff is: from the exact instant of exhaustion to the GET's arrival at the endpoint.

Starts the real daemon and the receiver (a process of its own that stamps arrival), arms `--armed` accounts far ahead,
then lets `--per-second` accounts a second run dry for `--seconds`, beside `--commands` top-ups a second, and reports
lateness and the daemon's CPU per cutoff (that of the commands alone, measured just before, taken off).

    python -m benchmarks.cutoff_lag --per-second 20 --seconds 20                       isolated
    python -m benchmarks.cutoff_lag --armed 1000000 --per-second 100 --seconds 30 --commands 5000
    python -m benchmarks.cutoff_lag --storm 10000                                      all at one instant

Lateness is by the wall clock of the receiver against `exhausted_at_ns`; billing time follows the same clock to within
its dead band of a millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from tests.system.daemon import Daemon, free_port
from tests.system.rpc import Rpc

COIN = 10**9


async def many(rpc: Rpc, calls: list[tuple[Any, ...]], at_once: int = 2000) -> list[Any]:
    """Makes calls, pipelined; returns their results."""
    results = []
    for start in range(0, len(calls), at_once):
        results += await asyncio.gather(*(rpc.ask(*call) for call in calls[start : start + at_once]))
    return results


async def commands(port: int, per_second: int, seconds: float) -> list[float]:
    """An open loop of top-ups at a constant rate; returns latencies from the intended start."""
    rpc = await Rpc.connect(port)
    rng = random.Random(7)
    latencies: list[float] = []
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def one(intended: float) -> None:
        await rpc.ask("top_up", f"other_{rng.randrange(10_000)}", 1)
        latencies.append(time.perf_counter() - intended)

    sent = 0
    while (now := time.perf_counter()) - began < seconds:
        while sent < (now - began) * per_second:
            task = asyncio.create_task(one(began + sent / per_second))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    rpc.close()
    return sorted(latencies)


def quantiles(values: list[float], scale: float) -> dict[str, float]:
    """Least, median, 99th percentile and greatest of sorted values."""
    count = len(values)
    picks = {"min": 0, "p50": count // 2, "p99": count * 99 // 100, "max": count - 1}
    return {name: round(values[index] * scale, 1) for name, index in picks.items()}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement from start to end."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        directory.chmod(0o700)
        port = free_port()
        daemon = Daemon(
            directory,
            shards__workers=arguments.workers,
            cutoff__url=f"http://127.0.0.1:{port}/cutoff",
            journal__segment_bytes=64 * 1024 * 1024,
        )
        receiver = subprocess.Popen(
            [sys.executable, "-m", "billing", "receiver", "--listen", f"127.0.0.1:{port}", "--quiet"],
            stdout=subprocess.DEVNULL,
        )
        try:
            with daemon:
                return await _measure(arguments, daemon, port)
        finally:
            receiver.terminate()
            receiver.wait()


async def _measure(arguments: argparse.Namespace, daemon: Daemon, port: int) -> dict[str, Any]:
    rpc = await Rpc.connect(daemon.rpc_port)
    armed = [("top_up", f"far_{index}", 1000 * COIN) for index in range(arguments.armed)]
    await many(rpc, armed)
    await many(rpc, [("set_rate", call[1], 1 + index % 1000) for index, call in enumerate(armed)])
    count = arguments.storm or int(arguments.per_second * arguments.seconds)
    users = [f"dry_{index}" for index in range(count)]
    await many(rpc, [("top_up", user, COIN) for user in users])
    # One coin at 1/lead coins a second runs out `lead` seconds after set_rate; debits then bring all to their instants.
    lead_ns = 4 * COIN + (arguments.storm + count) * 30_000
    now_ns = (await rpc.ask("server_info"))["now_ns"]
    target = now_ns + lead_ns
    await _aim(rpc, users, target, 0 if arguments.storm else COIN * arguments.seconds / count)
    load = asyncio.create_task(commands(daemon.rpc_port, arguments.commands, 2)) if arguments.commands else None
    base = 0.0
    if load is not None:
        before = daemon.cpu_seconds()
        await load
        base = (daemon.cpu_seconds() - before) / (2 * arguments.commands)
    while (await rpc.ask("server_info"))["now_ns"] < target - 200_000_000:
        await asyncio.sleep(0.02)
    span = 3.0 if arguments.storm else arguments.seconds + 1.0
    before = daemon.cpu_seconds()
    latencies = await commands(daemon.rpc_port, arguments.commands, span) if arguments.commands else []
    if not arguments.commands:
        await asyncio.sleep(span)
    for _ in range(100):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
            stats = json.load(answer)
        pending = await rpc.ask("pending_cutoffs")
        if not pending:
            break
        await asyncio.sleep(0.1)
    cpu = daemon.cpu_seconds() - before - base * len(latencies)
    return {
        "cutoffs": count,
        "stats": stats,
        "server_cpu_us_per_cutoff": round(cpu / count * 1e6, 1),
        "commands_ms": quantiles(latencies, 1e3) if latencies else None,
    }


async def _aim(rpc: Rpc, users: list[str], first_ns: int, step_ns: float) -> None:
    """Gives each user a rate and then takes or adds what brings the exhaustion to its instant, to the nanosecond."""
    rate = COIN // 10  # nanos a second: one nano is ten nanoseconds
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
    parser.add_argument("--directory", default="/tmp")
    arguments = parser.parse_args()
    print(json.dumps(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments)), indent=1))


if __name__ == "__main__":
    main()
