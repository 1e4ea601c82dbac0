"""Other people's MessagePack-RPC clients, as they are, against the real daemon.

Each plays the same scene in a process of its own: tops up, sets a rate, debits, meets a refusal and goes on. What it
saw it prints as one JSON object. `make clients` installs them into .clients; Neovim and Go come from Debian. A client
that is not installed is skipped, and the summary says which.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.system.daemon import Daemon

HERE = Path(__file__).parent
CLIENTS = REPOSITORY / ".clients"
GO_PATH = Path("/usr/share/gocode")
HOST = "127.0.0.1"


class ClientTask(NamedTuple):
    """Where the daemon is, as whom to play, and a folder for what the client leaves behind."""

    port: int
    user: str
    directory: Path


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1) as daemon:
        yield daemon.rpc_port


def run(command: list[str], task: ClientTask, **environment: str) -> str:
    result = subprocess.run(
        [*command, HOST, str(task.port), task.user],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def python(environment: str, script: str) -> Callable[[ClientTask], str]:
    def play(task: ClientTask) -> str:
        if environment == "python-old" and sys.version_info >= (3, 12):
            pytest.skip("msgpack-rpc-python, of 2018, loads on no Python newer than 3.11")
        interpreter = CLIENTS / environment / "bin" / "python"
        if not interpreter.exists():
            pytest.skip(f"{interpreter} is not installed: make clients")
        return run([str(interpreter), str(HERE / script)], task)

    return play


def node(script: str) -> Callable[[ClientTask], str]:
    def play(task: ClientTask) -> str:
        modules = CLIENTS / "node" / "node_modules"
        if not shutil.which("node") or not modules.exists():
            pytest.skip("Node.js or its packages are not installed: apt install nodejs npm; make clients")
        return run(["node", str(HERE / script)], task, NODE_PATH=str(modules))

    return play


def neovim(task: ClientTask) -> str:
    if not shutil.which("nvim"):
        pytest.skip("Neovim is not installed: apt install neovim")
    out = task.directory / "seen"
    subprocess.run(
        ["nvim", "--headless", "--clean", "-c", f"luafile {HERE / 'neovim_client.lua'}", "-c", "cquit"],
        env={**os.environ, "HOST": HOST, "PORT": str(task.port), "USER_ID": task.user, "OUT": str(out)},
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    return out.read_text()


def go(task: ClientTask) -> str:
    if not shutil.which("go") or not (GO_PATH / "src/github.com/ugorji/go/codec").exists():
        pytest.skip("Go or ugorji's codec is not installed: apt install golang-go golang-github-ugorji-go-codec-dev")
    surroundings = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(CLIENTS / "go-cache"), "GOFLAGS": ""}
    program = str(CLIENTS / "ugorji")  # made anew where it is older than what it is made of
    build = ["go", "build", "-o", program, str(HERE / "ugorji" / "main.go")]
    subprocess.run(build, env={**os.environ, **surroundings}, timeout=300, check=True)
    return run([program], task)


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(python("python", "aio_msgpack_rpc_client.py"), id="aio-msgpack-rpc"),
        pytest.param(python("python-old", "msgpack_rpc_python_client.py"), id="msgpack-rpc-python"),
        pytest.param(python("python", "pynvim_client.py"), id="pynvim"),
        pytest.param(node("msgpack_rpc_lite_client.js"), id="msgpack-rpc-lite"),
        pytest.param(node("msgpack_rpc_node_client.js"), id="ros2jsguy-msgpack-rpc-node"),
        pytest.param(neovim, id="neovim"),
        pytest.param(go, id="ugorji"),
    ],
)
def test_a_client_that_knows_nothing_of_us_tops_up_sets_a_rate_debits_and_is_refused(
    play: Callable[..., Any], port: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    replies = json.loads(play(ClientTask(port, request.node.callspec.id, tmp_path)))
    refused = replies.pop("refused")
    assert replies == {"topped_up": 5 * 10**9, "rate": 3600, "debited": 2 * 10**9, "state": "active"}
    assert refused.startswith("INSUFFICIENT_FUNDS: 9 coins asked for, 2.999999")
