"""The connection of one client that speaks Tarantool's protocol.

States: the connection greets its client; before the sign-in the client may send PING, ID and AUTH; after it, the client
calls. A connection that the guard lets in without a token (loopback or a client certificate, as at every door) begins
in the last state. A wrong AUTH, and a call of `hello` with a wrong token, is answered and ends the connection, so that
each connection has one guess; requests that were pipelined behind it are not carried out.

**Bounds.** A packet has at most `frame_bytes_max` bytes, before the sign-in `handshake_bytes_max`; an unfinished
packet and the sign-in have a deadline. While `in_flight_max` calls are unanswered, or the client does not read its
answers, the connection carries out no further request, also of those that it has read, and reads nothing; a client that
does not read for `write_stall_ns` is dropped. In one turn of the loop the connection carries out at most
`TURN_REQUESTS_MAX` requests. Connections count together with those of the other doors.

Calls go to the gate through a `Session`; their replies are encoded into one buffer, which leaves when the batch is
durable.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from billing.api.auth import Grant
from billing.api.calling import Session, packed
from billing.api.door import Door
from billing.api.iproto import protocol
from billing.api.iproto.procedures import TRANSLATED, Called, called
from billing.api.iproto.protocol import AUTH, CALL, CALL_16, ID, PING, SELECT, Decoder, ProtocolError
from billing.api.iproto.protocol import Request as Packet
from billing.api.latency import Reads
from billing.api.origins import origin_of
from billing.api.wire import NOT_TAKEN
from billing.ledger.errors import Refused

INSTANCE: Final = str(uuid.UUID(int=0))  # in the greeting: the daemon has no instances to tell apart
NAME: Final = "tarantool"  # of this door, in the figures
HELLO: Final = b"hello"
GUEST: Final = b"guest"  # its password is empty, as in Tarantool; connectors leave it out, or prove it
_NO_PASSWORD: Final = protocol.proof_of(b"")
TURN_REQUESTS_MAX: Final = 256
OUT_BYTES_MAX: Final = 64 * 1024  # encoded before it is seen whether the client reads
_CALLS: Final = frozenset((CALL, CALL_16))
_TOKENS: Final = 2**32
_ID_BODY: Final = b"\x82\x54\x00\x55\x90"  # VERSION 0, no FEATURES

RandomBytes = Callable[[int], bytes]


class TarantoolConnection(asyncio.Protocol):
    """A protocol for `loop.create_server`."""

    def __init__(self, door: Door, random_bytes: RandomBytes) -> None:
        """`random_bytes`: makes the salt of the greeting."""
        self._door = door
        self._salt = random_bytes(protocol.SALT_BYTES)
        self._session = Session(door, self._on_reply, self._write)
        self._decoder = Decoder()
        self._input: deque[Iterator[Packet]] = deque()  # the requests of each read that are not all carried out
        self._held = False  # requests that were read wait until answers have left, or for the next turn
        self._is_full = False  # too many calls are in flight: half of them are to be answered first
        self._waking = False
        self._eof = False
        self._transport: asyncio.Transport | None = None
        self._origin = ""
        self._out = bytearray()
        self._open: dict[int, tuple[int, bytes, Called | None]] = {}  # token -> (sync, name, call) of open calls
        self._token = 0
        self._reads = Reads()
        self._counts: dict[bytes, int] = {}  # calls of this read that wait for their answer, by method
        self._signed_in = False
        self._guessed = False  # a call of `hello` had a wrong token
        self._ending = False  # nothing more is read
        self._paused = False
        self._reading_since_ns = 0  # since when a packet, or the sign-in, is unfinished; 0: none is
        self._stalled_since_ns = 0  # since when the client leaves too much unread; 0: it does not

    # -- the transport ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets the client, or turns it away."""
        door, limits = self._door, self._door.limits
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(limits.write_buffer_bytes_max)
        self._origin = self._session.origin = origin_of(transport)
        here = door.origins.enter(self._origin)
        door.connections.add(self)
        door.handshakes += 1
        self._transport.write(protocol.greeting(self._salt, INSTANCE))
        self._session.grant = door.guard.greet(transport)
        if self._session.grant is not None:
            self._admit()
        else:
            self._decoder.limit_bytes = limits.handshake_bytes_max
            self._watch()
        if limits.connections_per_origin_max and here > limits.connections_per_origin_max:
            self._turn_away("too many from there")
        elif len(door.connections) > limits.connections_max:
            self._turn_away("too many in all")
        elif not self._signed_in and door.handshakes > limits.handshakes_max:
            self._turn_away("too many not signed in")

    def _turn_away(self, why: str) -> None:
        self._door.origins.turned_away(self._origin, why, self._door.clock())
        self._give_up(protocol.ER_ACCESS_DENIED, str(Refused("TOO_MANY_CONNECTIONS", "try again later")))

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection from the door; the calls of its client are carried out all the same."""
        if self in self._door.connections:
            self._door.connections.discard(self)
            self._door.origins.leave(self._origin)
            if not self._signed_in:
                self._door.handshakes -= 1
        self._transport = None
        self._ending = True
        self._input.clear()

    def eof_received(self) -> bool:
        """Keeps the connection of a client that half-closed it until everything is answered, which TLS does not let."""
        self._eof = True
        if not self._held:
            self.end(b"")
        return self._transport is not None and self._transport.get_extra_info("sslcontext") is None

    def data_received(self, data: bytes) -> None:
        """Carries out the requests that are whole now, as far as the bounds let it."""
        if self._ending:
            return
        self._input.append(self._decoder.feed(data))
        if not self._held:
            self._work()

    def _work(self) -> None:
        """Carries out requests of the input until there are no more or a bound is reached, and writes their answers."""
        self._session.arrived()
        before = len(self._open)
        try:
            self._held = not self._carry_out_all()
        except ProtocolError as error:
            self._held = False
            self._give_up(protocol.ER_INVALID_MSGPACK, f"Invalid MsgPack - {error}")
        if self._held:
            self._pause()
        self._note_unfinished()
        if self._counts:
            self._reads.begin(self._door.clock(), len(self._open) - before, self._counts)
            self._counts = {}
        if self._eof and not self._held and not self._ending:
            self.end(b"")
        else:
            self._write()

    def _carry_out_all(self) -> bool:
        """Carries out the requests of the input; returns False where a bound was reached. Raises ProtocolError."""
        session, out, most = self._session, self._out, self._door.limits.in_flight_max
        left = TURN_REQUESTS_MAX
        while self._input:
            for kind, sync, body in self._input[0]:
                if body is None:
                    if not self._signed_in:
                        raise ProtocolError("this is no MessagePack that is taken")
                    self._reading_since_ns = 0  # another packet has its own deadline
                    self._refuse(sync, Refused("INVALID_PARAMS", NOT_TAKEN))
                elif self._signed_in and kind in _CALLS:
                    self._reading_since_ns = 0  # another packet has its own deadline
                    self._call(kind, sync, body)
                else:
                    self._carry_out(kind, sync, body)
                if self._is_ending():
                    return True
                left -= 1
                self._is_full = session.in_flight >= most
                if self._is_full or not left or len(out) >= OUT_BYTES_MAX or self._stalled_since_ns:
                    return False
            self._input.popleft()
        return True

    def _go_on(self) -> None:
        """Carries out further requests of the input, in a turn of its own."""
        self._waking = False
        if self._held and not self._ending and self._may_go_on():
            self._work()

    def pause_writing(self) -> None:
        """Stops reading, because the client does not read its answers."""
        self._stalled_since_ns = self._door.clock()
        self._door.watch(self)
        self._pause()

    def resume_writing(self) -> None:
        """Resumes reading, because the client reads again."""
        self._stalled_since_ns = 0
        self._resume()

    def _pause(self) -> None:
        if self._signed_in:
            self._reading_since_ns = 0  # what does not come now is not the client's fault
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _may_go_on(self) -> bool:
        if self._is_full:
            self._is_full = self._session.in_flight > self._door.limits.in_flight_max // 2
        return not self._is_full and not self._stalled_since_ns

    def _resume(self) -> None:
        if not self._paused or self._ending or self._transport is None or not self._may_go_on():
            return
        if not self._held:
            self._paused = False
            self._transport.resume_reading()
            self._note_unfinished()
        elif not self._waking:  # not at once: the gate may be calling, and must not be called from within
            self._waking = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _is_ending(self) -> bool:
        return self._ending

    def _note_unfinished(self) -> None:
        if not self._signed_in or (self._decoder.waits and not self._paused):
            if not self._reading_since_ns:
                self._watch()
        else:
            self._reading_since_ns = 0

    def _watch(self) -> None:
        self._reading_since_ns = self._door.clock()
        self._door.watch(self)

    # -- requests ---------------------------------------------------------------------------------------------------

    def _carry_out(self, kind: int, sync: int, body: dict[int, Any]) -> None:
        """Carries out any request but a call of a client that is signed in."""
        if self._signed_in:
            self._reading_since_ns = 0  # another packet has its own deadline
        if kind == AUTH:
            self._auth(sync, body)
        elif kind == PING:
            self._out += protocol.done(sync)
        elif kind == ID:
            self._out += protocol.done(sync, _ID_BODY)
        elif not self._signed_in:
            self._refuse(sync, Refused("UNAUTHENTICATED", "sign in first"))
        elif kind == SELECT:
            self._out += protocol.values(sync, protocol.NO_VALUES)
        else:
            self._out += protocol.error(sync, protocol.ER_UNKNOWN_REQUEST_TYPE, f"Unknown request type {kind}")

    def _call(self, kind: int, sync: int, body: dict[int, Any]) -> None:
        name, params = body.get(protocol.FUNCTION_NAME), body.get(protocol.TUPLE)
        call: Called | None = None
        if type(name) is not bytes or name in TRANSLATED or type(params) is not list or kind == CALL_16:
            try:
                call = called(name, params, in_tuples=kind == CALL_16)
            except Refused as refusal:
                self._refuse(sync, refusal)
                return
            name, params = call.name, call.params
        token = self._token = (self._token + 1) % _TOKENS
        self._open[token] = sync, name, call
        self._session.call(token, name, params)
        if token in self._open:
            self._counts[name] = self._counts.get(name, 0) + 1
        elif self._guessed:
            self._door.drops += 1
            self.end(b"")

    def _auth(self, sync: int, body: dict[int, Any]) -> None:
        """Carries out AUTH: a name of the tokens file, and a proof that the client knows its token."""
        user, credentials = body.get(protocol.USER_NAME), body.get(protocol.TUPLE)
        scramble = None
        if type(credentials) is list and len(credentials) == 2 and credentials[0] == b"chap-sha1":
            scramble = credentials[1] if type(credentials[1]) is bytes else b""
        is_empty = not credentials or (scramble is not None and protocol.proves(scramble, self._salt, _NO_PASSWORD))
        if user == GUEST and is_empty and self._signed_in:
            self._out += protocol.done(sync)
            return
        grant = None
        if type(user) is bytes and scramble is not None:
            grant = self._door.guard.sign_in_as(user, lambda proof: protocol.proves(scramble, self._salt, proof))
        if grant is not None:
            self._session.grant = grant
            self._admit()
            self._out += protocol.done(sync)
            return
        shown = user.decode("utf-8", "replace") if type(user) is bytes else "?"
        text = f"Incorrect password supplied for user '{shown}'"
        self._out += protocol.error(sync, protocol.ER_PASSWORD_MISMATCH, text)
        self._door.note_error(Refused("UNAUTHENTICATED", "this token is not known"))
        self._door.refused_sign_in(self._origin)
        self._door.drops += 1
        self.end(b"")

    def _admit(self) -> None:
        if not self._signed_in:
            self._door.handshakes -= 1
        self._signed_in = True
        self._decoder.limit_bytes = self._door.limits.frame_bytes_max

    # -- replies ----------------------------------------------------------------------------------------------------

    def _on_reply(self, token: int, reply: object) -> None:
        sync, name, call = self._open.pop(token)
        if name == HELLO and type(reply) is Refused and reply.name == "UNAUTHENTICATED":
            self._guessed = True
        if type(reply) is not Refused:
            if call is None:
                self._out += protocol.plain_value(sync, packed(reply))
            else:
                self._out += protocol.values(sync, call.returns(reply))
        elif call is not None and (values := call.refused(reply)) is not None:
            self._out += protocol.values(sync, values)
        else:
            self._out += protocol.refusal(sync, reply, name.decode("utf-8", "replace"))

    def _refuse(self, sync: int, refusal: Refused) -> None:
        self._door.note_error(refusal)
        self._out += protocol.refusal(sync, refusal, "")

    def _write(self) -> None:
        """Writes everything that is encoded; an ending connection closes after its last answer."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._out.clear()
            return
        if self._out:
            transport.write(bytes(self._out))
            self._out.clear()
            if self._reads.under_way:
                self._reads.answered(self._door.clock(), len(self._open), self._door.latency, NAME)
        if self._ending and not self._open:
            transport.close()
        else:
            self._resume()

    def _give_up(self, code: int, message: str) -> None:
        """Ends the connection with an error."""
        self._door.drops += 1
        self._door.note_error(Refused("PROTOCOL_ERROR", message))
        self._out += protocol.error(0, code, message)
        self.end(b"")

    # -- called by the door, for every connection -------------------------------------------------------------------

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends the connection if a deadline has passed; returns whether a deadline is still to be watched."""
        limits = self._door.limits
        if self._transport is None:
            return False
        deadline_ns = limits.frame_deadline_ns if self._signed_in else limits.handshake_deadline_ns
        stalled = self._stalled_since_ns and now_ns - self._stalled_since_ns >= limits.write_stall_ns
        if stalled or (self._reading_since_ns and now_ns - self._reading_since_ns >= deadline_ns):
            self._door.drops += 1
            self.abort()
        return bool(self._stalled_since_ns or self._reading_since_ns)

    def granted(self) -> Grant | None:
        """As `billing.api.door.Client`."""
        return self._session.grant

    def end(self, last_words: bytes) -> None:
        """Stops reading, and closes once every call is answered."""
        self._ending = True
        self._input.clear()
        self._pause()
        self._write()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()


def connection_factory(door: Door, wall_now_ns: Callable[[], int], random_bytes: RandomBytes) -> Callable[[], Any]:
    """Returns the factory of the connections of this worker's clients."""
    return lambda: TarantoolConnection(door, random_bytes)
