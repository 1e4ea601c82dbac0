"""Measures how many calls per second the endpoint takes. Pure.

The number of answers measures the endpoint only while as many calls are in flight as are permitted; at other times it
measures how many calls there were to send. So answers are counted in windows of `WINDOW_NS` during which that number
was in flight; a shorter window counts if it holds `ANSWERS_MIN` answers.
"""

from __future__ import annotations

from typing import Final

WINDOW_NS: Final = 100_000_000
ANSWERS_MIN: Final = 128


class Throughput:
    """The measurement of one delivery. `per_second` is the latest result, -1 before the first window has ended."""

    __slots__ = ("_answers", "_since_ns", "per_second")

    def __init__(self) -> None:
        self.per_second = -1
        self._since_ns = 0
        self._answers = 0

    def answered(self, now_ns: int, saturated: bool, count: int = 1) -> None:
        """So many calls got a 2xx. `saturated`: as many calls are in flight as are permitted."""
        if not self._since_ns:
            if saturated:
                self._since_ns, self._answers = now_ns, 0
            return
        self._answers += count
        spent_ns = now_ns - self._since_ns
        if spent_ns >= WINDOW_NS or (not saturated and self._answers >= ANSWERS_MIN and spent_ns > 0):
            self.per_second = max(1, self._answers * 10**9 // spent_ns)
            self._since_ns, self._answers = now_ns if saturated else 0, 0
        elif not saturated:
            self._since_ns = 0
