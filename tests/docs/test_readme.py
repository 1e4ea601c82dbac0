"""The README's transcript, typed as it stands against a daemon that serves, and its figures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY, blocks, transcript
from tests.system.daemon import Daemon
from tests.system.ports import free_port

BILLING = Path(sys.executable).with_name("billing")


def test_every_command_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    consoles = [block.text for block in blocks(REPOSITORY / "README.md") if block.language == "console"]
    typed = [line for text in consoles for line in transcript(text)]
    assert len(typed) == 5
    with Daemon(tmp_path, shards__workers=1) as daemon:
        environment = {**os.environ, "BILLING_ADDRESS": daemon.address, "TZ": "UTC"}
        printed = []
        for line in typed:
            command, *arguments = line.split()
            assert command == ".venv/bin/billing"
            result = subprocess.run([BILLING, *arguments], env=environment, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0, (line, result.stderr)
            printed.append(result.stdout)
    answers_on_page = [part.splitlines()[1:] for text in consoles for part in text.split("$ ")[1:]]
    assert all(answers_on_page), "each command has some lines of its answer"
    for command, lines, answer in zip(typed, answers_on_page, printed, strict=True):
        assert [shape(line) for line in lines if shape(line) not in map(shape, answer.splitlines())] == [], command


def shape(line: str) -> str:
    """A line of an answer without what another run has otherwise: digits, and the room they take."""
    return " ".join(re.sub(r"[\d.:-]*\d", "0", line).split())


def test_every_figure_of_the_readme_stands_in_the_results() -> None:
    results = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    _, _, behind = (REPOSITORY / "README.md").read_text().partition("## How fast\n")
    figures = re.findall(r"\d[\d.,]*\d", behind.partition("\n## ")[0])
    assert len(figures) >= 6
    assert [figure for figure in figures if figure not in results] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_call_by_http_works_as_written(tmp_path: Path) -> None:
    texts = [block.text for block in blocks(REPOSITORY / "README.md") if block.language == "sh"]
    calls = [line for text in texts for line in text.splitlines()]
    assert len(calls) == 2
    address = f"127.0.0.1:{free_port()}"
    with Daemon(tmp_path, shards__workers=1, http__listen=address):
        answers = []
        for line in calls:
            command = shlex.split(line.replace("127.0.0.1:3312", address))
            result = subprocess.run([*command, "--silent", "--fail"], capture_output=True, timeout=120, check=True)
            answers.append(json.loads(result.stdout))
    assert [answer["user_id"] for answer in answers] == ["bob", "bob"]
    assert answers[1]["balance_nanos"] == answers[0]["balance_nanos"] == 5 * 10**9
