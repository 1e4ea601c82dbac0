"""Runs the steps of the aggregates when an operator's figures are read, between other requests.

Each reading of the figures begins up to `STEPS_MAX` steps of `aggregates`, `PAUSE_S` apart, so that no request waits
for a whole round. It logs a warning if more accounts than before are in a class that the configuration does not have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from billing.worker.aggregates import PAUSE_S, STEPS_MAX, Aggregates

log = logging.getLogger("billing.worker.aggregates")


class AggregateRounds:
    """The rounds of the aggregates of one served shard."""

    def __init__(self, aggregates: Aggregates, now_ns: Callable[[], int]) -> None:
        """`now_ns` reads billing time anew."""
        self._aggregates = aggregates
        self._now_ns = now_ns
        self._next: asyncio.TimerHandle | None = None  # the next step
        self._classless = 0  # accounts in a class that the configuration does not have, at the last reading

    def figures(self) -> dict[str, Any]:
        """The sums as far as they are computed now; begins the steps that are due."""
        if self._next is None and self._aggregates.is_due(self._now_ns()):
            self._step(STEPS_MAX)
        figures = self._aggregates.figures(self._now_ns())
        if (classless := figures["unknown_class_accounts"]) > self._classless:
            log.warning(
                "accounts in cutoff classes that the configuration does not have: %d; the default serves them",
                classless,
            )
        self._classless = classless
        return figures

    def _step(self, steps: int) -> None:
        """Makes a step, and schedules the next one until the round has ended or `steps` steps are made."""
        is_whole = self._aggregates.step(self._now_ns())
        is_over = is_whole or steps == 1
        self._next = None if is_over else asyncio.get_running_loop().call_later(PAUSE_S, self._step, steps - 1)

    def close(self) -> None:
        """Makes no further step."""
        if self._next is not None:
            self._next.cancel()
