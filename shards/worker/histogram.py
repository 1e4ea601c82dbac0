"""Counters of a worker's events, for metrics and the page: plain numbers, cheap enough to be always on.

A `Histogram` is a histogram: counts of values between fixed bounds, and their sum. As plain data it is
`{"bounds": [...], "counts": [...], "sum": n}`; `counts` has one more than `bounds`, for what is above the last, and a
value equal to a bound counts below it. All are whole numbers in the unit that the figure's name ends with.

`ExactHistogram` also keeps the newest values as they were, `"latest": [...]`, oldest first: a quantile of a few values
is one of them, and not a place within a bucket.

`Syncs` counts batches: how long the disk took for each, and how many records it held. `Pulse` beats on the loop and
measures by how much each beat was late, which is how long anything else would have waited there.

It never decides anything, and nothing here is done once a request.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any

BEAT_S = 0.1
WINDOW_NS = 30_000_000_000  # `Pulse.pause_max_ns` is of the last one to two of these

_MS = 1_000_000
_LATENESS_MS = (
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000),
    *(15_000, 60_000, 300_000, 1_800_000),
)
LATENESS_NS = tuple(int(ms * _MS) for ms in _LATENESS_MS)
SYNC_NS = tuple(int(ms * _MS) for ms in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 5000))
LAG_NS = tuple(int(ms * _MS) for ms in (1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 5000))
EXACT_VALUES = 64  # as many of the newest values are kept as they were
BATCH_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Histogram:
    """A histogram over rising bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        assert all(low < high for low, high in pairwise(bounds)), bounds
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int, count: int = 1) -> None:
        """Counts a value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def add_all(self, values: Sequence[int]) -> None:
        """Counts each of these values once."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)

    def quantile(self, share: float) -> int:
        """The smallest bound that this share of the values does not exceed; 0 before the first value, twice the last
        bound where the values lie beyond it.
        """
        remaining = share * sum(self.counts)
        for bound, count in zip(self.bounds, self.counts, strict=False):
            remaining -= count
            if remaining <= 0:
                return bound if any(self.counts) else 0
        return 2 * self.bounds[-1]

    def plain(self) -> dict[str, Any]:
        """The histogram as plain data, for the wire."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.total}


class ExactHistogram(Histogram):
    """A histogram that also keeps its newest values, for quantiles of few values."""

    __slots__ = ("latest",)

    def __init__(self, bounds: tuple[int, ...]) -> None:
        super().__init__(bounds)
        self.latest: deque[int] = deque(maxlen=EXACT_VALUES)

    def add(self, value: int, count: int = 1) -> None:
        super().add(value, count)
        self.latest.extend([value] * min(count, EXACT_VALUES))

    def add_all(self, values: Sequence[int]) -> None:
        super().add_all(values)
        self.latest.extend(values)

    def quantile(self, share: float) -> int:
        """The exact quantile while every value is kept; later as of `Histogram`."""
        if 0 < len(self.latest) == sum(self.counts):
            return exact_quantile(self.latest, share)
        return super().quantile(share)

    def plain(self) -> dict[str, Any]:
        return super().plain() | {"latest": list(self.latest)}


def exact_quantile(values: Iterable[int], share: float) -> int:
    """The smallest of the values that this share of them does not exceed; `values` is not empty."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1]


class Syncs:
    """Counts and times batches that are being written; at most one at a time."""

    __slots__ = ("_boot_ns", "_since_ns", "batches", "records", "sizes", "took")

    def __init__(self, boot_ns: Callable[[], int]) -> None:
        """`boot_ns`: the boot clock."""
        self._boot_ns = boot_ns
        self.batches = 0
        self.records = 0
        self.took = ExactHistogram(SYNC_NS)  # from handing a batch over to hearing that it is durable
        self.sizes = Histogram(BATCH_RECORDS)
        self._since_ns = 0  # since when what is under way is; 0: nothing is

    def begin(self) -> None:
        """A batch or barrier was handed to the journal, for the first time or again."""
        self._since_ns = self._since_ns or self._boot_ns()

    def end(self, records: int) -> None:
        """The batch is durable."""
        self.batches += 1
        self.records += records
        self.took.add(self._boot_ns() - self._since_ns)
        self.sizes.add(records)
        self._since_ns = 0

    def rest(self) -> None:
        """What was being written was an idle barrier, and no batch."""
        self._since_ns = 0

    def waiting_ns(self) -> int:
        """How long the batch or barrier under way has taken so far; 0 where none is."""
        return self._boot_ns() - self._since_ns if self._since_ns else 0

    def figures(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "batches": self.batches,
            "records": self.records,
            "sync_ns": self.took.plain(),
            "batch_records": self.sizes.plain(),
            "sync_waiting_ns": self.waiting_ns(),
        }


class Pulse:
    """Beats on the loop that it is made in, until `close`."""

    def __init__(self, boot_ns: Callable[[], int]) -> None:
        """`boot_ns`: the boot clock."""
        self._boot_ns = boot_ns
        self.lag = Histogram(LAG_NS)
        self._loop = asyncio.get_running_loop()
        self._window_ns = self._boot_ns()
        self._max_ns = [0, 0]  # the longest pause of this window, and of the one before
        self._due_ns = 0
        self._beat()

    def _beat(self) -> None:
        now_ns = self._boot_ns()
        if self._due_ns:
            late_ns = max(0, now_ns - self._due_ns)
            self.lag.add(late_ns)
            if now_ns - self._window_ns > WINDOW_NS:
                self._window_ns = now_ns
                self._max_ns = [0, self._max_ns[0]]
            self._max_ns[0] = max(self._max_ns[0], late_ns)
        self._due_ns = now_ns + int(BEAT_S * 1e9)
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def figures(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"loop_lag_ns": self.lag.plain(), "pause_max_ns": max(self._max_ns)}

    def close(self) -> None:
        """Beats no more."""
        self._timer.cancel()
