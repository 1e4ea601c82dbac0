"""A cutoff endpoint in a process of its own, and the calls to a daemon: what the benchmarks of cutoffs share.

The receiver stamps each call with the wall clock as it reads it. A benchmark asks it for the calls after the
measurement.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from typing import Any

from tests.system.ports import free_port
from tests.system.rpc import Rpc

COIN = 10**9
KEEP = 1_000_000  # calls that the receiver keeps


class Endpoint:
    """`billing receiver` as a child process; it can be stopped and started again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process."""
        command = [sys.executable, "-m", "billing", "receiver", "--listen", f"127.0.0.1:{self.port}", "--quiet"]
        self._process = subprocess.Popen([*command, "--keep", str(KEEP)], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """Ends the process; the calls that it received are lost."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Endpoint:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def page(self, path: str, **query: object) -> Any:
        """Requests one of the receiver's own pages. Raises RuntimeError where it answers with an error."""
        text = urllib.parse.urlencode(query)
        with urllib.request.urlopen(f"{self.url}{path}?{text}", timeout=20) as answer:
            reply = json.load(answer)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def calls(self) -> list[dict[str, Any]]:
        """Returns all calls received, in order."""
        calls: list[dict[str, Any]] = []
        while part := self.page("/received", after=len(calls), limit=10_000)["calls"]:
            calls += part
        return calls


async def many(rpc: Rpc, calls: list[tuple[Any, ...]], at_once: int = 2000) -> list[Any]:
    """Makes calls, pipelined; returns their results."""
    results = []
    for start in range(0, len(calls), at_once):
        results += await asyncio.gather(*(rpc.ask(*call) for call in calls[start : start + at_once]))
    return results


async def top_ups(port: int, per_second: int, seconds: float, exhausted: list[str] | None = None) -> list[float]:
    """An open loop of top-ups at a constant rate; returns latencies from the intended start, sorted, in seconds. Each
    twentieth command debits a coin from one of `exhausted` instead, as long as there are any, which causes a cutoff.
    """
    rpc = await Rpc.connect(port)
    rng = random.Random(7)
    latencies: list[float] = []
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def top_up(intended: float, dry: str) -> None:
        if dry:
            await rpc.ask("debit", dry, COIN)
        else:
            await rpc.ask("top_up", f"other_{rng.randrange(10_000)}", 1)
        latencies.append(time.perf_counter() - intended)

    sent = 0
    while (now := time.perf_counter()) - began < seconds:
        while sent < (now - began) * per_second:
            dry = exhausted.pop() if exhausted and sent % 20 == 0 else ""
            task = asyncio.create_task(top_up(began + sent / per_second, dry))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    rpc.close()
    return sorted(latencies)


async def nothing_owed(rpc: Rpc, wait_s: float = 60.0) -> None:
    """Returns once the daemon owes no cutoff. Raises TimeoutError after `wait_s`."""
    async with asyncio.timeout(wait_s):
        while await rpc.ask("pending_cutoffs"):
            await asyncio.sleep(0.05)


def quantiles(values: list[float], scale: float) -> dict[str, float]:
    """Returns minimum, median, 99th percentile and maximum of sorted values, each times `scale`."""
    count = len(values)
    picks = {"min": 0, "p50": count // 2, "p99": count * 99 // 100, "max": count - 1}
    return {name: round(values[index] * scale, 2) for name, index in picks.items()}


def disagreements(calls: list[dict[str, Any]], active: set[str]) -> dict[str, int]:
    """Counts the users whose last call to the endpoint (`/off` or `/on`) contradicts the ledger, and the early cutoffs.
    `active`: the users who are active in the ledger.
    """
    last = {call["user_id"]: call["target"].partition("?")[0] for call in calls}
    return {
        "off_but_active": sum(path == "/off" and user in active for user, path in last.items()),
        "on_but_exhausted": sum(path == "/on" and user not in active for user, path in last.items()),
        "early": sum(call["arrived_ns"] < call["exhausted_at_ns"] for call in calls if "/off" in call["target"]),
    }
