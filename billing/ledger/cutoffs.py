"""Cutoffs and restores: the calls to the cutoff URL that are owed, and those to the restore URL after them.

**Owed.** A cutoff is made by each downward crossing of available and by each line raised from zero on an exhausted
account. A cutoff is owed until delivery reports a 2xx, or until available rises above zero: then it is superseded,
which is recorded, and it is not sent (again). A delivered cutoff keeps the instant of its 2xx until it is owed once
more, and becomes effective when the account's rate is zero; the instant of its restore's 2xx is kept likewise.

**Seq.** The cutoffs of an account are numbered in rising order, by one each. Where the data were put back to an earlier
state, numbers that were given since are not known any more, so the next one is at least `seq_floor`, the Unix second
when that was done (`shards.restored`): an account has far fewer cutoffs than one a second. Replay takes the number
from the entry.

**Grace.** If the account's class gives a grace, the cutoff of a crossing is in grace first, and owed from the end of
the grace on. Until then no call is made and a line that is raised makes no cutoff of its own; if available rises above
zero, the cutoff is superseded as if it had been owed. The grace belongs to the crossing: a cutoff for a line that is
raised after the end of the grace is owed at once.

**Restores.** `off_seq` is the newest cutoff whose call may have reached the receiver. As long as no restore for it was
delivered, an active account owes a restore; without a restore URL an account never owes one. The restore has the
name of the cutoff that it revokes, and keeps that name even if later cutoffs are superseded unsent in between. After a
start, cutoffs that were pending before count as attempted, because an attempt does not wait for the record that it
began.

`report` applies the reports of delivery (the beginning of an attempt is reported before its outcome). It refuses with
`UNKNOWN_CUTOFF` a report about a cutoff that the account no longer owes: delivery then does not make the attempt. A
report changes no money and settles nothing. Delivery asks `owed` right before each attempt, so it only ever sends the
newest state.
"""

from typing import Final, NamedTuple

from billing.ledger import commands as ops
from billing.ledger.account import Account, Rejected
from billing.ledger.commands import Command
from billing.ledger.entry import DELIVERED, EFFECTIVE, IN_GRACE, PENDING, SUPERSEDED, event_id
from billing.ledger.extra import Cutoff, Extra

# Undelivered cutoffs per account, as many as it may have rate lines. At one more the oldest is dropped: the newer ones
# stand for it.
CUTOFFS_MAX: Final = 10_000
SEQ_FLOOR_MAX: Final = 3 << 30  # Unix seconds, of the year 2072; a seq has 32 bits


class Owed(NamedTuple):
    """The one call that is owed for an account now."""

    kind: str  # "cutoff" or "restore"
    event_id: str
    seq: int
    exhausted_at_ns: int
    attempts: int
    released: bool
    class_name: bytes
    due_ns: int  # the instant since which the call is owed; of a restore the exhaustion instant of its cutoff


def cross(account: Account, at_ns: int, due_ns: int, seq_floor: int) -> None:
    """Makes a cutoff with the exhaustion instant `at_ns`, owed from `due_ns` on: the same, or the end of a grace."""
    extra = account.need_extra()
    account.exhaustion_seq = max(account.exhaustion_seq + 1, seq_floor)
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
    """Moves the end of the running grace to `due_ns`."""
    extra = account.need_extra()
    cutoff = extra.grace()
    assert cutoff is not None, "no grace is running"
    cutoff.due_ns = due_ns
    extra.find_next_expiry()


def end_grace(account: Account) -> Command:
    """Ends the running grace: its cutoff is owed from now on. Returns the GRACE_ENDED command."""
    extra = account.need_extra()
    cutoff = extra.grace()
    assert cutoff is not None, "no grace is running"
    cutoff.status = PENDING
    account.book.pending_cutoffs += 1
    extra.find_next_expiry()
    what = (cutoff.seq, cutoff.exhausted_at_ns, 0)
    return (ops.GRACE_ENDED, account.user_id, *what, b"", b"", b"", b"", b"")


def may_have_begun(extra: Extra, started_ns: int) -> bool:
    """Whether an attempt without a record may have been made before the last start, at `started_ns`, for a cutoff that
    is still pending: one that was pending at the start, or fell due before it, because the call does not wait for the
    record of the exhaustion.
    """
    return any(
        cutoff.status == PENDING and (cutoff.seq <= extra.presumed_seq or cutoff.due_ns <= started_ns)
        for cutoff in extra.cutoffs
    )


def lift(account: Account, presumed: bool, restores: bool) -> list[int]:
    """Supersedes the pending cutoffs, or the one in grace, of an account whose available rose above zero; returns their
    seqs. Afterwards a restore is owed if `off_seq` > `on_seq`.

    `presumed`: the result of `may_have_begun`; the latest pending cutoff then counts as attempted. `restores`: there is
    a restore URL.
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
    """The rate is zero: a delivered latest cutoff becomes effective."""
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
    """`owed` for a working copy."""
    return owed(account.user_id, account.extra, account.exhausted)


def report(account: Account, command: Command, at_ns: int) -> None:
    """Applies a report of delivery, or an operator's order, about the cutoff or restore with seq `a`. Raises Rejected
    `UNKNOWN_CUTOFF`.
    """
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
    """Makes a delivered cutoff owed once more. Verification may do so only while the rate is above zero, when the
    cutoff is not effective; an operator may always.
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
