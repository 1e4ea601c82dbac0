"""The console of the real daemon: a whole session, typed at a terminal and read from a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon

SESSION = [
    "top_up {user} 10",
    "get_account {user}",
    "top_up {user} 5",
    "debit {user} 3",
    "debit {user} 90",
    "debit {user} 12",
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1) as daemon:
        yield daemon


def test_a_session_from_a_pipe(daemon: Daemon) -> None:
    lines = "\n".join([*SESSION, "nonsense", "history {user}"]).format(user="piped") + "\n"
    result = subprocess.run(
        [sys.executable, "-m", "billing", "console", "--address", daemon.address],
        input=lines, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 1  # two lines were refused
    assert re.findall(r"^balance +(\S+)$", result.stdout, re.M) == ["10", "10", "15", "12", "0"]
    assert re.findall(r"^outcome +(\S+)$", result.stdout, re.M) == ["ok", "exhausted"]
    assert "INSUFFICIENT_FUNDS: 78 coins are missing; 12 are available" in result.stderr
    assert "there is no nonsense" in result.stderr
    assert re.search(r"^ *\d+ +\S+ \S+ +debit", result.stdout, re.M)


def test_a_csv_of_nothing_that_is_coming_has_its_line_of_names(daemon: Daemon) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "billing", "forecast", "--within", "1s", "--csv", "--address", daemon.address],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "at,cutoffs,most_in_a_second\n")


def test_the_session_of_a_tarantool_console_gives_its_answers(daemon: Daemon) -> None:
    typed = """\
increase_balance('origin_03', 750)
decrease_balance('origin_03', 200)
decrease_balance('origin_03', 500)
decrease_balance('origin_03', 200)
decrease_balance("origin_03", 50);
bucket_id('1')
"""
    result = subprocess.run(
        [sys.executable, "-m", "billing", "console", "--address", daemon.address],
        input=typed, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "остаток средств: 550",
        "остаток средств: 50",
        "не достаточно средств: 50, необходимо еще: 150, операция не будет совершена.",
        "средства только что закончились",
        "477",
    ]


class Terminal:
    """A console at a terminal of its own."""

    def __init__(self, address: str, state: Path) -> None:
        self.seen = ""
        self._ours, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "billing", "console", "--address", address],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env={**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )  # fmt: skip
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, pattern: str) -> str:
        """Reads until the pattern was seen; what came since the last time."""
        while not re.search(pattern, self.seen):
            assert select.select([self._ours], [], [], 60)[0], f"{pattern} was not seen in {self.seen!r}"
            try:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the console ended: {self.seen!r}") from None
        output, self.seen = self.seen, ""
        return output

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_a_session_at_a_terminal(daemon: Daemon, tmp_path: Path) -> None:
    terminal = Terminal(daemon.address, tmp_path)
    try:
        terminal.until("Amounts are coins")
        terminal.type("top_up typed 10\r")
        terminal.until(r"balance.*10[\s\S]*billing>")
        terminal.type("deb\t")
        terminal.until("it")  # of "debit", which may be drawn in two parts
        terminal.type(" typed 3 mo\t")
        terminal.until("de=")  # of "mode=", which may be drawn in two parts
        terminal.type("partial\r")
        terminal.until(r"debited.*3")
        terminal.type("debit typed 90\r")
        terminal.until("INSUFFICIENT_FUNDS")
        terminal.type("set_rate typed 100\r")
        terminal.until("360,000 per hour")
        terminal.type("watch typed 1s\r")
        terminal.until("r[au]ns? out")
        terminal.type("get_account typed\r")
        terminal.until(r"exhausted[\s\S]*thresholds[\s\S]*billing>")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 1  # one line was refused
    finally:
        terminal.close()
    history = tmp_path / "billing_console_history"
    assert "+watch typed 1s" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_whoever_does_not_say_yes_to_what_cannot_be_undone_has_said_no(daemon: Daemon, tmp_path: Path) -> None:
    terminal = Terminal(daemon.address, tmp_path)
    try:
        terminal.until("Amounts are coins")
        terminal.type("top_up doubtful 10\r")
        terminal.until(r"balance.*0[\s\S]*billing>")
        for refusal_keys in ("\x03", "\x04", "\r", "n\r", "what\rno\r"):
            terminal.type("close_account doubtful\r")
            terminal.until("cannot be undone")
            terminal.type(refusal_keys)
            terminal.until("Nothing was done")
            terminal.type("get_account doubtful\r")
            terminal.until(r"active[\s\S]*billing>")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()


def test_what_is_meant_is_done(daemon: Daemon, tmp_path: Path) -> None:
    terminal = Terminal(daemon.address, tmp_path)
    try:
        terminal.until("Amounts are coins")
        terminal.type("top_up certain 10\r")
        terminal.until(r"balance.*10[\s\S]*billing>")
        terminal.type("close_account certain\r")
        terminal.until("cannot be undone")
        terminal.type("y\r")
        terminal.until("paid out|closed")
        terminal.type("get_account certain\r")
        terminal.until("UNKNOWN_ACCOUNT")
    finally:
        terminal.close()


def unread(port: int) -> bool:
    """Whether a connection to this port has bytes that the process behind it has not read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues = line.split()[:5]
        if state == "01" and int(local.rpartition(":")[2], 16) == port and int(queues.rpartition(":")[2], 16):
            return True
    return False


def test_an_interrupted_call_says_what_it_leaves_open_and_the_console_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    terminal = Terminal(daemon.address, tmp_path)
    (worker,) = daemon.worker_pids()
    try:
        terminal.until("Amounts are coins")
        os.kill(worker, signal.SIGSTOP)
        terminal.type("top_up waiting 1\r")
        terminal.until(r"billing> [\s\S]*1")
        while not unread(daemon.rpc_port):
            time.sleep(0.02)
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.until("may have been carried out")
        os.kill(worker, signal.SIGCONT)
        terminal.type("get_account waiting\r")
        terminal.until("active")
    finally:
        os.kill(worker, signal.SIGCONT)
        terminal.close()
