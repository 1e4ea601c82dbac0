"""A backup of each kind of log goes into the other, in short; `python -m tests.torture.both_ways` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.shards.journal.nats_cluster import BINARY, MISSING

ACCOUNTS = 2000


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_everything_is_the_same_on_servers_and_on_files_again() -> None:
    command = [sys.executable, "-m", "tests.torture.both_ways", "--accounts", str(ACCOUNTS)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr[-8000:]
    counts = json.loads(result.stdout)
    assert counts["accounts compared"] == 4 * ACCOUNTS
    assert counts["made again"] == 100
    assert counts["rows of histories compared"] > 200
