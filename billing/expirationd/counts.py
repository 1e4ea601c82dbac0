"""What came of a worker's calls since its start: counters by kind, and how late cutoffs were.

A delivery that takes the place of another one goes on with its counts, so a reload of the configuration sets nothing
back. Only the measured throughput begins anew, because the endpoint may be another one.
"""

from __future__ import annotations

from collections.abc import Iterable

from shards.worker.histogram import LATENESS_NS, ExactHistogram, Histogram


class CallCounts:
    """The counts of all deliveries of one worker. `started`, `delivered`, `failed`: calls by kind."""

    __slots__ = ("delivered", "done_late", "dropped", "failed", "sent_late", "started")

    def __init__(self, kinds: Iterable[str]) -> None:
        self.started: dict[str, int] = {}
        self.delivered: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.dropped = 0
        self.sent_late = ExactHistogram(LATENESS_NS)  # from E, or the end of the grace, to each cutoff's first attempt
        self.done_late = Histogram(LATENESS_NS)  # from E, or the end of the grace, to its 2xx
        self.add_kinds(kinds)

    def add_kinds(self, kinds: Iterable[str]) -> None:
        """Counts calls of these kinds, too."""
        for counter in (self.started, self.delivered, self.failed):
            for kind in kinds:
                counter.setdefault(kind, 0)
