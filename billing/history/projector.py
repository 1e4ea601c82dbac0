"""The process that writes one shard's history, a child of the shard's worker: `python -m billing.history.projector FD`.

It lives on one wire, which it inherits as a descriptor, and ends when that closes; terminal signals are the worker's
business, not its own. It takes batches into the open group, commits the group after `GROUP_WAIT_S` or
`GROUP_ROWS_MAX` rows, and makes the file durable every `CHECKPOINT_S` or `CHECKPOINT_ROWS_MAX` rows, so that the
journal may be trimmed. Before it answers a question it commits, so the answer holds every batch that came before.

Whatever goes wrong with its own file ends it, after it has told why: the worker starts another, which goes on from what
is committed. What goes wrong with a question refuses that question alone.

It yields to commands where cores are short (`NICENESS`): it may lag, they may not.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from typing import Any, Final

import uvloop

from billing.history.history_reader import HistoryReader
from billing.history.messages import ASK, BATCH, CLOSE, FAILED, OPEN, OPENED, REACHED, REFUSED, ROWS
from billing.history.store import HistoryError, Store, file_of
from shards.system.disk import DirectoryRefused, Disk, RealDisk, private_directory
from shards.system.links import Wire

GROUP_WAIT_S: Final = 0.25
GROUP_ROWS_MAX: Final = 20_000
CHECKPOINT_S: Final = 10.0
CHECKPOINT_ROWS_MAX: Final = 500_000
CHECKPOINT_RETRY_S: Final = 1.0  # a reader of another process stood in the way
FORMER_POLL_S: Final = 0.02
FORMER_WAIT_S: Final = 5.0  # for what a former owner of the bucket has yet to write
NICENESS: Final = 5
GARBAGE_THRESHOLD: Final = 100_000  # rows come and go by the thousand and make no cycles: collect rarely


class _Timer:
    """At most one call ahead."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._handle: asyncio.TimerHandle | None = None

    def start(self, delay_s: float) -> None:
        """Calls in so many seconds, or earlier where a call is ahead already."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def stop(self) -> None:
        """No call is ahead."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._work()


class Projector:
    """One wire, one file."""

    def __init__(self, disk: Disk) -> None:
        self.closed = asyncio.Event()  # nothing is left to do, and what was said has left
        self._ending = False
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._store: Store | None = None
        self._shelf: HistoryReader | None = None
        self._bytes = 0
        self._rows_at_checkpoint = 0
        self._flush_timer = _Timer(self._guarded(self._flush))
        self._checkpoint_timer = _Timer(self._guarded(self._checkpoint))

    # -- the wire ----------------------------------------------------------------------------------------------------

    def wire(self) -> Wire:
        """The protocol for the worker's end."""
        return Wire(self._on_frame, self._on_closed, self._on_connected)

    def _on_connected(self, wire: Wire) -> None:
        self._wire = wire

    def _on_frame(self, wire: Wire, message: Any) -> None:
        if self._ending:
            return
        try:
            kind = message[0]
            if kind == BATCH:
                self._on_batch(message[1], message[2])
            elif kind == ASK:
                self._on_ask(message, int(FORMER_WAIT_S / FORMER_POLL_S))
            elif kind == OPEN:
                self._on_open(*message[1:])
            else:
                assert kind == CLOSE, f"a message of kind {kind}"
                self._end("")
        except Exception as error:
            self._end(reason_of(error))

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self._end("")
        self.closed.set()

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._wire is not None:
            self._wire.send(message)

    def _end(self, reason: str) -> None:
        """Ends the process; without a reason in good order. What was handed over is durable in the journal, so it is
        committed whoever is still there to hear of it.
        """
        if self._ending:
            return
        self._ending = True
        self._flush_timer.stop()
        self._checkpoint_timer.stop()
        if not reason and self._store is not None:
            try:
                self._store.close()
                self._tell_reached()
            except Exception as error:
                reason = reason_of(error)
        if reason:
            self._send((FAILED, reason))
        if self._shelf is not None:
            self._shelf.close()
        if self._wire is not None:
            self._wire.close()

    # -- batches -----------------------------------------------------------------------------------------------------

    def _on_open(self, directory: str, shard: int, first: int, head: int) -> None:
        assert self._store is None, "opened twice"
        try:
            private_directory(self._disk, directory)
        except FileExistsError:  # the projector of another shard made it just now
            private_directory(self._disk, directory)
        path = file_of(directory, shard)
        self._store = store = Store(path, shard, self._disk)
        self._shelf = HistoryReader(directory, os.path.basename(path), store.db, self._disk)
        position = store.settle(first, head)
        self._rows_at_checkpoint = store.seq
        self._send((OPENED, position, store.begins))
        self._tell_reached()

    def _on_batch(self, position: int, payload: bytes) -> None:
        store = self._store
        assert store is not None, "a batch before OPEN"
        store.take(position, payload)
        self._bytes += len(payload)
        if store.rows_open >= GROUP_ROWS_MAX:
            self._flush()
        else:
            self._flush_timer.start(GROUP_WAIT_S)

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        """A timer's work: trouble with it ends the process, as trouble with a message does."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._end(reason_of(error))

        return guarded

    def _flush(self) -> None:
        """Commits what is there, and sees to it that it becomes durable."""
        store = self._store
        assert store is not None
        self._flush_timer.stop()
        if not store.flush():
            return
        if store.seq - self._rows_at_checkpoint >= CHECKPOINT_ROWS_MAX:
            self._checkpoint()
        else:
            self._checkpoint_timer.start(CHECKPOINT_S)
        self._tell_reached()

    def _checkpoint(self) -> None:
        store = self._store
        assert store is not None
        self._flush_timer.stop()
        self._checkpoint_timer.stop()
        store.flush()
        self._rows_at_checkpoint = store.seq
        if not store.checkpoint():
            self._checkpoint_timer.start(CHECKPOINT_RETRY_S)
        self._tell_reached()

    def _tell_reached(self) -> None:
        assert self._store is not None
        self._send((REACHED, self._store.position, self._bytes, self._store.durable))

    # -- questions ---------------------------------------------------------------------------------------------------

    def _on_ask(self, message: tuple[Any, ...], polls_left: int) -> None:
        if self._ending:
            return
        _, number, bucket_id, generation, user_id, before, limit = message
        shelf = self._shelf
        assert shelf is not None, "a question before OPEN"
        self._flush()
        try:
            missing = shelf.missing(bucket_id, generation)
            rows = [] if missing else shelf.history(generation, user_id, before, limit)
        except (sqlite3.Error, HistoryError, OSError) as error:
            self._send((REFUSED, number, reason_of(error)))
            return
        if not missing:
            self._send((ROWS, number, rows))
        elif polls_left > 0:
            again = self._guarded(lambda: self._on_ask(message, polls_left - 1))
            self._loop.call_later(FORMER_POLL_S, again)
        else:
            reason = f"what a former owner of bucket {bucket_id} recorded (generation {missing[0]}) is not there yet"
            self._send((REFUSED, number, reason))


def reason_of(error: BaseException) -> str:
    """An error as a worker's log shows it."""
    if isinstance(error, HistoryError | DirectoryRefused):
        return str(error)
    return f"{type(error).__name__}: {error}"


async def _run(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    projector = Projector(RealDisk())
    await asyncio.get_running_loop().create_connection(projector.wire, sock=connection)
    await projector.closed.wait()


def main(arguments: list[str]) -> None:
    """The main function of the process; the argument is the number of the wire's descriptor."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    gc.set_threshold(GARBAGE_THRESHOLD)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
