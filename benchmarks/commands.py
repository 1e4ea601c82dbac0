"""Durable commands a second, and what each costs the server in CPU.

Starts the real daemon in a directory of its own, creates accounts, then keeps `--depth` commands in flight on each of
`--connections` connections (closed loop: this measures cost, not latency under an offered rate). The frames are made
before the clock starts. Mix: 40 % top_up, 40 % set_rate, 20 % debit, users drawn uniformly, seeded.

    python -m benchmarks.commands --workers 1 --accounts 100000 --seconds 10

CPU is that of all processes of the daemon, user and system, from /proc; the generator's is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from tests.system.daemon import Daemon

COIN = 10**9


class Generator(asyncio.Protocol):
    """One connection: keeps `depth` frames in flight, notes how long each took and every error."""

    def __init__(self, frames: list[bytes], depth: int, done: asyncio.Future[None], total: int | None) -> None:
        self.frames = frames
        self.depth = depth
        self.done = done
        self.total = total
        self.sent = 0
        self.answered = 0
        self.errors: list[Any] = []
        self.latencies: list[float] = []
        self.stopping = False
        self._times: dict[int, float] = {}
        self._unpacker = msgpack.Unpacker(max_buffer_size=64 << 20)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.fill()

    def fill(self) -> None:
        now = time.perf_counter()
        out = []
        while not self.stopping and self.sent - self.answered < self.depth:
            if self.total is not None and self.sent >= self.total:
                break
            index = self.sent % len(self.frames)
            out.append(self.frames[index])
            self._times[index] = now
            self.sent += 1
        if out:
            self.transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        now = time.perf_counter()
        for message in self._unpacker:
            self.answered += 1
            self.latencies.append(now - self._times[message[1]])
            if message[2] is not None and not message[2].startswith("INSUFFICIENT_FUNDS"):
                self.errors.append(message[2])
        if self.answered == self.sent and (self.stopping or self.sent == self.total):
            if not self.done.done():
                self.done.set_result(None)
        else:
            self.fill()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the daemon closed the connection"))


def mixed_frames(accounts: int, count: int, seed: int) -> list[bytes]:
    """`count` requests with msgids 0, 1, 2, …"""
    rng = random.Random(seed)
    frames = []
    for msgid in range(count):
        user = f"user_{rng.randrange(accounts):07d}"
        share = rng.random()
        if share < 0.4:
            request = ["top_up", [user, rng.randrange(1, 10 * COIN)]]
        elif share < 0.8:
            request = ["set_rate", [user, rng.randrange(0, 1000)]]
        else:
            request = ["debit", [user, rng.randrange(1, COIN)]]
        frames.append(msgpack.packb([0, msgid, *request]))
    return frames


def preload(daemon: Daemon, accounts: int, nanos: int) -> None:
    """Opens these accounts, with so much money each."""
    frames = [msgpack.packb([0, index, "top_up", [f"user_{index:07d}", nanos]]) for index in range(accounts)]
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(run(daemon, [frames], 2048, None))


async def run(daemon: Daemon, frame_sets: list[list[bytes]], depth: int, seconds: float | None) -> dict[str, Any]:
    """Runs one measurement; without `seconds`, each frame is sent once."""
    loop = asyncio.get_running_loop()
    generators = []
    for frames in frame_sets:
        done = loop.create_future()
        generator = Generator(frames, depth, done, None if seconds else len(frames))
        await loop.create_connection(lambda generator=generator: generator, "127.0.0.1", daemon.rpc_port)
        generators.append(generator)
    if seconds:
        await asyncio.sleep(min(1.0, seconds / 4))  # warm-up
    before_cpu, before_s = daemon.cpu_seconds(), time.perf_counter()
    before = sum(generator.answered for generator in generators)
    for generator in generators:
        generator.latencies.clear()
    if seconds:
        await asyncio.sleep(seconds)
    else:
        await asyncio.gather(*(generator.done for generator in generators))
    after_cpu, after_s = daemon.cpu_seconds(), time.perf_counter()
    count = sum(generator.answered for generator in generators) - before
    latencies = sorted(latency for generator in generators for latency in generator.latencies)
    for generator in generators:
        generator.stopping = True
    await asyncio.wait_for(asyncio.gather(*(generator.done for generator in generators)), 30)
    errors = [error for generator in generators for error in generator.errors]
    if errors:
        raise RuntimeError(f"{len(errors)} errors, first {errors[0]}")
    for generator in generators:
        generator.transport.close()
    return {
        "commands_per_s": round(count / (after_s - before_s)),
        "server_cpu_us_per_command": round((after_cpu - before_cpu) / max(count, 1) * 1e6, 2),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 3) if latencies else None,
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1e3, 3) if latencies else None,
        "p999_ms": round(latencies[len(latencies) * 999 // 1000] * 1e3, 3) if latencies else None,
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the daemon, loads it, measures `--runs` times."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        daemon = Daemon(
            Path(name),
            shards__workers=arguments.workers,
            journal__sync=arguments.sync,
            journal__segment_bytes=64 * 1024 * 1024,
        )
        with daemon:
            preload = [
                msgpack.packb([0, index, "top_up", [f"user_{index:07d}", 1000 * COIN]])
                for index in range(arguments.accounts)
            ]
            await run(daemon, [preload], 2048, None)
            frame_sets = [
                mixed_frames(arguments.accounts, arguments.frames, arguments.seed + number)
                for number in range(arguments.connections)
            ]
            runs = [
                await run(daemon, frame_sets, arguments.depth, arguments.seconds) for _ in range(arguments.runs)
            ]
    return {
        "arguments": vars(arguments),
        "runs": runs,
        "median": {key: statistics.median(one[key] for one in runs) for key in runs[0]},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--depth", type=int, default=512, help="in flight per connection")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", default="always")
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for one in (*result["runs"], {"median of": arguments.runs, **result["median"]}):
        print("  ".join(f"{key} {value}" for key, value in one.items()))


if __name__ == "__main__":
    main()
