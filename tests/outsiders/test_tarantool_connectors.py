"""Other people's Tarantool connectors, as they are, against the daemon's Tarantool door.

Each plays the scene in a process of its own, once on loopback without tokens and once signed in by CHAP-SHA1.
`make clients` installs those of PyPI and npm; net.box comes with Debian's package tarantool.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.api.iproto.protocol import proof_of
from tests.outsiders.test_outsiders import CLIENTS, HERE, HOST
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import private_file

NAME, TOKEN = "shop", "a token of the shop"
DECREASED = [
    "остаток средств: 550",
    "остаток средств: 50",
    "не достаточно средств: 50, необходимо еще: 150, операция не будет совершена.",
    "средства только что закончились",
]
SEEN = {
    "topped_up": 5 * 10**9,
    "rate": 3600,
    "debited": 2 * 10**9,
    "routed": "active",
    "increased": [],
    "decreased": DECREASED,
    "pinged": True,
}


def command_of(connector: str) -> list[str]:
    """How a connector's scene is started; skips where the connector is not installed."""
    if connector == "net.box":
        if not shutil.which("tarantool"):
            pytest.skip("Tarantool is not installed: apt install tarantool")
        return ["tarantool", str(HERE / "net_box_client.lua")]
    if connector == "tarantool-driver":
        if not shutil.which("node") or not (CLIENTS / "node" / "node_modules" / "tarantool-driver").exists():
            pytest.skip("Node.js or tarantool-driver is not installed: apt install nodejs npm; make clients")
        return ["node", str(HERE / "tarantool_driver_client.js")]
    interpreter = CLIENTS / "python" / "bin" / "python"
    packages = list((CLIENTS / "python" / "lib").glob(f"python*/site-packages/{connector}"))
    if not interpreter.exists() or not packages:
        pytest.skip(f"{connector} is not installed: make clients")
    return [str(interpreter), str(HERE / f"{connector}_client.py")]


def play(connector: str, port: int, user: str, *signed: str) -> dict[str, object]:
    result = subprocess.run(
        [*command_of(connector), HOST, str(port), user, *signed],
        env={**os.environ, "NODE_PATH": str(CLIENTS / "node" / "node_modules")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen: dict[str, object] = json.loads(result.stdout)
    return seen


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a daemon without tokens."""
    port = free_port()
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1, **{"tarantool.listen": f"{HOST}:{port}"}):
        yield port


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a daemon that asks for tokens."""
    directory: Path = tmp_path_factory.mktemp("g")
    port = free_port()
    tokens = f"{NAME}:admin:{hashlib.sha256(TOKEN.encode()).hexdigest()}:{proof_of(TOKEN.encode()).hex()}\n"
    settings = {
        "tarantool.listen": f"{HOST}:{port}",
        "rpc.tokens_file": private_file(directory / "tokens", tokens),
    }
    daemon = Daemon(directory, shards__workers=1, **settings)
    with daemon:
        yield port


CONNECTORS = ["tarantool", "asynctnt", "tarantool-driver", "net.box"]


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_connector_plays_the_scene(connector: str, free: int) -> None:
    replies = play(connector, free, connector)
    assert str(replies.pop("refused")).startswith("INSUFFICIENT_FUNDS: 9 coins asked for, 2.999999")
    assert replies == SEEN


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_connector_signs_in(connector: str, guarded: int) -> None:
    replies = play(connector, guarded, connector, NAME, TOKEN)
    replies.pop("refused")
    assert replies == SEEN


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_connector_with_a_wrong_token_does_nothing(connector: str, guarded: int) -> None:
    with pytest.raises(AssertionError, match=r"[Ii]ncorrect password|ER_PASSWORD_MISMATCH|47"):
        play(connector, guarded, f"nobody-{connector}", NAME, "another token")
