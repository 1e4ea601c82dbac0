"""kill −9 of any process at any time, under load: what was answered is there, once, and nothing else is.

Many clients top up by one nano a time under a request_id of its own each, while a random process is killed. Afterwards
each unanswered call is repeated under its request_id, which says whether it had been applied; then every balance must
be exactly the number of calls, and the entries of an account must have numbers that only rise.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.rpc import Lost, Rpc

CYCLES = int(os.environ.get("KILL_CYCLES", "20"))
SEED = int(os.environ.get("KILL_SEED", "1"))
CLIENTS = 8
USERS_EACH = 3


class Writer:
    """One client: its own users, the calls it made, and what is not known of them."""

    def __init__(self, number: int) -> None:
        self.users = [f"kill_{number}_{index}" for index in range(USERS_EACH)]
        self.called = dict.fromkeys(self.users, 0)
        self.unknown: list[tuple[str, str]] = []
        self.last_entry = dict.fromkeys(self.users, 0)
        self.answered = 0

    async def run(self, port: int, stop: asyncio.Event) -> None:
        """Calls, pipelined, until told to stop; reconnects when the connection breaks."""
        rng = random.Random(self.users[0])
        while not stop.is_set():
            try:
                rpc = await Rpc.connect(port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                while not stop.is_set():
                    await asyncio.gather(*(self.one(rpc, rng.choice(self.users)) for _ in range(16)))
            except Lost:
                pass
            finally:
                rpc.close()
            await asyncio.sleep(0)

    async def one(self, rpc: Rpc, user: str) -> None:
        self.called[user] += 1
        request_id = f"{user}-{self.called[user]}"
        try:
            error, result = await rpc.call("top_up", user, 1, {"request_id": request_id})
        except Lost:
            self.unknown.append((user, request_id))
            return
        if error is not None:
            assert error.startswith("UNAVAILABLE"), error
            self.unknown.append((user, request_id))
            await asyncio.sleep(0.01)
            return
        self.answered += 1
        assert not result["replayed"]
        assert result["entry_id"] > self.last_entry[user]
        self.last_entry[user] = result["entry_id"]

    async def settle(self, rpc: Rpc) -> tuple[int, int]:
        """Repeats what is unknown; returns how many of these had been applied, and how many not."""
        had = 0
        for user, request_id in self.unknown:
            result = await rpc.ask("top_up", user, 1, {"request_id": request_id})
            had += result["replayed"]
            self.last_entry[user] = max(self.last_entry[user], result["entry_id"])
        settled, self.unknown = len(self.unknown), []
        return had, settled - had

    async def check(self, rpc: Rpc) -> None:
        for user in self.users:
            if self.called[user]:
                account = await rpc.ask("get_account", user)
                assert account["balance_nanos"] == self.called[user], user
                assert account["entry_id"] == self.last_entry[user] == self.called[user]


async def _cycles(daemon: Daemon, cycles: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    writers = [Writer(number) for number in range(CLIENTS)]
    counts = {"worker": 0, "supervisor": 0, "all": 0, "answered": 0, "applied unanswered": 0, "not applied": 0}
    for _ in range(cycles):
        stop = asyncio.Event()
        load = [asyncio.create_task(writer.run(daemon.rpc_port, stop)) for writer in writers]
        await asyncio.sleep(rng.uniform(0.05, 0.3))
        target = rng.choice(["worker", "supervisor", "all"])
        counts[target] += 1
        assert daemon.process is not None
        if target == "worker":
            daemon.kill(rng.choice(daemon.worker_pids()))
            await asyncio.sleep(rng.uniform(0, 0.3))
        elif target == "supervisor":
            daemon.kill(daemon.process.pid)
            daemon.process.wait()
        else:
            daemon.kill()
        stop.set()
        await asyncio.gather(*load)
        if target == "worker":
            await asyncio.to_thread(daemon.wait_ready)
        else:
            await asyncio.to_thread(daemon.start)
        rpc = await Rpc.connect(daemon.rpc_port)
        for writer in writers:
            had, had_not = await writer.settle(rpc)
            counts["applied unanswered"] += had
            counts["not applied"] += had_not
            await writer.check(rpc)
        rpc.close()
    counts["answered"] = sum(writer.answered for writer in writers)
    return counts


async def test_kill_9_of_any_process_under_load_loses_nothing_that_was_answered(data_dir: Path) -> None:
    with Daemon(data_dir, journal__segment_bytes=1024 * 1024, journal__snapshot_bytes=1024 * 1024) as daemon:
        counts = await _cycles(daemon, CYCLES, SEED)
    print(f"seed {SEED}: {counts}")
    assert counts["answered"] > 100 * CYCLES
    assert min(counts["worker"], counts["supervisor"], counts["all"]) > 0, "a fault that never fired proves nothing"
    assert counts["applied unanswered"] + counts["not applied"] > 0, "no kill ever struck a call in flight"
