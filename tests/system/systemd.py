"""The service manager, faked: what systemd hears, and what it does between fork and exec."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.system.daemon import Daemon


class FakeServiceManager:
    """Listens as systemd does; `messages` are all that were sent, in order, each as a map."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "notify")
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.2)
        self._over = False
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                message = self._socket.recv(65536).decode()
                self.messages.append(dict(line.split("=", 1) for line in message.splitlines()))

    def count(self, name: str, value: str = "1") -> int:
        return sum(1 for message in list(self.messages) if message.get(name) == value)

    def statuses(self) -> list[str]:
        return [message["STATUS"] for message in list(self.messages) if "STATUS" in message]

    def wait_for(self, name: str, count: int = 1, wait_s: float = 120) -> None:
        deadline = time.monotonic() + wait_s
        while self.count(name) < count:
            assert time.monotonic() < deadline, f"{name} was not told: {self.messages}"
            time.sleep(0.02)

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()


# What systemd does between fork and exec: descriptors from 3 on, and for which process they are.
LAUNCH = """
import os, sys
given = [os.dup(int(one)) for one in sys.argv[3].split(",") if one]
given = [os.dup2(os.dup(one), 100 + index) for index, one in enumerate(given)]
for index, one in enumerate(given):
    os.dup2(one, 3 + index)
if given:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], [sys.argv[1], "-I", "-m", "billing", "serve", "--config", sys.argv[2]])
"""


def start(daemon: Daemon, environ: dict[str, str], handed: tuple[socket.socket, ...] = ()) -> None:
    """As systemd would."""
    descriptors = tuple(file.fileno() for file in handed)
    arguments = [sys.executable, str(daemon.config), ",".join(map(str, descriptors))]
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *arguments],
            env={**os.environ, **environ},
            stderr=log,
            stdout=log,
            pass_fds=descriptors,
        )
