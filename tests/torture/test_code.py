"""What counts as the code of a piece: everything that it runs, and nothing beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.code import REPOSITORY, code_of, reached_from

FILES = {
    "billing/a.py": "",
    "shards/b.py": "",
    "pyproject.toml": "",
    "config.toml": "",
    "tests/__init__.py": "",
    "tests/hurt/__init__.py": "",
    "tests/hurt/__main__.py": "from tests.rig import disk\nCOMMAND = ['python', '-m', 'tests.child']\n",
    "tests/hurt/failing.c": "",
    "tests/hurt/READ.md": "",
    "tests/rig/__init__.py": "",
    "tests/rig/disk.py": "def later():\n    import tests.late\n",
    "tests/rig/test_disk.py": "",
    "tests/late.py": "",
    "tests/child.py": '"""Not run:\n    python -m tests.other\n"""\nHUNT = "from tests.hunted import first; first()"\n',
    "tests/hunted.py": "",
    "tests/other.py": "",
}
NO_MATTER = {"tests/hurt/READ.md", "tests/rig/test_disk.py", "tests/other.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_runs_is_another_code_and_of_anything_else_the_same(root: Path, name: str) -> None:
    code = code_of("tests.hurt", root)
    with (root / name).open("a") as file:
        file.write("\n")
    assert (code_of("tests.hurt", root) == code) == (name in NO_MATTER)


def test_what_a_command_or_a_string_names_is_reached() -> None:
    def reached(module: str) -> set[str]:
        return {file.relative_to(REPOSITORY).as_posix() for file in reached_from(module)}

    assert {"tests/simulation/auditor.py", "tests/simulation/faulty.py"} <= reached("tests.simulation.mutants")
    assert {"tests/torture/cycles.py", "tests/system/daemon.py"} <= reached("tests.torture.faults")
    assert "tests/torture/moves.py" not in reached("tests.torture.kill")
