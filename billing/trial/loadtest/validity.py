"""The validity of a measurement: VALID or INVALID, and why. Pure.

A generator that cannot keep up measures itself. A measurement is VALID if

    the generator was on time      99 % of the commands left within `LATENESS_NS` of the instants at which they were
                                   due, or within a tenth of the 99th percentile of latency, whichever is more
    the generator had room         each of its processes used less than `CPU_MAX` of a core
    the generator sent everything  every planned command was sent
    there was enough               at least `SAMPLES_MIN` samples, so that a median can be reported

A command that had to wait for the server, because `--depth` commands were open already, is no fault of the generator:
its latency counts from the instant at which it was due anyway.
"""

from __future__ import annotations

from typing import Final

from billing.trial.loadtest.latency import Histogram
from shards.counting import counted

LATENESS_NS: Final = 2_000_000
LATENCY_SHARE: Final = 0.1
CPU_MAX: Final = 0.9
SAMPLES_MIN: Final = 200
REMEDY: Final = "it needs more --processes, cores that nothing else uses, or a lower --rate"
CRITERIA: Final = (
    "VALID means: 99 % of the commands left within 2 ms of their intended moments (or a tenth of the p99 latency), "
    "each generator process used less than 90 % of a core, and every planned command was sent."
)


def faults(
    *, open_loop: bool, planned: int, sent: int, latency: Histogram, lateness: Histogram, cores: float
) -> list[str]:
    """The reasons why a measurement is INVALID; empty if it is VALID. `cores`: the cores that the busiest generator
    process used.
    """
    reasons = []
    if sent < planned:
        were = "was" if planned - sent == 1 else "were"
        reasons.append(f"{planned - sent:,} of {counted(planned, 'planned command')} {were} not sent: {REMEDY}")
    if planned and latency.total < SAMPLES_MIN:
        reasons.append(
            f"only {latency.total} samples, of which no median can be told: it needs a longer --duration or a higher "
            "--rate"
        )
    if open_loop and lateness.total:
        late_ns, allowed_ns = lateness.value_at(0.99), max(LATENESS_NS, latency.value_at(0.99) * LATENCY_SHARE)
        if late_ns > allowed_ns:
            reasons.append(
                f"the load generator was late, not the daemon: 1 % of the commands left {late_ns / 1e6:.2f} ms or more "
                f"after their moments, allowed are {allowed_ns / 1e6:.2f} ms: {REMEDY}"
            )
    if cores > CPU_MAX:
        reasons.append(f"a process of the load generator used {cores:.0%} of its core: {REMEDY}")
    return reasons
