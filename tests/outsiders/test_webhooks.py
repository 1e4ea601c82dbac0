"""Cutoffs and restores as POSTs, against the reference libraries of Standard Webhooks: PyPI's and npm's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.expirationd.request import PostTemplate
from billing.signature import parse_secrets
from shards.system.clock import MACHINE_CLOCKS
from tests.conftest import REPOSITORY

Library = Callable[[str], str]

HERE = Path(__file__).parent
PYTHON = REPOSITORY / ".clients" / "python" / "bin" / "python"
NODE = REPOSITORY / ".clients" / "node" / "node_modules"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"
E_NS = 1_700_000_000_123_456_789


def by_python(calls_json: str) -> str:
    """What PyPI's library makes of it."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not installed: make clients")
    return run([str(PYTHON), str(HERE / "verify_webhook.py")], calls_json)


def by_node(calls_json: str) -> str:
    """What npm's library makes of it."""
    if not shutil.which("node") or not (NODE / "standardwebhooks").exists():
        pytest.skip("Node.js or its standardwebhooks is not installed: apt install nodejs npm; make clients")
    return run(["node", str(HERE / "verify_webhook.js")], calls_json)


def run(command: list[str], calls_json: str) -> str:
    environment = {**os.environ, "NODE_PATH": str(NODE)}
    result = subprocess.run(
        command, input=calls_json, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    if "ModuleNotFoundError" in result.stderr:
        pytest.skip("standardwebhooks is not installed: make clients")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(params=[by_python, by_node])
def library(request: pytest.FixtureRequest) -> Library:
    """One of the libraries."""
    chosen: Library = request.param
    return chosen


def verified(library: Library, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the library makes of them: the JSON it verified, or its complaint."""
    outcomes = json.loads(library(json.dumps({"secret": SECRET, "calls": calls})))
    return [json.loads(outcome) if isinstance(outcome, str) else outcome for outcome in outcomes]


def call(user: str, secrets: tuple[bytes, ...], timestamp_s: int) -> dict[str, Any]:
    """One request as the library wants it: headers and body."""
    template = PostTemplate("https://cloud.example/off/{user_id}?zone=3", secrets)
    request = template.request(user.encode(), f"{user}:7:{E_NS}", 7, E_NS, timestamp_s)
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert int(headers["content-length"]) == len(body)
    return {"headers": headers, "body": body.decode()}


def test_the_reference_library_verifies_what_is_posted_and_refuses_what_was_changed_or_is_old(
    library: Library,
) -> None:
    now_s = MACHINE_CLOCKS.wall_ns() // 10**9
    secrets = parse_secrets(SECRET)
    users = ["u1", "üser/1", "a b&c=d", "名前"]
    good = [call(user, secrets, now_s) for user in users]
    both = call("u1", parse_secrets(f"{OLDER}\n{SECRET}"), now_s)
    changed = call("u1", secrets, now_s)
    changed["body"] = changed["body"].replace("u1", "u2")
    old = call("u1", secrets, now_s - 3600)
    outcomes = verified(library, [*good, both, changed, old])
    assert outcomes[: len(users)] == [
        {"user_id": user, "event_id": f"{user}:7:{E_NS}", "seq": 7, "exhausted_at_ns": E_NS} for user in users
    ]
    assert outcomes[len(users)]["user_id"] == "u1"
    assert [list(complaint) for complaint in outcomes[len(users) + 1 :]] == [["complaint"]] * 2
