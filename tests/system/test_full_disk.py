"""A disk that is full: what `/readyz` and `/metrics` say while changes are refused, and that it passes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.system.test_isolation import readyz, users_of


def why_not() -> str:
    if os.geteuid() != 0:
        return "a file system of one's own needs root"
    result = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return result.stderr.strip()


@contextmanager
def on_a_small_disk(directory: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with 48 MiB for its data, and the directory where others may use them up."""
    volume = directory / "volume"
    volume.mkdir()
    daemon = Daemon(directory, daemon__data_dir=str(volume / "data"))
    script = f'mount -t tmpfs -o size=48m none {volume} && exec "$@"'
    daemon.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    with daemon:
        assert daemon.process is not None
        yield daemon, Path(f"/proc/{daemon.process.pid}/root{volume}")


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


async def refused(rpc: Rpc, users: list[str]) -> list[str]:
    """What a burst of changes is refused with."""
    options = {"message": "x" * 1000}
    answers = await asyncio.gather(*(rpc.call("top_up", user, 1, options) for user in users for _ in range(100)))
    return [str(error) for error, _ in answers if error is not None]


def ready_figure(daemon: Daemon) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("billing_ready "))


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done")
async def test_a_full_disk_is_not_ready_says_why_and_is_ready_once_there_is_room(data_dir: Path) -> None:
    with on_a_small_disk(data_dir) as (daemon, volume):
        rpc = await Rpc.connect(daemon.rpc_port)
        users = await users_of(rpc)
        fill(volume / "filler")
        async with asyncio.timeout(60):
            while not any("the disk is full" in error for error in await refused(rpc, list(users.values()))):
                pass
            while not (text := readyz(daemon)):
                await asyncio.sleep(0.05)
            assert ": changes are refused: the disk is full: no room for the next segment" in text
            while ready_figure(daemon):
                await asyncio.sleep(0.05)
            for user in users.values():
                assert (await rpc.ask("get_account", user))["user_id"] == user
            (volume / "filler").unlink()
            while readyz(daemon):
                await asyncio.sleep(0.05)
            while not ready_figure(daemon):
                await asyncio.sleep(0.05)
        assert await refused(rpc, list(users.values())) == []
        log = daemon.log.read_text()
        assert "event=recovery_warning" in log, "its file system is in memory"
        assert "event=worker_failed" not in log, "no worker has failed"
