"""One connection to an endpoint: at most one request in flight, and its answer as far as it came.

The owner of a line asks it, and is told of everything else that happens to it: of the status before whoever waits for
it is (`on_answer`), of the end of a body that was still to come (`on_body`), and of the end of the connection
(`on_lost`). Whoever waits hears of an answer in the turn of the loop that read it; of the end without one in a turn of
its own, when the owner has seen to the connection. Bytes that nobody asked for end the connection.

In a burst the owner may gather what lines have read (`gathers`), and have it taken (`take_gathered`) once all of this
turn is read: between two system calls a processor has forgotten the program. Before it gives anything up, the owner has
all of it taken; a line whose connection ends takes it first; and one that is idle takes what comes at once: a request
written behind it would be answered by it.

A line decides nothing: how long to wait, and what becomes of the connection, is its owner's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from billing.expirationd.answer import AnswerReader, Malformed


class Owner(Protocol):
    """Whoever keeps lines."""

    loop: asyncio.AbstractEventLoop
    boot_ns: Callable[[], int]  # the boot clock

    def gathers(self, line: Line) -> bool:
        """Whether what the line has just read is taken later in this turn; False: at once."""

    def keep(self, line: Line) -> None:
        """The line was not asked anything: it is idle again."""

    def end(self, line: Line, why: str) -> None:
        """Ends what is under way on the line."""

    def on_answer(self, line: Line, answer: AnswerReader, took_ns: int) -> None:
        """A final status came."""

    def on_body(self, line: Line) -> None:
        """The body has been read, or has grown too long."""

    def on_lost(self, line: Line) -> None:
        """The connection has ended."""


Done = Callable[[AnswerReader | Exception], None]


class Line(asyncio.Protocol):
    """One connection, and what is known of it."""

    __slots__ = (
        *("_answered", "_came", "_done", "_lost", "_reader", "asked_ns", "endpoint", "idle_since_ns", "late"),
        *("proved", "proved_ns", "tired", "transport", "until_ns"),
    )

    transport: asyncio.Transport

    def __init__(self, endpoint: Owner) -> None:
        self.endpoint = endpoint
        self.idle_since_ns = self.endpoint.boot_ns()
        self.asked_ns = 0  # when the request was written that is not answered yet; 0: there is none
        self.until_ns = 0  # when it is closed, unless it is idle by then
        self.late = False  # it was closed since its time was over
        self.tired = ""  # why it was ended before its time
        self.proved = False  # an answer came on it
        self.proved_ns = 0  # since when
        self._lost = False
        self._came = b""  # read, and not taken yet
        self._reader: AnswerReader | None = None
        self._done: Done | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    @property
    def usable(self) -> bool:
        """Whether a request may be written on it: it is open, and nothing came that nobody asked for."""
        return not self._lost and self._reader is None and not self.transport.is_closing()

    def ask(self, request: bytes, body_bytes_max: int, done: Done) -> None:
        """Writes a request. `done` is called once, with its answer as far as it came, or why there is none."""
        self._reader = AnswerReader(body_bytes_max)
        self._done = done
        self._answered = False
        self.asked_ns = self.endpoint.boot_ns()
        self.transport.write(request)

    @property
    def answer(self) -> AnswerReader | None:
        """The answer that comes or came; None while nothing was asked."""
        return self._reader

    def rest(self) -> None:
        """Its answer was taken whole: it is idle."""
        self._reader = None
        self.until_ns = 0
        self.idle_since_ns = self.endpoint.boot_ns()

    def close(self) -> None:
        """Closes it, whatever is still to come. What was read before counts: the owner has it taken first, else it is
        taken when the connection has ended. Not here: whoever hears of it might ask anew on what is being closed.
        """
        self.until_ns = 0
        if self._lost:
            return
        if self.asked_ns:
            self.transport.abort()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            self.transport.abort()  # nobody asked
        elif self._came:
            self._came += data
        elif self.endpoint.gathers(self):
            self._came = data
        else:
            self._take(data)

    def take_gathered(self) -> None:
        """Takes what was read before, if anything was."""
        if self._came:
            data, self._came = self._came, b""
            self._take(data)

    def _take(self, data: bytes) -> None:
        reader = self._reader
        assert reader is not None, "it was asked"
        try:
            reader.feed(data)
        except Malformed as error:
            self._settle(error)
            self.transport.abort()
            return
        if not self._answered and reader.head_done:
            self._settle(None)
        elif self._answered and reader.done:
            self.endpoint.on_body(self)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.take_gathered()
        self._lost = True
        if self._reader is not None and not self._answered:
            self._settle(error or ConnectionResetError())
        self.endpoint.on_lost(self)

    def _settle(self, error: Exception | None) -> None:
        """The answer is there as far as it decides, or it will not come."""
        self._answered = True
        done, reader = self._done, self._reader
        self._done = None
        assert reader is not None
        if done is None:
            return
        if reader.status:
            took_ns, self.asked_ns = self.endpoint.boot_ns() - self.asked_ns, 0
            self.endpoint.on_answer(self, reader, took_ns)
        if reader.status and not self._lost:
            done(reader)
        else:
            self.endpoint.loop.call_soon(done, reader if reader.status else error or ConnectionResetError())
