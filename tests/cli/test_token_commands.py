"""The tokens file as its commands change it: what they write is what the daemon's guard reads, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.api.auth import Guard
from billing.cli.main import root


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text('[rpc]\ntokens_file = "tokens"\n')
    return file


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(root, ["token", *arguments, "--config", str(config)])


def test_a_token_is_printed_once_and_signs_in(config: Path, tmp_path: Path) -> None:
    added = run(config, "add", "shop", "--role", "charge", "--role", "read")
    assert added.exit_code == 0, added.stderr
    token = added.stdout.strip()
    file = tmp_path / "tokens"
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    grant = Guard(file.read_text()).sign_in(token.encode())
    assert grant is not None
    assert (grant.name, grant.roles) == ("shop", frozenset({"charge", "read"}))
    assert "SIGHUP" in added.stderr
    assert "systemctl restart billing" in added.stderr
    as_map = json.loads(run(config, "add", "desk", "--role", "admin", "--json").stdout)
    assert (as_map["name"], as_map["roles"]) == ("desk", ["admin"])
    assert Guard(file.read_text()).sign_in(as_map["token"].encode()) is not None


def test_what_else_is_in_the_file_stays(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first = run(config, "add", "a", "--role", "read").stdout.strip()
    file.write_text(f"# ours\n\n{file.read_text()}")
    file.chmod(0o640)
    assert run(config, "add", "b", "--role", "read").exit_code == 0
    assert file.read_text().startswith("# ours\n\na:read:")
    assert file.stat().st_mode & 0o777 == 0o640
    assert run(config, "revoke", "b", "--yes").exit_code == 0
    assert [line.split(":")[0] for line in file.read_text().splitlines()] == ["# ours", "", "a"]
    assert Guard(file.read_text()).sign_in(first.encode()) is not None
    assert sorted(os.listdir(tmp_path)) == [
        "config.toml",
        "tokens",
    ]


def test_a_file_that_is_not_there_is_named_as_such(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    assert run(config, "list").stdout == f"there are no tokens in {file}, which is not there\n"
    file.write_text("# none yet\n")
    assert run(config, "list").stdout == f"there are no tokens in {file}\n"


def test_tokens_are_listed_by_name_and_role(config: Path) -> None:
    run(config, "add", "a", "--role", "read", "--role", "top_up")
    assert run(config, "list").stdout.splitlines() == ["name  roles", "a     read, top_up"]
    assert json.loads(run(config, "list", "--json").stdout) == [{"name": "a", "roles": ["read", "top_up"]}]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("add", "a", "--role", "read"), 1, "there is a token called a already"),
        (("add", "no spaces", "--role", "read"), 2, "a name has 1 to 64 letters"),
        (("add", "time", "--role", "read"), 2, "and not time, which entries name where no caller caused them"),
        (("add", "b", "--role", "king"), 2, "king"),
        (("add", "b"), 2, "--role"),
        (("revoke", "b", "--yes"), 1, "has no token called b"),
        (("revoke", "a"), 2, "--yes"),
        (("revoke", "a", "--yes"), 1, "with none nobody could sign in"),
    ],
)
def test_what_is_refused_changes_nothing(
    config: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    run(config, "add", "a", "--role", "read")
    before = (tmp_path / "tokens").read_bytes()
    refused = run(config, *arguments)
    assert (refused.exit_code, refused.stdout) == (code, "")
    assert text in refused.stderr
    assert (tmp_path / "tokens").read_bytes() == before


def test_a_configuration_without_a_tokens_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    refused = run(file, "add", "a", "--role", "read")
    assert (refused.exit_code, "names no rpc.tokens_file" in refused.stderr) == (2, True)
    named = tmp_path / "own"
    assert run(file, "add", "a", "--role", "read", "--file", str(named)).exit_code == 0
    assert named.exists()


def test_many_at_once_lose_none(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "billing", "token", "add", "--config", str(config), "--role", "read"]
    running = [
        subprocess.Popen([*command, f"t{number}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for number in range(6)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * 6
    names = {line.split(":")[0] for line in (tmp_path / "tokens").read_text().splitlines()}
    assert names == {f"t{number}" for number in range(6)}
