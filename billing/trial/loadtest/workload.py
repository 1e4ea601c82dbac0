"""What is asked of the daemon: pure, seeded, in columns.

**The mix.** Commands arrive at an offered rate (Poisson: exponential gaps; or constant), each one of four kinds drawn
by weight, for a user drawn uniformly or by Zipf's law (the user of rank k in proportion to k^-s). Accounts of the mix
are topped up with so much beforehand that none runs dry.

**Aimed accounts** run dry at instants that are known to the nanosecond: a rate of one coin a second spends one nano in
a nanosecond, so a debit of as many nanos as the exhaustion is too late brings it to its instant. They are armed and
aimed before the measurement and then left alone, so that their cutoffs are caused by time and nothing else: spread
over the measured time (`exhaust_per_second`), or all at one instant, halfway through it (`storm`).

Several processes share the work: process p of P has the accounts whose number leaves p when divided by P, and a P-th of
the rate. So no two processes touch one account, and each can judge its own.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from itertools import accumulate
from typing import Final

import msgspec

from billing.trial.loadtest.columns import DEBIT, LINE_RATE, RATE, READ, TOP_UP, Columns
from billing.trial.loadtest.plan import TOP_UP as STEP_TOP_UP
from billing.trial.loadtest.plan import Plan

COIN: Final = 10**9
SECOND_NS: Final = 10**9
PRELOAD_NANOS: Final = 1000 * COIN
AIMED_RATE: Final = COIN  # nanos a second: one in a nanosecond
AIMED_NANOS: Final = 10**6 * COIN  # eleven days of it
KINDS: Final = (TOP_UP, RATE, DEBIT, READ)
AIM_MARGIN_NS: Final = SECOND_NS // 2  # nothing is aimed at so short a time before the end


class Workload(msgspec.Struct, frozen=True):
    """What is asked for. `mix`: weights of top-ups, rates, debits and reads. `skew`: 0 for uniform, else Zipf's s."""

    accounts: int = 50_000
    seconds: float = 10.0  # measured
    warmup_s: float = 2.0  # before that
    mix: tuple[int, int, int, int] = (40, 40, 20, 0)
    skew: float = 0.0
    arrivals: str = "poisson"  # or "constant"
    exhaust_per_second: float = 0.0
    storm: int = 0
    closed: bool = False
    seed: int = 1


class Share(msgspec.Struct, frozen=True):
    """Process `number` of `of`, from 0."""

    number: int = 0
    of: int = 1

    def count(self, total: int) -> int:
        """How many of things numbered from 0 to total - 1 are this process's."""
        return (total - self.number + self.of - 1) // self.of


def names(workload: Workload, share: Share, suffix: str) -> list[str]:
    """The users of a process: those of the mix, then the aimed ones."""
    mixed = [f"u{number}{suffix}" for number in range(share.number, workload.accounts, share.of)]
    return mixed + [f"dry{number}{suffix}" for number in range(share.number, aimed_count(workload), share.of)]


def aimed_count(workload: Workload) -> int:
    """How many accounts run dry in a run, in all processes."""
    return workload.storm + round(workload.exhaust_per_second * workload.seconds)


def aims(workload: Workload, share: Share, run: int) -> list[int]:
    """When a process's aimed accounts run dry: nanoseconds after the start of the run."""
    rng = random.Random(f"{workload.seed}:{run}:aims")
    begin_ns = int(workload.warmup_s * SECOND_NS)
    span_ns = max(1, int(workload.seconds * SECOND_NS) - AIM_MARGIN_NS)
    spread = aimed_count(workload) - workload.storm
    instants_ns = [begin_ns + span_ns // 2] * workload.storm
    instants_ns += sorted(begin_ns + rng.randrange(span_ns) for _ in range(spread))
    return instants_ns[share.number :: share.of]


def preload(columns: Columns, first: bool, mixed: int) -> None:
    """Top-ups: of the accounts of the mix once, before the first run; of the aimed ones before each."""
    for user in range(0 if first else mixed, len(columns.users)):
        columns.add(0, user, TOP_UP, PRELOAD_NANOS if user < mixed else AIMED_NANOS)
    if first:
        for user in range(mixed, len(columns.users)):
            columns.add(0, user, RATE, AIMED_RATE)


def aim(columns: Columns, armed: dict[int, int], wanted_ns: dict[int, int]) -> None:
    """Debits that bring each armed account (user -> its coming instant) to the instant wanted of it. ValueError where
    that has gone by.
    """
    for user, coming_ns in armed.items():
        excess = coming_ns - wanted_ns[user]
        if excess <= 0 or excess >= AIMED_NANOS:
            raise ValueError(f"{columns.users[user]} cannot be aimed at an instant {-excess} ns after its own")
        columns.add(0, user, DEBIT, excess)


class Mixer:
    """Draws the commands of the mix for one process and one run, in the order of their moments."""

    def __init__(self, workload: Workload, share: Share, run: int) -> None:
        self._rng = random.Random(f"{workload.seed}:{run}:{share.number}")
        self._users = share.count(workload.accounts)
        self._workload = workload
        self._share = share
        self._kinds = list(accumulate(workload.mix))
        weights = (rank**-workload.skew for rank in range(1, self._users + 1))
        self._ranks = list(accumulate(weights)) if workload.skew else []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to draw."""
        return not self._users or not any(self._workload.mix)

    def until(self, columns: Columns, end_ns: int, rate: float) -> None:
        """All arrivals before an instant, at an offered rate a second of all processes together."""
        if self.idle or not rate:
            return
        rng, gap_ns = self._rng, SECOND_NS * self._share.of / rate
        poisson = self._workload.arrivals == "poisson"
        due_ns = rng.expovariate(1.0) * gap_ns if poisson else gap_ns * self._share.number / self._share.of
        while due_ns < end_ns:
            self._draw(columns, int(due_ns))
            due_ns += rng.expovariate(1.0) * gap_ns if poisson else gap_ns

    def more(self, columns: Columns, count: int) -> None:
        """So many commands without moments, for a closed loop."""
        for _ in range(0 if self.idle else count):
            self._draw(columns, 0)

    def _draw(self, columns: Columns, due_ns: int) -> None:
        rng, kinds, ranks, users = self._rng, self._kinds, self._ranks, self._users
        drawn = rng.random() * kinds[-1]
        kind = KINDS[0 if drawn < kinds[0] else 1 if drawn < kinds[1] else 2 if drawn < kinds[2] else 3]
        user = bisect_left(ranks, rng.random() * ranks[-1]) if ranks else int(rng.random() * users)
        columns.add(due_ns, min(user, users - 1), kind, _value(rng, kind))


def _value(rng: random.Random, kind: int) -> int:
    if kind == TOP_UP:
        return 1 + int(rng.random() * 10 * COIN)
    if kind == RATE:
        return int(rng.random() * 1000)
    return 0 if kind == READ else 1 + int(rng.random() * COIN)


def traced(columns: Columns, plan: Plan, share: Share) -> None:
    """A process's part of a plan made of a trace."""
    number_of = {user: number for number, user in enumerate(columns.users)}
    lines: dict[str, int] = {"": 0}
    for step in plan.steps:
        user = number_of.get(step.user_id)
        if user is None:
            continue
        if step.method == STEP_TOP_UP:
            columns.add(step.due_ns, user, TOP_UP, step.value)
            continue
        line = lines.setdefault(step.resource, len(lines))
        if line == len(columns.resources):
            columns.resources.append(step.resource)
        columns.add(step.due_ns, user, LINE_RATE, step.value, line)
