"""The follower process that writes one shard's history: `python -m billing.history.projector FD`.

It takes batches into the open group, commits the group after `GROUP_WAIT_S` or `GROUP_ROWS_MAX` rows, and makes the
file durable every `CHECKPOINT_S` or `CHECKPOINT_ROWS_MAX` rows, so that the journal may be trimmed. Before it answers a
question it commits, so the answer covers every batch that came before. Questions about accounts take turns (`turns`).

It has a lower priority than the workers (`NICENESS`): where cores are short, it lags behind rather than they.
"""

from __future__ import annotations

import gc
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from billing.follower.messages import ANSWER_TIMEOUT_S
from billing.follower.process import CHECKPOINT_S, Follower, run
from billing.follower.store import ShardFile, StoreError, code_of, reason_of, unconverted_files
from billing.history import entries, feed_part, period_reader, retention
from billing.history.cursor import Place
from billing.history.history_reader import HistoryReader, Newest
from billing.history.link import ENTRIES, PART, PERIOD, REACHED, STATEMENT, WHERE, HistorySettings
from billing.history.period_reader import Chain, Misplaced, Standing, Steps, TooLong
from billing.history.retention import DAY_NS, Postponed, prune
from billing.history.store import Store, open_store
from billing.history.tables import KIND
from billing.history.turns import Turns
from shards.exits import Exit
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import Disk, RealDisk

GROUP_WAIT_S: Final = 1.0  # a question commits the group earlier
GROUP_ROWS_MAX: Final = 50_000
CHECKPOINT_ROWS_MAX: Final = 500_000
FORMER_POLL_S: Final = 0.02
FORMER_WAIT_NS: Final = 5 * 10**9  # how long a question waits for rows that a bucket's former owner has yet to write
ARRIVED_NS: Final = 10 * 10**9  # how long after a bucket's arrival such rows are awaited, if some file lacks batches
FORMER_END_NS: Final = 60 * 10**9  # after that, answers report the rows as missing instead of being refused
NICENESS: Final = 5
FAILURES: Final = (sqlite3.Error, StoreError, OSError)  # errors of reading a file
GARBAGE_THRESHOLD: Final = 100_000  # thousands of rows are allocated and freed, without cycles: collect rarely


class Projector(Follower):
    """The process of one shard: one connection to its worker, one file."""

    def __init__(self, disk: Disk, clocks: Clocks) -> None:
        super().__init__(disk, clocks)
        self._store: Store | None = None
        self._reader: HistoryReader | None = None
        self._rows_at_checkpoint = 0
        self._keep_days = 0
        self._log = b""  # the log's identity in cursors, where hosts share it
        self._arrived_ns: dict[int, int] = {}  # bucket -> boot instant of its arrival, if this process has seen it
        self._turns = Turns(lambda run: self.later("turn", 0, run))
        self._awaited: dict[int, tuple[int, int]] = {}  # bucket -> awaited generation, boot instant since when

    @property
    def store(self) -> Store | None:
        return self._store

    # -- batches -----------------------------------------------------------------------------------------------------

    def on_open(self, file: ShardFile, suspect: bool, options: tuple[Any, ...]) -> tuple[Store, list[str]]:
        accept_loss, self._keep_days, self._log, served = HistorySettings(*options)
        is_shared = bool(self._log)
        for gone in unconverted_files(file.directory, KIND, served, self.disk) if served else ():
            open_store(gone, suspect=False)[0].close()
        self._store, remarks = open_store(file, suspect=suspect, accept_loss=accept_loss, is_shared=is_shared)
        self._reader = HistoryReader(file.directory, file.shard, self._store.db, self.disk)
        self._rows_at_checkpoint = self._store.seq
        if self._keep_days:
            self.later("prune", retention.FIRST_S, self._begin_to_prune)
        return self._store, remarks

    def on_batch(self, position: int, payload: bytes) -> None:
        store = self._store
        assert store is not None
        store.take(position, payload)
        if store.arrived:
            self._arrived_ns |= dict.fromkeys(store.arrived, self.clocks.boot_ns())
            store.arrived.clear()
        if store.rows_open >= GROUP_ROWS_MAX:
            self._write()
        else:
            self.later("write", GROUP_WAIT_S, self._write)

    def _write(self) -> None:
        """Commits the open group, and schedules the checkpoint that makes it durable."""
        store = self._store
        assert store is not None
        if not self.flush():
            return
        if store.seq - self._rows_at_checkpoint >= CHECKPOINT_ROWS_MAX:
            self.checkpoint()
        else:
            self.later("checkpoint", CHECKPOINT_S, self.checkpoint)
            self.tell_reached()

    def flush(self) -> bool:
        self.cancel("write")
        return self._store is not None and self._store.flush()

    def checkpoint(self) -> bool:
        is_proved = super().checkpoint()
        assert self._store is not None
        self._rows_at_checkpoint = self._store.seq
        return is_proved

    # -- retention ---------------------------------------------------------------------------------------------------

    def _begin_to_prune(self) -> None:
        assert self._store is not None
        assert self._reader is not None
        self._prune(prune(self._store, self._reader, self.clocks.wall_ns() - self._keep_days * DAY_NS))

    def _prune(self, slices: Iterator[None]) -> None:
        """Runs the next slice of a pass; batches and questions come between two slices."""
        self._write()
        try:
            next(slices)
        except StopIteration:
            self.later("prune", retention.EVERY_S, self._begin_to_prune)
            self.later("checkpoint", CHECKPOINT_S, self.checkpoint)
        except Postponed:
            self.later("prune", retention.AGAIN_S, self._begin_to_prune)
        else:
            self.later("prune", 0, partial(self._prune, slices))

    # -- questions ---------------------------------------------------------------------------------------------------

    def on_ask(self, number: int, question: tuple[Any, ...]) -> None:
        if question[0] == REACHED:
            self._write()
            assert self._store is not None
            self.answer(number, (self._store.shard, self._store.seq))
        elif question[0] == ENTRIES:
            self._answer_entries(number, *question[1:])
        elif question[0] in (PART, WHERE):
            self._answer_part(number, *question)
        elif question[0] == PERIOD:
            self._begin_period(number, question, self.clocks.boot_ns())
        else:
            self._turns.begin(question[2], partial(self._answer_in_turn, number, question, self.clocks.boot_ns()))

    def _answer_entries(
        self, number: int, cursor: str, limit: int, bounds: tuple[tuple[int, int], ...], all_written: bool
    ) -> None:
        assert self._reader is not None
        self._write()
        try:
            page = entries.page(self._reader, cursor, limit, dict(bounds), all_written=all_written)
        except entries.UnknownCursor as unknown:
            self.answer(number, str(unknown))
        except FAILURES as error:
            self._fail(number, error)
        else:
            self.answer(number, (page.rows, page.waits, tuple(page.bounds.items())))

    def _answer_part(self, number: int, name: str, *question: Any) -> None:
        store = self._store
        assert store is not None
        self._write()
        try:
            if name == WHERE:
                self.answer(number, (store.shard, feed_part.locate(store.db, self._log, *question)))
            else:
                place, limit = question
                place = None if place is None else Place(*place)
                self.answer(number, feed_part.part(store.db, store.shard, self._log, place, limit, store.position))
        except entries.UnknownCursor as unknown:
            self.answer(number, str(unknown))

    def _is_late(self, number: int, asked_ns: int) -> bool:
        """Refuses a question that waited for its turn until nobody waits for the answer any more."""
        is_late = self.clocks.boot_ns() - asked_ns > ANSWER_TIMEOUT_S * 10**9
        if is_late:
            self.refuse(number, f"the answer was not made within {ANSWER_TIMEOUT_S:g} s")
        return is_late

    def _answer_in_turn(self, number: int, question: tuple[Any, ...], asked_ns: int) -> bool:
        return not self._is_late(number, asked_ns) and self._answer(number, question, asked_ns)

    def _answer(self, number: int, question: tuple[Any, ...], asked_ns: int) -> bool:
        """Answers a question about the rows of an account, as the one step that this takes."""
        bucket_id, generation, user_id, before, limit, newest = question
        reader = self._reader
        assert reader is not None
        self._write()
        retry = partial(self._answer, number, question, asked_ns)
        try:
            missing = self._may_come(bucket_id, generation)
            replaced = reader.replaced
            page = reader.history(generation, user_id, before, limit, Newest(*newest))
        except FAILURES as error:
            self._fail(number, error)
            return False
        if reader.replaced != replaced:
            self.later(f"answer {number}", 0, retry)
            return False
        self._answer_whole(number, page, bucket_id, missing, asked_ns, retry)
        return False

    def _answer_whole(
        self,
        number: int,
        outcome: tuple[object, bool],
        bucket_id: int,
        missing: list[int],
        asked_ns: int,
        retry: Callable[[], object],
    ) -> None:
        """Answers a question, or calls `retry` a little later while former owners of the bucket may still write missing
        rows. `outcome`: the answer, and whether it is complete; `missing`: the generations of these owners. A complete
        answer about one account does not end the wait for the rows of others in its bucket.
        """
        answer, is_whole = outcome
        now_ns = self.clocks.boot_ns()
        if not missing:
            self._awaited.pop(bucket_id, None)
        if is_whole or not missing:
            self.answer(number, answer)
            return
        awaited, since_ns = self._awaited.get(bucket_id, (0, 0))
        if awaited != missing[0]:
            since_ns = now_ns
            self._awaited[bucket_id] = missing[0], now_ns
        if now_ns - since_ns > FORMER_END_NS:
            self.answer(number, answer)
        elif now_ns - asked_ns < FORMER_WAIT_NS:
            self.later(f"answer {number}", FORMER_POLL_S, retry)
        else:
            self.refuse(
                number,
                f"what a former owner of bucket {bucket_id} recorded (generation {missing[0]}) is not there yet; "
                f"after {FORMER_END_NS // 10**9} s the answer comes without it, and says so",
            )

    def _may_come(self, bucket_id: int, generation: int) -> list[int]:
        """Returns the earlier generations whose rows may still come. It is called before the rows are read: the rows of
        a former owner that had departed by then are all present, while an owner that departs in between may have
        written rows that were not read. Where hosts share the journal and some file is known to lack batches (this host
        was away for longer than the log reaches back), their rows are awaited only if the bucket has just arrived.
        """
        assert self._reader is not None
        missing = self._reader.missing(bucket_id, generation)
        arrived_ns = self._arrived_ns.get(bucket_id, -ARRIVED_NS)
        is_new = self.clocks.boot_ns() - arrived_ns < ARRIVED_NS
        return [] if missing and self._log and not is_new and self._reader.lacks() else missing

    def _begin_period(self, number: int, question: tuple[Any, ...], asked_ns: int) -> None:
        """Begins the answer to a question about a period or an instant of one account."""
        _, bucket_id, generation, user_id, (name, *arguments), standing = question
        assert self._reader is not None
        self._write()
        try:
            missing = self._may_come(bucket_id, generation)
        except FAILURES as error:
            self._fail(number, error)
            return
        chain = Chain(self._reader, generation, user_id, Standing(*standing))
        of_kind = period_reader.bounded_statement if name == STATEMENT else period_reader.balance_at
        steps = of_kind(chain, user_id, *arguments)
        step = partial(self._go_on, number, question, steps, (missing, self._reader.replaced), asked_ns)
        self._turns.begin(user_id, step)

    def _go_on(
        self, number: int, question: tuple[Any, ...], steps: Steps, at_start: tuple[list[int], int], asked_ns: int
    ) -> bool:
        """Runs the next step of such an answer; returns whether there is another one. `at_start`: the generations whose
        rows may still come, and the count of replaced files, both before the first step.
        """
        retry = partial(self._begin_period, number, question, asked_ns)
        assert self._reader is not None
        missing, replaced = at_start
        if self._is_late(number, asked_ns):
            return False
        try:
            next(steps)
            return True
        except StopIteration as end:
            answer, is_whole = end.value
        except TooLong as reason:
            self.answer(number, str(reason))
            return False
        except Misplaced:
            if not missing and self._reader.replaced == replaced:
                raise
            self.later(f"answer {number}", FORMER_POLL_S, retry)
            return False
        except FAILURES as error:
            self._fail(number, error)
            return False
        if self._reader.replaced != replaced:
            self.later(f"answer {number}", 0, retry)
            return False
        self._answer_whole(number, (answer, is_whole), question[1], missing, asked_ns, retry)
        return False

    def _fail(self, number: int, error: sqlite3.Error | StoreError | OSError) -> None:
        """Refuses a question because of an error. Raises the error if it shows damage: the next process makes a new
        file of the sound rows of this one.
        """
        if code_of(error) == Exit.DAMAGED:
            raise error
        self.refuse(number, reason_of(error))

    async def finish(self) -> None:
        if self._reader is not None:
            self._reader.close()


def main(arguments: list[str]) -> None:
    """The main function of the process; the last argument is the number of the connection's descriptor."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    run(int(arguments[-1]), NICENESS, lambda: Projector(RealDisk(), MACHINE_CLOCKS))


if __name__ == "__main__":
    main(sys.argv[1:])
