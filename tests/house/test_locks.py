"""What is installed is pinned by hashes: the locks have all that pyproject.toml asks for, nothing else, and no package
without a hash. `make lock` renews them."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.source import REPOSITORY

LOCKS = {"requirements.lock": ("build",), "requirements-dev.lock": ("build", "dev")}
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Package -> (its line, how many hashes it has)."""
    pins: dict[str, tuple[Requirement, int]] = {}
    last = ""
    for line in (REPOSITORY / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        if HASH.match(line):
            requirement, count = pins[last]
            pins[last] = requirement, count + 1
        else:
            requirement = Requirement(line.removesuffix("\\").strip())
            last = canonicalize_name(requirement.name)
            assert last not in pins, f"{last} is in {name} twice"
            pins[last] = requirement, 0
    return pins


def version_of(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return Version(pin.version)


def asked_for(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for, with what its extras ask for that it names itself (`billing-daemon[cli]`)."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    todo, requirements = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)], []
    while todo:
        for requirement in map(Requirement, todo.pop()):
            if requirement.name == project["name"]:
                todo += [project["optional-dependencies"][extra] for extra in sorted(requirement.extras)]
            else:
                requirements.append(requirement)
    return requirements


def closure(requirements: list[Requirement]) -> set[str]:
    """These and all that they need here, by what is installed."""
    closed: set[tuple[str, str]] = set()
    todo = [(requirement, extra) for requirement in requirements for extra in {"", *requirement.extras}]
    while todo:
        requirement, extra = todo.pop()
        key = canonicalize_name(requirement.name), extra
        if key in closed:
            continue
        closed.add(key)
        for text in distribution(requirement.name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed, wanted) for wanted in {"", *needed.extras}]
    return {name for name, _ in closed}


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_is_pinned_with_hashes(name: str) -> None:
    for requirement, hashes in locked(name).values():
        version_of(requirement)
        assert hashes, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_all_that_pyproject_asks_for_is_locked_in_a_version_that_it_allows(name: str) -> None:
    there = locked(name)
    for wanted in asked_for(LOCKS[name]):
        assert version_of(there[canonicalize_name(wanted.name)][0]) in wanted.specifier, f"make lock: {wanted}"


@pytest.mark.parametrize("name", LOCKS)
def test_what_is_needed_here_is_locked_and_nothing_else(name: str) -> None:
    lines = locked(name).items()
    here = {name_of_pin for name_of_pin, (line, _) in lines if line.marker is None or line.marker.evaluate()}
    try:
        needed = closure(asked_for(LOCKS[name]))
    except PackageNotFoundError as missing:
        pytest.skip(f"this environment was not made from the lock (UNLOCKED=1?): {missing}")
    assert here == needed, "make lock"


def test_both_locks_agree() -> None:
    """On versions; what the tests need may need a package on more platforms."""
    dev = {package: version_of(line) for package, (line, _) in locked("requirements-dev.lock").items()}
    assert {
        package: version_of(line) for package, (line, _) in locked("requirements.lock").items()
    }.items() <= dev.items()
