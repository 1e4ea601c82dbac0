"""`billing rebuild` on real data directories: what is gone is made again, a loss needs the word for it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.backup.rebuild import rebuild
from billing.cli.main import root
from billing.follower.store import SIDES, Unopened, check_opens, code_of, connect, file_of
from billing.history.tables import KIND
from shards.exits import Exit
from tests.doctor.builder import COIN, DataDirectoryBuilder
from tests.doctor.story import USER

NOBODY = 65_534


def configured(data_dir: Path, tmp_path: Path) -> Path:
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}"\n')
    return config


def run(data_dir: Path, tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(rebuild, ["--config", str(configured(data_dir, tmp_path)), *options])


def test_a_history_that_is_gone_is_made_again_of_the_journal(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=2, history=True)
    for number in range(1, 30):
        builder.pay(USER, number)
    builder.close()
    for path in (data_dir / "history").iterdir():
        path.unlink()
    result = run(data_dir, tmp_path)
    assert result.exit_code == 0, result.output
    assert "shard-1: history: whole up to batch" in result.output
    assert "shard-2: history: whole up to batch" in result.output
    report = builder.examine()
    assert report.findings == []
    assert report.counts["history"]["rows compared"] == 29


def test_a_backup_brings_the_histories_of_drained_shards_to_a_host_that_never_had_them(
    data_dir: Path, tmp_path: Path
) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=2, history=True)
    builder.pay(USER, COIN)
    builder.close()
    backup = tmp_path / "backup"
    shutil.copytree(data_dir / "history", backup / "history")
    shutil.rmtree(data_dir / "history")
    shutil.rmtree(data_dir / "shard-2")
    result = run(data_dir, tmp_path, "--from-backup", str(backup))
    assert result.exit_code == 0, result.output
    assert "shard-2: history: made again from" in result.output
    (bytes_before,) = [path.stat().st_size for path in (data_dir / "history").glob("shard-2.sqlite")]
    again = run(data_dir, tmp_path, "--from-backup", str(backup))
    assert "shard-2" not in again.output, "what is there stays"
    assert (data_dir / "history" / "shard-2.sqlite").stat().st_size == bytes_before


def test_it_is_a_command_of_history_too_but_for_a_user_of_that_name(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    builder.close()
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}"\n')
    rebuilt = CliRunner().invoke(root, ["history", "rebuild", "--shard", "1", "--config", str(config)])
    assert rebuilt.exit_code == 0, rebuilt.output
    assert "shard-1: history: whole up to batch" in rebuilt.output
    asked_of_user = CliRunner().invoke(root, ["history", "--address", "127.0.0.1:1", "--", "rebuild"])
    assert asked_of_user.exit_code == 3, "nobody listens there, who could be asked"


def test_a_history_ahead_of_its_journal_is_cut_back_only_with_the_word_for_it(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    shutil.copytree(data_dir / "shard-1", tmp_path / "before")
    builder.pay(USER, COIN)
    builder.close()
    shutil.rmtree(data_dir / "shard-1")
    shutil.copytree(tmp_path / "before", data_dir / "shard-1")
    refused = run(data_dir, tmp_path)
    assert refused.exit_code == 65
    assert "goes up to batch 3, its journal only up to 2" in refused.output
    accepted = run(data_dir, tmp_path, "--accept-loss")
    assert accepted.exit_code == 0, accepted.output
    assert "it was cut back to batch" in accepted.output
    assert builder.examine().findings == []
    evidence = sqlite3.connect(data_dir / "history" / "ahead-1-shard-1.sqlite")
    assert evidence.execute("SELECT position FROM about").fetchone() == (3,)
    evidence.close()


def test_nothing_is_touched_while_a_daemon_runs(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    result = run(data_dir, tmp_path)
    assert result.exit_code == 1
    assert "a daemon runs on" in result.output
    builder.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_root_rebuilds_belongs_to_the_owner_of_the_data(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    builder.close()
    for path in (data_dir / "history").iterdir():
        path.unlink()
    for path in (data_dir, *data_dir.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    rebuilt = run(data_dir, tmp_path)
    assert rebuilt.exit_code == 0, rebuilt.output
    assert [path.name for path in (data_dir / "history").iterdir()] == ["shard-1.sqlite"]
    assert {path.stat().st_uid for path in (data_dir, *data_dir.rglob("*"))} == {NOBODY}


def test_a_place_that_cannot_be_used_is_no_bug_and_no_failed_disk(data_dir: Path, tmp_path: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.pay(USER, COIN)
    builder.close()
    (data_dir / "history").chmod(0o755)
    result = run(data_dir, tmp_path)
    assert result.exit_code == 78
    assert f"{data_dir}/history is open to other users (mode 0755); it must be 0700" in result.output
    lock = data_dir / "map" / "lock"
    lock.unlink()
    lock.mkdir()
    result = run(data_dir, tmp_path)
    assert result.exit_code == 78
    assert result.output == f"billing: {lock}: Is a directory\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_file_of_another_user_is_named_as_such(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1, history=True)
    builder.close()
    path = file_of(f"{data_dir}/history", 1)
    os.chown(data_dir, NOBODY, NOBODY)
    os.chown(data_dir / "history", NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(Unopened, match=f"^{path}: Permission denied$") as refused:
            connect(path, KIND, write=True)
    finally:
        os.seteuid(0)
    assert code_of(refused.value) == Exit.CONFIG


def test_a_file_that_is_busy_stays_locked(tmp_path: Path) -> None:
    path = str(tmp_path / "history.db")
    own = sqlite3.connect(path, isolation_level=None)
    own.execute("PRAGMA journal_mode = WAL")
    own.execute("CREATE TABLE rows (seq INTEGER)")
    own.execute("BEGIN IMMEDIATE")
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    with pytest.raises(sqlite3.OperationalError) as busy:
        other.execute("BEGIN IMMEDIATE")
    check_opens(busy.value, [path, *(path + side for side in SIDES)], write=True)
    begin = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    process = subprocess.run([sys.executable, "-c", begin, path], capture_output=True, text=True, check=False)
    assert process.stderr.endswith("database is locked\n")
    other.close()
    own.close()
