"""Logs: fields in the journal, colour on a terminal, plain in a file; with what to do, without what is private."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from billing.config.schema import Log
from billing.ledger.ledger import ReplayDifference
from billing.service.events import EVENTS
from billing.service.logs import Discretion, Lines, is_journal, set_up
from tests.ledger.driver import LedgerDriver

HELD = "shard %d is held until a reload or a restart: %s"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own are not ours to close
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


class JournalSocket:
    """Where journald would listen."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "journal")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)

    def take(self) -> dict[str, str]:
        """One record, decoded as the protocol says."""
        data, fields = self._socket.recv(1 << 20), {}
        while data:
            name, _, rest = data.partition(b"\n")
            if b"=" in name:
                key, _, value = name.partition(b"=")
                data = rest
            else:
                (size,) = struct.unpack_from("<Q", rest)
                key, value, data = name, rest[8 : 8 + size], rest[8 + size + 1 :]
            fields[key.decode()] = value.decode()
        return fields

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journal(data_dir: Path) -> Iterator[JournalSocket]:
    journal_socket = JournalSocket(data_dir)
    yield journal_socket
    journal_socket.close()


def as_journal(stream: io.TextIOWrapper) -> dict[str, str]:
    status = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def test_the_journal_gets_fields(tmp_path: Path, journal: JournalSocket) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        set_up(Log(), as_journal(stream), {"BILLING_WORKER": "2"}, stream, journal.path)
        logging.getLogger("shards.supervisor.child_process").error(HELD, 2, "segment-1, offset 4096\nis damaged")
        fields = journal.take()
    assert fields["MESSAGE"] == "shard 2 is held until a reload or a restart: segment-1, offset 4096\nis damaged"
    assert fields["PRIORITY"] == "3"
    assert fields["SYSLOG_IDENTIFIER"] == "billing"
    assert fields["BILLING_EVENT"] == "shard_held"
    assert fields["BILLING_SHARD"] == "2"
    assert fields["BILLING_REASON"].startswith("segment-1")
    assert fields["BILLING_WORKER"] == "2"
    assert fields["BILLING_DO"] == EVENTS[HELD].do
    assert len(fields["MESSAGE_ID"]) == 32
    assert (tmp_path / "stderr").read_text() == ""


def test_a_bug_has_its_trace_in_the_journal(tmp_path: Path, journal: JournalSocket) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        set_up(Log(), as_journal(stream), None, stream, journal.path)
        try:
            raise ZeroDivisionError("of x")
        except ZeroDivisionError:
            logging.getLogger("billing").critical("the daemon ends on a bug", exc_info=True)
        fields = journal.take()
    assert "ZeroDivisionError: of x" in fields["MESSAGE"]
    assert fields["PRIORITY"] == "2"


def test_a_journal_that_is_gone_loses_nothing(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        set_up(Log(), as_journal(stream), None, stream, str(tmp_path / "nobody"))
        logging.getLogger("shards.supervisor.child_process").error(HELD, 2, "why")
    assert "shard 2 is held" in (tmp_path / "stderr").read_text()


def test_another_stream_is_not_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream, (tmp_path / "other").open("w") as other_stream:
        assert is_journal(as_journal(stream)["JOURNAL_STREAM"], stream)
        assert not is_journal(as_journal(other_stream)["JOURNAL_STREAM"], stream)
        assert not is_journal("", stream)


def test_a_terminal_gets_colour_and_advice() -> None:
    near, far = pty.openpty()
    script = (
        "import logging, os; from billing.config.schema import Log; from billing.service.logs import set_up;"
        f"set_up(Log(), os.environ); logging.getLogger('x').error({HELD!r}, 1, 'why');"
        "logging.getLogger('x').info('a plain word')"
    )
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", script], stderr=far, env=environ, check=True)
    os.close(far)
    text = ""
    with suppress(OSError):  # EIO: all was read, and nobody holds the other end
        while more := os.read(near, 65536):
            text += more.decode()
    os.close(near)
    assert "\x1b[1;31mERROR" in text
    assert "→ " + EVENTS[HELD].do in text
    assert "\x1b[32mINFO" in text


def test_a_file_gets_lines_without_colour(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        set_up(Log(level="warning"), {}, {"BILLING_WORKER": "3"}, stream)
        logging.getLogger("x").error(HELD, 1, "why not")
        logging.getLogger("x").info("not told")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 1
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR x: shard 1 is held ", lines[0])
    tail = f' event=shard_held shard=1 reason="why not" do="{EVENTS[HELD].do}" worker=3'
    assert lines[0].endswith("until a reload or a restart: why not" + tail)


def test_json_is_one_object_a_line_with_the_events_fields(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        set_up(Log(format="json", user_ids="hidden"), as_journal(stream), {"BILLING_WORKER": "3"}, stream)
        logging.getLogger("x").error(HELD, 1, "user_id='alice'\nand more")
        try:
            raise ZeroDivisionError("of x")
        except ZeroDivisionError:
            logging.getLogger("billing").critical("the daemon ends on a bug", exc_info=True)
        logging.getLogger("x").info("it serves")
    first, second, third = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "error",
        "logger": "x",
        "message": "shard 1 is held until a reload or a restart: user_id=…\nand more",
        "event": "shard_held",
        "shard": "1",
        "reason": "user_id=…\nand more",
        "do": EVENTS[HELD].do,
        "worker": "3",
    }
    assert second["event"] == "bug"
    assert "ZeroDivisionError: of x" in second["exception"]
    assert third.keys() == {"time", "level", "logger", "message", "worker"}, "no event, and nothing to do"


def difference() -> str:
    """An error that shows a whole entry, with the user and what a client wrote."""
    driver = LedgerDriver()
    driver.top_up("alice@example.com", 100, at=0, request_id="invoice-17", message="paid by alice")
    return str(ReplayDifference(driver.ledger.records[0][1], None))


@pytest.mark.parametrize("user_ids", ["hashed", "hidden"])
def test_users_are_not_named_where_they_are_not_to_be(user_ids: str) -> None:
    text = difference()
    assert "alice@example.com" in Discretion("shown")(text)
    assert "invoice-17" in Discretion("shown")(text)
    hidden = Discretion(user_ids)(text)
    for private in ("alice", "invoice-17", "paid by"):
        assert private not in hidden
    assert "a=100" in hidden, "what is no client's own is still told"
    if user_ids == "hashed":
        assert Discretion(user_ids)("user_id=b'alice'") == Discretion(user_ids)("user_id=b'alice'")
        assert Discretion(user_ids)("user_id=b'alice'") != Discretion(user_ids)("user_id=b'bob'")


def test_what_comes_from_outside_does_not_steer_the_terminal() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s answers", ("\x1b[2J\x07evil\r",), None)
    line = Lines(Discretion("shown"), {}).format(record)
    assert not any(ord(character) < 32 for character in line)
    assert "evil" in line


def test_a_log_that_nobody_reads_blocks_nobody_and_goes_on_where_it_was() -> None:
    out, into = os.pipe()
    with os.fdopen(into, "w") as stream, os.fdopen(out, "rb") as reader:
        set_up(Log(format="lines"), {}, None, stream)
        for number in range(2000):
            logging.getLogger("x").error(HELD, number, "a reason of some length" * 4)
        logging.getLogger("x").error("the last one")
        lines: list[bytes] = []
        while not lines or b"the last one" not in lines[-1]:
            lines.append(reader.readline())
    assert [line.count(b" shard %d is held " % number) for number, line in enumerate(lines[:-1])] == [1] * 2000
