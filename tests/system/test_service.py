"""The daemon as systemd sees it: what it tells a NOTIFY_SOCKET, the sockets it takes over, and memory it may not
both write and execute."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.clock_step import ClockStep
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.private_files import pem_file, private_file
from tests.system.rpc import Rpc
from tests.system.systemd import FakeServiceManager, start

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


@pytest.fixture
def manager(data_dir: Path) -> Iterator[FakeServiceManager]:
    service_manager = FakeServiceManager(data_dir)
    yield service_manager
    service_manager.close()


async def test_it_is_ready_when_every_bucket_is_served_and_says_what_it_does(
    data_dir: Path, manager: FakeServiceManager
) -> None:
    daemon = Daemon(data_dir)
    start(daemon, {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000"})
    with killed_in_the_end(daemon):
        manager.wait_for("READY")
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/readyz", timeout=60) as answer:
            assert answer.status == 200
        early_messages = [message for message in manager.messages if "READY" not in message][
            : manager.messages.index(next(message for message in manager.messages if "READY" in message))
        ]
        assert any("EXTEND_TIMEOUT_USEC" in message for message in early_messages), (
            "a start goes on as long as it takes"
        )
        assert any("shard 1" in message.get("STATUS", "") for message in early_messages), "it says what it waits for"
        manager.wait_for("WATCHDOG", 3)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING")
        manager.wait_for("READY", 2)
        assert manager.statuses()[-1].startswith("serving 2 shards, 0 accounts, nothing owed")
        assert daemon.stop() == 0
        manager.wait_for("STOPPING")
        assert manager.count("READY") == 2


def test_while_it_stops_it_says_nothing_but_that(data_dir: Path, manager: FakeServiceManager) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    start(daemon, {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000"})
    with killed_in_the_end(daemon):
        manager.wait_for("READY")
        assert daemon.process is not None
        (worker,) = daemon.worker_pids()
        os.kill(worker, signal.SIGSTOP)  # so that the stop takes until it goes on
        try:
            daemon.process.send_signal(signal.SIGTERM)
            manager.wait_for("STOPPING")
            daemon.process.send_signal(signal.SIGHUP)
            fed = manager.count("WATCHDOG")
            manager.wait_for("WATCHDOG", fed + 4)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert daemon.process.wait(60) == 0
    messages = manager.messages[next(at for at, message in enumerate(manager.messages) if "STOPPING" in message) :]
    statuses = [message["STATUS"] for message in messages if "STATUS" in message]
    assert all(status.startswith("stopping: ") for status in statuses), statuses
    assert manager.count("RELOADING") == 0
    assert "the configuration was not reloaded: the daemon is stopping" in daemon.log.read_text()


def accounts_of(page: str) -> dict[str, float]:
    """`billing_accounts` by shard."""
    with urllib.request.urlopen(page, timeout=60) as answer:
        rows = [line.split() for line in answer.read().decode().splitlines() if line.startswith("billing_accounts{")]
    return {name: float(value) for name, value in rows}


async def test_a_worker_that_hangs_starves_the_watchdog_and_one_that_goes_on_feeds_it(
    data_dir: Path, manager: FakeServiceManager
) -> None:
    clock, suspended_s = ClockStep(data_dir, suspends=True), 0.0
    daemon = Daemon(data_dir)
    start(daemon, {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000", **clock.environment})
    with killed_in_the_end(daemon):
        manager.wait_for("READY")
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(40):
            await rpc.ask("top_up", f"u{number}", 1)
        rpc.close()
        page = f"http://127.0.0.1:{daemon.admin_port}/metrics"
        by_shard = accounts_of(page)
        while sum(by_shard.values()) != 40:  # the figures are of a second ago
            by_shard = accounts_of(page)
        worker = daemon.worker_pids()[0]
        os.kill(worker, signal.SIGSTOP)
        deadline = time.monotonic() + 40
        while not any("is silent: it has answered nothing" in status for status in manager.statuses()):
            assert time.monotonic() < deadline, manager.statuses()
            suspended_s += 0.3  # the machine is, so that nobody waits for all of its patience
            clock.suspended(suspended_s)
            time.sleep(0.1)
        with pytest.raises(urllib.error.HTTPError) as not_ready:
            urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/readyz", timeout=60)
        with not_ready.value as answer:
            assert answer.code == 503
            assert b"is silent: it has answered nothing" in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/metrics", timeout=60) as answer:
            values = [line.split()[-1] for line in answer.read().splitlines() if line.startswith(b"billing_shard_up{")]
        assert values.count(b"0.0") == 1, "the alert of a shard that is not served sees it as well"
        rows = by_shard
        while len(rows) > 1:  # what nobody answers for is not shown as if it were known
            assert time.monotonic() < deadline + 60, rows
            rows = accounts_of(page)
        assert rows.items() < by_shard.items()
        silent = re.search(
            rf"shard (\d) is silent: it has answered nothing for \d+ s; its process is {worker}\b",
            daemon.log.read_text(),
        )
        assert silent is not None
        fed = manager.count("WATCHDOG")
        time.sleep(2)
        assert manager.count("WATCHDOG") == fed
        os.kill(worker, signal.SIGCONT)
        manager.wait_for("WATCHDOG", fed + 2)
        assert manager.statuses()[-1].startswith("serving")
        message = f"shard {silent[1]}: it answers again, after "
        while message not in daemon.log.read_text():
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)


async def test_a_shard_that_is_held_does_not_starve_the_others(data_dir: Path, manager: FakeServiceManager) -> None:
    daemon = Daemon(data_dir)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(100):
            await rpc.ask("top_up", f"user_{number:02}", 1)
        daemon.kill()
    segment = max((data_dir / "data" / "shard-1").glob("segment-*"))
    stored = bytearray(segment.read_bytes())
    stored[stored.index(b"user_")] ^= 1
    segment.write_bytes(stored)
    start(daemon, {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000"})
    with killed_in_the_end(daemon):
        deadline = time.monotonic() + 120
        while not any("shard 1: held" in status for status in manager.statuses()):
            assert time.monotonic() < deadline, manager.statuses()
            time.sleep(0.1)
        fed = manager.count("WATCHDOG")
        manager.wait_for("WATCHDOG", fed + 3)
        assert manager.count("READY") == 0
        assert any(message.get("EXTEND_TIMEOUT_USEC") for message in manager.messages[-4:])


async def test_sockets_that_were_opened_for_it_are_taken_over(data_dir: Path, manager: FakeServiceManager) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    path = str(data_dir / "rpc.sock")
    rpc, admin = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", daemon.admin_port))
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(path)
    unix.listen()
    with rpc, admin, unix:
        early = await Rpc.connect(rpc.getsockname()[1])  # queues until somebody accepts
        names = "rpc:billing.socket:billing.socket"
        start(
            daemon,
            {"NOTIFY_SOCKET": manager.path, "LISTEN_FDS": "3", "LISTEN_FDNAMES": names},
            (rpc, admin, unix),
        )
        with killed_in_the_end(daemon):
            manager.wait_for("READY")
            assert await early.ask("ping") == "pong"
            with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/readyz", timeout=60) as answer:
                assert answer.status == 200
            with pytest.raises(ConnectionRefusedError):
                await Rpc.connect(daemon.rpc_port)  # rpc.listen was not bound: the handed-over socket is in its place
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"\x94\x00\x01\xa4ping\x90")
                assert client.recv(100) == b"\x94\x01\x01\xc0\xa4pong"
            assert daemon.stop() == 0


def test_a_socket_beyond_loopback_is_refused_without_tokens_however_it_came(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    with socket.create_server(("0.0.0.0", 0)) as wide:
        start(daemon, {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "rpc"}, (wide,))
        assert daemon.process is not None
        assert daemon.process.wait(60) == 78
    assert "rpc.listen (handed over): expected rpc.tokens_file or rpc.tls_client_ca" in daemon.log.read_text()


def test_pages_beyond_loopback_speak_tls_however_their_socket_came(data_dir: Path, manager: FakeServiceManager) -> None:
    """`admin.listen` says loopback; what was handed over is not."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    daemon = Daemon(
        data_dir,
        shards__workers=1,
        rpc__tokens_file=private_file(data_dir / "tokens", f"ops:admin:{'0' * 64}\n"),
        rpc__tls_cert=pem_file(data_dir / "door.pem", *issued.cert_chain_pems),
        rpc__tls_key=pem_file(data_dir / "door.key", issued.private_key_pem),
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with socket.create_server(("0.0.0.0", 0)) as admin:
        names = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "admin"}
        start(daemon, {"NOTIFY_SOCKET": manager.path, **names}, (admin,))
        with killed_in_the_end(daemon):
            manager.wait_for("READY")
            page = f"https://127.0.0.1:{admin.getsockname()[1]}/readyz"
            with urllib.request.urlopen(page, timeout=60, context=context) as answer:
                assert answer.status == 200
            assert "dashboard https://0.0.0.0:" in daemon.log.read_text()
            assert daemon.stop() == 0


def _refuse_exec_gain() -> None:
    ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


def _mdwe_is_there() -> bool:
    check = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0)"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.skipif(not _mdwe_is_there(), reason="this kernel has no PR_SET_MDWE (Linux 6.3)")
async def test_it_runs_where_memory_is_never_both_written_and_executed(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "billing", "serve", "--config", str(daemon.config)],
            stderr=log, stdout=log, preexec_fn=_refuse_exec_gain,
        )  # fmt: skip
    with killed_in_the_end(daemon):
        daemon.wait_ready()
        rpc = await Rpc.connect(daemon.rpc_port)
        assert (await rpc.ask("top_up", "u", 5))["balance_nanos"] == 5
        assert daemon.stop() == 0
