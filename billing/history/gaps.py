"""The batches of its journal that a history file lacks; and batches rebuilt from one file for another that lacks them.

Where several hosts share a log, each has a file of every shard. A host that was away for longer than the log reaches
back has a gap in its files. The file of another host has the rows of these batches: a row is its entry's record as it
was in the journal (`page`), and the table `batches` says which batch each row came from. So a batch can be rebuilt, as
far as histories need it, and be taken like one from the log.

**What a file can give.** The batches behind the first line of its `batches`: of rows before that line the batches are
not known. All rows up to that line together stand for all batches up to it, so they can be given to a file that lacks
all of these batches. A file gives no batch that it lacks itself, and none at or before one whose row
`history.keep_days` has deleted. So two files with gaps complete each other as far as they can, and batches that neither
has stay missing.

The module only reads. If the checksum of a page fails, or rows are missing, it raises Damaged and gives nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from crc32c import crc32c

from billing.follower.store import Damaged
from billing.history import batches
from billing.history.store import Pages
from shards.batch import LENGTH

_LOSSES: Final = "SELECT DISTINCT position FROM losses ORDER BY position"
_LOST_BEFORE: Final = "SELECT 1 FROM losses WHERE position <= ?"
_DEPARTED: Final = "SELECT bucket_id, generation, position FROM departures WHERE position >= ?"

Batches = list[tuple[int, bytes]]  # position and payload of each batch with rows, in order


class Gap(NamedTuple):
    """The first and the last of consecutive batches that a file lacks. The first ones may be known to have no
    rows.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return f"batches {self.first} to {self.last}"


class Given(NamedTuple):
    """Some of a shard's batches, as histories need them, in one message."""

    first: int  # the giver has all batches from this one
    last: int  # up to this one
    batches: Batches
    rows: int  # how many rows of the last batch were given so far; 0: all
    is_end: bool  # all batches up to `last` were given
    departures: list[tuple[int, int, int]]  # if `is_end`: bucket, generation, and a batch at or behind its departure
    checksum: int  # of the batches

    @property
    def is_sound(self) -> bool:
        """Whether the batches match the checksum."""
        return checksum_of(self.batches) == self.checksum


def checksum_of(part: Batches) -> int:
    """Returns a CRC-32C of positions, lengths and payloads."""
    checksum = 0
    for position, payload in part:
        checksum = crc32c(payload, crc32c(b"%d %d " % (position, len(payload)), checksum))
    return checksum


def gaps_of(db: sqlite3.Connection) -> list[Gap]:
    """Returns the gaps of a file, in order, as far as the positions of their ends are known. Raises
    sqlite3.Error.
    """
    begins, position = db.execute("SELECT begins, position FROM about").fetchone()
    if position < 0 or not batches.are_kept(db):
        return []
    gaps = [Gap(1, begins - 1)] if begins > 1 else []
    for (lost,) in db.execute(_LOSSES).fetchall():
        line_before = batches.line_up_to(db, lost)
        if line_before is None or line_before.position == lost:
            continue  # single rows within a batch are lost
        if gaps and line_before.position <= gaps[-1].last:
            gaps[-1] = Gap(gaps[-1].first, max(gaps[-1].last, lost))
        else:
            gaps.append(Gap(line_before.position + 1, lost))
    return gaps


def given_of(db: sqlite3.Connection, after: int, rows: int, last: int, bytes_max: int) -> Given | None:
    """Returns batches for a file that has all up to `after`, and `rows` rows of the next one, and lacks the others up
    to `last`; None where this file has none of them. About `bytes_max` bytes, more if one row has more. Raises Damaged,
    sqlite3.Error.
    """
    begins, position = db.execute("SELECT begins, position FROM about").fetchone()
    if position < 0 or not batches.are_kept(db):
        return None
    first, limit = max(after + 1, _whole_from(db, after, rows, last, begins)), min(last, position)
    for gap in gaps_of(db):
        if gap.first <= first <= gap.last:
            first = gap.last + 1
        elif gap.first > first:
            limit = min(limit, gap.first - 1)
    if first > limit:
        return None
    part, rows_given, is_end = batches_of(db, first, rows if first == after + 1 else 0, limit, bytes_max)
    departures = db.execute(_DEPARTED, (first,)).fetchall() if is_end else []
    return Given(first, limit, part, rows_given, is_end, departures, checksum_of(part))


def _whole_from(db: sqlite3.Connection, after: int, rows: int, last: int, begins: int) -> int:
    """Returns the first batch that can be given to a file that lacks those behind `after` up to `last`."""
    line = batches.first_line(db)
    (cut,) = db.execute("SELECT coalesce(max(seq), 0) FROM cuts").fetchone()
    if cut:
        return batches.batch_of(db, cut) + 1
    wants_all = (after + 1 <= begins and line.position <= last) or (rows > 0 and after + 1 == line.position)
    if wants_all and db.execute(_LOST_BEFORE, (line.position,)).fetchone() is None:
        return begins
    return line.position + 1


def batches_of(
    db: sqlite3.Connection, first: int, rows_before: int, last: int, bytes_max: int, *, may_lack: bool = False
) -> tuple[Batches, int, bool]:
    """Rebuilds the batches `first` to `last` of a file, without the first `rows_before` rows of the first one; about
    `bytes_max` bytes. Returns them, how many rows of the last of them were given so far (0: all), and whether all up to
    `last` was given. `may_lack`: rows may have been deleted. Raises Damaged, sqlite3.Error.
    """
    line_before = batches.line_up_to(db, first - 1)
    seq = 0 if line_before is None else line_before.seq
    final = batches.line_up_to(db, last)
    end = seq if final is None else final.seq
    records = _records(db, seq + rows_before)
    following = next(records, None)
    collected: Batches = []
    size = 0
    for line in batches.lines(db, first, last):
        at, part = seq + rows_before, list[bytes]()
        while following is not None and following[0] <= line.seq and size < bytes_max:
            if following[0] != at + 1 and not may_lack:
                raise Damaged(f"rows are missing behind row {at}")
            at = following[0]
            part.append(following[1])
            size += len(following[1])
            following = next(records, None)
        if part:
            collected.append((line.position, LENGTH.pack(len(part)) + b"".join(part)))
        if following is not None and following[0] <= line.seq:
            return collected, at - seq, False
        if at != line.seq and not may_lack:
            raise Damaged(f"rows are missing behind row {at}")
        seq, rows_before = line.seq, 0
        if size >= bytes_max:
            return collected, 0, seq == end
    return collected, 0, True


def _records(db: sqlite3.Connection, seq: int) -> Iterator[tuple[int, bytes]]:
    """Yields the seq and the record of each row behind `seq`. Raises Damaged."""
    for page in Pages(db).behind(seq):
        for at, record in enumerate(page.records(), page.first):
            if record and at > seq:
                yield at, record
