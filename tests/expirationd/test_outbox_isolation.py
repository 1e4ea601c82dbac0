"""One user never holds up another: the outbox in virtual time beside users whose calls hang, fail or ask for time."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.expirationd.health import BUSY, FAILED, OK, TIMED_OUT, UNREACHABLE, Pace
from billing.expirationd.lane import Item
from billing.expirationd.outbox import Outbox
from tests.expirationd.world import MS, Answer, S, World

HANG = (OK, 10_000 * S, -1)
SICK: dict[str, Answer] = {
    "hang": HANG,
    "504 after 5 s": (FAILED, 5 * S, -1),
    "500": (FAILED, MS, -1),
    "429, Retry-After 30": (BUSY, MS, 30 * S),
    "409, Retry-After 3600": (FAILED, MS, 3600 * S),
    "503, Retry-After 3600": (BUSY, MS, 3600 * S),
    "reset": (FAILED, 0, -1),
}


def sick(item: Item) -> bool:
    return item.user_id.startswith(b"sick")


def lateness_ns(world: World, user_id: bytes, since_ns: int) -> int:
    """From its instant to the first attempt for a user."""
    return next(at_ns for at_ns, user, _, _ in world.attempts if user == user_id) - since_ns


def bound_ns(pace: Pace, before: int) -> int:
    """The outbox's bound, where calls that succeed take a millisecond: see its docstring."""
    return pace.hang_min_ns * (2 * pace.concurrency + 3 * before) // pace.concurrency + before * pace.fresh_probe_ns


@pytest.mark.parametrize("kind", SICK)
@pytest.mark.parametrize("count", [8, 40, 500])
def test_a_healthy_user_is_called_at_once_beside_users_who_failed_before(kind: str, count: int) -> None:
    world = World(Pace(concurrency=64))
    world.answer = lambda item: SICK[kind] if sick(item) else (OK, MS, -1)
    for number in range(count):
        world.owe(b"sick%d" % number)
    world.run(60 * S)  # each of them was called
    for number in range(60):
        world.owe(b"well%d" % number)
        since_ns = world.now_ns
        world.run(world.now_ns + 2 * S)
        assert lateness_ns(world, b"well%d" % number, since_ns) <= world.outbox.pace.hang_min_ns
    assert {user for _, user, _, _ in world.attempts} >= {b"sick%d" % number for number in range(count)}


@pytest.mark.parametrize("kind", SICK)
def test_users_who_run_out_together_with_many_sick_ones_are_called_within_the_bound(kind: str) -> None:
    pace = Pace(concurrency=16)
    world = World(pace)
    world.answer = lambda item: SICK[kind] if sick(item) else (OK, MS, -1)
    for number in range(1000):
        world.owe(b"sick%d" % number if number % 10 == 0 else b"well%d" % number)
    world.run(200 * S)
    worst_ns = max(lateness_ns(world, b"well%d" % number, 0) for number in range(1000) if number % 10)
    assert worst_ns <= bound_ns(pace, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from([*sorted(SICK), "well", "well"])), min_size=1, max_size=80
    ),
    st.integers(2, 16),
)
def test_the_bound_holds_whatever_the_endpoint_answers_for_others(
    arrivals: list[tuple[int, str]], concurrency: int
) -> None:
    """Users of all kinds run out at any time; each healthy one is called within the bound."""
    pace = Pace(concurrency=concurrency, jitter=0.0)
    world = World(pace)
    kinds: dict[bytes, str] = {}
    world.answer = lambda item: SICK.get(kinds[item.user_id], (OK, MS, -1))
    since: dict[bytes, int] = {}
    for number, (at_ms, kind) in enumerate(sorted(arrivals)):
        user = b"%d" % number
        kinds[user] = kind
        since[user] = at_ms * MS
        world.run(at_ms * MS)
        world.owe(user)
    world.run(300 * S)
    for number, user in enumerate(since):
        assert lateness_ns(world, user, since[user]) <= bound_ns(pace, number), kinds[user]
    assert {user for user, kind in kinds.items() if kind == "well"} == {
        user for (_, user), events in world.owed.items() if not events
    }, "each healthy user was delivered"


def test_retry_after_of_one_user_delays_that_user_alone_and_no_longer_than_allowed() -> None:
    pace = Pace(retry_after_max_ns=300 * S, jitter=0.0)
    world = World(pace)
    world.answer = lambda item: (BUSY, 0, 3600 * S) if sick(item) and world.now_ns < S else (OK, 0, -1)
    world.owe(b"sick")
    world.run(MS)
    for number in range(300):
        world.owe(b"well%d" % number)
    world.run(400 * S)
    assert max(at_ns for at_ns, user, _, _ in world.attempts if user != b"sick") == MS
    assert world.gaps(b"sick") == [300]


def test_retry_after_for_several_users_is_the_endpoints_and_it_is_probed_all_the_same() -> None:
    pace = Pace(jitter=0.0, rest_max_ns=30 * S)
    world = World(pace)
    well_ns = 20 * S
    world.answer = lambda item: (OK, 0, -1) if world.now_ns >= well_ns else (BUSY, 0, 2 * S)
    for number in range(200):
        world.owe(b"%d" % number)
    world.run(S)
    before = len(world.attempts)
    assert world.outbox.lanes[0].shut
    assert before <= pace.users_max + 8 + 64 + S // pace.fresh_probe_ns
    world.run(40 * S)
    assert len(world.outbox) == 0
    assert max(at_ns for at_ns, _, _, _ in world.attempts) <= well_ns + S


def test_an_endpoint_slower_than_the_timeout_gets_each_user_in_turn_and_then_more_time() -> None:
    pace = Pace(concurrency=8, jitter=0.0)
    world = World(pace)
    world.answer = lambda item: (OK, 15 * S, -1)
    for number in range(40):
        world.owe(b"%d" % number)
        world.run(world.now_ns + 5 * S)
    first: dict[bytes, int] = {}
    for at_ns, user, _, _ in world.attempts:
        first.setdefault(user, at_ns)
    assert [first[b"%d" % number] - number * 5 * S for number in range(40)] == [0] * 40
    world.run(world.now_ns + 300 * S)
    assert len(world.outbox) == 0
    assert world.outbox.lanes[0].patience_ns <= pace.patience_max_ns


def test_retries_hold_half_of_the_concurrency_at_most_and_those_of_slow_users_a_quarter() -> None:
    pace = Pace(concurrency=16, jitter=0.0)
    world = World(pace)
    world.answer = lambda item: HANG if item.user_id.startswith(b"sick-hang") else (FAILED, 9 * S, -1)
    for number in range(100):
        world.owe(b"sick-hang%d" % number)
        world.owe(b"sick-fail%d" % number)
    most = 0
    for _ in range(400):
        world.run(world.now_ns + S)
        flying = world.outbox.lanes[0].retries_in_flight
        most = max(most, flying)
        assert flying <= 8
    assert most == 8
    slow = [world.outbox.find(1, b"sick-hang%d" % number) for number in range(100)]
    assert sum(item is not None and item.begun_ns >= 0 and item.share == 2 for item in slow) <= 4


def test_only_calls_that_hang_beyond_half_are_cut_and_only_while_somebody_waits() -> None:
    world = World(Pace(concurrency=8))
    world.answer = lambda item: HANG if sick(item) else (OK, MS, -1)
    for number in range(8):
        world.owe(b"sick%d" % number)
    world.run(5 * S)
    assert world.cut == []
    world.owe(b"well")
    world.run(5 * S + 20 * MS)
    assert [user for _, user in world.cut] == [b"sick%d" % number for number in range(4, 8)]
    assert lateness_ns(world, b"well", 5 * S) <= 20 * MS


def test_an_eighth_of_the_senders_is_kept_free_by_ending_calls_that_hang_while_others_succeed() -> None:
    """Who is to come finds a free sender: nothing has to be ended first, which takes a while."""
    world = World(Pace(concurrency=16))
    world.answer = lambda item: HANG if sick(item) else (OK, MS, -1)
    for number in range(13):
        world.owe(b"sick%02d" % number)
    world.run(5 * S)
    world.owe(b"well")
    world.run(6 * S)
    assert world.cut == [], "three senders of sixteen are free"
    world.owe(b"sick13")
    world.run(6 * S + MS)
    assert [user for _, user in world.cut] == [b"sick%02d" % number for number in range(8, 13)], "the oldest half stays"
    assert world.outbox.in_flight == 9
    assert not world.outbox.lanes[0].shut, "it serves others"


def test_retries_leave_an_eighth_of_the_senders_to_those_who_are_to_come() -> None:
    world = World(Pace(concurrency=16, jitter=0.0, users_max=1000))
    world.answer = lambda item: HANG if item.waits or item.user_id.startswith(b"hang") else (FAILED, MS, -1)
    for number in range(8):
        world.owe(b"hang%02d" % number)
    for number in range(40):
        world.owe(b"sick%02d" % number)
    world.run(100 * MS)  # the sick have failed once, and eight senders are free
    assert world.outbox.in_flight == 8
    world.run(300 * MS)  # they are due again
    assert world.outbox.in_flight == 14
    since_ns = world.now_ns
    world.owe(b"well")
    world.run(since_ns)
    assert lateness_ns(world, b"well", since_ns) == 0


def test_nothing_is_ended_ahead_of_need_where_no_call_has_succeeded_meanwhile() -> None:
    """An endpoint that is slow for everybody has its time."""
    world = World(Pace(concurrency=16))
    world.answer = lambda item: HANG
    for number in range(16):
        world.owe(b"sick%02d" % number)
    world.run(9 * S)
    assert world.cut == []


def test_calls_that_take_long_and_succeed_are_not_taken_for_hanging_ones() -> None:
    world = World(Pace(concurrency=8, hang_min_ns=500 * MS))
    world.answer = lambda item: (OK, 3 * S, -1)
    for number in range(200):
        world.owe(b"%d" % number)
    world.run(200 * S)
    assert len(world.outbox) == 0
    assert len(world.cut) <= 5 * 4, "none once the first calls had shown how long calls take"


def test_retries_are_not_starved_by_a_stream_of_new_events() -> None:
    world = World(Pace(concurrency=1, jitter=0.0))
    tried = 0

    def answer(item: Item) -> Answer:
        nonlocal tried
        tried += sick(item)
        return (FAILED if sick(item) and tried == 1 else OK, 10 * MS, -1)

    world.answer = answer
    world.owe(b"sick")
    for number in range(500):
        world.owe(b"well%d" % number)
    world.run(S)
    assert (1, b"sick") not in world.outbox, "its second call had its turn among five hundred first ones"


def test_a_dead_endpoint_is_probed_with_another_user_each_time() -> None:
    world = World(Pace(jitter=0.0))
    world.answer = lambda item: (UNREACHABLE, 0, -1)
    for number in range(50):
        world.owe(b"%d" % number)
    world.run(30 * S)
    world.attempts.clear()
    world.run(60 * S)
    users = [user for _, user, _, _ in world.attempts]
    assert len(users) == 30
    assert len(set(users)) == 30, "one each second, another one each time"


def test_an_endpoint_that_fails_for_different_users_is_shut_and_one_that_fails_for_one_is_not() -> None:
    world = World(Pace(jitter=0.0, users_max=5))
    world.answer = lambda item: (FAILED, 0, -1)
    world.owe(b"0")
    world.run(300 * S)
    assert not world.outbox.lanes[0].shut
    for number in range(1, 5):
        assert not world.outbox.lanes[0].shut
        world.owe(b"%d" % number)
        world.run(world.now_ns + 10 * MS)
    assert world.outbox.lanes[0].shut


def test_who_failed_before_the_outage_keeps_to_the_schedule_when_it_ends() -> None:
    world = World(Pace(jitter=0.0))
    end_ns = 100 * S
    world.answer = lambda item: (OK, 0, -1) if not sick(item) and world.now_ns >= end_ns else (FAILED, 0, -1)
    world.owe(b"sick")
    world.run(50 * S)
    world.owe(b"well")
    for number in range(20):
        world.owe(b"w%d" % number)
    world.run(end_ns + 2 * S)
    assert [user for (_, user), events in world.owed.items() if events] == [b"sick"]
    assert all(gap >= 0.2 for gap in world.gaps(b"sick"))
    assert world.gaps(b"sick")[-1] >= 15


def test_a_slow_lane_does_not_hold_up_another() -> None:
    world = World(Pace(concurrency=8), lanes=2)
    world.answer = lambda item: HANG if item.lane == 0 else (OK, MS, -1)
    for number in range(100):
        world.owe(b"c%d" % number)
    world.run(60 * S)
    world.owe(b"r", kind="restore")
    world.run(62 * S)
    assert lateness_ns(world, b"r", 60 * S) <= S


def test_taking_and_finishing_many_keeps_the_counts() -> None:
    """Whatever happens to them, nobody flies in the end and no share of the concurrency stays taken."""
    outbox = Outbox(Pace(concurrency=4), 1, random.Random(1))
    rng = random.Random(2)
    now_ns = 0
    for round_ in range(3000):
        outbox.owe(1, b"%d" % rng.randrange(20), now_ns)
        item = outbox.take(now_ns)
        if item is not None and outbox.begin(item, round_ % 3, 0, now_ns, now_ns):
            outcome = rng.choice([OK, FAILED, TIMED_OUT, UNREACHABLE])
            outbox.finish(item, outcome, now_ns, -1, outcome == OK and rng.random() < 0.3)
        now_ns += rng.randrange(S // 10)
        assert (outbox.in_flight, outbox.lanes[0].in_flight, outbox.lanes[0].retries_in_flight) == (0, 0, 0)


def test_a_lane_that_is_slow_and_succeeds_does_not_hold_up_another() -> None:
    world = World(Pace(concurrency=8), lanes=2)
    world.answer = lambda item: (OK, 2 * S if item.lane == 0 else MS, -1)
    for number in range(200):
        world.owe(b"c%d" % number)
    world.run(S)
    world.owe(b"r", kind="restore")
    world.run(60 * S)
    assert lateness_ns(world, b"r", S) == 0


def test_retries_of_one_lane_use_no_share_of_another() -> None:
    world = World(Pace(concurrency=8, jitter=0.0, users_max=1000), lanes=2)
    world.answer = lambda item: (FAILED, 9 * S if item.lane == 0 and item.waits else MS, -1)
    for number in range(40):
        world.owe(b"c%d" % number)
    world.run(S)
    assert world.outbox.lanes[0].retries_in_flight == 4, "as many as may be"
    world.owe(b"r", kind="restore")
    world.run(4 * S)
    assert world.gaps(b"r") == [0.201, 0.501, 1.001]
