"""The plan of a replay: from machines to commands, each with the moment at which it is to be sent.

A trace second lasts 1/speed of a second, and each rate is the price times speed, so that a machine costs what it would
have cost: money runs out at the same point of the trace, `speed` times sooner. Prices are exact: 0.04 coins per
vCPU-hour and 0.005 per GB-hour.

A start is `set_rate(user, rate, {resource: vm_id, per: "hour"})`, an end is the same with rate 0; machines that outlive
the replay are stopped when it ends, so that a daemon is left without rates. A user's top-up follows from the cost of
his machines in the plan. Of the share that is to run dry (exactly, by seed):

    most      get a part of it, run dry, and their machines run on unpaid
    a fourth  are topped up once more afterwards, which restores them; they may run dry again
    a tenth   get next to nothing, so that machines are started by users who are dry already: a cutoff each

and of all others half (and all whose machines run for a moment only) get twice the cost at once, and half get it in
two parts, the second well before the first is spent. Those to run dry are drawn from users whose machines run long
enough that a command sent a little late does not save them, and they run dry before the last `MARGIN_NS`. Should the
replay fall far behind its plan all the same, others run dry, or fewer: the verdict follows what was answered, never the
plan.

Pure: the seed decides, and no clock is read. Integers throughout.
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
LEAD_NS: Final = SECOND_NS // 2  # the first top-up goes this long before the first machine
MARGIN_NS: Final = SECOND_NS // 10
RESERVE_NS: Final = 60 * SECOND_NS  # who is not to run dry has enough for all machines running so long in addition

TOP_UP: Final = "top_up"
SET_RATE: Final = "set_rate"


class Step(NamedTuple):
    """A command to be sent `due_ns` after the start of the replay. `value` is nanos, or nanos per hour."""

    due_ns: int
    user_id: str
    method: str
    value: int
    resource: str


class Plan(NamedTuple):
    """Steps in the order of sending. `dry` is how many users are to run dry."""

    users: list[str]
    dry: int
    machines: int
    steps: list[Step]
    end_ns: int


def rate_of(machine: Machine, speed: int) -> int:
    """What a machine costs, in nanos per hour of the replay. ValueError where the price has a fraction of a nano."""
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
    """The plan for `users_max` users drawn from all those of a trace (0: all), up to the trace second `cut_s`.

    `suffix` is put behind each user id, so that a daemon can be used again.
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
    """All commands for one user, in order: the first top-up, and then whatever comes first."""
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
        amount = 1 if kind < 0.1 else max(1, spending.total * rng.randrange(5, 95) // 100)
        top_ups = [(first_ns, amount)]
        if kind >= 0.75:
            dry_ns = spending.instant_of(amount)
            again_ns = dry_ns + (runs[-1].due_ns - dry_ns) * rng.randrange(10, 60) // 100
            top_ups.append((again_ns, max(1, spending.total * rng.randrange(1, 20) // 100)))
    steps = [Step(due_ns, user_id, TOP_UP, amount, "") for due_ns, amount in top_ups] + runs
    steps.sort(key=lambda step: step.due_ns)
    return steps


def _span_ns(machine: Machine, speed: int, end_ns: int) -> tuple[int, int]:
    """When it starts and stops in the replay."""
    start_ns = machine.start_s * SECOND_NS // speed + LEAD_NS
    if machine.duration_s is None:
        return start_ns, end_ns
    return start_ns, min(end_ns, start_ns + machine.duration_s * SECOND_NS // speed)


def _runs_ns(fleet: list[Machine], speed: int, end_ns: int) -> int:
    """From the first start to the last stop of a user's machines."""
    spans = [_span_ns(machine, speed, end_ns) for machine in fleet]
    return max(stop_ns for _, stop_ns in spans) - min(start_ns for start_ns, _ in spans)


class _Spending:
    """What one user's machines cost in total, and by when how much of it."""

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
        self._spent = list(accumulate(pieces, initial=0))  # at each instant, in nanos times nanoseconds an hour
        self.total = self._spent[-1] // HOUR_NS

    def until(self, at_ns: int) -> int:
        """What is spent by an instant, in nanos; 0 before the first machine."""
        at = bisect_right(self._instants, at_ns) - 1
        if at < 0:
            return 0
        return (self._spent[at] + self._rates[at] * (at_ns - self._instants[at])) // HOUR_NS

    def instant_of(self, nanos: int) -> int:
        """When so much is spent (the start, where it is nothing; the end, where it is more than all)."""
        wanted = nanos * HOUR_NS
        at = bisect_right(self._spent, wanted) - 1
        rate = self._rates[at]
        return self._instants[at] + ((wanted - self._spent[at]) // rate if rate else 0)
