"""A page of the history: consecutive rows of a file, each of them the entry's record as the journal has it. Pure.

    page    first u64 (the seq of its first row), count u32, checksum, packed
    packed  the body, compressed: a Zstandard frame (RFC 8878)
    body    older u64 × count, start u32 × count, records
    record  length u32, then as in a batch of the journal (`shards.batch`): envelope, packed entry
            or, with OLDER_ROW instead of an envelope, a row of an older version of the file as MessagePack:
            user_id and `Row`'s fields from entry_id to actor, then credit limit, holds, fraction of the amount.
            An opening row of `restoring` is written so, too

`older` is the seq of the account's preceding row. `start` is the offset in the records at which a row begins; the row
ends at the start of the next one, and a deleted row has no bytes. The checksum is a CRC-32C of first and count, then of
`packed`. All numbers are little-endian. Example: the body of a page whose first row is 9, and which holds two rows of
230 bytes, begins with older of row 9, older of row 10, 0, 230.

Compression costs less than writing the bytes it saves, as most of an entry is zeros or equal to its neighbours. Because
the whole entry is stored, a later version of the statement can show any of its fields. What a row shows is defined by
`entry.history_row`, in nanos rounded down. `row_of` computes the same from the parts (nanos, frac) with small integers
only:

    balance before = balance - amount           its fraction borrows one where balance_frac < amount_frac
    amount shown   = amount_nanos               + that borrow
    accrued shown  = accrued_nanos              + 1 where the fractions of before and accrued carry
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from crc32c import crc32c
from zstandard import ZstdCompressor, ZstdDecompressor

from billing.history.period import OPENING
from billing.ledger import commands as ops
from billing.ledger.commands import OF_LINES
from billing.ledger.entry import FIELDS, FIXED, FORMAT, UNKNOWN, pack, unpack, value_of
from billing.ledger.money import NANO
from shards.batch import ENTRY, ENVELOPE, LENGTH

PAGE_ROWS: Final = 32
LEVEL: Final = -1  # compression level: a third of the work of level 1, and a tenth more bytes
OLDER_ROW: Final = 0  # instead of the kind of a record
OPENING_ROW: Final = 255  # instead of an operation: an account's state in a snapshot (`restoring`)
RECORD_HEAD_BYTES: Final = LENGTH.size + ENVELOPE.size
_HEAD: Final = struct.Struct("<QI")
_OLDER_BYTES: Final = 8
_START_BYTES: Final = 4


class Row(NamedTuple):
    """An entry as the history has it. A row from an older version of the file has None in `flags` and `frac` and the
    fields that it lacks, and 0 in `generation`.
    """

    seq: int
    older: int
    user_id: bytes
    entry_id: int
    at_ns: int
    operation: int
    amount: int  # nanos, as shown
    accrued: int  # nanos, as shown
    balance: int  # nanos
    message: bytes
    request_id: bytes
    flags: int | None
    frac: int | None  # fraction of the balance
    rate: int | None  # the account's rate from then on
    value: int | None  # the value that the command set (`entry.value_of`); for a line, its rate from then on
    resource: bytes | None  # the line, or the cutoff class or the thresholds (packed) that were set
    actor: bytes
    credit_limit: int  # nanos
    holds: int  # nanos
    amount_frac: int
    generation: int  # the generation under which the shard held the bucket


def name_of(operation: int) -> str:
    """The name of a row's operation."""
    return OPENING if operation == OPENING_ROW else ops.NAMES[operation]


class Part:
    """Rows that are not in a page yet: their records as runs of bytes, and for each row its start and its older
    row.
    """

    __slots__ = ("older", "runs", "size", "starts")

    def __init__(self) -> None:
        self.runs: list[bytes] = []
        self.size = 0  # bytes in the runs
        self.starts: list[int] = []
        self.older: list[int] = []

    def take(self, payload: bytes, start: int, end: int) -> None:
        """Adds the bytes of rows whose starts were added before."""
        if end > start:
            self.runs.append(payload[start:end])
            self.size += end - start

    def add(self, older: int, record: bytes) -> None:
        """Adds one row."""
        self.starts.append(self.size)
        self.older.append(older)
        self.take(record, 0, len(record))


class Page(NamedTuple):
    """A page as it is stored in the file."""

    first: int
    length: int  # rows
    checksum: int
    packed: bytes

    @property
    def is_sound(self) -> bool:
        """Whether the page matches its checksum."""
        return checksum_of(self.first, self.length, self.packed) == self.checksum

    def open(self) -> OpenPage:
        """Returns the page with its rows decompressed. The page must be sound."""
        return OpenPage(self.first, self.length, decompress(self.packed))


class OpenPage(NamedTuple):
    """A page whose rows can be read."""

    first: int
    length: int
    body: bytes

    def row(self, seq: int) -> Row | None:
        """Returns one of its rows; None where it is deleted."""
        body, index = self.body, seq - self.first
        starts_at = self.length * _OLDER_BYTES
        base = starts_at + self.length * _START_BYTES
        (start,) = _START.unpack_from(body, starts_at + index * _START_BYTES)
        end = len(body) - base
        if index + 1 < self.length:
            (end,) = _START.unpack_from(body, starts_at + (index + 1) * _START_BYTES)
        if start == end:
            return None
        (older,) = _OLDER.unpack_from(body, index * _OLDER_BYTES)
        return row_of(body, base + start, seq, older)

    def rows(self) -> Iterator[Row]:
        """Yields the rows that are not deleted, in order."""
        for seq in range(self.first, self.first + self.length):
            row = self.row(seq)
            if row is not None:
                yield row

    def records(self) -> list[bytes]:
        """Returns the record of each row; an empty one for a deleted row."""
        index = _index_struct(self.length).unpack_from(self.body)
        base = _index_struct(self.length).size
        starts = [*index[self.length :], len(self.body) - base]
        return [self.body[base + starts[at] : base + starts[at + 1]] for at in range(self.length)]

    def older(self) -> tuple[int, ...]:
        """Returns the `older` of each row."""
        return _index_struct(self.length).unpack_from(self.body)[: self.length]

    def without(self, seqs: Sequence[int]) -> Page | None:
        """Returns the page without these rows; None where no row is left."""
        records = self.records()
        for seq in seqs:
            records[seq - self.first] = b""
        if not any(records):
            return None
        part = Part()
        for older, record in zip(self.older(), records, strict=True):
            part.add(older, record)
        (page,) = pages_of(part, self.first)
        return page


compress: Final = ZstdCompressor(level=LEVEL).compress
decompress: Final = ZstdDecompressor().decompress
_OLDER: Final = struct.Struct("<Q")
_START: Final = struct.Struct("<I")


@lru_cache(maxsize=PAGE_ROWS)
def _index_struct(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q{count}I")


def checksum_of(first: int, length: int, packed: bytes) -> int:
    """Returns the checksum of a page."""
    return crc32c(packed, crc32c(_HEAD.pack(first, length)))


def pages_of(part: Part, first: int) -> list[Page]:
    """Returns the rows of a part as pages; `first` is the seq of the first row."""
    records, starts, older = b"".join(part.runs), part.starts, part.older
    pages = []
    for low in range(0, len(starts), PAGE_ROWS):
        page_starts = starts[low : low + PAGE_ROWS]
        count, base = len(page_starts), page_starts[0]
        end = starts[low + count] if low + count < len(starts) else len(records)
        index = _index_struct(count).pack(*older[low : low + count], *[start - base for start in page_starts])
        packed = compress(index + records[base:end])
        pages.append(Page(first + low, count, checksum_of(first + low, count, packed), packed))
    return pages


# -- rows of records ---------------------------------------------------------------------------------------------------

_WANTED: Final = (
    "op", "flags", "a", "b", "at_ns", "entry_id", "amount_nanos", "amount_frac", "accrued_nanos", "accrued_frac",
    "balance_nanos", "balance_frac", "rate", "line_rate", "credit_limit_nanos", "holds_nanos",
)  # fmt: skip
_TAILS: Final = ("user_id", "key", "request_id", "message", "options", "actor", "note")


def _record_struct() -> struct.Struct:
    """Returns the layout of a record up to its tails: its length, generation, the wanted numbers of the entry, and the
    lengths of its tails. It is derived from the entry's own format, so the two cannot drift apart.
    """
    numbers = FIELDS[: FIELDS.index("user_id")]
    codes = FIXED.format[2:]
    assert FIXED.format[:2] == "<B"
    assert ENVELOPE.format == "<BHI"
    assert FIELDS[len(numbers) :] == _TAILS
    assert tuple(name for name in numbers if name in _WANTED) == _WANTED
    form = (
        code if name in _WANTED or name in _TAILS else f"{struct.calcsize('<' + code)}x"
        for name, code in zip(FIELDS, codes, strict=True)
    )
    return struct.Struct(f"{LENGTH.format}2xxI1x{''.join(form)}")


_RECORD: Final = _record_struct()
_KEPT: Final = frozenset((ops.SET_CLASS, ops.SET_THRESHOLDS))  # operations that set a value which is in the key
_PLAIN: Final = frozenset((ops.TOP_UP, ops.DEBIT, ops.ADJUST, ops.EXHAUST))  # operations that set no value
_decode: Final = msgspec.msgpack.Decoder().decode
_encode: Final = msgspec.msgpack.Encoder().encode


def row_of(records: bytes, at: int, seq: int, older: int) -> Row:
    """Returns the row whose record begins at `at`. Raises AssertionError, ValueError, struct.error where there
    is none.
    """
    if records[at + LENGTH.size] != ENTRY or records[at + RECORD_HEAD_BYTES] != FORMAT:
        return _former_row(records, at, seq, older)
    (
        length, generation, op, flags, a, b, at_ns, entry_id, amount, amount_frac, accrued, accrued_frac, balance, frac,
        rate, line_rate, limit, holds, user_len, key_len, request_len, message_len, options_len, actor_len, note_len,
    ) = _RECORD.unpack_from(records, at)  # fmt: skip
    user_at = at + _RECORD.size
    key_at = user_at + user_len
    request_at = key_at + key_len
    message_at = request_at + request_len
    options_at = message_at + message_len
    actor_at = options_at + options_len
    note_at = actor_at + actor_len
    assert note_at + note_len == at + LENGTH.size + length, "an entry's tails do not fill its record"
    value = resource = None
    if op in OF_LINES:
        value, resource = None if line_rate == UNKNOWN else line_rate, records[key_at:request_at]
    elif op not in _PLAIN:
        key = records[key_at:request_at]
        value = value_of(op, a, b, key)
        resource = key if op in _KEPT else None
    before_frac = frac - amount_frac
    if before_frac < 0:
        before_frac += NANO
        amount += 1
    if before_frac + accrued_frac >= NANO:
        accrued += 1
    return Row(
        seq, older, records[user_at:key_at], entry_id, at_ns, op, amount, accrued, balance,
        records[message_at:options_at], records[request_at:message_at], flags, frac, rate, value, resource,
        records[actor_at:note_at], limit, holds, amount_frac, generation,
    )  # fmt: skip


def _former_row(records: bytes, at: int, seq: int, older: int) -> Row:
    """Returns the row of a record that holds an entry of the first format, or a row of an older version of the
    file.
    """
    (length,) = LENGTH.unpack_from(records, at)
    end = at + LENGTH.size + length
    assert end <= len(records), "a record ends behind its page"
    if records[at + LENGTH.size] == ENTRY:
        body = pack(unpack(records[at + RECORD_HEAD_BYTES : end]))
        head = LENGTH.pack(ENVELOPE.size + len(body)) + records[at + LENGTH.size : at + RECORD_HEAD_BYTES]
        return row_of(head + body, 0, seq, older)
    assert records[at + LENGTH.size] == OLDER_ROW, "a record that is no row"
    return Row._make((seq, older, *_decode(records[at + LENGTH.size + 1 : end]), 0))


def record_of_older_row(fields: Sequence[Any]) -> bytes:
    """Returns the record of a row of an older version of the file. `fields`: those of `Row` from user_id to
    amount_frac.
    """
    packed = _encode(fields)
    return LENGTH.pack(1 + len(packed)) + bytes((OLDER_ROW,)) + packed
