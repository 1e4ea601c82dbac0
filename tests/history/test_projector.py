"""The history's process by its wire: a refusal for want of what a former owner has yet to write has an end, and what
it writes at any instant of a question is in the answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.follower import messages
from billing.follower.process import serve
from billing.follower.store import ShardFile
from billing.history.history_reader import MISSING
from billing.history.link import PERIOD, STATEMENT, HistorySettings
from billing.history.period_reader import Standing
from billing.history.projector import ARRIVED_NS, FORMER_END_NS, FORMER_WAIT_NS, Projector
from billing.history.store import open_store
from shards.batch import ENTRY, LEAVE, RECEIVED
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from shards.system.links import Wire
from tests.archives import unpack
from tests.fixtures.make import FIXTURES
from tests.history.test_store import NEWEST, batch_of, entry_of


class Process:
    """A projector of shard 1 in this loop, on a clock that is set by hand, and the worker's end of its wire."""

    def __init__(self, disk: RealDisk | None = None) -> None:
        self.disk = disk or RealDisk()
        self.boot_ns = 10**12
        self.look_ns = 0  # what passes until somebody looks at the clock
        self.heard: list[messages.ToWorker] = []
        self.wire = Wire(
            lambda _, message: self.heard.append(message), lambda _: None, lambda _: None, messages.to_worker
        )

    async def open(self, home: Path, log: bytes = b"", first: int = 1, served: tuple[int, ...] = ()) -> None:
        near, far = socket.socketpair()
        clocks = MACHINE_CLOCKS._replace(boot_ns=self._boot_ns)
        self.life = asyncio.create_task(serve(far, lambda: Projector(self.disk, clocks)))
        near.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self.wire, sock=near)
        settings = HistorySettings(log=log, served=served)
        self.wire.send(messages.Open(str(home / "history"), 1, first, first - 1, False, settings))
        await self.until(lambda: any(isinstance(message, messages.Opened) for message in self.heard))

    def _boot_ns(self) -> int:
        self.boot_ns += self.look_ns
        return self.boot_ns

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not what():
                await asyncio.sleep(0.001)

    def answers_to(self, number: int) -> list[messages.ToWorker]:
        """What was said to this question."""
        return [
            message
            for message in self.heard
            if isinstance(message, messages.Answer | messages.Refused) and message.number == number
        ]

    async def close(self) -> None:
        self.wire.send(messages.Close())
        assert await self.life == 0
        self.wire.close()


async def test_a_refusal_for_want_of_a_former_owner_names_its_reason_and_has_an_end(data_dir: Path) -> None:
    process = Process()
    await process.open(data_dir)
    process.wire.send(messages.Batch(1, batch_of((ENTRY, 7, 2, entry_of(b"u", 3, balance_nanos=5)))))
    question = (7, 2, b"u", NEWEST, 10, (3, 5, 3))
    process.wire.send(messages.Ask(1, question))
    process.wire.send(messages.Ask(2, (8, 1, b"v", NEWEST, 10, (0, 0, 0))))
    await process.until(lambda: process.answers_to(2))  # the first one was looked at by now, and waits
    assert process.answers_to(1) == []
    process.boot_ns += FORMER_WAIT_NS
    await process.until(lambda: process.answers_to(1))
    (refused,) = process.answers_to(1)
    assert isinstance(refused, messages.Refused)
    assert "a former owner of bucket 7 recorded (generation 1) is not there yet; after 60 s" in refused.reason
    process.wire.send(messages.Batch(2, batch_of((ENTRY, 7, 2, entry_of(b"w", 1)))))
    process.wire.send(messages.Ask(4, (7, 2, b"w", NEWEST, 10, (1, 0, 1))))  # whole, which says nothing of the others
    await process.until(lambda: process.answers_to(4))
    process.boot_ns += FORMER_END_NS
    process.wire.send(messages.Ask(3, question))
    await process.until(lambda: process.answers_to(3))
    (answer,) = process.answers_to(3)
    assert isinstance(answer, messages.Answer)
    rows = answer.answer
    assert [(row["entry_id"], row["operation"]) for row in rows] == [(3, "top_up"), (1, MISSING)]
    assert rows[-1]["whole_from_ns"] == 3
    await process.close()


async def test_what_is_lost_is_not_awaited_where_hosts_share_the_journal_but_of_a_bucket_that_just_came(
    data_dir: Path,
) -> None:
    process = Process()
    await process.open(data_dir, b"of several hosts", first=3)  # this host came when the log had no more
    entry = ENTRY, 7, 2, entry_of(b"u", 3, balance_nanos=5)
    process.wire.send(messages.Batch(3, batch_of(entry)))
    process.wire.send(messages.Batch(4, batch_of((RECEIVED, 8, 2, b"a bucket"), (ENTRY, 8, 2, entry_of(b"v", 3)))))
    process.wire.send(messages.Ask(1, (8, 2, b"v", NEWEST, 10, (3, 0, 3))))
    process.wire.send(messages.Ask(2, (7, 2, b"u", NEWEST, 10, (3, 5, 3))))
    await process.until(lambda: process.answers_to(2))
    assert process.answers_to(1) == [], "its former host may still be writing"
    process.boot_ns += ARRIVED_NS
    await process.until(lambda: process.answers_to(1))
    for number in (1, 2):
        (answer,) = process.answers_to(number)
        assert isinstance(answer, messages.Answer)
        assert [(row["entry_id"], row["operation"]) for row in answer.answer] == [(3, "top_up"), (1, MISSING)]
    await process.close()


async def test_an_answer_that_nobody_waits_for_any_more_is_not_made(data_dir: Path) -> None:
    process = Process()
    await process.open(data_dir)
    process.wire.send(messages.Batch(1, batch_of((ENTRY, 7, 1, entry_of(b"u", 1)))))
    question = PERIOD, 7, 1, b"u", (STATEMENT, 1, 10, False, 10, 10), Standing(entry_id=1, at_ns=1)
    process.wire.send(messages.Ask(1, question))
    await process.until(lambda: process.answers_to(1))
    assert isinstance(process.answers_to(1)[0], messages.Answer)
    process.look_ns = 8 * 10**9
    process.wire.send(messages.Ask(2, question))
    process.wire.send(messages.Ask(3, (7, 1, b"u", NEWEST, 10, (1, 1, 1))))
    await process.until(lambda: process.answers_to(2) and process.answers_to(3))
    for number in (2, 3):
        assert process.answers_to(number) == [messages.Refused(number, "the answer was not made within 7 s")]
    await process.close()


class BusyDisk(RealDisk):
    """A disk on which something happens just before the directory is listed, once for each time that `happens` has."""

    happens: Iterator[Callable[[], object]] = iter(())

    def listdir(self, path: str) -> list[str]:
        for act in self.happens:
            act()
            break
        return super().listdir(path)


@pytest.mark.parametrize("looks", [0, 1, 2, 3])
@pytest.mark.parametrize("is_period", [False, True])
async def test_what_a_former_owner_writes_while_a_question_is_answered_is_in_the_answer(
    data_dir: Path, looks: int, is_period: bool
) -> None:
    """`looks`: how often the files were looked at before it wrote its rows and its departure."""
    disk = BusyDisk()
    process = Process(disk)
    await process.open(data_dir)
    former, _ = open_store(ShardFile(str(data_dir / "history"), 2, 1, 0, RealDisk()), suspect=False)

    def write() -> None:
        entries = [(ENTRY, 7, 1, entry_of(b"u", entry_id, balance_nanos=entry_id)) for entry_id in (1, 2)]
        former.take(1, batch_of(*entries, (LEAVE, 7, 1, b"")))
        former.flush()

    process.wire.send(messages.Batch(1, batch_of((ENTRY, 7, 2, entry_of(b"u", 3, balance_nanos=3)))))
    disk.happens = iter([*(lambda: None,) * looks, write])
    period = PERIOD, 7, 2, b"u", (STATEMENT, 2, 10, False, 10, 10), Standing(entry_id=3, at_ns=3, balance_nanos=3)
    process.wire.send(messages.Ask(1, period if is_period else (7, 2, b"u", NEWEST, 10, (3, 3, 3))))
    await process.until(lambda: process.answers_to(1))
    (answer,) = process.answers_to(1)
    assert isinstance(answer, messages.Answer)
    rows = answer.answer["entries"] if is_period else answer.answer
    assert [row["entry_id"] for row in rows] == ([2, 3] if is_period else [3, 2, 1])
    assert not any("whole_from_ns" in row for row in rows)
    await process.close()
    former.close()


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("is_period", [False, True])
async def test_a_file_that_was_made_anew_is_awaited_until_it_is_as_far_again(
    data_dir: Path, looks: int, is_period: bool
) -> None:
    """`looks`: how often the files were looked at, since a question was answered in whole, before one was made anew."""
    disk = BusyDisk()
    process = Process(disk)
    await process.open(data_dir)
    shard_file = ShardFile(str(data_dir / "history"), 2, 1, 0, RealDisk())
    entries = [(ENTRY, 7, 1, entry_of(b"u", entry_id, balance_nanos=entry_id)) for entry_id in (1, 2)]
    stores = [open_store(shard_file, suspect=False)[0]]

    def write() -> None:
        stores[-1].take(1, batch_of(*entries, (LEAVE, 7, 1, b"")))
        stores[-1].flush()

    def make_anew() -> None:
        stores[-1].close()
        for path in (data_dir / "history").glob("shard-2.sqlite*"):
            path.unlink()
        stores.append(open_store(shard_file, suspect=False)[0])

    write()
    process.wire.send(messages.Batch(1, batch_of((ENTRY, 7, 2, entry_of(b"u", 3, balance_nanos=3)))))
    period = PERIOD, 7, 2, b"u", (STATEMENT, 2, 10, False, 10, 10), Standing(entry_id=3, at_ns=3, balance_nanos=3)
    question = period if is_period else (7, 2, b"u", NEWEST, 10, (3, 3, 3))
    process.wire.send(messages.Ask(1, question))
    await process.until(lambda: process.answers_to(1))
    disk.happens = iter([*(lambda: None,) * looks, make_anew])
    process.wire.send(messages.Ask(2, question))
    for number in range(3, 6):  # until it was made anew, whatever this question was answered
        process.wire.send(messages.Ask(number, (8, 2, b"v", NEWEST, 10, (0, 0, 0))))
    await process.until(lambda: len(stores) == 2)
    process.wire.send(messages.Ask(6, (9, 1, b"w", NEWEST, 10, (0, 0, 0))))
    await process.until(lambda: process.answers_to(6))
    write()
    await process.until(lambda: process.answers_to(2))
    for number in (1, 2):
        (answer,) = process.answers_to(number)
        assert isinstance(answer, messages.Answer)
        rows = answer.answer["entries"] if is_period else answer.answer
        assert [row["entry_id"] for row in rows] == ([2, 3] if is_period else [3, 2, 1])
        assert not any("whole_from_ns" in row for row in rows)
    await process.close()
    stores[-1].close()


async def test_an_older_file_of_a_shard_that_is_gone_is_converted_by_the_process_of_the_first_one(
    tmp_path: Path,
) -> None:
    """No process of its own does it; the histories of all buckets that had moved were refused for ever."""
    unpack(FIXTURES / "format-1.tar.gz", tmp_path)
    directory = tmp_path / "data" / "history"
    for side in directory.glob("shard-1.*"):
        side.unlink()
    for path in (directory, *directory.iterdir()):
        path.chmod(0o700 if path.is_dir() else 0o600)
    question = 1, 2, b"bob", NEWEST, 10, (0, 0, 0)
    process = Process()
    await process.open(tmp_path / "data", served=(1, 2))
    process.wire.send(messages.Ask(1, question))
    await process.until(lambda: process.answers_to(1))
    (refused,) = process.answers_to(1)
    assert isinstance(refused, messages.Refused), "the process of shard 2 converts it"
    assert "is of version 1, and not converted to 5 yet" in refused.reason
    await process.close()
    process = Process()
    await process.open(tmp_path / "data", served=(1,))
    process.wire.send(messages.Ask(1, question))
    await process.until(lambda: process.answers_to(1))
    (answer,) = process.answers_to(1)
    assert isinstance(answer, messages.Answer)
    assert [row["operation"] for row in answer.answer][-2:] == ["set_credit_limit", "top_up"]
    await process.close()
