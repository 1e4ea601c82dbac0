"""The command line where the world around it is odd: words that are no text, terminals that know few characters, output
that is closed or full, and a port that is somebody else's. No trace is ever shown, and money that moved is said to have
moved.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.commands import carried_out
from tests.system.daemon import Daemon

BILLING = f"{sys.executable} -m billing"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
EMOJI = "\N{GRINNING FACE}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("odd"), shards__workers=1) as daemon:
        yield daemon


def shell(daemon: Daemon, line: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash; `billing` in it calls this daemon."""
    environment = {**os.environ, "BILLING_ADDRESS": daemon.address, **environ}
    line = line.replace("billing", BILLING, 1)
    result = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=120, check=False)
    assert b"Traceback" not in result.stderr, result.stderr.decode()
    return result


def balance(daemon: Daemon, user: str) -> int:
    output = carried_out("account", user, "--json", "--address", daemon.address).stdout
    return int(json.loads(output)["balance_nanos"])


def test_a_user_id_that_is_no_text_is_the_daemons_to_refuse(daemon: Daemon) -> None:
    result = shell(daemon, r"billing account $'\xff\xfe'")
    assert result.returncode == 1
    assert result.stderr.startswith(b"billing: INVALID_USER_ID: ")


@pytest.mark.parametrize("kind", ["entries", "accounts"])
def test_an_export_into_a_file_is_whole_where_its_bar_is_on_a_terminal(
    daemon: Daemon, tmp_path: Path, kind: str
) -> None:
    carried_out("top-up", "exported", "1", "--address", daemon.address)
    rows = shell(daemon, f"billing export {kind} --csv").stdout
    reader, terminal = pty.openpty()
    output = bytearray()

    def read() -> None:
        with suppress(OSError):  # the terminal is closed
            while data := os.read(reader, 65_536):
                output.extend(data)

    listener = threading.Thread(target=read)
    listener.start()
    command = [*BILLING.split(), "export", kind, "--csv", "--address", daemon.address]
    with (tmp_path / "rows.csv").open("wb") as file:
        result = subprocess.run(command, stdout=file, stderr=terminal, timeout=120, check=False)
    os.close(terminal)
    listener.join()
    os.close(reader)
    assert (result.returncode, (tmp_path / "rows.csv").read_bytes()) == (0, rows)
    assert b"exported" in rows
    assert b"exported" not in output


def test_a_locale_without_characters_takes_all_of_them(daemon: Daemon) -> None:
    result = shell(daemon, r"billing top-up $'\xf0\x9f\x98\x80' 1", **ASCII)
    assert result.returncode == 0, result.stderr
    assert balance(daemon, EMOJI) == 10**9


@pytest.mark.parametrize("option", ["", "--json", "--csv"])
def test_a_terminal_that_cannot_show_the_reply_gets_it_all_the_same(daemon: Daemon, option: str) -> None:
    user = f"é{EMOJI}{option or 'plain'}"
    result = shell(daemon, f"billing top-up '{user}' 1 {option}", PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stderr) == (0, b"")
    if option == "--json":
        assert json.loads(result.stdout.decode("latin-1"))["user_id"] == user
    assert balance(daemon, user) == 10**9


@pytest.mark.parametrize(("name", "redirection"), [("full", "> /dev/full"), ("closed", ">&-"), ("all", ">&- 2>&- <&-")])
def test_money_that_moved_is_said_to_have_moved(daemon: Daemon, name: str, redirection: str) -> None:
    result = shell(daemon, f"billing top-up {name} 1 {redirection}")
    assert result.returncode == 0
    assert balance(daemon, name) == 10**9
    if name != "all":
        assert b"top_up was carried out (entry 1, balance 1)" in result.stderr


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-"])
def test_an_answer_that_could_not_be_written_is_none(daemon: Daemon, redirection: str) -> None:
    carried_out("top-up", "asked", "1", "--address", daemon.address)
    for command in ("account asked", "accounts --csv", "export entries --csv", "export accounts"):
        result = shell(daemon, f"billing {command} {redirection}")
        assert result.returncode == 1, command
        assert b"the output could not be written" in result.stderr


def test_the_dashboards_port_is_called_what_it_is(daemon: Daemon) -> None:
    result = shell(daemon, f"billing ping --timeout 1d --address 127.0.0.1:{daemon.admin_port}")
    assert result.returncode == 3
    assert b"speaks HTTP and not MessagePack-RPC" in result.stderr


def test_a_receiver_says_that_its_port_is_taken(daemon: Daemon) -> None:
    result = shell(daemon, f"billing receiver --listen {daemon.address}")
    assert result.returncode == 1
    assert b"Address already in use" in result.stderr


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(daemon: Daemon, shell_name: str) -> None:
    result = shell(daemon, f"billing completion {shell_name}")
    assert result.returncode == 0
    assert b"_BILLING_COMPLETE" in result.stdout


def test_bash_completes_commands_and_options(daemon: Daemon) -> None:
    variables = {"_BILLING_COMPLETE": "bash_complete"}
    first = shell(daemon, "billing", **variables, COMP_WORDS="billing cu", COMP_CWORD="1")
    assert first.stdout == b"plain,cutoffs\n"
    option = shell(daemon, "billing", **variables, COMP_WORDS="billing top-up --req", COMP_CWORD="2")
    assert option.stdout == b"plain,--request-id\n"
    behind = shell(daemon, "billing", **variables, COMP_WORDS="billing --json buckets mo", COMP_CWORD="3")
    assert behind.stdout == b"plain,move\n"


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also where the tests run without one
sys.meta_path.insert(0, Interrupts())
from billing.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["billing.service.beginning", "billing.cli.main", "billing.cli.output"])
def test_a_command_that_is_interrupted_while_it_loads_shows_no_trace(module: str) -> None:
    line = [sys.executable, "-c", INTERRUPTED, "accounts", module]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "billing: aborted\n")
