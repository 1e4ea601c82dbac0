"""A backup of one kind of log is restored into the other, and back: the way from files to a cluster, and from a cluster
to files, with as many accounts as one likes.

    python -m tests.torture.both_ways --accounts 100000

A daemon on files gets so many accounts: most of them with money, each tenth with a rate, each hundredth with a credit
limit, and some that have run out and owe their cutoff. It is backed up; the backup is restored into three nats-servers;
a daemon serves from these, and after some more changes and a snapshot it is backed up itself; that backup is restored
into files. At each end, read through another client than the daemon's own:

    accounts    every account is there, no other is, and each is the same: state, balance, class, rates,
                and the instant at which it runs out, to the nanosecond
    histories   of a sample, row by row
    owed        the same cutoffs, under the same event ids
    retries     calls of the first daemon are answered from what is stored
    doctor      has no faults to name in either backup

Prints what it counted, and how many milliseconds each step took, as JSON; exit code 1 where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

SHARDS, BUCKETS = 2, 64
AT_ONCE = 2000  # calls in flight
PAGE = 1000  # accounts, and rows of a history
SAMPLE = 50  # accounts whose histories are compared and whose calls are made again
ORIGIN_BALANCE = 1_000_000_000_000
ALWAYS_BY_TIME = ("runway_ns", "at_ns")
BY_TIME = (*ALWAYS_BY_TIME, "balance_nanos", "available_nanos")  # what a rate changes by itself


class BackendChange:
    """See the module."""

    def __init__(self, directory: Path, accounts: int) -> None:
        assert BINARY is not None, MISSING
        self.counts: Counter[str] = Counter()
        self._directory = directory
        self._accounts = accounts
        (directory / "servers").mkdir()
        self._servers = NatsCluster(directory / "servers")
        self._sample = [f"user_{accounts * number // SAMPLE:07d}" for number in range(SAMPLE)]

    def close(self) -> None:
        self._servers.close()

    async def go(self) -> None:
        """Both ways. AssertionError."""
        files, files_again = self._on_files("files"), self._on_files("back")
        await asyncio.gather(asyncio.to_thread(files.start), asyncio.to_thread(self._servers.start))
        try:
            await self._timed("loaded", self._load(files))
            first = await self._state(files)
            await self._timed("backed up from files", self._backup(files, "first"))
        finally:
            await asyncio.to_thread(self._end, files)

        cluster = self._on_servers()
        await asyncio.to_thread(self._servers.make_all, SHARDS, BUCKETS)
        await self._timed("restored into servers", self._restore(cluster, "first"))
        await self._timed("started on servers", asyncio.to_thread(cluster.start))
        try:
            self._compare(first, await self._state(cluster), "on servers")
            await self._made_again(cluster)
            await self._change(cluster)
            second = await self._state(cluster)
            await self._timed("backed up from servers", self._backup(cluster, "second"))
        finally:
            await asyncio.to_thread(self._end, cluster)

        await self._timed("restored into files", self._restore(files_again, "second"))
        await self._timed("started on files", asyncio.to_thread(files_again.start))
        try:
            self._compare(second, await self._state(files_again), "on files again")
            await self._made_again(files_again)
        finally:
            await asyncio.to_thread(self._end, files_again)

    # -- daemons ----------------------------------------------------------------------------------------------------

    def _on_files(self, name: str) -> Daemon:
        return self._daemon(name, {})

    def _on_servers(self) -> Daemon:
        return self._daemon(
            "servers-host",
            {"journal.kind": "jetstream", "cluster.servers": self._servers.urls, "cluster.shards": SHARDS},
        )

    def _daemon(self, name: str, keys: dict[str, object]) -> Daemon:
        (self._directory / name).mkdir()
        return Daemon(self._directory / name, **{"shards.workers": SHARDS, "shards.bucket_count": BUCKETS, **keys})

    @staticmethod
    def _end(daemon: Daemon) -> None:
        code = daemon.stop()
        assert code == 0, f"it ended with {code}:\n{daemon.log.read_text()[-4000:]}"

    async def _backup(self, daemon: Daemon, name: str) -> None:
        output = await self._billing("backup", str(self._directory / name), "--address", daemon.address)
        assert "no faults" in output, output
        files = [path for path in (self._directory / name).rglob("*") if path.is_file()]
        self.counts[f"bytes of the {name} backup"] = sum(path.stat().st_size for path in files)

    async def _restore(self, daemon: Daemon, name: str) -> None:
        await self._billing("restore", str(self._directory / name), "--config", str(daemon.config))

    async def _billing(self, *arguments: str) -> str:
        result = await asyncio.to_thread(carried_out, *arguments)
        assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    async def _timed(self, step: str, doing: Any) -> None:
        began_s = time.monotonic()
        await doing
        self.counts[f"ms {step}"] = round((time.monotonic() - began_s) * 1e3)

    # -- what is in them --------------------------------------------------------------------------------------------

    async def _load(self, daemon: Daemon) -> None:
        """The accounts, each of them with a request id of its own."""
        rpc = await Rpc.connect(daemon.rpc_port)
        calls: list[tuple[Any, ...]] = []
        for number in range(self._accounts):
            user = f"user_{number:07d}"
            calls.append(self._first_call(user))
            if number % 10 == 3:
                calls.append(("set_rate", user, 1 + number % 1000, {"per": "hour", "resource": f"vm-{number % 7}"}))
            if number % 100 == 5:
                calls.append(("set_credit_limit", user, 1 + number))
            if number % 1000 == 7:  # runs out at once, and nobody answers at the cutoff URL
                calls.append(("debit", user, ORIGIN_BALANCE, {"mode": "partial"}))
        for start in range(0, len(calls), AT_ONCE):
            await asyncio.gather(*(rpc.ask(*call) for call in calls[start : start + AT_ONCE]))
        self.counts["calls"] += len(calls)
        rpc.close()

    def _first_call(self, user: str) -> tuple[Any, ...]:
        return "top_up", user, ORIGIN_BALANCE, {"request_id": f"first of {user}"}

    async def _change(self, daemon: Daemon) -> None:
        """Some more, before and behind a snapshot, so that what goes back is not what came."""
        rpc = await Rpc.connect(daemon.rpc_port)
        await asyncio.gather(*(rpc.ask("debit", f"user_{number:07d}", 1) for number in range(0, self._accounts, 50)))
        for pid in daemon.worker_pids():
            os.kill(pid, signal.SIGUSR1)  # a snapshot now
        await asyncio.gather(*(rpc.ask("top_up", user, 5, {"message": "on servers"}) for user in self._sample))
        rpc.close()

    async def _state(self, daemon: Daemon) -> dict[str, Any]:
        """Every account, the histories of the sample and what is owed to the cutoff URL, whatever the time."""
        rpc = await Rpc.connect(daemon.rpc_port)
        state: dict[str, Any] = {}
        cursor: dict[str, str] = {}
        while True:
            rows = await rpc.ask("accounts", {"limit": PAGE, "with": ["rates", "holds"], **cursor})
            for row in rows:
                moving = BY_TIME if row["rate_nanos_per_hour"] else ALWAYS_BY_TIME
                state[row["user_id"]] = {key: value for key, value in row.items() if key not in moving}
            if len(rows) < PAGE:
                break
            cursor = {"after": rows[-1]["user_id"]}
        assert len(state) == self._accounts, f"{len(state)} accounts"
        self.counts["accounts compared"] += len(state)
        for user in self._sample:
            rows = await rpc.ask("history", user, {"limit": PAGE})
            state[f"history of {user}"] = rows
            self.counts["rows of histories compared"] += len(rows)
        owed = {row["user_id"]: (row["event_id"], row["seq"]) for row in await rpc.ask("pending_cutoffs")}
        assert owed, "nobody has run out"
        rpc.close()
        return {**state, "owed": owed}

    @staticmethod
    def _compare(expected: dict[str, Any], actual: dict[str, Any], step: str) -> None:
        differing = [key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key)]
        examples = [(key, expected.get(key), actual.get(key)) for key in sorted(differing)[:5]]
        assert not differing, f"{len(differing)} differ {step}: {examples}"

    async def _made_again(self, daemon: Daemon) -> None:
        """Calls that the first daemon answered."""
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in self._sample:
            reply = await rpc.ask(*self._first_call(user))
            assert reply["replayed"] is True, f"made twice: {reply}"
            self.counts["made again"] += 1
        rpc.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="both-ways-") as name:
        passage = BackendChange(Path(name), arguments.accounts)
        try:
            asyncio.run(passage.go())
        finally:
            passage.close()
    print(json.dumps(passage.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
