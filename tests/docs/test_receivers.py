"""The receivers of examples/receivers, called by one daemon that signs what it sends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from billing.client.receiver import Receiver
from billing.expirationd.request import GetTemplate, PostTemplate
from billing.ledger.entry import event_id
from billing.signature import parse_secrets
from tests.docs.pages import REPOSITORY
from tests.shards.journal.proxy import Proxy
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import private_file, tokens_file

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PROGRAMS = REPOSITORY / "examples" / "receivers"
WAIT_S = 60.0
TOKEN = "receivers-token"
E_NS = 1_700_000_000 * 10**9


class DaemonWithReceivers:
    """One daemon for all receivers, which take turns on the port that its URLs name."""

    def __init__(self, http: str, rpc: str, port: int) -> None:
        self.http = http
        self.rpc = rpc
        self.port = port

    def ask(self, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        """A call over HTTP."""
        request = urllib.request.Request(
            f"http://{self.http}/v1/accounts/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return dict(json.load(answer))

    def call(self, target: str, headers: dict[str, str], body: bytes = b"") -> int:
        """The status that the receiver answers a request with."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{target}", body or None, headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonWithReceivers]:
    directory = tmp_path_factory.mktemp("receivers")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "cutoff.url": f"{url}/cutoff",
        "cutoff.restore_url": f"{url}/restore",
        "cutoff.secret_file": private_file(directory / "secret", SECRET),
        "notify.url": f"{url}/notices",
        "rpc.tokens_file": tokens_file(directory / "tokens", ("receiver", "read,charge,top_up", TOKEN)),
        "http.listen": f"127.0.0.1:{free_port()}",
    }
    with Daemon(directory, shards__workers=1, **settings) as daemon:
        yield DaemonWithReceivers(settings["http.listen"], daemon.address, port)


def of_python(name: str) -> Callable[[Path], list[str]]:
    return lambda directory: [sys.executable, str(PROGRAMS / name)]


def of_node(directory: Path) -> list[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    return [node, str(PROGRAMS / "receiver.js")]


def of_go(directory: Path) -> list[str]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    command = [go, "build", "-o", str(directory / "receiver"), str(PROGRAMS / "receiver.go")]
    subprocess.run(command, check=True, timeout=600, env=environment)
    return [str(directory / "receiver")]


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until `condition()` holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process is None or process.poll() is None, f"the receiver ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def request_of(
    template: GetTemplate | PostTemplate, user: str, seq: int, more: str = "", age_s: int = 0, e_ns: int = E_NS
) -> tuple[str, dict[str, str], bytes]:
    """(target, headers, body) of a call that is signed `age_s` ago; `more`: behind its event_id."""
    name = event_id(user.encode(), seq, e_ns) + more
    raw = template.request(user.encode(), name, seq, e_ns, int(time.time()) - age_s)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return first.split(" ")[1], dict(line.split(": ", 1) for line in rest), body


def switched(output: Path, user: str) -> list[str]:
    """What a receiver that writes there has switched for a user."""
    return [line for line in output.read_text().splitlines() if line in (f"off {user}", f"on {user}")]


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


OF_ALL = pytest.mark.parametrize(
    ("command_of", "name"),
    [
        pytest.param(of_python("aiohttp_receiver.py"), "aiohttp", id="aiohttp"),
        pytest.param(of_python("flask_receiver.py"), "flask", id="flask"),
        pytest.param(of_node, "node", id="node"),
        pytest.param(of_go, "go", id="go"),
    ],
)


@OF_ALL
def test_a_receiver_may_be_there_before_the_daemon_and_asks_to_be_called_again(
    command_of: Callable[[Path], list[str]], name: str, tmp_path: Path
) -> None:
    command, port, nobody = command_of(tmp_path), free_port(), f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "PORT": str(port),
        "CUTOFF_SECRET": SECRET,
        "BILLING": f"http://{nobody}",
        "BILLING_ADDRESS": nobody,
        "PYTHONPATH": str(REPOSITORY),
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, text=True)
    try:
        until(lambda: listens(port), process)
        template = GetTemplate(f"http://127.0.0.1:{port}/cutoff", parse_secrets(SECRET))
        target, headers, _ = request_of(template, name, 1)
        assert DaemonWithReceivers(nobody, nobody, port).call(target, headers) == 503
        assert DaemonWithReceivers(nobody, nobody, port).call(target, {}) == 401
    finally:
        process.kill()
        process.wait()


@OF_ALL
def test_a_receiver_asks_to_be_called_again_where_the_daemon_is_silent(
    command_of: Callable[[Path], list[str]], name: str, tmp_path: Path
) -> None:
    command, port = command_of(tmp_path), free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {
            "PORT": str(port),
            "CUTOFF_SECRET": SECRET,
            "BILLING": f"http://{address}",
            "BILLING_ADDRESS": address,
            "PYTHONPATH": str(REPOSITORY),
        }
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, text=True)
        try:
            until(lambda: listens(port), process)
            template = GetTemplate(f"http://127.0.0.1:{port}/cutoff", parse_secrets(SECRET))
            target, headers, _ = request_of(template, name, 1)
            assert DaemonWithReceivers(address, address, port).call(target, headers) == 503
        finally:
            process.kill()
            process.wait()


@OF_ALL
def test_a_restore_waits_for_the_cutoff_that_is_still_at_work(
    command_of: Callable[[Path], list[str]], name: str, served: DaemonWithReceivers, tmp_path: Path
) -> None:
    """The daemon has given the cutoff up, and calls the restore: its rates must not be reported as 0 behind that."""
    command, port, user = command_of(tmp_path), free_port(), f"{name} slow"
    path = urllib.parse.quote(user)
    served.ask(f"{path}/top_up", {"amount": "1"})
    served.ask(f"{path}/set_rate", {"rate": "0.000001", "resource": "vm-1"})
    may_answer = threading.Event()

    def held_back(data: bytes) -> list[bytes]:
        may_answer.wait(WAIT_S)
        return [data]

    proxies = [Proxy(int(address.rpartition(":")[2])) for address in (served.http, served.rpc)]
    environment = os.environ | {
        "PORT": str(port),
        "BILLING_TOKEN": TOKEN,
        "CUTOFF_SECRET": SECRET,
        "BILLING": f"http://127.0.0.1:{proxies[0].port}",
        "BILLING_ADDRESS": f"127.0.0.1:{proxies[1].port}",
        "PYTHONPATH": str(REPOSITORY),
    }
    output = tmp_path / "output"
    with output.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, text=True)
    answers: list[int] = []

    def call(more: str) -> threading.Thread:
        request = request_of(GetTemplate(f"http://127.0.0.1:{port}/cutoff", parse_secrets(SECRET)), user, 1, more)
        receiver = DaemonWithReceivers(served.http, served.rpc, port)
        thread = threading.Thread(target=lambda: answers.append(receiver.call(*request)))
        thread.start()
        return thread

    try:
        until(lambda: listens(port), process)
        for proxy in proxies:
            proxy.answers = held_back
        cutoff = call("")
        until(lambda: switched(output, user) == [f"off {user}"], process)
        restore = call(":restore")
        restore.join(0.5)
        assert restore.is_alive(), "it is not acted on before the cutoff"
        may_answer.set()
        for thread in (cutoff, restore):
            thread.join(WAIT_S)
        assert answers == [204, 204]
        assert switched(output, user) == [f"off {user}", f"on {user}"]
        assert served.ask(path)["rates_nanos_per_hour"] == {}
    finally:
        may_answer.set()
        process.kill()
        process.wait()
        for proxy in proxies:
            proxy.close()


@OF_ALL
def test_a_receiver_acts_once_on_what_is_newest_reports_rate_0_and_takes_only_what_is_signed(
    command_of: Callable[[Path], list[str]], name: str, served: DaemonWithReceivers, tmp_path: Path
) -> None:
    command = command_of(tmp_path)
    user = f"{name} ü/1"
    path = urllib.parse.quote(user, safe="")
    environment = os.environ | {
        "PORT": str(served.port),
        "BILLING_TOKEN": TOKEN,
        "CUTOFF_SECRET": SECRET,
        "BILLING": f"http://{served.http}",
        "BILLING_ADDRESS": served.rpc,
        "PYTHONPATH": str(REPOSITORY),
    }
    output = tmp_path / "output"
    with output.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, text=True)

    def has_no_rate(of_user: str) -> bool:
        return bool(served.ask(of_user)["rates_nanos_per_hour"] == {})

    def is_delivered() -> bool:
        cutoff = served.ask(path)["cutoff"]
        return isinstance(cutoff, dict) and cutoff["status"] in ("delivered", "effective")

    try:
        until(lambda: listens(served.port), process)
        for steps in (".", ".."):  # no URL has these user ids: they are taken for steps of its path
            served.ask(f"{steps}/top_up", {"amount": "1"})
            served.ask(f"{steps}/set_rate", {"rate": "0.000001", "resource": name})
            served.ask(f"{steps}/debit", {"amount": "1", "mode": "partial"})
            until(partial(has_no_rate, steps), process)
        served.ask(f"{path}/top_up", {"amount": "1"})
        for line in ("vm-1", "disk/ü"):
            served.ask(f"{path}/set_rate", {"rate": "0.000001", "resource": line})
        served.ask(f"{path}/debit", {"amount": "1", "mode": "partial"})
        until(is_delivered, process)
        account = served.ask(path)
        assert account["state"] == "exhausted"
        assert account["rate_nanos_per_hour"] == 0
        assert account["rates_nanos_per_hour"] == {}
        assert switched(output, user) == [f"off {user}"]

        get = GetTemplate(f"http://127.0.0.1:{served.port}/cutoff", parse_secrets(SECRET))
        target, headers, _ = request_of(get, user, 1)
        assert served.call(target, headers) == 204, "a call that was acted on is answered, and nothing is done"
        changed = target.replace("seq=1", "seq=2")
        assert changed != target
        assert served.call(changed, headers) == 401
        assert served.call(target, {key: value for key, value in headers.items() if "signature" not in key}) == 401
        assert served.call(*request_of(get, user, 9, age_s=3600)) == 401
        assert switched(output, user) == [f"off {user}"]

        served.ask(f"{path}/top_up", {"amount": "1"})
        until(lambda: switched(output, user) == [f"off {user}", f"on {user}"], process)
        post = PostTemplate(f"http://127.0.0.1:{served.port}/restore", parse_secrets(SECRET))
        assert served.call(target, headers) == 204, "the cutoff comes again behind its restore"
        assert served.call(*request_of(post, user, 1, ":restore")) == 204
        assert switched(output, user) == [f"off {user}", f"on {user}"]
        target, headers, body = request_of(post, user, 7)
        assert served.call(target, headers, body.replace(b'"seq":7', b'"seq":8')) == 401
        assert served.call(target, headers, body) == 204
        assert switched(output, user) == [f"off {user}", f"on {user}", f"off {user}"], "a newer cutoff, as a POST"
        after_restore = request_of(get, user, 1, e_ns=time.time_ns())  # of a daemon whose numbers begin earlier again
        assert served.call(*after_restore) == 204
        assert served.call(*after_restore) == 204
        assert switched(output, user) == [f"off {user}", f"on {user}", f"off {user}", f"off {user}"]

        kinds = ["account.topped_up", "account.debited", "account.exhausted", "account.topped_up", "account.restored"]
        of_user = [f"notice {kind} {user}" for kind in kinds]

        def noticed() -> list[str]:
            return [line for line in output.read_text().splitlines() if line.startswith("notice") and user in line]

        until(lambda: len(noticed()) >= len(of_user), process)
        assert noticed() == of_user
        assert served.call("/notices", headers, body.replace(b'"seq":7', b'"seq":8')) == 401
    finally:
        process.kill()
        process.wait()


def test_the_reference_library_verifies_every_notice_of_the_daemon(served: DaemonWithReceivers) -> None:
    came: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """A request is no news here."""

    server = HTTPServer(("127.0.0.1", served.port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        served.ask("oracle%20%C3%BC/top_up", {"amount": "5", "message": "für dich"})
        served.ask("oracle%20%C3%BC/debit", {"amount": "2"})

        def kinds() -> list[str]:
            bodies = [json.loads(body) for _, body in came]
            return [body["type"] for body in bodies if body["data"]["user_id"] == "oracle ü"]

        until(lambda: len(kinds()) >= 2)
        assert list(dict.fromkeys(kinds())) == ["account.topped_up", "account.debited"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    receiver = Receiver(SECRET)
    for headers, body in came:
        verified = Webhook(SECRET).verify(body, headers)
        notice = receiver.notice(headers, body, now_s=time.time())
        assert verified == {"type": notice.type, "timestamp": notice.timestamp, "data": notice.data}
