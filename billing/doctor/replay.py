"""Replays entries with the doctor's own code, and compares each entry with the result.

For each entry: everything that fell due before it must have had its own entries. Then the command is carried out on the
doctor's account, and every field of the entry must equal the result: amount, accrued, balance, rate, exhaustion, state,
holds, limit, seq, overrun, and the reason of a refusal. Three things cannot be worked out and are taken from the entry:
the rules in force (flags), the end of a grace that the entry began or moved (note), and whether a cutoff's first
attempt counts as begun (flag).

A difference is reported once: the account then continues from the state in the entry, so that one wrong entry makes one
finding.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from typing import Final

from billing.doctor import commands, cutoffs
from billing.doctor.entry import (
    ACCRUING,
    ADJUST,
    BY_TIME,
    CHANGE_RATE,
    CLOSE,
    CREDIT_EXPIRED,
    CROSSED,
    DEBIT,
    EXHAUST,
    EXHAUSTED,
    GRACE_ENDED,
    HOLD_EXPIRED,
    LEASE_EXPIRED,
    OPENED,
    PRESUMED,
    REFUSED,
    REPORTS,
    RESTORED,
    RULE_ACCRUE,
    RULE_RESTORE,
    SET_CLASS,
    SET_RATE,
    THRESHOLD,
    TOP_UP,
    UNIT,
    UNSAID,
    WORD_MAX,
    Entry,
    Garbled,
    coins,
    grace_of,
    misshapen,
    read_entry,
)
from billing.doctor.report import Report
from billing.doctor.state import PENDING, WEEK_NS, Account, Bucket, Coming, Grave

# The fields of an entry that are compared, in the order of `_state`.
SAYS: Final = (
    "entry_id", "amount", "accrued", "balance", "rate", "line rate", "credit limit", "holds", "exhausts_at_ns",
    "exhaustion_seq", "overrun", "refusal", "flags", "note",
)  # fmt: skip
SUMS: Final = frozenset({"amount", "accrued", "balance", "overrun"})
_CUTOFF = struct.Struct("<qqIB")
_FORFEITED = struct.Struct("<qq")
_TOLD_FLAGS: Final = PRESUMED | RULE_ACCRUE | RULE_RESTORE  # taken from the entry, since they cannot be worked out
_NAMES: Final = {
    EXHAUST: "exhaustion",
    HOLD_EXPIRED: "expiry of a hold",
    THRESHOLD: "crossed threshold",
    CREDIT_EXPIRED: "end of a credit",
    LEASE_EXPIRED: "end of a lease",
    GRACE_ENDED: "end of a grace",
}

Says = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, bytes]


class Replay:
    """Replays the entries of one shard. `file` and `position`: the place of the current entry, for findings."""

    def __init__(self, report: Report, ids_max: int) -> None:
        self.report = report
        self.ids_max = ids_max
        self.file = ""
        self.position = -1
        self.last_ns = 0  # the latest instant of any entry
        self.entries = 0

    def _fault(self, text: str, user_id: bytes, check: str = "accounts") -> None:
        self.report.fault(check, text, file=self.file, position=self.position, account=user_id)

    def entry(self, bucket: Bucket, body: bytes) -> Entry | None:
        """Replays and compares one entry of a bucket, and returns it; None, with a fault, if `body` is malformed."""
        try:
            entry = read_entry(body)
        except Garbled as reason:
            self._fault(str(reason), b"")
            return None
        self.entries += 1
        self.last_ns = max(self.last_ns, entry.at_ns)
        if entry.request_id:
            self._keep_id(bucket, entry, body)
        if wrong := misshapen(entry):
            self._fault(f"no command of operation {entry.op} is like that: {wrong}", entry.user_id)
        account = bucket.accounts.get(entry.user_id)
        opened = account is None
        if account is None:
            account = self._open(bucket, entry)
            if account is None:
                return entry
        if account.firing and entry.op not in BY_TIME:
            self._missing(account)
        if entry.at_ns < account.settled_ns:
            self._fault(f"an entry at {entry.at_ns}, after one at {account.settled_ns}", entry.user_id)
            account.settled_ns = entry.at_ns
        if entry.op in BY_TIME:
            self._by_time(bucket, account, entry)
        elif entry.op in REPORTS:
            self._pass_missing(bucket, account, entry)
            self._report(account, entry)
        else:
            self._pass_missing(bucket, account, entry)
            self._command(bucket, account, entry, OPENED if opened else 0)
        return entry

    # -- accounts come and go ---------------------------------------------------------------------------------------

    def _open(self, bucket: Bucket, entry: Entry) -> Account | None:
        if entry.op != TOP_UP or entry.flags & REFUSED:
            self._fault(f"an entry of operation {entry.op} for an account that there is not", entry.user_id)
            return None
        account = Account(entry.user_id)
        account.settled_ns = entry.at_ns
        grave = bucket.graves.pop(entry.user_id, None)
        if grave is not None:
            account.settled_ns = grave.settled_ns
            account.entry_id, account.seq = grave.entry_id, grave.seq
            account.quiet = grave.quiet_at(max(grave.settled_ns, entry.at_ns)) or None
            if grave.off is not None:  # the top-up restores it
                latest, account.off_seq, account.off_ns, account.on_seq = grave.off
                account.cutoffs, account.exhausted = [latest], True
        bucket.accounts[entry.user_id] = account
        return account

    def _close(self, bucket: Bucket, account: Account) -> None:
        del bucket.accounts[account.user_id]
        grave = Grave(account.settled_ns, account.entry_id, account.seq, {})
        grave.quiet = account.quiet or {}
        grave.quiet = grave.quiet_at(account.settled_ns)
        if account.off_seq > account.on_seq:
            grave.off = account.cutoffs[-1], account.off_seq, account.off_ns, account.on_seq
        bucket.graves[account.user_id] = grave

    def _keep_id(self, bucket: Bucket, entry: Entry, body: bytes) -> None:
        """Checks that a request_id has one entry while it is kept, and keeps the id. Drops the oldest ids as the ledger
        does: after a week, or above `ids_max`.
        """
        self.report.count("requests", "request ids")
        request_ids, order = bucket.request_ids, bucket.order
        key = bytes((len(entry.user_id),)) + entry.user_id + entry.request_id
        first = request_ids.get(key)
        if first is not None and entry.at_ns - first[0] < WEEK_NS:
            shown = entry.request_id.decode(errors="backslashreplace")
            text = f"the request_id {shown!r} stands for two entries, at {first[0]} and at {entry.at_ns}"
            self._fault(text, entry.user_id, "requests")
        while order and entry.at_ns - request_ids[order[0]][0] >= WEEK_NS:
            del request_ids[order.popleft()]
        if key in request_ids:
            order.remove(key)
        request_ids[key] = entry.at_ns, digest(body)
        order.append(key)
        while len(order) > self.ids_max:
            del request_ids[order.popleft()]

    # -- what time causes -------------------------------------------------------------------------------------------

    def _pass_missing(self, bucket: Bucket, account: Account, entry: Entry) -> None:
        """Checks that everything that fell due before the entry has had an entry of its own. Reports what has not, and
        carries it out.
        """
        while (due := account.coming()) != (entry.at_ns, entry.op) and due[0] <= entry.at_ns:
            due_ns, op = due
            text = f"no entry of the {_NAMES[op]} that was due at {due_ns}, before the entry at {entry.at_ns}"
            self._fault(text, account.user_id)
            before = account.balance
            entries, accrued = self._step(account, due_ns, op, entry.flags & RULE_ACCRUE != 0)
            self._follow(account, entry, False, -1)
            self._count(bucket, account, op, account.balance - before + accrued, accrued)
            account.entry_id += len(entries)

    def _step(self, account: Account, due_ns: int, op: int, accrue: bool) -> tuple[deque[Coming], int]:
        """Settles an account to `due_ns`, and carries out what falls due then. Returns the entries that this causes, in
        order, and the accrual.

        At a tie, expiries of holds come before the exhaustion, which they can prevent; the ends of a grace and of
        leases come after it, since they cannot prevent it.
        """
        entries: deque[Coming] = deque()
        above = account.above()
        if op == HOLD_EXPIRED:
            entries += ((op, nanos, 0, name) for name, nanos in commands.expire_holds(account, due_ns))
        accrued = account.pass_time(due_ns, accrue)
        if op == EXHAUST:
            entries.append((op, 0, 0, b""))
        elif op == CREDIT_EXPIRED:
            ended, *account.credits = account.credits
            account.balance -= ended.rest
            entries.append((op, ended.nanos, ended.entry_id, ended.kind))
        elif op == GRACE_ENDED:
            called = account.grace()
            assert called is not None, "a grace ends that is not running"
            called.status = PENDING
            entries.append((op, called.seq, called.at_ns, b""))
        elif op == LEASE_EXPIRED:
            name, rate = commands.end_lease(account, due_ns)
            entries.append((op, rate, 0, name))
        entries += account.crossed(above)
        return entries, accrued

    def _by_time(self, bucket: Bucket, account: Account, entry: Entry) -> None:
        if account.firing:
            if entry.at_ns == account.settled_ns and (entry.op, entry.a, entry.b, entry.key) == account.firing[0]:
                account.firing.popleft()
                self._conclude(bucket, account, entry, account.balance, 0)
                return
            self._missing(account)
        self._pass_missing(bucket, account, entry)
        due_ns, op = account.coming()
        if (due_ns, op) != (entry.at_ns, entry.op):
            self._fault(f"an entry of the {_NAMES[entry.op]} at {entry.at_ns}, where none was due", account.user_id)
            self._adopt(bucket, account, entry)
            return
        before = account.balance
        entries, accrued = self._step(account, due_ns, op, entry.flags & RULE_ACCRUE != 0)
        first = entries.popleft()
        if (entry.op, entry.a, entry.b, entry.key) != first or entry.c:
            detail = (entry.a, entry.b, entry.c, entry.key)
            self._fault(f"an entry of the {_NAMES[op]} with {detail}, worked out {shown(first)}", account.user_id)
        account.firing = entries or None
        self._conclude(bucket, account, entry, before - accrued, accrued)

    def _missing(self, account: Account) -> None:
        assert account.firing is not None
        for entry in account.firing:
            self._fault(f"no entry of the {shown(entry)}", account.user_id)
            account.entry_id += 1
        account.firing = None

    # -- commands ---------------------------------------------------------------------------------------------------

    def _report(self, account: Account, entry: Entry) -> None:
        """Replays a report of delivery, which changes no money and does not settle the account."""
        reason = cutoffs.report(account, entry)
        if reason:
            self._fault(reason, account.user_id, "cutoffs")
        self.report.count("cutoffs", "reports of delivery")
        self._compare(account, entry, self._state(account, entry, 0, 0, 0, 0, b""))

    def _command(self, bucket: Bucket, account: Account, entry: Entry, opened: int) -> None:
        settled_ns, balance, overrun, credits = account.settled_ns, account.balance, account.overrun, account.credits
        accrued = account.pass_time(entry.at_ns, False)
        before = account.balance
        above = account.above()
        old_rate = account.line(entry.key)[0]
        no = commands.carry_out(account, entry)
        if no is not None:
            code, number = no
            says = self._state(account, entry, 0, 0, code, REFUSED, number.to_bytes(8, "little"))
            self._compare(account, entry, says)
            account.settled_ns, account.balance, account.overrun = settled_ns, balance, overrun
            account.credits = credits
            if not entry.flags & REFUSED:
                self._adopt(bucket, account, entry)
            elif entry.op != DEBIT and not entry.request_id:
                self._fault("a refusal was kept that nobody can ask for again", account.user_id)
        elif entry.op == CLOSE:
            forfeited = sum(credit.rest for credit in account.credits)
            note = _FORFEITED.pack(*divmod(forfeited, UNIT)) if forfeited else b""
            account.exhausted, account.credits = True, []
            account.entry_id += 1
            self._compare(account, entry, self._state(account, entry, -before, accrued, 0, 0, note))
            self._count(bucket, account, CLOSE, entry.amount, entry.accrued)
            self._close(bucket, account)
        else:
            account.firing = deque(account.crossed(above)) or None
            raised = old_rate == 0 < account.line(entry.key)[0]
            self._conclude(bucket, account, entry, before, accrued, opened, raised)

    # -- what follows from a change ---------------------------------------------------------------------------------

    def _follow(self, account: Account, entry: Entry, raised: bool, grace_end_ns: int) -> tuple[int, bytes]:
        """Applies the consequences if the account crossed zero in either direction: (flags, note) for the entry.
        `raised`: the command raised a line from zero. `grace_end_ns`: the end of a grace that began, from the entry; -1
        if none.
        """
        rules, flags, note = entry.flags, 0, b""
        exhausted = account.available <= 0
        if exhausted and (raised or not account.exhausted) and account.grace() is None:
            called_ns = account.settled_ns
            if not account.exhausted:
                account.accruing = rules & RULE_ACCRUE != 0
                called_ns = max(called_ns, grace_end_ns)
            cutoffs.cross(account, account.settled_ns, called_ns, entry.seq)
            self.report.count("cutoffs", "cutoffs made")
            flags = CROSSED
            note = called_ns.to_bytes(8, "little") if called_ns > account.settled_ns else b""
        elif account.exhausted and not exhausted:
            account.accruing = False
            latest = cutoffs.lift(account, rules & PRESUMED != 0, rules & RULE_RESTORE != 0)
            flags = RESTORED
            if latest is not None:
                note = _CUTOFF.pack(latest.seq, latest.at_ns, latest.attempts, latest.status) + latest.last_error
        account.exhausted = exhausted
        if exhausted and not account.rate:
            cutoffs.rest(account)
        return flags, note

    def _conclude(
        self,
        bucket: Bucket,
        account: Account,
        entry: Entry,
        before: int,
        accrued: int,
        opened: int = 0,
        raised: bool = False,
    ) -> None:
        """Compares an entry with the account after the change. `before`: the balance before the command."""
        if entry.flags & PRESUMED and not (account.exhausted and any(c.status == PENDING for c in account.cutoffs)):
            self._fault("no cutoff was pending that could count as attempted", account.user_id, "cutoffs")
        grace_end_ns = grace_of(entry)
        if entry.op == SET_CLASS and (waiting := account.grace()) is not None:
            waiting.called_ns = max(account.settled_ns, grace_end_ns)
            flags, note = 0, waiting.called_ns.to_bytes(8, "little")
        else:
            flags, note = self._follow(account, entry, raised, grace_end_ns)
        account.entry_id += 1
        says = self._state(account, entry, account.balance - before, accrued, 0, flags | opened, note)
        self._compare(account, entry, says)
        self._count(bucket, account, entry.op, entry.amount, entry.accrued)

    def _state(
        self, account: Account, entry: Entry, amount: int, accrued: int, refusal: int, flags: int, note: bytes
    ) -> Says:
        """The fields that an entry about this account must have now; entry_id is 0 for a refusal or a report."""
        no_row = flags & REFUSED or entry.op in REPORTS
        exhausts_at_ns = account.exhausts_at()
        flags |= entry.flags & _TOLD_FLAGS | (EXHAUSTED if account.exhausted else 0)
        line_rate = account.line(entry.key)[0] if entry.op in (SET_RATE, CHANGE_RATE) and not refusal else 0
        if entry.line_rate == UNSAID:  # of the first format
            line_rate = UNSAID
        elif account.exhausted and account.accruing:
            flags |= ACCRUING
        return (
            0 if no_row else account.entry_id, amount, accrued, account.balance, account.rate, line_rate,
            account.credit_limit_nanos, account.holds_nanos, exhausts_at_ns if exhausts_at_ns <= WORD_MAX else -1,
            account.seq, account.overrun, refusal, flags, note,
        )  # fmt: skip

    def _compare(self, account: Account, entry: Entry, expected: Says) -> None:
        recorded = (
            entry.entry_id, entry.amount, entry.accrued, entry.balance, entry.rate, entry.line_rate,
            entry.credit_limit_nanos, entry.holds_nanos, entry.exhausts_at_ns, entry.seq, entry.overrun, entry.refusal,
            entry.flags, entry.note,
        )  # fmt: skip
        if recorded == expected:
            return
        differences = [
            f"{name} {coins(value)}, worked out {coins(worked_out)}"
            if name in SUMS and isinstance(value, int) and isinstance(worked_out, int)
            else f"{name} {value!r}, worked out {worked_out!r}"
            for name, value, worked_out in zip(SAYS, recorded, expected, strict=True)
            if value != worked_out
        ]
        self._fault(f"the entry at {entry.at_ns} says {'; '.join(differences)}", account.user_id)
        if entry.entry_id:
            account.entry_id = entry.entry_id
            account.balance, account.overrun, account.seq = entry.balance, entry.overrun, entry.seq
            account.take(max(0, sum(credit.rest for credit in account.credits) - max(0, account.balance)))
            account.exhausted = account.available <= 0

    def _adopt(self, bucket: Bucket, account: Account, entry: Entry) -> None:
        """Takes over the state in an entry that should not exist, to continue from it."""
        account.settled_ns = entry.at_ns
        account.balance, account.overrun, account.seq = entry.balance, entry.overrun, entry.seq
        account.exhausted = account.available <= 0
        account.entry_id = max(account.entry_id, entry.entry_id)
        self._count(bucket, account, entry.op, entry.amount, entry.accrued)

    def _count(self, bucket: Bucket, account: Account, op: int, amount: int, accrued: int) -> None:
        """Adds an entry's amount and accrual to the sums of its account and its bucket."""
        account.net += amount - accrued
        totals = bucket.totals
        totals["accrued"] += accrued
        if op == TOP_UP:
            totals["top_ups"] += amount
        elif op == ADJUST:
            totals["adjustments"] += amount
        elif op == CLOSE:
            totals["paid_out"] -= amount
        else:
            totals["debits"] -= amount


def digest(packed: bytes) -> bytes:
    """The digest by which an entry that is kept for a request_id is recognised again."""
    return hashlib.blake2b(packed, digest_size=8).digest()


def shown(coming: Coming) -> str:
    """An entry that time causes, as text for a finding."""
    op, a, b, key = coming
    return f"{_NAMES[op]} ({a}, {b})" if op == THRESHOLD else f"{_NAMES[op]} {key.decode(errors='backslashreplace')!r}"
