"""Clients that idle, flood, dawdle, never read or are gone without a word, at a real daemon: nobody else notices.

How much they cost in bytes and milliseconds is measured by `benchmarks/idle_connections.py`, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.system.daemon import Daemon
from tests.system.private_files import tokens_file
from tests.system.rpc import Rpc

PING = msgpack.packb([0, 7, "ping", []])
PONG = msgpack.packb([1, 7, None, "pong"])

PIDFD_GETFD = 438  # a system call that Python has no name for
WATCHED = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    (socket.SOL_SOCKET, socket.SO_SNDBUF),
)


def connect(port: int, receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    return connection


def pinged(connection: socket.socket) -> bytes:
    """What a ping brings; empty where the connection is closed."""
    try:
        connection.sendall(PING)
        return connection.recv(4096)
    except ConnectionError:
        return b""


def connections(daemon: Daemon) -> float:
    """How many there are, as an operator is told."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/metrics", timeout=60) as answer:
        return sum(float(n) for n in re.findall(r"^billing_connections{\S* (\S+)$", answer.read().decode(), re.M))


async def serves(rpc: Rpc, user: str) -> bool:
    """Whether somebody else's command is carried out, durably."""
    return bool((await rpc.ask("top_up", user, 10**9))["entry_id"])


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    """For those who leave it as it was."""
    with Daemon(module_dir, shards__workers=1) as started:
        yield started


async def test_hundreds_of_idle_connections_stay_and_are_answered_when_they_ask(daemon: Daemon) -> None:
    idle = [connect(daemon.rpc_port) for _ in range(500)]
    rpc = await Rpc.connect(daemon.rpc_port)
    for number in range(100):
        assert await serves(rpc, f"u{number}")
    assert all(pinged(connection) == PONG for connection in idle)
    while connections(daemon) < 501:  # a figure is up to a second old
        assert await serves(rpc, "u")
    for connection in idle:
        connection.close()
    assert await serves(rpc, "u")


async def test_idle_connections_to_the_operators_pages_do_not_keep_a_worker_from_starting(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    daemon.prefix = ["prlimit", "--nofile=256:256"]
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        assert await serves(rpc, "u")
        flood = [connect(daemon.admin_port) for _ in range(300)]
        assert daemon.process is not None
        while len(os.listdir(f"/proc/{daemon.process.pid}/fd")) > 128:  # the crowd makes room for itself alone
            await asyncio.sleep(0.05)
        (worker,) = daemon.worker_pids()
        daemon.kill(worker)
        while daemon.worker_pids() in ([], [worker]):
            await asyncio.sleep(0.05)
        daemon.wait_ready()  # through the same listener as the crowd
        assert await serves(await Rpc.connect(daemon.rpc_port), "u")
        for connection in flood:
            connection.close()
    assert "cannot be started" not in daemon.log.read_text()


async def test_more_connections_than_descriptors_stop_neither_clients_nor_the_journal(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1, cutoff__concurrency=10, journal__segment_bytes=65_536)
    daemon.prefix = ["prlimit", "--nofile=200:400"]
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        flood: list[socket.socket] = []
        with contextlib.suppress(OSError):
            flood.extend(connect(daemon.rpc_port) for _ in range(600))
        answers = [pinged(connection) for connection in flood]
        served = answers.count(PONG)
        assert 150 < served < 360, "what the hard limit leaves; the soft one leaves 29"
        assert {answer for answer in answers if answer and answer != PONG} <= {
            msgpack.packb([1, None, "TOO_MANY_CONNECTIONS: try again later", None])
        }
        (worker,) = daemon.worker_pids()
        assert len(os.listdir(f"/proc/{worker}/fd")) < 400
        for number in range(300):  # segments are opened and closed meanwhile
            await rpc.ask("top_up", f"u{number}", 10**9, {"message": "x" * 200})
        for connection in flood:
            connection.close()
        while pinged(newcomer := connect(daemon.rpc_port)) != PONG:
            newcomer.close()
        newcomer.close()
    log = daemon.log.read_text()
    assert re.search(r"only \d+ connections fit into the 400 file descriptors of a worker", log)
    assert "Traceback" not in log


async def test_a_flood_before_sign_in_keeps_nobody_out_who_is_in(data_dir: Path) -> None:
    tokens = tokens_file(data_dir / "tokens", ("shop", "charge,read,top_up", "secret"))
    with Daemon(data_dir, shards__workers=1, rpc__tokens_file=tokens) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("hello", {"token": "secret"})
        flood = [connect(daemon.rpc_port) for _ in range(300)]
        for connection in flood:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"\xdc\x00\x40" * 1300)  # 4 KiB of nested arrays, never finished
        for number in range(50):
            assert await serves(rpc, f"u{number}")
        for connection in flood:  # too many were told at once; the rest when 4 KiB or 5 s had passed
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
            connection.close()
        latecomer = await Rpc.connect(daemon.rpc_port)
        assert (await latecomer.ask("hello", {"token": "secret"}))["name"] == "shop"


async def test_slow_senders_and_those_who_never_read_are_nobody_elses_trouble(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    frame = msgpack.packb([0, 1, "top_up", ["slow", 5]])
    slow = [connect(daemon.rpc_port) for _ in range(50)]
    deaf = [connect(daemon.rpc_port, receive_bytes=4096) for _ in range(20)]
    requests = msgpack.packb([0, 2, "methods", []]) * 2_000
    for connection in deaf:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(requests)
    for offset in range(len(frame)):
        for connection in slow:
            connection.sendall(frame[offset : offset + 1])
        assert await serves(rpc, "u")
    for connection in slow:
        assert connection.recv(4096)[:3] == b"\x94\x01\x01"
    assert (await rpc.ask("get_account", "slow"))["balance_nanos"] == 250
    for connection in (*slow, *deaf):
        connection.close()
    assert await serves(rpc, "u")


async def test_connections_that_are_reset_in_the_middle_leave_nothing(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        assert await serves(rpc, "u")
        (worker,) = daemon.worker_pids()
        files = len(os.listdir(f"/proc/{worker}/fd"))
        for _ in range(200):
            connection = connect(daemon.rpc_port)
            connection.sendall(msgpack.packb([0, 1, "top_up", ["u", 5]])[:-1])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        while len(os.listdir(f"/proc/{worker}/fd")) > files + 2:
            assert await serves(rpc, "u")


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Copies of a process's TCP sockets that are connected; PermissionError where it may not be looked into."""
    libc, pidfd = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except FileNotFoundError:  # closed since it was listed
                continue
            copy = libc.syscall(PIDFD_GETFD, pidfd, int(name), 0)
            if copy < 0 and ctypes.get_errno() == errno.EBADF:  # likewise
                continue
            if copy < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            with socket.socket(fileno=copy) as connection, contextlib.suppress(OSError):
                if connection.family == socket.AF_INET and connection.getpeername():
                    yield connection
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("door", ["shared", "direct"])
async def test_a_peer_that_is_gone_without_a_word_is_noticed_by_the_kernel(daemon: Daemon, door: str) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    port = daemon.rpc_port
    if door == "direct":
        port = int((await rpc.ask("route"))["shards"][0]["address"].rpartition(":")[2])
    connection = connect(port)
    assert pinged(connection) == PONG
    try:
        (options,) = (
            [copy.getsockopt(level, option) for level, option in WATCHED]
            for copy in sockets_of(daemon.worker_pids()[0])
            if copy.getpeername() == connection.getsockname()
        )
    except PermissionError as error:
        pytest.skip(f"a process may not look into another here: {error}")
    assert options == [1, 30, 10, 3, 30_000, 128 << 10]
    connection.close()
