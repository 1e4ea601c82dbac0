"""The outbox in virtual time: schedule, order, breaker, held items; and under Hypothesis, nothing lost or doubled."""

import random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from billing.expirationd.health import DROPPED, FAILED, OK, TIMED_OUT, UNREACHABLE, Pace
from billing.expirationd.lane import Item
from billing.expirationd.outbox import Outbox
from tests.expirationd.world import MS, S, World


def test_one_success_and_it_is_forgotten() -> None:
    world = World()
    world.owe(b"u")
    world.run(S)
    assert world.attempts == [(0, b"u", "cutoff", 1)]
    assert len(world.outbox) == 0
    assert world.outbox.next_wake_ns(world.now_ns) == -1


def test_the_schedule_of_retries() -> None:
    """One user whose calls fail follows the schedule without end."""
    world = World()
    world.answer = lambda item: (FAILED, 0, -1)
    world.owe(b"u")
    world.run(200 * S)
    assert world.gaps(b"u") == [0.2, 0.5, 1, 2, 4, 8, 15, 30, 30, 30, 30, 30]


def test_jitter_keeps_within_its_share_and_differs() -> None:
    world = World(Pace(jitter=0.1))
    world.answer = lambda item: (FAILED, 0, -1)
    world.owe(b"u")
    world.run(1000 * S)
    late = world.gaps(b"u")[8:]
    assert all(27 <= gap <= 33 for gap in late)
    assert len(set(late)) > 10


def test_a_closed_keep_alive_connection_costs_no_wait_but_only_once() -> None:
    world = World()
    world.answer = lambda item: (DROPPED, 0, -1)
    world.owe(b"u")
    world.run(2 * S)
    assert world.gaps(b"u")[:3] == [0, 0.2, 0.5]


def test_what_was_superseded_is_not_sent() -> None:
    world = World(Pace(concurrency=1))
    world.owe(b"first")
    world.owe(b"second")
    world.owed[1, b"second"].clear()
    world.run(S)
    assert [user for _, user, _, _ in world.attempts] == [b"first"]
    assert len(world.outbox) == 0


def test_two_events_of_one_account_go_one_after_the_other() -> None:
    world = World()
    world.owe(b"u", seq=1)
    world.owe(b"u", seq=2)
    world.run(S)
    assert world.attempts == [(0, b"u", "cutoff", 1), (MS, b"u", "cutoff", 2)]


def test_a_restore_owed_while_the_cutoff_flies_follows_it_at_once() -> None:
    world = World(lanes=2)
    world.answer = lambda item: (FAILED if item.lane == 0 else OK, 100 * MS, -1)
    world.owe(b"u")
    world.run(50 * MS)
    world.owed[1, b"u"].clear()
    world.owe(b"u", seq=1, kind="restore")
    world.run(S)
    assert world.attempts == [(0, b"u", "cutoff", 1), (100 * MS, b"u", "restore", 1)]
    assert len(world.outbox) == 0


def test_being_reported_again_and_again_does_not_shorten_the_wait() -> None:
    world = World()
    world.answer = lambda item: (FAILED, 0, -1)
    world.owe(b"u")
    for _ in range(50):
        world.run(world.now_ns + 10 * MS)
        world.outbox.owe(1, b"u", 0)
    assert len(world.attempts) == 2  # at 0 and 0.2 s; the next one is due at 0.7 s


def test_a_new_event_begins_at_once_and_an_operator_may_ask_for_it() -> None:
    world = World()
    world.answer = lambda item: (FAILED, 0, -1)
    world.owe(b"u")
    world.run(10 * S)
    world.owed[1, b"u"].clear()
    world.owe(b"u", seq=2)
    world.run(10 * S)
    assert world.attempts[-1] == (10 * S, b"u", "cutoff", 2)
    world.run(11 * S)
    before = len(world.attempts)
    world.outbox.owe(1, b"u", 0, urgent=True)
    world.run(11 * S)
    assert len(world.attempts) == before + 1


def test_an_event_still_owed_after_its_success_is_not_sent_in_a_loop() -> None:
    world = World()
    world.owe(b"u", seq=1)
    world.owed[1, b"u"].append(("cutoff", 1, 0))
    world.run(100 * MS)
    assert len(world.attempts) == 1
    world.run(S)
    assert len(world.attempts) == 2


def test_concurrency_is_never_exceeded_and_the_oldest_goes_first() -> None:
    world = World(Pace(concurrency=3))
    for number in range(10):
        world.owe(b"%d" % number, since_ns=-number)
    world.send_what_is_due()
    assert world.outbox.in_flight == 3
    assert world.outbox.next_wake_ns(0) == -1
    world.run(S)
    assert [user for _, user, _, _ in world.attempts] == [b"%d" % number for number in reversed(range(10))]


def test_failures_between_successes_do_not_shut_a_lane() -> None:
    world = World(Pace(users_max=3, concurrency=1))
    world.answer = lambda item: (OK if len(world.attempts) % 3 == 0 else FAILED, 0, -1)
    for number in range(30):
        world.owe(b"%d" % number, since_ns=number)
    while len(world.outbox):
        assert not world.outbox.lanes[0].shut
        world.run(world.now_ns + 10 * MS)


def test_users_saved_while_the_endpoint_is_dead_cost_no_probe() -> None:
    world = World(Pace(users_max=1))
    world.answer = lambda item: (OK if world.now_ns >= 10 * S else UNREACHABLE, 0, -1)
    for number in range(1000):
        world.owe(b"%d" % number)
    world.run(5 * S)
    for number in range(900):
        world.owed[1, b"%d" % number].clear()
    world.run(11 * S)
    assert len(world.outbox) == 0
    assert len([at_ns for at_ns, _, _, _ in world.attempts if at_ns >= 10 * S]) == 100


def test_a_dead_lane_does_not_hold_up_the_other() -> None:
    world = World(Pace(users_max=2), lanes=2)
    world.answer = lambda item: (OK if item.lane == 1 else UNREACHABLE, 0, -1)
    for number in range(10):
        world.owe(b"c%d" % number)
    world.run(S // 2)
    assert world.outbox.lanes[0].shut
    world.owe(b"r", kind="restore")
    world.run(S // 2)
    assert world.attempts[-1] == (S // 2, b"r", "restore", 1)
    world.owed[1, b"c9"].clear()
    world.owe(b"c9", kind="restore")  # filed under the dead lane so far
    world.run(S // 2)
    assert world.attempts[-1] == (S // 2, b"c9", "restore", 1)


def test_what_goes_to_another_lane_than_expected_finds_it() -> None:
    world = World(Pace(users_max=1), lanes=2)
    world.answer = lambda item: (OK, 0, -1)
    world.owed[1, b"u"] = [("restore", 1, 0)]
    world.outbox.owe(1, b"u", 0)  # reported as a cutoff
    world.run(S)
    assert world.attempts == [(0, b"u", "restore", 1)]


class NothingIsLostOrDoubled(RuleBasedStateMachine):
    """Random reports, answers and waits. The ledger here delivers each event once; the outbox must ask until then."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(Pace(concurrency=3, users_max=2), 2, random.Random(7))
        self.now_ns = 0
        self.seq = 0
        self.owed: dict[bytes, list[tuple[int, int]]] = {}  # user -> (seq, lane)
        self.flying: dict[bytes, tuple[Item, int]] = {}
        self.not_before: dict[tuple[bytes, int], int] = {}
        self.to_hold: set[bytes] = set()

    users = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])

    @rule(user=users, lane=st.integers(0, 1), hint=st.integers(0, 1))
    def event(self, user: bytes, lane: int, hint: int) -> None:
        self.seq += 1
        self.owed.setdefault(user, []).append((self.seq, lane))
        self.outbox.owe(1, user, self.now_ns, hint)
        self.to_hold.discard(user)

    @rule(user=users)
    def superseded(self, user: bytes) -> None:
        if user not in self.flying:
            self.owed.pop(user, None)

    @rule(user=users)
    def reported_again(self, user: bytes) -> None:
        self.outbox.owe(1, user, self.now_ns)
        self.to_hold.discard(user)

    @rule(user=users)
    def held(self, user: bytes) -> None:
        if self.owed.get(user):
            self.outbox.hold(1, user, self.now_ns)
            self.to_hold.add(user)

    @rule()
    def released(self) -> None:
        self.outbox.release()
        self.to_hold.clear()

    @rule(step_ns=st.sampled_from([0, 1, 100 * MS, S, 40 * S]))
    def wait(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @rule()
    def take(self) -> None:
        item = self.outbox.take(self.now_ns)
        if item is None:
            return
        assert item.user_id not in self.flying
        events = self.owed.get(item.user_id)
        if not events:
            self.outbox.forget(item)
            self.to_hold.discard(item.user_id)
            return
        seq, lane = events[0]
        if self.outbox.begin(item, seq, lane, 0, self.now_ns):
            assert self.now_ns >= self.not_before.get((item.user_id, seq), 0)
            self.flying[item.user_id] = item, seq
            assert item.user_id not in self.to_hold

    @rule(
        user=users,
        outcome=st.sampled_from([OK, OK, FAILED, TIMED_OUT, UNREACHABLE, DROPPED]),
        retry_after_s=st.integers(-1, 2),
    )
    def finish(self, user: bytes, outcome: int, retry_after_s: int) -> None:
        if user in self.flying:
            item, seq = self.flying.pop(user)
            if outcome == OK:
                self.owed[user].pop(0)
            elif outcome != DROPPED:
                self.not_before[user, seq] = self.now_ns + (200 * MS if retry_after_s <= 0 else retry_after_s * S)
            retry_after_ns = retry_after_s * S if retry_after_s >= 0 else -1
            shut = self.outbox.lanes[item.lane].shut
            self.outbox.finish(item, outcome, self.now_ns, retry_after_ns, bool(self.owed.get(user)))
            if not self.owed.get(user):
                self.to_hold.discard(user)
            if shut and not self.outbox.lanes[item.lane].shut:
                self.not_before.clear()  # a lane that opens lets what failed in the outage go at once

    @rule()
    def cut(self) -> None:
        for item in self.outbox.cut(self.now_ns):
            assert item.user_id in self.flying
            item, seq = self.flying.pop(item.user_id)
            self.not_before[item.user_id, seq] = self.now_ns + 200 * MS
            self.outbox.finish(item, TIMED_OUT, self.now_ns, -1, True)

    @invariant()
    def what_is_owed_is_known_and_wakes_somebody(self) -> None:
        assert self.outbox.in_flight == len(self.flying)
        for number, lane in enumerate(self.outbox.lanes):
            assert lane.in_flight == sum(item.lane == number for item, _ in self.flying.values()) <= 3
            assert lane.retries_in_flight <= 1
        users = {user for user in (b"a", b"b", b"c", b"d", b"e") if (1, user) in self.outbox}
        assert {user for user, events in self.owed.items() if events} <= users
        to_go = users - set(self.flying) - self.to_hold
        if to_go and not self.flying:
            wake_ns = self.outbox.next_wake_ns(self.now_ns)
            assert self.now_ns <= wake_ns <= self.now_ns + 40 * S


TestNothingIsLostOrDoubled: Any = NothingIsLostOrDoubled.TestCase
