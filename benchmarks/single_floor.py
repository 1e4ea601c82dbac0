"""What one command alone costs at the least, in Python: a ladder of servers, each of which does one thing more.

    echo       reads, and answers with a constant
    sync       the same behind a write and an fdatasync of one small batch by a thread
    ledger     the same with the command decoded, carried out by the real shard and ledger, appended to the real
               journal, and the reply encoded: what no daemon of this kind can leave out. It has no limits, no
               authority, no timers, no figures, no history, no neighbours and no snapshots
    daemon     `billing serve`, without the processes of its history, as in `benchmarks.commands`

All of them have one connection with one command in flight, and are measured in turns:

    python -m benchmarks.single_floor --runs 5
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.commands import COIN, mixed_frames, opened, run
from benchmarks.figures import add_arguments, show_each
from benchmarks.floor import NullServer, child_process, serve_measured
from billing.api import calls
from billing.ledger.errors import Refused
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of
from shards.journal.file.journal import FileJournal, FileSettings
from shards.shard import Ready, Shard
from shards.system.disk import RealDisk
from shards.system.serial_executor import SerialExecutor
from tests.system.daemon import Daemon

BUCKETS = 3000
BATCH_BYTES = 239  # of one command
REPLY = msgspec.msgpack.encode([1, 0, None, {"balance_nanos": 0}])
PARSERS = {"top_up": calls.top_up, "set_rate": calls.set_rate, "debit": calls.debit}
TICK_LIMIT = 1000

_decode = msgspec.msgpack.Decoder(tuple[int, int, str, list[Any]]).decode
_encode = msgspec.msgpack.Encoder().encode


class Echo(asyncio.Protocol):
    """Answers each read with a constant, whose msgid is the request's."""

    def __init__(self, directory: str, executor: SerialExecutor, accounts: int) -> None:
        self.executor = executor

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(_encode((1, _decode(data)[1], None, msgspec.Raw(REPLY[4:]))))


class Sync(Echo):
    """Answers once a thread has written and synced a batch."""

    def __init__(self, directory: str, executor: SerialExecutor, accounts: int) -> None:
        super().__init__(directory, executor, accounts)
        self.handle = os.open(f"{directory}/floor", os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self.handle, 0, 64 << 20)
        os.fsync(self.handle)
        self.at = 0

    def data_received(self, data: bytes) -> None:
        msgid = _decode(data)[1]
        self.executor.submit(partial(self._on_synced, msgid), self._write)

    def _write(self) -> None:
        self.at = (self.at + 512) % (64 << 20)
        os.pwrite(self.handle, bytes(BATCH_BYTES), self.at)
        os.fdatasync(self.handle)

    def _on_synced(self, msgid: int, _: object, error: BaseException | None) -> None:
        assert error is None
        self.transport.write(_encode((1, msgid, None, msgspec.Raw(REPLY[4:]))))


class WithLedger(Echo):
    """Carries each command out, and answers once its batch is durable."""

    def __init__(self, directory: str, executor: SerialExecutor, accounts: int) -> None:
        super().__init__(directory, executor, accounts)
        settings = FileSettings("always", segment_bytes=64 << 20)
        self.journal = FileJournal(f"{directory}/shard-1", RealDisk(), settings, now_ns=time.time_ns, salt=lambda: 7)
        self.journal.open(1, "benchmark")
        rules = Rules(accrue=False, request_ids_per_bucket=1000, restore=False)
        self.shard = Shard(1, BillingMachine(rules))
        self.shard.serve(time.time_ns())
        for bucket_id in range(1, BUCKETS + 1):
            self.shard.adopt(bucket_id, 1)
        for number in range(accounts):
            user_id = b"user_%07d" % number
            bucket_id = bucket_id_of(user_id, BUCKETS)
            self.shard.apply(bucket_id, calls.top_up([user_id, 1000 * COIN]), time.time_ns())
        self._append()

    def data_received(self, data: bytes) -> None:
        now_ns = time.time_ns()
        _, msgid, name, params = _decode(data)
        params[0] = params[0].encode()
        command = PARSERS[name](params)
        if 0 <= self.shard.next_due_ns() <= now_ns:
            self.shard.tick(now_ns, TICK_LIMIT)
        self.shard.receive(self, msgid, bucket_id_of(command[1], BUCKETS), command, now_ns)
        self._append()

    def _append(self) -> None:
        ready = self.shard.take_ready()
        if ready is not None:
            self.executor.submit(partial(self._on_synced, ready), self.journal.append, ready.payload)

    def _on_synced(self, ready: Ready, _: object, error: BaseException | None) -> None:
        assert error is None
        self.shard.synced(ready)
        for _, msgid, reply in ready.replies:
            outcome = (reply.name, None) if isinstance(reply, Refused) else (None, reply)
            self.transport.write(_encode((1, msgid, *outcome)))

    def answer(self, token: object, reply: object) -> None:
        """As a caller of the shard, whose replies come with the batch."""

    refuse = answer

    def flush(self) -> None:
        """Nothing is held back here."""


LADDER: dict[str, type[Echo]] = {"echo": Echo, "sync": Sync, "ledger": WithLedger}


def serve(pipe: Pipe, kind: str, directory: str, accounts: int) -> None:
    """A server of the ladder: sends its port, then its CPU seconds whenever it is asked."""

    async def until_the_end() -> None:
        protocol = LADDER[kind](directory, SerialExecutor("journal", asyncio.get_running_loop()), accounts)
        await serve_measured(pipe, lambda: protocol)

    uvloop.run(until_the_end())


async def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measures every server `--runs` times, in turns."""
    frames = [mixed_frames(arguments.accounts, 20_000, arguments.seed)]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for kind in LADDER:
            with (
                tempfile.TemporaryDirectory(dir=arguments.directory) as name,
                child_process(serve, kind, name, arguments.accounts) as pipe,
            ):
                kinds.setdefault(kind, []).append(await run(NullServer(pipe), frames, 1, arguments.seconds))
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            Path(name).chmod(0o700)
            daemon = Daemon(Path(name), shards__workers=1, journal__segment_bytes=64 << 20)
            with daemon:
                await opened(daemon, arguments.accounts)
                kinds.setdefault("daemon", []).append(await run(daemon, frames, 1, arguments.seconds))
    return kinds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1000)
    add_arguments(parser)
    arguments = parser.parse_args()
    kinds = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    show_each(arguments, kinds)


if __name__ == "__main__":
    main()
