"""The source of the project, parsed once, for the tests of its rules: modules, what they import, and what they call."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("billing", "shards")
ALL = (*ROOMS, "tests", "benchmarks")


class Module(NamedTuple):
    """One file: its path in the repository, its dotted name, its text, its syntax tree and every node of that."""

    path: str
    name: str
    text: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]


def module_of(path: str, text: str) -> Module:
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    tree = ast.parse(text, path)
    return Module(path, ".".join(parts), text, tree, tuple(ast.walk(tree)))


@cache
def modules(*rooms: str) -> tuple[Module, ...]:
    """Every Python file below these folders, in the order of their paths. Each is parsed once, whoever asks for it."""
    paths = sorted(path for room in rooms for path in (REPOSITORY / room).rglob("*.py"))
    gc.disable()  # half a million nodes of syntax, all of which stay
    try:
        return tuple(_parsed(path.relative_to(REPOSITORY).as_posix()) for path in paths)
    finally:
        gc.freeze()
        gc.enable()


@cache
def _parsed(path: str) -> Module:
    return module_of(path, (REPOSITORY / path).read_text())


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything imported, anywhere in the file; `from a import b` counts as a.b."""
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def uses(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted text) of every name and attribute that is read, such as `os.path.exists` or `loop.time`; what is
    behind a call or an index shows as `().name`."""
    for node in module.nodes:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.lineno, _dotted(node)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return "()"


def is_below(name: str, prefix: str) -> bool:
    """Whether a dotted name is the module `prefix` or something in it."""
    return name == prefix or name.startswith(prefix + ".")
