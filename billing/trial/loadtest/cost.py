"""The CPU cost of a command and of a cutoff, from the CPU times of the daemon's processes at three instants.

Commands and cutoffs share the processes, so their costs have to be separated. If no commands were answered in the
measured time, all CPU time belongs to the cutoffs. If there are both, the cost of a storm is the CPU time beyond the
ordinary from its instant to its last arrival; the cost of a steady stream of cutoffs is the CPU time beyond that of the
warm-up, which has commands only. A cost that cannot be separated is None, and `note` says why.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from billing.trial.loadtest.watch import SERVING, Watch
from billing.trial.loadtest.workload import Workload
from shards.system.clock import MACHINE_CLOCKS

SHARE_MIN: Final = 0.25  # of all CPU time; a cost of the cutoffs is reported only if their share is at least this
STORM_BEFORE_NS: Final = 50_000_000
CUTOFFS_MIN: Final = 100


class Cost(NamedTuple):
    """Microseconds of CPU time; None if unknown."""

    us_per_command: float | None
    us_per_cutoff: float | None
    note: str


class Costs:
    """Reads the CPU times when the warm-up is half over, when it is over, and at the end."""

    def __init__(self, watch: Watch, start_ns: int, warm_ns: int, end_ns: int) -> None:
        """`start_ns`, `warm_ns`, `end_ns`: boot instants of the start, of the end of the warm-up, and of the end."""
        self.half_ns = (start_ns + warm_ns) // 2
        self.warm_ns = warm_ns
        self.end_ns = end_ns
        self.marks: list[dict[str, float]] = []
        self.instants: list[int] = []
        self._watch = watch

    async def run(self) -> None:
        """Waits for each of the three instants, and reads the CPU times then."""
        for instant_ns in (self.half_ns, self.warm_ns, self.end_ns):
            await asyncio.sleep(max(0, instant_ns - MACHINE_CLOCKS.boot_ns()) / 1e9)
            self.marks.append(self._watch.cpu_s())
            self.instants.append(MACHINE_CLOCKS.boot_ns())

    def serving_s(self, first: int, last: int) -> float:
        """CPU time of supervisor and workers between two marks."""
        return sum(self.marks[last].get(role, 0.0) - self.marks[first].get(role, 0.0) for role in SERVING)

    def seconds(self, first: int, last: int) -> float:
        """Time between two marks."""
        return max((self.instants[last] - self.instants[first]) / 1e9, 1e-9)

    def cores_by_role(self) -> dict[str, float]:
        """The cores that each role used in the measured time."""
        if not self.marks:
            return {}
        seconds = self.seconds(1, 2)
        return {
            role: round((value - self.marks[1].get(role, 0.0)) / seconds, 4) for role, value in self.marks[2].items()
        }

    def storm_s(self, from_ns: int, to_ns: int) -> tuple[float, float]:
        """(CPU time of supervisor and workers, elapsed time), in seconds, between the samples around a storm. Zeros if
        there are no such samples.
        """
        sums: dict[int, float] = {}
        for sample in self._watch.samples:
            if sample.role in SERVING:
                sums[sample.boot_ns] = sums.get(sample.boot_ns, 0.0) + sample.cpu_s
        before = max((at for at in sums if at <= from_ns), default=None)
        after = min((at for at in sums if at >= to_ns), default=None)
        if before is None or after is None:
            return 0.0, 0.0
        return sums[after] - sums[before], (after - before) / 1e9


def cost_of(costs: Costs, answered: int, cutoffs: int, load: Workload, last_after_s: float | None) -> Cost:
    """Computes the costs. `answered`: commands in the measured time; `cutoffs`: those that fell due in it and arrived;
    `last_after_s`: from the instant of a storm to its last arrival.
    """
    if len(costs.marks) < 3 or not costs.serving_s(1, 2):
        return Cost(None, None, "the daemon's processes could not be looked at")
    used_s, seconds = costs.serving_s(1, 2), costs.seconds(1, 2)
    if cutoffs < CUTOFFS_MIN:
        return Cost(used_s / answered * 1e6 if answered else None, None, "too few cutoffs to tell their cost")
    if not answered:
        return Cost(None, used_s / cutoffs * 1e6, "no commands beside the cutoffs")
    if load.storm and last_after_s is not None:
        at_ns = costs.warm_ns + (costs.end_ns - costs.warm_ns - 500_000_000) // 2
        storm_s, storm_seconds = costs.storm_s(at_ns - STORM_BEFORE_NS, at_ns + int(last_after_s * 1e9))
        rest_seconds = seconds - storm_seconds
        if storm_seconds and rest_seconds > 0.2 * seconds:
            a_second = (used_s - storm_s) / rest_seconds
            extra_s = storm_s - a_second * storm_seconds
            commands = answered * rest_seconds / seconds
            return Cost((used_s - storm_s) / commands * 1e6, extra_s / cutoffs * 1e6, "the storm apart from the rest")
        return Cost(used_s / answered * 1e6, None, "the storm took too much of the measured time to be told apart")
    warm_s = costs.serving_s(0, 1) / costs.seconds(0, 1)
    extra_s = used_s - warm_s * seconds
    if costs.seconds(0, 1) < 0.5 or extra_s < SHARE_MIN * used_s:
        return Cost(used_s / answered * 1e6, None, "cutoffs cost less than the noise of the commands; see --rate 0")
    return Cost(warm_s * seconds / answered * 1e6, extra_s / cutoffs * 1e6, "beyond what the warm-up used")
