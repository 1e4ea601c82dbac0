"""`billing demo --once` as a newcomer starts it: the real daemon, a receiver, the scene, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shards.journal.nats_cluster import BINARY, MISSING
from tests.system.ports import free_port

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 180


def children_of(pid: int) -> set[int]:
    """Process ids below one process, at any depth."""
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children |= {int(child) for child in (task / "children").read_text().split()}
    return children | {below for child in children for below in children_of(child)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture
def demo(tmp_path: Path) -> list[str]:
    """The command, on the default configuration but for its ports, which another suite may be using, and its files."""
    text = (REPOSITORY / "config.toml").read_text()
    for port in ("3311", "8080", "9311"):
        text, times = re.subn(rf"(?<=127\.0\.0\.1:){port}\b", str(free_port()), text)
        assert times == 1
    text = text.replace("segment_bytes = 67108864", "segment_bytes = 4194304")  # files are filled before they are used
    config = tmp_path / "config.toml"
    config.write_text(text)
    return [sys.executable, "-m", "billing", "demo", "--config", str(config)]


def test_the_scene_is_played_and_judged(data_dir: Path, demo: list[str]) -> None:
    result = subprocess.run(
        [*demo, "--once", "--pace", "2"],
        cwd=data_dir,
        env={**os.environ, "TMPDIR": str(data_dir), "BILLING_TOKEN": "that of another daemon"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    output = result.stdout
    assert result.returncode == 0, output + result.stderr
    for user in ("user_01", "user_02", "user_03"):
        assert f"{user} is topped up with" in output
        assert f"{user} starts a machine for 1 coin a second" in output
    assert re.search(r"user_03 is debited exactly \d+\.\d{9} coins", output)
    assert re.search(r"topped up with \d+(\.\d+)? coins: saved, no GET", output)
    restored_users = re.findall(r"GET for (user_\d\d): [\d,]+ µs after the exact instant \d\d:\d\d:\d\d\.\d{9}", output)
    assert sorted(restored_users) == ["user_01", "user_03"]
    assert output.index("http://127.0.0.1:") < output.index("user_01"), "the dashboard's address comes first"
    assert re.search(r"user_01 has run out, its rate stands: \d+\.\d{9} coins of overrun", output)
    assert "user_01: its machine is off, and whoever switched it off reports rate 0" in output
    assert output.splitlines()[-1] == "2 cutoffs expected, 2 received, 0 missing, 0 early, 0 false"
    assert list(data_dir.iterdir()) == []


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_the_scene_is_played_with_the_log_on_three_servers(data_dir: Path, demo: list[str]) -> None:
    result = subprocess.run(
        [*demo, "--once", "--pace", "2", "--cluster"],
        cwd=data_dir,
        env={**os.environ, "TMPDIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "2 cutoffs expected, 2 received, 0 missing, 0 early, 0 false"
    assert list(data_dir.iterdir()) == []


def test_ctrl_c_ends_it_and_everything_it_started(data_dir: Path, demo: list[str]) -> None:
    running = subprocess.Popen(
        demo, cwd=data_dir, env={**os.environ, "TMPDIR": str(data_dir)}, stdout=subprocess.PIPE, text=True
    )
    below: set[int] = set()
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if "starts a machine" in line:
                break
        below = children_of(running.pid)
        assert len(below) >= 4  # the receiver, the daemon's main process, two workers
        running.send_signal(signal.SIGINT)
        assert running.wait(WAIT_S) == 130
        assert alive(below) == set()
        assert list(data_dir.iterdir()) == []
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
        for pid in alive(below):
            os.kill(pid, signal.SIGKILL)
        assert running.stdout is not None
        running.stdout.close()
