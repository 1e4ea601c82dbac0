"""Damaged files: every flipped bit is found in its file, an unfinished write is told apart, a tail is given up."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from billing.doctor.cut import CutRefused, check, cut, damaged_journal
from billing.doctor.directory import Directory
from billing.doctor.examine import examine
from billing.doctor.report import Finding, Report
from shards.journal import Corrupt
from shards.journal.file.record import BLOCK_BYTES, HEADER_BYTES, unpack_block, walk
from shards.restored import rewound_ns
from tests.doctor.builder import COIN, DISK, DataDirectoryBuilder, busy, examined
from tests.doctor.forge import open_journal
from tests.doctor.test_clean import command, config_of

NOBODY = 65_534

Batches = list[tuple[int, int, int]]  # offset, offset behind it, position


def newest_segment(builder: DataDirectoryBuilder, shard: int = 1) -> Path:
    return max(Path(f"{builder.path}/shard-{shard}").glob("segment-??????????"))


def batches_in(segment: Path) -> Batches:
    """Batches as the real code reads them; barriers left out."""
    data = segment.read_bytes()
    batches = walk(data, unpack_block(data[:BLOCK_BYTES]))
    return [(batch.offset, batch.end, batch.position) for batch in batches if not batch.flags]


def change(file: Path, offset: int, to: Callable[[int], int]) -> None:
    data = bytearray(file.read_bytes())
    data[offset] = to(data[offset])
    file.write_bytes(data)


def files(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == "files"]


def directories(builder: DataDirectoryBuilder) -> tuple[Report, dict[int, Directory]]:
    report = Report()
    return report, examine(DISK, builder.path, 50, report, lambda what, done, total: None)


def test_every_flipped_bit_is_found_in_its_file(data_dir: Path) -> None:
    """Over all bytes that mean something: blocks, headers, payloads, ends, padding, manifests, snapshots."""
    builder = DataDirectoryBuilder(data_dir, shards=1, bucket_count=2)
    busy(builder, 1, 60, upheavals=0)
    builder.workers[1].snapshot()
    busy(builder, 2, 40, upheavals=0)
    builder.close()
    assert builder.examine().findings == []
    names = ("map/segment-", "map/manifest", "shard-1/segment-", "shard-1/manifest", "shard-1/snapshot-")
    meant = [path for path in Path(builder.path).rglob("*") if str(path.relative_to(builder.path)).startswith(names)]
    assert len(meant) >= 5
    draw = random.Random(7)
    flips = 0
    for path in sorted(meant):
        original = path.read_bytes()
        used = len(original.rstrip(b"\0"))
        for offset in draw.sample(range(used), min(used, 120)):
            flipped = bytearray(original)
            flipped[offset] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            report = builder.examine()
            assert report.findings, f"{path} offset {offset}"
            assert any(str(path.parent) in finding.file for finding in report.findings), report.findings
            flips += 1
        path.write_bytes(original)
    assert flips > 400
    assert builder.examine().findings == []


@pytest.mark.parametrize("where", ["header", "payload", "end"])
def test_a_damaged_batch_is_named_with_file_offset_and_position(data_dir: Path, tmp_path: Path, where: str) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    for _ in range(5):
        builder.pay(b"7", COIN)
    builder.close()
    segment = newest_segment(builder)
    offset, end, position = batches_in(segment)[2]
    at = {"header": offset + 20, "payload": offset + HEADER_BYTES + 9, "end": end - 1}[where]
    change(segment, at, lambda byte: byte ^ 4)
    report = builder.examine()
    (finding,) = files(report)
    assert (finding.file, finding.offset, finding.position) == (str(segment), offset, position)
    assert any(f"everything from position {position} on" in why for why in report.unchecked["accounts"])
    result = command(config_of(builder, tmp_path))
    assert result.returncode == 65
    assert f"{segment}, offset {offset}, position {position}: the " in result.stdout
    assert result.stdout.splitlines()[-1].endswith(": 1 fault")


def test_a_cut_short_batch_at_the_end_is_a_torn_tail(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"7", COIN)
    builder.pay(b"7", COIN)
    shutil.copytree(data_dir, tmp_path / "killed")
    builder.close()
    builder.path = str(tmp_path / "killed")
    segment = newest_segment(builder)
    offset, end, position = batches_in(segment)[-1]
    data = bytearray(segment.read_bytes())
    data[offset + 70 : end] = bytes(end - offset - 70)
    segment.write_bytes(data)
    report = builder.examine()
    assert report.findings == []
    assert report.counts["files"]["torn tails"] == 1
    assert report.counts["accounts"]["entries"] == 1
    assert any(f"offset {offset}, position {position}: a torn tail" in note for note in report.notes)


def test_the_same_behind_a_clean_stop_is_damage(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"7", COIN)
    builder.pay(b"7", COIN)
    builder.close()
    segment = newest_segment(builder)
    offset, end, position = batches_in(segment)[-1]
    data = bytearray(segment.read_bytes())
    data[offset + 70 : end] = bytes(end - offset - 70)
    segment.write_bytes(data)
    (finding,) = files(builder.examine())
    assert (finding.offset, finding.position) == (offset, position)
    assert "the journal was closed cleanly" in finding.text


def test_a_wholly_written_last_batch_that_is_wrong_is_damage(data_dir: Path, tmp_path: Path) -> None:
    """The machine has been up since: the kernel still had every byte."""
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"7", COIN)
    shutil.copytree(data_dir, tmp_path / "killed")
    builder.close()
    builder.path = str(tmp_path / "killed")
    segment = newest_segment(builder)
    change(segment, batches_in(segment)[-1][0] + 60, lambda byte: byte ^ 1)
    assert "the machine has been up since" in files(builder.examine())[0].text


@pytest.mark.parametrize("name", ["manifest", "segment-", "snapshot-"])
def test_a_missing_file_is_noticed(data_dir: Path, name: str) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, segment_bytes=8192, trims=True)
    for _ in range(40):
        builder.pay(b"7", COIN)
    for _ in range(3):
        builder.workers[1].snapshot()
    builder.close()
    removed = 0
    for path in sorted(Path(f"{builder.path}/shard-1").iterdir()):
        if path.name.startswith(name):
            path.unlink()
            removed += 1
    assert removed
    report = builder.examine()
    assert report.fault_count > 0


def test_a_missing_segment_in_the_middle(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, segment_bytes=8192, trims=False)
    for _ in range(40):
        builder.pay(b"7", COIN)
    builder.close()
    segments = sorted(Path(f"{builder.path}/shard-1").glob("segment-??????????"))
    assert len(segments) > 3
    segments[1].unlink()
    assert "no batch begins here" in files(builder.examine())[0].text


def test_an_older_copy_of_a_shard_does_not_pass(data_dir: Path, tmp_path: Path) -> None:
    """An old backup of one shard beside the others: what it holds is right, and who owns what is not."""
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(b"7", COIN)
    builder.close()
    shutil.copytree(data_dir / "shard-2", tmp_path / "old")
    builder.restart()
    builder.move(5, 2, 1)
    builder.close()
    shutil.rmtree(data_dir / "shard-2")
    shutil.copytree(tmp_path / "old", data_dir / "shard-2")
    assert builder.examine().findings == []  # its bucket 5 is of a generation that is gone: it is given up
    shutil.rmtree(data_dir / "shard-1")
    shutil.copytree(tmp_path / "old", data_dir / "shard-1")
    assert "it is segment 1 of shard 2" in files(builder.examine())[0].text


# -- giving up a damaged tail ------------------------------------------------------------------------------------------


def damaged_builder(data_dir: Path, batch: int) -> tuple[DataDirectoryBuilder, Path, Batches]:
    """Six batches of entries in the newest segment, one of them damaged; closed."""
    builder = DataDirectoryBuilder(data_dir, shards=1)
    for _ in range(5):
        builder.pay(b"7", COIN)
    builder.close()
    segment = newest_segment(builder)
    batches = batches_in(segment)
    assert len(batches) == 6
    change(segment, batches[batch][0] + HEADER_BYTES + 9, lambda byte: byte ^ 1)
    return builder, segment, batches


def test_a_damaged_tail_is_given_up_by_order(data_dir: Path, tmp_path: Path) -> None:
    builder, segment, batches = damaged_builder(data_dir, -2)
    with pytest.raises(Corrupt):
        open_journal(str(segment.parent), 1)
    before = segment.read_bytes()
    offset, _, position = batches[-2]
    result = command(config_of(builder, tmp_path), "--truncate-at", str(position), "--accept-loss")
    assert result.returncode == 0, result.stderr
    copy = Path(f"{segment}.cut-{position}")
    assert copy.read_bytes() == before.rstrip(b"\0")
    audit = json.loads(Path(f"{copy}.json").read_text())
    assert (audit["shard"], audit["first_position_lost"], audit["offset"]) == (1, position, offset)
    assert audit["batches_recognised_behind_the_damage"] == 1
    assert audit["user"] == f"uid:{os.getuid()}", "also of one whom the machine has no name for"
    assert audit["bytes_cut"] == len(before.rstrip(b"\0")) - offset
    report = builder.examine()
    assert report.findings == []
    assert report.counts["accounts"]["entries"] == 3
    assert any("was kept as evidence" in note for note in report.notes)
    assert rewound_ns(DISK, str(segment.parent.parent)) > 0, "no seq that the lost part gave is given again"
    journal = open_journal(str(segment.parent), 1)
    assert journal.head == position - 1
    journal.append(b"goes on")
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_root_cuts_stays_the_owners(data_dir: Path, tmp_path: Path) -> None:
    builder, _, batches = damaged_builder(data_dir, -2)
    for path in (data_dir, *data_dir.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    result = command(config_of(builder, tmp_path), "--truncate-at", str(batches[-2][2]), "--accept-loss")
    assert result.returncode == 0, result.stderr
    assert {path.stat().st_uid for path in (data_dir, *data_dir.rglob("*"))} == {NOBODY}


def test_damage_in_the_first_batch_there_is_begins_at_its_own_position_and_can_be_given_up_there(
    data_dir: Path, tmp_path: Path
) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.restart()
    journal, shard = builder.workers[1].journal, builder.workers[1].shard
    for _ in range(2):  # the older of two snapshots stands at the end of the first segment
        journal.save_snapshot(journal.head, [shard.dump(bucket_id, journal.head) for bucket_id in shard.present()])
        builder.pay(b"7", COIN)
    journal.trim(journal.head - 1)
    builder.close()
    segment = newest_segment(builder)
    (offset, _, position), *_ = batches_in(segment)
    assert [segment] == list(segment.parent.glob("segment-??????????"))
    assert position == 2
    change(segment, offset + HEADER_BYTES + 9, lambda byte: byte ^ 1)
    assert (str(segment), offset, position) in [
        (finding.file, finding.offset, finding.position) for finding in files(builder.examine())
    ]
    cut_off = ("--truncate-at", str(position), "--accept-loss")
    result = command(config_of(builder, tmp_path), *cut_off)
    assert "was made when position 2 was durable" in result.stderr, "a snapshot has what would be lost"
    max(segment.parent.glob("snapshot-*")).unlink()
    assert command(config_of(builder, tmp_path), *cut_off).returncode == 0
    assert builder.examine().findings == []


def test_only_where_the_damage_begins(data_dir: Path, tmp_path: Path) -> None:
    builder, segment, batches = damaged_builder(data_dir, -2)
    before = segment.read_bytes()
    for position in (batches[-3][2], batches[-1][2], 0, 99):
        result = command(config_of(builder, tmp_path), "--truncate-at", str(position), "--accept-loss")
        assert result.returncode == 1
        assert f"begins at position {batches[-2][2]}; only there" in result.stderr
    assert segment.read_bytes() == before


def test_never_without_accepting_the_loss(data_dir: Path, tmp_path: Path) -> None:
    builder, segment, batches = damaged_builder(data_dir, -1)
    before = segment.read_bytes()
    assert command(config_of(builder, tmp_path), "--truncate-at", str(batches[-1][2])).returncode == 2
    assert command(config_of(builder, tmp_path), "--accept-loss").returncode == 2
    assert segment.read_bytes() == before


def test_never_in_a_journal_that_is_right(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"7", COIN)
    builder.close()
    result = command(config_of(builder, tmp_path), "--truncate-at", "2", "--accept-loss")
    assert result.returncode == 1
    assert "damaged journals of shards: none" in result.stderr
    result = command(config_of(builder, tmp_path), "--truncate-at", "2", "--accept-loss", "--shard", "1")
    assert "there is nothing to cut off" in result.stderr


def test_never_in_the_middle_of_the_log(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, segment_bytes=8192, trims=False)
    for _ in range(40):
        builder.pay(b"7", COIN)
    builder.close()
    segment = min(Path(f"{builder.path}/shard-1").glob("segment-??????????"))
    offset, _, position = batches_in(segment)[2]
    change(segment, offset + HEADER_BYTES, lambda byte: byte ^ 1)
    _, logs = directories(builder)
    with pytest.raises(CutRefused, match="is not the newest segment"):
        cut(DISK, logs[1], position)


def test_never_below_a_snapshot(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, trims=False)
    for _ in range(5):
        builder.pay(b"7", COIN)
    builder.workers[1].snapshot()
    builder.close()
    segment = newest_segment(builder)
    offset, _, position = batches_in(segment)[3]
    change(segment, offset + HEADER_BYTES, lambda byte: byte ^ 1)
    _, logs = directories(builder)
    with pytest.raises(CutRefused, match="was made when position"):
        check(damaged_journal(logs, None), position)


def test_two_damaged_journals_must_be_told_apart(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    for user in (b"1", b"2", b"3", b"4", b"5", b"6", b"7"):
        builder.pay(user, COIN)
    builder.close()
    for shard in (1, 2):
        segment = newest_segment(builder, shard)
        change(segment, batches_in(segment)[-1][0] + HEADER_BYTES, lambda byte: byte ^ 1)
    _, logs = directories(builder)
    with pytest.raises(CutRefused, match="damaged journals of shards: 1, 2"):
        damaged_journal(logs, None)
    assert damaged_journal(logs, 2) is logs[2]
    damage = logs[2].damage
    assert damage is not None
    cut(DISK, logs[2], damage.position)
    report = examined(builder.path)
    assert [finding.file for finding in files(report)] == [str(newest_segment(builder, 1))]
