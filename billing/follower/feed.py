"""Reads batches again from the journal, in slices, for a follower that is behind. It runs on a thread of its own.

The hot path never waits for it: the journal can be read while it is appended to. One slice is held in memory (beside
what the journal itself reads at once). A read that begins where the last slice ended continues the same reading; a read
from any other position starts a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from shards.journal import Journal, Reader
from shards.system.serial_executor import ExecutorOf, SerialExecutor

SLICE_BYTES: Final = 1 << 20


class Slice(NamedTuple):
    """Batches in order as (position, payload); and whether they reach the end that the journal had when the reading
    began.
    """

    batches: list[tuple[int, bytes]]
    is_last: bool


class Feed:
    """Reads the batches of one journal, one slice at a time: `read` is not called while a slice is being read."""

    def __init__(self, journal: Journal | Reader, name: str, executor: ExecutorOf = SerialExecutor) -> None:
        self._journal = journal
        self._reader = executor(name, asyncio.get_running_loop())
        self._replay: Iterator[tuple[int, bytes]] | None = None
        self._at = -1  # position of the last batch that the reading returned

    def read(self, after: int, done: Callable[[Slice | None, BaseException | None], None]) -> None:
        """Reads a slice from position `after` + 1 on. `done(slice, error)` is called on the loop; the error is a
        JournalError.
        """
        self._reader.submit(done, self._read, after)

    def _read(self, after: int) -> Slice:
        if self._replay is None or self._at != after:
            self._replay, self._at = self._journal.replay(after + 1), after
        batches = []
        size = 0
        for position, payload in self._replay:
            batches.append((position, payload))
            self._at = position
            size += len(payload)
            if size >= SLICE_BYTES:
                return Slice(batches, False)
        self._replay = None
        return Slice(batches, True)

    def forget(self) -> None:
        """Drops the reading and what the journal has read ahead for it. Must not be called while a slice is
        being read.
        """
        self._replay = None

    def close(self) -> None:
        """Ends the thread once the slice that it is reading is read."""
        self._reader.close()
