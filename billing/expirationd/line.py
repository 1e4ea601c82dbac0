"""One connection to an endpoint: at most one request in flight, and the part of its answer that has come.

The owner of a line writes requests with `ask`; the line calls the owner when a status comes (`on_answer`), when a body
that was still to come ends (`on_body`), and when the connection ends (`on_lost`). It calls `done` of the request after
`on_answer`, in the turn of the loop that read the answer. If the connection ends without an answer, it calls `done` in
a later turn, after `on_lost`. Bytes that come without a request end the connection.

In a burst the owner may have lines gather what they have read (`gathers`), and parse it (`take_gathered`) once
everything of this turn is read: after each system call the processor's caches no longer hold the program. The owner has
all gathered bytes parsed before it gives up a call, and a line whose connection ends parses its own first. An idle line
handles bytes at once, because a request that is written after them would be answered by them.

A line makes no decisions: its owner decides how long to wait, and whether to keep the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from billing.expirationd.answer import AnswerReader, Malformed, whole_answer


class Owner(Protocol):
    """The owner of lines, which an `Endpoint` is."""

    loop: asyncio.AbstractEventLoop
    boot_ns: Callable[[], int]  # the boot clock
    is_taking: bool  # several lines parse what they have gathered, one after the other

    def ask(self, line: Line, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        """Writes a request on the line; `on_verdict` is called once, later."""

    def gathers(self, line: Line) -> bool:
        """Whether the line is to parse what it has just read later in this turn; False: at once."""

    def keep(self, line: Line) -> None:
        """Takes back a line on which no request was written, or whose answer was read to its end: it is idle."""

    def end(self, line: Line, why: str) -> None:
        """Ends the exchange that is under way on the line."""

    def on_answer(self, line: Line, answer: AnswerReader, took_ns: int) -> None:
        """A final status came."""

    def on_body(self, line: Line) -> None:
        """The body has been read to its end, or has grown too long."""

    def on_lost(self, line: Line) -> None:
        """The connection has ended."""


Verdict = tuple[int, str, int]  # outcome, error ("" for OK), Retry-After in ns (-1: none)
Done = Callable[[AnswerReader | Exception], None]


class Line(asyncio.Protocol):
    """One connection and its state. Instants are of the boot clock."""

    __slots__ = (
        *("_answered", "_body_max", "_came", "_done", "_lost", "asked_ns", "answer", "asks", "endpoint"),
        *("idle_since_ns", "is_idle", "late", "peer", "proved", "proved_ns", "tired", "transport", "until_ns"),
    )

    transport: asyncio.Transport

    def __init__(self, endpoint: Owner) -> None:
        self.endpoint = endpoint
        self.peer: tuple[str, int] | None = None  # its address; None if the connection had ended at once
        self.idle_since_ns = self.endpoint.boot_ns()
        self.asked_ns = 0  # when the request was written that has no answer yet; 0: there is none
        self.until_ns = 0  # when the line is closed, unless it is idle by then
        self.late = False  # it was closed because its time was over
        self.tired = ""  # why the exchange was ended before its time was over
        self.proved = False  # an answer came on it
        self.proved_ns = 0  # when the first answer came
        self._lost = False
        self._came = b""  # read, and not taken yet
        self.is_idle = True  # no exchange is under way
        self.asks = 0  # how many requests were written
        self.answer: AnswerReader | None = None  # of the request under way, as far as it came; None: nothing came yet
        self._body_max = 0
        self._done: Done | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.peer = transport.get_extra_info("peername")  # a connection of TLS that has ended no longer knows it

    @property
    def usable(self) -> bool:
        """Whether a request may be written on the line: it is open, and no exchange is under way."""
        return self.is_idle and not self._lost and not self.transport.is_closing()

    def ask(self, request: bytes, body_bytes_max: int, done: Done) -> None:
        """Writes a request. `done` is called once, with the answer as far as it came, or with the exception that came
        instead.
        """
        self.answer = None
        self.is_idle = self._answered = False
        self.asks += 1
        self._body_max = body_bytes_max
        self._done = done
        self.asked_ns = self.endpoint.boot_ns()
        self.transport.write(request)

    def rest(self) -> None:
        """Makes the line idle: its answer was read to its end."""
        self.answer = None
        self.is_idle = True
        self.until_ns = 0
        self.idle_since_ns = self.endpoint.boot_ns()

    def close(self) -> None:
        """Closes the connection, whatever is still to come. Bytes that were read before count: the owner has them
        parsed first, or the line does when the connection has ended. This method does not parse them, because the
        receiver of the answer might write a new request on the line that is being closed.
        """
        self.until_ns = 0
        if self._lost:
            return
        if self.asked_ns:
            self.transport.abort()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.is_idle:
            self.transport.abort()  # there is no request that these bytes could answer
        elif self._came:
            self._came += data
        elif self.endpoint.gathers(self):
            self._came = data
        else:
            self._take(data)

    def take_gathered(self) -> None:
        """Parses the bytes that were gathered, if there are any."""
        if self._came:
            data, self._came = self._came, b""
            self._take(data)

    def _take(self, data: bytes) -> None:
        assert not self.is_idle, "it was asked"
        reader = self.answer
        if reader is None:
            self.answer = whole_answer(data, self._body_max)
            if self.answer is not None:
                self._settle(None)
                return
            reader = self.answer = AnswerReader(self._body_max)
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
        if not self.is_idle and not self._answered:
            self._settle(error or ConnectionResetError())
        self.endpoint.on_lost(self)

    def _settle(self, error: Exception | None) -> None:
        """Ends the wait for an answer: its head has come, or will never come."""
        self._answered = True
        done, reader = self._done, self.answer
        self._done = None
        if done is None:
            return
        if reader is None or not reader.status:
            self.endpoint.loop.call_soon(done, error or ConnectionResetError())
            return
        took_ns, self.asked_ns = self.endpoint.boot_ns() - self.asked_ns, 0
        self.endpoint.on_answer(self, reader, took_ns)
        if self._lost:
            self.endpoint.loop.call_soon(done, reader)
        else:
            done(reader)
