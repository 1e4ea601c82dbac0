"""mypy is strict over the rooms, all tests and all benchmarks."""

from __future__ import annotations

import tomllib

from tests.house.source import ALL, REPOSITORY

STRICT = {"python_version", "strict", "files", "warn_unreachable", "exclude", "overrides"}
ELSEWHERE = ("^tests/outsiders/", "^tests/pictures/")  # programs that run in other environments than ours


def test_everything_is_strict() -> None:
    mypy = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"] is True
    assert {*ALL} <= set(mypy["files"])
    assert mypy.keys() == STRICT, "nothing is taken back from what strict says"
    assert all(pattern.startswith(ELSEWHERE) for pattern in mypy["exclude"])
    assert all(override.keys() == {"module", "ignore_missing_imports"} for override in mypy["overrides"]), (
        "of others, untyped"
    )
