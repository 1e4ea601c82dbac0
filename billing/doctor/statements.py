"""Statements, of accounts drawn at random: the rows of the history and the entries give the same figures for a period.

The balance of an account at an instant, the accrual of a period and its division into rate lines are worked out twice,
by code that shares nothing with the daemon's: from the accounts as the journal's entries leave them (`replay`), and
from the columns that the history keeps for that. Both must be the same, to the internal unit:

    balance   balance - min(rate * time, room), where room is what can be spent before spending pauses; at an entry's
              instant, before the entry, what that entry says
    accrued   opening + amounts of the entries in the period - closing
    lines     where an interval was spent at the account's rate, each line its rate * time; where it was cut short, the
              differences of floors of spent * running sum of rates / rate, in the order of the lines' names

Which accounts: those whose keyed hash is lowest, at most `ACCOUNTS_MAX`; which instants: drawn uniformly, for each
interval between two entries at most one, and of those of an account at most `SAMPLES_MAX`, each as likely as any other.
Only what the journal still holds can be held against it.
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
ROWS_MAX: Final = 20_000  # of one account; longer ones are left out
LINES_MAX: Final = 200  # of one account at once; with more, lines are left out

Lines = dict[bytes, int]  # by resource: nanos per hour, or internal units


class Sample(NamedTuple):
    """An instant of an account as the entries have it; `spent` and `lines` are sums since the stretch began."""

    at_ns: int
    balance: int
    stretch: int
    spent: int
    lines: Lines | None


class Row(NamedTuple):
    """A row of the history, sums in internal units. `resource` is None where it set no line."""

    entry_id: int
    at_ns: int
    amount: int
    balance: int
    rate: int
    room: int
    resource: bytes | None
    line_rate: int | None


def room_of(balance: int, credit_limit_nanos: int, holds_nanos: int, flags: int) -> int:
    """What an account can spend before spending pauses, or comes to a bound."""
    available = balance + (credit_limit_nanos - holds_nanos) * UNIT
    if not flags & EXHAUSTED:
        return available
    return SUM_MAX + min(balance, available) if flags & ACCRUING else 0


def shares(lines: Lines, rate: int, spent: int) -> Lines:
    """How `spent` of one interval divides into lines, which sum to `rate`."""
    by_line, running = {}, 0
    for resource in sorted(lines) if spent else ():
        below, running = running, running + lines[resource]
        by_line[resource] = spent * running // rate - spent * below // rate
    return by_line


def added(sums: Lines, more: Lines) -> Lines:
    """Both together."""
    return {resource: sums.get(resource, 0) + more.get(resource, 0) for resource in sums.keys() | more.keys()}


class _Member:
    """An account behind its last entry, as replayed, and what was drawn of it."""

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
    """Collects while the journals and the histories are walked; `compare` in the end."""

    def __init__(self, report: Report, seed: bytes = b"") -> None:
        """`seed`: which accounts and instants are drawn; up to 64 bytes."""
        self._report = report
        self._seed = seed
        self._draw = random.Random(seed)
        self._worst: list[tuple[int, bytes]] = []  # a heap: the member with the highest hash first
        self._members: dict[bytes, _Member] = {}
        self._rows: dict[bytes, list[Row] | None] = {}  # None: left out
        self._openings: dict[bytes, dict[int, Lines]] = {}  # by account, by entry_id: the lines behind it

    def _is_member(self, user_id: bytes) -> bool:
        """Whether the account is one of those drawn, so far."""
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
        """The next entry of a bucket, replayed; `account` as it is behind it, None where it was closed."""
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
        """Time passed from the entry before to this one; maybe an instant between them is drawn."""
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
        """A row: `columns` are entry_id, at_ns, amount, balance (in nanos), flags, frac, rate, value and resource;
        `rare` credit limit and holds in nanos and the fraction of the amount.
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
        """An account's rate lines as of a row, as the history keeps them where it deleted the rows before."""
        if self._is_member(user_id):
            self._openings.setdefault(user_id, {})[entry_id] = lines

    # -- in the end -------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Holds both against each other."""
        for user_id, member in self._members.items():
            rows = self._rows[user_id]
            if not member.samples or not rows:
                continue
            rows.sort()
            openings = self._openings.get(user_id, {})
            newest = max(openings, default=0)
            rows = [row for row in rows if row.entry_id >= newest]  # of those before, some are gone
            if any(after.entry_id != before.entry_id + 1 for before, after in pairwise(rows)):
                continue  # some are lost, which is told where the rows are looked at
            self._report.count("statements", "accounts")
            _Periods(self._report, user_id, rows, openings.get(newest)).compare(sorted(member.samples))


class _Point(NamedTuple):
    """An instant as the rows have it; sums since the first row."""

    balance: int
    amounts: int  # of the entries before
    spent: int
    lines: Lines | None


class _Periods:
    """One account's rows, read from the first to the last."""

    def __init__(self, report: Report, user_id: bytes, rows: list[Row], opening: Lines | None) -> None:
        """`opening`: the lines behind the first row, where it is known of them."""
        self._report = report
        self._user_id = user_id
        self._rows = rows
        self._amounts = self._spent = 0
        self._lines = {} if rows[0].entry_id == 1 else opening  # rates behind the row at hand
        self._sums: Lines = {}

    def compare(self, samples: list[Sample]) -> None:
        """Each instant, and the periods between them."""
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
        """An instant behind the row `before`, not behind the next one."""
        spent = min(before.rate * (at_ns - before.at_ns), before.room)
        if row.at_ns == at_ns:
            spent = before.balance - (row.balance - row.amount)
        lines = None if self._lines is None else added(self._sums, shares(self._lines, before.rate, spent))
        return _Point(before.balance - spent, self._amounts, self._spent + spent, lines)

    def _pass(self, before: Row, row: Row) -> None:
        """Time passed from one row to the next."""
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
    """What was added between two sums; lines that spent nothing are left out."""
    before, after = first or {}, last or {}
    added_by_line = {resource: spent - before.get(resource, 0) for resource, spent in after.items()}
    return {resource: spent for resource, spent in added_by_line.items() if spent}
