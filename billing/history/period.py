"""A period of one account: the opening balance, the changes by time and by entries, and the closing balance. Pure.

**The account between two entries.** Every change of an account's rate or state is an entry: exhaustions, expiries and
thresholds included. So from one entry to the next the account spends at one rate, and what it has spent `t` later is

    min(rate * t, room)        room: what can still be spent before spending pauses, or the balance reaches its bound

which at the next entry is that entry's own accrual, to the internal unit. A `Point` is the account from an entry on; an
`Interval` is the time from one point to the next.

**A period** covers the instants from `from_ns` up to, but not including, `to_ns`. It opens with the balance *at*
`from_ns`, after everything that accrued before and before the entries of that instant, and closes in the same way at
`to_ns`. So each entry and each nanosecond of accrual is in exactly one of consecutive periods, the closing balance of
one is the opening balance of the next, and the sums of the parts equal the whole: in internal units, and in nanos as
well, since every amount in nanos is a difference of two balances, each rounded down.

    opening + credits - debits - accrued = closing

**By resource.** The account's rate is the sum of its lines. While it spends `rate * t`, each line spends its own rate
times t. Where spending is cut short (at an exhaustion, by less than one nanosecond of it), the lines in the order of
their names share what was spent: each has the difference of two floors of running sums,

    floor(spent * (rates up to and with the line) / rate) - floor(spent * (rates before it) / rate)

which is the line's own rate times t where nothing was cut short, never falls as `spent` rises, and sums to `spent`. So
the lines sum to the account's accrual in every period, and the parts of each line to its whole.

**Unknown parts are reported.** Where entries are lost, one point of the operation `missing` replaces them and bridges
the balances; nothing accrues before it. A point from an older version of the history has no rate, and the accrual
behind it is spread evenly. Spending of no known line counts for the resource None. `whole_from_ns` is the instant from
which on everything is known.

Amounts of money are in internal units unless a name says nanos.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from billing.ledger.money import INT64_MAX, NANO

MISSING: Final = "missing"  # the operation of a point that replaces lost entries
OPENING: Final = "opening"  # of one that replaces entries which history.keep_days deleted, or a snapshot had
NO_ENTRIES: Final = frozenset((MISSING, OPENING))
EXPIRED: Final = "credit_expired"
BALANCE_MAX: Final = INT64_MAX * NANO

Resource = bytes | None  # None: no known line
Lines = dict[Resource, int]  # nanos per hour


def by_name(resource: Resource) -> tuple[bool, bytes]:
    """The key by which lines are sorted: None, the resource of no known line, comes first."""
    return resource is not None, resource or b""


class Point(NamedTuple):
    """The state of an account from one of its entries on."""

    entry_id: int
    at_ns: int
    operation: str
    amount: int  # signed; the change by the entry itself, without accrual
    balance: int
    rate: int | None  # nanos per hour; None where it is not known
    room: int  # what the account can still spend from here on; 0 while spending pauses
    resource: Resource = None  # the line that the entry set
    line_rate: int | None = None  # the rate of that line from here on; None where it is not known
    is_exact: bool = True  # the accrual before it is known to the internal unit

    @property
    def before(self) -> int:
        """The balance right before the entry, after the accrual up to it."""
        return self.balance - self.amount


NOTHING: Final = Point(0, 0, "", 0, 0, 0, 0)  # before the first entry


def room_of(balance: int, credit_limit_nanos: int, holds_nanos: int, *, exhausted: bool, accruing: bool) -> int:
    """Returns what an account in this state can spend before spending pauses, or the balance reaches its bound."""
    available = balance + (credit_limit_nanos - holds_nanos) * NANO
    if not exhausted:
        return max(0, available)
    return max(0, min(balance, available) + BALANCE_MAX) if accruing else 0


def missing(before: Point, after: Point) -> Point:
    """Returns the point that replaces the entries between two others: at the instant of the later one, with a balance
    equal to that one's `before`.
    """
    return Point(
        before.entry_id + 1, after.at_ns, MISSING, after.before - before.balance, after.before, 0, 0, is_exact=False
    )


class Interval(NamedTuple):
    """The time from one point to the next, or to an instant where none follows yet (`after` is None then)."""

    start: Point
    end_ns: int
    after: Point | None

    @property
    def spent(self) -> int:
        """The accrual of the whole interval."""
        if self.after is None:
            return self._by_rate(self.end_ns)
        return 0 if self.after.operation == MISSING else self.start.balance - self.after.before

    def spent_at(self, at_ns: int) -> int:
        """The accrual from its start to an instant within, ends included."""
        start, after = self.start, self.after
        if at_ns >= self.end_ns:
            return self.spent
        if after is None or (start.rate is not None and after.operation != MISSING):
            return self._by_rate(at_ns)
        return self.spent * (at_ns - start.at_ns) // (self.end_ns - start.at_ns)

    def balance_at(self, at_ns: int) -> int:
        """The balance at an instant within, before the entry at its end."""
        return self.start.balance - self.spent_at(at_ns)

    @property
    def is_exact(self) -> bool:
        """Whether the accrual is known to the internal unit, at every instant of the interval."""
        return self.start.rate is not None and (self.after is None or self.after.is_exact)

    def _by_rate(self, at_ns: int) -> int:
        return min((self.start.rate or 0) * (at_ns - self.start.at_ns), self.start.room)


class Line(NamedTuple):
    """What one line has spent in a period, and its rate at the end of it."""

    resource: Resource
    accrued: int
    accrued_nanos: int
    rate: int


class Period(NamedTuple):
    """See the module. `first_id` and `last_id`: the entry_ids of the first and the last entry within; 0 where there is
    none.
    """

    from_ns: int
    to_ns: int
    opening: int
    credits: int
    debits: int  # including what expired
    expired: int
    accrued: int
    closing: int
    opening_nanos: int
    credits_nanos: int
    debits_nanos: int
    expired_nanos: int
    accrued_nanos: int
    closing_nanos: int
    first_id: int
    last_id: int
    entries: int
    lines: tuple[Line, ...] | None
    whole_from_ns: int | None

    @property
    def adds_up(self) -> bool:
        """Whether opening + credits - debits - accrued = closing, in internal units and in nanos."""
        exactly = self.opening + self.credits - self.debits - self.accrued == self.closing
        shown = self.opening_nanos + self.credits_nanos - self.debits_nanos - self.accrued_nanos == self.closing_nanos
        return exactly and shown


class LineSums:
    """The sums of what each line has spent. A line costs work when it changes and where spending is cut short, not
    while time passes: `_clock` counts the nanoseconds in which all lines spent their own rates.
    """

    def __init__(self, lines: Lines) -> None:
        """`lines`: their sum is the account's rate at the start."""
        self._lines = dict(lines)
        self._since = dict.fromkeys(lines, 0)
        self._accrued: Lines = dict.fromkeys(lines, 0)
        self._clock = 0
        self._total = sum(lines.values())

    def pass_time(self, from_ns: int, to_ns: int, first: int, last: int) -> None:
        """Adds a part of an interval. `from_ns` and `to_ns`: nanoseconds since the interval's start; `first` and
        `last`: what the account had spent of it by then.
        """
        if first == self._total * from_ns and last == self._total * to_ns:
            self._clock += to_ns - from_ns
        elif first != last:
            self._share(first, last)

    def _share(self, first: int, last: int) -> None:
        """Distributes the account's spending from `first` to `last` in an interval over the lines, where it was not
        rate times time.
        """
        rate, running = self._total, 0
        if not rate:
            self._add(None, last - first)
            return
        for resource in sorted(self._lines, key=by_name):
            below, running = running, running + self._lines[resource]
            spent = last * running // rate - last * below // rate - (first * running // rate - first * below // rate)
            self._add(resource, spent)

    def _add(self, resource: Resource, spent: int) -> None:
        self._accrued[resource] = self._accrued.get(resource, 0) + spent

    def take(self, before: Point, point: Point) -> None:
        """Takes an entry that may have set a line. Behind a point without a known rate, no line is known."""
        rate, resource = point.rate, point.resource
        if rate is None or point.operation == MISSING:
            rate = rate or 0
            for line in list(self._lines):
                self._set(line, 0)
        if resource is not None:
            line_rate = point.line_rate
            if line_rate is None:
                line_rate = max(0, self._lines.get(resource, 0) + rate - (before.rate or 0))
            self._set(resource, line_rate)
        if rate != self._total:
            self._set(None, self._lines.get(None, 0) + rate - self._total)

    def name(self, lines: Lines) -> None:
        """Sets the lines, which were not known before and make up the rate from here on."""
        for resource in self._lines.keys() - lines.keys():
            self._set(resource, 0)
        for resource, rate in lines.items():
            self._set(resource, rate)

    def _set(self, resource: Resource, rate: int) -> None:
        old_rate = self._lines.get(resource, 0)
        if old_rate:
            self._add(resource, old_rate * (self._clock - self._since[resource]))
        if rate:
            self._lines[resource], self._since[resource] = rate, self._clock
            self._accrued.setdefault(resource, 0)
        elif resource in self._lines:
            del self._lines[resource], self._since[resource]
        self._total += rate - old_rate

    def __len__(self) -> int:
        """How many lines have spent something."""
        return len(self._accrued)

    def close(self, accrued: int, accrued_nanos: int) -> tuple[Line, ...]:
        """Returns the lines in the order of their names; their nanos sum to the account's."""
        for resource in list(self._lines):
            self._set(resource, self._lines[resource])
        rest = accrued - sum(self._accrued.values())
        if rest:
            self._add(None, rest)
        lines, running = [], 0
        for resource in sorted(self._accrued, key=by_name):
            below, running = running, running + self._accrued[resource]
            nanos = running * accrued_nanos // accrued - below * accrued_nanos // accrued if accrued else 0
            if self._accrued[resource] or self._lines.get(resource):
                lines.append(Line(resource, self._accrued[resource], nanos, self._lines.get(resource, 0)))
        return tuple(lines)


class Tally:
    """Adds a period up: call `take` for each of its entries, oldest first, then `close`."""

    def __init__(self, from_ns: int, to_ns: int, former: Point, lines: Lines | None = None) -> None:
        """`former`: the newest point before `from_ns`, or NOTHING. `lines`: the lines at that point, to itemise the
        period by; None: do not itemise.
        """
        assert from_ns <= to_ns, "a period upside down"
        self.from_ns, self.to_ns = from_ns, to_ns
        self._former = former
        self._sums = None if lines is None else LineSums(lines)
        self._begun_ns = from_ns  # everything up to this instant is added
        self._opening: int | None = None
        self._accrued = self._credits = self._debits = self._expired = 0
        self._credits_nanos = self._debits_nanos = self._expired_nanos = 0
        self._first_id = self._last_id = self._entries = 0
        self._whole_from_ns: int | None = None

    @property
    def resources(self) -> int:
        """The number of lines in the itemisation so far."""
        return 0 if self._sums is None else len(self._sums)

    def take(self, point: Point) -> None:
        """Takes the next entry of the period."""
        assert self.from_ns <= point.at_ns < self.to_ns, "an entry outside its period"
        before, amount = self._former, point.amount
        self._pass(Interval(before, point.at_ns, point), point.at_ns)
        if amount:
            shown = point.balance // NANO - point.before // NANO
            if amount > 0:
                self._credits += amount
                self._credits_nanos += shown
            else:
                self._debits -= amount
                self._debits_nanos -= shown
            if point.operation == EXPIRED:
                self._expired -= amount
                self._expired_nanos -= shown
        if self._sums is not None:
            self._sums.take(before, point)
        self._former = point
        if point.operation not in NO_ENTRIES:
            self._first_id = self._first_id or point.entry_id
            self._last_id = point.entry_id
            self._entries += 1

    def name(self, lines: Lines) -> None:
        """Sets the lines behind the entry that was taken last; the period is itemised by them from there on."""
        if self._sums is not None:
            self._sums.name(lines)

    def _pass(self, interval: Interval, to_ns: int) -> None:
        """Adds the accrual up to `to_ns`. The first interval of a period begins before the period, all others within
        it.
        """
        first, start = 0, interval.start
        if self._opening is None:
            first = interval.spent_at(self._begun_ns)
            self._opening = start.balance - first
        last = interval.spent_at(to_ns)
        self._accrued += last - first
        if self._sums is not None:
            self._sums.pass_time(self._begun_ns - start.at_ns, to_ns - start.at_ns, first, last)
        if not interval.is_exact:
            self._whole_from_ns = min(interval.end_ns, to_ns)
        self._begun_ns = to_ns

    def close(self, after: Point | None) -> Period:
        """Returns the period. `after`: the first point behind it, None where there is none yet."""
        end_ns = self.to_ns if after is None else after.at_ns
        interval = Interval(self._former, end_ns, after)
        self._pass(interval, self.to_ns)
        closing = interval.balance_at(self.to_ns)
        opening = self._opening
        assert opening is not None
        opening_nanos, closing_nanos = opening // NANO, closing // NANO
        accrued_nanos = opening_nanos + self._credits_nanos - self._debits_nanos - closing_nanos
        period = Period(
            self.from_ns, self.to_ns,
            opening, self._credits, self._debits, self._expired, self._accrued, closing,
            opening_nanos, self._credits_nanos, self._debits_nanos, self._expired_nanos, accrued_nanos, closing_nanos,
            self._first_id, self._last_id, self._entries,
            None if self._sums is None else self._sums.close(self._accrued, accrued_nanos),
            self._whole_from_ns,
        )  # fmt: skip
        assert period.adds_up, "a period does not add up"
        return period
