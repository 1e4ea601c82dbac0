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
from shards.buckets import bucket_id_of
from tests.doctor.yard import COIN, DISK, HOUR_NS, RULES, Yard, busy, examined


def command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`billing doctor` as a process."""
    line = [sys.executable, "-m", "billing", "doctor", "--config", str(config), *options]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def config_of(yard: Yard, directory: Path) -> Path:
    """A configuration that names the yard's directory."""
    file = directory / "config.toml"
    ids_max = yard.rules.request_ids_per_bucket
    file.write_text(f'[daemon]\ndata_dir = "{yard.path}"\n[ledger]\nrequest_ids_per_bucket = {ids_max}\n')
    return file


@pytest.mark.parametrize("seed", range(6))
def test_what_the_daemon_s_own_code_wrote_is_right(data_dir: Path, seed: int) -> None:
    ids_max = [5, 50, 1000][seed % 3]
    rules = RULES._replace(accrue=seed % 3 == 0, restore=seed % 2 == 0, request_ids_per_bucket=ids_max)
    yard = Yard(data_dir, rules=rules, trims=seed > 3)
    busy(yard, seed, 2300, upheavals=0.02)
    yard.wait(1)  # what timers were late for happens
    for worker in yard.workers.values():
        worker.snapshot()
    report = yard.close().examine()
    assert report.findings == []
    counts = report.counts
    assert counts["files"]["journals"] == 3
    assert counts["files"]["batches"] > 100
    assert counts["owners"]["buckets"] == counts["conservation"]["buckets"] == 8
    assert counts["accounts"]["accounts"] == sum(
        len(book.slots) for worker in yard.workers.values() for book in worker.machine.ledger.books.values()
    )
    assert counts["accounts"]["entries"] > 50
    assert counts["requests"]["request ids"] > 20
    assert counts["cutoffs"]["cutoffs made"] > 2
    assert counts["cutoffs"]["reports of delivery"] > 1
    assert counts["snapshots"]["parts compared"] >= 8
    if seed <= 3:
        assert counts["owners"]["moves compared"] > 2
    assert report.sums["balances"] == sum(
        book.totals.balance() for worker in yard.workers.values() for book in worker.machine.ledger.books.values()
    )


def test_every_entry_ever_made_was_looked_at(data_dir: Path) -> None:
    yard = Yard(data_dir, shards=1)
    for number in range(20):
        yard.pay(b"7", 5 + number)
    yard.rate(b"7", 10**12)
    yard.wait(HOUR_NS)
    report = yard.close().examine()
    assert report.counts["accounts"] == {"entries": 22, "accounts": 1}
    assert report.sums["top_ups"] == report.sums["accrued"] == sum(range(5, 25)) * 3600 * 10**9
    assert report.counts["cutoffs"] == {"cutoffs made": 1, "cutoffs owed": 1}
    assert [(owed.user_id, owed.kind, owed.seq) for owed in report.owed] == [("7", "cutoff", 1)]
    assert report.summary() == "1 account, 22 entries, 8 buckets: no faults"


def test_what_is_coming_and_what_is_late_are_no_faults(data_dir: Path) -> None:
    yard = Yard(data_dir, shards=1)
    for user in (b"a", b"b", b"c"):
        yard.pay(user, COIN)
        yard.rate(user, COIN)
    yard.now_ns += HOUR_NS + 5
    yard.pay(b"later", 1)
    report = yard.close().examine()
    assert report.findings == []
    cutoffs = report.counts["cutoffs"]
    assert (cutoffs["instants coming"], cutoffs["due at the next start"]) == (3, 3)


def test_a_life_after_a_late_start_is_no_fault(data_dir: Path) -> None:
    """The exhaustion came an hour late, because nobody served; its instant is right all the same."""
    yard = Yard(data_dir, shards=1)
    yard.pay(b"a", COIN)
    yard.rate(b"a", COIN)
    yard.now_ns += 2 * HOUR_NS
    yard.restart()
    yard.wait(HOUR_NS)
    yard.pay(b"a", COIN)
    assert yard.close().examine().findings == []


def test_holds_that_expire_together_and_accounts_closed_with_their_machines_off_are_no_faults(data_dir: Path) -> None:
    """Through a snapshot of the closed account, a restart and a move."""
    yard = Yard(data_dir, trims=False)
    user = b"7"
    home = yard.worker_of(user).shard.shard_id
    yard.pay(user, 100 * COIN)
    yard.rate(user, 60 * COIN)
    for name in (b"a", b"b", b"c"):
        yard.do((ops.HOLD, user, 20 * COIN, 2 * HOUR_NS // 3, 0, b"", name, b"", b"", b""))
    yard.wait(HOUR_NS)  # 40 were left after 40 minutes, in which the three came back
    yard.wait(HOUR_NS)
    yard.report(ops.CUTOFF_STARTED, user, 1)
    yard.report(ops.CUTOFF_DELIVERED, user, 1)
    yard.rate(user, 0)
    yard.do((ops.CLOSE, user, 0, 0, 0, b"", b"", b"", b"", b""))
    yard.workers[home].snapshot()
    yard.restart()
    yard.move(bucket_id_of(user, yard.bucket_count), home, 3 - home)
    assert yard.pay(user, COIN)["restored"] is True
    yard.report(ops.RESTORE_STARTED, user, 1)
    report = yard.close().examine()
    assert report.findings == []
    assert [(owed.user_id, owed.kind, owed.seq) for owed in report.owed] == [("7", "restore", 1)]


def test_hundreds_of_owed_cutoffs_of_one_account(data_dir: Path) -> None:
    """Each line that rises from zero on an exhausted account makes one, and a snapshot holds them all."""
    yard = Yard(data_dir, shards=1, trims=False)
    yard.pay(b"7", 1)
    yard.debit(b"7", 1)
    for number in range(300):
        yard.rate(b"7", 1, b"vm-%d" % number)
    yard.workers[1].snapshot()
    yard.restart()
    report = yard.close().examine()
    assert report.findings == []
    assert report.counts["cutoffs"]["cutoffs made"] == 301
    assert report.counts["snapshots"]["parts compared"] == 8


def test_unclean_ends_are_no_faults(data_dir: Path, tmp_path: Path) -> None:
    yard = Yard(data_dir)
    busy(yard, 3, 300)
    shutil.copytree(data_dir, tmp_path / "killed")
    yard.close()
    report = examined(str(tmp_path / "killed"))
    assert report.findings == []
    assert report.counts["accounts"]["entries"] > 50


def test_the_command_says_it_in_words(data_dir: Path, tmp_path: Path) -> None:
    yard = Yard(data_dir)
    yard.pay(b"7", COIN, b"first")
    yard.rate(b"7", COIN)
    yard.wait(2 * HOUR_NS)
    yard.workers[1].snapshot()
    yard.workers[2].snapshot()
    yard.close()
    ended = command(config_of(yard, tmp_path))
    assert ended.stderr == ""
    assert ended.returncode == 0
    lines = [line for line in ended.stdout.splitlines() if "not checked: there is no" not in line]
    assert [line.split()[0] for line in lines[: len(CHECKS)]] == list(CHECKS)
    assert all(line.split()[1] in ("ok", "-") for line in lines[: len(CHECKS)])
    assert lines[-1] == "2 accounts, 5 entries, 8 buckets: no faults"


def test_the_command_says_it_in_json(data_dir: Path, tmp_path: Path) -> None:
    yard = Yard(data_dir)
    yard.pay(b"7", COIN)
    yard.close()
    report = json.loads(command(config_of(yard, tmp_path), "--json").stdout)
    assert report["faults"] == 0
    assert report["findings"] == []
    assert [check["check"] for check in report["checks"]] == list(CHECKS)
    assert report["sums"]["balances"] == COIN * 3600 * 10**9


def test_looking_changes_nothing(data_dir: Path) -> None:
    yard = Yard(data_dir)
    busy(yard, 5, 200)
    yard.close()
    before = {path: path.read_bytes() for path in sorted(Path(yard.path).rglob("*")) if path.is_file()}
    assert yard.examine().findings == []
    assert before == {path: path.read_bytes() for path in sorted(Path(yard.path).rglob("*")) if path.is_file()}


def test_a_directory_in_use_is_not_looked_at(data_dir: Path, tmp_path: Path) -> None:
    yard = Yard(data_dir)
    ended = command(config_of(yard, tmp_path))
    assert ended.returncode == 1
    assert f"a daemon runs on {yard.path}" in ended.stderr
    assert "--online proves what can be proved while it serves" in ended.stderr
    for worker in yard.workers.values():
        worker.journal.close()
    with ExitStack() as stack, pytest.raises(DaemonRuns, match="map/lock is locked"):
        hold(DISK, yard.path, stack)
    yard.close()
    assert command(config_of(yard, tmp_path)).returncode == 0


def test_nothing_starts_while_it_is_looked_at(data_dir: Path) -> None:
    yard = Yard(data_dir).close()
    with ExitStack() as stack:
        hold(DISK, yard.path, stack)
        with pytest.raises(BlockingIOError):
            DISK.lock(f"{yard.path}/map/lock")
    DISK.close(DISK.lock(f"{yard.path}/map/lock"))


def test_a_directory_without_data_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(Absent, match="holds no data"):
        hold(DISK, str(tmp_path), stack)
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{tmp_path}/nothing"\n')
    assert command(config).returncode == 78


def test_a_shard_that_never_served_is_mentioned(data_dir: Path) -> None:
    yard = Yard(data_dir)
    yard.record(["weight", 3, 1])
    report = yard.close().examine()
    assert report.findings == []
    assert "shard 3 has never served" in report.notes


def test_what_a_move_left_over_is_mentioned(data_dir: Path) -> None:
    """The source was killed between the decision and giving the bucket up; another move was never decided for."""
    yard = Yard(data_dir)
    yard.pay(b"7", COIN)
    bucket_id = 5
    assert bucket_id in yard.workers[2].shard.held
    block = yard.workers[2].machine.dump(bucket_id)
    yard.workers[1].shard.take_in(bucket_id, 2, block)
    yard.record(["assign", bucket_id, 1, 2])
    yard.workers[2].shard.take_in(1, 2, yard.workers[1].machine.dump(1))
    report = yard.close().examine()
    assert report.findings == []
    assert sum("left over from a move" in note for note in report.notes) == 2
    assert report.counts["conservation"] == {"buckets": 8, "accounts": 1}


def test_a_copy_that_was_never_decided_for_is_mentioned_though_another_target_has_its_generation(
    data_dir: Path,
) -> None:
    yard = Yard(data_dir, shards=3)
    yard.pay(b"7", COIN)
    source = next(shard for shard, worker in yard.workers.items() if 5 in worker.shard.held)
    first, second = (shard for shard in yard.workers if shard != source)
    yard.workers[first].shard.take_in(5, 2, yard.workers[source].machine.dump(5))
    yard.workers[first].commit()
    yard.workers[first].snapshot()
    yard.move(5, source, second)
    report = yard.close().examine()
    assert report.findings == []
    text = f"shard {first} has a copy of bucket 5 left over from a move"
    assert [note for note in report.notes if note.startswith(text)]


def test_a_bucket_that_left_while_a_snapshot_began_is_no_fault(data_dir: Path) -> None:
    """The snapshot is of the position before, and knows of it no more: recovery does not miss it either."""
    yard = Yard(data_dir)
    yard.pay(b"7", COIN)
    worker = yard.workers[2]
    bucket_id = min(worker.shard.held)
    yard.workers[1].shard.take_in(bucket_id, 2, worker.machine.dump(bucket_id))
    yard.workers[1].commit()
    yard.record(["assign", bucket_id, 1, 2])
    yard.workers[1].shard.activate(bucket_id, yard.now_ns)
    position = worker.journal.head
    parts = [worker.shard.dump(bucket, position) for bucket in sorted(worker.shard.held) if bucket != bucket_id]
    worker.shard.leave(bucket_id)
    worker.commit()
    worker.journal.save_snapshot(position, parts)
    assert yard.close().examine().findings == []


def test_lowered_and_raised_limits_of_request_ids_are_no_faults(data_dir: Path) -> None:
    yard = Yard(data_dir, shards=1, bucket_count=1, trims=False, rules=RULES._replace(request_ids_per_bucket=10))
    for number in range(30):
        yard.pay(b"7", 1, b"%d" % number)
    yard.workers[1].snapshot()
    yard.close()
    assert examined(yard.path, 5).findings == []
    assert examined(yard.path, 20).findings == []
    assert any("keeps at most 10 request ids a bucket" in note for note in examined(yard.path, 20).notes)


def test_a_request_id_may_come_again_after_its_week(data_dir: Path) -> None:
    yard = Yard(data_dir, shards=1)
    yard.pay(b"7", 1, b"same")
    yard.now_ns += 7 * 24 * HOUR_NS
    assert yard.pay(b"7", 2, b"same")["replayed"] is False
    yard.debit(b"7", 3, ops.FORCE)
    report = yard.close().examine()
    assert report.findings == []
    assert report.counts["requests"] == {"request ids": 2}
