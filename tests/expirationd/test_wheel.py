"""The wheel against a sorted list: same refs, same order, never early, nothing lost, and bounded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from billing.expirationd.wheel import DUE_NS_MAX, REF_MAX, SOON_PIECE, Filing, Wheel


class Accounts:
    """An owner of refs as the ledger is one: coming instants, and where the live filing of each lies."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.due: dict[int, int] = {}
        self.filed: dict[int, int] = {}
        self.asked = 0

    def arm(self, ref: int, due_ns: int) -> None:
        self.due[ref] = due_ns
        if ref not in self.filed or due_ns < self.filed[ref]:
            self.filed[ref] = self.wheel.insert(ref, due_ns)
            assert self.filed[ref] <= due_ns

    def disarm(self, ref: int) -> None:
        self.due.pop(ref, None)

    def due_of(self, filings: Sequence[Filing]) -> list[int]:
        self.asked += len(filings)
        return [self._due_of(ref, filed_ns) for ref, filed_ns in filings]

    def _due_of(self, ref: int, filed_ns: int) -> int:
        if self.filed.get(ref) != filed_ns:
            return -1
        if ref not in self.due:
            del self.filed[ref]
            return -1
        return self.due[ref]

    def moved(self, filings: Sequence[Filing]) -> None:
        for ref, filed_ns in filings:
            assert filed_ns <= self.due[ref]
            self.filed[ref] = filed_ns

    def advance(self, now_ns: int, limit: int) -> list[tuple[int, int]]:
        asked_before = self.asked
        fired = []
        for ref in self.wheel.advance(now_ns, self.due_of, self.moved, limit):
            fired.append((self.due.pop(ref), ref))
            del self.filed[ref]
        assert self.asked - asked_before <= limit
        return fired

    def drain(self, now_ns: int, limit: int = 1000) -> list[tuple[int, int]]:
        fired = []
        while 0 <= self.wheel.next_due_ns() <= now_ns:
            fired += self.advance(now_ns, limit)
        return fired

    def live(self, from_ns: int, until_ns: int, limit: int = 1000) -> list[tuple[int, int]]:
        """Wakes when the wheel asks for it, as a worker does."""
        fired = []
        while 0 <= self.wheel.next_due_ns() <= until_ns:
            from_ns = max(from_ns, self.wheel.next_due_ns())
            fired += self.advance(from_ns, limit)
        return fired


refs = st.integers(0, 5) | st.just(REF_MAX)
steps = st.one_of(
    st.integers(0, 3),
    st.integers(0, 2**21),
    st.integers(0, 2**30),
    st.integers(0, 2**45),
    st.builds(lambda bit, off: max(0, (1 << bit) + off), st.integers(0, 62), st.integers(-2, 2)),
    st.integers(0, DUE_NS_MAX),
)


class WheelIsASortedList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1_700_000_000_000_000_000
        self.accounts = Accounts(Wheel(self.now_ns))

    def due(self, ahead_ns: int) -> int:
        return min(DUE_NS_MAX, self.now_ns + ahead_ns)

    @rule(ref=refs, ahead_ns=steps)
    def arm(self, ref: int, ahead_ns: int) -> None:
        self.accounts.arm(ref, self.due(ahead_ns))

    @rule(ref=refs, back_ns=st.integers(0, 2**40))
    def arm_in_the_past(self, ref: int, back_ns: int) -> None:
        self.accounts.arm(ref, self.now_ns - back_ns)

    @rule(ref=refs, instants=st.lists(steps, min_size=2, max_size=6))
    def to_and_fro(self, ref: int, instants: list[int]) -> None:
        for ahead_ns in instants:
            self.accounts.arm(ref, self.due(ahead_ns))

    @rule(ref=refs)
    def disarm(self, ref: int) -> None:
        self.accounts.disarm(ref)

    @rule(step_ns=steps, limit=st.integers(1, 50))
    def advance_and_drain(self, step_ns: int, limit: int) -> None:
        self.now_ns = self.due(step_ns)
        expected = sorted((due, ref) for ref, due in self.accounts.due.items() if due <= self.now_ns)
        fired = self.accounts.drain(self.now_ns, limit)
        assert [due for due, _ in fired] == [due for due, _ in expected]
        assert sorted(fired) == expected

    @rule(step_ns=steps, limit=st.integers(1, 5))
    def advance_one_slice(self, step_ns: int, limit: int) -> None:
        self.now_ns = self.due(step_ns)
        expected = sorted(due for due in self.accounts.due.values() if due <= self.now_ns)
        fired = self.accounts.advance(self.now_ns, limit)
        assert [due for due, _ in fired] == expected[: len(fired)]
        if len(fired) < len(expected):
            assert 0 <= self.accounts.wheel.next_due_ns() <= self.now_ns

    @rule()
    def advance_to_the_wheels_own_instant(self) -> None:
        """Whoever only ever wakes when the wheel says so is never late by a nanosecond."""
        coming = sorted(self.accounts.due.values())
        while coming and coming[0] > self.now_ns:
            wake_ns = self.accounts.wheel.next_due_ns()
            assert 0 <= wake_ns <= coming[0]
            self.now_ns = max(self.now_ns, wake_ns)
            fired = self.accounts.advance(self.now_ns, 1000)
            if fired:
                assert fired[0][0] == self.now_ns == coming[0]
                break

    @invariant()
    def every_armed_ref_is_filed_in_time(self) -> None:
        wake_ns = self.accounts.wheel.next_due_ns()
        assert len(self.accounts.wheel) >= len(self.accounts.due)
        if self.accounts.due:
            assert 0 <= wake_ns <= min(self.accounts.due.values())
        if not len(self.accounts.wheel):
            assert wake_ns == -1


WheelIsASortedList.TestCase.settings = settings(stateful_step_count=40)
TestWheelIsASortedList: Any = WheelIsASortedList.TestCase


def test_worked_example_of_the_docstring() -> None:
    accounts = Accounts(Wheel(0))
    accounts.arm(7, 200_000_000)
    assert 199_229_440 <= accounts.filed[7] <= 199_229_440 + 65_535
    assert accounts.wheel.next_due_ns() == 133_169_152
    assert accounts.advance(133_169_152, 10) == []
    assert accounts.wheel.next_due_ns() == 200_000_000
    assert accounts.advance(199_999_999, 10) == []
    assert accounts.advance(200_000_000, 10) == [(200_000_000, 7)]
    assert accounts.wheel.next_due_ns() == -1
    assert len(accounts.wheel) == 0


def test_instants_far_apart_cost_one_wake_up_each_once_slots_are_opened_on_the_way() -> None:
    """20 ms apart: of two slots that have to be opened within 33 ms, one is opened with the other or with a firing."""
    accounts, wakes, fired = Accounts(Wheel(0)), 0, 0
    for ref in range(100):
        accounts.arm(ref, 200_000_000 + 20_000_000 * ref)
    while (now_ns := accounts.wheel.next_due_ns()) >= 0:
        wakes += 1
        fired += len(accounts.advance(now_ns, 10))
    assert fired == 100
    assert wakes <= 120, "200 where each slot is opened by a wake-up of its own"


@pytest.mark.parametrize("span_ns", [1, 2**20, 2**28, 2**36, 2**44, 2**52, DUE_NS_MAX])
def test_many_refs_come_out_sorted(span_ns: int) -> None:
    rng = random.Random(span_ns)
    accounts = Accounts(Wheel(0))
    for ref in range(5000):
        accounts.arm(ref, rng.randrange(span_ns))
    expected = sorted(accounts.due.values())
    fired = []
    for quarter in range(1, 5):
        fired += [due for due, _ in accounts.drain(span_ns * quarter // 4, limit=64)]
        assert fired == [due for due in expected if due <= span_ns * quarter // 4]
    assert len(accounts.wheel) == 0


def test_a_full_slot_is_opened_in_slices_while_near_instants_go_on_firing() -> None:
    """100,000 accounts whose month ends in one slot far away do not delay one that falls due meanwhile."""
    minute_ns = 60 * 10**9
    accounts = Accounts(Wheel(0))
    for ref in range(100_000):
        accounts.arm(ref, 400 * minute_ns + ref)
    assert accounts.live(0, minute_ns) == []  # a sweep, for it cannot know that all are live
    opening_ns = accounts.wheel.next_due_ns()
    accounts.arm(REF_MAX, opening_ns + 5)
    accounts.advance(opening_ns, 100)
    assert accounts.wheel.next_due_ns() == opening_ns  # the slot is still being opened
    assert accounts.advance(opening_ns + 5, 100) == [(opening_ns + 5, REF_MAX)]
    assert len(accounts.drain(400 * minute_ns + 50_000, limit=1000)) == 50_001


def test_rearming_to_and_fro_keeps_a_bounded_number_of_filings() -> None:
    """Each round leaves a stale filing in the far slot; without sweeps there would be 400,000 of them."""
    second_ns = 10**9
    accounts = Accounts(Wheel(0))
    now_ns = 0
    for ref in range(1000):
        accounts.arm(ref, 10**6 * second_ns + ref)
    most = 0
    for _ in range(400):
        for ref in range(1000):
            accounts.arm(ref, now_ns + second_ns)
        for ref in range(1000):
            accounts.arm(ref, 10**6 * second_ns + ref)
        assert accounts.live(now_ns, now_ns + 2 * second_ns) == []
        now_ns += 2 * second_ns
        most = max(most, len(accounts.wheel))
    assert most <= 75_000
    fired = accounts.drain(10**6 * second_ns + 1000)
    assert fired == [(10**6 * second_ns + ref, ref) for ref in range(1000)]


def test_stale_filings_beside_the_live_one_of_the_same_account_are_told_apart() -> None:
    """All lie in one slot far away; only the place that the owner remembers is the live one."""
    accounts = Accounts(Wheel(0))
    now_ns = 0
    for _ in range(100):
        for ref in range(1000):
            accounts.arm(ref, now_ns + 3_000_000)
            accounts.arm(ref, 10**15 + ref)
        assert accounts.live(now_ns, now_ns + 5_000_000) == []
        now_ns += 5_000_000
    assert accounts.live(now_ns, 10**12) == []
    assert len(accounts.wheel) < 65_536
    assert len(accounts.drain(2 * 10**15)) == 1000


def test_one_instant_filed_twice_is_fired_once() -> None:
    accounts = Accounts(Wheel(0))
    accounts.arm(1, 1000)
    accounts.arm(1, 500)
    accounts.arm(1, 1000)
    assert accounts.drain(600) == []
    assert len(accounts.wheel) == 2
    assert accounts.drain(1000) == [(1000, 1)]


def test_a_sweep_drops_what_is_stale_and_keeps_what_is_live() -> None:
    accounts = Accounts(Wheel(0))
    for ref in range(70_000):
        accounts.arm(ref, 10**15 + ref)
    for ref in range(0, 70_000, 2):
        accounts.disarm(ref)
    assert accounts.live(0, 10**12) == []
    assert len(accounts.wheel) == 35_000
    assert [ref for _, ref in accounts.drain(2 * 10**15)] == list(range(1, 70_000, 2))


def test_an_owner_that_breaks_its_word_is_found_out() -> None:
    """A coming instant before the live filing would be fired late: that is a bug, not a case."""
    accounts = Accounts(Wheel(0))
    accounts.arm(1, 10**9)
    accounts.due[1] = 5
    with pytest.raises(AssertionError):
        accounts.drain(2 * 10**9)


@pytest.mark.parametrize(("ref", "due_ns"), [(-1, 5), (REF_MAX + 1, 5), (1, -1), (1, DUE_NS_MAX + 1)])
def test_out_of_range_is_refused(ref: int, due_ns: int) -> None:
    with pytest.raises(AssertionError):
        Wheel(0).insert(ref, due_ns)


@given(st.lists(st.integers(0, 5 * 10**9), max_size=300), st.integers(0, 2 * 10**9), st.integers(0, 3 * 10**9))
def test_who_is_due_soon_is_told_beforehand(dues: list[int], now_ns: int, ahead_ns: int) -> None:
    accounts = Accounts(Wheel(0))
    for ref, due_ns in enumerate(dues):
        accounts.arm(ref, due_ns)
    while accounts.wheel.next_due_ns() >= 0 and accounts.wheel.next_due_ns() <= now_ns:
        accounts.advance(now_ns, 100)
    until_ns = now_ns + ahead_ns
    pieces = list(accounts.wheel.soon(until_ns))
    refs = [ref for piece in pieces for ref in piece]
    assert {ref for ref, due_ns in enumerate(dues) if now_ns < due_ns <= until_ns} <= set(refs)
    assert accounts.wheel.count_soon(until_ns) == len(refs)
    assert all(0 < len(piece) <= SOON_PIECE for piece in pieces)


def test_what_is_filed_anew_before_a_slot_that_is_opened_on_the_way_is_not_lost() -> None:
    slot_ns = 1 << 20
    wheel = Wheel(0)
    accounts = Accounts(wheel)
    accounts.arm(1, 10 * slot_ns)
    accounts.arm(2, 90 * slot_ns)
    accounts.arm(1, 80 * slot_ns)  # comes up at the 10th, to be filed before the 90th
    assert accounts.live(10 * slot_ns, 100 * slot_ns) == [(80 * slot_ns, 1), (90 * slot_ns, 2)]
    assert len(wheel) == 0


def test_a_filing_that_stands_twice_fires_where_one_is_touched_in_a_call() -> None:
    wheel = Wheel(0)
    accounts = Accounts(wheel)
    for due_ns in (20, 10, 20):
        accounts.disarm(7)
        accounts.filed.pop(7, None)  # the owner went to another instant and back
        accounts.arm(7, due_ns)
    assert [fired for _ in range(4) for fired in accounts.advance(30, 1)] == [(20, 7)]
