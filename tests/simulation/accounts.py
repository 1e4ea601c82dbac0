"""What the auditor believes of one account, entry by entry, by its own arithmetic."""

from __future__ import annotations

from tests.simulation.calls import GRACES_S
from tests.simulation.decode import (
    CREDIT_EXPIRED,
    CROSSED,
    EXHAUST,
    EXHAUSTED,
    GRACE_ENDED,
    HOLD_EXPIRED,
    LEASE_EXPIRED,
    NANO,
    OPENED,
    OUTSIDE,
    REFUSED,
    RESTORED,
    THRESHOLD,
    Item,
    number_option,
)

NEVER = 2**63 - 1
_SET_CLASS = 12
GRACES_NS = {name.encode(): int(grace_s * 1000) * 10**6 for name, grace_s in GRACES_S.items()}
_TOP_UP, _SET_RATE, _CHANGE_RATE, _DEBIT, _LIMIT, _HOLD, _CAPTURE, _ADJUST, _CLOSE = 1, 2, 3, 4, 5, 6, 7, 9, 11


Rest = tuple[int, int, int, int]  # of a credit: its end, what is left, its entry_id, what it was


def falls_ns(at_ns: int, available: int, rate: int, credits: list[Rest]) -> int:
    """E as the contract states it: the first nanosecond at which what was spent, and what ended, is at least what there
    was. NEVER + 1 where there is none.
    """
    if available <= 0:
        return NEVER + 1
    for ends_ns in sorted({credit[0] for credit in credits}):
        if rate * (ends_ns - at_ns) >= available:
            break
        credits = credits_after(credits, rate * (ends_ns - at_ns))
        available -= rate * (ends_ns - at_ns) + sum(nanos_left for end, nanos_left, *_ in credits if end == ends_ns)
        credits = [credit for credit in credits if credit[0] > ends_ns]
        at_ns = ends_ns
        if available <= 0:
            return ends_ns
    return at_ns + -(-available // rate) if rate else NEVER + 1


def credits_after(credits: list[Rest], spent: int) -> list[Rest]:
    """What is left of credits after so much was taken: what ends soonest first, the smaller, the older."""
    credits_left = []
    for ends_ns, rest, entry_id, nanos in sorted(credits):
        used = min(rest, spent)
        spent -= used
        if rest > used:
            credits_left.append((ends_ns, rest - used, entry_id, nanos))
    return credits_left


class AuditedAccount:
    """One account: its entries so far, and what is owed for it."""

    def __init__(self, user: bytes) -> None:
        self.user = user
        self.last: Item | None = None
        self.at_ns = 0
        self.items: dict[int, Item] = {}  # by entry_id
        self.crossings: dict[int, int] = {}  # seq -> instant
        self.due: dict[int, int] = {}  # seq -> from when on it is called: the instant, or later by a grace
        self.in_grace = 0  # seq of the cutoff whose grace is running
        self.class_name = b""
        self.superseded: set[int] = set()
        self.reported: set[int] = set()  # seqs that an entry calls delivered
        self.retried = False
        self.holds = 0  # how many were ever opened
        self.lines: dict[bytes, int] = {}  # resource -> nanos per hour, above zero
        self.credits: list[Rest] = []
        self.leases: dict[bytes, int] = {}  # resource -> when its line ends by itself
        self.charged = self.top_ups = self.debits = self.adjusted = self.paid_out = 0

    def fold(self, item: Item, accrues: bool) -> list[str]:
        """Takes the next durable entry; what is wrong with it."""
        faults: list[str] = []
        last = self.last
        if item.at_ns < self.at_ns:
            faults.append(f"instants go back: {item.at_ns} after {self.at_ns} (I8)")
        self.at_ns = item.at_ns
        if item.flags & REFUSED or not item.entry_id:
            return faults
        if item.entry_id != (last.entry_id + 1 if last else 1):
            faults.append(f"entry_id {item.entry_id} after {last.entry_id if last else 0} (I8)")
        balance_before = 0
        if last is None or item.flags & OPENED:
            if not item.flags & OPENED or item.op != _TOP_UP:
                faults.append("an account that does not begin with a top-up (I5)")
            if item.accrued:
                faults.append("a new account was charged (I6)")
        else:
            balance_before = last.balance
            faults += self._time(last, item, accrues) + self._ends(item) + self._grace(item)
        if item.balance != balance_before - item.accrued + item.amount:
            faults.append(f"{balance_before} - {item.accrued} + {item.amount} is not {item.balance} (I6)")
        faults += self._credits(last, item) + self._amount(item) + self._rate(item)
        if item.op != _CLOSE:
            if bool(item.flags & EXHAUSTED) != (item.available <= 0):
                faults.append(f"exhausted is {bool(item.flags & EXHAUSTED)} with {item.available} available")
            due_ns = falls_ns(item.at_ns, item.available, item.rate, self.credits)
            if item.exhausts_at_ns != (due_ns if due_ns <= NEVER else -1):
                faults.append(f"E is {item.exhausts_at_ns}, not {due_ns} (I17)")
        elif item.balance:
            faults.append("closed with money left")
        faults += self._below(last, item, accrues)
        seq = last.seq if last else 0
        if item.seq != seq + bool(item.flags & CROSSED):
            faults.append(f"seq {item.seq} after {seq} (I19)")
        faults += self._classes(last, item)
        if item.flags & RESTORED:
            self.in_grace = 0
            self.superseded |= {crossed for crossed in self.crossings if crossed not in self.reported}
        self.holds += item.op == _HOLD
        self.charged += item.accrued
        self.items[item.entry_id] = item
        self.last = item
        return faults

    def _time(self, last: Item, item: Item, accrues: bool) -> list[str]:
        elapsed = item.at_ns - last.at_ns
        if not last.flags & EXHAUSTED:
            beyond = item.op == CREDIT_EXPIRED and last.rate * elapsed > last.available
            clamped = not accrues and (item.op == EXHAUST or beyond)
            if item.accrued != (last.available if clamped else last.rate * elapsed):
                return [f"{item.accrued} was accrued in {elapsed} ns at {last.rate} (I6)"]
            due = last.exhausts_at_ns
            if due >= 0:
                first = item.op in (EXHAUST, HOLD_EXPIRED, CREDIT_EXPIRED)
                if item.at_ns > due or (item.at_ns == due and not first):
                    return [f"{item.op} at {item.at_ns}, while E was {due} (time before commands)"]
                if item.op == EXHAUST and item.at_ns != due:
                    return [f"exhausted at {item.at_ns}, E was {due} (I17)"]
            elif item.op == EXHAUST:
                return ["exhausted by time, which was not coming (I17)"]
            if item.op == EXHAUST and (item.available > 0 or (clamped and item.available)):
                return [f"exhausted with {item.available} available (I17)"]
        elif not accrues and item.accrued:
            return [f"{item.accrued} was accrued on an exhausted account (clamp)"]
        return []

    def _ends(self, item: Item) -> list[str]:
        """Lines end at exactly the instants of their leases, behind what else time causes then but thresholds."""
        first_ns = min(self.leases.values(), default=NEVER)
        if item.op == LEASE_EXPIRED:
            if self.leases.get(item.key) != item.at_ns or self.lines.get(item.key) != item.a or item.line_rate:
                return [f"a line at {self.lines.get(item.key)} ends, its lease at {self.leases.get(item.key)}"]
        elif item.at_ns > first_ns or (
            item.at_ns == first_ns and item.op not in (EXHAUST, HOLD_EXPIRED, CREDIT_EXPIRED, GRACE_ENDED)
        ):
            return [f"{item.op} at {item.at_ns}, while a line was to end at {first_ns} (time before commands)"]
        return []

    def _grace(self, item: Item) -> list[str]:
        """A grace ends at exactly its instant, behind holds and credits that end then, and before all else."""
        due_ns = self.due[self.in_grace] if self.in_grace else NEVER
        if item.op == GRACE_ENDED:
            if (item.a, item.b, item.at_ns) != (self.in_grace, self.crossings.get(self.in_grace), due_ns):
                return [f"the grace of {item.a} ends at {item.at_ns}, that of {self.in_grace} at {due_ns} (I17)"]
            self.in_grace = 0
        elif item.at_ns > due_ns or (item.at_ns == due_ns and item.op not in (HOLD_EXPIRED, CREDIT_EXPIRED)):
            return [f"{item.op} at {item.at_ns}, while a grace was to end at {due_ns} (time before commands)"]
        return []

    def _classes(self, last: Item | None, item: Item) -> list[str]:
        """Which class it is in, and when the call of a crossing is due: by the grace of the class, and the note."""
        grace_ns = -1
        if item.flags & OPENED:
            self.class_name = b""
        if item.flags & CROSSED:
            self.crossings[item.seq] = self.due[item.seq] = item.at_ns
            self.retried = False
            if self.in_grace:
                return [f"cutoff {item.seq} is made in the grace of {self.in_grace}"]
            if last is None or item.flags & OPENED or not last.flags & EXHAUSTED:
                grace_ns = GRACES_NS.get(self.class_name, 0)
        elif item.op == _SET_CLASS:
            self.class_name = item.key
            if self.in_grace:
                due_ns = max(item.at_ns, self.crossings[self.in_grace] + GRACES_NS.get(item.key, 0))
                self.due[self.in_grace] = due_ns
                if item.note != due_ns.to_bytes(8, "little"):
                    return [f"a grace is moved to {due_ns}, the entry says {item.note!r}"]
            return []
        if grace_ns > 0:
            self.in_grace = item.seq
            self.due[item.seq] = item.at_ns + grace_ns
            if item.note != self.due[item.seq].to_bytes(8, "little"):
                return [f"a grace ends at {self.due[item.seq]}, the entry says {item.note!r} (I17)"]
        return []

    def called_ns(self, seq: int, exhausted_at_ns: int) -> int:
        """From when on a cutoff may be called."""
        return self.due.get(seq, exhausted_at_ns + GRACES_NS.get(self.class_name, 0))

    def _credits(self, last: Item | None, item: Item) -> list[str]:
        """What is left of a credit leaves at exactly its end, behind holds that expire then, before an exhaustion."""
        credits = credits_after(self.credits, item.accrued)
        if item.op == CREDIT_EXPIRED:
            if not credits or (item.at_ns, -item.amount, item.b, item.a) != credits[0]:
                return [f"a credit ends at {item.at_ns} with {-item.amount}, which is not the first of {credits[:2]}"]
            self.credits = credits[1:]
            return []
        ended_credits = [credit for credit in credits if credit[0] <= item.at_ns]
        self.credits = credits_after(credits, max(0, -item.amount)) if item.op != _CLOSE else []
        ends_ns = number_option(item.options, 3)
        debt = max(0, item.accrued - (last.balance if last is not None and not item.flags & OPENED else 0))
        if item.op == _TOP_UP and ends_ns >= 0 and item.amount > debt:
            self.credits = sorted([*self.credits, (ends_ns, item.amount - debt, item.entry_id, item.a)])
        if ended_credits and not (item.op == HOLD_EXPIRED and all(credit[0] == item.at_ns for credit in ended_credits)):
            return [f"{item.op} at {item.at_ns}, while credits were to end: {ended_credits} (time before commands)"]
        return []

    def _rate(self, item: Item) -> list[str]:
        """The account's rate is the sum of its lines, each at what was last reported for it."""
        if item.op in (_SET_RATE, _CHANGE_RATE, LEASE_EXPIRED):
            line_rate_before = self.lines.pop(item.key, 0)
            ends_ns = self.leases.pop(item.key, 0)
            if item.op != LEASE_EXPIRED and item.line_rate != item.a + (
                line_rate_before if item.op == _CHANGE_RATE else 0
            ):
                return [f"a line at {line_rate_before} is at {item.line_rate} after {item.a}"]
            if item.line_rate:
                self.lines[item.key] = item.line_rate
                ttl_ns = number_option(item.options, 1, 2)
                begun_ns = item.at_ns + ttl_ns if ttl_ns >= 0 else 0
                ends_ns = begun_ns if item.op == _SET_RATE else max(ends_ns, begun_ns)
                if 0 < ends_ns <= NEVER:
                    self.leases[item.key] = ends_ns
        rate = sum(self.lines.values())
        return [] if item.rate == rate else [f"a rate of {item.rate}, its lines make {rate}"]

    def falls_ns(self) -> int:
        """When it runs out if nothing but time happens and no hold expires: E, moved by the ends of leases."""
        assert self.last is not None
        at_ns, available, rate, credits = self.last.at_ns, self.last.available, self.last.rate, self.credits
        for ends_ns, resource in sorted((ends_ns, resource) for resource, ends_ns in self.leases.items()):
            due_ns = falls_ns(at_ns, available, rate, credits)
            if due_ns <= ends_ns:
                return due_ns
            for credit_end_ns in [*sorted({credit[0] for credit in credits if credit[0] <= ends_ns}), ends_ns]:
                credits = credits_after(credits, rate * (credit_end_ns - at_ns))
                ended_nanos = sum(nanos_left for end, nanos_left, *_ in credits if end == credit_end_ns)
                available -= rate * (credit_end_ns - at_ns) + ended_nanos
                credits = [credit for credit in credits if credit[0] > credit_end_ns]
                at_ns = credit_end_ns
            rate -= self.lines[resource]
        return falls_ns(at_ns, available, rate, credits)

    def _amount(self, item: Item) -> list[str]:
        amount, op = item.amount, item.op
        amount_asked = item.a * NANO
        if op == _TOP_UP:
            right = amount == amount_asked
            self.top_ups += amount
        elif op == _DEBIT:
            right = -amount_asked <= amount <= 0 if item.b == 1 else amount == -amount_asked
            self.debits -= amount
        elif op == _ADJUST:
            right = amount == amount_asked
            self.adjusted += amount
        elif op == _CAPTURE:
            right = -amount_asked <= amount <= 0
            self.debits -= amount
        elif op == CREDIT_EXPIRED:
            right = amount < 0
            self.debits -= amount
        elif op == _CLOSE:
            right = amount <= 0 and item.balance == 0
            self.paid_out -= amount
        else:
            right = amount == 0
        if op == _LIMIT and item.limit_nanos != item.a:
            return [f"the credit limit is {item.limit_nanos}, not {item.a}"]
        return [] if right else [f"{OUTSIDE.get(op, op)} of {item.a} changed the balance by {amount} (I6)"]

    @staticmethod
    def _below(last: Item | None, item: Item, accrues: bool) -> list[str]:
        """I6: who may go below the credit limit."""
        if item.balance + item.limit_nanos * NANO >= 0 or accrues:
            return []
        may = item.op in (_LIMIT, _ADJUST) or (item.op == _DEBIT and item.b == 2)
        if may or (last is not None and last.available < 0):  # that came of one of these, earlier
            return []
        return [f"{item.op} left a balance of {item.balance} below the credit limit (I6)"]

    def conserved(self) -> bool:
        """I1: top-ups - debits - charges + adjustments - paid out is what is left."""
        balance = self.top_ups - self.debits - self.charged + self.adjusted - self.paid_out
        return balance == (self.last.balance if self.last is not None else 0)

    def shown_nanos(self, at_ns: int, item: Item) -> int:
        """The balance a reader is shown at an instant after this entry and before the next."""
        spent = 0 if item.flags & EXHAUSTED else item.rate * (at_ns - item.at_ns)
        return (item.balance - spent) // NANO


TIME_CAUSED = (EXHAUST, HOLD_EXPIRED, THRESHOLD, CREDIT_EXPIRED, LEASE_EXPIRED, GRACE_ENDED)
