"""The histories of shards that other hosts serve: made of their journals, by one writer a file, and whole or said."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from billing.follower import messages
from billing.follower.process import serve
from billing.follower.store import Overtaken, file_of
from billing.history.history_reader import MISSING, HistoryReader
from billing.history.replica import Replica
from billing.history.replica_link import BATCHES, SILENT_NS, Follow, Got, Read, ReplicaLink, Wanted, from_replica
from shards.exits import Exit
from shards.journal import Backend, Gap, LastSign, Unavailable
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL, Child
from shards.system.links import Wire
from tests.history.shard_driver import ShardDriver
from tests.history.test_store import NEWEST, opened
from tests.shards.system.unsynced import UnsyncedDisk


class JournalsInMemory:
    """The journals of some shards, in memory, as a backend shows them."""

    def __init__(self, *scenes: ShardDriver) -> None:
        self.scenes = dict(enumerate(scenes, start=1))
        self.first = dict.fromkeys(self.scenes, 1)
        self.trouble: Exception | None = None
        self.reads = 0

    def signs(self) -> dict[int, LastSign]:
        if self.trouble is not None:
            raise self.trouble
        return {
            shard: LastSign(len(driver.batches), False, position=len(driver.batches))
            for shard, driver in self.scenes.items()
        }

    def reader(self, shard: int) -> FakeShardReader:
        return FakeShardReader(self, shard)


class FakeShardReader:
    """The part of a reader that is used."""

    def __init__(self, log: JournalsInMemory, shard: int) -> None:
        self._log, self._shard = log, shard

    @property
    def first(self) -> int:
        return self._log.first[self._shard]

    @property
    def head(self) -> int:
        return len(self._log.scenes[self._shard].batches)

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        self._log.reads += 1
        if start < self.first:
            raise Gap(f"{start} is gone")
        return iter(list(enumerate(self._log.scenes[self._shard].batches, start=1))[start - 1 :])


class Host:
    """A replica in this loop, and the main process's end of its wire."""

    def __init__(self, home: Path, log: JournalsInMemory) -> None:
        self.home, self.log = home, log
        self.heard: list[messages.ToWorker | Wanted] = []
        self.wire = Wire(lambda _, message: self.on_frame(message), lambda _: None, lambda _: None, from_replica)
        self.others: dict[str, Host] = {}  # that it can ask
        self.asks: dict[int, tuple[Host, int]] = {}  # what it was asked, by number: by whom, and the number there

    def on_frame(self, message: messages.ToWorker | Wanted) -> None:
        """What the main process does, of this host and of those that it asks."""
        self.heard.append(message)
        if isinstance(message, Wanted):
            peer = self.others[message.host]
            peer.asks[len(peer.asks)] = self, message.number
            peer.wire.send(Read(len(peer.asks) - 1, message.question))
        elif isinstance(message, messages.Answer | messages.Refused):
            asker, number = self.asks[message.number]
            answer = message.answer if isinstance(message, messages.Answer) else None
            asker.wire.send(Got(number, answer, isinstance(message, messages.Answer)))

    async def follow(self, *shards: int) -> None:
        if not self.wire.is_open:
            near, far = socket.socketpair()
            replica = Replica(UnsyncedDisk(), MACHINE_CLOCKS, lambda _: cast(Backend, self.log))
            self.life = asyncio.create_task(serve(far, lambda: replica))
            near.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: self.wire, sock=near)
        self.wire.send(Follow(str(self.home / "history"), {}, 0, False, list(shards), [*self.others]))

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not what():
                await asyncio.sleep(0.005)

    def position(self, shard: int) -> int:
        """The last batch that is in a file; -1 where there is none yet."""
        path = Path(file_of(str(self.home / "history"), shard))
        if not path.exists():
            return -1
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT position FROM about").fetchone()[0])

    async def until_through(self, *shards: int) -> None:
        await self.until(lambda: all(self.position(shard) == len(self.log.scenes[shard].batches) for shard in shards))

    def followed(self) -> list[int]:
        """As it said last."""
        return list(self.figures().get("followed", []))

    def figures(self) -> dict[str, Any]:
        """What it told last."""
        figures = [message.figures for message in self.heard if isinstance(message, messages.Told)]
        return figures[-1] if figures else {}

    def check(self, own_shard: int, shard: int) -> None:
        """What this host's projector of `own_shard` reads of the accounts of another shard is what they did."""
        store = opened(self.home / "history", shard=own_shard, head=len(self.log.scenes[own_shard].batches))
        reader = HistoryReader(str(self.home / "history"), own_shard, store.db, UnsyncedDisk())
        driver = self.log.scenes[shard]
        for user in driver.users:
            assert reader.history(2, user, NEWEST, 10**6).rows == driver.history(user, limit=10**6)
        reader.close()
        store.close()

    async def close(self) -> None:
        self.wire.close()
        assert await self.life == 0


def scenes(count: int = 2) -> list[ShardDriver]:
    scenes_made = [ShardDriver(seed, users=4) for seed in range(1, count + 1)]
    for number, driver in enumerate(scenes_made):
        driver.users = [b"%d_%s" % (number, user) for user in driver.users]
        for _ in range(5):
            driver.batch()
    return scenes_made


async def test_shards_elsewhere_are_followed_and_one_that_is_taken_over_is_let_go_for_its_worker(
    data_dir: Path,
) -> None:
    log = JournalsInMemory(*scenes(3))
    host = Host(data_dir, log)
    await host.follow(2, 3)
    await host.until_through(2, 3)
    assert host.position(1) == -1, "it is this host's"
    log.scenes[2].batch()
    await host.until_through(2)

    await host.follow(3)  # shard 2 is taken over: its file goes on here
    store = opened(data_dir / "history", shard=2, head=len(log.scenes[2].batches))
    store.take(store.position + 1, log.scenes[2].batch())
    store.flush()
    store.close()
    host.check(own_shard=2, shard=3)
    await host.follow(2, 3)  # and is given back
    log.scenes[2].batch()
    await host.until_through(2, 3)
    host.check(own_shard=3, shard=2)
    await host.close()


async def test_what_the_log_has_no_more_is_on_record_as_lost(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = JournalsInMemory(*scenes(1))
    host = Host(data_dir, log)
    await host.follow(1)
    await host.until_through(1)
    await host.close()
    driver = log.scenes[1]
    for _ in range(4):
        driver.batch()
    log.first[1] = 8  # this host was away, and 6 and 7 are trimmed
    again = Host(data_dir, log)
    await again.follow(1)
    await again.until_through(1)
    assert "batches 6 to 7 (2) are in neither file nor journal" in caplog.text
    await again.close()
    store = opened(data_dir / "history", shard=1, first=8, head=len(driver.batches))
    reader = HistoryReader(str(data_dir / "history"), 1, store.db, UnsyncedDisk())
    assert reader.lacks()
    rows = [row for user in driver.users for row in reader.history(1, user, NEWEST, 10**6).rows]
    assert MISSING in {row["operation"] for row in rows}
    store.close()


async def test_what_a_file_lacks_is_taken_from_another_host_and_what_nobody_has_stays_missing(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a shard elsewhere, and of one that this host serves."""
    caplog.set_level("INFO")
    log = JournalsInMemory(*scenes(2))
    for name in ("here", "there"):
        (data_dir / name).mkdir(mode=0o700)
    here, there = Host(data_dir / "here", log), Host(data_dir / "there", log)
    for host in (here, there):
        await host.follow(1, 2)
        await host.until_through(1, 2)
    await here.close()
    for driver in log.scenes.values():
        for _ in range(6):
            driver.batch()
    await there.until_through(1, 2)
    log.first = {1: 8, 2: 9}  # this host was away, and what lies between is trimmed
    served = opened(data_dir / "here/history", shard=2, first=9, head=11)
    for position in range(9, 12):
        served.take(position, log.scenes[2].batches[position - 1])
    served.flush()
    back = Host(data_dir / "here", log)
    await back.follow(1)  # shard 2 is this host's now
    await back.until(lambda: back.figures().get("lacks"))
    assert back.figures()["lacks"][1].startswith("batches 6 to 7")
    await back.until(lambda: caplog.text.count("no other host has that") == 2)
    back.others["there"] = there
    await back.follow(1)
    await back.until(lambda: not back.figures()["lacks"])
    await back.until_through(1, 2)
    assert "the history of shard 1 has batches 6 to 7 again, " in caplog.text
    assert "the history of shard 2 has batches 6 to 8 again, " in caplog.text
    with pytest.raises(Overtaken):
        served.take(12, b"a batch that its projector wanted to write")
    served.db.close()
    back.check(own_shard=2, shard=1)
    back.check(own_shard=1, shard=2)
    await back.close()
    await there.close()


async def test_another_host_that_asks_is_answered_by_the_process_or_told_why_not(data_dir: Path) -> None:
    log_dir = data_dir / "log"
    log_dir.mkdir()
    settings = {"kind": "file", "directory": str(log_dir)}
    link = ReplicaLink(str(data_dir / "history"), settings, 0, REAL.spawn, MACHINE_CLOCKS.boot_ns)
    assert "starting" in (await link.read((BATCHES, 1, 0, 0, 5, 100)))["message"], "it is started by the question"
    async with asyncio.timeout(60):
        while "refused" in (reply := await link.read((BATCHES, 1, 0, 0, 5, 100))):
            await asyncio.sleep(0.01)
    assert reply == {"given": None}, "there is no file"
    assert link.lacks() == {}
    await link.close()


async def test_a_log_that_cannot_be_read_is_named_once_and_read_as_soon_as_it_can_be(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = JournalsInMemory(*scenes(1))
    log.trouble = Unavailable("no majority")
    host = Host(data_dir, log)
    await host.follow(1)
    await host.until(lambda: any(isinstance(message, messages.Told) for message in host.heard))
    assert host.followed() == []
    log.trouble = None
    await host.until_through(1)
    await host.until(lambda: host.followed() == [1])
    assert caplog.text.count("cannot be followed: ") == 1
    await host.close()


async def test_a_second_writer_ends_the_process_and_nothing_is_written_twice(data_dir: Path) -> None:
    log = JournalsInMemory(*scenes(1))
    host = Host(data_dir, log)
    await host.follow(1)
    await host.until_through(1)
    payload = log.scenes[1].batch()
    log.scenes[1].batches.pop()  # it is not shown yet
    store = opened(data_dir / "history", shard=1, head=6)
    store.take(6, payload)
    store.flush()
    log.scenes[1].batches.append(payload)
    log.scenes[1].batch()
    assert await host.life == Exit.AGAIN
    (failed,) = [message for message in host.heard if isinstance(message, messages.Failed)]
    assert "another process writes to it" in failed.reason
    assert host.position(1) == 6
    store.close()
    host.wire.close()


async def test_its_process_is_started_once_there_is_a_shard_elsewhere_and_again_when_it_ends(data_dir: Path) -> None:
    children: list[Child] = []

    async def spawn(command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
        child, near = await REAL.spawn(command, inherited)
        children.append(child)
        return child, near

    async def until(what: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not what():
                await asyncio.sleep(0.01)

    later_ns = 0
    settings = {"kind": "file", "directory": str(data_dir)}
    link = ReplicaLink(str(data_dir / "history"), settings, 0, spawn, lambda: MACHINE_CLOCKS.boot_ns() + later_ns)
    link.follow([])
    assert not children
    link.follow([1])
    assert link.followed() == {1: False}
    await until(lambda: link.followed() == {1: True})
    children[0].kill()
    await until(lambda: len(children) == 2 and link.followed() == {1: True})
    os.kill(children[1].pid, signal.SIGSTOP)
    later_ns = SILENT_NS
    await until(lambda: link.followed() == {1: False})
    os.kill(children[1].pid, signal.SIGCONT)
    await until(lambda: link.followed() == {1: True})
    await link.close()
    assert await children[1].wait() == 0
