"""The plan of a replay: turns machines into commands, each with the instant at which it is due.

A trace second lasts 1/speed of a second, and each rate is the price times speed, so that a machine costs as much as in
the trace: money runs out at the same point of the trace, `speed` times sooner. Prices are exact: 0.04 coins per
vCPU-hour and 0.005 per GB-hour.

The start of a machine is `set_rate(user, rate, {resource: vm_id, per: "hour"})`, its end is the same with rate 0.
Machines that outlive the replay are stopped when it ends, so that the daemon is left without rates. A user's top-ups
follow from the cost of the user's machines in the plan. Among the users that are to run dry, whose number is exact and
who are drawn by seed:

    most      get a part of the cost, run dry, and their machines run on unpaid
    a fourth  are topped up once more afterwards, which restores them; they may run dry again
    a tenth   get next to nothing, so that they start machines when they are dry already: a cutoff each

Of all other users, half get twice the cost at once, as do all users whose machines run only for a moment; the rest get
the cost in two parts, the second well before the first is spent. The users that are to run dry are drawn from those
whose machines run long enough that a command sent a little late does not save them, and they are to run dry before the
last `MARGIN_NS`. If the replay falls far behind its plan all the same, other users run dry, or fewer: the verdict
follows the answers, never the plan.

Pure: the seed decides, and no clock is read. All numbers are integers.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable
from fractions import Fraction
from itertools import accumulate
from typing import Final, NamedTuple

from billing.trial.loadtest.trace import Machine

VCPU_HOUR_NANOS: Final = 40_000_000
GB_HOUR_NANOS: Final = 5_000_000
SECOND_NS: Final = 10**9
HOUR_NS: Final = 3600 * SECOND_NS
LEAD_NS: Final = SECOND_NS // 2  # the first top-up is due this long before the first machine
MARGIN_NS: Final = SECOND_NS // 10
RESERVE_NS: Final = 60 * SECOND_NS  # a user not to run dry can also pay all machines for this much longer

TOP_UP: Final = "top_up"
SET_RATE: Final = "set_rate"


class Step(NamedTuple):
    """A command that is due `due_ns` after the start of the replay. `value`: nanos of a top-up, nanos per hour of a
    rate.
    """

    due_ns: int
    user_id: str
    method: str
    value: int
    resource: str


class Plan(NamedTuple):
    """Steps in the order of sending. `dry`: the number of users that are to run dry."""

    users: list[str]
    dry: int
    machines: int
    steps: list[Step]
    end_ns: int


def rate_of(machine: Machine, speed: int) -> int:
    """The price of a machine, in nanos per hour of the replay. Raises ValueError if it has a fraction of a nano."""
    rate = (machine.vcpus * VCPU_HOUR_NANOS + machine.memory_gb * GB_HOUR_NANOS) * speed
    if rate.denominator != 1:
        raise ValueError(f"{machine.vm_id} with {machine.memory_gb} GB has no exact price in nanos")
    return rate.numerator


def make_plan(
    machines: Iterable[Machine],
    *,
    speed: int,
    users_max: int,
    cut_s: int | None,
    dry_share: Fraction,
    seed: int,
    suffix: str,
) -> Plan:
    """The plan for `users_max` users drawn from all users of a trace (0: all users), up to the trace second `cut_s`
    (None: to the end of the trace).

    `suffix` is appended to each user id, so that the next replay on the same daemon has other users.
    """
    rng = random.Random(seed)
    fleets: dict[str, list[Machine]] = {}
    for machine in machines:
        if cut_s is None or machine.start_s < cut_s:
            fleets.setdefault(machine.user_id, []).append(machine)
    names = list(fleets)
    if users_max and users_max < len(names):
        names = sorted(rng.sample(names, users_max))
    if cut_s is None:
        cut_s = max((fleet.start_s + (fleet.duration_s or 0) for name in names for fleet in fleets[name]), default=0)
    end_ns = cut_s * SECOND_NS // speed + LEAD_NS
    rng.shuffle(names)
    names.sort(key=lambda name: _runs_ns(fleets[name], speed, end_ns) < 2 * MARGIN_NS)  # stable: the long ones first
    dry = set(names[: round(dry_share * len(names))])
    names.sort()
    steps: list[Step] = []
    for name in names:
        steps += _steps(name + suffix, fleets[name], speed, end_ns, name in dry, rng)
    steps.sort(key=lambda step: step.due_ns)  # stable: steps of one user keep their order
    return Plan([name + suffix for name in names], len(dry), sum(len(fleets[name]) for name in names), steps, end_ns)


def _steps(user_id: str, fleet: list[Machine], speed: int, end_ns: int, dry: bool, rng: random.Random) -> list[Step]:
    """All commands for one user, in the order of their due instants, the first top-up first."""
    runs: list[Step] = []
    for machine in fleet:
        start_ns, stop_ns = _span_ns(machine, speed, end_ns)
        runs.append(Step(start_ns, user_id, SET_RATE, rate_of(machine, speed), machine.vm_id))
        runs.append(Step(stop_ns, user_id, SET_RATE, 0, machine.vm_id))
    runs.sort(key=lambda step: step.due_ns)
    spending = _Spending(runs)
    first_ns = runs[0].due_ns - LEAD_NS
    if not dry:
        reserve = sum(step.value for step in runs) * RESERVE_NS // HOUR_NS
        if rng.random() < 0.5 or runs[-1].due_ns - runs[0].due_ns < 10 * MARGIN_NS:
            top_ups = [(first_ns, 2 * spending.total + reserve)]
        else:
            half_spent_ns = spending.instant_of(spending.total * 3 // 10)
            top_ups = [(first_ns, spending.total * 6 // 10 + 1), (half_spent_ns, spending.total + reserve)]
    else:
        kind = rng.random()
        amount = max(1, min(spending.total * rng.randrange(5, 95) // 100, spending.until(runs[-1].due_ns - MARGIN_NS)))
        amount = 1 if kind < 0.1 else amount
        top_ups = [(first_ns, amount)]
        if kind >= 0.75:
            dry_ns = spending.instant_of(amount)
            again_ns = dry_ns + (runs[-1].due_ns - dry_ns) * rng.randrange(10, 60) // 100
            top_ups.append((again_ns, max(1, spending.total * rng.randrange(1, 20) // 100)))
    steps = [Step(due_ns, user_id, TOP_UP, amount, "") for due_ns, amount in top_ups] + runs
    steps.sort(key=lambda step: step.due_ns)
    return steps


def _span_ns(machine: Machine, speed: int, end_ns: int) -> tuple[int, int]:
    """The instants at which a machine starts and stops in the replay."""
    start_ns = machine.start_s * SECOND_NS // speed + LEAD_NS
    if machine.duration_s is None:
        return start_ns, end_ns
    return start_ns, min(end_ns, start_ns + machine.duration_s * SECOND_NS // speed)


def _runs_ns(fleet: list[Machine], speed: int, end_ns: int) -> int:
    """The time from the first start to the last stop of a user's machines."""
    spans = [_span_ns(machine, speed, end_ns) for machine in fleet]
    return max(stop_ns for _, stop_ns in spans) - min(start_ns for start_ns, _ in spans)


class _Spending:
    """The cost of one user's machines: in total, and until each instant."""

    def __init__(self, runs: list[Step]) -> None:
        lines: dict[str, int] = {}
        rate = 0
        self._rates: list[int] = []  # nanos per hour from each instant on
        self._instants = [step.due_ns for step in runs]
        for step in runs:
            rate += step.value - lines.get(step.resource, 0)
            lines[step.resource] = step.value
            self._rates.append(rate)
        pieces = (
            rate * (later - sooner)
            for rate, sooner, later in zip(self._rates, self._instants, self._instants[1:], strict=False)
        )
        self._spent = list(accumulate(pieces, initial=0))  # until each instant, in nanos an hour times nanoseconds
        self.total = self._spent[-1] // HOUR_NS

    def until(self, at_ns: int) -> int:
        """The money spent until an instant, in nanos; 0 before the first machine."""
        at = bisect_right(self._instants, at_ns) - 1
        if at < 0:
            return 0
        return (self._spent[at] + self._rates[at] * (at_ns - self._instants[at])) // HOUR_NS

    def instant_of(self, nanos: int) -> int:
        """The instant at which `nanos` are spent: the first start for 0, the last stop for more than the total."""
        wanted = nanos * HOUR_NS
        at = bisect_right(self._spent, wanted) - 1
        rate = self._rates[at]
        return self._instants[at] + ((wanted - self._spent[at]) // rate if rate else 0)
