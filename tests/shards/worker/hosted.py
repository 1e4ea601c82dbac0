"""A whole worker without money: the counters of `tests.shards.counters` as the application of a real `Worker`.

The journal is of files, on a real disk whose syncs can be held; the loop, the alarm and the journal's thread are those
of a worker process. What is missing is the process: no control wire, no doors, no other workers.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.buckets import HASH_NAME, BucketMap
from shards.control import Begin, MoveReport, Recovered, Serve, ToSupervisor, WorkerSettings
from shards.machine import Command, Effect
from shards.replies import Unavailable
from shards.system.clock import MACHINE_CLOCKS, Anchor, Clocks
from shards.system.disk import RealDisk
from shards.system.host import REAL
from shards.system.serial_executor import SerialExecutor
from shards.worker.hosting import ServedShard
from shards.worker.recovering import Recovering
from shards.worker.snapshotter import Snapshotter
from shards.worker.worker import Upward, Worker
from tests.shards.counters import Counters

SHARD = 1
BUCKETS = 4


class HeldDisk(RealDisk):
    """A disk on which a sync takes until it is let go, and fails where it is told to; it may be full."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.fails_with = 0  # the error of each sync from now on; 0: none
        self.is_full = False

    def fdatasync(self, handle: int) -> None:
        self.free.wait(60)
        if self.fails_with:
            raise OSError(self.fails_with, "the sync failed")
        super().fdatasync(handle)

    def allocate(self, handle: int, length: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "the disk is full")
        super().allocate(handle, length)


class CountersApplication:
    """Implements `shards.worker.hosting.Hosted`. It notes what it is told and which batches were durable."""

    surveys = frozenset({"sum"})
    questions: frozenset[str] = frozenset()
    query_mode = 0

    def __init__(self) -> None:
        self.machine = Counters()
        self.told: list[Effect] = []
        self.batches: list[int] = []

    def encode(self, msgid: int, mode: int, reply: object) -> bytes:
        return repr((msgid, mode, reply)).encode()

    def route(self, operation: Command, bucket_map: BucketMap) -> object:
        return list(bucket_map.owner)

    def merge(self, operation: Command, parts: list[Any]) -> object:
        return sum(parts)

    def lacking(self, operation: Command, why: Unavailable) -> object:
        return why

    def unknown_shard(self, shard_id: int, known: list[int]) -> object:
        return f"{shard_id} is not one of {known}"

    def answer(self, bucket_id: int, query: Command, done: Callable[[object], None]) -> None:
        done(None)

    def committed(self, position: int, payload: bytes) -> None:
        self.batches.append(position)

    def tell(self, notices: list[Effect]) -> None:
        self.told += notices

    def renewed(self) -> None:
        """A journal of files grants time without end."""

    def pause_calls(self, bucket_id: int) -> None:
        """No calls are made."""

    def calls_in_flight(self, bucket_id: int) -> int:
        return 0

    def calls_hang(self, bucket_id: int) -> bool:
        return False

    def take_up(self, bucket_id: int) -> None:
        """No calls are made."""

    def forget_calls(self, bucket_id: int) -> None:
        """No calls are made."""

    async def open(self, worker: ServedShard, listeners: list[Any]) -> None:
        """It has no doors."""

    async def stop_listening(self) -> None:
        """It has no doors."""

    async def end_followers(self) -> None:
        pass

    async def close(self) -> None:
        """It has no doors."""

    def reply_of(self, plain: object) -> object:
        return plain

    def replay_failed(self, error: BaseException) -> bool:
        return isinstance(error, AssertionError)

    def trim_floor(self) -> int:
        return 0

    def obstacle(self) -> str:
        return ""

    def configure(self, configuration: bytes) -> None:
        """It has no configuration."""

    def examine(self, bucket_id: int) -> None:
        """Counters are always right."""

    def figures(self) -> dict[str, Any]:
        return {}


class Caller:
    """What a connection is to the worker: it notes replies, and when it was let go of them."""

    mode = 0

    def __init__(self) -> None:
        self.staged: list[tuple[Any, Any]] = []
        self.heard: list[tuple[Any, Any]] = []
        self.refused: list[tuple[Any, Any]] = []

    def answer(self, token: object, reply: object) -> None:
        self.staged.append((token, reply))

    def flush(self) -> None:
        self.heard += self.staged
        self.staged = []

    def refuse(self, token: object, reply: object) -> None:
        self.refused.append((token, reply))


class WorkerHarness:
    """One worker over a directory, from `start` to `stop`; the next harness over the same one recovers what it left."""

    worker: Worker
    snapshotter: Snapshotter

    def __init__(
        self,
        directory: Path,
        snapshot_bytes: int = 1 << 30,
        journal: dict[str, Any] | None = None,
        clocks: Clocks = MACHINE_CLOCKS,
    ) -> None:
        """`journal`: another one than that of files in the directory."""
        files = {"kind": "file", "sync": "always", "segment_bytes": 1 << 20, "sync_interval_ns": 1}
        self._journal = journal or {**files, "directory": str(directory)}
        self._clocks = clocks
        self.disk = HeldDisk()
        self.application = CountersApplication()
        self.failures: list[BaseException] = []
        self.said: list[ToSupervisor | MoveReport] = []
        self.asked: list[Command] = []
        self._directory = directory
        self._snapshot_bytes = snapshot_bytes

    async def start(self) -> None:
        """Recovers, and serves."""
        host = REAL._replace(disk=self.disk, clocks=self._clocks)
        recovering = Recovering(self.begin(), self.application, host, self.said.append)
        await recovering.run(asyncio.Event())
        boot_ns, wall_ns = self._clocks.paired()
        recovering.on_message(Serve([Anchor(boot_ns, wall_ns, 0, 0)]))
        loop = asyncio.get_running_loop()
        self.executor = SerialExecutor("journal-1", loop)
        snapshots = SerialExecutor("snapshot-1", loop)
        shard, journal, clock = recovering.shard, recovering.journal, self._clocks.boot_ns
        if not recovering.has_grant():
            await self.executor.call(journal.idle_barrier)
        fail = self.failures.append
        self.snapshotter = Snapshotter(shard, journal, snapshots, self.application.trim_floor, fail, clock)
        upward = Upward(lambda caller, token, operation: self.asked.append(operation), self.said.append, fail)
        self.worker = Worker(recovering, self.executor, self.snapshotter, upward, host.alarm(), clock)
        shard.serve(self.worker.now_ns(), [])
        if recovering.is_new:
            for bucket_id in range(1, BUCKETS + 1):
                shard.adopt(bucket_id, 1)
        self.worker.halted = False
        self.worker.wake()

    async def stop(self) -> None:
        """The orderly end, without a last snapshot."""
        self.disk.free.set()
        await self.worker.quiesce()
        self.snapshotter.close()
        self.worker.close()
        await self.executor.call(self.worker.journal.close)
        self.executor.close()
        assert self.failures == []

    def abandon(self) -> None:
        """The end of one that failed: nothing is waited for."""
        self.worker.halted = True
        self.snapshotter.close()
        self.worker.close()
        self.executor.close()

    async def answered_or_short(self, caller: Caller, count: int) -> None:
        """So many requests were answered, or changes are refused for want of room."""
        await self.until(lambda: len(caller.heard) >= count or bool(self.worker.backpressure.reason))

    async def turn(self) -> None:
        """One turn of the loop."""
        await asyncio.sleep(0)

    def recovered(self) -> Recovered:
        """What the recovery said of itself."""
        return next(message for message in self.said if isinstance(message, Recovered))

    def ask(self, caller: Caller, token: object, bucket_id: int, command: Command) -> None:
        """A request as a door hands it over, at the beginning of a turn."""
        self.worker.arrived()
        self.worker.submit(caller, token, bucket_id, command)

    async def until(self, what: Callable[[], bool]) -> None:
        """Lets the loop turn until it is so."""
        async with asyncio.timeout(60):
            while not what():
                await asyncio.sleep(0.001)

    def begin(self) -> Begin:
        """What the supervisor tells the worker first."""
        bucket_map = BucketMap()
        bucket_map.apply(["create", BUCKETS, HASH_NAME, [SHARD]])
        return Begin(
            shard_id=SHARD,
            directory=str(self._directory),
            founded=False,
            bucket_map=bucket_map.encode(),
            peers={SHARD: "1"},
            listeners=[],
            direct={},
            journal=self._journal,
            settings=WorkerSettings(0.0, self._snapshot_bytes),
            configuration=b"",
            proved=[],
            settled=-1,
            far={},
            links=None,
            log="",
        )
