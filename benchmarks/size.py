"""The cost of very many accounts: memory, the start, idling, and each command.

Two daemons, one with `--few` accounts and one with `--accounts`, both filled as `benchmarks.stock` does: each account
with money, one rate line, and so an armed timer. Of the second one: resident memory of its workers per account, above
that of workers that hold none; seconds from the start of the process until it reports that it serves, from the
snapshot; share of a core while nothing is due. Then the same mix of commands (drawn from all accounts of each) to both
in turns: CPU per command with many accounts, divided by that with few.

    python -m benchmarks.size --accounts 1000000
    python -m benchmarks.size --accounts 10000000 --workers 2      takes some minutes to fill, and 2.5 GB
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import mixed_frames, run
from benchmarks.figures import add_arguments, medians, show
from benchmarks.stock import fill
from tests.system.daemon import Daemon

REST_S = 10.0
SETTLE_S = 30.0  # after a start, the daemon compares each account's timer with the ledger once; it is not idle then


def resident_bytes(daemon: Daemon) -> int:
    """Returns the resident bytes of all workers."""
    kib = 0
    for pid in daemon.worker_pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                kib += int(line.split()[1])
    return kib * 1024


def commands(daemon: Daemon, accounts: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs commands for all of the daemon's accounts once. Returns figures."""
    frames = mixed_frames(accounts, arguments.frames, arguments.seed)
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(
        run(daemon, [frames], arguments.depth, arguments.seconds)
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--frames", type=int, default=200_000)
    add_arguments(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, contextlib.ExitStack() as stack:
        few, many = (Daemon(_made(Path(name) / part), shards__workers=arguments.workers) for part in ("few", "many"))
        stack.callback(few.kill_all)
        stack.callback(many.kill_all)
        few.start()
        time.sleep(1)
        empty_bytes = resident_bytes(few)
        few.stop()
        fill(few, arguments.few, arguments.workers)
        fill(many, arguments.accounts, arguments.workers)
        began = time.perf_counter()
        many.start(wait_s=300)
        started_s = time.perf_counter() - began
        time.sleep(2)
        account_bytes = (resident_bytes(many) - empty_bytes) / arguments.accounts
        time.sleep(SETTLE_S)
        cpu_s = many.cpu_seconds(beside=True)
        time.sleep(REST_S)
        rest_share = (many.cpu_seconds(beside=True) - cpu_s) / REST_S
        few.start()
        runs = []
        for _ in range(arguments.runs):
            small = commands(few, arguments.few, arguments)["server_cpu_us_per_command"]
            great = commands(many, arguments.accounts, arguments)
            great_us = great["server_cpu_us_per_command"]
            runs.append(
                {"few_cpu_us": small, "many_cpu_us": great_us, "ratio": round(great_us / small, 3)}
                | {"commands_per_s": great["commands_per_s"], "p99_ms": great["p99_ms"]}
            )
    result = {
        "bytes_per_account": round(account_bytes, 1),
        "start_s": round(started_s, 2),
        "rest_share_of_a_core": round(rest_share, 4),
        **medians(runs),
    }
    show(arguments, runs, result)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


if __name__ == "__main__":
    main()
