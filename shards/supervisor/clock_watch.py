"""Looks at this host's clock by the rule of `clock_guard`, and says when it becomes doubtful, unfit, or good again."""

from __future__ import annotations

import logging
from typing import ClassVar

from shards import exits
from shards.supervisor.clock_guard import ClockGuard, Judgement
from shards.system.clock import Clocks

log = logging.getLogger("shards.supervisor.supervisor")

GOOD, DOUBTFUL, UNFIT = range(3)


class ClockUnfit(Exception):
    """This host's clock is too wrong, or too unsure, to serve."""

    ending: ClassVar[exits.Ending] = exits.AGAIN


class ClockWatch:
    """Watches the clock of one host. With `error_ns_max` 0 it is never unfit."""

    def __init__(self, clocks: Clocks, error_ns_max: int) -> None:
        self.guard = ClockGuard(error_ns_max)
        self.judgement = Judgement(0, "")
        self.state = GOOD
        self.is_disciplined = True
        self._clocks = clocks

    def look(self, boot_ns: int, wall_ns: int, billing_ns: int) -> str:
        """Why this host may not serve by its clock; "" where it may. As `ClockGuard.judge` takes them."""
        kernel, limit_ms = self._clocks.wall_error(), self.guard.error_ns_max // 10**6
        judgement = self.judgement = self.guard.judge(kernel, boot_ns, wall_ns, billing_ns)
        state = UNFIT if self.guard.is_unfit(judgement) else DOUBTFUL if self.guard.is_doubtful(judgement) else GOOD
        if not limit_ms:
            return ""
        if self.is_disciplined and not kernel.is_disciplined:
            log.warning("nobody keeps the clock of this host, as far as the kernel says")
        self.is_disciplined = kernel.is_disciplined
        if state > self.state and state == DOUBTFUL:
            log.warning("the clock of this host is doubtful: %s; it may be wrong by %d ms", judgement.text, limit_ms)
        elif state > self.state:
            log.error("the clock of this host is unfit to serve by: %s; %d ms are allowed", judgement.text, limit_ms)
        elif state == GOOD < self.state:
            log.info("the clock of this host is good again")
        self.state = state
        return judgement.text if state == UNFIT else ""
