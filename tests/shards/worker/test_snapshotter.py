"""Snapshots beside requests: parts only of what is durable, slices that end, and a journal trimmed behind them."""

from __future__ import annotations

from pathlib import Path

from tests.shards.worker.hosted import Caller, WorkerHarness


async def filled(harness: WorkerHarness, caller: Caller, count: int) -> None:
    """So many commands were carried out and are durable."""
    before = len(caller.heard)
    for number in range(count):
        harness.ask(caller, number, 1 + number % 4, ("add", f"c{number % 7}", 1))
    await harness.until(lambda: len(caller.heard) == before + count)


async def test_a_snapshot_under_load_holds_what_was_answered_and_recovery_begins_at_it(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    await filled(harness, caller, 200)
    harness.snapshotter.begin()
    await filled(harness, caller, 200)
    await harness.until(lambda: harness.snapshotter.count == 1 and harness.snapshotter.is_still())
    await filled(harness, caller, 200)
    before = harness.application.machine.buckets
    await harness.stop()
    again = WorkerHarness(data_dir)
    await again.start()
    assert again.application.machine.buckets == before
    recovered = again.recovered()
    assert recovered.parts == 4
    assert 0 < recovered.records <= 404, "those from before the snapshot began come out of it"
    await again.stop()


async def test_no_part_is_handed_on_before_its_batch_is_durable(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    await filled(harness, caller, 10)
    harness.disk.free.clear()
    harness.ask(caller, "late", 1, ("add", "late", 1))
    await harness.until(lambda: bool(caller.staged))
    harness.snapshotter.begin()
    harness.worker.wake()
    for _ in range(20):
        await harness.turn()
    assert harness.snapshotter.running
    assert harness.snapshotter.count == 0
    assert all(token != "late" for token, _ in caller.heard)
    harness.disk.free.set()
    await harness.until(lambda: harness.snapshotter.count == 1)
    await harness.stop()


async def test_one_is_begun_when_the_journal_has_grown_and_not_while_files_are_held(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir, snapshot_bytes=1)
    await harness.start()
    harness.snapshotter.held = True
    for _ in range(80):
        await filled(harness, caller, 1)
    assert harness.snapshotter.count == 0
    assert not harness.snapshotter.running
    harness.snapshotter.held = False
    while not harness.snapshotter.count:
        await filled(harness, caller, 1)
    await harness.stop()


async def test_one_that_is_given_up_ends_its_thread_and_changes_nothing(data_dir: Path) -> None:
    caller, harness = Caller(), WorkerHarness(data_dir)
    await harness.start()
    await filled(harness, caller, 10)
    harness.snapshotter.begin()
    before = harness.application.machine.buckets
    await harness.stop()
    again = WorkerHarness(data_dir)
    await again.start()
    assert again.application.machine.buckets == before
    await again.stop()
