"""Writes the replies of one connection: decides when they leave, and how the connection ends.

`billing.api.response_writer` encodes the replies; this module writes them and handles clients that do not read.

A connection ends in this order: the daemon stops reading it; every request is answered; the last words (the one error
after garbage) are written; the sending half is closed; the connection is closed when the client has closed too, or
after `linger_ns`. Closing at once with unread bytes in the kernel would reset the connection, and the client would lose
the replies.

A client that leaves more than `write_buffer_bytes_max` of replies unread is not read either, and is dropped after
`write_stall_ns`. Such a client costs memory for its requests in flight, and these are few until it has shown that it
reads (**the trial**: at most `trial_in_flight_max` requests until `trial_bytes` of replies have left the write buffer).
The transport never waits, neither for a client nor for a timer of its own.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from billing.api.auth import Grant
from billing.api.door import Door
from billing.api.latency import Reads
from billing.api.response_writer import OPEN, PARTED, PROMPT_BYTES_MAX, ResponseWriter
from billing.api.wire import encode_reply
from billing.ledger.errors import Refused


class ResponseTransport(asyncio.BufferedProtocol, ABC):
    """The part of a connection that the gate calls with replies. The token of an answer is the msgid of its request.
    `NAME`: the name of the door in figures.
    """

    NAME = "msgpack_rpc"
    __slots__ = (
        "_counted",
        "_door",
        "_ending_since_ns",
        "_eof",
        "_frame_since_ns",
        "_grant",
        "_held",
        "_opened_ns",
        "_origin",
        "_reads",
        "_stalled_since_ns",
        "_transport",
        "_writer",
        "_written",
        "answer",
        "relay",
    )

    def __init__(self, door: Door) -> None:
        self._writer = ResponseWriter(door.note_error)
        # The gate calls these once per request: as the writer's own methods, they cost no call in between.
        self.answer: Callable[[Any, object], None] = self._writer.answer
        self.relay: Callable[[bytes], None] = self._writer.relay
        self._counted = 0  # the requests in flight that the door has counted
        self._written = 0  # bytes of replies handed to the transport
        self._reads = Reads()
        self._door = door
        self._transport: asyncio.Transport | None = None  # None: not yet or no longer connected
        self._grant: Grant | None = None  # None: the client has to sign in
        self._opened_ns = 0
        self._origin = ""  # the origin by which the connection is counted
        self._stalled_since_ns = 0  # since when the client leaves too much unread; 0: it does not
        self._held = False  # not all that was read is decoded
        self._frame_since_ns = 0  # when the unfinished frame began; 0: there is none, or the daemon has stopped reading
        self._ending_since_ns = 0  # when the connection began to end, or wrote its last words
        self._eof = False

    # -- called by the gate -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> int:
        """How errors are encoded for this client."""
        return self._writer.mode

    def flush(self) -> None:
        """Writes the staged replies, whose effects are durable."""
        if data := self._writer.durable():
            self._write(data)
        self._note_left()

    def relay_flush(self) -> None:
        """Writes the relayed replies."""
        if data := self._writer.relayed():
            self._write(data)
        self._note_left()

    def refuse(self, token: Any, reply: object) -> None:
        """Writes a reply that depends on nothing stored."""
        writer = self._writer
        writer.refuse(token, reply)
        self._write_prompt()
        self._reads.answered(self._door.clock(), writer.in_flight, self._door.latency, self.NAME)
        self._count()
        if self._held or writer.state is not OPEN:
            self._settle()

    def discount(self, count: int) -> None:
        """Subtracts `count` from the requests in flight; these get no reply of their own."""
        self._writer.in_flight -= count

    def _write(self, data: bytearray) -> None:
        if self._transport is not None:
            self._written += len(data)
            self._transport.write(data)

    def _note_left(self) -> None:
        """Counts the requests whose replies have left as answered, and resumes the reading that waited for this."""
        door, in_flight = self._door, self._writer.in_flight
        reads = self._reads
        if reads.under_way:
            reads.answered(door.clock(), in_flight, door.latency, self.NAME)
        if in_flight != self._counted:  # as `_count` does, without the call
            door.in_flight += in_flight - self._counted
            self._counted = in_flight
        if self._held or self._writer.state is not OPEN:
            self._settle()

    def _count(self) -> None:
        """Updates the door's count of requests in flight."""
        in_flight = self._writer.in_flight
        self._door.in_flight += in_flight - self._counted
        self._counted = in_flight

    # -- the door's own replies -------------------------------------------------------------------------------------

    def _reply(self, msgid: int, reply: object) -> bool:
        """Stages a reply of the door itself; returns False where the client has to read first."""
        self._writer.reply(msgid, reply)
        self._write_prompt(PROMPT_BYTES_MAX)
        return not self._stalled_since_ns

    def _write_prompt(self, least_bytes: int = 1) -> None:
        if data := self._writer.prompt(least_bytes):
            self._write(data)

    # -- flow control -----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._stalled_since_ns = self._door.clock()
        self._frame_since_ns = 0
        self._door.watch(self)
        if self._transport is not None and self._writer.state is OPEN:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled_since_ns = 0
        if self._transport is not None and self._writer.state is OPEN:
            self._read_on()

    @abstractmethod
    def _read_on(self) -> None:
        """Resumes decoding the input that was held back, and reading."""

    @abstractmethod
    def _forget_input(self) -> None:
        """Drops the input, which will not be decoded any more."""

    # -- the end ----------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool:
        """Keeps the connection of a client that half-closed it until everything is answered, which TLS does not let."""
        self._eof = True
        if self._writer.state is PARTED:
            return False
        if self._writer.state is OPEN:
            self.end(b"")
        return self._transport is not None and self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connections.discard(self)
        self._door.origins.leave(self._origin)
        if self._grant is None and self._writer.state is OPEN:
            self._door.handshakes -= 1
        self._transport = None
        self._forget_input()
        self._writer.clear()

    def _give_up(self, refusal: Refused) -> None:
        """Ends the connection with one error."""
        self._door.drops += 1
        self._door.note_error(refusal)
        self.end(encode_reply(None, self.mode, refusal))

    def granted(self) -> Grant | None:
        """Returns the grant of this client; None where it has not signed in."""
        return self._grant

    def end(self, last_words: bytes) -> None:
        """Stops reading; once every request is answered, writes `last_words` and closes."""
        if self._writer.state is not OPEN or self._transport is None:
            return
        if self._grant is None:
            self._door.handshakes -= 1
        self._writer.end(last_words)
        self._ending_since_ns = self._door.clock()
        self._forget_input()
        self._door.watch(self)
        if not self._eof:
            self._transport.pause_reading()
        self._settle()

    def _settle(self) -> None:
        """Resumes reading after replies have left; an ending connection closes if every request is answered."""
        if self._writer.state is OPEN:
            self._read_on()
        elif self._writer.is_over:
            self._part()

    def _part(self) -> None:
        last_words = self._writer.last_words()
        self._ending_since_ns = self._door.clock()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if last_words:
            transport.write(last_words)
        if self._eof or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            transport.resume_reading()  # what comes until the client closes is dropped

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends the connection where a deadline has passed; returns whether a deadline is still to be watched."""
        transport, limits = self._transport, self._door.limits
        if transport is None:
            return False
        if self._writer.state is not OPEN:
            patient = self._writer.state is not PARTED or transport.get_write_buffer_size() > 0
            if now_ns - self._ending_since_ns >= (limits.write_stall_ns if patient else limits.linger_ns):
                transport.abort()
        elif self._stalled_since_ns and now_ns - self._stalled_since_ns >= limits.write_stall_ns:
            self._door.drops += 1
            transport.abort()
        elif self._grant is None and now_ns - self._opened_ns >= limits.handshake_deadline_ns:
            self._give_up(Refused("UNAUTHENTICATED", "no sign-in in time"))
        elif self._frame_since_ns and now_ns - self._frame_since_ns >= limits.frame_deadline_ns:
            self._give_up(Refused("PROTOCOL_ERROR", "a frame was left unfinished"))
        ends = self._writer.state is not OPEN
        return bool(self._grant is None or ends or self._stalled_since_ns or self._frame_since_ns)


class Proxy:
    """Stands for a connection in a request that counts as several, or that expects no reply (a notification)."""

    __slots__ = ("_connection", "_expects_reply", "_weight", "mode")

    def __init__(self, connection: ResponseTransport, weight: int, expects_reply: bool) -> None:
        self.mode = connection.mode
        self._connection = connection
        self._weight = weight
        self._expects_reply = expects_reply

    def answer(self, token: Any, reply: object) -> None:
        """As `ResponseTransport.answer`."""
        if self._expects_reply:
            self._connection.discount(self._weight - 1)  # the connection's own `answer` counts the last one
            self._connection.answer(token, reply)
        else:
            self._connection.discount(self._weight)

    def flush(self) -> None:
        """As `ResponseTransport.flush`."""
        self._connection.flush()

    def relay(self, data: bytes) -> None:
        """As `ResponseTransport.relay`."""
        if self._expects_reply:
            self._connection.discount(self._weight - 1)
            self._connection.relay(data)
        else:
            self._connection.discount(self._weight)

    def relay_flush(self) -> None:
        """As `ResponseTransport.relay_flush`."""
        self._connection.relay_flush()

    def refuse(self, token: Any, reply: object) -> None:
        """As `ResponseTransport.refuse`."""
        if self._expects_reply:
            self._connection.discount(self._weight - 1)
            self._connection.refuse(token, reply)
        else:
            self._connection.discount(self._weight)
