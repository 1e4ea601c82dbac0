"""Who has rows in a history file, and which is the newest of each: the ends of the chains.

    users   number, user_id: who has rows, numbered from 1
    heads   chunk, newest: of the accounts `chunk * CHUNK` and following the seq of the newest row, each a u64; 0: none

A new row changes the end of one chain, so a group of rows changes nearly as many ends as it has rows. Therefore they
stand in chunks: a transaction writes each chunk that it touches once, as one blob, and not each end as a row of its
own. Example: the newest row of account 130 stands in chunk 1, in the bytes 16 to 23.
"""

from __future__ import annotations

import sqlite3
import struct
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import Final

USERS_MAX: Final = 250_000  # accounts whose numbers are remembered; of others they are looked up
CHUNKS_MAX: Final = 20_000  # chunks that are remembered
CHUNK: Final = 128  # accounts; a power of two
CHUNK_SHIFT: Final = 7
assert CHUNK == 1 << CHUNK_SHIFT
assert array("Q").itemsize == 8

NUMBER: Final = "SELECT number FROM users WHERE user_id = ?"
_CHUNK: Final = "SELECT newest FROM heads WHERE chunk = ?"
_NEWEST: Final = struct.Struct("<Q")
_CHUNK_FORM: Final = struct.Struct(f"<{CHUNK}Q")


def chain_end_of(db: sqlite3.Connection, user_id: bytes) -> tuple[int, int] | None:
    """(number of an account, seq of its newest row) as the file has it; None where it has no rows."""
    row = db.execute(NUMBER, (user_id,)).fetchone()
    if row is None:
        return None
    number: int = row[0]
    chunk = db.execute(_CHUNK, (number >> CHUNK_SHIFT,)).fetchone()
    newest = 0 if chunk is None else _NEWEST.unpack_from(chunk[0], (number & (CHUNK - 1)) * 8)[0]
    return (number, newest) if newest else None


class Accounts:
    """The writer's side. What `project` needs is in two dicts, `numbers` by user_id and `chunks` by number; what is
    missing in them `number_of` and `chunk_of` put there. `touched`: the chunks that changed since `write`.
    """

    def __init__(self, db: sqlite3.Connection, users_max: int = USERS_MAX) -> None:
        self._db = db
        self._users_max = users_max
        self.numbers: dict[bytes, int] = {}
        self.chunks: dict[int, array[int]] = {}
        self.touched: set[int] = set()

    def number_of(self, user_id: bytes) -> int:
        """The number of an account that is not remembered, or new. In an open transaction."""
        row = self._db.execute(NUMBER, (user_id,)).fetchone()
        if row is None:
            row = (self._db.execute("INSERT INTO users (user_id) VALUES (?)", (user_id,)).lastrowid,)
        number = self.numbers[user_id] = int(row[0])
        return number

    def chunk_of(self, chunk: int) -> array[int]:
        """A chunk that is not remembered, or new."""
        row = self._db.execute(_CHUNK, (chunk,)).fetchone()
        newest = self.chunks[chunk] = array("Q", bytes(CHUNK * 8) if row is None else _CHUNK_FORM.unpack(row[0]))
        return newest

    def advance(self, user_id: bytes, seq: int) -> tuple[int, int]:
        """Makes a row the newest of its account: (number, the newest before)."""
        number = self.numbers.get(user_id) or self.number_of(user_id)
        chunk, index = number >> CHUNK_SHIFT, number & (CHUNK - 1)
        newest = self.chunks.get(chunk) or self.chunk_of(chunk)
        older, newest[index] = newest[index], seq
        self.touched.add(chunk)
        return number, older

    def set_newest(self, ends: Iterable[tuple[bytes, int]]) -> None:
        """Sets the ends of chains, 0 where an account has no row any more; then it is no account of the file."""
        for user_id, seq in ends:
            number, _ = self.advance(user_id, seq)
            if not seq:
                self._db.execute("DELETE FROM users WHERE number = ?", (number,))
                del self.numbers[user_id]

    def write(self) -> None:
        """Brings the file up to what is here, in an open transaction; forgets what is too much to remember."""
        rows = [(chunk, _CHUNK_FORM.pack(*self.chunks[chunk])) for chunk in sorted(self.touched)]
        self._db.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?)", rows)
        self.touched.clear()
        for user_id in list(islice(self.numbers, max(0, len(self.numbers) - self._users_max))):
            del self.numbers[user_id]  # who was met first
        for chunk in list(islice(self.chunks, max(0, len(self.chunks) - CHUNKS_MAX))):
            del self.chunks[chunk]

    def forget(self) -> None:
        """Nothing is remembered: the file has changed."""
        self.numbers.clear()
        self.chunks.clear()
        self.touched.clear()
