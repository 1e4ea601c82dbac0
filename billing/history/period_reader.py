"""Periods and past balances of an account, computed from its rows: which rows are read, in which order, and the answer.

A statement reads the rows of the account from the first of the period to its last, in pages, and besides only the row
before and the row behind the period; older rows are not read, however old the account is. Where it is itemised by
resource, it first walks back from the beginning of the period, until the lines it has met sum to the account's rate
(lines are never below zero, so all others are zero then), or until an opening, which holds all lines (`openings`). A
line whose setting is in no row (an older version did not record it, or the row is lost) gets the rate that the ledger
has now, if no row since then sets the line.

The rows of an account are a chain by entry_id, whose instants never fall. The row at an instant is found by bisecting
the marks of each file (`HistoryReader.newest_id_before`).

The newest state of the account comes with the question, from the ledger. It replaces the newest row where that is
missing, or is from an older version of the file and has no rate.

Nothing here waits: a question is a generator, which yields between pages so that the process can take batches and
answer other questions meanwhile. It returns the answer, and whether no row was missing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple

from billing.history.history_reader import HistoryReader, Newest, as_map, missing_row
from billing.history.openings import Opening
from billing.history.page import Row, name_of
from billing.history.period import (
    MISSING,
    NO_ENTRIES,
    NOTHING,
    OPENING,
    Interval,
    Lines,
    Period,
    Point,
    Tally,
    missing,
    room_of,
)
from billing.ledger import commands as ops
from billing.ledger.entry import ACCRUING, EXHAUSTED, text
from billing.ledger.money import INT64_MAX, NANO

PAGE_ROWS: Final = 2_000
ENTRIES_MAX: Final = 1_000_000  # in one period; the caller asks for longer ones in parts, which join
WALK_ROWS_MAX: Final = 1_000_000  # how far to walk back for lines; the rest of the rate is of no known line
RESOURCES_MAX: Final = 100_000

Shown = dict[str, Any]
_CLOSED: Final = ops.NAMES[ops.CLOSE]
_SUMS: Final = ("credits_nanos", "debits_nanos", "expired_nanos", "accrued_nanos")  # balances are within bounds
Answer = tuple[Shown, bool]  # the second: whether no row was missing
Steps = Generator[None, None, Answer]


class Standing(NamedTuple):
    """An account as its newest entry left it, from the ledger; all zeros for an account that was never opened."""

    entry_id: int = 0
    at_ns: int = 0
    balance_nanos: int = 0
    balance_frac: int = 0
    rate: int = 0
    credit_limit_nanos: int = 0
    holds_nanos: int = 0
    flags: int = 0  # EXHAUSTED and ACCRUING, as in an entry
    lines: Sequence[tuple[bytes, int]] = ()  # (resource, nanos per hour); also empty where the question needs none

    @property
    def balance(self) -> int:
        """The balance in internal units."""
        return self.balance_nanos * NANO + self.balance_frac


class Misplaced(AssertionError):
    """A row's instant contradicts its place among the account's rows. If a former owner of the bucket wrote rows while
    the account's were read, it is enough to read them again; else it is a bug.
    """


class TooLong(Exception):
    """A period has more entries or lines, or larger sums, than one answer takes; the message says what to do."""


def point_of(row: Row) -> Point:
    """Returns the account's state from this row on."""
    name, frac = name_of(row.operation), row.frac
    if row.flags is None or frac is None or row.rate is None:
        return Point(
            row.entry_id, row.at_ns, name, row.amount * NANO, row.balance * NANO, None, 0, is_exact=False
        )  # fmt: skip
    exactly = row.balance * NANO + frac
    resource = row.resource if row.operation in ops.OF_LINES else None
    exhausted, accruing = bool(row.flags & EXHAUSTED), bool(row.flags & ACCRUING)
    return Point(
        row.entry_id, row.at_ns, name,
        (row.amount - (frac < row.amount_frac)) * NANO + row.amount_frac,  # undoes the rounding of `page.row_of`
        exactly, row.rate,
        room_of(exactly, row.credit_limit, row.holds, exhausted=exhausted, accruing=accruing),
        resource, row.value if resource is not None else None,
    )  # fmt: skip


def _standing_point(standing: Standing, amount: int, operation: str, resource: bytes | None = None) -> Point:
    room = room_of(
        standing.balance,
        standing.credit_limit_nanos,
        standing.holds_nanos,
        exhausted=bool(standing.flags & EXHAUSTED),
        accruing=bool(standing.flags & ACCRUING),
    )
    return Point(
        standing.entry_id, standing.at_ns, operation, amount, standing.balance, standing.rate, room, resource,
        is_exact=False,
    )  # fmt: skip


class Chain:
    """The points of an account, with one in the place of each gap."""

    def __init__(self, reader: HistoryReader, generation: int, user_id: bytes, newest: Standing) -> None:
        self._reader = reader
        self._generation = generation
        self._user_id = user_id
        self.newest = newest
        self.is_whole = True  # no row was missing so far

    def newest_id_before(self, at_ns: int) -> int:
        """Returns the entry_id of the newest row before an instant; 0 where there is none."""
        return self._reader.newest_id_before(self._generation, self._user_id, at_ns)

    def rows(self, first_id: int, last_id: int) -> list[Row]:
        """Returns the rows with these entry_ids, oldest first; the range may have at most `PAGE_ROWS`."""
        count = last_id - first_id + 1
        newest_first = self._reader.rows(self._generation, self._user_id, last_id + 1, count)[1]
        return [row for row in reversed(newest_first) if row.entry_id >= first_id]

    def row_behind(self, entry_id: int) -> list[Row]:
        """Returns the first row behind this entry_id, even behind a gap: a list of none or one."""
        above, _ = self._reader.rows(self._generation, self._user_id, entry_id + 1, 1)
        return [] if above is None else [above]

    def point_at(self, entry_id: int) -> Point:
        """Returns the point of the newest row up to `entry_id`; NOTHING where there is none, or for 0."""
        if entry_id <= 0:
            return NOTHING
        rows = self._reader.rows(self._generation, self._user_id, entry_id + 1, 1)[1]
        return self._completed(point_of(rows[0])) if rows else NOTHING

    def _completed(self, point: Point) -> Point:
        """Returns the point; if it is the account's newest and lacks a rate (an older file), with the state from the
        ledger.
        """
        if point.rate is None and point.entry_id == self.newest.entry_id:
            return _standing_point(self.newest, point.amount, point.operation)
        return point

    def points(self, former: Point, rows: list[Row]) -> Iterator[tuple[Point, Row | None]]:
        """Yields the points of these rows, which follow `former`, each with its row; and one without a row in the place
        of a gap.
        """
        before = former
        for row in rows:
            point = self._completed(point_of(row))
            if point.entry_id > before.entry_id + 1 or point.operation == OPENING:
                self.is_whole = False
                yield missing(before, point), None
            yield point, row
            before = point

    def gap_row(self, before: Point, gap: Point, row: Row | None) -> Shown:
        """Returns the row that is shown for a gap between `before` and `row` (None at the end). It is the one that
        `history` shows, except that its amount includes what accrued within the gap, up to the entry behind it.
        """
        openings = {opening.entry_id for opening in self._reader.openings(self._generation, self._user_id)}
        last_id = self.newest.entry_id if row is None else row.entry_id - (gap.entry_id < row.entry_id)
        opening_nanos, closing_nanos = before.balance // NANO, gap.balance // NANO
        newer = None if row is None else as_map(row)
        older = {"balance_after_nanos": opening_nanos}
        shown = missing_row(gap.entry_id, last_id, older, newer, Newest(at_ns=gap.at_ns), openings)
        return shown | {"amount_nanos": closing_nanos - opening_nanos, "balance_after_nanos": closing_nanos}

    def last_gap(self, last: Point) -> Point | None:
        """Returns the point that replaces the newest entries where their rows are missing; else None."""
        if last.entry_id >= self.newest.entry_id or not self.newest.entry_id:
            return None
        self.is_whole = False
        amount = self.newest.balance - last.balance
        return _standing_point(self.newest, amount, MISSING)

    def lines_at(self, former: Point) -> Generator[None, None, Lines]:
        """Returns the rate lines behind a point, walking back from it until they are known. The rest of the rate is
        under None.
        """
        openings = self._reader.openings(self._generation, self._user_id)
        while True:
            opening = next((candidate for candidate in openings if candidate.entry_id <= former.entry_id), None)
            lines = yield from self._lines_back_to(former, opening)
            if None not in lines:
                return lines
            before, openings = openings, self._reader.openings(self._generation, self._user_id)
            if openings == before:
                return (yield from self._named_by_standing(former, lines))
            # The rows that the walk needed were deleted meanwhile; the new opening has their lines.

    def _named_by_standing(self, former: Point, lines: Lines) -> Generator[None, None, Lines]:
        """Replaces the unknown rest of `lines` behind `former` by lines that the ledger has now: a line that no row
        behind `former` sets has had its present rate since then.
        """
        left: Lines = {resource: rate for resource, rate in self.newest.lines if rate and resource not in lines}
        at_id, end_id = former.entry_id, self.newest.entry_id
        if end_id - at_id > WALK_ROWS_MAX:
            return lines
        while left and at_id < end_id:
            rows = self.rows(at_id + 1, min(end_id, at_id + PAGE_ROWS))
            for row in rows:
                at_id += 1
                point = point_of(row)
                if point.entry_id != at_id or point.rate is None or point.operation in (_CLOSED, OPENING):
                    return lines
                if point.resource is not None:
                    left.pop(point.resource, None)
            if not rows:
                return lines
            yield
        rest = lines[None] - sum(left.values())
        if rest < 0:
            return lines
        named: Lines = {resource: rate for resource, rate in lines.items() if resource is not None}
        named |= left
        return named | {None: rest} if rest else named

    def _lines_back_to(self, former: Point, opening: Opening | None) -> Generator[None, None, Lines]:
        """See `lines_at`: walks back until the lines it met sum to the rate, or to the opening, or to a gap."""
        rates: dict[bytes, int] = {}
        changes: dict[bytes, int] = {}  # line -> sum of its rate changes by entries that record no line rate
        unsaid: Point | None = None  # a point that changed a line without recording its rate
        wanted, known, at_id = former.rate or 0, 0, former.entry_id
        end_id = max(0, at_id - WALK_ROWS_MAX)
        while at_id > end_id and (known < wanted or changes or unsaid):
            rows = self.rows(max(end_id, at_id - PAGE_ROWS) + 1, at_id)
            for row in reversed(rows):
                point = point_of(row)
                if point.entry_id != at_id or point.rate is None or point.operation == _CLOSED:
                    return _with_rest(rates, wanted)  # no row before it can set these lines
                at_id -= 1
                if unsaid is not None and unsaid.resource is not None:
                    change = (unsaid.rate or 0) - point.rate
                    changes[unsaid.resource] = changes.get(unsaid.resource, 0) + change
                    unsaid = None
                if opening is not None and point.entry_id == opening.entry_id:
                    lines = {line: rate for line, rate in opening.lines.items() if line is not None}
                    changed = {line: lines.get(line, 0) + change for line, change in changes.items()}
                    return _with_rest(lines | rates | changed, wanted)
                if point.resource is not None and point.resource not in rates:
                    if point.line_rate is None:
                        unsaid = point
                    else:
                        rates[point.resource] = point.line_rate + changes.pop(point.resource, 0)
                        known += rates[point.resource]
                if known >= wanted and not changes and unsaid is None:
                    break
            if not rows:
                return _with_rest(rates, wanted)
            yield
        return _with_rest(rates | changes, wanted)


def _with_rest(rates: dict[bytes, int], wanted: int) -> Lines:
    lines: Lines = {resource: rate for resource, rate in rates.items() if rate}
    rest = wanted - sum(rates.values())
    return lines | {None: rest} if rest else lines


def _says_lines(point: Point) -> bool:
    """Whether the lines behind a point are known if those before it are."""
    return point.rate is not None and point.operation not in NO_ENTRIES


def statement(
    chain: Chain, user_id: bytes, from_ns: int, to_ns: int, by_resource: bool, limit: int, now_ns: int
) -> Steps:
    """Makes the answer to `statement`, with at most `limit` of its entries and of the rows that replace missing ones.
    Raises TooLong, Misplaced.
    """
    asked_to_ns = to_ns
    from_ns, to_ns = min(from_ns, now_ns), min(to_ns, now_ns)
    first_id, last_id = chain.newest_id_before(from_ns) + 1, chain.newest_id_before(to_ns)
    if last_id - first_id >= ENTRIES_MAX:
        raise TooLong(f"{last_id - first_id + 1} entries; at most {ENTRIES_MAX} in one answer: shorter periods join")
    former = chain.point_at(first_id - 1)
    lines = None
    if by_resource:
        lines = yield from chain.lines_at(former)
    tally = Tally(from_ns, to_ns, former, lines)
    entries: list[Shown] = []
    at_id = first_id
    while at_id <= last_id:
        page_end = min(last_id, at_id + PAGE_ROWS - 1)
        gap: tuple[Point, Point] | None = None  # the point before the gap, and the point that replaces it
        for point, row in chain.points(former, chain.rows(at_id, page_end)):
            if point.at_ns >= to_ns or point.at_ns < from_ns:
                raise Misplaced(f"entry {point.entry_id} stands in the wrong place")
            tally.take(point)
            if by_resource and point.rate is not None and former.entry_id and not _says_lines(former):
                tally.name((yield from chain.lines_at(point)))
            if row is None:
                gap = former, point
            else:
                shown_rows = [as_map(row)] if gap is None else [chain.gap_row(*gap, row), as_map(row)]
                entries += shown_rows[: limit - len(entries)]
                gap = None
            former = point
        if tally.resources > RESOURCES_MAX:
            raise TooLong(f"more than {RESOURCES_MAX} resources; shorter periods join")
        at_id = page_end + 1
        yield
    after = next((point for point, _ in chain.points(former, chain.row_behind(last_id))), None)
    if after is None:
        after = chain.last_gap(former)
        if after is not None and after.at_ns < to_ns:
            tally.take(after)
            entries += [chain.gap_row(former, after, None)][: limit - len(entries)]
            after = None
    return shown(user_id, tally.close(after), asked_to_ns > now_ns, entries), chain.is_whole


def bounded_statement(chain: Chain, *question: Any) -> Steps:
    """Makes the answer as `statement` does. Raises TooLong also where a sum has no place in a message: a few large
    top-ups exceed every bound that one of them has.
    """
    answer, is_whole = yield from statement(chain, *question)
    for name in _SUMS:
        if answer[name] > INT64_MAX:
            raise TooLong(f"{name} of this period is more than 2**63-1; shorter periods join")
    return answer, is_whole


def shown(user_id: bytes, period: Period, is_open: bool, entries: list[Shown]) -> Shown:
    """Returns a period as `statement` answers it."""
    answer: Shown = {
        "user_id": user_id.decode(),
        "from_ns": period.from_ns,
        "to_ns": period.to_ns,
        "up_to_now": is_open,
    }
    for name in ("opening", "credits", "debits", "expired", "accrued", "closing"):
        answer[f"{name}_nanos"] = getattr(period, f"{name}_nanos")
    answer["exact"] = {
        name: str(getattr(period, name)) for name in ("opening", "credits", "debits", "expired", "accrued", "closing")
    }
    answer["entries_count"] = period.entries
    answer["first_entry_id"] = period.first_id or None
    answer["last_entry_id"] = period.last_id or None
    answer["entries"] = entries
    answer["whole_from_ns"] = period.whole_from_ns
    answer["resources"] = (
        None
        if period.lines is None
        else [
            {
                "resource": None if line.resource is None else text(line.resource),
                "accrued_nanos": line.accrued_nanos,
                "exact_accrued": str(line.accrued),
                "line_rate_nanos_per_hour": line.rate,
            }
            for line in period.lines
        ]
    )
    return answer


def balance_at(chain: Chain, user_id: bytes, at_ns: int, now_ns: int) -> Steps:
    """Makes the answer to `balance_at`: the account at an instant, after the entries of that instant."""
    yield
    is_ahead = at_ns > now_ns
    at_ns = min(at_ns, now_ns)
    entry_id = chain.newest_id_before(at_ns + 1)
    former = chain.point_at(entry_id)
    behind = next(iter(chain.points(former, chain.row_behind(entry_id))), None)
    after = chain.last_gap(former) if behind is None else behind[0]
    if behind is None and after is not None and after.at_ns <= at_ns:
        former, after = after, None
    interval = Interval(former, INT64_MAX if after is None else after.at_ns, after)
    balance = interval.balance_at(at_ns)
    credit_limit_nanos, holds_nanos, state = _standing_of(chain, former, after)
    balance_nanos = balance // NANO
    rate = former.rate if state is not None else None
    known = credit_limit_nanos is not None and holds_nanos is not None
    return {
        "user_id": user_id.decode(),
        "at_ns": at_ns,
        "up_to_now": is_ahead,
        "state": state,
        "balance_nanos": balance_nanos,
        "credit_limit_nanos": credit_limit_nanos,
        "holds_nanos": holds_nanos,
        "available_nanos": balance_nanos + (credit_limit_nanos or 0) - (holds_nanos or 0) if known else None,
        "rate_nanos_per_hour": rate,
        "rate_nanos_per_second": None if rate is None else rate // 3600,
        "entry_id": former.entry_id,
        "exact_balance": str(balance),
        "whole_from_ns": None if interval.is_exact else min(interval.end_ns, now_ns),
    }, chain.is_whole


def _standing_of(chain: Chain, former: Point, after: Point | None) -> tuple[int | None, int | None, str | None]:
    """Returns credit limit, open holds and state between a point and the next one; None where they are not known."""
    if not former.entry_id:
        return (0, 0, "unopened") if after is None or after.operation != MISSING else (None, None, None)
    if former.operation == _CLOSED:
        return 0, 0, "closed"
    if former.entry_id == chain.newest.entry_id:
        newest = chain.newest
        exhausted = bool(newest.flags & EXHAUSTED)
        return newest.credit_limit_nanos, newest.holds_nanos, "exhausted" if exhausted else "active"
    rows = chain.rows(former.entry_id, former.entry_id)
    if not rows or former.rate is None:
        return None, None, None
    is_exhausted = bool((rows[0].flags or 0) & EXHAUSTED)
    return rows[0].credit_limit, rows[0].holds, "exhausted" if is_exhausted else "active"
