"""Encodes answers as bytes: the status line, the headers with a date, the body. No sockets.

HTTP/1.1 200 OK
Content-Type: application/json
Content-Length: 15
Date: Fri, 28 Nov 2025 13:03:20 GMT
Server: billing
                                        further headers; the connection adds `Connection` and an empty line
{"ping":"pong"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

from billing.api.http.writing import JSON, PROBLEM, problem
from billing.ledger.errors import Refused

_REPLAYED: Final = b"Idempotent-Replayed: true\r\n"
_STATUS: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_OK: Final = _STATUS[200] + f"Content-Type: {JSON}\r\nContent-Length: %d\r\n%b".encode()


class Answer(NamedTuple):
    """A whole answer."""

    head: bytes  # status line and headers, each with its line end
    body: bytes
    is_last: bool = False  # the connection ends after it


class Misplaced(Exception):
    """A refusal with an HTTP status of its own."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        last: bool = False,
        name: str = "INVALID_PARAMS",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.last = last
        self.refusal = Refused("UNKNOWN_METHOD" if status == 405 else name, message)


class Answers:
    """Makes answers, and dates all of them by one clock."""

    def __init__(self, wall_now_ns: Callable[[], int]) -> None:
        """`wall_now_ns`: for the header Date."""
        self._wall_now_ns = wall_now_ns
        self._second = -1
        self._dated = b""

    def dated(self) -> bytes:
        """Returns the headers that every answer has; they are made once a second."""
        second = self._wall_now_ns() // 10**9
        if second != self._second:
            self._second = second
            self._dated = f"Date: {formatdate(second, usegmt=True)}\r\nServer: billing\r\n".encode()
        return self._dated

    def json(self, body: bytes, *, replayed: bool = False) -> Answer:
        """Returns an answer with status 200."""
        head = _OK % (len(body), self.dated())
        return Answer(head + _REPLAYED if replayed else head, body)

    def refusal(
        self, refused: Refused, status: int = 0, headers: Mapping[str, str] | None = None, *, is_last: bool = False
    ) -> Answer:
        """Returns a refusal as a problem. `status`: where it differs from that of the error name."""
        rendered = problem(refused, status)
        more = rendered.headers | dict(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode("latin-1", "replace")
        head = b"%bContent-Type: %b\r\nContent-Length: %d\r\n%b%b" % (
            *(_STATUS[rendered.status], PROBLEM.encode(), len(rendered.body)),
            *(self.dated(), lines),
        )
        return Answer(head, rendered.body, is_last)

    def stream(self, kind: str, headers: Mapping[str, str]) -> bytes:
        """Returns the head of an answer with status 200 whose length is not known yet."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return _STATUS[200] + f"Content-Type: {kind}\r\n{lines}".encode() + self.dated()
