"""What all connections of a worker share: the gate behind them, the limits, the decoders, and one clock.

A `Door` knows all connections and ends those past a deadline. Deadlines cost nothing until they run: a
connection asks to be watched when there is one, and `sweep`, once a second, looks at those watched. So a deadline is
kept to a second, and an idle connection is looked at by nobody.

**Overload is answered at once.** Beyond `in_flight_total_max` requests of all its connections a door refuses further
requests by name (`BUSY`), and beyond `connections_max` it turns new connections away (`TOO_MANY_CONNECTIONS`); the log
says both, seldom. What is in flight is counted per batch, not per request: a read may exceed the limit by what it
holds.

It reads no clock: a monotonic one is passed in.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from billing.api.auth import Grant, Guard
from billing.api.latency import RequestLatency
from billing.api.methods import (
    ADMIN,
    BY_WIRE_NAME,
    COMMAND,
    HISTORY_ROWS_MAX,
    PAGE_ROWS_MAX,
    Method,
    Parser,
    command_parsers,
    describe,
)
from billing.api.origins import Origins, Rarely
from billing.api.wire import (
    ARRAY_LENGTH_MAX,
    FRAME_BYTES_MAX,
    MAP_LENGTH_MAX,
    SLICE_BYTES_MAX,
    TEXT_BYTES_MAX,
    error_name_of,
    make_unpacker,
)
from billing.ledger.commands import MESSAGE_BYTES_MAX, REQUEST_ID_BYTES_MAX, RESOURCE_BYTES_MAX, USER_ID_BYTES_MAX

log = logging.getLogger("billing.api")

SECOND_NS: Final = 1_000_000_000
SWEEP_INTERVAL_S: Final = 1.0
UNPACKERS_KEPT_MAX: Final = 64


Request = tuple[Any, Any, int, Any]  # caller, token, bucket id, command


class Gate(Protocol):
    """What a door needs of the worker behind it. The caller is a connection, or stands for one; see `msgpack_rpc`."""

    def arrived(self) -> None:
        """Requests have just been read: they carry an instant that is not before their arrival."""

    def bucket_of(self, key: bytes, /) -> int:
        """The bucket a user hashes to."""

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Any, /) -> None:
        """Carries out a command; its reply comes to `caller` once it is durable."""

    def submit_all(self, requests: Sequence[Request], /) -> None:
        """The same for commands that were read together, in their order."""

    def before_turn(self, work: Callable[[], None], /) -> None:
        """Calls `work` once, when all that can be read now is read, and before more is appended to the journal."""

    def read(self, caller: Any, token: Any, bucket_id: int, query: Any, /) -> None:
        """Answers a question about one account."""

    def operate(self, caller: Any, token: Any, operation: Any, /) -> None:
        """Answers a question about the whole daemon, or carries out an operator's wish."""


class Audit(Protocol):
    """What a door needs of the operators' record."""

    def record(self, actor: str, act: str, details: dict[str, Any], then: Callable[[], None], /) -> None:
        """Writes an operator's request with its actor, and calls back once the record is durable."""

    def refused_sign_in(self, origin: str, /) -> None:
        """Notes that a token was shown at `origin` which is not known."""


class Client(Protocol):
    """What a door needs of a connection."""

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends itself if one has passed; whether there is still one to watch."""

    def granted(self) -> Grant | None:
        """What it may do; None where it has not signed in."""

    def end(self, last_words: bytes) -> None:
        """Reads nothing more, and closes once everything asked for is answered."""

    def abort(self) -> None:
        """Closes at once."""


class Gathered(Protocol):
    """What a door needs of a connection that has read something for the next turn."""

    def take_gathered(self, requests: list[Request]) -> None:
        """Carries it out, or adds the one command that it is to `requests`, which are submitted then."""

    def abort(self) -> None:
        """Closes at once."""


class Limits(NamedTuple):
    """The bounds of a door and of each of its connections."""

    in_flight_max: int = 4096
    in_flight_total_max: int = 262_144  # over all connections; above, requests are refused
    requests_per_s_max: int = 0  # of one connection; 0: as many as it likes
    trial_in_flight_max: int = 32  # until a client has read so much:
    trial_bytes: int = 256 * 1024  # more than kernels take for a client that never reads
    trial_write_buffer_bytes_max: int = 8 * 1024
    frame_bytes_max: int = FRAME_BYTES_MAX
    frame_deadline_ns: int = 10 * SECOND_NS  # for an unfinished frame
    write_buffer_bytes_max: int = 64 * 1024
    write_stall_ns: int = 30 * SECOND_NS  # how long a client may leave more than that unread
    handshake_bytes_max: int = 4096  # of an unfinished frame before sign-in
    handshake_deadline_ns: int = 5 * SECOND_NS
    handshakes_max: int = 64
    connections_max: int = 16_384
    connections_per_origin_max: int = 0  # see `origins`; 0: as many as there may be
    refused_max: int = 256  # connections beyond those that are told so; more are closed without a word
    linger_ns: int = 2 * SECOND_NS  # how long a closed connection stays for its last words to be read


LIMITS: Final = Limits()


def is_act(body: tuple[Any, ...]) -> bool:
    """Whether an operator's call does something: a plan only looks, and a backup goes on saying that it lives."""
    return body not in (("rebalance", 1), ("backup", "renew"))


def _fields_of(method: Method, body: tuple[Any, ...]) -> dict[str, Any]:
    """What was asked for, by name; options that nobody gave are left out."""
    fields = (*method.required, *method.options)
    pairs = zip(fields, body[1:], strict=True)
    return {
        field.name: value.decode("utf-8", "replace") if type(value) is bytes else value
        for field, value in pairs
        if field in method.required or value != field.default
    }


class Door:
    """All connections of one worker: `loop.create_server(lambda: Connection(door), …)`."""

    def __init__(
        self,
        gate: Gate,
        guard: Guard,
        clock: Callable[[], int],
        server_info: Callable[[], dict[str, object]],
        limits: Limits = LIMITS,
        fail: Callable[[BaseException], None] = lambda error: None,
        audit: Audit | None = None,
    ) -> None:
        """`clock`: monotonic nanoseconds, above 0. `server_info`: what that procedure answers, `limits` aside. `fail`
        is told what the gate raised, which is always a broken invariant; left to the event loop, it would end nothing
        but the connection whose request met it. `audit`: the record of operators' requests; None: there is none.
        """
        self._audit = audit
        self.fail = fail
        self.gate = gate
        self.guard = guard
        self.clock = clock
        self.limits = limits
        self.connections: set[Client] = set()
        self.handshakes = 0  # connections that have not signed in
        self.drops = 0  # connections ended for garbage, a limit or a deadline
        self.calls = dict.fromkeys(BY_WIRE_NAME, 0)  # wire name -> requests well formed enough to be carried out
        self.once = {name: {name: 1} for name in BY_WIRE_NAME}  # what a read of one request counts
        self.errors: dict[str, int] = {}  # name -> refusals that were answered
        self.latency = RequestLatency()
        self.in_flight = 0  # requests of all connections, as of their last batches
        self.read_buffer = memoryview(bytearray(SLICE_BYTES_MAX))  # all connections': emptied before the next read
        self.origins = Origins()
        self._busy = Rarely()
        self._server_info = server_info
        self.gathered_ns = 0  # when the first of these had read something
        self._gathered: list[Gathered] = []  # connections that have read something for the next turn, once each
        self._watched: set[Client] = set()
        self._unpackers: list[Any] = []
        self._parsers: dict[frozenset[str], dict[bytes, Parser]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def gather(self, connection: Gathered) -> None:
        """Lets the next turn begin with what this connection has read; once until then."""
        self._gathered.append(connection)
        if len(self._gathered) == 1:
            self.gathered_ns = self.clock()
            self.gate.before_turn(self.take_gathered)

    def take_gathered(self) -> None:
        """Carries out what was gathered until now."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        requests: list[Request] = []
        self.gate.arrived()
        for connection in gathered:
            try:
                connection.take_gathered(requests)
            except Exception as error:
                self._met_a_bug(error, [connection])
        try:
            if requests:
                self.submit(requests)
        except Exception as error:
            self._met_a_bug(error, gathered)

    def _met_a_bug(self, error: Exception, ends: list[Gathered]) -> None:
        """Ends the connections that it is about, as the loop does with one whose callback raises."""
        asyncio.get_running_loop().call_exception_handler({"message": "a connection met a bug", "exception": error})
        for connection in ends:
            connection.abort()

    def submit(self, requests: Sequence[Request]) -> None:
        """Hands commands to the gate. What it raises is told, and raised."""
        try:
            self.gate.submit_all(requests)
        except BaseException as error:
            self.fail(error)
            raise

    def start(self) -> None:
        """Sweeps once a second from now on, until `close`."""
        self._timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._on_timer)

    def _on_timer(self) -> None:
        self.start()
        self.sweep()

    def sweep(self) -> None:
        """Ends the connections that are past a deadline."""
        self.take_gathered()
        now_ns = self.clock()
        for client in list(self._watched):
            if not client.check_deadlines(now_ns):
                self._watched.discard(client)
        self.origins.tell(now_ns)
        count = self._busy.due(now_ns)
        if count:
            log.warning("requests refused: %d; as many as may be are in flight: %d", count, self.in_flight)

    def is_full(self) -> bool:
        """Whether what is asked for is to be refused, since too much is in flight."""
        full = self.in_flight >= self.limits.in_flight_total_max
        if full:
            self._busy.count += 1
        return full

    def watch(self, client: Client) -> None:
        """Lets `sweep` look at a connection from now on."""
        self._watched.add(client)

    def take_guard(self, guard: Guard) -> None:
        """Lets in by this guard from now on; a connection with a token that is not known any more ends once its
        requests are answered.
        """
        before, self.guard = self.guard, guard
        for client in list(self.connections):
            grant = client.granted()
            if grant is not None and not guard.outlives(grant, before):
                self.drops += 1
                client.end(b"")

    def drain(self) -> None:
        """Reads nothing more; each connection is closed once what it asked for is answered."""
        for client in list(self.connections):
            client.end(b"")

    def close(self) -> None:
        """Ends everything at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for client in list(self.connections):
            client.abort()

    def audited(self, actor: bytes, method: Method, body: tuple[Any, ...], act: Callable[[], None]) -> None:
        """Carries out what only operators may ask for, once it is on record; anything else at once."""
        is_on_record = method.role == ADMIN and method.kind != COMMAND and method.changes and is_act(body)
        if self._audit is None or not is_on_record:
            act()
            return

        def on_record() -> None:
            try:
                act()
            except BaseException as error:
                self.fail(error)
                raise

        self._audit.record(actor.decode("utf-8", "replace"), method.name, _fields_of(method, body), on_record)

    def refused_sign_in(self, origin: str) -> None:
        """A token was shown that is not known."""
        if self._audit is not None:
            self._audit.refused_sign_in(origin)

    def note_error(self, reply: object) -> None:
        """Counts a reply that is an error."""
        name = error_name_of(reply)
        if name:
            self.errors[name] = self.errors.get(name, 0) + 1

    def figures(self) -> dict[str, object]:
        """Counters for the operator, as plain data."""
        return {
            "connections": len(self.connections),
            "handshakes": self.handshakes,
            "drops": self.drops,
            "requests_in_flight": self.in_flight,
            "calls": {name.decode(): count for name, count in self.calls.items() if count},
            "errors": dict(self.errors),
            "request_ns": self.latency.figures(),
        }

    def server_info(self) -> dict[str, object]:
        """The reply of the procedure of that name."""
        limits: dict[str, object] = {
            "in_flight_per_connection_max": self.limits.in_flight_max,
            "frame_bytes_max": self.limits.frame_bytes_max,
            "text_bytes_max": TEXT_BYTES_MAX,
            "array_length_max": ARRAY_LENGTH_MAX,
            "map_length_max": MAP_LENGTH_MAX,
            "user_id_bytes_max": USER_ID_BYTES_MAX,
            "request_id_bytes_max": REQUEST_ID_BYTES_MAX,
            "resource_bytes_max": RESOURCE_BYTES_MAX,
            "message_bytes_max": MESSAGE_BYTES_MAX,
            "history_rows_max": HISTORY_ROWS_MAX,
            "page_rows_max": PAGE_ROWS_MAX,
        }
        return {**self._server_info(), "limits": limits}

    def answer_local(self, name: str, body: tuple[Any, ...]) -> object:
        """The reply to a parsed call of the kind LOCAL, `hello` aside: that is for the connection."""
        if name == "bucket_id":
            return self.gate.bucket_of(body[1])
        if name == "server_info":
            return self.server_info()
        if name == "methods":
            return describe()
        assert name == "ping", f"the door has no answer to {name}"
        return "pong"

    def parsers_of(self, roles: frozenset[str]) -> dict[bytes, Parser]:
        """The commands that `roles` may call; one dict for all connections of these roles."""
        parsers = self._parsers.get(roles)
        if parsers is None:
            parsers = self._parsers[roles] = command_parsers(roles)
        return parsers

    def lend_unpacker(self) -> Any:
        """A decoder that stands between two frames."""
        return self._unpackers.pop() if self._unpackers else make_unpacker()

    def take_back(self, unpacker: Any) -> None:
        """A decoder that stands between two frames again."""
        if len(self._unpackers) < UNPACKERS_KEPT_MAX:
            self._unpackers.append(unpacker)
