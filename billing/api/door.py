"""What all connections of a worker share: the gate behind them, the limits, the decoders, and one clock.

A `Door` has a set of all its connections and ends those that are past a deadline. A connection calls `watch` when one
of its deadlines begins to run, and `sweep` checks the watched connections once a second. So a deadline is kept to
within a second, and an idle connection costs nothing.

**Overload is answered at once.** While its connections have `in_flight_total_max` requests in flight, a door refuses
further requests with `BUSY`. Beyond `connections_max` connections it turns new ones away with `TOO_MANY_CONNECTIONS`.
Both are logged, at most once a minute each. Requests in flight are counted per batch and not per request, so one read
may exceed the limit by the requests that it holds.

The door reads no clock: its creator passes in a monotonic one.
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
    """The part of a worker that a door needs. `caller` is a connection, or an object that stands for one, such as
    `billing.api.response_transport.Proxy`.
    """

    def arrived(self) -> None:
        """Notes that requests have just been read, so that the instant they carry is not before their arrival."""

    def bucket_of(self, key: bytes, /) -> int:
        """The bucket a user hashes to."""

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Any, /) -> None:
        """Carries out a command, and sends its reply to `caller` once the command is durable."""

    def submit_all(self, requests: Sequence[Request], /) -> None:
        """Carries out commands that were read together, in their order; otherwise as `submit`."""

    def before_turn(self, work: Callable[[], None], /) -> None:
        """Calls `work` once, after all sockets that are readable now were read, and before the next append to the
        journal.
        """

    def read(self, caller: Any, token: Any, bucket_id: int, query: Any, /) -> None:
        """Answers a question about one account."""

    def operate(self, caller: Any, token: Any, operation: Any, /) -> None:
        """Answers a question about the whole daemon, or carries out an operator's request."""


class Audit(Protocol):
    """The part of the operators' record that a door needs."""

    def record(self, actor: str, act: str, details: dict[str, Any], then: Callable[[], None], /) -> None:
        """Writes an operator's request with its actor, and calls `then` once the record is durable."""

    def refused_sign_in(self, origin: str, /) -> None:
        """Records that a client at `origin` presented an unknown token."""


class Client(Protocol):
    """The part of a connection that a door needs."""

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends the connection if a deadline has passed; returns whether a deadline is still to be watched."""

    def granted(self) -> Grant | None:
        """Returns the grant of the connection; None where its client has not signed in."""

    def end(self, last_words: bytes) -> None:
        """Stops reading, and closes once every request is answered."""

    def abort(self) -> None:
        """Closes at once."""


class Gathered(Protocol):
    """The part of a connection that a door needs while a read of the connection waits for the next turn."""

    def take_gathered(self, requests: list[Request]) -> None:
        """Carries out the waiting read; a read of a single command is added to `requests` instead, which the door then
        submits.
        """

    def abort(self) -> None:
        """Closes at once."""


class Limits(NamedTuple):
    """The bounds of a door and of each of its connections."""

    in_flight_max: int = 4096
    in_flight_total_max: int = 262_144  # over all connections; above, requests are refused
    requests_per_s_max: int = 0  # of one connection; 0: unlimited
    trial_in_flight_max: int = 32  # until the client has read `trial_bytes` of replies
    trial_bytes: int = 256 * 1024  # more than kernels buffer for a client that never reads
    trial_write_buffer_bytes_max: int = 8 * 1024
    frame_bytes_max: int = FRAME_BYTES_MAX
    frame_deadline_ns: int = 10 * SECOND_NS  # for an unfinished frame
    write_buffer_bytes_max: int = 64 * 1024
    write_stall_ns: int = 30 * SECOND_NS  # how long a client may leave more than `write_buffer_bytes_max` unread
    handshake_bytes_max: int = 4096  # of an unfinished frame before sign-in
    handshake_deadline_ns: int = 5 * SECOND_NS
    handshakes_max: int = 64
    connections_max: int = 16_384
    connections_per_origin_max: int = 0  # see `origins`; 0: unlimited
    refused_max: int = 256  # connections too many that get an error; further ones are closed without one
    linger_ns: int = 2 * SECOND_NS  # how long a client has to read the last bytes of a connection that ends


LIMITS: Final = Limits()


def is_act(body: tuple[Any, ...]) -> bool:
    """Whether an operator's call is to be recorded. The plan of a rebalance changes nothing, and the renewal of a
    backup only says that the backup still runs.
    """
    return body not in (("rebalance", 1), ("backup", "renew"))


def _fields_of(method: Method, body: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the parsed values of a call by field name, without the options that have their default."""
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
        """`clock`: monotonic nanoseconds, above 0. `server_info`: returns the reply of that procedure without `limits`.
        `fail` is called with each exception of the gate, which is always a broken invariant; the event loop alone would
        end only the connection whose request caused it. `audit`: the record of operators' requests, or None.
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
        self.calls = dict.fromkeys(BY_WIRE_NAME, 0)  # wire name -> well-formed requests
        self.once = {name: {name: 1} for name in BY_WIRE_NAME}  # wire name -> the counts of a read with one request
        self.errors: dict[str, int] = {}  # name -> refusals that were answered
        self.latency = RequestLatency()
        self.in_flight = 0  # requests of all connections, as of their last batches
        self.read_buffer = memoryview(bytearray(SLICE_BYTES_MAX))  # of all connections: emptied before the next read
        self.origins = Origins()
        self._busy = Rarely()
        self._server_info = server_info
        self.gathered_ns = 0  # when the first connection of `_gathered` was read
        self._gathered: list[Gathered] = []  # connections whose read waits for the next turn, once each
        self._watched: set[Client] = set()
        self._unpackers: list[Any] = []
        self._parsers: dict[frozenset[str], dict[bytes, Parser]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def gather(self, connection: Gathered) -> None:
        """Defers a connection's read to the beginning of the next turn; a connection may have one deferred read."""
        self._gathered.append(connection)
        if len(self._gathered) == 1:
            self.gathered_ns = self.clock()
            self.gate.before_turn(self.take_gathered)

    def take_gathered(self) -> None:
        """Carries out all deferred reads."""
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
        """Reports the error to the event loop and aborts the connections `ends`, as the loop aborts a connection whose
        callback raises.
        """
        asyncio.get_running_loop().call_exception_handler({"message": "a connection met a bug", "exception": error})
        for connection in ends:
            connection.abort()

    def submit(self, requests: Sequence[Request]) -> None:
        """Submits commands to the gate. An exception of the gate is passed to `fail` and raised again."""
        try:
            self.gate.submit_all(requests)
        except BaseException as error:
            self.fail(error)
            raise

    def start(self) -> None:
        """Runs `sweep` once a second from now on, until `close`."""
        self._timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._on_timer)

    def _on_timer(self) -> None:
        self.start()
        self.sweep()

    def sweep(self) -> None:
        """Ends the connections that are past a deadline, and logs how many connections and requests were refused."""
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
        """Whether too many requests are in flight, so that the caller refuses the next one; counts the refusal."""
        full = self.in_flight >= self.limits.in_flight_total_max
        if full:
            self._busy.count += 1
        return full

    def watch(self, client: Client) -> None:
        """Adds a connection to those that `sweep` checks."""
        self._watched.add(client)

    def take_guard(self, guard: Guard) -> None:
        """Replaces the guard. A connection whose token is no longer valid ends once its requests are answered."""
        before, self.guard = self.guard, guard
        for client in list(self.connections):
            grant = client.granted()
            if grant is not None and not guard.outlives(grant, before):
                self.drops += 1
                client.end(b"")

    def drain(self) -> None:
        """Stops reading; each connection is closed once its requests are answered."""
        for client in list(self.connections):
            client.end(b"")

    def close(self) -> None:
        """Stops `sweep`, and aborts all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for client in list(self.connections):
            client.abort()

    def audited(self, actor: bytes, method: Method, body: tuple[Any, ...], act: Callable[[], None]) -> None:
        """Calls `act`: once the request is on record where it is an operator's and changes something, else at once."""
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
        """Records that a client at `origin` presented an unknown token."""
        if self._audit is not None:
            self._audit.refused_sign_in(origin)

    def note_error(self, reply: object) -> None:
        """Counts the reply if it is an error."""
        name = error_name_of(reply)
        if name:
            self.errors[name] = self.errors.get(name, 0) + 1

    def figures(self) -> dict[str, object]:
        """Returns the door's counters for the operator, as plain data."""
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
        """Returns the reply of the procedure `server_info`."""
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
        """Returns the reply to a parsed call of kind LOCAL, except `hello`, which the connection answers itself."""
        if name == "bucket_id":
            return self.gate.bucket_of(body[1])
        if name == "server_info":
            return self.server_info()
        if name == "methods":
            return describe()
        assert name == "ping", f"the door has no answer to {name}"
        return "pong"

    def parsers_of(self, roles: frozenset[str]) -> dict[bytes, Parser]:
        """Returns the parsers of the commands that `roles` may call; all connections of these roles share one dict."""
        parsers = self._parsers.get(roles)
        if parsers is None:
            parsers = self._parsers[roles] = command_parsers(roles)
        return parsers

    def lend_unpacker(self) -> Any:
        """Returns a decoder that holds no part of a frame."""
        return self._unpackers.pop() if self._unpackers else make_unpacker()

    def take_back(self, unpacker: Any) -> None:
        """Takes back a decoder that holds no part of a frame."""
        if len(self._unpackers) < UNPACKERS_KEPT_MAX:
            self._unpackers.append(unpacker)
