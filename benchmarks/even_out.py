"""A million accounts in 3000 buckets are spread from one worker to two under load; the result is compared with a run
without moves.

    python -m benchmarks.even_out --accounts 1000000 --commands 200000

Both runs get the same commands through `billing.client`. Balance and last entry_id are compared for every account that
a command touched and for a sample of all accounts, and the histories of some; `billing doctor` proves the rest from the
stopped daemon's files. Meanwhile, other users run out of money: each must get exactly one cutoff, not before its
instant. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import opened
from billing.client import Client
from billing.trial.receiver import Receiver
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import ConnectionLost, Rpc

DEPTH = 256
HISTORIES = 300


def commands(accounts: int, count: int) -> list[tuple[str, list[Any]]]:
    """Returns the commands, the same for every run."""
    rng = random.Random(5)
    return [
        (rng.choice(("top_up", "debit")), [f"user_{rng.randrange(accounts):07d}", rng.randrange(1, 1000)])
        for _ in range(count)
    ]


class Script:
    """Sends a list of commands, `DEPTH` of them in flight, those of each user in order."""

    def __init__(self, client: Client, todo: list[tuple[str, list[Any]]]) -> None:
        self._client = client
        self._todo = iter(todo)
        self._unanswered = len(todo)
        self.errors: list[Any] = []
        self.slowest_s = 0.0
        self.done = asyncio.Event()

    def start(self) -> None:
        for _ in range(DEPTH):
            self._next()

    def _next(self) -> None:
        call = next(self._todo, None)
        if call is None:
            return
        began = time.perf_counter()

        def on_reply(error: Any, _: Any) -> None:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
            if error is not None:
                self.errors.append(error)
            self._unanswered -= 1
            if not self._unanswered:
                self.done.set()
            self._next()

        self._client.send(*call, on_reply)


async def spend(client: Client, due: dict[str, int], stop: asyncio.Event, number: int = 0) -> None:
    """Opens a hundred users a second whose money lasts for some tenths of a second."""
    while not stop.is_set():
        user = f"spender_{number}"
        number += 1
        await client.top_up(user, nanos=3_000)
        due[user] = (await client.set_rate(user, nanos=10_000))["exhausts_at_ns"]
        await asyncio.sleep(0.01)


async def even(daemon: Daemon) -> float:
    """Configures two workers; returns the seconds until each owns half of the buckets."""
    began = time.perf_counter()
    daemon.config.write_text(daemon.config.read_text().replace("workers = 1", "workers = 2"))
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)
    while True:
        try:
            rpc = await Rpc.connect(daemon.rpc_port)
            counts = [row["buckets"] for row in await rpc.ask("shards_info")]
            rpc.close()
        except (ConnectionLost, OSError):
            counts = []
        if len(counts) == 2 and max(counts) == min(counts):
            return time.perf_counter() - began
        await asyncio.sleep(0.1)


async def one_run(directory: Path, arguments: argparse.Namespace, moves: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the balances and histories at the end, and the figures of the run."""
    port = free_port()
    receiver = Receiver("127.0.0.1", port)
    await receiver.start()
    daemon = Daemon(
        directory,
        shards__workers=1,
        journal__segment_bytes=64 * 1024 * 1024,
        cutoff__url=f"http://127.0.0.1:{port}/cutoff",
    )
    todo = commands(arguments.accounts, arguments.commands)
    with daemon:
        await opened(daemon, arguments.accounts)
        due: dict[str, int] = {}
        async with Client(daemon.address, timeout_s=120) as client:
            stop = asyncio.Event()
            spending = asyncio.create_task(spend(client, due, stop))
            script = Script(client, todo)
            began = time.perf_counter()
            moved_s = asyncio.create_task(even(daemon)) if moves else None
            script.start()
            await script.done.wait()
            took_s = time.perf_counter() - began
            even_s = await moved_s if moved_s is not None else 0.0
            stop.set()
            await spending
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    while len({call.user_id for call in receiver.calls}) < len(due):
                        await asyncio.sleep(0.1)
            touched = sorted({params[0] for _, params in todo})
            step = max(1, arguments.accounts // 20_000)
            untouched = [f"user_{number:07d}" for number in range(0, arguments.accounts, step)]
            state: dict[str, Any] = {}
            users = touched + untouched
            for first in range(0, len(users), 2000):
                chunk = users[first : first + 2000]
                for user, account in zip(chunk, await asyncio.gather(*map(client.get_account, chunk)), strict=True):
                    state[user] = (account["balance_nanos"], account["entry_id"])
            for user in touched[:HISTORIES]:
                rows = await client.history(user)
                state[f"history of {user}"] = [
                    (row["entry_id"], row["operation"], row["amount_nanos"], row["balance_after_nanos"]) for row in rows
                ]
            checked = await client.check_owners()
    calls = {call.user_id: call.exhausted_at_ns for call in receiver.calls}
    early = sum(call.arrived_ns < call.exhausted_at_ns for call in receiver.calls)
    await receiver.close()
    doctor = subprocess.run(
        [sys.executable, "-m", "billing", "doctor", "--config", str(daemon.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    return state, {
        "commands_s": round(took_s, 1),
        "even_after_s": round(even_s, 1),
        "slowest_call_ms": round(script.slowest_s * 1e3, 1),
        "errors": len(script.errors),
        "cutoffs_due": len(due),
        "cutoffs_missing_or_false": len(due.items() ^ calls.items()),
        "cutoffs_doubled": len(receiver.calls) - len(calls),
        "cutoffs_early": early,
        "owner_faults": len(checked["faults"]),
        "doctor": "no faults" if doctor.returncode == 0 else doctor.stdout[-2000:],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--commands", type=int, default=200_000)
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    arguments = parser.parse_args()
    results = []
    for moves in (True, False):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            Path(name).chmod(0o700)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                results.append(runner.run(one_run(Path(name), arguments, moves)))
    (moved, figures), (still, _) = results
    figures["accounts_compared"] = len(still)
    figures["differences"] = sum(moved[key] != still[key] for key in still) + len(moved.keys() ^ still.keys())
    print(json.dumps(figures))
    wrong = ("errors", "cutoffs_missing_or_false", "cutoffs_doubled", "cutoffs_early", "owner_faults", "differences")
    sys.exit(any(figures[name] for name in wrong) or figures["doctor"] != "no faults")


if __name__ == "__main__":
    main()
