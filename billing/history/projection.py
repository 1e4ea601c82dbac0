"""Turns a batch of the journal into rows of the history. Pure, and written for speed: it runs once per entry.

A row is the entry's record as it is in the batch (`page`); a reader computes everything else later. Only the entry_id
and the user of each entry are parsed, and the bytes are copied in runs, one for consecutive records that are rows.

`seq` counts the rows of one file from 1; `older` is the seq of the same account's preceding row, 0 for the first. So
the rows of an account are a chain from the newest to the oldest, which is the order in which they are asked for, and
writing a row changes no page of the file but the last. Every `MARK_EVERY`th entry of an account is marked, so that a
reader need not walk a long chain from its end.

Refused entries and reports of deliveries have no entry_id and are no rows. Of the shard's own records two matter: a
LEAVE tells the readers of other shards that this file has all rows of a bucket's time here; a RECEIVED says which
bucket has just arrived.
"""

from __future__ import annotations

import struct
from typing import Final

from billing.history.accounts import CHUNK, CHUNK_SHIFT, Accounts
from billing.history.page import OLDER_ROW, RECORD_HEAD_BYTES, Part, row_of
from billing.ledger.entry import FIELDS, FIXED, FORMAT, unpack
from shards.batch import ENTRY, ENVELOPE, LEAVE, LENGTH, RECEIVED

MARK_EVERY: Final = 64  # by entry_id; a power of two


def _wanted_struct() -> struct.Struct:
    """Returns the layout of a record up to its tails: its length, the entry_id, and the length of the user_id."""
    codes = FIXED.format[2:]
    assert FIXED.format[:2] == "<B"
    form = (
        code if name in ("entry_id", "user_id") else f"{struct.calcsize('<' + code)}x"
        for name, code in zip(FIELDS, codes, strict=True)
    )
    return struct.Struct(f"{LENGTH.format}{ENVELOPE.size + 1}x{''.join(form)}")


PLACE_MASK: Final = CHUNK - 1  # the bits of an account's number that are its index in the chunk
_WANTED: Final = _wanted_struct()
_LENGTH_BYTES: Final = LENGTH.size
_BODY_AT: Final = RECORD_HEAD_BYTES
assert ENVELOPE.format.startswith("<B"), "a record opens with the byte that says its kind"


class Group:
    """The rows of any number of batches that one transaction will write, and the other changes that follow from
    them.
    """

    __slots__ = ("arrived", "ends", "left", "marks", "part")

    def __init__(self) -> None:
        self.part = Part()  # rows that are not in a page yet
        self.marks: list[tuple[int, int, int]] = []  # (number, entry_id, seq)
        self.left: list[tuple[int, int]] = []  # (bucket id, generation) of the buckets given away
        self.arrived: list[int] = []  # buckets that arrived
        self.ends: list[tuple[int, int]] = []  # (position, seq) of the last row of each batch, where `batches` is kept


def project(payload: bytes, seq: int, accounts: Accounts, group: Group) -> int:
    """Adds the rows of a batch to `group`, the first as seq + 1, and makes each the newest of its account. Returns the
    seq of the last row. Raises AssertionError, IndexError, ValueError or struct.error where the bytes are no batch.
    """
    part, mark = group.part, group.marks.append
    number_of, chunk_of, change = accounts.numbers.get, accounts.chunks.get, accounts.touched.add
    add_start, add_older = part.starts.append, part.older.append
    unpack_from, tails_after = _WANTED.unpack_from, _WANTED.size
    (count,) = LENGTH.unpack_from(payload)
    at = run_at = _LENGTH_BYTES
    shift = part.size - run_at  # from an offset in the payload to the same record's offset in the part
    for _ in range(count):
        if payload[at + _LENGTH_BYTES] == ENTRY and payload[at + _BODY_AT] == FORMAT:
            length, entry_id, user_len = unpack_from(payload, at)
            user_at = at + tails_after
            user_id = payload[user_at : user_at + user_len]
        else:
            length, entry_id, user_id = _other(payload, at, group)
        if entry_id <= 0:
            part.take(payload, run_at, at)
            at += _LENGTH_BYTES + length
            run_at, shift = at, part.size - at
            continue
        number = number_of(user_id)
        if number is None:
            number = accounts.number_of(user_id)
        chunk, index = number >> CHUNK_SHIFT, number & PLACE_MASK
        newest = chunk_of(chunk)
        if newest is None:
            newest = accounts.chunk_of(chunk)
        seq += 1
        add_start(at + shift)
        add_older(newest[index])
        newest[index] = seq
        change(chunk)
        if not entry_id & (MARK_EVERY - 1):
            mark((number, entry_id, seq))
        at += _LENGTH_BYTES + length
    assert at == len(payload), "a batch does not end with its last record"
    part.take(payload, run_at, at)
    return seq


def _other(payload: bytes, at: int, group: Group) -> tuple[int, int, bytes]:
    """Returns (length, entry_id, user_id) of a record that is no entry of the present format; 0 and b"" where it is no
    row. Adds departures and arrivals to `group`.
    """
    (length,) = LENGTH.unpack_from(payload, at)
    end = at + _LENGTH_BYTES + int(length)
    assert end <= len(payload), "a record ends behind its batch"
    if payload[at + _LENGTH_BYTES] == OLDER_ROW:  # rebuilt from another host's file
        row = row_of(payload, at, 0, 0)
        return length, row.entry_id, row.user_id
    kind, bucket_id, generation = ENVELOPE.unpack_from(payload, at + _LENGTH_BYTES)
    if kind == ENTRY:
        entry = unpack(payload[at + _BODY_AT : end])
        return length, entry[_ENTRY_ID], entry[_USER_ID]
    if kind == LEAVE and length == ENVELOPE.size:  # a longer one: a move was cancelled
        group.left.append((bucket_id, generation))
    elif kind == RECEIVED:
        group.arrived.append(bucket_id)
    return length, 0, b""


_ENTRY_ID, _USER_ID = FIELDS.index("entry_id"), FIELDS.index("user_id")
