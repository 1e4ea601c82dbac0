"""What a cutoff costs at the least, in Python: a ladder of senders, each of which does one thing more.

    call       wakes by a timer at the instant, writes a request made before on a connection that is open, and reads the
               answer; in a storm, on each of 64 connections the next one when an answer has come
    ledger     the same with the account taken out of the real wheel, run out in the real ledger, the request made from
               its owed call, both reports of the call carried out, and all records appended to the real journal ten
               times a second: what no daemon of this kind can leave out. It has no outbox, no retries, no time limits,
               no judgement of the endpoint, no figures, no history and no other duties
    daemon     `billing serve` with one worker, as in `benchmarks.cutoff_lag`

All of them call the same receiver, and are measured in turns:

    python -m benchmarks.cutoff_floor --per-second 100 --seconds 10      isolated
    python -m benchmarks.cutoff_floor --storm 10000                      all at one instant
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections import deque
from multiprocessing.connection import Connection as Pipe
from typing import Any

import uvloop

from benchmarks import cutoff_lag
from benchmarks.endpoint import COIN, Endpoint
from benchmarks.figures import add_arguments, show_each
from benchmarks.floor import child_process
from benchmarks.single_floor import BUCKETS
from billing.api import calls
from billing.expirationd.request import GetTemplate
from billing.ledger import commands as ops
from billing.ledger.commands import Command
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of
from shards.journal.file.journal import FileJournal, FileSettings
from shards.shard import Ready, Shard
from shards.system.disk import RealDisk
from shards.system.serial_executor import SerialExecutor

CONNECTIONS = 64
LEAD_S = 2.0
RIDE_S = 0.1  # records that nobody awaits are appended together
TICK_LIMIT = 256


class Connection(asyncio.Protocol):
    """A connection that is kept open; tells its sender of each answer."""

    transport: Any

    def __init__(self, sender: Calls) -> None:
        self.sender = sender
        self.number = -1  # of the cutoff that is called on it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 200"), data
        self.sender.answered(self)


class Calls:
    """Calls each cutoff at its instant, with requests that were made before. `done` is set behind the last answer."""

    def __init__(self, base: str, due_ns: list[int], directory: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.template = GetTemplate(base + "/off")
        self.due_ns = due_ns
        self.users = [b"user_%07d" % number for number in range(len(due_ns))]
        self.free: list[Connection] = []
        self.waiting: deque[int] = deque()
        self.left = len(due_ns)
        self.done = asyncio.Event()
        self.prepare(directory)

    def prepare(self, directory: str) -> None:
        """Makes the requests."""
        self.next = 0
        self.requests = [
            self.template.request(user, f"{user.decode()}:1:{due_ns}", 1, due_ns, due_ns // COIN)
            for user, due_ns in zip(self.users, self.due_ns, strict=True)
        ]

    def arm(self) -> None:
        """Sets the timer for the next instant."""
        next_ns = self.next_due_ns()
        if next_ns >= 0:
            self.loop.call_later(max(0, next_ns - time.time_ns()) / 1e9, self.on_timer)

    def on_timer(self) -> None:
        self.fall_due(time.time_ns())
        while self.waiting and self.free:
            self.begin(self.free.pop())
        self.arm()

    def answered(self, connection: Connection) -> None:
        self.settle(connection.number)
        self.left -= 1
        if not self.left:
            self.done.set()
        elif self.waiting:
            self.begin(connection)
        else:
            self.free.append(connection)

    def begin(self, connection: Connection) -> None:
        connection.number = self.waiting.popleft()
        connection.transport.write(self.request(connection.number))

    def next_due_ns(self) -> int:
        return self.due_ns[self.next] if self.next < len(self.due_ns) else -1

    def fall_due(self, now_ns: int) -> None:
        while self.next < len(self.due_ns) and self.due_ns[self.next] <= now_ns:
            self.waiting.append(self.next)
            self.next += 1

    def request(self, number: int) -> bytes:
        return self.requests[number]

    def settle(self, number: int) -> None:
        """Takes the 2xx; does nothing here."""


class WithLedger(Calls):
    """Takes the accounts out of the wheel, and records what becomes of them."""

    def prepare(self, directory: str) -> None:
        settings = FileSettings("always", segment_bytes=64 << 20)
        self.journal = FileJournal(f"{directory}/shard-1", RealDisk(), settings, now_ns=time.time_ns, salt=lambda: 7)
        self.journal.open(1, "benchmark")
        self.executor = SerialExecutor("journal", self.loop)
        self.numbers = {user: number for number, user in enumerate(self.users)}
        self.buckets = [bucket_id_of(user, BUCKETS) for user in self.users]
        self.shard = Shard(1, BillingMachine(Rules(accrue=False, request_ids_per_bucket=1000, restore=False)))
        now_ns = time.time_ns()
        self.shard.serve(now_ns)
        for bucket_id in range(1, BUCKETS + 1):
            self.shard.adopt(bucket_id, 1)
        for user, bucket_id, due_ns in zip(self.users, self.buckets, self.due_ns, strict=True):
            self.shard.apply(bucket_id, calls.top_up([user, due_ns - now_ns]), now_ns)
            self.shard.apply(bucket_id, calls.set_rate([user, COIN]), now_ns)  # a nano each nanosecond
        self.appended = time.monotonic()
        self.append()

    def next_due_ns(self) -> int:
        return self.shard.next_due_ns()

    def fall_due(self, now_ns: int) -> None:
        machine = self.shard.machine
        self.shard.tick(now_ns, TICK_LIMIT)
        self.waiting.extend(self.numbers[user_id] for _, _, _, user_id, _ in machine.notices)
        machine.notices.clear()
        if time.monotonic() - self.appended > RIDE_S:
            self.append()

    def request(self, number: int) -> bytes:
        user_id, bucket_id = self.users[number], self.buckets[number]
        machine = self.shard.machine
        assert isinstance(machine, BillingMachine)
        call = machine.ledger.owed(bucket_id, user_id)
        assert call is not None, "it was noticed"
        now_ns = time.time_ns()
        self.shard.report([(bucket_id, _report(ops.CUTOFF_STARTED, user_id))], now_ns)
        return self.template.request(user_id, call.event_id, call.seq, call.exhausted_at_ns, now_ns // COIN)

    def settle(self, number: int) -> None:
        report = _report(ops.CUTOFF_DELIVERED, self.users[number])
        self.shard.report([(self.buckets[number], report)], time.time_ns())

    def append(self) -> None:
        """Hands all records to the journal's thread, batch by batch."""
        self.appended = time.monotonic()
        ready = self.shard.take_ready()
        if ready is not None:
            self.executor.submit(lambda _, error: self.on_synced(ready, error), self.journal.append, ready.payload)

    def on_synced(self, ready: Ready, error: BaseException | None) -> None:
        assert error is None, error
        self.shard.synced(ready)
        if self.shard.has_more() and ready.notices:
            self.append()


def _report(op: int, user_id: bytes) -> Command:
    return (op, user_id, 1, 0, 0, b"", b"", b"", b"", b"")


LADDER: dict[str, type[Calls]] = {"call": Calls, "ledger": WithLedger}


def send(pipe: Pipe, kind: str, directory: str, base: str, count: int, step_ns: int) -> None:
    """A sender of the ladder: sends its CPU microseconds a cutoff."""

    async def run() -> float:
        first_ns = time.time_ns() + int(LEAD_S * COIN) + count * 50_000
        sender = LADDER[kind](base, [first_ns + number * step_ns for number in range(count)], directory)
        loop = asyncio.get_running_loop()
        host, _, port = base.removeprefix("http://").rpartition(":")
        for _ in range(CONNECTIONS if not step_ns else 1):
            _, connection = await loop.create_connection(lambda: Connection(sender), host, int(port))
            sender.free.append(connection)
        await asyncio.sleep((first_ns - time.time_ns()) / COIN - LEAD_S / 4)
        before = resource.getrusage(resource.RUSAGE_SELF)
        sender.arm()
        await sender.done.wait()
        after = resource.getrusage(resource.RUSAGE_SELF)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count * 1e6

    pipe.send(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(run()))


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measures every sender `--runs` times, in turns."""
    count = arguments.storm or int(arguments.per_second * arguments.seconds)
    step_ns = 0 if arguments.storm else int(COIN / arguments.per_second)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for kind in LADDER:
            with (
                tempfile.TemporaryDirectory(dir=arguments.directory) as name,
                Endpoint() as endpoint,
                child_process(send, kind, name, endpoint.url, count, step_ns) as pipe,
            ):
                kinds.setdefault(kind, []).append({"cpu_us_per_cutoff": round(pipe.recv(), 1)})
                assert endpoint.page("/stats")["received"] == count
        figures = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(cutoff_lag.measure(arguments))
        kinds.setdefault("daemon", []).append({"cpu_us_per_cutoff": figures["server_cpu_us_per_cutoff"]})
    return kinds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=float, default=100)
    parser.add_argument("--storm", type=int, default=0, help="that many at one instant instead")
    add_arguments(parser, seconds=10)
    parser.set_defaults(workers=1, armed=0, commands=0, servers=False)
    arguments = parser.parse_args()
    show_each(arguments, measure(arguments))


if __name__ == "__main__":
    main()
