"""The life of cutoffs, implemented a second time: from CONTRACT §4 and the grammar of an account's `Extra`.

An account's list has, in order of seq, the cutoffs that are still to be delivered, and always the latest one. `off_seq`
is the highest seq for which an attempt began and `off_ns` that cutoff's instant; `on_seq` is the highest seq that a
delivered restore has undone.
"""

from __future__ import annotations

from typing import Final

from billing.doctor.entry import (
    CUTOFF_DELIVERED,
    CUTOFF_FAILED,
    CUTOFF_RELEASED,
    CUTOFF_RETRY,
    CUTOFF_STARTED,
    RESTORE_DELIVERED,
    RESTORE_FAILED,
    RESTORE_STARTED,
    Entry,
)
from billing.doctor.state import DELIVERED, EFFECTIVE, IN_GRACE, PENDING, SUPERSEDED, Account, Cutoff

UNDELIVERED_MAX: Final = 10_000
SECONDS: Final = range(10**9, (3 << 30) + 2**20)  # Unix seconds that a restore or a cut of these data can have had


def cross(account: Account, at_ns: int, called_ns: int, recorded_seq: int) -> None:
    """Adds a cutoff, owed from `called_ns` on. Called when the available money falls to zero, or when a line rises from
    zero on an exhausted account. Its seq is the next one, or, for the first since the data were put back to an earlier
    state, the Unix second at which that was done, as the entry recorded it.
    """
    account.seq += 1
    if recorded_seq > account.seq and recorded_seq in SECONDS:
        account.seq = recorded_seq
    if account.cutoffs and account.cutoffs[-1].status != PENDING:
        account.cutoffs.pop()
    cutoff = Cutoff(account.seq, at_ns)
    if called_ns > at_ns:
        cutoff.status, cutoff.called_ns = IN_GRACE, called_ns
    account.cutoffs.append(cutoff)
    del account.cutoffs[:-UNDELIVERED_MAX]


def lift(account: Account, presumed: bool, restores: bool) -> Cutoff | None:
    """Supersedes the pending cutoffs when the available money rises above zero. Returns the latest cutoff, which the
    note of the restoring entry describes.

    `presumed`: attempts of pending cutoffs may have begun in an earlier life of the shard. `restores`: there is a
    restore URL.
    """
    pending = [cutoff for cutoff in account.cutoffs if cutoff.status == PENDING]
    for cutoff in pending:
        cutoff.status = SUPERSEDED
    if (waiting := account.grace()) is not None:
        waiting.status = SUPERSEDED
    if presumed and pending:
        _began(account, pending[-1])
    del account.cutoffs[:-1]
    if not restores:
        account.on_seq = account.off_seq
    account.restore_attempts = 0
    account.restore_error = b""
    return account.cutoffs[-1] if account.cutoffs else None


def _began(account: Account, cutoff: Cutoff) -> None:
    if cutoff.seq > account.off_seq:
        account.off_seq, account.off_ns = cutoff.seq, cutoff.at_ns


def rest(account: Account) -> None:
    """Marks the latest cutoff as effective if it was delivered. Called when an exhausted account's rate is zero."""
    if account.cutoffs and account.cutoffs[-1].status == DELIVERED:
        account.cutoffs[-1].status = EFFECTIVE


def owed(account: Account) -> tuple[str, int, int] | None:
    """("cutoff" or "restore", seq, exhaustion instant) of the call that is owed now; None if there is none."""
    if not account.cutoffs:
        return None
    if account.exhausted:
        oldest = account.cutoffs[0]
        return ("cutoff", oldest.seq, oldest.at_ns) if oldest.status == PENDING else None
    return ("restore", account.off_seq, account.off_ns) if account.off_seq > account.on_seq else None


def report(account: Account, entry: Entry) -> str:
    """Applies an entry in which delivery or an operator reported about a cutoff or restore. Returns why that cannot
    have happened, or "".
    """
    op, seq = entry.op, entry.a
    if op in (RESTORE_STARTED, RESTORE_FAILED, RESTORE_DELIVERED):
        return _restore(account, entry)
    cutoff = next((cutoff for cutoff in account.cutoffs if cutoff.seq == seq), None)
    if cutoff is None:
        return f"cutoff {seq} is not among those of the account"
    latest = cutoff is account.cutoffs[-1]
    unbegun = op == CUTOFF_FAILED and entry.b == 1  # no connection was made
    if op in (CUTOFF_FAILED, CUTOFF_DELIVERED) and seq > account.off_seq and not unbegun:
        return f"an outcome of cutoff {seq}, of which no attempt began"
    if cutoff.status == IN_GRACE:
        return f"a report of cutoff {seq}, which is not to be called before {cutoff.called_ns}"
    if unbegun:
        if cutoff.status != PENDING:
            return f"an attempt at cutoff {seq} found no connection, but it is not pending"
        cutoff.attempts += 1
    if op == CUTOFF_STARTED:
        if cutoff.status != PENDING:
            return f"an attempt at cutoff {seq} began, which is not pending"
        cutoff.attempts += 1
        _began(account, cutoff)
    elif op == CUTOFF_FAILED:
        cutoff.last_error = entry.message
    elif op == CUTOFF_RELEASED:
        if cutoff.status != PENDING:
            return f"cutoff {seq} was released, which is not pending"
        cutoff.released = True
    elif op == CUTOFF_DELIVERED:
        if cutoff.status in (DELIVERED, EFFECTIVE):
            return f"cutoff {seq} was delivered twice"
        cutoff.last_error = b""
        cutoff.delivered_ns = entry.at_ns
        if latest:
            cutoff.status = EFFECTIVE if account.exhausted and not account.rate else DELIVERED
        else:
            account.cutoffs.remove(cutoff)
    else:
        assert op == CUTOFF_RETRY, op
        may = (cutoff.status == DELIVERED and account.rate > 0) or (entry.b and cutoff.status in (DELIVERED, EFFECTIVE))
        if not (may and account.exhausted and latest):
            return f"cutoff {seq} was made owed again, which it cannot be"
        cutoff.status = PENDING
        cutoff.delivered_ns = 0
    return ""


def _restore(account: Account, entry: Entry) -> str:
    """Applies a report of delivery about a restore. Returns why that cannot have happened, or ""."""
    op, seq = entry.op, entry.a
    if not account.on_seq < seq <= account.off_seq:
        return f"a restore for cutoff {seq}, where {account.on_seq} of {account.off_seq} are made good"
    if op == RESTORE_DELIVERED:
        account.on_seq, account.restore_attempts, account.restore_error = seq, 0, b""
        for cutoff in account.cutoffs:
            if cutoff.seq == seq:
                cutoff.restored_ns = entry.at_ns
    elif op == RESTORE_FAILED:
        account.restore_error = entry.message
    elif account.exhausted:
        return "a restore began while the account was exhausted"
    else:
        account.restore_attempts += 1
    return ""
