"""The real daemon as a child process, for tests and benchmarks: start, wait until ready, kill, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from tests.system.ports import free_port

NOBODY = "http://127.0.0.1:9/off"  # nothing answers here; at the default one somebody may, such as another test's scene


def cpu_seconds_of(pid: int) -> float:
    """CPU that a process has used until now, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Daemon:
    """`billing serve` on a configuration of its own. Settings are `"section.key": value`."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.rpc_port = free_port()
        self.admin_port = free_port()
        self.address = f"127.0.0.1:{self.rpc_port}"
        self.log = directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}  # beside that of this process
        self.prefix: list[str] = []  # a program that starts it in its own place, such as prlimit
        keys: dict[str, object] = {
            "daemon.data_dir": str(directory / "data"),
            "rpc.listen": self.address,
            "http.listen": "",
            "admin.listen": f"127.0.0.1:{self.admin_port}",
            "cutoff.url": NOBODY,
            "journal.segment_bytes": 4 * 1024 * 1024,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self._keys = keys
        sections: dict[str, list[str]] = {}
        for path, value in keys.items():
            section, key = path.split(".")
            text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            sections.setdefault(section, []).append(f"{key} = {text}")
        self.config = directory / "config.toml"
        self.config.write_text(
            "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
        )

    def start(self, wait_s: float = 120.0) -> Daemon:
        """Starts it and waits until every bucket is served, as it tells the service manager: a page is not asked for,
        so what shows pages need not be loaded.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messages:
            name = f"billing-notify-{uuid.uuid4()}"  # in no directory, and nobody else's after this one
            messages.bind(f"\0{name}")
            self.process = self.launch(NOTIFY_SOCKET=f"@{name}")
            try:
                self._wait_told(messages, wait_s)
            except AssertionError:
                if self.process.poll() is None:
                    self.kill()
                raise
        return self

    def _wait_told(self, messages: socket.socket, wait_s: float) -> None:
        """Returns when it has said READY, and that it serves; raises with the log where it does not."""
        deadline, is_ready, status = time.monotonic() + wait_s, False, "it said nothing"
        messages.settimeout(0.1)
        while not (is_ready and status.startswith("serving")):
            with contextlib.suppress(TimeoutError):
                message = dict(line.split("=", 1) for line in messages.recv(65_536).decode().splitlines())
                is_ready, status = is_ready or "READY" in message, message.get("STATUS", status)
                continue
            self._assert_runs()
            assert time.monotonic() < deadline, f"not ready after {wait_s} s: {status}\n{self.log.read_text()}"

    def _assert_runs(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log.read_text()}")

    def address_of(self, key: str) -> str:
        """The address that a key of its configuration names."""
        return str(self._keys[key])

    def command(self) -> list[str]:
        """What starts it, behind `prefix`."""
        return [sys.executable, "-m", "billing", "serve", "--config", str(self.config)]

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Starts it and waits for nothing."""
        with self.log.open("ab") as log:
            environ = os.environ | self.environment | environment
            self.process = subprocess.Popen([*self.prefix, *self.command()], stderr=log, stdout=log, env=environ)
        return self.process

    def wait_ready(self, wait_s: float = 120.0, unless: str = "\0") -> None:
        """Returns when /readyz says 200; raises with the log where it does not, or names a reason with `unless`. It is
        asked the more seldom the longer it takes: on a busy machine the questions would take the time to start.
        """
        began_s = time.monotonic()
        deadline = began_s + wait_s
        reason = "no answer"
        while time.monotonic() < deadline:
            self._assert_runs()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except urllib.error.HTTPError as error:
                reason = error.read().decode()
                if unless in reason:
                    break
            except OSError as error:
                reason = str(error)
            time.sleep(max(0.02, (time.monotonic() - began_s) / 16))
        raise AssertionError(f"not ready after {wait_s} s: {reason}\n{self.log.read_text()}")

    def worker_pids(self) -> list[int]:
        """The workers that this daemon's main process started, ascending: all but what follows other hosts' shards."""
        assert self.process is not None
        workers = []
        for pid in self._children(self.process.pid):
            with contextlib.suppress(OSError):
                if b"billing.history.replica" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    workers.append(pid)
        return workers

    @staticmethod
    def _children(parent: int) -> list[int]:
        numbers = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    stat = Path(f"/proc/{name}/stat").read_text()
                    if int(stat.rsplit(")", 1)[1].split()[1]) == parent:
                        numbers.append(int(name))
        return sorted(numbers)

    def cpu_seconds(self, beside: bool = False) -> float:
        """CPU that the main process and the workers have used until now; `beside`: also the processes that workers
        started (history, notices), which run behind the commands.
        """
        assert self.process is not None
        used_s = 0.0
        workers = self.worker_pids()
        others = [child for worker in workers for child in self._children(worker)] if beside else []
        for pid in (self.process.pid, *workers, *others):
            with contextlib.suppress(OSError):
                used_s += cpu_seconds_of(pid)
        return used_s

    def kill(self, pid: int | None = None) -> None:
        """kill −9 of one process, or of the main process and all its workers."""
        assert self.process is not None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            return
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def kill_all(self) -> None:
        """The same, and of what the workers started, where it runs; returns when nothing is left that writes to the
        directory.
        """
        if self.process is None:
            return
        others = [child for worker in self.worker_pids() for child in self._children(worker)]
        self.kill()
        for pid in others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """A signal to the main process and all its workers."""
        assert self.process is not None
        for pid in (self.process.pid, *self.worker_pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, wait_s: float = 120.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(wait_s)
        finally:
            if self.process.poll() is None:
                self.kill()
            self.process = None

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
