"""The entry: a command with its instant and its outcome. One codec, one answer.

An entry is the journal's record, the history's row, the stored answer of a request_id and the audit's evidence at
once. It is a plain tuple in the order of `FIELDS`; `Entry` is the same tuple with names, for code that need not be
fast. Grammar of the packed form, little-endian:

    entry = 0xF2, fixed, tails
    fixed = op u8, flags u16, refusal u16, a i64, b i64, c i64, at_ns i64, entry_id i64,
            amount (nanos i64, frac i64), accrued (nanos u64, frac i64), balance (nanos i64, frac i64), rate i64,
            line_rate i64, credit_limit_nanos i64, holds_nanos i64, exhausts_at_ns i64, exhaustion_seq i64,
            overrun (nanos i64, frac i64), lengths of the tails: user_id u8, key u8, request_id u8, message u16,
            options u8, actor u8, note u16
    tails = user_id key request_id message options actor note
    options = (tag u8, length u8, value) for each optional parameter that was given, tags rising

`op, user_id, a, b, c, key, request_id, message, options, actor` are the command as it was applied. A pair (nanos, frac)
is `nanos * NANO + frac` internal units with 0 <= frac < NANO. `amount` is the signed change of the balance by the
command itself, `accrued` the charge for the time since the entry before (never negative), `balance` the balance after
both; so the balance before the command is balance - amount, and the entry before ended with balance - amount + accrued.
`rate` is the account's total after the entry, in nanos per hour; `line_rate` is the new rate of the line that the
command set (0 if it set none); `exhausts_at_ns` is -1 if no exhaustion is coming. `actor` names who caused the command;
it is not compared when the ledger decides whether two calls are the same.

Example: a top-up of 5 nanos for user `7` at instant 10 as its first entry packs to f2, 01 0000 0000, 05.., 00.., 00..,
0a.., 01.. and so on, to the tail 37; `FIXED.size + 1` bytes in all.

`EVERYDAY` packs the fixed part of an everyday command. It takes no refusal, frac of amount, credit limit, holds and
overrun, and no lengths of key, options and note: these are zero in such an entry, and `EVERYDAY` writes the zeros.
`RAN_OUT` and `REPORTED` do the same for the other entries of `fast_path`: an exhaustion takes op, flags, at_ns,
entry_id, the numbers from accrued to rate, those from credit limit to overrun, and the length of the user; a report
of delivery `a` as well, and no entry_id and accrued.

**The first format** had neither the leading byte nor `line_rate`, `options` and `actor`, and no flag ACCRUING; its
first byte was the op, which is below 0xF2. `unpack` reads both formats. The `line_rate` of a change_rate in the first
format is UNKNOWN. `pack_first` makes the bytes that an entry has in the first format, so that replay can compare the
recorded bytes with the entry that it made.

Entries of refusals (flag REFUSED) and of reports of delivery change no money, have the entry_id 0, settle nothing and
are not rows of the history; their balance is the one at their instant. `note` holds further facts for the answer and
for replay: for a restored account the cutoff concerned, for a refusal the number of its message, for a closing the
forfeited credit, for a crossing with a grace and for a set_class during a grace the instant at which the grace ends. An
answer is made from the entry alone, so one function makes both the first answer and the replayed one.
"""

import string
import struct
from base64 import b64encode
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
RAN_OUT: Final = struct.Struct("<BBH26xqq16xQqqqq8xqqqqqqB8x")
REPORTED: Final = struct.Struct("<BBH2xq16xq40xqqq8xqqqqqqB8x")
_CAUSE: Final = struct.Struct("<BBHHqqqq")  # its beginning
_LENGTHS: Final = struct.Struct("<BBBHBBH")  # its end
_LENGTHS_AT: Final = FIXED.size - _LENGTHS.size
_SEQ: Final = struct.Struct("<q")
_SEQ_AT: Final = struct.calcsize("<BBHHqqqqqqqQqqqqqqqq")  # where exhaustion_seq begins

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
    """The packed form of an entry tuple. Raises struct.error if a number does not fit its field: a broken invariant."""
    tails = entry[_NUMBERS:]
    return FIXED.pack(FORMAT, *entry[:_NUMBERS], *map(len, tails)) + b"".join(tails)


def unpack(packed: bytes) -> EntryTuple:
    """The entry tuple of a packed entry, in the present or the first format. Raises ValueError where the lengths do not
    add up.
    """
    if packed[:1] != FORMAT_BYTE:
        return _unpack_first(packed)
    if len(packed) < FIXED.size:
        raise ValueError("entry shorter than its fixed part")
    numbers = FIXED.unpack_from(packed)
    return (*numbers[1 : 1 + _NUMBERS], *_tails(packed, FIXED.size, numbers[1 + _NUMBERS :]))


def _tails(packed: bytes, at: int, lengths: tuple[int, ...]) -> list[bytes]:
    """The tails of these lengths, from `at` on. Raises ValueError unless they end where the entry ends."""
    tails = []
    for length in lengths:
        tails.append(packed[at : at + length])
        at += length
    if at != len(packed):
        raise ValueError("entry's tails do not fill it")
    return tails


def cause_of(packed: bytes) -> tuple[int, int, ops.Command]:
    """(flags, at_ns, command) of a packed entry: what replay needs to make the entry again, without the numbers of the
    outcome. Raises ValueError as `unpack` does.
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
    """(op, flags) of a packed entry of either format; reads and checks nothing else of it."""
    at = packed[0] == FORMAT
    return packed[at], packed[at + 1] | packed[at + 2] << 8


def instant_of(packed: bytes) -> int:
    """`at_ns` of a packed entry of either format; reads and checks nothing else of it."""
    at_ns: int = _AT_NS.unpack_from(packed, _AT_NS_AT + (packed[0] == FORMAT))[0]
    return at_ns


def seq_of(packed: bytes) -> int:
    """`exhaustion_seq` of a packed entry of the present format; reads and checks nothing else of it."""
    seq: int = _SEQ.unpack_from(packed, _SEQ_AT)[0]
    return seq


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
    """The bytes of this entry in the first format, which has no room for its `line_rate`, options and actor."""
    op, flags, *numbers = entry[:_NUMBERS]
    del numbers[_LINE_RATE - 2]
    user_id, key, request_id, message, _, _, note = entry[_NUMBERS:]
    tails = (user_id, key, request_id, message, note)
    return _FIRST.pack(op, flags & ~ACCRUING, *numbers, *map(len, tails)) + b"".join(tails)


# -- notes -------------------------------------------------------------------------------------------------------------

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
    """The note of an entry that restored an account: the account's latest cutoff, as it is after the entry."""
    return _CUTOFF.pack(seq, exhausted_at_ns, attempts, status) + last_error


def pack_number(number: int) -> bytes:
    """The note of a refused entry: the one number that its error needs, 0..2**64-1."""
    return _NUMBER.pack(number)


def pack_forfeited(forfeited: int) -> bytes:
    """The note of a close entry: the part of its amount that was credit with an end, in internal units above zero."""
    return _FORFEITED.pack(*divmod(forfeited, NANO))


def pack_grace(ends_ns: int) -> bytes:
    """The note of an entry that begins a grace, or moves its end."""
    return _GRACE.pack(ends_ns)


def grace_end_of(packed: bytes) -> int:
    """The end of a grace, from the note of a packed entry that began or moved one, or may have; -1 if there is no note.
    The entry is of the present format and no refusal.
    """
    *_, length = _LENGTHS.unpack_from(packed, _LENGTHS_AT)
    ends_ns: int = _GRACE.unpack(packed[-length:])[0] if length else -1
    return ends_ns


_UNQUOTED: Final = string.ascii_letters.encode() + b"0123456789_-~"


def event_id(user_id: bytes, seq: int, exhausted_at_ns: int) -> str:
    """The name of one cutoff, the same for all attempts: ASCII, safe in a header and a query, at most 512 bytes,
    without a full stop.
    """
    if user_id.translate(None, _UNQUOTED):
        return f"{quote_from_bytes(user_id, safe='').replace('.', '%2E')}:{seq}:{exhausted_at_ns}"
    return f"{user_id.decode()}:{seq}:{exhausted_at_ns}"  # nearly all of them


def hold_id(request_id: bytes, entry_id: int) -> bytes:
    """The id of a hold, always UTF-8: made of the request_id of its `hold`, or of the entry_id if there was none."""
    if not request_id:
        return b"e:%d" % entry_id
    try:
        request_id.decode()
    except UnicodeDecodeError:
        return b"x:" + request_id.hex().encode()
    return b"r:" + request_id


def text(raw: bytes) -> str | bytes:
    """Text for a reply: str if the bytes are UTF-8, else the bytes unchanged."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def plain_text(raw: bytes) -> str:
    """Text for a form that has no bytes, such as JSON: bytes that are not UTF-8 are `base64:` and their base64."""
    shown = text(raw)
    return shown if isinstance(shown, str) else "base64:" + b64encode(shown).decode()


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


TIME: Final = "time"  # the actor of commands that time causes
_SETS_A: Final = frozenset((ops.SET_CREDIT_LIMIT, ops.HOLD, ops.HOLD_EXPIRED, ops.CAPTURE))


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(entry: EntryTuple, bucket_id: int) -> dict[str, object]:
    """The reply to the call that made this entry, or to a retry of that call; the entry is no refusal. The map of
    CONTRACT §3.
    """
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
    # The amount taken is shown as the history shows it: the balance before less the balance after, each rounded down.
    if op == ops.DEBIT:
        reply["outcome"] = "exhausted" if flags & EXHAUSTED else "ok"
        reply["debited_nanos"] = -amount_nanos - (amount_frac > balance_frac)
    elif op == ops.HOLD:
        reply["hold_id"] = text(hold_id(request_id, entry_id))
    elif op == ops.CAPTURE:
        reply["captured_nanos"] = -amount_nanos  # of whole nanos
    elif op == ops.CLOSE:
        nanos, frac = _FORFEITED.unpack(note) if note else (0, 0)
        paid_out_nanos = -(amount_nanos * NANO + amount_frac + nanos * NANO + frac) // NANO  # no more than never ends
        reply["paid_out_nanos"] = paid_out_nanos
        reply["forfeited_nanos"] = -amount_nanos - (amount_frac > balance_frac) - paid_out_nanos
    if flags & RESTORED:
        reply["restored"] = True
        if note:
            cutoff_seq, exhausted_at_ns, attempts, status = _CUTOFF.unpack_from(note)
            last_error = note[_CUTOFF.size :]
            reply["cutoff"] = cutoff_map(user_id, cutoff_seq, exhausted_at_ns, status, attempts, last_error)
    return reply


def history_row(entry: EntryTuple) -> dict[str, object]:
    """The row of the history. Balances are rounded down, and the amounts are their differences, so that neighbouring
    rows add up:

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
    """The name that is shown for a cutoff class."""
    return key.decode() or ops.DEFAULT_CLASS


def threshold_maps(thresholds: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """Thresholds, each given as (kind, value), in the form in which a client sets them."""
    return [{"amount_nanos" if kind == ops.BY_AMOUNT else "runway_ns": value} for kind, value in thresholds]


def value_of(op: int, a: int, b: int, key: bytes) -> int | None:
    """The value of a command in nanos: its credit limit, the amount of its hold or capture, its highest threshold of an
    amount, or the threshold that was crossed; None for other commands.
    """
    if op in _SETS_A:
        return a
    if op == ops.SET_THRESHOLDS:
        return max((value for kind, value in ops.unpack_thresholds(key) if kind == ops.BY_AMOUNT), default=None)
    return b if op == ops.THRESHOLD and a == ops.BY_AMOUNT else None


# -- refusals ----------------------------------------------------------------------------------------------------------

# The bound that a command would break, and the obstacle to a closing, by the number in the note.
LIMITS: Final = ("balance", "available", "credit_limit", "holds", "open_holds", "rate", "rate_lines", "credits")
OBSTACLES: Final = ("rate", "debt", "hold", "cutoff")


def refused(entry: EntryTuple, bucket_id: int) -> Refused:
    """The error that answers the call that made this refused entry, or a retry of that call."""
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
