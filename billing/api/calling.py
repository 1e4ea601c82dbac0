"""The seam on which every door but MessagePack-RPC's stands: a call in, its reply back, no bytes of any protocol.

A door makes one `Session` for each connection, or for whatever else it wants answered together, and hands in calls
that it has decoded:

    session = Session(door, on_reply, on_flush)
    session.grant = door.guard.greet(transport)      # or session.sign_in(token); None: may call what needs no role
    session.arrived()                                # once for each read, before its calls
    session.call(token, "top_up", ["user_01", "5", {"request_id": "invoice-4711"}])

    on_reply(token, reply)   exactly once for each call, once what the reply tells is durable
    on_flush()               behind the replies of one batch: now is the time to write

`token` is an integer of 0 to 2**32-1 by which the door knows its call, and of which no two are open at once. `params`
is the array of MessagePack-RPC with the same meanings: required parameters in their order, then at most a map of
options; texts as str or bytes, maps as dict.

A **reply** is one of four things:

    AccountReply  the result of a frequent command, which encodes as a map
    Raw           the result as MessagePack, already encoded: what other workers answer
    plain         the result as dict, list, str, int, bool or None
    Refused       the answer is no: `code`, `name`, `message`, `retry`, `applied`, `details`

`packed(reply)` and `plain(reply)` turn a result into the form that the door needs; a door whose own wire is MessagePack
copies bytes and decodes nothing.

What a session keeps: calls reach the gate in the order of their arrival, so those for one user are applied in that
order. What cannot be called (unknown, forbidden, malformed, too much in flight) is answered with a `Refused` before
`call` returns; everything else later. The door's counters and the bound of all its requests in flight hold here as they
hold for MessagePack-RPC. How much one connection may have in flight is for its door to limit, by `in_flight`: a session
never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from billing.api.auth import Grant, method_of
from billing.api.door import Door
from billing.api.methods import COMMAND, LOCAL, QUERY, Method, Parser
from billing.api.replies import AccountReply
from billing.api.wire import BY_SHARDS, ERRORS_AS_MAP, encode, refused_by_shards
from billing.ledger.errors import KINDS, Refused

OnReply = Callable[[int, object], None]  # token, reply

_NIL: Final = 0xC0
_MSGID_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4}  # behind these heads; a smaller integer is its own head
_FIXED: Final = ("code", "name", "message", "retry", "applied")
_NONE: Final[dict[bytes, Parser]] = {}
_decode: Final = msgspec.msgpack.decode


def packed(result: object) -> bytes | memoryview:
    """A result as MessagePack. `result` is a reply that is not `Refused`."""
    return memoryview(result) if type(result) is Raw else encode(result)


def plain(result: object) -> Any:
    """A result as plain data, texts as str. `result` is a reply that is not `Refused`."""
    if type(result) is Raw:
        return _decode(result)
    return msgspec.to_builtins(result) if isinstance(result, AccountReply) else result


def split_response(data: bytes) -> tuple[int, object]:
    """(msgid, reply) of a whole MessagePack-RPC response with errors as maps, as another worker encodes it for us. The
    result is not decoded.
    """
    head = data[2]
    length = _MSGID_BYTES.get(head, 0)
    start = 3 + length
    msgid = int.from_bytes(data[3:start], "big") if length else head
    if data[start] == _NIL:
        return msgid, Raw(data[start + 1 :])
    error = _decode(data)[2]
    details = {key: value for key, value in error.items() if key not in _FIXED}
    name = error["name"] if error["name"] in KINDS else "INTERNAL"
    return msgid, Refused(name, error["message"], details, applied=error["applied"])


class Session:
    """See the module. The gate's `Client`: stages replies, and lets them go when it is told that they are durable."""

    __slots__ = (
        *("_actor", "_commands", "_door", "_grant", "_on_flush", "_on_reply", "_staged", "_weights"),
        *("in_flight", "origin"),
    )

    mode: Final = ERRORS_AS_MAP  # how other workers encode what they answer for this session

    def __init__(self, door: Door, on_reply: OnReply, on_flush: Callable[[], None] = lambda: None) -> None:
        self.in_flight = 0  # calls that are not answered, a listing counted by its weight
        self.origin = ""  # of who asks, for the operators' record
        self._door = door
        self._on_reply = on_reply
        self._on_flush = on_flush
        self._staged: list[tuple[int, object]] = []
        self._weights: dict[int, int] = {}  # token -> weight of a call that counts for more than one
        self._grant: Grant | None = None
        self._actor = b""  # the actor of this session's calls
        self._commands = _NONE

    # -- who is asking ----------------------------------------------------------------------------------------------

    @property
    def grant(self) -> Grant | None:
        """What this session may do, and under which name; None: it has to sign in."""
        return self._grant

    @grant.setter
    def grant(self, grant: Grant | None) -> None:
        self._grant = grant
        self._actor = b"" if grant is None else grant.actor
        self._commands = _NONE if grant is None else self._door.parsers_of(grant.roles)

    def sign_in(self, token: bytes) -> bool:
        """Takes the grant of the bearer of `token`; False, and nothing changes, where it is not known."""
        grant = self._door.guard.sign_in(token)
        if grant is not None:
            self.grant = grant
        return grant is not None

    # -- calls ------------------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        """Calls have just been read: they carry an instant that is not before their arrival."""
        self._door.gate.arrived()

    def call(self, token: int, name: str | bytes, params: object) -> None:
        """Carries out a call; see the module for `token`, `params` and the reply."""
        door = self._door
        key = name.encode("ascii", "replace") if type(name) is str else name
        parse = self._commands.get(key)  # type: ignore[arg-type]
        try:
            if parse is None or door.in_flight >= door.limits.in_flight_total_max:
                self._call_other(token, key, params)
                return
            command = parse(params, self._actor)
        except Refused as refusal:
            door.note_error(refusal)
            self._on_reply(token, refusal.with_traceback(None))
            return
        door.calls[key] += 1  # type: ignore[index]
        door.in_flight += 1
        self.in_flight += 1
        try:
            door.gate.submit(self, token, door.gate.bucket_of(command[1]), command)
        except BaseException as error:
            door.fail(error)
            raise

    def _call_other(self, token: int, name: object, params: object) -> None:
        """Everything but a command that this session may call. Raises Refused."""
        door = self._door
        method = self._method_of(name)
        body = method.body(params, self._actor)
        door.calls[method.name.encode()] += 1
        if method.name == "hello":
            self._on_reply(token, self._hello(body[1]))
            return
        if method.kind == LOCAL:
            self._on_reply(token, door.answer_local(method.name, body))
            return
        door.in_flight += method.weight
        self.in_flight += method.weight
        if method.weight > 1:
            self._weights[token] = method.weight
        try:
            if method.kind == COMMAND:
                door.gate.submit(self, token, door.gate.bucket_of(body[1]), body)
            elif method.kind == QUERY:
                bucket_id = door.gate.bucket_of(body[1])
                door.audited(self._actor, method, body, lambda: door.gate.read(self, token, bucket_id, body))
            else:
                door.audited(self._actor, method, body, lambda: door.gate.operate(self, token, body))
        except BaseException as error:
            door.fail(error)
            raise

    def _method_of(self, name: object) -> Method:
        method = method_of(name, self._grant, "sign in first")
        if method.kind in (COMMAND, QUERY) and self._door.is_full():
            raise Refused("BUSY", "this worker has too many requests in flight")
        return method

    def _hello(self, token: bytes) -> object:
        if token and not self.sign_in(token):
            self._door.refused_sign_in(self.origin)
            refusal = Refused("UNAUTHENTICATED", "this token is not known")
        elif self._grant is None:
            refusal = Refused("UNAUTHENTICATED", "hello must carry a token here")
        else:
            return {"name": self._grant.name, "roles": sorted(self._grant.roles), "errors": "map"}
        self._door.note_error(refusal)
        return refusal

    # -- what the gate calls ----------------------------------------------------------------------------------------

    def answer(self, token: int, reply: object) -> None:
        """Stages a reply until it is durable."""
        if type(reply) in BY_SHARDS:
            reply = refused_by_shards(reply)
        if type(reply) is Refused:
            self._door.note_error(reply)
        self._staged.append((token, reply))

    def flush(self) -> None:
        """What is staged is durable."""
        staged, self._staged = self._staged, []
        if self._weights:
            for token, reply in staged:
                self._end(token, reply)
        else:
            self._door.in_flight -= len(staged)
            self.in_flight -= len(staged)
            on_reply = self._on_reply
            for token, reply in staged:
                on_reply(token, reply)
        self._on_flush()

    def relay(self, data: bytes) -> None:
        """A reply that another worker encoded, and made durable."""
        self._end(*split_response(data))

    def relay_flush(self) -> None:
        """That was the last reply of a batch of another worker's."""
        self._on_flush()

    def refuse(self, token: int, reply: object) -> None:
        """A reply that depends on nothing stored; it leaves at once."""
        if type(reply) in BY_SHARDS:
            reply = refused_by_shards(reply)
        self._door.note_error(reply)
        self._end(token, reply)
        self._on_flush()

    def _end(self, token: int, reply: object) -> None:
        weight = self._weights.pop(token, 1) if self._weights else 1
        self._door.in_flight -= weight
        self.in_flight -= weight
        self._on_reply(token, reply)
