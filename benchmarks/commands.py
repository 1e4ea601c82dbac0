"""Durable commands a second, and the server's CPU per command.

Starts the real daemon in a directory of its own, creates accounts, then keeps `--depth` commands in flight on each of
`--connections` connections (closed loop: this measures cost, not latency under an offered rate). The frames are made
before the clock starts. Mix: 40 % top_up, 40 % set_rate, 20 % debit, users drawn uniformly, seeded.

    python -m benchmarks.commands --workers 1                          direct to the owner
    python -m benchmarks.commands --workers 2 --connections 2          plain clients: half is passed on
    python -m benchmarks.commands --workers 1 --depth 1 --accounts 1000

CPU is that of the daemon's main process and its workers, user and system, from /proc, without the generator and the
processes of the history (`benchmarks.history` measures these). The floors are the same frames against a null server, in
the same run, and an append and fdatasync of one small batch.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import msgpack
import uvloop

from benchmarks.figures import add_arguments, medians, quantiles_ms, show
from benchmarks.floor import null_server, sync_ms
from tests.system.daemon import Daemon

COIN = 10**9


class Server(Protocol):
    """The part of a server that a generator needs."""

    rpc_port: int

    def cpu_seconds(self) -> float:
        """The CPU seconds that the server has used so far."""


class Generator(asyncio.Protocol):
    """One connection: keeps `depth` frames in flight, and records each latency and every error."""

    def __init__(self, frames: list[bytes], depth: int, total: int | None = None) -> None:
        self.frames = frames
        self.depth = depth
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        """Sends frames until `depth` are in flight."""
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
            self.latencies.append(now - self._times[message[1] % len(self.frames)])
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


async def connected(protocol: asyncio.Protocol, port: int) -> None:
    """Connects a protocol to this port."""
    await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)


def mixed_frames(accounts: int, count: int, seed: int) -> list[bytes]:
    """Returns `count` requests with msgids 0, 1, 2, …"""
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


async def opened(server: Server, accounts: int) -> None:
    """Opens this number of accounts, with a thousand coins each."""
    frames = [msgpack.packb([0, index, "top_up", [f"user_{index:07d}", 1000 * COIN]]) for index in range(accounts)]
    await run(server, [frames], 2048, None)


def preload(server: Server, accounts: int) -> None:
    """Does what `opened` does, for a caller without a running loop."""
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(opened(server, accounts))


async def run(
    server: Server,
    frame_sets: list[list[bytes]],
    depth: int,
    seconds: float | None,
    ports: list[int] | None = None,
) -> dict[str, Any]:
    """Runs one measurement; without `seconds`, each frame is sent once. Each set of frames has a connection, to its
    port.
    """
    generators = []
    for frames, port in zip(frame_sets, ports or [server.rpc_port] * len(frame_sets), strict=True):
        generator = Generator(frames, depth, None if seconds else len(frames))
        await connected(generator, port)
        generators.append(generator)
    if seconds:
        await asyncio.sleep(min(1.0, seconds / 4))  # warm-up
    before_cpu, before_s = server.cpu_seconds(), time.perf_counter()
    before = sum(generator.answered for generator in generators)
    for generator in generators:
        generator.latencies.clear()
    if seconds:
        await asyncio.sleep(seconds)
    else:
        await asyncio.gather(*(generator.done for generator in generators))
    after_cpu, after_s = server.cpu_seconds(), time.perf_counter()
    count = sum(generator.answered for generator in generators) - before
    latencies = [latency for generator in generators for latency in generator.latencies]
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
        "server_cpu_us_per_command": round((after_cpu - before_cpu) / count * 1e6, 2),
        **quantiles_ms(latencies),
    }


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts daemon and null server, creates the accounts, and measures both in turns, `--runs` times."""
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, null_server() as null:
        Path(name).chmod(0o700)
        daemon = Daemon(
            Path(name),
            shards__workers=arguments.workers,
            journal__sync=arguments.sync,
            journal__segment_bytes=64 * 1024 * 1024,
        )
        with daemon:
            await opened(daemon, arguments.accounts)
            frame_sets = [
                mixed_frames(arguments.accounts, arguments.frames, arguments.seed + number)
                for number in range(arguments.connections)
            ]
            for _ in range(arguments.runs):
                sync = sync_ms(name)
                floor = await run(null, frame_sets, arguments.depth, min(arguments.seconds, 2.0))
                figures = await run(daemon, frame_sets, arguments.depth, arguments.seconds)
                floor_us = floor["server_cpu_us_per_command"]
                times = round(figures["server_cpu_us_per_command"] / floor_us, 2)
                runs.append(figures | {"floor_cpu_us": floor_us, "times_floor": times, "floor_sync_ms": sync})
    return runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--depth", type=int, default=512, help="in flight per connection")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--sync", default="always")
    add_arguments(parser)
    arguments = parser.parse_args()
    runs = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
