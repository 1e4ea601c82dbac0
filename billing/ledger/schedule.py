"""What time causes: a hold's expiry, a credit's end, exhaustion, the end of a grace, a lease's end, a threshold's
crossing. In this order at one instant.

`coming_ns` is the one instant an account is armed for: the nearest of the six. An exhausted account has only expiries
and ends of credits, graces and leases coming.

At a tie the hold's expiry comes before the exhaustion it prevents: its money is free in the nanosecond in which the
rest ran out. Holds that expire at one instant are given back together, and only then is it asked whether anything is
left; each has an entry of its own, in the order of their ids. In the rare case that even with all of them nothing is
left in that nanosecond, the first of these entries crosses.

A credit ends before an exhaustion of the same instant is judged, so that its entry is the one that crosses where
nothing is left. A credit that is spent before its end has no entry. Of credits that end at one instant each is a step
and an entry of its own, in the order in which they would have been spent.

A grace ends behind the expiry of a hold, whose money may supersede the cutoff in the last nanosecond, and behind the
end of a credit, which changes nothing about it; the line of a lease that ends at that instant was still running.

The end of a lease comes behind the exhaustion: what was spent up to that instant is spent, and no line that ends then
brings it back. It comes before a threshold of the same instant, because a runway that grows crosses nothing. Of leases
that end at one instant each is a step and an entry of its own, in the order of their resources.
"""

from collections.abc import Callable

from billing.ledger import commands as ops
from billing.ledger.account import Account
from billing.ledger.balances import end_credit, free
from billing.ledger.book import Book
from billing.ledger.commands import Command
from billing.ledger.credits import after_time, next_end_ns
from billing.ledger.cutoffs import end_grace
from billing.ledger.exhaustion import falls_ns as available_falls_ns
from billing.ledger.extra import NEVER_NS, Extra
from billing.ledger.money import NANO
from billing.ledger.rates import end_lease, line
from billing.ledger.thresholds import above, fallen, next_crossing_ns


def coming_ns(account: Account) -> int:
    """The instant at which time next causes something; may lie beyond 2**63-1; NEVER_NS if nothing is coming."""
    coming = account.runs_out_ns()
    extra = account.extra
    if extra is not None:
        coming = min(coming, extra.next_expiry_ns)
        if extra.thresholds:
            coming = min(coming, next_crossing_ns(account))
        if account.credits:
            coming = min(coming, _next_end_ns(account))
    return coming


def _next_end_ns(account: Account) -> int:
    spends = account.accruing or not account.exhausted
    return next_end_ns(account.credits, account.rate if spends else 0, account.settled_ns)


def anything(account: Account, at_ns: int) -> bool:
    """Whether time causes something up to `at_ns`: `coming_ns(account) <= at_ns`, mostly without a division."""
    extra = account.extra
    if extra is None or (not (extra.thresholds or account.credits) and extra.next_expiry_ns > at_ns):
        return not account.exhausted and account.rate * (at_ns - account.settled_ns) >= account.available
    return coming_ns(account) <= at_ns


def unnoticed(book: Book, now_ns: int, due_after_ns: Callable[[Account, int], int]) -> int:
    """How many accounts of a bucket are to be called for by `now_ns` and were not looked at since. `due_after_ns`: when
    the call of an account that runs out at an instant is owed.
    """
    accounts = (
        Account(book, slot, book.users[slot])
        for slot, filed_ns in enumerate(book.armed_ns)
        if filed_ns <= now_ns and book.users[slot]
    )
    return sum(_call_ns(account, now_ns, due_after_ns) <= now_ns for account in accounts)


def _call_ns(account: Account, now_ns: int, due_after_ns: Callable[[Account, int], int]) -> int:
    extra = account.extra
    if account.exhausted:
        grace = None if extra is None else extra.grace()
        return NEVER_NS if grace is None else grace.due_ns
    runs_out_ns = falls_ns(account)
    return due_after_ns(account, runs_out_ns) if runs_out_ns <= now_ns else runs_out_ns


def falls_ns(account: Account) -> int:
    """The instant at which an active account runs out if nothing but time happens: E, which foresees the ends of
    credits, moved by the expiries of holds and the ends of leases that come before it. NEVER_NS where it does not, or
    is exhausted.
    """
    extra = account.extra
    runs_out_ns = account.runs_out_ns()
    if extra is None or account.exhausted or extra.next_expiry_ns > runs_out_ns:
        return runs_out_ns
    at_ns, available, rate, credits = account.settled_ns, account.available, account.rate, account.credits
    coming = [(ends_ns, 1, line(account, name)[0]) for name, ends_ns in extra.leases.items()]
    coming += [(expires_ns, 0, amount) for amount, expires_ns in extra.holds.values() if expires_ns != NEVER_NS]
    given_back: dict[int, int] = {}
    for expires_ns, is_lease, amount in coming:
        if not is_lease:
            given_back[expires_ns] = given_back.get(expires_ns, 0) + amount * NANO
    for end_ns in sorted({end_ns for end_ns, _, _ in coming}):
        runs_out_ns = available_falls_ns(credits, rate, at_ns, available)
        if runs_out_ns < end_ns:
            return runs_out_ns
        credits, lost = after_time(credits, rate, at_ns, end_ns)
        available += given_back.get(end_ns, 0) - rate * (end_ns - at_ns) - lost
        at_ns = end_ns
        if available <= 0:
            return end_ns
        rate -= sum(line_rate for at, is_lease, line_rate in coming if is_lease and at == end_ns)
    return available_falls_ns(credits, rate, at_ns, available)


def step(account: Account, due_ns: int, accrue: bool) -> tuple[list[Command], int]:
    """Settles a working copy to its coming instant; returns the event of that instant (one event, or the expiries of
    that instant) and the amount accrued.
    """
    extra = account.extra
    user_id = account.user_id
    if extra is None:  # then nothing else can be coming
        accrued = account.settle(due_ns, accrue)
        return [(ops.EXHAUST, user_id, 0, 0, 0, b"", b"", b"", b"", b"")], accrued
    ends = extra is not None and extra.next_expiry_ns == due_ns
    if extra is not None and ends and (expired := _expire(account, extra)):
        accrued = account.settle(due_ns, accrue)
        commands = [(ops.HOLD_EXPIRED, user_id, amount, 0, 0, name, b"", b"", b"", b"") for name, amount in expired]
        return commands, accrued
    if account.credits and _next_end_ns(account) == due_ns:
        accrued = account.settle(due_ns, accrue)
        return [end_credit(account)], accrued
    if account.runs_out_ns() == due_ns:
        accrued = account.settle(due_ns, accrue)
        return [(ops.EXHAUST, user_id, 0, 0, 0, b"", b"", b"", b"", b"")], accrued
    if extra is not None and ends and (grace := extra.grace()) is not None and grace.due_ns == due_ns:
        accrued = account.settle(due_ns, accrue)
        return [end_grace(account)], accrued
    if ends:
        accrued = account.settle(due_ns, accrue)
        name, rate = end_lease(account, due_ns)
        return [(ops.LEASE_EXPIRED, user_id, rate, 0, 0, name, b"", b"", b"", b"")], accrued
    armed = above(account)
    accrued = account.settle(due_ns, accrue)
    kind, value = fallen(account, armed)[0]
    return [(ops.THRESHOLD, user_id, kind, value, 0, b"", b"", b"", b"", b"")], accrued


def _expire(account: Account, extra: Extra) -> list[tuple[bytes, int]]:
    """Gives back the holds that expire at the account's next expiry: their ids, and amounts in nanos."""
    due_ns = extra.next_expiry_ns
    expired = sorted((name, amount) for name, (amount, expires_ns) in extra.holds.items() if expires_ns == due_ns)
    for name, _ in expired:
        free(account, extra, name)
    return expired
