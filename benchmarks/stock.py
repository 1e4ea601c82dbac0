"""A data directory with very many accounts, made without a million requests.

The real daemon creates the directory and stops. Then, per shard and in a process of its own, the real journal is opened
and the real ledger applies one `top_up` and one `set_rate` per account; the resulting state is saved as a snapshot at
the journal's head, as a clean stop would. From then on the daemon starts as from any snapshot. The history has no
entries of how these accounts began.

    users    user_0000000, user_0000001, …
    money    so much that none runs out within a year, all at different instants
    rate     one line each, the unnamed one
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from pathlib import Path

from billing.ledger import commands as ops
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of
from shards.journal import backends
from shards.shard import Shard
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL
from shards.worker.recover import recover
from tests.system.daemon import Daemon

BUCKET_COUNT = 3000
YEAR_S = 365 * 86_400


def user_of(number: int) -> bytes:
    """Returns the id of the account with this number."""
    return b"user_%07d" % number


def fill(daemon: Daemon, accounts: int, shards: int) -> None:
    """Creates the data directory of a daemon that is not running, and fills it. `shards`: the number configured."""
    daemon.start()
    assert daemon.stop() == 0
    spawn = multiprocessing.get_context("spawn")
    data = Path(daemon.directory) / "data"
    processes = [spawn.Process(target=_fill_shard, args=(data, number, accounts)) for number in range(1, shards + 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a shard could not be filled"


def populate(shard: Shard, accounts: int, now_ns: int) -> None:
    """Opens those of the accounts whose buckets the shard holds; leaves no records to be written."""
    machine = shard.machine
    assert isinstance(machine, BillingMachine)
    apply, held = machine.ledger.apply, shard.held
    for number in range(accounts):
        user_id = user_of(number)
        bucket_id = bucket_id_of(user_id, BUCKET_COUNT)
        if bucket_id in held:
            rate = 3_600_000 + number % 1000
            nanos = rate * (YEAR_S + number % YEAR_S) // 3600
            apply(bucket_id, now_ns, (ops.TOP_UP, user_id, nanos, 0, 0, b"", b"", b"", b"", b""))
            apply(bucket_id, now_ns, (ops.SET_RATE, user_id, rate, -1, -1, b"", b"", b"", b"", b""))
            machine.records.clear()
    machine.notices.clear()


def _fill_shard(data: Path, shard_id: int, accounts: int) -> None:
    settings = {"kind": "file", "directory": str(data), "sync": "always", "segment_bytes": 4 << 20}
    journal = backends.open(settings | {"sync_interval_ns": 10**9}, REAL).journal(shard_id, time.time_ns)
    head = journal.open(shard_id, "benchmark").head
    shard = Shard(shard_id, BillingMachine(Rules(False, 10_000, False)))
    asyncio.run(recover(shard, journal, lambda done, total: None, MACHINE_CLOCKS.boot_ns))
    populate(shard, accounts, journal.last_time_ns)
    journal.save_snapshot(head, (shard.dump(bucket_id, head) for bucket_id in sorted(shard.held)))
    journal.close()
