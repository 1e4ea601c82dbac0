"""The cost of a command with two workers, each called directly by clients that know the owner of every bucket.

Two daemons, one with one worker and one with two, same accounts, in turns. Frames go straight to the owner of their
bucket, according to `route`. The figure is commands per CPU second of the busier of the two workers, divided by that of
the one worker alone: 1.0 is scaling without loss. (Machines with two cores run generator and workers on the same cores,
so the commands a second mean little.)

    python -m benchmarks.scaling --seconds 4 --runs 5
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from benchmarks.commands import Generator, connected, mixed_frames, opened
from benchmarks.figures import add_arguments, medians, show
from shards.buckets import bucket_id_of
from tests.system.daemon import Daemon, cpu_seconds_of
from tests.system.rpc import Rpc


async def routed(daemon: Daemon, frames: list[bytes]) -> list[tuple[int, int, list[bytes]]]:
    """Returns for each worker its pid, its port, and the frames for the buckets that it owns, with msgids from 0."""
    client = await Rpc.connect(daemon.rpc_port)
    route, shards = await client.ask("route"), await client.ask("shards_info")
    client.close()
    pids = {shard["shard_id"]: shard["worker_pid"] for shard in shards}
    by_shard: dict[int, tuple[int, int, list[bytes]]] = {
        shard["shard_id"]: (pids[shard["shard_id"]], int(shard["address"].rpartition(":")[2]), [])
        for shard in route["shards"]
    }
    for frame in frames:
        _, _, method, params = msgpack.unpackb(frame)
        owner = route["owners"][bucket_id_of(params[0].encode(), route["bucket_count"]) - 1]
        mine = by_shard[owner][2]
        mine.append(msgpack.packb([0, len(mine), method, params]))
    return list(by_shard.values())


async def one_run(daemon: Daemon, frames: list[bytes], depth: int, seconds: float) -> tuple[float, float]:
    """Returns the commands a second of all workers, and the commands per CPU second of the worker that used
    more CPU.
    """
    workers = await routed(daemon, frames)
    generators = []
    for _, port, mine in workers:
        generator = Generator(mine, depth)
        await connected(generator, port)
        generators.append(generator)
    await asyncio.sleep(seconds / 4)  # warm-up
    before = [
        (cpu_seconds_of(pid), generator.answered) for (pid, _, _), generator in zip(workers, generators, strict=True)
    ]
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - began
    used = [
        (cpu_seconds_of(pid) - cpu, generator.answered - answered)
        for (pid, _, _), generator, (cpu, answered) in zip(workers, generators, before, strict=True)
    ]
    for generator in generators:
        generator.stopping = True
    await asyncio.wait_for(asyncio.gather(*(generator.done for generator in generators)), 30)
    for generator in generators:
        assert not generator.errors, generator.errors[0]
        generator.transport.close()
    busier_s, commands = max(used)
    return sum(count for _, count in used) / elapsed, commands / busier_s


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures both daemons in turns."""
    frames = mixed_frames(arguments.accounts, arguments.frames, arguments.seed)
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        daemons = {}
        for workers in (1, 2):
            directory = Path(name) / f"{workers}"
            directory.mkdir(mode=0o700)
            daemons[workers] = Daemon(directory, shards__workers=workers, journal__segment_bytes=64 << 20)
        with daemons[1], daemons[2]:
            for daemon in daemons.values():
                await opened(daemon, arguments.accounts)
            for _ in range(arguments.runs):
                per_s_1, alone = await one_run(daemons[1], frames, arguments.depth, arguments.seconds)
                per_s_2, busier = await one_run(daemons[2], frames, arguments.depth, arguments.seconds)
                runs.append(
                    {
                        "one_worker_per_s": round(per_s_1),
                        "two_workers_per_s": round(per_s_2),
                        "one_worker_cpu_us": round(1e6 / alone, 2),
                        "busier_of_two_cpu_us": round(1e6 / busier, 2),
                        "scaling": round(busier / alone, 3),
                    }
                )
    return runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--depth", type=int, default=512, help="in flight per connection")
    parser.add_argument("--frames", type=int, default=100_000)
    add_arguments(parser)
    arguments = parser.parse_args()
    runs = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
