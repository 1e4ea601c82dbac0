"""The longest pause of a worker's loop: a million accounts, load, and snapshots all the time.

A daemon filled as `benchmarks.stock` does is offered `--rate` commands a second, evenly, while snapshots are made as
the journal grows by `--snapshot-bytes`. The figures come from the workers' own metrics:

    beat_p50_ms …   by how much a beat of the loop, ten a second, came late: how long anything would have waited
    gc_max_ms       the longest garbage collection (it grew with the accounts before these were frozen)
    slice_max_ms    the longest slice of a snapshot

The floor is the same beat on the loop of an idle process beside it: the delay of the machine itself.

    python -m benchmarks.pauses --seconds 600
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import connected, mixed_frames
from benchmarks.figures import add_arguments, medians, show
from benchmarks.snapshot_load import TICK_S, Paced
from benchmarks.stock import fill
from billing.admin.metrics import WORKER
from shards.system.clock import MACHINE_CLOCKS
from shards.worker.histogram import Histogram, Pulse
from tests.system.daemon import Daemon

FRAMES = 500_000  # more than can be in flight, since each frame has its own msgid
SAMPLE_S = 10.0
SETTLE_S = 65.0  # until the workers' longest pause is no longer one of their start
PAUSE, GC_PAUSE, SLICE, SNAPSHOTS, LAG = (
    WORKER[figure][0]
    for figure in ("pause_max_ns", "gc_pause_max_ns", "snapshot_pause_max_ns", "snapshots", "loop_lag_ns")
)
LINE = re.compile(r"^(billing_[a-z_]+)(?:\{([^}]*)\})? ([0-9.eE+-]+)$", re.MULTILINE)


def metrics(daemon: Daemon) -> list[tuple[str, str, float]]:
    """Returns (name, labels, value) of all metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return [(name, labels or "", float(value)) for name, labels, value in LINE.findall(page)]


def greatest(samples: list[tuple[str, str, float]], name: str) -> float:
    """Returns the greatest value of one metric over all workers, in its own unit. Raises ValueError where there is
    none.
    """
    return max(value for sample_name, _, value in samples if sample_name == name)


def total(samples: list[tuple[str, str, float]], name: str) -> float:
    """Returns one metric summed over all workers. Raises ValueError where there is none."""
    values = [value for sample_name, _, value in samples if sample_name == name]
    if not values:
        raise ValueError(f"the daemon has no metric {name}")
    return sum(values)


async def floor_pulse(seconds: float) -> tuple[Histogram, int]:
    """Runs the beat on a loop that does nothing else. Returns its histogram, and its longest pause."""
    pulse = Pulse(MACHINE_CLOCKS.boot_ns)
    longest = 0
    remaining_s = seconds
    while remaining_s > 0:
        await asyncio.sleep(min(SAMPLE_S, remaining_s))
        remaining_s -= SAMPLE_S
        longest = max(longest, pulse.figures()["pause_max_ns"])
    pulse.close()
    return pulse.lag, longest


def pulse_in_a_process(seconds: float) -> tuple[list[int], int]:
    """Does what `floor_pulse` does; to be called in a process of its own. Returns the histogram's counts."""
    tally, longest = uvloop.run(floor_pulse(seconds))
    return tally.counts, longest


async def offer(daemon: Daemon, arguments: argparse.Namespace) -> dict[str, Any]:
    """Offers the load. Returns the figures of the workers' loops meanwhile."""
    commands = Paced(mixed_frames(arguments.accounts, FRAMES, arguments.seed), arguments.rate * TICK_S)
    await connected(commands, daemon.rpc_port)
    await commands.run(2.0)
    commands.timed.clear()
    before = await asyncio.to_thread(metrics, daemon)
    longest = 0.0

    async def sample() -> None:
        nonlocal longest
        while True:
            await asyncio.sleep(SAMPLE_S)
            longest = max(longest, greatest(await asyncio.to_thread(metrics, daemon), PAUSE))

    sampling = asyncio.create_task(sample())
    floor_process = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        f"from benchmarks.pauses import pulse_in_a_process; print(pulse_in_a_process({arguments.seconds})[1])",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await commands.run(arguments.seconds)
    floor_ns = int((await floor_process.communicate())[0])
    sampling.cancel()
    after = await asyncio.to_thread(metrics, daemon)
    longest = max(longest, greatest(after, PAUSE))
    return {
        "commands": len(commands.timed),
        "snapshots": int(total(after, SNAPSHOTS) - total(before, SNAPSHOTS)),
        **beats(before, after),
        "beat_max_ms": round(longest * 1e3, 2),
        "gc_max_ms": round(greatest(after, GC_PAUSE) * 1e3, 2),
        "slice_max_ms": round(greatest(after, SLICE) * 1e3, 2),
        "floor_beat_max_ms": round(floor_ns / 1e6, 2),
    }


def beats(before: list[tuple[str, str, float]], after: list[tuple[str, str, float]]) -> dict[str, float]:
    """Returns upper bounds of p50, p99 and p99.9 of the beats between two readings, of all workers."""
    counts: dict[float, float] = {}
    for sign, samples in ((-1, before), (1, after)):
        for name, labels, value in samples:
            if name == f"{LAG}_bucket":
                bound = re.search(r'le="([^"]+)"', labels)
                assert bound is not None
                counts[float(bound[1])] = counts.get(float(bound[1]), 0.0) + sign * value
    total = counts[float("inf")]
    return {
        name: min(bound for bound, count in counts.items() if count >= share * total) * 1e3
        for name, share in (("beat_p50_ms", 0.5), ("beat_p99_ms", 0.99), ("beat_p999_ms", 0.999))
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=int, default=2_000, help="commands a second offered")
    parser.add_argument("--snapshot-bytes", type=int, default=16 << 20, help="growth after which one is made")
    add_arguments(parser, runs=1, seconds=600.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        daemon = Daemon(Path(name), shards__workers=arguments.workers, journal__snapshot_bytes=arguments.snapshot_bytes)
        fill(daemon, arguments.accounts, arguments.workers)
        daemon.start(wait_s=120)
        try:
            time.sleep(SETTLE_S)
            runs = [
                asyncio.Runner(loop_factory=uvloop.new_event_loop).run(offer(daemon, arguments))
                for _ in range(arguments.runs)
            ]
        finally:
            daemon.kill_all()
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
