"""One endpoint's lane: the queues of its next calls, how many it has in flight, and which call goes next. Pure.

An *item* records that a call is owed for one account. An item that is ready or waits stands in a queue of its lane, and
one in flight uses a sender of it. Nothing of a lane depends on another lane: see `outbox`, which moves the items.

**Order.** Events never attempted go first, oldest exhaustion instant first. Retries follow in the order of their due
instants. While both wait, one take in `RETRY_TURN` takes a retry, so new events cannot starve retries.

**Concurrency.** At most `concurrency` calls are in flight; at most half of them are retries, and at most a quarter are
retries after a time-out. A call *hangs* when it has been in flight for longer than `slow_ns`: four times the usual
duration of successful calls, and never less than `hang_min_ns`. If all senders are busy, events never attempted wait
and more than half of the concurrency hangs, `cut` names the hanging calls except the oldest half of the concurrency:
delivery ends them, and they are retried like any call that was not answered in time. The oldest half keep their full
time, so that an endpoint that is slow for everybody can show how long it needs. If the endpoint serves others, a new
event need not wait for that: an eighth of the senders is kept free of retries, and hanging calls beyond that half are
ended even before a new event waits, if a call has succeeded since they were begun.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop
from itertools import islice
from typing import Final

from billing.expirationd.health import Account, Health, Pace

FRESH: Final = 0
RETRY: Final = 1
FLYING: Final = 2
PARKED: Final = 3

RETRY_TURN: Final = 8
ANY: Final = 0  # shares of the concurrency
RETRIES: Final = 1
SLOW_RETRIES: Final = 2


class Item:
    """One account for which a call is owed, or may be."""

    __slots__ = (
        *("again", "begun_ns", "bucket_id", "due_ns", "event", "failing_since_ns", "failures", "hold", "lane"),
        *("notified", "serial", "share", "since_ns", "slow", "state", "user_id", "waits"),
    )

    def __init__(self, bucket_id: int, user_id: bytes, since_ns: int, lane: int) -> None:
        self.bucket_id = bucket_id
        self.user_id = user_id
        self.since_ns = since_ns
        self.lane = lane
        self.state = FRESH
        self.serial = 0  # of its one valid place in a queue
        self.notified: tuple[str, int] | None = None  # kind and seq of the newest call that may be sent; None: any call
        self.event: Hashable = None  # that all of the following fields are about; None: none yet, and they say nothing
        self.failures = 0  # calls that failed, and connections that could not be opened
        self.waits = 0  # how many waits of the schedule were used
        self.failing_since_ns = 0
        self.due_ns = 0  # not to be begun before this instant
        self.slow = False  # its last call was not answered in time
        self.again = False  # reported again while it was in flight
        self.share = ANY  # the share of the concurrency that it uses while in flight
        self.begun_ns = -1  # since when it has been in flight with a request; -1: not yet
        self.hold = 0  # `begin` parks it unless this release has happened; 0: it does not

    @property
    def account(self) -> Account:
        """(bucket_id, user_id)"""
        return self.bucket_id, self.user_id

    def hear(self, notified: tuple[str, int]) -> None:
        """Notes that calls up to (kind, seq) may be sent; an older notification that comes later changes nothing. The
        order is by the account's newest seq at that time, also where the restore that became owed is for an older
        cutoff; a restore comes behind a cutoff, as "restore" does in the alphabet.
        """
        if self.notified is None or notified[::-1] > self.notified[::-1]:
            self.notified = notified

    def new_event(self, event: Hashable) -> None:
        """Turns the item to this event, for which no call was attempted, and clears the state of retry."""
        self.event, self.failures, self.waits, self.due_ns, self.slow = event, 0, 0, 0, False


Queue = list[tuple[int, int, Item]]


class Lane(Health):
    """One endpoint: the queues of its next calls, its calls in flight, and its health."""

    __slots__ = (
        *("_crowd", "_full", "_retries_max", "_slow_max", "called", "fresh", "in_flight", "retries"),
        *("retries_in_flight", "slow", "slow_in_flight", "turn"),
    )

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self.fresh: Queue = []  # (since_ns, serial, item): events never attempted
        self.retries: Queue = []  # (due_ns, serial, item)
        self.slow: Queue = []  # likewise retries, of users whose last call was not answered in time
        self.in_flight = 0
        self.retries_in_flight = 0
        self.slow_in_flight = 0
        self.called: dict[Item, None] = {}  # items in flight with a request, in the order of `begun_ns`
        self.turn = 0  # takes of new events since a retry was taken last
        self._full = pace.concurrency
        self._crowd = pace.concurrency - pace.concurrency // 8  # so many in flight leave an eighth of the senders free
        self._retries_max = max(1, pace.concurrency // 2)
        self._slow_max = max(1, pace.concurrency // 4)

    @property
    def is_full(self) -> bool:
        """Whether no sender is free."""
        return self.in_flight >= self._full

    @property
    def is_crowded(self) -> bool:
        """Whether no more senders are free than the eighth that is kept for new events."""
        return self.in_flight >= self._crowd

    def next_queue(self, now_ns: int) -> Queue | None:
        """The queue whose first item is to be attempted now; None if there is none."""
        if self.in_flight >= self._full:
            return None
        has_fresh = bool(tidy(self.fresh)) and self.admits_fresh(now_ns)
        is_retrys = self.turn >= RETRY_TURN - 1 if has_fresh else not self.is_crowded
        if is_retrys and (self.retries or self.slow) and self.admits_retry(now_ns):
            due = [queue for queue in self._open_queues() if queue[0][0] <= now_ns]
            if due:
                return min(due)  # by their first entries
        return self.fresh if has_fresh else None

    def has_room_for(self, item: Item, now_ns: int) -> bool:
        """Whether an item that was taken for another lane may be attempted here now."""
        if self.in_flight >= self._full:
            return False
        if not item.waits:
            return self.admits_fresh(now_ns)
        if self.retries_in_flight >= self._retries_max or (item.slow and self.slow_in_flight >= self._slow_max):
            return False
        return self.admits_retry(now_ns)

    def wakes_ns(self, now_ns: int) -> list[int]:
        """When `next_queue` may name each of the queues if nothing changes until then; now at the earliest."""
        wakes_ns: list[int] = []
        if self.in_flight < self._full:
            if tidy(self.fresh):
                wakes_ns.append(self.fresh_from_ns() if self.shut else now_ns)
            if not self.is_crowded:
                since_ns = self.probe_after_ns if self.shut else now_ns
                wakes_ns += [max(queue[0][0], since_ns) for queue in self._open_queues()]
        return wakes_ns

    def cut(self, now_ns: int) -> list[Item]:
        """The hanging calls to end now, in favour of events never attempted."""
        waited_for = self.is_full and bool(tidy(self.fresh)) and self.admits_fresh(now_ns)
        if not (waited_for or self.is_crowded):
            return []
        slow_ns = self.slow_ns()
        hanging = [item for item in self.called if now_ns - item.begun_ns >= slow_ns]
        return [item for item in hanging[self._retries_max :] if waited_for or self._is_passed_by(item)]

    def next_cut_ns(self, now_ns: int) -> int:
        """The instant at which `cut` may name calls if nothing changes until then; -1 if it will name none."""
        if not self.is_crowded or len(self.called) <= self._retries_max:
            return -1
        item = next(islice(self.called, self._retries_max, None))
        wanted_ns = now_ns
        if self.is_full and tidy(self.fresh):
            wanted_ns = self.fresh_from_ns() if self.shut else now_ns
        elif not self._is_passed_by(item):
            return -1
        return max(now_ns + 1, item.begun_ns + self.slow_ns(), wanted_ns)

    def _open_queues(self) -> list[Queue]:
        """The queues of retries that are not empty and whose share of the concurrency has room."""
        queues: list[Queue] = []
        if self.retries_in_flight < self._retries_max:
            if tidy(self.retries):
                queues.append(self.retries)
            if self.slow_in_flight < self._slow_max and tidy(self.slow):
                queues.append(self.slow)
        return queues

    def _is_passed_by(self, item: Item) -> bool:
        """Whether a call has succeeded since this one was begun: the endpoint serves others."""
        return item.begun_ns < self.succeeded_ns


def tidy(queue: Queue) -> Queue:
    """Removes entries from the head of the queue that their items have left; returns the queue."""
    while queue and queue[0][1] != queue[0][2].serial:
        heappop(queue)
    return queue
