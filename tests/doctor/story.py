"""One user's story in one shard, in whose course nearly everything happens, and what a report says of one check."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing.doctor.report import Finding, Report
from billing.ledger import commands as ops
from tests.doctor.yard import COIN, HOUR_NS, SECOND_NS, Yard

USER = b"7"


def scene(data_dir: Path) -> Yard:
    """One shard, one user with a story, in whose course nearly everything happens; a snapshot before its end."""
    yard = Yard(data_dir, shards=1, trims=False)
    yard.pay(USER, 10 * COIN, b"first")
    yard.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN), (ops.BY_RUNWAY, HOUR_NS))
    yard.rate(USER, 5 * COIN + 7)
    yard.debit(USER, COIN, request_id=b"second")
    yard.wait(3 * HOUR_NS)  # both thresholds, and the exhaustion
    yard.report(ops.CUTOFF_STARTED, USER, 1)
    yard.report(ops.CUTOFF_DELIVERED, USER, 1)
    yard.pay(USER, 40 * COIN)
    yard.report(ops.RESTORE_STARTED, USER, 1)
    yard.report(ops.RESTORE_DELIVERED, USER, 1)
    yard.do((ops.HOLD, USER, 3 * COIN, SECOND_NS, 0, b"", b"hold", b"", b"", b""))
    yard.wait(2 * SECOND_NS)
    with pytest.raises(Exception, match="INSUFFICIENT_FUNDS"):
        yard.debit(USER, 1000 * COIN)
    yard.workers[1].snapshot()
    yard.rate(USER, 0)
    yard.do((ops.ADJUST, USER, -COIN, 0, 0, b"", b"", b"a mistake", b"", b""))
    yard.debit(USER, 100 * COIN, ops.PARTIAL)
    return yard.close()


def findings_of(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]
