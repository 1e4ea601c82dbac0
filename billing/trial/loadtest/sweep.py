"""The sweep: raises the offered rate until the daemon does not keep up, and then narrows down the knee, which is the
highest rate that the daemon sustains.

A step is sustained if its measurement is valid, money was right, and the 99th percentile of latency stayed within the
limit. A step that is not sustained is tried once more, since the noise of other processes must not end a sweep; the
better of the two counts, and both are kept. The rate grows by the factor `GROWTH` from step to step. After the first
rate that is not sustained, the gap to the last sustained one is halved `HALVINGS` times. A generator that becomes too
slow ends the sweep as a daemon does: the step is marked INVALID, since its rate tells nothing about the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from billing.trial.loadtest.conclusion import TOO_FEW, sustained, too_much
from billing.trial.loadtest.result import Result, Run, histogram_of
from billing.trial.loadtest.session import Session

GROWTH: Final = 1.5
HALVINGS: Final = 2
TRIES: Final = 2
STEPS_MAX: Final = 24


async def sweep(
    session: Session, first_per_s: float, limit_ms: float, result: Result, say: Callable[[str], None]
) -> None:
    """Runs the sweep, and stores its steps and its knee in `result`. `say(line)`: gets a line about each step."""
    good, bad, rate = 0.0, 0.0, first_per_s
    halvings = 0
    while len(result.steps) < STEPS_MAX and halvings <= HALVINGS:
        kept_up = False
        for _ in range(TRIES):
            step = await session.run(rate)
            result.steps.append(step)
            kept_up = sustained(step, limit_ms)
            say(_line(step, limit_ms))
            if kept_up or not step.clean:
                break
        if not result.clean:
            break
        if kept_up:
            good = max(good, rate)
        else:
            bad = min(bad or rate, rate)
        if bad and bad <= first_per_s:
            break
        if bad:
            halvings += 1
            rate = (good + bad) / 2
        else:
            rate *= GROWTH
    result.steps.sort(key=lambda step: step.offered_per_s)
    result.knee_per_s = good or None


def _line(step: Run, limit_ms: float) -> str:
    percentiles = histogram_of(step.latency).percentiles()
    latency = ", ".join(
        f"{'max' if key == 'max' else 'p' + key} {value / 1e6:.2f}" for key, value in percentiles.items()
    )
    return f"{step.offered_per_s:.0f} a second offered, {step.per_s:.0f} answered: {latency} ms; " + (
        "sustained" if sustained(step, limit_ms) else f"not sustained; {'; '.join(why_not(step, limit_ms))}"
    )


def why_not(step: Run, limit_ms: float) -> list[str]:
    """Why a step does not count as sustained."""
    if not step.clean:
        return ["money or cutoffs were wrong"]
    slow = too_much(step, limit_ms)
    return step.invalid_because or [
        f"its 99th percentile is above {limit_ms:g} ms" if slow else f"{TOO_FEW} (--duration)"
    ]
