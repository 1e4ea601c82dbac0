"""The outbox: which request goes next, and when. Pure: the outbox decides, `delivery` sends.

An *item* records that a call is owed for one account, but not which call: delivery asks the ledger right before each
attempt. If the cutoff was superseded meanwhile, the ledger names no call, so nothing ever has to be cancelled. An
*event* is the call that the ledger names (its kind and seq). A *lane* is one endpoint.

    hold -> PARKED --superseded, or left--> nothing is owed (here, any more)
              +-----release---+
                              v
    owe ------------------> FRESH --take--> FLYING --forget-->            nothing is owed (any more)
                                               |--begin (held)-->         PARKED
                              RETRY --take-->  |--begin, then finish-->   delivered, and nothing more is owed
                              ^                |
                              +----------------+--finish (failed), or begin (too soon)

**Isolation.** All state of retry belongs to one item: how often its event failed, when it may be begun again, whether
its calls were slow. The outcome of one user's call (a status, Retry-After, no answer, a reset) delays that user alone.

**Order.** Events never attempted go first, oldest exhaustion instant first, over all lanes. Retries follow in the order
of their due instants. While both wait, one take in `RETRY_TURN` takes a retry, so new events cannot starve retries.

**Concurrency.** At most `concurrency` calls are in flight; at most half of them are retries, and at most a quarter are
retries after a time-out. A call *hangs* when it has been in flight for longer than `slow_ns`: four times the usual
duration of successful calls of its lane, and never less than `hang_min_ns`. If all senders are busy, events never
attempted wait and more than half of the concurrency hangs, `cut` names the hanging calls except the oldest half of the
concurrency: delivery ends them, and they are retried like any call that was not answered in time. The oldest half keep
their full time, so that an endpoint that is slow for everybody can show how long it needs. If the endpoint serves
others, a new event need not wait for that: an eighth of the senders is kept free of retries, and hanging calls beyond
that half are ended even before a new event waits, if a call to the same endpoint has succeeded since they were begun.

**The bound.** For a user with an event never attempted, let F be the number of older events never attempted, C the
concurrency (2 or more) and S the largest `slow_ns`, or the time allowed for opening a connection if that is longer. The
user is called within S * (2 + 3 * F / C), whatever the endpoint answers for others; if the lane is shut but can be
reached, within F * `fresh_probe_ns` more. A retry that is due is called within `RETRY_TURN` takes times its rank in its
queue, counted while the share of its kind has room.

**The state of the endpoint** is kept by `health`: whether a lane is shut, and how long a call may take. While a lane is
shut, it takes one retry each `probe_ns`, the one that has been due for longest, so that each probe is for another user;
and it takes events never attempted as `Health` admits them. The first success opens the lane: items that failed only
since the outage began are then due at once, so the backlog drains at full speed; others keep their own schedule.

**Invariants.** An account has at most one item, so at most one request in flight. No item is lost: an item leaves only
when the ledger owes no call. A held item is not begun before `release`, or before something new is owed for the
account. An event that failed n times is not begun again before the n-th wait of the schedule is over, however often the
account is reported, unless the lane was opened meanwhile; a new event begins at once.

**Limits.** One item (some 250 bytes) for each account that owes a call; `take` moves at most 64 released items.

The outbox never reads a clock, draws its jitter from the given `random.Random`, and knows neither URLs nor money.
"""

from __future__ import annotations

import random
from collections.abc import Container, Hashable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final

from billing.expirationd.health import DROPPED, OK, TIMED_OUT, UNREACHABLE, Account, Health, Pace

FRESH: Final = 0
RETRY: Final = 1
FLYING: Final = 2
PARKED: Final = 3
_STATE_NAMES: Final = ("ready", "waits", "in flight", "held")

RETRY_TURN: Final = 8
_MOVES_MAX: Final = 64
_ANY: Final = 0  # shares of the concurrency
_RETRIES: Final = 1
_SLOW_RETRIES: Final = 2


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
        self.share = _ANY  # the share of the concurrency that it uses while in flight
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


_Queue = list[tuple[int, int, Item]]


class Lane(Health):
    """One endpoint: the queues of its next calls, and its health."""

    __slots__ = ("fresh", "retries", "slow")

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self.fresh: _Queue = []  # (since_ns, serial, item): events never attempted
        self.retries: _Queue = []  # (due_ns, serial, item)
        self.slow: _Queue = []  # likewise retries, of users whose last call was not answered in time


class Outbox:
    """The items of all lanes. Instants are in nanoseconds and never decrease from call to call."""

    def __init__(self, pace: Pace, lanes: int, rng: random.Random) -> None:
        self.pace = pace
        self.lanes = [Lane(pace) for _ in range(lanes)]
        self.in_flight = 0
        self.retries_in_flight = 0
        self._slow_in_flight = 0
        self._half = max(1, pace.concurrency // 2)
        self._crowd = pace.concurrency - pace.concurrency // 8  # so many in flight leave an eighth of the senders free
        self._slow_max = max(1, pace.concurrency // 4)
        self._items: dict[Account, Item] = {}
        self._called: dict[Item, None] = {}  # items in flight with a request, in the order of `begun_ns`
        self._parked: _Queue = []
        self._released: _Queue = []  # released by an operator, not moved into the queues yet
        self._held: dict[int, set[Item]] = {}  # parked items by bucket id
        self._releases = 1  # the number of the next release
        self._serial = 0
        self._turn = 0  # takes of new events since a retry was taken last
        self._rng = rng

    def __len__(self) -> int:
        """The number of items."""
        return len(self._items)

    def __contains__(self, account: Account) -> bool:
        """Whether this (bucket_id, user_id) has an item."""
        return account in self._items

    def find(self, bucket_id: int, user_id: bytes) -> Item | None:
        """The account's item, which the caller must not change; None if there is none."""
        return self._items.get((bucket_id, user_id))

    def standing(self, bucket_id: int, user_id: bytes) -> tuple[str, int, int] | None:
        """The state of an account's item, for people: name of the state, failures in a row, and the instant before
        which no call is begun (0: none). None if there is no item.
        """
        item = self._items.get((bucket_id, user_id))
        return None if item is None else (_STATE_NAMES[item.state], item.failures, item.due_ns)

    def is_held(self, bucket_id: int, user_id: bytes) -> bool:
        """Whether the account waits for `release`."""
        item = self._items.get((bucket_id, user_id))
        return item is not None and item.state == PARKED

    @property
    def held(self) -> int:
        """The number of accounts that wait for `release`; O(buckets)."""
        return sum(len(items) for items in self._held.values())

    def oldest_fresh_ns(self, written: Container[Item] = ()) -> int:
        """The instant since which the oldest event without any attempt has waited; -1 if none waits. `written`: the
        items in flight whose request is written and which therefore do not wait; the connections of the other items in
        flight are still being opened.
        """
        connecting = (item.since_ns for item in self._called if not item.waits and item not in written)
        oldest_ns = min(connecting, default=-1)
        for lane in self.lanes:
            if _tidy(lane.fresh) and (oldest_ns < 0 or lane.fresh[0][0] < oldest_ns):
                oldest_ns = lane.fresh[0][0]
        return oldest_ns

    # -- what becomes owed, is held, released or superseded ---------------------------------------------------------

    def owe(
        self,
        bucket_id: int,
        user_id: bytes,
        since_ns: int,
        lane: int = 0,
        urgent: bool = False,
        notified: tuple[str, int] | None = None,
    ) -> None:
        """A call is owed for this account, or may be: delivery will ask the ledger.

        `lane` is the call's probable lane. `urgent` clears past failures, because an operator wants the call now.
        `notified`: kind and seq of the call; None leaves the `notified` of an existing item as it is.
        """
        key = (bucket_id, user_id)
        item = self._items.get(key)
        if notified is not None and item is not None:
            item.hear(notified)
        if item is None:
            item = self._items[key] = Item(bucket_id, user_id, since_ns, lane)
            item.notified = notified
            self._enqueue(self.lanes[lane].fresh, since_ns, item)
            return
        item.hold = 0
        if urgent:
            item.new_event(None)
        if item.state == FLYING:
            item.again = True
        elif item.state != FRESH or item.lane != lane:
            self._unpark(item)
            item.lane = lane
            self._make_fresh(item)

    def hold(
        self, bucket_id: int, user_id: bytes, since_ns: int, lane: int = 0, notified: tuple[str, int] | None = None
    ) -> None:
        """A call is owed for this account, but must not begin before `release`. A request in flight goes on."""
        key = (bucket_id, user_id)
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = Item(bucket_id, user_id, since_ns, lane)
            self._park(item)
        elif item.state != PARKED:  # the item is there for an older call, which may be over by now: see `begin`
            item.hold = self._releases
        if notified is not None:
            item.hear(notified)

    def release(self) -> int:
        """Releases all held items, oldest first; returns their number."""
        self._released += [entry for entry in self._parked if entry[1] == entry[2].serial]
        self._parked = []
        heapify(self._released)
        self._releases += 1
        return self.held

    def superseded(self, bucket_id: int, user_id: bytes, seq: int) -> None:
        """Cutoffs of this account up to `seq` are no longer owed: drops a held item that was only there for them. If
        another call is owed, `owe` is called for it.
        """
        item = self._items.get((bucket_id, user_id))
        if item is not None and item.state == PARKED and (item.notified is None or item.notified[1] <= seq):
            self._drop_held(item)

    def leave(self, bucket_id: int) -> None:
        """The bucket now belongs to another worker: drops the bucket's held items."""
        for item in list(self._held.get(bucket_id, ())):
            self._drop_held(item)

    def _drop_held(self, item: Item) -> None:
        self._unpark(item)
        item.serial = 0  # makes its place in the queue invalid
        del self._items[item.bucket_id, item.user_id]

    # -- one attempt ------------------------------------------------------------------------------------------------

    def take(self, now_ns: int) -> Item | None:
        """The item to attempt now, if any. It counts as in flight until `forget`, a refused `begin` or `finish`."""
        if self.in_flight >= self.pace.concurrency or self.in_flight == len(self._items):
            return None
        if self._released:
            self._move_released()
        fresh = self._first_fresh(now_ns)
        is_retrys = self._turn >= RETRY_TURN - 1 if fresh is not None else not self.is_crowded
        queue = self._first_retry(now_ns) if is_retrys else None
        if queue is not None:
            item = heappop(queue)[2]
            item.share = _SLOW_RETRIES if item.slow else _RETRIES
            self.retries_in_flight += 1
            self._slow_in_flight += item.slow
            self._turn = 0
        elif fresh is not None:
            item = heappop(fresh.fresh)[2]
            item.share = _ANY
            self._turn += 1
        else:
            return None
        item.state = FLYING
        item.again = False
        item.begun_ns = -1
        self.in_flight += 1
        return item

    def begin(self, item: Item, event: Hashable, lane: int, since_ns: int, now_ns: int) -> bool:
        """Whether the request for `event`, the call that the ledger names, may be written now. If not, the item goes
        back to a queue, or is parked.

        If a connection has to be opened first, the caller calls this again with the call that is owed then.
        """
        assert item.state == FLYING, item.state
        item.since_ns = since_ns
        if item.hold == self._releases:
            self._land(item)
            self._park(item)
            return False
        if item.event is None:
            item.event = event
        elif item.event != event:
            item.new_event(event)
        if item.due_ns > now_ns or (item.waits and item.share == _ANY):
            self._land(item)
            self._make_retry(item)
            return False
        if item.lane != lane:
            item.lane = lane
            there = self.lanes[lane]
            if not (there.admits_fresh(now_ns) if item.waits == 0 else there.admits_retry(now_ns)):
                self._land(item)
                self._make_ready(item)
                return False
            item.begun_ns = -1
        if item.begun_ns < 0:
            item.begun_ns = now_ns
            self._called.pop(item, None)
            self._called[item] = None
            self.lanes[lane].spend(now_ns)
        item.again = False
        return True

    def forget(self, item: Item) -> None:
        """Removes an item in flight for whose account no call is owed (any more)."""
        assert item.state == FLYING, item.state
        self._land(item)
        del self._items[item.bucket_id, item.user_id]

    def finish(self, item: Item, outcome: int, now_ns: int, retry_after_ns: int = -1, more: bool = True) -> None:
        """Takes the outcome of an attempt. `more`, after OK: another call is owed for the account, or may be."""
        assert item.state == FLYING, item.state
        lane = self.lanes[item.lane]
        begun_ns = item.begun_ns
        self._land(item)
        if outcome == OK:
            opened_since_ns = lane.success(now_ns, now_ns - begun_ns)
            if opened_since_ns >= 0:
                self._drain(lane, opened_since_ns)
            if more:  # if the ledger names the same event again, it waits as after a failure
                item.failures = item.waits = 1
                item.failing_since_ns, item.due_ns = now_ns, now_ns + self._wait_ns(0)
                self._make_fresh(item)
            else:
                del self._items[item.bucket_id, item.user_id]
            return
        dropped_once = outcome == DROPPED and not item.failures
        wait_ns = 0 if dropped_once else self._wait_ns(item.waits)
        if outcome == UNREACHABLE:
            wait_ns = min(wait_ns, self.pace.probe_ns)
        else:
            item.slow = outcome == TIMED_OUT
            item.waits += not dropped_once
        if retry_after_ns >= 0:
            wait_ns = max(wait_ns, min(retry_after_ns, self.pace.retry_after_max_ns))
        if not item.failures:
            item.failing_since_ns = now_ns
        item.failures += 1
        if not dropped_once:
            lane.failure(item.account, item.waits == 1, outcome, begun_ns, now_ns, retry_after_ns)
        item.due_ns = now_ns + wait_ns if wait_ns else 0
        if item.again:
            self._make_fresh(item)  # a new event may be owed; if none is, `begin` makes the item wait
        else:
            self._make_ready(item)

    def cut(self, now_ns: int) -> list[Item]:
        """The hanging calls that the caller has to end now, in favour of events never attempted."""
        waited_for = self._is_full and self._first_fresh(now_ns) is not None
        if not (waited_for or self.is_crowded):
            return []
        slow_ns = [lane.slow_ns() for lane in self.lanes]
        hanging = [item for item in self._called if now_ns - item.begun_ns >= slow_ns[item.lane]]
        return [item for item in hanging[self._half :] if waited_for or self._is_passed_by(item)]

    def next_cut_ns(self, now_ns: int) -> int:
        """The instant at which `cut` may name calls if nothing changes until then; -1 if it will name none."""
        if not self.is_crowded or len(self._called) <= self._half:
            return -1
        item = next(islice(self._called, self._half, None))
        wanted_ns = [lane.fresh_from_ns() if lane.shut else now_ns for lane in self.lanes if _tidy(lane.fresh)]
        if not (wanted_ns and self._is_full):
            if not self._is_passed_by(item):
                return -1
            wanted_ns = [now_ns]
        hangs_ns = item.begun_ns + self.lanes[item.lane].slow_ns()
        return max(now_ns + 1, hangs_ns, min(wanted_ns))

    @property
    def _is_full(self) -> bool:
        return self.in_flight >= self.pace.concurrency

    @property
    def is_crowded(self) -> bool:
        """Whether no more senders are free than the eighth that is kept for new events."""
        return self.in_flight >= self._crowd

    def _is_passed_by(self, item: Item) -> bool:
        """Whether a call to the same endpoint has succeeded since this one was begun: the endpoint serves others."""
        return item.begun_ns < self.lanes[item.lane].succeeded_ns

    def next_wake_ns(self, now_ns: int) -> int:
        """When `take` may return an item: `now_ns` if at once, -1 if not before another method is called."""
        if self.in_flight >= self.pace.concurrency or self.in_flight == len(self._items):
            return -1
        if self._released:
            return now_ns
        wakes_ns = []
        for lane in self.lanes:
            if _tidy(lane.fresh):
                wakes_ns.append(lane.fresh_from_ns() if lane.shut else now_ns)
            if not self.is_crowded:
                for queue in self._open_queues(lane):
                    wakes_ns.append(max(queue[0][0], lane.probe_after_ns if lane.shut else now_ns))
        return max(now_ns, min(wakes_ns)) if wakes_ns else -1

    # -- what goes next ---------------------------------------------------------------------------------------------

    def _first_fresh(self, now_ns: int) -> Lane | None:
        chosen: Lane | None = None
        for lane in self.lanes:
            if _tidy(lane.fresh) and lane.admits_fresh(now_ns) and (chosen is None or lane.fresh[0] < chosen.fresh[0]):
                chosen = lane
        return chosen

    def _first_retry(self, now_ns: int) -> _Queue | None:
        chosen: _Queue | None = None
        for lane in self.lanes:
            if (lane.retries or lane.slow) and lane.admits_retry(now_ns):
                for queue in self._open_queues(lane):
                    if queue[0][0] <= now_ns and (chosen is None or queue[0] < chosen[0]):
                        chosen = queue
        return chosen

    def _open_queues(self, lane: Lane) -> list[_Queue]:
        """The lane's queues of retries that are not empty and whose share of the concurrency has room."""
        queues: list[_Queue] = []
        if self.retries_in_flight < self._half:
            if _tidy(lane.retries):
                queues.append(lane.retries)
            if self._slow_in_flight < self._slow_max and _tidy(lane.slow):
                queues.append(lane.slow)
        return queues

    def _drain(self, lane: Lane, outage_since_ns: int) -> None:
        """The endpoint takes calls again: makes the items that failed only since its outage began due at once, oldest
        first.
        """
        for name in ("retries", "slow"):
            remaining: _Queue = []
            for entry in getattr(lane, name):
                item = entry[2]
                if entry[1] != item.serial:
                    continue
                if item.failing_since_ns < outage_since_ns:
                    remaining.append(entry)
                    continue
                item.due_ns = 0
                if item.waits:
                    self._serial += 1
                    item.serial = self._serial
                    remaining.append((item.since_ns, item.serial, item))
                else:
                    self._make_fresh(item)
            heapify(remaining)
            setattr(lane, name, remaining)

    # -- queues -----------------------------------------------------------------------------------------------------

    def _wait_ns(self, waits: int) -> int:
        pace = self.pace
        if waits < len(pace.waits_ns):
            return pace.waits_ns[waits]
        return int(pace.repeat_ns * (1 + pace.jitter * self._rng.uniform(-1, 1)))

    def _land(self, item: Item) -> None:
        """Takes an item out of flight; the caller gives it another state."""
        self.in_flight -= 1
        self._called.pop(item, None)
        if item.share != _ANY:
            self.retries_in_flight -= 1
            self._slow_in_flight -= item.share == _SLOW_RETRIES
            item.share = _ANY

    def _make_ready(self, item: Item) -> None:
        """Queues an item: as a retry if it has to wait or was called before, else as an event never attempted."""
        if item.waits or item.due_ns:
            self._make_retry(item)
        else:
            self._make_fresh(item)

    def _make_fresh(self, item: Item) -> None:
        item.state = FRESH
        self._enqueue(self.lanes[item.lane].fresh, item.since_ns, item)

    def _make_retry(self, item: Item) -> None:
        item.state = RETRY
        lane = self.lanes[item.lane]
        self._enqueue(lane.slow if item.slow else lane.retries, item.due_ns, item)

    def _park(self, item: Item) -> None:
        item.state = PARKED
        item.hold = 0
        self._held.setdefault(item.bucket_id, set()).add(item)
        self._enqueue(self._parked, item.since_ns, item)

    def _unpark(self, item: Item) -> None:
        if item.state == PARKED:
            held = self._held[item.bucket_id]
            held.remove(item)
            if not held:
                del self._held[item.bucket_id]

    def _enqueue(self, queue: _Queue, at_ns: int, item: Item) -> None:
        self._serial += 1
        item.serial = self._serial
        heappush(queue, (at_ns, item.serial, item))
        if len(queue) > 2 * len(self._items) + _MOVES_MAX:  # most entries are invalid: their items have left
            queue[:] = [entry for entry in queue if entry[1] == entry[2].serial]
            heapify(queue)

    def _move_released(self) -> None:
        """Moves released items into the queues of events never attempted, a bounded number per call."""
        moves = _MOVES_MAX
        while moves and self._released:
            _, serial, item = heappop(self._released)
            if serial == item.serial:
                self._unpark(item)
                self._make_fresh(item)
            moves -= 1


def _tidy(queue: _Queue) -> _Queue:
    """Removes entries from the head of the queue that their items have left; returns the queue."""
    while queue and queue[0][1] != queue[0][2].serial:
        heappop(queue)
    return queue
