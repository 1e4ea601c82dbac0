"""Finds the gaps in this host's history files, has them filled, and reports on them. Runs beside a replica.

It checks all files, including those of shards that this host serves. One file is filled at a time (`mending`), on a
thread of its own. A failed attempt is repeated after a growing pause, and at once when the main process sends a new
list of hosts or shards.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from billing.follower.process import Process
from billing.follower.proof import Unproved
from billing.follower.store import StoreError, connect, file_of, reason_of, shard_files
from billing.history.gaps import Gap, Given, gaps_of
from billing.history.mending import Mended, mend
from billing.history.replica_link import Got, Wanted
from billing.history.restoring import Unlike
from billing.history.tables import KIND
from shards.counting import counted
from shards.system.serial_executor import SerialExecutor

LOOK_S: Final = 1.0  # how often the files are checked for gaps
ASK_S: Final = 20.0  # how long an answer of another host is waited for
AGAIN_NS: Final = (2 * 10**9, 10 * 10**9, 60 * 10**9, 600 * 10**9, 3600 * 10**9)  # the pauses after failures, in turn
UNREADABLE: Final = (StoreError, Unproved, sqlite3.Error, OSError)  # the errors of reading and filling a file

log = logging.getLogger("billing.history.replica")


class Mender:
    """Finds and fills the gaps of all history files of this host; part of one replica process."""

    def __init__(
        self,
        process: Process,
        executor: SerialExecutor,
        release: Callable[[int], None],
        changed: Callable[[], None],
    ) -> None:
        """Runs on the loop of `process`. `release(shard)` closes the process's own connection to a file that is about
        to be replaced; `changed` is called when `lacks` has changed.
        """
        self._changed = changed
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        self._release = release
        self._directory = ""
        self._hosts: list[str] = []
        self._shard = 0  # the shard whose file is being checked or filled; 0: none
        self.replaced = 0  # the shard whose file is being replaced, which this process must not write; 0: none
        self._waits: dict[int, tuple[int, int]] = {}  # shard with a gap -> failures, boot instant of the next attempt
        self.lacks: dict[int, str] = {}  # shard with a gap -> the gap and what is being done about it, for operators
        self._warned: set[int] = set()  # shards with a gap of which a failure was logged
        self._number = 0
        self._answers: dict[
            int, tuple[str, SimpleQueue[Any]]
        ] = {}  # number of a question -> host, and the queue that the thread waits on
        self._silent: set[str] = set()  # hosts that have not answered about the file being filled

    def follow(self, directory: str, hosts: list[str]) -> None:
        """Sets the directory of the files, and the hosts that can be asked from now on. Failed attempts are repeated at
        once: the shards' owners have changed, and with them the hosts that can be reached. A host that serves no shard
        cannot reach the others.
        """
        self._waits.clear()
        self._directory, self._hosts = directory, hosts
        if not self._shard:
            self._process.later("mend", LOOK_S, self._look)

    # -- finding gaps ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        process = self._process
        files, now_ns = shard_files(self._directory, process.disk), process.clocks.boot_ns()
        self.lacks = {shard: what for shard, what in self.lacks.items() if shard in files}
        self._look_at([shard for shard in sorted(files) if self._waits.get(shard, (0, 0))[1] <= now_ns])

    def _look_at(self, due: list[int]) -> None:
        """Checks the files of these shards for gaps, one after the other."""
        self._shard = due.pop(0) if due else 0
        if self._shard:
            path = file_of(self._directory, self._shard)
            self._executor.submit(self._on_loop(partial(self._on_gaps, due)), _gaps_in, path)
        else:
            self._process.later("mend", LOOK_S, self._look)

    def _on_loop(
        self, done: Callable[[Any, BaseException | None], None]
    ) -> Callable[[Any, BaseException | None], None]:
        """Wraps `done` so that the process ends if `done` fails, or if the error does not come from reading or filling
        a file.
        """

        def answered(result: Any, error: BaseException | None) -> None:
            if self._process.is_ending:
                return
            try:
                if error is not None and not isinstance(error, UNREADABLE):
                    raise error
                done(result, error)
            except Exception as trouble:
                self._process.end(trouble)

        return answered

    def _on_gaps(self, due: list[int], gaps: list[Gap] | None, error: BaseException | None) -> None:
        shard = self._shard
        if not gaps:  # also if the file cannot be read: its writer deals with that
            self._waits.pop(shard, None)
            self._warned.discard(shard)
            if self.lacks.pop(shard, None) is not None:
                self._changed()
            self._look_at(due)
            return
        gaps_text = ", ".join(map(str, gaps))
        if shard not in self.lacks:
            log.info(
                "the history of shard %d lacks %s; asked are: %s", shard, gaps_text, ", ".join(self._hosts) or "none"
            )
        self.lacks[shard] = f"{gaps_text}: other hosts are asked"
        self._silent.clear()
        self._changed()
        done = self._on_loop(partial(self._on_mended, gaps_text, due))
        where = self._process.disk, self._directory, shard
        self._executor.submit(done, mend, *where, self._hosts, self._ask, self._let_go)

    def _on_mended(self, gaps_text: str, due: list[int], mended: Mended | None, error: BaseException | None) -> None:
        shard, self.replaced = self._shard, 0
        tries, _ = self._waits.get(shard, (0, 0))
        if error is not None:
            reason = reason_of(error)
            self.lacks[shard] = f"{gaps_text}, which cannot be taken from other hosts: {reason}"
            if shard not in self._warned:
                log.warning("what the history of shard %d lacks cannot be taken from other hosts: %s", shard, reason)
            self._warned.add(shard)
            tries = len(AGAIN_NS) if isinstance(error, Unlike) else tries + 1
        elif mended is None and self._silent:
            self.lacks[shard] = f"{gaps_text}: not all hosts answer ({', '.join(sorted(self._silent))})"
            tries += 1
        elif mended is None:
            self.lacks[shard] = f"{gaps_text}, which no other host has"
            if shard not in self._warned:
                log.warning("the history of shard %d lacks %s: no other host has that", shard, gaps_text)
            self._warned.add(shard)
            tries += 1
        else:
            filled, rows = ", ".join(map(str, mended.filled)), counted(mended.rows, "row")
            log.info("the history of shard %d has %s again, %s, from %s", shard, filled, rows, ", ".join(mended.hosts))
            tries = 0
        pause_ns = AGAIN_NS[min(tries, len(AGAIN_NS)) - 1] if tries else 0
        self._waits[shard] = tries, self._process.clocks.boot_ns() + pause_ns
        self._changed()
        self._look_at(due)

    # -- called on the thread of `mending` ---------------------------------------------------------------------------

    def _ask(self, host: str, shard: int, after: int, rows: int, last: int, bytes_max: int) -> Given | None:
        """The `ask` of `mending`; called on its thread."""
        answer: SimpleQueue[Any] = SimpleQueue()
        self._loop.call_soon_threadsafe(self._send, Wanted(0, host, (shard, after, rows, last, bytes_max)), answer)
        fields = answer.get()
        if fields is None:
            return None
        first, up_to, batches, rows_given, is_end, departures, checksum = fields
        pairs = [(position, payload) for position, payload in batches]
        return Given(first, up_to, pairs, rows_given, is_end, [tuple(departure) for departure in departures], checksum)

    def _send(self, wanted: Wanted, answer: SimpleQueue[Any]) -> None:
        if self._process.is_ending:
            answer.put(None)
            return
        self._number = number = self._number + 1
        self._answers[number] = wanted.host, answer
        self._process.send(Wanted(number, wanted.host, wanted.question))
        self._process.later(f"answer {number}", ASK_S, partial(self.got, Got(number, None, False)))

    def got(self, message: Got) -> None:
        """Takes the answer of another host, or the fact that it has not answered."""
        self._process.cancel(f"answer {message.number}")
        if message.number in self._answers:
            host, answer = self._answers.pop(message.number)
            if not message.has_answered:
                self._silent.add(host)
            answer.put(message.given)

    def _let_go(self) -> None:
        """Called on the thread: returns once this process has closed the file."""
        released: SimpleQueue[None] = SimpleQueue()
        self._loop.call_soon_threadsafe(self._replace, released)
        released.get()

    def _replace(self, released: SimpleQueue[None]) -> None:
        self.replaced = self._shard
        try:
            self._release(self._shard)
        except Exception as trouble:
            self._process.end(trouble)
        released.put(None)

    async def finish(self) -> None:
        """Ends all open questions, as unanswered, and returns once the thread has nothing left to do."""
        for number in list(self._answers):
            self.got(Got(number, None, False))
        await self._executor.call(lambda: None)


def _gaps_in(path: str) -> list[Gap]:
    with closing(connect(path, KIND)) as db:
        return gaps_of(db)
