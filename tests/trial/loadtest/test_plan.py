"""Plans: prices by hand, what is sent when, and who is to run dry."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest

from billing.trial.loadtest.plan import HOUR_NS, LEAD_NS, MARGIN_NS, SECOND_NS, Plan, Step, make_plan, rate_of
from billing.trial.loadtest.trace import Machine
from billing.trial.loadtest.verdict import Account


def machine(start_s: int, user: str, name: str, duration_s: int | None) -> Machine:
    return Machine(start_s, user, name, 2, Fraction(7, 2), duration_s)


FLEETS = [
    machine(60 * number + each, f"user-{number}", f"vm-{number}-{each}", 600 * (each + 1))
    for number in range(40)
    for each in range(number % 4 + 1)
]


def plan(
    machines: Sequence[Machine] = FLEETS,
    *,
    speed: int = 600,
    users_max: int = 0,
    cut_s: int | None = None,
    dry_share: Fraction = Fraction(3, 10),
    seed: int = 1,
    suffix: str = "",
) -> Plan:
    return make_plan(
        machines, speed=speed, users_max=users_max, cut_s=cut_s, dry_share=dry_share, seed=seed, suffix=suffix
    )


def played(chosen: Plan) -> dict[str, Account]:
    """What becomes of the users when each step is answered at the instant it was planned for."""
    accounts = {user: Account(user) for user in chosen.users}
    for step in chosen.steps:
        account = accounts[step.user_id]
        if step.method == "top_up":
            account.top_up(step.due_ns, step.value)
        else:
            account.set_rate(step.due_ns, step.value, step.resource)
    for account in accounts.values():
        account.settle(chosen.end_ns)
    return accounts


def test_a_price_by_hand() -> None:
    # 2 * 0.04 + 3.5 * 0.005 = 0.0975 coins an hour
    assert rate_of(machine(0, "u", "v", 1), 1) == 97_500_000
    assert rate_of(machine(0, "u", "v", 1), 3600) == 351_000_000_000
    with pytest.raises(ValueError, match="no exact price"):
        rate_of(Machine(0, "u", "v", 1, Fraction(1, 7_000_000_000), 1), 1)


def test_one_machine_by_hand() -> None:
    chosen = plan([machine(120, "u", "vm-7", 240)], speed=60, dry_share=Fraction(0), suffix="@x")
    starts_ns = 2 * SECOND_NS + LEAD_NS
    rates = [step for step in chosen.steps if step.method == "set_rate"]
    assert rates == [
        Step(starts_ns, "u@x", "set_rate", 97_500_000 * 60, "vm-7"),
        Step(starts_ns + 4 * SECOND_NS, "u@x", "set_rate", 0, "vm-7"),
    ]
    assert chosen.steps[0].method == "top_up"
    assert chosen.steps[0].due_ns == starts_ns - LEAD_NS
    assert (chosen.users, chosen.dry, chosen.machines, chosen.end_ns) == (["u@x"], 0, 1, rates[1].due_ns)
    # 4 s at 60 times 0.0975 coins an hour are 0.0065 coins: twice that and a reserve of a minute, or all of it in parts
    assert sum(step.value for step in chosen.steps if step.method == "top_up") >= 2 * 6_500_000


def test_what_outlives_the_replay_is_stopped_at_its_end() -> None:
    machines = [machine(0, "a", "short", 30), machine(0, "a", "endless", None), machine(500, "b", "late", 10)]
    chosen = plan(machines, speed=10, cut_s=100)
    assert chosen.users == ["a"]
    assert chosen.end_ns == 10 * SECOND_NS + LEAD_NS
    assert [(step.due_ns - LEAD_NS, step.resource) for step in chosen.steps if step.value == 0] == [
        (3 * SECOND_NS, "short"),
        (10 * SECOND_NS, "endless"),
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", ["0", "0.3", "1"])
def test_the_share_that_was_asked_for_runs_dry(seed: int, share: str) -> None:
    chosen = plan(dry_share=Fraction(share), seed=seed)
    dry = [user for user, account in played(chosen).items() if account.cutoffs]
    assert len(chosen.users) == 40
    assert len(dry) == chosen.dry == 40 * Fraction(share)


def test_some_are_restored_and_some_start_machines_while_dry() -> None:
    accounts = played(plan(dry_share=Fraction(1), seed=2))
    assert any(account.lifted for account in accounts.values())
    assert any(len(account.cutoffs) > 1 and not account.lifted for account in accounts.values())


def test_a_plan_leaves_no_rate_and_keeps_each_user_in_order() -> None:
    chosen = plan()
    assert all(not account.lines for account in played(chosen).values())
    assert [step.due_ns for step in chosen.steps] == sorted(step.due_ns for step in chosen.steps)
    first: dict[str, str] = {}
    for step in chosen.steps:
        first.setdefault(step.user_id, step.method)
    assert set(first.values()) == {"top_up"}
    assert all(step.value > 0 for step in chosen.steps if step.method == "top_up")


def test_the_seed_decides_and_nothing_else() -> None:
    assert plan(seed=3, users_max=10) == plan(seed=3, users_max=10)
    assert plan(seed=3, users_max=10) != plan(seed=4, users_max=10)
    assert len(plan(users_max=10).users) == 10
    assert set(plan(users_max=10).users) < set(plan().users)


def test_speed_changes_when_but_not_how_much() -> None:
    slow, fast = plan(speed=100, dry_share=Fraction(0)), plan(speed=200, dry_share=Fraction(0))
    spent = [
        {user: sum(step.value for step in chosen.steps if step.user_id == user) for user in chosen.users}
        for chosen in (slow, fast)
    ]
    assert spent[0].keys() == spent[1].keys()
    assert (slow.end_ns - LEAD_NS) == 2 * (fast.end_ns - LEAD_NS)
    hours = [Fraction(chosen.end_ns - LEAD_NS, HOUR_NS) * speed for chosen, speed in ((slow, 100), (fast, 200))]
    assert hours[0] == hours[1]


@pytest.mark.parametrize("seed", range(10))
def test_those_to_run_dry_are_no_close_calls(seed: int) -> None:
    short = [machine(60 * number, f"short-{number}", f"short-{number}", 1) for number in range(40)]
    chosen = plan([*FLEETS, *short], dry_share=Fraction(1, 2), seed=seed)
    last_ns = {step.user_id: step.due_ns for step in chosen.steps}
    for user, account in played(chosen).items():
        if account.cutoffs:
            assert user.startswith("user-")
            assert account.cutoffs[0].at_ns <= last_ns[user] - MARGIN_NS
