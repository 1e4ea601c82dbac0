"""The cost of notices behind everything else: CPU of recording a notice, of reading it for sending, and of its
acknowledgement; without the POST itself, which `benchmarks.cutoff_get` measures for cutoffs.

Batches of top-ups, debits and rates of random accounts go through a notifier's store as its process does it: committed
in groups, read back in slices, acknowledged, checkpointed and proved in the end. The file is on the real disk.

    python -m benchmarks.notices --notices 50000 --group 100

CPU is that of this process, user and system.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.history import Entries
from billing.follower.store import ShardFile
from billing.notices.opening import open_store
from billing.notices.store import Store
from shards.system.disk import RealDisk

SLICE = 256


def measure(store: Store, payloads: list[bytes], notices: int) -> dict[str, float]:
    """Returns the microseconds per notice of recording, reading, acknowledging, and making durable."""
    spent = dict.fromkeys(("record", "read", "acknowledge", "checkpoint"), 0.0)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        before = time.process_time()
        done = work()
        spent[name] += time.process_time() - before
        return done

    def record(position: int, payload: bytes) -> None:
        store.take(position, payload, time.time_ns())
        store.flush()

    def acknowledge(seqs: list[int]) -> None:
        for seq in seqs:
            store.acknowledge(seq)
        store.flush()

    for position, payload in enumerate(payloads, 1):
        timed("record", partial(record, position, payload))
    timed("checkpoint", store.checkpoint)
    while rows := timed("read", lambda: store.after(0, SLICE)):
        seqs = [row[0] for row in rows]
        timed("acknowledge", partial(acknowledge, seqs))
    timed("checkpoint", store.checkpoint)
    return {f"{name}_us": round(seconds / notices * 1e6, 2) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--notices", type=int, default=50_000)
    parser.add_argument("--group", type=int, default=100, help="notices that are committed at once")
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    entries = Entries(arguments.accounts)
    noticed_share = 3 / 5  # of the entries: top-ups and debits make notices, rates do not
    payloads = [
        entries.batch(round(arguments.group / noticed_share)) for _ in range(arguments.notices // arguments.group)
    ]
    with tempfile.TemporaryDirectory(prefix="billing-", dir=arguments.directory) as home:
        store, _ = open_store(ShardFile(home, 0, 1, 0, RealDisk()), suspect=False, file_id=1, now_ns=time.time_ns())
        result = measure(store, payloads, arguments.notices)
        store.close()
    result["all_us"] = round(sum(result.values()), 2)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20}{value:>10}")


if __name__ == "__main__":
    main()
