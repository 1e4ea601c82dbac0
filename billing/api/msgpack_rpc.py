"""The MessagePack-RPC door: one `Connection` per client.

A read is decoded frame by frame and carried out, with no task, future or await in between: a command is parsed by its
row of the table, the commands of a read are handed to the gate together, and the gate answers once the effect is
durable (see `response_transport`). What the door knows itself (`ping`, a refusal of malformed parameters) is answered
at the end of the read.

A short read is most often one request of a client that waits for each reply. Such reads of all connections are
gathered, and the worker's next turn begins with them: between two system calls a processor has forgotten the program,
and finds it again for all of them together. A read that is one request for a command goes straight through (`_single`);
the way of many costs as much again as the command. It does what that way does, and where anything is out of the
ordinary it leaves the read to it, untouched. Of a connection one short read at most is gathered, and whatever else
happens to it waits until that is carried out.

What it keeps:

- **Exactly one reply per request, none to a notification,** and never a push. Requests are submitted in the order sent.
- **Bounded memory.** At most `in_flight_max` requests of a connection are in flight, after which it is not read, nor
  is what was read decoded further. It is read a slice at a time, into the door's one buffer. An unfinished frame is
  limited in bytes and in time. A connection that rests between two frames owns no decoder and may stay for ever.
- **Overload is said, not suffered.** Where the door is full, or this connection is ahead of its rate (`token_bucket`),
  requests are refused with `BUSY` as they come. The hot path does not ask: it finds no commands then, and whatever is
  not found goes the long way round.
- **One refusal for a value that is not taken**: a request with one is passed over to its end, and refused by its msgid.
- **Garbage harms nobody else.** It gets one error with msgid nil, behind the replies that were still to come, and
  then the connection ends.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from billing.api.auth import Grant, method_of
from billing.api.door import Door, Limits, Request
from billing.api.methods import ANYONE, COMMAND, LOCAL, QUERY, Method, Parser
from billing.api.origins import origin_of
from billing.api.request_reader import NotTaken, RequestReader
from billing.api.response_transport import Proxy, ResponseTransport
from billing.api.response_writer import OPEN
from billing.api.token_bucket import TokenBucket, piece_bytes
from billing.api.wire import (
    ERRORS_AS_MAP,
    ERRORS_AS_STRING,
    MSGID_MAX,
    NOT_TAKEN,
    NOTIFICATION,
    REQUEST,
    SLICE_BYTES_MAX,
)
from billing.ledger.errors import Refused

__all__ = ["Connection", "Door", "Limits"]

SINGLE_BYTES_MAX: Final = 512  # a longer read is most often of several requests
_REFUSED_HERE_MAX: Final = 16  # connections of one origin beyond its limit that are told so
_SIGN_IN: Final = "sign in first: hello({token})"
_FULL: Final = "this worker has too many requests in flight"
_NONE: Final[dict[bytes, Parser]] = {}
_NO_RPC: Final = "expected [0, msgid, method, params] with a msgid of 32 bits unsigned, or [2, method, params]"


class Connection(ResponseTransport):
    """One client of a `Door`: `loop.create_server(lambda: Connection(door), …)`."""

    __slots__ = (
        "_actor",
        "_busy",
        "_commands",
        "_gathered",
        "_on_trial",
        "_read_ns",
        "_reader",
        "_token_bucket",
        "_waking",
        "_window",
    )

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self._actor = b""  # the actor of this client's calls
        self._commands = _NONE  # what this client may call of the hot path
        self._busy = ""  # why requests are refused; empty where they are not
        self._token_bucket: TokenBucket | None = None  # None: as fast as it likes
        self._on_trial = True  # has not shown yet that it reads
        self._window = min(door.limits.trial_in_flight_max, door.limits.in_flight_max)  # requests in flight at most
        self._reader = RequestReader(door, door.limits.handshake_bytes_max)
        self._gathered = b""  # a short read, until the next turn
        self._read_ns = 0  # when what is carried out now was read; 0: just now
        self._waking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door, limits = self._door, self._door.limits
        self._transport = cast(asyncio.Transport, transport)
        self._limit_unread(limits.trial_write_buffer_bytes_max)
        self._opened_ns = door.clock()
        self._origin = origin_of(transport)
        here = door.origins.enter(self._origin)
        door.connections.add(self)
        door.handshakes += 1
        grant = door.guard.greet(transport)
        if grant is not None:
            self._admit(grant)
        else:
            door.watch(self)
        self._turn_away(here, limits.connections_per_origin_max, _REFUSED_HERE_MAX, "too many from there")
        self._turn_away(len(door.connections), limits.connections_max, limits.refused_max, "too many in all")
        if grant is None:
            self._turn_away(door.handshakes, limits.handshakes_max, limits.connections_max, "too many not signed in")

    def _turn_away(self, count: int, most: int, answered_max: int, why: str) -> None:
        """Ends a new connection where it is one too many; `answered_max` of these at once are told so."""
        transport = self._transport
        if not most or count <= most or self._writer.state is not OPEN or transport is None or transport.is_closing():
            return
        self._door.origins.turned_away(self._origin, why, self._opened_ns)
        if count <= most + answered_max:
            self._give_up(Refused("TOO_MANY_CONNECTIONS", "try again later"))
        else:
            self._door.drops += 1
            transport.abort()

    def _limit_unread(self, most_bytes: int) -> None:
        if self._transport is not None:
            most_bytes = min(most_bytes, self._door.limits.write_buffer_bytes_max)
            self._transport.set_write_buffer_limits(most_bytes, most_bytes // 4)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer of the next read, whose bytes are decoded, or kept as a copy, before the read after it."""
        return self._door.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        self.data_received(self._door.read_buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """What the client sent; not kept."""
        if self._gathered:
            self._door.take_gathered()
        if self._writer.state is not OPEN:
            return
        if len(data) <= SINGLE_BYTES_MAX and self._commands:
            self._gathered = bytes(data)
            self._door.gather(self)
        else:
            self._take(data)

    def take_gathered(self, requests: list[Request]) -> None:
        """Carries out a short read, or adds the one command that it is to `requests`."""
        data, self._gathered = self._gathered, b""
        request = self._single(data)
        if request is not None:
            requests.append(request)
        else:
            self._read_ns = self._door.gathered_ns
            self._take(data)
            self._read_ns = 0

    def eof_received(self) -> bool:
        if self._gathered:
            self._door.take_gathered()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._gathered:
            self._door.take_gathered()
        super().connection_lost(exc)

    def end(self, last_words: bytes) -> None:
        if self._gathered:
            self._door.take_gathered()
        super().end(last_words)

    def _take(self, data: bytes | memoryview) -> None:
        if self._held or self._stalled_since_ns:  # a transport may still hand over one read after it was paused
            self._reader.feed(bytes(data))
            self._hold()
            return
        self._reader.feed(data)
        self._work()
        self._write_prompt()

    # -- requests ---------------------------------------------------------------------------------------------------

    def _single(self, data: bytes) -> Request | None:
        """The request that a read is, of a command and within all limits, counted as in flight; None where it is
        anything else, of which nothing is done yet.
        """
        door, writer = self._door, self._writer
        limits = door.limits
        if (
            self._held
            or self._stalled_since_ns
            or limits.requests_per_s_max
            or writer.in_flight + 1 >= self._window  # the one that fills it ends the reading, too
            or (self._on_trial and self._written >= limits.trial_bytes)
            or door.in_flight >= limits.in_flight_total_max
        ):
            return None
        try:
            kind, msgid, method, params = self._reader.single(data)
            parse = self._commands[method]
            if kind is not REQUEST or type(msgid) is not int or not 0 <= msgid <= MSGID_MAX:
                return None
            command = parse(params, self._actor)
        except (TypeError, ValueError, KeyError, Refused):
            return None
        door.calls[method] += 1
        writer.in_flight += 1
        door.in_flight += 1
        self._counted += 1
        self._reads.begin(door.gathered_ns, 1, door.once[method])
        return self, msgid, door.gate.bucket_of(command[1]), command

    def _work(self) -> None:
        """Carries out what is whole of what was fed, until it ends or the connection has to wait."""
        self._door.gate.arrived()
        reader = self._reader
        reader.progressed = False
        try:
            more = reader.has_input
            while more:
                reader.next_slice(self._slice_bytes())
                if not self._advance():
                    if self._writer.state is OPEN:
                        reader.keep()
                        self._hold()
                    return
                more = reader.end_slice()
        except Refused as refusal:  # the stream cannot be followed
            self._give_up(refusal)
            return
        self._note_frame(reader.progressed)

    def _slice_bytes(self) -> int:
        """How much may be decoded at once."""
        limits = self._door.limits
        length = SLICE_BYTES_MAX if self._grant is not None else limits.handshake_bytes_max
        if limits.requests_per_s_max:
            length = min(length, piece_bytes(self._requests_left(limits.requests_per_s_max)))
        return length

    def _advance(self) -> bool:
        """`_drain` within the limits, looked at here once for all that one slice of input holds."""
        door = self._door
        if self._on_trial and self._written >= door.limits.trial_bytes:
            self._try()
        busy = _FULL if door.in_flight >= door.limits.in_flight_total_max and door.is_full() else ""
        per_s_max = door.limits.requests_per_s_max
        if not per_s_max:
            self._busy = busy
            goes_on = self._drain()
        else:
            goes_on = self._drain_within_rate(per_s_max, busy)
        in_flight = self._writer.in_flight
        if in_flight != self._counted:  # as `_count` does, without the call
            door.in_flight += in_flight - self._counted
            self._counted = in_flight
        return goes_on

    def _try(self) -> None:
        """Ends the trial where enough has left for good."""
        limits, transport = self._door.limits, self._transport
        if transport is None:
            return
        if self._written - transport.get_write_buffer_size() >= limits.trial_bytes:
            self._on_trial = False
            self._window = limits.in_flight_max
            self._limit_unread(limits.write_buffer_bytes_max)

    def _requests_left(self, per_s_max: int) -> int:
        """How many requests this connection may make now."""
        now_ns = self._door.clock()
        if self._token_bucket is None:
            self._token_bucket = TokenBucket(now_ns)
        return self._token_bucket.available(now_ns, per_s_max)

    def _drain_within_rate(self, per_s_max: int, busy: str) -> bool:
        """`_drain` where requests a second are limited. All that it carries out, and all that is wrong, counts."""
        door = self._door
        if not self._requests_left(per_s_max):
            busy = busy or f"this connection asks more than {per_s_max} times a second"
        self._busy = busy
        before = sum(door.calls.values()) + sum(door.errors.values())
        goes_on = self._drain()
        if not busy:
            assert self._token_bucket is not None
            self._token_bucket.spend(sum(door.calls.values()) + sum(door.errors.values()) - before, per_s_max)
        return goes_on

    def _drain(self) -> bool:
        """Carries out all whole frames; False where the connection has to wait or to end first."""
        door, before, at_ns = self._door, self._writer.in_flight, self._read_ns or self._door.clock()
        counts: defaultdict[bytes, int] = defaultdict(int)
        goes_on = self._carry_out_all(counts)
        if counts:
            for name, count in counts.items():
                door.calls[name] += count
            self._reads.begin(at_ns, self._writer.in_flight - before, counts)
        return goes_on

    def _carry_out_all(self, counts: dict[bytes, int]) -> bool:
        """`_drain`; counts by method what goes to the gate."""
        commands = _NONE if self._busy else self._commands
        actor = self._actor
        bucket_of = self._door.gate.bucket_of
        requests: list[Request] = []  # what the gate is handed at once, and before anything else is carried out
        room = self._window - self._writer.in_flight
        if room <= 0:
            return False
        for frame in self._reader.frames():
            parse: Parser | None
            try:
                kind, msgid, method, params = frame
                parse = commands[method]
            except (TypeError, ValueError, KeyError):
                parse = None
            # Small integers are one object each; one that were not would go the long way, which compares.
            if parse is None or kind is not REQUEST or type(msgid) is not int or not 0 <= msgid <= MSGID_MAX:
                self._submit(requests)
                if not self._take_other(frame, counts):
                    return False
                commands = _NONE if self._busy else self._commands  # it may have been a sign-in
                actor = self._actor
            else:
                try:
                    command = parse(params, actor)
                except Refused as refusal:
                    if self._reply(msgid, refusal):
                        continue
                    self._submit(requests)
                    return False
                counts[method] += 1
                requests.append((self, msgid, bucket_of(command[1]), command))
                if len(requests) < room:
                    continue
            room = self._submit(requests)
            if room <= 0:
                return False
        self._submit(requests)
        return True

    def _submit(self, requests: list[Request]) -> int:
        """Hands over to the gate what was collected, and empties it; how many more requests may be in flight."""
        if requests:
            self._writer.in_flight += len(requests)
            self._door.submit(requests)
            requests.clear()
        return self._window - self._writer.in_flight

    def _take_other(self, frame: object, counts: dict[bytes, int]) -> bool:
        """Everything but a request for a command that this client may call; True where decoding goes on."""
        if type(frame) is list and len(frame) >= 3 and type(frame[0]) is int:
            if len(frame) == 4 and frame[0] == REQUEST and type(frame[1]) is int and 0 <= frame[1] <= MSGID_MAX:
                try:
                    return self._carry_out(self._method_of(frame[2]), frame[3], frame[1], counts)
                except Refused as refusal:
                    return self._reply(frame[1], refusal)
            if len(frame) == 3 and frame[0] == NOTIFICATION:
                try:
                    return self._carry_out(self._method_of(frame[1]), frame[2], None, counts)
                except Refused:
                    return True  # nobody is told
        if type(frame) is NotTaken:
            return self._refuse_untaken(frame.msgid)
        self._give_up(Refused("PROTOCOL_ERROR", _NO_RPC))
        return False

    def _refuse_untaken(self, msgid: int | None) -> bool:
        """A request with a value that is not taken; a notification (None) only counts."""
        if msgid is None:
            if self._token_bucket is not None:
                self._token_bucket.spend(1, self._door.limits.requests_per_s_max)
            return True
        if self._grant is None:
            return self._reply(msgid, Refused("UNAUTHENTICATED", _SIGN_IN))
        return self._reply(msgid, Refused("INVALID_PARAMS", NOT_TAKEN))

    def _method_of(self, name: object) -> Method:
        method = method_of(name, self._grant, _SIGN_IN)
        if self._busy and (method.kind in (COMMAND, QUERY) or (self._busy is not _FULL and method.role != ANYONE)):
            raise Refused("BUSY", self._busy)
        return method

    def _carry_out(self, method: Method, params: object, msgid: int | None, counts: dict[bytes, int]) -> bool:
        """A request, or with msgid None a notification; True where decoding goes on. Raises Refused."""
        body = method.body(params, self._actor)
        gate = self._door.gate
        if method.kind == LOCAL:  # answered at the end of the read: it has no latency of its own
            self._door.calls[method.name.encode()] += 1
            if method.name == "hello":
                return self._sign_in(body[1], body[2], msgid)
            return self._reply(msgid, self._door.answer_local(method.name, body)) if msgid is not None else True
        counts[method.name.encode()] += 1
        caller: Connection | Proxy = self
        weight = 1 if msgid is None else method.weight
        if msgid is None or weight > 1:
            caller = Proxy(self, weight, msgid is not None)
        self._writer.in_flight += weight
        try:
            if method.kind == COMMAND:
                gate.submit(caller, msgid or 0, gate.bucket_of(body[1]), body)
            elif method.kind == QUERY:
                ask = partial(gate.read, caller, msgid or 0, gate.bucket_of(body[1]), body)
                self._door.audited(self._actor, method, body, ask)
            else:
                self._door.audited(self._actor, method, body, partial(gate.operate, caller, msgid or 0, body))
        except BaseException as error:
            self._door.fail(error)
            raise
        return True

    def _sign_in(self, token: bytes, errors: str, msgid: int | None) -> bool:
        """`hello`. A wrong token ends the connection: one guess each."""
        if errors:
            self._writer.mode = ERRORS_AS_MAP if errors == "map" else ERRORS_AS_STRING
        grant = self._door.guard.sign_in(token) if token else self._grant
        reply: object
        if grant is None:
            reply = Refused("UNAUTHENTICATED", "this token is not known" if token else "hello must carry a token here")
        else:
            self._admit(grant)
            shown = "map" if self.mode == ERRORS_AS_MAP else "string"
            reply = {"name": grant.name, "roles": sorted(grant.roles), "errors": shown}
        goes_on = msgid is None or self._reply(msgid, reply)
        if grant is None and token:
            self._door.drops += 1
            self._door.refused_sign_in(self._origin)
            self.end(b"")
            return False
        return goes_on

    def _admit(self, grant: Grant) -> None:
        if self._grant is None:
            self._door.handshakes -= 1
        self._grant = grant
        self._actor = grant.actor
        self._commands = self._door.parsers_of(grant.roles)
        self._reader.frame_bytes_max = self._door.limits.frame_bytes_max

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Decodes and reads no further, because too much is in flight or unread."""
        self._held = True
        self._frame_since_ns = 0
        if self._transport is not None:
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._held:
            if not self._waking:  # not at once: we are being called by the gate, which is not to be called back
                self._waking = True
                asyncio.get_running_loop().call_soon(self._go_on)
        elif self._transport is not None:
            self._note_frame(False)
            self._transport.resume_reading()

    def _go_on(self) -> None:
        self._waking = False
        if self._transport is None or self._writer.state is not OPEN or not self._held or self._stalled_since_ns:
            return
        if self._writer.in_flight > self._window // 2:
            return  # the next flush wakes again
        self._held = False
        self._work()
        self._write_prompt()
        if not self._held and self._writer.state is OPEN and not self._stalled_since_ns:
            self._transport.resume_reading()

    def _forget_input(self) -> None:
        self._held = False
        self._reader.close()
        self._frame_since_ns = 0

    def _note_frame(self, progressed: bool) -> None:
        """After all that was read is decoded: is there an unfinished frame, and since when."""
        if self._reader.rest():
            self._frame_since_ns = 0
        elif progressed or not self._frame_since_ns:
            self._frame_since_ns = self._door.clock()
            self._door.watch(self)


def connection_factory(
    door: Door, wall_now_ns: Callable[[], int], random_bytes: Callable[[int], bytes]
) -> Callable[[], Connection]:
    """See `billing.config.doors`."""
    return lambda: Connection(door)
