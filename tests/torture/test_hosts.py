"""Hosts die, sleep and are cut off from the log, once each, for as long as a takeover needs and not much longer;
`python -m tests.torture.hosts` is the long form.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.shards.journal.nats_cluster import BINARY, MISSING
from tests.torture.hosts import PARTITIONS, TAKES_OVER, why_no_network

FAULTS = ["kill", "stop", "cut"]  # an end that was planned is in tests/system/test_standby.py
AT_ONCE = [*FAULTS, "apart", "unreached"]

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.mark.parametrize("at_once", [False, True])
def test_no_fault_of_a_host_loses_doubles_or_invents_anything(at_once: bool) -> None:
    """Without root there is no partition."""
    faults = [fault for fault in (AT_ONCE if at_once else FAULTS) if fault not in PARTITIONS or not why_no_network()]
    command = [sys.executable, "-m", "tests.torture.hosts", "--cycles", str(len(faults)), "--brief"]
    command += ["--hosts", "2", "--shards", "2", "--callers", "2"]
    command += ["--faults", *faults, *(["--at-once"] if at_once else [])]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr[-8000:]
    counts = json.loads(result.stdout)
    assert all(counts[fault] == 1 for fault in faults)
    assert counts["answered"] >= len(faults)
    assert counts["read"] >= len(faults)
    assert counts["crossings called"] >= 3 * len(faults)
    strikes = len([fault for fault in faults if fault in TAKES_OVER])
    # At once: one of two shards has gone to the second host; then the struck one's goes over, and comes back.
    assert counts["epochs"] >= 2 * strikes + (3 if at_once else 0), "what it served went over, each time"
    if "apart" in faults:
        assert (counts["answered apart"], counts["refused apart"]) == (2, 2), "each host for its own of two shards"
