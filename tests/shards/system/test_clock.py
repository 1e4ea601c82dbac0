"""Billing time follows the boot clock, bends towards wall time, and never goes back, jumps or wakes anybody early."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from shards.system import clock
from shards.system.clock import (
    MACHINE_CLOCKS,
    STEP_NS_MIN,
    Anchor,
    BillingClock,
    Steering,
    decode_anchor,
    encode_anchor,
    restart,
    stepped_while_away,
)

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
BOOT = bytes(range(16))
OTHER_BOOT = bytes(range(16, 32))
NOW = 1_750_000_000 * SECOND  # a day in 2025

anchors = st.builds(
    Anchor,
    boot_ns=st.integers(0, 10**18),
    billing_ns=st.integers(0, 4 * 10**18),
    correction_ns=st.one_of(st.integers(-(10**18), 10**18), st.integers(-5000, 5000)),
    slew_ppm=st.integers(0, 500),
)
elapsed = st.one_of(st.integers(0, 10**4), st.integers(0, 10**8), st.integers(0, 10**17))


class World:
    """A boot clock and a wall clock that can be stepped, with everything that steers billing time by them."""

    def __init__(self, boot_ns: int = 1000 * SECOND, wall_ns: int = NOW) -> None:
        self.boot_ns, self.wall_ns = boot_ns, wall_ns
        self.clock = BillingClock(restart(None, 0, BOOT, boot_ns, wall_ns).anchor)
        self.steering = Steering(self.clock)

    def run(self, ns: int) -> int:
        self.boot_ns += ns
        self.wall_ns += ns
        return self.clock.at(self.boot_ns)

    def steer(self) -> clock.Steered:
        return self.steering.steer(self.boot_ns, self.wall_ns)


@given(anchors, elapsed, elapsed)
def test_a_line_never_goes_back_and_departs_from_the_boot_clock_by_the_slew_at_most(
    anchor: Anchor, early: int, more: int
) -> None:
    first, second = anchor.at(anchor.boot_ns + early), anchor.at(anchor.boot_ns + early + more)
    assert second >= first
    drift = (second - first) - more
    assert abs(drift) <= more * anchor.slew_ppm // 10**6 + 1
    assert abs(second - anchor.billing_ns - early - more) <= abs(anchor.correction_ns)


@given(anchors, elapsed)
def test_the_way_back_from_billing_to_boot_is_exact_and_rounds_up(anchor: Anchor, wanted: int) -> None:
    billing_ns = anchor.billing_ns + wanted
    boot_ns = anchor.boot_of(billing_ns)
    assert anchor.at(boot_ns) >= billing_ns
    assert boot_ns == anchor.boot_ns or anchor.at(boot_ns - 1) < billing_ns


@given(anchors)
def test_the_way_back_is_exact_around_the_end_of_the_correction(anchor: Anchor) -> None:
    if not anchor.slew_ppm:
        return
    end = -(-abs(anchor.correction_ns) * 10**6 // anchor.slew_ppm)
    for boot_ns in range(max(anchor.boot_ns, anchor.boot_ns + end - 3), anchor.boot_ns + end + 4):
        billing_ns = anchor.at(boot_ns)
        back = anchor.boot_of(billing_ns)
        assert back <= boot_ns
        assert anchor.at(back) == billing_ns
        assert back == anchor.boot_ns or anchor.at(back - 1) < billing_ns
    assert anchor.at(anchor.boot_ns + end) == anchor.billing_ns + end + anchor.correction_ns


@given(st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(-2 * DAY, 2 * DAY), st.booleans()), max_size=30))
def test_whatever_the_wall_clock_does_billing_time_is_the_boot_clock_within_the_slew(
    program: list[tuple[int, int, bool]],
) -> None:
    world = World()
    followers = [BillingClock(anchor) for anchor in world.clock.anchors] * 2
    begin_boot, begin_billing = world.boot_ns, world.clock.at(world.boot_ns)
    last = begin_billing
    for run_ns, step_ns, step in program:
        now = world.run(run_ns)
        assert now >= last
        elapsed_ns = world.boot_ns - begin_boot
        assert abs(now - begin_billing - elapsed_ns) <= elapsed_ns * 500 // 10**6 + 2 * len(program)
        assert [follower.at(world.boot_ns) for follower in followers] == [now, now]
        if step:
            world.wall_ns = max(0, world.wall_ns + step_ns)
        anchor = world.steer().anchor
        if anchor is not None:
            for follower in followers:
                follower.follow(anchor)
        alarm = world.clock.boot_of(now + 7 * SECOND)
        assert world.clock.ahead(alarm) >= now + 7 * SECOND > world.clock.ahead(alarm - 1)
        last = now


@pytest.mark.parametrize("step_ns", [HOUR, -HOUR, DAY, -DAY, -NOW, SECOND, -SECOND])
def test_a_step_of_the_wall_clock_is_reported_once_and_charges_nobody(step_ns: int) -> None:
    world = World()
    assert world.steer() == (None, 0, 0)
    before = world.run(SECOND)
    world.wall_ns += step_ns
    steered = world.steer()
    assert steered.step_ns == step_ns
    assert steered.offset_ns == step_ns
    assert steered.anchor is not None
    assert world.clock.at(world.boot_ns) == before
    after = world.run(10 * SECOND)
    assert 0 < abs(after - before - 10 * SECOND) <= 10 * SECOND * 500 // 10**6
    again = world.steer()
    assert again.step_ns == 0
    assert again.anchor is None  # the correction under way is the one that is needed


def test_a_small_offset_is_worked_off_and_then_left_alone() -> None:
    world = World()
    world.steer()
    world.wall_ns += 5_000_000
    assert world.steer().anchor is not None
    world.run(20 * SECOND)
    assert world.clock.at(world.boot_ns) == world.wall_ns
    world.wall_ns -= 900_000
    assert world.steer() == (None, -900_000, 0)


def test_a_drift_too_small_for_a_step_is_followed() -> None:
    world = World()
    for _ in range(600):  # the wall clock gains 100 ppm
        world.run(SECOND)
        world.wall_ns += 100_000
        steered = world.steer()
        assert steered.step_ns == 0
        assert abs(steered.offset_ns) <= 2_000_000


def test_a_correction_that_has_not_begun_is_not_corrected() -> None:
    world = World()
    world.wall_ns += HOUR
    first = world.steer().anchor
    world.run(SECOND // 2)
    world.wall_ns -= HOUR
    assert world.steer().anchor is None
    world.run(SECOND)
    second = world.steer().anchor
    assert first is not None
    assert second is not None
    assert second.correction_ns <= 0
    assert len(world.clock.anchors) == 2


def test_a_suspend_counts_as_time_because_the_boot_clock_does() -> None:
    world = World()
    world.steer()
    before = world.clock.at(world.boot_ns)
    assert world.run(HOUR) == before + HOUR  # nothing ran meanwhile, and nothing was stepped
    assert world.steer() == (None, 0, 0)


def test_the_switch_is_at_the_stated_boot_instant_and_nowhere_else() -> None:
    world = World()
    world.wall_ns += HOUR
    anchor = world.steer().anchor
    assert anchor is not None
    assert anchor.boot_ns == world.boot_ns + clock.SLEW_LEAD_NS
    current, coming = world.clock.anchors
    assert coming == anchor
    assert world.clock.ahead(anchor.boot_ns - 1) == current.at(anchor.boot_ns - 1)
    assert world.clock.ahead(anchor.boot_ns) == anchor.billing_ns == current.at(anchor.boot_ns)
    assert world.clock.at(anchor.boot_ns + 10**6) == anchor.billing_ns + 10**6 + 500
    assert world.clock.anchors == (anchor,)


def test_a_process_that_is_told_late_waits_rather_than_goes_back() -> None:
    world = World()
    late = BillingClock(world.clock.anchors[0])
    world.wall_ns -= HOUR
    anchor = world.steer().anchor
    assert anchor is not None
    boot_ns = anchor.boot_ns + SECOND
    ahead = late.at(boot_ns)
    assert ahead == world.clock.at(boot_ns) + 500_000
    late.follow(anchor)
    assert late.at(boot_ns + 1) == ahead == late.last_ns
    assert late.at(boot_ns + SECOND) == world.clock.at(boot_ns + SECOND)


def test_anchors_are_followed_in_order_once_and_only_where_they_join() -> None:
    world = World()
    joining = BillingClock(world.clock.anchors[0])
    world.wall_ns += HOUR
    first = world.steer().anchor
    world.run(3 * SECOND)
    world.wall_ns -= 2 * HOUR
    second = world.steer().anchor
    assert first is not None
    assert second is not None
    joining.follow(first)
    joining.follow(first)
    joining.follow(second)  # the first never took effect here before the second was told
    joining.follow(first)
    assert joining.anchors == world.clock.anchors == (first, second)
    with pytest.raises(AssertionError, match="not on the line"):
        joining.follow(second._replace(boot_ns=second.boot_ns + 1))


def test_a_process_never_goes_behind_what_its_journal_holds() -> None:
    clock_of_a_restarted_worker = BillingClock(Anchor(100, NOW, 0, 0), NOW + 7)
    assert [clock_of_a_restarted_worker.at(boot_ns) - NOW for boot_ns in (100, 106, 107, 108)] == [7, 7, 7, 8]


def test_reading_clocks_that_stand_still_gives_the_same_instant() -> None:
    world = World()
    assert world.clock.at(world.boot_ns) == world.clock.at(world.boot_ns) == NOW
    assert world.clock.at(world.boot_ns - 5) == NOW


@given(anchors, st.binary(min_size=16, max_size=16))
def test_a_recorded_anchor_comes_back_as_it_was(anchor: Anchor, boot_id: bytes) -> None:
    record = encode_anchor(anchor, boot_id)
    assert len(record) == clock.RECORD_BYTES == 48
    assert decode_anchor(record) == (anchor, boot_id)


def test_the_record_has_the_bytes_that_its_description_shows() -> None:
    record = encode_anchor(Anchor(1, 2, -1, 500), BOOT)
    assert record.hex() in (clock.__doc__ or "").replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    "damaged",
    [b"", b"BCA1", bytes(48), encode_anchor(Anchor(1, 2, 3, 4), BOOT) + b"\0", b"BCA1" + b"\xff" * 44],
)
def test_damaged_records_are_refused(damaged: bytes) -> None:
    with pytest.raises(clock.AnchorDamaged):
        decode_anchor(damaged)


def test_instants_are_integer_nanoseconds_since_the_unix_epoch() -> None:
    """2026-03-01T12:00:00.000000001Z, which is what the wall clock said at a first start, at whatever boot instant."""
    wall_ns = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * SECOND + 1
    line = BillingClock(restart(None, 0, BOOT, 5, wall_ns).anchor)
    assert line.at(5) == wall_ns == 1_772_366_400_000_000_001
    assert line.at(5 + 7) == wall_ns + 7
    assert type(MACHINE_CLOCKS.wall_ns()) is int
    assert abs(MACHINE_CLOCKS.wall_ns() - int(datetime.now(UTC).timestamp() * 1000) * 10**6) < HOUR


def test_a_first_start_takes_wall_time() -> None:
    assert restart(None, 0, BOOT, 77, NOW) == (Anchor(77, NOW, 0, 0), False, 0, False)


@pytest.mark.parametrize("wall_ns", [0, NOW - DAY, NOW + DAY])
def test_within_one_boot_the_recorded_map_goes_on_and_wall_time_has_no_say(wall_ns: int) -> None:
    recorded = Anchor(50 * SECOND, NOW, 10 * SECOND, 500)
    started = restart((recorded, BOOT), NOW + 40 * SECOND, BOOT, 100 * SECOND, wall_ns)
    assert started == (recorded, True, 0, False)
    assert started.anchor.at(100 * SECOND) == NOW + 50 * SECOND + 25_000_000


def test_within_one_boot_billing_time_is_never_less_than_the_journal() -> None:
    recorded = Anchor(50 * SECOND, NOW, 0, 0)
    started = restart((recorded, BOOT), NOW + 51 * SECOND, BOOT, 100 * SECOND, NOW)
    assert started == (Anchor(100 * SECOND, NOW + 51 * SECOND, 0, 0), True, 0, False)


def test_an_anchor_that_was_recorded_and_not_reached_does_not_hold_time_up() -> None:
    recorded = Anchor(100 * SECOND, NOW, HOUR, 500)
    started = restart((recorded, BOOT), NOW - SECOND, BOOT, 100 * SECOND - SECOND // 2, 0)
    assert started == (Anchor(100 * SECOND - SECOND // 2, NOW - SECOND // 2, 0, 0), True, 0, False)


def test_an_anchor_from_far_ahead_is_of_another_clock() -> None:
    recorded = Anchor(10**6 * SECOND, NOW, 0, 0)
    started = restart((recorded, BOOT), NOW, BOOT, SECOND, NOW + HOUR)
    assert started == (Anchor(SECOND, NOW + HOUR, 0, 0), False, 0, False)


def test_in_another_boot_it_is_wall_time() -> None:
    recorded = Anchor(50 * SECOND, NOW, 0, 0)
    started = restart((recorded, OTHER_BOOT), NOW + SECOND, BOOT, 3 * SECOND, NOW + HOUR)
    assert started == (Anchor(3 * SECOND, NOW + HOUR, 0, 0), False, 0, False)


@pytest.mark.parametrize(
    ("behind_ns", "alarm"),
    [(1, False), (5 * SECOND, False), (5 * SECOND + 1, True), (HOUR, True), (NOW, True)],
)
def test_in_another_boot_a_wall_clock_behind_the_journal_holds_at_the_journal_and_alarms(
    behind_ns: int, alarm: bool
) -> None:
    started = restart((Anchor(1, NOW, 0, 0), OTHER_BOOT), NOW, BOOT, 3 * SECOND, NOW - behind_ns)
    assert started == (Anchor(3 * SECOND, NOW, 0, 0), False, behind_ns, alarm)


def test_the_real_clocks_go_on() -> None:
    boot, wall = MACHINE_CLOCKS.paired()
    assert 0 < boot <= MACHINE_CLOCKS.boot_ns()
    assert 1_600_000_000 * SECOND < wall <= MACHINE_CLOCKS.wall_ns()


@pytest.fixture
def alarm() -> Iterator[clock.Alarm]:
    alarm_made = clock.Alarm()
    yield alarm_made
    alarm_made.close()


def test_an_alarm_fires_and_not_before_its_instant(alarm: clock.Alarm) -> None:
    for wait_ns in (0, 50_000, 2_000_000, 7_654_321):
        due_ns = MACHINE_CLOCKS.boot_ns() + wait_ns
        alarm.arm(due_ns)
        assert alarm.armed_ns == due_ns
        assert select.select([alarm], [], [], 10)[0] == [alarm]
        assert MACHINE_CLOCKS.boot_ns() >= due_ns
        assert alarm.acknowledge()
        assert alarm.armed_ns == -1
        assert not alarm.acknowledge()


def test_an_alarm_is_moved_and_disarmed(alarm: clock.Alarm) -> None:
    far_ns = MACHINE_CLOCKS.boot_ns() + HOUR
    alarm.arm(far_ns)
    alarm.arm(MACHINE_CLOCKS.boot_ns() - SECOND)  # passed: at once
    assert select.select([alarm], [], [], 10)[0] == [alarm]
    assert alarm.acknowledge()
    alarm.arm(0)
    assert select.select([alarm], [], [], 10)[0] == [alarm]
    alarm.arm(far_ns)  # moving it takes back that it had fired
    assert not alarm.acknowledge()
    alarm.arm(MACHINE_CLOCKS.boot_ns() + 1_000_000)
    alarm.disarm()
    alarm.disarm()
    assert alarm.armed_ns == -1
    assert select.select([alarm], [], [], 0.02)[0] == []


def test_an_alarm_takes_any_instant_an_account_can_have(alarm: clock.Alarm) -> None:
    alarm.arm(2**63 - 1)
    alarm.arm(2**64)
    assert select.select([alarm], [], [], 0)[0] == []


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_event_loop_waits_for_an_alarm(
    alarm: clock.Alarm, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def wait() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        fired: asyncio.Future[int] = loop.create_future()

        def on_alarm() -> None:
            if alarm.acknowledge():
                fired.set_result(MACHINE_CLOCKS.boot_ns())

        loop.add_reader(alarm.fileno(), on_alarm)
        due_ns = MACHINE_CLOCKS.boot_ns() + 3_000_000
        alarm.arm(due_ns)
        try:
            return due_ns, await asyncio.wait_for(fired, 60)
        finally:
            loop.remove_reader(alarm.fileno())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        due_ns, fired_ns = runner.run(wait())
    assert fired_ns >= due_ns


def test_a_closed_alarm_is_not_used() -> None:
    closed = clock.Alarm()
    closed.close()
    closed.close()
    with pytest.raises(AssertionError, match="closed"):
        closed.arm(1)


def test_a_step_before_the_first_look_is_told_where_the_beginning_was_seen() -> None:
    steering = Steering(BillingClock(Anchor(1_000, 5_000, 0, 0)))
    steering.begin(1_000, 5_000)
    assert steering.steer(1_000_001_000, 5_000 + 4_600_000_000).step_ns == 3_600_000_000


def test_a_step_while_nobody_looked_is_told_with_its_amount_and_only_within_a_boot() -> None:
    wall_ns, boot_ns = NOW, 100 * SECOND
    clock = BillingClock(restart(None, 0, BOOT, boot_ns, wall_ns).anchor)
    recorded = clock.anchors[0], BOOT
    later_ns = 5000 * SECOND
    for step_ns in (-3600 * SECOND, -STEP_NS_MIN, STEP_NS_MIN, 3600 * SECOND):
        stepped_ns = stepped_while_away(recorded, BOOT, boot_ns + later_ns, wall_ns + later_ns + step_ns)
        assert stepped_ns == step_ns
    assert stepped_while_away(recorded, BOOT, boot_ns + later_ns, wall_ns + later_ns + STEP_NS_MIN - 1) == 0
    assert stepped_while_away(recorded, b"another boot_id.", boot_ns, wall_ns + 3600 * SECOND) == 0
    assert stepped_while_away(None, BOOT, boot_ns, wall_ns) == 0


def test_a_step_that_was_steered_after_is_not_told_again_at_the_next_start() -> None:
    clock = BillingClock(restart(None, 0, BOOT, 100 * SECOND, NOW).anchor)
    steering = Steering(clock)
    steering.begin(100 * SECOND, NOW)
    steered = steering.steer(101 * SECOND, NOW + 3601 * SECOND)
    assert steered.step_ns == 3600 * SECOND
    assert steered.anchor is not None
    assert stepped_while_away((steered.anchor, BOOT), BOOT, 200 * SECOND, NOW + 3700 * SECOND) == 0
