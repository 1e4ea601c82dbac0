"""What is asked for is what is sent: rates, mixes, skews and aims, the same for the same seed."""

from __future__ import annotations

from itertools import chain

import pytest

from billing.trial.loadtest.columns import DEBIT, RATE, READ, TOP_UP, Columns
from billing.trial.loadtest.verdict import Account
from billing.trial.loadtest.workload import (
    AIMED_NANOS,
    AIMED_RATE,
    Mixer,
    Share,
    Workload,
    aim,
    aimed_count,
    aims,
    names,
    preload,
)

SECOND_NS = 10**9
WHOLE = Share()


def drawn(workload: Workload, rate: float, seconds: int, share: Share = WHOLE, run: int = 0) -> Columns:
    columns = Columns(run, names(workload, share, ""))
    Mixer(workload, share, run).until(columns, seconds * SECOND_NS, rate)
    return columns


def test_arrivals_come_at_their_rate_and_by_their_seed() -> None:
    workload = Workload(accounts=100)
    columns = drawn(workload, 5000.0, 4)
    assert len(columns) == pytest.approx(20_000, rel=0.05)
    assert list(columns.due) == sorted(columns.due)
    assert 0 <= columns.due[0] < columns.due[-1] < 4 * SECOND_NS
    again, other_run = drawn(workload, 5000.0, 4), drawn(workload, 5000.0, 4, run=1)
    assert (columns.due, columns.user, columns.kind, columns.value) == (again.due, again.user, again.kind, again.value)
    assert columns.due != other_run.due


def test_gaps_are_exponential_or_constant() -> None:
    constant = drawn(Workload(accounts=1, arrivals="constant"), 1000.0, 1)
    assert list(constant.due) == [number * 10**6 for number in range(1000)]
    poisson = drawn(Workload(accounts=1), 1000.0, 20)
    gaps = [later - sooner for sooner, later in zip(poisson.due, poisson.due[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(10**6, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_the_mix_is_that_of_the_weights() -> None:
    columns = drawn(Workload(accounts=10, mix=(10, 20, 30, 40)), 10_000.0, 2)
    shares = [columns.kind.count(kind) / len(columns) for kind in (TOP_UP, RATE, DEBIT, READ)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)


def test_users_are_drawn_evenly_or_by_zipf() -> None:
    even = drawn(Workload(accounts=10), 10_000.0, 2)
    assert [even.user.count(user) / len(even) for user in range(10)] == pytest.approx([0.1] * 10, abs=0.015)
    zipf = drawn(Workload(accounts=10, skew=1.0), 10_000.0, 2)
    harmonic = sum(1 / rank for rank in range(1, 11))
    expected = [1 / rank / harmonic for rank in range(1, 11)]
    assert [zipf.user.count(user) / len(zipf) for user in range(10)] == pytest.approx(expected, abs=0.015)


def test_processes_share_users_and_rate() -> None:
    workload = Workload(accounts=101, storm=7, exhaust_per_second=3, seconds=4)
    shares = [Share(number, 3) for number in range(3)]
    users = [names(workload, share, "@x") for share in shares]
    assert sorted(chain.from_iterable(users)) == sorted(names(workload, Share(), "@x"))
    assert sum(len(drawn(workload, 3000.0, 2, share)) for share in shares) == pytest.approx(6000, rel=0.1)
    together = sorted(chain.from_iterable(aims(workload, share, 0) for share in shares))
    assert together == sorted(aims(workload, Share(), 0))
    assert len(together) == aimed_count(workload) == 19


def test_a_storm_is_one_instant_and_the_rest_is_spread_over_the_measured_time() -> None:
    workload = Workload(storm=50, exhaust_per_second=20, seconds=5, warmup_s=1)
    offsets = aims(workload, Share(), 0)
    assert len(set(offsets[:50])) == 1
    assert SECOND_NS < offsets[0] < 6 * SECOND_NS
    assert len(offsets[50:]) == 100
    assert SECOND_NS <= min(offsets[50:]) <= max(offsets[50:]) < 6 * SECOND_NS


def test_an_aimed_account_runs_dry_at_its_instant_to_the_nanosecond() -> None:
    account = Account("dry")
    account.top_up(1000, AIMED_NANOS)
    account.set_rate(1777, AIMED_RATE * 3600)
    coming_ns = account.view().exhausts_at_ns
    assert coming_ns is not None
    columns = Columns(0, ["dry"])
    aim(columns, {0: coming_ns}, {0: 5_000_000_123})
    account.debit(9999, columns.value[0])
    assert account.view().exhausts_at_ns == 5_000_000_123
    with pytest.raises(ValueError, match="cannot be aimed"):
        aim(columns, {0: coming_ns}, {0: coming_ns})


def test_money_comes_first_and_the_aimed_are_armed_once() -> None:
    workload = Workload(accounts=3, storm=2)
    users = names(workload, Share(), "")
    first, later = Columns(0, users), Columns(1, users)
    preload(first, True, 3)
    preload(later, False, 3)
    assert [users[user] for user in first.user] == ["u0", "u1", "u2", "dry0", "dry1", "dry0", "dry1"]
    assert list(first.kind) == [TOP_UP] * 5 + [RATE] * 2
    assert [(users[user], kind) for user, kind in zip(later.user, later.kind, strict=True)] == [
        ("dry0", TOP_UP),
        ("dry1", TOP_UP),
    ]
