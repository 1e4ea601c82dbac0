"""The entry: a command with its instant, and what came of it. One codec, one answer.

An entry is the journal's record, the history's row, the stored answer of a request_id and the audit's evidence at
once. It is a plain tuple in the order of `FIELDS`; `Entry` is the same tuple with names, for readers that are not in
a hurry. Grammar of the packed form, little-endian:

    entry = 0xF2, fixed, tails
    fixed = op u8, flags u16, refusal u16, a i64, b i64, c i64, at_ns i64, entry_id i64,
            amount (nanos i64, frac i64), accrued (nanos u64, frac i64), balance (nanos i64, frac i64), rate i64,
            line_rate i64, credit_limit_nanos i64, holds_nanos i64, exhausts_at_ns i64, exhaustion_seq i64,
            overrun (nanos i64, frac i64), lengths of the tails: user_id u8, key u8, request_id u8, message u16,
            options u8, actor u8, note u16
    tails = user_id key request_id message options actor note
    options = (tag u8, length u8, value) for each optional parameter that was given, tags rising

`op, user_id, a, b, c, key, request_id, message, options, actor` are the command as it came. A pair (nanos, frac) is
`nanos * NANO + frac` internal units with 0 <= frac < NANO. `amount` is the signed change of the balance by the command
itself, `accrued` what time took since the entry before (never negative), `balance` what is left after both; so the
balance before the command is balance - amount, and the entry before ended with balance - amount + accrued. `rate` is
the account's total in nanos per hour, `line_rate` that of the line which the command set, from then on (0 where it set
none), `exhausts_at_ns` -1 where no exhaustion is coming. `actor` names who caused the command: it takes no part in
deciding whether two calls are the same.

Example: a top-up of 5 nanos for user `7` at instant 10 as its first entry packs to f2, 01 0000 0000, 05.., 00.., 00..,
0a.., 01.. and so on, to the tail 37; `FIXED.size + 1` bytes in all.

`EVERYDAY` packs the fixed part of the commands of every day: it takes no refusal, amount's frac, credit limit, holds,
overrun, and no lengths of key, options and note, because they are zero there, and leaves zeros in their place.

**The first format** had neither the leading byte nor `line_rate`, `options` and `actor`, and no flag ACCRUING; its
first byte was the op, which is below 0xF2. `unpack` reads both. `line_rate` of a change_rate is UNKNOWN there, and
`pack_first` makes the bytes that the first format would have had, so that replay can hold them against what it made.

Refused entries (flag REFUSED) and what delivery reports change no money, take no entry_id (0), settle nothing and are
not rows of the history; the balance in them is the one at their instant. `note` holds what else the answer needs: of a
restored account the cutoff concerned, of a refusal its number, of a closing the credit that was forfeited, of a
crossing with a grace and of a set_class within one the instant at which the grace ends. Everything an answer says comes
from the entry, so the first and the replayed answer are the same function's.
"""

import string
import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import quote_from_bytes

from billing.ledger import commands as ops
from billing.ledger.errors import KINDS, NAME_OF_CODE, Refused
from billing.ledger.money import NANO, format_coins

EntryTuple = tuple[Any, ...]  # in the order of `FIELDS`

FORMAT: Final = 0xF2  # the first byte of an entry
FORMAT_BYTE: Final = bytes((FORMAT,))
FIXED: Final = struct.Struct("<BBHHqqqqqqqQqqqqqqqqqqqBBBHBBH")
EVERYDAY: Final = struct.Struct("<BBH2xqqqqqq8xQqqqqq16xqq16xBxBHxB2x")
_CAUSE: Final = struct.Struct("<BBHHqqqq")  # its beginning
_LENGTHS: Final = struct.Struct("<BBBHBBH")  # its end
_LENGTHS_AT: Final = FIXED.size - _LENGTHS.size

_FIRST: Final = struct.Struct("<BHHqqqqqqqQqqqqqqqqqqBBBHH")  # the fixed part of the first format
UNKNOWN: Final = -1  # `line_rate` where the first format did not say it

# Flags.
EXHAUSTED: Final = 1  # the account's state after the entry
CROSSED: Final = (
    2  # this entry made a cutoff owed: available fell to zero, or a line rose from zero on an exhausted account
)
RESTORED: Final = 4  # this entry lifted available above zero on an account that was exhausted
REFUSED: Final = 8
OPENED: Final = 16  # the account's first entry, or its first one after it was closed
PRESUMED: Final = (
    32  # restored while it was not known whether a cutoff's first attempt had started: it counts as started
)
RULE_ACCRUE: Final = 64  # the rules in force when the entry was made; replay takes them from here
RULE_RESTORE: Final = 128
ACCRUING: Final = 256  # the exhaustion that lasts goes on below zero
REPLAYED: Final = 1 << 15  # never packed: `Ledger.apply` sets it in a stored answer that it gives again


class Entry(NamedTuple):
    """An entry by name: `Entry._make(entry_tuple)`. Units as in the module's docstring."""

    op: int
    flags: int
    refusal: int  # code of the error's name, 0 if none
    a: int
    b: int
    c: int
    at_ns: int
    entry_id: int
    amount_nanos: int
    amount_frac: int
    accrued_nanos: int
    accrued_frac: int
    balance_nanos: int
    balance_frac: int
    rate: int
    line_rate: int
    credit_limit_nanos: int
    holds_nanos: int
    exhausts_at_ns: int
    exhaustion_seq: int
    overrun_nanos: int
    overrun_frac: int
    user_id: bytes
    key: bytes
    request_id: bytes
    message: bytes
    options: bytes
    actor: bytes
    note: bytes

    @property
    def amount(self) -> int:
        """In internal units, signed."""
        return self.amount_nanos * NANO + self.amount_frac

    @property
    def accrued(self) -> int:
        """In internal units, 0 or more."""
        return self.accrued_nanos * NANO + self.accrued_frac

    @property
    def balance(self) -> int:
        """In internal units, after the entry."""
        return self.balance_nanos * NANO + self.balance_frac

    @property
    def overrun(self) -> int:
        """In internal units, all that was counted up to this entry."""
        return self.overrun_nanos * NANO + self.overrun_frac

    @property
    def command(self) -> ops.Command:
        """The command as it came."""
        return (
            self.op, self.user_id, self.a, self.b, self.c, self.key, self.request_id, self.message, self.options,
            self.actor,
        )  # fmt: skip


FIELDS: Final = Entry._fields
_NUMBERS: Final = FIELDS.index("user_id")


_LINE_RATE: Final = FIELDS.index("line_rate")
_AT_NS: Final = struct.Struct("<q")
_AT_NS_AT: Final = struct.calcsize("<BHHqqq")  # without the leading byte


def pack(entry: EntryTuple) -> bytes:
    """The packed form of an entry tuple. Raises struct.error where a number leaves its field: a broken invariant."""
    tails = entry[_NUMBERS:]
    return FIXED.pack(FORMAT, *entry[:_NUMBERS], *map(len, tails)) + b"".join(tails)


def unpack(packed: bytes) -> EntryTuple:
    """The entry tuple of a packed entry, of the present or the first format. Raises ValueError where lengths do not add
    up.
    """
    if packed[:1] != FORMAT_BYTE:
        return _unpack_first(packed)
    if len(packed) < FIXED.size:
        raise ValueError("entry shorter than its fixed part")
    numbers = FIXED.unpack_from(packed)
    return (*numbers[1 : 1 + _NUMBERS], *_tails(packed, FIXED.size, numbers[1 + _NUMBERS :]))


def _tails(packed: bytes, at: int, lengths: tuple[int, ...]) -> list[bytes]:
    """The tails of these lengths, which fill the entry from `at` on. Raises ValueError where they do not."""
    tails = []
    for length in lengths:
        tails.append(packed[at : at + length])
        at += length
    if at != len(packed):
        raise ValueError("entry's tails do not fill it")
    return tails


def cause_of(packed: bytes) -> tuple[int, int, ops.Command]:
    """(flags, at_ns, command) of a packed entry: what makes it again, without the numbers that come of it. Raises
    ValueError as `unpack` does.
    """
    if packed[:1] != FORMAT_BYTE:
        first = Entry._make(_unpack_first(packed))
        return first.flags, first.at_ns, first.command
    if len(packed) < FIXED.size:
        raise ValueError("entry shorter than its fixed part")
    _, op, flags, _, a, b, c, at_ns = _CAUSE.unpack_from(packed)
    user_len, key_len, request_len, message_len, options_len, actor_len, note_len = _LENGTHS.unpack_from(
        packed, _LENGTHS_AT
    )
    key_at = FIXED.size + user_len
    request_at = key_at + key_len
    message_at = request_at + request_len
    options_at = message_at + message_len
    actor_at = options_at + options_len
    note_at = actor_at + actor_len
    if note_at + note_len != len(packed):
        raise ValueError("entry's tails do not fill it")
    command = (
        op, packed[FIXED.size : key_at], a, b, c, packed[key_at:request_at], packed[request_at:message_at],
        packed[message_at:options_at], packed[options_at:actor_at], packed[actor_at:note_at],
    )  # fmt: skip
    return flags, at_ns, command


def cause_at(packed: bytes) -> tuple[int, int]:
    """(op, flags) of a packed entry of either format, which is not looked at any further."""
    at = packed[0] == FORMAT
    return packed[at], packed[at + 1] | packed[at + 2] << 8


def instant_of(packed: bytes) -> int:
    """`at_ns` of a packed entry of either format, which is not looked at any further."""
    at_ns: int = _AT_NS.unpack_from(packed, _AT_NS_AT + (packed[0] == FORMAT))[0]
    return at_ns


# -- the first format --------------------------------------------------------------------------------------------------


def is_first(packed: bytes) -> bool:
    """Whether the entry is of the first format."""
    return packed[:1] != FORMAT_BYTE


def _unpack_first(packed: bytes) -> EntryTuple:
    if len(packed) < _FIRST.size:
        raise ValueError("entry shorter than its fixed part")
    numbers = _FIRST.unpack_from(packed)
    op, _, refusal, a = numbers[:4]
    line_rate = 0
    if not refusal and op in (ops.SET_RATE, ops.CHANGE_RATE):
        line_rate = a if op == ops.SET_RATE else UNKNOWN
    user_id, key, request_id, message, note = _tails(packed, _FIRST.size, numbers[_NUMBERS - 1 :])
    return (
        *numbers[:_LINE_RATE], line_rate, *numbers[_LINE_RATE : _NUMBERS - 1],
        user_id, key, request_id, message, b"", b"", note,
    )  # fmt: skip


def pack_first(entry: EntryTuple) -> bytes:
    """The bytes that the first format would have for this entry, were it made by nobody and without options."""
    op, flags, *numbers = entry[:_NUMBERS]
    del numbers[_LINE_RATE - 2]
    user_id, key, request_id, message, _, _, note = entry[_NUMBERS:]
    tails = (user_id, key, request_id, message, note)
    return _FIRST.pack(op, flags & ~ACCRUING, *numbers, *map(len, tails)) + b"".join(tails)


# -- what else an answer needs -----------------------------------------------------------------------------------------

PENDING: Final = 0
DELIVERED: Final = 1
EFFECTIVE: Final = 2
SUPERSEDED: Final = 3
IN_GRACE: Final = 4
STATUS_NAMES: Final = ("pending", "delivered", "effective", "superseded", "in_grace")

_CUTOFF = struct.Struct("<qqIB")
_NUMBER = struct.Struct("<Q")
_FORFEITED = struct.Struct("<qq")  # (nanos, frac)
_GRACE = struct.Struct("<q")


def pack_cutoff(seq: int, exhausted_at_ns: int, status: int, attempts: int, last_error: bytes) -> bytes:
    """The note of a restored entry: the account's latest cutoff as the restoring call left it."""
    return _CUTOFF.pack(seq, exhausted_at_ns, attempts, status) + last_error


def pack_number(number: int) -> bytes:
    """The note of a refused entry: the one number that its error names, 0..2**64-1."""
    return _NUMBER.pack(number)


def pack_forfeited(forfeited: int) -> bytes:
    """The note of a close entry: what of its amount was credit that ends, in internal units above zero."""
    return _FORFEITED.pack(*divmod(forfeited, NANO))


def pack_grace(ends_ns: int) -> bytes:
    """The note of an entry that begins a grace, or moves its end."""
    return _GRACE.pack(ends_ns)


def grace_end_of(packed: bytes) -> int:
    """The end of a grace in the note of a packed entry of the present format that is no refusal; -1 where there is no
    note.
    """
    *_, length = _LENGTHS.unpack_from(packed, _LENGTHS_AT)
    ends_ns: int = _GRACE.unpack(packed[-length:])[0] if length else -1
    return ends_ns


_UNQUOTED: Final = string.ascii_letters.encode() + b"0123456789_-~"


def event_id(user_id: bytes, seq: int, exhausted_at_ns: int) -> str:
    """The name of one cutoff, the same on every attempt: ASCII, safe in a header and a query, at most 512 bytes,
    without a full stop.
    """
    if user_id.translate(None, _UNQUOTED):
        return f"{quote_from_bytes(user_id, safe='').replace('.', '%2E')}:{seq}:{exhausted_at_ns}"
    return f"{user_id.decode()}:{seq}:{exhausted_at_ns}"  # nearly all of them


def hold_id(request_id: bytes, entry_id: int) -> bytes:
    """The id of the hold that a `hold` with this request_id (or without one, as this entry) made; always UTF-8."""
    if not request_id:
        return b"e:%d" % entry_id
    try:
        request_id.decode()
    except UnicodeDecodeError:
        return b"x:" + request_id.hex().encode()
    return b"r:" + request_id


def text(raw: bytes) -> str | bytes:
    """As a client may read it: str where it is UTF-8, else the bytes as they came."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def cutoff_map(
    user_id: bytes, seq: int, exhausted_at_ns: int, status: int, attempts: int, last_error: bytes
) -> dict[str, object]:
    """A cutoff as replies show it."""
    return {
        "event_id": event_id(user_id, seq, exhausted_at_ns),
        "seq": seq,
        "exhausted_at_ns": exhausted_at_ns,
        "status": STATUS_NAMES[status],
        "attempts": attempts,
        "last_error": text(last_error) if last_error else None,
    }


TIME: Final = "time"  # the actor of what time caused
_SETS_A: Final = frozenset((ops.SET_CREDIT_LIMIT, ops.HOLD, ops.HOLD_EXPIRED, ops.CAPTURE))


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(entry: EntryTuple, bucket_id: int) -> dict[str, object]:
    """The reply to the call that made this entry, or that got it again; it was not refused. The map of CONTRACT §3."""
    (
        op, flags, _, _, _, _, at_ns, entry_id, amount_nanos, amount_frac, _, _, balance_nanos, balance_frac, rate, _,
        limit_nanos, holds_nanos,
        exhausts_at_ns, seq, _, _, user_id, _, request_id, _, _, _, note,
    ) = entry  # fmt: skip
    coming = exhausts_at_ns >= 0
    reply: dict[str, object] = {
        "user_id": user_id.decode(),
        "bucket_id": bucket_id,
        "state": "exhausted" if flags & EXHAUSTED else "active",
        "balance_nanos": balance_nanos,
        "credit_limit_nanos": limit_nanos,
        "available_nanos": balance_nanos + limit_nanos - holds_nanos,
        "rate_nanos_per_hour": rate,
        "rate_nanos_per_second": rate // 3600,
        "exhausts_at_ns": exhausts_at_ns if coming else None,
        "runway_ns": exhausts_at_ns - at_ns if coming else None,
        "exhaustion_seq": seq,
        "entry_id": entry_id,
        "at_ns": at_ns,
        "replayed": flags & REPLAYED != 0,
    }
    # What the entry took is shown in the floors of the history: the balance before it less the balance after it.
    if op == ops.DEBIT:
        reply["outcome"] = "exhausted" if flags & EXHAUSTED else "ok"
        reply["debited_nanos"] = -amount_nanos - (amount_frac > balance_frac)
    elif op == ops.HOLD:
        reply["hold_id"] = text(hold_id(request_id, entry_id))
    elif op == ops.CAPTURE:
        reply["captured_nanos"] = -amount_nanos  # of whole nanos
    elif op == ops.CLOSE:
        forfeited_nanos = _FORFEITED.unpack(note)[0] if note else 0
        reply["paid_out_nanos"] = -amount_nanos - (amount_frac > balance_frac) - forfeited_nanos
        reply["forfeited_nanos"] = forfeited_nanos
    if flags & RESTORED:
        reply["restored"] = True
        if note:
            cutoff_seq, exhausted_at_ns, attempts, status = _CUTOFF.unpack_from(note)
            last_error = note[_CUTOFF.size :]
            reply["cutoff"] = cutoff_map(user_id, cutoff_seq, exhausted_at_ns, status, attempts, last_error)
    return reply


def history_row(entry: EntryTuple) -> dict[str, object]:
    """The row of the history: all money in floors, so that neighbouring rows add up.

    balance_after of the row before - accrued_nanos = balance_before_nanos, + amount_nanos = balance_after_nanos.
    """
    e = Entry._make(entry)
    assert e.entry_id > 0, "only entries with an id are rows"
    before = e.balance - e.amount
    before_nanos = before // NANO
    return {
        "entry_id": e.entry_id,
        "at_ns": e.at_ns,
        "operation": ops.NAMES[e.op],
        "amount_nanos": e.balance_nanos - before_nanos,
        "accrued_nanos": (before + e.accrued) // NANO - before_nanos,
        "balance_before_nanos": before_nanos,
        "balance_after_nanos": e.balance_nanos,
        "message": text(e.message),
        "request_id": text(e.request_id) if e.request_id else None,
        "resource": text(e.key) if e.op in ops.OF_LINES else None,
        "line_rate_nanos_per_hour": e.line_rate if e.op in ops.OF_LINES and e.line_rate != UNKNOWN else None,
        "rate_nanos_per_hour": e.rate,
        "value_nanos": value_of(e.op, e.a, e.b, e.key),
        "thresholds": threshold_maps(ops.unpack_thresholds(e.key)) if e.op == ops.SET_THRESHOLDS else None,
        "class": class_name(e.key) if e.op == ops.SET_CLASS else None,
        "actor": TIME if e.op in ops.BY_TIME else text(e.actor),
    }


def class_name(key: bytes) -> str:
    """A cutoff class as people read it."""
    return key.decode() or ops.DEFAULT_CLASS


def threshold_maps(thresholds: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """Thresholds as people set them; each given as (kind, value)."""
    return [{"amount_nanos" if kind == ops.BY_AMOUNT else "runway_ns": value} for kind, value in thresholds]


def value_of(op: int, a: int, b: int, key: bytes) -> int | None:
    """What the command set, in nanos: a credit limit, a hold, the highest threshold, or the threshold that was crossed;
    None where it set nothing of the kind.
    """
    if op in _SETS_A:
        return a
    if op == ops.SET_THRESHOLDS:
        return max((value for kind, value in ops.unpack_thresholds(key) if kind == ops.BY_AMOUNT), default=None)
    return b if op == ops.THRESHOLD and a == ops.BY_AMOUNT else None


# -- refusals ----------------------------------------------------------------------------------------------------------

# What stands against a command, by the number in the note.
LIMITS: Final = ("balance", "available", "credit_limit", "holds", "open_holds", "rate", "rate_lines", "credits")
OBSTACLES: Final = ("rate", "debt", "hold", "cutoff")


def refused(entry: EntryTuple, bucket_id: int) -> Refused:
    """The error that answers the call which made this refused entry."""
    e = Entry._make(entry)
    number: int = _NUMBER.unpack(e.note)[0]
    name = NAME_OF_CODE[e.refusal]
    details: dict[str, object] = {}
    if name == "INSUFFICIENT_FUNDS":
        available_nanos = e.balance_nanos + e.credit_limit_nanos - e.holds_nanos
        message = f"{format_coins(e.a)} coins asked for, {format_coins(available_nanos)} available"
        details = {"available_nanos": available_nanos, "shortfall_nanos": number}
    elif name == "INSUFFICIENT_RUNWAY":
        message = f"the money would last {number} ns, {e.c} asked for"
        details = {"runway_ns": number, "min_runway_ns": e.c}
    elif name == "STALE_RATE":
        message = f"rate_seq {e.b} is not newer than {number}"
        details = {"rate_seq": number}
    elif name == "LIMIT_EXCEEDED":
        message = f"{LIMITS[number]} would leave its bounds"
        details = {"limit": LIMITS[number]}
    elif name == "ACCOUNT_NOT_CLOSABLE":
        message = f"the account still has a {OBSTACLES[number]}"
        details = {"obstacle": OBSTACLES[number]}
    elif name == "INVALID_RATE":
        message = f"the line is at {format_coins(number)} coins per hour and cannot fall below zero"
        details = {"rate_nanos_per_hour": number}
    elif name == "INVALID_PARAMS":
        message = f"expires_at_ns {number} is not after the instant of the call"
        details = {"expires_at_ns": number}
    elif name == "UNKNOWN_HOLD":
        message = "no open hold has this id"
    elif name == "REQUEST_ID_CONFLICT":
        message = "a hold made with this request_id is still open"
    else:
        raise AssertionError(f"the ledger does not refuse with {name}")
    details |= {"bucket_id": bucket_id, "at_ns": e.at_ns}
    if e.flags & REPLAYED:
        details["replayed"] = True
    return Refused(name, message, details)


assert all(name in KINDS for name in ("UNKNOWN_ACCOUNT", "REQUEST_ID_CONFLICT"))
