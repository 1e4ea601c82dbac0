"""A journal's batch as rows of the history. Pure; and fast, because it runs once for every entry there is.

All numbers a row needs are taken out of an entry by one struct that is derived from the entry's own format, so the two
cannot drift apart; the rest of the entry is not looked at. What a row shows is defined by `entry.history_row`, in
floors of nanos. Here the same comes out of the parts (nanos, frac) with small integers only:

    balance before = balance - amount           its fraction borrows one where balance_frac < amount_frac
    amount shown   = amount_nanos               + that borrow
    accrued shown  = accrued_nanos              + 1 where the fractions of before and accrued carry

Beside them a row keeps what nobody could work out later, when the journal is trimmed: `flags` of the entry, `frac` (the
balance's fraction, so that it is known to the internal unit), the account's `rate` from then on, the `resource` of a
line and in `value` its rate from then on (or whatever else the command set, see `entry.value_of`), the `actor`, and in
`rare`, where any of them is not zero, credit limit and open holds in nanos and the fraction of the amount.

A row is a tuple in the order of `COLUMNS`. `seq` counts the rows of one file from 1; `older` is the seq of the same
account's row before, 0 for the first: so the rows of an account are a chain from the newest to the oldest, which is the
order they are asked for in, and writing one never touches another page of the file than the last. So that one need not
walk a long chain from its end, every `MARK_EVERY`th entry is marked.

Refused entries and reports of deliveries carry no entry_id and are no rows. Of the records of the shard itself only
LEAVE matters: from it another shard's reader knows that this file has all of a bucket's former time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from billing.ledger import commands as ops
from billing.ledger.commands import OF_LINES
from billing.ledger.entry import FIELDS, FIXED, FORMAT, pack, unpack, value_of
from billing.ledger.money import INT64_MAX, NANO
from shards.batch import ENTRY, ENVELOPE, LEAVE, LENGTH


class Column(NamedTuple):
    """A column of the rows. `absent`: what it holds in rows that an older version of the file has without it."""

    name: str
    sql: str
    absent: int | bytes | None = None


COLUMNS: Final = (
    Column("seq", "INTEGER PRIMARY KEY"),
    Column("older", "INTEGER NOT NULL"),
    Column("number", "INTEGER NOT NULL"),
    Column("entry_id", "INTEGER NOT NULL"),
    Column("at_ns", "INTEGER NOT NULL"),
    Column("operation", "INTEGER NOT NULL"),
    Column("amount", "INTEGER NOT NULL"),
    Column("accrued", "INTEGER NOT NULL"),
    Column("balance", "INTEGER NOT NULL"),
    Column("message", "BLOB"),
    Column("request_id", "BLOB"),
    Column("flags", "INTEGER"),
    Column("frac", "INTEGER"),
    Column("rate", "INTEGER"),
    Column("value", "INTEGER"),
    Column("resource", "BLOB"),
    Column("actor", "BLOB"),
    Column("rare", "BLOB"),
)  # the one list of them: schema, insertion, checksum and reading are made from it
MARK_EVERY: Final = 64  # by entry_id; a power of two

# In the order of `COLUMNS`; empty message, request_id and actor are None, and so are value and resource where there is
# none; accrued is two's complement.
Row = tuple[Any, ...]
Place = list[int]  # [number of the account in this file, seq of its newest row]

_WANTED: Final = (
    "op", "flags", "at_ns", "entry_id", "amount_nanos", "amount_frac", "accrued_nanos", "accrued_frac", "balance_nanos",
    "balance_frac", "rate", "line_rate", "credit_limit_nanos", "holds_nanos",
)  # fmt: skip
_TAILS: Final = ("user_id", "key", "request_id", "message", "options", "actor", "note")


def _record_struct() -> struct.Struct:
    """A whole record up to its tails: its length, the wanted numbers of the entry in it, the lengths of its tails."""
    numbers = FIELDS[: FIELDS.index("user_id")]
    codes = FIXED.format[2:]
    assert FIXED.format[:2] == "<B"
    assert FIELDS[len(numbers) :] == _TAILS
    assert tuple(name for name in numbers if name in _WANTED) == _WANTED
    kept = (
        code if name in _WANTED or name in _TAILS else f"{struct.calcsize('<' + code)}x"
        for name, code in zip(FIELDS, codes, strict=True)
    )
    return struct.Struct(f"{LENGTH.format}{ENVELOPE.size + 1}x{''.join(kept)}")


_RECORD: Final = _record_struct()
_LENGTH_BYTES: Final = LENGTH.size
_BODY_AT: Final = LENGTH.size + ENVELOPE.size
_ASKED: Final = struct.Struct("<qq")  # a and b
_ASKED_AT: Final = _BODY_AT + struct.calcsize("<BBHH")
RARE: Final = struct.Struct("<qqq")  # credit limit and holds in nanos, fraction of the amount
_PLAIN: Final = frozenset((ops.TOP_UP, ops.DEBIT, ops.ADJUST, ops.EXHAUST))  # which set no value
assert ENVELOPE.format.startswith("<B"), "a record opens with the byte that says its kind"


class Group:
    """What one transaction will write: the rows of any number of batches, and what follows from them."""

    __slots__ = ("left", "marks", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.marks: list[tuple[int, int, int]] = []  # (number, entry_id, seq)
        self.left: list[tuple[int, int]] = []  # (bucket id, generation) given away


def project(
    payload: bytes, seq: int, places: dict[bytes, Place], place_of: Callable[[bytes], Place], group: Group
) -> int:
    """Adds a batch's rows to `group`, the first as seq + 1; returns the seq of the last.

    `places` maps user ids to their places; of who is not in it `place_of` tells the place, and puts it there. Raises
    AssertionError, IndexError or struct.error where the bytes are no batch.
    """
    add, mark, get = group.rows.append, group.marks.append, places.get
    unpack, record_bytes = _RECORD.unpack_from, _RECORD.size
    (count,) = LENGTH.unpack_from(payload)
    at = _LENGTH_BYTES
    for _ in range(count):
        if payload[at + _LENGTH_BYTES] != ENTRY:
            at = _other(payload, at, group)
            continue
        if payload[at + _BODY_AT] != FORMAT:
            seq, at = _first(payload, at, seq, places, place_of, group)
            continue
        (
            length, op, flags, at_ns, entry_id, amount, amount_frac, accrued, accrued_frac, balance, frac, rate,
            line_rate, limit, holds, user_len, key_len, request_len, message_len, options_len, actor_len, note_len,
        ) = unpack(payload, at)  # fmt: skip
        tails_at = at + record_bytes
        key_at = tails_at + user_len
        request_at = key_at + key_len
        message_at = request_at + request_len
        actor_at = message_at + message_len + options_len
        if op in _PLAIN:
            value = resource = None
        elif op in OF_LINES:
            value, resource = line_rate if line_rate >= 0 else None, payload[key_at:request_at]
        else:
            value, resource = value_of(op, *_ASKED.unpack_from(payload, at + _ASKED_AT)), None
        at += _LENGTH_BYTES + length
        assert actor_at + actor_len + note_len == at, "an entry's tails do not fill its record"
        if entry_id <= 0:
            continue
        user_id = payload[tails_at:key_at]
        place = get(user_id)
        if place is None:
            place = place_of(user_id)
        seq += 1
        before_frac = frac - amount_frac
        if before_frac < 0:
            before_frac += NANO
            amount += 1
        if before_frac + accrued_frac >= NANO:
            accrued += 1
        if accrued > INT64_MAX:
            accrued -= 1 << 64
        number, older = place
        add(
            (
                seq, older, number, entry_id, at_ns, op, amount, accrued, balance,
                payload[message_at : message_at + message_len] or None, payload[request_at:message_at] or None,
                flags, frac, rate, value, resource, payload[actor_at : actor_at + actor_len] or None,
                RARE.pack(limit, holds, amount_frac) if limit or holds or amount_frac else None,
            )
        )  # fmt: skip
        place[1] = seq
        if not entry_id & (MARK_EVERY - 1):
            mark((number, entry_id, seq))
    assert at == len(payload), "bytes behind the last record of a batch"
    return seq


def _first(
    payload: bytes,
    at: int,
    seq: int,
    places: dict[bytes, Place],
    place_of: Callable[[bytes], Place],
    group: Group,
) -> tuple[int, int]:
    """The entry of the first format at `at`, as a batch of its own in the present one: (seq, the next offset)."""
    (length,) = LENGTH.unpack_from(payload, at)
    end = at + _LENGTH_BYTES + int(length)
    assert end <= len(payload), "a record ends behind its batch"
    body = pack(unpack(payload[at + _BODY_AT : end]))
    record = LENGTH.pack(ENVELOPE.size + len(body)) + payload[at + _LENGTH_BYTES : at + _BODY_AT] + body
    return project(LENGTH.pack(1) + record, seq, places, place_of, group), end


def _other(payload: bytes, at: int, group: Group) -> int:
    """A record that is no entry; the offset of the next."""
    (length,) = LENGTH.unpack_from(payload, at)
    kind, bucket_id, generation = ENVELOPE.unpack_from(payload, at + _LENGTH_BYTES)
    if kind == LEAVE and length == ENVELOPE.size:  # a longer one: a move came to nothing
        group.left.append((bucket_id, generation))
    return at + _LENGTH_BYTES + int(length)
