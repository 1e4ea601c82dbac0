"""Who may import whom: the picture of the house, as a table, and nothing stands outside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.house.source import ROOMS, Module, imports, is_below, module_of, modules, uses

# What each room of `billing` may import of `billing`, beside itself. Some rooms are one module, such as `addresses`.
MAY_IMPORT: dict[str, set[str]] = {
    "ledger": set(),
    "audit": set(),
    "addresses": set(),
    "signature": set(),
    "svg": set(),
    "expirationd": {"ledger", "addresses", "signature"},
    "follower": {"ledger"},
    "history": {"ledger", "follower"},
    "notices": {"ledger", "expirationd", "follower"},
    "api": {"ledger", "config", "client", "addresses"},  # of the client, the errors that both ends know
    "client": {"ledger", "signature"},  # of the ledger, the names of errors
    "config": {"addresses", "api", "expirationd", "signature"},  # tokens and secrets are checked by those who read them
    "worker": {
        *("audit", "ledger", "expirationd", "history", "notices", "follower", "api", "client", "config", "addresses"),
        "signature",
    },
    "cli": {"audit", "ledger", "history", "api", "client", "config", "service", "addresses"},
    "admin": {"ledger", "api", "client", "cli", "config", "addresses", "svg"},  # of the cli, how values are shown
    "doctor": {"config", "cli"},  # of the command line, how a daemon that serves is asked
    "backup": {"audit", "follower", "history", "notices", "worker", "cli", "doctor", "config"},
    "migration": {"ledger", "client", "cli"},
    "trial": {"ledger", "expirationd", "api", "client", "cli", "admin", "config", "addresses", "signature", "svg"},
}
ANYTHING = {"service", "__main__", "billing"}  # where the parts are joined

# Modules that compute and do nothing else. Those of the ledger have the standard library only.
PURE = (
    "billing.ledger",
    "billing.svg",
    "billing.signature",
    "billing.client.receiver",
    "billing.expirationd.answer",
    "billing.expirationd.health",
    "billing.expirationd.coming",
    "billing.expirationd.wheel_scrubber",
    "billing.expirationd.recheck",
    "billing.expirationd.throughput",
    "billing.expirationd.wheel",
    "billing.history.period",
    "billing.worker.machine",
    "billing.worker.pages",
    "billing.notices.window",
    "shards.buckets",
    "shards.machine",
    "shards.shard",
    "shards.journal.file.record",
    "shards.moves.move",
    "shards.moves.rebalancer",
    "shards.links.hello",
    "shards.supervisor.placement",
)
IMPURE = {
    *("asyncio", "time", "datetime", "os", "io", "sys", "socket", "select", "selectors", "signal", "random", "secrets"),
    *("uuid", "logging", "warnings", "msgpack", "threading", "multiprocessing", "concurrent", "subprocess", "queue"),
    *(
        "pathlib",
        "tempfile",
        "shutil",
        "mmap",
        "sqlite3",
        "fcntl",
        "ctypes",
        "urllib.request",
        "http",
        "ssl",
        "locale",
        "uvloop",
    ),
    *("aiohttp", "click", "rich"),
}
IMPURE_BUILTINS = {"open", "input", "print", "exec", "eval", "__import__", "globals", "id", "hash"}


# The doctor proves what others wrote: it reads the files with code of its own, and shares the disk with them only, and
# the wall clock for its audit record, the exit codes, and how a count is said.
DOCTOR = "billing.doctor"
DOCTOR_SHARES = (
    # Of a log on servers the backend proves the bytes; entries, states and sums are the doctor's own.
    *("shards.journal.Reader", "shards.journal.JournalError", "shards.journal.Unavailable", "shards.journal.Unknown"),
    *("shards.journal.backends", "shards.system.host.REAL"),
    *("shards.system.disk", "shards.system.clock.MACHINE_CLOCKS", "shards.exits", "shards.counting"),
)


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def wrong_directions(module: Module) -> Iterator[str]:
    for line, name in imports(module):
        where = f"{module.path}:{line} imports {name}"
        if is_below(module.name, "shards") and is_below(name, "billing"):
            yield where
        elif is_below(module.name, DOCTOR) and is_below(name, "shards"):
            if not any(is_below(name, shared) for shared in DOCTOR_SHARES):
                yield where
        elif is_below(module.name, "billing") and is_below(name, "billing") and name.count("."):
            here, there = room_of(module.name), room_of(name)
            if here not in ANYTHING and there not in {here, "__version__"} | MAY_IMPORT.get(here, set()):
                yield where


def impurities(module: Module) -> Iterator[str]:
    if not any(is_below(module.name, pure) for pure in PURE):
        return
    from_outside = is_below(module.name, "billing.ledger")
    for line, name in imports(module):
        top = name.split(".")[0]
        if any(is_below(name, impure) for impure in IMPURE) or (
            from_outside and top not in sys.stdlib_module_names and not is_below(name, "billing.ledger")
        ):
            yield f"{module.path}:{line} imports {name}"
    for line, name in uses(module):
        if name in IMPURE_BUILTINS:
            yield f"{module.path}:{line} uses {name}"


# What each process of a daemon begins with, and what it is never to load: a start costs CPU for every process there is.
TYPED = ("click", "rich", "prompt_toolkit", "pydantic", "psutil")  # what people at a terminal need, or what is slow
PROCESSES = {
    "supervisor": ("billing.service.serve", (*TYPED, "aiohttp", "sqlite3")),
    "worker": (
        "billing.service.working",
        (*TYPED, "aiohttp", "tomllib", "zstandard", "billing.config.load", "billing.cli", "shards.supervisor"),
    ),
    "history": ("billing.history.projector", (*TYPED, "aiohttp", "billing.config", "billing.api", "billing.worker")),
    "replica": ("billing.history.replica", (*TYPED, "aiohttp", "billing.config", "billing.api", "billing.worker")),
    "notifier": ("billing.notices.notifier", (*TYPED, "aiohttp", "billing.config", "billing.api", "billing.worker")),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_loads_no_more_than_it_needs(process: str) -> None:
    module, forbidden = PROCESSES[process]
    script = f"import sys, {module}; print(*(name for name in {forbidden} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


# What turns bytes into code or objects of the sender's choosing: one broken process could take over the others.
EVALUATING = ("pickle", "marshal", "shelve", "multiprocessing", "code", "codeop", "dill", "yaml", "xmlrpc")
EVALUATING_BUILTINS = {"eval", "exec", "compile", "__import__"}


def evaluations(module: Module) -> Iterator[str]:
    for line, name in imports(module):
        if any(is_below(name, forbidden) for forbidden in EVALUATING):
            yield f"{module.path}:{line} imports {name}"
    for line, name in uses(module):
        if name in EVALUATING_BUILTINS:
            yield f"{module.path}:{line} uses {name}"


def test_bytes_never_become_code() -> None:
    assert [where for module in modules(*ROOMS) for where in evaluations(module)] == []


@pytest.mark.parametrize(
    "text", ["import pickle", "from multiprocessing import Pipe", "def f():\n    import marshal", "eval('1')"]
)
def test_the_rule_of_code_sees(text: str) -> None:
    assert list(evaluations(module_of("billing/x.py", text)))


def test_imports_go_one_way() -> None:
    assert [where for module in modules(*ROOMS) for where in wrong_directions(module)] == []


def test_what_computes_does_nothing_else() -> None:
    assert [where for module in modules(*ROOMS) for where in impurities(module)] == []


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that importing this one brings along."""
    modules_reached: set[str] = set()
    waiting = [start]
    while waiting:
        more = graph[waiting.pop()] - modules_reached
        modules_reached |= more
        waiting += more
    return modules_reached


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import each other in a circle."""
    behind = {name: reached(graph, name) for name in graph}
    groups = {frozenset(member for member in behind[name] if name in behind[member]) for name in graph}
    return [set(group) for group in groups if group]


def module_graph() -> dict[str, set[str]]:
    """Who imports whom, module by module; a package's own modules do not count as its imports."""
    module_names = {module.name for module in modules(*ROOMS)}
    graph: dict[str, set[str]] = {name: set() for name in module_names}
    for module in modules(*ROOMS):
        for _, name in imports(module):
            while name and name not in module_names:
                name = name.rpartition(".")[0]
            if name and name != module.name and not is_below(module.name, name):
                graph[module.name].add(name)
    return graph


def test_no_modules_import_each_other() -> None:
    assert cycles(module_graph()) == []


def test_the_rule_of_circles_sees() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_every_room_stands_in_the_table() -> None:
    rooms = {room_of(module.name) for module in modules("billing")} - ANYTHING
    assert rooms <= set(MAY_IMPORT)


def test_every_pure_module_that_is_named_and_exists_is_found() -> None:
    module_names = {module.name for module in modules(*ROOMS)}
    assert {"billing.ledger", "shards.buckets", "shards.shard"} <= module_names & set(PURE)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shards/x.py", "import billing"),
        ("shards/x.py", "def f():\n    from billing.ledger import money"),
        ("billing/ledger/x.py", "from billing.api import methods"),
        ("billing/ledger/x.py", "from ..api import methods"),
        ("billing/ledger/x.py", "from .. import config"),
        ("billing/api/x.py", "import billing.admin.metrics"),
        ("billing/history/x.py", "from billing import config"),
        ("billing/worker/machine.py", "from billing.service.serve import run"),
        ("billing/doctor/x.py", "from shards.journal.file.record import walk"),
        ("billing/doctor/x.py", "from billing.ledger.entry import unpack"),
    ],
)
def test_the_rule_of_directions_sees(path: str, text: str) -> None:
    assert list(wrong_directions(module_of(path, text)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shards/journal/x.py", "from shards.system.disk import Disk"),
        ("billing/api/x.py", "from billing.ledger.errors import Refused\nfrom . import methods"),
        ("billing/worker/machine.py", "from billing.expirationd.wheel import Wheel\nimport shards.machine"),
        ("billing/admin/x.py", "from billing import __version__"),
    ],
)
def test_the_rule_of_directions_allows(path: str, text: str) -> None:
    assert not list(wrong_directions(module_of(path, text)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("billing/ledger/x.py", "import asyncio"),
        ("billing/ledger/x.py", "from time import time_ns"),
        ("billing/ledger/x.py", "import msgspec"),
        ("billing/ledger/x.py", "import shards.buckets"),
        ("billing/ledger/x.py", "def f():\n    import os.path"),
        ("shards/buckets.py", "import socket"),
        ("shards/buckets.py", "print('x')"),
        ("billing/ledger/x.py", "hash(b'x')"),  # differs from one process to the next
    ],
)
def test_the_rule_of_purity_sees(path: str, text: str) -> None:
    assert list(impurities(module_of(path, text)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("billing/ledger/x.py", "import struct\nfrom billing.ledger import money\nfrom . import errors"),
        ("shards/buckets.py", "import msgspec"),
        ("shards/worker/worker.py", "import asyncio"),
    ],
)
def test_the_rule_of_purity_allows(path: str, text: str) -> None:
    assert not list(impurities(module_of(path, text)))
