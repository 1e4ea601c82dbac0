"""Owed cutoffs: what is still to be told to the cutoff URL, and to the restore URL after it.

A cutoff is made by each downward crossing of available and by each line raised from zero on an exhausted account. Where
the account's class gives a grace, the cutoff of a crossing is in grace first and owed from the end of the grace on;
until then nothing is called, a line that is raised makes no cutoff of its own, and whatever lifts available above zero
supersedes it as if it had been owed. The grace belongs to the crossing: a line raised behind its end is called for at
once. A cutoff is owed until delivery reports a 2xx, or until available rises above zero: then it is superseded,
recorded and not sent (again). A delivered one keeps the instant at which its 2xx came, until it is owed once more,
and becomes effective when the account's rate is zero; the instant of its restore's 2xx is kept likewise. What may have
reached the outside is remembered as `off_seq`, and as long as no restore was delivered for it, an active account owes a
restore; without a restore URL nothing is ever owed back. A restore is named by the cutoff that it makes good, and keeps
that name however many later cutoffs are superseded unsent in between. After a start, cutoffs that were pending before
count as attempted, because the record that an attempt began is written but not waited for.

`report` takes the reports of delivery (the beginning of an attempt comes before its outcome) and refuses
`UNKNOWN_CUTOFF` for a cutoff that the account no longer owes: the attempt is then not made. It changes no money and
settles nothing. Right before each attempt delivery asks `owed`, so only the newest state is ever sent.
"""

from typing import Final, NamedTuple

from billing.ledger import commands as ops
from billing.ledger.account import Account, Rejected
from billing.ledger.commands import Command
from billing.ledger.entry import DELIVERED, EFFECTIVE, IN_GRACE, PENDING, SUPERSEDED, event_id
from billing.ledger.extra import Cutoff, Extra

# Undelivered ones an account, as many as it may have rate lines; beyond that the oldest is folded into the newer ones.
CUTOFFS_MAX: Final = 10_000


class Owed(NamedTuple):
    """The one call that is owed for an account now."""

    kind: str  # "cutoff" or "restore"
    event_id: str
    seq: int
    exhausted_at_ns: int
    attempts: int
    released: bool
    class_name: bytes
    due_ns: int  # since when it is owed; of a restore its cutoff's exhaustion


def cross(account: Account, at_ns: int, due_ns: int) -> None:
    """Makes a cutoff of this instant, which is owed from `due_ns` on: now, or at the end of a grace."""
    extra = account.need_extra()
    account.exhaustion_seq += 1
    if extra.cutoffs and extra.cutoffs[-1].status != PENDING:
        extra.cutoffs.pop()
    cutoff = Cutoff(account.exhaustion_seq, at_ns)
    extra.cutoffs.append(cutoff)
    if due_ns > at_ns:
        cutoff.status, cutoff.due_ns = IN_GRACE, due_ns
        extra.next_expiry_ns = min(extra.next_expiry_ns, due_ns)
        return
    account.book.pending_cutoffs += 1
    if len(extra.cutoffs) > CUTOFFS_MAX:
        extra.cutoffs.pop(0)
        account.book.pending_cutoffs -= 1


def move_grace(account: Account, due_ns: int) -> None:
    """The grace that is running ends at another instant."""
    extra = account.need_extra()
    cutoff = extra.grace()
    assert cutoff is not None, "no grace is running"
    cutoff.due_ns = due_ns
    extra.find_next_expiry()


def end_grace(account: Account) -> Command:
    """The grace is over: its cutoff is owed. The command that says so."""
    extra = account.need_extra()
    cutoff = extra.grace()
    assert cutoff is not None, "no grace is running"
    cutoff.status = PENDING
    account.book.pending_cutoffs += 1
    extra.find_next_expiry()
    what = (cutoff.seq, cutoff.exhausted_at_ns, 0)
    return (ops.GRACE_ENDED, account.user_id, *what, b"", b"", b"", b"", b"")


def may_have_begun(extra: Extra, started_ns: int) -> bool:
    """Whether an attempt that nobody recorded may have been made before the last start, which was at `started_ns`: of
    what was pending then, or fell due before it, since the call of an exhaustion does not wait for its record.
    """
    return any(
        cutoff.status == PENDING and (cutoff.seq <= extra.presumed_seq or cutoff.due_ns <= started_ns)
        for cutoff in extra.cutoffs
    )


def lift(account: Account, presumed: bool, restores: bool) -> list[int]:
    """Available rose above zero: supersedes what is pending and returns its seqs; `off_seq` tells what may have begun.

    `presumed`: `may_have_begun` said so. `restores`: there is a restore URL.
    """
    extra = account.extra
    assert extra is not None, "an exhausted account has had a cutoff"
    assert extra.cutoffs, "an exhausted account has had a cutoff"
    grace = extra.grace()
    superseded = extra.pending() if grace is None else [grace]
    for cutoff in superseded:
        cutoff.status = SUPERSEDED
    if grace is not None:
        extra.find_next_expiry()
    else:
        account.book.pending_cutoffs -= len(superseded)
        if presumed:
            extra.begun(superseded[-1])
    del extra.cutoffs[:-1]
    if not restores:
        extra.on_seq = extra.off_seq
    extra.restore_attempts = 0
    extra.restore_error = b""
    return [cutoff.seq for cutoff in superseded]


def rest(account: Account) -> None:
    """The rate is zero: what was delivered has had its effect."""
    extra = account.extra
    if extra is not None and extra.cutoffs and extra.cutoffs[-1].status == DELIVERED:
        extra.cutoffs[-1].status = EFFECTIVE


def owed(user_id: bytes, extra: Extra | None, exhausted: bool) -> Owed | None:
    """The call that is owed now: the oldest pending cutoff, or on an active account the restore."""
    if extra is None or not extra.cutoffs:
        return None
    if exhausted:
        if extra.cutoffs[0].status != PENDING:
            return None
        c = extra.cutoffs[0]
        name = event_id(user_id, c.seq, c.exhausted_at_ns)
        return Owed("cutoff", name, c.seq, c.exhausted_at_ns, c.attempts, c.released, extra.class_name, c.due_ns)
    if extra.off_seq > extra.on_seq:
        name = event_id(user_id, extra.off_seq, extra.off_ns) + ":restore"
        attempts, name_of_class = extra.restore_attempts, extra.class_name
        return Owed("restore", name, extra.off_seq, extra.off_ns, attempts, True, name_of_class, extra.off_ns)
    return None


def owed_for(account: Account) -> Owed | None:
    """The same for a working copy."""
    return owed(account.user_id, account.extra, account.exhausted)


def report(account: Account, command: Command, at_ns: int) -> None:
    """Takes a report of delivery, or an operator's order, of this instant about the cutoff or restore of seq `a`."""
    op, _, seq, operator, _, _, _, error, *_ = command
    unbegun = op == ops.CUTOFF_FAILED and operator == 1
    extra = account.extra
    if extra is None:
        raise Rejected("UNKNOWN_CUTOFF")
    if op in (ops.RESTORE_STARTED, ops.RESTORE_FAILED, ops.RESTORE_DELIVERED):
        _report_restore(account, extra, op, seq, error, at_ns)
        return
    cutoff = next((cutoff for cutoff in extra.cutoffs if cutoff.seq == seq), None)
    ended = op in (ops.CUTOFF_DELIVERED, ops.CUTOFF_FAILED) and not unbegun
    if cutoff is None or cutoff.status == IN_GRACE or (ended and seq > extra.off_seq):  # no attempt began
        raise Rejected("UNKNOWN_CUTOFF")
    if unbegun:
        if cutoff.status != PENDING:
            raise Rejected("UNKNOWN_CUTOFF")
        cutoff.attempts += 1
    if op == ops.CUTOFF_DELIVERED:
        _delivered(account, extra, cutoff, at_ns)
    elif op == ops.CUTOFF_FAILED:
        cutoff.last_error = error
    elif op == ops.CUTOFF_RETRY:
        _again(account, cutoff, bool(operator))
    elif cutoff.status != PENDING:
        raise Rejected("UNKNOWN_CUTOFF")
    elif op == ops.CUTOFF_STARTED:
        cutoff.attempts += 1
        extra.begun(cutoff)
    else:
        assert op == ops.CUTOFF_RELEASED, f"no report {op}"
        cutoff.released = True


def _delivered(account: Account, extra: Extra, cutoff: Cutoff, at_ns: int) -> None:
    if cutoff.status in (DELIVERED, EFFECTIVE):
        raise Rejected("UNKNOWN_CUTOFF")
    if cutoff.status == PENDING:
        account.book.pending_cutoffs -= 1
    cutoff.last_error = b""
    cutoff.delivered_ns = at_ns
    if cutoff is not extra.cutoffs[-1]:
        extra.cutoffs.remove(cutoff)
    else:
        cutoff.status = EFFECTIVE if account.exhausted and account.rate == 0 else DELIVERED


def _again(account: Account, cutoff: Cutoff, operator: bool) -> None:
    """A delivered cutoff is sent once more: by verification while machines still run (it would be effective if they
    did not), by an operator in any case.
    """
    done = (DELIVERED, EFFECTIVE) if operator else (DELIVERED,)
    if not account.exhausted or cutoff.status not in done:
        raise Rejected("UNKNOWN_CUTOFF")
    cutoff.status = PENDING
    cutoff.delivered_ns = 0
    account.book.pending_cutoffs += 1


def _report_restore(account: Account, extra: Extra, op: int, seq: int, error: bytes, at_ns: int) -> None:
    if seq > extra.off_seq or seq <= extra.on_seq:
        raise Rejected("UNKNOWN_CUTOFF")
    if op == ops.RESTORE_DELIVERED:
        for cutoff in extra.cutoffs:
            if cutoff.seq == seq:  # a later one, which was never sent, may have taken its place
                cutoff.restored_ns = at_ns
        extra.on_seq = seq
        extra.restore_attempts = 0
        extra.restore_error = b""
    elif op == ops.RESTORE_FAILED:
        extra.restore_error = error
    elif account.exhausted:
        raise Rejected("UNKNOWN_CUTOFF")
    else:
        extra.restore_attempts += 1
