"""A disk that fills up under load and is freed again: a clear error, nothing lost, and nobody has to help."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.torture.volume import why_not


def test_a_full_disk_refuses_new_work_and_recovers_by_itself() -> None:
    reason = why_not("ext4")
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.torture.full", "--cycles", "2"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1800)
    assert result.returncode == 0, result.stderr[-8000:]
    counts = json.loads(result.stdout)
    assert counts["filled"] == 2
    assert counts["started while full"] > 0
    assert counts["refused, full"] > 0
    assert counts["read while full"] > 0
