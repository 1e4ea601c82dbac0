"""The doctor and owed notices: what was changed, what is behind a journal that is gone, what is only behind. And no
damaged byte of any file of a data directory ends the doctor with a bug.
"""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from billing.doctor.directory import Directory
from billing.doctor.files import InUse
from billing.doctor.notices import examine_notices
from billing.doctor.report import Report
from billing.follower.store import ShardFile
from billing.notices.opening import begun_of, open_store
from billing.notices.store import KIND, checksum_of
from tests.doctor.builder import COIN, DISK, DataDirectoryBuilder, busy
from tests.doctor.story import USER, findings_of

NOTICES = 40


def owing(data_dir: Path, *, trims: bool = False, behind: int = 0) -> DataDirectoryBuilder:
    """A data directory of one shard whose payments are owed to somebody who does not answer; closed. `behind`: so many
    batches are not in the file.
    """
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True, trims=trims, segment_bytes=8192)
    DISK.mkdir(f"{data_dir}/notices")
    for number in range(NOTICES):
        builder.pay(USER, 100 + number)
    journal = builder.workers[1].journal
    store, _ = open_store(ShardFile(f"{data_dir}/notices", 1, 1, 0, DISK), suspect=False, file_id=7, now_ns=1)
    for position, payload in journal.replay(1):
        if position <= journal.head - behind:
            store.take(position, payload, 1)
    store.flush()
    store.close()
    for _ in range(3 if trims else 0):
        for _ in range(30):
            builder.pay(USER, COIN)
        builder.workers[1].snapshot()
    return builder.close()


def changed(builder: DataDirectoryBuilder, statement: str, *, signs: bool = False) -> Report:
    """The report after this statement was carried out on the file of shard 1; `signs`: by a writer that is wrong."""
    db = sqlite3.connect(f"{builder.path}/notices/shard-1.sqlite")
    db.execute(statement)
    if signs:
        sign(db)
    db.commit()
    db.close()
    return builder.examine()


def sign(db: sqlite3.Connection) -> None:
    """Gives the row of `about` the checksum of what is there now."""
    (row,) = db.execute("SELECT * FROM about")
    db.execute("UPDATE about SET checksum = ?", (checksum_of(row[:-1]),))


def test_right_notices_are_counted(data_dir: Path) -> None:
    report = owing(data_dir).examine()
    assert report.findings == []
    assert report.counts["notices"] == {"files": 1, "owed": NOTICES}


def test_a_file_that_is_only_behind_is_noted(data_dir: Path) -> None:
    report = owing(data_dir, behind=3).examine()
    assert report.findings == []
    assert any("is 3 batches behind its journal" in note for note in report.notes)


def test_a_file_behind_the_journal_of_a_shard_that_is_gone_is_a_fault_with_the_way_out(data_dir: Path) -> None:
    """Nobody feeds it at the next start, as the note had said. Versions before retired a shard too early."""
    report = Report()
    journal = Directory(DISK, f"{owing(data_dir, behind=3).path}/shard-1", 1, report)
    assert list(journal.batches())
    examine_notices(DISK, str(data_dir), {1: journal}, {1}, report)
    (fault,) = report.findings
    assert "3 batches behind the journal of a shard that is gone" in fault.text
    assert "`billing rebuild`" in fault.text


@pytest.mark.parametrize("kind", ["history", "notices"])
def test_a_file_that_another_process_keeps_locked_is_no_damage(data_dir: Path, kind: str) -> None:
    """As one does that a daemon left hanging, or somebody's sqlite3."""
    builder = owing(data_dir)
    path = f"{builder.path}/{kind}/shard-1.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE kept (number)")
    with pytest.raises(InUse, match=f"keeps {path} locked"):
        builder.examine()
    db.execute("DROP TABLE kept")
    db.close()
    assert builder.examine().findings == []


def test_a_file_behind_what_the_journal_still_has_is_a_fault(data_dir: Path) -> None:
    (finding,) = findings_of(owing(data_dir, trims=True).examine(), "notices")
    assert "nobody is told of what lies between" in finding.text


@pytest.mark.parametrize("trims", [False, True])
def test_a_file_that_is_gone_is_a_fault_where_the_journal_does_not_have_what_it_owed(
    data_dir: Path, trims: bool
) -> None:
    builder = owing(data_dir, trims=trims)
    Path(f"{builder.path}/notices/shard-1.sqlite").unlink()
    report = builder.examine()
    assert len(findings_of(report, "notices")) == int(trims)
    assert trims or any("makes it anew from batch 1" in note for note in report.notes)


def test_a_file_ahead_of_its_journal_proves_that_the_journal_lost_batches(data_dir: Path) -> None:
    (finding,) = findings_of(
        changed(owing(data_dir), "UPDATE about SET position = position + 1", signs=True), "notices"
    )
    assert "the journal has lost batches" in finding.text


@pytest.mark.parametrize("owed", [0, NOTICES])
def test_a_file_whose_journal_is_gone_is_a_fault_where_it_has_still_something_to_tell(
    data_dir: Path, owed: int
) -> None:
    builder = owing(data_dir)
    path = Path(f"{builder.path}/notices/shard-1.sqlite")
    path.rename(path.with_name("shard-9.sqlite"))
    Path(begun_of(f"{builder.path}/notices", 1)).unlink()
    db = sqlite3.connect(path.with_name("shard-9.sqlite"))
    db.execute("UPDATE about SET shard = 9")
    sign(db)
    db.execute(f"DELETE FROM owed WHERE seq > {owed}")
    db.commit()
    db.close()
    texts = [finding.text for finding in findings_of(builder.examine(), "notices")]
    assert texts == ([f"its journal is gone, and it still has {owed} notices to tell"] if owed else [])


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE owed SET at_ns = at_ns + 1 WHERE seq = 5", "notice 5 is not what was written"),
        ("UPDATE owed SET body = x'00' WHERE seq = 5", "notice 5 is not what was written"),
        ("UPDATE owed SET name = 5 WHERE seq = 5", "notice 5 is not what was written"),
        ("UPDATE about SET position = 5", "a row of about is not what was written"),
        ("UPDATE about SET shard = 'one'", "it is of shard one"),
        ("DELETE FROM about", "it cannot be read"),
        ("INSERT INTO departures VALUES (1, 1, 1, 0, 0)", "a row of departures is not what was written"),
        ("INSERT INTO arrivals VALUES (1, 1, 1, 0, 0, 0)", "a row of arrivals is not what was written"),
        ("INSERT INTO claims VALUES (1, 1, 1, 0, 0)", "a row of claims is not what was written"),
        (f"PRAGMA user_version = {KIND.version + 1}", "it is no file of a known version"),
    ],
)
def test_what_was_changed_is_a_fault(data_dir: Path, statement: str, text: str) -> None:
    assert text in findings_of(changed(owing(data_dir), statement), "notices")[0].text


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE about SET position = 5", "the file says it goes up to batch 5"),
        ("UPDATE about SET seq = 5", "the file says it goes up to batch"),
    ],
)
def test_what_a_wrong_writer_wrote_is_a_fault(data_dir: Path, statement: str, text: str) -> None:
    assert text in findings_of(changed(owing(data_dir), statement, signs=True), "notices")[0].text


def test_no_flipped_byte_of_any_file_ends_the_doctor_with_a_bug(data_dir: Path) -> None:
    """Whatever file of a data directory is damaged, the doctor ends with a report."""
    builder = DataDirectoryBuilder(data_dir, history=True, trims=False, bucket_count=4)
    DISK.mkdir(f"{data_dir}/notices")
    busy(builder, 3, 60, upheavals=0.05)
    for shard, worker in builder.workers.items():
        worker.snapshot()
        store, _ = open_store(
            ShardFile(f"{data_dir}/notices", shard, 1, 0, DISK), suspect=False, file_id=shard, now_ns=1
        )
        for position, payload in worker.journal.replay(1):
            store.take(position, payload, 1)
        store.flush()
        store.close()
    builder.close()
    assert builder.examine().findings == []
    draw = random.Random(11)
    paths = sorted(path for path in Path(builder.path).rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.parent.name for path in paths} >= {"map", "shard-1", "history", "notices"}
    for path in paths:
        original = path.read_bytes()
        used = len(original.rstrip(b"\0"))
        for offset in draw.sample(range(used), min(used, 12)):
            flipped = bytearray(original)
            flipped[offset] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            assert builder.examine().lines(), f"{path} offset {offset}"
        path.write_bytes(original[: used // 2])
        report = builder.examine()
        assert report.lines()
        assert report.findings or path.suffix != ".sqlite", f"{path} cut in half"
        path.write_bytes(original)
    assert builder.examine().findings == []
