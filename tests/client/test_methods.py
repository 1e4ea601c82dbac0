"""The client's methods are those of the table, its results the shapes, and what it loads is not the daemon."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from inspect import iscoroutinefunction, signature
from typing import Any, get_type_hints

import pytest

from billing.api.http.writing import money_name
from billing.api.methods import LOCAL, Method
from billing.api.shapes import Shape
from billing.api.values import Enum, WordSet
from billing.client import Client, SyncClient, arguments, results
from billing.client.result import Result
from billing.client.results import Standing
from billing.ledger.commands import unpack_thresholds
from tests.api.outside import DoorHarness
from tests.api.test_methods import RIGHT
from tests.client import method_stubs, stubs
from tests.client.method_stubs import MONEY, ROWS, name_of
from tests.conftest import REPOSITORY


def arguments_of(row: Method) -> dict[str, Any]:
    """Arguments of the client's method for a call that is right."""
    arguments = {name_of(field): RIGHT[field.name] for field in (*row.required, *row.options)}
    for field in row.required:
        if field.type.kind in MONEY:
            arguments["nanos"] = arguments.pop(field.name)
        elif field.type.kind == "thresholds":
            renamed = {"amount": "amount_nanos"}
            bounds: Any = arguments[field.name]
            arguments[field.name] = [{renamed.get(name, name): each[name] for name in each} for each in bounds]
    return arguments


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_method_takes_what_its_row_says(harness: DoorHarness, row: Method) -> None:
    method = getattr(Client, row.name)
    assert iscoroutinefunction(method)
    fields = {name_of(field): field for field in (*row.required, *row.options)}
    parameters = signature(method).parameters
    assert set(parameters) - {"self", "nanos"} == set(fields)
    assert ("nanos" in parameters) == any(field.type.kind in MONEY for field in row.required)
    for name, field in fields.items():
        if isinstance(field.type, Enum | WordSet):
            choices = [
                choice
                for choice in field.type.choices
                if f"'{choice}'" in parameters[name].annotation.replace('"', "'")
            ]
            assert choices == list(field.type.choices), name
    async with Client(f"{harness.address[0]}:{harness.address[1]}") as client:
        await getattr(client, row.name)(**arguments_of(row))
    if row.kind != LOCAL:
        options = {field.name: RIGHT[field.name] for field in row.options}
        assert harness.gate.asked[0][1] == row.parse([*(RIGHT[field.name] for field in row.required), options])
    assert signature(getattr(SyncClient, row.name)) == signature(method)


def test_results_and_methods_are_what_the_table_makes_of_them() -> None:
    command = "python -m tests.client.stubs"
    assert stubs.FILE.read_text() == stubs.text(), command
    assert method_stubs.FILE.read_text() == method_stubs.text(), command
    assert method_stubs.BLOCKING_FILE.read_text() == method_stubs.blocking_text(), command


@pytest.mark.parametrize("shape", stubs.shapes().values(), ids=lambda shape: shape.name)
def test_a_result_has_the_fields_of_its_shape(shape: Shape) -> None:
    result_class = getattr(results, shape.name)
    hints = {name: str(kind) for name, kind in get_type_hints(result_class).items() if name != "_NESTED"}
    coins = {money_name(field.name, field.kind) for field in shape.fields} - {""}
    assert set(hints) == {stubs.attribute_of(field) for field in shape.fields} | coins
    for field in shape.fields:
        if field.shape is not None:
            assert result_class._NESTED[field.name] is getattr(results, field.shape.name)
        assert not hasattr(dict, field.name), f"{field.name} would be a method of maps"


@pytest.mark.parametrize("row", [row for row in ROWS if row.reply.shape is not None], ids=lambda row: row.name)
def test_a_method_answers_the_result_of_its_shape(row: Method) -> None:
    assert row.reply.shape is not None
    name = f"list[{row.reply.shape.name}]" if row.reply.many else row.reply.shape.name
    assert signature(getattr(Client, row.name)).return_annotation == name


def test_money_is_exact_and_a_result_is_the_map_that_came() -> None:
    nanos = -(2**63) + 1
    standing = Standing({"balance_nanos": nanos, "rate_nanos_per_hour": 3_600, "cutoff": {"seq": 7}, "later": 1})
    assert standing.balance == Decimal(nanos) / 10**9
    assert int(standing.balance * 10**9) == standing.balance_nanos == nanos
    assert standing.rate_per_hour == Decimal("0.0000036")
    assert standing.cutoff.seq == 7
    assert standing["later"] == 1
    assert Result({"amount_nanos": None}).amount is None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="Standing has no credit; it has balance_nanos"):
        standing.credit  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("coins", "nanos", "wire"),
    [
        *(("5", None, "5"), (Decimal("5E+3"), None, "5000"), (Decimal("0.000000001"), None, "0.000000001")),
        *(
            (None, 5, 5),
            (Decimal("0.123450") * Decimal("1.23450"), None, "0.152399025"),
            (Decimal("-0.0"), None, "-0.0"),
        ),
        *((Decimal("5.0000000000"), None, "5.000000000"), (Decimal("5.0000000001"), None, "5.0000000001")),
    ],
)
def test_what_an_amount_may_be(coins: Any, nanos: Any, wire: Any) -> None:
    assert arguments.money("amount", coins, nanos) == wire


@pytest.mark.parametrize(
    ("coins", "nanos"), [(5, None), (5.0, None), (True, None), (None, None), ("5", 5), (None, 5.0), (None, True)]
)
async def test_a_bare_number_is_no_amount_and_nothing_is_sent(harness: DoorHarness, coins: Any, nanos: Any) -> None:
    async with Client(f"{harness.address[0]}:{harness.address[1]}") as client:
        with pytest.raises(TypeError, match=r"nanos|amount"):
            await client.top_up("u", coins, nanos=nanos)
        with pytest.raises(TypeError):
            await client.set_thresholds("u", [{"amount": 5}])
    assert harness.gate.asked == []


@pytest.mark.parametrize(
    ("coins", "hint"),
    [
        (5, ', not int: write "5" for so many coins, or give 5 as nanos for so many nanos'),
        (12.5, ', not float: write "12.5" for so many coins'),
        (1e21, ', not float: write "1000000000000000000000" for so many coins'),
        (True, ", not bool"),
        (float("nan"), ", not float"),
    ],
)
def test_a_bare_number_is_answered_with_what_it_can_have_meant(coins: Any, hint: str) -> None:
    with pytest.raises(TypeError) as refused:
        arguments.money("amount", coins, None)
    assert str(refused.value) == f"amount must be a text of coins or a Decimal{hint}"


def test_of_a_threshold_the_hint_has_the_field_that_it_has() -> None:
    with pytest.raises(TypeError, match='write "5" for so many coins, or give 5 as amount_nanos for so many nanos'):
        arguments.thresholds_of([{"amount": 5}])


def test_what_a_threshold_has_beside_its_amount_is_sent_and_not_dropped() -> None:
    given: list[Any] = [{"amount": "5", "runway_ns": 60}, {"amount_nanos": 5, "kind": "x"}, {"runway_ns": 60}]
    sent = [{"amount": "5", "runway_ns": 60}, {"amount": 5, "kind": "x"}, {"runway_ns": 60}]
    assert arguments.thresholds_of(given) == sent
    with pytest.raises(TypeError, match="expected either amount, "):
        arguments.thresholds_of([{"amount": "5", "amount_nanos": 5}])


async def test_a_dry_run_takes_money_as_its_method_does(harness: DoorHarness) -> None:
    async with Client(f"{harness.address[0]}:{harness.address[1]}") as client:
        for method, params in (
            *(("debit", ["u", 5]), ("debit", ["u", 5.0, {"mode": "force"}]), ("set_rate", ("u", 0))),
            *(("capture", ["u", "h", 5]), ("set_thresholds", ["u", [{"amount": 5}]])),
        ):
            with pytest.raises(TypeError, match=r"must be a text of coins or a Decimal, not (int|float)"):
                await client.dry_run(method, params)
        assert [what for kind, what in harness.gate.asked if kind == "read"] == []
        await client.dry_run("debit", ("u", Decimal("5E+1"), {"mode": "force"}))
        await client.dry_run("set_thresholds", ["u", [{"amount_nanos": 7}]])
        await client.dry_run("close_account", ["u"])
    debit, thresholds, _ = [what[2] for kind, what in harness.gate.asked if kind == "read"]
    assert debit[2] == 50 * 10**9
    assert unpack_thresholds(thresholds[5]) == [(0, 7)]


def test_the_client_loads_nothing_of_the_daemon() -> None:
    script = "import sys, billing.client; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    loaded = {name for name in result.stdout.split() if name.split(".")[0] in ("billing", "shards")}
    contract = {"billing.ledger", "billing.ledger.errors", "shards", "shards.buckets", "shards.counting"}  # the hash
    assert {name for name in loaded if not name.startswith("billing.client")} == {"billing", *contract}, result.stderr
