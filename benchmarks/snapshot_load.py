"""The effect on clients of a snapshot of a million accounts that is made while they are served.

Commands are offered at a steady rate, whatever the daemon does (open loop: a latency counts from when the command was
due), and beside them a `ping` every millisecond on a connection of its own, which waits for nothing but the worker's
loop: its longest latency is the longest pause. The first run makes no snapshots, the second one after the other. A
snapshot is under way while its unfinished file is in a shard's directory, and only commands sent meanwhile are counted.

    python -m benchmarks.snapshot_load --keep /var/tmp/million     # as benchmarks.restart fills it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from benchmarks.commands import connected, mixed_frames
from benchmarks.restart import daemon_in, filled
from tests.system.daemon import Daemon

TICK_S = 0.001


class Paced(asyncio.Protocol):
    """Sends frames on one connection when they are due, and records (when due, latency) of each, in seconds."""

    def __init__(self, frames: list[bytes], per_tick: float) -> None:
        self._frames = frames
        self._per_tick = per_tick
        self._due: dict[int, float] = {}
        self._sent = self._before = 0
        self._unpacker = msgpack.Unpacker(max_buffer_size=64 << 20)
        self.timed: list[tuple[float, float]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        now = time.perf_counter()
        for _, msgid, error, _ in self._unpacker:
            due = self._due.pop(msgid)
            self.timed.append((due, now - due))
            assert error is None or error.startswith("INSUFFICIENT_FUNDS"), error

    async def run(self, seconds: float) -> None:
        """Sends for `seconds`, then waits for the last answers."""
        began = time.perf_counter()
        ticks, self._before = 0, self._sent
        while (now := time.perf_counter()) - began < seconds:
            out = []
            while began + ticks * TICK_S <= now:
                while self._sent < self._before + (ticks + 1) * self._per_tick:
                    index = self._sent % len(self._frames)
                    self._due[index] = began + ticks * TICK_S
                    out.append(self._frames[index])
                    self._sent += 1
                ticks += 1
            if out:
                self.transport.write(b"".join(out))
            await asyncio.sleep(max(0.0, began + ticks * TICK_S - time.perf_counter()))
        while self._due:
            if self.transport.is_closing():
                raise ConnectionError(f"{len(self._due)} commands were not answered")
            await asyncio.sleep(0.01)


async def settled(daemon: Daemon) -> None:
    """Returns once the daemon is idle: timers are armed, the history has caught up."""
    quiet = 0
    while quiet < 3:
        before = daemon.cpu_seconds(beside=True)
        await asyncio.sleep(0.5)
        quiet = quiet + 1 if daemon.cpu_seconds(beside=True) - before < 0.03 else 0


async def watch(daemon: Daemon, spans: list[tuple[float, float]]) -> None:
    """Adds to `spans` the begin and end of each snapshot."""
    shards = list((daemon.directory / "data").glob("shard-*"))
    since = 0.0
    while True:
        under_way = any(name.name.endswith(".tmp") for shard in shards for name in shard.glob("snapshot-*"))
        now = time.perf_counter()
        if under_way and not since:
            since = now
        elif since and not under_way:
            spans.append((since, now))
            since = 0.0
        await asyncio.sleep(0.002)


def quantiles(timed: list[tuple[float, float]], spans: list[tuple[float, float]] | None) -> dict[str, float]:
    """Returns quantiles of the commands that were due within the spans; of all where `spans` is None."""
    chosen = sorted(took for due, took in timed if spans is None or any(begin <= due <= end for begin, end in spans))
    return {
        "count": len(chosen),
        **{f"p{share}_ms": round(chosen[int(len(chosen) * share / 100)] * 1e3, 2) for share in (50, 99, 99.9)},
        "max_ms": round(chosen[-1] * 1e3, 2),
    }


async def offer(daemon: Daemon, arguments: argparse.Namespace) -> tuple[Paced, Paced, list[tuple[float, float]]]:
    """Sends commands and pings for `--seconds`. Returns both, and the spans of the snapshots made meanwhile."""
    commands = Paced(mixed_frames(arguments.accounts, 100_000, 1), arguments.rate * TICK_S)
    pings = Paced([msgpack.packb([0, msgid, "ping", []]) for msgid in range(100_000)], 1)
    for protocol in (commands, pings):
        await connected(protocol, daemon.rpc_port)
    await asyncio.gather(commands.run(1.0), pings.run(1.0))  # warm-up
    commands.timed.clear()
    pings.timed.clear()
    spans: list[tuple[float, float]] = []
    watching = asyncio.create_task(watch(daemon, spans))
    await asyncio.gather(commands.run(arguments.seconds), pings.run(arguments.seconds))
    watching.cancel()
    for protocol in (commands, pings):
        protocol.transport.close()
    return commands, pings, spans


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Does both runs on the same data."""
    async with filled(arguments) as directory:
        result: dict[str, Any] = {}
        for name, snapshot_bytes in (("without", 1 << 40), ("with", arguments.snapshot_bytes)):
            daemon = daemon_in(directory, arguments.workers, snapshot_bytes=snapshot_bytes)
            try:
                daemon.start(wait_s=120)
                await settled(daemon)
                commands, pings, spans = await offer(daemon, arguments)
            finally:
                daemon.kill_all()
            within = spans if name == "with" else None
            if within is not None and not within:
                raise RuntimeError("no snapshot was finished: more --seconds, or fewer --snapshot-bytes")
            result[name] = {
                "commands": quantiles(commands.timed, within),
                "ping": quantiles(pings.timed, within),
                "snapshots_s": [round(end - began, 2) for began, end in spans],
            }
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=5_000, help="commands a second offered")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--snapshot-bytes", type=int, default=1 << 20, help="growth after which one is made")
    parser.add_argument("--keep", type=Path, help="a directory that is filled once and kept")
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, figures in result.items():
        print(f"{name:8} snapshots of {figures['snapshots_s']} s")
        for kind in ("commands", "ping"):
            print(f"{'':8} {kind:9}" + "  ".join(f"{key} {value}" for key, value in figures[kind].items()))


if __name__ == "__main__":
    main()
