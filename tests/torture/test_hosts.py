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
from tests.torture.hosts import why_no_network

FAULTS = ["kill", "stop", "cut"]  # an end that was planned is in tests/system/test_standby.py

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.mark.parametrize("at_once", [False, True])
def test_no_fault_of_a_host_loses_doubles_or_invents_anything(at_once: bool) -> None:
    """Without root there is no partition."""
    faults = FAULTS if not why_no_network() else FAULTS[:-1]
    command = [
        sys.executable,
        "-m",
        "tests.torture.hosts",
        "--cycles",
        str(len(faults)),
        "--hosts",
        "2",
        "--shards",
        "2",
    ]
    command += ["--for-s", "6", "--faults", *faults, *(["--at-once"] if at_once else [])]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr[-8000:]
    counts = json.loads(ended.stdout)
    assert all(counts[fault] == 1 for fault in faults)
    assert counts["answered"] > 100
    assert counts["read"] > 50
    assert counts["crossings called"] >= 3 * len(faults)
    went_over = (1 if at_once else 2) * len(faults)  # the host that was struck served so many of the two
    assert counts["epochs"] >= (2 if at_once else 0) + went_over, "what it served went over, each time"
