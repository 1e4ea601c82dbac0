"""Statements by the rows against statements by the entries: the same for right data, and a fault for what is off."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from billing.doctor.report import Report
from billing.history.history_reader import HistoryReader
from billing.history.openings import put
from billing.history.retention import prune
from billing.history.store import Store
from shards.system.disk import RealDisk
from tests.doctor.builder import COIN, HOUR_NS, RULES, SECOND_NS, DataDirectoryBuilder, busy
from tests.doctor.story import findings_of
from tests.history.tampering import entry_changed, rows

USER = b"7"


def spent(data_dir: Path, *, trims: bool = False) -> DataDirectoryBuilder:
    """A user with three machines that come and go, whose money runs out and comes again; closed."""
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, trims=trims, segment_bytes=8192)
    builder.pay(USER, COIN)
    for number in range(60):
        builder.rate(USER, 1000 + number, resource=b"vm-%d" % (number % 3))
        builder.wait(7 * SECOND_NS + number)
        if number % 20 == 19:
            builder.wait(10_000 * HOUR_NS)  # runs out
            builder.workers[1].snapshot()
            builder.pay(USER, COIN)
    return builder.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_accounts_and_periods_agree(data_dir: Path, seed: int) -> None:
    builder = DataDirectoryBuilder(data_dir, rules=RULES._replace(accrue=seed % 2 == 0), history=True)
    busy(builder, seed, 1200, upheavals=0.02)
    report = builder.close().examine()
    assert report.findings == []
    counts = report.counts["statements"]
    assert counts["accounts"] > 3
    assert counts["instants"] > 20
    assert counts["periods"] > 15
    assert counts["lines"] > 20


@pytest.mark.parametrize("trims", [False, True])
def test_over_exhaustions_and_what_the_journal_forgot(data_dir: Path, trims: bool) -> None:
    report = spent(data_dir, trims=trims).examine()
    assert report.findings == []
    counts = report.counts["statements"]
    assert (counts["instants"] > 10, counts["periods"] > 10) == (True, True)
    assert counts["lines"] > 20


def test_where_only_the_histories_lack_rows_the_journals_are_not_blamed(data_dir: Path) -> None:
    directory = spent(data_dir)
    (data_dir / "history" / "shard-1.sqlite").unlink()
    assert directory.examine().unchecked["statements"] == [
        "the histories hold no rows of these accounts yet, or rows of an older version"
    ]


def test_where_no_period_can_be_compared_it_says_why(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    for user in (b"a", b"b"):
        builder.pay(user, COIN)
    report = builder.close().examine()
    assert (report.findings, report.counts["statements"]) == ([], {})
    assert [why.partition(";")[0] for why in report.unchecked["statements"]] == [
        "the journals hold no two entries in a row of any account"
    ]


def altered(builder: DataDirectoryBuilder, change: Callable[[sqlite3.Connection], object]) -> Report:
    """The report after the history says something else, its older part, which the journal does not have any more."""
    db = sqlite3.connect(f"{builder.path}/history/shard-1.sqlite")
    change(db)
    db.commit()
    db.close()
    return builder.examine()


def test_lines_that_do_not_sum_to_the_rate_are_found(data_dir: Path) -> None:
    builder = spent(data_dir, trims=True)
    report = altered(
        builder, lambda db: entry_changed(db, 9, lambda entry: entry._replace(line_rate=entry.line_rate + 1))
    )
    assert "the lines sum to" in findings_of(report, "statements")[0].text


def test_a_line_under_another_name_is_found(data_dir: Path) -> None:
    builder = spent(data_dir, trims=True)

    def renamed(db: sqlite3.Connection) -> None:
        for row in rows(db)[:11]:
            if row.resource == b"vm-0":
                entry_changed(db, row.seq, lambda entry: entry._replace(key=b"!"))

    report = altered(builder, renamed)
    assert findings_of(report, "statements")


def cut(data_dir: Path) -> tuple[DataDirectoryBuilder, Store]:
    """A user with three machines that run and run, of whose rows `history.keep_days` deleted the older half, those that
    set their rates among them; the journal has all entries.
    """
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, trims=False)
    builder.pay(USER, 1000 * COIN)
    for number in range(3):
        builder.rate(USER, 1000 + number, resource=b"vm-%d" % number)
    for _ in range(40):
        builder.wait(7 * SECOND_NS)
        builder.pay(USER, 1)
    builder.close()
    store = Store(f"{builder.path}/history/shard-1.sqlite", 1, RealDisk())
    limit_ns = rows(store.db)[19].at_ns
    for _ in prune(store, HistoryReader(f"{builder.path}/history", 1, store.db, RealDisk()), limit_ns):
        pass
    return builder, store


def test_statements_begin_with_the_lines_of_the_opening_where_rows_were_deleted(data_dir: Path) -> None:
    builder, store = cut(data_dir)
    store.close()
    report = builder.examine()
    assert report.findings == []
    assert report.counts["statements"]["lines"] > 10


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ({b"vm-0": 1001, b"vm-1": 1000, b"vm-2": 1002}, "the lines spent"),
        ({b"vm-0": 1}, "the opening's lines sum to 1 nanos an hour, not 3003"),
    ],
)
def test_an_opening_of_other_lines_is_found(data_dir: Path, lines: dict[bytes | None, int], text: str) -> None:
    builder, store = cut(data_dir)
    number, entry_id, seq, _, _ = store.db.execute("SELECT * FROM openings").fetchone()
    put(store.db, number, entry_id, seq, lines)
    store.close()
    assert any(text in finding.text for finding in builder.examine().findings)
