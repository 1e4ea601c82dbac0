"""Right data pass, and the counts say of how much; the command tells it and exits with 0."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from billing.doctor.examine import Absent, DaemonRuns, hold
from billing.doctor.report import CHECKS
from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from shards.buckets import bucket_id_of
from tests.doctor.builder import COIN, DISK, HOUR_NS, RULES, DataDirectoryBuilder, busy, examined


def command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`billing doctor` as a process."""
    line = [sys.executable, "-m", "billing", "doctor", "--config", str(config), *options]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def config_of(builder: DataDirectoryBuilder, directory: Path) -> Path:
    """A configuration that names the data directory."""
    file = directory / "config.toml"
    ids_max = builder.rules.request_ids_per_bucket
    file.write_text(f'[daemon]\ndata_dir = "{builder.path}"\n[ledger]\nrequest_ids_per_bucket = {ids_max}\n')
    return file


@pytest.mark.parametrize("seed", range(6))
def test_what_the_daemon_s_own_code_wrote_is_right(data_dir: Path, seed: int) -> None:
    ids_max = [5, 50, 1000][seed % 3]
    rules = RULES._replace(accrue=seed % 3 == 0, restore=seed % 2 == 0, request_ids_per_bucket=ids_max)
    builder = DataDirectoryBuilder(data_dir, rules=rules, trims=seed > 3)
    busy(builder, seed, 2300, upheavals=0.02)
    builder.wait(1)  # what timers were late for happens
    for worker in builder.workers.values():
        worker.snapshot()
    report = builder.close().examine()
    assert report.findings == []
    counts = report.counts
    assert counts["files"]["journals"] == 3
    assert counts["files"]["batches"] > 100
    assert counts["owners"]["buckets"] == counts["conservation"]["buckets"] == 8
    assert counts["accounts"]["accounts"] == sum(
        len(book.slots) for worker in builder.workers.values() for book in worker.machine.ledger.books.values()
    )
    assert counts["accounts"]["entries"] > 50
    assert counts["requests"]["request ids"] > 20
    assert counts["cutoffs"]["cutoffs made"] > 2
    assert counts["cutoffs"]["reports of delivery"] > 1
    assert counts["snapshots"]["parts compared"] >= 8
    if seed <= 3:
        assert counts["owners"]["moves compared"] > 2
    assert report.sums["balances"] == sum(
        book.totals.balance() for worker in builder.workers.values() for book in worker.machine.ledger.books.values()
    )


def test_every_entry_ever_made_was_looked_at(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    for number in range(20):
        builder.pay(b"7", 5 + number)
    builder.rate(b"7", 10**12)
    builder.wait(HOUR_NS)
    report = builder.close().examine()
    assert report.counts["accounts"] == {"entries": 22, "accounts": 1}
    assert report.sums["top_ups"] == report.sums["accrued"] == sum(range(5, 25)) * 3600 * 10**9
    assert report.counts["cutoffs"] == {"cutoffs made": 1, "cutoffs owed": 1}
    assert [(owed.user_id, owed.kind, owed.seq) for owed in report.owed] == [("7", "cutoff", 1)]
    assert report.summary() == "1 account, 22 entries, 8 buckets: no faults"


def test_what_is_coming_and_what_is_late_are_no_faults(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    for user in (b"a", b"b", b"c"):
        builder.pay(user, COIN)
        builder.rate(user, COIN)
    builder.now_ns += HOUR_NS + 5
    builder.pay(b"later", 1)
    report = builder.close().examine()
    assert report.findings == []
    cutoffs = report.counts["cutoffs"]
    assert (cutoffs["instants coming"], cutoffs["due at the next start"]) == (3, 3)


def test_a_life_after_a_late_start_is_no_fault(data_dir: Path) -> None:
    """The exhaustion came an hour late, because nobody served; its instant is right all the same."""
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"a", COIN)
    builder.rate(b"a", COIN)
    builder.now_ns += 2 * HOUR_NS
    builder.restart()
    builder.wait(HOUR_NS)
    builder.pay(b"a", COIN)
    assert builder.close().examine().findings == []


def test_holds_that_expire_together_and_accounts_closed_with_their_machines_off_are_no_faults(data_dir: Path) -> None:
    """Through a snapshot of the closed account, a restart and a move."""
    builder = DataDirectoryBuilder(data_dir, trims=False)
    user = b"7"
    home = builder.worker_of(user).shard.shard_id
    builder.pay(user, 100 * COIN)
    builder.rate(user, 60 * COIN)
    for name in (b"a", b"b", b"c"):
        builder.do((ops.HOLD, user, 20 * COIN, 2 * HOUR_NS // 3, 0, b"", name, b"", b"", b""))
    builder.wait(HOUR_NS)  # 40 were left after 40 minutes, in which the three came back
    builder.wait(HOUR_NS)
    builder.report(ops.CUTOFF_STARTED, user, 1)
    builder.report(ops.CUTOFF_DELIVERED, user, 1)
    builder.rate(user, 0)
    builder.do((ops.CLOSE, user, 0, 0, 0, b"", b"", b"", b"", b""))
    builder.workers[home].snapshot()
    builder.restart()
    builder.move(bucket_id_of(user, builder.bucket_count), home, 3 - home)
    assert builder.pay(user, COIN)["restored"] is True
    builder.report(ops.RESTORE_STARTED, user, 1)
    report = builder.close().examine()
    assert report.findings == []
    assert [(owed.user_id, owed.kind, owed.seq) for owed in report.owed] == [("7", "restore", 1)]


@pytest.mark.parametrize("floor", [1_700_000_000, 17])
def test_a_seq_goes_ahead_to_the_second_of_a_restore_only(data_dir: Path, floor: int) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    for _ in range(2):
        builder.pay(b"7", COIN)
        builder.debit(b"7", COIN)
        builder.rules = builder.rules._replace(seq_floor=floor)
        builder.restart()
    findings = builder.close().examine().findings
    if floor > 17:
        assert findings == []
    else:
        assert "exhaustion_seq 17, worked out 2" in findings[0].text


def test_an_account_whose_restore_has_no_url_any_more_may_be_closed(data_dir: Path) -> None:
    """It is opened again where there is one, and then owes the restore again."""
    builder = DataDirectoryBuilder(data_dir, shards=1)
    close = (ops.CLOSE, b"7", 0, 0, 0, b"", b"r", b"", b"", b"")
    builder.pay(b"7", COIN)
    builder.debit(b"7", COIN)
    builder.report(ops.CUTOFF_STARTED, b"7", 1)
    builder.pay(b"7", COIN)
    with pytest.raises(Refused, match="still has a cutoff"):
        builder.do(close)
    builder.rules = builder.rules._replace(restore=False)
    builder.restart()
    builder.do((*close[:6], b"s", *close[7:]))
    builder.rules = builder.rules._replace(restore=True)
    builder.restart()
    builder.pay(b"7", COIN)
    report = builder.close().examine()
    assert report.findings == []
    assert [(owed.user_id, owed.kind, owed.seq) for owed in report.owed] == [("7", "restore", 1)]


def test_hundreds_of_owed_cutoffs_of_one_account(data_dir: Path) -> None:
    """Each line that rises from zero on an exhausted account makes one, and a snapshot holds them all."""
    builder = DataDirectoryBuilder(data_dir, shards=1, trims=False)
    builder.pay(b"7", 1)
    builder.debit(b"7", 1)
    for number in range(300):
        builder.rate(b"7", 1, b"vm-%d" % number)
    builder.workers[1].snapshot()
    builder.restart()
    report = builder.close().examine()
    assert report.findings == []
    assert report.counts["cutoffs"]["cutoffs made"] == 301
    assert report.counts["snapshots"]["parts compared"] == 8


def test_unclean_ends_are_no_faults(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    busy(builder, 3, 300)
    shutil.copytree(data_dir, tmp_path / "killed")
    builder.close()
    report = examined(str(tmp_path / "killed"))
    assert report.findings == []
    assert report.counts["accounts"]["entries"] > 50


def test_the_command_says_it_in_words(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(b"7", COIN, b"first")
    builder.rate(b"7", COIN)
    builder.wait(2 * HOUR_NS)
    builder.workers[1].snapshot()
    builder.workers[2].snapshot()
    builder.close()
    result = command(config_of(builder, tmp_path))
    assert result.stderr == ""
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if "not checked: there is no" not in line]
    assert [line.split()[0] for line in lines[: len(CHECKS)]] == list(CHECKS)
    assert all(line.split()[1] in ("ok", "-") for line in lines[: len(CHECKS)])
    assert lines[-1] == "2 accounts, 5 entries, 8 buckets: no faults"


def test_the_command_says_it_in_json(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(b"7", COIN)
    builder.close()
    report = json.loads(command(config_of(builder, tmp_path), "--json").stdout)
    assert report["faults"] == 0
    assert report["findings"] == []
    assert [check["check"] for check in report["checks"]] == list(CHECKS)
    assert report["sums"]["balances"] == COIN * 3600 * 10**9


def test_looking_changes_nothing(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    busy(builder, 5, 200)
    builder.close()
    before = {path: path.read_bytes() for path in sorted(Path(builder.path).rglob("*")) if path.is_file()}
    assert builder.examine().findings == []
    assert before == {path: path.read_bytes() for path in sorted(Path(builder.path).rglob("*")) if path.is_file()}


def test_a_directory_in_use_is_not_looked_at(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    result = command(config_of(builder, tmp_path))
    assert result.returncode == 1
    assert f"a daemon runs on {builder.path}" in result.stderr
    assert "--online proves what can be proved while it serves" in result.stderr
    for worker in builder.workers.values():
        worker.journal.close()
    with ExitStack() as stack, pytest.raises(DaemonRuns, match="map/lock is locked"):
        hold(DISK, builder.path, stack)
    builder.close()
    assert command(config_of(builder, tmp_path)).returncode == 0


def test_nothing_starts_while_it_is_looked_at(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir).close()
    with ExitStack() as stack:
        hold(DISK, builder.path, stack)
        with pytest.raises(BlockingIOError):
            DISK.lock(f"{builder.path}/map/lock")
    DISK.close(DISK.lock(f"{builder.path}/map/lock"))


def test_a_directory_without_data_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(Absent, match="holds no data"):
        hold(DISK, str(tmp_path), stack)
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{tmp_path}/nothing"\n')
    assert command(config).returncode == 78


def test_a_shard_that_never_served_is_mentioned(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir)
    builder.record(["weight", 3, 1])
    report = builder.close().examine()
    assert report.findings == []
    assert "shard 3 has never served" in report.notes


def test_what_a_move_left_over_is_mentioned(data_dir: Path) -> None:
    """The source was killed between the decision and giving the bucket up; another move was never decided for."""
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(b"7", COIN)
    bucket_id = 5
    assert bucket_id in builder.workers[2].shard.held
    block = builder.workers[2].machine.dump(bucket_id)
    builder.workers[1].shard.take_in(bucket_id, 2, block)
    builder.record(["assign", bucket_id, 1, 2])
    builder.workers[2].shard.take_in(1, 2, builder.workers[1].machine.dump(1))
    report = builder.close().examine()
    assert report.findings == []
    assert sum("left over from a move" in note for note in report.notes) == 2
    assert report.counts["conservation"] == {"buckets": 8, "accounts": 1}


def test_a_copy_that_was_never_decided_for_is_mentioned_though_another_target_has_its_generation(
    data_dir: Path,
) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=3)
    builder.pay(b"7", COIN)
    source = next(shard for shard, worker in builder.workers.items() if 5 in worker.shard.held)
    first, second = (shard for shard in builder.workers if shard != source)
    builder.workers[first].shard.take_in(5, 2, builder.workers[source].machine.dump(5))
    builder.workers[first].commit()
    builder.workers[first].snapshot()
    builder.move(5, source, second)
    report = builder.close().examine()
    assert report.findings == []
    text = f"shard {first} has a copy of bucket 5 left over from a move"
    assert [note for note in report.notes if note.startswith(text)]


def test_a_bucket_that_left_while_a_snapshot_began_is_no_fault(data_dir: Path) -> None:
    """The snapshot is of the position before, and knows of it no more: recovery does not miss it either."""
    builder = DataDirectoryBuilder(data_dir)
    builder.pay(b"7", COIN)
    worker = builder.workers[2]
    bucket_id = min(worker.shard.held)
    builder.workers[1].shard.take_in(bucket_id, 2, worker.machine.dump(bucket_id))
    builder.workers[1].commit()
    builder.record(["assign", bucket_id, 1, 2])
    builder.workers[1].shard.activate(bucket_id, builder.now_ns)
    position = worker.journal.head
    parts = [worker.shard.dump(bucket, position) for bucket in sorted(worker.shard.held) if bucket != bucket_id]
    worker.shard.leave(bucket_id)
    worker.commit()
    worker.journal.save_snapshot(position, parts)
    assert builder.close().examine().findings == []


def test_lowered_and_raised_limits_of_request_ids_are_no_faults(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(
        data_dir, shards=1, bucket_count=1, trims=False, rules=RULES._replace(request_ids_per_bucket=10)
    )
    for number in range(30):
        builder.pay(b"7", 1, b"%d" % number)
    builder.workers[1].snapshot()
    builder.close()
    assert examined(builder.path, 5).findings == []
    assert examined(builder.path, 20).findings == []
    assert any("keeps at most 10 request ids a bucket" in note for note in examined(builder.path, 20).notes)


def test_a_request_id_may_come_again_after_its_week(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(b"7", 1, b"same")
    builder.now_ns += 7 * 24 * HOUR_NS
    assert builder.pay(b"7", 2, b"same")["replayed"] is False
    builder.debit(b"7", 3, ops.FORCE)
    report = builder.close().examine()
    assert report.findings == []
    assert report.counts["requests"] == {"request ids": 2}
