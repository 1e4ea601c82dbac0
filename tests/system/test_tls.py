"""TLS in front of the real daemon: 1.3 only, the client's certificate is its name, and a stranger gets nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from billing.client import BillingError, Client
from billing.client.connection import tls_context
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import pem_file, tokens_file


class GuardedDaemon(NamedTuple):
    daemon: Daemon
    ca: str  # whom clients believe
    metering: str  # certificate and key of a client that may charge
    nameless: str  # of one whose name is in no line of the tokens file
    stranger: str  # of one that another authority signed


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedDaemon]:
    directory = tmp_path_factory.mktemp("d")
    authority, others = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    people = {
        "metering": authority.issue_cert(common_name="metering"),
        "nameless": authority.issue_cert(common_name="nameless"),
        "stranger": others.issue_cert(common_name="metering"),
    }
    pems = {
        name: pem_file(directory / f"{name}.pem", certificate.private_key_pem, *certificate.cert_chain_pems)
        for name, certificate in people.items()
    }
    ca = pem_file(directory / "ca.pem", authority.cert_pem)
    with Daemon(
        directory,
        rpc__tls_cert=pem_file(directory / "server.pem", *server.cert_chain_pems),
        rpc__tls_key=pem_file(directory / "server.key", server.private_key_pem),
        rpc__tls_client_ca=ca,
        rpc__tokens_file=tokens_file(directory / "tokens", ("metering", "charge,top_up", "m"), ("root", "admin", "r")),
        http__listen=f"127.0.0.1:{free_port()}",
    ) as daemon:
        yield GuardedDaemon(daemon, ca, pems["metering"], pems["nameless"], pems["stranger"])


async def test_a_certificate_in_the_tokens_file_has_the_roles_of_its_line(guarded: GuardedDaemon) -> None:
    async with Client(guarded.daemon.address, tls=tls_context(guarded.ca, guarded.metering)) as client:
        assert (await client.top_up("u", "5"))["balance_nanos"] == 5 * 10**9
        assert (await client.debit("u", "1"))["debited_nanos"] == 10**9
        with pytest.raises(BillingError, match="needs the role admin") as caught:
            await client.call("adjust", "u", 5, "why")
        assert caught.value.name == "FORBIDDEN"


def ask(guarded: GuardedDaemon, certificate: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """(status, JSON) of one HTTP request made with a certificate."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"https://{guarded.daemon.address_of('http.listen')}{path}",
        content,
        {"Content-Type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=60, context=tls_context(guarded.ca, certificate)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_over_http_a_certificate_has_the_roles_of_its_line_too(guarded: GuardedDaemon) -> None:
    status, reply = ask(guarded, guarded.metering, "/v1/accounts/web/top_up", {"amount": "5"})
    assert (status, reply["balance"]) == (200, "5")
    status, reply = ask(guarded, guarded.metering, "/v1/accounts/web/adjust", {"amount": "1", "reason": "why"})
    assert (status, reply["name"]) == (403, "FORBIDDEN")
    status, reply = ask(
        guarded, guarded.metering, "/v1/accounts/web/top_up", {"amount": "5"}, Origin="https://evil.example"
    )
    assert (status, reply["name"]) == (403, "FORBIDDEN"), "a page of another site made it"
    status, reply = ask(guarded, guarded.nameless, "/v1/accounts/web")
    assert (status, reply["name"]) == (401, "UNAUTHENTICATED")
    status, reply = ask(guarded, guarded.nameless, "/v1/accounts/web", Authorization="Bearer r")
    assert (status, reply["balance"]) == (200, "5")
    with pytest.raises(
        (urllib.error.URLError, ssl.SSLError, ConnectionError)
    ):  # the handshake fails, or the connection ends before an answer
        ask(guarded, guarded.stranger, "/v1/ping")


async def test_another_certificate_of_the_authority_has_to_sign_in(guarded: GuardedDaemon) -> None:
    tls = tls_context(guarded.ca, guarded.nameless)
    async with Client(guarded.daemon.address, tls=tls, token="r") as client:
        assert await client.call("ping") == "pong"
    with pytest.raises(BillingError) as caught:
        async with Client(guarded.daemon.address, tls=tls, timeout_s=20):
            pass
    assert caught.value.name == "UNAUTHENTICATED"


@pytest.mark.parametrize("certificate", ["stranger", "nobody"])
def test_whoever_has_no_certificate_of_the_authority_is_answered_nothing(
    guarded: GuardedDaemon, certificate: str
) -> None:
    context = tls_context(guarded.ca, guarded.stranger if certificate == "stranger" else None)
    answered = b""
    with (
        socket.create_connection(("127.0.0.1", guarded.daemon.rpc_port), timeout=60) as plain,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wire,
    ):
        wire.sendall(b"\x94\x00\x01\xa4ping\x90")
        answered = wire.recv(100)
    assert answered == b""


def test_less_than_tls_1_3_is_refused(guarded: GuardedDaemon) -> None:
    context = tls_context(guarded.ca, guarded.metering)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", guarded.daemon.rpc_port), timeout=60) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


async def test_a_client_does_not_talk_to_a_daemon_that_it_cannot_believe(guarded: GuardedDaemon) -> None:
    client = Client(guarded.daemon.address, tls=tls_context(None, guarded.metering), timeout_s=10)
    with pytest.raises(BillingError, match="certificate verify failed"):
        await client.connect()
    client.close()


def test_a_client_that_leaves_in_order_is_nothing_to_warn_of(guarded: GuardedDaemon) -> None:
    context = tls_context(guarded.ca, guarded.metering)
    with (
        socket.create_connection(("127.0.0.1", guarded.daemon.rpc_port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wire,
    ):
        wire.sendall(b"\x94\x00\x01\xa4ping\x90")
        assert b"pong" in wire.recv(100)
        wire.unwrap().close()  # it has taken leave, too
    assert "eof_received" not in guarded.daemon.log.read_text()


async def test_plain_text_at_the_tls_port_harms_nobody(guarded: GuardedDaemon) -> None:
    async with Client(guarded.daemon.address, tls=tls_context(guarded.ca, guarded.metering)) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", guarded.daemon.rpc_port)
        writer.write(b"\x94\x00\x01\xa4ping\x90" * 1000)
        async with asyncio.timeout(60):
            assert b"pong" not in await reader.read()
        writer.close()
        assert await client.call("ping") == "pong"


def test_the_load_test_speaks_tls(guarded: GuardedDaemon, tmp_path: Path) -> None:
    """Its generators, too. `root` may do all that the load does; nobody runs out of money."""
    (tmp_path / "token").write_text("r\n")
    options = ("--accounts", "50", "--duration", "1", "--warmup", "0", "--rate", "50")
    once = ("--runs", "1", "--processes", "1")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "billing", "loadtest", *options, *once, "--connections", "1", "--quiet"),
            *("--address", guarded.daemon.address, "--config", str(guarded.daemon.config)),
            *("--receiver", f"127.0.0.1:{free_port()}", "--token-file", str(tmp_path / "token")),
            *("--tls-ca", guarded.ca, "--tls-cert", guarded.nameless),
            *("--json", str(tmp_path / "result.json")),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert result.returncode == (0 if run["valid"] else 1), result.stdout + result.stderr
    assert run["planned"] >= 50


def test_the_command_line_says_that_a_certificate_is_not_trusted(guarded: GuardedDaemon) -> None:
    command = [sys.executable, "-m", "billing", "ping", "--address", guarded.daemon.address]
    result = subprocess.run(
        [*command, "--tls-cert", guarded.metering], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"the certificate at {guarded.daemon.address} is not trusted" in result.stderr
    assert "--tls-ca" in result.stderr
    assert "no daemon answers" not in result.stderr


def test_the_command_line_speaks_tls(guarded: GuardedDaemon) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "billing", "top-up", "--json", "--address", guarded.daemon.address),
            *("--tls-ca", guarded.ca, "--tls-cert", guarded.metering, "cli", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["balance_nanos"] == 2 * 10**9
