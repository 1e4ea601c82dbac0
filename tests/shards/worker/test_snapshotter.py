"""Snapshots beside requests: parts only of what is durable, slices that end, and a journal trimmed behind them."""

from __future__ import annotations

from pathlib import Path

from tests.shards.worker.hosted import Caller, WorkerScene


async def filled(scene: WorkerScene, caller: Caller, count: int) -> None:
    """So many commands were carried out and are durable."""
    before = len(caller.heard)
    for number in range(count):
        scene.ask(caller, number, 1 + number % 4, ("add", f"c{number % 7}", 1))
    await scene.until(lambda: len(caller.heard) == before + count)


async def test_a_snapshot_under_load_holds_what_was_answered_and_recovery_begins_at_it(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    await filled(scene, caller, 200)
    scene.snapshotter.begin()
    await filled(scene, caller, 200)
    await scene.until(lambda: scene.snapshotter.count == 1 and scene.snapshotter.is_still())
    await filled(scene, caller, 200)
    before = scene.application.machine.buckets
    await scene.stop()
    again = WorkerScene(data_dir)
    await again.start()
    assert again.application.machine.buckets == before
    recovered = again.recovered()
    assert recovered.parts == 4
    assert 0 < recovered.records <= 404, "those from before the snapshot began come out of it"
    await again.stop()


async def test_no_part_is_handed_on_before_its_batch_is_durable(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    await filled(scene, caller, 10)
    scene.disk.free.clear()
    scene.ask(caller, "late", 1, ("add", "late", 1))
    await scene.until(lambda: bool(caller.staged))
    scene.snapshotter.begin()
    scene.worker.wake()
    for _ in range(20):
        await scene.turn()
    assert scene.snapshotter.running
    assert scene.snapshotter.count == 0
    assert all(token != "late" for token, _ in caller.heard)
    scene.disk.free.set()
    await scene.until(lambda: scene.snapshotter.count == 1)
    await scene.stop()


async def test_one_is_begun_when_the_journal_has_grown_and_not_while_files_are_held(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir, snapshot_bytes=1)
    await scene.start()
    scene.snapshotter.held = True
    for _ in range(80):
        await filled(scene, caller, 1)
    assert scene.snapshotter.count == 0
    assert not scene.snapshotter.running
    scene.snapshotter.held = False
    while not scene.snapshotter.count:
        await filled(scene, caller, 1)
    await scene.stop()


async def test_one_that_is_given_up_ends_its_thread_and_changes_nothing(data_dir: Path) -> None:
    caller, scene = Caller(), WorkerScene(data_dir)
    await scene.start()
    await filled(scene, caller, 10)
    scene.snapshotter.begin()
    before = scene.application.machine.buckets
    await scene.stop()
    again = WorkerScene(data_dir)
    await again.start()
    assert again.application.machine.buckets == before
    await again.stop()
