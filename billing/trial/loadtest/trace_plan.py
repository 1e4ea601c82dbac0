"""What a trace becomes: every process makes the same plan of it, and sends its own users' part."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import msgspec

from billing.trial.loadtest.plan import Plan, make_plan
from billing.trial.loadtest.trace import read_trace


class Tracing(msgspec.Struct, frozen=True):
    """How a trace is replayed. `speed`: how many times faster; `users`: drawn from all, 0 for all; `dry`: the share of
    them that is to run dry, exactly, as "0.3"; `seconds`: of the replay, 0 for the whole trace.
    """

    file: str
    speed: int = 3600
    users: int = 0
    dry: str = "0.3"
    seconds: float = 0.0


def plan_of(tracing: Tracing, seed: int, suffix: str) -> Plan:
    """The plan; `suffix` is put behind each user id. Raises TraceError, and ValueError for what has no exact price."""
    return make_plan(
        read_trace(Path(tracing.file)),
        speed=tracing.speed,
        users_max=tracing.users,
        cut_s=int(tracing.seconds * tracing.speed) or None,
        dry_share=Fraction(tracing.dry),
        seed=seed,
        suffix=suffix,
    )
