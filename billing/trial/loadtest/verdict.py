"""The verdict: the right behaviour, computed independently, compared with the daemon's.

Theory. An account is fully determined by the commands that were answered and the instants (`at_ns`) of the answers.
`Account` implements the contract's arithmetic a second time and shares no code with the ledger. All numbers are
integers: a rate of R nanos an hour spends R/HOUR_NS nanos in a nanosecond, so money is counted in parts of 1/HOUR_NS
nano, and the exhaustion instant is

    E  =  settled + ceil(parts / rate)        the first nanosecond at which the money spent is >= the money available

Time comes before commands: a command at t is applied after an exhaustion at E <= t. At E the account loses what is
left, is exhausted, and accrues nothing until available rises above zero. A cutoff is expected at each E, at each
command that brings available from above zero to zero or below, and for each rate line raised from zero while exhausted.

`judge` compares the expected cutoffs with the GETs that arrived:

    missing   expected and never received
    early     received before its instant
    false     received and not expected: another user, number or instant, or a cutoff that a reply called superseded
    doubled   received again under the same event_id; allowed, since delivery is at least once, but counted

A cutoff is no longer owed after a top-up has restored the account. Only the daemon knows whether the cutoff's first
attempt had begun by then, and the reply to the top-up tells it. A cutoff that was superseded before its first attempt
must not arrive; a cutoff that was superseded after it (`BEGUN`) may arrive or not, since no further attempt starts.

If the endpoint is made sick for some users, the lateness of the healthy users is reported separately: one user must
never delay another.

This module never reads a clock and never asks the daemon anything: its caller hands in replies and arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fractions import Fraction
from math import ceil
from typing import Final, NamedTuple, Protocol

from billing.trial.arrivals import Arrival

HOUR_NS: Final = 3600 * 10**9
INSTANT_NS_MAX: Final = 2**63 - 1  # replies show an exhaustion after this instant as nil
ACTIVE: Final = "active"
EXHAUSTED: Final = "exhausted"
SUPERSEDED: Final = "superseded"  # before its first attempt
BEGUN: Final = "begun"  # superseded, but its first attempt had started


# A seq from here on counts from the Unix second at which the daemon's data were restored from a backup.
SECONDS_MIN: Final = 10**9


class Impossible(Exception):
    """The answers of an account are impossible in this order."""


class Expected(NamedTuple):
    """A cutoff that should be called: the `seq`-th of its account, for the instant `at_ns`."""

    user_id: str
    seq: int
    at_ns: int


class View(NamedTuple):
    """The fields of a correct reply about an account. Names as in replies."""

    state: str
    balance_nanos: int
    rate_nanos_per_hour: int
    exhausts_at_ns: int | None
    exhaustion_seq: int


class Account:
    """One account by the contract's rules. Instants must not decrease from call to call. There may be millions of
    accounts.
    """

    __slots__ = (
        "cutoffs",
        "exhausted",
        "least",
        "lifted",
        "lines",
        "overtaken",
        "parts",
        "rate",
        "settled_ns",
        "superseded",
        "user_id",
    )

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.parts = 0  # available money, in parts of 1/HOUR_NS nano
        self.least = 0  # the lowest value of `parts` since the first top-up
        self.rate = 0  # nanos per hour, the sum of the lines
        self.lines: dict[str, int] | int = 0  # resource -> nanos per hour, without those at zero; or of "" alone
        self.exhausted = True  # until the first top-up
        self.settled_ns = 0
        self.cutoffs: Sequence[Expected] = ()
        self.lifted = 0  # number of cutoffs when available last rose above zero
        self.superseded: Sequence[int] = ()  # numbers of cutoffs that must not arrive
        self.overtaken: AbstractSet[int] = frozenset()  # numbers of cutoffs that may arrive or not

    def settle(self, at_ns: int) -> None:
        """Lets time pass up to an instant, and applies an exhaustion that falls due by then. Raises Impossible if the
        instant is before the one settled to.
        """
        if at_ns < self.settled_ns:
            raise Impossible(f"{self.user_id}: an instant goes back from {self.settled_ns} to {at_ns}")
        if self.rate and not self.exhausted:
            remaining = self.parts - self.rate * (at_ns - self.settled_ns)
            if remaining > 0:
                self.parts = remaining
            else:
                due_ns = self._due_ns()
                self.parts = 0
                self._exhaust(due_ns)
            self.least = min(self.least, self.parts)
        self.settled_ns = at_ns

    def top_up(self, at_ns: int, amount_nanos: int, cutoff_status: str = "") -> None:
        """Applies a top-up. `cutoff_status`: if the top-up restored the account, the status of the newest cutoff in the
        reply: `SUPERSEDED`, `BEGUN`, or any other text for a cutoff that was delivered.
        """
        self.settle(at_ns)
        if self.exhausted and not self.cutoffs and not self.parts:
            self.least = amount_nanos * HOUR_NS
        self.parts += amount_nanos * HOUR_NS
        if self.exhausted and self.parts > 0:
            self.exhausted = False
            if cutoff_status in (SUPERSEDED, BEGUN):
                self.overtaken |= set(range(self.lifted + 1, len(self.cutoffs) + 1))
            if cutoff_status == SUPERSEDED:
                self.superseded = [*self.superseded, len(self.cutoffs)]
            self.lifted = len(self.cutoffs)

    def set_rate(self, at_ns: int, nanos_per_hour: int, resource: str = "") -> None:
        self.settle(at_ns)
        lines = self.lines
        if type(lines) is int:
            if resource:
                lines = self.lines = {"": lines} if lines else {}
            else:
                before = lines
                self.lines = nanos_per_hour
        if type(lines) is dict:
            before = lines.pop(resource, 0)
            if nanos_per_hour:
                lines[resource] = nanos_per_hour
        self.rate += nanos_per_hour - before
        if self.exhausted and nanos_per_hour > before == 0:
            self._exhaust(at_ns)

    def line(self, resource: str) -> int:
        """The rate of one line, in nanos per hour."""
        if isinstance(self.lines, dict):
            return self.lines.get(resource, 0)
        return 0 if resource else self.lines

    def change_rate(self, at_ns: int, delta_nanos_per_hour: int, resource: str = "") -> None:
        self.settle(at_ns)
        self.set_rate(at_ns, self.line(resource) + delta_nanos_per_hour, resource)

    def debit(self, at_ns: int, amount_nanos: int, mode: str = "strict") -> int:
        """Applies a debit that was answered (a refused one changes nothing). Returns the nanos taken, rounded down.
        Raises Impossible if the debit should have been refused.
        """
        self.settle(at_ns)
        debited = amount_nanos * HOUR_NS
        if mode == "partial":
            debited = min(debited, max(self.parts, 0))
        if mode != "force" and debited > self.parts:
            raise Impossible(f"{self.user_id}: a debit at {at_ns} should have been refused")
        self.parts -= debited
        self.least = min(self.least, self.parts)
        if not self.exhausted and self.parts <= 0:
            self._exhaust(at_ns)
        return debited // HOUR_NS

    def view(self) -> View:
        """The account as of the instant settled to."""
        due_ns = None if self.exhausted or not self.rate else self._due_ns()
        return View(
            EXHAUSTED if self.exhausted else ACTIVE,
            self.parts // HOUR_NS,
            self.rate,
            due_ns if due_ns is None or due_ns <= INSTANT_NS_MAX else None,
            len(self.cutoffs),
        )

    def _due_ns(self) -> int:
        return self.settled_ns + -(-self.parts // self.rate)

    def _exhaust(self, at_ns: int) -> None:
        self.exhausted = True
        self.cutoffs = [*self.cutoffs, Expected(self.user_id, len(self.cutoffs) + 1, at_ns)]


def differences(user_id: str, what: str, expected: View, reply: Mapping[str, object]) -> list[str]:
    """One line for each field of a reply that differs from the expected value. `what`: the command."""
    return [
        f"{user_id}: {what} at {reply.get('at_ns')} answered {name} {reply.get(name)!r}, expected {value!r}"
        for name, value in zip(View._fields, expected, strict=True)
        if reply.get(name) != value
    ]


def ordinal(seq: int, seq_base: int) -> int:
    """The place of a cutoff among those of its account, from 1, which the seq of a new account counts. `seq_base`: the
    number behind which this daemon's seqs begin: 0, or one less than the Unix second at which its data were restored.
    """
    return seq - seq_base if seq >= SECONDS_MIN else seq


class Claim(Protocol):
    """The cutoffs that an account expects: an `Account`, or `Claims` sent by another process."""

    @property
    def user_id(self) -> str: ...
    @property
    def cutoffs(self) -> Sequence[Expected]: ...
    @property
    def superseded(self) -> Sequence[int]: ...
    @property
    def overtaken(self) -> AbstractSet[int]: ...


class Verdict(NamedTuple):
    """The judgement of all cutoffs. `missing`, `early`, `false`: the cutoffs and arrivals concerned; `lateness_ns`:
    sorted, of first arrivals only, and only of cutoffs that were due since the instant `since_ns` of `judge`;
    `healthy_ns`: the part of it that belongs to healthy users, if the endpoint is sick for others.
    """

    expected: int
    received: int
    missing: list[Expected]
    early: list[Arrival]
    false: list[Arrival]
    doubled: int
    superseded: int
    lateness_ns: list[int]
    healthy_ns: list[int]

    @property
    def clean(self) -> bool:
        return not (self.missing or self.early or self.false)


def judge(
    accounts: Iterable[Claim],
    arrivals: Iterable[Arrival],
    since_ns: int = 0,
    is_sick: Callable[[str], bool] | None = None,
    seq_base: int = 0,
) -> Verdict:
    """Compares the expected cutoffs with the arrivals; of repeated arrivals the first counts. `since_ns`: only cutoffs
    due since then count for lateness; `is_sick(user_id)`: whether the endpoint fails for a user; None if for none.
    `seq_base`: of the daemon, see `ordinal`; 0 where no answer has shown it: the least seq that arrived is a first one.

    If one top-up overtook several cutoffs, those before the newest may have been sent or not: one request is under way
    at a time, oldest first.
    """
    owed: dict[tuple[str, int], Expected] = {}
    droppable: set[tuple[str, int]] = set()
    superseded = 0
    for account in accounts:
        for cutoff in account.cutoffs:
            owed[account.user_id, cutoff.seq] = cutoff
        droppable.update((account.user_id, seq) for seq in account.overtaken)
        for seq in account.superseded:
            del owed[account.user_id, seq]
            superseded += 1
    early: list[Arrival] = []
    false: list[Arrival] = []
    lateness_ns: list[int] = []
    healthy_ns: list[int] = []
    first: dict[tuple[str, int], str] = {}
    doubled = 0
    arrivals = sorted(arrivals, key=lambda each: each.arrived_ns)
    seq_base = seq_base or min((each.seq for each in arrivals if each.seq >= SECONDS_MIN), default=1) - 1
    for arrival in arrivals:
        key = arrival.user_id, ordinal(arrival.seq, seq_base)
        cutoff_of = owed.get(key)
        if cutoff_of is None or cutoff_of.at_ns != arrival.exhausted_at_ns:
            false.append(arrival)
        elif key in first:
            doubled += 1
            if first[key] != arrival.event_id:  # the same event must keep its name
                false.append(arrival)
        else:
            first[key] = arrival.event_id
            if cutoff_of.at_ns >= since_ns:
                lateness_ns.append(arrival.arrived_ns - cutoff_of.at_ns)
                if is_sick is not None and not is_sick(arrival.user_id):
                    healthy_ns.append(arrival.arrived_ns - cutoff_of.at_ns)
            if arrival.arrived_ns < cutoff_of.at_ns:
                early.append(arrival)
    unseen = [cutoff for key, cutoff in owed.items() if key not in first]
    missing = [cutoff for cutoff in unseen if (cutoff.user_id, cutoff.seq) not in droppable]
    superseded += len(unseen) - len(missing)
    received = len(first)
    return Verdict(
        received + len(missing),
        received,
        missing,
        early,
        false,
        doubled,
        superseded,
        sorted(lateness_ns),
        sorted(healthy_ns),
    )


def percentile(ordered: list[int], share: float) -> int:
    """The smallest value that at least this share of the (sorted, not empty) values does not exceed."""
    assert 0 < share <= 1, share
    return ordered[max(0, ceil(len(ordered) * Fraction(str(share))) - 1)]
