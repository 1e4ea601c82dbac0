"""Snapshots while requests are served: bucket by bucket, never a pause longer than one bucket takes.

A snapshot is one part per bucket, and each part carries its own position: it holds all records of its bucket up to that
batch and none after. So a part can be made whenever the open batch is empty, right after the worker took a Ready; its
position is that of the batch that is on its way into the journal, or of the last one there. A part is handed on only
once that batch is durable: a snapshot never holds what the journal does not.

The snapshot as a whole carries the position that was durable when it began; recovery replays from there and each bucket
skips what its part holds. When it stands and was read back, the journal is trimmed below it, but no further than the
application still needs (its history).

The loop makes parts (at most `SLICE_NS` a turn, at least one bucket) and then leaves them alone for `REST` times as
long, so that requests that come meanwhile find the loop free most of the time, however long the snapshot takes; a
thread of its own writes them, at most `PARTS_WAITING_MAX` behind. A snapshot that fails for want of room is given up
and tried again at the next occasion; one that fails otherwise ends the worker, like every failure of the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from shards.journal import Journal, Unavailable
from shards.shard import Shard
from shards.system.serial_executor import SerialExecutor

SLICE_NS = 500_000  # of a turn of the loop, for making parts
REST = 4  # how much longer than a slice the loop is left alone after it
PARTS_WAITING_MAX = 32
LOOK_BATCHES = 64  # how often it is looked whether a snapshot is due
FULL_RETRY_NS = 5_000_000_000  # after one that found no room


class Abandoned(Exception):
    """A snapshot was given up before its last part was written."""


class Snapshotter:
    """Makes one snapshot after the other, each when `begin` is called."""

    def __init__(
        self,
        shard: Shard,
        journal: Journal,
        executor: SerialExecutor,
        trim_floor: Callable[[], int],
        fail: Callable[[BaseException], None],
        boot_ns: Callable[[], int],
    ) -> None:
        """`executor`: a thread of its own, not the journal's. `trim_floor()`: the position up to which the application
        needs nothing of the journal any more. `boot_ns`: the boot clock.
        """
        self._boot_ns = boot_ns
        self._shard = shard
        self._journal = journal
        self._executor = executor
        self._trim_floor = trim_floor
        self._fail = fail
        self._left: list[int] = []
        self._undurable: deque[bytes] = deque()
        self._parts: SimpleQueue[bytes | Abandoned | None] = executor.queue()
        self._position = 0
        self.running = False
        self.held = False  # nothing is begun and nothing trimmed: somebody copies the journal
        self._trimming = False
        self._closed = False
        self.count = 0
        self._next_boot_ns = 0  # of the next slice
        self.finished_boot_ns = 0  # of the last one
        self.retry_boot_ns = 0  # not before: there was no room
        self.stored_bytes = 0  # of the journal, after the last one
        self.pause_max_ns = 0  # the longest slice there was

    def begin(self) -> None:
        """Begins a snapshot, unless one is under way, the last one has just found no room, or the journal is held
        still.
        """
        if self.running or self.held or self._boot_ns() < self.retry_boot_ns:
            return
        self.running = True
        self._left = sorted(self._shard.present(), reverse=True)
        self._parts = self._executor.queue()
        self._position = self._journal.head
        self._executor.submit(self._on_saved, self._journal.save_snapshot, self._position, self._written())

    def look(self, grown_bytes: int) -> None:
        """Begins a snapshot where the journal has grown by more than `grown_bytes` since the last one. To be called
        once in `LOOK_BATCHES` batches.
        """
        if self._journal.stored_bytes - self.stored_bytes > grown_bytes:
            self.begin()

    def _written(self) -> Iterator[bytes]:
        """The parts in the order in which the writing thread takes them; waits for each."""
        parts = self._parts
        while (part := parts.get()) is not None:
            if isinstance(part, Abandoned):
                raise part
            yield part

    def step(self, position: int, durable: bool) -> bool:
        """Makes parts while the open batch is empty. `position` is that of the newest batch taken; `durable` says
        whether that batch is durable. Returns True while parts are left, and the next turn should come soon.
        """
        if not self.running or not self._left:
            return False
        shard = self._shard
        if not shard.is_drained():
            return False
        began_ns = now_ns = self._boot_ns()
        if began_ns < self._next_boot_ns:
            return True
        while self._left and now_ns - began_ns < SLICE_NS:
            if len(self._undurable) + self._parts.qsize() >= PARTS_WAITING_MAX:
                break
            self._undurable.append(shard.dump(self._left.pop(), position))
            now_ns = self._boot_ns()
        self._next_boot_ns = now_ns + REST * (now_ns - began_ns)
        self.pause_max_ns = max(self.pause_max_ns, now_ns - began_ns)
        if durable:
            self.synced()
        return bool(self._left)

    def synced(self) -> None:
        """Everything taken until now is durable, and so are the parts made of it."""
        if not self.running:
            return
        while self._undurable:
            self._parts.put(self._undurable.popleft())
        if not self._left:
            self._parts.put(None)

    def _on_saved(self, _: object, error: BaseException | None) -> None:
        self.running = False
        self._left = []
        self._undurable.clear()
        if self._closed:
            return  # the journal is closing or closed: nothing more is asked of it, and nothing wrong with it
        if error is None:
            self.count += 1
            self.finished_boot_ns = self._boot_ns()
            if not self.held:  # what is left standing now, the next one takes
                self._trimming = True
                floor = min(self._position, self._trim_floor())
                self._executor.submit(self._on_trimmed, self._journal.trim, floor)
        elif isinstance(error, Unavailable):
            self.retry_boot_ns = self._boot_ns() + FULL_RETRY_NS
        elif not isinstance(error, Abandoned):
            self._fail(error)

    def is_still(self) -> bool:
        """Whether no snapshot is being made and nothing is being trimmed."""
        return not (self.running or self._trimming)

    def _on_trimmed(self, _: object, error: BaseException | None) -> None:
        self._trimming = False
        if self._closed:
            return
        self.stored_bytes = self._journal.stored_bytes
        if error is not None and not isinstance(error, Unavailable):
            self._fail(error)

    def close(self) -> None:
        """Gives an unfinished one up, and ends the thread."""
        self._closed = True
        if self.running:
            self._parts.put(Abandoned())
        self._executor.close()
