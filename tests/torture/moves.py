"""Buckets move all the time while workers and the supervisor are killed: at any step of a move, again and again.

    python -m tests.torture.moves kills --cycles 200 --seed 1
    python -m tests.torture.moves rebalancing --seconds 300 --seed 1

`kills`: operators move random buckets to and fro; in each cycle the source of the move that runs, its target, or the
supervisor is killed at a random instant of it. Whatever was answered must be there, once, and each bucket must have one
owner, by what the workers themselves hold.

`rebalancing` is vshard's `restart_during_rebalancing`: the number of shards changes by a reload, and while buckets even
out a random worker is killed every 0.8 s in which more than one serves, under load, until it is even; then the number
changes again.

Prints what it counted as JSON; exit code 1 with the reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.daemon import Daemon
from tests.system.rpc import ConnectionLost, Rpc
from tests.torture.cycles import cycle, judged, kill_noticed, prove, struck_daemon
from tests.torture.load import Load

TARGETS = ("source", "target", "supervisor")
KILL_EVERY_S = 0.8
BALANCE_WAIT_S = 600.0
READY_WAIT_S = 600.0
SIZES = (1, 3, 2, 4)


class MoveOperators:
    """Operators who move buckets for ever; `now` is the move that they wait for, (bucket, source, target)."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.now: tuple[int, int, int] | None = None
        self.moved = self.refused = 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, port: int) -> None:
        self._stop.clear()
        self._task = asyncio.create_task(self._run(port))

    async def end(self) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _run(self, port: int) -> None:
        while not self._stop.is_set():
            try:
                rpc = await Rpc.connect(port)
                while not self._stop.is_set():
                    error, route = await rpc.call("route")
                    if error is None:
                        await self._move(rpc, route)
                    await asyncio.sleep(0.002)
            except (ConnectionLost, OSError):
                await asyncio.sleep(0.02)
            finally:
                self.now = None

    async def _move(self, rpc: Rpc, route: Any) -> None:
        bucket_id = self._rng.randrange(1, len(route["owners"]) + 1)
        source = route["owners"][bucket_id - 1]
        target = self._rng.choice([row["shard_id"] for row in route["shards"] if row["shard_id"] != source])
        self.now = (bucket_id, source, target)
        error, _ = await rpc.call("move_bucket", bucket_id, target)
        self.now = None
        self.moved += error is None
        self.refused += error is not None
        assert error is None or error.startswith(("MOVE_REFUSED", "UNAVAILABLE")), error


async def one_owner_each(daemon: Daemon) -> None:
    """By what every worker holds. AssertionError."""
    rpc = await Rpc.connect(daemon.rpc_port)
    report = await rpc.ask("check_owners")
    assert report["faults"] == [], report
    rpc.close()


async def kills(daemon: Daemon, cycles: int, seed: int) -> dict[str, int]:
    """So many kills, each target in its turn, and the proof. AssertionError."""
    rng, load, movers = random.Random(seed), Load("moves"), MoveOperators(seed)
    turn = [TARGETS[number % len(TARGETS)] for number in range(cycles)]

    async def strike(rng: random.Random, load: Load) -> str:
        victim = turn.pop(0)
        pids = await shards_of(daemon)
        await wait_until(lambda: movers.now is not None)
        await asyncio.sleep(rng.uniform(0, 0.006))  # a move takes about that long
        now = movers.now
        if now is None:  # it has ended: the next one is struck as it begins
            await wait_until(lambda: movers.now is not None)
            now = movers.now
        load.counts["struck in a move"] += now is not None
        _, source, target = now or (0, 1, 2)
        process = daemon.process
        assert process is not None
        if victim == "supervisor":
            daemon.kill(process.pid)
            process.wait()
        else:
            pid = pids[source if victim == "source" else target]
            assert pid, "a worker is missing before it is struck"
            await kill_noticed(daemon, pid, rng)
        return victim

    async def heal(victim: str) -> None:
        await movers.end()
        await asyncio.to_thread(daemon.start if victim == "supervisor" else daemon.wait_ready, READY_WAIT_S)
        await one_owner_each(daemon)
        movers.begin(daemon.rpc_port)

    await asyncio.to_thread(daemon.start)
    movers.begin(daemon.rpc_port)
    for _ in range(cycles):
        await cycle(daemon, load, rng, strike, heal)
    await movers.end()
    load.require(cycles)
    assert load.counts["struck in a move"] > cycles // 2, load.counts
    load.counts["moved"], load.counts["moves refused"] = movers.moved, movers.refused
    await prove(daemon, load)
    return dict(load.counts)


async def rebalancing(daemon: Daemon, seconds: float, seed: int) -> dict[str, int]:
    """Kills a random worker every 0.8 s under load until balanced, for so long, and the proof. AssertionError."""
    rng, load = random.Random(seed), Load("even")
    await asyncio.to_thread(daemon.start)
    until_s = time.monotonic() + seconds
    sizes = iter(SIZES * 1000)
    while time.monotonic() < until_s or load.counts["balanced"] < 2:
        size = next(sizes)
        resize(daemon, size)
        load.begin(daemon.rpc_port)
        began_s = time.monotonic()
        try:
            while not await is_even(daemon, size):
                serving = await serving_of(daemon)
                if len(serving) > 1:
                    await asyncio.sleep(KILL_EVERY_S)
                    with contextlib.suppress(ProcessLookupError):  # drained and gone meanwhile
                        daemon.kill(rng.choice(serving))
                        load.counts["killed"] += 1
                await asyncio.sleep(0.05)
                assert time.monotonic() - began_s < BALANCE_WAIT_S, "not even after all that time"
        finally:
            await load.end()
        load.counts["balanced"] += 1
        await asyncio.to_thread(daemon.wait_ready, READY_WAIT_S)
        await load.verify(daemon.rpc_port)
        await one_owner_each(daemon)
    load.require(1)
    assert load.counts["killed"] > 0, "nothing was killed"
    await prove(daemon, load)
    return dict(load.counts)


def resize(daemon: Daemon, workers: int) -> None:
    """Another number of workers in the configuration, and a reload."""
    lines = daemon.config.read_text().splitlines()
    changed = [f"workers = {workers}" if line.startswith("workers = ") else line for line in lines]
    daemon.config.write_text("\n".join(changed) + "\n")
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


async def shards_of(daemon: Daemon) -> dict[int, int]:
    """shard id -> pid."""
    rpc = await Rpc.connect(daemon.rpc_port)
    try:
        return {row["shard_id"]: row["worker_pid"] for row in await rpc.ask("shards_info")}
    finally:
        rpc.close()


async def is_even(daemon: Daemon, size: int) -> bool:
    """Whether there are so many shards, with as many buckets each."""
    try:
        rpc = await Rpc.connect(daemon.rpc_port)
        error, rows = await asyncio.wait_for(rpc.call("shards_info"), 5)
        rpc.close()
    except (ConnectionLost, OSError, TimeoutError):
        return False
    counts = [row["buckets"] for row in rows] if error is None else []
    return len(counts) == size and max(counts) - min(counts) <= 1


async def serving_of(daemon: Daemon) -> list[int]:
    """The workers that serve."""
    try:
        rpc = await Rpc.connect(daemon.rpc_port)
        error, rows = await asyncio.wait_for(rpc.call("shards_info"), 5)
        rpc.close()
    except (ConnectionLost, OSError, TimeoutError):
        return []
    return [row["worker_pid"] for row in rows if row["state"] == "serving"] if error is None else []


async def wait_until(holds: Callable[[], bool]) -> None:
    """Returns when it does, or after five seconds."""
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.001)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=("kills", "rebalancing"))
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="moves-") as name:
        if arguments.campaign == "kills":
            daemon = struck_daemon(Path(name), shards__workers=3)
            return judged(daemon, kills(daemon, arguments.cycles, arguments.seed))
        daemon = struck_daemon(Path(name), shards__workers=2)
        return judged(daemon, rebalancing(daemon, arguments.seconds, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
