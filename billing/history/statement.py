"""A period of one account: what it opened with, its entries, what it closed with, and whether that adds up. Pure.

A period takes in every entry at an instant from `from_ns` up to, not including, `to_ns`. It opens with the balance
after the entry before it (0 before the first), and closes with the balance after its last. All money is in nanos as
the history shows it, in floors; a row's `accrued_nanos` is defined so that neighbouring rows add up in them:

    balance_after of the row before - accrued = balance_before,  + amount = balance_after

and so over the whole period: opening - sum of accrued + sum of amounts = closing, exactly. A statement that does not
add up says where, and is printed all the same.

Rows come in pages, newest first; where the newest page lies behind the period, its end is searched for by halving, so
that a period long ago costs no more than its own length.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from billing.ledger.money import INT64_MAX

PAGE_ROWS: Final = 1000
NEWEST: Final = INT64_MAX  # the `before` of the first page, and the `to_ns` of a period that has not ended

Row = dict[str, Any]  # as the procedure `history` answers it
Page = Callable[[int, int], Awaitable[list[Row]]]  # (before, limit) -> rows below, newest first


class Statement(NamedTuple):
    """See the module. `rows` oldest first; money in nanos."""

    from_ns: int
    to_ns: int
    opening_nanos: int
    rows: list[Row]
    accrued_nanos: int
    amount_nanos: int
    closing_nanos: int
    is_first_known: bool  # before the opening there is nothing, or nothing is kept
    faults: list[str]  # empty where everything adds up


async def fetch(page: Page, from_ns: int, to_ns: int) -> Statement:
    """The statement of a period, out of as many pages as it takes. What `page` raises passes through."""
    newest = await page(NEWEST, PAGE_ROWS)
    before = NEWEST
    if newest and newest[-1]["at_ns"] >= to_ns:
        before = await _end(page, newest[-1]["entry_id"], to_ns)
        newest = await page(before, PAGE_ROWS)
    rows: list[Row] = []
    former: Row | None = None
    found = newest
    while found:
        inside = [row for row in found if row["at_ns"] >= from_ns]
        rows += inside
        if len(inside) < len(found):
            former = found[len(inside)]
            break
        found = await page(found[-1]["entry_id"], PAGE_ROWS)
    rows.reverse()
    return statement(from_ns, to_ns, former, [row for row in rows if row["at_ns"] < to_ns])


async def _end(page: Page, behind: int, to_ns: int) -> int:
    """The lowest entry_id at or after `to_ns`; that of `behind` is."""
    low = 1
    while low < behind:
        middle = (low + behind) // 2
        found = await page(middle + 1, 1)
        if not found or found[0]["at_ns"] < to_ns:
            low = middle + 1
        else:
            behind = found[0]["entry_id"]
    return behind


def statement(from_ns: int, to_ns: int, former: Row | None, rows: list[Row]) -> Statement:
    """The statement of these rows, oldest first; `former` is the row before them, None where there is none."""
    if former is not None:
        opening_nanos: int = former["balance_after_nanos"]
    elif rows and rows[0]["entry_id"] != 1:  # what came before is not kept: it opens as its first row says
        opening_nanos = rows[0]["balance_before_nanos"] + rows[0]["accrued_nanos"]
    else:
        opening_nanos = 0
    closing_nanos = rows[-1]["balance_after_nanos"] if rows else opening_nanos
    accrued_nanos = sum(row["accrued_nanos"] for row in rows)
    amount_nanos = sum(row["amount_nanos"] for row in rows)
    faults = _faults(opening_nanos, rows)
    faults += [_order(one, other) for one, other in pairwise([former, *rows] if former else rows) if _order(one, other)]
    if opening_nanos - accrued_nanos + amount_nanos != closing_nanos:
        faults.append(
            f"{opening_nanos} - {accrued_nanos} + {amount_nanos} nanos are not the closing balance, {closing_nanos}"
        )
    return Statement(
        from_ns, to_ns, opening_nanos, rows, accrued_nanos, amount_nanos, closing_nanos, former is None, faults
    )


def _faults(opening_nanos: int, rows: list[Row]) -> list[str]:
    """Where a row does not follow from the balance before it."""
    faults = []
    balance = opening_nanos
    for row in rows:
        entry_id, accrued, amount = row["entry_id"], row["accrued_nanos"], row["amount_nanos"]
        before, after = row["balance_before_nanos"], row["balance_after_nanos"]
        if accrued < 0:
            faults.append(f"entry {entry_id}: time gave {-accrued} nanos instead of taking")
        if balance - accrued != before:
            faults.append(
                f"entry {entry_id}: {balance} nanos before it, {accrued} accrued, but it starts from {before}"
            )
        if before + amount != after:
            faults.append(f"entry {entry_id}: {before} and {amount} nanos do not make {after}")
        balance = after
    return faults


def _order(one: Row, other: Row) -> str:
    """What is wrong with the order of two neighbours; empty if nothing is."""
    if other["entry_id"] <= one["entry_id"]:
        return f"entry {other['entry_id']} comes after entry {one['entry_id']}"
    if other["at_ns"] < one["at_ns"]:
        return f"entry {other['entry_id']} lies before entry {one['entry_id']} in time"
    return ""
