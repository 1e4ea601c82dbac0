"""The worker's turn: append, sync, tell the shard, speak, re-arm; with counters for an application."""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType

import pytest

from shards.journal import Unknown
from shards.replies import Unavailable
from shards.system.clock import MACHINE_CLOCKS, TOLD_AHEAD_NS
from tests.shards.worker.hosted import BUCKETS, Caller, WorkerHarness


@pytest.fixture
async def harness(data_dir: Path) -> AsyncIterator[WorkerHarness]:
    """A worker that serves."""
    worker_harness = WorkerHarness(data_dir)
    await worker_harness.start()
    yield worker_harness
    await worker_harness.stop()


async def test_nothing_is_said_before_it_is_durable(harness: WorkerHarness) -> None:
    caller = Caller()
    await harness.until(lambda: bool(harness.application.batches))  # what it was born with
    harness.disk.free.clear()
    harness.ask(caller, "a", 1, ("add", "x", 5))
    await harness.until(lambda: bool(caller.staged))
    assert caller.heard == []
    harness.ask(caller, "told", 1, ("tell", "somebody"))
    assert harness.application.told == []
    harness.disk.free.set()
    await harness.until(lambda: len(caller.heard) == 2)
    assert caller.heard == [("a", 5), ("told", "told")]
    assert [effect[3] for effect in harness.application.told] == ["somebody"]


async def test_what_comes_during_a_sync_is_one_batch_behind_it(harness: WorkerHarness) -> None:
    caller = Caller()
    await harness.until(lambda: bool(harness.application.batches))
    before = len(harness.application.batches)
    harness.disk.free.clear()
    harness.ask(caller, 0, 1, ("add", "x", 1))
    await harness.until(lambda: bool(caller.staged))
    for number in range(1, 101):
        harness.ask(caller, number, 1 + number % 4, ("add", "x", 1))
    harness.disk.free.set()
    await harness.until(lambda: len(caller.heard) == 101)
    assert [token for token, _ in caller.heard] == list(range(101))
    assert len(harness.application.batches) - before == 2


async def test_a_batch_behind_which_nothing_came_takes_no_turn_of_its_own(harness: WorkerHarness) -> None:
    caller, turns = Caller(), []
    await harness.until(lambda: bool(harness.application.batches))  # what it was born with

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "_turn":
            guarded = frame.f_back
            assert guarded is not None
            assert guarded.f_back is not None
            turns.append(guarded.f_back.f_code.co_name)

    sys.setprofile(count)
    try:
        for number in range(1, 11):
            harness.ask(caller, number, 1, ("add", "x", 1))
            await harness.until(lambda: len(caller.heard) == number)  # noqa: B023
    finally:
        sys.setprofile(None)
    assert turns.count("_pump") >= 10
    assert "_on_synced" not in turns


async def test_an_instant_fires_by_the_alarm_and_not_before_it(harness: WorkerHarness) -> None:
    caller = Caller()
    due_ns = harness.worker.fresh_now_ns() + 20_000_000
    harness.ask(caller, "at", 2, ("at", "bell", due_ns))
    await harness.until(lambda: bool(harness.application.told))
    assert harness.worker.fresh_now_ns() >= due_ns
    assert [(effect[0], effect[3]) for effect in harness.application.told] == [("fired", "bell")]
    harness.worker.read(caller, "read", 2, ("value", "bell"))
    await harness.until(lambda: len(caller.heard) == 2)
    assert caller.heard[1] == ("read", 1)


@pytest.mark.parametrize(("quiet_ns", "is_told"), [(TOLD_AHEAD_NS // 2, True), (TOLD_AHEAD_NS * 3 // 2, False)])
async def test_what_time_caused_is_told_before_its_record_is_durable_only_soon_after_a_batch(
    data_dir: Path, quiet_ns: int, is_told: bool
) -> None:
    """A new boot begins so far behind the last batch, whatever the wall clock says by then."""
    passed_ns = 0
    clocks = MACHINE_CLOCKS._replace(boot_ns=lambda: MACHINE_CLOCKS.boot_ns() + passed_ns)
    caller, harness = Caller(), WorkerHarness(data_dir, clocks=clocks)
    await harness.start()
    due_ns = harness.worker.fresh_now_ns() + 3600 * TOLD_AHEAD_NS
    harness.ask(caller, "at", 2, ("at", "bell", due_ns))
    await harness.until(lambda: bool(caller.heard))
    passed_ns = due_ns - harness.worker.fresh_now_ns() - quiet_ns
    harness.ask(caller, "again", 2, ("add", "x", 1))
    await harness.until(lambda: len(caller.heard) == 2)
    harness.disk.free.clear()
    passed_ns += quiet_ns
    harness.worker.wake()
    await harness.until(lambda: bool(harness.application.told) or harness.worker.syncs.waiting_ns() > 0)
    for _ in range(3):
        await harness.turn()
    assert bool(harness.application.told) == is_told
    harness.disk.free.set()
    await harness.until(lambda: bool(harness.application.told))
    await harness.stop()


async def test_a_survey_is_merged_and_an_operators_wish_goes_up(harness: WorkerHarness) -> None:
    caller = Caller()
    for bucket_id in (1, 2, 3):
        harness.ask(caller, bucket_id, bucket_id, ("add", "x", bucket_id))
    harness.worker.operate(caller, "sum", ("sum",))
    harness.worker.operate(caller, "map", ("route",))
    harness.worker.operate(caller, "move", ("move_bucket", 1, 2))
    await harness.until(lambda: len(caller.heard) == 5)
    heard = dict(caller.heard)
    assert (heard["sum"], heard["map"][1:]) == (6, [1, 1, 1, 1])
    assert harness.asked == [("move_bucket", 1, 2)]


async def test_a_survey_of_one_shard_asks_nobody_else(harness: WorkerHarness) -> None:
    caller = Caller()
    harness.ask(caller, "add", 1, ("add", "x", 5))
    harness.worker.operate(caller, "sum", ("of_shard", 1, ("sum",)))
    harness.worker.operate(caller, "none", ("of_shard", 7, ("sum",)))
    await harness.until(lambda: len(caller.heard) == 3)
    heard = dict(caller.heard)
    assert (heard["sum"], heard["none"]) == (5, "7 is not one of [1]")


async def test_what_it_answered_is_there_again(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    harness.ask(caller, 1, 3, ("add", "x", 7))
    await harness.until(lambda: bool(caller.heard))
    await harness.stop()
    again = WorkerHarness(data_dir)
    await again.start()
    again.ask(caller, 2, 3, ("add", "x", 1))
    await again.until(lambda: len(caller.heard) == 2)
    assert caller.heard[1] == (2, 8)
    await again.stop()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_sync_that_fails_ends_it_and_callers_hear_that_it_is_not_known(data_dir: Path, code: int) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    await harness.until(lambda: bool(harness.application.batches))
    harness.disk.fails_with = code
    harness.ask(caller, "a", 1, ("add", "x", 5))
    await harness.until(lambda: bool(harness.failures))
    (error,) = harness.failures
    assert isinstance(error, Unknown)
    harness.worker.halt(error)
    assert caller.heard == []
    ((token, refusal),) = caller.refused
    assert token == "a"
    assert isinstance(refusal, Unavailable)
    assert refusal.applied == "unknown"
    harness.ask(caller, "b", 1, ("add", "x", 5))
    assert not harness.application.told
    assert caller.heard == []
    harness.failures.clear()
    harness.abandon()


async def test_without_room_changes_are_refused_and_reads_are_not(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    harness.ask(caller, 1, 1, ("add", "x", 5))
    await harness.until(lambda: bool(caller.heard))
    harness.disk.is_full = True
    taken_in = 0
    while not harness.worker.backpressure.reason:
        taken_in += 1
        harness.ask(caller, taken_in, 1, ("add", "x" * 60_000, 1))
        await harness.answered_or_short(caller, 1 + taken_in)
    harness.ask(caller, "refused", 1, ("add", "x", 5))
    assert [token for token, _ in caller.refused][-1] == "refused"
    refusal = caller.refused[-1][1]
    assert isinstance(refusal, Unavailable)
    assert refusal.applied == "no"
    harness.disk.is_full = False
    await harness.until(lambda: not harness.worker.backpressure.reason)
    harness.ask(caller, "taken", 1, ("add", "x", 5))
    await harness.until(lambda: ("taken", 10) in caller.heard)
    await harness.stop()


async def test_an_error_of_the_machine_ends_it(data_dir: Path) -> None:
    harness = WorkerHarness(data_dir)
    await harness.start()
    with pytest.raises(AssertionError):
        harness.ask(Caller(), 1, 1, ("no such command",))
    harness.abandon()


async def test_a_shard_may_go_once_its_journal_says_that_its_buckets_have_left(harness: WorkerHarness) -> None:
    worker = harness.worker
    await harness.until(lambda: bool(harness.application.batches))
    for bucket_id in range(BUCKETS, 1, -1):
        worker.shard.leave(bucket_id)
    assert worker.obstacle() == "shard 1 keeps bucket 1 until its new shard has proved that it has it"
    harness.disk.free.clear()
    worker.shard.leave(1)
    assert worker.obstacle() == "shard 1 is writing to its journal that its buckets have left"
    worker.wake()
    await harness.until(lambda: not worker.shard.has_more())
    assert worker.obstacle() == "shard 1 is writing to its journal that its buckets have left"
    harness.disk.free.set()
    await harness.until(lambda: worker.obstacle() == "")
