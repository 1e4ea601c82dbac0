"""A log that is read through `shards.journal.Reader` is proved as one that is read from its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.doctor.examine import MAP, SHARD, Logs, examine_logs
from billing.doctor.log import ReadLog
from billing.doctor.report import Report
from shards.journal import Corrupt, Gap, Lost, Reader, Retained, Unavailable
from shards.journal.file.reader import FileReader
from tests.doctor.builder import DISK, DataDirectoryBuilder, busy

PROVED_ALIKE = ("owners", "accounts", "conservation", "requests", "history", "statements", "snapshots")


class BrokenReader:
    """A reader whose log ends in an error: where it is replayed, or within its snapshots."""

    def __init__(self, reader: Reader, error: Exception, where: str) -> None:
        self._reader = reader
        self._error = error
        self._where = where

    @property
    def first(self) -> int:
        if self._where == "first":
            raise self._error
        return self._reader.first

    @property
    def head(self) -> int:
        return self._reader.head

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        for number, row in enumerate(self._reader.replay(start)):
            if self._where == "replay" and number == 20:
                raise self._error
            yield row

    def snapshots(self) -> list[Retained]:
        return self._reader.snapshots()

    def chunks(self, position: int) -> Iterator[bytes]:
        for part in self._reader.chunks(position):
            yield part
            if self._where == "chunks":
                raise self._error

    def close(self) -> None:
        self._reader.close()


def read(builder: DataDirectoryBuilder, error: Exception | None = None, where: str = "") -> Report:
    """What the doctor says of the data directory, read by readers; shard 1's is broken so."""
    report = Report()

    def opened(number: int) -> ReadLog:
        name = f"{SHARD}{number}" if number else MAP
        reader: Reader = FileReader(DISK, f"{builder.path}/{name}", number)
        if error is not None and number == 1:
            reader = BrokenReader(reader, error, where)
        return ReadLog(reader, name, number, report)

    logs = Logs([0, *builder.shards], opened, True)
    examine_logs(logs, DISK, builder.path, builder.rules.request_ids_per_bucket, report, lambda what, done, total: None)
    return report


def busy_builder(data_dir: Path, *, trims: bool) -> DataDirectoryBuilder:
    builder = DataDirectoryBuilder(data_dir, trims=trims)
    busy(builder, 7, 1500, upheavals=0.02)
    builder.wait(1)
    for worker in builder.workers.values():
        worker.snapshot()
    return builder.close()


@pytest.mark.parametrize("trims", [False, True])
def test_by_readers_the_same_is_proved_as_from_files(data_dir: Path, trims: bool) -> None:
    builder = busy_builder(data_dir, trims=trims)
    from_files, by_readers = builder.examine(), read(builder)
    assert by_readers.findings == from_files.findings == []
    assert by_readers.sums == from_files.sums
    for check in PROVED_ALIKE:
        assert by_readers.counts[check] == from_files.counts[check], check
    assert by_readers.counts["files"]["batches"] == from_files.counts["files"]["batches"]


@pytest.mark.parametrize(
    ("error", "where", "text"),
    [
        (Corrupt("a record is damaged"), "replay", "a record is damaged"),
        (Gap("records are missing"), "replay", "records are missing"),
        (Corrupt("a record is damaged"), "first", "a record is damaged"),
        (Corrupt("a chunk is damaged"), "chunks", "a chunk is damaged"),
    ],
)
def test_what_is_damaged_is_a_fault_and_nothing_behind_it_is_proved(
    data_dir: Path, error: Exception, where: str, text: str
) -> None:
    report = read(busy_builder(data_dir, trims=False), error, where)
    assert any(finding.check == "files" and text in finding.text for finding in report.findings), report.lines()
    if where != "chunks":
        assert any("shard 1" in why for why in report.unchecked["accounts"])


@pytest.mark.parametrize("error", [Unavailable("nobody answers"), Lost("the connection is lost")])
def test_a_log_that_cannot_be_reached_proves_nothing(data_dir: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        read(busy_builder(data_dir, trims=False), error, "replay")
