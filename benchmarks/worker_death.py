"""How long a caller waits for UNAVAILABLE after a worker has died, when it calls through another worker.

    python -m benchmarks.worker_death --deaths 20

A client of worker 1 calls for a user of shard 2 every millisecond while worker 2 is killed (-9). Every call that was in
flight then, or was sent until shard 2 answered again, and was refused, counts: the time to its answer from its sending,
or from the kill where that is later.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.figures import quantile
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


async def deaths(daemon: Daemon, count: int) -> dict[str, Any]:
    """Kills the worker `count` times, one after the other. Returns figures."""
    operator = await Rpc.connect(daemon.rpc_port)
    route = await operator.ask("route")
    port = int(route["shards"][0]["address"].rsplit(":", 1)[1])
    rpc = await Rpc.connect(port)
    await rpc.ask("hello", {"errors": "map"})
    accounts = [await rpc.ask("top_up", f"u{number}", 10**9) for number in range(20)]
    user = next(account["user_id"] for account in accounts if route["owners"][account["bucket_id"] - 1] == 2)
    clock = time.perf_counter
    waits: list[float] = []
    away: list[float] = []
    applied = {"no": 0, "unknown": 0}
    for _ in range(count):
        pid = (await rpc.ask("shards_info"))[1]["worker_pid"]
        answers: list[tuple[float, float, Any]] = []

        async def call(answers: list[tuple[float, float, Any]] = answers) -> None:
            sent = clock()
            error, _ = await rpc.call("top_up", user, 1)
            answers.append((sent, clock(), error))

        calls = [asyncio.ensure_future(call()) for _ in range(5)]
        daemon.kill(pid)
        killed = clock()
        while not any(sent > killed and error is None for sent, _, error in answers):
            calls.append(asyncio.ensure_future(call()))
            await asyncio.sleep(0.001)
        await asyncio.gather(*calls)
        refused = [(sent, answered, error) for sent, answered, error in answers if error is not None]
        for sent, answered, error in refused:
            assert (error["name"], error["retry"]) == ("UNAVAILABLE", True), error
            applied[error["applied"]] += 1
            waits.append(answered - max(sent, killed))
        away.append(min(sent for sent, _, error in answers if sent > killed and error is None) - killed)
        await asyncio.to_thread(daemon.wait_ready, 60)
        await asyncio.sleep(1.1)
    return {
        "deaths": count,
        "unavailable": len(waits),
        "applied": applied,
        "wait_p50_ms": round(quantile(waits, 0.5) * 1e3, 2),
        "wait_p99_ms": round(quantile(waits, 0.99) * 1e3, 2),
        "wait_max_ms": round(max(waits) * 1e3, 2),
        "away_p50_s": round(quantile(away, 0.5), 2),
        "away_max_s": round(max(away), 2),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        with Daemon(Path(name)) as daemon, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(deaths(daemon, arguments.deaths))))


if __name__ == "__main__":
    main()
