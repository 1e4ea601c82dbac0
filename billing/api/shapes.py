"""The shapes of replies, defined once for the types of clients, for OpenAPI and for `methods`.

A `Shape` is a map with named fields. Each field has a kind and three flags: `nullable` (it may be nil), `optional` (it
may be absent) and `many` (it is an array of its kind). The kinds of numbers name their unit:

    text  integer  flag      as they are
    nanos                    10**-9 of a coin, signed
    nanos_per_hour           a rate
    nanos_per_second         a rate, rounded down
    instant                  nanoseconds since the epoch
    span                     nanoseconds of time
    enum                     one of `choices`
    rates                    a map from resource to nanos per hour
    instants                 a map from resource to an instant
    map                      a map of another shape
    any                      a value that depends on the method

**A shape names the fields that every reply has, and forbids no others:** a later version may add fields, and clients
ignore the fields that they do not know. A test compares each shape with what the daemon really answers.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Field(NamedTuple):
    """One field of a shape."""

    name: str
    kind: str
    doc: str = ""
    nullable: bool = False
    optional: bool = False  # absent where it does not apply
    many: bool = False  # an array
    choices: tuple[str, ...] = ()
    shape: Shape | None = None

    def describe(self) -> dict[str, object]:
        """Returns the field as `methods` answers it, without flags that are false and texts that are empty."""
        description: dict[str, object] = {"name": self.name, "kind": self.kind}
        for flag in ("nullable", "optional", "many"):
            if getattr(self, flag):
                description[flag] = True
        if self.choices:
            description["choices"] = list(self.choices)
        if self.shape is not None:
            description["shape"] = self.shape.name
        if self.doc:
            description["doc"] = self.doc
        return description


class Shape(NamedTuple):
    """A map with these fields. `name` is the name of clients' types, `doc` their docstring."""

    name: str
    doc: str
    fields: tuple[Field, ...]


class Reply(NamedTuple):
    """The reply of a method: a value of a field's `kind`, a map of `shape` or, with `many`, an array of such maps.
    `cursor` names the option that asks for the next page, and `cursor_field` the field of the last row that has its
    value.
    """

    kind: str = "map"
    shape: Shape | None = None
    many: bool = False
    cursor: str = ""
    cursor_field: str = ""

    def describe(self) -> dict[str, object]:
        """Returns the reply as `methods` answers it."""
        description: dict[str, object] = {"kind": self.kind}
        if self.many:
            description["many"] = True
        if self.shape is not None:
            description["shape"] = self.shape.name
            description["fields"] = [field.describe() for field in self.shape.fields]
        if self.cursor:
            description["cursor"] = {"option": self.cursor, "field": self.cursor_field}
        return description


def _nullable(name: str, kind: str, doc: str = "") -> Field:
    return Field(name, kind, doc, nullable=True)


_USER: Final = Field("user_id", "text")
_STATE: Final = Field("state", "enum", choices=("active", "exhausted"))

_STANDING: Final = (
    _USER,
    Field("bucket_id", "integer", "the bucket the user hashes to"),
    _STATE,
    Field("balance_nanos", "nanos"),
    Field("credit_limit_nanos", "nanos", "how far below zero available money reaches"),
    Field("available_nanos", "nanos", "balance and credit limit less open holds"),
    Field("rate_nanos_per_hour", "nanos_per_hour"),
    Field("rate_nanos_per_second", "nanos_per_second"),
    _nullable("exhausts_at_ns", "instant", "when it runs out if nothing else happens"),
    _nullable("runway_ns", "span", "how long the money lasts"),
    Field(
        "exhaustion_seq",
        "integer",
        "of its newest cutoff: by one more each time, or more after a restore of data; 0: none",
    ),
    Field("entry_id", "integer", "the account's newest entry"),
    Field("at_ns", "instant", "the instant of this answer"),
    Field("replayed", "flag", "whether this is the first answer of a call that came again"),
)

_CLASS: Final = Field("class", "text", "the cutoff class")
_CALLED_AT: Final = _nullable(
    "cutoff_at_ns", "instant", "when the cutoff URL is called if nothing else happens: a grace behind exhausts_at_ns"
)

CUTOFF: Final = Shape(
    "Cutoff",
    "One exhaustion, and what became of its call.",
    (
        Field("event_id", "text"),
        Field("seq", "integer"),
        Field("exhausted_at_ns", "instant"),
        Field("status", "text", "in_grace, pending, delivered, effective or superseded"),
        Field("attempts", "integer"),
        _nullable("last_error", "text"),
        Field(
            "delivered_at_ns",
            "instant",
            "when the 2xx of its call came; not in the reply of the call that restored",
            nullable=True,
            optional=True,
        ),
        Field(
            "restored_at_ns",
            "instant",
            "when the 2xx of its restore came; not in the reply of the call that restored",
            nullable=True,
            optional=True,
        ),
    ),
)
_RESTORED: Final = (
    Field("restored", "flag", "whether this took the account out of exhaustion", optional=True),
    Field("cutoff", "map", "the cutoff that this restored from", optional=True, shape=CUTOFF),
)
STANDING: Final = Shape("Standing", "How an account stands after a command.", _STANDING + _RESTORED)
DEBIT: Final = Shape(
    "Debit",
    "The reply to a debit.",
    (
        *_STANDING,
        Field("outcome", "enum", choices=("ok", "exhausted")),
        Field("debited_nanos", "nanos", "what was taken"),
        *_RESTORED,
    ),
)
HOLD: Final = Shape(
    "Hold",
    "The reply to a hold.",
    (*_STANDING, Field("hold_id", "text", "names the hold in capture and release"), *_RESTORED),
)
CAPTURE: Final = Shape("Capture", "The reply to a capture.", (*_STANDING, Field("captured_nanos", "nanos"), *_RESTORED))
CLOSING: Final = Shape(
    "Closing",
    "The reply to the closing of an account.",
    (
        *_STANDING,
        Field("paid_out_nanos", "nanos"),
        Field("forfeited_nanos", "nanos", "credit that ends, which is not paid out"),
        *_RESTORED,
    ),
)
CREDIT: Final = Shape(
    "Credit",
    "Money that ends.",
    (
        Field("kind", "text"),
        Field("amount_nanos", "nanos", "what was topped up"),
        Field("left_nanos", "nanos", "what is left of it"),
        Field("expires_at_ns", "instant"),
        Field("entry_id", "integer", "of its top-up"),
    ),
)
OPEN_HOLD: Final = Shape(
    "OpenHold",
    "Money that is reserved.",
    (Field("hold_id", "text"), Field("amount_nanos", "nanos"), _nullable("expires_at_ns", "instant")),
)
THRESHOLD: Final = Shape(
    "Threshold",
    "When a low-balance notice is sent.",
    (Field("amount_nanos", "nanos", optional=True), Field("runway_ns", "span", optional=True)),
)
ACCOUNT: Final = Shape(
    "Account",
    "Everything about an account.",
    (
        *_STANDING,
        Field("rates", "rates", "each line above zero, by resource"),
        Field("credits", "map", "money that ends, in the order in which it is spent", many=True, shape=CREDIT),
        Field("leases", "instants", "when lines end by themselves, by resource"),
        _CLASS,
        _CALLED_AT,
        Field("cutoff", "map", "the latest cutoff", nullable=True, shape=CUTOFF),
        Field(
            "overrun_nanos",
            "nanos",
            "what would have accrued while nothing was available, since the account was opened",
        ),
        Field("holds_nanos", "nanos"),
        Field("holds", "map", many=True, shape=OPEN_HOLD),
        Field("thresholds", "map", many=True, shape=THRESHOLD),
    ),
)
EXPLAINED: Final = Shape(
    "Explained",
    "Why an account stands where it stands.",
    (
        *ACCOUNT.fields,
        Field("shard_id", "integer"),
        Field("generation", "integer"),
        Field("timer", "any", "where the account is filed in the timing wheel"),
        Field("cutoffs", "map", "all that are remembered", many=True, shape=CUTOFF),
        Field("owes", "any", "the call that is owed now", nullable=True),
        Field("outbox", "any", "what is being done about it", nullable=True),
        Field("why", "text", "why the call waits, as a sentence; empty where nothing waits", nullable=True),
    ),
)
ACCOUNT_ROW: Final = Shape(
    "AccountRow",
    "An account in a list.",
    (
        _USER,
        _STATE,
        Field("balance_nanos", "nanos"),
        Field("available_nanos", "nanos", "balance and credit limit less open holds"),
        Field("rate_nanos_per_hour", "nanos_per_hour"),
        _nullable("exhausts_at_ns", "instant", "when it runs out if nothing else happens"),
        _CLASS,
        _CALLED_AT,
        Field("rates", "rates", "with rates: each line above zero, by resource", optional=True),
        Field("holds", "map", "with holds: each open one", optional=True, many=True, shape=OPEN_HOLD),
    ),
)
HISTORY_ROW: Final = Shape(
    "HistoryRow",
    "One entry of an account.",
    (
        Field("entry_id", "integer"),
        Field("at_ns", "instant"),
        Field("operation", "text"),
        Field("amount_nanos", "nanos", "what it added, or took"),
        Field("accrued_nanos", "nanos", "spent by time since the entry before"),
        Field("balance_before_nanos", "nanos", "after that accrual"),
        Field("balance_after_nanos", "nanos"),
        Field("message", "text"),
        _nullable("request_id", "text"),
        _nullable("resource", "text", "of a rate line"),
        _nullable("line_rate_nanos_per_hour", "nanos_per_hour", "of that line, from then on"),
        _nullable("rate_nanos_per_hour", "nanos_per_hour", "of the account, from then on"),
        _nullable("value_nanos", "nanos", "what was set: a credit limit, a hold, a threshold, of several the highest"),
        Field("thresholds", "map", "that were set, all of them", nullable=True, many=True, shape=THRESHOLD),
        _nullable("class", "text", "the cutoff class that was set"),
        _nullable("actor", "text", "who caused it; time itself is time"),
    ),
)
FEED_ROW: Final = Shape(
    "FeedRow",
    "One entry of the feed of all accounts.",
    (Field("cursor", "text", "whoever has this row goes on behind it"), _USER, *HISTORY_ROW.fields),
)
_SUMS: Final = ("opening", "credits", "debits", "expired", "accrued", "closing")
EXACT: Final = Shape(
    "ExactSums",
    "The sums of a statement to the internal unit.",
    tuple(
        Field(name, "text", "internal units: nanos per hour times nanoseconds, 3.6e12 of them a nano") for name in _SUMS
    ),
)
RESOURCE_LINE: Final = Shape(
    "ResourceLine",
    "What one rate line spent in the period of a statement.",
    (
        _nullable("resource", "text", "nil: of no line that is known"),
        Field("accrued_nanos", "nanos", "rounded so that the lines sum to the account's"),
        Field("exact_accrued", "text", "internal units"),
        Field("line_rate_nanos_per_hour", "nanos_per_hour", "at the end of the period"),
    ),
)
STATEMENT: Final = Shape(
    "Statement",
    "A period of an account.",
    (
        _USER,
        Field("from_ns", "instant"),
        Field("to_ns", "instant", "the instant it ends before: the one asked for, or now"),
        Field("up_to_now", "flag", "whether it ends now, before the instant that was asked for"),
        Field("opening_nanos", "nanos", "at from_ns, before the entries of that instant"),
        Field("credits_nanos", "nanos", "what entries added"),
        Field("debits_nanos", "nanos", "what entries took"),
        Field("expired_nanos", "nanos", "of the debits, credit that ended"),
        Field("accrued_nanos", "nanos", "spent by time"),
        Field("closing_nanos", "nanos", "opening + credits - debits - accrued"),
        Field("exact", "map", "the same to the internal unit", shape=EXACT),
        Field("entries_count", "integer", "of all entries in the period"),
        _nullable("first_entry_id", "integer"),
        _nullable("last_entry_id", "integer"),
        Field(
            "entries",
            "map",
            "the first of them, oldest first, with a row missing or opening for those that are not there",
            many=True,
            shape=HISTORY_ROW,
        ),
        _nullable("whole_from_ns", "instant", "entries before it are lost, or lack what is exact; nil where none is"),
        Field("resources", "map", "by: resource asks for it", nullable=True, many=True, shape=RESOURCE_LINE),
    ),
)
BALANCE_AT: Final = Shape(
    "BalanceAt",
    "An account as it was at an instant.",
    (
        _USER,
        Field("at_ns", "instant", "the one asked for, or now"),
        Field("up_to_now", "flag", "whether it is of now, since the instant that was asked for is yet to come"),
        Field("state", "enum", nullable=True, choices=("active", "exhausted", "closed", "unopened")),
        Field("balance_nanos", "nanos"),
        _nullable("credit_limit_nanos", "nanos"),
        _nullable("holds_nanos", "nanos"),
        _nullable("available_nanos", "nanos", "nil, as its neighbours, where an older version did not keep it"),
        _nullable("rate_nanos_per_hour", "nanos_per_hour"),
        _nullable("rate_nanos_per_second", "nanos_per_second"),
        Field("entry_id", "integer", "the newest entry up to then; 0 before the first"),
        Field("exact_balance", "text", "in internal units"),
        _nullable("whole_from_ns", "instant", "what led up to it is lost before that instant; nil where nothing is"),
    ),
)
PENDING_CUTOFF: Final = Shape(
    "PendingCutoff",
    "A call that is owed.",
    (
        _USER,
        Field("event_id", "text"),
        Field("seq", "integer"),
        Field("exhausted_at_ns", "instant"),
        Field("attempts", "integer"),
        _nullable("last_error", "text"),
        Field("held", "flag", "whether it is not tried before `release_cutoffs`"),
    ),
)
AUDIT_ROW: Final = Shape(
    "AuditRow",
    "What an operator asked for, or a sign-in that was refused.",
    (
        Field("cursor", "text", "whoever has this row goes on behind it"),
        Field("at_ns", "instant", "wall time"),
        Field("actor", "text", "as in entries"),
        Field("act", "text", "a procedure, or start, stop, drain, reload, sign_in_refused, unreadable"),
        Field("details", "any", "what was asked for"),
    ),
)
BUCKET: Final = Shape(
    "Bucket",
    "A bucket.",
    (
        Field("bucket_id", "integer"),
        Field("shard_id", "integer"),
        Field("state", "text"),
        Field("generation", "integer"),
        _nullable("accounts", "integer", "nil where another host serves its shard"),
    ),
)
SHARD: Final = Shape(
    "Shard",
    "A shard, its process and its load.",
    (
        Field("shard_id", "integer"),
        _nullable("worker_pid", "integer"),
        Field("state", "text", "starting, waiting, recovering, recovered, serving, silent (no answer), down or held"),
        Field("reason", "text"),
        Field("weight", "integer"),
        Field("buckets", "integer"),
        Field("pinned", "integer"),
        Field("sending", "integer"),
        Field("receiving", "integer"),
        _nullable("accounts", "integer", "nil where the worker does not answer, or its host, as below"),
        _nullable("armed", "integer"),
        _nullable("pending_cutoffs", "integer"),
        _nullable("journal_bytes", "integer"),
        _nullable("passed_on", "integer"),
        _nullable("garbage", "integer"),
        Field("starts", "integer"),
        Field("links_down", "text", "hosts without a link to it, each with why", many=True),
        Field("history_lacks", "text", "what this host's history of it lacks, and what becomes of that; else empty"),
        Field("alerts", "text", many=True),
    ),
)
SERVER_INFO: Final = Shape(
    "ServerInfo",
    "Version and limits.",
    (
        Field("version", "text"),
        Field("shard_id", "integer", "the shard of the worker that answers"),
        Field("shards", "integer"),
        Field("bucket_count", "integer"),
        Field("now_ns", "instant"),
        Field("journal_sync", "text"),
        Field("after_exhaustion", "text"),
        Field("request_ids_per_bucket", "integer"),
        Field("limits", "any"),
    ),
)
MOVED: Final = Shape(
    "Moved",
    "A bucket that was moved.",
    (Field("bucket_id", "integer"), Field("shard_id", "integer"), Field("generation", "integer")),
)
PINNED: Final = Shape("Pinned", "Whether a bucket is pinned.", (Field("bucket_id", "integer"), Field("pinned", "flag")))
REBALANCE: Final = Shape(
    "Rebalance",
    "The moves that make the load even.",
    (Field("moves", "integer"), Field("steps", "any", many=True, optional=True)),
)
EXPLAIN_MOVE: Final = Shape(
    "MoveExplained",
    "What a move waits for.",
    (
        Field("bucket_id", "integer"),
        Field("shard_id", "integer"),
        Field("generation", "integer"),
        Field("state", "text"),
        _nullable("to_shard_id", "integer"),
        _nullable("waits_for", "text"),
        _nullable("whose", "text"),
        _nullable("last_error", "text"),
    ),
)
OWNERS: Final = Shape(
    "Owners",
    "Whether every bucket has one owner.",
    (
        Field("buckets", "integer"),
        Field("moving", "integer"),
        Field("shards", "integer", "that were looked at, on all hosts"),
        Field("faults", "any", many=True),
        Field("unanswered", "text", "of the faults, shards whose workers did not answer just now", many=True),
        Field("unchecked", "text", "shards of other hosts that were not looked at, and why", many=True),
    ),
)
RELEASED: Final = Shape("Released", "How many cutoffs were let go.", (Field("released", "integer"),))
EXPIRATION: Final = Shape(
    "Expiration",
    "What a shard checked and fired.",
    (
        Field("shard_id", "integer"),
        Field("checked_count", "integer"),
        Field("expired_count", "integer"),
        Field("mismatches", "integer", "0, or a bug"),
        Field("rounds", "integer"),
        Field("restarts", "integer"),
        _nullable("lateness_p50_ns", "span", "of the first attempts; nil before the first, exact of up to 64"),
        _nullable("lateness_p99_ns", "span"),
        Field("working_time_ns", "span"),
    ),
)
FORECAST_STEP: Final = Shape(
    "ForecastStep",
    "One step of a forecast.",
    (Field("at_ns", "instant"), Field("cutoffs", "integer"), Field("most_in_a_second", "integer")),
)
FORECAST: Final = Shape(
    "Forecast",
    "The cutoffs that are coming.",
    (
        Field("from_ns", "instant"),
        Field("within_ns", "span"),
        Field("step_ns", "span"),
        Field("cutoffs", "integer"),
        _nullable("next_at_ns", "instant"),
        _nullable("next_user_id", "text"),
        _nullable("peak_at_ns", "instant"),
        Field("peak_per_second", "integer"),
        _nullable("endpoint_takes_per_second", "any"),
        Field("steps", "map", many=True, shape=FORECAST_STEP),
    ),
)
SIGNED_IN: Final = Shape(
    "SignedIn",
    "Who has signed in, and what that allows.",
    (Field("name", "text"), Field("roles", "text", many=True), Field("errors", "text")),
)

ANY: Final = Reply("any")
TEXT: Final = Reply("text")
INTEGER: Final = Reply("integer")


def one(shape: Shape) -> Reply:
    """Returns the reply that is one map of this shape."""
    return Reply(shape=shape)


def rows(shape: Shape, cursor: str = "", cursor_field: str = "") -> Reply:
    """Returns the reply that is an array of maps of this shape: one page of them where there is a cursor."""
    return Reply(shape=shape, many=True, cursor=cursor, cursor_field=cursor_field)
