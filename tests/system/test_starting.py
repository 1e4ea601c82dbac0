"""Starts under parents, on addresses and in places as people have them; and stops at any instant of a start."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from billing import __version__
from billing.client import Client
from tests.system.daemon import Daemon
from tests.system.ports import free_port, has_ipv6
from tests.system.rpc import Rpc

BLOCKED = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals)); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
CLOSED = "import os, sys; [os.close(n) for n in range(3)]; os.execvp(sys.argv[1], sys.argv[1:])"


def command(config: Path, *words: str) -> tuple[int, str]:
    """Runs a command of `billing` to its end; (exit code, what it said)."""
    line = [sys.executable, "-m", "billing", *words, "--config", str(config)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stderr


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no [::1]")
@pytest.mark.parametrize("direct", [True, False])
async def test_every_door_and_every_call_speaks_ipv6(data_dir: Path, direct: bool) -> None:
    called = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"GET ") and not called.done():
                called.set_result(line)
            if line == b"\r\n":
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    endpoint = await asyncio.start_server(answer, "::1", 0)
    port = endpoint.sockets[0].getsockname()[1]
    daemon = Daemon(
        data_dir,
        shards__workers=1,
        rpc__listen=f"[::1]:{free_port()}",
        rpc__direct=direct,
        admin__listen=f"[::1]:{free_port()}",
        cutoff__url=f"http://[::1]:{port}/off",
    )
    assert command(daemon.config, "config", "check") == (0, "")
    process = daemon.launch()
    try:
        client = Client(daemon.address_of("rpc.listen"), timeout_s=120)
        await client.connect(tries=None)
        async with client:
            assert (await client.call("top_up", "v6", "1", request_id="opening"))["state"] == "active"
            await client.call("debit", "v6", "1")
            route = await client.call("route")
        assert b"user_id=v6" in await asyncio.wait_for(called, 60)
        hosts = {None if shard["address"] is None else shard["address"].rpartition(":")[0] for shard in route["shards"]}
        assert hosts == {"[::1]" if direct else None}
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0
        endpoint.close()
    assert process.returncode == 0
    assert f"dashboard http://{daemon.address_of('admin.listen')}/" in daemon.log.read_text()


def test_sigterm_at_any_instant_of_a_start_ends_it_with_0(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    rng = random.Random(15)
    for _ in range(6):
        daemon.log.write_bytes(b"")
        process = daemon.launch()
        try:
            process.wait(rng.uniform(0.05, 2.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        log = daemon.log.read_text()
        assert code == 0 or (code == -signal.SIGTERM and not log), "before its first line only the interpreter runs"
        assert "killed" not in log


def test_a_stop_is_heard_where_the_parent_had_blocked_all_signals(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    daemon.prefix = [sys.executable, "-c", BLOCKED]
    with daemon:
        assert daemon.stop(60) == 0


async def test_it_serves_and_stops_where_its_standard_descriptors_are_closed(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1)
    daemon.prefix = [sys.executable, "-c", CLOSED]
    with daemon:
        assert daemon.process is not None
        rpc = await Rpc.connect(daemon.rpc_port)
        assert (await rpc.ask("top_up", "u", 5))["balance_nanos"] == 5
        links = Path(f"/proc/{daemon.process.pid}/fd")
        assert [(links / str(number)).readlink() for number in range(3)] == [Path("/dev/null")] * 3
        assert daemon.stop() == 0


async def test_a_data_directory_of_another_alphabet_is_used_in_an_ascii_locale(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1, daemon__data_dir=str(data_dir / "gebühren"))
    daemon.environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    with daemon:
        assert (data_dir / "gebühren" / "map").is_dir()
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", 5)
        assert [row["operation"] for row in await rpc.ask("history", "u")] == ["top_up"]
        assert daemon.stop() == 0


def test_a_place_that_cannot_be_used_is_named_and_is_no_failed_disk(data_dir: Path) -> None:
    (data_dir / "file").touch()
    for path, words in (
        (data_dir / "none" / "data", f"expected {data_dir / 'none'} to exist"),
        (data_dir / "file", "expected a folder"),
        (data_dir / "file" / "data", f"expected {data_dir / 'file'} to be a folder"),
        (Path("/sys/billing"), "expected /sys to be on a file system that keeps files"),
    ):
        daemon = Daemon(data_dir, daemon__data_dir=str(path))
        for words_of in (("serve",), ("config", "check")):
            code, output = command(daemon.config, *words_of)
            assert code == 78
            assert f"daemon.data_dir (file): {words}" in output
            assert "disk failed" not in output


def test_an_address_that_cannot_be_listened_on_is_named_once_with_why(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        code, output = command(Daemon(data_dir, rpc__listen=address).config, "serve")
    assert code == 78
    assert output.count(address) == 1
    assert f"rpc.listen: {address} cannot be listened on: Address already in use" in output
    code, output = command(Daemon(data_dir, admin__listen="127.0.0.1:0", rpc__listen="[::1%nowhere]:0").config, "serve")
    assert code == 78
    assert "rpc.listen" in output


def test_it_says_what_it_is_and_that_it_stops_and_leaves_no_socket(data_dir: Path) -> None:
    unix = data_dir / "rpc.sock"
    secret = "http://127.0.0.1:9/off?token=hunter2&user_id={user_id}"
    http = f"127.0.0.1:{free_port()}"
    daemon = Daemon(data_dir, shards__workers=1, rpc__unix_socket=str(unix), http__listen=http, cutoff__url=secret)
    daemon.config.write_bytes(b"\xef\xbb\xbf" + daemon.config.read_bytes())  # as an editor on Windows leaves it
    with daemon:
        assert daemon.process is not None
        pid = daemon.process.pid
        assert unix.is_socket()
        second = command(daemon.config, "serve")
        assert second == (78, f"billing: another daemon runs on {data_dir / 'data'}\n"), "and no word of its addresses"
        assert unix.is_socket()
        assert daemon.stop() == 0
    log = daemon.log.read_text()
    for words in (
        f"billing {__version__}, process {pid}, configuration {daemon.config}, data directory {data_dir / 'data'}",
        f"listening: MessagePack-RPC at {daemon.address}, ",
        f"at {http}, ",
        f"MessagePack-RPC at {unix}, dashboard http://127.0.0.1:{daemon.admin_port}/",
        "cutoffs go to http://127.0.0.1:9/off?token=***&user_id={user_id}",
        "stopping: ",
        "stopped with exit code 0",
    ):
        assert words in log
    assert "hunter2" not in log
    assert not unix.exists()


@pytest.mark.parametrize("words", ["serve", "config check", "doctor", "rebuild"])
def test_a_working_directory_that_is_gone_is_named(data_dir: Path, words: str) -> None:
    gone = data_dir / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m billing {words}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BILLING_")}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    result = subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 78, result.stderr
    assert "working directory: expected one that exists" in result.stderr
