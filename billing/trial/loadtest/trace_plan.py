"""The options of a replay, and the plan made of them. Every process makes the same plan of a trace, and sends the part
of its own users.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import msgspec

from billing.trial.loadtest.plan import Plan, make_plan
from billing.trial.loadtest.trace import read_trace


class Tracing(msgspec.Struct, frozen=True):
    """The options of a replay. `speed`: how many times faster than the trace; `users`: how many users are drawn, 0 for
    all; `dry`: the exact share of these users that is to run dry, as "0.3"; `seconds`: length of the replay, 0 for the
    whole trace.
    """

    file: str
    speed: int = 3600
    users: int = 0
    dry: str = "0.3"
    seconds: float = 0.0


def plan_of(tracing: Tracing, seed: int, suffix: str) -> Plan:
    """Makes the plan. `suffix`: appended to each user id. Raises TraceError, and ValueError for a machine without an
    exact price.
    """
    return make_plan(
        read_trace(Path(tracing.file)),
        speed=tracing.speed,
        users_max=tracing.users,
        cut_s=int(tracing.seconds * tracing.speed) or None,
        dry_share=Fraction(tracing.dry),
        seed=seed,
        suffix=suffix,
    )
