"""The contract's sentences about money, time, procedures and cutoffs (§§2-4), each with the tests that show it.

`contract.toml` holds the table: a sentence, in the contract's own words, and tests as `path::name`; behind the
sentences the cases in which several of them meet. A test that is renamed or taken away must be replaced there.
"""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import billing

ROOT = Path(billing.__file__).parent.parent
TABLE = tomllib.loads(Path(__file__).with_name("contract.toml").read_text())
RULES, TRICKY = TABLE["rule"], TABLE["tricky"]


@cache
def functions_of(path: str) -> frozenset[str]:
    """The names of the test functions of a file; none where there is no such file."""
    file = ROOT / path
    nodes = ast.walk(ast.parse(file.read_text())) if file.exists() else ()
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_test_that_the_table_names_is_there() -> None:
    named = {test for rule in RULES + TRICKY for test in rule["tests"]}
    assert {test for test in named if test.partition("::")[2] not in functions_of(test.partition("::")[0])} == set()


def test_every_sentence_has_tests_and_stands_there_once() -> None:
    assert all(rule["says"] and rule["tests"] and rule["section"] in (2, 3, 4) for rule in RULES)
    assert len({(rule["section"], rule["says"]) for rule in RULES}) == len(RULES) > 100
    assert all(tricky["case"] and tricky["tests"] for tricky in TRICKY)
    assert len({tricky["case"] for tricky in TRICKY}) == len(TRICKY) == 9


def inexact(path: Path) -> list[str]:
    """Where a module divides into a float, writes one or makes one."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("float", "round"))
    ]


def test_nothing_computes_money_in_floating_point(tmp_path: Path) -> None:
    rooms = [*(ROOT / "billing/ledger").glob("*.py"), *(ROOT / "billing/doctor").glob("*.py")]
    assert [where for path in rooms for where in inexact(path)] == []
    assert inexact(ROOT / "billing/history/period.py") == []
    bad = tmp_path / "bad.py"
    bad.write_text("a = b / 2\na /= 2\nc = 0.5\nd = float(a)\ne = round(a)\nf = a // 2\n")
    assert sorted(inexact(bad)) == [f"bad.py:{line}" for line in (1, 2, 3, 4, 5)]
