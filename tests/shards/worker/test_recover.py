"""The journal that recovery opens is the one that the configuration names, with room kept back for a full disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.journal import Fenced, Lost, OtherFormat, Unfit, Unknown, backends
from shards.system.host import REAL
from shards.worker.recover import Damaged, exit_code_of

SETTINGS = {"kind": "file", "sync": "always", "segment_bytes": 65_536, "sync_interval_ns": 1}


def test_a_shard_keeps_ballast_of_a_segment_for_a_start_on_a_full_disk(data_dir: Path) -> None:
    journal = backends.open({**SETTINGS, "directory": str(data_dir)}, REAL).journal(1, lambda: 1)
    journal.open(1, "test")
    journal.append(b"x")
    journal.close()
    ballast = os.stat(data_dir / "shard-1" / "ballast")
    assert ballast.st_size == 65_536
    assert ballast.st_blocks * 512 >= 65_536, "its blocks are its own"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unknown("x"), 74),
        (OSError(5, "x"), 74),
        (Damaged("x"), 65),
        (Unfit("x"), 78),
        (OtherFormat("x"), 78),
        (Fenced("x"), 75),
        (Lost("x"), 75),
        (ValueError("x"), 70),
    ],
)
def test_what_an_error_means_for_the_next_start(error: Exception, code: int) -> None:
    assert exit_code_of(error, None) == code
