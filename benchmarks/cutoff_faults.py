"""The p99 of commands while a cutoff endpoint misbehaves.

One daemon gets `--commands` a second for `--seconds`, each twentieth of which exhausts an account; in turns with a
healthy endpoint and with one fault after the other (`billing receiver` lists them), `--rounds` times. After each turn
the benchmark waits until the backlog is sent. One row per fault: p50 and p99 in milliseconds with the healthy endpoint
before it and with the fault, medians of the rounds, and the change of p99. The row `well` compares two turns with a
healthy endpoint: the noise.

    python -m benchmarks.cutoff_faults --directory /dev/shm      without the disk's part in p99
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.endpoint import COIN, Endpoint, many, nothing_owed, quantiles, top_ups
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

FAULTS = "refuse,hang,drip,status=503,status=429:1,reset,slow=300"


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all faults, `rounds` times."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        directory.chmod(0o700)
        endpoint = Endpoint()
        settings = {"cutoff__url": endpoint.url + "/off", "cutoff__timeout_s": 1.0, "cutoff__connect_timeout_s": 0.5}
        daemon = Daemon(directory, shards__workers=2, journal__segment_bytes=64 << 20, **settings)
        with endpoint, daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await many(rpc, [("top_up", f"other_{number}", 1) for number in range(10_000)])
            faults = ["", *arguments.faults.split(",")]
            turns: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {fault: [] for fault in faults}
            for number in range(arguments.rounds):
                for fault in faults:
                    turns[fault].append(await _turn(arguments, daemon, endpoint, rpc, fault, number))
    return [_row(fault or "well", turn) for fault, turn in turns.items()]


async def _turn(
    arguments: argparse.Namespace, daemon: Daemon, endpoint: Endpoint, rpc: Rpc, fault: str, number: int
) -> tuple[dict[str, float], dict[str, float]]:
    quantiles_of_runs: list[dict[str, float]] = []
    for name in ("", fault):
        count = int(arguments.commands * arguments.seconds / 20) + 10
        dry = [f"dry_{fault}_{number}_{len(quantiles_of_runs)}_{index}" for index in range(count)]
        await many(rpc, [("top_up", user, COIN) for user in dry])
        if name:
            endpoint.page("/misbehave", fault=name, for_s=arguments.seconds + 0.2)
            await asyncio.sleep(0.1)
        quantiles_of_runs.append(
            quantiles(await top_ups(daemon.rpc_port, arguments.commands, arguments.seconds, dry), 1e3)
        )
        await nothing_owed(rpc)
    return quantiles_of_runs[0], quantiles_of_runs[1]


def _row(fault: str, turns: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    def middle(index: int, name: str) -> float:
        return round(statistics.median(turn[index][name] for turn in turns), 2)

    moved = statistics.median(turn[1]["p99"] / turn[0]["p99"] - 1 for turn in turns)
    return {
        "fault": fault,
        "well_p50": middle(0, "p50"),
        "p50": middle(1, "p50"),
        "well_p99": middle(0, "p99"),
        "p99": middle(1, "p99"),
        "p99_moved_percent": round(moved * 100),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=FAULTS)
    parser.add_argument("--commands", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/tmp")
    rows = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(parser.parse_args()))
    print("\n".join(json.dumps(row) for row in rows))


if __name__ == "__main__":
    main()
