"""The client's side of the NATS protocol, without I/O: bytes in, events out; requests in, bytes out.

    server → client                                         event
    INFO {json}                                             Info
    MSG subject sid [reply] bytes, CRLF, payload            Message, status 0
    HMSG subject sid [reply] header_bytes bytes, CRLF, …    Message; header = "NATS/1.0[ status[ text]]", CRLF,
                                                            { "Name: value", CRLF }, CRLF
    PING · PONG · +OK                                       Ping · Pong · nothing
    -ERR 'text'                                             Failure

    client → server: CONNECT {json} · PUB subject [reply] bytes · HPUB subject [reply] header_bytes bytes ·
    SUB subject sid · PING · PONG

Example: `HPUB J.1 _IN.x.1 45 50`, a header of 45 bytes that ends with an empty line, then `hello` and CRLF.

A line has at most `LINE_BYTES_MAX` bytes, a payload `PAYLOAD_BYTES_MAX`; anything else is a `ProtocolError`, after
which the connection cannot be used. Verbs are case-insensitive, as in the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

LINE_BYTES_MAX = 64 * 1024  # INFO names every server of a cluster
PAYLOAD_BYTES_MAX = 8 << 20
HEADER_LINE = b"NATS/1.0"
PING, PONG = b"PING\r\n", b"PONG\r\n"


class ProtocolError(Exception):
    """The server's bytes break the protocol."""


class Info(NamedTuple):
    """The server's description of itself, sent at the beginning and whenever it changes."""

    fields: dict[str, Any]


class Message(NamedTuple):
    """A message for one of the client's subscriptions. `status`: the number in its header line; 0 where
    there is none.
    """

    subject: str
    status: int
    headers: dict[str, str]
    payload: bytes


class Ping(NamedTuple):
    """The client has to answer it with PONG."""


class Pong(NamedTuple):
    """The server has processed everything that the client sent before its PING."""


class Failure(NamedTuple):
    """An error of the server, which most often closes the connection behind it."""

    text: str


Event = Info | Message | Ping | Pong | Failure


class Decoder:
    """Splits the bytes of a server into events. After a ProtocolError it must not be fed again."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._awaited: tuple[str, int, int] | None = None  # a message: subject, bytes of its header, bytes in all

    def feed(self, data: bytes) -> list[Event]:
        """Returns the events that `data` completes. Raises ProtocolError."""
        self._buffer += data
        events: list[Event] = []
        while True:
            if self._awaited is not None:
                subject, header_bytes, total = self._awaited
                if len(self._buffer) < total + 2:
                    return events
                if self._buffer[total : total + 2] != b"\r\n":
                    raise ProtocolError("a payload does not end where it should")
                status, headers = _headers(bytes(self._buffer[:header_bytes])) if header_bytes else (0, {})
                events.append(Message(subject, status, headers, bytes(self._buffer[header_bytes:total])))
                del self._buffer[: total + 2]
                self._awaited = None
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > LINE_BYTES_MAX:
                    raise ProtocolError(f"a line of more than {LINE_BYTES_MAX} bytes")
                return events
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            event = self._line(line)
            if event is not None:
                events.append(event)

    def _line(self, line: bytes) -> Event | None:
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"MSG":
                self._await(rest, 0)
            case b"HMSG":
                self._await(rest, 1)
            case b"PING":
                return Ping()
            case b"PONG":
                return Pong()
            case b"+OK":
                return None
            case b"INFO":
                try:
                    return Info(msgspec.json.decode(rest, type=dict[str, Any]))
                except msgspec.DecodeError as error:
                    raise ProtocolError(f"an INFO that is none: {error}") from None
            case b"-ERR":
                return Failure(rest.decode(errors="replace").strip().strip("'"))
            case _:
                raise ProtocolError(f"an unknown verb {verb[:20]!r}")
        return None

    def _await(self, rest: bytes, headers: int) -> None:
        fields = rest.split()
        try:
            if not 3 + headers <= len(fields) <= 4 + headers:
                raise ValueError
            total = int(fields[-1])
            header_bytes = int(fields[-2]) if headers else 0
            subject = fields[0].decode()
        except ValueError:
            raise ProtocolError(f"a message line that is none: {rest[:80]!r}") from None
        if not 0 <= header_bytes <= total <= PAYLOAD_BYTES_MAX:
            raise ProtocolError(f"a message of {total} bytes")
        self._awaited = subject, header_bytes, total


def _headers(block: bytes) -> tuple[int, dict[str, str]]:
    """Returns (status, headers) of a header block; the last of several headers with one name counts."""
    first, *lines = block.decode(errors="replace").split("\r\n")
    fields = first.split(None, 2)
    if not fields or fields[0] != HEADER_LINE.decode() or (len(fields) > 1 and not fields[1].isdecimal()):
        raise ProtocolError(f"a header that is none: {first[:40]!r}")
    headers = {}
    for line in lines:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProtocolError(f"a header line that is none: {line[:40]!r}")
            headers[name] = value.strip()
    return int(fields[1]) if len(fields) > 1 else 0, headers


def connect(fields: Mapping[str, object]) -> bytes:
    """Returns CONNECT with these fields."""
    return b"CONNECT " + msgspec.json.encode(fields) + b"\r\n"


def subscribe(subject: str, sid: int) -> bytes:
    """Returns SUB to a subject, which may end in a wildcard."""
    return f"SUB {subject} {sid}\r\n".encode()


def publish(subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
    """Returns a message as PUB, or as HPUB where it has headers; the server's answer is sent to `reply`."""
    if not headers:
        return b"".join((f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = b"".join((HEADER_LINE, b"\r\n", lines.encode(), b"\r\n"))
    line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n"
    return b"".join((line.encode(), block, payload, b"\r\n"))
