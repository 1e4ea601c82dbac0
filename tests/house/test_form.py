"""Form: every file opens with its theory, every package with its modules; each has a name that says something, can be
read in one go, and is finished.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.house.source import ALL, REPOSITORY, ROOMS, Module, imports, module_of, modules

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "base", "misc", "tools", "stuff"}
UNFINISHED = re.compile(
    "|".join(rf"\b{start}{two}\b" for start, two in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")))
)
PARAMETERS_MAX = 8  # beyond so many nobody sees which of them belong together: what does has a name of its own
MANY = {
    ("billing/api/calls.py", "set_rate_of"): "the parameters of a method, in the order of its row",
    ("billing/api/methods.py", "_row"): "a row of the table of methods, whose columns are named where it is written",
    ("billing/cli/account_commands.py", "_accounts"): "the options of one command, as click hands them over",
    ("billing/cli/calling.py", "with_target"): "the options of all commands, as click hands them over",
    ("billing/client/methods.py", "set_rate"): "the options of a method, as programs pass them by name",
    ("billing/ledger/posting.py", "_entry"): "the fields of an entry, written for every command",
    ("tests/ledger/model.py", "_write"): "the fields of an entry",
}
MOCKS = {"unittest.mock", "mock", "pytest_mock", "doublex", "flexmock"}
REPLACERS = {"monkeypatch", "mocker"}


def unfinished(module: Module) -> Iterator[str]:
    is_named = UNFINISHED.search(module.text)  # tokens are slow to make, and hardly any file has such a word at all
    for token in tokenize.generate_tokens(io.StringIO(module.text if is_named else "").readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) and UNFINISHED.search(token.string):
            yield f"{module.path}:{token.start[0]} {token.string}"
    for node in module.nodes:
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplemented" in ast.unparse(node.exc):
            yield f"{module.path}:{node.lineno} {ast.unparse(node)}"


def replacements(module: Module) -> Iterator[str]:
    """Where a test puts something else in the place of our own: it fakes the world instead."""
    for line, name in imports(module):
        if any(name == mock or name.startswith(mock + ".") for mock in MOCKS):
            yield f"{module.path}:{line} imports {name}"
    for node in module.nodes:
        named = getattr(node, "arg", None) or getattr(node, "id", None) or getattr(node, "attr", None)
        if named in REPLACERS | {"MonkeyPatch"}:
            yield f"{module.path}:{getattr(node, 'lineno', 0)} {named}"


def modules_in(package: Module) -> set[str]:
    folder = (REPOSITORY / package.path).parent
    inside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    return inside - {"__init__", "__main__"}


def opening_faults(text: str, inside: set[str]) -> Iterator[str]:
    """What the docstring of a package says wrongly of the modules in it. It names each of them in backticks or as the
    head of a row, `    one  what it is` or `    one, another  what they are; third: what that is`; no other head.
    """
    rows = re.findall(r"^    (\w+(?:, \w+)*)(?:,$|  )", text, re.MULTILINE)
    further = re.findall(r";\s+(\w+(?:, \w+)*): ", "\n".join(re.findall(r"^    .*", text, re.MULTILINE)))
    heads = {name for row in (*rows, *further) for name in row.split(", ")}
    quoted = {part for name in re.findall(r"`([\w.]+)`", text) for part in name.split(".")}
    yield from (f"{name} is not named" for name in sorted(inside - heads - quoted))
    yield from (f"{name} is not there" for name in sorted(heads - inside))


def misnamed(module: Module, by_name: dict[str, Module]) -> Iterator[str]:
    """Dotted names of ours in backticks that are no module, nor a word of the module that they begin with."""
    for name in re.findall(rf"`((?:{'|'.join(ALL)})(?:\.\w+)+)", module.text):
        head, rest = name, ""
        while head not in by_name and "." in head:
            head, _, rest = head.rpartition(".")
        if head not in by_name or (rest and not re.search(rf"\b{rest}\b", by_name[head].text)):
            yield f"{module.path}: {name}"


def many_parameters(module: Module) -> Iterator[tuple[str, str, int]]:
    """(path, name, how many) of the functions that take more than `PARAMETERS_MAX`, the object itself aside."""
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            parameters = node.args
            names = [parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs)]
            names += [parameter.arg for parameter in (parameters.vararg, parameters.kwarg) if parameter is not None]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > PARAMETERS_MAX:
                yield module.path, getattr(node, "name", "lambda"), count


def test_every_module_opens_with_a_docstring() -> None:
    silent = [module.path for module in modules(*ALL) if not (ast.get_docstring(module.tree) or "").strip()]
    assert [path for path in silent if path.startswith(ROOMS) or (REPOSITORY / path).stat().st_size] == []


def test_every_package_opens_with_the_modules_in_it() -> None:
    packages = [module for module in modules(*ROOMS) if module.path.endswith("__init__.py")]
    opened = {package.path: ast.get_docstring(package.tree, clean=False) or "" for package in packages}
    faults = {package.path: list(opening_faults(opened[package.path], modules_in(package))) for package in packages}
    assert {path: missing for path, missing in faults.items() if missing} == {}


def test_a_dotted_name_of_ours_in_prose_is_there() -> None:
    by_name = {module.name: module for module in modules(*ALL)}
    assert [fault for module in modules(*ALL) for fault in misnamed(module, by_name)] == []


def test_every_name_says_something() -> None:
    names = {module.path: re.split("[/_.]", module.path.lower()) for module in modules(*ALL)}
    assert [path for path, parts in names.items() if EMPTY_NAMES & set(parts)] == []


def test_nothing_is_left_for_later() -> None:
    assert [where for module in modules(*ALL) for where in unfinished(module)] == []


def test_tests_put_nothing_in_the_place_of_our_own() -> None:
    assert [where for module in modules("tests", "benchmarks") for where in replacements(module)] == []


def test_no_function_takes_more_parameters_than_can_be_told_apart() -> None:
    listed = {(path, name) for module in modules(*ALL) for path, name, _ in many_parameters(module)}
    assert listed == MANY.keys(), "those that are listed have their reasons, and are still there"


@pytest.mark.parametrize("room", ROOMS)
def test_every_folder_of_a_room_is_a_package(room: str) -> None:
    folders = {path.parent for path in (REPOSITORY / room).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_assertions_are_never_switched_off() -> None:
    """Invariants are asserted in production: nothing in the project starts Python with -O."""
    switched = re.compile(r"python[0-9.]*\s+(-\w\s+)*-O|PYTHONOPTIMIZE=")
    names = ["Makefile", ".ci/run", "pyproject.toml"]
    assert [name for name in names if switched.search((REPOSITORY / name).read_text())] == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("The room.\n\n    one    x; two: y\n    three, four  z\n", []),
        ("The room of `one`, `two.part`, `three` and `four`.", []),
        ("The room.\n\n    one, two,\n    three  x;\n           four: z\n", []),
        ("One, two, three.\n\n    four  x\n", ["one is not named", "three is not named", "two is not named"]),
        ("`one`, `two`, `three`, `four`.\n\n    five  x; six: y\n", ["five is not there", "six is not there"]),
    ],
)
def test_the_rule_of_openings_sees(text: str, faults: list[str]) -> None:
    assert list(opening_faults(text, {"one", "two", "three", "four"})) == faults


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("tests.house.test_form", True),
        ("tests.house.test_form.misnamed", True),
        ("tests.house.form", False),
        ("tests.house.test_form.gone", False),
    ],
)
def test_the_rule_of_names_in_prose_sees(name: str, is_there: bool) -> None:
    there = module_of("tests/house/test_form.py", "def misnamed(): pass")
    package = module_of("tests/house/__init__.py", "")
    misnamed_names = list(misnamed(module_of("x.py", f"# see `{name}`"), {there.name: there, package.name: package}))
    assert misnamed_names == ([] if is_there else [f"x.py: {name}"])


@pytest.mark.parametrize("text", ["# TO-DO: x", "x = 'FIX-ME'", "def f():\n    raise NotImplementedError"])
def test_the_rule_of_finished_work_sees(text: str) -> None:
    assert list(unfinished(module_of("x.py", text.replace("-", ""))))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("def f(a, b, c, d, e, g, h, i): pass", []),
        ("def f(self, a, b, c, d, e, g, h, i): pass", []),
        ("def f(a, b, c, d, e, /, g, h, i, *, j): pass", [9]),
        ("async def f(self, a, b, c, d, e, g, h, *i, **j): pass", [9]),
        ("lambda a, b, c, d, e, g, h, i, j=1: 0", [9]),
    ],
)
def test_the_rule_of_parameters_sees(text: str, counts: list[int]) -> None:
    assert [count for _, _, count in many_parameters(module_of("x.py", text))] == counts


@pytest.mark.parametrize(
    "text",
    [
        "from unittest import mock",
        "from unittest.mock import patch",
        "def test(monkeypatch): pass",
        "import pytest\npytest.MonkeyPatch()",
    ],
)
def test_the_rule_of_mocks_sees(text: str) -> None:
    assert list(replacements(module_of("x.py", text)))
