"""How the demo judges itself: which cutoffs follow from replies, and that each way of being wrong is seen."""

from __future__ import annotations

from typing import Any

import pytest

from billing.trial.arrivals import Arrival
from billing.trial.demo_scene import Promises, coins


def account(at_ns: int, exhausts_at_ns: int | None = None, state: str = "active", **more: object) -> dict[str, Any]:
    return {"user_id": "u", "at_ns": at_ns, "state": state, "exhausts_at_ns": exhausts_at_ns, **more}


def promises_of(*accounts: dict[str, Any]) -> Promises:
    promises = Promises()
    for each in accounts:
        promises.reply(each)
    return promises


def get(exhausted_at_ns: int, late_ns: int = 5, user_id: str = "u") -> Arrival:
    return Arrival(user_id, "event", 1, exhausted_at_ns, exhausted_at_ns + late_ns)


@pytest.mark.parametrize(
    ("accounts", "expected"),
    [
        ([account(1), account(5, 100), account(99, 100)], set()),  # not there yet
        ([account(5, 100), account(100, None, "exhausted")], {("u", 100)}),
        ([account(5, 100), account(99, 300), account(299, 300)], set()),  # saved in time
        ([account(5, 100), account(100, 300)], {("u", 100)}),  # too late by nothing: it ran out first
        ([account(5), account(7, None, "exhausted", outcome="exhausted")], {("u", 7)}),  # a debit
        ([account(5), account(7, None, outcome="ok")], set()),
        ([account(5, None, "exhausted"), account(7, None, "exhausted", outcome="exhausted")], set()),  # it was before
    ],
)
def test_what_replies_promise(accounts: list[Any], expected: set[tuple[str, int]]) -> None:
    assert promises_of(*accounts).expected == expected


PROMISES = promises_of(account(5, 100), account(100, None, "exhausted"))


@pytest.mark.parametrize(
    ("arrivals", "score"),
    [
        ([get(100)], (1, 1, 0, 0, 0)),
        ([get(100), get(100, 9)], (1, 1, 0, 0, 0)),  # a repeated one is none too many
        ([], (1, 0, 1, 0, 0)),
        ([get(100, -1)], (1, 1, 0, 1, 0)),
        ([get(100), get(101)], (1, 1, 0, 0, 1)),
        ([get(100), get(100, user_id="v")], (1, 1, 0, 0, 1)),
    ],
)
def test_what_arrived_is_held_against_it(arrivals: list[Arrival], score: tuple[int, ...]) -> None:
    assert PROMISES.score(arrivals) == score
    assert PROMISES.score(arrivals).clean == (score[2:] == (0, 0, 0))


def test_balances_are_shown_with_all_digits() -> None:
    assert [coins(nanos) for nanos in (0, 1, 1_500_000_000, -1)] == [
        "0.000000000",
        "0.000000001",
        "1.500000000",
        "-0.000000001",
    ]
