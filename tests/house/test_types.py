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
    for override in mypy["overrides"]:
        assert override.keys() - {"module"} in ({"ignore_missing_imports"}, {"follow_imports"}), "untyped, or not read"
        assert not {name.partition(".")[0] for name in override["module"]} & {*ALL}, "only packages of others"
