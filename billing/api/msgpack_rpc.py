"""The MessagePack-RPC door: one `Connection` per client.

A read is decoded and carried out frame by frame, with no task, future or await in between: a command is parsed by
its row of the table and submitted to the gate, which answers (see `outlet`) once the effect is durable. What the door
knows itself (`ping`, a refusal of malformed parameters) is answered at the end of the read.

What it keeps:

- **Exactly one reply per request, none to a notification,** and never a push. Requests are submitted in the order sent.
- **Bounded memory.** At most `in_flight_max` requests of a connection are in flight, after which it is not read, nor
  is what was read decoded further. An unfinished frame is limited in bytes and in time. A connection that rests
  between two frames owns no decoder and may stay for ever.
- **Garbage harms nobody else.** It gets one error with msgid nil, behind the replies that were still to come, and
  then the connection ends.
"""

import asyncio
from typing import Any, Final, cast

from billing.api.auth import Grant
from billing.api.door import Door, Limits
from billing.api.methods import ANYONE, COMMAND, LOCAL, QUERY, Method, Parser, allowed, describe, find
from billing.api.outlet import Outlet, Proxy
from billing.api.wire import (
    DECODE_ERRORS,
    ERRORS_AS_MAP,
    ERRORS_AS_STRING,
    MSGID_MAX,
    NOTIFICATION,
    REQUEST,
    SLICE_BYTES_MAX,
    refusal_of,
)
from billing.ledger.errors import Refused

__all__ = ["Connection", "Door", "Limits"]

_NO_RPC: Final = "expected [0, msgid, method, params] with a msgid of 32 bits unsigned, or [2, method, params]"


class Connection(Outlet):
    """One client of a `Door`: `loop.create_server(lambda: Connection(door), …)`."""

    __slots__ = ("_commands", "_fed", "_frame_start", "_rest", "_unpacker", "_waking")

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self._commands: dict[bytes, Parser] = {}  # what this client may call of the hot path
        self._unpacker: Any = None  # None between two frames
        self._fed = 0  # bytes the decoder was given, by its own count
        self._frame_start = 0  # of these, where the unfinished frame begins
        self._rest = b""  # of what is held back, the part that the decoder was not given
        self._waking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door, limits = self._door, self._door.limits
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(limits.write_buffer_bytes_max, limits.write_buffer_bytes_max // 4)
        self._opened_ns = door.clock()
        door.connections.add(self)
        door.handshakes += 1
        grant = door.guard.greet(transport)
        if grant is not None:
            self._admit(grant)
        else:
            door.watch(self)
        count = len(door.connections)
        if count > limits.connections_max + limits.refused_max:
            door.drops += 1
            self._transport.abort()
        elif count > limits.connections_max or (grant is None and door.handshakes > limits.handshakes_max):
            self._give_up(Refused("TOO_MANY_CONNECTIONS", "try again later"))

    def data_received(self, data: bytes) -> None:
        if self._ending is not None:
            return
        if self._held or self._stalled_since_ns:  # a transport may still hand over one read after it was paused
            self._hold(self._rest + data)
            return
        self._work(data)
        if self._prompt:
            self._write_prompt()

    # -- decoding ---------------------------------------------------------------------------------------------------

    def _work(self, data: bytes) -> None:
        """Carries out what `data` completes, slice by slice, until it ends or the connection has to wait."""
        self._door.gate.arrived()
        unpacker = self._unpacker
        if unpacker is None:
            unpacker = self._unpacker = self._door.lend_unpacker()
            self._frame_start = self._fed = unpacker.tell()
        limits = self._door.limits
        frame_start = self._frame_start
        offset, size = 0, len(data)
        while offset < size:
            signed_in = self._grant is not None
            piece = data[offset : offset + (SLICE_BYTES_MAX if signed_in else limits.handshake_bytes_max)]
            offset += len(piece)
            unpacker.feed(piece)
            self._fed += len(piece)
            if not self._drain():
                if self._ending is None:
                    self._hold(data[offset:])
                return
            if self._fed - self._frame_start >= (limits.frame_bytes_max if signed_in else limits.handshake_bytes_max):
                self._give_up(Refused("FRAME_TOO_LARGE", f"a frame may have {limits.frame_bytes_max} bytes"))
                return
        self._note_frame(self._frame_start != frame_start)

    def _drain(self) -> bool:
        """Carries out all frames that the decoder holds; False where the connection has to wait or to end first."""
        unpacker = self._unpacker
        tell = unpacker.tell
        commands = self._commands
        submit = self._door.gate.submit
        bucket_of = self._door.gate.bucket_of
        in_flight_max = self._door.limits.in_flight_max
        calls = self._door.calls
        while self.in_flight < in_flight_max:
            try:
                frame = next(unpacker)
            except StopIteration:
                return True
            except DECODE_ERRORS as error:
                self._give_up(refusal_of(error))
                return False
            self._frame_start = tell()
            try:
                kind, msgid, method, params = frame
                parse = commands[method]
            except (TypeError, ValueError, KeyError):
                if not self._take_other(frame):
                    return False
                commands = self._commands  # it may have been a sign-in
                continue
            if kind != REQUEST or type(kind) is not int or type(msgid) is not int or not 0 <= msgid <= MSGID_MAX:
                self._give_up(Refused("PROTOCOL_ERROR", _NO_RPC))
                return False
            try:
                command = parse(params)
            except Refused as refusal:
                if not self._reply(msgid, refusal):
                    return False
                continue
            calls[method] += 1
            self.in_flight += 1
            try:
                submit(self, msgid, bucket_of(command[1]), command)
            except BaseException as error:
                self._door.fail(error)
                raise
        return False

    def _take_other(self, frame: object) -> bool:
        """Everything but a request for a command that this client may call; True where decoding goes on."""
        if type(frame) is list and len(frame) >= 3 and type(frame[0]) is int:
            if len(frame) == 4 and frame[0] == REQUEST and type(frame[1]) is int and 0 <= frame[1] <= MSGID_MAX:
                try:
                    return self._carry_out(self._method_of(frame[2]), frame[3], frame[1])
                except Refused as refusal:
                    return self._reply(frame[1], refusal)
            if len(frame) == 3 and frame[0] == NOTIFICATION:
                try:
                    return self._carry_out(self._method_of(frame[1]), frame[2], None)
                except Refused:
                    return True  # nobody is told
        self._give_up(Refused("PROTOCOL_ERROR", _NO_RPC))
        return False

    def _method_of(self, name: object) -> Method:
        method = find(name)
        if self._grant is None and (method is None or method.role != ANYONE):
            raise Refused("UNAUTHENTICATED", "sign in first: hello({token})")
        if method is None:
            raise Refused("UNKNOWN_METHOD", "there is no such method; call methods for a list")
        if self._grant is not None and not allowed(method, self._grant.roles):
            raise Refused("FORBIDDEN", f"{method.name} needs the role {method.role}")
        return method

    def _carry_out(self, method: Method, params: object, msgid: int | None) -> bool:
        """A request, or with msgid None a notification; True where decoding goes on. Raises Refused."""
        body = method.parse(params)
        self._door.calls[method.name.encode()] += 1
        gate = self._door.gate
        if method.name == "hello":
            return self._sign_in(body[1], body[2], msgid)
        if method.kind == LOCAL:
            return self._reply(msgid, self._local(method.name, body)) if msgid is not None else True
        caller: Connection | Proxy = self
        weight = 1 if msgid is None else method.weight
        if msgid is None or weight > 1:
            caller = Proxy(self, weight, msgid is not None)
        self.in_flight += weight
        try:
            if method.kind == COMMAND:
                gate.submit(caller, msgid or 0, gate.bucket_of(body[1]), body)
            elif method.kind == QUERY:
                gate.read(caller, msgid or 0, gate.bucket_of(body[1]), body)
            else:
                gate.operate(caller, msgid or 0, body)
        except BaseException as error:
            self._door.fail(error)
            raise
        return True

    def _local(self, name: str, body: tuple[Any, ...]) -> object:
        if name == "bucket_id":
            return self._door.gate.bucket_of(body[1])
        if name == "server_info":
            return self._door.server_info()
        if name == "methods":
            return describe()
        assert name == "ping", f"the door has no answer to {name}"
        return "pong"

    def _sign_in(self, token: bytes, errors: str, msgid: int | None) -> bool:
        """`hello`. A wrong token ends the connection: one guess each."""
        if errors:
            self.mode = ERRORS_AS_MAP if errors == "map" else ERRORS_AS_STRING
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
            self.end(b"")
            return False
        return goes_on

    def _admit(self, grant: Grant) -> None:
        if self._grant is None:
            self._door.handshakes -= 1
        self._grant = grant
        self._commands = self._door.parsers_of(grant.roles)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _hold(self, rest: bytes) -> None:
        """Decodes and reads no further, because too much is in flight or unread."""
        self._held = True
        self._rest = rest
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
        if self._transport is None or self._ending is not None or not self._held or self._stalled_since_ns:
            return
        if self.in_flight > self._door.limits.in_flight_max // 2:
            return  # the next flush wakes again
        self._held = False
        rest, self._rest = self._rest, b""
        if self._unpacker is None or self._drain():
            self._work(rest)
        elif self._ending is None:
            self._hold(rest)
        if self._prompt:
            self._write_prompt()
        if not self._held and self._ending is None and not self._stalled_since_ns:
            self._transport.resume_reading()

    def _forget_input(self) -> None:
        self._held = False
        self._rest = b""
        self._unpacker = None
        self._frame_since_ns = 0

    def _note_frame(self, progressed: bool) -> None:
        """After all that was read is decoded: is there an unfinished frame, and since when."""
        if self._frame_start == self._fed:
            self._frame_since_ns = 0
            if self._unpacker is not None:
                self._door.take_back(self._unpacker)
                self._unpacker = None
        elif progressed or not self._frame_since_ns:
            self._frame_since_ns = self._door.clock()
            self._door.watch(self)
