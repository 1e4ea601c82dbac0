"""What neither file nor journal has: brought back from a backup, or opened with what a snapshot has of the accounts.
Each answer that misses something says from which instant it is whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from billing.history.accounts import chain_end_of
from billing.history.entries import page as feed_page
from billing.history.history_reader import EVERYWHERE, MISSING, HistoryReader
from billing.history.period import OPENING
from billing.history.period_reader import Chain, Standing, balance_at, statement
from billing.history.restoring import NO_JOURNAL, merge
from billing.history.store import Store, rows_are_sound
from billing.ledger.money import INT64_MAX
from tests.archives import unpack
from tests.doctor.builder import COIN, DISK, SECOND_NS, DataDirectoryBuilder
from tests.fixtures.make import FIXTURES
from tests.follower.test_rebuild import run
from tests.history import tampering
from tests.history.test_period import answer_of

QUIET, BUSY = b"7", b"12"  # one without entries since the journal begins, one with


class TrimmedShard:
    """A shard whose journal has forgotten its beginning; its history as it was, its backup, and answers."""

    def __init__(self, data_dir: Path, tmp_path: Path) -> None:
        self.data_dir, self.tmp_path = data_dir, tmp_path
        self.builder = builder = DataDirectoryBuilder(data_dir, shards=1, history=True, segment_bytes=8192)
        builder.pay(QUIET, 1000 * COIN)
        builder.rate(QUIET, 3600, resource=b"vm-1")
        builder.rate(QUIET, 1800, resource=b"vm-2")
        for number in range(30):
            builder.wait(SECOND_NS)
            builder.pay(BUSY, 100 + number)
        self.backed_up_ns = builder.now_ns
        self.flush()
        shutil.copytree(data_dir / "history", tmp_path / "backup" / "history")
        for _ in range(4):
            for number in range(30):
                builder.wait(SECOND_NS)
                builder.pay(BUSY, 200 + number)
            builder.workers[1].snapshot()
        builder.close()
        self.end_ns = builder.now_ns
        assert builder.workers[1].journal.first > 1
        self.before = {user: self.history(user) for user in (QUIET, BUSY)}

    def flush(self) -> None:
        store = self.builder.workers[1].store
        assert store is not None
        store.flush()
        store.checkpoint()

    @property
    def path(self) -> Path:
        return self.data_dir / "history" / "shard-1.sqlite"

    def lose(self) -> None:
        self.path.unlink()

    def rebuild(self, *options: str) -> str:
        result = run(self.data_dir, self.tmp_path, *options)
        assert result.exit_code == 0, result.output
        return result.output

    def ask(self, question: Any) -> Any:
        store = Store(str(self.path), 1, DISK)
        reader = HistoryReader(str(self.path.parent), 1, store.db, DISK)
        try:
            return question(reader)
        finally:
            reader.close()
            store.close()

    def history(self, user: bytes) -> list[dict[str, Any]]:
        return list(self.ask(lambda reader: reader.history(1, user, INT64_MAX, 1000).rows))

    def statement(self, user: bytes, from_ns: int, to_ns: int) -> dict[str, Any]:
        def ask(reader: HistoryReader) -> dict[str, Any]:
            chain = Chain(reader, EVERYWHERE, user, Standing())
            return dict(answer_of(statement(chain, user, from_ns, to_ns, True, 1000, INT64_MAX))[0])

        return dict(self.ask(ask))

    def balance_at(self, user: bytes, at_ns: int) -> dict[str, Any]:
        def ask(reader: HistoryReader) -> dict[str, Any]:
            return dict(answer_of(balance_at(Chain(reader, EVERYWHERE, user, Standing()), user, at_ns, INT64_MAX))[0])

        return dict(self.ask(ask))


@pytest.fixture
def shard(data_dir: Path, tmp_path: Path) -> TrimmedShard:
    return TrimmedShard(data_dir, tmp_path)


def test_an_account_without_an_entry_since_the_journal_begins_is_opened_with_what_the_snapshot_has(
    shard: TrimmedShard,
) -> None:
    since_ns, until_ns = shard.end_ns - 10 * SECOND_NS, shard.end_ns
    whole_statement = shard.statement(QUIET, since_ns, until_ns)
    then = shard.balance_at(QUIET, since_ns)
    shard.lose()
    assert "got the beginning from the oldest snapshot" in shard.rebuild()
    opening, lost = shard.history(QUIET)
    newest = shard.before[QUIET][0]
    assert (opening["operation"], opening["entry_id"], opening["at_ns"]) == (OPENING, 3, newest["at_ns"])
    assert opening["balance_after_nanos"] == newest["balance_after_nanos"]
    assert opening["whole_from_ns"] == newest["at_ns"]
    assert (lost["operation"], lost["entry_id"], lost["whole_from_ns"]) == (MISSING, 1, newest["at_ns"])
    assert shard.statement(QUIET, since_ns, until_ns) == whole_statement
    assert {line["resource"] for line in whole_statement["resources"]} == {"vm-1", "vm-2"}
    assert whole_statement["accrued_nanos"] > 0
    assert shard.balance_at(QUIET, since_ns) == then
    assert then["whole_from_ns"] is None


def test_answers_that_reach_before_the_opening_say_from_when_they_are_whole(shard: TrimmedShard) -> None:
    shard.lose()
    shard.rebuild()
    whole_from_ns = shard.before[QUIET][0]["at_ns"]
    answer = shard.statement(QUIET, 0, shard.end_ns)
    assert answer["whole_from_ns"] == whole_from_ns
    exact = {name: int(value) for name, value in answer["exact"].items()}
    sums = exact["opening"] + exact["credits"] - exact["debits"] - exact["expired"] - exact["accrued"]
    assert sums == exact["closing"]
    assert shard.balance_at(QUIET, whole_from_ns - 1)["whole_from_ns"] == whole_from_ns
    rows = shard.history(BUSY)
    assert rows[-1]["operation"] == MISSING
    assert rows[:-1] == shard.before[BUSY][: len(rows) - 1]
    assert rows[-1]["whole_from_ns"] == rows[-2]["at_ns"]
    assert shard.statement(BUSY, 0, shard.end_ns)["whole_from_ns"] == rows[-2]["at_ns"]
    assert shard.statement(BUSY, rows[-2]["at_ns"] + 1, shard.end_ns)["whole_from_ns"] is None


def test_the_doctor_notes_what_was_opened_and_finds_no_fault(shard: TrimmedShard) -> None:
    shard.lose()
    shard.rebuild()
    report = shard.builder.examine()
    assert report.findings == []
    assert report.counts["history"]["accounts that begin with a snapshot"] >= 1
    assert any("got the beginning from a snapshot" in note for note in report.notes)
    assert "got the beginning" not in shard.rebuild(), "they are opened once"


def test_an_opening_is_no_entry_of_the_feed(shard: TrimmedShard) -> None:
    shard.lose()
    shard.rebuild()
    feed = shard.ask(lambda reader: feed_page(reader, "", 10_000, {}, all_written=True))
    assert not feed.waits
    assert {row["operation"] for row in feed.rows} == {"top_up"}
    assert len(feed.rows) == len(shard.history(BUSY)) - 1 + sum(row["user_id"] != "12" for row in feed.rows)


def test_a_history_that_is_gone_is_whole_again_where_journal_and_backup_meet(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, segment_bytes=8192)
    for number in range(40):
        builder.pay(QUIET, 100 + number)
    for _ in range(3):
        builder.workers[1].snapshot()
        for number in range(40):
            builder.pay(BUSY, 100 + number)
    store = builder.workers[1].store
    assert store is not None
    store.flush()
    store.checkpoint()
    shutil.copytree(data_dir / "history", tmp_path / "backup" / "history")
    builder.pay(QUIET, 5)
    builder.close()
    path = data_dir / "history" / "shard-1.sqlite"
    path.unlink()
    assert run(data_dir, tmp_path, "--from-backup", str(tmp_path / "backup")).exit_code == 0
    report = builder.examine()
    assert report.findings == []
    assert not any("lost" in note for note in report.notes)
    again = Store(str(path), 1, DISK)
    assert rows_are_sound(again.db)
    rows = tampering.rows(again.db)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert chain_end_of(again.db, QUIET) == (1, len(rows))
    again.close()


def test_what_a_backup_has_stands_before_what_the_file_has_and_the_rest_is_said(shard: TrimmedShard) -> None:
    shard.lose()
    shard.rebuild()
    output = shard.rebuild("--from-backup", str(shard.tmp_path / "backup"))
    assert "are in neither" in output
    assert "replaced-1-shard-1.sqlite keeps what it was" in output
    assert shard.history(QUIET) == shard.before[QUIET], "all of it was in the backup"
    rows = shard.history(BUSY)
    (gap,) = [at for at, row in enumerate(rows) if row["operation"] == MISSING]
    assert rows[:gap] == shard.before[BUSY][:gap]
    assert rows[gap + 1 :] == shard.before[BUSY][-len(rows) + gap + 1 :]
    assert rows[gap]["whole_from_ns"] == rows[gap - 1]["at_ns"]
    assert shard.statement(BUSY, 0, shard.backed_up_ns - SECOND_NS)["whole_from_ns"] is None
    report = shard.builder.examine()
    assert report.findings == []
    assert any("are in neither" in note for note in report.notes)
    assert "nothing is to be brought back" in shard.rebuild("--from-backup", str(shard.tmp_path / "backup"))


def test_a_backup_of_another_daemon_is_refused_and_nothing_changes(shard: TrimmedShard, tmp_path: Path) -> None:
    shard.lose()
    shard.rebuild()
    before = shard.path.read_bytes()
    foreign_backup = tmp_path / "other"
    foreign_backup.mkdir()
    builder = DataDirectoryBuilder(foreign_backup, shards=1, history=True)
    entries = len(shard.before[BUSY]) - len([row for row in shard.history(BUSY) if row["operation"] != MISSING])
    for _ in range(entries):
        builder.pay(BUSY, 1)
    builder.close()
    result = run(shard.data_dir, shard.tmp_path, "--from-backup", str(foreign_backup))
    assert result.exit_code == 1
    assert "of another daemon" in result.output
    assert shard.path.read_bytes() == before


@pytest.mark.parametrize("entries", [5, 100])
def test_a_backup_of_another_daemon_is_refused_where_journal_and_backup_meet(
    data_dir: Path, tmp_path: Path, entries: int
) -> None:
    """It had been taken for the beginning, or ended with 70. `entries`: it ends in the journal or behind."""
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, segment_bytes=8192)
    for _ in range(3):
        for number in range(40):
            builder.pay(BUSY, 100 + number)
        builder.workers[1].snapshot()
    builder.close()
    path = data_dir / "history" / "shard-1.sqlite"
    path.unlink()
    foreign_backup = tmp_path / "other"
    foreign_backup.mkdir()
    other = DataDirectoryBuilder(foreign_backup, shards=1, history=True)
    first = builder.workers[1].journal.first
    for number in range(first + entries):
        other.pay(BUSY, 1 + number)
    other.close()
    result = run(data_dir, tmp_path, "--from-backup", str(foreign_backup))
    assert (result.exit_code, "of another daemon" in result.output) == (1, True), result.output
    assert run(data_dir, tmp_path).exit_code == 0
    assert builder.examine().findings == []


def test_rows_come_back_from_a_backup_that_an_older_version_made(tmp_path: Path) -> None:
    unpack(FIXTURES / "format-1.tar.gz", tmp_path)
    backup = tmp_path / "data" / "history" / "shard-2.sqlite"
    before = backup.read_bytes()
    path = tmp_path / "shard-2.sqlite"
    assert "made again from" in merge(DISK, str(path), str(backup), 2, NO_JOURNAL)
    assert backup.read_bytes() == before, "the backup stays as it is"
    assert [name.name for name in tmp_path.iterdir() if name.is_file()] == ["shard-2.sqlite"]
    store = Store(str(path), 2, DISK)
    assert rows_are_sound(store.db)
    rows = HistoryReader(str(tmp_path), 2, store.db, DISK).history(1, b"bob", INT64_MAX, 10).rows
    assert [row["operation"] for row in rows] == ["set_thresholds", "hold", "set_credit_limit", "top_up"]
    store.close()
