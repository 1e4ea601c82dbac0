"""Compares the history with the journal: every row equals its entry, none is missing, and rows add up to the balances.

A file `history/shard-N.sqlite` has a row for each entry with an entry_id that shard N's journal ever held, from batch
`begins` to batch `position`, in order (see `billing.history.store` and `billing.history.page`; this module reads it
with SQL and code of its own). A row is the entry's record itself, so rows and entries are read side by side: from the
first batch that the journal still has, each row must equal the next entry in every field. Rows older than the journal
are checked against each other: each page has a checksum, and the successive rows of an account must add up. Losses that
the file itself records are noted and are no fault. If `history.keep_days` has cut an account's rows, its opening has
the rate lines behind the first remaining row: they must sum to that row's rate, and statements that begin with them
must agree with the entries (`statements`).

An account whose bucket has moved has rows in several files. `Chains` keeps, for each account and file, the ends of
unbroken runs of rows, and links the runs at the end: they must lead from the first entry to the last, without a gap, to
the account's balance.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgpack
from crc32c import crc32c
from zstandard import ZstdDecompressor, ZstdError

from billing.doctor.entry import (
    CAPTURE,
    CHANGE_RATE,
    HOLD,
    HOLD_EXPIRED,
    LEASE_EXPIRED,
    SET_CREDIT_LIMIT,
    SET_RATE,
    THRESHOLD,
    UNIT,
    UNSAID,
    Entry,
    Garbled,
    read_entry,
)
from billing.doctor.files import check_free
from billing.doctor.log import Batch
from billing.doctor.report import Report
from billing.doctor.state import Bucket
from billing.doctor.statements import Statements
from shards.counting import counted
from shards.system.disk import Disk

APPLICATION_ID: Final = 0x42484953
VERSION: Final = 5
OLDER_VERSIONS: Final = (1, 2, 3, 4)
MARK_EVERY: Final = 64
_ENTRY, _LEAVE = 1, 3

_PAGE = struct.Struct("<QI")  # first and count, as the checksum covers them
_LENGTH_BYTES: Final = 4
_ENVELOPE_BYTES: Final = 7  # kind u8, bucket u16, generation u32
_OLDER_ROW: Final = 0  # in the place of the kind: a row of an older version of the file
_OPENING_ROW: Final = 255  # in the place of the operation: a row made from a snapshot's account, not from an entry
_HEADS_A_CHUNK: Final = 128
_HEADS = struct.Struct(f"<{_HEADS_A_CHUNK}Q")
UNREADABLE: Final = (  # the errors that damaged bytes can raise
    sqlite3.Error, TypeError, ValueError, KeyError, OverflowError, IndexError, struct.error, ZstdError, Garbled,
)  # fmt: skip


Departure = tuple[int, int]  # bucket id, generation


class Run(NamedTuple):
    """Consecutive rows of one account in one file, without a gap in their entry_ids."""

    first_id: int
    before: int  # balance in nanos before the first row and before the accrual up to it
    last_id: int
    balance: int  # nanos, after the last row


def row_amounts(entry: Entry) -> tuple[int, int, int]:
    """(amount, accrued, balance after) in nanos, as a row has them: differences of balances rounded down to nanos."""
    after, before = entry.balance // UNIT, (entry.balance - entry.amount) // UNIT
    return after - before, (entry.balance - entry.amount + entry.accrued) // UNIT - before, after


class Row(NamedTuple):
    """A row of a page. `details`: flags, fraction of the balance, rate, value and resource, as `Statements` takes them;
    flags is None in a row of an older version, which did not keep them.
    """

    seq: int
    older: int
    user_id: bytes
    entry_id: int
    at_ns: int
    operation: int
    amount: int  # nanos
    accrued: int  # nanos
    balance: int  # nanos
    message: bytes
    request_id: bytes
    details: tuple[Any, ...]
    limits: tuple[int, int, int]  # credit limit and holds in nanos, fraction of the amount
    entry: Entry | None  # None in a row of an older version


def details_of(entry: Entry) -> tuple[Any, ...]:
    """The `Row.details` of an entry's row."""
    value, resource = None, None
    if entry.op in (SET_RATE, CHANGE_RATE, LEASE_EXPIRED):
        resource = entry.key
        if entry.line_rate != UNSAID:
            value = entry.line_rate
        elif entry.op == SET_RATE:
            value = entry.a
    elif entry.op in (SET_CREDIT_LIMIT, HOLD, HOLD_EXPIRED, CAPTURE):
        value = entry.a
    elif entry.op == THRESHOLD and not entry.a:
        value = entry.b
    return entry.flags, entry.balance % UNIT, entry.rate, value, resource


def read_row(seq: int, older: int, record: bytes) -> Row:
    """Parses a record into a row. Raises the errors in `UNREADABLE` for damaged bytes."""
    if int.from_bytes(record[:_LENGTH_BYTES], "little") != len(record) - _LENGTH_BYTES:
        raise ValueError(f"row {seq} is not as long as it says")
    if record[_LENGTH_BYTES] == _ENTRY:
        entry = read_entry(record[_LENGTH_BYTES + _ENVELOPE_BYTES :])
        return Row(
            seq, older, entry.user_id, entry.entry_id, entry.at_ns, entry.op, *row_amounts(entry), entry.message,
            entry.request_id, details_of(entry), (entry.credit_limit_nanos, entry.holds_nanos, entry.amount % UNIT),
            entry,
        )  # fmt: skip
    if record[_LENGTH_BYTES] != _OLDER_ROW:
        raise ValueError(f"row {seq} is of the unknown kind {record[_LENGTH_BYTES]}")
    user_id, *facts = msgpack.unpackb(record[_LENGTH_BYTES + 1 :])
    numbers, (message, request_id, *details, _, limit, holds, amount_frac) = facts[:6], facts[6:]
    if not all(isinstance(number, int) for number in numbers) or not isinstance(user_id, bytes):
        raise ValueError(f"row {seq} has values of other types than were written")
    rest = message, request_id, tuple(details), (limit, holds, amount_frac), None
    return Row._make((seq, older, user_id, *numbers, *rest))


def read_page(first: int, count: int, checksum: int, packed: bytes) -> list[Row]:
    """The rows of a page that are not deleted. Raises the errors in `UNREADABLE` for damaged bytes."""
    if crc32c(packed, crc32c(_PAGE.pack(first, count))) != checksum:
        raise ValueError(f"the page of the rows from {first} on is not what was written")
    body = ZstdDecompressor().decompress(packed)
    olders = struct.unpack_from(f"<{count}Q", body)
    starts = struct.unpack_from(f"<{count}I", body, 8 * count)
    records = body[12 * count :]
    ends = (*starts[1:], len(records))
    return [
        read_row(first + at, olders[at], records[starts[at] : ends[at]])
        for at in range(count) if starts[at] != ends[at]
    ]  # fmt: skip


def path_of(data_dir: str, shard: int) -> str:
    """The path of a shard's history file."""
    return f"{data_dir}/history/shard-{shard}.sqlite"


def history_files(names: list[str]) -> list[int]:
    """The shards whose history files are among these names."""
    numbers = [name.removeprefix("shard-").removesuffix(".sqlite") for name in names]
    return [
        int(number) for number, name in zip(numbers, names, strict=True)
        if name == f"shard-{number}.sqlite" and number.isdecimal()
    ]  # fmt: skip


class Chains:
    """Collects the runs of all accounts in all files, and the last entry and balance to which they must lead."""

    def __init__(self, report: Report, statements: Statements) -> None:
        self._report = report
        self.statements = statements
        self._runs: dict[bytes, list[Run]] = {}
        self._ends: dict[bytes, tuple[int, int]] = {}  # user_id -> (entry_id, balance in nanos) by the journals
        self.from_first = True  # every file begins with the first batch of its journal
        self.is_behind = False  # some file lacks rows that its journal has
        self.has_cuts = False  # some file deletes rows that are old
        self.has_losses = False  # some file records that it lacks rows which no file has any more

    def add(self, user_id: bytes, run: Run) -> None:
        """Adds a run of an account."""
        self._runs.setdefault(user_id, []).append(run)

    def expect(self, bucket: Bucket) -> None:
        """Notes the last entry_id and balance of each account of a bucket, as replayed from the entries."""
        for user_id, account in bucket.accounts.items():
            self._ends[user_id] = account.entry_id, account.balance // UNIT
        for user_id, grave in bucket.graves.items():
            if user_id not in bucket.accounts:
                self._ends[user_id] = grave.entry_id, 0

    def link(self) -> None:
        """Links the runs of each account, and checks that they lead to the expected end. Call after the logs of all
        shards were read to their ends.
        """
        for user_id, (entry_id, balance) in self._ends.items():
            self._report.count("history", "accounts")
            self._link(user_id, sorted(self._runs.pop(user_id, ())), entry_id, balance)
        for user_id in self._runs:
            self._fault("there are rows of an account that there is not", user_id)

    def _link(self, user_id: bytes, runs: list[Run], entry_id: int, balance: int) -> None:
        last_id, last_balance = 0, 0
        if not self.from_first:
            last_id, last_balance = (runs[0].first_id - 1, runs[0].before) if runs else (entry_id, balance)
        for run in runs:
            if run.first_id <= last_id:
                self._fault(
                    f"the rows of entries {run.first_id} to {min(last_id, run.last_id)} are there twice", user_id
                )
            elif run.first_id > last_id + 1:
                self._missing(f"the rows of entries {last_id + 1} to {run.first_id - 1} are missing", user_id)
            elif run.before != last_balance:
                self._fault(f"entry {run.first_id} begins with {run.before} nanos, after {last_balance}", user_id)
            last_id, last_balance = run.last_id, run.balance
        if last_id < entry_id:
            self._missing(f"the rows end with entry {last_id}, the account is at {entry_id}", user_id)
        elif last_id > entry_id:
            self._fault(f"the rows go on to entry {last_id}, the account is at {entry_id}", user_id)
        elif last_balance != balance:
            self._fault(f"the rows end with {last_balance} nanos, the account has {balance}", user_id)

    def _missing(self, text: str, user_id: bytes) -> None:
        if self.is_behind:
            self._report.count("history", "accounts behind")
        elif self.has_cuts:
            self._report.count("history", "accounts with rows that are older than history.keep_days")
        elif self.has_losses:
            self._report.count("history", "accounts with rows that are lost")
        else:
            self._fault(text, user_id)

    def _fault(self, text: str, user_id: bytes) -> None:
        self._report.fault("history", text, account=user_id)


class HistoryFile:
    """One shard's history file, compared while its journal is read. `open_history` makes it."""

    def __init__(
        self, db: sqlite3.Connection, path: str, chains: Chains, report: Report, *, is_retired: bool = False
    ) -> None:
        """`is_retired`: the shard is gone, so nothing is added to the file any more."""
        self._db = db
        self._path = path
        self._chains = chains
        self._report = report
        self._is_retired = is_retired
        _, self.begins, self.position = db.execute("SELECT shard, begins, position FROM about").fetchone()
        self._users: dict[int, bytes] = {}  # by number
        for number, user_id in db.execute("SELECT number, user_id FROM users"):
            if isinstance(user_id, bytes):
                self._users[number] = user_id
            else:
                self._fault(f"the id of user {number} is {user_id!r}", b"")
        self._numbers = {user_id: number for number, user_id in self._users.items()}
        self._losses = [text for (text,) in db.execute("SELECT text FROM losses")]
        self._cut_ns = max((at_ns for (at_ns,) in db.execute("SELECT at_ns FROM cuts")), default=0)
        if self._cut_ns:
            before = f"{datetime.fromtimestamp(self._cut_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
            report.note(f"{path}: rows before {before} were deleted by history.keep_days")
            chains.has_cuts = True
        for text in self._losses:
            report.note(f"{path}: {text}")
        chains.has_losses = chains.has_losses or bool(self._losses)
        self._openings = self._read_openings()
        self._lost = False  # rows can no longer be matched with entries
        self._pages = iter(db.execute("SELECT first, count, checksum, packed FROM pages ORDER BY first"))
        self._page: list[Row] = []  # the remaining rows of the current page, the next one last
        self._row: Row | None = None  # the current row, not checked yet
        self._next()
        self._newest: dict[bytes, int] = {}  # user_id -> seq of the newest checked row
        self._open: dict[bytes, Run] = {}  # user_id -> the run that the next row may continue
        self._given_up: dict[Departure, int] = {}  # departure -> the last batch in which the bucket was given up
        self._seq = 0
        self._aligned = False

    def _read_openings(self) -> dict[int, tuple[int, int, dict[bytes | None, int]]]:
        """Number of the account -> (entry_id, seq, lines) of its opening. Reports openings with a wrong checksum."""
        openings = {}
        for number, entry_id, seq, packed, checksum in self._db.execute("SELECT * FROM openings"):
            if zlib.crc32(msgpack.packb((number, entry_id, seq, packed))) != checksum:
                self._fault("its opening is not what was written", self._users.get(number, b""))
                continue
            openings[number] = entry_id, seq, {resource: int(rate) for resource, rate in msgpack.unpackb(packed)}
        return openings

    # -- rows -------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Makes the next row the current one: None at the end, and, with a fault, at a damaged page."""
        self._row = None
        try:
            while not self._page:
                page = next(self._pages, None)
                if page is None:
                    return
                self._page = read_page(*page)[::-1]
        except UNREADABLE as error:
            self._unreadable(f"a page cannot be read: {error}")
            return
        self._row = self._page.pop()

    def _unreadable(self, text: str) -> None:
        self._lost = True
        self._fault(text, b"")

    def _pass_row(self) -> None:
        """Checks the current row against the account's row before, and goes on to the next row."""
        assert self._row is not None
        row = self._row
        seq, user_id = row.seq, row.user_id
        self._next()
        self._report.count("history", "rows")
        last_seq, self._seq = self._seq, seq
        number = self._numbers.get(user_id)
        if number is None:
            self._fault(f"row {seq} is of nobody", user_id)
            return
        if seq != last_seq + 1 and not self._losses and not self._cut_ns:
            self._fault(f"after row {last_seq} comes row {seq}", user_id)
        if row.older != self._newest.get(user_id, 0) and not (self._cut_ns and user_id not in self._newest):
            self._fault(f"row {seq} goes back to row {row.older}, not to {self._newest.get(user_id, 0)}", user_id)
        self._newest[user_id] = seq
        if not row.entry_id % MARK_EVERY and not self._is_marked(number, row.entry_id, seq):
            self._fault(f"row {seq} of entry {row.entry_id} is not marked", user_id)
        if number in self._openings:
            self._pass_opening(number, row)
        if row.operation == _OPENING_ROW:
            self._report.count("history", "accounts that begin with a snapshot")
        columns = row.entry_id, row.at_ns, row.amount, row.balance, *row.details
        self._chains.statements.row(user_id, columns, row.limits)
        before = row.balance - row.amount + row.accrued
        run = self._open.get(user_id)
        if run is not None and row.entry_id == run.last_id + 1:
            if before != run.balance:
                self._fault(f"entry {row.entry_id} begins with {before} nanos, after {run.balance}", user_id)
            self._open[user_id] = run._replace(last_id=row.entry_id, balance=row.balance)
            return
        if run is not None:
            if row.entry_id <= run.last_id:
                self._fault(f"entry {row.entry_id} comes after entry {run.last_id}", user_id)
            self._chains.add(user_id, run)
        self._open[user_id] = Run(row.entry_id, before, row.entry_id, row.balance)

    def _pass_opening(self, number: int, row: Row) -> None:
        """Checks the opening of an account against the first remaining row of the account, once that is the current
        row.
        """
        opening_id, opening_seq, lines = self._openings[number]
        _, _, user_id, entry_id, *_ = row
        seq, rate = row.seq, row.details[2]
        if seq < opening_seq:
            return  # this row precedes the opening: the pass that deletes rows has not reached it yet
        del self._openings[number]
        if (entry_id, seq) != (opening_id, opening_seq):
            self._fault(f"the opening is of entry {opening_id} in row {opening_seq}, which is not there", user_id)
        elif rate is not None and sum(lines.values()) != rate:
            self._fault(f"the opening's lines sum to {sum(lines.values())} nanos an hour, not {rate}", user_id)
        elif None not in lines:  # else some lines are unknown
            self._chains.statements.opening(
                user_id, entry_id, {line: of_line for line, of_line in lines.items() if line is not None}
            )

    def _is_marked(self, number: int, entry_id: int, seq: int) -> bool:
        cursor = self._db.execute("SELECT seq FROM marks WHERE number = ? AND entry_id = ?", (number, entry_id))
        return bool(cursor.fetchone() == (seq,))

    # -- side by side with the journal ------------------------------------------------------------------------------

    def take(self, batch: Batch, entries: list[Entry], given_up: list[Departure]) -> None:
        """Compares the next batch of the journal: its entries that have an entry_id, and the buckets given up in it."""
        try:
            self._take(batch, entries, given_up)
        except UNREADABLE as error:
            self._unreadable(f"it cannot be read beside batch {batch.position}: {error}")

    def _take(self, batch: Batch, entries: list[Entry], given_up: list[Departure]) -> None:
        if not self.begins <= batch.position <= self.position:
            return
        self._given_up.update(dict.fromkeys(given_up, batch.position))
        if self._lost:
            return
        for entry in entries:
            if self._cut_ns and entry.at_ns <= self._cut_ns and not (self._aligned and self._is_of(entry)):
                continue  # keep_days may have deleted its row
            if not self._aligned:
                self._align(batch, entry)
            while self._row is not None and not self._is_entry:
                self._pass_row()
            row = self._row
            if self._lost or row is None:
                if not self._lost:
                    self._lost = True
                    text = f"the rows end before entry {entry.entry_id}, which is in batch {batch.position}"
                    self._fault(f"{text}; the file says it goes up to batch {self.position}", entry.user_id)
                return
            self._compare(batch, entry, row)
            self._pass_row()

    @property
    def _is_entry(self) -> bool:
        """Whether the current row belongs to an entry, not to a snapshot's account."""
        return self._row is not None and self._row.operation != _OPENING_ROW

    def _is_of(self, entry: Entry) -> bool:
        """Whether the current row belongs to this entry."""
        row = self._row
        return row is not None and (row.entry_id, row.user_id) == (entry.entry_id, entry.user_id)

    def _align(self, batch: Batch, entry: Entry) -> None:
        """Goes forward to the row of the first entry that the journal still has."""
        self._aligned = True
        if batch.position == self.begins and not self._cut_ns:
            return
        while self._row is not None:
            if self._is_entry and self._row.user_id == entry.user_id and self._row.entry_id >= entry.entry_id:
                break
            self._pass_row()
        if self._row is None or self._row.entry_id != entry.entry_id:
            self._lost = True
            self._fault(f"no row of entry {entry.entry_id}, which is in batch {batch.position}", entry.user_id)

    def _compare(self, batch: Batch, entry: Entry, row: Row) -> None:
        self._report.count("history", "rows compared")
        stored: tuple[object, ...] = row[2:11] if row.entry is None else row.entry
        expected: tuple[object, ...] = entry
        if row.entry is None:  # an older version of the file kept only these fields
            expected = (
                entry.user_id, entry.entry_id, entry.at_ns, entry.op, *row_amounts(entry), entry.message,
                entry.request_id,
            )  # fmt: skip
        if stored != expected:
            self._fault(
                f"row {row.seq} says {tuple(stored)}, its entry in batch {batch.position} {tuple(expected)}",
                entry.user_id,
            )
            self._lost = (row.user_id, row.entry_id) != (entry.user_id, entry.entry_id)

    def _compare_departures(self, first: int) -> None:
        """Checks the recorded departures of buckets against the buckets that the journal gave up. Other shards' files
        rely on them: a departure means that this file has all rows of the bucket's time at this shard.
        """
        rows = self._db.execute("SELECT bucket_id, generation, position FROM departures")
        departures = {(bucket_id, generation): position for bucket_id, generation, position in rows}
        self._report.count("history", "departures", len(departures))
        for departure, position in self._given_up.items():
            if departures.pop(departure, -1) < position:
                self._fault("the departure of bucket {} at generation {} is missing".format(*departure), b"")
        groups = [self.begins - 1, *(position for (position,) in self._db.execute("SELECT position FROM groups"))]
        for departure, position in departures.items():  # written in one group with all batches after the previous group
            if max((group for group in groups if group < position), default=-1) >= first - 1:
                self._fault("bucket {} did not depart at generation {}".format(*departure), b"")

    def _compare_heads(self) -> None:
        """Checks the recorded number of each account's newest row, with which the chain of its rows begins."""
        chunks = dict(self._db.execute("SELECT chunk, newest FROM heads"))
        for number, user_id in self._users.items():
            chunk, index = divmod(number, _HEADS_A_CHUNK)
            newest = _HEADS.unpack(chunks[chunk])[index] if chunk in chunks else 0
            if newest != self._newest.get(user_id, 0):
                text = f"its newest row is said to be {newest}, and is {self._newest.get(user_id, 0)}"
                self._fault(text, user_id)

    def end(self, first: int, head: int) -> None:
        """Checks the end of the file, and closes it. `first` and `head`: the first and the last batch of the journal,
        all of which `take` has compared.
        """
        try:
            self._end(first, head)
        except UNREADABLE as error:
            self._unreadable(f"it cannot be read: {error}")
        finally:
            self._db.close()

    def _compare_ends(self) -> None:
        """Checks that the file's position equals that of its last transaction, or is that of a recorded loss or of the
        begin.
        """
        newest = max((position for (position,) in self._db.execute("SELECT position FROM groups")), default=-1)
        recorded = {position for (position,) in self._db.execute("SELECT position FROM losses")} | {self.begins - 1}
        if self.position != newest and not (self.position > newest and self.position in recorded):
            text = f"it says that it ends with batch {self.position}, and its last transaction with batch {newest}"
            self._fault(text, b"")

    def _end(self, first: int, head: int) -> None:
        report = self._report
        self._compare_ends()
        if self.position + 1 < first:
            text = f"it ends with batch {self.position}, the journal begins with {first}: what lies between is lost"
            self._fault(text, b"")
        if self.position < head:
            self._chains.is_behind = True
            missing = counted(head - self.position, "batch", "batches")
            if self._is_retired:
                self._fault(f"{missing} behind the journal of a shard that is gone; `billing rebuild` reads them", b"")
            else:
                text = f"{missing} behind its journal, and is fed at the next start"
                report.note(f"{self._path} is {text}")
        if self.position > head:
            text = f"it goes up to batch {self.position}, its journal only to {head}: the journal has lost batches"
            self._fault(text, b"")
        else:
            while self._row is not None and not self._is_entry:
                self._pass_row()
            if self._aligned and not self._lost and self._row is not None:
                self._fault(f"row {self._row.seq} and those after it are of no entry", self._row.user_id)
            while self._row is not None:
                self._pass_row()
            self._compare_departures(first)
            for number in self._openings if not self._lost and not self._losses else ():
                self._fault("there is an opening and no row that it opens", self._users.get(number, b""))
            self._compare_heads()
        for user_id, run in self._open.items():
            self._chains.add(user_id, run)
        self._chains.from_first = self._chains.from_first and self.begins == 1

    def _fault(self, text: str, user_id: bytes) -> None:
        self._report.fault("history", text, file=self._path, account=user_id)


def open_history(
    disk: Disk, path: str, shard: int, chains: Chains, report: Report, *, is_retired: bool = False
) -> HistoryFile | None:
    """Opens the history file of a shard, and checks its version and SQLite's integrity check. None, with a fault or a
    note, if it cannot be compared, or holds nothing yet.
    """
    # If there is a write-ahead log, it holds rows that are not in the file yet, and SQLite must make an index of it.
    # Without one, the file is opened as immutable.
    log = disk.exists(f"{path}-wal")
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = sqlite3.connect(f"file:{quoted}?mode=ro{'' if log else '&immutable=1'}", uri=True, isolation_level=None)
        made_by = (
            db.execute("PRAGMA application_id").fetchone()[0],
            db.execute("PRAGMA user_version").fetchone()[0],
        )
        if made_by[0] == APPLICATION_ID and made_by[1] in OLDER_VERSIONS:
            report.note(f"{path} is of version {made_by[1]}, and is converted at the next start")
            report.not_checked("history", f"shard {shard}: its file is of version {made_by[1]}")
            chains.is_behind = True
            return None
        if made_by != (APPLICATION_ID, VERSION):
            report.fault("history", f"it is no history of a known version: {made_by[0]:#x} {made_by[1]}", file=path)
            return None
        for (problem,) in db.execute("PRAGMA integrity_check(10)"):
            if problem != "ok":
                report.fault("history", f"SQLite says: {problem}", file=path)
        (of_shard,) = db.execute("SELECT shard FROM about").fetchone()
        if of_shard != shard:
            report.fault("history", f"it is the history of shard {of_shard}", file=path)
            return None
        report.count("history", "files")
        file = HistoryFile(db, path, chains, report, is_retired=is_retired)
        if file.position < 0:
            report.note(f"{path} holds nothing yet, and is fed at the next start")
            chains.is_behind = True
            return None
        return file
    except UNREADABLE as error:
        check_free(error, path)
        report.fault("history", f"it cannot be read: {error}", file=path)
        return None


def rows_of(records: Iterator[tuple[int, int, int, bytes]]) -> tuple[list[Entry], list[Departure]]:
    """The entries of a batch that have rows, and the buckets given up in it. Skips malformed entries, which `replay`
    reports.
    """
    entries, given_up = [], []
    for kind, bucket_id, generation, body in records:
        if kind == _LEAVE and not body:
            given_up.append((bucket_id, generation))
        elif kind == _ENTRY:
            with suppress(Garbled):
                entry = read_entry(body)
                if entry.entry_id > 0:
                    entries.append(entry)
    return entries, given_up
