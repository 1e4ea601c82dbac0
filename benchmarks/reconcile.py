"""How long `billing reconcile` takes, with a million machines against a serving daemon of a million accounts.

Fills the real daemon (each account has money and a rate, so an armed timer), writes an inventory with a line for each
account, of which every 100,000th names another rate, and runs the command as users do. It prints the command's seconds,
CPU and peak memory, and the CPU of the daemon meanwhile; it fails if the command does not find these differences.

    python -m benchmarks.reconcile --accounts 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.restart import daemon_in, fill
from tests.system.daemon import Daemon

RATE_NANOS_PER_HOUR = 1000 * 3600  # the rate that `fill` sets: 1,000 nanos a second
OTHER_EVERY = 100_000


def write_inventory(path: Path, accounts: int) -> int:
    """Writes a line for each account. Returns how many of them name another rate."""
    with path.open("w") as out:
        out.write("user,resource,rate\n")
        for index in range(accounts):
            nanos = RATE_NANOS_PER_HOUR + (index % OTHER_EVERY == 0)
            out.write(f"user_{index:07d},,0.{nanos:09d}\n")
    return -(-accounts // OTHER_EVERY)


def reconciled(daemon: Daemon, inventory: Path) -> dict[str, Any]:
    """Runs the command once. Returns its result and cost."""
    command = [sys.executable, "-m", "billing", "reconcile", str(inventory), "--json", "--address", daemon.address]
    before, cpu = resource.getrusage(resource.RUSAGE_CHILDREN), daemon.cpu_seconds()
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TZ": "UTC"})
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "daemon_cpu_seconds": round(daemon.cpu_seconds() - cpu, 1),
        "memory_mib": after.ru_maxrss // 1024,
        "machines": report["machines"],
        "differences": len(report["differences"]),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as home:
        inventory = Path(home) / "inventory.csv"
        wanted = write_inventory(inventory, arguments.accounts)
        with daemon_in(Path(home), arguments.workers) as daemon:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(fill(daemon, arguments.accounts))
            for _ in range(arguments.runs):
                figures = reconciled(daemon, inventory)
                assert (figures["machines"], figures["differences"]) == (arguments.accounts, wanted), figures
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
