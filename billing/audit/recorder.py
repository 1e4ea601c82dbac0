"""Writes and reads the operators' record for one process, on threads of its own.

An act begins once its record is durable. If the disk takes no record, the act begins all the same, since an operator
must be able to act on a full disk, and a warning reports it.

Guessing tokens must not fill the disk: within a minute, `REFUSALS_A_MINUTE` refused sign-ins have a record of their
own, and the next record counts the others (`and_more`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from billing.audit.reading import TrailReader, UnknownCursor
from billing.audit.trail import DIRECTORY, Record, Trail
from shards.system.disk import Disk
from shards.system.serial_executor import ExecutorOf, SerialExecutor

log = logging.getLogger("billing.audit")

REFUSALS_A_MINUTE: Final = 30
MINUTE_NS: Final = 60 * 10**9
READS_MAX: Final = 16  # page requests at the same time
WAITING_MAX: Final = 1_000  # records waiting for the disk; an act beyond them gets a warning instead of a record


class TooManyReads(Exception):
    """As many pages as allowed are being read already."""


class Recorder:
    """The writer and reader of one process; see the module."""

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        name: str,
        wall_now_ns: Callable[[], int],
        executor_of: ExecutorOf = SerialExecutor,
    ) -> None:
        """`name`: of this process. `executor_of` makes the threads that wait for the disk."""
        self._executor_of = executor_of
        self._trail = Trail(disk, f"{data_dir}/{DIRECTORY}", name)
        self._name = name
        self._executor: SerialExecutor | None = None  # created with the first record
        self._reader = TrailReader(disk, f"{data_dir}/{DIRECTORY}")
        self._reading: SerialExecutor | None = None  # created with the first read: no act waits for a page
        self._reads = 0
        self._now_ns = wall_now_ns
        self._waiting = 0
        self._minute_ns = 0
        self._refusals = 0

    def record(self, actor: str, act: str, details: dict[str, Any], then: Callable[[], None] = lambda: None) -> None:
        """Writes a record, and calls `then` once it is durable. If it cannot be written, logs a warning and calls
        `then`, too.
        """
        if self._waiting >= WAITING_MAX:
            log.warning("%s by %r has no record; records that wait for the disk: %d", act, actor, self._waiting)
            then()
            return
        self._waiting += 1
        record = {"at_ns": self._now_ns(), "actor": actor, "act": act, "details": details}

        def done(_: object, error: BaseException | None) -> None:
            self._waiting -= 1
            if error is not None:
                log.warning("%s by %r has no record: %s", act, actor, error)
            then()

        if self._executor is None:
            self._executor = self._executor_of(f"audit-{self._name}", asyncio.get_running_loop())
        self._executor.submit(done, self._trail.append, record)

    def refused_sign_in(self, origin: str) -> None:
        """Records that a client at `origin` sent an unknown token."""
        now_ns = self._now_ns()
        details: dict[str, Any] = {"from": origin}
        if now_ns - self._minute_ns >= MINUTE_NS:
            if self._refusals > REFUSALS_A_MINUTE:
                details["and_more"] = self._refusals - REFUSALS_A_MINUTE
            self._minute_ns, self._refusals = now_ns, 0
        self._refusals += 1
        if self._refusals <= REFUSALS_A_MINUTE:
            self.record("", "sign_in_refused", details)

    def read(
        self, cursor: str, limit: int, actor: str, act: str, done: Callable[[list[Record] | Exception], None]
    ) -> None:
        """Calls `done` with a page of all processes' records (see `reading`), or with the reason for none:
        UnknownCursor, OSError or TooManyReads. An empty `actor` or `act` matches all.
        """
        if self._reads >= READS_MAX:
            done(TooManyReads(f"{READS_MAX} pages of the record are being read already"))
            return
        self._reads += 1

        def on_page(records: Any, error: BaseException | None) -> None:
            self._reads -= 1
            if error is not None and not isinstance(error, UnknownCursor | OSError):
                raise error
            done(error or records)

        if self._reading is None:
            self._reading = self._executor_of(f"audit-reading-{self._name}", asyncio.get_running_loop())
        self._reading.submit(on_page, self._reader.page, cursor, limit, actor or None, act or None)

    async def close(self) -> None:
        """Waits for pending reads and writes, and ends the threads."""
        if self._reading is not None:
            await self._reading.call(list)
            self._reading.close()
        if self._executor is not None:
            await self._executor.call(self._trail.close)
            self._executor.close()
