"""The README's transcript, typed as it stands against a daemon that serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import REPOSITORY, blocks, transcript
from tests.system.daemon import Daemon

BILLING = Path(sys.executable).with_name("billing")


def test_every_command_of_the_readme_runs_as_written(tmp_path):
    consoles = [block.text for block in blocks(REPOSITORY / "README.md") if block.language == "console"]
    typed = [line for text in consoles for line in transcript(text)]
    assert len(typed) == 5
    with Daemon(tmp_path) as daemon:
        environment = {**os.environ, "BILLING_ADDRESS": daemon.address}
        printed = []
        for line in typed:
            command, *arguments = line.split()
            assert command == ".venv/bin/billing"
            ended = subprocess.run([BILLING, *arguments], env=environment, capture_output=True, text=True, timeout=120)
            assert ended.returncode == 0, (line, ended.stderr)
            printed.append(ended.stdout)
    assert "alice" in printed[0]
    assert "vm-1" in printed[2]
    assert "top_up" in printed[4] or "top-up" in printed[4]
