"""The outbox: which request goes next, and when. Pure: it decides, `delivery` sends.

An *item* says that something is owed for one account, never what: that is asked of the ledger right before each
attempt, so what was superseded meanwhile simply turns out not to be owed, and there is nothing to cancel. An *event*
is what the ledger then names (its kind and number). A *lane* is one endpoint with its own breaker.

    hold -> PARKED --release--+
                              v
    owe ------------------> READY --take--> FLYING --forget-->            nothing is owed (any more)
                              ^                |--begin (held)-->         PARKED
                              |                +--begin, then finish-->   delivered, and nothing more is owed
                              +---- WAITING <--+                          finish (failed), or begin (too soon)

**Invariants.** At most one item an account, so at most one request in flight for it. At most `concurrency` items fly.
No item is lost: it leaves only when the ledger owes nothing. What is held is not begun before `release`, or before
something new is owed for the account. An event that failed n times is not begun again before
the n-th wait of the schedule is over, however often the account is reported; a new event begins at once.

**Order.** Of what is ready the oldest `since_ns` (the exhaustion instant, once known) goes first, over all lanes.

**Breaker.** `failures_max` failures in a row (no connection, no answer, 5xx) shut a lane; from then on one item at a
time probes it, at most one each `probe_ns`. Any answer that shows it alive opens it again: what waits there becomes
ready at once and the backlog drains at full speed. Retry-After shuts a lane for as long as it says, up to
`retry_after_max_ns`: it is the endpoint that speaks, not one of its users.

**Limits.** One item (some 200 bytes) an account with something owed; `take` moves at most 64 items between queues, so
no call is long.

It never reads a clock, draws its jitter from the `random.Random` given, and knows neither URLs nor money.
"""

import random
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

READY: Final = 0
WAITING: Final = 1
FLYING: Final = 2
PARKED: Final = 3
_STATE_NAMES: Final = ("ready", "waits", "in flight", "held")

OK: Final = 0  # 2xx: this event is done
ANSWERED: Final = 1  # another status: the endpoint lives, but did not take it
FAILED: Final = 2  # no connection, no answer in time, or 5xx
DROPPED: Final = 3  # a connection used before turned out to be closed, not a byte came back: at once once more

_MOVES_MAX: Final = 64
_SECOND_NS: Final = 10**9
_WAITS_NS: Final = tuple(int(seconds * _SECOND_NS) for seconds in (0.2, 0.5, 1, 2, 4, 8, 15, 30))


class Pace(NamedTuple):
    """How fast and how patiently."""

    waits_ns: tuple[int, ...] = _WAITS_NS  # after the first failure, the second, ...
    repeat_ns: int = 30 * _SECOND_NS  # after all further ones
    jitter: float = 0.1  # of repeat_ns, to either side
    concurrency: int = 64
    failures_max: int = 5
    probe_ns: int = _SECOND_NS
    retry_after_max_ns: int = 30 * _SECOND_NS


class Item:
    """One account with something owed."""

    __slots__ = (
        *("again", "bucket_id", "due_ns", "event", "failures", "hold", "lane", "serial", "since_ns", "state"),
        *("told", "user_id"),
    )

    def __init__(self, bucket_id: int, user_id: bytes, since_ns: int, lane: int) -> None:
        self.bucket_id = bucket_id
        self.user_id = user_id
        self.since_ns = since_ns
        self.lane = lane
        self.state = READY
        self.serial = 0  # of its one valid place in a queue
        self.told: tuple[str, int] | None = None  # kind and seq up to which it may be named; None: whatever is owed
        self.event: Hashable = None  # the one that `failures` and `due_ns` are about
        self.failures = 0
        self.due_ns = 0  # not to be begun before
        self.again = False  # reported again while it flies
        self.hold = 0  # to be parked when it is to be begun, before this release; 0: not


_Queue = list[tuple[int, int, Item]]


class Lane:
    """One endpoint: what is ready for it, what waits, and whether it is thought to be alive."""

    __slots__ = ("failures", "not_before_ns", "probe", "ready", "shut", "waiting")

    def __init__(self) -> None:
        self.ready: _Queue = []  # (since_ns, serial, item)
        self.waiting: _Queue = []  # (due_ns, serial, item)
        self.failures = 0  # in a row
        self.shut = False
        self.probe: Item | None = None
        self.not_before_ns = 0  # of the next probe, or the end of a Retry-After

    def admits(self, now_ns: int) -> bool:
        return now_ns >= self.not_before_ns and self.probe is None


class Outbox:
    """Items of all lanes. Instants in nanoseconds, never decreasing from call to call."""

    def __init__(self, pace: Pace, lanes: int, rng: random.Random) -> None:
        self.pace = pace
        self.lanes = [Lane() for _ in range(lanes)]
        self.in_flight = 0
        self._items: dict[tuple[int, bytes], Item] = {}
        self._parked: _Queue = []
        self._released: _Queue = []  # let go by an operator, on the way to be ready
        self._held = 0
        self._releases = 1  # the coming one
        self._serial = 0
        self._rng = rng

    def __len__(self) -> int:
        """Accounts with something owed."""
        return len(self._items)

    def __contains__(self, account: tuple[int, bytes]) -> bool:
        """Whether this (bucket_id, user_id) is known to have something owed."""
        return account in self._items

    def standing(self, bucket_id: int, user_id: bytes) -> tuple[str, int, int] | None:
        """How it stands with an account, for people: state, failures in a row, and the instant before which nothing is
        begun (0: none). None where nothing is known to be owed.
        """
        item = self._items.get((bucket_id, user_id))
        return None if item is None else (_STATE_NAMES[item.state], item.failures, item.due_ns)

    @property
    def held(self) -> int:
        """Accounts that wait for `release`."""
        return self._held

    # -- what the world tells ---------------------------------------------------------------------------------------

    def owe(
        self,
        bucket_id: int,
        user_id: bytes,
        since_ns: int,
        lane: int = 0,
        urgent: bool = False,
        told: tuple[str, int] | None = None,
    ) -> None:
        """Something is owed for this account, or may be: the ledger will be asked.

        `lane` is where it probably goes, `urgent` forgets past failures (an operator wants it now). `told`: what is
        owed, kind and seq; without it an account that is known keeps what it was told.
        """
        key = (bucket_id, user_id)
        item = self._items.get(key)
        if told is not None and item is not None:
            item.told = told
        if item is None:
            item = self._items[key] = Item(bucket_id, user_id, since_ns, lane)
            item.told = told
            self._make_ready(item)
            return
        item.hold = 0
        if urgent:
            item.event, item.failures, item.due_ns = None, 0, 0
        if item.state == FLYING:
            item.again = True
        elif item.state != READY or item.lane != lane:
            self._held -= item.state == PARKED
            item.lane = lane
            self._make_ready(item)

    def hold(
        self, bucket_id: int, user_id: bytes, since_ns: int, lane: int = 0, told: tuple[str, int] | None = None
    ) -> None:
        """Something is owed for this account, but not to be begun before `release`. A request in flight goes on."""
        key = (bucket_id, user_id)
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = Item(bucket_id, user_id, since_ns, lane)
            self._park(item)
        elif item.state != PARKED:  # for something older, which may be over by now: see `begin`
            item.hold = self._releases
        if told is not None:
            item.told = told

    def release(self) -> int:
        """Lets everything held go, oldest first; returns how many accounts that concerns."""
        self._released += [place for place in self._parked if place[1] == place[2].serial]
        self._parked = []
        heapify(self._released)
        self._releases += 1
        return self._held

    # -- one attempt ------------------------------------------------------------------------------------------------

    def take(self, now_ns: int) -> Item | None:
        """The item to attempt now, if any. It flies until `forget`, a refused `begin` or `finish`."""
        if self.in_flight >= self.pace.concurrency:
            return None
        self._move(now_ns)
        chosen: Lane | None = None
        for lane in self.lanes:
            ready = lane.ready
            while ready and ready[0][1] != ready[0][2].serial:
                heappop(ready)
            if ready and lane.admits(now_ns) and (chosen is None or ready[0] < chosen.ready[0]):
                chosen = lane
        if chosen is None:
            return None
        item = heappop(chosen.ready)[2]
        item.state = FLYING
        item.again = False
        self.in_flight += 1
        if chosen.shut:
            chosen.probe = item
            chosen.not_before_ns = now_ns + self.pace.probe_ns
        return item

    def begin(self, item: Item, event: Hashable, lane: int, since_ns: int, now_ns: int) -> bool:
        """What the ledger says is owed; True if the request may be written now, else the item waits for its turn."""
        assert item.state == FLYING, item.state
        item.since_ns = since_ns
        if item.hold == self._releases:
            self._unsent(item)
            self.in_flight -= 1
            self._park(item)
            return False
        if item.event != event:
            item.event, item.failures, item.due_ns = event, 0, now_ns
        if item.lane != lane:
            self._unsent(item)
            item.lane = lane
            there = self.lanes[lane]
            if not there.admits(now_ns):
                self.in_flight -= 1
                self._make_ready(item)
                return False
            if there.shut:
                there.probe = item
                there.not_before_ns = now_ns + self.pace.probe_ns
        if item.due_ns > now_ns:
            self._unsent(item)
            self.in_flight -= 1
            self._make_wait(item)
            return False
        item.again = False
        return True

    def forget(self, item: Item) -> None:
        """Nothing is owed for it (any more)."""
        assert item.state == FLYING, item.state
        self._unsent(item)
        self.in_flight -= 1
        del self._items[item.bucket_id, item.user_id]

    def finish(self, item: Item, outcome: int, now_ns: int, retry_after_ns: int = -1, more: bool = True) -> None:
        """What became of the attempt. `more` after OK: something is owed for the account still, or may be."""
        assert item.state == FLYING, item.state
        pace = self.pace
        lane = self.lanes[item.lane]
        if lane.probe is item:
            lane.probe = None
        self.in_flight -= 1
        if outcome in (OK, ANSWERED):
            self._alive(lane)
        elif outcome == FAILED or item.failures:
            lane.failures += 1
            if lane.failures >= pace.failures_max and not lane.shut:
                lane.shut = True
                lane.not_before_ns = max(lane.not_before_ns, now_ns + pace.probe_ns)
        wait_ns = 0
        if outcome != OK and (outcome != DROPPED or item.failures):
            wait_ns = self._wait_ns(item.failures)
        if retry_after_ns >= 0 and outcome != OK:
            pause_ns = min(retry_after_ns, pace.retry_after_max_ns)
            lane.not_before_ns = max(lane.not_before_ns, now_ns + pause_ns)
            wait_ns = max(wait_ns, pause_ns)
        if outcome == OK:
            if more:  # if that is the same event again, it waits like after a failure
                item.failures, item.due_ns = 1, now_ns + self._wait_ns(0)
                self._make_ready(item)
            else:
                del self._items[item.bucket_id, item.user_id]
            return
        item.failures += 1
        item.due_ns = now_ns + wait_ns
        if item.again or not wait_ns:
            self._make_ready(item)
        else:
            self._make_wait(item)

    def next_wake_ns(self, now_ns: int) -> int:
        """When `take` may have something: now_ns if at once, -1 if only a report or a result can change that."""
        if self.in_flight >= self.pace.concurrency:
            return -1
        if self._released:
            return now_ns
        wake_ns = -1
        for lane in self.lanes:
            ready, waiting = lane.ready, lane.waiting
            while ready and ready[0][1] != ready[0][2].serial:
                heappop(ready)
            while waiting and waiting[0][1] != waiting[0][2].serial:
                heappop(waiting)
            if ready and lane.probe is None:
                at_ns = max(now_ns, lane.not_before_ns)
                wake_ns = at_ns if wake_ns < 0 else min(wake_ns, at_ns)
            if waiting:
                at_ns = max(now_ns, waiting[0][0])
                wake_ns = at_ns if wake_ns < 0 else min(wake_ns, at_ns)
        return wake_ns

    # -- inside -----------------------------------------------------------------------------------------------------

    def _wait_ns(self, failures: int) -> int:
        pace = self.pace
        if failures < len(pace.waits_ns):
            return pace.waits_ns[failures]
        return int(pace.repeat_ns * (1 + pace.jitter * self._rng.uniform(-1, 1)))

    def _alive(self, lane: Lane) -> None:
        lane.failures = 0
        if lane.shut:
            lane.shut = False
            lane.probe = None
            lane.not_before_ns = 0
            for _, serial, item in lane.waiting:
                if serial == item.serial:
                    item.due_ns = 0
                    self._make_ready(item)
            lane.waiting = []

    def _unsent(self, item: Item) -> None:
        """It was taken, but no request follows: where it was to be the probe, another one may be at once."""
        lane = self.lanes[item.lane]
        if lane.probe is item:
            lane.probe = None
            lane.not_before_ns = 0

    def _make_ready(self, item: Item) -> None:
        item.state = READY
        self._place(self.lanes[item.lane].ready, item.since_ns, item)

    def _park(self, item: Item) -> None:
        item.state = PARKED
        item.hold = 0
        self._held += 1
        self._place(self._parked, item.since_ns, item)

    def _make_wait(self, item: Item) -> None:
        item.state = WAITING
        self._place(self.lanes[item.lane].waiting, item.due_ns, item)

    def _place(self, queue: _Queue, at_ns: int, item: Item) -> None:
        self._serial += 1
        item.serial = self._serial
        heappush(queue, (at_ns, item.serial, item))
        if len(queue) > 2 * len(self._items) + _MOVES_MAX:  # most are places that items have left
            queue[:] = [place for place in queue if place[1] == place[2].serial]
            heapify(queue)

    def _move(self, now_ns: int) -> None:
        """Makes ready what has waited long enough and what was released, a bounded number at a time."""
        moves = _MOVES_MAX
        for lane in self.lanes:
            waiting = lane.waiting
            while moves and waiting and waiting[0][0] <= now_ns:
                _, serial, item = heappop(waiting)
                if serial == item.serial:
                    self._make_ready(item)
                moves -= 1
        while moves and self._released:
            _, serial, item = heappop(self._released)
            if serial == item.serial:
                self._held -= 1
                self._make_ready(item)
            moves -= 1
