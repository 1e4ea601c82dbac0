"""Posting: records a change of an account, and its consequences.

Every change on the plain path ends here, whether a command or time caused it. `Posting` takes a working copy that was
settled and changed. It finds out whether available crossed zero downwards (a cutoff is owed) or upwards (cutoffs are
superseded, a restore may be owed), and which thresholds fired. It writes the row, appends one packed entry per change
to `records`, and the calls and warnings that follow to `notices`. It also applies the events that time causes, step by
step, because their entries are made in the same way.

It never decides whether a command is allowed, and it keeps no account between two calls.

`flags` are the rules in force for accounts of the default class, `classes` are the rules of the other classes. In
replay the recorded entry decides instead: `presumed` is then not None, `flags` are the rules for the entry's account,
and `grace_end_ns` is the end of the grace that the entry began or moved.
"""

from collections.abc import Callable
from typing import Final

from billing.ledger import closing, cutoffs, rates, schedule, thresholds
from billing.ledger import commands as ops
from billing.ledger.account import Account, Rejected
from billing.ledger.book import SLOT_BITS, Book, Totals
from billing.ledger.classes import NO_CLASSES, Classes, after_grace_ns
from billing.ledger.commands import Command
from billing.ledger.entry import (
    ACCRUING,
    CROSSED,
    EXHAUSTED,
    FIELDS,
    PRESUMED,
    REFUSED,
    RESTORED,
    RULE_ACCRUE,
    RULE_RESTORE,
    EntryTuple,
    pack,
    pack_cutoff,
    pack_forfeited,
    pack_grace,
    pack_number,
    refused,
)
from billing.ledger.errors import KINDS, Refused
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.thresholds import Threshold

# Kind, depends_ns, bucket_id, user_id, the account's newest seq (of a superseded cutoff its own, of a threshold its
# entry_id). A restore may be for an older cutoff than the newest one, if that was never sent.
Effect = tuple[str, int, int, bytes, int]
Arm = Callable[[int, int], int]

SUPERSEDED: Final = "superseded"  # the notice of a cutoff that is no longer owed, because available rose above zero

_USER_ID, _REQUEST_ID, _AT_NS = map(FIELDS.index, ("user_id", "request_id", "at_ns"))


class Posting:
    """Writes entries. `flags` are the rules in force. `presumed` is None except in replay, where it is the entry's flag
    PRESUMED.
    """

    __slots__ = (
        *("arm", "classes", "flags", "grace_end_ns", "ids_max", "notices", "presumed", "records", "refused"),
        *("seq_floor", "started_ns"),
    )

    def __init__(self, flags: int, ids_max: int, arm: Arm, classes: Classes = NO_CLASSES, seq_floor: int = 0) -> None:
        self.flags = flags
        self.seq_floor = seq_floor  # the least seq of the next cutoff; in replay: the seq of the entry at hand
        self.classes = classes
        self.grace_end_ns = -1  # in replay; -1: the entry neither began nor moved a grace
        self.ids_max = ids_max
        self.presumed: bool | None = None
        self.refused = False  # in replay: the entry is a refusal
        self.started_ns = -1  # the last start's instant, not state; -1: none before
        self.records: list[tuple[int, bytes]] = []
        self.notices: list[Effect] = []
        self.arm = arm

    # -- entries ---------------------------------------------------------------------------------------------------

    def close(self, account: Account, command: Command, accrued: int) -> EntryTuple:
        """Closes an account: pays out the balance, forfeits the credits with an end, and leaves a tombstone."""
        amount = -account.balance
        forfeited = sum(credit.left for credit in account.credits)
        note = pack_forfeited(forfeited) if forfeited else b""
        account.balance = account.credit_limit_nanos = 0
        account.credits = ()
        account.exhausted = True  # nothing is available, and no cutoff comes of it
        account.entry_id += 1
        flags = self.rules_of(account)
        entry = self._entry(account, command, account.settled_ns, account.entry_id, amount, accrued, flags, note)
        self._record(account.book, entry)
        self._count(account.book.totals, ops.CLOSE, amount, accrued)
        closing.bury(account)
        return entry

    def report(self, account: Account, at_ns: int, command: Command) -> EntryTuple:
        """Applies and records a report of delivery. The report changes the state of a cutoff, which is in the `Extra`;
        it does not settle the account or change its row, and it makes no row of the history. Raises Refused
        `UNKNOWN_CUTOFF`.
        """
        try:
            cutoffs.report(account, command, at_ns)
        except Rejected as no:
            raise Refused(no.name, "no such cutoff is owed") from None
        if command[0] in (ops.CUTOFF_RETRY, ops.CUTOFF_RELEASED):
            self.notices.append(("cutoff", at_ns, account.book.bucket_id, account.user_id, command[2]))
        entry = self._entry(account, command, at_ns, 0, 0, 0, self.rules_of(account))
        self._record(account.book, entry)
        return entry

    def refuse(self, account: Account, command: Command, no: Rejected) -> Refused:
        """Returns the error of a refused command. Records the refusal if the command is a debit or has a request_id."""
        code = KINDS[no.name].code
        note = pack_number(no.number)
        flags = self.rules_of(account) | REFUSED
        entry = self._entry(account, command, account.settled_ns, 0, 0, 0, flags, note, code)
        if command[0] == ops.DEBIT or command[6]:
            self._record(account.book, entry)
        return refused(entry, account.book.bucket_id)

    # -- rules ---------------------------------------------------------------------------------------------------------

    def rules_of(self, account: Account) -> int:
        """The flags of the rules that are in force for an account (RULE_ACCRUE, RULE_RESTORE)."""
        extra = account.extra
        if extra is None or not extra.class_name or self.presumed is not None:
            return self.flags
        of_class = self.classes.get(extra.class_name)
        if of_class is None:
            return self.flags
        return (RULE_ACCRUE if of_class.accrue else 0) | (RULE_RESTORE if of_class.restore else 0)

    def restores(self, account: Account) -> bool:
        """Whether a restore that is owed stands against closing the account: there is a URL for it, or replay makes a
        refusal again.
        """
        return self.refused or self.rules_of(account) & RULE_RESTORE != 0

    def due_after_ns(self, account: Account, exhausted_at_ns: int) -> int:
        """The instant from which the cutoff of an exhaustion at `exhausted_at_ns` is owed: the same, or the end of the
        grace.
        """
        extra = account.extra
        if self.presumed is not None:
            return max(exhausted_at_ns, self.grace_end_ns)
        if extra is None or not extra.class_name or (of_class := self.classes.get(extra.class_name)) is None:
            return exhausted_at_ns
        return after_grace_ns(exhausted_at_ns, of_class.grace_ns)

    # -- what follows from a change ------------------------------------------------------------------------------------

    def conclude(
        self,
        account: Account,
        command: Command,
        before: int,
        accrued: int,
        armed: list[Threshold],
        determined_ns: int,
        flags: int = 0,
    ) -> EntryTuple:
        """Writes a changed account and its entry, with a cutoff or a restore if available crossed zero, and then an
        entry for each threshold that fired. Returns the command's entry.

        `before`: the balance before the command, after `accrued`. `armed`: the thresholds that the account was above
        before the change. `determined_ns`: the instant of the command from which the notices of this change follow.
        """
        book, at_ns = account.book, account.settled_ns
        flags |= self.rules_of(account)
        note = b""
        exhausted = account.available <= 0
        if exhausted and (account.raised or not account.exhausted):
            flags, note = self._cross(account, flags, determined_ns)
        elif account.exhausted and not exhausted:
            flags |= RESTORED
            account.accruing = False
            flags, note = self._lift(account, flags, determined_ns)
        elif exhausted and command[0] == ops.SET_CLASS:
            note = self._move_grace(account)
        account.exhausted = exhausted
        account.raised = False
        if exhausted and account.rate == 0:
            cutoffs.rest(account)
        amount = account.balance - before
        account.entry_id += 1
        account.store()
        entry = self._entry(account, command, at_ns, account.entry_id, amount, accrued, flags, note)
        self._record(book, entry)
        self._count(book.totals, command[0], amount, accrued)
        if command[0] == ops.THRESHOLD:
            self._notice("threshold", determined_ns, account, account.entry_id)
        elif command[0] == ops.GRACE_ENDED:
            self._notice("cutoff", determined_ns, account, command[2])
        elif command[0] == ops.SET_CLASS and (call := cutoffs.owed_for(account)) is not None:  # it may go elsewhere now
            self._notice(call.kind, determined_ns, account, account.exhaustion_seq)
        if armed:
            self._fire(account, armed, command, determined_ns)
        return entry

    def _cross(self, account: Account, flags: int, determined_ns: int) -> tuple[int, bytes]:
        """Makes the cutoff of an account whose available fell to zero, or of an exhausted account on which a line rose
        from zero. The cutoff is owed at once, or from the end of a grace; while a grace runs, a line that rises makes
        no further cutoff. Returns the entry's flags and note.
        """
        at_ns = due_ns = account.settled_ns
        if not account.exhausted:
            account.accruing = flags & RULE_ACCRUE != 0
            due_ns = self.due_after_ns(account, at_ns)
        elif account.need_extra().grace() is not None:
            return flags, b""
        cutoffs.cross(account, at_ns, due_ns, self.seq_floor)
        if due_ns > at_ns:
            return flags | CROSSED, pack_grace(due_ns)
        self._notice("cutoff", determined_ns, account, account.exhaustion_seq)
        return flags | CROSSED, b""

    def _move_grace(self, account: Account) -> bytes:
        """Moves the end of a running grace to that of the account's new class, but not before now. Returns the entry's
        note.
        """
        extra = account.extra
        cutoff = None if extra is None else extra.grace()
        if cutoff is None:
            return b""
        due_ns = max(account.settled_ns, self.due_after_ns(account, cutoff.exhausted_at_ns))
        cutoffs.move_grace(account, due_ns)
        return pack_grace(due_ns)

    def _lift(self, account: Account, flags: int, determined_ns: int) -> tuple[int, bytes]:
        """Supersedes the cutoffs of an account whose available rose above zero; a restore may be owed then. Returns the
        entry's flags and note.
        """
        extra = account.need_extra()
        presumed = self.presumed if self.presumed is not None else cutoffs.may_have_begun(extra, self.started_ns)
        for seq in cutoffs.lift(account, presumed, flags & RULE_RESTORE != 0):
            self._notice(SUPERSEDED, determined_ns, account, seq)
        if extra.off_seq > extra.on_seq:
            self._notice("restore", determined_ns, account, account.exhaustion_seq)
        latest = extra.cutoffs[-1]
        note = pack_cutoff(latest.seq, latest.exhausted_at_ns, latest.status, latest.attempts, latest.last_error)
        return (flags | PRESUMED if presumed else flags), note

    def _fire(self, account: Account, armed: list[Threshold], command: Command, determined_ns: int) -> None:
        """Writes an entry for each threshold that a change crossed, except the one whose entry `command` has made."""
        for kind, value in thresholds.fallen(account, armed):
            if command[0] != ops.THRESHOLD or command[2:4] != (kind, value):
                fired: Command = (ops.THRESHOLD, account.user_id, kind, value, 0, b"", b"", b"", b"", b"")
                self.conclude(account, fired, account.balance, 0, [], determined_ns)

    def _notice(self, kind: str, determined_ns: int, account: Account, number: int) -> None:
        self.notices.append((kind, determined_ns, account.book.bucket_id, account.user_id, number))

    def _entry(
        self,
        account: Account,
        command: Command,
        at_ns: int,
        entry_id: int,
        amount: int,
        accrued: int,
        flags: int,
        note: bytes = b"",
        refusal: int = 0,
    ) -> EntryTuple:
        """The entry of a command, with the numbers of the account as they are after it."""
        op, user_id, a, b, c, key, request_id, message, options, actor = command
        runs_out_ns = NEVER_NS if account.exhausted else account.runs_out_ns()
        if account.exhausted:
            flags |= EXHAUSTED | ACCRUING if account.accruing else EXHAUSTED
        return (
            op, flags, refusal, a, b, c, at_ns, entry_id,
            *divmod(amount, NANO), *divmod(accrued, NANO), *divmod(account.balance, NANO),
            account.rate, rates.line(account, key)[0] if op in ops.OF_LINES and not refusal else 0,
            account.credit_limit_nanos, account.holds_nanos,
            runs_out_ns if runs_out_ns <= INT64_MAX else -1, account.exhaustion_seq, *divmod(account.overrun, NANO),
            user_id, key, request_id, message, options, actor, note,
        )  # fmt: skip

    def _record(self, book: Book, entry: EntryTuple) -> None:
        packed = pack(entry)
        self.records.append((book.bucket_id, packed))
        request_id = entry[_REQUEST_ID]
        if request_id:
            book.ids.put(entry[_USER_ID], request_id, packed, entry[_AT_NS], self.ids_max)

    @staticmethod
    def _count(totals: Totals, op: int, amount: int, accrued: int) -> None:
        totals.accrued += accrued
        if op == ops.TOP_UP:
            totals.top_ups += amount
        elif op == ops.ADJUST:
            totals.adjustments += amount
        elif op == ops.CLOSE:
            totals.paid_out -= amount
        else:
            totals.debits -= amount

    # -- time ----------------------------------------------------------------------------------------------------------

    def pass_time(self, account: Account, at_ns: int) -> None:
        """Applies the events that time has made due for the account up to `at_ns`, each at its exact instant."""
        if schedule.anything(account, at_ns):
            self.catch_up(account, at_ns)

    def catch_up(self, account: Account, at_ns: int, events_max: int | None = None) -> None:
        """Does the same as `pass_time`, but at most `events_max` events, and files the account for its next coming
        instant.
        """
        due_ns = schedule.coming_ns(account)
        events = 0
        while due_ns <= at_ns and events != events_max:
            self.pass_one(account, due_ns)
            due_ns = schedule.coming_ns(account)
            events += 1
        self._file(account, due_ns)

    def pass_one(self, account: Account, due_ns: int) -> None:
        """Applies and records the event at the account's coming instant `due_ns`. All holds that expire at that instant
        are one event with several entries.
        """
        determined_ns = account.settled_ns
        armed = thresholds.above(account)
        balance = account.balance
        (*earlier, last), accrued = schedule.step(account, due_ns, self.rules_of(account) & RULE_ACCRUE != 0)
        for command in earlier:
            self.conclude(account, command, account.balance, accrued, [], determined_ns)
            balance, accrued = account.balance, 0
        self.conclude(account, last, balance - accrued, accrued, armed, determined_ns)

    def rearm(self, account: Account) -> None:
        """Files the account for its coming instant, if that lies before its live filing."""
        self._file(account, schedule.coming_ns(account))

    def _file(self, account: Account, due_ns: int) -> None:
        armed_ns = account.book.armed_ns
        if due_ns < armed_ns[account.slot] and due_ns <= INT64_MAX:
            armed_ns[account.slot] = self.arm(account.book.bucket_id << SLOT_BITS | account.slot, due_ns)
