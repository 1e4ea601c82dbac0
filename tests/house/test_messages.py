"""What processes say to each other is typed: nobody puts a tuple or a list on a wire but the links between workers.

Those carry requests by the thousand, see `shards.worker.router`; the load generators of `billing.trial` are no part of
the daemon.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.source import ROOMS, Module, module_of, modules

PEERS = "shards/worker/router.py"
TRIAL = "billing/trial/"


def untyped_messages(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or len(node.args) != 1:
            continue
        if node.func.attr in ("send", "_send", "_post", "_tell") and isinstance(node.args[0], ast.Tuple | ast.List):
            yield f"{module.path}:{node.lineno} {ast.unparse(node)}"


def test_messages_are_typed() -> None:
    shell = [module for module in modules(*ROOMS) if module.path != PEERS and not module.path.startswith(TRIAL)]
    assert [where for module in shell for where in untyped_messages(module)] == []


@pytest.mark.parametrize("text", ["wire.send(('stop',))", "self._send((KNOWN, 1))", "self._wire.send([1, answer])"])
def test_the_rule_of_messages_sees(text: str) -> None:
    assert list(untyped_messages(module_of("shards/x.py", text)))


def test_the_rule_of_messages_allows() -> None:
    assert not list(untyped_messages(module_of("shards/x.py", "wire.send(Stop())\nsocket.send(b'x')")))
