"""The link with real projector processes, on a real journal: an answered entry is there, once, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from billing.follower.link import STABLE_NS, FollowedShard, Limits, failures_after
from billing.follower.messages import Close
from billing.follower.store import file_of
from billing.history.history_reader import MISSING
from billing.history.link import GATHER_BYTES, HistoryLink
from billing.ledger.errors import Refused
from shards.batch import LEAVE
from shards.journal.file.journal import FileJournal
from shards.system.host import REAL
from shards.system.links import Wire
from shards.system.serial_executor import SerialExecutor
from tests.history.shard_driver import ShardDriver, file_journal
from tests.history.test_store import batch_of

NEWEST = 2**63 - 1
PATIENT = Limits(answer_timeout_s=60.0, silent_s=60.0)  # on a busy machine, too, a process that runs is waited for


class Worker:
    """What a worker does with its journal and its history; each batch is handed over once it is appended."""

    def __init__(self, home: Path, driver: ShardDriver, shard: int = 0, **options: Any) -> None:
        self.home = home
        self.driver = driver
        self.shard = shard
        self.options = options
        self.journal: FileJournal = file_journal(home / f"shard-{shard}")
        followed = FollowedShard(str(home / "history"), shard, self.journal)
        self.link = HistoryLink(followed, **{"limits": PATIENT, **options})
        self.link.start()

    def work(self, batches: int = 1, steps: int = 20) -> None:
        for _ in range(batches):
            payload = self.driver.batch(steps)
            self.link.hand(self.journal.append(payload), payload)

    def ask(
        self, user: bytes, limit: int = 1000, before: int = NEWEST, bucket_id: int = 1, generation: int = 1
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.link.history(bucket_id, generation, user, limit, before, (0, 0, 0), answer.set_result)
        return answer

    async def check(self) -> None:
        """Every user's history is what the entries say, right now."""
        questions = [(user, self.ask(user)) for user in self.driver.users]
        for user, answer in questions:
            assert await answer == self.driver.history(user)

    def pid(self) -> int:
        return int(self.link.figures()["history_pid"])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_live(self) -> None:
        await self.until(lambda: self.link.figures()["history_trouble"] == "")

    async def end(self) -> None:
        await self.link.close()
        self.journal.close()

    async def end_without_a_word(self) -> None:
        """The worker is gone, as after kill -9: its end of the wire closes, and nobody waits for anything."""
        task = self.link._task
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if self.link._wire is not None:
            self.link._wire.close()
        self.link._feed.close()
        self.journal.close()


def rows_in_file(home: Path, shard: int = 0) -> int:
    db = sqlite3.connect(f"file:{file_of(str(home / 'history'), shard)}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT coalesce(sum(count), 0) FROM pages").fetchone()[0])
    finally:
        db.close()


def rows_expected(driver: ShardDriver) -> int:
    return sum(map(len, driver.rows.values()))


async def test_an_answer_holds_every_entry_handed_over_before_the_question(data_dir: Path) -> None:
    worker = Worker(data_dir, ShardDriver(users=5))
    for _ in range(30):
        worker.work(3)
        await worker.check()
    user = worker.driver.users[0]
    assert await worker.ask(user, limit=3) == worker.driver.history(user, limit=3)
    assert await worker.ask(user, limit=5, before=4) == worker.driver.history(user, before=4)
    assert await worker.ask(user, before=1) == []
    assert await worker.ask(b"nobody") == []
    await worker.end()
    assert rows_in_file(data_dir) == rows_expected(worker.driver)


async def test_at_most_so_many_rows_as_were_asked_for(data_dir: Path) -> None:
    worker = Worker(data_dir, ShardDriver(users=1))
    worker.work(10, steps=200)
    user = worker.driver.users[0]
    rows = await worker.ask(user, limit=1000)
    assert len(rows) == 1000
    assert rows == worker.driver.history(user, limit=1000)
    rest = await worker.ask(user, limit=1000, before=rows[-1]["entry_id"])
    assert rows + rest == worker.driver.history(user, limit=10**6)
    await worker.end()


async def test_what_was_appended_while_nobody_listened_is_read_from_the_journal(data_dir: Path) -> None:
    driver = ShardDriver()
    journal = file_journal(data_dir / "shard-0")
    for _ in range(200):
        journal.append(driver.batch())
    journal.close()
    worker = Worker(data_dir, driver)
    worker.work(50)  # while it catches up
    await worker.check()
    await worker.end()
    for life in range(3):
        journal = file_journal(data_dir / "shard-0")
        for _ in range(life * 20):
            journal.append(driver.batch())
        journal.close()
        worker = Worker(data_dir, driver)
        await worker.check()
        worker.work(5)
        await worker.check()
        await worker.end()
    assert rows_in_file(data_dir) == rows_expected(driver)


@pytest.mark.parametrize("seed", [1, 2])
async def test_kill_9_of_the_projector_loses_nothing_and_doubles_nothing(data_dir: Path, seed: int) -> None:
    rng = random.Random(seed)
    worker = Worker(data_dir, ShardDriver(seed=seed))
    for life in range(6):
        await worker.until(lambda: worker.pid() != 0)
        if life % 2:  # one that is killed again and again before it is live is started ever later
            await worker.until_live()
        for _ in range(rng.randrange(1, 60)):
            worker.work(rng.randrange(4))
            await asyncio.sleep(rng.choice([0, 0, 0, 0.001, 0.02]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid(), signal.SIGKILL)
        worker.work(rng.randrange(10))
        await worker.until(lambda: worker.pid() == 0)
    await worker.until_live()
    await worker.check()
    assert worker.link.figures()["history_starts"] >= 7
    await worker.end()
    assert rows_in_file(data_dir) == rows_expected(worker.driver)


async def test_a_projector_whose_worker_was_killed_ends_and_its_successor_goes_on(data_dir: Path) -> None:
    driver = ShardDriver()
    worker = Worker(data_dir, driver)
    await worker.until_live()
    for _ in range(4):
        orphan = worker.pid()
        os.kill(orphan, signal.SIGSTOP)  # it has yet to read what follows
        worker.work(20)
        await asyncio.sleep(0.01)
        await worker.end_without_a_word()
        worker = Worker(data_dir, driver)
        os.kill(orphan, signal.SIGCONT)
        worker.work(20)
        await worker.until_live()
        await worker.check()
        await worker.until(partial(_has_ended, orphan))
    await worker.end()
    assert rows_in_file(data_dir) == rows_expected(driver)


async def test_a_projector_that_lags_is_given_no_more_than_so_much(data_dir: Path) -> None:
    limits = PATIENT._replace(unreached_bytes_max=100_000)
    worker = Worker(data_dir, ShardDriver(), limits=limits)
    await worker.until_live()
    os.kill(worker.pid(), signal.SIGSTOP)
    largest = 0
    for _ in range(300):
        worker.work()
        await asyncio.sleep(0)
        largest = max(largest, len(worker.driver.batches[-1]))
        assert worker.link.figures()["history_unreached_bytes"] <= limits.unreached_bytes_max + largest
    assert sum(map(len, worker.driver.batches)) > 5 * limits.unreached_bytes_max
    assert worker.link.figures()["history_behind_batches"] > 200
    assert worker.link.figures()["history_lag_ns"] > 0
    questions = [(user, worker.ask(user), worker.driver.history(user)) for user in worker.driver.users]
    os.kill(worker.pid(), signal.SIGCONT)
    for user, answer, at_least in questions:
        assert (await answer)[-len(at_least) :] == at_least, user
    worker.work(10)
    await worker.check()
    await worker.until_live()
    assert worker.link.figures()["history_starts"] == 1
    await worker.end()
    assert rows_in_file(data_dir) == rows_expected(worker.driver)


async def test_batches_are_gathered_to_few_writes_and_a_question_sends_them_at_once(data_dir: Path) -> None:
    writes: list[int] = []

    class CountingWire:
        """The link's wire; it counts the batches of each write."""

        def __init__(self, wire: Wire) -> None:
            self.wire = wire

        def send_all(self, messages: list[Any]) -> None:
            writes.append(len(messages))
            self.wire.send_all(messages)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wire, name)

    worker = Worker(data_dir, ShardDriver())
    await worker.until_live()
    assert worker.link._wire is not None
    worker.link._wire = cast(Wire, CountingWire(worker.link._wire))
    handed_bytes = 0
    while handed_bytes < 3 * GATHER_BYTES:  # in one turn of the loop: no timer rings meanwhile
        worker.work()
        handed_bytes += len(worker.driver.batches[-1])
    assert len(writes) in (2, 3)
    assert min(writes) > 1
    await worker.check()
    assert len(writes) in (3, 4), "what was left went with the first question, and nothing else did"
    assert sum(writes) == len(worker.driver.batches)
    await worker.end()


async def test_a_history_that_is_behind_is_live_after_one_reading_though_each_reading_is_overtaken(
    data_dir: Path,
) -> None:
    """As under any steady load: by the time a reading ends, the journal has grown."""
    readings = 0

    class Overtaken(SerialExecutor):
        def submit(self, done: Callable[..., None], function: Callable[..., Any], *arguments: Any) -> None:
            def overtaken(answer: Any, error: BaseException | None) -> None:
                nonlocal readings
                readings += 1
                worker.work()
                done(answer, error)

            super().submit(overtaken, function, *arguments)

    driver = ShardDriver()
    journal = file_journal(data_dir / "shard-0")
    for _ in range(50):
        journal.append(driver.batch())
    journal.close()
    worker = Worker(data_dir, driver, host=REAL._replace(executor=Overtaken))
    await worker.until_live()
    assert readings == 1
    await worker.check()
    os.kill(worker.pid(), signal.SIGKILL)  # and so after another life, where a few were handed over meanwhile
    worker.work(5)
    await worker.until(lambda: worker.link.figures()["history_starts"] == 2)
    await worker.until_live()
    await worker.check()
    assert readings <= 2
    await worker.end()
    assert rows_in_file(data_dir) == rows_expected(driver)


async def test_what_a_slow_history_could_not_be_sent_needs_no_reading_where_it_was_kept(data_dir: Path) -> None:
    class Unread(SerialExecutor):
        def submit(self, done: Callable[..., None], function: Callable[..., Any], *arguments: Any) -> None:
            raise AssertionError("the journal is read again")

    worker = Worker(
        data_dir,
        ShardDriver(),
        host=REAL._replace(executor=Unread),
        limits=PATIENT._replace(unreached_bytes_max=400_000),
    )
    await worker.until_live()
    os.kill(worker.pid(), signal.SIGSTOP)
    while worker.link.figures()["history_trouble"] == "":
        worker.work()
        await asyncio.sleep(0)
    worker.work(5)
    os.kill(worker.pid(), signal.SIGCONT)
    await worker.until_live()
    await worker.check()
    await worker.end()


async def test_the_journal_may_be_trimmed_only_up_to_what_is_durable_here(data_dir: Path) -> None:
    worker = Worker(data_dir, ShardDriver())
    assert worker.link.trim_floor() == 0
    await worker.until_live()
    worker.work(30)
    await worker.check()
    assert worker.link.trim_floor() == 0, "committed, but not synced yet"
    assert worker.link._wire is not None
    worker.link._wire.send(Close())  # as a projector that is asked to end, and is started again
    await worker.until(lambda: worker.link.trim_floor() == 30)
    await worker.until(lambda: worker.link.figures()["history_starts"] == 2)
    await worker.until_live()
    worker.work(10)
    await worker.end()
    assert worker.link.trim_floor() == 40


async def test_a_history_begun_late_begins_where_the_journal_does_and_says_so(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = ShardDriver()
    journal = file_journal(data_dir / "shard-0", segment_bytes=16_384)
    for position in range(1, 101):
        assert journal.append(driver.batch()) == position
        if position % 20 == 0:
            journal.save_snapshot(position, [b""])
            journal.trim(position)
    first = journal.first
    assert first > 1
    journal.close()
    late = ShardDriver()
    for _ in range(first - 1):
        late.batch()
    late.rows.clear()
    for _ in range(100 - first + 1):
        late.batch()
    assert late.batches == driver.batches
    worker = Worker(data_dir, late)
    for user in late.users:
        *rows, gap = await worker.ask(user)
        assert rows == late.history(user)
        assert (gap["operation"], gap["entry_id"]) == (MISSING, 1)
        assert gap["whole_from_ns"] == rows[-1]["at_ns"]
    await worker.end()
    assert f"lacks what came before batch {first}" in caplog.text


async def test_a_process_that_hangs_is_named_at_once_to_whoever_asks_until_it_goes_on(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where nothing has happened in its shard that it would have to answer to."""
    limits = Limits(answer_timeout_s=60, ping_s=0.2, silent_s=0.4)
    worker = Worker(data_dir, ShardDriver(users=2), limits=limits)
    worker.work()
    await worker.check()
    await worker.until_live()
    pid = worker.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        refused = await worker.ask(worker.driver.users[0])
        assert isinstance(refused, Refused)
        assert f"its process {pid} has said nothing for" in refused.message
        figures = worker.link.figures()
        assert (figures["history_up"], figures["history_pid"]) == (0, pid)
        assert figures["history_lag_ns"] >= figures["history_silent_ns"] > 0
        again = worker.ask(worker.driver.users[0])
        assert again.done(), "nobody waits for it any more"
        worker.work(3)
    finally:
        os.kill(pid, signal.SIGCONT)
    await worker.until(lambda: worker.link.figures()["history_up"] == 1)
    await worker.check()
    assert worker.pid() == pid
    await worker.end()
    messages = [record.message for record in caplog.records if "history of shard 0" in record.message]
    assert f"its process is {pid}" in messages[0]


async def test_trouble_refuses_questions_with_its_reason_and_is_over_when_it_is_over(data_dir: Path) -> None:
    (data_dir / "history").mkdir(0o755)
    worker = Worker(data_dir, ShardDriver())
    worker.work(5)
    answer = await worker.ask(worker.driver.users[0])
    assert isinstance(answer, Refused)
    assert (answer.name, answer.retry, answer.applied) == ("UNAVAILABLE", True, "no")
    assert "open to other users" in answer.message
    again = await worker.ask(worker.driver.users[0])
    assert isinstance(again, Refused)
    (data_dir / "history").chmod(0o700)
    worker.work(5)
    await worker.until_live()
    await worker.check()
    await worker.end()


async def test_a_file_that_is_rubbish_is_kept_and_made_anew_of_the_journal(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / "history").mkdir(0o700)
    path = Path(file_of(str(data_dir / "history"), 0))
    path.write_bytes(b"no database at all, for whatever reason" * 200)
    path.chmod(0o600)
    worker = Worker(data_dir, ShardDriver())
    worker.work(5)
    await worker.check()
    assert "is made anew from the journal, which is whole" in caplog.text
    assert (path.parent / "damaged-1-shard-0.sqlite").read_bytes().startswith(b"no database")
    await worker.end()


async def test_a_projector_that_cannot_be_started_harms_nothing(data_dir: Path) -> None:
    for command in (["/nonexistent/python"], ["/bin/false"]):
        worker = Worker(data_dir, ShardDriver(), command=command)
        worker.work(50)
        answer = await worker.ask(worker.driver.users[0])
        assert isinstance(answer, Refused)
        assert answer.name == "UNAVAILABLE"
        await worker.until(partial(_has_no_projector, worker.link))
        assert worker.link.trim_floor() == 0
        await worker.end()


FAILS_ONCE_LIVE = """
import msgpack, os, socket, sys

wire = socket.socket(fileno=int(sys.argv[-1]))
frames, said = wire.makefile("rb"), [6]
while said[0]:  # until Open
    said = msgpack.unpackb(frames.read(int.from_bytes(frames.read(4), "little")))
for message in ([16, said[4], []], [20, 74, "database or disk is full"]):
    payload = msgpack.packb(message)
    wire.sendall(len(payload).to_bytes(4, "little") + payload)
wire.recv(1)
os._exit(74)
"""


async def test_one_that_is_live_for_a_moment_and_fails_is_started_ever_later(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(data_dir, ShardDriver(), command=[sys.executable, "-c", FAILS_ONCE_LIVE])
    await worker.until(lambda: caplog.text.count("database or disk is full") >= 3)
    delays = [float(record.getMessage().split("again in ")[1].split()[0]) for record in caplog.records]
    assert delays[:3] == [0.2, 0.5, 1.0], "being live for a moment mends nothing"
    await worker.end()


async def test_one_that_is_ended_by_sigterm_while_it_starts_is_no_error(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when all processes of a daemon get it: one that is up ignores it."""
    caplog.set_level(logging.INFO, "billing.follower")
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    worker = Worker(data_dir, ShardDriver(), command=[sys.executable, "-c", killed])
    await worker.until(lambda: caplog.text.count("was ended by SIGTERM while it started") >= 2)
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    await worker.end()


@pytest.mark.parametrize(
    ("live_ns", "from_outside", "failures"),
    [
        (0, False, 5),
        (0, True, 5),  # killed before it was live: it may outgrow the memory there is
        (1, False, 5),
        (1, True, 0),
        (STABLE_NS, False, 0),
    ],
)
def test_what_ends_the_row_of_failures(live_ns: int, from_outside: bool, failures: int) -> None:
    assert failures_after(4, live_ns, from_outside) == failures


async def test_questions_have_a_limit_and_an_end(data_dir: Path) -> None:
    worker = Worker(data_dir, ShardDriver(), limits=PATIENT._replace(questions_max=3, answer_timeout_s=0.3))
    await worker.until_live()
    worker.work(3)
    os.kill(worker.pid(), signal.SIGSTOP)
    user = worker.driver.users[0]
    answers = [worker.ask(user) for _ in range(4)]
    assert "3 questions" in (await answers[3]).message
    assert not any(answer.done() for answer in answers[:3])
    for answer in answers[:3]:
        assert "does not answer" in (await answer).message
    os.kill(worker.pid(), signal.SIGCONT)
    await worker.end()


async def test_a_clean_end_keeps_all_and_refuses_what_was_asked(data_dir: Path) -> None:
    worker = Worker(data_dir, ShardDriver())
    await worker.until_live()
    worker.work(20)
    os.kill(worker.pid(), signal.SIGSTOP)
    answer = worker.ask(worker.driver.users[0])
    ending = asyncio.get_running_loop().create_task(worker.end())
    assert "stopping" in (await answer).message
    assert "stopping" in (await worker.ask(worker.driver.users[0])).message
    os.kill(worker.pid(), signal.SIGCONT)
    await ending
    assert worker.link.trim_floor() == 20
    assert rows_in_file(data_dir) == rows_expected(worker.driver)


async def test_a_moved_bucket_is_answered_for_once_its_former_owner_has_written_all(data_dir: Path) -> None:
    """The former owner's projector is behind: the new owner's answer waits for it, and then has the rows of both."""
    driver = ShardDriver(users=6)
    there, here = Worker(data_dir, driver, shard=0), Worker(data_dir, driver, shard=1)
    await there.until_live()
    await here.until_live()
    there.work(10)
    os.kill(there.pid(), signal.SIGSTOP)
    there.work(10)
    leave = batch_of(*((LEAVE, bucket_id, 1, b"") for bucket_id in range(1, 5)))
    there.link.hand(there.journal.append(leave), leave)
    here.work(10)
    user = driver.users[0]
    expected = driver.history(user)
    answer = here.ask(user, bucket_id=2, generation=2)
    await asyncio.sleep(0.1)
    assert not answer.done()
    os.kill(there.pid(), signal.SIGCONT)
    assert await answer == expected
    for user in driver.users:
        assert await here.ask(user, bucket_id=3, generation=2) == driver.history(user)
    await there.end()
    await here.end()


def _has_no_projector(link: HistoryLink) -> bool:
    return int(link.figures()["history_pid"]) == 0


def _has_ended(pid: int) -> bool:
    return not _runs(pid)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
