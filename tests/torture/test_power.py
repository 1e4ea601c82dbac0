"""Loss of power on ext4 and XFS under load: what was answered is there; without syncs the same campaign shows
losses. Three cuts each here, the last one with a look by the independent reader; `make torture` makes two hundred.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.torture.volume import why_not

CYCLES = 3  # with the first seed one of them is noticed


def run(kind: str, *options: str) -> dict[str, int]:
    """One run of the campaign in a process, and a mount namespace, of its own."""
    reason = why_not(kind)
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.torture.power", "--kind", kind, *options]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1800)
    assert result.returncode == 0, result.stderr[-8000:]
    counts: dict[str, int] = json.loads(result.stdout)
    return counts


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_no_power_cut_loses_what_was_answered(kind: str) -> None:
    counts = run(kind, "--cycles", str(CYCLES), "--examine-every", str(CYCLES))
    assert (counts["power cut"], counts["power cut, noticed"]) == (CYCLES - 1, 1)
    assert counts["answered"] > 0
    assert counts["cutoffs delivered"] == counts["cutoffs owed"] > 0


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_without_syncs_the_same_rig_shows_losses(kind: str) -> None:
    assert run(kind, "--sync", "never")["answers lost of one user"] > 0
