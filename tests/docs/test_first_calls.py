"""What the pages have somebody type first: calls from a shell, Node.js and Go, and a signed cutoff that is verified."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY, blocks, transcript
from tests.system.daemon import Daemon
from tests.system.ports import free_port

CALLING = REPOSITORY / "docs" / "calling.md"
RECEIVING = REPOSITORY / "docs" / "receiving-cutoffs.md"
WAIT_S = 120.0


class DaemonWithAddresses:
    """A daemon, and its three addresses: those of the pages stand for them in what is typed."""

    def __init__(self, directory: Path) -> None:
        self.http, self.receiver_port = f"127.0.0.1:{free_port()}", free_port()
        self.secret = directory / "cutoff.secret"
        openssl_commands = transcript(self.console_with("openssl"))[0]
        subprocess.run(["bash", "-c", openssl_commands], cwd=directory, check=True, timeout=WAIT_S)
        self.daemon = Daemon(
            directory,
            shards__workers=1,
            http__listen=self.http,
            cutoff__url=f"http://127.0.0.1:{self.receiver_port}/cutoff?user_id={{user_id}}",
        )
        (typed,) = transcript(self.console_with("billing serve"))
        setting, _ = typed.split(" ", 1)
        name, _, value = setting.partition("=")
        assert value == self.secret.name
        self.daemon.environment[name] = str(self.secret)
        self.daemon.start()

    @staticmethod
    def console_with(wanted: str) -> str:
        """The console block of docs/receiving-cutoffs.md's last section that types this."""
        consoles = [block.text for block in blocks(RECEIVING) if block.language == "console"]
        return next(text for text in reversed(consoles) if wanted in text)

    def here(self, text: str) -> str:
        """A text of the pages with this daemon's addresses and this environment's programs."""
        for there, here in (
            ("127.0.0.1:3312", self.http),
            ("/127.0.0.1/3311", f"/127.0.0.1/{self.daemon.rpc_port}"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.receiver_port}"),
            ("PORT=8080", f"PORT={self.receiver_port}"),
            (".venv/bin/", f"{Path(sys.executable).parent}/"),
            ("cat cutoff.secret", f"cat {self.secret}"),
        ):
            text = text.replace(there, here)
        return text

    @property
    def environment(self) -> dict[str, str]:
        """What the typed programs find the daemon by."""
        return os.environ | {"BILLING_ADDRESS": self.daemon.address, "BILLING": f"http://{self.http}"}

    def ask(self, user: str) -> dict[str, object]:
        """An account, over HTTP."""
        with urllib.request.urlopen(f"http://{self.http}/v1/accounts/{user}", timeout=WAIT_S) as answer:
            return dict(json.load(answer))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonWithAddresses]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    started = DaemonWithAddresses(tmp_path_factory.mktemp("first"))
    try:
        yield started
    finally:
        started.daemon.stop()


def program(language: str, part: str) -> str:
    """The block of docs/calling.md in this language that has this text."""
    (program_text,) = [block.text for block in blocks(CALLING) if block.language == language and part in block.text]
    return program_text


def run(command: list[str], served: DaemonWithAddresses, cwd: Path = REPOSITORY) -> str:
    """What a program prints; it must end well."""
    result = subprocess.run(
        command, cwd=cwd, env=served.environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_call_in_bytes_is_made_with_nothing_but_bash(served: DaemonWithAddresses) -> None:
    printed = run(["bash", "-c", served.here(program("bash", "/dev/tcp"))], served)
    assert printed.split() == ["94", "01", "01", "c0"]
    assert served.ask("user_01")["balance"] == "5"


def test_the_first_call_from_node_is_harmless_to_repeat(served: DaemonWithAddresses, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    file = tmp_path / "call.js"
    file.write_text(served.here(program("js", "fetch")))
    assert [run(["node", str(file)], served) for _ in range(2)] == ["bob 5\n", "bob 5\n"]


def test_the_first_call_from_go_is_harmless_to_repeat(served: DaemonWithAddresses, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    file = tmp_path / "call.go"
    file.write_text(served.here(program("go", "top_up")))
    run(["go", "build", "-o", str(tmp_path / "call"), str(file)], served)
    assert [run([str(tmp_path / "call")], served) for _ in range(2)] == ["carol 5\n", "carol 5\n"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_signed_cutoff_arrives_as_the_page_says(served: DaemonWithAddresses, tmp_path: Path) -> None:
    receiver = transcript(served.console_with("aiohttp_receiver.py"))[1]
    output = tmp_path / "output"
    with output.open("w") as written:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {served.here(receiver)}"],
            cwd=REPOSITORY,
            env=served.environment | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY)},
            stdout=written,
            stderr=written,
        )
    try:
        until(lambda: listens(served.receiver_port), process, output)
        *calls, forged = transcript(served.console_with("billing top-up dora"))
        for call in calls:
            run(["bash", "-c", served.here(call)], served)
        until(lambda: "off dora" in output.read_text().splitlines(), process, output)
        until(lambda: served.ask("dora")["rates_nanos_per_hour"] == {}, process, output)
        assert run(["bash", "-c", served.here(forged)], served).strip() == "401"
        assert output.read_text().splitlines().count("off dora") == 1
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    """Waits until it holds, while the receiver runs."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
