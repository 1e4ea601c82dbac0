"""The six events that time causes: a hold's expiry, a credit's end, exhaustion, the end of a grace, a lease's end, a
threshold's crossing. Events of one instant happen in this order.

`coming_ns` is the nearest of the six instants: an account is filed in the wheel for this one. An exhausted account can
only have expiries of holds and ends of credits, graces and leases coming.

A hold that expires at E comes before the exhaustion, which it may prevent: its money is available in the nanosecond in
which the rest runs out. All holds that expire at one instant are given back together, before the ledger looks whether
anything is left; each has an entry of its own, in the order of their ids. In the rare case that nothing is left even
with all of them, the first of these entries is the one that makes the cutoff.

A credit that ends at E comes before the exhaustion, so that the credit's entry makes the cutoff if nothing is left.
A credit that is spent before its end has no entry. If several credits end at one instant, each is a step and an entry
of its own, in the order in which they would have been spent.

The end of a grace comes behind the expiry of a hold, whose money may supersede the cutoff in the last nanosecond, and
behind the end of a credit, which cannot change the cutoff. It comes before the end of a lease: a line whose lease ends
at that instant was still running.

The end of a lease comes behind the exhaustion: it does not bring back the money that was spent up to that instant. It
comes before a threshold of the same instant, because a runway that grows crosses no threshold. If several leases end at
one instant, each is a step and an entry of its own, in the order of their resources.
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
    """The instant of the next event that time causes; may lie beyond 2**63-1; NEVER_NS if there is none."""
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
    """Whether time causes an event up to `at_ns`: `coming_ns(account) <= at_ns`, mostly without a division."""
    extra = account.extra
    if extra is None or (not (extra.thresholds or account.credits) and extra.next_expiry_ns > at_ns):
        return not account.exhausted and account.rate * (at_ns - account.settled_ns) >= account.available
    return coming_ns(account) <= at_ns


def unnoticed(book: Book, now_ns: int, due_after_ns: Callable[[Account, int], int]) -> int:
    """How many accounts of a bucket have a cutoff call due by `now_ns` whose exhaustion, or end of a grace, the ledger
    has not recorded yet. `due_after_ns(account, exhausted_at_ns)` is the instant at which the call is owed.
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
    """The instant at which an active account runs out if nothing but time happens: as E, this takes the ends of credits
    into account, and also the expiries of holds and the ends of leases before it. NEVER_NS if the account never runs
    out, or is exhausted.
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
    """Settles a working copy to its coming instant `due_ns` and ends the hold, credit, grace or lease that ends there.
    Returns the commands of the event (one, or one for each hold that expires) and the amount accrued.
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
    """Gives back the holds that expire at the account's next expiry. Returns (id, amount in nanos) of each, sorted."""
    due_ns = extra.next_expiry_ns
    expired = sorted((name, amount) for name, (amount, expires_ns) in extra.holds.items() if expires_ns == due_ns)
    for name, _ in expired:
        free(account, extra, name)
    return expired
