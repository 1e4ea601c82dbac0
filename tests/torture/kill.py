"""kill −9 of the worker, the supervisor or all, at a random instant under load, again and again on the same data.

    python -m tests.torture.kill --cycles 20 --seed 1

Prints what it counted as JSON; exit code 1 with the reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.system.daemon import Daemon
from tests.torture.cycles import cycle, judged, kill_noticed, prove, struck_daemon
from tests.torture.load import Load

TARGETS = ("worker", "supervisor", "all")


async def campaign(daemon: Daemon, cycles: int, seed: int) -> dict[str, int]:
    """So many cycles, each target in its turn, and the proof. AssertionError."""
    rng, load = random.Random(seed), Load("kill")
    turn = [TARGETS[number % len(TARGETS)] for number in range(cycles)]  # so no worker waits to be restarted

    async def strike(rng: random.Random, load: Load) -> str:
        target = turn.pop(0)
        process = daemon.process
        assert process is not None
        if target == "worker":
            pid = rng.choice(daemon.worker_pids())
            await kill_noticed(daemon, pid, rng)
        elif target == "supervisor":
            daemon.kill(process.pid)
            process.wait()
        else:
            daemon.kill()
        return target

    async def heal(target: str) -> None:
        await asyncio.to_thread(daemon.wait_ready if target == "worker" else daemon.start)

    await asyncio.to_thread(daemon.start)
    for _ in range(cycles):
        await cycle(daemon, load, rng, strike, heal)
    load.require(cycles)
    assert min(load.counts[target] for target in TARGETS) > 0, "a fault that never fired proves nothing"
    await prove(daemon, load)
    return dict(load.counts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kill-") as name:
        daemon = struck_daemon(Path(name))
        return judged(daemon, campaign(daemon, arguments.cycles, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
