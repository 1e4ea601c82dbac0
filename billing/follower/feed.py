"""Batches of the journal for a history that is behind: read again in slices, on a thread of its own.

The hot path never waits for it: reading runs beside appending, as the journal's seam allows, and a slice is all that is
in memory of it (beside what the journal itself reads at once). Where a slice ends and the next one is asked for, the
reading goes on; where another position is asked for, it begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from shards.journal import Journal, Reader
from shards.system.serial_executor import ExecutorOf, SerialExecutor

SLICE_BYTES: Final = 1 << 20


class Slice(NamedTuple):
    """Batches in order, and whether the journal held no more when the reading began."""

    batches: list[tuple[int, bytes]]
    is_last: bool


class Feed:
    """One journal's batches; one slice under way at a time."""

    def __init__(self, journal: Journal | Reader, name: str, executor: ExecutorOf = SerialExecutor) -> None:
        self._journal = journal
        self._reader = executor(name, asyncio.get_running_loop())
        self._replay: Iterator[tuple[int, bytes]] | None = None
        self._at = -1  # the last batch that the reading gave

    def read(self, after: int, done: Callable[[Slice | None, BaseException | None], None]) -> None:
        """Reads from position `after` + 1 on; `done(slice, error)` is called on the loop, the error a JournalError."""
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
        """Nothing is read for now, and no slice is under way: lets go of what the journal has read."""
        self._replay = None

    def close(self) -> None:
        """Ends the thread, after the slice it reads."""
        self._reader.close()
