"""The cost of a statement and of a past balance, for an account with many entries among others.

A history file is made as a projector makes it: `--entries` entries of one account, interleaved with as many of
`--others` accounts, so that an account's rows lie apart. Then it answers the same questions as a projector: the
statement over all of it, with and without lines, that of a hundredth in its middle, and balances at random instants.
CPU is this process's; a yield between two pages, where a projector would take batches, costs nothing here. The floor is
reading the account's rows, each checked against its checksum, and nothing else.

    python -m benchmarks.statement --entries 100000
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from billing.follower.store import ShardFile
from billing.history.history_reader import HistoryReader, rows_of
from billing.history.period_reader import Chain, Standing, Steps, balance_at, statement
from billing.history.store import Store, open_store
from billing.ledger import commands as ops
from billing.ledger.entry import Entry, unpack
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import INT64_MAX
from shards.batch import ENTRY, ENVELOPE, LENGTH
from shards.system.disk import RealDisk

START_NS = 1_727_000_000_000_000_000
STEP_NS = 300 * 10**9
BUCKET = 1
USER = b"the_one"
BATCH_ENTRIES = 500
MACHINES = 40


class FilledHistory:
    """A history file, and the state of the account at its end."""

    def __init__(self, home: Path, entries: int, other_users: int, seed: int) -> None:
        draw = random.Random(seed)
        ledger = Ledger(Rules(False, 1000, False), lambda _, due_ns: due_ns)
        ledger.create(BUCKET)
        users = [USER, *(b"user_%05d" % number for number in range(other_users))]
        self.store: Store = open_store(ShardFile(str(home), 0, 1, 0, RealDisk()), suspect=False)[0]
        now_ns = START_NS
        position = entries_made = 0
        for user in users:
            ledger.apply(BUCKET, now_ns, _command(ops.TOP_UP, user, 10**18))
        while entries_made < entries:
            now_ns += STEP_NS
            for user in (USER, draw.choice(users[1:])):
                resource = b"vm-%03d" % draw.randrange(MACHINES)
                ledger.apply(BUCKET, now_ns, _command(ops.SET_RATE, user, draw.randrange(10**9), resource))
            entries_made += 1
            if len(ledger.records) >= BATCH_ENTRIES:
                position += 1
                self.store.take(position, _batch([packed for _, packed in ledger.records]))
                newest = ledger.records[-2][1]
                ledger.records.clear()
                self.store.flush()
        if ledger.records:
            newest = ledger.records[-2][1]
            self.store.take(position + 1, _batch([packed for _, packed in ledger.records]))
            self.store.flush()
        entry = Entry._make(unpack(newest))
        self.last_ns = entry.at_ns
        self.standing = Standing(entry.entry_id, entry.at_ns, entry.balance_nanos, entry.balance_frac, entry.rate)
        self.reader = HistoryReader(str(home), 0, self.store.db, RealDisk())

    def chain(self) -> Chain:
        """Returns a new chain, as a projector makes one for each question."""
        return Chain(self.reader, 1, USER, self.standing)


def _command(op: int, user: bytes, a: int, resource: bytes = b"") -> ops.Command:
    minus = -1 if op == ops.SET_RATE else 0
    return (op, user, a, minus, minus, resource, b"", b"", b"", b"metering")


def _batch(packed: list[bytes]) -> bytes:
    records = [ENVELOPE.pack(ENTRY, BUCKET, 1) + entry for entry in packed]
    return LENGTH.pack(len(records)) + b"".join(LENGTH.pack(len(record)) + record for record in records)


def _run(steps: Steps) -> dict[str, Any]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return dict(end.value[0])


def _cpu_ms(work: Callable[[], object], runs: int) -> float:
    """Returns the median CPU milliseconds of `runs` runs."""
    times_ms = []
    for _ in range(runs):
        begun = time.process_time()
        work()
        times_ms.append((time.process_time() - begun) * 1e3)
    return statistics.median(times_ms)


def measure(history: FilledHistory, runs: int, seed: int) -> dict[str, float]:
    """Returns the CPU milliseconds of each question."""
    draw = random.Random(seed)
    middle_ns = (START_NS + history.last_ns) // 2
    part_ns = (history.last_ns - START_NS) // 200
    now_ns = history.last_ns + STEP_NS

    def period(from_ns: int, to_ns: int, by: bool) -> dict[str, Any]:
        return _run(statement(history.chain(), USER, from_ns, to_ns, by, 1000, now_ns))

    instants = [draw.randrange(START_NS, history.last_ns) for _ in range(200)]
    statement_whole = period(0, INT64_MAX, True)
    assert sum(int(line["exact_accrued"]) for line in statement_whole["resources"]) == int(
        statement_whole["exact"]["accrued"]
    )
    return {
        "entries": statement_whole["entries_count"],
        "rows_floor_ms": _cpu_ms(lambda: rows_of(history.store.db, USER, INT64_MAX, INT64_MAX), runs),
        "statement_ms": _cpu_ms(lambda: period(0, INT64_MAX, False), runs),
        "statement_by_resource_ms": _cpu_ms(lambda: period(0, INT64_MAX, True), runs),
        "statement_of_a_hundredth_ms": _cpu_ms(lambda: period(middle_ns - part_ns, middle_ns + part_ns, True), runs),
        "balance_at_ms": _cpu_ms(
            lambda: [_run(balance_at(history.chain(), USER, at_ns, now_ns)) for at_ns in instants], runs
        )
        / len(instants),
    }


def main() -> None:
    """The command line: prints one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--others", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default=None, help="where the file is made")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as home:
        history = FilledHistory(Path(home), arguments.entries, arguments.others, arguments.seed)
        figures = measure(history, arguments.runs, arguments.seed)
        history.store.close()
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:30} {value:10.3f}")


if __name__ == "__main__":
    main()
