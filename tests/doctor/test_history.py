"""The history against the journal: rows that were changed, lost, doubled or made up are found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing.doctor.entry import read_entry
from billing.doctor.history import row_amounts
from billing.doctor.report import Report
from billing.doctor.shard import records
from billing.history.accounts import Accounts
from billing.history.history_reader import HistoryReader
from billing.history.retention import prune
from billing.history.store import Store
from billing.history.tables import KIND
from billing.ledger import commands as ops
from billing.ledger.entry import Entry, history_row, unpack
from shards.system.disk import RealDisk
from tests.doctor.builder import COIN, DAY_NS, HOUR_NS, DataDirectoryBuilder, busy, examined
from tests.doctor.forge import open_journal
from tests.doctor.story import USER, findings_of
from tests.history.tampering import entry_changed, link_changed, row_added, row_deleted, rows


def builder_with_history(data_dir: Path, *, trims: bool = False) -> DataDirectoryBuilder:
    """A user whose money runs out, and the history of that; closed. With `trims` the journal forgot the beginning."""
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, trims=trims, segment_bytes=8192)
    for number in range(70):
        builder.pay(USER, 100 + number, b"%d" % number)
    builder.rate(USER, 1000)
    for _ in range(3):
        builder.wait(HOUR_NS + 7)
        builder.debit(USER, 5)
        builder.workers[1].snapshot()
    builder.wait(DAY_NS)
    builder.restart()
    builder.pay(USER, COIN)
    return builder.close()


Change = Callable[[sqlite3.Connection], object]


def one_more(field: str) -> Callable[[Entry], Entry]:
    """Adds one to a number of an entry."""
    return lambda entry: entry._replace(**{field: getattr(entry, field) + 1})


def newest_changed(db: sqlite3.Connection, user_id: bytes, seq: int) -> None:
    """Makes the file say that an account's newest row is another one."""
    accounts = Accounts(db)
    accounts.advance(user_id, seq)
    accounts.write()


def alter(builder: DataDirectoryBuilder, *changes: str | Change) -> Report:
    """The report after these statements and changes were carried out on the history of shard 1."""
    db = sqlite3.connect(f"{builder.path}/history/shard-1.sqlite")
    for change in changes:
        db.execute(change) if isinstance(change, str) else change(db)
    db.commit()
    db.close()
    return builder.examine()


@pytest.mark.parametrize("trims", [False, True])
def test_a_right_history_passes_with_counts(data_dir: Path, trims: bool) -> None:
    builder = builder_with_history(data_dir, trims=trims)
    report = builder.examine()
    assert report.findings == []
    counts = report.counts["history"]
    assert (counts["files"], counts["accounts"]) == (1, 2)
    assert counts["rows"] == 70 + 1 + 3 + 3 + 1 + 1  # payments, rate, debits, one payment a snapshot, exhaustion, last
    assert counts["rows compared"] == counts["rows"] if not trims else 0 < counts["rows compared"] < counts["rows"]


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("seq", [1, 64, 75, 79])
@pytest.mark.parametrize("field", ["amount_nanos", "accrued_nanos", "balance_nanos", "entry_id"])
def test_each_number_of_a_row_is_held_against_the_journal_and_the_other_rows(
    data_dir: Path, field: str, seq: int, trims: bool
) -> None:
    report = alter(builder_with_history(data_dir, trims=trims), lambda db: entry_changed(db, seq, one_more(field)))
    assert findings_of(report, "history"), f"{field} of row {seq}"
    assert [finding for finding in report.findings if finding.check not in ("history", "statements")] == []


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("seq", [1, 64, 75, 79])
def test_the_link_of_a_row_and_its_account_are_held_against_the_other_rows(
    data_dir: Path, seq: int, trims: bool
) -> None:
    builder = builder_with_history(data_dir, trims=trims)
    assert findings_of(alter(builder, lambda db: link_changed(db, seq, seq + 1)), "history")
    report = alter(builder, lambda db: entry_changed(db, seq, lambda entry: entry._replace(user_id=b"8")))
    assert findings_of(report, "history")


@pytest.mark.parametrize("field", ["at_ns", "op", "flags", "rate", "line_rate", "a", "exhausts_at_ns", "overrun_nanos"])
def test_each_fact_of_a_row_is_held_against_its_entry(data_dir: Path, field: str) -> None:
    report = alter(builder_with_history(data_dir), lambda db: entry_changed(db, 5, one_more(field)))
    (finding,) = findings_of(report, "history")
    assert finding.text.startswith("row 5 says ")
    assert finding.account == "7"


@pytest.mark.parametrize("field", ["message", "request_id", "actor", "note"])
def test_each_text_of_a_row_is_held_against_its_entry(data_dir: Path, field: str) -> None:
    changed: dict[str, Any] = {field: b"A"}
    report = alter(
        builder_with_history(data_dir), lambda db: entry_changed(db, 5, lambda entry: entry._replace(**changed))
    )
    (finding,) = findings_of(report, "history")
    assert finding.text.startswith("row 5 says ")


@pytest.mark.parametrize("value", ["'text'", "1.5", "x'00'", "-1", "NULL"])
@pytest.mark.parametrize(
    ("table", "column"),
    [("pages", "count"), ("pages", "checksum"), ("pages", "packed"), ("users", "user_id"), ("heads", "newest")],
)
def test_bytes_of_a_file_that_changed_are_a_fault_whatever_they_became(
    data_dir: Path, table: str, column: str, value: str
) -> None:
    """No damage ends the doctor with a bug: a value of any type may stand anywhere."""
    (schema,) = [text for text in KIND.schema if f"TABLE {table} " in text]
    loose = schema.replace(" NOT NULL", "").replace(f"TABLE {table} ", "TABLE loose ")
    report = alter(
        builder_with_history(data_dir, trims=True),
        loose,
        f"INSERT INTO loose SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE loose RENAME TO {table}",
        f"UPDATE {table} SET {column} = {value} WHERE rowid = (SELECT max(rowid) FROM {table})",
    )
    assert findings_of(report, "history"), f"{column} became {value}"


def test_rows_that_a_file_says_it_has_lost_are_noted(data_dir: Path) -> None:
    lost = alter(
        builder_with_history(data_dir, trims=True),
        lambda db: row_deleted(db, 5),
        lambda db: link_changed(db, 6, 4),
        "INSERT INTO losses VALUES (3, 'one row was damaged')",
    )
    assert findings_of(lost, "history") == []
    assert any("one row was damaged" in note for note in lost.notes)
    assert lost.counts["history"]["accounts with rows that are lost"] == 1


def with_history_of_shard_9(data_dir: Path) -> DataDirectoryBuilder:
    """Its rows are those of shard 1, and it has no journal."""
    builder = builder_with_history(data_dir)
    path = Path(f"{builder.path}/history/shard-1.sqlite")
    shutil.copy(path, path.with_name("shard-9.sqlite"))
    db = sqlite3.connect(path.with_name("shard-9.sqlite"))
    db.execute("UPDATE about SET shard = 9")
    db.commit()
    db.close()
    return builder


def test_a_file_behind_the_journal_of_a_shard_that_is_gone(data_dir: Path) -> None:
    builder = with_history_of_shard_9(data_dir)
    assert [finding.text for finding in findings_of(builder.examine(), "history")] == ["its journal is gone"]


def test_a_history_of_a_shard_that_was_drained_is_looked_at_without_its_journal(data_dir: Path) -> None:
    builder = with_history_of_shard_9(data_dir)
    map_log = open_journal(f"{builder.path}/map", 0, lambda: builder.now_ns)
    map_log.append(msgspec.msgpack.encode([["founded", 9]]))
    map_log.close()
    texts = [finding.text for finding in findings_of(builder.examine(), "history")]
    assert texts
    assert all("are there twice" in text for text in texts)


def test_a_row_that_is_missing(data_dir: Path) -> None:
    texts = [
        finding.text
        for finding in findings_of(alter(builder_with_history(data_dir), lambda db: row_deleted(db, 5)), "history")
    ]
    assert "after row 4 comes row 6" in texts


def test_the_last_row_is_missing(data_dir: Path) -> None:
    report = alter(
        builder_with_history(data_dir), lambda db: row_deleted(db, 79), lambda db: newest_changed(db, USER, 77)
    )
    assert "the rows end before entry 76, which is in batch" in findings_of(report, "history")[0].text


def test_a_row_that_nothing_made(data_dir: Path) -> None:
    report = alter(
        builder_with_history(data_dir),
        lambda db: row_added(db, 79, one_more("entry_id")),
        lambda db: newest_changed(db, USER, 80),
    )
    assert findings_of(report, "history")[0].text == "row 80 and those after it are of no entry"


def test_a_mark_that_leads_elsewhere(data_dir: Path) -> None:
    report = alter(builder_with_history(data_dir), "UPDATE marks SET seq = seq - 1")
    assert findings_of(report, "history")[0].text == "row 64 of entry 64 is not marked"


def test_a_newest_row_that_is_not(data_dir: Path) -> None:
    report = alter(builder_with_history(data_dir), lambda db: newest_changed(db, USER, 10))
    assert findings_of(report, "history")[0].text == "its newest row is said to be 10, and is 79"


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("DELETE FROM departures", "the departure of bucket 5 at generation 2 is missing"),
        ("UPDATE departures SET position = 1", "the departure of bucket 5 at generation 2 is missing"),
        ("INSERT INTO departures VALUES (3, 1, 2)", "bucket 3 did not depart at generation 1"),
    ],
)
def test_departures_are_those_of_the_journal(data_dir: Path, statement: str, text: str) -> None:
    builder = DataDirectoryBuilder(data_dir, history=True, trims=False)
    builder.move(5, 2, 1)
    builder.pay(USER, COIN)
    builder.move(5, 1, 2)
    builder.close()
    assert builder.examine().findings == []
    assert [finding.text for finding in findings_of(alter(builder, statement), "history")] == [text]


def test_a_file_that_is_missing_among_others(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, history=True)
    for seed in range(4, 8):
        busy(builder, seed, 400, upheavals=0)
        builder.workers[2].snapshot()
    builder.close()
    Path(f"{builder.path}/history/shard-2.sqlite").unlink()
    (finding,) = findings_of(builder.examine(), "history")
    assert finding.text == "the history of shard 2 is missing"


def test_a_file_that_the_power_left_no_time_to_make(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, history=True, trims=False)
    busy(builder, 4, 100)
    builder.close()
    path = Path(f"{builder.path}/history/shard-2.sqlite")
    path.unlink()
    report = builder.examine()
    assert report.findings == []
    assert [note for note in report.notes if str(path) in note]


def test_a_file_of_another_shard(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, history=True)
    busy(builder, 4, 100, upheavals=0)
    builder.close()
    shutil.copy(f"{builder.path}/history/shard-1.sqlite", f"{builder.path}/history/shard-2.sqlite")
    assert findings_of(builder.examine(), "history")[0].text == "it is the history of shard 1"


def test_a_file_that_is_none(data_dir: Path) -> None:
    builder = builder_with_history(data_dir)
    Path(f"{builder.path}/history/shard-1.sqlite").write_bytes(b"not a database" * 100)
    assert "it cannot be read" in findings_of(builder.examine(), "history")[0].text


def test_an_account_whose_rows_are_in_two_files(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, history=True, trims=False)
    for target in (1, 2, 1):
        builder.pay(USER, COIN)
        builder.debit(USER, 7)
        builder.move(5, 3 - target, target)
    builder.pay(USER, COIN)
    builder.close()
    report = builder.examine()
    assert report.findings == []
    assert report.counts["history"] == {
        "files": 2, "rows": 7, "rows compared": 7, "departures": 3, "accounts": 1
    }  # fmt: skip


def test_rows_that_one_file_does_not_have_yet(data_dir: Path, tmp_path: Path) -> None:
    """The bucket came back; the file of the shard it was at meanwhile is behind."""
    builder = DataDirectoryBuilder(data_dir, history=True, trims=False)
    builder.pay(USER, COIN)
    builder.move(5, 2, 1)
    store = builder.workers[1].store
    assert store is not None
    store.flush()
    store.checkpoint()
    shutil.copy(f"{builder.path}/history/shard-1.sqlite", tmp_path / "behind")
    builder.pay(USER, COIN)
    builder.move(5, 1, 2)
    builder.pay(USER, COIN)
    builder.close()
    assert builder.examine().findings == []
    shutil.copy(tmp_path / "behind", f"{builder.path}/history/shard-1.sqlite")
    report = builder.examine()
    assert report.findings == []
    assert report.counts["history"]["accounts behind"] == 1


def test_a_history_that_is_behind_after_kill_9_is_no_fault(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    store = builder.workers[1].store
    assert store is not None
    store.flush()  # committed, and in SQLite's log alone
    builder.pay(USER, COIN)
    shutil.copytree(data_dir, tmp_path / "killed")
    builder.close()
    report = examined(str(tmp_path / "killed"))
    assert report.findings == []
    assert report.counts["history"]["rows compared"] == 1
    assert any("is 1 batch behind its journal" in note for note in report.notes)


def test_a_history_ahead_of_its_journal_proves_that_the_journal_lost_batches(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    shutil.copytree(data_dir / "shard-1", tmp_path / "before")
    builder.pay(USER, COIN)
    builder.close()
    shutil.rmtree(data_dir / "shard-1")
    shutil.copytree(tmp_path / "before", data_dir / "shard-1")
    assert "it goes up to batch 3, its journal only to 2" in findings_of(builder.examine(), "history")[0].text


def test_batches_that_are_in_neither(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, segment_bytes=8192)
    builder.pay(USER, COIN)
    shutil.copytree(data_dir / "history", tmp_path / "old")
    for _ in range(3):
        for _ in range(30):
            builder.pay(USER, COIN)
        builder.workers[1].snapshot()
    builder.close()
    shutil.rmtree(data_dir / "history")
    shutil.copytree(tmp_path / "old", data_dir / "history")
    assert any("what lies between is lost" in finding.text for finding in findings_of(builder.examine(), "history"))


def test_a_history_that_was_begun_later_is_held_against_what_it_has(data_dir: Path) -> None:
    builder = builder_with_history(data_dir, trims=True)
    shutil.rmtree(data_dir / "history")
    (data_dir / "history").mkdir(0o700)
    builder.restart()
    builder.pay(USER, COIN)
    builder.close()
    report = builder.examine()
    assert report.findings == []
    assert report.counts["history"]["rows compared"] > 0


def test_rows_show_what_the_history_answers(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, trims=False)
    busy(builder, 9, 300, upheavals=0)
    builder.close()
    journal = open_journal(f"{builder.path}/shard-1", 1)
    compared = 0
    for _, payload in journal.replay(1):
        for kind, _, _, body in records(payload):
            if kind == 1 and (entry := read_entry(body)).entry_id:
                row = history_row(unpack(body))
                assert row_amounts(entry) == (row["amount_nanos"], row["accrued_nanos"], row["balance_after_nanos"])
                assert ops.NAMES[entry.op] == row["operation"]
                compared += 1
    journal.close()
    assert compared > 50


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("row", [10, 60, 78])
def test_rows_that_keep_days_has_deleted_are_no_fault_and_what_is_kept_is_still_held_to_its_entries(
    data_dir: Path, row: int, trims: bool
) -> None:
    builder = builder_with_history(data_dir, trims=trims)
    path = f"{builder.path}/history/shard-1.sqlite"
    store = Store(path, 1, RealDisk())
    before = rows(store.db)
    for _ in prune(store, HistoryReader(f"{builder.path}/history", 1, store.db, RealDisk()), before[row - 1].at_ns + 1):
        pass
    assert len(rows(store.db)) < len(before)
    store.close()
    report = builder.examine()
    assert report.findings == []
    assert any("history.keep_days" in note for note in report.notes)
    report = alter(builder, lambda db: entry_changed(db, 79, one_more("balance_nanos")))
    (finding,) = findings_of(report, "history")[:1]
    assert "79" in finding.text or "entry" in finding.text


@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_that_does_not_agree_with_itself_on_where_it_ends(data_dir: Path, by: int) -> None:
    newest = "WHERE position = (SELECT max(position) FROM groups)"
    report = alter(builder_with_history(data_dir, trims=True), f"UPDATE groups SET position = position + {by} {newest}")
    (finding,) = findings_of(report, "history")
    assert "and its last transaction with batch" in finding.text
