"""Reads an account's rows from all files of a directory: its shard's own, and those of the shards its bucket was at
before.

The rows of an account in one file are a chain, newest first. The chains of several files are merged by entry_id, which
rises by one for an account wherever it is. The own file is read through its writer's connection, so everything handed
over before the question is seen. The other files are fed by other processes, perhaps later.

**Complete, or reported as incomplete.** Entry_ids are consecutive from 1, so missing rows are noticed, wherever they
were lost. One row of the operation `missing` replaces each gap: its entry_id is that of the first missing entry, its
amount is the difference between the balances of the two neighbours, and `whole_from_ns` is the instant from which the
history is complete again (where the newest rows are missing, the instant of the newest entry, which the caller passes
in). Where `history.keep_days` deleted the rows, its operation is `opening`. The departures tell whether missing rows
may only be late. Ownership of a bucket passed from generation to generation, one at a time. So once the departures of
all generations before the present one are in the files, so is every row made under them (`missing`). The files are read
one by one, so a caller that needs to know asks for the departures first and reads the rows afterwards. It repeats both
if another file has replaced one meanwhile (`replaced`), which may not be as far yet.

Every row that is read is checked against its page's checksum, its account and its neighbours; a row that fails raises
`Damaged`.

A damaged file of another shard is repaired by that shard's process where it finds the damage, or by `billing rebuild`.
Until then its rows count as missing here, and are reported as missing.

The module only reads. It opens the file of another shard when it first sees it, and closes it when its name refers to a
different file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeVar

from billing.follower.store import UNREADABLE, Damaged, code_of, connect, shard_files
from billing.history.accounts import chain_end_of
from billing.history.openings import Opening, openings_of
from billing.history.page import OPENING_ROW, Row, name_of
from billing.history.period import OPENING
from billing.history.projection import MARK_EVERY
from billing.history.store import Pages
from billing.history.tables import KIND
from billing.ledger import commands as ops
from billing.ledger.entry import TIME, class_name, text, threshold_maps
from shards.exits import Exit
from shards.system.disk import Disk

T = TypeVar("T")

MISSING: Final = "missing"  # the operation of a row that replaces lost rows

EVERYWHERE: Final = 2  # a generation whose rows may be in any file

_FROM_MARK: Final = "SELECT seq FROM marks WHERE number = ? AND entry_id >= ? ORDER BY entry_id LIMIT 1"
_LAST_MARK: Final = "SELECT coalesce(max(entry_id), 0) FROM marks WHERE number = ?"
_MARKED: Final = "SELECT entry_id, seq FROM marks WHERE number = ? AND entry_id >= ? ORDER BY entry_id LIMIT 1"

_LACKS: Final = "SELECT (SELECT begins > 1 FROM about) OR (SELECT count(*) FROM losses)"

Shown = dict[str, Any]  # a row as `history` answers it


class Page(NamedTuple):
    """Rows as `history` answers them, newest first, and whether none of them stands for rows that are missing."""

    rows: list[Shown]
    is_whole: bool


def rows_of(db: sqlite3.Connection, user_id: bytes, before: int, limit: int) -> tuple[Row | None, list[Row]]:
    """Returns at most `limit` rows of an account in one file with an entry_id below `before`, newest first; and the row
    above them, where the file has one. Raises Damaged.

    Walks at most `projection.MARK_EVERY` rows beside those it returns.
    """
    chain_end = chain_end_of(db, user_id)
    if chain_end is None:
        return None, []
    number, newest = chain_end
    mark = db.execute(_FROM_MARK, (number, before)).fetchone()
    above: Row | None = None
    rows: list[Row] = []
    last_id = None
    for row in Pages(db).chain(newest if mark is None else mark[0]):
        if row.user_id != user_id or (last_id is not None and row.entry_id >= last_id):
            raise Damaged(f"row {row.seq} is not of the account whose rows led to it")
        last_id = row.entry_id
        if last_id >= before:
            above = row
        elif len(rows) < limit:
            rows.append(row)
        if len(rows) >= limit:
            break
    if last_id is None:
        raise Damaged(f"the rows of account {number} begin with row {newest}, which is not there")
    return above, rows


def newest_id_before(db: sqlite3.Connection, user_id: bytes, at_ns: int) -> int:
    """Returns the entry_id of an account's newest row before an instant in one file; 0 where there is none. Raises
    Damaged.

    Bisects the marks, and then walks from the first one that is not before the instant: about as many rows as lie
    between two marks.
    """
    chain_end = chain_end_of(db, user_id)
    if chain_end is None:
        return 0
    number, newest = chain_end
    start, low, high = newest, 0, db.execute(_LAST_MARK, (number,)).fetchone()[0] // MARK_EVERY
    pages = Pages(db)
    while low <= high:
        middle = (low + high) // 2
        mark = db.execute(_MARKED, (number, middle * MARK_EVERY)).fetchone()
        marked = None if mark is None else pages.row(mark[1])
        if marked is None:
            break
        if marked.at_ns >= at_ns:
            start, high = marked.seq, middle - 1
        else:
            low = marked.entry_id // MARK_EVERY + 1
    for row in pages.chain(start):
        if row.user_id != user_id:
            raise Damaged(f"row {row.seq} is not of the account whose rows led to it")
        if row.at_ns < at_ns:
            return row.entry_id
    return 0


def as_map(row: Row) -> Shown:
    """Returns the row as `history` answers it, equal to what `entry.history_row` makes of the entry. For a row from an
    older version of the file, rates and actor are unknown: None.
    """
    is_rate = row.operation in ops.OF_LINES
    if row.operation == OPENING_ROW:
        return _opening_map(row)
    return {
        "entry_id": row.entry_id,
        "at_ns": row.at_ns,
        "operation": name_of(row.operation),
        "amount_nanos": row.amount,
        "accrued_nanos": row.accrued,
        "balance_before_nanos": row.balance - row.amount,
        "balance_after_nanos": row.balance,
        "message": text(row.message),
        "request_id": text(row.request_id) if row.request_id else None,
        "resource": text(row.resource) if is_rate and row.resource is not None else None,
        "line_rate_nanos_per_hour": row.value if is_rate else None,
        "rate_nanos_per_hour": row.rate,
        "value_nanos": None if is_rate else row.value,
        "thresholds": (
            threshold_maps(ops.unpack_thresholds(row.resource))
            if row.operation == ops.SET_THRESHOLDS and row.resource is not None
            else None
        ),
        "class": class_name(row.resource) if row.operation == ops.SET_CLASS and row.resource is not None else None,
        "actor": TIME if row.operation in ops.BY_TIME else None if row.flags is None else text(row.actor),
    }


def _opening_map(row: Row) -> Shown:
    """Returns the row that stands for all entries of an account up to the entry that a snapshot had."""
    return {
        "entry_id": row.entry_id,
        "at_ns": row.at_ns,
        "operation": OPENING,
        "amount_nanos": 0,
        "accrued_nanos": 0,
        "balance_before_nanos": row.balance,
        "balance_after_nanos": row.balance,
        "message": f"the rows up to entry {row.entry_id} are lost; a snapshot has how the account stood",
        **dict.fromkeys(("request_id", "resource", "line_rate_nanos_per_hour", "value_nanos", "thresholds")),
        **dict.fromkeys(("class", "actor")),
        "rate_nanos_per_hour": row.rate,
        "whole_from_ns": row.at_ns,
    }


class Newest(NamedTuple):
    """An account's newest entry, as far as the caller knows it; zeros where it does not."""

    entry_id: int = 0
    balance_nanos: int = 0
    at_ns: int = 0


NOTHING: Final = Newest()


def missing_row(
    first_id: int, last_id: int, older: Shown | None, newer: Shown | None, newest: Newest, openings: Collection[int]
) -> Shown:
    """Returns the row that replaces the entries from `first_id` to `last_id`. `older` and `newer`: its two
    neighbours.
    """
    is_cut = last_id + 1 in openings and (newer is None or newer["operation"] != OPENING)
    fate = "were deleted by history.keep_days" if is_cut else "are missing"
    opening_nanos = 0 if older is None else older["balance_after_nanos"]
    closing_nanos, at_ns = newest.balance_nanos, newest.at_ns
    if newer is not None:
        closing_nanos, at_ns = newer["balance_before_nanos"] + newer["accrued_nanos"], newer["at_ns"]
    return {
        "entry_id": first_id,
        "at_ns": at_ns,
        "operation": OPENING if is_cut else MISSING,
        "amount_nanos": closing_nanos - opening_nanos,
        "accrued_nanos": 0,
        "balance_before_nanos": opening_nanos,
        "balance_after_nanos": closing_nanos,
        "message": f"the rows of entries {first_id} to {last_id} {fate}",
        "request_id": None,
        **dict.fromkeys(("resource", "line_rate_nanos_per_hour", "rate_nanos_per_hour")),
        **dict.fromkeys(("value_nanos", "thresholds", "class", "actor")),
        "whole_from_ns": at_ns,
    }


def page_of(
    above: Shown | None,
    rows: list[Shown],
    before: int,
    limit: int,
    newest: Newest,
    openings: Collection[int] = frozenset(),
) -> Page:
    """Returns the rows below `before`, newest first, at most `limit`, with a row in the place of each gap. `above`: the
    row that comes before them, where there is one; `newest`: an entry of the account that the rows must reach;
    `openings`: the entry_ids before which rows were deleted.
    """
    newest_id = max(newest.entry_id, rows[0]["entry_id"] if rows else 0)
    bound_id = min(before, newest_id + 1 if above is None else above["entry_id"])
    page_rows: list[Shown] = []
    newer = above
    for row in rows:
        if row["entry_id"] < bound_id - 1:
            page_rows.append(missing_row(row["entry_id"] + 1, bound_id - 1, row, newer, newest, openings))
        page_rows.append(row)
        newer, bound_id = row, row["entry_id"]
    if len(rows) < limit and bound_id > 1:
        page_rows.append(missing_row(1, bound_id - 1, None, newer, newest, openings))
    page = page_rows[:limit]
    return Page(page, all(row["operation"] != MISSING for row in page))


class HistoryReader:
    """Reads all files of one directory, in the process that writes one of them."""

    def __init__(self, directory: str, shard: int, own_db: sqlite3.Connection, disk: Disk) -> None:
        """`own_db`: the writer's connection to the file of `shard`."""
        self._directory = directory
        self.shard = shard
        self._own_db = own_db
        self._disk = disk
        self._other_files: dict[int, tuple[tuple[int, int], sqlite3.Connection]] = {}  # shard -> identity, connection
        self.replaced = 0  # how many files of other shards were closed because another file took their name
        self._complete: dict[int, int] = {}  # bucket id -> generation up to which no rows are missing
        self.damaged: set[int] = set()  # shards whose files were found damaged; callers clear it

    def _open_others(self) -> None:
        """Opens the present files of the other shards. Raises sqlite3.Error, StoreError, OSError."""
        files = {}
        for shard, path in shard_files(self._directory, self._disk).items():
            if shard != self.shard:
                files[shard] = self._disk.identity(path), path
        for shard, (identity, db) in list(self._other_files.items()):
            if shard not in files or files[shard][0] != identity:
                db.close()
                del self._other_files[shard]
                self.replaced += 1
                self._complete.clear()  # the new file may not be as far yet
        for shard in files.keys() - self._other_files.keys():
            identity, path = files[shard]
            self._other_files[shard] = identity, connect(path, KIND)

    def _read(self, generation: int, read: Callable[[sqlite3.Connection], T]) -> list[T]:
        """Returns the results of `read` on each file in which an account's rows may be, except damaged files of other
        shards.
        """
        results = [read(self._own_db)]
        if generation <= 1:
            return results
        self._open_others()
        for shard, (_, db) in self._other_files.items():
            try:
                results.append(read(db))
            except UNREADABLE as error:
                if code_of(error) != Exit.DAMAGED:
                    raise
                self.damaged.add(shard)
        return results

    def by_shard(self) -> dict[int, sqlite3.Connection]:
        """Returns the present files by shard, the own one included. Raises sqlite3.Error, StoreError, OSError."""
        self._open_others()
        return {self.shard: self._own_db} | {shard: db for shard, (_, db) in self._other_files.items()}

    def missing(self, bucket_id: int, generation: int) -> list[int]:
        """Returns the earlier generations whose rows may not all be in the files yet; empty where none are
        missing.
        """
        if generation <= self._complete.get(bucket_id, 1):
            return []
        query = "SELECT generation FROM departures WHERE bucket_id = ?"
        by_file = self._read(EVERYWHERE, lambda db: db.execute(query, (bucket_id,)).fetchall())
        departed = {departure for departures in by_file for (departure,) in departures}
        missing = [former for former in range(1, generation) if former not in departed]
        if not missing:
            self._complete[bucket_id] = generation
        return missing

    def lacks(self) -> bool:
        """Whether some file is known to lack batches of its journal. Raises the errors of `history`."""
        return any(lacking for (lacking,) in self._read(EVERYWHERE, lambda db: db.execute(_LACKS).fetchone()))

    def history(self, generation: int, user_id: bytes, before: int, limit: int, newest: Newest = NOTHING) -> Page:
        """Returns the account's rows below `before`, newest first, at most `limit`, as `history` answers them. A bucket
        of the first generation has never been elsewhere: then only the own file is read, whatever the state of the
        others. `newest`: an entry that the rows must reach. Raises Damaged, sqlite3.Error, StoreError, OSError.
        """
        above, rows = self.rows(generation, user_id, before, limit)
        shown_above = None if above is None else as_map(above)
        shown = [as_map(row) for row in rows]
        page = page_of(shown_above, shown, before, limit, newest)
        if page.is_whole:
            return page
        openings = {opening.entry_id for opening in self.openings(generation, user_id)}
        return page_of(shown_above, shown, before, limit, newest, openings)

    def rows(self, generation: int, user_id: bytes, before: int, limit: int) -> tuple[Row | None, list[Row]]:
        """Returns the account's rows below `before`, newest first, at most `limit`; and the row above them, where there
        is one. Raises the errors of `history`.
        """
        rows: list[Row] = []
        aboves: list[Row] = []
        for above, rows_of_file in self._read(generation, lambda db: rows_of(db, user_id, before, limit)):
            rows += rows_of_file
            aboves += [] if above is None else [above]
        rows.sort(reverse=True, key=lambda row: row.entry_id)
        return min(aboves, key=lambda row: row.entry_id, default=None), rows[:limit]

    def newest_id_before(self, generation: int, user_id: bytes, at_ns: int) -> int:
        """Returns the entry_id of the account's newest row before an instant; 0 where there is none. Raises the errors
        of `history`.
        """
        return max(self._read(generation, lambda db: newest_id_before(db, user_id, at_ns)))

    def openings(self, generation: int, user_id: bytes) -> list[Opening]:
        """Returns the account's openings, where rows were deleted, the newest first. Raises the errors of
        `history`.
        """
        by_file = self._read(generation, lambda db: openings_of(db, user_id))
        openings = [opening for of_file in by_file for opening in of_file]
        return sorted(openings, reverse=True, key=lambda opening: opening.entry_id)

    def close(self) -> None:
        """Closes the files of the other shards."""
        for _, db in self._other_files.values():
            db.close()
        self._other_files.clear()
