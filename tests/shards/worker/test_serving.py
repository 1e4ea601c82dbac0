"""The second phase of a worker: what it does when it begins to serve."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shards.control import Serve, ToSupervisor
from shards.system.clock import MACHINE_CLOCKS, Anchor
from shards.system.host import REAL
from shards.worker.recovering import Recovering
from shards.worker.serving import REPLAYED_MAX, Serving
from tests.shards.journal.memory import MemoryServer
from tests.shards.worker.hosted import SHARD, Caller, WorkerHarness
from tests.shards.worker.test_grant import PausingClock, harness_on, server

__all__ = ["server"]

AT_ONCE = 500  # commands that wait for their answers


class Wire:
    """To a supervisor that says nothing, and is gone when the end comes."""

    is_open = False

    def __init__(self) -> None:
        self.said: list[ToSupervisor] = []

    def send(self, message: ToSupervisor) -> None:
        self.said.append(message)


async def recorded(harness: WorkerHarness, commands: int) -> None:
    """A life of the shard with so many commands, which ends without a snapshot."""
    await harness.start()
    caller = Caller()
    for first in range(0, commands, AT_ONCE):
        count = min(AT_ONCE, commands - first)
        for token in range(first, first + count):
            harness.ask(caller, token, 1, ("add", "x", 1))
        wanted = first + count
        await harness.until(lambda wanted=wanted: len(caller.heard) == wanted)  # type: ignore[misc]
    await harness.stop()


async def snapshots_after_taking_over(harness: WorkerHarness, data_dir: Path) -> int:
    """How many snapshots the next life of the shard makes because of how it began."""
    (data_dir / "run").mkdir(mode=0o700)
    wire, stopping, loop, failures = Wire(), asyncio.Event(), asyncio.get_running_loop(), list[BaseException]()
    recovering = Recovering(harness.begin(), harness.application, REAL, wire.send)
    await recovering.run(stopping)
    boot_ns, wall_ns = MACHINE_CLOCKS.paired()
    recovering.on_message(Serve([Anchor(boot_ns, wall_ns, 0, 0)]))
    executor = REAL.executor(f"journal-{SHARD}", loop)
    await executor.call(recovering.journal.idle_barrier)
    serving = Serving(recovering, executor, REAL, wire, failures.append)  # type: ignore[arg-type]
    serving.begin()
    await serving.open(lambda: bool(failures))
    snapshotter = serving.worker.snapshotter
    await harness.until(lambda: not snapshotter.running)
    snapshots = snapshotter.count
    await serving.close()
    assert failures == []
    return snapshots


async def test_a_takeover_that_replayed_much_leaves_a_snapshot_for_the_next_one(
    server: MemoryServer, data_dir: Path
) -> None:
    """Hosts that die one after the other would each replay what all before them did."""
    await recorded(harness_on(data_dir, PausingClock()), REPLAYED_MAX)  # and a record for each bucket
    assert not server.memory.logs[SHARD].snapshots
    head = server.memory.logs[SHARD].head
    assert await snapshots_after_taking_over(harness_on(data_dir, PausingClock()), data_dir) == 1
    assert list(server.memory.logs[SHARD].snapshots) == [head], "of all that it had replayed"


async def test_a_takeover_that_replayed_little_makes_none(server: MemoryServer, data_dir: Path) -> None:
    await recorded(harness_on(data_dir, PausingClock()), 10)
    assert await snapshots_after_taking_over(harness_on(data_dir, PausingClock()), data_dir) == 0
    assert not server.memory.logs[SHARD].snapshots


async def test_a_start_from_files_makes_none_however_much_it_replayed(data_dir: Path) -> None:
    """No other host waits for them; bytes decide there."""
    await recorded(WorkerHarness(data_dir), REPLAYED_MAX)
    assert await snapshots_after_taking_over(WorkerHarness(data_dir), data_dir) == 0
