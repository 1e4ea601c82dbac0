"""What moves cost: the pause of a bucket, what others notice of it, passing on, and two workers against one.

    python -m benchmarks.moves pause       a bucket of 1,000 accounts moves to and fro under 5,000 commands/s
    python -m benchmarks.moves passing     CPU per command through a worker that owns nothing, against direct
    python -m benchmarks.moves two         commands per CPU second of the busier of two workers, against one with all
    python -m benchmarks.moves slices      the longest slice of dump, load, arm, drop of a bucket of --accounts

`pause` goes through `billing.client`, at an offered rate: a call's latency counts from when it was due to be sent. The
pause of one move is the longest latency of any call for that bucket that was due while it moved. CPU is that of the
workers, user and system, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from benchmarks.commands import COIN, Generator, connected
from billing.client import Client
from billing.ledger import commands as ops
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

BUCKETS = 3000


def quantile(values: list[float], share: float) -> float:
    """Of a list that is not empty."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_s(pid: int) -> float:
    """User and system seconds of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Offered:
    """Calls at a fixed rate through one client, whatever the answers take; latencies by kind of bucket."""

    def __init__(self, client: Client, rate: int, ours: list[str], others: list[str], seed: int) -> None:
        self._client = client
        self._rate = rate
        self._ours, self._others = ours, others
        self._rng = random.Random(seed)
        self.latencies: dict[str, list[tuple[float, float]]] = {"ours": [], "others": []}  # (due, seconds)
        self.late: list[float] = []  # seconds by which this process itself sent too late
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
        user = self._rng.choice(self._ours if kind == "ours" else self._others)
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
        """The latencies since the last time."""
        taken, self.latencies = self.latencies, {"ours": [], "others": []}
        return taken


def users_of(bucket_id: int, count: int) -> list[str]:
    """User ids that hash to one bucket."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if bucket_id_of(b"u%d" % number, BUCKETS) == bucket_id:
            found.append(f"u{number}")
        number += 1
    return found


async def pause(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """One bucket to and fro, and a phase without moves before it."""
    ours = users_of(477, arguments.accounts)
    others = [f"other_{number}" for number in range(10_000)]
    operator = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        for first in range(0, len(ours + others), 500):
            chunk = (ours + others)[first : first + 500]
            await asyncio.gather(*(client.top_up(user, nanos=1000 * COIN) for user in chunk))
        offered, stop = Offered(client, arguments.rate, ours, others, 1), asyncio.Event()
        task = asyncio.create_task(offered.run(stop))
        await asyncio.sleep(3)
        offered.take()
        await asyncio.sleep(arguments.seconds)
        still = offered.take()
        pauses, took = [], []
        owner = (await operator.ask("route"))["owners"][476]
        began_all = time.perf_counter()
        for _ in range(arguments.moves):
            owner = 3 - owner
            began = time.perf_counter()
            await operator.ask("move_bucket", 477, owner)
            ended = time.perf_counter()
            took.append(ended - began)
            await asyncio.sleep(arguments.seconds / arguments.moves)
            moving = [seconds for due, seconds in offered.latencies["ours"] if began <= due <= ended]
            pauses.append(max(moving, default=0.0))
        moved = offered.take()
        seconds = time.perf_counter() - began_all
        stop.set()
        await task
    phases = {"still": still, "moving": moved}
    others_p99 = {name: quantile([s for _, s in phase["others"]], 0.99) for name, phase in phases.items()}
    others_p50 = {name: quantile([s for _, s in phase["others"]], 0.5) for name, phase in phases.items()}
    return {
        "moves": arguments.moves,
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


def frames_for(users: list[str], count: int, seed: int) -> list[bytes]:
    """Top-ups, rates and debits of these users."""
    rng = random.Random(seed)
    frames = []
    for msgid in range(count):
        user, share = rng.choice(users), rng.random()
        if share < 0.8:
            request: list[Any] = ["top_up" if share < 0.4 else "set_rate", [user, rng.randrange(1, 1000)]]
        else:
            request = ["debit", [user, rng.randrange(1, 1000)]]
        frames.append(msgpack.packb([0, msgid, *request]))
    return frames


async def load(daemon: Daemon, by_port: dict[int, list[str]], seconds: float) -> tuple[int, list[float]]:
    """A closed loop of 512 on a connection to each port; commands answered, CPU seconds of each worker, ascending."""
    generators = []
    for port, users in by_port.items():
        generator = Generator(frames_for(users, 50_000, port), 512)
        await connected(generator, port)
        generators.append(generator)
    await asyncio.sleep(1)
    before, answered = [cpu_s(pid) for pid in pids_of(daemon)], sum(one.answered for one in generators)
    await asyncio.sleep(seconds)
    used = [cpu_s(pid) - was for pid, was in zip(pids_of(daemon), before, strict=True)]
    count = sum(one.answered for one in generators) - answered
    for generator in generators:
        generator.stopping = True
    await asyncio.gather(*(one.done for one in generators))
    assert not any(one.errors for one in generators), generators[0].errors[:1]
    for generator in generators:
        generator.transport.close()
    return count, sorted(used)


WORKERS: dict[int, list[int]] = {}


def pids_of(daemon: Daemon) -> list[int]:
    """Of the workers, not of the processes that they keep beside them."""
    assert daemon.process is not None
    return WORKERS[daemon.process.pid]


async def prepared(daemon: Daemon, wanted: list[int]) -> tuple[dict[int, int], dict[int, list[str]]]:
    """20,000 accounts, once each shard has so many buckets; the shards' own ports, and their users."""
    rpc = await Rpc.connect(daemon.rpc_port)
    for _ in range(600):
        rows = await rpc.ask("shards_info")
        if [row["buckets"] for row in rows] == wanted:
            break
        await asyncio.sleep(0.1)
    assert [row["buckets"] for row in rows] == wanted, rows
    assert daemon.process is not None
    WORKERS[daemon.process.pid] = [row["worker_pid"] for row in rows]
    users = [f"user_{number:07d}" for number in range(20_000)]
    for first in range(0, len(users), 1000):
        await asyncio.gather(*(rpc.ask("top_up", user, 1000 * COIN) for user in users[first : first + 1000]))
    route = await rpc.ask("route")
    ports = {row["shard_id"]: int(row["address"].rsplit(":", 1)[1]) for row in route["shards"]}
    by_shard: dict[int, list[str]] = {shard_id: [] for shard_id in ports}
    for user in users:
        by_shard[route["owners"][bucket_id_of(user.encode(), BUCKETS) - 1]].append(user)
    rpc.close()
    return ports, by_shard


async def passing(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """All buckets are shard 1's; its port, then that of shard 2, which passes everything on; alternating."""
    ports, by_shard = await prepared(daemon, [BUCKETS, 0])
    cost: dict[str, list[float]] = {"direct": [], "passed on": []}
    for _ in range(arguments.runs):
        for name, shard_id in (("direct", 1), ("passed on", 2)):
            count, used = await load(daemon, {ports[shard_id]: by_shard[1]}, arguments.seconds)
            cost[name].append(sum(used) / count * 1e6)
    direct, passed = (quantile(cost[name], 0.5) for name in ("direct", "passed on"))
    return {
        "direct_us_per_command": round(direct, 2),
        "passed_on_us_per_command": round(passed, 2),
        "ratio": round(passed / direct, 2),
    }


async def two(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """Two workers, each called by whom it owns."""
    ports, by_shard = await prepared(daemon, [BUCKETS // 2] * 2)
    rates = []
    for _ in range(arguments.runs):
        count, used = await load(daemon, {ports[one]: by_shard[one] for one in ports}, arguments.seconds)
        rates.append(count / 2 / used[-1])
    return {"commands_per_cpu_s_of_the_busier": round(quantile(rates, 0.5))}


async def one(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """One worker that owns everything."""
    ports, by_shard = await prepared(daemon, [BUCKETS])
    rates = []
    for _ in range(arguments.runs):
        count, used = await load(daemon, {ports[1]: by_shard[1]}, arguments.seconds)
        rates.append(count / used[-1])
    return {"commands_per_cpu_s": round(quantile(rates, 0.5))}


def slices(accounts: int) -> dict[str, Any]:
    """CPU of the longest slice, and of all, of each part of a move."""
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
    parser.add_argument("what", choices=("pause", "passing", "two", "slices"))
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
    plans: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "pause": [(pause, {"shards__workers": 2})],
        "passing": [(passing, {"shards__workers": 2, "shards__weights": "2=0"})],
        "two": [(two, {"shards__workers": 2}), (one, {"shards__workers": 1})],
    }
    result: dict[str, Any] = {}
    for function, settings in plans[arguments.what]:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            Path(name).chmod(0o700)
            daemon = Daemon(Path(name), journal__segment_bytes=64 * 1024 * 1024, **settings)
            with daemon, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result |= runner.run(function(daemon, arguments))
    if arguments.what == "two":
        ratio = result["commands_per_cpu_s_of_the_busier"] / result["commands_per_cpu_s"]
        result["ratio"] = round(ratio, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
