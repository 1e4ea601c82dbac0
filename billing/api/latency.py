"""How long requests take, by door and method: from reading a request to writing its reply, as histograms.

Nothing here is done once a request. A door counts the requests of one read by method (`Reads.begin`), and when the
replies of all of them have left, it notes that one span for all of them. Replies may leave in another order than the
requests came; a read is taken to be answered when as many replies have left as were asked for up to its end. So a
figure is that of the slowest request of its read, and never too small for a connection that is answered in order.

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
        """`count` requests of this method took so long."""
        histogram = self._histograms.get((door, method))
        if histogram is None:
            histogram = self._histograms[door, method] = Histogram(REQUEST_NS)
        histogram.add(elapsed_ns, count)

    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Door, then method, then the histogram as plain data."""
        by_door: dict[str, dict[str, dict[str, Any]]] = {}
        for (door, method), histogram in self._histograms.items():
            by_door.setdefault(door, {})[method.decode()] = histogram.plain()
        return by_door


class Reads:
    """The reads of one connection whose replies have not all left; at most one for each request in flight."""

    __slots__ = ("_requests", "under_way")

    def __init__(self) -> None:
        self._requests = 0  # requests of all reads so far
        self.under_way: deque[tuple[int, int, Mapping[bytes, int]]] = deque()  # asked up to its end, when, by method

    def begin(self, at_ns: int, in_flight: int, counts: Mapping[bytes, int]) -> None:
        """A read at `at_ns` asked for `counts` requests by method; by its end `in_flight` more were in flight."""
        self._requests += in_flight
        self.under_way.append((self._requests, at_ns, counts))

    def answered(self, now_ns: int, in_flight: int, latency: RequestLatency, door: str) -> None:
        """Replies have left at `now_ns`, and `in_flight` requests are still to be answered."""
        under_way, replied = self.under_way, self._requests - in_flight
        while under_way and under_way[0][0] <= replied:
            _, at_ns, counts = under_way.popleft()
            for method, count in counts.items():
                latency.note(door, method, now_ns - at_ns, count)
