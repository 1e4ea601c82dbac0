"""Accounts as this room works them out: plain objects, one integer of internal units for each sum of money.

What an account can have is all here, and how time alone changes it: `pass_time`, `coming`. What commands change is in
`commands` and `cutoffs`.

    available = balance + credit limit - open holds;  active while it is above zero
    spent     = rate * time;  of an active account, what exceeds the available is not charged but counted as overrun,
                and an exhausted one is not charged at all - unless its exhaustion began under the rule "accrue"
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from billing.doctor.entry import (
    CREDIT_EXPIRED,
    EXHAUST,
    GRACE_ENDED,
    HOLD_EXPIRED,
    LEASE_EXPIRED,
    SUM_MAX,
    THRESHOLD,
    UNIT,
)

WEEK_NS: Final = 7 * 24 * 3600 * 10**9
NEVER: Final = 2**64 - 1  # as an instant: none

PENDING, DELIVERED, EFFECTIVE, SUPERSEDED, IN_GRACE = range(5)
STATUSES: Final = ("pending", "delivered", "effective", "superseded", "in grace")

BY_AMOUNT: Final = 0

Coming = tuple[int, int, int, bytes]  # op, a, b, key of an entry: a crossed threshold, or another hold's expiry


class Cutoff:
    """One cutoff of an account and what became of it."""

    __slots__ = (
        *("at_ns", "attempts", "called_ns", "delivered_ns"),
        *("last_error", "released", "restored_ns", "seq", "status"),
    )

    def __init__(
        self,
        seq: int,
        at_ns: int,
        status: int = PENDING,
        attempts: int = 0,
        released: bool = False,
        last_error: bytes = b"",
    ) -> None:
        self.seq = seq
        self.at_ns = at_ns
        self.called_ns = at_ns  # owed from then on: later where a grace was given
        self.delivered_ns = 0  # when its 2xx came; 0: it has not come, or an older version did not keep it
        self.restored_ns = 0  # likewise that of its restore
        self.status = status
        self.attempts = attempts
        self.released = released
        self.last_error = last_error

    def facts(self) -> tuple[object, ...]:
        """All of it but when the 2xx of its calls came, for comparing and showing."""
        when = self.at_ns if self.called_ns == self.at_ns else (self.at_ns, self.called_ns)
        return self.seq, when, STATUSES[self.status], self.attempts, self.released, self.last_error


class Credit(NamedTuple):
    """Money that ends. What ends soonest is spent first, of one end the smaller rest, then the older."""

    ends_ns: int
    rest: int  # internal units
    entry_id: int  # of its top-up
    nanos: int  # of its top-up
    kind: bytes


class Account:
    """An account between two entries. What few have is None until there is one."""

    __slots__ = (
        "accruing", "balance", "class_name", "credit_limit_nanos", "credits", "cutoffs", "entry_id", "exhausted",
        "firing", "holds", "holds_nanos", "leases", "lines", "net", "off_ns", "off_seq", "on_seq", "overrun", "quiet",
        "rate", "restore_attempts", "restore_error", "seq", "settled_ns", "thresholds", "user_id",
    )  # fmt: skip

    def __init__(self, user_id: bytes) -> None:
        self.user_id = user_id
        self.settled_ns = 0
        self.balance = 0
        self.overrun = 0
        self.rate = 0  # nanos per hour, all lines
        self.credit_limit_nanos = 0
        self.holds_nanos = 0
        self.exhausted = False
        self.accruing = False  # the exhaustion that lasts goes on below zero
        self.entry_id = 0
        self.seq = 0
        self.off_seq = 0  # highest seq of which an attempt began
        self.off_ns = 0  # and its exhaustion instant: together the name of the restore
        self.on_seq = 0  # highest one made good by a restore
        self.restore_attempts = 0
        self.restore_error = b""
        self.lines: dict[bytes, tuple[int, int]] | None = None  # resource -> (rate, rate_seq or -1), above zero
        self.leases: dict[bytes, int] | None = None  # resource -> the instant at which its line ends by itself
        self.quiet: dict[bytes, tuple[int, int]] | None = None  # resource -> (rate_seq, at zero since)
        self.holds: dict[bytes, tuple[int, int]] | None = None  # hold_id -> (nanos, expires_ns or NEVER)
        self.credits: list[Credit] = []  # in the order in which they are spent
        self.class_name = b""  # of cutoffs; empty: the default
        self.thresholds: tuple[tuple[int, int], ...] = ()  # (kind, value), sorted
        self.cutoffs: list[Cutoff] = []
        self.firing: deque[Coming] | None = None  # entries of this same instant that must come next
        self.net = 0  # what the entries seen say in all: amounts less what accrued; begins with the balance loaded

    @property
    def available(self) -> int:
        """In internal units; above zero is active."""
        return self.balance + (self.credit_limit_nanos - self.holds_nanos) * UNIT

    def exhausts_at(self) -> int:
        """The first nanosecond at which spending and ended credits have used up everything available; NEVER where none
        is coming.
        """
        return self.falls_to(0, self.rate)

    def falls_to(self, floor: int, rate: int) -> int:
        """The first nanosecond at which available is down to `floor`, at this rate; NEVER where it never is, or is.

        Up to an end the rate spends either what ends then, or more; so of each end it is enough to know how much of the
        credits up to it is neither spent nor ended before.
        """
        above = self.available - floor
        if above <= 0:
            return NEVER
        gone = before_ns = 0  # spent or ended, up to the last end looked at
        ending = 0
        for credit in self.credits:
            spent = rate * (credit.ends_ns - self.settled_ns)
            ended_before = gone - rate * (before_ns - self.settled_ns) if before_ns else 0
            if spent + ended_before >= above:
                return self._after(above - ended_before, rate)
            ending += credit.rest
            gone, before_ns = max(spent + ended_before, ending), credit.ends_ns
            if gone >= above:
                return credit.ends_ns
        ended = gone - rate * (before_ns - self.settled_ns) if before_ns else 0
        return self._after(above - ended, rate) if rate else NEVER

    def _after(self, amount: int, rate: int) -> int:
        whole_ns, rest = divmod(amount, rate)
        return self.settled_ns + whole_ns + (rest > 0)

    def take(self, amount: int) -> None:
        """Takes so much from the credits, as far as they go."""
        remaining: list[Credit] = []
        for credit in self.credits:
            used = min(amount, credit.rest)
            amount -= used
            if credit.rest > used:
                remaining.append(credit._replace(rest=credit.rest - used))
        self.credits = remaining

    def ends_next(self) -> int:
        """The first end of a credit before which not all of it is spent; NEVER where none is."""
        rate = self.rate if self.accruing or not self.exhausted else 0
        total = 0
        for credit in self.credits:
            total += credit.rest
            if total > rate * (credit.ends_ns - self.settled_ns):
                return credit.ends_ns
        return NEVER

    def grace(self) -> Cutoff | None:
        """The cutoff that is not called yet since its grace is running."""
        return next((cutoff for cutoff in self.cutoffs if cutoff.status == IN_GRACE), None)

    def pass_time(self, at_ns: int, accrue: bool) -> int:
        """Accounts for the time up to `at_ns`; what it charged. `accrue`: the rule, should available run out."""
        spent = self.rate * (at_ns - self.settled_ns)
        self.settled_ns = at_ns
        over = spent if self.exhausted else max(0, spent - self.available)
        if not over:
            self.balance -= spent
            self.take(spent)
            return spent
        self.overrun = min(self.overrun + over, SUM_MAX)
        below_zero = self.accruing if self.exhausted else accrue
        charged = min(spent, SUM_MAX + self.balance, SUM_MAX + self.available) if below_zero else spent - over
        self.balance -= charged
        self.take(charged)
        return charged

    def is_above(self, threshold: tuple[int, int]) -> bool:
        """Whether this threshold could still be crossed downwards."""
        kind, value = threshold
        if kind == BY_AMOUNT:
            return self.available > value * UNIT
        return self.available > 0 and self.exhausts_at() - self.settled_ns > value

    def above(self) -> list[tuple[int, int]]:
        """The thresholds that could still be crossed."""
        return [threshold for threshold in self.thresholds if self.is_above(threshold)]

    def crossed(self, above: list[tuple[int, int]]) -> list[Coming]:
        """The entries of those of these thresholds that it is not above of any more."""
        return [(THRESHOLD, *threshold, b"") for threshold in above if not self.is_above(threshold)]

    def coming(self) -> tuple[int, int]:
        """(instant, operation) of what time causes next; NEVER where nothing. At a tie an expiry comes first, then the
        end of a credit, the exhaustion, the end of a grace, the end of a lease, and a threshold.
        """
        instant, op = self.exhausts_at(), EXHAUST
        if self.exhausted and (waiting := self.grace()) is not None:
            instant, op = waiting.called_ns, GRACE_ENDED
        if self.credits:
            ends = self.ends_next()
            if ends <= instant:
                instant, op = ends, CREDIT_EXPIRED
        if self.holds:
            expires = min(expires for _, expires in self.holds.values())
            if expires <= instant:
                instant, op = expires, HOLD_EXPIRED
        if self.leases:
            ends = min(self.leases.values())
            if ends < instant:
                instant, op = ends, LEASE_EXPIRED
        if self.thresholds and (self.rate or self.credits) and self.available > 0:
            for kind, value in self.above():
                falls = self.falls_to(value * UNIT, self.rate) if kind == BY_AMOUNT else self.exhausts_at()
                crossed = falls if kind == BY_AMOUNT or falls == NEVER else falls - value
                if crossed < instant:
                    instant, op = crossed, THRESHOLD
        return instant, op

    def line(self, resource: bytes) -> tuple[int, int]:
        """(rate, rate_seq) of a line, as it is known at the instant settled to; (0, -1) of one that is not."""
        if self.lines and resource in self.lines:
            return self.lines[resource]
        if self.quiet and resource in self.quiet:
            rate_seq, since_ns = self.quiet[resource]
            if self.settled_ns - since_ns < WEEK_NS:
                return 0, rate_seq
        return 0, -1

    def line_count(self) -> int:
        """Lines that are above zero, and those remembered."""
        remembered = [seq for seq, since_ns in (self.quiet or {}).values() if self.settled_ns - since_ns < WEEK_NS]
        return len(self.lines or ()) + len(remembered)


class Grave:
    """What outlives a closed account, beside its request ids."""

    __slots__ = ("entry_id", "off", "quiet", "seq", "settled_ns")

    def __init__(self, settled_ns: int, entry_id: int, seq: int, quiet: dict[bytes, tuple[int, int]]) -> None:
        self.settled_ns = settled_ns
        self.entry_id = entry_id
        self.seq = seq
        self.quiet = quiet
        # Where machines may be off: latest cutoff, off_seq, off_ns, on_seq.
        self.off: tuple[Cutoff, int, int, int] | None = None

    def quiet_at(self, at_ns: int) -> dict[bytes, tuple[int, int]]:
        """The lines whose rate_seq still counts."""
        return {resource: line for resource, line in self.quiet.items() if at_ns - line[1] < WEEK_NS}


TOTALS: Final = ("top_ups", "debits", "accrued", "adjustments", "paid_out")


class Bucket:
    """All accounts of one bucket, and the sums over all its entries ever made, in internal units."""

    def __init__(self, bucket_id: int, generation: int) -> None:
        self.bucket_id = bucket_id
        self.generation = generation
        self.accounts: dict[bytes, Account] = {}
        self.graves: dict[bytes, Grave] = {}
        self.totals: dict[str, int] = dict.fromkeys(TOTALS, 0)
        self.request_ids: dict[bytes, tuple[int, bytes]] = {}  # user and request id -> (instant, digest of its entry)
        self.order: deque[bytes] = deque()  # the same, oldest first

    def expected_balance(self) -> int:
        """What the balances must add up to."""
        totals = self.totals
        return totals["top_ups"] - totals["debits"] - totals["accrued"] + totals["adjustments"] - totals["paid_out"]

    def pending(self) -> int:
        """How many cutoffs are still to be delivered."""
        return sum(cutoff.status == PENDING for account in self.accounts.values() for cutoff in account.cutoffs)
