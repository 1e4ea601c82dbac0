"""The MessagePack-RPC door: one `Connection` per client.

A connection decodes each read frame by frame and carries out its requests, with no task, future or await in between:
the row of its method parses a command, the connection submits the commands of one read to the gate together, and the
gate answers once their effects are durable (see `response_transport`). The door itself answers `ping` and refuses
malformed parameters; these replies leave at the end of the read.

A short read is most often one request of a client that waits for each reply. The door gathers the short reads of all
connections, and the worker's next turn begins with them: after a system call a processor has to load the program into
its caches again, and here it loads the program once for all gathered reads. A gathered read that is one request for a
command takes the short path (`_single`), because the general path costs as much again as the command. The short path
has the same effects; where anything is out of the ordinary, it does nothing and leaves the read to the general path. At
most one read of a connection is gathered. Any other event of the connection waits until that read is carried out.

What a connection guarantees:

- **Exactly one reply per request, none to a notification,** and never a push. Requests are submitted in the order sent.
- **Bounded memory.** At most `in_flight_max` requests of a connection are in flight, and beside them one listing: one
  that takes long holds up nobody else who calls over this connection. Beyond that the connection stops reading, and
  stops decoding what it has read. Each read is at most a slice, into the one buffer of the door. An unfinished frame is
  limited in bytes and in time. A connection between two frames holds no decoder and may stay open for ever.
- **Overload is answered with a refusal.** While the door is full, or this connection exceeds its rate (`token_bucket`),
  requests are refused with `BUSY` as they come. The hot path does not check that: its table of commands is empty then,
  so each request takes the long path, which checks.
- **A value that the decoder does not take costs one refusal**: the reader skips its request to the end, and the
  connection refuses the request by its msgid.
- **Garbage harms no other client.** It gets one error with msgid nil, after the replies that were still to come, and
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

SINGLE_BYTES_MAX: Final = 512  # a longer read most often holds several requests
_REFUSED_HERE_MAX: Final = 16  # connections of one origin beyond its limit that get an error
_SIGN_IN: Final = "sign in first: hello({token})"
_FULL: Final = "this worker has too many requests in flight"
_NONE: Final[dict[bytes, Parser]] = {}
_NO_RPC: Final = "expected [0, msgid, method, params] with a msgid of 32 bits unsigned, or [2, method, params]"


class Connection(ResponseTransport):
    """One client of a `Door`: `loop.create_server(lambda: Connection(door), …)`."""

    __slots__ = (
        "_actor",
        "_beside",
        "_busy",
        "_commands",
        "_gathered",
        "_listings",
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
        self._commands = _NONE  # parsers of the commands that this client may call
        self._busy = ""  # why requests are refused; empty where they are not
        self._token_bucket: TokenBucket | None = None  # None until a limit of requests per second is checked
        self._listings = 0  # in flight
        self._beside = 0  # the weight of one of them, which the window has beside it
        self._on_trial = True  # the client has not shown yet that it reads
        self._window = min(door.limits.trial_in_flight_max, door.limits.in_flight_max)  # requests in flight at most
        self._reader = RequestReader(door, door.limits.handshake_bytes_max)
        self._gathered = b""  # a short read that waits for the next turn
        self._read_ns = 0  # when the read came that is carried out now; 0: just now
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
        """Ends a new connection where `count` exceeds `most` (0: no limit). Up to `answered_max` such connections at
        once get an error; further ones are closed without one.
        """
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
        """Returns the buffer for the next read. Its bytes are decoded or copied before the read after that."""
        return self._door.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Takes `nbytes` bytes that were read into the buffer."""
        self.data_received(self._door.read_buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Takes bytes that the client sent, and keeps no reference to `data`."""
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
        """Carries out the gathered read; a read of one command is added to `requests` instead."""
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
        """Returns the request that `data` is, counted as in flight, if it is one request for a command and within all
        limits. Otherwise returns None, and has done nothing.
        """
        door, writer = self._door, self._writer
        limits = door.limits
        if (
            self._held
            or self._stalled_since_ns
            or limits.requests_per_s_max
            or writer.in_flight + 1 >= self._window + self._beside  # the general path also stops reading then
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
        """Carries out the whole frames of the input, until there are no more or the connection has to wait."""
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
        except Refused as refusal:  # the rest of the stream cannot be read
            self._give_up(refusal)
            return
        self._note_frame(reader.progressed)

    def _slice_bytes(self) -> int:
        """Returns how many bytes may be decoded at once."""
        limits = self._door.limits
        length = SLICE_BYTES_MAX if self._grant is not None else limits.handshake_bytes_max
        if limits.requests_per_s_max:
            length = min(length, piece_bytes(self._requests_left(limits.requests_per_s_max)))
        return length

    def _advance(self) -> bool:
        """Runs `_drain` within the limits, which are checked here once per slice of input; returns what it returns."""
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
        """Ends the trial where `trial_bytes` of replies have left the write buffer."""
        limits, transport = self._door.limits, self._transport
        if transport is None:
            return
        if self._written - transport.get_write_buffer_size() >= limits.trial_bytes:
            self._on_trial = False
            self._window = limits.in_flight_max
            self._limit_unread(limits.write_buffer_bytes_max)

    def _requests_left(self, per_s_max: int) -> int:
        """Returns how many requests this connection may make now."""
        now_ns = self._door.clock()
        if self._token_bucket is None:
            self._token_bucket = TokenBucket(now_ns)
        return self._token_bucket.available(now_ns, per_s_max)

    def _drain_within_rate(self, per_s_max: int, busy: str) -> bool:
        """Runs `_drain` where requests per second are limited. Each request carried out and each error counts."""
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
        """Carries out all whole frames; returns False where the connection has to wait, or ends, before the last."""
        door, before, at_ns = self._door, self._writer.in_flight, self._read_ns or self._door.clock()
        counts: defaultdict[bytes, int] = defaultdict(int)
        goes_on = self._carry_out_all(counts)
        if counts:
            for name, count in counts.items():
                door.calls[name] += count
            self._reads.begin(at_ns, self._writer.in_flight - before, counts)
        return goes_on

    def _carry_out_all(self, counts: dict[bytes, int]) -> bool:
        """Does the work of `_drain`; adds the requests that go to the gate to `counts`, by method."""
        commands = _NONE if self._busy else self._commands
        actor = self._actor
        bucket_of = self._door.gate.bucket_of
        requests: list[Request] = []  # commands that are submitted together, before any other request is carried out
        room = self._room()
        if room <= 0:
            return False
        for frame in self._reader.frames():
            parse: Parser | None
            try:
                kind, msgid, method, params = frame
                parse = commands[method]
            except (TypeError, ValueError, KeyError):
                parse = None
            # Equal small integers are one object; a kind that is another object takes the long path, which compares.
            if parse is None or kind is not REQUEST or type(msgid) is not int or not 0 <= msgid <= MSGID_MAX:
                self._submit(requests)
                if not self._take_other(frame, counts):
                    return False
                commands = _NONE if self._busy else self._commands  # the frame may have been a sign-in
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
        """Submits the collected requests and clears the list; returns how many more requests may be in flight."""
        if requests:
            self._writer.in_flight += len(requests)
            self._door.submit(requests)
            requests.clear()
        return self._room()

    def _room(self) -> int:
        """Returns how many more requests may be in flight."""
        return self._window + self._beside - self._writer.in_flight

    def _take_other(self, frame: object, counts: dict[bytes, int]) -> bool:
        """Carries out any frame but a request for a command of `_commands`; returns whether decoding goes on."""
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
                    return True  # a notification gets no reply
        if type(frame) is NotTaken:
            return self._refuse_untaken(frame.msgid)
        self._give_up(Refused("PROTOCOL_ERROR", _NO_RPC))
        return False

    def _refuse_untaken(self, msgid: int | None) -> bool:
        """Refuses a request with a value that the decoder does not take; a notification (None) only counts for the
        rate. Returns whether decoding goes on.
        """
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
        """Carries out a request, or a notification (msgid None); returns whether decoding goes on. Raises Refused."""
        body = method.body(params, self._actor)
        gate = self._door.gate
        if method.kind == LOCAL:  # answered at the end of the read, so its latency is not measured
            self._door.calls[method.name.encode()] += 1
            if method.name == "hello":
                return self._sign_in(body[1], body[2], msgid)
            return self._reply(msgid, self._door.answer_local(method.name, body)) if msgid is not None else True
        counts[method.name.encode()] += 1
        caller: Connection | Proxy = self
        weight = 1 if msgid is None else method.weight
        if msgid is None or weight > 1:
            caller = Proxy(self, weight, msgid is not None)
        if weight > 1:
            self._listings += 1
            self._beside = self._beside or weight
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
        """Carries out `hello`; returns whether decoding goes on. A wrong token ends the connection, so that each
        connection has one guess.
        """
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

    def discount(self, count: int) -> None:
        super().discount(count)
        if count > 1:  # of a listing, which is answered
            self._listings -= 1
            if not self._listings:
                self._beside = 0

    def _hold(self) -> None:
        """Decodes and reads no further, because too much is in flight or unread."""
        self._held = True
        self._frame_since_ns = 0
        if self._transport is not None:
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._held:
            if not self._waking:  # not at once: the gate is calling, and must not be called back from within
                self._waking = True
                asyncio.get_running_loop().call_soon(self._go_on)
        elif self._transport is not None:
            self._note_frame(False)
            self._transport.resume_reading()

    def _go_on(self) -> None:
        self._waking = False
        if self._transport is None or self._writer.state is not OPEN or not self._held or self._stalled_since_ns:
            return
        if self._writer.in_flight - self._beside > self._window // 2:
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
        """Notes whether a frame is unfinished, and since when; called after all input is decoded."""
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
