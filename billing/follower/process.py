"""What the processes of all followers have in common: one wire to the worker, one file, timers, and an end.

The process inherits its wire as a descriptor and ends when that closes; terminal signals are the worker's business,
not its own. What it logs goes to the worker, whose log has the form that is configured. Whatever goes wrong with its
file ends it, after it has told why and with which exit code; what goes wrong with a question refuses that question
alone. After an error the process exits without closing its file: SQLite would copy its log into it and remove the log,
which may be the only good copy.

A kind of follower says what it opens, what it does with a batch and with a question, and how long its batches may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, assert_never

import uvloop

from billing.follower import messages as say
from billing.follower.store import FollowerStore, code_of, reason_of
from shards.system.clock import Clocks
from shards.system.disk import Disk, private_directory
from shards.system.links import Wire

CHECKPOINT_S: Final = 10.0
CHECKPOINT_RETRY_S: Final = 1.0  # a reader of another process stood in the way
LAST_WORDS_S: Final = 1.0  # the worker has them, and has closed its end

_PLAIN: Final = logging.Formatter()


class Follower(ABC):
    """One wire, one file."""

    def __init__(self, disk: Disk, clocks: Clocks) -> None:
        self.ended = asyncio.Event()  # nothing is left to do, and what was said has left
        self._closed = asyncio.Event()
        self.exit_code = 0
        self.disk = disk
        self.clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._ending = False
        self._bytes = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # -- what a kind says --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def store(self) -> FollowerStore | None:
        """The file, once it is open."""

    @abstractmethod
    def on_open(
        self, directory: str, shard: int, first: int, head: int, suspect: bool, options: tuple[Any, ...]
    ) -> tuple[FollowerStore, list[str]]:
        """Opens the file, and brings it into a journal that holds the batches `first` to `head`; also remarks."""

    @abstractmethod
    def on_batch(self, position: int, payload: bytes) -> None:
        """Takes the batch after the last one, and sees to it that it is committed soon."""

    @abstractmethod
    def on_ask(self, number: int, question: tuple[Any, ...]) -> None:
        """Answers a question, or refuses it, now or later."""

    @abstractmethod
    def flush(self) -> bool:
        """Commits what was taken; False where there is nothing."""

    def owes(self) -> int:
        """How many things this follower has still to do before its shard may go."""
        return 0

    async def finish(self) -> None:
        """Ends what the kind has under way, before its file is closed."""
        return

    # -- the wire ----------------------------------------------------------------------------------------------------

    def wire(self) -> Wire:
        """The protocol for the worker's end."""
        return Wire(self._on_frame, self._on_closed, self._on_connected, say.to_follower)

    def _on_connected(self, wire: Wire) -> None:
        self._wire = wire

    def _on_frame(self, wire: Wire, message: say.ToFollower) -> None:
        if self._ending:
            return
        try:
            match message:
                case say.Batch():
                    assert self.store is not None, "a batch before Open"
                    self._bytes += len(message.payload)
                    self.on_batch(message.position, message.payload)
                case say.Ask():
                    assert self.store is not None, "a question before Open"
                    self.on_ask(message.number, message.question)
                case say.Settle():
                    self.checkpoint()
                case say.Open():
                    self._on_open(message)
                case say.Close():
                    self.end(None)
                case _:
                    assert_never(message)
        except Exception as error:
            self.end(error)

    def _on_open(self, order: say.Open) -> None:
        assert self.store is None, "opened twice"
        try:
            private_directory(self.disk, order.directory)
        except FileExistsError:  # the follower of another shard made it just now
            private_directory(self.disk, order.directory)
        store, remarks = self.on_open(
            order.directory, order.shard_id, order.first, order.head, order.suspect, order.options
        )
        self._send(say.Opened(store.position, remarks))
        self.tell_reached()

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self._closed.set()
        self.end(None)

    def _send(self, message: say.ToWorker) -> None:
        if self._wire is not None:
            self._wire.send(message)

    def answer(self, number: int, answer: Any) -> None:
        """Answers a question."""
        self._send(say.Answer(number, answer))

    def refuse(self, number: int, reason: str) -> None:
        """Refuses a question."""
        self._send(say.Refused(number, reason))

    def tell(self, figures: dict[str, Any]) -> None:
        """Tells the operator's figures."""
        self._send(say.Told(figures))

    def remark(self, text: str) -> None:
        """Says something for the operator's log."""
        self._send(say.Remark(text))

    def pass_on(self, record: logging.LogRecord) -> bool:
        """Hands a record of the log over; False where nobody is there to take it. Values that are neither numbers nor
        text go as their text, and what was raised as that of the words.
        """
        if self._wire is None:
            return False
        words, values = "%s", tuple[int | float | str, ...]((_PLAIN.format(record),))
        if not record.exc_info and isinstance(record.args, tuple):
            words = str(record.msg)
            values = tuple(one if isinstance(one, int | float | str) else str(one) for one in record.args)
        self._send(say.Logged(record.levelno, record.name, words, values))
        return True

    def tell_reached(self) -> None:
        """Tells how far the file is."""
        if (store := self.store) is not None:
            self._send(say.Reached(store.position, self._bytes, store.durable, self.owes()))

    # -- work that waits ---------------------------------------------------------------------------------------------

    @property
    def is_ending(self) -> bool:
        """Whether nothing is begun any more."""
        return self._ending

    def later(self, name: str, delay_s: float, work: Callable[[], object]) -> None:
        """Calls `work` once, in so many seconds, unless work of this name is ahead already. Trouble with it ends the
        process, as trouble with a message does.
        """
        if name in self._timers or self._ending:
            return

        def fire() -> None:
            self._timers.pop(name, None)
            if not self._ending:
                try:
                    work()
                except Exception as error:
                    self.end(error)

        self._timers[name] = self._loop.call_later(delay_s, fire)

    def cancel(self, name: str) -> None:
        """No work of this name is ahead."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def checkpoint(self) -> bool:
        """Commits what was taken, makes it durable and proves it; False where that has to wait, and comes later."""
        store = self.store
        assert store is not None
        self.cancel("checkpoint")
        self.flush()
        is_proved = store.checkpoint()
        if not is_proved:
            self.later("checkpoint", CHECKPOINT_RETRY_S, self.checkpoint)
        self.tell_reached()
        return is_proved

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """Ends the process; without an error in good order. What was handed over is durable in the journal, so it is
        committed whoever is still there to hear of it.
        """
        if self._ending:
            return
        self._ending = True
        for timer in self._timers.values():
            timer.cancel()
        self._loop.create_task(self._finish(error))

    async def _finish(self, error: BaseException | None) -> None:
        try:
            await self.finish()
            if error is None and self.store is not None:
                self.flush()
                self.store.close()
                self.tell_reached()
        except Exception as trouble:
            error = error or trouble
        if error is not None:
            self.exit_code = code_of(error)
            self._send(say.Failed(self.exit_code, reason_of(error)))
        if self._wire is not None:
            self._wire.part()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), LAST_WORDS_S)
        self.ended.set()


class ToWorker(logging.Handler):
    """Hands what is logged on the loop to the worker; what nobody there takes goes to standard error as it stands."""

    def __init__(self, follower: Follower) -> None:
        super().__init__()
        self._follower = follower
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread or not self._follower.pass_on(record):
            sys.stderr.write(f"{_PLAIN.format(record)}\n")


async def serve(connection: socket.socket, make: Callable[[], Follower]) -> int:
    """A follower's life, on a wire to its worker; its exit code."""
    connection.setblocking(False)
    follower = make()
    await asyncio.get_running_loop().create_connection(follower.wire, sock=connection)
    await follower.ended.wait()
    return follower.exit_code


def run(descriptor: int, niceness: int, make: Callable[[], Follower]) -> None:
    """The main function of a follower's process, which ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(niceness)

    def logging_to_worker() -> Follower:
        follower = make()
        logging.basicConfig(handlers=[ToWorker(follower)], level=logging.INFO)
        return follower

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(serve(socket.socket(fileno=descriptor), logging_to_worker))
        if code:
            os._exit(code)  # not by way of the interpreter's end, which would close the file
