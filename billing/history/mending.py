"""Fills the gap of a history file with what other hosts have of it, where several share the log.

Theory. A host that was away for longer than the log goes back has a gap in its files (`gaps`), and only a host that was
there has what came in it. Whatever the log holds is taken from the log; so what is asked for was trimmed, lies behind
every owner that could still be fenced, and is the same in every file that has it: a position of a shard's journal was
written once, in one epoch, and a file takes only what was durable.

**Who may answer.** Any host that has a link, which has proved that it is of the same cluster (`shards.links.hello`),
so its positions are of the same streams. It answers out of its own file and says from where to where it has all: of two
hosts with gaps each gets what the other has, and what no host has stays missing, and is said to be.

**What is believed.** A batch is made of rows whose pages proved themselves where they stood, travels with a checksum,
has to parse, and has to go on: an account's entries follow each other while its bucket is this shard's, and the balance
before an entry is the one that the entry before it left, at both ends of the gap, too. Else nothing is taken
(`Unlike`): one of the two files is wrong, and no program can know which. Another host may have what fits.

**How it is taken in.** A copy of the file is cut off before the gap; it takes the batches of the gap, and then those
that came behind it out of the file itself, while that is written on. Only the last of these are copied with the file's
lock held; then the copy takes its name (`rename`), with another identity for the rows behind the gap. Whenever that is
broken off, by an error or by the loss of power, the file is the old one, or the new one: the log of the old one is
empty by then, and whoever wrote to the old one sees before his next transaction that it was replaced (`Overtaken`), and
opens the new one. A message has `PART_BYTES`; no more than two are in memory. What it costs beside is the room of a
second file.

It blocks: it is run on a thread of its own, and asks through `ask`.
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

PART_BYTES: Final = 256 * 1024  # of rows in one message
ROWS_AT_ONCE: Final = 20_000  # in one transaction
LOCK_TRIES: Final = 20
LOCK_TIMEOUT_MS: Final = 1_000
_OPENED: Final = "SELECT user_id FROM openings JOIN users USING (number) WHERE seq > ?"
_IDENTITY: Final = "SELECT identity FROM identities WHERE seq_max IS NULL"

Ask = Callable[[str, int, int, int, int, int], Given | None]  # host, shard, and the rest as of `gaps.given_of`


class Mended(NamedTuple):
    """What became of the gaps of a file."""

    filled: list[Gap]
    left: list[Gap]  # what no host has
    hosts: list[str]  # whose rows were taken
    rows: int


class NotNow(StoreError):
    """It did not come about, and may another time: a host stopped answering, or the file was being read or changed."""

    code = Exit.AGAIN


def mend(
    disk: Disk, directory: str, shard: int, hosts: Sequence[str], ask: Ask, let_go: Callable[[], None]
) -> Mended | None:
    """Fills the gaps of a shard's file with what the hosts have; None where none of them has any of it. `ask` gives
    None also where a host does not answer. `let_go` is called before the file is replaced: what this process has of it
    is closed by then. Raises StoreError (NotNow, Unlike), Unproved, sqlite3.Error, OSError; then the file is what it
    was.
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
    """Those that are asked, about one shard."""

    def __init__(self, shard: int, hosts: list[str], ask: Ask) -> None:
        self._shard = shard
        self._hosts = hosts
        self._ask = ask
        self._last = ""  # whose rows were taken last

    def refuse_last(self) -> None:
        """What the last one gave does not fit: it is asked no more. Another one may have what does."""
        self._hosts.remove(self._last)

    def nearest(self, after: int, last: int) -> tuple[int, str] | None:
        """The first batch behind `after` up to `last` that some host has, and the host that has it."""
        best: tuple[int, str] | None = None
        for host in self._hosts:
            offer = self._ask(host, self._shard, after, 0, last, 1)
            if offer is not None and after < offer.first <= last and (best is None or offer.first < best[0]):
                best = offer.first, host
            if best is not None and best[0] == after + 1:
                break
        return best

    def part(self, host: str, after: int, rows: int, last: int) -> Given:
        """The next part of what a host has behind `after`. Raises NotNow, Unlike."""
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
    """What is looked at of an account's newest row."""

    seq: int = 0
    entry_id: int = 0
    balance: int = 0
    generation: int = 0  # 0: not known


class _Chains:
    """The newest row of each account in a file that is being filled."""

    def __init__(self, db: sqlite3.Connection, seq: int) -> None:
        """`seq`: of the last row that is there."""
        self._db = db
        self._newest: dict[bytes, _Newest] = {}
        self._seq = seq
        self._lost = 0  # the last row before the last batch that is missing
        self.may_skip = False  # of any account rows may have been deleted

    def check(self, payload: bytes) -> int:
        """How many rows a batch has, each of which goes on with its account. Raises Unlike."""
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
                raise Unlike(f"entry {row.entry_id} of account {name} does not go on from entry {newest.entry_id}")
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
        """All that was checked is in the file."""
        if len(self._newest) > USERS_MAX:
            self._newest.clear()

    def lost(self) -> None:
        """What comes now does not follow on what was there."""
        self._lost = self._seq


class _Filling:
    """A copy of a file, which gets what the file lacks."""

    def __init__(self, disk: Disk, shard: int, own_db: sqlite3.Connection, aside: str, sources: _Hosts) -> None:
        self._disk = disk
        self._own_db = own_db
        self._sources = sources
        self._aside = aside
        self.store = Store(aside, shard, disk)
        self._chains = _Chains(self.store.db, 0)
        self._at = self._seq = 0  # the last batch that is in it; the last row before the first gap
        self._begins = self.store.begins
        self._losses: list[tuple[int, str]] = []
        self._departures: list[tuple[int, int, int]] = []
        self._openings: list[tuple[int, int, int, Lines]] = []
        self._cut: tuple[int, int] | None = None
        self._known = self._state()
        self.filled: list[Gap] = []
        self.left: list[Gap] = []
        self.hosts: list[str] = []  # whose rows were taken
        self.rows = 0  # of other hosts

    def _state(self) -> tuple[object, ...]:
        """What of the file changes only where rows are taken back or deleted."""
        return *self._own_db.execute(_IDENTITY).fetchone(), *self._own_db.execute("SELECT * FROM cuts").fetchall()

    def _head(self) -> int:
        return int(self._own_db.execute("SELECT position FROM about").fetchone()[0])

    def fill(self, gaps: list[Gap]) -> None:
        """All of the file up to now, with what other hosts have of its gaps; durable, and proved."""
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
        if cut is not None and cut[0] > self._seq:  # rows behind the gaps have other numbers now
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
        """Nobody has the batches up to this one."""
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
        """What a host has behind what is there, as far as it has all."""
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
        """Takes what the file has behind its gaps, as far as it is written."""
        self._keep(self._head())

    def _keep(self, last: int) -> None:
        """The file's own batches up to this one."""
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
        """The openings of rows behind the first gap, under the numbers that these have now."""
        renumbered, db = list[tuple[int, int, int, Lines]](), self.store.db
        for (user_id,) in self._own_db.execute(_OPENED, (self._seq,)).fetchall():
            for opening in openings_of(self._own_db, user_id):
                chain_end, (_, rows) = chain_end_of(db, user_id), rows_of(db, user_id, opening.entry_id + 1, 1)
                if chain_end is not None and rows and rows[0].entry_id == opening.entry_id:
                    renumbered.append((chain_end[0], opening.entry_id, rows[0].seq, opening.lines))
        return renumbered

    def finish(self) -> None:
        """The file will not be changed any more: the rest of it, and what it lacks from now on. Raises NotNow."""
        if self._state() != self._known:
            raise NotNow("rows of the file were taken back or deleted meanwhile")
        self.keep_up()
        departures = self._own_db.execute("SELECT bucket_id, generation, position FROM departures").fetchall()
        departures += [departure for departure in self._departures if departure[2] <= self._at]
        self.store.note_filled(self._begins, self._losses, departures, self._openings, self._cut)
        self.store.close()


def _replace(disk: Disk, path: str, aside: str, identity: tuple[int, int], filling: _Filling) -> None:
    """Puts the filled copy in the place of the file, which nobody writes to meanwhile, and whose log is empty.

    The file that is gone stays open for reading: whoever closes one for writing and is the last would remove the log
    that stands by its name, which is another's by then.
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
    """Lets nobody write to a file, all of whose log has been copied into it. Raises NotNow, Unproved."""
    for _ in range(LOCK_TRIES):
        filling.keep_up()
        lock.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        lock.execute("BEGIN IMMEDIATE")
        if not _size(disk, f"{path}-wal"):
            return
        lock.execute("ROLLBACK")
    if differs(disk, path):  # its writer takes what is in no log any more for proved
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
