"""What counts as the code of a piece: everything that it runs, and nothing beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.code import DAEMON, IN_ONE_PROCESS, REPOSITORY, code_of, reached_from

FILES = {
    "billing/__init__.py": "",
    "billing/a.py": "def later():\n    from billing import b\n",
    "billing/b.py": "",
    "billing/c.py": "",
    "shards/b.py": "",
    "pyproject.toml": "",
    "config.toml": "",
    "tests/__init__.py": "",
    "tests/hurt/__init__.py": "",
    "tests/hurt/__main__.py": "from tests.rig import disk\nCOMMAND = ['python', '-m', 'tests.child']\n",
    "tests/hurt/failing.c": "",
    "tests/hurt/READ.md": "",
    "tests/rig/__init__.py": "",
    "tests/rig/disk.py": "import billing.a\ndef later():\n    import tests.late\n",
    "tests/rig/test_disk.py": "",
    "tests/late.py": "",
    "tests/child.py": '"""Not run:\n    python -m tests.other\n"""\nHUNT = "from tests.hunted import first; first()"\n',
    "tests/hunted.py": "",
    "tests/other.py": "",
}
NO_MATTER = {"tests/hurt/READ.md", "tests/rig/test_disk.py", "tests/other.py"}
NO_MATTER_IN_ONE_PROCESS = NO_MATTER | {"billing/c.py", "shards/b.py"}

# The smallest run of each.
SMALL = {
    "tests.follower.campaign": ["--seeds", "0..1"],
    "tests.fuzz": ["config", "--seconds", "0.1"],
    "tests.ledger.programs": ["--commands", "100"],
    "tests.simulation": ["--seeds", "0..1", "--jobs", "1"],
    "tests.torture.damage": ["flips", "--state", "closed", "--part", "1/200"],
}
LOADED = """
import json, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
print(json.dumps(files))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_runs_is_another_code_and_of_anything_else_the_same(root: Path, name: str) -> None:
    code, code_in_one_process = code_of("tests.hurt", root), code_of("tests.hurt", root, {"tests.hurt"})
    with (root / name).open("a") as file:
        file.write("\n")
    assert (code_of("tests.hurt", root) == code) == (name in NO_MATTER)
    assert (code_of("tests.hurt", root, {"tests.hurt"}) == code_in_one_process) == (name in NO_MATTER_IN_ONE_PROCESS)


def test_what_a_command_or_a_string_names_is_reached() -> None:
    def reached(module: str) -> set[str]:
        return {file.relative_to(REPOSITORY).as_posix() for file in reached_from(module)}

    assert {"tests/simulation/auditor.py", "tests/simulation/faulty.py"} <= reached("tests.simulation.mutants")
    assert {"tests/torture/cycles.py", "tests/system/daemon.py"} <= reached("tests.torture.faults")
    assert "tests/torture/moves.py" not in reached("tests.torture.kill")
    assert {"billing/ledger/ledger.py"} <= reached("tests.ledger.programs") - reached("tests.torture.damage")


@pytest.mark.parametrize("module", sorted(IN_ONE_PROCESS))
def test_what_runs_in_one_process_loads_nothing_of_the_daemon_that_is_not_reached(module: str) -> None:
    command = [sys.executable, "-c", LOADED, module, *SMALL[module]]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {Path(name) for name in json.loads(result.stdout.splitlines()[-1])}
    of_daemon = {
        path for path in loaded if path.is_relative_to(REPOSITORY) and path.parts[len(REPOSITORY.parts)] in DAEMON
    }
    assert of_daemon, "it runs code of the daemon"
    assert of_daemon <= reached_from(module)
