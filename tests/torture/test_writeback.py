"""History and notices on a disk whose write-back fails for real: nothing of them is lost, and nobody says it was."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.torture.volume import why_not


def test_a_failed_write_back_loses_nothing_of_history_and_notices() -> None:
    reason = why_not("ext4")
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.torture.writeback", "--cycles", "2"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1800)
    assert result.returncode == 0, result.stderr[-8000:]
    counts = json.loads(result.stdout)
    assert counts["cycles"] == 2
    assert counts["history ended on the disk"] > 0
    assert counts["notices ended on the disk"] > 0
    assert counts["history compared"] > counts["notices compared"] > 0
