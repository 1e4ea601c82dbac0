"""The doctor's own accounts: plain objects, with one integer of internal units for each sum of money.

This module has all state of an account, and the changes that time alone makes: `pass_time`, `coming`. The changes that
commands make are in `commands` and `cutoffs`.

    available = balance + credit limit - open holds;  the account is active while this is above zero
    spent     = rate * time;  for an active account, the excess over the available money is not charged but counted as
                overrun; an exhausted account is not charged at all - unless its exhaustion began under the rule
                "accrue"
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
NEVER: Final = 2**64 - 1  # stands for an instant that never comes

PENDING, DELIVERED, EFFECTIVE, SUPERSEDED, IN_GRACE = range(5)
STATUSES: Final = ("pending", "delivered", "effective", "superseded", "in grace")

BY_AMOUNT: Final = 0

Coming = tuple[int, int, int, bytes]  # op, a, b, key of an entry: a crossed threshold, or another hold's expiry


class Cutoff:
    """One cutoff of an account, with its state."""

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
        self.called_ns = at_ns  # the call is owed from then on: later than at_ns if there is a grace
        self.delivered_ns = 0  # when its 2xx came; 0: it has not come, or an older version did not keep it
        self.restored_ns = 0  # when the 2xx of its restore came; 0: likewise
        self.status = status
        self.attempts = attempts
        self.released = released
        self.last_error = last_error

    def facts(self) -> tuple[object, ...]:
        """All fields except the instants of the two 2xx, for comparing and showing."""
        when = self.at_ns if self.called_ns == self.at_ns else (self.at_ns, self.called_ns)
        return self.seq, when, STATUSES[self.status], self.attempts, self.released, self.last_error


class Credit(NamedTuple):
    """Credit that ends. The order of the tuples is the order of spending: by end, then the smaller rest, then age."""

    ends_ns: int
    rest: int  # internal units
    entry_id: int  # of its top-up
    nanos: int  # of its top-up
    kind: bytes


class Account:
    """An account between two entries. Fields that few accounts use are None until they are needed."""

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
        self.off_seq = 0  # highest seq for which an attempt began
        self.off_ns = 0  # exhaustion instant of off_seq; both together identify the restore
        self.on_seq = 0  # highest seq that a delivered restore has undone
        self.restore_attempts = 0
        self.restore_error = b""
        self.lines: dict[bytes, tuple[int, int]] | None = None  # resource -> (rate, rate_seq or -1), above zero
        self.leases: dict[bytes, int] | None = None  # resource -> the instant at which its line ends by itself
        self.quiet: dict[bytes, tuple[int, int]] | None = None  # resource -> (rate_seq, at zero since)
        self.holds: dict[bytes, tuple[int, int]] | None = None  # hold_id -> (nanos, expires_ns or NEVER)
        self.credits: list[Credit] = []  # in the order in which they are spent
        self.class_name = b""  # cutoff class; b"": the default
        self.thresholds: tuple[tuple[int, int], ...] = ()  # (kind, value), sorted
        self.cutoffs: list[Cutoff] = []
        self.firing: deque[Coming] | None = None  # entries of this same instant that must come next
        self.net = 0  # balance loaded from a snapshot, plus amounts, minus accruals of all entries since

    @property
    def available(self) -> int:
        """The available money in internal units; the account is active while it is above zero."""
        return self.balance + (self.credit_limit_nanos - self.holds_nanos) * UNIT

    def exhausts_at(self) -> int:
        """The first nanosecond at which spending and ending credits have used up all available money; NEVER if there is
        none, or if the account is exhausted already.
        """
        return self.falls_to(0, self.rate)

    def falls_to(self, floor: int, rate: int) -> int:
        """The first nanosecond at which `available` is down to `floor`, at this rate. NEVER if that does not happen, or
        has happened already.

        The rate spends the credits that end soonest first. So at the end of a credit, the money gone by then is the
        larger of two sums: what was spent or had ended before, and all credits that have ended up to then.
        """
        above = self.available - floor
        if above <= 0:
            return NEVER
        gone = before_ns = 0  # money spent or ended by `before_ns`, the end of the credit before
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
        """Takes an amount from the credits, in their order, until they are used up."""
        remaining: list[Credit] = []
        for credit in self.credits:
            used = min(amount, credit.rest)
            amount -= used
            if credit.rest > used:
                remaining.append(credit._replace(rest=credit.rest - used))
        self.credits = remaining

    def ends_next(self) -> int:
        """The first instant at which a credit ends that will not be wholly spent by then; NEVER if there is none."""
        rate = self.rate if self.accruing or not self.exhausted else 0
        total = 0
        for credit in self.credits:
            total += credit.rest
            if total > rate * (credit.ends_ns - self.settled_ns):
                return credit.ends_ns
        return NEVER

    def grace(self) -> Cutoff | None:
        """The cutoff whose grace is running, so that it is not called yet; None if there is none."""
        return next((cutoff for cutoff in self.cutoffs if cutoff.status == IN_GRACE), None)

    def pass_time(self, at_ns: int, accrue: bool) -> int:
        """Settles the account to `at_ns`, and returns the amount charged. `accrue`: whether the rule "accrue" is in
        force, in case the available money runs out meanwhile.
        """
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
        """Whether the account is above this threshold, so that it can still fall to it."""
        kind, value = threshold
        if kind == BY_AMOUNT:
            return self.available > value * UNIT
        return self.available > 0 and self.exhausts_at() - self.settled_ns > value

    def above(self) -> list[tuple[int, int]]:
        """The thresholds that the account is above."""
        return [threshold for threshold in self.thresholds if self.is_above(threshold)]

    def crossed(self, above: list[tuple[int, int]]) -> list[Coming]:
        """The entries for the thresholds in `above` to or below which the account has fallen."""
        return [(THRESHOLD, *threshold, b"") for threshold in above if not self.is_above(threshold)]

    def coming(self) -> tuple[int, int]:
        """(instant, operation) of the next entry that time causes; the instant is NEVER if there is none. At a tie the
        expiry of a hold comes first, then the end of a credit, the exhaustion, the end of a grace, the end of a lease,
        and a threshold.
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
        """(rate, rate_seq) of a line at the instant to which the account is settled; (0, -1) for an unknown line."""
        if self.lines and resource in self.lines:
            return self.lines[resource]
        if self.quiet and resource in self.quiet:
            rate_seq, since_ns = self.quiet[resource]
            if self.settled_ns - since_ns < WEEK_NS:
                return 0, rate_seq
        return 0, -1

    def line_count(self) -> int:
        """The number of lines above zero, and of lines at zero whose rate_seq still counts."""
        remembered = [seq for seq, since_ns in (self.quiet or {}).values() if self.settled_ns - since_ns < WEEK_NS]
        return len(self.lines or ()) + len(remembered)


class Grave:
    """The state that outlives a closed account, besides its request ids."""

    __slots__ = ("entry_id", "off", "quiet", "seq", "settled_ns")

    def __init__(self, settled_ns: int, entry_id: int, seq: int, quiet: dict[bytes, tuple[int, int]]) -> None:
        self.settled_ns = settled_ns
        self.entry_id = entry_id
        self.seq = seq
        self.quiet = quiet
        # Set if the user's machines may be switched off: latest cutoff, off_seq, off_ns, on_seq.
        self.off: tuple[Cutoff, int, int, int] | None = None

    def quiet_at(self, at_ns: int) -> dict[bytes, tuple[int, int]]:
        """The lines whose rate_seq still counts at this instant: those at zero for less than a week."""
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
        self.order: deque[bytes] = deque()  # the keys of `request_ids`, oldest first

    def expected_balance(self) -> int:
        """The sum that the balances of all accounts must have, in internal units."""
        totals = self.totals
        return totals["top_ups"] - totals["debits"] - totals["accrued"] + totals["adjustments"] - totals["paid_out"]

    def pending(self) -> int:
        """The number of cutoffs that are still to be delivered."""
        return sum(cutoff.status == PENDING for account in self.accounts.values() for cutoff in account.cutoffs)
