"""What time causes: a hold's expiry, the exhaustion, a threshold's crossing. In this order at one instant.

`coming_ns` is the one instant an account is armed for: the nearest of the three. An exhausted account has only
expiries coming.

At a tie the hold's expiry comes before the exhaustion it prevents: its money is free in the nanosecond in which the
rest ran out. Holds that expire at one instant are given back together, and only then is it asked whether anything is
left; each has an entry of its own, in the order of their ids. In the rare case that even with all of them nothing is
left in that nanosecond, the first of these entries is the one that crosses.
"""

from billing.ledger import commands as ops
from billing.ledger.account import Account
from billing.ledger.balances import free
from billing.ledger.book import Book
from billing.ledger.commands import Command
from billing.ledger.extra import Extra
from billing.ledger.thresholds import above, fallen, next_crossing_ns


def coming_ns(account: Account) -> int:
    """The instant at which time next causes something; may lie beyond 2**63-1; NEVER_NS if nothing is coming."""
    coming = account.runs_out_ns()
    extra = account.extra
    if extra is not None:
        coming = min(coming, extra.next_expiry_ns)
        if extra.thresholds:
            coming = min(coming, next_crossing_ns(account))
    return coming


def anything(account: Account, at_ns: int) -> bool:
    """Whether time causes something up to `at_ns`: `coming_ns(account) <= at_ns`, mostly without a division."""
    extra = account.extra
    if extra is None or (not extra.thresholds and extra.next_expiry_ns > at_ns):
        return not account.exhausted and account.rate * (at_ns - account.settled_ns) >= account.available
    return coming_ns(account) <= at_ns


def unnoticed(book: Book, now_ns: int) -> int:
    """How many accounts of a bucket have run out by `now_ns` and were not looked at since."""
    return sum(
        1
        for slot, filed_ns in enumerate(book.armed_ns)
        if filed_ns <= now_ns and book.users[slot] and Account(book, slot, book.users[slot]).runs_out_ns() <= now_ns
    )


def step(account: Account, due_ns: int, accrue: bool) -> tuple[list[Command], int]:
    """Settles a working copy to its coming instant; returns what happens then (one thing, or the expiries of that
    instant), and what accrued.
    """
    extra = account.extra
    user_id = account.user_id
    if extra is not None and extra.next_expiry_ns == due_ns:
        expired = _expire(account, extra)
        accrued = account.settle(due_ns, accrue)
        made = [(ops.HOLD_EXPIRED, user_id, amount, 0, 0, name, b"", b"", b"", b"") for name, amount in expired]
        return made, accrued
    if account.runs_out_ns() == due_ns:
        accrued = account.settle(due_ns, accrue)
        return [(ops.EXHAUST, user_id, 0, 0, 0, b"", b"", b"", b"", b"")], accrued
    armed = above(account)
    accrued = account.settle(due_ns, accrue)
    kind, value = fallen(account, armed)[0]
    return [(ops.THRESHOLD, user_id, kind, value, 0, b"", b"", b"", b"", b"")], accrued


def _expire(account: Account, extra: Extra) -> list[tuple[bytes, int]]:
    """Gives back the holds that expire next, which are those of one instant: their ids, and amounts in nanos."""
    due_ns = extra.next_expiry_ns
    expired = sorted((name, amount) for name, (amount, expires_ns) in extra.holds.items() if expires_ns == due_ns)
    for name, _ in expired:
        free(account, extra, name)
    return expired
