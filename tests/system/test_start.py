"""What a start refuses, with which exit code and in which words."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


def serve(config: Path, wait_s: float = 120) -> tuple[int, str]:
    """Runs `billing serve` to its end; (exit code, what it said)."""
    command = [sys.executable, "-m", "billing", "serve", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
    return result.returncode, result.stderr


def test_a_configuration_with_three_mistakes_names_all_three(data_dir: Path) -> None:
    config = data_dir / "config.toml"
    config.write_text('[shards]\nworkers = "two"\n[journal]\nsink = "always"\n[cutoff]\nurl = "ftp://nowhere"\n')
    code, text = serve(config)
    assert code == 78
    for path in ("shards.workers", "journal.sink", "cutoff.url"):
        assert path in text
    assert sorted(data_dir.iterdir()) == [config], "nothing was started"


@pytest.mark.parametrize("key", ["admin.listen", "rpc.listen"])
def test_a_door_that_is_not_wanted_is_left_out(data_dir: Path, key: str) -> None:
    path = data_dir / "rpc.sock"
    daemon = Daemon(data_dir, **{key: "", "rpc.unix_socket": str(path), "shards.workers": 1})
    with daemon:
        result = carried_out("ping", "--address", f"unix:{path}")
        assert result.returncode == 0, result.stderr
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


async def test_a_second_daemon_on_the_same_data_directory_is_refused(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as first:
        rpc = await Rpc.connect(first.rpc_port)
        other = Daemon(data_dir, shards__workers=1)  # ports of its own, the same directory
        code, text = serve(other.config)
        assert code == 78
        assert "another daemon" in text
        assert await rpc.ask("ping") == "pong"


def test_a_beginning_without_data_is_said_and_no_other_start(data_dir: Path) -> None:
    """Else whoever forgot to mount the volume would see an ordinary start."""
    said = "there were no data: this is a beginning without accounts"
    with Daemon(data_dir) as daemon:
        assert daemon.log.read_text().count(said) == 1
        daemon.stop()
        daemon.start()
        assert daemon.log.read_text().count(said) == 1


@pytest.mark.parametrize(
    ("is_within", "is_there"),
    [(True, True), (False, False), (False, True)],
    ids=["in a directory that was there", "beside it", "beside it, which systemd has made since"],
)
def test_no_daemon_begins_where_a_restore_was_cut_off(data_dir: Path, is_within: bool, is_there: bool) -> None:
    """It had begun anew, without accounts; under systemd by itself once the power was back."""
    daemon = Daemon(data_dir, shards__workers=1)
    data = data_dir / "data"
    work = data / "restored.unfinished" if is_within else data_dir / "data.unfinished"
    (work / "map").mkdir(parents=True)
    if is_there:
        data.mkdir(exist_ok=True)
        data.chmod(0o700)
    code, text = serve(daemon.config)
    assert code == 78
    assert f"restore again (file {work})" in text
    result = carried_out("doctor", "--config", daemon.config)
    assert (result.returncode, f"restore again (file {work})" in result.stderr) == (78, True)
    assert sorted(path.name for path in data_dir.glob("data*/*")) == [work.name if is_within else "map"]
    (work / "map").rmdir()  # everything is in its place: only the directory was not removed
    if not is_within:
        work.rmdir()
    with daemon:
        pass


async def test_another_number_of_buckets_is_refused(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__bucket_count=30, shards__workers=1)
    with daemon:
        pass
    daemon.config.write_text(daemon.config.read_text().replace("bucket_count = 30", "bucket_count = 31"))
    code, text = serve(daemon.config)
    assert code == 78
    assert "30 buckets" in text
    assert tomllib.loads(daemon.config.read_text())["shards"]["bucket_count"] == 31


async def test_a_damaged_journal_refuses_to_start_with_file_and_offset(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    daemon.start()
    rpc = await Rpc.connect(daemon.rpc_port)
    for _ in range(50):
        await rpc.ask("top_up", "user_01", 1)
    daemon.kill()
    segment = max((data_dir / "data" / "shard-1").glob("segment-*"))
    stored = bytearray(segment.read_bytes())
    offset = stored.index(b"user_01", len(stored) // 1000)
    stored[offset] ^= 1
    segment.write_bytes(stored)
    code, text = serve(daemon.config)
    assert code == 65
    assert segment.name in text
    assert "offset" in text


async def test_a_shard_restored_from_an_older_backup_is_not_served(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    backup = data_dir / "backup"
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        bucket_id = (await rpc.ask("top_up", "user_01", 5))["bucket_id"]
        daemon.stop()
        (data_dir / "data" / "shard-2").rename(backup)
        subprocess.run(["cp", "-a", str(backup), str(data_dir / "data" / "shard-2")], check=True)
        daemon.start()
        rpc = await Rpc.connect(daemon.rpc_port)
        for shard_id in (1, 2):
            error, reply = await rpc.call("move_bucket", bucket_id, shard_id)
            assert error is None or "already" in error
        assert reply["generation"] == 3
    subprocess.run(["rm", "-r", str(data_dir / "data" / "shard-2")], check=True)
    backup.rename(data_dir / "data" / "shard-2")
    daemon.process = None
    daemon.launch()
    with pytest.raises(AssertionError, match=f"bucket {bucket_id} .*older backup"):
        daemon.wait_ready(60, unless="held")
    daemon.kill()


async def test_a_shard_whose_directory_others_may_enter_is_held_with_the_reason(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    with daemon:
        daemon.stop()
        (data_dir / "data" / "shard-1").chmod(0o750)
        process = daemon.launch()
        with pytest.raises(AssertionError, match=r"shard 1: held: Unfit: .*open to other users"):
            daemon.wait_ready(60, unless="held")
        rpc = await Rpc.connect(daemon.rpc_port)
        served = refused = 0
        for number in range(1000):
            error, _ = await rpc.call("top_up", f"user_{number}", 5)
            assert error is None or error.startswith("UNAVAILABLE")
            served, refused = served + (error is None), refused + (error is not None)
            if served and refused:
                break
            await asyncio.sleep(0.02)
        assert served, "the other shard serves"
        assert refused
        assert process.poll() is None
    (data_dir / "data").chmod(0o755)
    assert serve(daemon.config)[0] == 78
