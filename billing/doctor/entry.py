"""Parses one entry of the ledger a second time: from the grammar in `billing.ledger.entry`, not with its code.

    entry   0xF2 | fixed | tails
    fixed   op u8 | flags u16 | refusal u16 | a b c i64 | at_ns i64 | entry_id i64 | amount i64 i64 | accrued u64 i64
            | balance i64 i64 | rate i64 | line rate i64 | credit_limit i64 | holds i64 | exhausts_at i64 | seq i64
            | overrun i64 i64
            | lengths: user_id u8, key u8, request_id u8, message u16, options u8, actor u8, note u16
    tails   user_id | key | request_id | message | options | actor | note
    options tag u8, length u8, value; again, with a higher tag

An entry of the first format lacks the leading byte, the line rate, the options and the actor; it begins with its op.

A pair (nanos, frac) is one sum of internal units, nanos * UNIT + frac; frac lies in 0..UNIT-1. `read_entry` joins each
pair into one integer, so that all code of this room counts in internal units.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

UNIT: Final = 3600 * 10**9  # internal units in a nano: nanoseconds in an hour
WORD_MAX: Final = 2**63 - 1
SUM_MAX: Final = WORD_MAX * UNIT  # the greatest absolute value of a balance

# Flags.
EXHAUSTED, CROSSED, RESTORED, REFUSED, OPENED, PRESUMED, RULE_ACCRUE, RULE_RESTORE, ACCRUING = (
    1 << bit for bit in range(9)
)
FLAGS_KNOWN: Final = 0x1FF

# Operations.
(
    TOP_UP, SET_RATE, CHANGE_RATE, DEBIT, SET_CREDIT_LIMIT, HOLD, CAPTURE, RELEASE, ADJUST, SET_THRESHOLDS, CLOSE,
    SET_CLASS,
) = range(1, 13)  # fmt: skip
EXHAUST, HOLD_EXPIRED, THRESHOLD, CREDIT_EXPIRED, LEASE_EXPIRED, GRACE_ENDED = range(32, 38)
(
    CUTOFF_STARTED, CUTOFF_DELIVERED, CUTOFF_FAILED, RESTORE_STARTED, RESTORE_DELIVERED, RESTORE_FAILED,
    CUTOFF_RELEASED, CUTOFF_RETRY,
) = range(48, 56)  # fmt: skip
COMMANDS: Final = range(TOP_UP, SET_CLASS + 1)
BY_TIME: Final = range(EXHAUST, GRACE_ENDED + 1)
REPORTS: Final = range(CUTOFF_STARTED, CUTOFF_RETRY + 1)

# The shape of each operation: the ranges of a, b and c, and whether it may have a key and a message.
_NONE = (0, 0)
_AMOUNT = (1, WORD_MAX)
_LIMIT = (0, WORD_MAX)
_SIGNED = (-WORD_MAX, WORD_MAX)
_OPTION = (-1, WORD_MAX)
_SEQ = (1, 2**32 - 1)
Shape = tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool, bool]
SHAPES: Final[dict[int, Shape]] = {
    TOP_UP: (_AMOUNT, _NONE, _NONE, False, True),
    SET_RATE: (_LIMIT, _OPTION, _OPTION, True, True),
    CHANGE_RATE: (_SIGNED, _NONE, _NONE, True, True),
    DEBIT: (_AMOUNT, (0, 2), _NONE, False, True),
    SET_CREDIT_LIMIT: (_LIMIT, _NONE, _NONE, False, True),
    HOLD: (_AMOUNT, _LIMIT, _NONE, False, True),
    CAPTURE: (_AMOUNT, _NONE, _NONE, True, True),
    RELEASE: (_NONE, _NONE, _NONE, True, True),
    ADJUST: (_SIGNED, _NONE, _NONE, False, True),
    SET_THRESHOLDS: ((0, 16), _NONE, _NONE, True, True),
    CLOSE: (_NONE, _NONE, _NONE, False, True),
    SET_CLASS: (_NONE, _NONE, _NONE, True, True),
    EXHAUST: (_NONE, _NONE, _NONE, False, False),
    HOLD_EXPIRED: (_AMOUNT, _NONE, _NONE, True, False),
    THRESHOLD: ((0, 1), _LIMIT, _NONE, False, False),
    CREDIT_EXPIRED: (_AMOUNT, _AMOUNT, _NONE, True, False),
    LEASE_EXPIRED: (_AMOUNT, _NONE, _NONE, True, False),
    GRACE_ENDED: (_SEQ, _LIMIT, _NONE, False, False),
    **{op: (_SEQ, _NONE, _NONE, False, op in (CUTOFF_FAILED, RESTORE_FAILED)) for op in REPORTS},
    CUTOFF_FAILED: (_SEQ, (0, 1), _NONE, False, True),
    CUTOFF_RETRY: (_SEQ, (0, 1), _NONE, False, False),
}

# Operation -> tag of each option that it may have -> the least value, an i64; the value of KIND is bytes.
TTL_NS, DEFAULT_TTL_NS, EXPIRES_AT_NS, KIND = range(1, 5)
KIND_BYTES_MAX: Final = 64
_MILLISECOND_NS: Final = 10**6
_OPTIONS: Final[dict[int, dict[int, int]]] = {
    TOP_UP: {EXPIRES_AT_NS: 0, KIND: 0},
    SET_RATE: {TTL_NS: _MILLISECOND_NS, DEFAULT_TTL_NS: 1},
    CHANGE_RATE: {DEFAULT_TTL_NS: 1},
}

_FORMAT: Final = 0xF2
_FIXED = struct.Struct("<xBHHqqqqqqqQqqqqqqqqqqqBBBHBBH")
_FIRST = struct.Struct("<BHHqqqqqqqQqqqqqqqqqqBBBHH")
UNSAID: Final = -1  # the line rate in an entry of the first format
ACTOR_BYTES_MAX: Final = 128
_LINE_RATE: Final = 15  # index of the line rate among the unpacked numbers


class Garbled(Exception):
    """A record cannot be parsed; the text says why."""


class Entry(NamedTuple):
    """An entry, with sums in internal units. `exhausts_at_ns` is -1 if no exhaustion is coming; `line_rate` is UNSAID
    in an entry of the first format, which does not have it.
    """

    op: int
    flags: int
    refusal: int
    a: int
    b: int
    c: int
    at_ns: int
    entry_id: int
    amount: int
    accrued: int
    balance: int
    rate: int
    line_rate: int
    credit_limit_nanos: int
    holds_nanos: int
    exhausts_at_ns: int
    seq: int
    overrun: int
    user_id: bytes
    key: bytes
    request_id: bytes
    message: bytes
    options: bytes
    actor: bytes
    note: bytes


def read_entry(body: bytes) -> Entry:
    """Parses the body of a record in either format. Raises Garbled."""
    is_first = body[:1] != bytes((_FORMAT,))
    layout = _FIRST if is_first else _FIXED
    if len(body) < layout.size:
        raise Garbled(f"an entry of {len(body)} bytes")
    numbers = list(layout.unpack_from(body))
    if is_first:
        numbers.insert(_LINE_RATE, UNSAID)
        numbers[-1:] = 0, 0, numbers[-1]
    (
        op, flags, refusal, a, b, c, at_ns, entry_id, amount, amount_frac, accrued, accrued_frac, balance, balance_frac,
        rate, line_rate, limit, holds, exhausts_at_ns, seq, overrun, overrun_frac, *lengths,
    ) = numbers  # fmt: skip
    tails, at = [], layout.size
    for length in lengths:
        tails.append(body[at : at + length])
        at += length
    if at != len(body):
        raise Garbled(f"an entry whose tails end at {at} of {len(body)} bytes")
    for frac in (amount_frac, accrued_frac, balance_frac, overrun_frac):
        if not 0 <= frac < UNIT:
            raise Garbled(f"an entry with a fraction of {frac} internal units")
    if op not in COMMANDS and op not in BY_TIME and op not in REPORTS:
        raise Garbled(f"an entry of the unknown operation {op}")
    if line_rate < 0 and not is_first:
        raise Garbled(f"an entry with a line rate of {line_rate}")
    if flags & ~FLAGS_KNOWN:
        raise Garbled(f"an entry with unknown flags {flags:#x}")
    if not 1 <= lengths[0] <= 128:
        raise Garbled(f"an entry whose user_id has {lengths[0]} bytes")
    user_id, key, request_id, message, options, actor, note = tails
    return Entry(
        op, flags, refusal, a, b, c, at_ns, entry_id, amount * UNIT + amount_frac, accrued * UNIT + accrued_frac,
        balance * UNIT + balance_frac, rate, line_rate, limit, holds, exhausts_at_ns, seq,
        overrun * UNIT + overrun_frac, user_id, key, request_id, message, options, actor, note,
    )  # fmt: skip


def misshapen(entry: Entry) -> str:
    """A text about the first value in an entry that its operation cannot have; "" if there is none."""
    *ranges, has_key, has_message = SHAPES[entry.op]
    for name, value, (least, most) in zip("abc", (entry.a, entry.b, entry.c), ranges, strict=True):
        if not least <= value <= most:
            return f"{name} is {value}"
    if entry.key and not has_key:
        return f"it has the key {entry.key!r}"
    if entry.message and not has_message:
        return f"it has the message {entry.message!r}"
    if entry.request_id and entry.op not in COMMANDS:
        return f"it has the request_id {entry.request_id!r}"
    if _strange_options(entry):
        return f"it has the options {entry.options!r}"
    if len(entry.actor) > ACTOR_BYTES_MAX or (entry.actor and entry.op in BY_TIME):
        return f"it has the actor {entry.actor!r}"
    return ""


def options_of(packed: bytes) -> dict[int, int] | None:
    """Tag -> number of each option; for KIND the length of its bytes. None for malformed options or tags that do not
    rise.
    """
    options: dict[int, int] = {}
    for tag, value in _each_option(packed):
        if tag <= max(options, default=0) or not (
            len(value) == 8 or (tag == KIND and 1 <= len(value) <= KIND_BYTES_MAX)
        ):
            return None
        options[tag] = len(value) if tag == KIND else int.from_bytes(value, "little", signed=True)
    return options


def grace_of(entry: Entry) -> int:
    """The end of the grace that an entry began or moved, from its note; -1 if the entry has none."""
    may_tell = entry.flags & CROSSED or entry.op == SET_CLASS
    if entry.flags & REFUSED or not may_tell or len(entry.note) != 8:
        return -1
    return int.from_bytes(entry.note, "little", signed=True)


def kind_of(packed: bytes) -> bytes:
    """The kind in the options of a top-up; b"" if there is none."""
    return dict(_each_option(packed)).get(KIND, b"")


def _each_option(packed: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (tag, value) of each option. An option whose value is cut off yields (tag, b"")."""
    at = 0
    while at < len(packed):
        end = at + 2 + packed[at + 1] if at + 1 < len(packed) else len(packed) + 1
        yield packed[at], packed[at + 2 : end] if end <= len(packed) else b""
        at = end


def _strange_options(entry: Entry) -> bool:
    options = options_of(entry.options)
    least_by_tag = _OPTIONS.get(entry.op, {})
    return options is None or any(value < least_by_tag.get(tag, WORD_MAX + 1) for tag, value in options.items())


def coins(amount: int) -> str:
    """A sum of internal units as text for people: nanos, and the fraction if it is not zero."""
    nanos, frac = divmod(amount, UNIT)
    return f"{nanos} nanos" + (f" + {frac}/{UNIT}" if frac else "")
