"""The cost of moves: the pause of a bucket, the effect on other buckets, and the passing on of commands.

    python -m benchmarks.moves pause       a bucket of 1,000 accounts moves to and fro under 5,000 commands/s
    python -m benchmarks.moves passing     CPU per command through a worker that owns nothing, against direct
    python -m benchmarks.moves slices      the longest slice of dump, load, arm, drop of a bucket of --accounts

`pause` sends through `billing.client`, at an offered rate: a call's latency counts from when it was due to be sent. The
pause of one move is the longest latency of any call for that bucket that was due while it moved; a move during which no
call was due is left out (`seen` counts the others). CPU is that of the main process and the workers, user and system,
from /proc. `benchmarks.scaling` compares two workers with one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import COIN, mixed_frames, opened, run
from benchmarks.figures import quantile
from billing.client import Client
from billing.ledger import commands as ops
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

BUCKETS = 3000
ACCOUNTS = 20_000  # for `passing`


class Offered:
    """Sends calls at a fixed rate through one client, however long the answers take; latencies by kind of bucket."""

    def __init__(self, client: Client, rate: int, moved_users: list[str], other_users: list[str], seed: int) -> None:
        self._client = client
        self._rate = rate
        self._moved_users, self._other_users = moved_users, other_users
        self._rng = random.Random(seed)
        self.latencies: dict[str, list[tuple[float, float]]] = {"ours": [], "others": []}  # (due, seconds)
        self.late: list[float] = []  # seconds by which this process sent each call late
        self.errors: list[Any] = []
        self.open = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sends every call when it is due."""
        clock, due = time.perf_counter, time.perf_counter()
        while not stop.is_set():
            now = clock()
            while due <= now:
                self._send(due)
                self.late.append(now - due)
                due += 1 / self._rate
            self._client.flush()
            await asyncio.sleep(max(0.0, due - clock()))
        while self.open:
            await asyncio.sleep(0.001)

    def _send(self, due: float) -> None:
        kind = "ours" if self._rng.random() < 0.1 else "others"
        user = self._rng.choice(self._moved_users if kind == "ours" else self._other_users)
        self.open += 1

        def on_reply(error: Any, _: Any) -> None:
            self.open -= 1
            self.latencies[kind].append((due, time.perf_counter() - due))
            if error is not None:
                self.errors.append(error)

        if self._rng.random() < 0.5:
            self._client.send("top_up", [user, 1], on_reply)
        else:
            self._client.send("set_rate", [user, self._rng.randrange(1000)], on_reply)

    def take(self) -> dict[str, list[tuple[float, float]]]:
        """Returns the latencies since the last call, and forgets them."""
        latencies, self.latencies = self.latencies, {"ours": [], "others": []}
        return latencies


def users_of(bucket_id: int, count: int) -> list[str]:
    """Returns user ids that hash to one bucket."""
    users: list[str] = []
    number = 0
    while len(users) < count:
        if bucket_id_of(b"u%d" % number, BUCKETS) == bucket_id:
            users.append(f"u{number}")
        number += 1
    return users


async def pause(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """Moves one bucket to and fro, after a phase without moves."""
    moved_users = users_of(477, arguments.accounts)
    other_users = [f"other_{number}" for number in range(10_000)]
    operator = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        for first in range(0, len(moved_users + other_users), 500):
            chunk = (moved_users + other_users)[first : first + 500]
            await asyncio.gather(*(client.top_up(user, nanos=1000 * COIN) for user in chunk))
        offered, stop = Offered(client, arguments.rate, moved_users, other_users, 1), asyncio.Event()
        task = asyncio.create_task(offered.run(stop))
        await asyncio.sleep(3)
        offered.take()
        await asyncio.sleep(arguments.seconds)
        still = offered.take()
        spans: list[tuple[float, float]] = []
        owner = (await operator.ask("route"))["owners"][476]
        began_all = time.perf_counter()
        for _ in range(arguments.moves):
            owner = 3 - owner
            began = time.perf_counter()
            await operator.ask("move_bucket", 477, owner)
            spans.append((began, time.perf_counter()))
            await asyncio.sleep(arguments.seconds / arguments.moves)
        seconds = time.perf_counter() - began_all
        stop.set()
        await task  # waits until every call is answered
        moved = offered.take()
    took = [ended - began for began, ended in spans]
    during = [[took_s for due, took_s in moved["ours"] if began <= due <= ended] for began, ended in spans]
    pauses = [max(calls) for calls in during if calls]
    phases = {"still": still, "moving": moved}
    others_p99 = {name: quantile([s for _, s in phase["others"]], 0.99) for name, phase in phases.items()}
    others_p50 = {name: quantile([s for _, s in phase["others"]], 0.5) for name, phase in phases.items()}
    return {
        "moves": arguments.moves,
        "seen": len(pauses),
        "move_p50_ms": round(quantile(took, 0.5) * 1e3, 2),
        "move_p99_ms": round(quantile(took, 0.99) * 1e3, 2),
        "pause_p50_ms": round(quantile(pauses, 0.5) * 1e3, 2),
        "pause_p99_ms": round(quantile(pauses, 0.99) * 1e3, 2),
        "sent_late_p99_ms": round(quantile(offered.late, 0.99) * 1e3, 2),
        "others_p50_still_ms": round(others_p50["still"] * 1e3, 2),
        "others_p50_moving_ms": round(others_p50["moving"] * 1e3, 2),
        "others_p99_still_ms": round(others_p99["still"] * 1e3, 2),
        "others_p99_moving_ms": round(others_p99["moving"] * 1e3, 2),
        "commands_per_s": round(sum(map(len, moved.values())) / seconds),
        "errors": len(offered.errors),
        "first_error": str(offered.errors[0]) if offered.errors else None,
    }


async def passing(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """Shard 1 owns all buckets; sends to its port and to that of shard 2, which passes everything on, in turns."""
    rpc = await Rpc.connect(daemon.rpc_port)
    async with asyncio.timeout(60):
        while [row["buckets"] for row in await rpc.ask("shards_info")] != [BUCKETS, 0]:
            await asyncio.sleep(0.1)
    shards = (await rpc.ask("route"))["shards"]
    ports = {row["shard_id"]: int(row["address"].rsplit(":", 1)[1]) for row in shards}
    rpc.close()
    await opened(daemon, ACCOUNTS)
    frames = mixed_frames(ACCOUNTS, 50_000, 1)
    cost: dict[str, list[float]] = {"direct": [], "passed on": []}
    for _ in range(arguments.runs):
        for name, shard_id in (("direct", 1), ("passed on", 2)):
            figures = await run(daemon, [frames], 512, arguments.seconds, [ports[shard_id]])
            cost[name].append(figures["server_cpu_us_per_command"])
    direct, passed = (statistics.median(cost[name]) for name in ("direct", "passed on"))
    return {
        "direct_us_per_command": round(direct, 2),
        "passed_on_us_per_command": round(passed, 2),
        "ratio": round(passed / direct, 2),
    }


def slices(accounts: int) -> dict[str, Any]:
    """Returns the CPU of the longest slice, and of all slices, of each part of a move."""
    machine = BillingMachine(Rules(False, 2000, False))
    machine.create(7)
    machine.start(10**18)
    machine.arm(7)
    for number in range(accounts):
        user, at_ns = b"user_%07d" % number, 10**18 + number
        machine.apply(7, (ops.TOP_UP, user, 10**12, 0, 0, b"", b"r%d" % number, b"", b"", b""), at_ns)
        machine.apply(7, (ops.SET_RATE, user, 3600 * 10**6 + number, -1, -1, b"", b"", b"", b"", b""), at_ns)
    machine.disarm(7)
    target = BillingMachine(Rules(False, 2000, False))
    target.start(10**18 + 10**9)
    result: dict[str, Any] = {"accounts": accounts}

    def timed(name: str, steps: Iterator[None]) -> Any:
        longest = total = 0
        while True:
            began = time.thread_time_ns()
            try:
                next(steps)
            except StopIteration as done:
                return done.value
            finally:
                took = time.thread_time_ns() - began
                longest, total = max(longest, took), total + took
                result[name] = {"longest_ms": round(longest / 1e6, 2), "all_ms": round(total / 1e6, 2)}

    block = timed("dump", machine.dumping(7))
    target.put(7, timed("load", target.loading(7, block)))
    timed("arm", target.arming(7))
    timed("drop", machine.dropping(7))
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pause", "passing", "slices"))
    parser.add_argument("--accounts", type=int, default=1000, help="in the bucket that moves")
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase; of each run 4")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    arguments = parser.parse_args()
    if arguments.what == "slices":
        print(json.dumps(slices(arguments.accounts)))
        return
    if arguments.what != "pause":
        arguments.seconds = min(arguments.seconds, 4.0)
    settings: dict[str, object] = {"shards.workers": 2, "journal.segment_bytes": 64 << 20}
    if arguments.what == "passing":
        settings["shards.weights"] = "2=0"
    measure = passing if arguments.what == "passing" else pause
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        with Daemon(Path(name), **settings) as daemon, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(measure(daemon, arguments))))


if __name__ == "__main__":
    main()
