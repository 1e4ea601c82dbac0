"""What all tests share: where they keep data, how Hypothesis chooses its examples, and that Python keeps its bytecode.

Data directories are private (0700) and on a real disk, because on a tmpfs a durability test proves nothing; and their
paths are short, because those of unix sockets must be: where that of `TMPDIR` is long, /var/tmp is used in its place.

Files, pages and outputs are UTF-8 here. In a locale of another encoding, such as de_DE, the tests and what they start
run in C.UTF-8 instead; the tests that are about locales say which.

Hypothesis runs *derandomized* unless told otherwise: the same commit tests the same examples, so that a red suite is
red again for whoever looks at it. `HYPOTHESIS_PROFILE=explore` draws new examples, twenty times as many, and prints
how to repeat a failure; what it finds becomes an `@example` or a test of its own. Neither has deadlines: no test
judges speed.

The suite starts more than a thousand processes of Python. Where the environment forbids Python to write bytecode, as
images of containers like to do, each of them would compile the daemon and its packages anew, which costs more than all
the rest of its start. So that ban is lifted here, for pytest and for whatever it starts.

Collecting the tests makes a million objects and next to no garbage: the collector rests meanwhile, and never looks at
them again.

Modules whose tests mostly wait, for daemons and servers, are dealt out evenly among those that compute, so that the
processes of the suite do not first all compute and then all wait. A module's tests stay together, for its fixtures.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parents[1]
IN_MEMORY = {"tmpfs", "ramfs"}
TMPDIR_CHARACTERS_MAX = 20  # pytest's own path below it takes some 70, and that of a unix socket has 107 bytes at most
WAITING = ("tests/system/", "tests/torture/", "tests/shards/journal/test_jetstream", "tests/outsiders/")

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if len(tempfile.gettempdir()) > TMPDIR_CHARACTERS_MAX:
    os.environ["TMPDIR"] = tempfile.tempdir = "/var/tmp"
if locale.getencoding().lower() != "utf-8":
    with contextlib.suppress(locale.Error):  # there is none: tests of other alphabets fail
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        os.environ["LC_ALL"] = "C.UTF-8"

settings.register_profile("commit", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "commit"))


def pytest_configure() -> None:
    """The collector rests until `pytest_collection_finish`; it does not in a program that only imports this module."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the modules that wait out among the others."""
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    waiting = [module for module in modules if module.startswith(WAITING)]
    computing = [module for module in modules if not module.startswith(WAITING)]
    rank = {module: at / len(of_kind) for of_kind in (waiting, computing) for at, module in enumerate(of_kind)}
    items[:] = [item for module in sorted(modules, key=lambda module: rank[module]) for item in modules[module]]


def pytest_collection_finish() -> None:
    """All tests are there."""
    gc.freeze()
    gc.enable()


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/self/mounts names it."""
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(fields[1]), fields[2]) for fields in mounts if path.resolve().is_relative_to(fields[1])]
    return max(above)[1]


@contextlib.contextmanager
def directory_on_disk() -> Iterator[Path]:
    """An empty private directory on a real disk, removed afterwards."""
    homes = [Path(tempfile.gettempdir()), Path("/var/tmp"), REPOSITORY]
    home = next(home for home in homes if filesystem_of(home) not in IN_MEMORY and os.access(home, os.W_OK))
    directory = tempfile.TemporaryDirectory(prefix="billing-", dir=home, ignore_cleanup_errors=True)
    try:
        yield Path(directory.name)
    finally:
        directory.cleanup()
        for _ in range(100):  # what a killed daemon had started ends a moment later, and may make a file until then
            if not os.path.exists(directory.name):
                break
            time.sleep(0.1)
            directory.cleanup()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for one test."""
    with directory_on_disk() as directory:
        yield directory


@pytest.fixture(scope="module")
def module_dir() -> Iterator[Path]:
    """A directory for a daemon that the tests of a module share."""
    with directory_on_disk() as directory:
        yield directory
