"""A shard that works: the real ledger makes entries, the real shard batches; and what history must say of them."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from billing.ledger import commands as ops
from billing.ledger.entry import FIELDS, history_row, unpack
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.batch import ENTRY, split_batch
from shards.buckets import bucket_id_of
from shards.journal.file.journal import FileJournal, FileSettings
from shards.shard import Shard
from tests.shards.system.unsynced import UnsyncedDisk

START_NS = 1_727_000_000_000_000_000
BUCKETS = 4


class ShardDriver:
    """One shard with all buckets; `batches` are its journal, `rows` what the history of each user must be."""

    def __init__(self, seed: int = 1, users: int = 20) -> None:
        self.rng = random.Random(seed)
        self.users = [b"user_%03d" % number for number in range(users)]
        self.shard = Shard(0, BillingMachine(Rules(accrue=False, request_ids_per_bucket=1000, restore=True)))
        self.now_ns = START_NS
        self.shard.serve(self.now_ns)
        for bucket_id in range(1, BUCKETS + 1):
            self.shard.adopt(bucket_id, 1)
        self.batches: list[bytes] = []
        self.rows: dict[bytes, list[dict[str, Any]]] = defaultdict(list)  # oldest first

    def answer(self, token: object, reply: object) -> None:
        """As a caller; nobody reads the replies."""

    refuse = answer

    def flush(self) -> None:
        """Nothing is held back here."""

    def do(
        self,
        op: int,
        user: bytes,
        a: int = 0,
        b: int = 0,
        key: bytes = b"",
        message: bytes = b"",
        request_id: bytes | None = None,
    ) -> None:
        if request_id is None:  # none, a new one, or one of a few: then it may be refused, or answered as before
            drawn = [b"", b"r-%d" % self.rng.getrandbits(40), bytes([255, self.rng.randrange(256)])]
            request_id = self.rng.choice(drawn)
        actor = self.rng.choice([b"", b"metering"])
        command = (op, user, a, b, -1 if op == ops.SET_RATE else 0, key, request_id, message, b"", actor)
        self.shard.tick(self.now_ns, 100)
        self.shard.receive(self, None, bucket_id_of(user, BUCKETS), command, self.now_ns)

    def step(self) -> None:
        """Some command, some time later; refused ones, and what time makes due, among them."""
        rng, user = self.rng, self.rng.choice(self.users)
        self.now_ns += rng.choice([1, 999, 10**6, 3 * 10**9, 7 * 10**11])
        match rng.randrange(8):
            case 0 | 1:
                self.do(
                    ops.TOP_UP, user, rng.randrange(1, 10**10), message=rng.choice([b"", "für".encode(), b"x" * 99])
                )
            case 2 | 3 | 4:
                self.do(ops.SET_RATE, user, rng.randrange(10**9), -1, key=rng.choice([b"", b"vm-7"]))
            case 5:
                self.do(ops.DEBIT, user, rng.randrange(1, 10**9), rng.choice([ops.STRICT, ops.PARTIAL, ops.FORCE]))
            case 6:
                self.do(ops.ADJUST, user, rng.choice([-1, 1]) * rng.randrange(1, 10**9), message=b"a correction")
            case 7:
                self.do(ops.HOLD, user, rng.randrange(1, 10**8), 10**9)

    def batch(self, steps: int = 20) -> bytes:
        """The payload of the next batch."""
        for _ in range(steps):
            self.step()
        while not (payload := self.take_batch()):  # nothing of it left a record
            self.step()
        return payload

    def take_batch(self) -> bytes:
        """What was done since the last one, as a payload; empty where there is nothing to record."""
        ready = self.shard.take_ready()
        assert ready is not None
        self.shard.synced(ready)
        if not ready.payload:
            return b""
        self.batches.append(ready.payload)
        for user, row in rows_in(ready.payload):
            self.rows[user].append(row)
        return ready.payload

    def history(self, user: bytes, before: int = 2**63 - 1, limit: int = 1000) -> list[dict[str, Any]]:
        """What `history` must answer."""
        return [row for row in reversed(self.rows[user]) if row["entry_id"] < before][:limit]


def rows_in(payload: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """(user, row) of a batch, by the ledger's own definition of a row."""
    entries = [unpack(body) for kind, _, _, body in split_batch(payload) if kind == ENTRY]
    return [(entry[FIELDS.index("user_id")], history_row(entry)) for entry in entries if entry[7] > 0]


def file_journal(directory: Path, *, segment_bytes: int = 65_536, sync: str = "never") -> FileJournal:
    """An open journal on the real disk; it need not survive a loss of power."""
    journal = FileJournal(
        str(directory),
        UnsyncedDisk(),
        FileSettings(sync, segment_bytes=segment_bytes),
        now_ns=lambda: START_NS,
        salt=lambda: 7,
    )
    journal.open(0, "test")
    return journal
