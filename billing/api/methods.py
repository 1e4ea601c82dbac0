"""The table of methods: all doors share it, and every method is defined here and nowhere else.

Each row gives a method's name, its fields with their types (see `values`), the shape of its reply (see `shapes`), the
refusals of the ledger that it may answer, its kind, the role that may call it, and one line of description. The rows
are the source of the parser of each method, the reply of `methods`, the routes and the OpenAPI document of the HTTP
door, the types and methods of `billing.client`, and the options of the command line.

The kind tells a door where the parsed tuple goes:

    command    a change of one account: a `Command`, to the owner of the user's bucket; answered once durable
    query      a question about one account: `(name, user_id, …)`, to the owner of the user's bucket
    operation  an operator's request, or a question about the whole daemon: `(name, …)`, to the door's own worker
    local      a question that the door itself answers: `(name, …)`

A parser takes the `params` that the client sent: an array of the required fields and then at most one map of options,
or nil for an empty array. It returns the canonical tuple: `(name, required…, options…)` in the order of the row, or the
tuple that the row's `build` makes of the same values, passed by name. It raises `Refused`. Three methods make up nearly
all requests of a busy day; their parsers are written by hand in `calls`, and a test compares them with the parsers made
of their rows.

Deny by default: a role may call only the methods whose row names it, `admin` may call every method, and only `hello`
and `ping` need no role at all.

**To add a question**, add a row here and the code that answers it. **To add a command**, add its number in
`billing.ledger.commands`, its handler in the ledger, and a row here with a `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from billing.api import calls, shapes
from billing.api.params import invalid, pairs_of, split_params, unknown_option
from billing.api.shapes import Reply
from billing.api.values import (
    SIGNED,
    ZERO_TOO,
    Amount,
    Array,
    Enum,
    Flag,
    Instant,
    Integer,
    Key,
    Rate,
    Span,
    Text,
    Thresholds,
    Type,
    UserId,
    WordSet,
)
from billing.ledger.commands import (
    CAPTURE,
    CLASS_BYTES_MAX,
    CLOSE,
    HOLD,
    HOLD_ID_BYTES_MAX,
    KIND_BYTES_MAX,
    LEASE_NS_MIN,
    MESSAGE_BYTES_MAX,
    MODES,
    RELEASE,
    REQUEST_ID_BYTES_MAX,
    RESOURCE_BYTES_MAX,
    SET_CREDIT_LIMIT,
)
from billing.ledger.errors import KINDS, Refused
from billing.ledger.money import INT64_MAX

COMMAND: Final = "command"
QUERY: Final = "query"
OPERATION: Final = "operation"
LOCAL: Final = "local"

READ: Final = "read"
CHARGE: Final = "charge"
TOP_UP: Final = "top_up"
ADMIN: Final = "admin"
ROLES: Final = frozenset({READ, CHARGE, TOP_UP, ADMIN})
ANYONE: Final = "anyone"  # of methods that need no sign-in; no token can have it

# A reply of many rows takes as much memory as this many ordinary replies; its request counts as this many requests in
# flight.
LISTING_WEIGHT: Final = 256

HISTORY_ROWS_DEFAULT: Final = 100
HISTORY_ROWS_MAX: Final = 1_000
PAGE_ROWS_MAX: Final = 1_000
NEWEST: Final = INT64_MAX  # the entry_id that the first page of a history stays below
SECOND_NS: Final = 10**9
FORECAST_NS_DEFAULT: Final = 3_600 * SECOND_NS
FORECAST_NS_MAX: Final = 7 * 86_400 * SECOND_NS
FORECAST_SECONDS_UP_TO_NS: Final = 300 * SECOND_NS  # a forecast up to here shows each second, a longer one minutes
FORECAST_STEPS_MAX: Final = 20_000
TOKEN_BYTES_MAX: Final = 512
CURSOR_BYTES_MAX: Final = 4_096  # enough for 120 shards
ACTOR_BYTES_MAX: Final = 255

METHOD_BYTES_MAX: Final = 64
PARAMS_MAX: Final = 8

# Refusals that any method about an account may answer besides those of its row, and refusals that any method may.
ACCOUNT_ERRORS: Final = ("INVALID_USER_ID", "UNKNOWN_ACCOUNT", "BUCKET_MOVING", "WRONG_BUCKET")
COMMON_ERRORS: Final = ("INVALID_PARAMS", "UNAUTHENTICATED", "FORBIDDEN", "UNAVAILABLE", "BUSY", "INTERNAL")

Parser = Callable[..., tuple[Any, ...]]  # takes the params and, for a command, the actor
Build = Callable[..., tuple[Any, ...]]


class Field(NamedTuple):
    """A parameter or an option: its name, its type and, for an option, its default."""

    name: str
    type: Type
    default: Any = None
    doc: str = ""

    def describe(self) -> dict[str, object]:
        """Returns the field as `methods` answers it: `type` is for people, `kind` and the bounds for machines."""
        return {
            "name": self.name,
            "type": self.type.description + (f"; {self.doc}" if self.doc else ""),
            "kind": self.type.kind,
            **self.type.bounds,
        }


class Method(NamedTuple):
    """One row of the table."""

    name: str
    kind: str
    role: str
    required: tuple[Field, ...]
    options: tuple[Field, ...]
    reply: Reply
    refusals: tuple[str, ...]  # of its own row; see `errors`
    doc: str
    parse: Parser
    by_row: Parser  # the parser made of the row: `parse` itself, except where that is written by hand
    weight: int

    def body(self, params: object, actor: bytes) -> tuple[Any, ...]:
        """Returns the canonical tuple of the params; a command includes `actor`. Raises Refused."""
        return self.parse(params, actor) if self.kind == COMMAND else self.parse(params)

    @property
    def about_account(self) -> bool:
        """Whether the second value of the parsed tuple is a user id."""
        return self.kind in (COMMAND, QUERY) or bool(self.required and self.required[0].name == "user_id")

    @property
    def changes(self) -> bool:
        """Whether a call may change something."""
        return self.kind == COMMAND or (self.kind != LOCAL and self.role not in (READ, ANYONE) and not self.only_looks)

    @property
    def only_looks(self) -> bool:
        """Whether the method needs the role of operators although it changes nothing."""
        return self.name == "audit"

    @property
    def errors(self) -> tuple[str, ...]:
        """The names of all refusals that a call may get."""
        keyed = ("REQUEST_ID_CONFLICT",) if self.option("request_id") is not None else ()
        of_account: tuple[str, ...] = ACCOUNT_ERRORS if self.about_account else ()
        if self.kind == LOCAL:  # the user id alone is looked at
            of_account = of_account[:1]
        elif self.name == "top_up":  # opens the account
            of_account = tuple(name for name in of_account if name != "UNKNOWN_ACCOUNT")
        names = self.refusals + keyed + of_account
        return tuple(dict.fromkeys(names + COMMON_ERRORS))

    def option(self, name: str) -> Field | None:
        """Returns the option called `name`; None where there is none."""
        return next((field for field in self.options if field.name == name), None)

    def describe(self) -> dict[str, object]:
        """Returns the row as `methods` answers it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            "params": [field.describe() for field in self.required],
            "options": [field.describe() for field in self.options],
            "reply": self.reply.describe(),
            "errors": list(self.errors),
            "doc": self.doc,
        }


class Call(NamedTuple):
    """A parsed request. `user_id` is empty where the method is not about one account."""

    method: Method
    user_id: bytes
    body: tuple[Any, ...]


def parser_of(required: tuple[Field, ...], options: tuple[Field, ...], build: Build) -> Parser:
    """Returns the parser of a method with these fields, which passes the parsed values to `build` by name."""
    count, expected = len(required), ", ".join(field.name for field in required)
    names = [field.name for field in options]
    by_key = {field.name.encode(): field for field in options}
    defaults = {field.name: field.default for field in options}

    def parse(params: object, actor: bytes = b"") -> tuple[Any, ...]:
        values, optional = split_params(params, count, expected)
        arguments = defaults.copy()
        for key, value in pairs_of(optional):
            option = by_key.get(key) if type(key) is bytes else None
            if option is None:
                raise unknown_option(key, names)
            if value is not None:
                arguments[option.name] = option.type.parse(value, option.name)
        for field, value in zip(required, values, strict=True):
            arguments[field.name] = field.type.parse(value, field.name)
        command = build(**arguments)
        return (*command[:-1], actor) if actor else command

    return parse


def _row(
    kind: str,
    role: str,
    name: str,
    doc: str,
    reply: Reply,
    required: tuple[Field, ...] = (),
    options: tuple[Field, ...] = (),
    refusals: tuple[str, ...] = (),
    build: Build | None = None,
    parse: Parser | None = None,
    weight: int = 1,
) -> Method:
    order = [field.name for field in (*required, *options) if field is not ONE_SHARD]

    def plain(**values: Any) -> tuple[Any, ...]:
        return (name, *(values[field] for field in order))

    builder = build or plain
    by_row = parser_of(required, options, _to_one_shard(builder) if ONE_SHARD in options else builder)
    return Method(name, kind, role, required, options, reply, refusals, doc, parse or by_row, by_row, weight)


def _forecast(within_ns: int, step_ns: int) -> tuple[Any, ...]:
    step_ns = step_ns or (SECOND_NS if within_ns <= FORECAST_SECONDS_UP_TO_NS else 60 * SECOND_NS)
    if within_ns > step_ns * FORECAST_STEPS_MAX:
        raise Refused("LIMIT_EXCEEDED", f"step_ns is so small that within_ns has more than {FORECAST_STEPS_MAX} steps")
    return ("forecast", within_ns, step_ns)


def _to_one_shard(build: Build) -> Build:
    """Returns a `build` with one more value, `shard_id`: it makes the question to all shards that `build` makes or,
    where `shard_id` is above 0, the same question to that shard alone.
    """

    def build_for_shard(shard_id: int, **values: Any) -> tuple[Any, ...]:
        operation = build(**values)
        return ("of_shard", shard_id, operation) if shard_id else operation

    return build_for_shard


def _statement(user_id: bytes, from_ns: int, to_ns: int, by: bool, limit: int) -> tuple[Any, ...]:
    if from_ns > to_ns:
        raise invalid("from_ns lies behind to_ns")
    return ("statement", user_id, from_ns, to_ns, by, limit)


def _dry_run(method: bytes, params: list[Any]) -> tuple[Any, ...]:
    row = find(method)
    if row is None or row.kind != COMMAND:
        raise invalid("method must be that of a procedure that changes an account")
    command = row.body(params, b"")
    return ("dry_run", command[1], command)


_PERIODS: Final[Mapping[str, str]] = {"second": "second", "minute": "minute", "hour": "hour"}

USER_ID: Final = Field("user_id", UserId())
AMOUNT: Final = Field("amount", Amount())
REQUEST_ID: Final = Field("request_id", Key(REQUEST_ID_BYTES_MAX), b"", "a call that comes again has its first answer")
MESSAGE: Final = Field("message", Text(MESSAGE_BYTES_MAX), b"", "goes into the entry")
PER: Final = Field("per", Enum(_PERIODS, "second", raw=True), b"second", "unit of the rate")
RESOURCE: Final = Field("resource", Text(RESOURCE_BYTES_MAX), b"", "names the rate line")
HOLD_ID: Final = Field("hold_id", Text(HOLD_ID_BYTES_MAX, 1))
BUCKET_ID: Final = Field("bucket_id", Integer(1))
SHARD_ID: Final = Field("shard_id", Integer())
ONE_SHARD: Final = Field("shard_id", Integer(1), 0, "of this shard alone, as where another one does not answer")
AFTER: Final = Field("after", UserId(empty=True), b"", "behind which the page starts")
LIMIT: Final = Field("limit", Integer(1, PAGE_ROWS_MAX), PAGE_ROWS_MAX)

_ROWS: Final = (
    _row(
        COMMAND,
        TOP_UP,
        "top_up",
        "adds money; creates the account if it is new",
        shapes.one(shapes.STANDING),
        (USER_ID, AMOUNT),
        (
            Field("expires_at_ns", Instant(), -1, "when what is left of it is gone"),
            Field("kind", Text(KIND_BYTES_MAX), b"", "what the caller calls this money"),
            REQUEST_ID,
            MESSAGE,
        ),
        ("INVALID_AMOUNT", "LIMIT_EXCEEDED"),
        calls.top_up_of,
        calls.top_up,
    ),
    _row(
        COMMAND,
        CHARGE,
        "set_rate",
        "sets the rate of one rate line; the account's rate is the sum of its lines",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("rate", Rate())),
        (
            PER,
            RESOURCE,
            Field("rate_seq", Integer(), -1, "refused unless newer than the last one of the line"),
            Field("min_runway_ns", Span(), -1, "refuses where the money would last for less"),
            Field(
                "ttl_ns",
                Span(LEASE_NS_MIN),
                -1,
                "how long until the line is zero by itself, unless it is reported again",
            ),
            REQUEST_ID,
            MESSAGE,
        ),
        ("INVALID_RATE", "LIMIT_EXCEEDED", "STALE_RATE", "INSUFFICIENT_RUNWAY"),
        calls.set_rate_of,
        calls.set_rate,
    ),
    _row(
        COMMAND,
        CHARGE,
        "change_rate",
        "adds to a rate line, or takes from it",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("delta", Rate(SIGNED))),
        (PER, RESOURCE, REQUEST_ID, MESSAGE),
        ("INVALID_RATE", "LIMIT_EXCEEDED"),
        calls.change_rate_of,
    ),
    _row(
        COMMAND,
        CHARGE,
        "debit",
        "a one-off charge",
        shapes.one(shapes.DEBIT),
        (USER_ID, AMOUNT),
        (
            Field(
                "mode",
                Enum(MODES, "strict"),
                MODES["strict"],
                "where there is not enough: refuse, take the rest, or go below zero",
            ),
            REQUEST_ID,
            MESSAGE,
        ),
        ("INVALID_AMOUNT", "INSUFFICIENT_FUNDS", "LIMIT_EXCEEDED"),
        calls.debit_of,
        calls.debit,
    ),
    _row(
        COMMAND,
        ADMIN,
        "set_credit_limit",
        "how far below zero available money reaches",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("amount", Amount(ZERO_TOO))),
        (REQUEST_ID, MESSAGE),
        ("INVALID_AMOUNT", "LIMIT_EXCEEDED"),
        calls.command_of(SET_CREDIT_LIMIT, a="amount"),
    ),
    _row(QUERY, READ, "get_account", "everything about the account now", shapes.one(shapes.ACCOUNT), (USER_ID,)),
    _row(
        OPERATION,
        READ,
        "accounts",
        "accounts in order of user_id, a page, as they stand now",
        shapes.rows(shapes.ACCOUNT_ROW, "after", "user_id"),
        (),
        (
            AFTER,
            LIMIT,
            Field("state", Enum({"active": "active", "exhausted": "exhausted"}), "", "only accounts in this state"),
            Field("exhausts_within_ns", Span(), -1, "only accounts that run out within that time"),
            Field("with", WordSet(("rates", "holds")), (), "what is added to each row"),
            Field("class", Text(CLASS_BYTES_MAX), b"", "only accounts in this cutoff class; default names the default"),
            Field("overrunning", Flag(), 0, "only accounts that have run out and whose rate is still above zero"),
            ONE_SHARD,
        ),
        ("UNKNOWN_SHARD",),
        weight=LISTING_WEIGHT,
    ),
    _row(
        QUERY,
        READ,
        "history",
        "the account's entries, newest first",
        shapes.rows(shapes.HISTORY_ROW, "before", "entry_id"),
        (USER_ID,),
        (
            Field("limit", Integer(1, HISTORY_ROWS_MAX), HISTORY_ROWS_DEFAULT),
            Field("before", Integer(suffix=", an entry_id"), NEWEST, "which the page stays below"),
        ),
        weight=LISTING_WEIGHT,
    ),
    _row(
        OPERATION,
        READ,
        "entries",
        "all entries behind a cursor, once each, those of an account in their order; the last row has the next cursor",
        shapes.rows(shapes.FEED_ROW, "after", "cursor"),
        (),
        (Field("after", Text(CURSOR_BYTES_MAX), b"", "the cursor of the last row that was had"), LIMIT),
        ("UNKNOWN_CURSOR",),
        weight=LISTING_WEIGHT,
    ),
    _row(
        QUERY,
        READ,
        "balance_at",
        "the account as it was at an instant, behind the entries of that instant",
        shapes.one(shapes.BALANCE_AT),
        (USER_ID, Field("at_ns", Instant(), doc="one to come means now")),
    ),
    _row(
        QUERY,
        READ,
        "statement",
        "a period: balance at from_ns and at to_ns, what accrued, the entries from from_ns up to, not including, to_ns",
        shapes.one(shapes.STATEMENT),
        (USER_ID, Field("from_ns", Instant()), Field("to_ns", Instant(), doc="one to come means now")),
        (
            Field("by", Enum({"resource": True}), False, "itemises what accrued by rate line"),
            Field("limit", Integer(0, HISTORY_ROWS_MAX), HISTORY_ROWS_MAX, "of the entries in the answer"),
        ),
        ("LIMIT_EXCEEDED",),
        _statement,
        weight=LISTING_WEIGHT,
    ),
    _row(
        QUERY,
        READ,
        "dry_run",
        "what a procedure that changes an account would answer now; nothing changes",
        shapes.ANY,
        (
            Field("method", Text(METHOD_BYTES_MAX, 1), doc="the name of the procedure"),
            Field("params", Array(PARAMS_MAX, "array, as that procedure takes")),
        ),
        (),
        tuple(
            name for name, kind in KINDS.items() if kind.code // 100 == 2 or name in ("INVALID_AMOUNT", "INVALID_RATE")
        ),
        _dry_run,
    ),
    _row(
        COMMAND,
        CHARGE,
        "hold",
        "reserves money",
        shapes.one(shapes.HOLD),
        (USER_ID, AMOUNT),
        (Field("ttl_ns", Span(1), 0, "how long until it is given back by itself"), REQUEST_ID, MESSAGE),
        ("INVALID_AMOUNT", "INSUFFICIENT_FUNDS", "LIMIT_EXCEEDED"),
        calls.command_of(HOLD, a="amount", b="ttl_ns"),
    ),
    _row(
        COMMAND,
        CHARGE,
        "capture",
        "takes part or all of a hold and frees the rest",
        shapes.one(shapes.CAPTURE),
        (USER_ID, HOLD_ID, AMOUNT),
        (REQUEST_ID, MESSAGE),
        ("INVALID_AMOUNT", "UNKNOWN_HOLD", "INSUFFICIENT_FUNDS", "LIMIT_EXCEEDED"),
        calls.command_of(CAPTURE, a="amount", key="hold_id"),
    ),
    _row(
        COMMAND,
        CHARGE,
        "release",
        "gives a hold back",
        shapes.one(shapes.STANDING),
        (USER_ID, HOLD_ID),
        (REQUEST_ID, MESSAGE),
        ("UNKNOWN_HOLD",),
        calls.command_of(RELEASE, key="hold_id"),
    ),
    _row(
        COMMAND,
        ADMIN,
        "adjust",
        "a correction, booked as such",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("amount", Amount(SIGNED)), Field("reason", Text(MESSAGE_BYTES_MAX, 1))),
        (
            REQUEST_ID,
            Field("message", Text(MESSAGE_BYTES_MAX), b"", "goes into the entry behind the reason"),
        ),
        ("INVALID_AMOUNT", "LIMIT_EXCEEDED"),
        calls.adjust_of,
    ),
    _row(
        COMMAND,
        ADMIN,
        "set_thresholds",
        "when to send low-balance notices",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("thresholds", Thresholds())),
        (REQUEST_ID, MESSAGE),
        ("INVALID_AMOUNT",),
        calls.set_thresholds_of,
    ),
    _row(
        COMMAND,
        ADMIN,
        "set_class",
        "puts the account in a cutoff class of the configuration; default is the one that [cutoff] says",
        shapes.one(shapes.STANDING),
        (USER_ID, Field("class", Text(CLASS_BYTES_MAX, 1))),
        (REQUEST_ID, MESSAGE),
        (),
        calls.set_class_of,
    ),
    _row(
        COMMAND,
        ADMIN,
        "close_account",
        "closes an account at rate 0 without debt, hold or owed cutoff; pays out the rest as an entry",
        shapes.one(shapes.CLOSING),
        (USER_ID,),
        (REQUEST_ID, MESSAGE),
        ("ACCOUNT_NOT_CLOSABLE",),
        calls.command_of(CLOSE),
    ),
    _row(
        LOCAL,
        ANYONE,
        "hello",
        "signs in; errors = map asks for structured errors on this connection",
        shapes.one(shapes.SIGNED_IN),
        (),
        (
            Field("token", Text(TOKEN_BYTES_MAX, 1), b""),
            Field("errors", Enum({"map": "map", "string": "string"}), ""),
        ),
    ),
    _row(LOCAL, ANYONE, "ping", "answers pong", shapes.TEXT),
    _row(LOCAL, READ, "server_info", "version and limits", shapes.one(shapes.SERVER_INFO)),
    _row(LOCAL, READ, "methods", "this table", shapes.ANY),
    _row(LOCAL, READ, "bucket_id", "the bucket a user hashes to", shapes.INTEGER, (USER_ID,)),
    _row(
        OPERATION,
        READ,
        "route",
        "who owns each bucket, and where to call; only its version where that is the one given",
        shapes.ANY,
        (),
        (Field("version", Integer(), 0),),
        weight=LISTING_WEIGHT,
    ),
    _row(
        OPERATION,
        READ,
        "buckets_info",
        "each bucket's owner, state and size",
        shapes.rows(shapes.BUCKET),
        weight=LISTING_WEIGHT,
    ),
    _row(OPERATION, READ, "shards_info", "each shard's process, buckets and load", shapes.rows(shapes.SHARD)),
    _row(
        OPERATION,
        ADMIN,
        "move_bucket",
        "moves a bucket to a shard; answers when the target serves",
        shapes.one(shapes.MOVED),
        (BUCKET_ID, SHARD_ID),
        (),
        ("UNKNOWN_BUCKET", "UNKNOWN_SHARD", "BUCKET_PINNED", "MOVE_REFUSED"),
    ),
    _row(
        OPERATION,
        ADMIN,
        "pin_bucket",
        "keeps the rebalancer off a bucket",
        shapes.one(shapes.PINNED),
        (BUCKET_ID,),
        (),
        ("UNKNOWN_BUCKET",),
    ),
    _row(
        OPERATION,
        ADMIN,
        "unpin_bucket",
        "lets the rebalancer move a bucket again",
        shapes.one(shapes.PINNED),
        (BUCKET_ID,),
        (),
        ("UNKNOWN_BUCKET",),
    ),
    _row(
        OPERATION,
        ADMIN,
        "rebalance",
        "moves buckets until the load is even; with plan = true only says which",
        shapes.one(shapes.REBALANCE),
        (),
        (Field("plan", Flag(), 0),),
    ),
    _row(
        QUERY,
        READ,
        "explain",
        "why an account stands where it stands",
        shapes.one(shapes.EXPLAINED),
        (USER_ID,),
        weight=LISTING_WEIGHT,
    ),
    _row(
        OPERATION,
        READ,
        "explain_move",
        "what a move of the bucket waits for, and whose that is",
        shapes.one(shapes.EXPLAIN_MOVE),
        (BUCKET_ID,),
        (Field("shard_id", Integer(1), 0, "where it should go"),),
        ("UNKNOWN_BUCKET", "UNKNOWN_SHARD"),
    ),
    _row(
        OPERATION,
        READ,
        "check_owners",
        "whether each bucket has exactly one owner, and adds up",
        shapes.one(shapes.OWNERS),
    ),
    _row(
        OPERATION,
        ADMIN,
        "backup",
        "holds files still and names the positions to copy them up to; see billing backup",
        shapes.ANY,
        (Field("step", Enum({"begin": "begin", "renew": "renew", "end": "end", "cancel": "cancel"})),),
        (),
        ("BACKUP_REFUSED",),
    ),
    _row(
        OPERATION,
        ADMIN,
        "audit",
        "what operators asked of this host, and refused sign-ins, behind a cursor; the last row has the next cursor",
        shapes.rows(shapes.AUDIT_ROW, "after", "cursor"),
        (),
        (
            Field("after", Text(CURSOR_BYTES_MAX), b"", "the cursor of the last row that was had"),
            LIMIT,
            Field("actor", Text(ACTOR_BYTES_MAX), b"", "only what this one asked for"),
            Field("act", Text(ACTOR_BYTES_MAX), b"", "only this: move_bucket, reload, sign_in_refused, …"),
        ),
        ("UNKNOWN_CURSOR",),
        weight=LISTING_WEIGHT,
    ),
    _row(
        OPERATION,
        READ,
        "pending_cutoffs",
        "what is owed to the cutoff URL; all rows of a user are on one page",
        shapes.rows(shapes.PENDING_CUTOFF, "after", "user_id"),
        (),
        (AFTER, LIMIT, ONE_SHARD),
        ("UNKNOWN_SHARD",),
        weight=LISTING_WEIGHT,
    ),
    _row(
        OPERATION,
        READ,
        "expirationd_stats",
        "what was checked and fired, per shard, and mismatches",
        shapes.rows(shapes.EXPIRATION),
        (),
        (ONE_SHARD,),
        ("UNKNOWN_SHARD",),
    ),
    _row(
        QUERY,
        ADMIN,
        "retry_cutoff",
        "tries an account's owed cutoff at once",
        shapes.one(shapes.ACCOUNT),
        (USER_ID,),
        (),
        ("UNKNOWN_CUTOFF",),
    ),
    _row(
        OPERATION,
        ADMIN,
        "release_cutoffs",
        "lets the cutoffs go that a start held back",
        shapes.one(shapes.RELEASED),
    ),
    _row(
        OPERATION,
        READ,
        "forecast",
        "how many cutoffs are coming, by the second or minute",
        shapes.one(shapes.FORECAST),
        (),
        (
            Field("within_ns", Span(SECOND_NS, FORECAST_NS_MAX), FORECAST_NS_DEFAULT, "how far ahead"),
            Field("step_ns", Span(SECOND_NS, FORECAST_NS_MAX, multiple_of=SECOND_NS), 0, "whole seconds"),
            ONE_SHARD,
        ),
        ("LIMIT_EXCEEDED", "UNKNOWN_SHARD"),
        build=_forecast,
        weight=LISTING_WEIGHT,
    ),
)

METHODS: Final[dict[str, Method]] = {row.name: row for row in _ROWS}
assert len(METHODS) == len(_ROWS), "two methods share a name"

BY_WIRE_NAME: Final[dict[bytes, Method]] = {row.name.encode("ascii"): row for row in _ROWS}


def describe() -> list[dict[str, object]]:
    """Returns the reply of `methods`: the table, in its own order."""
    return [row.describe() for row in _ROWS]


def allowed(method: Method, roles: frozenset[str]) -> bool:
    """Whether one of `roles` may call the method."""
    return method.role == ANYONE or method.role in roles or ADMIN in roles


def command_parsers(roles: frozenset[str]) -> dict[bytes, Parser]:
    """Returns wire name -> parser for each command that one of `roles` may call: the only look-up of the hot path."""
    return {name: row.parse for name, row in BY_WIRE_NAME.items() if row.kind == COMMAND and allowed(row, roles)}


def find(name: object) -> Method | None:
    """Returns the row of a method by its name, as a client sent it (bytes or str); None for an unknown name."""
    if type(name) is str:
        return METHODS.get(name)
    return BY_WIRE_NAME.get(name) if type(name) is bytes else None


def parse(name: object, params: object, actor: bytes = b"") -> Call:
    """Checks a request of `actor`, as any door may pass it in, and returns it parsed. Raises Refused `UNKNOWN_METHOD`,
    `INVALID_PARAMS`, or the error name that belongs to the wrong value.
    """
    method = find(name)
    if method is None:
        raise Refused("UNKNOWN_METHOD", "there is no such method; call methods for a list")
    body = method.body(params, actor)
    return Call(method, body[1] if method.about_account else b"", body)
