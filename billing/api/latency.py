"""How long requests take, by door and method: from reading a request to writing its reply, as histograms.

No work is done per request. A door counts the requests of one read by method (`Reads.begin`); when the replies to all
of them have left, it notes that one span for all of them. Replies may leave in another order than the requests came. A
read therefore counts as answered when as many replies have left as requests had come up to its end. So the figure of a
read is that of its slowest request, and it is never too small for a connection that is answered in order.

Doors that answer requests one at a time (HTTP) call `RequestLatency.note` with a count of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from shards.worker.histogram import Histogram

_MS: Final = 1_000_000
_BOUNDS_MS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000)
REQUEST_NS: Final = tuple(int(ms * _MS) for ms in _BOUNDS_MS)


class RequestLatency:
    """The histograms of one worker, in nanoseconds."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, bytes], Histogram] = {}

    def note(self, door: str, method: bytes, elapsed_ns: int, count: int = 1) -> None:
        """Adds `count` requests of a method that took `elapsed_ns` each."""
        histogram = self._histograms.get((door, method))
        if histogram is None:
            histogram = self._histograms[door, method] = Histogram(REQUEST_NS)
        histogram.add(elapsed_ns, count)

    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns door -> method -> histogram, as plain data."""
        by_door: dict[str, dict[str, dict[str, Any]]] = {}
        for (door, method), histogram in self._histograms.items():
            by_door.setdefault(door, {})[method.decode()] = histogram.plain()
        return by_door


class Reads:
    """The reads of one connection whose replies have not all left; at most one for each request in flight."""

    __slots__ = ("_requests", "under_way")

    def __init__(self) -> None:
        self._requests = 0  # requests of all reads so far
        # (requests of all reads up to its end, instant, requests by method) of each read
        self.under_way: deque[tuple[int, int, Mapping[bytes, int]]] = deque()

    def begin(self, at_ns: int, in_flight: int, counts: Mapping[bytes, int]) -> None:
        """Adds a read at `at_ns` with `counts` requests by method; it added `in_flight` to the requests in flight."""
        self._requests += in_flight
        self.under_way.append((self._requests, at_ns, counts))

    def answered(self, now_ns: int, in_flight: int, latency: RequestLatency, door: str) -> None:
        """Notes the latency of the reads that are answered at `now_ns`, when `in_flight` requests are unanswered."""
        under_way, replied = self.under_way, self._requests - in_flight
        while under_way and under_way[0][0] <= replied:
            _, at_ns, counts = under_way.popleft()
            for method, count in counts.items():
                latency.note(door, method, now_ns - at_ns, count)
