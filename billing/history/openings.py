"""Openings: the rate lines at the oldest row that an account keeps, where `history.keep_days` deleted those before it.

That row itself holds the rest of the account's state at its time: balance, rate, credit limit, holds, exhaustion. Only
the rows before it said which lines make up the rate, so the lines are stored beside it; a machine that has run for
years keeps no old row alive. Grants and leases of that time need no opening: the end of each is an entry of its own.

    opening = number, entry_id and seq of the row, lines, checksum; one per account and file
    lines   = MessagePack array of [resource or nil, nanos per hour], in the order of their names

The checksum is a CRC-32 of the other four as MessagePack. Example: the line `vm` at 3,600 nanos an hour is 91 92 c4 02
76 6d cd 0e10.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from billing.follower.store import Damaged
from billing.history.period import Lines, by_name

_PUT: Final = "INSERT OR REPLACE INTO openings VALUES (?, ?, ?, ?, ?)"
_OF_USER: Final = """
    SELECT number, entry_id, seq, lines, checksum FROM openings JOIN users USING (number)
    WHERE user_id = ?"""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[tuple[bytes | None, int]]).decode


class Opening(NamedTuple):
    """The rate lines of an account from the row of `entry_id` on."""

    entry_id: int
    lines: Lines


def put(db: sqlite3.Connection, number: int, entry_id: int, seq: int, lines: Lines) -> None:
    """Writes the opening of an account, replacing an earlier one."""
    packed = _encode([(resource, lines[resource]) for resource in sorted(lines, key=by_name)])
    db.execute(_PUT, (number, entry_id, seq, packed, crc32(_encode((number, entry_id, seq, packed)))))


def copy(db: sqlite3.Connection, row: tuple[Any, ...], number: int) -> None:
    """Writes a row of another file's table, with the number that the account has in this file."""
    columns = number, *row[1:4]
    db.execute(_PUT, (*columns, crc32(_encode(columns))))


def is_sound(row: tuple[Any, ...]) -> bool:
    """Whether a row of the table matches its checksum."""
    *columns, checksum = row
    return bool(checksum == crc32(_encode(tuple(columns))))


def openings_of(db: sqlite3.Connection, user_id: bytes) -> list[Opening]:
    """Returns the opening of an account in a file, or an empty list. Raises Damaged."""
    openings = []
    for row in db.execute(_OF_USER, (user_id,)):
        if not is_sound(row):
            raise Damaged(f"the opening of account {row[0]} is not what was written")
        openings.append(Opening(row[1], dict(_decode(row[3]))))
    return openings
