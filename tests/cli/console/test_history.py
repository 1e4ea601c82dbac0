"""Where the console keeps the lines that were typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
NOBODY_KNOWN = 54_321


def printed(code: str, **environment: str) -> str:
    """What a program prints behind the imports, in an environment with nothing else."""
    begin = "import os; from billing.cli.console.session import _history; "
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_users_lines_are_in_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    code = "os.umask(0); print(_history().filename)"
    for place, environment in (
        (tmp_path / "state", {"XDG_STATE_HOME": str(tmp_path / "state")}),
        (tmp_path / ".local" / "state", {"HOME": str(tmp_path)}),
    ):
        file = Path(printed(code, **environment).strip())
        assert (file.parent, file.stat().st_mode & 0o777) == (place, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_keeps_them_as_long_as_the_console_runs() -> None:
    """As in a container that runs under a number."""
    assert printed(f"os.setuid({NOBODY_KNOWN}); print(type(_history()).__name__)") == "InMemoryHistory\n"


def test_a_place_that_cannot_be_written_keeps_none() -> None:
    assert printed("print(type(_history()).__name__)", XDG_STATE_HOME="/dev/null/state") == "InMemoryHistory\n"
