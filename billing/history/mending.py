"""Fills the gaps of a history file with the batches that other hosts have, where several hosts share the log.

Theory. A host that was away for longer than the log reaches back has a gap in its files (`gaps`); only a host that was
present has the rows of these batches. Batches that the log still holds are taken from the log. So the batches that are
asked for were trimmed: no owner, fenced or not, can still write there, and they are the same in every file that has
them. A position of a shard's journal was written once, in one epoch, and a file takes only durable batches.

**Who may answer.** Any host that has a link, which has proved that it belongs to the same cluster
(`shards.links.hello`), so its positions are those of the same streams. It answers from its own file, with the range of
batches that it has in full. Two hosts with gaps each get what the other has; batches that no host has stay missing, and
are reported.

**What is accepted.** A batch is built of rows whose pages passed their checksums in the giver's file, and travels with
a checksum. It must parse, and it must continue the accounts: an account's entries are consecutive while its bucket is
this shard's, and the balance before an entry equals the balance after the one before, at both ends of the gap, too.
Otherwise nothing is taken (`Unlike`): one of the two files is wrong, and no program can know which. Another host may
have batches that fit.

**How the gap is filled.** A copy of the file is cut off before the gap. It takes the batches of the gap, and then those
behind the gap from the file itself, which is written meanwhile. Only the last of these are copied while the file is
locked; then the copy is renamed to the file's name, with a new identity for the rows behind the gap. If an error or a
loss of power interrupts this, the file is either the old or the new one: the log of the old one is empty by then. A
process that was writing to the old file notices before its next transaction that the file was replaced (`Overtaken`),
and opens the new one. A message holds about `PART_BYTES`; at most two messages are in memory. The copy needs the disk
space of a second file.

The module blocks: it runs on a thread of its own, and asks other hosts through `ask`.
"""

from __future__ import annotations

import os.path
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Final, NamedTuple

from billing.follower.proof import Unproved, differs
from billing.follower.store import SIDES, Overtaken, StoreError, connect, copy_to, file_of
from billing.history import batches
from billing.history.accounts import USERS_MAX, chain_end_of
from billing.history.gaps import Batches, Gap, Given, batches_of, gaps_of
from billing.history.history_reader import rows_of
from billing.history.openings import openings_of
from billing.history.page import OPENING_ROW, Row, row_of
from billing.history.period import Lines
from billing.history.restoring import Unlike
from billing.history.store import Pages, Store
from billing.history.tables import KIND
from shards.batch import LENGTH
from shards.exits import Exit
from shards.system.disk import Disk

PART_BYTES: Final = 256 * 1024  # rows in one message
ROWS_AT_ONCE: Final = 20_000  # rows per transaction
LOCK_TRIES: Final = 20
LOCK_TIMEOUT_MS: Final = 1_000
_OPENED: Final = "SELECT user_id FROM openings JOIN users USING (number) WHERE seq > ?"
_IDENTITY: Final = "SELECT identity FROM identities WHERE seq_max IS NULL"

Ask = Callable[[str, int, int, int, int, int], Given | None]  # host, shard, and the parameters of `gaps.given_of`


class Mended(NamedTuple):
    """The result of filling the gaps of a file."""

    filled: list[Gap]
    left: list[Gap]  # gaps that no host can fill
    hosts: list[str]  # the hosts whose rows were taken
    rows: int


class NotNow(StoreError):
    """The gap was not filled, but may be later: a host stopped answering, or the file was being read or changed."""

    code = Exit.AGAIN


def mend(
    disk: Disk, directory: str, shard: int, hosts: Sequence[str], ask: Ask, let_go: Callable[[], None]
) -> Mended | None:
    """Fills the gaps of a shard's file with batches of the hosts. Returns None where no host has any of them. `ask`
    returns None also where a host does not answer. `let_go` is called before the file is replaced, and returns once
    this process has closed it. Raises StoreError (NotNow, Unlike), Unproved, sqlite3.Error, OSError; the file is
    unchanged then.
    """
    sources, unlike = _Hosts(shard, list(hosts), ask), None
    while True:
        try:
            mended = _mend(disk, file_of(directory, shard), shard, sources, let_go)
        except Unlike as error:
            unlike = error
            sources.refuse_last()
        else:
            if mended is None and unlike is not None:
                raise unlike
            return mended


def _mend(disk: Disk, path: str, shard: int, sources: _Hosts, let_go: Callable[[], None]) -> Mended | None:
    aside = f"{path}.mended"
    try:
        with closing(connect(path, KIND)) as own_db:
            gaps, left = gaps_of(own_db), list[Gap]()
            while gaps and sources.nearest(gaps[0].first - 1, gaps[0].last) is None:
                left.append(gaps.pop(0))
            if not gaps:
                return None
            identity = disk.identity(path)
            copy_to(own_db, aside, disk)
            filling = _Filling(disk, shard, own_db, aside, sources)
            try:
                filling.fill(gaps)
                let_go()
                _replace(disk, path, aside, identity, filling)
            finally:
                filling.store.db.close()
        return Mended(filling.filled, left + filling.left, filling.hosts, filling.rows)
    finally:
        for leftover in (aside, *(aside + side for side in SIDES)):
            if disk.exists(leftover):
                disk.unlink(leftover)


class _Hosts:
    """The hosts that are asked for batches of one shard."""

    def __init__(self, shard: int, hosts: list[str], ask: Ask) -> None:
        self._shard = shard
        self._hosts = hosts
        self._ask = ask
        self._last = ""  # the host whose rows were taken last

    def refuse_last(self) -> None:
        """Drops the host whose batches were taken last: they do not fit. Another host may have batches that do."""
        self._hosts.remove(self._last)

    def nearest(self, after: int, last: int) -> tuple[int, str] | None:
        """Returns the first batch behind `after` up to `last` that some host has, and that host."""
        best: tuple[int, str] | None = None
        for host in self._hosts:
            offer = self._ask(host, self._shard, after, 0, last, 1)
            if offer is not None and after < offer.first <= last and (best is None or offer.first < best[0]):
                best = offer.first, host
            if best is not None and best[0] == after + 1:
                break
        return best

    def part(self, host: str, after: int, rows: int, last: int) -> Given:
        """Returns the next batches that a host has behind `after`. Raises NotNow, Unlike."""
        part = self._ask(host, self._shard, after, rows, last, PART_BYTES)
        if part is None or part.first != after + 1:
            raise NotNow(f"{host} does not give on from batch {after + 1}")
        self._last = host
        positions = [after, *(position for position, _ in part.batches), part.last + 1, last + 2]
        is_rising = all(earlier < later for earlier, later in pairwise(positions))
        if not part.is_sound or not is_rising or not (part.is_end or part.batches):
            raise Unlike(f"what {host} gives from batch {after + 1} on is not what was sent")
        return part


class _Newest(NamedTuple):
    """The fields of an account's newest row that the next row is checked against."""

    seq: int = 0
    entry_id: int = 0
    balance: int = 0
    generation: int = 0  # 0: unknown


class _Chains:
    """The newest row of each account in a file that is being filled."""

    def __init__(self, db: sqlite3.Connection, seq: int) -> None:
        """`seq`: of the last row in the file."""
        self._db = db
        self._newest: dict[bytes, _Newest] = {}
        self._seq = seq
        self._lost = 0  # the last row before the newest gap
        self.may_skip = False  # rows of any account may have been deleted

    def check(self, payload: bytes) -> int:
        """Returns the number of rows in a batch, after checking that each continues its account. Raises Unlike."""
        try:
            return self._check(payload)
        except (AssertionError, ValueError, IndexError, struct.error) as error:
            raise Unlike(f"a batch does not parse: {error}") from error

    def _check(self, payload: bytes) -> int:
        (count,) = LENGTH.unpack_from(payload)
        at = LENGTH.size
        for _ in range(count):
            row = row_of(payload, at, 0, 0)
            (length,) = LENGTH.unpack_from(payload, at)
            at += LENGTH.size + length
            newest = self._newest.get(row.user_id) or self._looked_up(row.user_id)
            if not self._goes_on(newest, row):
                name = row.user_id.decode(errors="backslashreplace")
                raise Unlike(f"entry {row.entry_id} of user_id={name!r} does not go on from entry {newest.entry_id}")
            self._seq += 1
            self._newest[row.user_id] = _Newest(self._seq, row.entry_id, row.balance, row.generation)
        if at != len(payload):
            raise ValueError("it does not end with its last record")
        return int(count)

    def _goes_on(self, newest: _Newest, row: Row) -> bool:
        if not newest.entry_id or row.operation == OPENING_ROW:
            return row.entry_id > newest.entry_id
        if row.entry_id == newest.entry_id + 1:
            return newest.balance == row.balance - row.amount + row.accrued
        may_skip = row.generation != newest.generation or not row.generation or newest.seq <= self._lost
        return row.entry_id > newest.entry_id and (may_skip or self.may_skip)

    def _looked_up(self, user_id: bytes) -> _Newest:
        chain_end = chain_end_of(self._db, user_id)
        row = None if chain_end is None else Pages(self._db).row(chain_end[1])
        return _Newest() if row is None else _Newest(row.seq, row.entry_id, row.balance, row.generation)

    def flushed(self) -> None:
        """Called when all rows that were checked are in the file: they can be looked up there from now on."""
        if len(self._newest) > USERS_MAX:
            self._newest.clear()

    def lost(self) -> None:
        """Notes that batches are missing here: the next rows need not continue those before."""
        self._lost = self._seq


class _Filling:
    """A copy of a file, to which the missing batches are added."""

    def __init__(self, disk: Disk, shard: int, own_db: sqlite3.Connection, aside: str, sources: _Hosts) -> None:
        self._disk = disk
        self._own_db = own_db
        self._sources = sources
        self._aside = aside
        self.store = Store(aside, shard, disk)
        self._chains = _Chains(self.store.db, 0)
        self._at = self._seq = 0  # the last batch in the copy; the last row before the first gap
        self._begins = self.store.begins
        self._losses: list[tuple[int, str]] = []
        self._departures: list[tuple[int, int, int]] = []
        self._openings: list[tuple[int, int, int, Lines]] = []
        self._cut: tuple[int, int] | None = None
        self._known = self._state()
        self.filled: list[Gap] = []
        self.left: list[Gap] = []
        self.hosts: list[str] = []  # the hosts whose rows were taken
        self.rows = 0  # how many rows came from other hosts

    def _state(self) -> tuple[object, ...]:
        """Returns the parts of the file that change only where rows are taken back or deleted."""
        return *self._own_db.execute(_IDENTITY).fetchone(), *self._own_db.execute("SELECT * FROM cuts").fetchall()

    def _head(self) -> int:
        return int(self._own_db.execute("SELECT position FROM about").fetchone()[0])

    def fill(self, gaps: list[Gap]) -> None:
        """Writes all batches of the file up to now, and those of its gaps that other hosts have; durable, and
        proved.
        """
        line_before = batches.line_up_to(self._own_db, gaps[0].first - 1)
        self._at, self._seq = gaps[0].first - 1, 0 if line_before is None else line_before.seq
        self._begins = 1 if gaps[0].first == 1 else self._begins
        self.store.cut_out(self._at, self._seq, self._begins)
        self._chains = _Chains(self.store.db, self._seq)
        self._chains.may_skip = self._own_db.execute("SELECT 1 FROM cuts").fetchone() is not None
        for position, text in self._own_db.execute("SELECT position, text FROM losses").fetchall():
            if not any(gap.first <= position <= gap.last for gap in gaps):
                self._losses.append((position, text))
                self._chains.lost()
        for gap in gaps:
            self._keep(gap.first - 1)
            self._fill(gap)
        self.keep_up()
        self._openings = self._found_openings()
        cut = self._own_db.execute("SELECT seq, at_ns FROM cuts").fetchone()
        if cut is not None and cut[0] > self._seq:  # rows behind the gaps have new seqs in the copy
            line = batches.line_up_to(self.store.db, batches.batch_of(self._own_db, cut[0]))
            self._cut = (0 if line is None else line.seq), cut[1]
        if not self.store.checkpoint() or differs(self._disk, self._aside):
            raise Unproved(f"{self._aside} was written and synced, but the medium does not hold it")

    def _fill(self, gap: Gap) -> None:
        while self._at < gap.last:
            nearest = self._sources.nearest(self._at, gap.last)
            if nearest is None:
                self._lose(gap.last)
                return
            first, host = nearest
            if first > self._at + 1:
                self._lose(first - 1)
            self._take_from(host, gap.last)

    def _lose(self, last: int) -> None:
        """Notes that no host has the batches up to `last`."""
        lost = Gap(self._at + 1, last)
        self.left.append(lost)
        self._chains.lost()
        if lost.first == 1:
            self._begins = last + 1
        else:
            text = f"{lost} ({last - lost.first + 1}) are in neither file nor journal, nor has another host them"
            self._losses.append((last, text))
        self.store.pass_over(last)
        self._flush(last)

    def _take_from(self, host: str, last: int) -> None:
        """Takes the batches that a host has behind the copy's end, up to the first one that the host lacks."""
        first, after, rows = self._at + 1, self._at, 0
        if host not in self.hosts:
            self.hosts.append(host)
        while True:
            part = self._sources.part(host, after, rows, last)
            self.rows += self._take(part.batches)
            if part.is_end:
                break
            position = part.batches[-1][0]
            after, rows = (position - 1, part.rows) if part.rows else (position, 0)
        self._departures += [(bucket_id, generation, at) for bucket_id, generation, at in part.departures]
        self.store.pass_over(part.last, is_known=True)
        self._flush(part.last)
        self.filled.append(Gap(first, part.last))

    def keep_up(self) -> None:
        """Takes the batches that the file has behind its gaps, as far as they are committed."""
        self._keep(self._head())

    def _keep(self, last: int) -> None:
        """Takes the file's own batches up to `last`."""
        first, rows_before = self._at + 1, 0
        is_end = first > last
        while not is_end:
            part, rows_given, is_end = batches_of(self._own_db, first, rows_before, last, PART_BYTES, may_lack=True)
            self._take(part)
            if not is_end:
                first, rows_before = (part[-1][0], rows_given) if rows_given else (part[-1][0] + 1, 0)
        if last > self._at:
            self.store.pass_over(last, is_known=True)
            self._flush(last)

    def _take(self, part: Batches) -> int:
        rows = 0
        for position, payload in part:
            rows += self._chains.check(payload)
            self.store.take_again(position, payload)
            if self.store.rows_open >= ROWS_AT_ONCE:
                self.store.flush()
                self._chains.flushed()
        return rows

    def _flush(self, position: int) -> None:
        self.store.flush()
        self._chains.flushed()
        self._at = position

    def _found_openings(self) -> list[tuple[int, int, int, Lines]]:
        """Returns the openings of rows behind the first gap, with the numbers that these rows have in the copy."""
        renumbered, db = list[tuple[int, int, int, Lines]](), self.store.db
        for (user_id,) in self._own_db.execute(_OPENED, (self._seq,)).fetchall():
            for opening in openings_of(self._own_db, user_id):
                chain_end, (_, rows) = chain_end_of(db, user_id), rows_of(db, user_id, opening.entry_id + 1, 1)
                if chain_end is not None and rows and rows[0].entry_id == opening.entry_id:
                    renumbered.append((chain_end[0], opening.entry_id, rows[0].seq, opening.lines))
        return renumbered

    def finish(self) -> None:
        """Takes the rest of the file, which nobody changes any more, and writes which batches it still lacks. Raises
        NotNow.
        """
        if self._state() != self._known:
            raise NotNow("rows of the file were taken back or deleted meanwhile")
        self.keep_up()
        departures = self._own_db.execute("SELECT bucket_id, generation, position FROM departures").fetchall()
        departures += [departure for departure in self._departures if departure[2] <= self._at]
        self.store.note_filled(self._begins, self._losses, departures, self._openings, self._cut)
        self.store.close()


def _replace(disk: Disk, path: str, aside: str, identity: tuple[int, int], filling: _Filling) -> None:
    """Renames the filled copy to the file's name, while nobody writes to the file, and its log is empty.

    The caller keeps a read-only connection to the replaced file open. If `lock` were the last connection, closing it
    would make SQLite remove the log by the file's name, and by then that log belongs to the new file.
    """
    lock = connect(path, KIND, write=True)
    try:
        lock.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
        _lock(disk, path, lock, filling)
        if disk.identity(path) != identity:
            raise Overtaken(f"{path} was replaced while its gap was filled")
        filling.finish()
        disk.rename(aside, path)
        for side in SIDES:
            if disk.exists(path + side):
                disk.unlink(path + side)
        disk.fsync_dir(os.path.dirname(path))
    finally:
        lock.close()


def _lock(disk: Disk, path: str, lock: sqlite3.Connection, filling: _Filling) -> None:
    """Locks a file against writers once its log has been copied into it completely. Raises NotNow, Unproved."""
    for _ in range(LOCK_TRIES):
        filling.keep_up()
        lock.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        lock.execute("BEGIN IMMEDIATE")
        if not _size(disk, f"{path}-wal"):
            return
        lock.execute("ROLLBACK")
    if differs(disk, path):  # its writer takes pages that are no longer in the log for proved
        raise Unproved(f"{path} was written and synced, but the medium does not hold it")
    raise NotNow("others read or write the file all the time")


def _size(disk: Disk, path: str) -> int:
    if not disk.exists(path):
        return 0
    handle = disk.open(path)
    try:
        return disk.size(handle)
    finally:
        disk.close(handle)
