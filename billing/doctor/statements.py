"""Checks, for accounts drawn at random, that history rows and journal entries give the same figures for a period.

The balance of an account at an instant, the accrual of a period and its division into rate lines are computed twice,
by code that shares nothing with the daemon's: from the accounts that `replay` makes of the journal's entries, and from
the columns of the history that are kept for this purpose. Both must be equal, to the internal unit:

    balance   balance - min(rate * time, room), where room is the amount that can be spent before spending pauses; at
              the instant of an entry, the balance before it according to the entry
    accrued   opening + amounts of the entries in the period - closing
    lines     for an interval that was spent at the account's full rate, each line's rate * time; for one that was cut
              short, the differences of floors of spent * running sum of rates / rate, in the order of the lines' names

The accounts are those with the lowest keyed hashes, at most `ACCOUNTS_MAX`. The instants are drawn uniformly: at most
one in each interval between two entries, and at most `SAMPLES_MAX` for an account, all with the same probability. Only
periods that the journal still has can be compared.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from itertools import pairwise
from typing import Any, Final, NamedTuple

from billing.doctor.entry import ACCRUING, EXHAUSTED, SUM_MAX, UNIT, Entry, coins
from billing.doctor.report import Report
from billing.doctor.state import Account

ACCOUNTS_MAX: Final = 500
SAMPLES_MAX: Final = 24  # of one account
ROWS_MAX: Final = 20_000  # of one account; accounts with more rows are left out
LINES_MAX: Final = 200  # of one account at once; with more, its lines are not compared

Lines = dict[bytes, int]  # by resource: nanos per hour, or internal units


class Sample(NamedTuple):
    """The figures of an account at an instant, from entries. `spent` and `lines` are sums since the begin of the
    stretch, a run of consecutive entries named by its first entry_id.
    """

    at_ns: int
    balance: int
    stretch: int
    spent: int
    lines: Lines | None


class Row(NamedTuple):
    """A row of the history, with sums in internal units. `resource` is None if the entry set no line."""

    entry_id: int
    at_ns: int
    amount: int
    balance: int
    rate: int
    room: int
    resource: bytes | None
    line_rate: int | None


def room_of(balance: int, credit_limit_nanos: int, holds_nanos: int, flags: int) -> int:
    """The amount that an account can spend before spending pauses, or before a sum reaches its bound."""
    available = balance + (credit_limit_nanos - holds_nanos) * UNIT
    if not flags & EXHAUSTED:
        return available
    return SUM_MAX + min(balance, available) if flags & ACCRUING else 0


def shares(lines: Lines, rate: int, spent: int) -> Lines:
    """Divides `spent`, the amount of one interval, among `lines`, whose rates sum to `rate`."""
    by_line, running = {}, 0
    for resource in sorted(lines) if spent else ():
        below, running = running, running + lines[resource]
        by_line[resource] = spent * running // rate - spent * below // rate
    return by_line


def added(sums: Lines, more: Lines) -> Lines:
    """The sums of both, by resource."""
    return {resource: sums.get(resource, 0) + more.get(resource, 0) for resource in sums.keys() | more.keys()}


class _Member:
    """A drawn account after its last replayed entry, and the samples drawn from it."""

    __slots__ = (
        "at_ns",
        "balance",
        "drawn",
        "entry_id",
        "lines",
        "rate",
        "room",
        "samples",
        "spent",
        "stretch",
        "sums",
    )

    def __init__(self) -> None:
        self.entry_id = -1
        self.at_ns = self.balance = self.rate = self.room = self.spent = self.stretch = self.drawn = 0
        self.lines: Lines = {}
        self.sums: Lines | None = {}
        self.samples: list[Sample] = []


class Statements:
    """Collects figures while journals and histories are read; at the end, `compare` compares them."""

    def __init__(self, report: Report, seed: bytes = b"") -> None:
        """`seed`: determines the accounts and instants that are drawn; up to 64 bytes."""
        self._report = report
        self._seed = seed
        self._draw = random.Random(seed)
        self._worst: list[tuple[int, bytes]] = []  # a heap: the member with the highest hash first
        self._members: dict[bytes, _Member] = {}
        self._rows: dict[bytes, list[Row] | None] = {}  # None: left out
        self._openings: dict[bytes, dict[int, Lines]] = {}  # user_id -> entry_id -> the lines after that entry

    def _is_member(self, user_id: bytes) -> bool:
        """Whether the account is one of those drawn so far. May add it, in place of the one with the highest hash."""
        if user_id in self._members:
            return True
        digest = hashlib.blake2b(user_id, digest_size=8, key=self._seed).digest()
        rank = -int.from_bytes(digest, "big"), user_id
        if len(self._worst) < ACCOUNTS_MAX:
            heapq.heappush(self._worst, rank)
        elif rank > self._worst[0]:
            _, gone = heapq.heapreplace(self._worst, rank)
            del self._members[gone], self._rows[gone]
            self._openings.pop(gone, None)
        else:
            return False
        self._members[user_id], self._rows[user_id] = _Member(), []
        return True

    # -- by the entries ---------------------------------------------------------------------------------------------

    def entry(self, entry: Entry, account: Account | None) -> None:
        """Takes the next replayed entry. `account`: the account after the entry; None if the entry closed it."""
        if entry.entry_id <= 0 or not self._is_member(entry.user_id):
            return
        member = self._members[entry.user_id]
        if entry.entry_id != member.entry_id + 1:  # the first that is seen, or the first on another shard
            member.stretch, member.spent, member.sums = entry.entry_id, 0, {}
        else:
            self._pass(member, entry)
        member.entry_id, member.at_ns, member.balance, member.rate = (
            entry.entry_id,
            entry.at_ns,
            entry.balance,
            entry.rate,
        )
        flags = entry.flags
        member.room = room_of(entry.balance, entry.credit_limit_nanos, entry.holds_nanos, flags)
        if account is None:
            member.lines = {}
        elif account.lines is None:
            member.lines = {b"": account.rate} if account.rate else {}
        elif len(account.lines) <= LINES_MAX:
            member.lines = {resource: rate for resource, (rate, _) in account.lines.items()}
        else:
            member.sums = None

    def _pass(self, member: _Member, entry: Entry) -> None:
        """Adds the accrual between the entry before and this one; may draw an instant between them."""
        spent = entry.accrued
        if entry.at_ns > member.at_ns:
            member.drawn += 1
            index = self._draw.randrange(member.drawn)
            if index < SAMPLES_MAX:
                at_ns = self._draw.randint(member.at_ns + 1, entry.at_ns)
                by_then = spent if at_ns == entry.at_ns else min(member.rate * (at_ns - member.at_ns), member.room)
                lines = None if member.sums is None else added(member.sums, shares(member.lines, member.rate, by_then))
                sample = Sample(at_ns, member.balance - by_then, member.stretch, member.spent + by_then, lines)
                if len(member.samples) < SAMPLES_MAX:
                    member.samples.append(sample)
                else:
                    member.samples[index] = sample
        member.spent += spent
        if member.sums is not None:
            for resource, part in shares(member.lines, member.rate, spent).items():
                member.sums[resource] = member.sums.get(resource, 0) + part

    # -- by the rows ------------------------------------------------------------------------------------------------

    def row(self, user_id: bytes, columns: tuple[Any, ...], rare: tuple[int, int, int]) -> None:
        """Takes a row. `columns`: entry_id, at_ns, amount and balance in nanos, flags, fraction of the balance, rate,
        value and resource. `rare`: credit limit and holds in nanos, and the fraction of the amount.
        """
        if not self._is_member(user_id):
            return
        rows = self._rows[user_id]
        entry_id, at_ns, amount, balance, flags, frac, rate, value, resource = columns
        if rows is None or len(rows) >= ROWS_MAX or flags is None:  # an older version of the file did not keep it
            self._rows[user_id] = None
            return
        limit, holds, amount_frac = rare
        exactly = balance * UNIT + frac
        floor_nanos = amount - (frac < amount_frac)
        room = room_of(exactly, limit, holds, flags)
        rows.append(Row(entry_id, at_ns, floor_nanos * UNIT + amount_frac, exactly, rate, room, resource, value))

    def opening(self, user_id: bytes, entry_id: int, lines: Lines) -> None:
        """Takes an account's rate lines after a row, which the history keeps if it has deleted the rows before."""
        if self._is_member(user_id):
            self._openings.setdefault(user_id, {})[entry_id] = lines

    # -- in the end -------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compares the figures from entries with those from rows. If there are accounts and none can be compared, the
        report says so.
        """
        for user_id, member in self._members.items():
            rows = self._rows[user_id]
            if not member.samples or not rows:
                continue
            rows.sort()
            openings = self._openings.get(user_id, {})
            newest = max(openings, default=0)
            rows = [row for row in rows if row.entry_id >= newest]  # some of the rows before are deleted
            if any(after.entry_id != before.entry_id + 1 for before, after in pairwise(rows)):
                continue  # some rows are lost, which `history` reports
            self._report.count("statements", "accounts")
            _Periods(self._report, user_id, rows, openings.get(newest)).compare(sorted(member.samples))
        if self._members and "accounts" not in self._report.counts["statements"]:
            text = "the journals hold no two entries in a row of any account; what came before is in snapshots"
            if any(member.samples for member in self._members.values()):
                text = "the histories hold no rows of these accounts yet, or rows of an older version"
            self._report.not_checked("statements", text)


class _Point(NamedTuple):
    """The figures at an instant, from rows; sums since the first row."""

    balance: int
    amounts: int  # sum of the amounts of the entries before
    spent: int
    lines: Lines | None


class _Periods:
    """Computes figures from one account's rows, from the first to the last, and compares them with samples."""

    def __init__(self, report: Report, user_id: bytes, rows: list[Row], opening: Lines | None) -> None:
        """`opening`: the lines after the first row, if known."""
        self._report = report
        self._user_id = user_id
        self._rows = rows
        self._amounts = self._spent = 0
        self._lines = {} if rows[0].entry_id == 1 else opening  # rates after the current row; None: unknown
        self._sums: Lines = {}

    def compare(self, samples: list[Sample]) -> None:
        """Compares the balance at each sampled instant, and the periods between these instants."""
        rows = self._rows
        first_ns, last_ns = rows[0].at_ns, rows[-1].at_ns  # what is older or newer is not in the file
        samples = [sample for sample in samples if first_ns < sample.at_ns <= last_ns]
        points: list[tuple[Sample, _Point]] = []
        for before, row in pairwise(rows):
            self._amounts += before.amount
            while len(points) < len(samples) and samples[len(points)].at_ns <= row.at_ns:
                sample = samples[len(points)]
                points.append((sample, self._at(before, row, sample.at_ns)))
            self._pass(before, row)
        for sample, here in points:
            self._report.count("statements", "instants")
            if here.balance != sample.balance:
                self._fault(
                    f"at {sample.at_ns} it had {coins(sample.balance)} by its entries, "
                    f"{coins(here.balance)} by its rows"
                )
        for (first, opening), (last, closing) in pairwise(points):
            self._compare_period(first, opening, last, closing)

    def _at(self, before: Row, row: Row, at_ns: int) -> _Point:
        """The figures at an instant after the row `before`, and not after the next row."""
        spent = min(before.rate * (at_ns - before.at_ns), before.room)
        if row.at_ns == at_ns:
            spent = before.balance - (row.balance - row.amount)
        lines = None if self._lines is None else added(self._sums, shares(self._lines, before.rate, spent))
        return _Point(before.balance - spent, self._amounts, self._spent + spent, lines)

    def _pass(self, before: Row, row: Row) -> None:
        """Adds the accrual between one row and the next, and applies the line that the next one set."""
        spent = before.balance - (row.balance - row.amount)
        self._spent += spent
        lines = self._lines
        if lines is None:
            return
        for resource, part in shares(lines, before.rate, spent).items():
            self._sums[resource] = self._sums.get(resource, 0) + part
        if row.resource is not None:
            self._lines = lines = None if row.line_rate is None else lines | {row.resource: row.line_rate}
        if lines is None:
            return
        if sum(lines.values()) != row.rate:
            self._fault(f"entry {row.entry_id}: the lines sum to {sum(lines.values())} nanos an hour, not {row.rate}")
            self._lines = None
        elif row.resource is not None:
            lines = {resource: rate for resource, rate in lines.items() if rate}
            self._lines = lines if len(lines) <= LINES_MAX else None

    def _compare_period(self, first: Sample, opening: _Point, last: Sample, closing: _Point) -> None:
        where = f"from {first.at_ns} to {last.at_ns}"
        self._report.count("statements", "periods")
        accrued = closing.spent - opening.spent
        if opening.balance + closing.amounts - opening.amounts - accrued != closing.balance:
            self._fault(f"{where} it does not add up")
        if first.stretch != last.stretch:
            return
        if last.spent - first.spent != accrued:
            self._fault(f"{where} {coins(last.spent - first.spent)} accrued by its entries, {coins(accrued)} by rows")
        if None in (first.lines, last.lines, opening.lines, closing.lines):
            return
        by_entries, by_rows = _between(first.lines, last.lines), _between(opening.lines, closing.lines)
        self._report.count("statements", "lines", len(by_rows))
        if by_entries != by_rows:
            self._fault(f"{where} the lines spent {by_entries} internal units by its entries, {by_rows} by rows")
        elif sum(by_rows.values()) != accrued:
            self._fault(f"{where} the lines sum to {sum(by_rows.values())} internal units, {accrued} accrued")

    def _fault(self, text: str) -> None:
        self._report.fault("statements", text, account=self._user_id)


def _between(first: Lines | None, last: Lines | None) -> Lines:
    """The differences of two sums by resource, without lines that spent nothing."""
    before, after = first or {}, last or {}
    added_by_line = {resource: spent - before.get(resource, 0) for resource, spent in after.items()}
    return {resource: spent for resource, spent in added_by_line.items() if spent}
