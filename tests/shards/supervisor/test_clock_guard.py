"""A host whose clock is wrong, or may be, serves nothing: the rule, with clocks handed in."""

from __future__ import annotations

import pytest

from shards.supervisor.clock_guard import ClockGuard
from shards.supervisor.clock_watch import DOUBTFUL, GOOD, UNFIT, ClockWatch
from shards.system.clock import EXACT, MACHINE_CLOCKS, Clocks, WallError, machine_wall_error

MS = 1_000_000
SECOND = 1_000 * MS
HOUR = 3600 * SECOND
LIMIT_NS = 250 * MS
BOOT_NS = 5 * HOUR  # of this host
WALL_NS = 1_750_000_000 * SECOND
LOOK_NS = 200 * MS  # from one look at the log to the next


def guard() -> ClockGuard:
    return ClockGuard(LIMIT_NS)


def hear(clock_guard: ClockGuard, true_ahead_ns: int, times: int = 8, on_its_way_ns: int = 30 * MS) -> None:
    """This host's wall clock shows WALL_NS at BOOT_NS, and is so far ahead of the host that serves, which is heard of
    twice a second until BOOT_NS, each time somewhere between two looks.
    """
    for number in range(times):
        told_ns = BOOT_NS - (times - number) * SECOND // 2
        sent_boot_ns = told_ns - on_its_way_ns - number * 7919 * MS // 100 % 100 * MS // 100
        sent_ns = WALL_NS - BOOT_NS + sent_boot_ns - true_ahead_ns
        clock_guard.heard(1, sent_ns, told_ns - LOOK_NS, told_ns)


@pytest.mark.parametrize(
    ("error_ns", "doubtful", "unfit"),
    [
        *((0, False, False), (125 * MS, False, False), (125 * MS + 1, True, False), (LIMIT_NS, True, False)),
        *((LIMIT_NS + 1, True, True), (HOUR, True, True)),
    ],
)
def test_what_the_kernel_says_counts_at_half_and_above(error_ns: int, doubtful: bool, unfit: bool) -> None:
    clock_guard = guard()
    judged = clock_guard.judge(WallError(True, error_ns), BOOT_NS, WALL_NS, WALL_NS)
    assert (judged.error_ns, clock_guard.is_doubtful(judged), clock_guard.is_unfit(judged)) == (
        error_ns,
        doubtful,
        unfit,
    )
    assert "the kernel says" in judged.text or not error_ns


@pytest.mark.parametrize(("ahead_ns", "side"), [(HOUR, "3600.000 s ahead of"), (-HOUR, "3600.000 s behind")])
def test_billing_time_far_from_the_wall_clock_is_unfit_on_either_side(ahead_ns: int, side: str) -> None:
    clock_guard = guard()
    judged = clock_guard.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS - ahead_ns)
    assert clock_guard.is_unfit(judged)
    assert judged.text == f"it is {side} billing time"


@pytest.mark.parametrize("ahead_ns", [HOUR, SECOND, 500 * MS, -500 * MS, -SECOND, -HOUR])
def test_a_clock_that_differs_from_that_of_the_host_that_serves_is_unfit(ahead_ns: int) -> None:
    clock_guard = guard()
    hear(clock_guard, ahead_ns)
    judged = clock_guard.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS)
    assert clock_guard.is_unfit(judged), judged
    assert ("ahead of" if ahead_ns > 0 else "behind") in judged.text
    assert abs(judged.error_ns - abs(ahead_ns)) <= LOOK_NS


@pytest.mark.parametrize("ahead_ns", [0, 100 * MS, 200 * MS, -100 * MS, -200 * MS])
def test_a_clock_within_the_limit_is_fit_however_coarsely_it_is_looked(ahead_ns: int) -> None:
    clock_guard = guard()
    hear(clock_guard, ahead_ns)
    assert not clock_guard.is_unfit(clock_guard.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS))


def test_one_record_that_was_late_on_its_way_convicts_nobody() -> None:
    clock_guard = guard()
    hear(clock_guard, 0)
    clock_guard.heard(
        1, WALL_NS - 10 * SECOND, BOOT_NS - LOOK_NS, BOOT_NS
    )  # older than what was heard: it says nothing
    clock_guard.heard(2, WALL_NS - 11 * SECOND, BOOT_NS - LOOK_NS, BOOT_NS)
    clock_guard.heard(
        2, WALL_NS - 10 * SECOND, BOOT_NS - 2 * LOOK_NS, BOOT_NS
    )  # it was published again and again for 10 s
    assert not clock_guard.is_unfit(clock_guard.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS))
    alone = guard()
    hear(alone, HOUR, times=3)
    assert not alone.is_unfit(alone.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS))


def test_a_grant_that_is_repeated_says_nothing_of_the_time() -> None:
    clock_guard = guard()
    for number in range(20):  # an owner that is still recovering, or that stands since it took over from one ahead
        clock_guard.heard(1, WALL_NS - HOUR, BOOT_NS + number * SECOND, BOOT_NS + number * SECOND + LOOK_NS)
    assert not clock_guard.is_unfit(clock_guard.judge(EXACT, BOOT_NS, WALL_NS, WALL_NS))


def test_a_clock_that_is_set_right_is_right_at_once_also_after_the_other_host_has_died() -> None:
    clock_guard = guard()
    hear(clock_guard, HOUR)
    later_ns = 60 * SECOND
    boot_ns, wall_ns = BOOT_NS + later_ns, WALL_NS + later_ns
    assert clock_guard.is_unfit(clock_guard.judge(EXACT, boot_ns, wall_ns, wall_ns))
    assert not clock_guard.is_unfit(clock_guard.judge(EXACT, boot_ns, wall_ns - HOUR, wall_ns - HOUR))


def test_what_was_heard_is_forgotten_only_as_fast_as_clocks_drift() -> None:
    clock_guard = guard()
    hear(clock_guard, HOUR)
    for age_ns, unfit in ((7 * 24 * HOUR, True), (100 * 24 * HOUR, False)):
        wall_ns = WALL_NS + age_ns
        assert clock_guard.is_unfit(clock_guard.judge(EXACT, BOOT_NS + age_ns, wall_ns, wall_ns)) is unfit


def test_without_a_limit_nothing_is_judged() -> None:
    clock_guard = ClockGuard(0)
    hear(clock_guard, HOUR)
    judged = clock_guard.judge(WallError(True, HOUR), BOOT_NS, WALL_NS, 0)
    assert (judged.error_ns, clock_guard.is_unfit(judged), clock_guard.is_doubtful(judged)) == (0, False, False)


def test_each_change_for_the_worse_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    kernel = [EXACT]
    watch = ClockWatch(Clocks(lambda: 0, lambda: 0, lambda: kernel[0]), LIMIT_NS)

    def look(error: WallError) -> tuple[int, str]:
        kernel[0] = error
        warning = watch.look(BOOT_NS, WALL_NS, WALL_NS)
        return watch.state, warning

    assert look(EXACT) == (GOOD, "")
    for _ in range(3):
        assert look(WallError(True, 200 * MS)) == (DOUBTFUL, "")
    for _ in range(3):
        assert look(WallError(True, 300 * MS)) == (UNFIT, "the kernel says that it may be wrong by 0.300 s")
    for _ in range(3):
        assert look(WallError(False, 0)) == (GOOD, "")
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == [
        *("WARNING", "ERROR", "WARNING")
    ]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("doubtful" in text for text in messages) == sum("unfit" in text for text in messages) == 1
    assert sum("nobody keeps the clock" in text for text in messages) == 1


def test_the_kernel_of_this_machine_answers() -> None:
    wall_error = machine_wall_error()
    assert MACHINE_CLOCKS.wall_error is machine_wall_error
    assert wall_error.max_ns >= 0
    assert wall_error.is_disciplined or wall_error.max_ns == 0
