"""The worker's turn: append, sync, tell the shard, speak, re-arm; with counters for an application."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shards.journal import Unknown
from shards.replies import Unavailable
from tests.shards.worker.hosted import BUCKETS, Caller, WorkerScene


@pytest.fixture
async def scene(data_dir: Path) -> AsyncIterator[WorkerScene]:
    """A worker that serves."""
    worker_scene = WorkerScene(data_dir)
    await worker_scene.start()
    yield worker_scene
    await worker_scene.stop()


async def test_nothing_is_said_before_it_is_durable(scene: WorkerScene) -> None:
    caller = Caller()
    await scene.until(lambda: bool(scene.application.batches))  # what it was born with
    scene.disk.free.clear()
    scene.ask(caller, "a", 1, ("add", "x", 5))
    await scene.until(lambda: bool(caller.staged))
    assert caller.heard == []
    scene.ask(caller, "told", 1, ("tell", "somebody"))
    assert scene.application.told == []
    scene.disk.free.set()
    await scene.until(lambda: len(caller.heard) == 2)
    assert caller.heard == [("a", 5), ("told", "told")]
    assert [effect[3] for effect in scene.application.told] == ["somebody"]


async def test_what_comes_during_a_sync_is_one_batch_behind_it(scene: WorkerScene) -> None:
    caller = Caller()
    await scene.until(lambda: bool(scene.application.batches))
    before = len(scene.application.batches)
    scene.disk.free.clear()
    scene.ask(caller, 0, 1, ("add", "x", 1))
    await scene.until(lambda: bool(caller.staged))
    for number in range(1, 101):
        scene.ask(caller, number, 1 + number % 4, ("add", "x", 1))
    scene.disk.free.set()
    await scene.until(lambda: len(caller.heard) == 101)
    assert [token for token, _ in caller.heard] == list(range(101))
    assert len(scene.application.batches) - before == 2


async def test_an_instant_fires_by_the_alarm_and_not_before_it(scene: WorkerScene) -> None:
    caller = Caller()
    due_ns = scene.worker.fresh_now_ns() + 20_000_000
    scene.ask(caller, "at", 2, ("at", "bell", due_ns))
    await scene.until(lambda: bool(scene.application.told))
    assert scene.worker.fresh_now_ns() >= due_ns
    assert [(effect[0], effect[3]) for effect in scene.application.told] == [("fired", "bell")]
    scene.worker.read(caller, "read", 2, ("value", "bell"))
    await scene.until(lambda: len(caller.heard) == 2)
    assert caller.heard[1] == ("read", 1)


async def test_a_survey_is_merged_and_an_operators_wish_goes_up(scene: WorkerScene) -> None:
    caller = Caller()
    for bucket_id in (1, 2, 3):
        scene.ask(caller, bucket_id, bucket_id, ("add", "x", bucket_id))
    scene.worker.operate(caller, "sum", ("sum",))
    scene.worker.operate(caller, "map", ("route",))
    scene.worker.operate(caller, "move", ("move_bucket", 1, 2))
    await scene.until(lambda: len(caller.heard) == 5)
    heard = dict(caller.heard)
    assert (heard["sum"], heard["map"][1:]) == (6, [1, 1, 1, 1])
    assert scene.asked == [("move_bucket", 1, 2)]


async def test_a_survey_of_one_shard_asks_nobody_else(scene: WorkerScene) -> None:
    caller = Caller()
    scene.ask(caller, "add", 1, ("add", "x", 5))
    scene.worker.operate(caller, "sum", ("of_shard", 1, ("sum",)))
    scene.worker.operate(caller, "none", ("of_shard", 7, ("sum",)))
    await scene.until(lambda: len(caller.heard) == 3)
    heard = dict(caller.heard)
    assert (heard["sum"], heard["none"]) == (5, "7 is not one of [1]")


async def test_what_it_answered_is_there_again(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    scene.ask(caller, 1, 3, ("add", "x", 7))
    await scene.until(lambda: bool(caller.heard))
    await scene.stop()
    again = WorkerScene(data_dir)
    await again.start()
    again.ask(caller, 2, 3, ("add", "x", 1))
    await again.until(lambda: len(caller.heard) == 2)
    assert caller.heard[1] == (2, 8)
    await again.stop()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_sync_that_fails_ends_it_and_callers_hear_that_it_is_not_known(data_dir: Path, code: int) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    await scene.until(lambda: bool(scene.application.batches))
    scene.disk.fails_with = code
    scene.ask(caller, "a", 1, ("add", "x", 5))
    await scene.until(lambda: bool(scene.failures))
    (error,) = scene.failures
    assert isinstance(error, Unknown)
    scene.worker.halt(error)
    assert caller.heard == []
    ((token, refusal),) = caller.refused
    assert token == "a"
    assert isinstance(refusal, Unavailable)
    assert refusal.applied == "unknown"
    scene.ask(caller, "b", 1, ("add", "x", 5))
    assert not scene.application.told
    assert caller.heard == []
    scene.failures.clear()
    scene.abandon()


async def test_without_room_changes_are_refused_and_reads_are_not(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    scene.ask(caller, 1, 1, ("add", "x", 5))
    await scene.until(lambda: bool(caller.heard))
    scene.disk.is_full = True
    taken_in = 0
    while not scene.worker.backpressure.reason:
        taken_in += 1
        scene.ask(caller, taken_in, 1, ("add", "x" * 60_000, 1))
        await scene.answered_or_short(caller, 1 + taken_in)
    scene.ask(caller, "refused", 1, ("add", "x", 5))
    assert [token for token, _ in caller.refused][-1] == "refused"
    refusal = caller.refused[-1][1]
    assert isinstance(refusal, Unavailable)
    assert refusal.applied == "no"
    scene.disk.is_full = False
    await scene.until(lambda: not scene.worker.backpressure.reason)
    scene.ask(caller, "taken", 1, ("add", "x", 5))
    await scene.until(lambda: ("taken", 10) in caller.heard)
    await scene.stop()


async def test_an_error_of_the_machine_ends_it(data_dir: Path) -> None:
    scene = WorkerScene(data_dir)
    await scene.start()
    with pytest.raises(AssertionError):
        scene.ask(Caller(), 1, 1, ("no such command",))
    scene.abandon()


async def test_a_shard_may_go_once_its_journal_says_that_its_buckets_have_left(scene: WorkerScene) -> None:
    worker = scene.worker
    await scene.until(lambda: bool(scene.application.batches))
    for bucket_id in range(BUCKETS, 1, -1):
        worker.shard.leave(bucket_id)
    assert worker.obstacle() == "shard 1 keeps bucket 1 until its new shard has proved that it has it"
    scene.disk.free.clear()
    worker.shard.leave(1)
    assert worker.obstacle() == "shard 1 is writing to its journal that its buckets have left"
    worker.wake()
    await scene.until(lambda: not worker.shard.has_more())
    assert worker.obstacle() == "shard 1 is writing to its journal that its buckets have left"
    scene.disk.free.set()
    await scene.until(lambda: worker.obstacle() == "")
