"""Inventories against rates: each difference of each kind, each broken line by its number, and nothing skipped."""

from __future__ import annotations

import random

import pytest

from billing.cli.reconcile_command import Difference, differences, left_over, read_inventory

HOUR = 10**9  # a coin an hour


def differences_of(text: str, accounts: dict[str, dict[str, int]]) -> list[Difference]:
    inventory = read_inventory(text.splitlines(keepends=True), "hour")
    assert inventory.broken == []
    return [*differences(inventory.machines, accounts.items()), *left_over(inventory.machines)]


def test_where_both_say_the_same_there_is_no_difference() -> None:
    text = "user,resource,rate\nann,vm-1,0.36\nann,vm-2,1\nbert,,2.5\ncarl,vm-9\ndora,vm-off,0\n"
    accounts = {
        "ann": {"vm-1": 360_000_000, "vm-2": HOUR},
        "bert": {"": 2_500_000_000},
        "carl": {"vm-9": 7},
        "dora": {},
        "nobody": {},
    }
    assert differences_of(text, accounts) == []


def test_each_kind_of_difference() -> None:
    text = "ann,vm-1,1\nann,vm-2,2\nbert,vm-3\n"
    assert differences_of(text, {"ann": {"vm-2": 3 * HOUR, "vm-4": 5}}) == [
        Difference("ann", "vm-1", "no_rate", HOUR, None),
        Difference("ann", "vm-2", "other_rate", 2 * HOUR, 3 * HOUR),
        Difference("ann", "vm-4", "no_machine", None, 5),
        Difference("bert", "vm-3", "no_rate", None, None),
    ]


@pytest.mark.parametrize(("per", "hourly"), [("hour", HOUR), ("minute", 60 * HOUR), ("second", 3600 * HOUR)])
def test_rates_are_of_the_unit_that_is_named(per: str, hourly: int) -> None:
    assert read_inventory(["ann,vm-1,1\n"], per).machines == {"ann": {"vm-1": hourly}}
    heading = f"user_id,resource_id,Rate_Per_{per}\n"
    for per_option in (None, per):
        inventory = read_inventory([heading, "ann,vm-1,1\n"], per_option)
        assert (inventory.machines, inventory.per, inventory.broken) == ({"ann": {"vm-1": hourly}}, per, [])
    wrong_unit = "second" if per == "hour" else "hour"
    with pytest.raises(ValueError, match=f"its heading says rate_per_{per}, and --per {wrong_unit}"):
        read_inventory([heading, "ann,vm-1,1\n"], wrong_unit)


@pytest.mark.parametrize("heading", ["user_id,resource_id,rate", "User, machine", "user,resource,rate"])
def test_a_heading_is_no_machine_and_its_rates_are_an_hours(heading: str) -> None:
    inventory = read_inventory([f"{heading}\n", "ann,vm-1,1\n"], None)
    assert (inventory.machines, inventory.lines, inventory.per) == ({"ann": {"vm-1": HOUR}}, 1, "hour")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ann", "expected user,resource"),
        ("ann,vm-2,1,2", "got 4 values"),
        (",vm-2,1", "the user has 0 bytes"),
        ("ü" * 65 + ",vm-2", "the user has 130 bytes"),
        ("ann," + "x" * 129, "the resource has 129 bytes"),
        ("ann,vm-1", "stands on a line before"),
        ("an\udcffn,vm-2", "the user is no UTF-8"),
        ('ann,"vm"2,1', "it is no CSV"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(line: str, why: str) -> None:
    inventory = read_inventory(["user,resource\n", "ann,vm-1\n", f"{line}\n", "\n", "bert,vm-3\n"], "hour")
    ((number, text),) = inventory.broken
    assert number == 3
    assert why in text
    assert (inventory.machines, inventory.lines) == ({"ann": {"vm-1": None}, "bert": {"vm-3": None}}, 2)


@pytest.mark.parametrize("rate", ["much", "-1", "0.0000000001"])
def test_a_machine_whose_rate_cannot_be_read_runs_all_the_same(rate: str) -> None:
    inventory = read_inventory(["user,resource,rate\n", f"ann,vm-1,{rate}\n", f"ann,vm-2,{rate}\n"], "hour")
    assert [(broken.line, broken.why.partition(":")[0]) for broken in inventory.broken] == [
        (2, "the rate is none"),
        (3, "the rate is none"),
    ]
    assert [*differences(inventory.machines, [("ann", {"vm-1": 5, "vm-3": 7})])] == [
        Difference("ann", "vm-2", "no_rate", None, None),
        Difference("ann", "vm-3", "no_machine", None, 7),
    ]


def test_a_heading_with_other_names_is_a_broken_line_and_no_machine() -> None:
    inventory = read_inventory(["owner,server,price\n", "ann,vm-1,1\n"], "hour")
    assert [broken.line for broken in inventory.broken] == [1]
    assert [*differences(inventory.machines, [("ann", {"vm-1": HOUR})]), *left_over(inventory.machines)] == []


def test_all_broken_lines_are_named() -> None:
    inventory = read_inventory([f"user_{number}\n" for number in range(5_000)], "hour")
    assert [line.line for line in inventory.broken] == list(range(1, 5_001))


@pytest.mark.parametrize("line", ['"ann,vm-1', 'ann,"vm-1', 'ann,vm-1,"1', '"'])
@pytest.mark.parametrize("behind", ['"carl",vm-4\n', "carl,vm-4\n"])
def test_a_quote_that_is_not_closed_breaks_its_own_line_and_no_other(line: str, behind: str) -> None:
    inventory = read_inventory(["user,resource\n", f"{line}\n", "bert,vm-3\n", f"{line}\n", behind], "hour")
    assert [broken.line for broken in inventory.broken] == [2, 4]
    assert inventory.machines == {"bert": {"vm-3": None}, "carl": {"vm-4": None}}


def test_a_name_of_several_lines_is_one_machine_and_numbers_go_on_behind_it() -> None:
    inventory = read_inventory(["user_id,resource\n", 'ann,"vm\n', '1"\n', "bert\n", "carl,vm-4\n"], "hour")
    assert inventory.machines == {"ann": {"vm\n1": None}, "carl": {"vm-4": None}}
    assert [broken.line for broken in inventory.broken] == [4]


def test_any_faults_that_are_put_in_are_found_and_nothing_else() -> None:
    rng = random.Random(3)
    accounts = {f"u{number}": {f"vm-{line}": rng.randrange(1, 10**9) for line in range(3)} for number in range(300)}
    lines, wanted = [], []
    for user, rates in accounts.items():
        for resource, rate in list(rates.items()):
            line = f"{user},{resource},{rate // 10**9}.{rate % 10**9:09d}\n"
            match rng.randrange(10):
                case 0:
                    wanted.append(Difference(user, resource, "no_machine", None, rate))
                    continue
                case 1:
                    del rates[resource]
                    wanted.append(Difference(user, resource, "no_rate", rate, None))
                case 2:
                    rates[resource] = rate + 1
                    wanted.append(Difference(user, resource, "other_rate", rate, rate + 1))
            lines.append(line)
    rng.shuffle(lines)
    assert sorted(differences_of("".join(lines), accounts)) == sorted(wanted)
