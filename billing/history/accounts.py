"""The accounts that have rows in a history file, and the newest row of each: the ends of the chains.

    users   number, user_id: the accounts with rows, numbered from 1
    heads   chunk, newest: the seqs of the newest rows of the accounts from `chunk * CHUNK` on, each a u64; 0: no row

A new row changes the end of one chain, so a group of rows changes nearly as many ends as it has rows. Therefore the
ends are stored in chunks: a transaction writes each chunk that it changes once, as one blob, instead of one row per
end. Example: the seq of the newest row of account 130 is in chunk 1, in bytes 16 to 23.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import Final

USERS_MAX: Final = 250_000  # accounts whose numbers are cached; others are looked up in the file
CHUNKS_MAX: Final = 20_000  # chunks that are cached
CHUNK: Final = 128  # accounts; a power of two
CHUNK_SHIFT: Final = 7
assert CHUNK == 1 << CHUNK_SHIFT
assert array("Q").itemsize == 8

NUMBER: Final = "SELECT number FROM users WHERE user_id = ?"
_CHUNK: Final = "SELECT newest FROM heads WHERE chunk = ?"
_NEWEST: Final = struct.Struct("<Q")
_IS_SWAPPED: Final = sys.byteorder == "big"  # numbers in memory are not little-endian, as those in the file are


def _packed(newest: array[int]) -> bytes:
    """Returns a chunk as it is in the file."""
    if _IS_SWAPPED:
        newest = newest[:]
        newest.byteswap()
    return newest.tobytes()


def _unpacked(blob: bytes) -> array[int]:
    """Returns a chunk of the file. Raises ValueError where it has another length."""
    if len(blob) != CHUNK * 8:
        raise ValueError(f"a chunk of the ends of chains has {len(blob)} bytes")
    newest = array("Q", blob)
    if _IS_SWAPPED:
        newest.byteswap()
    return newest


def chain_end_of(db: sqlite3.Connection, user_id: bytes) -> tuple[int, int] | None:
    """Returns (number of an account, seq of its newest row) from the file; None where the account has no rows."""
    row = db.execute(NUMBER, (user_id,)).fetchone()
    if row is None:
        return None
    number: int = row[0]
    chunk = db.execute(_CHUNK, (number >> CHUNK_SHIFT,)).fetchone()
    newest = 0 if chunk is None else _NEWEST.unpack_from(chunk[0], (number & (CHUNK - 1)) * 8)[0]
    return (number, newest) if newest else None


class Accounts:
    """The writer's cache of `users` and `heads`. `project` reads two dicts: `numbers` by user_id and `chunks` by chunk
    number. `number_of` and `chunk_of` load what is missing in them. `touched`: the chunks that changed since the last
    `write`.
    """

    def __init__(self, db: sqlite3.Connection, users_max: int = USERS_MAX) -> None:
        self._db = db
        self._users_max = users_max
        self.numbers: dict[bytes, int] = {}
        self.chunks: dict[int, array[int]] = {}
        self.touched: set[int] = set()

    def number_of(self, user_id: bytes) -> int:
        """Returns the number of an account that is not cached, and adds a new account. Needs an open transaction."""
        row = self._db.execute(NUMBER, (user_id,)).fetchone()
        if row is None:
            row = (self._db.execute("INSERT INTO users (user_id) VALUES (?)", (user_id,)).lastrowid,)
        number = self.numbers[user_id] = int(row[0])
        return number

    def chunk_of(self, chunk: int) -> array[int]:
        """Returns a chunk that is not cached, or a new one."""
        row = self._db.execute(_CHUNK, (chunk,)).fetchone()
        newest = self.chunks[chunk] = _unpacked(bytes(CHUNK * 8) if row is None else row[0])
        return newest

    def advance(self, user_id: bytes, seq: int) -> tuple[int, int]:
        """Makes a row the newest of its account. Returns (number, seq of the row that was the newest)."""
        number = self.numbers.get(user_id) or self.number_of(user_id)
        chunk, index = number >> CHUNK_SHIFT, number & (CHUNK - 1)
        newest = self.chunks.get(chunk) or self.chunk_of(chunk)
        older, newest[index] = newest[index], seq
        self.touched.add(chunk)
        return number, older

    def set_newest(self, ends: Iterable[tuple[bytes, int]]) -> None:
        """Sets the ends of chains. 0 means that the account has no row any more: it is removed from the file."""
        for user_id, seq in ends:
            number, _ = self.advance(user_id, seq)
            if not seq:
                self._db.execute("DELETE FROM users WHERE number = ?", (number,))
                del self.numbers[user_id]

    def write(self) -> None:
        """Writes all changes to the file, in an open transaction, and shrinks the cache to its limits."""
        rows = [(chunk, _packed(self.chunks[chunk])) for chunk in sorted(self.touched)]
        self._db.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?)", rows)
        self.touched.clear()
        for user_id in list(islice(self.numbers, max(0, len(self.numbers) - self._users_max))):
            del self.numbers[user_id]  # the ones cached first
        for chunk in list(islice(self.chunks, max(0, len(self.chunks) - CHUNKS_MAX))):
            del self.chunks[chunk]

    def forget(self) -> None:
        """Empties the cache, after the file was changed otherwise."""
        self.numbers.clear()
        self.chunks.clear()
        self.touched.clear()
