"""Periods of random programs, cut at random instants, against a model in fractions.

`Program` (tests.ledger.programs) lets the real ledger do what seeks its edges, with its own model beside it. What came
of it goes the way of the history: packed entries, a batch, rows, points. `Timeline` knows the same account in another
way: in fractions of nanos, from the entries' commands and sums alone, as running totals of what the account and each of
its lines have spent up to an instant. Each account's life is cut into many pieces; then

- each piece opens where the one before closed, and closes where the timeline says, to the last internal unit;
- each piece adds up, and its lines sum to what accrued in it;
- its credits, debits and what of them expired are the sums of the amounts of the entries within;
- each line of a piece has spent what the timeline says, to the unit, or within one where spending was cut short;
- all pieces sum to the whole, in units and in nanos, and line by line.

What the programs do is counted (`CutCounts`), so that a test can say that nothing was left out: credits that end and
are spent in order, leases that run out, holds, captures, closings and reopenings, exhaustions with clamp and with
accrue.

By hand, with another number of cuts:

    python -m tests.history.books --cuts 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise

from billing.history.page import Part, Row, pages_of
from billing.history.period import NOTHING, Lines, Period, Point, Tally
from billing.history.period_reader import point_of
from billing.ledger import commands as ops
from billing.ledger.entry import ACCRUING, EXHAUSTED, OPENED, REFUSED, Entry, unpack
from billing.ledger.money import INT64_MAX, NANO
from shards.batch import ENTRY, ENVELOPE, LENGTH
from tests.ledger.drawing import USERS
from tests.ledger.programs import Program

UNIT = Fraction(1, NANO)  # nanos
LIMIT = Fraction(INT64_MAX)  # nanos


class Timeline:
    """One account, in fractions of nanos. `spent[i]` and `lines[i]`: running totals up to and with entry i."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.instants = [entry.at_ns for entry in entries]
        self.spent: list[Fraction] = []
        self.lines: list[dict[bytes, Fraction]] = []
        self.rates: list[dict[bytes, int]] = []  # behind the entry
        spent, lines = Fraction(0), defaultdict[bytes, Fraction](Fraction)
        rates: dict[bytes, int] = {}
        for number, entry in enumerate(entries):
            if number:
                passed = Fraction(entry.accrued, NANO)
                total = sum(rates.values())
                spent += passed
                for resource, rate in rates.items():
                    lines[resource] += passed * rate / total
            if entry.op == ops.SET_RATE:
                rates = rates | {entry.key: entry.a}
            elif entry.op == ops.CHANGE_RATE:
                rates = rates | {entry.key: rates.get(entry.key, 0) + entry.a}
            elif entry.op == ops.LEASE_EXPIRED:
                rates = rates | {entry.key: 0}
            rates = {resource: rate for resource, rate in rates.items() if rate}
            assert sum(rates.values()) == entry.rate
            self.spent.append(spent)
            self.lines.append(dict(lines))
            self.rates.append(rates)

    def at(self, at_ns: int) -> tuple[Fraction, Fraction, dict[bytes, Fraction]]:
        """(balance, all that was spent, the same by line) at an instant, before the entries of that instant."""
        number = bisect_left(self.instants, at_ns) - 1
        if number < 0:
            return Fraction(0), Fraction(0), {}
        entry = self.entries[number]
        balance = Fraction(entry.balance, NANO)
        spent = Fraction(entry.rate * (at_ns - entry.at_ns), NANO)
        available = balance + entry.credit_limit_nanos - entry.holds_nanos
        after = self.entries[number + 1] if number + 1 < len(self.entries) else None
        if after is not None and after.at_ns == at_ns:  # a hold that ends then is given back before time is charged
            spent = Fraction(after.accrued, NANO)
        elif not entry.flags & EXHAUSTED:
            spent = min(spent, available)
        elif entry.flags & ACCRUING:
            spent = min(spent, balance + LIMIT, available + LIMIT)
        else:
            spent = Fraction(0)
        lines = dict(self.lines[number])
        for resource, rate in self.rates[number].items():
            lines[resource] = lines.get(resource, Fraction(0)) + spent * rate / entry.rate
        return balance - spent, self.spent[number] + spent, lines


def rows_of(packed: list[bytes]) -> list[Row]:
    """The rows that the history has of these entries of one account."""
    part = Part()
    for older, entry_bytes in enumerate(packed):
        part.add(older, LENGTH.pack(ENVELOPE.size + len(entry_bytes)) + ENVELOPE.pack(ENTRY, 1, 1) + entry_bytes)
    return [row for page in pages_of(part, 1) for row in page.open().rows()]


class AccountLife:
    """One account of a program: its timeline, and the points of its history."""

    def __init__(self, packed: list[bytes]) -> None:
        entries = [Entry._make(unpack(entry_bytes)) for entry_bytes in packed]
        self.packed = packed
        self.timeline = Timeline(entries)
        self.rows = rows_of(packed)
        self.points = [point_of(row) for row in self.rows]
        self.instants = [point.at_ns for point in self.points]

    def lines_before(self, at_ns: int) -> Lines:
        """The lines as the entries before an instant left them."""
        number = bisect_left(self.instants, at_ns) - 1
        return {} if number < 0 else {line: rate for line, rate in self.timeline.rates[number].items()}

    def amounts(self, from_ns: int, to_ns: int) -> tuple[Fraction, Fraction, Fraction]:
        """(credits, debits, what of these expired) of the entries within, in nanos."""
        first, end = bisect_left(self.instants, from_ns), bisect_left(self.instants, to_ns)
        entries = self.timeline.entries[first:end]
        amounts = [Fraction(entry.amount, NANO) for entry in entries]
        expired = [-amount for entry, amount in zip(entries, amounts, strict=True) if entry.op == ops.CREDIT_EXPIRED]
        credits = sum((amount for amount in amounts if amount > 0), Fraction(0))
        debits = -sum((amount for amount in amounts if amount < 0), Fraction(0))
        return credits, debits, sum(expired, Fraction(0))

    def period(self, from_ns: int, to_ns: int) -> Period:
        """The period, out of the points before, in and behind it."""
        first, end = bisect_left(self.instants, from_ns), bisect_left(self.instants, to_ns)
        former: Point = self.points[first - 1] if first else NOTHING
        tally = Tally(from_ns, to_ns, former, self.lines_before(from_ns))
        for point in self.points[first:end]:
            tally.take(point)
        return tally.close(self.points[end] if end < len(self.points) else None)

    def cuts(self, draw: random.Random, count: int) -> list[int]:
        """Instants in order: beside, at and between entries, before the first and behind the last."""
        first, last = self.instants[0], self.instants[-1]
        end = last + min(max(1, last - first), 10**18)
        if self.points[-1].rate:  # not behind what time causes next
            end = min(end, last + -(-self.points[-1].room // self.points[-1].rate) or last)
        drawn = [draw.choice(self.instants) + draw.choice((-1, 0, 0, 1)) for _ in range(count // 2)]
        drawn += [draw.randrange(max(0, first - 5), max(end, first) + 1) for _ in range(count - count // 2)]
        return sorted(max(0, min(at_ns, max(end, last))) for at_ns in drawn)


def lives(seed: int, commands: int) -> list[AccountLife]:
    """The accounts of a random program."""
    program = Program(seed)
    program.run(commands)
    by_user = defaultdict[bytes, list[bytes]](list)
    for packed in program.journal:
        entry = Entry._make(unpack(packed))
        if entry.entry_id and not entry.flags & REFUSED:
            by_user[entry.user_id].append(packed)
    return [AccountLife(by_user[user.encode()]) for user in USERS if by_user[user.encode()]]


def check(life: AccountLife, cuts: list[int]) -> None:
    """Holds the pieces between these instants against the timeline, and their sums against the whole."""
    whole_period = life.period(cuts[0], cuts[-1])
    sums = dict.fromkeys(
        ("credits", "debits", "expired", "accrued", "accrued_nanos", "credits_nanos", "debits_nanos"), 0
    )
    by_line = defaultdict[bytes | None, int](int)
    opening, spent, lines = life.timeline.at(cuts[0])
    closing_units = whole_period.opening
    entries = 0
    for from_ns, to_ns in pairwise(cuts):
        piece = life.period(from_ns, to_ns)
        where = f"{from_ns}..{to_ns}"
        closing, spent_then, lines_then = life.timeline.at(to_ns)
        assert piece.opening == closing_units == opening * NANO, f"{where} opens with {piece.opening}"
        assert piece.closing == closing * NANO, f"{where} closes with {piece.closing}, not {closing * NANO}"
        assert piece.accrued == (spent_then - spent) * NANO, f"{where}: {piece.accrued} accrued"
        assert piece.adds_up
        amounts = tuple(Fraction(sums, NANO) for sums in (piece.credits, piece.debits, piece.expired))
        assert amounts == life.amounts(from_ns, to_ns), f"{where}: {amounts} were credited, debited, expired"
        assert piece.whole_from_ns is None
        assert piece.lines is not None
        assert sum(line.accrued for line in piece.lines) == piece.accrued, where
        assert sum(line.accrued_nanos for line in piece.lines) == piece.accrued_nanos, where
        for line in piece.lines:
            assert line.resource is not None
            assert line.accrued >= 0, where
            modelled = lines_then.get(line.resource, Fraction(0)) - lines.get(line.resource, Fraction(0))
            cut_short = 1 + sum(1 for at_ns in life.instants if from_ns <= at_ns <= to_ns)
            apart = abs(line.accrued * UNIT - modelled)
            assert apart == 0 or apart < cut_short * UNIT, f"{where}: {line} instead of {modelled}"
            by_line[line.resource] += line.accrued
        for name in sums:
            sums[name] += getattr(piece, name)
        entries += piece.entries
        opening, spent, lines, closing_units = closing, spent_then, lines_then, piece.closing
    assert sums == {name: getattr(whole_period, name) for name in sums}
    assert entries == whole_period.entries
    assert closing_units == whole_period.closing
    assert whole_period.lines is not None
    assert {line.resource: line.accrued for line in whole_period.lines if line.accrued} == {
        resource: accrued for resource, accrued in by_line.items() if accrued
    }


class CutCounts:
    """What was cut: instants, and what the accounts went through meanwhile."""

    def __init__(self) -> None:
        self.cuts = 0
        self.counts: Counter[str] = Counter()

    def add(self, life: AccountLife, cuts: int) -> None:
        """Counts an account's life."""
        self.cuts += cuts
        opened = 0
        for entry in life.timeline.entries:
            self.counts[ops.NAMES[entry.op]] += 1
            if entry.op == ops.EXHAUST:
                self.counts["exhausted and accruing" if entry.flags & ACCRUING else "exhausted and clamped"] += 1
            if entry.flags & OPENED:
                opened += 1
                self.counts["opened again"] += opened > 1


def run(cuts: int, seed: int, *, commands: int = 120, each: int = 1_000) -> CutCounts:
    """Programs from `seed` on, until `cuts` instants were cut at."""
    cut_counts = CutCounts()
    while cut_counts.cuts < cuts:
        draw = random.Random(seed)
        for life in lives(seed, commands):
            check(life, life.cuts(draw, each))
            cut_counts.add(life, each)
        seed += 1
    return cut_counts


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    begun = time.monotonic()
    total = run(chosen.cuts, chosen.seed)
    counts = ", ".join(f"{name} {count:,}" for name, count in total.counts.most_common())
    print(
        f"{total.cuts:,} cuts from seed {chosen.seed} on, 0 differences, in {time.monotonic() - begun:.0f} s: {counts}"
    )


if __name__ == "__main__":
    main()
