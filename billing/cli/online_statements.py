"""The check of statements of `billing doctor --online`: for accounts and periods drawn at random, the daemon's replies
must agree with figures computed from the account's entries by separate arithmetic.

The check reads the entries of each account (`history`), and computes the balance at an instant from them alone: the
row before the instant has balance and rate, the row behind it has the amount that accrued between both rows. Up to an
instant between them the account has spent

    min(rate * time since the row before, amount accrued between both rows)

Rows have whole nanos, so this is exact to less than two nanos. Entries are read once, at the begin, so all instants are
drawn before the newest entry. For periods from a to b and from b to c, the daemon's figures must equal the computed
ones:

    balance_at, opening and closing      to two nanos
    entries, credits, debits             exactly
    each line's accrual                  to two nanos for each entry of the period

Exactly, in nanos and in internal units: opening + credits - debits - accrued = closing; the lines sum to the accrual;
the closing of a to b is the opening of b to c; the sums of both periods add up to those of a to c.

The check changes nothing, and reads about `ROWS_MAX` entries of an account at most.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Any, Final

from billing.client.client import Client
from billing.client.errors import LimitExceeded, UnknownAccount

ACCOUNTS: Final = 50
PERIODS: Final = 3  # checked for each account
PAGE_ROWS: Final = 1000
ROWS_MAX: Final = 10_000
UNIT: Final = 3600 * 10**9  # internal units in a nano
SLACK: Final = 2 * UNIT

Row = dict[str, Any]
Exact = dict[str, int]
SUMS: Final = ("opening", "credits", "debits", "accrued", "closing")


class OnlineStatements:
    """Checks statements, and counts the accounts and periods that were checked; `faults` has a line for each fault."""

    def __init__(self, client: Client, draw: random.Random) -> None:
        self._client = client
        self._draw = draw
        self.accounts = self.periods = 0
        self.faults: list[str] = []

    async def check(self, accounts: int = ACCOUNTS) -> None:
        """Draws accounts and periods, and checks their statements."""
        for user in await self._drawn(accounts):
            try:
                rows = await self._rows(user)
                if len(rows) > 1 and rows[0]["at_ns"] < rows[-1]["at_ns"]:
                    self.accounts += 1
                    for _ in range(PERIODS):
                        await self._check_periods(user, rows)
            except UnknownAccount:
                continue  # it was closed and cleared meanwhile
            except LimitExceeded:
                continue  # sums that no answer can hold

    async def _drawn(self, count: int) -> list[str]:
        """User ids drawn at random: from the first page of accounts, and behind random keys in the order of ids."""
        rows = await self._client.accounts(limit=PAGE_ROWS)
        names = [row.user_id for row in rows]
        if len(rows) == PAGE_ROWS:
            for _ in range(count):
                behind = self._draw.choice(names) + self._draw.choice("0123456789abcdefghijklmnopqrstuvwxyz")
                names += [row.user_id for row in await self._client.accounts(after=behind, limit=3)]
        return self._draw.sample(sorted(set(names)), min(count, len(set(names))))

    async def _rows(self, user: str) -> list[Row]:
        """The newest entries of an account, oldest first, back to the first gap in the history."""
        rows: list[Row] = []
        before: int | None = None
        while len(rows) < ROWS_MAX:
            page = await self._client.history(user, limit=PAGE_ROWS, before=before)
            for row in page:
                if row["operation"] in ("missing", "opening") or row["rate_nanos_per_hour"] is None:
                    return rows[::-1]
                rows.append(row)
            if len(page) < PAGE_ROWS:
                break
            before = page[-1]["entry_id"]
        return rows[::-1]

    async def _check_periods(self, user: str, rows: list[Row]) -> None:
        """Checks two adjacent periods drawn at random, the period that covers both, and `balance_at` between them."""
        self.periods += 1
        first_ns, last_ns = rows[0]["at_ns"], rows[-1]["at_ns"]
        a, b, c = sorted(self._draw.randint(first_ns + 1, last_ns) for _ in range(3))
        left, right, both = [await self._statement(user, *period) for period in ((a, b), (b, c), (a, c))]
        self._sums(user, rows, left, a, b)
        self._sums(user, rows, right, b, c)
        self._sums(user, rows, both, a, c)
        if left["exact"]["closing"] != right["exact"]["opening"]:
            self._fault(user, a, c, f"closes with {left['exact']['closing']}, opens with {right['exact']['opening']}")
        for name in ("credits", "debits", "accrued"):
            for sums in (_exact, _nanos):
                parts, all_of_it = sums(left)[name] + sums(right)[name], sums(both)[name]
                if parts != all_of_it:
                    self._fault(user, a, c, f"{name} of its parts are {parts}, of all of it {all_of_it}")
        then = await self._client.balance_at(user, b)
        number = bisect_right([row["at_ns"] for row in rows], b) - 1
        at_b = rows[number]["at_ns"] == b
        wanted = rows[number]["balance_after_nanos"] * UNIT if at_b else balance_at(rows, b)
        if abs(int(then["exact_balance"]) - wanted) > SLACK:
            self._fault(user, b, b, f"balance_at says {then['exact_balance']}, its entries {wanted}")

    async def _statement(self, user: str, from_ns: int, to_ns: int) -> Row:
        return await self._client.statement(user, from_ns, to_ns, by="resource", limit=PAGE_ROWS)

    def _sums(self, user: str, rows: list[Row], statement: Row, from_ns: int, to_ns: int) -> None:
        """Checks that one statement adds up, and that it agrees with the rows."""
        for sums in (_exact(statement), _nanos(statement)):
            if sums["opening"] + sums["credits"] - sums["debits"] - sums["accrued"] != sums["closing"]:
                self._fault(user, from_ns, to_ns, f"it does not add up: {sums}")
        for name, at_ns in (("opening", from_ns), ("closing", to_ns)):
            wanted = balance_at(rows, at_ns)
            if abs(_exact(statement)[name] - wanted) > SLACK:
                self._fault(user, from_ns, to_ns, f"{name} is {statement['exact'][name]}, by its entries {wanted}")
        instants = [row["at_ns"] for row in rows]
        within = rows[bisect_left(instants, from_ns) : bisect_left(instants, to_ns)]
        amounts = [row["balance_after_nanos"] - row["balance_before_nanos"] for row in within]
        counted = {
            "entries_count": len(within),
            "credits_nanos": sum(amount for amount in amounts if amount > 0),
            "debits_nanos": -sum(amount for amount in amounts if amount < 0),
        }
        for name, value in counted.items():
            if statement[name] != value:
                self._fault(user, from_ns, to_ns, f"{name} is {statement[name]}, by its entries {value}")
        lines = {line["resource"]: int(line["exact_accrued"]) for line in statement["resources"]}
        if sum(lines.values()) != _exact(statement)["accrued"]:
            self._fault(user, from_ns, to_ns, f"the lines sum to {sum(lines.values())}, not to what accrued")
        if rows[0]["entry_id"] == 1:
            slack = SLACK * (2 + len(within))
            for line, spent in lines_of(rows, from_ns, to_ns).items():
                if abs(lines.get(line, 0) - spent) > slack:
                    self._fault(user, from_ns, to_ns, f"{line!r} spent {lines.get(line, 0)}, by its entries {spent}")

    def _fault(self, user: str, from_ns: int, to_ns: int, text: str) -> None:
        self.faults.append(f"account {user}, from {from_ns} to {to_ns}: {text}")


def _exact(statement: Row) -> Exact:
    return {name: int(statement["exact"][name]) for name in SUMS}


def _nanos(statement: Row) -> Exact:
    return {name: statement[f"{name}_nanos"] for name in SUMS}


def spent_between(before: Row, row: Row, at_ns: int) -> int:
    """The amount spent from the entry `before` until an instant not later than the next entry `row`, in internal
    units.
    """
    all_of_it: int = row["accrued_nanos"] * UNIT
    at_pace: int = before["rate_nanos_per_hour"] * (at_ns - before["at_ns"])
    return all_of_it if at_ns == row["at_ns"] else min(at_pace, all_of_it)


def balance_at(rows: list[Row], at_ns: int) -> int:
    """The balance at an instant, before the entries of that instant, in internal units. The instant is later than the
    first row and not later than the last.
    """
    number = bisect_left([row["at_ns"] for row in rows], at_ns)
    before, row = rows[number - 1], rows[number]
    balance: int = before["balance_after_nanos"] * UNIT - spent_between(before, row, at_ns)
    return balance


def lines_of(rows: list[Row], from_ns: int, to_ns: int) -> dict[str, int]:
    """Rate line -> amount spent in a period, in internal units. `rows` begin with the account's first entry. A
    `change_rate` of an older version names no rate of its line: the line changed by as much as the account's rate.
    """
    rates: dict[str, int] = {}
    spent: dict[str, int] = {}
    rate = 0
    for before, row in pairwise(rows):
        change, rate = before["rate_nanos_per_hour"] - rate, before["rate_nanos_per_hour"]
        if (line := before["resource"]) is not None:
            of_line = before["line_rate_nanos_per_hour"]
            rates[line] = rates.get(line, 0) + change if of_line is None else of_line
        begin_ns, end_ns = max(from_ns, before["at_ns"]), min(to_ns, row["at_ns"])
        if begin_ns < end_ns and rate:
            part = spent_between(before, row, end_ns) - spent_between(before, row, begin_ns)
            for line, of_line in rates.items():
                spent[line] = spent.get(line, 0) + part * of_line // rate
    return spent
