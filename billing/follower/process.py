"""What the processes of all followers share: a connection to the process that started them, timers, and an orderly end
(`Process`); and for those of one shard a file that the worker feeds (`Follower`).

The process inherits its connection as a descriptor and ends when the connection closes. It ignores the terminal's
signals: whoever started it handles them. Its log records go over the connection, to a log in the configured format and
of the level that the other end names. Any error with a file ends the process, after it has reported the reason and the
exit code; an error with a question refuses that question alone. After an error the process exits without closing its
files: closing makes SQLite copy its write-ahead log into the file and remove the log, which may be the only good copy.

Each kind of follower implements how its file is opened, how batches and questions are handled, and how long batches may
wait for their commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
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

from billing.follower import messages
from billing.follower.store import FollowerStore, ShardFile, code_of, reason_of
from shards.system.clock import Clocks
from shards.system.disk import Disk, private_directory
from shards.system.links import Decode, Wire

CHECKPOINT_S: Final = 10.0
CHECKPOINT_RETRY_S: Final = 1.0  # after a reader in another process stood in the way
LAST_WORDS_S: Final = 1.0  # for the other end to read the last message and close

_PLAIN: Final = logging.Formatter()


class Process(ABC):
    """A process with one connection, named timers, and an orderly end."""

    def __init__(self, disk: Disk, clocks: Clocks, decode: Decode) -> None:
        """`decode` turns received bytes into messages."""
        self.ended = asyncio.Event()  # set once all work is done and all messages are sent
        self._closed = asyncio.Event()
        self.exit_code = 0
        self.disk = disk
        self.clocks = clocks
        self._decode = decode
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._ending = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # -- implemented by each kind ------------------------------------------------------------------------------------

    @abstractmethod
    def on_message(self, message: Any) -> None:
        """Handles a message from the other end. An exception ends the process."""

    @abstractmethod
    def close(self) -> None:
        """Commits what was taken, makes it durable, and closes all files. Not called after an error."""

    async def finish(self) -> None:
        """Ends the work that is under way, before the files are closed. By default there is none."""
        return

    # -- the wire ----------------------------------------------------------------------------------------------------

    def wire(self) -> Wire:
        """Returns the protocol of the connection."""
        return Wire(self._on_frame, self._on_closed, self._on_connected, self._decode)

    def _on_connected(self, wire: Wire) -> None:
        self._wire = wire

    def _on_frame(self, wire: Wire, message: Any) -> None:
        if self._ending:
            return
        try:
            self.on_message(message)
        except Exception as error:
            self.end(error)

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self._closed.set()
        self.end(None)

    def send(self, message: messages.Message) -> None:
        """Sends a message to the other end, unless the connection is closed."""
        if self._wire is not None:
            self._wire.send(message)

    def tell(self, figures: dict[str, Any]) -> None:
        """Sends figures for the operator."""
        self.send(messages.Told(figures))

    def pass_on(self, record: logging.LogRecord) -> bool:
        """Sends a log record to the other end; False where the connection is closed. Arguments that are neither numbers
        nor text are sent as text. A record with an exception is sent as one formatted text.
        """
        if self._wire is None:
            return False
        template, values = "%s", tuple[int | float | str, ...]((_PLAIN.format(record),))
        if not record.exc_info and isinstance(record.args, tuple):
            template = str(record.msg)
            values = tuple(value if isinstance(value, int | float | str) else str(value) for value in record.args)
        self.send(messages.Logged(record.levelno, record.name, template, values))
        return True

    # -- timers ------------------------------------------------------------------------------------------------------

    @property
    def is_ending(self) -> bool:
        """Whether the process is ending: no new work is begun then."""
        return self._ending

    def later(self, name: str, delay_s: float, work: Callable[[], object]) -> None:
        """Calls `work` once, in `delay_s` seconds, unless a timer of this name is set already. An exception in it ends
        the process, as one in a message does.
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
        """Cancels the timer of this name, if one is set."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """Ends the process: in good order if there is no error. Batches that were handed over are durable in the
        journal, so they are committed even if the worker is gone.
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
            if error is None:
                self.close()
        except Exception as trouble:
            error = error or trouble
        if error is not None:
            self.exit_code = code_of(error)
            self.send(messages.Failed(self.exit_code, reason_of(error)))
        if self._wire is not None:
            self._wire.part()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), LAST_WORDS_S)
        self.ended.set()


class Follower(Process):
    """The process of one shard: one connection to its worker, one file."""

    def __init__(self, disk: Disk, clocks: Clocks) -> None:
        super().__init__(disk, clocks, messages.to_follower)
        self._bytes = 0

    # -- implemented by each kind ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def store(self) -> FollowerStore | None:
        """The file, once it is open."""

    @abstractmethod
    def on_open(self, file: ShardFile, suspect: bool, options: tuple[Any, ...]) -> tuple[FollowerStore, list[str]]:
        """Opens the file, and aligns it with the journal. Returns the store, and remarks for the operator. `suspect`:
        the process before ended on a disk error or on damage; `options`: settings of the kind.
        """

    @abstractmethod
    def on_batch(self, position: int, payload: bytes) -> None:
        """Takes the next batch, and arranges for its commit."""

    @abstractmethod
    def on_ask(self, number: int, question: tuple[Any, ...]) -> None:
        """Answers or refuses a question, at once or later."""

    @abstractmethod
    def flush(self) -> bool:
        """Commits the batches that were taken; False where there are none."""

    def owes(self) -> int:
        """The number of tasks that this follower must still finish before its shard may leave."""
        return 0

    # -- the wire ----------------------------------------------------------------------------------------------------

    def on_message(self, message: messages.ToFollower) -> None:
        match message:
            case messages.Batch():
                assert self.store is not None, "a batch before Open"
                self._bytes += len(message.payload)
                self.on_batch(message.position, message.payload)
            case messages.Ask():
                assert self.store is not None, "a question before Open"
                self.on_ask(message.number, message.question)
            case messages.Settle():
                self.checkpoint()
            case messages.Ping():
                self.tell_reached()
            case messages.LogLevel():
                messages.follow_level(message)
            case messages.Open():
                self._on_open(message)
            case messages.Close():
                self.end(None)
            case _:
                assert_never(message)

    def _on_open(self, order: messages.Open) -> None:
        assert self.store is None, "opened twice"
        make_directory(self.disk, order.directory)
        file = ShardFile(order.directory, order.shard_id, order.first, order.head, self.disk)
        store, remarks = self.on_open(file, order.suspect, order.options)
        self.send(messages.Opened(store.position, remarks))
        self.tell_reached()

    def answer(self, number: int, answer: Any) -> None:
        """Answers a question."""
        self.send(messages.Answer(number, answer))

    def refuse(self, number: int, reason: str) -> None:
        """Refuses a question."""
        self.send(messages.Refused(number, reason))

    def remark(self, text: str) -> None:
        """Sends a text for the operator's log."""
        self.send(messages.Remark(text))

    def tell_reached(self) -> None:
        """Reports the progress of the file."""
        if (store := self.store) is not None:
            self.send(messages.Reached(store.position, self._bytes, store.durable, self.owes()))

    def checkpoint(self) -> bool:
        """Commits what was taken, makes it durable and proves it. Returns False if a reader stood in the way: it is
        then tried again in `CHECKPOINT_RETRY_S`.
        """
        store = self.store
        assert store is not None
        self.cancel("checkpoint")
        self.flush()
        is_proved = store.checkpoint()
        if not is_proved:
            self.later("checkpoint", CHECKPOINT_RETRY_S, self.checkpoint)
        self.tell_reached()
        return is_proved

    def close(self) -> None:
        if self.store is not None:
            self.flush()
            self.store.close()
            self.tell_reached()


def make_directory(disk: Disk, path: str) -> None:
    """Creates the directory of followers' files, unless it exists. Raises DirectoryRefused, OSError."""
    try:
        private_directory(disk, path)
    except FileExistsError:  # another follower made it just now
        private_directory(disk, path)


class ToStarter(logging.Handler):
    """A log handler that sends the records of the loop's thread to the other end. Records of other threads, and those
    that cannot be sent, go to standard error.
    """

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread or not self._process.pass_on(record):
            sys.stderr.write(f"{_PLAIN.format(record)}\n")


async def serve(connection: socket.socket, make: Callable[[], Process]) -> int:
    """Runs a process on a connection to whoever started it, to its end. Returns the exit code."""
    connection.setblocking(False)
    process = make()
    await asyncio.get_running_loop().create_connection(process.wire, sock=connection)
    await process.ended.wait()
    return process.exit_code


def run(descriptor: int, niceness: int, make: Callable[[], Process]) -> None:
    """The main function of a follower's process. Exits at once, without closing files, if the exit code is not 0."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(niceness)
    gc.freeze()  # loaded modules stay: no collection needs to walk them, not even the last one

    def logging_to_starter() -> Process:
        process = make()
        logging.basicConfig(handlers=[ToStarter(process)], level=logging.INFO)
        return process

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(serve(socket.socket(fileno=descriptor), logging_to_starter))
        if code:
            os._exit(code)  # a normal interpreter exit would close the file
