"""A kind of log is a package and one line of `shards.journal.backends`: nothing else goes by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import get_args

import pytest

from billing.config.schema import JournalSection, keys_of
from shards.journal.backends import KINDS
from tests.house.source import ROOMS, Module, module_of, modules

# What knows one kind by heart: the doctor and a copy of files read those of one kind without its code.
KNOWING = ("billing/doctor/command.py", "billing/backup/files.py")


def names_compared(module: Module) -> Iterator[str]:
    """Where something is compared with the name of a kind, which asks what the table says of it."""
    for node in module.nodes:
        if isinstance(node, ast.Compare):
            compared = [ast.unparse(operand) for operand in (node.left, *node.comparators)]
            if any("kind" in text for text in compared) and any(text.strip("'\"") in KINDS for text in compared):
                yield f"{module.path}:{node.lineno} {ast.unparse(node)}"


def test_no_other_module_asks_for_a_kind_by_its_name() -> None:
    unknowing = [module for module in modules(*ROOMS) if module.path not in KNOWING]
    assert [where for module in unknowing for where in names_compared(module)] == []


def test_the_configuration_takes_the_kinds_there_are() -> None:
    assert get_args(keys_of(JournalSection)["kind"].kind) == tuple(KINDS)
    assert {kind: JournalSection(kind=kind).is_shared for kind in KINDS} == {
        kind: row.is_shared for kind, row in KINDS.items()
    }


@pytest.mark.parametrize("text", ["config.journal.kind == 'jetstream'", "log['kind'] != 'file'"])
def test_the_rule_of_kinds_sees(text: str) -> None:
    assert list(names_compared(module_of("billing/x.py", text)))
    assert not list(names_compared(module_of("billing/x.py", "config.journal.is_shared or kind == 'unix'")))
