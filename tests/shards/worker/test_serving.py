"""The second phase of a worker: what it does when it begins to serve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shards.control import Serve, ToSupervisor
from shards.shard import COMMAND
from shards.system import links
from shards.system.clock import MACHINE_CLOCKS, Anchor
from shards.system.host import REAL
from shards.worker.recovering import Recovering
from shards.worker.serving import REPLAYED_MAX, Serving
from tests.shards.journal.memory import MemoryServer
from tests.shards.worker.hosted import SHARD, Caller, CountersApplication, WorkerHarness
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


async def serving(harness: WorkerHarness, data_dir: Path, failures: list[BaseException]) -> Serving:
    """The next life of the shard, which serves."""
    (data_dir / "run").mkdir(mode=0o700)
    wire, stopping, loop = Wire(), asyncio.Event(), asyncio.get_running_loop()
    recovering = Recovering(harness.begin(), harness.application, REAL, wire.send)
    await recovering.run(stopping)
    boot_ns, wall_ns = MACHINE_CLOCKS.paired()
    recovering.on_message(Serve([Anchor(boot_ns, wall_ns, 0, 0)]))
    executor = REAL.executor(f"journal-{SHARD}", loop)
    await executor.call(recovering.journal.idle_barrier)
    made = Serving(recovering, executor, REAL, wire, failures.append)  # type: ignore[arg-type]
    made.begin()
    await made.open(lambda: bool(failures))
    return made


async def snapshots_after_taking_over(harness: WorkerHarness, data_dir: Path) -> int:
    """How many snapshots the next life of the shard makes because of how it began."""
    failures = list[BaseException]()
    life = await serving(harness, data_dir, failures)
    snapshotter = life.worker.snapshotter
    await harness.until(lambda: not snapshotter.running)
    snapshots = snapshotter.count
    await life.close()
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


class LastAnswers(CountersApplication):
    """Notes whether its doors were open still when the last answer came."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = asyncio.Event()
        self.closed = False

    async def stop_listening(self) -> None:
        self.ends.set()

    async def close(self) -> None:
        self.closed = True


class Client(Caller):
    """A client's connection, for which another worker answers."""

    def __init__(self, application: LastAnswers) -> None:
        super().__init__()
        self._application = application
        self.relayed: list[tuple[bytes, bool]] = []

    def relay(self, data: bytes) -> None:
        self.relayed.append((data, self._application.closed))

    def relay_flush(self) -> None:
        """Nothing is held back here."""


async def test_an_end_waits_for_what_other_workers_answer_the_clients_of_this_one(
    server: MemoryServer, data_dir: Path
) -> None:
    """They may have carried it out: a client whose connection ends without the answer does not know."""
    harness, loop, answering = (
        harness_on(data_dir, PausingClock()),
        asyncio.get_running_loop(),
        set[asyncio.Task[None]](),
    )
    application = harness.application = LastAnswers()

    async def answer(wire: links.Wire, frame: Any) -> None:
        await application.ends.wait()
        wire.send([item for number, *_ in frame for item in (number, b"done")])

    def on_frame(wire: links.Wire, frame: Any) -> None:
        answering.add(loop.create_task(answer(wire, frame)))

    path, nothing = str(data_dir / "other"), lambda _: None
    other = await loop.create_unix_server(lambda: links.Wire(on_frame, nothing, nothing), path)
    failures = list[BaseException]()
    life = await serving(harness, data_dir, failures)
    life.worker.open_links({SHARD + 1: path}, {}, None)
    link = life.worker.links[SHARD + 1]
    await harness.until(lambda: link.is_open)
    client = Client(application)
    link.ask(client, 7, COMMAND, 1, ("add", "x", 1))
    link.flush()
    await life.close()
    assert client.relayed == [(b"done", False)]
    assert application.closed
    assert failures == []
    other.close()
