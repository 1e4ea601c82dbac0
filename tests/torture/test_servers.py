"""Servers of the log are struck, in short; `python -m tests.torture.servers` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.shards.journal.nats_cluster import BINARY, MISSING
from tests.torture.hosts import why_no_network

FAULTS = ["lead", "wipe", "stop", "cut"]  # kills are in tests/system/test_jetstream.py

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


def test_no_fault_of_a_server_loses_doubles_or_invents_anything() -> None:
    """Without root nothing is cut off."""
    faults = FAULTS if not why_no_network() else FAULTS[:-1]
    command = [sys.executable, "-m", "tests.torture.servers", "--cycles", str(len(faults)), "--proofs-every", "2"]
    command += ["--pause", "0.1"]
    result = subprocess.run(
        [*command, "--faults", *faults], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stderr[-8000:]
    counts = json.loads(result.stdout)
    assert all(counts[fault] == 1 for fault in faults)
    assert counts["answered"] >= len(faults)
    assert counts["answers found"] == counts["answered"]
    assert counts["older owners refused"] == 3 * len(faults)
    assert counts["made again"] >= len(faults)
    assert counts["examined by the doctor"] == len(faults) // 2
    assert counts["crossings called"] >= 2 * len(faults)
