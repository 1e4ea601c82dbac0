"""Restores rows that are neither in a history file nor in the journal any more, from a backup and from a snapshot.

**From a backup** (`merge`): its file of the same shard has rows up to the batch at which it was taken. A new file gets
those first, then every row of the present file that continues its account: an entry that both files have is taken once.
The backup is refused, and nothing is changed, if it is of another daemon: if the first entry that present file or
journal has of an account is another one in the backup, or does not go on from the balance there, or if the backup
reaches beyond the journal.

**From a snapshot** (`open_accounts`): the oldest snapshot that is kept has the state of each account when the journal
began. An account that has no row in the file, and whose entry in the snapshot is in no other file, gets an *opening
row* for that entry. It holds the account's state from then on (balance, rate and its lines, limits), but not the effect
of the entry. So balances and statements from then on are exact, and answers about earlier times say from when they are
complete.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final, NamedTuple

from billing.follower.damage import KEY_MAX
from billing.follower.store import SIDES, StoreError, Unconverted, connect, keep_copy, make
from billing.history.accounts import chain_end_of
from billing.history.history_reader import EVERYWHERE, HistoryReader
from billing.history.page import OPENING_ROW, Part, Row, pages_of, record_of_older_row
from billing.history.period import Lines
from billing.history.salvage import Good, Writer, good_rows, salvage
from billing.history.store import Store, name_anew
from billing.history.tables import KIND
from billing.ledger.account import Account
from billing.ledger.block import load
from billing.ledger.entry import ACCRUING, EXHAUSTED, Entry, unpack
from billing.ledger.money import INT64_MAX, NANO
from shards.batch import ENTRY, ENVELOPE, LEAVE, POSITION, split_batch
from shards.counting import counted
from shards.exits import Exit
from shards.system.disk import Disk

OF_ANOTHER: Final = "the backup is of another daemon, or of a time that this one was set back from"
AT_ONCE: Final = 10_000  # opening rows per transaction


class Unlike(StoreError):
    """Batches of two hosts contradict each other."""


class ForeignBackup(StoreError):
    """A backup contradicts what there is. Nothing was changed."""

    code = Exit.REFUSED


# -- from a backup -----------------------------------------------------------------------------------------------------


class Beginning(NamedTuple):
    """The first entry of an account that is known without the backup. Balances in nanos."""

    entry_id: int
    at_ns: int
    before: int  # before what accrued up to it
    after: int


class JournalPart(NamedTuple):
    """What the journal of a shard holds."""

    first: int  # its oldest batch; INT64_MAX where there is no journal
    head: int
    batches: Iterable[tuple[int, bytes]]  # those that the present file has not


NO_JOURNAL: Final = JournalPart(INT64_MAX, INT64_MAX, ())


def merge(disk: Disk, path: str, backup: str, shard: int, journal: JournalPart) -> str:
    """Makes the file of a shard again from a backup's file and the present one, if there is one. Returns what came of
    it, as text. The file must be sound (`store.open_store`), and nobody may write to it. Raises StoreError
    (ForeignBackup), Unproved, sqlite3.Error, OSError, the journal's errors.
    """
    with closing(connect(backup, KIND, versions=(KIND.version, *KIND.older))) as of_backup:
        (stored_shard,) = of_backup.execute("SELECT shard FROM about").fetchone()
    if stored_shard != shard:
        raise ForeignBackup(f"{backup} is the history of shard {stored_shard}")
    present = connect(path, KIND) if disk.exists(path) else None
    converted = f"{path}.converted"
    try:
        old = connect(backup, KIND)
    except Unconverted:  # the backup stays as it is
        make(converted, KIND, disk, lambda db: _convert(db, backup, shard))
        old = connect(converted, KIND)
    try:
        begins, position = old.execute("SELECT begins, position FROM about").fetchone()
        if position > journal.head:
            raise ForeignBackup(f"{backup} reaches batch {position}, and the journal {journal.head}: {OF_ANOTHER}")
        _check_goes_on(old, _beginnings(present, journal.batches), backup)
        if present is not None:
            begun, reached = present.execute("SELECT begins, position FROM about").fetchone()
            if begun <= begins:
                return f"it begins with batch {begun}, and the backup with {begins}: nothing is to be brought back"
            if position + 1 >= journal.first:
                present.close()  # the journal has all batches behind the backup
                present = None
            else:
                kept_path = keep_copy(present, path, "replaced", disk)
        text = ""
        if present is not None and position + 1 < begun:
            text = f"; batches {position + 1} to {begun - 1} are in neither"
        end = position if present is None else reached

        def fill(db: sqlite3.Connection) -> None:
            name_anew(db)
            writer = Writer(db)
            _take_all(writer, old, present)
            writer.finish()
            for source in [old] if present is None else [old, present]:
                for table, columns in (("departures", 3), ("losses", 2), ("cuts", 2)):
                    insert = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * columns)})"
                    db.executemany(insert, source.execute(f"SELECT * FROM {table}"))
            db.execute("INSERT INTO groups VALUES (0, ?, ?)", (end, writer.last_seq))
            db.execute("INSERT INTO about VALUES (?, ?, ?)", (shard, end, begins))
            if text:
                db.execute("INSERT INTO losses VALUES (?, ?)", (begun - 1, text.removeprefix("; ")))

        make(path, KIND, disk, fill)
        copy_text = "" if present is None else f"; {kept_path} keeps what it was"
        return f"made again from {backup}, which ends with batch {position}{text}{copy_text}"
    finally:
        old.close()
        if present is not None:
            present.close()
        for name in (converted, *(converted + side for side in SIDES)):
            if disk.exists(name):
                disk.unlink(name)


def _convert(db: sqlite3.Connection, backup: str, shard: int) -> None:
    name_anew(db)
    salvage(db, backup, shard, KEY_MAX, KIND)  # all of it: no journal gives a part of it again


def _beginnings(present: sqlite3.Connection | None, batches: Iterable[tuple[int, bytes]]) -> dict[bytes, Beginning]:
    """Returns, by user, the first entry in the present file, or else in these batches of the journal."""
    beginnings: dict[bytes, Beginning] = {}
    for row, _ in () if present is None else good_rows(present):
        if row.user_id not in beginnings and row.operation != OPENING_ROW:
            before = row.balance - row.amount + row.accrued
            beginnings[row.user_id] = Beginning(row.entry_id, row.at_ns, before, row.balance)
    for _, payload in batches:
        for kind, _, _, body in split_batch(payload):
            entry = Entry._make(unpack(body)) if kind == ENTRY else None
            if entry is not None and entry.entry_id and entry.user_id not in beginnings:
                before = (entry.balance - entry.amount + entry.accrued) // NANO
                beginnings[entry.user_id] = Beginning(entry.entry_id, entry.at_ns, before, entry.balance_nanos)
    return beginnings


def _check_goes_on(old: sqlite3.Connection, beginnings: dict[bytes, Beginning], backup: str) -> None:
    """Raises ForeignBackup where a beginning contradicts the rows of a backup."""
    for row, _ in good_rows(old):
        begun = beginnings.get(row.user_id)
        if begun is None or row.operation == OPENING_ROW:
            continue
        is_other = row.entry_id == begun.entry_id and (row.at_ns, row.balance) != (begun.at_ns, begun.after)
        if is_other or (row.entry_id + 1 == begun.entry_id and row.balance != begun.before):
            name = row.user_id.decode(errors="backslashreplace")
            text = f"entry {begun.entry_id} of account {name} does not go on from {backup}"
            raise ForeignBackup(f"{text}: {OF_ANOTHER}")


def _take_all(writer: Writer, old: sqlite3.Connection, present: sqlite3.Connection | None) -> None:
    """Writes the rows of a backup, then those of the present file that continue them."""
    newest: dict[bytes, int] = {}  # user_id -> entry_id of its newest row
    for row, record in good_rows(old):
        writer.take(Good(row.seq, row.user_id, row.entry_id, record))
        newest[row.user_id] = row.entry_id
    if present is None:
        return
    seq = writer.last_seq
    for row, record in good_rows(present):
        if row.entry_id <= newest.get(row.user_id, 0):
            continue
        seq += 1
        writer.take(Good(seq, row.user_id, row.entry_id, record))
        newest[row.user_id] = row.entry_id


# -- from a snapshot ---------------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """The state of an account in a snapshot."""

    row: Row
    lines: Lines


def standings_of(chunks: Iterable[bytes]) -> Iterator[Standing]:
    """Yields the accounts in the chunks of a snapshot that have entries."""
    for chunk in chunks:
        kind, bucket_id, generation = ENVELOPE.unpack_from(chunk)
        if kind == LEAVE:
            continue
        book = load(bucket_id, chunk[ENVELOPE.size + POSITION.size :])
        for user_id, slot in book.slots.items():
            account = Account(book, slot, user_id)
            if account.entry_id:
                yield Standing(_row_of(account, generation), _lines_of(account))


def _row_of(account: Account, generation: int) -> Row:
    nanos, frac = divmod(account.balance, NANO)
    flags = (EXHAUSTED if account.exhausted else 0) | (ACCRUING if account.accruing else 0)
    return Row(
        0, 0, account.user_id, account.entry_id, account.settled_ns, OPENING_ROW, 0, 0, nanos, b"", b"", flags, frac,
        account.rate, None, None, b"", account.credit_limit_nanos, account.holds_nanos, 0, generation,
    )  # fmt: skip


def _lines_of(account: Account) -> Lines:
    if account.extra is None or account.extra.lines is None:
        return {b"": account.rate} if account.rate else {}
    return {resource: rate for resource, (rate, _) in account.extra.lines.items() if rate}


def open_accounts(store: Store, reader: HistoryReader, chunks: Iterable[bytes]) -> int:
    """Writes an opening row for each account of a snapshot that has no row in the store, and whose entry in the
    snapshot is in no file. Returns how many. The store must hold all batches of the journal.
    """
    count = 0
    standings: list[Standing] = []
    for standing in standings_of(chunks):
        row = standing.row
        if chain_end_of(store.db, row.user_id) is None and not _has(reader, row):
            standings.append(standing)
            count += 1
        if len(standings) >= AT_ONCE:
            _open(store, standings)
            standings = []
    if standings:
        _open(store, standings)
    if count:
        text = f"{counted(count, 'account')} got the beginning from a snapshot; the rows before that are lost"
        store.note_loss(text)
    return count


def _has(reader: HistoryReader, row: Row) -> bool:
    """Whether some file has a row of this entry."""
    return any(other.entry_id == row.entry_id for other in reader.rows(EVERYWHERE, row.user_id, row.entry_id + 1, 1)[1])


def _open(store: Store, standings: list[Standing]) -> None:
    """Appends opening rows, and their lines."""
    part = Part()
    for standing in standings:
        part.add(0, record_of_older_row(standing.row[2:-1]))
    first = store.seq + 1
    store.append_rows(pages_of(part, first), [(standing.row.user_id, standing.row.entry_id) for standing in standings])
    openings = []
    for seq, standing in enumerate(standings, first):
        chain_end = chain_end_of(store.db, standing.row.user_id)
        assert chain_end is not None, "an account of which a row was just written"
        openings.append((chain_end[0], standing.row.entry_id, seq, standing.lines))
    store.open_with(openings)
