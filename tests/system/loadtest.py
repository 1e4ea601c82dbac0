"""`billing loadtest` as a child process, and what it wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from billing.trial.loadtest.result import Result
from billing.trial.loadtest.writing import read

WAIT_S = 240
SMALL_FILES = {"BILLING_JOURNAL__SEGMENT_BYTES": str(4 * 1024 * 1024)}  # journals fill them before use


class LoadtestRun(NamedTuple):
    """How it ended."""

    code: int
    out: str
    err: str
    result: Result | None

    @property
    def all(self) -> str:
        return self.out + self.err


def loadtest(directory: Path, *options: str, **environment: str) -> LoadtestRun:
    """Runs it with what it writes below `directory`."""
    file = directory / "result.json"
    process = subprocess.run(
        [sys.executable, "-m", "billing", "loadtest", "--json", str(file), *options],
        cwd=directory,
        env={**os.environ, **SMALL_FILES, "TMPDIR": str(directory), **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    result = read(file) if file.exists() else None
    return LoadtestRun(process.returncode, process.stdout, process.stderr, result)


def right(outcome: LoadtestRun) -> Result:
    """Everything was judged, and right; what the generator's machine had no room for is told, and ends with 1."""
    result = outcome.result
    assert result is not None, outcome.all
    assert outcome.code == (0 if result.valid else 1), outcome.all
    assert ("billing: INVALID, which says nothing of how fast the daemon is" in outcome.err) == (not result.valid)
    for run in (*result.runs, *result.steps):
        assert run.money.clean, run.money
        assert run.cutoffs.clean, run.cutoffs
        assert run.money.answered > 0
    assert result.clean
    return result
