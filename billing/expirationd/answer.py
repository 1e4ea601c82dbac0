"""Parses the answer to one call as its bytes come in. Pure: bytes in, a status out.

**The status decides.** Of an answer, only the final status line counts: `HTTP/1.0` or `HTTP/1.1`, a space, three
digits, then a space with anything, or the end of the line. Informational answers (1xx, but 101) may stand before it.
The headers are read only for Retry-After, and to find out whether the connection can be used again; neither can change
the status. The rest of headers and body is neither checked nor used.

    answer      = *( informational-head ) final-head [ body ]
    final-head  = status-line *( header-line ) empty-line        lines end with LF, a CR before it is dropped

**May the connection be used again?** Only if it is certain where the answer ends: HTTP/1.1 without `Connection: close`
(HTTP/1.0 with `Connection: keep-alive`); a body with exactly one Content-Length, or chunked, of at most
`body_bytes_max`; for 204 and 304 no body, and no header that announces one; and not a byte after the answer. Otherwise
the connection is closed.

**Limits.** `HEAD_BYTES_MAX` for everything up to the end of the final head; at most `body_bytes_max` of the body are
read, and kept only as far as the parsing of a chunked body needs.

Worked example: `feed(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")` makes `status` 204, `head_done`, `done` and `reusable`
true.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

HEAD_BYTES_MAX: Final = 262_144

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\n]*)?\r?\n")
_BLANK: Final = re.compile(rb"(?:\r?\n)*")
_STATUS_LINE_BYTES_MAX: Final = 16_384
_LONGEST_BEGINNING: Final = len(b"HTTP/1.1 200 ")
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
_PLAIN: Final = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9][0-9])(?: [^\n]*)?\r\n"
    rb"(?:(?!content-length:)[^\n]+\r\n)*content-length: ?([0-9]{1,9})\r\n(?:(?!content-length:)[^\n]+\r\n)*\r\n(.*)",
    re.IGNORECASE | re.DOTALL,
)
_PLAIN_204: Final = re.compile(rb"HTTP/1\.1 204(?: [^\n]*)?\r\n(?:(?!content-length:)[^\n]+\r\n)*\r\n", re.IGNORECASE)
_UNUSUAL: Final = re.compile(
    rb"\nconnection:(?! ?keep-alive\r)|\nretry-after:|\ntransfer-encoding:|\n\n", re.IGNORECASE
)
_SIZE_LINE_BYTES_MAX: Final = 1_024
_KNOWN_BYTES_MAX: Final = 1_024  # longer answers are not remembered
_SWITCHING: Final = 101
_BODILESS: Final = (204, 304)


def _plain(data: bytes) -> tuple[int, int]:
    """The status and the length of the body of an answer that is whole, common, and leaves the connection open; (0, 0)
    for any other.
    """
    if _UNUSUAL.search(data):
        return 0, 0
    if _PLAIN_204.fullmatch(data):
        return 204, 0
    plain = _PLAIN.fullmatch(data)
    if plain is None:
        return 0, 0
    status, length = int(plain[1]), int(plain[2])
    return (0, 0) if status in _BODILESS or length != len(plain[3]) else (status, length)


class Malformed(Exception):
    """The bytes are not the beginning of an HTTP/1 answer."""


class AnswerReader:
    """Reads one answer. The caller calls `feed` until `head_done`; to use the connection again, until `done`."""

    __slots__ = (
        *("_body", "_body_left", "_body_max", "_chunked", "_head", "_line", "_passed", "_searched"),
        *("done", "head_done", "retry_after", "reusable", "status"),
    )

    def __init__(self, body_bytes_max: int) -> None:
        self.status = 0  # the final status; 0: it has not come yet
        self.head_done = False
        self.retry_after = ""  # as it stands in the header; "": none
        self.reusable = False  # whether the connection can be used again, as far as is known: final once `done`
        self.done = False  # nothing more has to be read of this answer
        self._head = bytearray()
        self._line: re.Match[bytes] | None = None  # the status line at the beginning of `_head`
        self._passed = 0  # bytes of informational answers
        self._searched = 0  # the first so many bytes of `_head` do not contain its end
        self._body = b""  # the part of a chunked body that is not parsed yet
        self._body_max = body_bytes_max
        self._body_left = 0  # bytes of the body still to come; of a chunked body, what is left of the limit
        self._chunked = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises Malformed, but never after `status` is known."""
        if self.done:
            self.reusable = False
        elif self.head_done:
            self._take_body(data)
        else:
            self._head += data
            while self._take_head():
                continue

    def _take_head(self) -> bool:
        """Takes one head, if all of it has come; True if it was an informational one: another head comes behind it."""
        head = self._head
        if self._line is None and not self._take_status_line():
            return False
        assert self._line is not None
        end = _HEAD_END.search(head, max(self._line.end() - 1, self._searched - 2))
        if end is None:
            self._searched = len(head)
            if len(head) > HEAD_BYTES_MAX:
                if not self.status:
                    raise Malformed("no final status line")
                self._head, self.head_done, self.done = bytearray(), True, True
            return False
        lines_at, keeps_open = self._line.end(), self._line[1] == b"1"
        self._line, self._searched = None, 0
        if not self.status:
            self._passed += end.end()
            if self._passed > HEAD_BYTES_MAX:
                raise Malformed("no final status line")
            del head[: end.end()]
            return True
        lines, rest = bytes(head[lines_at : end.start() + 1]), bytes(head[end.end() :])
        self._head = bytearray()
        self.head_done = True
        self._judge(keeps_open, lines)
        if rest and self.done:
            self.reusable = False
        elif rest:
            self._take_body(rest)
        return False

    def _take_status_line(self) -> bool:
        head = bytes(self._head[:_STATUS_LINE_BYTES_MAX])
        blank = _BLANK.match(head)
        if blank is not None and blank.end():
            del self._head[: blank.end()]
            head = head[blank.end() :]
        line = _STATUS_LINE.match(head)
        if line is None:
            if b"\n" in head or not _may_begin(head) or len(head) >= _STATUS_LINE_BYTES_MAX:
                raise Malformed("no status line")
            return False
        self._line = line
        status = int(line[2])
        if status >= 200 or status == _SWITCHING:
            self.status = status
        return True

    def _judge(self, keeps_open: bool, lines: bytes) -> None:
        """Finds out from the headers where the body ends, if they say so, and whether the connection stays open."""
        lengths: set[bytes] = set()
        encoded = False
        for line in lines.split(b"\n"):
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                lengths.add(value.strip())
            elif name == b"transfer-encoding":
                self._chunked = value.strip().lower() == b"chunked" and not encoded
                encoded = True
            elif name == b"connection":
                options = value.lower()
                keeps_open = b"close" not in options and (keeps_open or b"keep-alive" in options)
            elif name == b"retry-after":
                self.retry_after = value.strip().decode("latin-1")
        self.reusable = keeps_open and self.status != _SWITCHING
        length = lengths.pop() if lengths else b""
        if self.status in _BODILESS:
            self.reusable = (
                self.reusable and not encoded and (length in (b"", b"0") or self.status == 304) and not lengths
            )
            self._body_left = 0
        elif encoded:
            self.reusable = self.reusable and self._chunked and not length
            self._body_left = self._body_max
        else:
            self.reusable = self.reusable and length.isdigit() and not lengths and len(length) < 10
            self._body_left = int(length) if self.reusable else 0
            self.reusable = self.reusable and self._body_left <= self._body_max
        self.done = not self.reusable or (not self._chunked and not self._body_left)

    def _take_body(self, data: bytes) -> None:
        if not self._chunked:
            self._body_left -= len(data)
            self.done = self._body_left <= 0
            self.reusable = self._body_left >= 0
            return
        self._body_left -= len(data)
        self._body += data
        if self._body_left < 0:
            self.reusable, self.done, self._body = False, True, b""
            return
        while not self.done:
            size = _CHUNK_SIZE.match(self._body)
            if size is None:
                wrong = b"\n" in self._body or len(self._body) > _SIZE_LINE_BYTES_MAX
                self.reusable, self.done = not wrong, wrong
                return
            length = int(size[1], 16)
            if length == 0:
                rest = self._body[size.end() - 1 :]
                end = _HEAD_END.match(rest) or _HEAD_END.search(rest)
                if end is not None:
                    self.done, self.reusable = True, end.end() == len(rest)
                return
            behind = size.end() + length
            ending = self._body[behind : behind + 2]
            if len(ending) < 2 and ending[:1] != b"\n":
                return
            if ending == b"\r\n":
                behind += 2
            elif ending[:1] == b"\n":
                behind += 1
            else:
                self.reusable, self.done = False, True
            self._body = self._body[behind:]


def whole_answer(data: bytes, body_bytes_max: int) -> AnswerReader | None:
    """The reader of a common answer that is whole and leaves the connection open, as if it had been fed with `data`;
    None for any other, which has to be read. Nobody may feed it: most answers of a server within one second are the
    same bytes, and then it is the same reader.
    """
    return (_known_answer if len(data) <= _KNOWN_BYTES_MAX else _read_whole)(data, body_bytes_max)


def _read_whole(data: bytes, body_bytes_max: int) -> AnswerReader | None:
    status, length = _plain(data)
    if not status or length > body_bytes_max:
        return None
    reader = AnswerReader(body_bytes_max)
    reader.status = status
    reader.head_done = reader.done = reader.reusable = True
    return reader


_known_answer: Final = lru_cache(maxsize=64)(_read_whole)


def _may_begin(head: bytes) -> bool:
    """Whether these bytes may be the beginning of a status line."""
    if head == b"\r":
        return True
    pattern = b"HTTP/1.1 200 "
    for have, want in zip(head[:_LONGEST_BEGINNING], pattern, strict=False):
        if chr(want).isdigit():
            if not chr(have).isdigit():
                return False
        elif have != want and not (want == 32 and have == 13):
            return False
    return True
