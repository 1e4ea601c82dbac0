"""Answers of a run against the model: the order of entries counts, and every difference is seen and named."""

from __future__ import annotations

import pytest

from billing.trial.loadtest.assess import TOLD_MAX, Assessment
from billing.trial.loadtest.columns import DEBIT, FAILED, OPEN, RATE, READ, REFUSED, TOP_UP, Columns
from billing.trial.loadtest.verdict import Account
from billing.trial.loadtest.workload import Mixer, Share, Workload
from tests.trial.loadtest.world import COIN, START_NS, answer_rightly

USERS = [f"u{number}" for number in range(20)]
RESTORED_S = 1_700_000_000


def run_of(run: int = 0) -> Columns:
    """Top-ups, a mix with debits, and questions at the end."""
    columns = Columns(run, USERS)
    for user in range(len(USERS)):
        columns.add(0, user, TOP_UP, COIN // 2)
    workload = Workload(accounts=len(USERS), seconds=2.0, warmup_s=0.0, mix=(30, 30, 30, 10))
    Mixer(workload, Share(), run).until(columns, 2 * 10**9, 400.0)
    for user in range(len(USERS)):
        columns.add(2 * 10**9, user, READ, 0)
    return columns


def assessed(columns: Columns) -> Assessment:
    assessment = Assessment()
    assessment.apply(columns)
    return assessment


def wrong(assessment: Assessment) -> tuple[int, int, int]:
    return assessment.wrong_replies, assessment.wrong_balances, assessment.wrong_refusals


def test_right_answers_are_right_run_after_run() -> None:
    assessment = Assessment()
    accounts: dict[int, Account] = {}
    for run in range(3):
        columns = run_of(run)
        columns.due = type(columns.due)("q", (due + run * 10**10 for due in columns.due))
        answer_rightly(columns, accounts)
        assessment.apply(columns)
    assert (wrong(assessment), assessment.told) == ((0, 0, 0), [])
    assert [each.view() for each in assessment.accounts.values()] == [
        accounts[user].view() for user in assessment.accounts
    ]


def test_answers_of_a_daemon_whose_data_were_restored_are_right_and_show_since_when() -> None:
    columns = Columns(0, USERS)
    for kind, value in ((TOP_UP, COIN), (DEBIT, COIN), (TOP_UP, COIN), (DEBIT, COIN), (READ, 0)):
        for user in range(len(USERS)):
            columns.add(10**9, user, kind, value)
    answer_rightly(columns)
    for row in range(len(columns)):
        columns.seq[row] += (RESTORED_S - 1) * (columns.seq[row] > 0)
    assessment = assessed(columns)
    assert (wrong(assessment), assessment.told, assessment.seq_base) == ((0, 0, 0), [], RESTORED_S - 1)
    columns.seq[len(columns) - 1] += 1
    assert wrong(assessed(columns)) == (0, 1, 0)


def test_the_order_of_entries_counts_not_that_of_sending() -> None:
    columns = run_of()
    answer_rightly(columns)
    rows = [row for row in range(len(columns)) if columns.user[row] == 3 and columns.kind[row] != READ]
    first, second = rows[1], rows[2]
    for column in (columns.kind, columns.value, columns.entry, columns.at, columns.balance, columns.rate):
        column[first], column[second] = column[second], column[first]
    for column in (columns.exhausts, columns.seq, columns.state):
        column[first], column[second] = column[second], column[first]
    assert wrong(assessed(columns)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["balance", "rate", "exhausts", "seq", "at"])
def test_one_unit_in_any_field_is_a_difference(name: str) -> None:
    columns = run_of()
    answer_rightly(columns)
    row = next(row for row in range(100, 200) if columns.kind[row] == RATE and columns.exhausts[row] > 0)
    getattr(columns, name)[row] += 1
    assessment = assessed(columns)
    assert sum(wrong(assessment)) >= 1
    assert columns.users[columns.user[row]] in assessment.told[0]


def test_a_lost_command_makes_all_that_follows_wrong() -> None:
    columns = run_of()
    answer_rightly(columns)
    columns.state[40] = OPEN  # the daemon did it, and nobody was told
    assert assessed(columns).wrong_balances >= 1


def test_a_wrong_final_balance_is_told_as_one() -> None:
    columns = run_of()
    answer_rightly(columns)
    columns.balance[len(columns) - 1] -= 1
    assert wrong(assessed(columns)) == (0, 1, 0)


def test_a_refusal_is_wrong_where_there_was_always_enough() -> None:
    columns = Columns(0, ["rich", "poor"])
    for user, nanos in enumerate((100 * COIN, COIN)):
        columns.add(0, user, TOP_UP, nanos)
        columns.add(1, user, DEBIT, COIN // 2)
        columns.add(2, user, DEBIT, COIN)
    answer_rightly(columns)
    assert columns.state[5] == REFUSED
    assert wrong(assessed(columns)) == (0, 0, 0)
    columns = Columns(0, ["rich"])
    columns.add(0, 0, TOP_UP, 100 * COIN)
    columns.add(1, 0, DEBIT, COIN)
    answer_rightly(columns)
    columns.state[1] = REFUSED
    assert wrong(assessed(columns)) == (0, 0, 1)


def test_an_instant_that_goes_back_is_a_difference() -> None:
    columns = run_of()
    answer_rightly(columns)
    last = max(row for row in range(len(columns)) if columns.user[row] == 5 and columns.kind[row] != READ)
    columns.at[last] = START_NS - 1
    assert "goes back" in assessed(columns).told[0]


def test_what_failed_did_not_happen_and_only_so_many_are_told() -> None:
    columns = run_of()
    answer_rightly(columns)
    columns.state[30] = FAILED
    for row in range(len(USERS), len(columns)):
        columns.balance[row] += 1
    assessment = assessed(columns)
    assert assessment.wrong_replies > 100
    assert len(assessment.told) == TOLD_MAX


def test_cutoffs_are_claimed_as_time_passes() -> None:
    columns = Columns(0, ["dry", "idle"])
    columns.add(0, 0, TOP_UP, COIN)
    columns.add(0, 0, RATE, COIN)
    columns.add(0, 1, TOP_UP, COIN)
    answer_rightly(columns)
    assessment = assessed(columns)
    assert assessment.soonest_ns() == START_NS + 10**9
    assessment.settle(START_NS + 10**9 - 1)
    assert assessment.claims() == []
    assessment.settle(START_NS + 10**9)
    claim = assessment.claims()[0]
    assert (claim.user_id, [(cutoff.seq, cutoff.at_ns) for cutoff in claim.cutoffs]) == ("dry", [(1, START_NS + 10**9)])
    assert assessment.soonest_ns() is None
