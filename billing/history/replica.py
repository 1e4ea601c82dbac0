"""The process that writes this host's histories of the shards that other hosts serve: `python -m
billing.history.replica FD`.

Theory. Where several hosts serve at once, each has a history file of every shard. The projector of a shard writes the
file on the host that serves the shard; on the other hosts this process writes it, from the journal, which every host
can read. So the rows of a bucket that moves here are here already, and so are those of a shard that this host takes
over, whatever happened to the host before. A journal that has lost its end shows in a file that is ahead of it
(`billing.follower.store.Ahead`).

**A file with gaps**, because this host was away for longer than the log reaches back, is filled with the batches of
other hosts (`billing.history.mending`) on another thread, even if its shard is served here: its projector then finds
that the file was replaced. While no host has the missing batches, the process asks again, after growing pauses, and at
once when shards have changed their hosts. It gives other hosts the batches that its own files have.

It reads the last sign of every journal each `LOOK_S`, and reads what a file lacks in slices, on a thread of its own. A
slice is one transaction, so a batch takes effect once, whichever process is killed and whenever. Batches that the log
does not have any more are recorded as lost, as in any history.

**One writer per file.** The supervisor says which shards are elsewhere (`Follow`). The file of a shard that this host
is about to serve is closed before its worker begins. Should two processes write to one file all the same, the second
notices that the position has changed (`Overtaken`): it ends, and a new one begins.

It has a lower priority than workers and projectors (`NICENESS`). Nothing waits for it except a question about a bucket
that came from elsewhere a moment ago (`billing.history.projector`).
"""

from __future__ import annotations

import gc
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Final, NamedTuple

from billing.follower import messages
from billing.follower.feed import Feed, Slice
from billing.follower.process import CHECKPOINT_S, Process, make_directory, run
from billing.follower.store import Ahead, ShardFile, connect, file_of, reason_of
from billing.history import retention
from billing.history.gaps import given_of
from billing.history.history_reader import HistoryReader
from billing.history.mender import UNREADABLE, Mender
from billing.history.projector import GARBAGE_THRESHOLD
from billing.history.replica_link import Follow, Got, Read, to_replica
from billing.history.store import Store, open_store
from billing.history.tables import KIND
from shards.exits import text_of
from shards.journal import Backend, Gap, JournalError, LastSign, Reader, backends
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import Disk, RealDisk
from shards.system.host import REAL
from shards.system.serial_executor import ExecutorOf, SerialExecutor

LOOK_S: Final = 0.5
TELL_NS: Final = 10**9  # at least how often it reports what it follows, even while a look takes longer
AGAIN_S: Final = 2.0  # the pause before a log that could not be read is read again
ASIDE_NS: Final = 30 * 10**9  # the same for a journal that a file is ahead of, or that is damaged
NICENESS: Final = 10

log = logging.getLogger("billing.history.replica")

Done = Callable[[Any, BaseException | None], None]


class Copy(NamedTuple):
    """The history of one shard that another host serves."""

    store: Store
    feed: Feed


class Replica(Process):
    """The process: one connection to the main process, and a file for each shard elsewhere."""

    def __init__(
        self,
        disk: Disk,
        clocks: Clocks,
        log_of: Callable[[dict[str, Any]], Backend],
        executor: ExecutorOf = SerialExecutor,
    ) -> None:
        """`log_of` opens the log that its settings name; the log is used on the executor's thread alone."""
        super().__init__(disk, clocks, to_replica)
        self._log_of = log_of
        self._thread = executor("replica", self._loop)
        self._backend: Backend | None = None
        self._order: Follow | None = None
        self._readers: dict[int, Reader] = {}
        self._copies: dict[int, Copy] = {}
        self._signs: Mapping[int, LastSign] = {}
        self._behind: deque[int] = deque()  # shards whose files were behind their journals in this look
        self._is_looking = False
        self._told_ns = 0  # boot instant of the last report
        self._aside_ns: dict[int, int] = {}  # shard that could not be followed -> boot instant of the next attempt
        self._troubles: dict[int, str] = {}  # shard, or 0 for all -> the error logged since it was last followed
        self._mender = Mender(self, executor("mend", self._loop), self._release, self._tell)

    # -- messages ----------------------------------------------------------------------------------------------------

    def on_message(self, message: Follow | Read | Got | messages.LogLevel) -> None:
        if isinstance(message, messages.LogLevel):
            messages.follow_level(message)
        elif isinstance(message, Read):
            self._read(message)
        elif isinstance(message, Got):
            self._mender.got(message)
        else:
            self._follow(message)

    def _follow(self, message: Follow) -> None:
        if self._order is None:
            make_directory(self.disk, message.directory)
            if message.keep_days:
                self.later("prune", retention.FIRST_S, self._begin_to_prune)
        self._mender.follow(message.directory, message.hosts)
        self._order = message
        for shard in [shard for shard in self._copies if shard not in message.shards]:
            self._copies.pop(shard).store.close()
        if not self._is_looking:
            self.cancel("look")
            self._look()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _on_loop(self, done: Done) -> Done:
        """Wraps `done` so that an exception in it ends the process, and it is not called once the process is
        ending.
        """

        def answered(result: Any, error: BaseException | None) -> None:
            if not self.is_ending:
                try:
                    done(result, error)
                except Exception as trouble:
                    self.end(trouble)

        return answered

    def _look(self) -> None:
        self._is_looking = True
        self._thread.submit(self._on_loop(self._on_signs), self._read_signs)

    def _read_signs(self) -> Mapping[int, LastSign]:
        if self._backend is None:
            assert self._order is not None
            self._backend = self._log_of(self._order.log)
        return self._backend.signs()

    def _on_signs(self, signs: Mapping[int, LastSign], error: BaseException | None) -> None:
        if error is not None:
            self._note(0, error)
            self._rest(AGAIN_S)
            return
        assert self._order is not None
        self._troubles.pop(0, None)
        self._signs = signs
        self._behind = deque(shard for shard in self._order.shards if self._lacks(shard))
        self._next()

    def _lacks(self, shard: int) -> bool:
        if shard == self._mender.replaced:
            return False
        if shard not in self._signs or self._aside_ns.get(shard, 0) > self.clocks.boot_ns():
            return False
        copy = self._copies.get(shard)
        return self._signs[shard].position > (0 if copy is None else copy.store.position)

    def _next(self) -> None:
        """Reads the next slice, of the shard that has waited longest."""
        assert self._order is not None
        if self.clocks.boot_ns() - self._told_ns > TELL_NS:
            self._tell()
        while self._behind:
            shard = self._behind.popleft()
            if shard not in self._order.shards or shard == self._mender.replaced:
                continue
            copy = self._copies.get(shard)
            if copy is None:
                self._thread.submit(self._on_loop(partial(self._on_bounds, shard)), self._bounds_of, shard)
            else:
                copy.feed.read(copy.store.position, self._on_loop(partial(self._on_slice, shard, copy)))
            return
        self._rest(LOOK_S)

    def _rest(self, pause_s: float) -> None:
        self._is_looking = False
        assert self._order is not None
        self._tell()
        if self._order.shards:
            self.later("look", pause_s, self._look)

    def _tell(self) -> None:
        """Reports which shards are followed. The main process treats a replica that is silent for long as
        hanging.
        """
        assert self._order is not None
        self._told_ns = self.clocks.boot_ns()
        followed = [] if 0 in self._troubles else [*set(self._order.shards).difference(self._troubles)]
        self.tell({"followed": followed, "lacks": self._mender.lacks})

    def _bounds_of(self, shard: int) -> tuple[Reader, int, int]:
        """Returns the reader of the shard's log, the log's first batch and its last one."""
        if shard not in self._readers:
            assert self._backend is not None
            self._readers[shard] = self._backend.reader(shard)
        reader = self._readers[shard]
        return reader, reader.first, reader.head

    def _on_bounds(self, shard: int, bounds: tuple[Reader, int, int], error: BaseException | None) -> None:
        order = self._order
        assert order is not None
        if error is not None:
            self._set_aside(shard, error)
        elif shard in order.shards and shard != self._mender.replaced:
            reader, first, head = bounds
            file = ShardFile(order.directory, shard, first, head, self.disk)
            try:
                store, remarks = open_store(file, suspect=order.suspect, is_shared=True)
            except Ahead as ahead:
                self._set_aside(shard, ahead)
            else:
                for remark in remarks:
                    log.warning("the %s of shard %d: %s", "history", shard, remark)
                self._copies[shard] = Copy(store, Feed(reader, f"replica-{shard}", lambda *_: self._thread))
                self._troubles.pop(shard, None)
                self._behind.append(shard)
        self._next()

    def _on_slice(self, shard: int, copy: Copy, journal_slice: Slice | None, error: BaseException | None) -> None:
        if self._copies.get(shard) is not copy:
            pass  # the file was closed meanwhile
        elif isinstance(error, Gap):  # the log was trimmed: the loss is recorded when the file is opened again
            self._copies.pop(shard).store.close()
        elif error is not None:
            copy.feed.forget()
            self._set_aside(shard, error)
        elif journal_slice is not None:
            self._take(shard, copy, journal_slice)
        self._next()

    def _take(self, shard: int, copy: Copy, journal_slice: Slice) -> None:
        for position, payload in journal_slice.batches:
            copy.store.take(position, payload)
        copy.store.flush()
        self.later("checkpoint", CHECKPOINT_S, self._checkpoint)
        self._troubles.pop(shard, None)
        if not journal_slice.is_last:
            self._behind.append(shard)

    def _set_aside(self, shard: int, error: BaseException) -> None:
        self._note(shard, error)
        self._aside_ns[shard] = self.clocks.boot_ns() + ASIDE_NS

    def _note(self, shard: int, error: BaseException) -> None:
        if not isinstance(error, JournalError | Ahead):
            raise error
        text = text_of(error)
        if self._troubles.get(shard) != text:
            which = f"shard {shard}, which another host serves," if shard else "shards that other hosts serve"
            log.error("the history of %s cannot be followed: %s", which, text)
        self._troubles[shard] = text

    # -- gaps of other hosts -----------------------------------------------------------------------------------------

    def _read(self, request: Read) -> None:
        """Answers another host with the batches that it lacks and a file here has."""
        assert self._order is not None
        shard, *question = request.question
        path = file_of(self._order.directory, shard)
        try:
            answer = None
            if self.disk.exists(path):
                with closing(connect(path, KIND)) as db:
                    answer = given_of(db, *question)
        except UNREADABLE as error:
            self.send(messages.Refused(request.number, reason_of(error)))
        else:
            self.send(messages.Answer(request.number, answer))

    def _release(self, shard: int) -> None:
        """Closes the file of this shard, which is about to be replaced."""
        copy = self._copies.pop(shard, None)
        if copy is not None and not self.is_ending:
            copy.store.close()

    async def finish(self) -> None:
        await self._mender.finish()

    # -- files -------------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Makes durable and proves what was taken."""
        for copy in self._copies.values():
            if copy.store.durable < copy.store.position and not copy.store.checkpoint():
                self.later("checkpoint", CHECKPOINT_S, self._checkpoint)

    def _begin_to_prune(self) -> None:
        self._prune(self._pruned())

    def _prune(self, slices: Iterator[None]) -> None:
        """Runs the next slice of a pass over all files; files are read and written between two slices."""
        try:
            next(slices)
        except StopIteration:
            self.later("prune", retention.EVERY_S, self._begin_to_prune)
            self.later("checkpoint", CHECKPOINT_S, self._checkpoint)
        else:
            self.later("prune", 0, partial(self._prune, slices))

    def _pruned(self) -> Iterator[None]:
        order = self._order
        assert order is not None
        limit_ns = self.clocks.wall_ns() - order.keep_days * retention.DAY_NS
        for shard, copy in list(self._copies.items()):
            if self._copies.get(shard) is not copy:
                continue
            reader = HistoryReader(order.directory, shard, copy.store.db, self.disk)
            try:
                for _ in retention.prune(copy.store, reader, limit_ns):
                    yield
                    if self._copies.get(shard) is not copy:
                        break
            except retention.Postponed:
                continue  # until the next pass
            finally:
                reader.close()

    def close(self) -> None:
        for copy in self._copies.values():
            copy.store.close()


def main(arguments: list[str]) -> None:
    """The main function of the process; the last argument is the number of the connection's descriptor."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    make_replica = partial(Replica, RealDisk(), MACHINE_CLOCKS, partial(backends.open, host=REAL))
    run(int(arguments[-1]), NICENESS, make_replica)


if __name__ == "__main__":
    main(sys.argv[1:])
