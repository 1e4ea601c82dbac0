"""When a worker is started again, and when it is held."""

from __future__ import annotations

import signal

import pytest

from shards.exits import Exit
from shards.supervisor.restart_policy import (
    HELD_DELAYS_S,
    KILLS_MAX,
    RESTART_DELAYS_S,
    STABLE_NS,
    RestartPolicy,
)


def test_failures_in_a_row_are_answered_after_growing_pauses_and_then_it_is_held() -> None:
    restarts = RestartPolicy()
    pauses = [restarts.after(Exit.BUG, 0) for _ in range(len(RESTART_DELAYS_S) + 1)]
    assert pauses == [*RESTART_DELAYS_S, None]
    assert list(RESTART_DELAYS_S) == sorted(RESTART_DELAYS_S)
    restarts.forget()
    assert restarts.after(Exit.BUG, 0) == RESTART_DELAYS_S[0]


def test_one_that_served_long_begins_the_row_anew_and_one_that_served_shortly_does_not() -> None:
    restarts = RestartPolicy()
    for _ in range(3):
        restarts.after(Exit.BUG, STABLE_NS)
    assert restarts.in_a_row == 3
    assert restarts.after(-signal.SIGSEGV, STABLE_NS + 1) == RESTART_DELAYS_S[0]


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM])
def test_who_is_killed_while_it_serves_is_never_held(code: int) -> None:
    restarts = RestartPolicy()
    assert {restarts.after(code, 1) for _ in range(1000)} == {0.0}


def test_who_is_killed_again_and_again_before_it_serves_is_held_in_the_end() -> None:
    restarts = RestartPolicy()
    pauses = [restarts.after(-signal.SIGKILL, 0) for _ in range(KILLS_MAX + 1)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None
    assert restarts.after(-signal.SIGKILL, 5) == 0.0
    assert restarts.in_a_row == 0


@pytest.mark.parametrize("code", [Exit.DAMAGED, Exit.DISK, Exit.CONFIG])
def test_what_a_start_cannot_mend_is_held_at_once(code: int) -> None:
    assert RestartPolicy().after(code, STABLE_NS * 2) is None
    assert RestartPolicy().held_for(code) is None, "and not tried again by itself"


def test_who_has_lost_its_log_is_started_again_without_end() -> None:
    restarts = RestartPolicy()
    pauses = [restarts.after(Exit.AGAIN, 0) for _ in range(100)]
    waited = [pause for pause in pauses if pause is not None]
    assert waited == sorted(waited)
    assert len(waited) == 100
    assert waited[-1] <= 1.0


def test_what_failed_too_often_is_tried_again_by_itself_and_ever_more_slowly() -> None:
    restarts = RestartPolicy()
    pauses = []
    for _ in range(len(HELD_DELAYS_S) + 2):
        while restarts.after(Exit.BUG, 0) is not None:
            continue
        pauses.append(restarts.held_for(Exit.BUG))
    assert pauses == [*HELD_DELAYS_S, HELD_DELAYS_S[-1], HELD_DELAYS_S[-1]]
    restarts.after(-signal.SIGSEGV, STABLE_NS + 1)
    assert restarts.held_for(Exit.BUG) == HELD_DELAYS_S[0], "it served for long meanwhile"


def test_a_hold_is_followed_by_one_try_and_not_by_a_whole_row() -> None:
    restarts = RestartPolicy()
    while restarts.after(Exit.BUG, 0) is not None:
        continue
    assert restarts.after(Exit.BUG, 0) is None
