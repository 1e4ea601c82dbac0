"""What surrounds an outbox in its tests: a ledger, an endpoint, and time that jumps from event to event."""

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

from billing.expirationd.health import OK, TIMED_OUT, Pace
from billing.expirationd.lane import Item
from billing.expirationd.outbox import Outbox

S = 10**9
MS = 10**6
Answer = tuple[int, int, int]  # outcome, how long it takes, Retry-After (-1: none)


class World:
    """A ledger that knows what is owed, an endpoint that answers, and a clock that jumps from event to event."""

    def __init__(self, pace: Pace | None = None, lanes: int = 1) -> None:
        self.outbox = Outbox(pace or Pace(jitter=0.0), lanes, random.Random(1))
        self.now_ns = 0
        self.owed: dict[tuple[int, bytes], list[tuple[str, int, int]]] = {}  # kind, seq, exhausted_at_ns
        self.lane_of = {"cutoff": 0, "restore": lanes - 1}
        self.answer: Callable[[Item], Answer] = lambda item: (OK, MS, -1)
        self.attempts: list[tuple[int, bytes, str, int]] = []  # when, user, kind, seq
        self.cut: list[tuple[int, bytes]] = []  # when, user
        self._flying: dict[Item, int] = {}
        self._results: list[tuple[int, int, Item, int, int]] = []
        self._count = 0

    def owe(self, user_id: bytes, seq: int = 1, since_ns: int | None = None, kind: str = "cutoff") -> None:
        since_ns = self.now_ns if since_ns is None else since_ns
        self.owed.setdefault((1, user_id), []).append((kind, seq, since_ns))
        self.outbox.owe(1, user_id, since_ns, self.lane_of[kind])

    def send_what_is_due(self) -> None:
        while (item := self.outbox.take(self.now_ns)) is not None:
            key = (item.bucket_id, item.user_id)
            events = self.owed.get(key)
            if not events:
                self.outbox.forget(item)
                continue
            kind, seq, since_ns = events[0]
            if self.outbox.begin(item, (kind, seq), self.lane_of[kind], since_ns, self.now_ns):
                self.attempts.append((self.now_ns, item.user_id, kind, seq))
                outcome, latency_ns, retry_after_ns = self.answer(item)
                patience_ns = self.outbox.lanes[item.lane].patience_ns
                if latency_ns > patience_ns:
                    outcome, latency_ns, retry_after_ns = TIMED_OUT, patience_ns, -1
                self._count += 1
                self._flying[item] = self._count
                result = (self.now_ns + latency_ns, self._count, item, outcome, retry_after_ns)
                heapq.heappush(self._results, result)

    def run(self, until_ns: int) -> None:
        while True:
            self.send_what_is_due()
            wake_ns = self.outbox.next_wake_ns(self.now_ns)
            cut_ns = self.outbox.next_cut_ns(self.now_ns)
            result_ns = self._results[0][0] if self._results else -1
            coming = [at_ns for at_ns in (wake_ns, cut_ns, result_ns) if at_ns >= 0]
            if not coming or min(coming) > until_ns:
                self.now_ns = max(self.now_ns, until_ns)
                return
            self.now_ns = min(coming)
            while self._results and self._results[0][0] <= self.now_ns:
                _, count, item, outcome, retry_after_ns = heapq.heappop(self._results)
                if self._flying.get(item) == count:
                    self._finish(item, outcome, retry_after_ns)
            for item in self.outbox.cut(self.now_ns):
                self.cut.append((self.now_ns, item.user_id))
                self._finish(item, TIMED_OUT, -1)

    def _finish(self, item: Item, outcome: int, retry_after_ns: int) -> None:
        del self._flying[item]
        events = self.owed[item.bucket_id, item.user_id]
        if outcome == OK:
            events.pop(0)
        self.outbox.finish(item, outcome, self.now_ns, retry_after_ns, bool(events))

    def gaps(self, user_id: bytes) -> list[float]:
        instants = [at_ns for at_ns, user, _, _ in self.attempts if user == user_id]
        return [round((late - early) / S, 3) for early, late in pairwise(instants)]
