"""What a daemon keeps to itself: files, secrets, and who may speak on its unix socket; and that it checks itself."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.system.daemon import Daemon
from tests.system.private_files import private_file, tokens_file
from tests.system.rpc import Rpc

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSBjdXRvZmZzLCBub3cgbG9uZ2Vy"
TOKEN = "token-of-the-shop"
NOBODY = 65_534


def tokens(directory: Path) -> str:
    return tokens_file(directory / "tokens", ("shop", "admin", TOKEN))


def everybody(daemon: Daemon) -> list[int]:
    """Main process, workers, and what those started."""
    assert daemon.process is not None
    workers = daemon.worker_pids()
    return [daemon.process.pid, *workers, *(child for worker in workers for child in daemon._children(worker))]


async def test_no_secret_stands_in_arguments_environment_or_log_of_any_process(data_dir: Path) -> None:
    daemon = Daemon(
        data_dir,
        shards__workers=1,
        cutoff__secret_file=private_file(data_dir / "secret", SECRET + "\n"),
        rpc__tokens_file=tokens(data_dir),
        notify__url="http://127.0.0.1:9/notices",
    )
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("hello", {"token": TOKEN})
        await rpc.ask("top_up", "u", 5)
        processes = everybody(daemon)
        assert len(processes) >= 4, "main, a worker, and two of its own"
        for pid in processes:
            for name in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert content
                for word in (SECRET, SECRET[6:], TOKEN, hashlib.sha256(TOKEN.encode()).hexdigest()):
                    assert word.encode() not in content, (pid, name)
    log = daemon.log.read_text()
    assert SECRET[6:] not in log
    assert TOKEN not in log


async def test_all_that_is_kept_is_for_this_user_alone_whatever_the_umask(data_dir: Path) -> None:
    daemon = Daemon(
        data_dir,
        shards__workers=1,
        rpc__unix_socket=str(data_dir / "rpc.sock"),
        notify__url="http://127.0.0.1:9/notices",
    )
    daemon.prefix = ["sh", "-c", 'umask 000; exec "$@"', "sh"]
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(50):
            await rpc.ask("top_up", f"u{number}", 5)
        await rpc.ask("history", "u1")
        paths = [data_dir / "data", *(data_dir / "data").rglob("*")]
        assert {path.suffix for path in paths} >= {".sqlite", ""}
        for path in paths:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a history that was being made has its name by now
                continue
            if stat.S_ISDIR(mode):
                assert stat.S_IMODE(mode) == 0o700, path
            elif stat.S_ISREG(mode):
                assert stat.S_IMODE(mode) == 0o600, path
            else:
                assert not mode & 0o077, path
        assert stat.S_IMODE((data_dir / "rpc.sock").stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_on_the_unix_socket_has_to_sign_in(data_dir: Path) -> None:
    path = data_dir / "rpc.sock"
    with Daemon(data_dir, shards__workers=1, rpc__unix_socket=str(path), rpc__tokens_file=tokens(data_dir)):
        data_dir.chmod(0o711)
        path.chmod(0o666)  # as if the group let somebody in

        def answer(user: int, *calls: list[object]) -> list[Any]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                os.seteuid(user)  # whom the kernel names to the other side is settled by connect
                try:
                    connection.connect(str(path))
                finally:
                    os.seteuid(0)
                connection.sendall(b"".join(msgpack.packb(call) for call in calls))
                unpacker = msgpack.Unpacker()
                answers: list[list[Any]] = []
                while len(answers) < len(calls):
                    unpacker.feed(connection.recv(4096))
                    answers += unpacker
                return answers

        top_up: list[object] = [0, 1, "top_up", ["u", 5]]
        assert answer(NOBODY, top_up) == [[1, 1, "UNAUTHENTICATED: sign in first: hello({token})", None]]
        hello, pong = answer(NOBODY, [0, 0, "hello", [{"token": TOKEN}]], [0, 1, "ping", []])
        assert hello[3]["name"] == "shop"
        assert pong == [1, 1, None, "pong"]
        assert answer(0, [0, 1, "hello", []])[0][3]["name"] == "uid-0"


@pytest.mark.parametrize("options", [["-O"], []])
def test_without_assertions_it_does_not_start(data_dir: Path, options: list[str]) -> None:
    daemon = Daemon(data_dir)
    environment = os.environ | ({} if options else {"PYTHONOPTIMIZE": "1"})
    result = subprocess.run(
        [sys.executable, *options, "-m", "billing", "serve", "--config", str(daemon.config)],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 78
    assert "-O" in result.stderr
    assert not (data_dir / "data").exists()


async def test_started_isolated_all_its_processes_are(data_dir: Path) -> None:
    """With -I neither the working directory nor the environment decides which code runs."""
    (data_dir / "msgspec.py").write_text("raise SystemExit('code from the working directory')\n")
    daemon = Daemon(data_dir, shards__workers=1)
    daemon.prefix = ["env", f"PYTHONPATH={data_dir}", "sh", "-c", 'python="$1"; shift; exec "$python" -I "$@"', "sh"]
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", 5)
        assert (await rpc.ask("history", "u"))[0]["amount_nanos"] == 5
        for pid in everybody(daemon):
            assert "-I" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
