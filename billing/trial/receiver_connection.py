"""One connection to the trial receiver: the part of HTTP/1.1 that calls need. It answers in order, or misbehaves on
demand.

Grammar of a request (RFC 9112, without chunked bodies): a request line, header lines, an empty line, and as many bytes
as Content-Length says. Anything else gets status 400, 411, 413, 431 or 501, and the connection is closed.

The clock is read before anything else is done with the bytes. While an answer is delayed, later requests wait; when
more than 64 KiB wait, the connection is not read.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Protocol, cast

from billing.trial.faults import ENDLESS_CHUNK, ODD, Fault, answer, bomb

HEAD_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 262_144
WAITING_BYTES_MAX: Final = 65_536

_OK: Final = answer(200)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Site(Protocol):
    """The parts of the receiver that its connections use."""

    connections: set[Connection]
    connects: int

    def now_ns(self) -> int: ...
    def take_call(self, arrived_ns: int, head: bytes, body: bytes, answered: str) -> None: ...
    def fault_now(self, head: bytes, body: bytes) -> Fault | None: ...
    def is_served(self, connection: Connection) -> bool: ...
    def serve_next(self) -> None: ...
    def genuine(self, head: bytes, body: bytes) -> bool: ...
    def page(self, target: str) -> bytes | None: ...


class Connection(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._buffer = b""
        self._arrived_ns = 0
        self._waiting = False  # an answer is delayed, perhaps for ever, or the connection is ending
        self._pouring = False
        self._paused = False
        self.number = 0  # of all connections of the receiver, from 1
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._site.connections.add(self)
        self._site.connects += 1
        self.number = self._site.connects

    def connection_lost(self, error: Exception | None) -> None:
        self._site.connections.discard(self)
        self._site.serve_next()
        self._waiting = True
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._arrived_ns = self._site.now_ns()
        self._buffer = self._buffer + data if self._buffer else data
        if self._waiting and len(self._buffer) > WAITING_BYTES_MAX:
            self.transport.pause_reading()
        self.serve()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._pouring:
            self._pour()

    def reset(self) -> None:
        """Ends the connection with RST."""
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def recover(self) -> None:
        """Called when the fault is over. Ends the connection if a call on it hangs."""
        if self._waiting:
            self.transport.abort()

    # -- requests ---------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answers the complete requests in the buffer, until an answer is delayed or the connection is not served."""
        while not self._waiting and self._buffer and self._site.is_served(self):
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0 or end > HEAD_BYTES_MAX:
                if len(self._buffer) > HEAD_BYTES_MAX:
                    self._refuse(431)
                return
            head, body_end = self._buffer[:end], end + 4
            if not head.startswith(b"GET ") or b"ontent-" in head or b"ransfer-" in head:
                length = self._body_length(head)
                if length < 0:
                    self._refuse(-length)
                    return
                body_end += length
                if len(self._buffer) < body_end:
                    return
            body = self._buffer[end + 4 : body_end]
            self._buffer = self._buffer[body_end:]
            self._request(head, body)

    def _body_length(self, head: bytes) -> int:
        """The length of the body in bytes; below zero: minus the status to refuse the request with."""
        if head.count(b" ", 0, head.find(b"\r\n") if b"\r\n" in head else len(head)) != 2:
            return -400
        if not head.startswith((b"GET ", b"POST ")):
            return -501
        headers = headers_of(head)
        if b"transfer-encoding" in headers:
            return -411
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return -400
        return int(length) if len(length) < 9 and int(length) <= BODY_BYTES_MAX else -413

    def _refuse(self, status: int) -> None:
        self._waiting = True
        self._buffer = b""
        self.transport.write(answer(status, b"", b"Connection: close\r\n"))
        self.transport.close()

    def _request(self, head: bytes, body: bytes) -> None:
        site = self._site
        target = head.split(b" ", 2)[1] if head.count(b" ") >= 2 else b""
        if (
            target.startswith((b"/stats", b"/received", b"/misbehave"))
            and (page := site.page(target.decode("latin-1"))) is not None
        ):
            self._write(head, answer(200, page, b"Content-Type: application/json\r\n"))
            return
        if not target.startswith(b"/"):
            self._refuse(400)
            return
        if not site.genuine(head, body):
            site.take_call(self._arrived_ns, head, body, "401")
            self._write(head, answer(401, b"wrong signature"))
            return
        fault = site.fault_now(head, body)
        if fault is None:
            self._write(head, _OK)
            site.take_call(self._arrived_ns, head, body, "200")
        else:
            self._misbehave(fault, head, body)

    def _write(self, head: bytes, response: bytes) -> None:
        self.transport.write(response)
        if b"lose" in head and headers_of(head).get(b"connection", b"").lower() == b"close":
            self._waiting = True
            self.transport.close()

    # -- faults -----------------------------------------------------------------------------------------------------

    def _misbehave(self, fault: Fault, head: bytes, body: bytes) -> None:
        name = fault.name
        answered = str(int(fault.value)) if name == "status" else name
        self._site.take_call(self._arrived_ns, head, body, answered)
        loop = asyncio.get_running_loop()
        match name:
            case "status":
                headers = b"Retry-After: %d\r\n" % fault.retry_after_s if fault.retry_after_s >= 0 else b""
                self._write(head, answer(int(fault.value), b"no", headers))
            case "redirect":
                self._write(head, answer(302, b"", b"Location: /elsewhere\r\n"))
            case "gzip-bomb":
                self._write(head, bomb())
            case "slow" | "gateway":
                self._waiting = True
                response = _OK if name == "slow" else answer(504, b"no")
                loop.call_later(fault.value / 1000, self._answer_late, head, response)
            case "drip":
                self._waiting = True
                self._drip(_OK, fault.value / 1000)
            case "hang":
                self._waiting = True
            case "hang-body":
                self._waiting = True
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            case "endless":
                self._waiting = self._pouring = True
                self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
                self._pour()
            case "body-204" | "odd-framing" | "long-header":
                self._write(head, ODD[name])
            case "reset":
                self.reset()
            case "lost":
                self._waiting = True
                self.transport.close()
            case _:
                raise AssertionError(name)

    def _answer_late(self, head: bytes, response: bytes) -> None:
        if not self.transport.is_closing():
            self._waiting = False
            self._write(head, response)
            self._read_on()

    def _drip(self, rest: bytes, pause_s: float) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(rest[:1])
        if len(rest) > 1:
            asyncio.get_running_loop().call_later(pause_s, self._drip, rest[1:], pause_s)
        else:
            self._waiting = False
            self._read_on()

    def _pour(self) -> None:
        while not self._paused and not self.transport.is_closing():
            self.transport.write(ENDLESS_CHUNK)

    def _read_on(self) -> None:
        self.transport.resume_reading()
        self.serve()


def headers_of(head: bytes) -> dict[bytes, bytes]:
    """The headers of a request, names in lower case. Of several headers with one name the last one counts."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in lines}
