"""mypy is strict over the rooms and over the tests; the packages of tests that are not yet there only become fewer."""

from __future__ import annotations

import tomllib

from tests.house.source import REPOSITORY, ROOMS

NOT_STRICT_MAX = 32


def test_the_rooms_are_strict_and_of_the_tests_all_but_those_that_are_named() -> None:
    mypy = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"] is True
    assert {*ROOMS, "tests"} <= set(mypy["files"])
    (lax,) = [one["module"] for one in mypy["overrides"] if one.get("ignore_errors")]
    assert len(lax) == len(set(lax)) <= NOT_STRICT_MAX
    assert all(name.startswith("tests.") for name in lax), "the rooms are strict"
    for name in lax:
        path = REPOSITORY.joinpath(*name.removesuffix(".*").split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is gone: take it off the list"
