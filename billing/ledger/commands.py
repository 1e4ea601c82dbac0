"""Commands: everything that can happen to an account, as plain tuples of one shape.

    (op, user_id, a, b, c, key, request_id, message, options, actor)

`op` is one of the constants below; `a`, `b`, `c` are int64; the rest is bytes (UTF-8 where it is text). Unused
numbers are 0, unused bytes are empty, so that two calls with the same parameters are equal up to `actor`. `same_call`
compares them when a request id comes again. `actor` names who caused the command: a token or certificate, `uid:N`, or
nobody (empty); a retry may come from another actor. `options` holds the optional parameters that have no place among
the other fields, see `pack_options`. The option DEFAULT_TTL_NS does not come from the caller: the ledger adds it where
its rules give a lease to a line whose report asks for none, so that replay does not need the rules; `same_call` ignores
it. The API parses each call into this form and checks the ranges; the ledger checks only what depends on state. The
table:

    op                  a                     b                   c                key               message
    TOP_UP              amount nanos                                                                 message
                        options: EXPIRES_AT_NS, KIND
    SET_RATE            nanos per hour        rate_seq or -1      min_runway or -1 resource          message
                        options: TTL_NS, or DEFAULT_TTL_NS
    CHANGE_RATE         signed nanos per hour                                      resource          message
                        options: DEFAULT_TTL_NS
    DEBIT               amount nanos          mode                                                   message
    SET_CREDIT_LIMIT    limit nanos, 0 too                                                           message
    HOLD                amount nanos          ttl_ns, 0 = none                                       message
    CAPTURE             amount nanos                                               hold_id           message
    RELEASE                                                                        hold_id           message
    ADJUST              signed nanos                                                                 reason
    SET_THRESHOLDS      how many                                                   packed thresholds message
    CLOSE                                                                                            message
    SET_CLASS                                                                      class, empty: the message
                                                                                   default

The ledger itself makes the commands that time causes; no client can send them: EXHAUST, HOLD_EXPIRED (a = its amount,
key = hold_id), LEASE_EXPIRED (a = the rate that the line had, key = resource), CREDIT_EXPIRED (a and b = amount and
entry_id of its top_up, key = its kind), GRACE_ENDED (a and b = seq and exhaustion instant of the cutoff that is owed
from now on), THRESHOLD (a = kind, b = value). Delivery commands report the progress of a cutoff or restore call: `a` is
the cutoff's seq, message the error of a failed attempt. CUTOFF_FAILED with `b` = 1 reports an attempt for which no
connection was established: it counts as an attempt, but the receiver has got nothing. `rate_seq` is 0 or more,
`min_runway_ns` 0 or more nanoseconds; `ttl_ns` of a hold is 1 or more, of a rate `LEASE_NS_MIN` or more.
"""

import struct
from typing import Final

Command = tuple[int, bytes, int, int, int, bytes, bytes, bytes, bytes, bytes]

TOP_UP: Final = 1
SET_RATE: Final = 2
CHANGE_RATE: Final = 3
DEBIT: Final = 4
SET_CREDIT_LIMIT: Final = 5
HOLD: Final = 6
CAPTURE: Final = 7
RELEASE: Final = 8
ADJUST: Final = 9
SET_THRESHOLDS: Final = 10
CLOSE: Final = 11
SET_CLASS: Final = 12

EXHAUST: Final = 32
HOLD_EXPIRED: Final = 33
THRESHOLD: Final = 34
CREDIT_EXPIRED: Final = 35
LEASE_EXPIRED: Final = 36
GRACE_ENDED: Final = 37

CUTOFF_STARTED: Final = 48
CUTOFF_DELIVERED: Final = 49
CUTOFF_FAILED: Final = 50
RESTORE_STARTED: Final = 51
RESTORE_DELIVERED: Final = 52
RESTORE_FAILED: Final = 53
CUTOFF_RELEASED: Final = 54
CUTOFF_RETRY: Final = 55

OF_LINES: Final = frozenset((SET_RATE, CHANGE_RATE, LEASE_EXPIRED))  # operations whose key names a rate line
BY_TIME: Final = range(32, 48)

# The names of a, b, c and key for each operation; "" for a field that the operation does not use.
FIELD_NAMES: Final[dict[int, tuple[str, str, str, str]]] = {
    TOP_UP: ("amount_nanos", "", "", ""),
    SET_RATE: ("nanos_per_hour", "rate_seq", "min_runway_ns", "resource"),
    CHANGE_RATE: ("nanos_per_hour", "", "", "resource"),
    DEBIT: ("amount_nanos", "mode", "", ""),
    SET_CREDIT_LIMIT: ("limit_nanos", "", "", ""),
    HOLD: ("amount_nanos", "ttl_ns", "", ""),
    CAPTURE: ("amount_nanos", "", "", "hold_id"),
    RELEASE: ("", "", "", "hold_id"),
    ADJUST: ("amount_nanos", "", "", ""),
    SET_THRESHOLDS: ("", "", "", "thresholds"),
    SET_CLASS: ("", "", "", "class"),
    HOLD_EXPIRED: ("amount_nanos", "", "", "hold_id"),
    THRESHOLD: ("kind", "value", "", ""),
    CREDIT_EXPIRED: ("amount_nanos", "of_entry_id", "", "kind"),
    LEASE_EXPIRED: ("nanos_per_hour", "", "", "resource"),
    GRACE_ENDED: ("seq", "exhausted_at_ns", "", ""),
    CUTOFF_FAILED: ("seq", "unbegun", "", ""),
    CUTOFF_RETRY: ("seq", "by_operator", "", ""),
    **{op: ("seq", "", "", "") for op in (CUTOFF_STARTED, CUTOFF_DELIVERED, CUTOFF_RELEASED)},
    **{op: ("seq", "", "", "") for op in (RESTORE_STARTED, RESTORE_DELIVERED, RESTORE_FAILED)},
}

# The name of each operation in the history. An operation that a client calls has the name of the called procedure.
NAMES: Final[dict[int, str]] = {
    TOP_UP: "top_up",
    SET_RATE: "set_rate",
    CHANGE_RATE: "change_rate",
    DEBIT: "debit",
    SET_CREDIT_LIMIT: "set_credit_limit",
    HOLD: "hold",
    CAPTURE: "capture",
    RELEASE: "release",
    ADJUST: "adjust",
    SET_THRESHOLDS: "set_thresholds",
    CLOSE: "close_account",
    SET_CLASS: "set_class",
    EXHAUST: "exhaust",
    HOLD_EXPIRED: "hold_expired",
    THRESHOLD: "threshold",
    CREDIT_EXPIRED: "credit_expired",
    LEASE_EXPIRED: "lease_expired",
    GRACE_ENDED: "grace_ended",
    CUTOFF_STARTED: "cutoff_started",
    CUTOFF_DELIVERED: "cutoff_delivered",
    CUTOFF_FAILED: "cutoff_failed",
    RESTORE_STARTED: "restore_started",
    RESTORE_DELIVERED: "restore_delivered",
    RESTORE_FAILED: "restore_failed",
    CUTOFF_RELEASED: "cutoff_released",
    CUTOFF_RETRY: "cutoff_retry",
}

# Modes of a debit (field b).
STRICT: Final = 0
PARTIAL: Final = 1
FORCE: Final = 2
MODES: Final[dict[str, int]] = {"strict": STRICT, "partial": PARTIAL, "force": FORCE}

# Kinds of a threshold.
BY_AMOUNT: Final = 0  # available <= value nanos
BY_RUNWAY: Final = 1  # runway <= value ns

# Tags of options.
TTL_NS: Final = 1  # of a rate line: the length of its lease, given by the caller
DEFAULT_TTL_NS: Final = 2  # of a rate line: the length of its lease, given by the rules
EXPIRES_AT_NS: Final = 3  # of a top_up: the instant at which the rest of it expires
KIND: Final = 4  # of a top_up: the caller's name for this money

# Limits that the API checks; the length fields of a packed entry are wide enough for them.
USER_ID_BYTES_MAX: Final = 128
REQUEST_ID_BYTES_MAX: Final = 64
RESOURCE_BYTES_MAX: Final = 128
MESSAGE_BYTES_MAX: Final = 1024
ACTOR_BYTES_MAX: Final = 128
OPTIONS_BYTES_MAX: Final = 255
HOLD_ID_BYTES_MAX: Final = 2 + 2 * REQUEST_ID_BYTES_MAX
THRESHOLDS_MAX: Final = 16
LEASE_NS_MIN: Final = 10**6
KIND_BYTES_MAX: Final = 64
CLASS_BYTES_MAX: Final = 64
DEFAULT_CLASS: Final = "default"  # the name that is shown for the class whose own name is empty

_THRESHOLD = struct.Struct("<Bq")
_NUMBER = struct.Struct("<q")


def pack_thresholds(thresholds: list[tuple[int, int]]) -> bytes:
    """Packs `[(kind, value)]`, value >= 0, into the `key` of SET_THRESHOLDS: sorted and without duplicates, so that
    equal sets have equal bytes.
    """
    ordered = sorted(set(thresholds))
    assert len(ordered) <= THRESHOLDS_MAX
    return b"".join(_THRESHOLD.pack(kind, value) for kind, value in ordered)


def unpack_thresholds(packed: bytes) -> list[tuple[int, int]]:
    """Unpacks the result of `pack_thresholds`: `[(kind, value)]`, sorted."""
    assert len(packed) % _THRESHOLD.size == 0
    return [(kind, value) for kind, value in _THRESHOLD.iter_unpack(packed)]


def same_call(command: Command, other: Command) -> bool:
    """Whether two commands are the same call. Ignores the actor and the option that the rules add."""
    return command[:-2] == other[:-2] and (command[-2] == other[-2] or _asked_for(command[-2]) == _asked_for(other[-2]))


def _asked_for(packed: bytes) -> dict[int, bytes]:
    options = unpack_options(packed)
    options.pop(DEFAULT_TTL_NS, None)
    return options


def number_option(tag: int, number: int) -> bytes:
    """Packs one int64 as the only option of a command."""
    return pack_options({tag: _NUMBER.pack(number)})


def top_up_options(expires_at_ns: int, kind: bytes) -> bytes:
    """The options of a top_up; -1 stands for no `expires_at_ns`, an empty kind for none."""
    if expires_at_ns < 0 and not kind:
        return b""
    options = {} if expires_at_ns < 0 else {EXPIRES_AT_NS: _NUMBER.pack(expires_at_ns)}
    return pack_options(options | {KIND: kind} if kind else options)


def number_of(options: dict[int, bytes], tag: int) -> int | None:
    """The number of the option with this tag; None if the option was not given."""
    if tag not in options:
        return None
    number: int = _NUMBER.unpack(options[tag])[0]
    return number


def pack_options(options: dict[int, bytes]) -> bytes:
    """Packs optional parameters, by tag (1-255), into a command's `options`: tags ascending, so that equal parameters
    have equal bytes.
    """
    packed = b"".join(bytes((tag, len(value))) + value for tag, value in sorted(options.items()))
    assert len(packed) <= OPTIONS_BYTES_MAX
    return packed


def unpack_options(packed: bytes) -> dict[int, bytes]:
    """Unpacks the result of `pack_options`, by tag. Raises ValueError where an option is cut short."""
    options, at = {}, 0
    while at < len(packed):
        if at + 2 > len(packed) or at + 2 + packed[at + 1] > len(packed):
            raise ValueError("an option ends behind all options")
        options[packed[at]] = packed[at + 2 : at + 2 + packed[at + 1]]
        at += 2 + packed[at + 1]
    return options
