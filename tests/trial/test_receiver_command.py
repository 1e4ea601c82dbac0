"""`billing receiver`: it says where it listens, shows each call, and sums up when it is told to stop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from billing.cli.main import root

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a receiver with these options; gives the process and its URL."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*options: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "billing", "receiver", "--listen", "127.0.0.1:0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip().removeprefix("listening on ")

    yield start_one
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_it_shows_each_call_and_sums_up(start: Start, tmp_path: Path) -> None:
    process, url = start("--log", str(tmp_path / "calls.jsonl"))
    with urlopen(f"{url}/cutoff?user_id=a&event_id=a:1:5&seq=1&exhausted_at_ns=5", timeout=60) as answer:
        assert answer.status == 200
    process.terminate()
    output, _ = process.communicate(timeout=60)
    call, last = output.splitlines()
    assert call.split()[:5] == ["GET", "/cutoff", "a", "seq", "1"]
    assert json.loads(last)["received"] == 1
    assert process.returncode == 0
    (logged,) = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert json.loads(logged)["event_id"] == "a:1:5"


def test_it_misbehaves_as_told(start: Start) -> None:
    _, url = start("--fault", "status=503", "--quiet")
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{url}/cutoff", timeout=60)
    assert caught.value.code == 503
    caught.value.close()


@pytest.mark.parametrize(
    "options", [("--listen", "nowhere"), ("--fault", "nonsense"), ("--fault-share", "2"), ("--secret-file", "/none")]
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(root, ["receiver", *options])
    assert result.exit_code == 2
    assert "Invalid value" in result.output
