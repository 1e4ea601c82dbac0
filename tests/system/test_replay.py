"""`billing replay` on a small trace made here: against a daemon of its own, and against one that runs already."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from pathlib import Path

from tests.system.daemon import Daemon

LAST_LINE = re.compile(
    r"(\d+) users, (\d+) commands, (\d+) cutoffs expected, (\d+) received, 0 missing, 0 early, 0 false"
)
WAIT_S = 120
USERS = 40


def make_trace(path: Path, seed: int) -> int:
    """Some users with one to six machines each, in the format of the real trace; the number of machines."""
    rng = random.Random(seed)
    lines = ["start_s,user_id,vm_id,vcpus,memory_gb,duration_s"]
    starts = sorted((300 * rng.randrange(30), f"tenant-{number:06}") for number in range(USERS))
    for start_s, user in starts:
        for _ in range(rng.randrange(1, 7)):
            duration_s = "" if rng.random() < 0.1 else str(rng.randrange(1, 9000))
            memory_gb = rng.choice(("0.75", "1.75", "3.5", "14"))
            lines.append(f"{start_s},{user},vm-{len(lines):06},{rng.choice((1, 2, 8))},{memory_gb},{duration_s}")
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return len(lines) - 1


def replay(data_dir: Path, trace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """At 4500 times its speed the trace takes four seconds at most."""
    return subprocess.run(
        [sys.executable, "-m", "billing", "replay", str(trace), "--speed", "4500", *options],
        cwd=data_dir,
        env={**os.environ, "TMPDIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def judged(done: subprocess.CompletedProcess[str], machines: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    last = LAST_LINE.fullmatch(lines[-1])
    assert last is not None, done.stdout
    users, commands, expected, received = map(int, last.groups())
    assert users == USERS
    assert 2 * machines + USERS <= commands <= 2 * machines + 2 * USERS
    assert expected == received >= USERS * 3 // 10
    assert any(re.match(r"lateness of cutoffs: p50 \d+ µs, p99 \d+ µs, max \d+ µs", line) for line in lines)
    assert "replies that differ from the model: 0, final balances that differ: 0, without a usable answer: 0" in lines


def test_with_a_daemon_of_its_own(data_dir):
    trace = data_dir / "trace.csv.gz"
    machines = make_trace(trace, seed=1)
    judged(replay(data_dir, trace, "--own"), machines)
    assert list(data_dir.iterdir()) == [trace]


def test_against_a_running_daemon_twice(data_dir, free_port):
    trace = data_dir / "trace.csv.gz"
    machines = make_trace(trace, seed=2)
    receiver = f"127.0.0.1:{free_port()}"
    with Daemon(data_dir, cutoff__url=f"http://{receiver}/cutoff/{{user_id}}") as daemon:
        for _ in range(2):
            judged(replay(data_dir, trace, "--config", str(daemon.config)), machines)


def test_a_file_that_is_no_trace(data_dir):
    done = replay(data_dir, Path(__file__), "--own")
    assert done.returncode == 1
    assert Path(__file__).name in done.stderr
    assert "Traceback" not in done.stderr
