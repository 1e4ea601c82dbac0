"""Several hosts over one log on three real nats-servers: one serves, the others stand by and follow it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest

from billing.follower.store import file_of
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import SHARDS, USERS, WAIT_S, Caller, billing, daemon_on, ready_page
from tests.system.rpc import ConnectionLost, Rpc
from tests.system.systemd import start

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture
def hosts(servers: NatsCluster, data_dir: Path) -> Iterator[list[Daemon]]:
    """Two hosts; nothing runs yet."""
    keys = {"cluster__retain_bytes": 0}
    daemons = [daemon_on(servers, data_dir / name, cluster__node=name, **keys) for name in ("a", "b")]
    servers.make_all(SHARDS)
    with killed_in_the_end(*daemons):
        yield daemons


def wait_standing_by(host: Daemon, server: str) -> None:
    """Returns when /readyz says that this host stands by since that other one serves."""
    deadline = time.monotonic() + WAIT_S
    while f"stands by: {server} serves" not in (page := ready_page(host))[1]:
        assert time.monotonic() < deadline, f"{page}\n{host.log.read_text()}"
        time.sleep(0.05)
    assert page[0] == 503


async def is_refused(host: Daemon) -> bool:
    """Whether clients find nobody there."""
    try:
        rpc = await Rpc.connect(host.rpc_port)
        await rpc.call("ping")
    except (ConnectionLost, OSError):
        return True
    return False


def answer_at(listener: socket.socket) -> bytes:
    """The beginning of the answer to a ping; empty where the connection is closed at once."""
    with socket.create_connection(listener.getsockname(), WAIT_S) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(msgpack.packb([0, 1, "ping", []]))
        with contextlib.suppress(ConnectionResetError):
            return client.recv(64)
        return b""


def is_trimmed(servers: NatsCluster) -> bool:
    """Whether the log of every shard has let its beginning go."""
    first = [servers.ask(f"STREAM.INFO.J_{shard}")["state"]["first_seq"] for shard in range(1, SHARDS + 1)]
    return bool(min(first) > 1)


def begin_snapshots(host: Daemon) -> None:
    """Lets each worker make one, which lets go what the one before it had."""
    for pid in host.worker_pids():
        os.kill(pid, signal.SIGUSR1)


def make_durable(host: Daemon) -> None:
    """The host's own histories have all that the log has, and say that it may go: at their start, or else within ten
    seconds. They are killed, and started again at once.
    """
    wait_followed(host)
    assert host.process is not None
    for process in psutil.Process(host.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "billing.history.projector" in process.cmdline():
                process.kill()


def wait_followed(host: Daemon) -> None:
    """Returns when the host's own histories have all that the log had when it was asked."""
    code, output = billing(host, "cluster", "status", "--json")
    assert code == 0, output
    deadline = time.monotonic() + WAIT_S
    for row in json.loads(output)["shards"]:
        path = Path(file_of(str(host.directory / "data/history"), row["shard_id"]))
        while (position := history_position(path)) < row["position"]:
            assert time.monotonic() < deadline, f"{path}: {position}, {row}\n{host.log.read_text()}"
            time.sleep(0.05)


def history_position(path: Path) -> int:
    """The last batch in a history file; -1 where it is not there yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT position FROM about").fetchone()[0])
    except sqlite3.OperationalError:
        return -1


async def test_a_host_that_stood_by_answers_from_its_own_file_what_the_log_has_let_go(
    servers: NatsCluster, hosts: list[Daemon]
) -> None:
    a, b = hosts
    a.start()
    caller = Caller(a.rpc_port)
    with socket.create_server(("127.0.0.1", 0)) as handed_over:
        start(b, {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "rpc"}, (handed_over,))
        b.rpc_port = handed_over.getsockname()[1]
        await stood_by(servers, hosts, caller, handed_over)


async def stood_by(servers: NatsCluster, hosts: list[Daemon], caller: Caller, handed_over: socket.socket) -> None:
    """The first host serves; the second one begins to stand by, with a socket that a service manager listens on."""
    a, b = hosts
    wait_standing_by(b, "a")
    assert answer_at(handed_over) == b"", "clients of a socket that listens are not left to wait"
    await caller.round()
    wait_followed(b)
    make_durable(a)
    deadline = time.monotonic() + WAIT_S
    while not is_trimmed(servers):
        assert time.monotonic() < deadline, "nothing is trimmed"
        await caller.round()  # makes a file durable within ten seconds where it could not be at its start
        wait_followed(b)
        begin_snapshots(a)
    a.kill()
    b.wait_ready(WAIT_S)
    caller.port, caller._rpc = b.rpc_port, None
    await caller.check()
    await caller.round()
    assert msgpack.unpackb(answer_at(handed_over))[:3] == [1, 1, None]
    for user in USERS:
        rows = await caller.call("history", user, {"limit": 1000})
        assert rows[-1]["entry_id"] == 1
        assert {row["operation"] for row in rows} == {"top_up"}, rows
    assert b.stop() == 0


async def test_a_host_that_is_stopped_is_followed_by_another_and_serves_again_although_the_log_has_moved_on(
    servers: NatsCluster, hosts: list[Daemon]
) -> None:
    """What happens where it dies, sleeps or is cut off, `tests/torture/test_hosts.py` shows."""
    a, b = hosts
    a.start()
    caller = Caller(a.rpc_port)
    await caller.round()
    b.launch()
    wait_standing_by(b, "a")
    assert await is_refused(b)
    code, output = billing(b, "cluster", "status")
    assert code == 0, output
    assert output.startswith("a serves\nshard 1: "), output
    code, output = billing(b, "cluster", "status", "--json")
    rows = json.loads(output)["shards"]
    assert [(row["shard_id"], row["node"]) for row in rows] == [(1, "a"), (2, "a")]
    assert all(row["epoch"] and row["position"] and row["granted_ns"] > caller.last_at_ns for row in rows), rows
    assert len(b.worker_pids()) == SHARDS, "its workers are there already"
    waiting = b.worker_pids()

    assert a.stop() == 0  # it gives everything back
    b.wait_ready(WAIT_S)
    assert b.worker_pids() == waiting
    caller.port, caller._rpc = b.rpc_port, None
    await caller.check()
    await caller.round()
    make_durable(b)
    deadline = time.monotonic() + WAIT_S
    while not is_trimmed(servers):
        assert time.monotonic() < deadline, "nothing is trimmed"
        begin_snapshots(b)
        await caller.round()

    a.launch()  # as after a week: what it has seen last is gone from the log
    wait_standing_by(a, "b")
    assert b.stop() == 0
    a.wait_ready(WAIT_S)
    caller.port, caller._rpc = a.rpc_port, None
    await caller.round()
    rows = await caller.call("history", USERS[0], {"limit": 1000})
    assert rows[-1]["entry_id"] == 1, "what it has had itself"
    assert {row["operation"] for row in rows} <= {"top_up", "missing"}, rows
    assert a.stop() == 0
