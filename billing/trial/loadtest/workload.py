"""The workload: makes the commands for the daemon, in columns. Pure: the seed decides.

**The mix.** Commands arrive at an offered rate (Poisson: exponential gaps; or constant). Each command is of one of four
kinds, drawn by weight, for a user drawn uniformly or by Zipf's law (the user of rank k in proportion to k^-s). Accounts
of the mix are topped up beforehand with so much money that none runs dry.

**Aimed accounts** run dry at instants that are known to the nanosecond. A rate of one coin a second spends one nano in
a nanosecond, so a debit of N nanos brings the exhaustion forward by N nanoseconds: it aims the account. Aimed accounts
are topped up and aimed before the measurement and get no further commands, so that only time causes their cutoffs.
Their instants are spread over the measured time (`exhaust_per_second`), or are one instant halfway through it
(`storm`).

Several processes share the work: process p of P has the accounts whose number leaves the remainder p when divided by P,
and 1/P of the rate. So no two processes touch one account, and each can judge its own accounts.
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
AIMED_RATE: Final = COIN  # nanos a second: one nano in a nanosecond
AIMED_NANOS: Final = 10**6 * COIN  # enough for eleven days of that rate
KINDS: Final = (TOP_UP, RATE, DEBIT, READ)
AIM_MARGIN_NS: Final = SECOND_NS // 2  # no account is aimed at an instant in this last part of the measured time


class Workload(msgspec.Struct, frozen=True):
    """The parameters of a load. `mix`: weights of top-ups, rates, debits and reads. `skew`: 0 for uniform, else Zipf's
    s.
    """

    accounts: int = 50_000
    seconds: float = 10.0  # measured time
    warmup_s: float = 2.0  # before the measured time
    mix: tuple[int, int, int, int] = (40, 40, 20, 0)
    skew: float = 0.0
    arrivals: str = "poisson"  # or "constant"
    exhaust_per_second: float = 0.0
    storm: int = 0
    closed: bool = False
    seed: int = 1


class Share(msgspec.Struct, frozen=True):
    """The share of one process: process `number` of `of` processes, from 0."""

    number: int = 0
    of: int = 1

    def count(self, total: int) -> int:
        """How many of `total` things, numbered from 0, belong to this process."""
        return (total - self.number + self.of - 1) // self.of


def names(workload: Workload, share: Share, suffix: str) -> list[str]:
    """The user ids of a process: those of the mix, then the aimed ones. `suffix`: appended to each."""
    mixed = [f"u{number}{suffix}" for number in range(share.number, workload.accounts, share.of)]
    return mixed + [f"dry{number}{suffix}" for number in range(share.number, aimed_count(workload), share.of)]


def aimed_count(workload: Workload) -> int:
    """How many accounts are aimed in a run, over all processes."""
    return workload.storm + round(workload.exhaust_per_second * workload.seconds)


def aims(workload: Workload, share: Share, run: int) -> list[int]:
    """The instants at which a process's aimed accounts run dry, in nanoseconds after the start of the run."""
    rng = random.Random(f"{workload.seed}:{run}:aims")
    begin_ns = int(workload.warmup_s * SECOND_NS)
    span_ns = max(1, int(workload.seconds * SECOND_NS) - AIM_MARGIN_NS)
    spread = aimed_count(workload) - workload.storm
    instants_ns = [begin_ns + span_ns // 2] * workload.storm
    instants_ns += sorted(begin_ns + rng.randrange(span_ns) for _ in range(spread))
    return instants_ns[share.number :: share.of]


def preload(columns: Columns, first: bool, mixed: int) -> None:
    """Adds the top-ups before a run: the accounts of the mix get theirs before the first run only, the aimed accounts
    before each run. Before the first run the aimed accounts also get their rate. `mixed`: the number of accounts of the
    mix.
    """
    for user in range(0 if first else mixed, len(columns.users)):
        columns.add(0, user, TOP_UP, PRELOAD_NANOS if user < mixed else AIMED_NANOS)
    if first:
        for user in range(mixed, len(columns.users)):
            columns.add(0, user, RATE, AIMED_RATE)


def aim(columns: Columns, armed: dict[int, int], wanted_ns: dict[int, int]) -> None:
    """Adds the debits that aim the armed accounts. `armed`: user -> its coming exhaustion; `wanted_ns`: user -> the
    instant to aim at. Raises ValueError if an instant cannot be reached by a debit.
    """
    for user, coming_ns in armed.items():
        excess = coming_ns - wanted_ns[user]
        if excess <= 0 or excess >= AIMED_NANOS:
            raise ValueError(f"{columns.users[user]} cannot be aimed at an instant {-excess} ns after its own")
        columns.add(0, user, DEBIT, excess)


class Mixer:
    """Draws the commands of the mix for one process and one run, in the order of their due instants."""

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
        """Whether this process has no commands to draw: no accounts, or no weights."""
        return not self._users or not any(self._workload.mix)

    def until(self, columns: Columns, end_ns: int, rate: float) -> None:
        """Adds the commands that are due before an instant. `rate`: offered commands a second of all processes
        together.
        """
        if self.idle or not rate:
            return
        rng, gap_ns = self._rng, SECOND_NS * self._share.of / rate
        poisson = self._workload.arrivals == "poisson"
        due_ns = rng.expovariate(1.0) * gap_ns if poisson else gap_ns * self._share.number / self._share.of
        while due_ns < end_ns:
            self._draw(columns, int(due_ns))
            due_ns += rng.expovariate(1.0) * gap_ns if poisson else gap_ns

    def more(self, columns: Columns, count: int) -> None:
        """Adds `count` commands without due instants, for a closed loop."""
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
    """Adds a process's part of a plan made of a trace: the steps of the users in `columns`."""
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
