"""The table of procedures: one for every door, and the only place where a procedure is born.

Each row says what a procedure is called, what it takes, what kind it is, which role may call it and, in one line, what
it does; its parser is the function of the same name in `calls` or `questions`. The kind tells a door where the parsed
tuple goes:

    command    a change of one account: a `Command`, to the owner of the user's bucket; answered once durable
    query      a question about one account: `(name, user_id, …)`, to the owner of the user's bucket
    operation  the operator's side and whole-daemon questions: `(name, …)`, to the worker the door belongs to
    local      answered by the door itself: `(name, …)`

Deny by default: a role may call what names it here and nothing else, `admin` may call everything, and only `hello` and
`ping` need no role at all. What `methods` answers is made of this table.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from billing.api import calls, questions
from billing.ledger.errors import Refused

COMMAND: Final = "command"
QUERY: Final = "query"
OPERATION: Final = "operation"
LOCAL: Final = "local"

READ: Final = "read"
CHARGE: Final = "charge"
TOP_UP: Final = "top_up"
ADMIN: Final = "admin"
ROLES: Final = frozenset({READ, CHARGE, TOP_UP, ADMIN})
ANYONE: Final = "anyone"  # needs no sign-in; no token can carry it

# A reply of many rows holds as much memory as this many ordinary ones; a connection's requests in flight are
# counted in ordinary ones.
LISTING_WEIGHT: Final = 256

Parser = Callable[[object], tuple[Any, ...]]


class Field(NamedTuple):
    """A parameter or an option: its name and, in words a client's author understands, its type."""

    name: str
    type: str


class Method(NamedTuple):
    """One row of the table."""

    name: str
    kind: str
    role: str
    required: tuple[Field, ...]
    options: tuple[Field, ...]
    doc: str
    parse: Parser
    weight: int

    def describe(self) -> dict[str, object]:
        """The row as `methods` answers it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            "params": [field._asdict() for field in self.required],
            "options": [field._asdict() for field in self.options],
            "doc": self.doc,
        }


class Call(NamedTuple):
    """A parsed request. `user_id` is empty where the procedure is not about one account."""

    method: Method
    user_id: bytes
    body: tuple[Any, ...]


USER_ID = Field("user_id", "text of 1-128 bytes, or integer")
AMOUNT = Field("amount", "integer of nanos above 0, or decimal string of coins")
REQUEST_ID = Field("request_id", "text or bytes, 1-64 bytes")
MESSAGE = Field("message", "text of at most 1024 bytes")
PER = Field("per", "second (default), minute or hour")
RESOURCE = Field("resource", "text of at most 128 bytes, default empty")
HOLD_ID = Field("hold_id", "text")
BUCKET_ID = Field("bucket_id", "integer")
LIMIT = Field("limit", "integer, 1-1000")
AFTER = Field("after", "user_id")


def _row(
    kind: str,
    role: str,
    parse: Parser,
    doc: str,
    required: tuple[Field, ...] = (),
    options: tuple[Field, ...] = (),
    weight: int = 1,
) -> Method:
    return Method(parse.__name__, kind, role, required, options, doc, parse, weight)


_ROWS: Final = (
    _row(
        COMMAND,
        TOP_UP,
        calls.top_up,
        "adds money; creates the account if it is new",
        (USER_ID, AMOUNT),
        (REQUEST_ID, MESSAGE),
    ),
    _row(
        COMMAND,
        CHARGE,
        calls.set_rate,
        "sets the rate of one rate line; the account's rate is the sum of its lines",
        (USER_ID, Field("rate", "integer of nanos, or decimal string of coins; 0 allowed")),
        (
            PER,
            RESOURCE,
            Field("rate_seq", "integer; one that is not newer is refused"),
            Field("min_runway_ns", "integer; refuses where the money would last for less"),
            REQUEST_ID,
            MESSAGE,
        ),
    ),
    _row(
        COMMAND,
        CHARGE,
        calls.change_rate,
        "adds to a rate line, or takes from it",
        (USER_ID, Field("delta", "signed integer of nanos, or decimal string of coins")),
        (PER, RESOURCE, REQUEST_ID, MESSAGE),
    ),
    _row(
        COMMAND,
        CHARGE,
        calls.debit,
        "a one-off charge",
        (USER_ID, AMOUNT),
        (Field("mode", "strict (default), partial or force"), REQUEST_ID, MESSAGE),
    ),
    _row(
        COMMAND,
        ADMIN,
        calls.set_credit_limit,
        "how far below zero available money reaches",
        (USER_ID, Field("amount", "integer of nanos, or decimal string of coins; 0 allowed")),
        (REQUEST_ID,),
    ),
    _row(QUERY, READ, questions.get_account, "everything about the account now", (USER_ID,)),
    _row(
        OPERATION,
        READ,
        questions.accounts,
        "accounts in order of user_id, a page",
        (),
        (AFTER, LIMIT),
        LISTING_WEIGHT,
    ),
    _row(
        QUERY,
        READ,
        questions.history,
        "the account's entries, newest first",
        (USER_ID,),
        (LIMIT, Field("before", "entry_id")),
        LISTING_WEIGHT,
    ),
    _row(
        COMMAND,
        CHARGE,
        calls.hold,
        "reserves money",
        (USER_ID, AMOUNT),
        (Field("ttl_ns", "integer above 0"), REQUEST_ID),
    ),
    _row(
        COMMAND,
        CHARGE,
        calls.capture,
        "takes part or all of a hold and frees the rest",
        (USER_ID, HOLD_ID, AMOUNT),
        (REQUEST_ID,),
    ),
    _row(COMMAND, CHARGE, calls.release, "gives a hold back", (USER_ID, HOLD_ID), (REQUEST_ID,)),
    _row(
        COMMAND,
        ADMIN,
        calls.adjust,
        "a correction, booked as such",
        (
            USER_ID,
            Field("amount", "signed integer of nanos, or decimal string of coins"),
            Field("reason", "text of 1-1024 bytes"),
        ),
        (REQUEST_ID,),
    ),
    _row(
        COMMAND,
        ADMIN,
        calls.set_thresholds,
        "when to send low-balance notices",
        (USER_ID, Field("thresholds", "array of maps of either amount or runway_ns")),
        (REQUEST_ID,),
    ),
    _row(
        COMMAND,
        ADMIN,
        calls.close_account,
        "closes an account at rate 0 without debt, hold or owed cutoff; pays out the rest as an entry",
        (USER_ID,),
        (REQUEST_ID,),
    ),
    _row(
        LOCAL,
        ANYONE,
        questions.hello,
        "signs in; errors = map asks for structured errors on this connection",
        (),
        (Field("token", "text"), Field("errors", "map or string")),
    ),
    _row(LOCAL, ANYONE, questions.ping, "answers pong"),
    _row(LOCAL, READ, questions.server_info, "version and limits"),
    _row(LOCAL, READ, questions.methods, "this table"),
    _row(LOCAL, READ, questions.bucket_id, "the bucket a user hashes to", (USER_ID,)),
    _row(
        OPERATION,
        READ,
        questions.route,
        "who owns each bucket, and where to call; only its version where that is the one given",
        (),
        (Field("version", "integer"),),
        LISTING_WEIGHT,
    ),
    _row(OPERATION, READ, questions.buckets_info, "each bucket's owner, state and size", (), (), LISTING_WEIGHT),
    _row(OPERATION, READ, questions.shards_info, "each shard's process, buckets and load"),
    _row(
        OPERATION,
        ADMIN,
        questions.move_bucket,
        "moves a bucket to a shard; answers when the target serves",
        (BUCKET_ID, Field("shard_id", "integer")),
    ),
    _row(OPERATION, ADMIN, questions.pin_bucket, "keeps the rebalancer off a bucket", (BUCKET_ID,)),
    _row(OPERATION, ADMIN, questions.unpin_bucket, "lets the rebalancer move a bucket again", (BUCKET_ID,)),
    _row(
        OPERATION,
        ADMIN,
        questions.rebalance,
        "moves buckets until the load is even; with plan = true only says which",
        (),
        (Field("plan", "true or false"),),
    ),
    _row(QUERY, READ, questions.explain, "why an account stands where it stands", (USER_ID,), (), LISTING_WEIGHT),
    _row(
        OPERATION,
        READ,
        questions.explain_move,
        "what a move of the bucket waits for, and whose that is",
        (BUCKET_ID,),
        (Field("shard_id", "integer, where it should go"),),
    ),
    _row(OPERATION, READ, questions.check_owners, "whether each bucket has exactly one owner, and adds up"),
    _row(
        OPERATION,
        ADMIN,
        questions.backup,
        "holds files still and names the positions to copy them up to; see billing backup",
        (Field("step", "begin, renew or end"),),
    ),
    _row(
        OPERATION,
        READ,
        questions.pending_cutoffs,
        "what is owed to the cutoff URL; all rows of a user are on one page",
        (),
        (AFTER, LIMIT),
        LISTING_WEIGHT,
    ),
    _row(OPERATION, READ, questions.expirationd_stats, "what was checked and fired, per shard, and mismatches"),
    _row(QUERY, ADMIN, questions.retry_cutoff, "tries an account's owed cutoff at once", (USER_ID,)),
    _row(OPERATION, ADMIN, questions.release_cutoffs, "lets the cutoffs go that a start held back"),
    _row(
        OPERATION,
        READ,
        questions.forecast,
        "how many cutoffs are coming, by the second or minute",
        (),
        (Field("within_ns", "integer"), Field("step_ns", "integer")),
        LISTING_WEIGHT,
    ),
)

METHODS: Final[dict[str, Method]] = {row.name: row for row in _ROWS}
assert len(METHODS) == len(_ROWS), "two procedures share a name"

BY_WIRE_NAME: Final[dict[bytes, Method]] = {row.name.encode("ascii"): row for row in _ROWS}


def describe() -> list[dict[str, object]]:
    """What `methods` answers: the table, in its own order."""
    return [row.describe() for row in _ROWS]


def allowed(method: Method, roles: frozenset[str]) -> bool:
    """Whether one of `roles` may call the procedure."""
    return method.role == ANYONE or method.role in roles or ADMIN in roles


def command_parsers(roles: frozenset[str]) -> dict[bytes, Parser]:
    """Wire name -> parser of each command that one of `roles` may call: the hot path's only look-up."""
    return {name: row.parse for name, row in BY_WIRE_NAME.items() if row.kind == COMMAND and allowed(row, roles)}


def find(name: object) -> Method | None:
    """The row of a method name as it came over a wire (bytes or str); None when there is none."""
    if type(name) is str:
        return METHODS.get(name)
    return BY_WIRE_NAME.get(name) if type(name) is bytes else None


def parse(name: object, params: object) -> Call:
    """A request as any door may hand it in, checked and canonical. Refused `UNKNOWN_METHOD`, `INVALID_PARAMS`, or
    the name that belongs to the value at fault.
    """
    method = find(name)
    if method is None:
        raise Refused("UNKNOWN_METHOD", "there is no such method; call methods for a list")
    body = method.parse(params)
    about_account = method.kind in (COMMAND, QUERY) or method.name == "bucket_id"
    return Call(method, body[1] if about_account else b"", body)
