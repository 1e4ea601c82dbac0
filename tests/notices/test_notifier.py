"""A notifier on a wire of its own, with clocks that the test sets: the wait for a shard that never answers ends."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from billing.follower import messages
from billing.follower.process import serve
from billing.follower.store import ShardFile, Unconverted, connect, file_of
from billing.ledger import commands as ops
from billing.ledger.ledger import Ledger, Rules
from billing.notices.notifier import CLAIM_END_NS, Notifier
from billing.notices.opening import ensure_file
from billing.notices.settings import NoticeSettings
from billing.notices.store import KIND, Store
from billing.notices.window import Window
from shards.batch import ENTRY, LEAVE, RECEIVED
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import RealDisk
from shards.system.links import Wire
from tests.history.test_store import batch_of
from tests.notices.names import numbered

NOW_NS = 1_700_000_000 * 10**9
DEADLINE_S = 60


class Worker:
    """The other end of the wire."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.wire: Wire | None = None

    async def start(
        self,
        directory: Path,
        shard: int,
        notifier: Callable[[], Notifier],
        url: str = "http://127.0.0.1:9/",  # nobody listens there
        served: tuple[int, ...] = (),
    ) -> Wire:
        """Starts the other end, and has it open a file."""
        self._near, far = socket.socketpair()
        self._near.setblocking(False)
        self._served = asyncio.create_task(serve(far, notifier))
        await asyncio.get_running_loop().create_connection(self.protocol, sock=self._near)
        assert self.wire is not None
        settings = NoticeSettings(url, served=served)
        self.wire.send(messages.Open(str(directory), shard, 1, 0, False, settings))
        await self.hears(messages.Opened)
        return self.wire

    async def stop(self) -> None:
        assert self.wire is not None
        self.wire.send(messages.Close())
        assert await self._served == 0
        self._near.close()

    def protocol(self) -> Wire:
        return Wire(
            lambda _, message: self.messages.put_nowait(message), lambda _: None, self._opened, messages.to_worker
        )

    def _opened(self, wire: Wire) -> None:
        self.wire = wire

    async def hears(self, kind: type[messages.Message], **fields: Any) -> Any:
        """The next message of this kind with these fields."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = await self.messages.get()
                if isinstance(message, kind) and all(getattr(message, name) == fields[name] for name in fields):
                    return message


async def test_what_a_checkpoint_has_committed_is_told_though_no_batch_follows(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    ensure_file(ShardFile(str(tmp_path), 0, 1, 0, RealDisk()), 100, NOW_NS)
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=False), lambda ref, due_ns: due_ns)
    ledger.create(1)
    ledger.wake(1)
    ledger.apply(1, 1, (ops.TOP_UP, b"u", 10**9, 0, 0, b"", b"", b"", b"", b""))
    batch = batch_of(*((ENTRY, bucket, 1, body) for bucket, body in ledger.records))
    worker = Worker()
    wire = await worker.start(tmp_path, 0, lambda: Notifier(RealDisk(), MACHINE_CLOCKS, random.Random(1)))
    wire.send(messages.Batch(1, batch))
    wire.send(messages.Settle())
    message = await worker.hears(messages.Told)
    while not message.figures["notices_failed"]:
        message = await worker.hears(messages.Told)
    await worker.stop()


async def test_the_wait_for_a_shard_that_never_says_what_it_owes_ends_with_a_word(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    disk, passed_ns = RealDisk(), 0
    for shard in (0, 1):  # the first one has its file, and no process
        ensure_file(ShardFile(str(tmp_path), shard, 1, 0, disk), 100 + shard, NOW_NS)
    worker, clocks = Worker(), Clocks(lambda: NOW_NS + passed_ns, lambda: NOW_NS + passed_ns)
    wire = await worker.start(tmp_path, 1, lambda: Notifier(disk, clocks, random.Random(1)))
    wire.send(messages.Batch(1, batch_of((RECEIVED, 7, 2, b""))))
    awaited = await worker.hears(messages.Told)
    while not awaited.figures["notices_awaited_buckets"]:
        awaited = await worker.hears(messages.Told)
    passed_ns = CLAIM_END_NS + 1
    remark = await worker.hears(messages.Remark)
    assert remark.text.startswith("what former shards of bucket 7 owed is not on record after 3600 s")
    await worker.stop()


async def test_what_was_taken_over_is_not_proved_while_a_reader_keeps_it_from_the_file(tmp_path: Path) -> None:
    """Though the batch that the file ends with was proved before: what a claim says is deleted elsewhere."""
    tmp_path.chmod(0o700)
    disk = RealDisk()
    for shard in (0, 1):
        ensure_file(ShardFile(str(tmp_path), shard, 1, 0, disk), 100 + shard, NOW_NS)
    former = Store(str(tmp_path), 0, disk)
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=False), lambda ref, due_ns: due_ns)
    ledger.create(7)
    ledger.wake(7)
    ledger.apply(7, 1, (ops.TOP_UP, b"u", 10**9, 0, 0, b"", b"", b"", b"", b""))
    former.take(1, batch_of(*((ENTRY, bucket, 1, body) for bucket, body in ledger.records)), NOW_NS)
    former.flush()
    worker = Worker()
    wire = await worker.start(tmp_path, 1, lambda: Notifier(disk, MACHINE_CLOCKS, random.Random(1)))
    wire.send(messages.Batch(1, batch_of((RECEIVED, 7, 2, b""))))
    wire.send(messages.Settle())
    await worker.hears(messages.Reached, durable=1)
    reader = connect(file_of(str(tmp_path), 1), KIND)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM about").fetchone()
    former.take(2, batch_of((LEAVE, 7, 1, b"")), NOW_NS)
    former.flush()
    message = await worker.hears(messages.Told)
    while message.figures["notices_awaited_buckets"] or not message.figures["notices_owed"]:
        message = await worker.hears(messages.Told)

    async def proved() -> list[tuple[int]]:
        wire.send(messages.Settle())
        wire.send(messages.Ask(1, ()))
        await worker.hears(messages.Refused)
        with closing(connect(file_of(str(tmp_path), 1), KIND)) as db:
            return db.execute("SELECT proved FROM claims").fetchall()

    assert await proved() == [(0,)]
    assert former.delete_claimed() == 0
    reader.close()
    assert await proved() == [(1,)]
    assert former.delete_claimed() == 1
    former.close()
    await worker.stop()


async def test_users_whose_notices_are_refused_delay_no_other_however_many_they_are(tmp_path: Path) -> None:
    """There are more of them than users in memory at once. What they are owed comes in order once it is taken."""
    told: list[str] = []
    sick: list[str] = [f"sick{number}" for number in range(12)]

    async def serve_notices(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                name = head.split(b"webhook-id: ")[1].split(b"\r\n")[0].decode()
                if name.split(":")[0] in sick:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                else:
                    told.append(name)
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    def notifier() -> Notifier:
        made = Notifier(RealDisk(), MACHINE_CLOCKS, random.Random(1))
        made._window = Window(users_max=4, each_max=2)
        return made

    tmp_path.chmod(0o700)
    ensure_file(ShardFile(str(tmp_path), 0, 1, 0, RealDisk()), 100, NOW_NS)
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=False), lambda ref, due_ns: due_ns)
    ledger.create(1)
    ledger.wake(1)
    users = [*sick, "well"]
    for number in range(5):
        for user in users:
            ledger.apply(1, number + 1, (ops.TOP_UP, user.encode(), 10**9, 0, 0, b"", b"", b"", b"", b""))
    batch = batch_of(*((ENTRY, bucket, 1, body) for bucket, body in ledger.records))
    server = await asyncio.start_server(serve_notices, "127.0.0.1", 0)
    worker = Worker()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    wire = await worker.start(tmp_path, 0, notifier, url)
    wire.send(messages.Batch(1, batch))
    while len(told) < 5:
        await worker.hears(messages.Told)
    assert [numbered(name) for name in told] == [f"well:{number}:account-topped_up" for number in range(1, 6)]
    sick.clear()
    while len(told) < 5 * len(users):
        await worker.hears(messages.Told)
    for user in users:
        mine = [numbered(name) for name in told if name.startswith(f"{user}:")]
        assert mine == [f"{user}:{number}:account-topped_up" for number in range(1, 6)]
    await worker.stop()
    server.close()


async def test_an_older_file_of_a_shard_that_is_gone_is_converted_and_one_that_is_not_yet_ends_nobody(
    tmp_path: Path,
) -> None:
    """A notifier of another shard had ended on it again and again, and told nothing."""
    tmp_path.chmod(0o700)
    for shard in (0, 1):
        ensure_file(ShardFile(str(tmp_path), shard, 1, 0, RealDisk()), 100 + shard, NOW_NS)
    with closing(connect(file_of(str(tmp_path), 1), KIND, write=True)) as db:
        for table in ("about", "departures", "arrivals", "claims"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        db.execute("PRAGMA user_version = 2")
    arrived = batch_of((RECEIVED, 7, 2, b""), (LEAVE, 8, 1, b""))
    worker = Worker()
    wire = await worker.start(
        tmp_path, 0, lambda: Notifier(RealDisk(), MACHINE_CLOCKS, random.Random(1)), served=(0, 1)
    )
    wire.send(messages.Batch(1, arrived))
    wire.send(messages.Settle())
    message = await worker.hears(messages.Told)
    while not message.figures["notices_awaited_buckets"]:
        message = await worker.hears(messages.Told)
    await worker.stop()
    with pytest.raises(Unconverted):
        connect(file_of(str(tmp_path), 1), KIND)
    worker = Worker()
    await worker.start(tmp_path, 2, lambda: Notifier(RealDisk(), MACHINE_CLOCKS, random.Random(1)), served=(0, 2))
    await worker.stop()
    connect(file_of(str(tmp_path), 1), KIND).close()
