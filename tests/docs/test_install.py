"""The installation that docs/operating.md types: configuration, secret, token and unit, below another root."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import REPOSITORY, blocks

PAGE = REPOSITORY / "docs" / "operating.md"


def typed(part: str, root: Path) -> str:
    """The block of the page with this text, its directories below `root`."""
    (text,) = [block.text for block in blocks(PAGE) if part in block.text]
    for directory in ("/etc/", "/root/", "/var/lib/"):
        text = text.replace(directory, f"{root}{directory}")
    return text


def run(script: str) -> str:
    """What a script prints on standard output; each of its commands must end well."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": "/nonexistent"}
    result = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_configuration_secret_token_and_unit_are_made_as_the_page_says(tmp_path: Path) -> None:
    for directory in ("root", "var/lib", "etc/systemd/system"):
        (tmp_path / directory).mkdir(parents=True)
    printed = run(typed("mkdir -p /etc/billing", tmp_path))
    assert printed == f"{tmp_path}/etc/billing/config.toml can be run\n"
    secret, token = tmp_path / "etc/billing/cutoff.secret", tmp_path / "root/billing.token"
    assert [stat.S_IMODE(file.stat().st_mode) for file in (secret, token)] == [0o600, 0o600]
    assert len(token.read_text().split()) == 1, "the file holds the token and nothing else"
    assert token.read_text().strip() not in (tmp_path / "etc/billing/tokens").read_text()
    unit_line = typed("billing install-unit", tmp_path).splitlines()[0]
    run(unit_line)
    unit = (tmp_path / "etc/systemd/system/billing.service").read_text()
    for key, file in (("cutoff-secret_file", secret), ("rpc-tokens_file", tmp_path / "etc/billing/tokens")):
        assert f"LoadCredential={key}:{file}\n" in unit
