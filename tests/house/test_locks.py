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
    found: dict[str, tuple[Requirement, int]] = {}
    last = ""
    for line in (REPOSITORY / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        if HASH.match(line):
            requirement, count = found[last]
            found[last] = requirement, count + 1
        else:
            requirement = Requirement(line.removesuffix("\\").strip())
            last = canonicalize_name(requirement.name)
            assert last not in found, f"{last} is in {name} twice"
            found[last] = requirement, 0
    return found


def version_of(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return Version(pin.version)


def asked_for(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for, with what its extras ask for that it names itself (`billing-daemon[cli]`)."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    left, found = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)], []
    while left:
        for one in map(Requirement, left.pop()):
            if one.name == project["name"]:
                left += [project["optional-dependencies"][extra] for extra in sorted(one.extras)]
            else:
                found.append(one)
    return found


def closure(requirements: list[Requirement]) -> set[str]:
    """These and all that they need here, by what is installed."""
    found: set[tuple[str, str]] = set()
    left = [(one, extra) for one in requirements for extra in {"", *one.extras}]
    while left:
        one, extra = left.pop()
        key = canonicalize_name(one.name), extra
        if key in found:
            continue
        found.add(key)
        for text in distribution(one.name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                left += [(needed, wanted) for wanted in {"", *needed.extras}]
    return {name for name, _ in found}


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
    here = {one for one, (line, _) in lines if line.marker is None or line.marker.evaluate()}
    try:
        needed = closure(asked_for(LOCKS[name]))
    except PackageNotFoundError as missing:
        pytest.skip(f"this environment was not made from the lock (UNLOCKED=1?): {missing}")
    assert here == needed, "make lock"


def test_both_locks_agree() -> None:
    """On versions; what the tests need may need a package on more platforms."""
    dev = {one: version_of(line) for one, (line, _) in locked("requirements-dev.lock").items()}
    assert {one: version_of(line) for one, (line, _) in locked("requirements.lock").items()}.items() <= dev.items()
