"""The interface under every door but MessagePack-RPC's: a call goes in, its reply comes back, no bytes of any protocol.

A door creates one `Session` for each connection, or for each group of calls whose replies belong together, and passes
decoded calls to it:

    session = Session(door, on_reply, on_flush)
    session.grant = door.guard.greet(transport)      # or session.sign_in(token); None: only methods without a role
    session.arrived()                                # once for each read, before its calls
    session.call(token, "top_up", ["user_01", "5", {"request_id": "invoice-4711"}])

    on_reply(token, reply)   called exactly once for each call, after the effect that the reply reports is durable
    on_flush()               called after the replies of one batch, so that the door writes them together

`token` is an integer from 0 to 2**32-1 that identifies a call to its door; no two open calls of a session have the same
token. `params` is the array of MessagePack-RPC with the same meaning: the required parameters in their order, then at
most one map of options; texts as str or bytes, maps as dict.

A **reply** has one of four forms:

    AccountReply  the result of a frequent command, which encodes as a map
    Raw           the result as MessagePack, which another worker has encoded
    plain         the result as dict, list, str, int, bool or None
    Refused       a refusal: `code`, `name`, `message`, `retry`, `applied`, `details`

`packed(reply)` and `plain(reply)` convert a result to the form that the door needs. A door whose own protocol is
MessagePack copies the bytes of a `Raw` result without decoding them.

What a session guarantees: calls reach the gate in the order of their arrival, so the calls for one user are applied in
that order. A call that cannot be carried out (unknown, forbidden, malformed, too many in flight or in this second) gets
its `Refused` before `call` returns, and a call that the door answers itself (`ping`) gets its result then. The gate
answers all other calls. The counters of the door and its limits count the calls of sessions like those of
MessagePack-RPC. A session never waits: its door limits how many calls one connection may have in flight, by
`in_flight`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from billing.api.auth import Grant, method_of
from billing.api.door import Door
from billing.api.methods import ANYONE, COMMAND, LOCAL, QUERY, Method, Parser
from billing.api.replies import AccountReply
from billing.api.token_bucket import TokenBucket
from billing.api.wire import BY_SHARDS, ERRORS_AS_MAP, encode, refused_by_shards
from billing.ledger.errors import KINDS, Refused

OnReply = Callable[[int, object], None]  # token, reply

_NIL: Final = 0xC0
_MSGID_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4}  # behind these heads; a smaller integer is its own head
_FIXED: Final = ("code", "name", "message", "retry", "applied")
_NONE: Final[dict[bytes, Parser]] = {}
_decode: Final = msgspec.msgpack.decode


def packed(result: object) -> bytes | memoryview:
    """Returns a result as MessagePack. `result` is a reply that is not `Refused`."""
    return memoryview(result) if type(result) is Raw else encode(result)


def plain(result: object) -> Any:
    """Returns a result as plain data, with texts as str. `result` is a reply that is not `Refused`."""
    if type(result) is Raw:
        return _decode(result)
    return msgspec.to_builtins(result) if isinstance(result, AccountReply) else result


def split_response(data: bytes) -> tuple[int, object]:
    """Returns (msgid, reply) of a whole MessagePack-RPC response with errors as maps, as another worker encodes it for
    a session. The result stays encoded.
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
    """See the module. A `shards.worker.router.Client` that stages replies until their effects are durable."""

    __slots__ = (
        *("_actor", "_commands", "_door", "_grant", "_on_flush", "_on_reply", "_staged", "_token_bucket", "_weights"),
        *("in_flight", "origin"),
    )

    mode: Final = ERRORS_AS_MAP  # how other workers encode errors in their replies to this session

    def __init__(self, door: Door, on_reply: OnReply, on_flush: Callable[[], None] = lambda: None) -> None:
        self.in_flight = 0  # unanswered calls; a listing counts by its weight
        self.origin = ""  # of the client, for the operators' record
        self._door = door
        self._on_reply = on_reply
        self._on_flush = on_flush
        self._staged: list[tuple[int, object]] = []
        self._weights: dict[int, int] = {}  # token -> weight of a call that counts for more than one
        self._grant: Grant | None = None
        self._actor = b""  # the actor of this session's calls
        self._commands = _NONE
        self._token_bucket: TokenBucket | None = None  # None until a limit of requests per second is checked

    # -- roles ------------------------------------------------------------------------------------------------------

    @property
    def grant(self) -> Grant | None:
        """The roles and the name of this session; None: its client has to sign in."""
        return self._grant

    @grant.setter
    def grant(self, grant: Grant | None) -> None:
        self._grant = grant
        self._actor = b"" if grant is None else grant.actor
        self._commands = _NONE if grant is None else self._door.parsers_of(grant.roles)

    def sign_in(self, token: bytes) -> bool:
        """Sets the grant of `token`; returns False, and changes nothing, where the token is unknown."""
        grant = self._door.guard.sign_in(token)
        if grant is not None:
            self.grant = grant
        return grant is not None

    # -- calls ------------------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        """Notes that calls have just been read, so that the instant they carry is not before their arrival."""
        self._door.gate.arrived()

    def call(self, token: int, name: str | bytes, params: object) -> None:
        """Carries out a call; see the module for `token`, `params` and the reply."""
        door = self._door
        key = name.encode("ascii", "replace") if type(name) is str else name
        parse = self._commands.get(key)  # type: ignore[arg-type]
        limits = door.limits
        try:
            if parse is None or limits.requests_per_s_max or door.in_flight >= limits.in_flight_total_max:
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
        """Carries out any call that is not a command of `_commands`, and every call while the door is full or where
        calls per second are limited. Raises Refused.
        """
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
        per_s_max = self._door.limits.requests_per_s_max
        if per_s_max and method.role != ANYONE:
            self._spend(per_s_max)
        return method

    def _spend(self, per_s_max: int) -> None:
        """Counts a call; raises Refused where the client has made as many in this second as it may."""
        now_ns = self._door.clock()
        if self._token_bucket is None:
            self._token_bucket = TokenBucket(now_ns)
        if not self._token_bucket.available(now_ns, per_s_max):
            raise Refused("BUSY", f"this connection asks more than {per_s_max} times a second")
        self._token_bucket.spend(1, per_s_max)

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

    # -- called by the gate -----------------------------------------------------------------------------------------

    def answer(self, token: int, reply: object) -> None:
        """Stages a reply until its effect is durable."""
        if type(reply) in BY_SHARDS:
            reply = refused_by_shards(reply)
        if type(reply) is Refused:
            self._door.note_error(reply)
        self._staged.append((token, reply))

    def flush(self) -> None:
        """Delivers the staged replies, whose effects are durable."""
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
        """Delivers a reply that another worker has encoded and made durable."""
        self._end(*split_response(data))

    def relay_flush(self) -> None:
        """Ends a batch of relayed replies."""
        self._on_flush()

    def refuse(self, token: int, reply: object) -> None:
        """Delivers at once a reply that depends on nothing stored."""
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
