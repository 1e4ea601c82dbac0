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
What users share (queues, senders, the state of the endpoint) belongs to one `lane`, so no call waits for another
endpoint, however slow that is. Of the lanes that have something to send, the one with the fewest calls in flight goes
first.

**The bound.** For a user with an event never attempted, let F be the number of older events of the lane never
attempted, C the concurrency (2 or more) and S the lane's `slow_ns`, or the time allowed for opening a connection if
that is longer. The user is called within S * (2 + 3 * F / C), whatever the endpoint answers for others; if the lane is
shut but can be reached, within F * `fresh_probe_ns` more. A retry that is due is called within `RETRY_TURN` takes of
the lane times its rank in its queue, counted while the share of its kind has room.

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
from itertools import chain
from typing import Final

from billing.expirationd.health import DROPPED, OK, TIMED_OUT, UNREACHABLE, Account, Pace
from billing.expirationd.lane import ANY, FLYING, FRESH, PARKED, RETRIES, RETRY, SLOW_RETRIES, Item, Lane, Queue, tidy

_STATE_NAMES: Final = ("ready", "waits", "in flight", "held")
_MOVES_MAX: Final = 64


class Outbox:
    """The items of all lanes. Instants are in nanoseconds and never decrease from call to call."""

    def __init__(self, pace: Pace, lanes: int, rng: random.Random) -> None:
        self.pace = pace
        self.lanes = [Lane(pace) for _ in range(lanes)]
        self.in_flight = 0  # over all lanes
        self._items: dict[Account, Item] = {}
        self._parked: Queue = []
        self._released: Queue = []  # released by an operator, not moved into the queues yet
        self._held: dict[int, set[Item]] = {}  # parked items by bucket id
        self._releases = 1  # the number of the next release
        self._serial = 0
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
        called = chain.from_iterable(lane.called for lane in self.lanes)
        connecting = (item.since_ns for item in called if not item.waits and item not in written)
        oldest_ns = min(connecting, default=-1)
        for lane in self.lanes:
            if tidy(lane.fresh) and (oldest_ns < 0 or lane.fresh[0][0] < oldest_ns):
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
        if self.in_flight == len(self._items):
            return None
        if self._released:
            self._move_released()
        chosen: Lane | None = None
        queue: Queue | None = None
        for lane in self.lanes:
            if (lane.fresh or lane.retries or lane.slow) and (chosen is None or lane.in_flight < chosen.in_flight):
                next_queue = lane.next_queue(now_ns)
                if next_queue is not None:
                    chosen, queue = lane, next_queue
        if chosen is None or queue is None:
            return None
        item = heappop(queue)[2]
        if queue is chosen.fresh:
            chosen.turn += 1
            self._launch(item, chosen, ANY)
        else:
            chosen.turn = 0
            self._launch(item, chosen, SLOW_RETRIES if item.slow else RETRIES)
        item.again = False
        item.begun_ns = -1
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
        if item.due_ns > now_ns or (item.waits and item.share == ANY):
            self._land(item)
            self._make_retry(item)
            return False
        there = self.lanes[lane]
        if item.lane != lane:
            self._land(item)
            item.lane = lane
            if not there.has_room_for(item, now_ns):
                self._make_ready(item)
                return False
            self._launch(item, there, ANY if not item.waits else SLOW_RETRIES if item.slow else RETRIES)
            item.begun_ns = -1
        if item.begun_ns < 0:
            item.begun_ns = now_ns
            there.called.pop(item, None)
            there.called[item] = None
            there.spend(now_ns)
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
        return [item for lane in self.lanes for item in lane.cut(now_ns)]

    def next_cut_ns(self, now_ns: int) -> int:
        """The instant at which `cut` may name calls if nothing changes until then; -1 if it will name none."""
        cuts_ns = [cut_ns for lane in self.lanes if (cut_ns := lane.next_cut_ns(now_ns)) >= 0]
        return min(cuts_ns, default=-1)

    @property
    def is_crowded(self) -> bool:
        """Whether a lane has no more free senders than the eighth that is kept for new events."""
        return any(lane.is_crowded for lane in self.lanes)

    def next_wake_ns(self, now_ns: int) -> int:
        """When `take` may return an item: `now_ns` if at once, -1 if not before another method is called."""
        if self.in_flight == len(self._items):
            return -1
        if self._released:
            return now_ns
        wakes_ns = [wake_ns for lane in self.lanes for wake_ns in lane.wakes_ns(now_ns)]
        return max(now_ns, min(wakes_ns)) if wakes_ns else -1

    # -- what goes next ---------------------------------------------------------------------------------------------

    def _drain(self, lane: Lane, outage_since_ns: int) -> None:
        """The endpoint takes calls again: makes the items that failed only since its outage began due at once, oldest
        first.
        """
        for name in ("retries", "slow"):
            remaining: Queue = []
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

    def _launch(self, item: Item, lane: Lane, share: int) -> None:
        """Puts an item in flight, where it uses this share of the lane's concurrency."""
        item.state, item.share = FLYING, share
        self.in_flight += 1
        lane.in_flight += 1
        if share != ANY:
            lane.retries_in_flight += 1
            lane.slow_in_flight += share == SLOW_RETRIES

    def _land(self, item: Item) -> None:
        """Takes an item out of flight; the caller gives it another state."""
        lane = self.lanes[item.lane]
        self.in_flight -= 1
        lane.in_flight -= 1
        lane.called.pop(item, None)
        if item.share != ANY:
            lane.retries_in_flight -= 1
            lane.slow_in_flight -= item.share == SLOW_RETRIES
            item.share = ANY

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

    def _enqueue(self, queue: Queue, at_ns: int, item: Item) -> None:
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
