"""One user's story in one shard, in whose course nearly everything happens, and what a report says of one check."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing.doctor.report import Finding, Report
from billing.ledger import commands as ops
from tests.doctor.builder import COIN, HOUR_NS, SECOND_NS, DataDirectoryBuilder

USER = b"7"


def scene(data_dir: Path) -> DataDirectoryBuilder:
    """One shard, one user with a story, in whose course nearly everything happens; a snapshot before its end."""
    builder = DataDirectoryBuilder(data_dir, shards=1, trims=False)
    builder.pay(USER, 10 * COIN, b"first")
    builder.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN), (ops.BY_RUNWAY, HOUR_NS))
    builder.rate(USER, 5 * COIN + 7)
    builder.debit(USER, COIN, request_id=b"second")
    builder.wait(3 * HOUR_NS)  # both thresholds, and the exhaustion
    builder.report(ops.CUTOFF_STARTED, USER, 1)
    builder.report(ops.CUTOFF_DELIVERED, USER, 1)
    builder.pay(USER, 40 * COIN)
    builder.report(ops.RESTORE_STARTED, USER, 1)
    builder.report(ops.RESTORE_DELIVERED, USER, 1)
    builder.do((ops.HOLD, USER, 3 * COIN, SECOND_NS, 0, b"", b"hold", b"", b"", b""))
    builder.wait(2 * SECOND_NS)
    with pytest.raises(Exception, match="INSUFFICIENT_FUNDS"):
        builder.debit(USER, 1000 * COIN)
    builder.workers[1].snapshot()
    builder.rate(USER, 0)
    builder.do((ops.ADJUST, USER, -COIN, 0, 0, b"", b"", b"a mistake", b"", b""))
    builder.debit(USER, 100 * COIN, ops.PARTIAL)
    return builder.close()


def findings_of(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]
