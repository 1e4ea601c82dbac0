"""A client that npm's openapi-typescript generates from the daemon's own OpenAPI document plays the README's scene.

The document is asked for over HTTP, the types are generated and compiled strictly, and what comes out runs on Node.js
with openapi-fetch. `make clients` installs the three packages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outsiders.test_outsiders import CLIENTS, HERE
from tests.system.daemon import Daemon
from tests.system.ports import free_port

MODULES = CLIENTS / "node" / "node_modules"
PACKAGES = ("openapi-typescript", "openapi-fetch", "typescript")
OPTIONS = ("--strict", "--skipLibCheck", "--target", "es2022", "--module", "commonjs", "--types", "node")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    http = f"127.0.0.1:{free_port()}"
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1, http__listen=http):
        yield f"http://{http}"


def run(directory: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_client_generated_from_the_document_plays_the_scene(address: str, tmp_path: Path) -> None:
    missing = [name for name in PACKAGES if not (MODULES / name).exists()]
    if not shutil.which("node") or missing:
        pytest.skip(
            f"Node.js or {', '.join(missing) or 'its packages'} not installed: apt install nodejs npm; make clients"
        )
    (tmp_path / "node_modules").symlink_to(MODULES)
    with urllib.request.urlopen(f"{address}/v1/openapi.json", timeout=60) as answer:
        (tmp_path / "openapi.json").write_bytes(answer.read())
    shutil.copy(HERE / "openapi_client.ts", tmp_path / "client.ts")
    programs = tmp_path / "node_modules" / ".bin"
    run(tmp_path, str(programs / "openapi-typescript"), "openapi.json", "--output", "schema.ts")
    run(tmp_path, str(programs / "tsc"), *OPTIONS, "client.ts")
    replies = json.loads(run(tmp_path, "node", "client.js", address, "generated ü/1"))
    assert replies == {
        "topped_up": "5",
        "replayed": [True, "true"],
        "rate": "0.36",
        "rates": {"vm-1": "0.36"},
        "state": "active",
        "bucket": True,
        "debited": "2",
        "refused": [402, "INSUFFICIENT_FUNDS", False, "no"],
        "bare": [400, "INVALID_AMOUNT"],
        "history": ["debit", "set_rate", "top_up"],
    }
