"""One connection of the HTTP door: bytes in by aiohttp's parser, one request at a time, whole answers out.

The connection passes a request to the `Site` as soon as its head has come. The request is carried out as a call of the
connection's `Session`, as at any other door, and a callback writes the answer once the reply is durable. No task,
future or response object is made for a request: those would cost more than all the rest of a call.

    RESTING    no request is under way; part of a head may have come
    READING    the site waits for the body of the request, which is not whole yet
    ANSWERING  the request is being carried out, or its answer streamed
    SKIPPING   the request is answered; the rest of its body is read and dropped
    OVER       the last answer is written; what still comes is dropped until the client closes

What a connection guarantees:

- **One request is in flight at a time**, and answers leave in the order of their requests. Meanwhile the connection
  parses one further read, at most `QUEUE_MAX` requests of it, and then reads nothing until the queue is empty.
- **While a client does not read its answers, no further request is carried out**; the client is dropped after
  `write_stall_ns`.
- **A head and its body together have `frame_deadline_ns` to come**; a body that the site does not want has `linger_ns`,
  and so has the client to read why its connection ends. An idle connection is closed after `IDLE_S`.
- **A client that half-closes its connection gets the answers to its whole requests**, which TLS does not let.
- **Bytes that are no HTTP get one problem, and the connection ends.** The parser refuses requests that two parsers
  could read differently.

Connections count for `connections_max` and its limit per origin, together with those of the other doors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion10, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from billing.api.auth import Grant
from billing.api.calling import Session
from billing.api.door import Door
from billing.api.http.answers import Answer
from billing.api.origins import is_loopback, is_unix, origin_of
from billing.api.wire import FRAME_BYTES_MAX
from billing.ledger.errors import Refused

BODY_BYTES_MAX: Final = FRAME_BYTES_MAX
IDLE_S: Final = 75.0
QUEUE_MAX: Final = 32
_STREAM_BYTES: Final = 1 << 20  # of a body within the parser, which never holds more than one read

RESTING: Final = 0
READING: Final = 1
ANSWERING: Final = 2
SKIPPING: Final = 3
OVER: Final = 4

_TOKENS: Final = 2**32

Then = Callable[[object], None]  # called with the reply to a call


class Site(Protocol):
    """The part of the door that a connection needs."""

    door: Door
    unheld: Unheld

    def on_request(self, connection: HttpConnection, message: RawRequestMessage, /) -> None:
        """Answers a request whose head has come, now or later."""

    def refusal(self, refused: Refused, status: int = 0, /) -> Answer:
        """Returns a refusal as an answer."""


class Unheld(BaseProtocol):
    """The protocol that aiohttp's bodies pause. It does nothing: a connection pauses its client itself."""

    def pause_reading(self) -> None:
        """Does nothing: a body never holds more than one read."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Does nothing: reading was not paused."""


class HttpConnection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        *("_body", "_held", "_idle", "_is_ending", "_is_followed", "_is_last", "_message", "_offered", "_on_body"),
        *("_origin", "_parser", "_payload", "_queue", "_reading_since_ns", "_rested_ns", "_resumed", "_site"),
        *("_stalled_since_ns", "_state", "_stream", "_then", "_token", "_transport"),
        *("by_loopback", "door", "greeted", "is_half_closed", "session"),
    )

    def __init__(self, site: Site) -> None:
        self.door = site.door
        self.session = Session(site.door, self._on_reply)
        self.greeted: Grant | None = None
        self.by_loopback = False
        self.is_half_closed = False  # the client will send nothing more, and may still read
        self._site = site
        self._origin = ""
        self._transport: asyncio.Transport | None = None
        self._parser = self._new_parser()
        self._queue: deque[tuple[RawRequestMessage | None, StreamReader]] = deque()  # None: no HTTP
        self._state = RESTING
        self._message: RawRequestMessage | None = None  # the request under way
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._offered: StreamReader | None = None  # the body of a request that offers another protocol
        self._is_followed = False  # whether bytes may have come after that request
        self._body: list[bytes] = []  # the pieces so far of a body that did not come whole
        self._on_body: Callable[[bytes], None] | None = None  # called with the body once it is whole
        self._then: Then | None = None  # called with the reply to the newest call
        self._token = 0  # of the newest call
        self._stream: asyncio.Task[None] | None = None
        self._is_last = False  # the connection ends after the request under way: the request or its answer says so
        self._is_ending = False  # the daemon ends the connection
        self._held = False  # reading is paused
        self._resumed: asyncio.Future[None] | None = None
        self._reading_since_ns = 0  # since when a request is unfinished; 0: none is
        self._stalled_since_ns = 0  # since when the client leaves too much unread; 0: it does not
        self._rested_ns = 0  # since when nothing is under way
        self._idle: asyncio.TimerHandle | None = None

    def _new_parser(self) -> HttpRequestParser:
        return HttpRequestParser(
            self._site.unheld,
            asyncio.get_running_loop(),
            _STREAM_BYTES,
            auto_decompress=False,
            max_msg_queue_size=QUEUE_MAX,
        )

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, grant: Grant, name: bytes, params: list[Any], then: Then) -> None:
        """Carries out a call; `then` is called with its reply."""
        session = self.session
        if session.grant is not grant:
            session.grant = grant
        self._token = token = (self._token + 1) % _TOKENS
        self._then = then
        self._reading_since_ns = 0
        session.arrived()
        session.call(token, name, params)

    def _on_reply(self, token: int, reply: object) -> None:
        then = self._then
        if token == self._token and then is not None:
            self._then = None
            then(reply)

    # -- requests ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Takes further bytes of one request, or of several."""
        state = self._state
        if state == OVER:
            return
        self._feed(data)
        if state == RESTING:
            if not self._queue:
                self._watch_reading()
            elif not self._stalled_since_ns:
                self._take()
        elif state == READING:
            self._read_body()
        elif state == SKIPPING:
            self._skip_body()
        if self._queue or state == ANSWERING:
            self._hold()

    def _feed(self, data: bytes) -> None:
        offered = self._offered
        if offered is not None and offered.is_eof():
            self._is_followed = self._is_followed or bool(data)
            return
        try:
            messages = self._parser.feed_data(data)[0]
        except HttpProcessingError:
            self._queue.append((None, EMPTY_PAYLOAD))
            return
        if messages:
            self._queue.extend(messages)
            message, payload = messages[-1]
            if message.upgrade:
                self._offered, self._is_followed = payload, not _ends(data, message)

    def _watch_reading(self) -> None:
        """Starts the deadline of a request that has begun and is not whole."""
        if not self._reading_since_ns:
            self._reading_since_ns = self.door.clock()
            self.door.watch(self)

    def _hold(self) -> None:
        """Pauses reading."""
        if not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def _read_again(self) -> None:
        """Resumes reading after `_hold`."""
        if self._held and self._transport is not None:
            self._held = False
            self._transport.resume_reading()

    def _go_on(self) -> None:
        """Takes the next request of the queue, or resumes reading where the queue is empty."""
        if self._state != RESTING or self._stalled_since_ns:
            return
        if self._held and not self._queue:
            self._feed(b"")  # the parser may have been full
        if self._queue:
            self._take()
        elif self.is_half_closed:
            self._part(lingers=False)
        else:
            self._read_again()

    def _take(self) -> None:
        """Passes the oldest request of the queue to the site; answers bytes that are no HTTP with a problem."""
        message, payload = self._queue.popleft()
        self._state = ANSWERING
        if message is None:
            self._is_last = True
            self.door.drops += 1
            refusal = Refused("PROTOCOL_ERROR", "this is no HTTP request that the door takes")
            self.door.note_error(refusal)
            self.answer(self._site.refusal(refusal, 400))
            return
        self._parser.message_consumed()
        self._message, self._payload = message, payload
        # HTTP/1.0 has no chunks: a client that sends them all the same gets no second request read (RFC 9112, 6.1).
        self._is_last = message.should_close or (message.chunked and message.version == HttpVersion10)
        if message.upgrade:
            self._pass_by_upgrade(message)
        if payload.is_eof():
            self._reading_since_ns = 0
        elif hdrs.EXPECT in message.headers:
            self._is_last = True  # unless the site asks for the body: nobody knows whether an unasked one comes
        self._site.on_request(self, message)

    def _pass_by_upgrade(self, message: RawRequestMessage) -> None:
        """Stays with HTTP/1.1 where the request offers another protocol, if no bytes follow the request. The parser
        takes all bytes that follow for the other protocol: a request among them would get no answer, or that to another
        request. So the connection then ends after this request.
        """
        if message.method == "CONNECT" or self._is_followed or not self._payload.is_eof():
            self._is_last = True
        else:
            self._offered = None
            self._parser = self._new_parser()

    # -- bodies -----------------------------------------------------------------------------------------------------

    @property
    def has_body(self) -> bool:
        """Whether the request under way has a body, which may be empty."""
        return self._payload is not EMPTY_PAYLOAD

    def whole_body(self) -> bytes | None:
        """Returns the body of the request under way if it has come whole, as most do; None if it has not."""
        payload = self._payload
        return payload.read_nowait() if payload.is_eof() else None

    def wait_for_body(self, then: Callable[[bytes], None], *, expected: bool) -> None:
        """Calls `then` with the body once it is whole. `expected`: whether the client waits for `100 Continue` before
        it sends the body.
        """
        message = self._message
        if expected and self._transport is not None and message is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._is_last = message.should_close or message.upgrade
        self._on_body = then
        self._body = [self._payload.read_nowait()]
        self._state = READING
        self._watch_reading()

    def _read_body(self) -> None:
        payload, body, then = self._payload, self._body, self._on_body
        assert then is not None, "a body is read that nobody wants"
        body.append(payload.read_nowait())
        if payload.total_bytes > BODY_BYTES_MAX or payload.is_eof():
            self._reading_since_ns = 0
            self._body, self._on_body = [], None
            self._state = ANSWERING
            then(b"".join(body))
        elif self._queue:  # the body broke off with bytes that are no HTTP
            self._body, self._on_body = [], None
            self._payload = EMPTY_PAYLOAD
            self._take()

    def _skip_body(self) -> None:
        self._payload.read_nowait()
        if self._payload.is_eof() or self._queue:
            self._finish()

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Writes the whole answer to the request under way."""
        transport, message = self._transport, self._message
        if transport is None or self._state == OVER:
            return
        is_last = self._is_last = self._is_last or answer.is_last or self._is_ending
        if is_last:
            ending = b"Connection: close\r\n\r\n"
        elif message is not None and message.version == HttpVersion10:
            ending = b"Connection: keep-alive\r\n\r\n"
        else:
            ending = b"\r\n"
        is_bare = message is not None and message.method == "HEAD"
        transport.write(answer.head + ending + (b"" if is_bare else answer.body))
        self._finish()

    def stream(self, work: Coroutine[Any, Any, None]) -> None:
        """Answers the request under way by a task, which calls `end_stream`."""
        self._reading_since_ns = 0
        self._stream = asyncio.get_running_loop().create_task(work)

    def write(self, data: bytes) -> None:
        """Writes a piece of a streamed answer."""
        if self._transport is not None and self._state != OVER:
            self._transport.write(data)

    def end_stream(self, *, is_last: bool) -> None:
        """Ends a streamed answer. `is_last`: only the end of the connection marks the end of the answer."""
        self._is_last = self._is_last or is_last
        self._stream = None
        if self._state != OVER:
            self._finish()

    def _finish(self) -> None:
        """Ends the request under way, which is answered: skips the rest of its body first, then closes the connection
        or takes the next request.
        """
        loop = asyncio.get_running_loop()
        self._rested_ns = self.door.clock()
        self._reading_since_ns = 0
        if not self._payload.is_eof() and self._state != SKIPPING:
            self._state = SKIPPING
            self._payload.read_nowait()
            self._read_again()
            loop.call_later(self._linger_s(), self._part_from, self._message)
            return
        is_wished = self._is_ending or (self._message is not None and self._message.should_close)
        self._message, self._payload = None, EMPTY_PAYLOAD
        self._state = RESTING
        if self._is_last or self._is_ending:
            self._part(lingers=not is_wished)
        elif self._queue or self._held or self.is_half_closed:
            loop.call_soon(self._go_on)  # not at once: the worker may be calling, and must not be called from within

    # -- the end ----------------------------------------------------------------------------------------------------

    def _linger_s(self) -> float:
        return self.door.limits.linger_ns / 10**9

    def _part_from(self, message: RawRequestMessage | None) -> None:
        """Closes the connection if the rest of this request's body has not come."""
        if self._state == SKIPPING and self._message is message:
            self._part(lingers=False)

    def _part(self, *, lingers: bool) -> None:
        """Closes; with `lingers` only after the client has had time to read why, because a reset would discard that."""
        transport = self._transport
        self._state = OVER
        self._reading_since_ns = 0
        self._queue.clear()
        if transport is None:
            return
        if not lingers or transport.is_closing() or not transport.can_write_eof():
            transport.close()
            return
        self._read_again()
        transport.write_eof()
        asyncio.get_running_loop().call_later(self._linger_s(), transport.close)

    def _give_up(self, refusal: Refused, status: int = 0, *, lingers: bool = True) -> None:
        """Writes a refusal, whatever is under way, and closes."""
        self.door.drops += 1
        self.door.note_error(refusal)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            answer = self._site.refusal(refusal, status)
            transport.write(answer.head + b"Connection: close\r\n\r\n" + answer.body)
        self._part(lingers=lingers)

    # -- the transport ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets the connection in, or turns it away."""
        self._transport = cast(asyncio.Transport, transport)
        door, limits, loop = self.door, self.door.limits, asyncio.get_running_loop()
        self._origin = origin_of(transport)
        here = door.origins.enter(self._origin)
        door.connections.add(self)
        self.greeted = door.guard.greet(transport)
        self.by_loopback = is_loopback(transport) and not is_unix(transport)
        self._rested_ns = self.door.clock()
        self._idle = loop.call_later(IDLE_S, self._on_idle)
        if limits.connections_per_origin_max and here > limits.connections_per_origin_max:
            self._turn_away("too many from there")
        elif len(door.connections) > limits.connections_max:
            self._turn_away("too many in all")

    def _turn_away(self, why: str) -> None:
        self.door.origins.turned_away(self._origin, why, self.door.clock())
        self._give_up(Refused("TOO_MANY_CONNECTIONS", "try again later"), lingers=False)

    def _on_idle(self) -> None:
        rested_s = (self.door.clock() - self._rested_ns) / 10**9 if self._state == RESTING else 0.0
        if rested_s < IDLE_S:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S - rested_s, self._on_idle)
        elif self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool:
        """Returns whether the connection stays open because whole requests of the client are to be answered."""
        self.is_half_closed = True
        waits = self._state == ANSWERING or (self._state == RESTING and bool(self._queue))
        return waits and self._transport is not None and self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Removes the connection from the door, and cancels its stream."""
        if self in self.door.connections:
            self.door.connections.discard(self)
            self.door.origins.leave(self._origin)
        self._state, self._transport, self._then, self._on_body = OVER, None, None, None
        self._queue.clear()
        if self._idle is not None:
            self._idle.cancel()
        if self._stream is not None:
            self._stream.cancel()

    def pause_writing(self) -> None:
        """Notes that the client does not read."""
        self._stalled_since_ns = self.door.clock()
        self._resumed = asyncio.get_running_loop().create_future()
        self.door.watch(self)

    def resume_writing(self) -> None:
        """Notes that the client reads again, and goes on."""
        self._stalled_since_ns = 0
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None
        self._go_on()

    async def drained(self) -> None:
        """Returns once the client has read most of what was written."""
        if self._resumed is not None:
            await asyncio.shield(self._resumed)

    # -- called by the door, for every connection -------------------------------------------------------------------

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends the connection if a deadline has passed; returns whether a deadline is still to be watched."""
        limits = self.door.limits
        if self._transport is None:
            return False
        if self._stalled_since_ns and now_ns - self._stalled_since_ns >= limits.write_stall_ns:
            self.door.drops += 1
            self.abort()
        elif self._reading_since_ns and now_ns - self._reading_since_ns >= limits.frame_deadline_ns:
            self._give_up(Refused("PROTOCOL_ERROR", "a request was left unfinished"), 408)
        return bool(self._stalled_since_ns or self._reading_since_ns)

    @property
    def origin(self) -> str:
        """The origin by which the connection is counted."""
        return self._origin

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be written any more."""
        return self._transport is None or self._transport.is_closing()

    @property
    def is_ending(self) -> bool:
        """Whether the connection closes once its request is answered, because the daemon ends it."""
        return self._is_ending

    def granted(self) -> Grant | None:
        """As `billing.api.door.Client`: the grant of the connection. A token is checked with each request instead."""
        return self.greeted

    def end(self, last_words: bytes) -> None:
        """Closes: after the answer while a request is being carried out, else at once."""
        self._is_ending = True
        if self._state != ANSWERING:
            self._part(lingers=False)

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()


def _ends(data: bytes, message: RawRequestMessage) -> bool:
    """Whether a read surely ends with this request. False for a chunked body and for a head that came in pieces, behind
    which further bytes may be hidden.
    """
    if message.chunked or data.count(b"\r\n\r\n") != 1:
        return False
    return len(data.partition(b"\r\n\r\n")[2]) == int(message.headers.get("Content-Length", "0"))
