"""Data directories made by the real code in this process: map and shards, journals and snapshots, no daemon.

A `DataDirectoryBuilder` keeps time itself (billing time is passed in everywhere), so a day costs nothing. `busy` drives
it with seeded random commands of every kind, at instants that seek the edges.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from billing.doctor.examine import examine, hold
from billing.doctor.report import Report
from billing.follower.store import ShardFile
from billing.history.store import Store, open_store
from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.ledger.commands import Command, pack_thresholds
from billing.ledger.errors import Refused
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import HASH_NAME, bucket_id_of
from shards.journal.file.journal import FileJournal, FileSettings
from shards.machine import Effect
from shards.shard import Shard
from tests.shards.system.unsynced import UnsyncedDisk

START_NS = 1_700_000_000 * 10**9
SECOND_NS = 10**9
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
COIN = 10**9
SEGMENT_BYTES = 64 * 1024
DISK = UnsyncedDisk()
CLASSES = {b"gold": CutoffClass(grace_ns=HOUR_NS, restore=True), b"slow": CutoffClass(grace_ns=3, accrue=True)}
RULES = Rules(accrue=False, request_ids_per_bucket=50, restore=True, classes=CLASSES)


class ReplyRecorder:
    """Keeps the last reply."""

    def __init__(self) -> None:
        self.reply: object = None

    def answer(self, token: object, reply: object) -> None:
        self.reply = reply

    def flush(self) -> None:
        pass

    def refuse(self, token: object, reply: object) -> None:
        self.answer(token, reply)


class Worker:
    """One shard, its machine and its journal, driven by hand."""

    def __init__(self, builder: DataDirectoryBuilder, shard_id: int) -> None:
        self.builder = builder
        self.journal = builder.journal(f"shard-{shard_id}", builder.segment_bytes)
        self.machine = BillingMachine(builder.rules)
        self.shard = Shard(shard_id, self.machine)
        self.notices: list[Effect] = []
        self.store: Store | None = None
        self.journal.open(shard_id, "test")
        is_new = self.journal.head == 0
        start = 1
        snapshot = self.journal.load_snapshot()
        if snapshot is not None:
            start = snapshot.position + 1
            for part in snapshot.chunks:
                self.shard.load(part)
        for position, payload in self.journal.replay(start):
            self.shard.replay(position, payload)
        self.shard.serve(builder.now_ns)
        if builder.history:
            file = ShardFile(f"{builder.path}/history", shard_id, start, self.journal.head, DISK)
            self.store, _ = open_store(file, suspect=False)
            for position, payload in self.journal.replay(self.store.position + 1):
                self.store.take(position, payload)
            self.store.flush()
        if is_new:
            for bucket_id in builder.buckets_of(shard_id):
                self.shard.adopt(bucket_id, 1)
            self.commit()

    def commit(self) -> None:
        while (ready := self.shard.take_ready()) is not None:
            if ready.payload:
                position = self.journal.append(ready.payload)
                if self.store is not None:
                    self.store.take(position, ready.payload)
            self.shard.synced(ready)
            self.notices += ready.notices
            for caller, token, reply in ready.replies:
                caller.answer(token, reply)

    def snapshot(self) -> None:
        """A part of each bucket; those of the second half hold records behind the snapshot's own position."""
        self.commit()
        position = self.journal.head
        buckets = sorted(self.shard.present())
        parts = [self.shard.dump(bucket_id, position) for bucket_id in buckets[::2]]
        self.builder.pay(b"between", 1)
        self.commit()
        parts += [self.shard.dump(bucket_id, self.journal.head) for bucket_id in buckets[1::2]]
        self.journal.save_snapshot(position, parts)
        if self.store is not None:
            self.store.flush()
        if self.builder.trims:
            self.journal.trim(position)


class DataDirectoryBuilder:
    """A data directory under construction. `workers[1]` … are its shards."""

    def __init__(
        self,
        data_dir: Path,
        *,
        shards: int = 2,
        bucket_count: int = 8,
        rules: Rules = RULES,
        segment_bytes: int = SEGMENT_BYTES,
        trims: bool = True,
        history: bool = False,
    ) -> None:
        self.path = str(data_dir)
        self.trims = trims
        self.history = history
        if history:
            DISK.mkdir(f"{data_dir}/history")
        self.bucket_count = bucket_count
        self.segment_bytes = segment_bytes
        self.rules = rules
        self.now_ns = START_NS
        self.shards = list(range(1, shards + 1))
        self.map = self.journal("map", SEGMENT_BYTES)
        self.map.open(0, "test")
        self.record(["create", bucket_count, HASH_NAME, self.shards])
        self.workers = {shard_id: Worker(self, shard_id) for shard_id in self.shards}
        self.record(*(["founded", shard_id] for shard_id in self.shards))

    def journal(self, name: str, segment_bytes: int) -> FileJournal:
        salts = random.Random(name)
        return FileJournal(
            f"{self.path}/{name}",
            DISK,
            FileSettings(segment_bytes=segment_bytes),
            now_ns=lambda: self.now_ns,
            salt=lambda: salts.getrandbits(64),
        )

    def record(self, *records: list[object]) -> None:
        self.map.append(msgspec.msgpack.encode(records))

    def buckets_of(self, shard_id: int) -> list[int]:
        count = len(self.shards)
        numbers = range(1, self.bucket_count + 1)
        return [number for number in numbers if self.shards[(number - 1) * count // self.bucket_count] == shard_id]

    def worker_of(self, user_id: bytes) -> Worker:
        bucket_id = bucket_id_of(user_id, self.bucket_count)
        return next(worker for worker in self.workers.values() if bucket_id in worker.shard.held)

    # -- what happens -----------------------------------------------------------------------------------------------

    def do(self, command: Command) -> dict[str, object]:
        """A command now; its reply, once durable (of a report of delivery there is none: {}). Raises Refused."""
        worker = self.worker_of(command[1])
        recorder = ReplyRecorder()
        worker.shard.receive(recorder, None, bucket_id_of(command[1], self.bucket_count), command, self.now_ns)
        worker.commit()
        if isinstance(recorder.reply, Refused):
            raise recorder.reply
        if command[0] >= ops.CUTOFF_STARTED:
            return {}
        assert isinstance(recorder.reply, dict), recorder.reply
        return recorder.reply

    def pay(self, user_id: bytes, nanos: int, request_id: bytes = b"") -> dict[str, object]:
        return self.do((ops.TOP_UP, user_id, nanos, 0, 0, b"", request_id, b"", b"", b""))

    def rate(self, user_id: bytes, nanos_per_hour: int, resource: bytes = b"") -> dict[str, object]:
        return self.do((ops.SET_RATE, user_id, nanos_per_hour, -1, -1, resource, b"", b"", b"", b""))

    def debit(self, user_id: bytes, nanos: int, mode: int = ops.STRICT, request_id: bytes = b"") -> dict[str, object]:
        return self.do((ops.DEBIT, user_id, nanos, mode, 0, b"", request_id, b"", b"", b""))

    def report(self, op: int, user_id: bytes, seq: int, text: bytes = b"") -> dict[str, object]:
        return self.do((op, user_id, seq, 0, 0, b"", b"", text, b"", b""))

    def thresholds(self, user_id: bytes, *thresholds: tuple[int, int]) -> None:
        packed = pack_thresholds(list(thresholds))
        self.do((ops.SET_THRESHOLDS, user_id, len(thresholds), 0, 0, packed, b"", b"", b"", b""))

    def wait(self, ns: int) -> None:
        """Time passes, and what it causes happens."""
        self.now_ns += ns
        for worker in self.workers.values():
            while worker.shard.tick(self.now_ns, 1000):
                pass
            worker.commit()

    def move(self, bucket_id: int, source: int, target: int) -> None:
        """A whole move, from freezing to leaving."""
        giving, taking = self.workers[source].shard, self.workers[target].shard
        generation = giving.held[bucket_id]
        giving.freeze(bucket_id)
        self.workers[source].commit()
        taking.take_in(bucket_id, generation + 1, giving.machine.dump(bucket_id))
        self.workers[target].commit()
        self.record(["assign", bucket_id, target, generation + 1])
        taking.activate(bucket_id, self.now_ns)
        giving.leave(bucket_id)
        self.workers[source].commit()

    # -- ends -------------------------------------------------------------------------------------------------------

    def close(self) -> DataDirectoryBuilder:
        """Everything is closed as at a clean stop."""
        for worker in self.workers.values():
            worker.commit()
            worker.journal.close()
            if worker.store is not None:
                worker.store.close()
                worker.store = None
        self.map.close()
        return self

    def restart(self) -> None:
        """The same directory, opened again."""
        self.close()
        self.map = self.journal("map", SEGMENT_BYTES)
        self.map.open(0, "test")
        self.workers = {shard_id: Worker(self, shard_id) for shard_id in self.shards}

    def examine(self) -> Report:
        """What the doctor says of it, closed."""
        return examined(self.path, self.rules.request_ids_per_bucket)


def examined(data_dir: str, ids_max: int = 50) -> Report:
    report = Report()
    with ExitStack() as stack:
        hold(DISK, data_dir, stack)
        examine(DISK, data_dir, ids_max, report, lambda what, done, total: None)
    return report


def busy(builder: DataDirectoryBuilder, seed: int, steps: int, users: int = 12, upheavals: float = 0.01) -> None:
    """Random commands of every kind, moves, snapshots and restarts."""
    draw = random.Random(seed)
    names = [b"%d" % number for number in range(users - 2)] + ["Ünal".encode(), b"x" * 128]
    nanos = [1, 2, 5, 1000, 10**6, COIN, 5 * COIN, 10**15, 2**63 - 1]
    rates = [0, 0, 1, 3600, 10**6, COIN, 7 * COIN + 1, 3600 * 10**9 + 7, 10**17, 2**63 - 1]
    holds: list[tuple[bytes, bytes]] = []

    def command() -> Command:
        user = draw.choice(names)
        request = draw.choice([b"", b"", b"r%d" % draw.randrange(40), b"\xff%d" % draw.randrange(3)])
        message = draw.choice([b"", b"for the disk"])
        resource = draw.choice([b"", b"", b"vm-1", b"vm-2"])
        amount = draw.choice(nanos)
        kind = draw.choices(
            ["pay", "debit", "rate", "change", "limit", "hold", "end", "adjust", "thresholds", "class", "close"],
            [10, 10, 14, 5, 5, 8, 6, 4, 5, 5, 3],
        )[0]
        if kind == "pay":
            ends_ns = (-1, -1, 0, builder.now_ns + 1, builder.now_ns + HOUR_NS, builder.now_ns + DAY_NS)[amount % 6]
            options = ops.top_up_options(ends_ns, (b"", b"promo")[amount % 2])
            return (ops.TOP_UP, user, amount, 0, 0, b"", request, message, options, b"")
        if kind == "debit":
            return (ops.DEBIT, user, amount, draw.randrange(3), 0, b"", request, message, b"", b"")
        if kind == "rate":
            seq, runway = draw.choice([-1, -1, draw.randrange(30)]), draw.choice([-1, -1, 0, HOUR_NS])
            ttl_ns = (0, 0, ops.LEASE_NS_MIN, SECOND_NS, HOUR_NS)[amount % 5]
            options = ops.number_option(ops.TTL_NS, ttl_ns) if ttl_ns else b""
            return (ops.SET_RATE, user, draw.choice(rates), seq, runway, resource, request, message, options, b"")
        if kind == "change":
            delta = draw.choice([-1, 1]) * draw.choice(rates)
            return (ops.CHANGE_RATE, user, delta, 0, 0, resource, request, message, b"", b"")
        if kind == "limit":
            return (ops.SET_CREDIT_LIMIT, user, draw.choice([0, *nanos]), 0, 0, b"", request, b"", b"", b"")
        if kind == "hold":
            return (ops.HOLD, user, amount, draw.choice([0, 1, SECOND_NS, HOUR_NS]), 0, b"", request, b"", b"", b"")
        if kind == "end" and holds:
            user, name = draw.choice(holds)
            if draw.random() < 0.5:
                return (ops.RELEASE, user, 0, 0, 0, name, request, b"", b"", b"")
            return (ops.CAPTURE, user, amount, 0, 0, name, request, b"", b"", b"")
        if kind == "adjust":
            return (ops.ADJUST, user, draw.choice([-1, 1]) * amount, 0, 0, b"", request, b"a mistake", b"", b"")
        if kind == "thresholds":
            chosen = [(draw.randrange(2), draw.choice([0, 5, COIN, HOUR_NS])) for _ in range(draw.randrange(4))]
            packed = pack_thresholds(chosen)
            return (ops.SET_THRESHOLDS, user, len(packed) // 9, 0, 0, packed, b"", b"", b"", b"")
        if kind == "class":
            name = (b"", b"gold", b"gold", b"slow")[amount % 4]
            return (ops.SET_CLASS, user, 0, 0, 0, name, request, message, b"", b"")
        return (ops.CLOSE, user, 0, 0, 0, b"", request, b"", b"", b"")

    def delivery() -> Command:
        user = draw.choice(names)
        op = draw.choice(range(ops.CUTOFF_STARTED, ops.CUTOFF_RETRY + 1))
        worker = builder.worker_of(user)
        owed = worker.machine.ledger.owed(bucket_id_of(user, builder.bucket_count), user)
        seq = owed.seq if owed is not None else draw.randrange(1, 4)
        failed = op in (ops.CUTOFF_FAILED, ops.RESTORE_FAILED)
        b = draw.randrange(2) if op in (ops.CUTOFF_RETRY, ops.CUTOFF_FAILED) else 0
        return (op, user, seq, b, 0, b"", b"", b"503" if failed else b"", b"", b"")

    def edge(user: bytes) -> int:
        """How long until something is due for this account, or one nanosecond beside that."""
        bucket_id = bucket_id_of(user, builder.bucket_count)
        book = builder.worker_of(user).machine.ledger.books[bucket_id]
        if user not in book.slots:
            return 0
        view = builder.worker_of(user).machine.ledger.view(bucket_id, user, builder.now_ns)
        due_ns = view[draw.choice(["exhausts_at_ns", "cutoff_at_ns"])]
        return max(0, due_ns - builder.now_ns + draw.choice([-1, 0, 0, 1])) if isinstance(due_ns, int) else 0

    def move() -> None:
        source, target = draw.sample(builder.shards, 2)
        held = sorted(builder.workers[source].shard.held)
        if held:
            builder.move(draw.choice(held), source, target)

    def snapshot() -> None:
        builder.workers[draw.choice(builder.shards)].snapshot()

    events: list[Callable[[], None]] = [builder.restart, snapshot, *([move] if len(builder.shards) > 1 else [])]
    for _ in range(steps):
        chance = draw.random()
        if chance < upheavals:
            draw.choice(events)()
        elif chance < 0.25:
            span = draw.choice([1, 1000, SECOND_NS, 60 * SECOND_NS, HOUR_NS, 3 * DAY_NS])
            wait = edge(draw.choice(names)) if draw.random() < 0.5 else span
            if wait < 30 * DAY_NS:
                if draw.random() < 0.3:
                    builder.now_ns += wait  # timers are late
                else:
                    builder.wait(wait)
        else:
            chosen = delivery() if chance < 0.4 else command()
            try:
                reply = builder.do(chosen)
            except Refused:
                continue
            if "hold_id" in reply:
                name: Any = reply["hold_id"]
                holds.append((chosen[1], name.encode() if isinstance(name, str) else bytes(name)))
                del holds[:-8]
