"""The cost of the history behind the hot path: CPU of the projector per entry, its lag, and the time of an answer.

A journal (unsynced, so that the disk's speed is not measured) is appended to, and its batches are handed over, at
`--rate` entries a second, in batches of 10 ms, for accounts drawn uniformly. The projector is the real process, its
file is on the real disk, and commits and checkpoints are included. Before the clock starts, every account has an entry,
and there are `--before` more, so the file has its size. Then a history without a file reads the same journal: the speed
of catching up. The floor is the plain insertion of the same pages at the end of one table, and nothing else.

    python -m benchmarks.history --accounts 100000 --rate 50000 --seconds 20

CPU is that of the projector process, user and system, from /proc. Lag is the time from handing a batch over until the
worker hears that it is committed. A question does not wait for that: it makes the projector commit the open group.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from billing.follower.link import FollowedShard, Limits
from billing.history.accounts import Accounts
from billing.history.link import HistoryLink
from billing.history.page import pages_of
from billing.history.projection import Group, project
from billing.history.store import INSERT_PAGE
from billing.history.tables import KIND
from billing.ledger import commands as ops
from billing.ledger.entry import FIXED, FORMAT
from billing.ledger.money import NANO
from shards.batch import ENTRY, ENVELOPE, LENGTH
from shards.journal.file.journal import FileJournal, FileSettings
from shards.system.disk import RealDisk
from tests.system.daemon import cpu_seconds_of

BATCHES_PER_SECOND = 100
START_NS = 1_727_000_000_000_000_000
NEWEST = 2**63 - 1
ACTOR = b"metering"


class Entries:
    """Makes batches of entries of random accounts, each account's entry_ids rising."""

    def __init__(self, accounts: int, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._ids = [0] * accounts
        self._users = [b"user_%07d" % number for number in range(accounts)]
        self._prefix = ENVELOPE.pack(ENTRY, 1, 1)
        self.count = 0

    def batch(self, entries: int) -> bytes:
        """Returns a batch for accounts drawn uniformly."""
        randrange, accounts = self._rng.randrange, len(self._ids)
        return self._batch([randrange(accounts) for _ in range(entries)])

    def first_batches(self, entries: int) -> Iterator[bytes]:
        """Yields batches with one entry of each account."""
        for start in range(0, len(self._ids), entries):
            yield self._batch(range(start, min(start + entries, len(self._ids))))

    def _batch(self, numbers: Any) -> bytes:
        parts = [LENGTH.pack(len(numbers))]
        pack, rng_bits = FIXED.pack, self._rng.getrandbits
        for number in numbers:
            self.count += 1
            self._ids[number] += 1
            user, request_id = self._users[number], b"req-%012d" % self.count
            op = (ops.TOP_UP, ops.SET_RATE, ops.TOP_UP, ops.SET_RATE, ops.DEBIT)[self.count % 5]
            fixed = pack(
                FORMAT, op, 0, 0, 12_500_000_000, 0, 0, START_NS + self.count * 20_000, self._ids[number],
                12_500_000_000, 0, rng_bits(24), rng_bits(41) % NANO, rng_bits(40), rng_bits(41) % NANO,
                3_600, 3_600 if op == ops.SET_RATE else 0, 0, 0, -1, 0, 0, 0,
                len(user), 0, len(request_id), 0, 0, len(ACTOR), 0,
            )  # fmt: skip
            length = len(self._prefix) + len(fixed) + len(user) + len(request_id) + len(ACTOR)
            parts += (LENGTH.pack(length), self._prefix, fixed, user, request_id, ACTOR)
        return b"".join(parts)


def journal_at(directory: Path) -> FileJournal:
    """Returns an open journal that is never synced."""
    journal = FileJournal(str(directory), RealDisk(), FileSettings("never"), now_ns=time.time_ns, salt=lambda: 7)
    journal.open(0, "benchmark")
    return journal


async def reach(link: HistoryLink, position: int) -> None:
    """Returns once the history has committed this batch."""
    while link.figures()["history_position"] < position:
        await asyncio.sleep(0.005)


async def steady(
    link: HistoryLink, journal: FileJournal, entries: Entries, rate: int, seconds: float
) -> dict[str, Any]:
    """Appends and hands over batches at the rate, and records CPU and lag."""
    per_batch = rate // BATCHES_PER_SECOND
    handed: deque[tuple[int, float]] = deque()
    lags: list[float] = []
    hand_s = 0.0
    pid = link.figures()["history_pid"]
    cpu, count, begin = cpu_seconds_of(pid), entries.count, time.perf_counter()
    for number in range(int(seconds * BATCHES_PER_SECOND)):
        payload = entries.batch(per_batch)
        position = journal.append(payload)
        before = time.thread_time()
        link.hand(position, payload)
        hand_s += time.thread_time() - before
        handed.append((position, time.perf_counter()))
        await asyncio.sleep(max(0.0, begin + (number + 1) / BATCHES_PER_SECOND - time.perf_counter()))
        now = time.perf_counter()
        while handed and handed[0][0] <= link.figures()["history_position"]:
            lags.append(now - handed.popleft()[1])
        if handed:
            lags.append(now - handed[0][1])
    took_s = time.perf_counter() - begin
    await reach(link, position)
    done = entries.count - count
    lags.sort()
    return {
        "entries_per_second": round(done / took_s),
        "projector_us_per_entry": round((cpu_seconds_of(pid) - cpu) / done * 1e6, 2),
        "hand_us_per_batch": round(hand_s / seconds / BATCHES_PER_SECOND * 1e6, 1),
        "lag_p50_s": round(lags[len(lags) // 2], 3),
        "lag_max_s": round(lags[-1], 3),
    }


async def page_ms(link: HistoryLink, user: bytes, limit: int) -> float:
    """Returns the milliseconds from a question for rows to its answer; the median of 20."""
    times = []
    for _ in range(20):
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        before = time.perf_counter()
        link.history(1, 1, user, limit, NEWEST, (0, 0, 0), answer.set_result)
        await answer
        times.append(time.perf_counter() - before)
    return round(statistics.median(times) * 1e3, 2)


def floor_us(path: Path, entries: Entries) -> dict[str, float]:
    """Returns the CPU per entry of parsing the entries alone, and of inserting them as pages into one table
    alone.
    """
    payloads = [entries.batch(500) for _ in range(400)]
    db = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", *KIND.schema):
        db.execute(statement)
    accounts, group, seq = Accounts(db), Group(), 0
    before = time.process_time()
    for payload in payloads:
        seq = project(payload, seq, accounts, group)
    decode_s = time.process_time() - before
    before = time.process_time()
    db.execute("BEGIN")
    db.executemany(INSERT_PAGE, pages_of(group.part, 1))
    db.execute("COMMIT")
    insert_s = time.process_time() - before
    db.close()
    return {"decode_us": round(decode_s / seq * 1e6, 2), "insert_us": round(insert_s / seq * 1e6, 2)}


async def measure(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the whole measurement."""
    entries = Entries(arguments.accounts)
    journal = journal_at(home / "journal")
    link = HistoryLink(FollowedShard(str(home / "history"), 0, journal))
    link.start()
    for payload in entries.first_batches(1000):
        link.hand(journal.append(payload), payload)
        await asyncio.sleep(0)
    while entries.count < arguments.accounts + arguments.before:
        payload = entries.batch(1000)
        link.hand(journal.append(payload), payload)
        await asyncio.sleep(0)
    await reach(link, journal.head)
    result: dict[str, Any] = {"accounts": arguments.accounts, "before": entries.count}
    runs = [await steady(link, journal, entries, arguments.rate, arguments.seconds) for _ in range(arguments.runs)]
    result |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    result["lag_max_s"] = max(run["lag_max_s"] for run in runs)
    result["page_of_100_ms"] = await page_ms(link, b"user_0000001", 100)
    await link.close()
    size = sum(path.stat().st_size for path in (home / "history").iterdir())
    result["bytes_per_entry"] = round(size / entries.count)

    again = HistoryLink(FollowedShard(str(home / "again"), 0, journal), limits=Limits())
    begin = time.perf_counter()
    again.start()
    await reach(again, journal.head)
    result["catching_up_entries_per_second"] = round(entries.count / (time.perf_counter() - begin))
    result["catching_up_us_per_entry"] = round(cpu_seconds_of(again.figures()["history_pid"]) / entries.count * 1e6, 2)
    await again.close()
    journal.close()
    return result | {f"floor_{name}": value for name, value in floor_us(home / "floor.sqlite", entries).items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--before", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="billing-", dir=arguments.directory) as home:
        result = uvloop.run(measure(Path(home), arguments))
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<34}{value:>14}")


if __name__ == "__main__":
    main()
