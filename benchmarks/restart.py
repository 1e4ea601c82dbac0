"""How long a restart takes: from a snapshot of a million accounts, and by replaying a log.

Fills the real daemon (each account has money, a rate, and so an armed timer), stops it cleanly, which leaves a
snapshot, and starts it again: once per run, ended by kill −9 each time, so that every start loads that snapshot. Then
`--tail` commands are answered behind the snapshot, the daemon is killed, and the start that replays them is measured.

    python -m benchmarks.restart --accounts 1000000 --tail 1000000
    python -m benchmarks.restart --keep /var/tmp/million     # fills it once, measures it again and again

Seconds are those that each worker logs (from opening the journal, checks included, to the last entry replayed), and
those from the start of the daemon until it reports that it serves. The rate of replay leaves out the time of the same
start without a tail. A start that was not from a snapshot, or did not replay the tail, is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from benchmarks.commands import COIN, mixed_frames, run
from tests.system.daemon import Daemon

RECOVERED = re.compile(
    r"shard (\d+) recovered in ([\d.]+) s: ([\d,]+) parts? of a snapshot, ([\d,]+) records? replayed"
)


def daemon_in(directory: Path, workers: int, snapshot_bytes: int = 1 << 40) -> Daemon:
    """Returns the daemon of this directory; it makes a snapshot after `snapshot_bytes` of growth, and at a
    clean stop.
    """
    return Daemon(
        directory,
        shards__workers=workers,
        journal__segment_bytes=64 * 1024 * 1024,
        journal__snapshot_bytes=snapshot_bytes,
    )


async def fill(daemon: Daemon, accounts: int) -> None:
    """Gives each account money and a rate; none runs out during the measurement."""
    for method, amount in (("top_up", 1000 * COIN), ("set_rate", 1000)):
        for first in range(0, accounts, 200_000):
            frames = [
                msgpack.packb([0, index - first, method, [f"user_{index:07d}", amount]])
                for index in range(first, min(first + 200_000, accounts))
            ]
            await run(daemon, [frames], 2048, None)


def timed_start(daemon: Daemon, shards: int, tail: int) -> dict[str, Any]:
    """Starts the daemon. Returns the seconds until it is ready, and those of each worker."""
    before = daemon.log.stat().st_size if daemon.log.exists() else 0
    began = time.perf_counter()
    daemon.start(wait_s=120)
    ready_s = time.perf_counter() - began
    log_text = daemon.log.read_bytes()[before:].decode()
    workers = {int(match[1]): match for match in RECOVERED.finditer(log_text)}
    assert len(workers) == shards, f"the log does not say how long each of {shards} took:\n{log_text}"
    assert all(match[3] != "0" for match in workers.values()), f"there was no snapshot:\n{log_text}"
    records = sum(int(match[4].replace(",", "")) for match in workers.values())
    assert records >= tail, f"replayed were {records} records of {tail}"
    return {
        "ready_s": round(ready_s, 2),
        "worker_s": [float(workers[shard][2]) for shard in sorted(workers)],
        "records": records,
        "progress_lines": log_text.count("recovering shard"),
    }


@contextlib.asynccontextmanager
async def filled(arguments: argparse.Namespace) -> AsyncIterator[Path]:
    """Gives a directory with the accounts and a snapshot of them: `--keep`, or one that is removed afterwards."""
    with contextlib.ExitStack() as stack:
        directory = arguments.keep
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory)))
        directory.mkdir(mode=0o700, exist_ok=True)
        if not (directory / "filled").exists():
            daemon = daemon_in(directory, arguments.workers)
            stack.callback(daemon.kill_all)
            daemon.start()
            await fill(daemon, arguments.accounts)
            assert await asyncio.to_thread(daemon.stop, 120) == 0
            (directory / "filled").touch()
        yield directory


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fills the directory if it is empty, then measures."""
    async with filled(arguments) as directory:
        daemon = daemon_in(directory, arguments.workers)
        try:
            return await _measure(arguments, daemon)
        finally:
            daemon.kill_all()


async def _measure(arguments: argparse.Namespace, daemon: Daemon) -> dict[str, Any]:
    starts: list[dict[str, Any]] = []
    for _ in range(arguments.runs):
        starts.append(await asyncio.to_thread(timed_start, daemon, arguments.workers, 0))
        daemon.kill_all()
    result: dict[str, Any] = {"arguments": vars(arguments), "snapshot": starts}
    if arguments.tail:
        daemon.start(wait_s=120)
        for number in range(0, arguments.tail, 200_000):
            frames = mixed_frames(arguments.accounts, min(200_000, arguments.tail - number), number)
            await run(daemon, [frames], 2048, None)
        daemon.kill()
        tail = await asyncio.to_thread(timed_start, daemon, arguments.workers, arguments.tail)
        assert await asyncio.to_thread(daemon.stop, 120) == 0  # leaves a snapshot for the next time
        alone_s = [statistics.median(times) for times in zip(*(start["worker_s"] for start in starts), strict=True)]
        spent_s = sum(tail["worker_s"]) - sum(alone_s)
        result["tail"] = tail
        if spent_s > 0:  # else the tail is too short to make a difference
            result["tail"] = tail | {"entries_per_s_and_worker": round(tail["records"] / spent_s)}
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--tail", type=int, default=0, help="commands behind the snapshot, to be replayed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a directory that is filled once and kept")
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    if arguments.json:
        print(json.dumps(result, indent=1, default=str))
        return
    for row in result.get("snapshot", []):
        print("snapshot  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    if "tail" in result:
        print("tail      " + "  ".join(f"{key} {value}" for key, value in result["tail"].items()))


if __name__ == "__main__":
    main()
