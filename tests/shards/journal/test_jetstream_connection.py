"""The connection to the log's servers: deadlines, and how many system calls an exchange makes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from shards.journal.jetstream.connection import Access, Connection, Denied, Endpoint, NoAnswer
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL
from shards.system.names import Names

PATIENCE_S = 0.3
HOST = "127.0.0.1"


class Server(threading.Thread):
    """Takes whoever connects, and answers what is asked of the subject `echo`; what else is asked, it never answers."""

    def __init__(self, context: ssl.SSLContext | None, password: str = "") -> None:
        super().__init__(daemon=True)
        self.context = context
        self.password = password  # "": everybody is let in
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        with suppress(OSError):  # the test has closed the listener
            while True:
                self.serve(self.listener.accept()[0])

    def serve(self, client: socket.socket) -> None:
        info = '{"tls_required": true}' if self.context else "{}"
        client.sendall(f"INFO {info}\r\n".encode())
        if self.context is not None:
            client = self.context.wrap_socket(client, server_side=True)
        with client, client.makefile("rb") as lines:
            while line := lines.readline():
                verb, *arguments = line.split()
                if verb == b"CONNECT" and self.password.encode() not in line:
                    client.sendall(b"-ERR 'Authorization Violation'\r\n")
                    return
                if verb == b"PING":
                    client.sendall(b"PONG\r\n")
                elif verb == b"PUB":
                    payload = lines.read(int(arguments[2]) + 2)
                    if arguments[0] == b"echo":
                        client.sendall(b"MSG %s 1 %s\r\n%s" % (arguments[1], arguments[2], payload))


class CountingSocket:
    """A socket that counts its calls."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self.inner, name)


@pytest.fixture(params=["plain", "TLS"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    server_tls = client_tls = None
    if request.param == "TLS":
        authority = trustme.CA()
        server_tls, client_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert(HOST).configure_cert(server_tls)
        authority.configure_trust(client_tls)
    server = Server(server_tls)
    server.start()
    access = Access((Endpoint(HOST, server.port, server_tls is not None),), client_tls, "")
    with (
        closing(server.listener),
        closing(Connection(access, "test", REAL.randbits, MACHINE_CLOCKS.boot_ns)) as connected,
    ):
        yield connected


def test_a_request_that_nobody_answers_ends_at_its_deadline_and_the_next_one_is_sent_anew(
    connection: Connection,
) -> None:
    assert connection.request("echo", b"one").payload == b"one"
    began_ns = MACHINE_CLOCKS.boot_ns()
    with pytest.raises(NoAnswer):
        connection.request("silence", timeout_s=PATIENCE_S)
    assert MACHINE_CLOCKS.boot_ns() - began_ns >= PATIENCE_S * 1e9
    assert connection.request("echo", b"two").payload == b"two"


def test_an_exchange_is_one_call_to_send_and_one_to_receive(connection: Connection) -> None:
    connection.request("echo", b"the first one says how long the socket may wait")
    assert connection._socket is not None
    counted = CountingSocket(connection._socket)
    connection._socket = counted  # type: ignore[assignment]
    for _ in range(10):
        assert connection.request("echo", b"again").payload == b"again"
    assert counted.calls.count("send") == 10
    assert set(counted.calls) == {"send", "recv"}


def test_a_server_that_takes_some_bytes_at_a_time_is_left(connection: Connection) -> None:
    """Each call to send succeeds in time, and all of them together would take for ever."""
    connection.request("echo", b"the first one")
    assert connection._socket is not None
    connection._socket.close()
    with socket.create_server((HOST, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    connection._socket, connection._timeout_s, ended = near, 0.0, threading.Event()

    def trickle() -> None:
        while not ended.wait(0.01) and far.recv(1000):
            pass

    reader = threading.Thread(target=trickle)
    reader.start()
    began_ns = MACHINE_CLOCKS.boot_ns()
    try:
        with pytest.raises(NoAnswer, match="it does not read what it is sent"):
            connection.request("echo", bytes(50_000_000))
    finally:
        ended.set()
        reader.join()
        far.close()
    assert MACHINE_CLOCKS.boot_ns() - began_ns < 20e9, "it would have taken minutes"
    assert connection.request("echo", b"the next one").payload == b"the next one"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Two servers that let in whoever knows the password `old`."""
    started = [Server(None, "old"), Server(None, "old")]
    for server in started:
        server.start()
    yield started
    for server in started:
        server.listener.close()


def access_to(servers: list[Server], password: str) -> Access:
    return Access(tuple(Endpoint(HOST, server.port, False) for server in servers), None, f"billing:{password}")


def test_credentials_that_are_refused_are_read_again(servers: list[Server]) -> None:
    written = "old"
    before, boot_ns = access_to(servers, written), MACHINE_CLOCKS.boot_ns
    with closing(Connection(before, "test", REAL.randbits, boot_ns, lambda: access_to(servers, written))) as connection:
        assert connection.request("echo", b"one").payload == b"one"
        for server in servers:
            server.password = "new"
        connection.close()
        with pytest.raises(Denied, match="refuses the credentials"):
            connection.request("echo", b"two")
        written = "new"
        assert connection.request("echo", b"three").payload == b"three"


def test_a_file_of_credentials_that_is_gone_leaves_the_former_ones(servers: list[Server]) -> None:
    def gone() -> Access:
        raise FileNotFoundError

    with closing(
        Connection(access_to(servers, "old"), "test", REAL.randbits, MACHINE_CLOCKS.boot_ns, gone)
    ) as connection:
        servers[0].password = servers[1].password = "new"
        with pytest.raises(Denied):
            connection.request("echo", b"one")
        servers[0].password = servers[1].password = "old"
        assert connection.request("echo", b"two").payload == b"two"


def test_one_server_that_refuses_this_client_keeps_it_from_no_other(servers: list[Server]) -> None:
    servers[0].password = "another"
    access = access_to(servers, "old")
    for _ in range(4):
        with closing(Connection(access, "test", REAL.randbits, MACHINE_CLOCKS.boot_ns)) as connection:
            assert connection.request("echo", b"one").payload == b"one"
            assert connection.server == f"nats://{HOST}:{servers[1].port}"


def test_a_server_is_reached_where_its_name_was_while_the_resolver_is_silent() -> None:
    speaks = threading.Event()

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert speaks.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (HOST, port))]

    server = Server(None)
    server.start()
    access = Access((Endpoint("log.example", server.port, False),), None, "")
    names = Names(resolve)
    with closing(server.listener):
        speaks.set()
        with closing(Connection(access, "a", REAL.randbits, MACHINE_CLOCKS.boot_ns, names=names)) as connection:
            assert connection.request("echo", b"one").payload == b"one"
        speaks.clear()
        with closing(Connection(access, "b", REAL.randbits, MACHINE_CLOCKS.boot_ns, names=names)) as connection:
            assert connection.request("echo", b"two").payload == b"two"
        speaks.set()


def test_a_server_is_connected_to_at_the_whole_address_that_the_resolver_gave(tmp_path: Path) -> None:
    """As a zone is a part of a link-local address, of which not every machine has one."""
    path = f"{tmp_path}/log"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        refused = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", 0, 0, 0))
        taken = (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", path)
        names = Names(lambda *_, **__: [refused, taken])
        endpoint = Endpoint("log.example", 4222, False)
        access = Access((endpoint,), None, "")
        connection = Connection(access, "test", lambda bits: 0, MACHINE_CLOCKS.boot_ns, names=names)
        with connection.dial(endpoint) as connected:
            assert connected.getpeername() == path
