"""Sends log records to journald, a terminal or a stream; each warning becomes a named event with its remedy.

Theory. The rooms log plain sentences with the standard library and know nothing of operators. The table in `events`
has a row for each format string that is logged at WARNING or above: the event's name, the names of its values, and the
remedy. With this table the module turns records into events: for journald with fields of their own
(systemd.io/JOURNAL_NATIVE_PROTOCOL), for a terminal in colour, for anything else as lines. A test checks that the table
and the code agree. A request logs nothing at INFO.

    journald    if JOURNAL_STREAM names the file behind standard error: MESSAGE, PRIORITY, BILLING_EVENT, BILLING_DO,
                and BILLING_<NAME> for each value: `journalctl -u billing BILLING_EVENT=shard_held`
    terminal    12:20:08 ERROR shard 1 is held …
                         → what to do
    lines       2026-11-24T12:20:08.123Z ERROR shards.supervisor: shard 1 is held … event=shard_held shard=1 do="…"
    json        {"time": "2026-11-24T12:20:08.123Z", "level": "error", "event": "shard_held", …}

`log.format` = "lines" or "json" gives these whatever standard error is; "auto" takes the first form above that fits.
Times in lines and JSON are UTC, on a terminal they are local; journald adds its own.

**What is kept out.** Control characters, which a terminal would obey, are replaced. No part of the daemon logs secrets.
A user id is shown, hashed or hidden (`log.user_ids`) wherever a text has `user_id=`. Unless user ids are shown, the
request ids and messages that clients write are hidden. Hashes of equal ids are equal, so a reader of the log who can
guess an id can verify the guess.

A missing journal never raises: records that journald does not take go to standard error. Nor does a log that nobody
reads block who logs (`steady_stream`).
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import socket
import struct
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from billing.admin.recent import Recent
from billing.config.schema import Log
from billing.service.events import EVENTS, Event
from billing.service.steady_stream import SteadyStream

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
MESSAGE_CHARACTERS_MAX: Final = 48_000  # a datagram holds more; only the trace of a bug is longer, and its end is cut
NAMESPACE: Final = uuid.UUID("6f2f2a0c-6d7c-4f0e-9a36-3b3d0b6f7c11")  # of MESSAGE_ID

_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_COLOURS: Final = {logging.CRITICAL: "1;37;41", logging.ERROR: "1;31", logging.WARNING: "33", logging.INFO: "32"}
_QUOTED = r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*"|[^\s,)]+"""
_USER = re.compile(rf"\b(user_id)=({_QUOTED})")
_WRITTEN = re.compile(rf"\b(request_id|message|note|key)=({_QUOTED})")
_BARE = re.compile(r"[\w.:/@+-]+")  # a value that needs no quotes
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


log = logging.getLogger("billing.service.logs")

_OTHER: Final = Event("", "", (), "")  # for records that are no event of the table


class Discretion:
    """Decides how much of the clients' own texts the log shows. `user_ids`: "shown", "hashed" or "hidden"."""

    def __init__(self, user_ids: str) -> None:
        self.user_ids = user_ids

    def __call__(self, text: str) -> str:
        """The text with user ids, request ids and messages replaced as configured, and control characters replaced."""
        if self.user_ids != "shown":
            text = _USER.sub(self._user, text)
            text = _WRITTEN.sub(r"\1=…", text)
        return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)

    def _user(self, match: re.Match[str]) -> str:
        if self.user_ids == "hidden":
            return f"{match[1]}=…"
        return f"{match[1]}=#{hashlib.sha256(match[2].encode()).hexdigest()[:12]}"


class Lines(logging.Formatter):
    """For files and pipes: the text, followed by the event's name and fields in logfmt."""

    def __init__(self, discretion: Discretion, common: Mapping[str, str]) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._discretion = discretion
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        text, _, trace = super().format(record).partition("\n")
        fields = fields_of(record, self._discretion, self._common)
        tail = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        return f"{utc(record)} {self._discretion(text)}{tail}" + (f"\n{self._discretion(trace)}" if trace else "")


class Json(logging.Formatter):
    """For log collectors: one JSON object a line."""

    def __init__(self, discretion: Discretion, common: Mapping[str, str]) -> None:
        super().__init__()
        self._discretion = discretion
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._discretion(record.getMessage()),
        }
        for name, value in fields_of(record, self._discretion, self._common).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self._discretion(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


class Colours(logging.Formatter):
    """For a terminal: coloured text, with the remedy on a second line."""

    def __init__(self, discretion: Discretion) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._discretion = discretion

    def format(self, record: logging.LogRecord) -> str:
        event = event_of(record)
        text = self._discretion(super().format(record))
        clock, level, rest = text.split(" ", 2)
        colour = _COLOURS.get(record.levelno, "2")
        advice = f"\n         \x1b[36m→ {event.do}\x1b[0m" if event.do else ""
        return f"\x1b[2m{clock}\x1b[0m \x1b[{colour}m{level:<8}\x1b[0m {rest}{advice}"


class JournaldHandler(logging.Handler):
    """Sends each record to journald as one datagram. A record that cannot be sent goes to `fallback`."""

    def __init__(self, path: str, discretion: Discretion, fallback: logging.Handler, common: Mapping[str, str]) -> None:
        super().__init__()
        self._path = path
        self._discretion = discretion
        self._fallback = fallback
        self._common = common
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(self._packed(record), self._path)
        except OSError:
            self._fallback.handle(record)
        except Exception:  # a record that cannot be formatted must not end what logged it
            self.handleError(record)

    def _packed(self, record: logging.LogRecord) -> bytes:
        event = event_of(record)
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        fields = {
            "MESSAGE": self._discretion(message)[:MESSAGE_CHARACTERS_MAX],
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "billing",
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **self._common,
        }
        if event.do:
            fields["BILLING_EVENT"] = event.name
            fields["BILLING_DO"] = event.do
            fields["MESSAGE_ID"] = uuid.uuid5(NAMESPACE, event.name).hex
        if isinstance(record.args, tuple):
            for name, value in zip(event.values, record.args, strict=False):
                fields[f"BILLING_{name.upper()}"] = self._discretion(str(value))
        return b"".join(_field(name, value) for name, value in fields.items())

    def close(self) -> None:
        self._socket.close()
        super().close()


def utc(record: logging.LogRecord) -> str:
    """The time of a record, as `2026-11-24T12:20:08.123Z`."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fields_of(record: logging.LogRecord, discretion: Discretion, common: Mapping[str, str]) -> dict[str, str]:
    """The fields of a record: the event's name (if the record is an event), its values by name, its remedy, and the
    `common` fields with names in small letters, without `BILLING_`.
    """
    event = event_of(record)
    fields = {"event": event.name} if event.do else {}
    if isinstance(record.args, tuple):
        for name, value in zip(event.values, record.args, strict=False):
            fields[name] = discretion(str(value))
    if event.do:
        fields["do"] = event.do
    return fields | {name.removeprefix("BILLING_").lower(): value for name, value in common.items()}


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def event_of(record: logging.LogRecord) -> Event:
    """The event of a record's format string; an empty one for a record that is not in the table."""
    return EVENTS.get(record.msg, _OTHER) if isinstance(record.msg, str) else _OTHER


def set_up(
    log: Log,
    environ: Mapping[str, str],
    common: Mapping[str, str] | None = None,
    stream: Any = None,
    journal: str = JOURNAL_SOCKET,
) -> Recent:
    """Sets up the root logger of this process as `log` and the environment say. `common`: fields added to every record.
    `stream`: standard error by default. `journal`: the path of journald's socket. Returns the handler that keeps the
    latest warnings.
    """
    stream = sys.stderr if stream is None else stream
    discretion, common = Discretion(log.user_ids), common or {}
    handler: logging.Handler = logging.StreamHandler(_steady(stream))
    colour = stream.isatty() and "NO_COLOR" not in environ and environ.get("TERM") != "dumb"
    if log.format == "json":
        handler.setFormatter(Json(discretion, common))
    elif log.format == "lines" or not colour:
        handler.setFormatter(Lines(discretion, common))
    else:
        handler.setFormatter(Colours(discretion))
    if log.format == "auto" and is_journal(environ.get("JOURNAL_STREAM", ""), stream):
        handler = JournaldHandler(journal, discretion, handler, common)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    recent = Recent(discretion, lambda record: event_of(record).do)
    root.addHandler(recent)
    root.setLevel(log.level.upper())
    return recent


def _steady(stream: Any) -> Any:
    """The stream, so that it blocks nobody; unchanged if there is no file behind it."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    steady = SteadyStream(descriptor, lambda count: log.warning("%d log records were dropped: nobody read them", count))
    atexit.register(steady.drain)
    return steady


def is_journal(journal_stream: str, stream: Any) -> bool:
    """Whether `stream` is the one that systemd connected to the journal (`JOURNAL_STREAM`, systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
