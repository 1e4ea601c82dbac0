"""The model against examples computed by hand, and the judge against arrivals that are wrong in each way."""

from __future__ import annotations

from fractions import Fraction

import pytest

from billing.trial.arrivals import Arrival
from billing.trial.loadtest.verdict import (
    ACTIVE,
    EXHAUSTED,
    HOUR_NS,
    Account,
    Expected,
    Impossible,
    View,
    differences,
    judge,
    percentile,
)

SECOND_NS = 10**9
COIN = 10**9
RESTORED_S = 1_700_000_000


def account(*, at_ns: int = 0, nanos: int = 0, per_hour: int = 0) -> Account:
    opened = Account("u")
    if nanos:
        opened.top_up(at_ns, nanos)
    if per_hour:
        opened.set_rate(at_ns, per_hour)
    return opened


def instants(account_seen: Account) -> list[int]:
    return [cutoff.at_ns for cutoff in account_seen.cutoffs]


def arrival(seq: int, at_ns: int, late_ns: int = 1000, event_id: str = "") -> Arrival:
    return Arrival("u", event_id or f"u-{seq}-{at_ns}", seq, at_ns, at_ns + late_ns)


# -- one account ---------------------------------------------------------------------


def test_an_instant_by_hand() -> None:
    # 3 coins at 2 coins an hour last an hour and a half
    user = account(at_ns=5, nanos=3 * COIN, per_hour=2 * COIN)
    assert user.view() == View(ACTIVE, 3 * COIN, 2 * COIN, 5 + 5400 * SECOND_NS, 0)
    user.settle(5 + 5400 * SECOND_NS - 1)
    assert instants(user) == []
    user.settle(5 + 5400 * SECOND_NS)
    assert user.cutoffs == [Expected("u", 1, 5 + 5400 * SECOND_NS)]
    assert user.view() == View(EXHAUSTED, 0, 2 * COIN, None, 1)


def test_an_instant_that_does_not_come_out_even_is_rounded_up() -> None:
    # 1 nano at 7 nanos an hour: 514285714285.71... ns
    user = account(nanos=1, per_hour=7)
    assert user.view().exhausts_at_ns == 514_285_714_286
    user.settle(514_285_714_285)
    assert user.view() == View(ACTIVE, 0, 7, 514_285_714_286, 0)  # a fraction of a nano is still money
    assert Fraction(user.parts, HOUR_NS) == 1 - Fraction(7 * 514_285_714_285, HOUR_NS)


def test_settling_in_steps_changes_nothing() -> None:
    at_once, in_steps = (account(nanos=1, per_hour=7) for _ in range(2))
    for at_ns in range(0, 514_285_714_286, 77_777_777_777):
        in_steps.settle(at_ns)
    for user in (at_once, in_steps):
        user.settle(10**15)
    assert instants(at_once) == instants(in_steps) == [514_285_714_286]


def test_an_instant_beyond_what_fits_is_told_as_nil() -> None:
    user = account(nanos=2**62, per_hour=1)
    assert user.view().exhausts_at_ns is None
    assert user.view().state == ACTIVE


def test_a_top_up_just_before_saves_and_one_at_the_instant_restores() -> None:
    due_ns = 3600 * SECOND_NS
    saved = account(nanos=COIN, per_hour=COIN)
    saved.top_up(due_ns - 1, COIN)
    assert instants(saved) == []
    assert saved.view().exhausts_at_ns == 2 * due_ns
    restored = account(nanos=COIN, per_hour=COIN)
    restored.top_up(due_ns, COIN)
    assert instants(restored) == [due_ns]
    assert restored.view() == View(ACTIVE, COIN, COIN, 2 * due_ns, 1)


def test_nothing_accrues_while_exhausted_and_accrual_resumes_with_money() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.top_up(5 * HOUR_NS, 2 * COIN)
    assert instants(user) == [HOUR_NS]
    assert user.view() == View(ACTIVE, 2 * COIN, COIN, 7 * HOUR_NS, 1)
    user.settle(8 * HOUR_NS)
    assert instants(user) == [HOUR_NS, 7 * HOUR_NS]


def test_rates_are_the_sum_of_lines() -> None:
    user = account(nanos=10 * COIN)
    user.set_rate(0, 2 * COIN, "vm-1")
    user.set_rate(0, 3 * COIN, "vm-2")
    assert user.view().exhausts_at_ns == 2 * HOUR_NS
    user.set_rate(HOUR_NS, 0, "vm-2")  # 5 coins left at 2 an hour
    assert user.view() == View(ACTIVE, 5 * COIN, 2 * COIN, HOUR_NS * 7 // 2, 0)
    user.change_rate(HOUR_NS, -COIN, "vm-1")
    assert user.view() == View(ACTIVE, 5 * COIN, COIN, 6 * HOUR_NS, 0)


def test_each_line_raised_from_zero_while_exhausted_is_cut_off() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.set_rate(HOUR_NS, COIN, "vm-2")  # time before commands: it runs out first
    user.set_rate(HOUR_NS + 5, 2 * COIN, "vm-2")  # was not at zero
    user.set_rate(HOUR_NS + 6, 0, "vm-2")
    user.set_rate(HOUR_NS + 7, COIN, "vm-2")
    assert instants(user) == [HOUR_NS, HOUR_NS, HOUR_NS + 7]
    assert [cutoff.seq for cutoff in user.cutoffs] == [1, 2, 3]


def test_a_debit_to_exactly_zero_exhausts_also_at_rate_zero() -> None:
    user = account(nanos=COIN)
    assert user.debit(7, COIN) == COIN
    assert user.view() == View(EXHAUSTED, 0, 0, None, 1)
    assert instants(user) == [7]


def test_debits_of_each_mode() -> None:
    user = account(nanos=1, per_hour=7)
    with pytest.raises(Impossible, match="should have been refused"):
        user.debit(100 * SECOND_NS, 1)  # less than a nano is there
    assert user.debit(100 * SECOND_NS, 5, "partial") == 0
    assert (Fraction(user.parts, HOUR_NS), instants(user)) == (Fraction(0), [100 * SECOND_NS])
    assert user.debit(101 * SECOND_NS, 5, "force") == 5
    assert (Fraction(user.parts, HOUR_NS), len(user.cutoffs)) == (Fraction(-5), 1)  # no crossing: it was exhausted
    user.top_up(102 * SECOND_NS, 5)
    assert user.view().state == EXHAUSTED
    user.top_up(103 * SECOND_NS, 1)
    assert user.view().state == ACTIVE


def test_a_new_account_is_not_cut_off_before_it_had_money() -> None:
    user = Account("u")
    assert user.view() == View(EXHAUSTED, 0, 0, None, 0)
    user.top_up(0, 1)
    assert list(user.cutoffs) == []


def test_time_does_not_go_back() -> None:
    user = account(at_ns=10, nanos=1)
    with pytest.raises(Impossible, match="goes back"):
        user.settle(9)


def test_differences_name_the_field() -> None:
    expected = View(ACTIVE, 5, 2, None, 0)
    reply = {**expected._asdict(), "at_ns": 77, "other": 1}
    assert differences("u", "top_up", expected, reply) == []
    assert differences("u", "top_up", expected, {**reply, "balance_nanos": 6}) == [
        "u: top_up at 77 answered balance_nanos 6, expected 5"
    ]


# -- the judge -----------------------------------------------------------------------


def dry() -> Account:
    """Runs out after an hour, and starts another machine ten seconds later."""
    user = account(nanos=COIN, per_hour=COIN)
    user.set_rate(HOUR_NS + 10 * SECOND_NS, COIN, "vm-2")
    return user


FIRST, SECOND = arrival(1, HOUR_NS, 3000), arrival(2, HOUR_NS + 10 * SECOND_NS, 1000)


def test_all_as_it_should_be() -> None:
    verdict = judge([dry(), account(nanos=COIN)], [SECOND, FIRST])
    assert verdict[:-1] == (2, 2, [], [], [], 0, 0, [1000, 3000])
    assert verdict.clean


@pytest.mark.parametrize("seq_base", [0, RESTORED_S - 1])
def test_a_daemon_whose_data_were_restored_counts_on_from_that_second(seq_base: int) -> None:
    """Whether answers have shown that second or not."""
    arrivals = [each._replace(seq=each.seq + RESTORED_S - 1) for each in (FIRST, SECOND)]
    assert judge([dry()], arrivals, seq_base=seq_base).clean
    wrong = arrivals[1]._replace(seq=RESTORED_S + 2)
    assert judge([dry()], [arrivals[0], wrong], seq_base=seq_base).false == [wrong]


def test_missing() -> None:
    verdict = judge([dry()], [FIRST])
    assert (verdict.expected, verdict.received) == (2, 1)
    assert verdict.missing == [Expected("u", 2, HOUR_NS + 10 * SECOND_NS)]
    assert not verdict.clean


def test_early() -> None:
    early = arrival(1, HOUR_NS, -1)
    verdict = judge([dry()], [early, SECOND])
    assert (verdict.early, verdict.received, verdict.missing) == ([early], 2, [])
    assert not verdict.clean


@pytest.mark.parametrize(
    "wrong",
    [
        arrival(1, HOUR_NS + 1),  # another instant
        arrival(3, HOUR_NS + 10 * SECOND_NS),  # another number
        arrival(1, HOUR_NS)._replace(user_id="v"),  # another user
        arrival(1, HOUR_NS, 5000, "another-name"),  # the same event under another name
    ],
)
def test_false(wrong: Arrival) -> None:
    verdict = judge([dry()], [FIRST, SECOND, wrong])
    assert (verdict.expected, verdict.received, verdict.false) == (2, 2, [wrong])
    assert not verdict.clean


def test_doubled_is_allowed_and_counted_and_the_first_is_the_one() -> None:
    verdict = judge([dry()], [FIRST._replace(arrived_ns=FIRST.arrived_ns + 10**9), SECOND, FIRST])
    assert (verdict.doubled, verdict.received, verdict.lateness_ns) == (1, 2, [1000, 3000])
    assert verdict.clean


def test_what_was_told_to_be_superseded_is_not_expected_and_must_not_come() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.top_up(HOUR_NS + 5, COIN, "superseded")
    verdict = judge([user], [])
    assert (verdict.expected, verdict.superseded, verdict.clean) == (0, 1, True)
    assert judge([user], [FIRST]).false == [FIRST]


def test_what_was_superseded_when_its_attempt_had_begun_may_come_or_not() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.top_up(HOUR_NS + 5, COIN, "begun")
    assert judge([user], [])[:-1] == (0, 0, [], [], [], 0, 1, [])
    assert judge([user], [FIRST])[:-1] == (1, 1, [], [], [], 0, 0, [3000])


def test_a_top_up_after_the_delivery_supersedes_nothing() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.top_up(HOUR_NS + 5, COIN, "delivered")
    assert judge([user], []).missing == [Expected("u", 1, HOUR_NS)]
    assert judge([user], [FIRST]).clean


def test_of_several_overtaken_ones_only_those_since_the_last_restore_may_be_absent() -> None:
    user = account(nanos=COIN, per_hour=COIN)
    user.top_up(2 * HOUR_NS, COIN, "delivered")  # runs out at 3 hours again
    user.set_rate(4 * HOUR_NS, COIN, "vm-2")
    user.top_up(4 * HOUR_NS + 1, COIN, "superseded")
    assert instants(user) == [HOUR_NS, 3 * HOUR_NS, 4 * HOUR_NS]
    second = arrival(2, 3 * HOUR_NS)
    assert judge([user], [FIRST, second])[:-1] == (2, 2, [], [], [], 0, 1, [1000, 3000])
    assert judge([user], [FIRST])[:-1] == (1, 1, [], [], [], 0, 2, [3000])
    assert judge([user], [second]).missing == [Expected("u", 1, HOUR_NS)]


def test_percentiles_are_the_nearest_rank() -> None:
    ordered = list(range(1, 201))
    assert [percentile(ordered, share) for share in (0.5, 0.99, 1)] == [100, 198, 200]
    assert percentile([7], 0.5) == 7


def test_healthy_users_beside_sick_ones_are_told_by_themselves() -> None:
    well, sick = dry(), dry()
    sick.user_id = "sick"
    sick.cutoffs = [each._replace(user_id="sick") for each in sick.cutoffs]
    late = [each._replace(user_id="sick", arrived_ns=each.arrived_ns + 10**9) for each in (FIRST, SECOND)]
    verdict = judge([well, sick], [FIRST, SECOND, *late], is_sick=lambda user_id: user_id == "sick")
    assert verdict.clean
    assert verdict.healthy_ns == judge([well], [FIRST, SECOND]).lateness_ns
    assert len(verdict.lateness_ns) == 4
    assert judge([well], [FIRST, SECOND]).healthy_ns == [], "nobody is sick"
