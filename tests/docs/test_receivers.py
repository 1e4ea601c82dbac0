"""The receivers of docs/receiving-cutoffs.md, each as it stands there, called by one daemon that signs its cutoffs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.expirationd.request import GetTemplate
from billing.expirationd.signature import parse_secrets
from tests.docs.pages import REPOSITORY, blocks
from tests.system.daemon import Daemon
from tests.system.ports import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAGE = REPOSITORY / "docs" / "receiving-cutoffs.md"
WAIT_S = 60.0


class Served:
    """One daemon for all receivers, which take turns on the port that its cutoff URL names."""

    def __init__(self, http: str, port: int) -> None:
        self.http = http
        self.port = port

    def ask(self, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        """A call over HTTP."""
        request = urllib.request.Request(
            f"http://{self.http}/v1/accounts/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return dict(json.load(answer))

    def call(self, target: str, headers: dict[str, str]) -> int:
        """The status that the receiver answers a request with."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{target}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("receivers")
    secret = place / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    port = free_port()
    url = f"http://127.0.0.1:{port}/cutoff"
    http = f"127.0.0.1:{free_port()}"
    with Daemon(place, cutoff__url=url, cutoff__secret_file=str(secret), shards__workers=1, http__listen=http):
        yield Served(http, port)


def started(language: str, place: Path) -> list[str]:
    """Writes the page's program of a language; the command that runs it."""
    (program,) = [block.text for block in blocks(PAGE) if block.language == language]
    file = place / f"receiver.{ {'python': 'py'}.get(language, language) }"
    file.write_text(program)
    if language == "python":
        return [sys.executable, str(file)]
    if language == "js":
        node = shutil.which("node")
        if node is None:
            pytest.skip("node is not installed")
        return [node, str(file)]
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run([go, "build", "-o", str(place / "receiver"), str(file)], check=True, timeout=600, env=environment)
    return [str(place / "receiver")]


def until(condition: object, process: subprocess.Popen[str]) -> None:
    """Waits until `condition()` holds."""
    assert callable(condition)
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, f"the receiver ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("language", ["python", "js", "go"])
def test_a_receiver_switches_off_once_reports_rate_0_and_takes_only_what_is_signed(language, served, tmp_path):
    command = started(language, tmp_path)
    user = f"{language} ü/1"
    path = urllib.request.quote(user, safe="")
    environment = os.environ | {
        "PORT": str(served.port),
        "CUTOFF_SECRET": SECRET,
        "BILLING": f"http://{served.http}",
    }
    output = tmp_path / "output"
    with output.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, text=True)
    try:

        def listens() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", served.port)) == 0

        until(listens, process)
        served.ask(f"{path}/top_up", {"amount": "1"})
        for line in ("vm-1", "disk/ü"):
            served.ask(f"{path}/set_rate", {"rate": "0.000001", "resource": line})
        served.ask(f"{path}/debit", {"amount": "1", "mode": "partial"})

        def is_done() -> bool:
            account = served.ask(path)
            cutoff = account["cutoff"]
            return isinstance(cutoff, dict) and cutoff["status"] in ("delivered", "effective")

        until(is_done, process)
        account = served.ask(path)
        assert account["state"] == "exhausted"
        assert account["rate_nanos_per_hour"] == 0
        assert account["rates_nanos_per_hour"] == {}
        assert output.read_text() == f"off {user}\n"

        template = GetTemplate(f"http://127.0.0.1:{served.port}/cutoff", parse_secrets(SECRET))
        head = template.request(user.encode(), "again", 1, 1_700_000_000 * 10**9, int(time.time())).decode()
        first, *rest = head.rstrip().split("\r\n")
        target = first.split(" ")[1]
        headers = dict(line.split(": ", 1) for line in rest)
        assert served.call(target, headers) == 204, "a call that was acted on is answered, and nothing is done"
        changed = target.replace("seq=1", "seq=2")
        assert changed != target
        assert served.call(changed, headers) == 401
        assert served.call(target, {name: value for name, value in headers.items() if "signature" not in name}) == 401
        head = template.request(user.encode(), "old", 9, 1_700_000_000 * 10**9, int(time.time()) - 3600).decode()
        first, *rest = head.rstrip().split("\r\n")
        assert served.call(first.split(" ")[1], dict(line.split(": ", 1) for line in rest)) == 401
        assert output.read_text() == f"off {user}\n"
    finally:
        process.kill()
        process.wait()
