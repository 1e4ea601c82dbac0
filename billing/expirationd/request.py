"""Makes the bytes of one request from the configured URL and the owed call. Pure.

`{user_id}` in the URL is replaced by the user id; if the URL has none, `user_id=` is added to the query. Then come
`event_id`, `seq` and `exhausted_at_ns`. Everything in a value except letters, digits and `-._~` is percent-encoded, so
no user id, which an outsider may have chosen, can add a parameter, a path segment or a header.

For `https://cloud.example/off?zone=3`, user `üser/1`, event `%C3%BCser%2F1:7:1700000000000000000`:

    GET /off?zone=3&user_id=%C3%BCser%2F1&event_id=%25C3%25BCser%252F1%3A7%3A1700000000000000000&seq=7
        &exhausted_at_ns=1700000000000000000 HTTP/1.1                                      (one line)
    Host: cloud.example
    User-Agent: billing
    Accept: */*
    Cache-Control: no-store
    webhook-id: %C3%BCser%2F1:7:1700000000000000000
    webhook-timestamp: 1700000012
    webhook-signature: v1,...

Event ids are printable ASCII without spaces; any other id is percent-encoded in `webhook-id` as in the query.

With `cutoff.method = "POST"` the same fields are in a JSON body, and the signature is over the body, as Standard
Webhooks libraries expect; `{user_id}` in the URL is replaced likewise, and nothing is added to the query:

    POST /off?zone=3 HTTP/1.1
    Host: cloud.example
    User-Agent: billing
    Accept: */*
    Content-Type: application/json
    Content-Length: 122
    webhook-id: %C3%BCser%2F1:7:1700000000000000000
    webhook-timestamp: 1700000012
    webhook-signature: v1,...

    {"user_id":"üser/1","event_id":"%C3%BCser%2F1:7:1700000000000000000","seq":7,"exhausted_at_ns":1700000000000000000}

**Prepared before the instant.** The template parses the URL once. For a burst that comes within a second, `prepare`
makes those parts of each request that do not depend on the instant of sending, and keeps them by event id. A user who
is topped up meanwhile will have another event later, so the prepared bytes are never used; they are dropped at the
second `turn` after that. The attempt itself adds only the timestamp and the signature.
"""

import json
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_from_bytes, urlsplit

from billing.addresses import check_url
from billing.signature import sign

_UNRESERVED: Final = string.ascii_letters.encode() + b"0123456789_.-~"
_EVENT: Final = _UNRESERVED + b":"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
PREPARED_MAX: Final = 20_000  # some 400 bytes each; further requests are made when they are sent

Prepared = tuple[bytes, bytes, bytes]  # the target, the webhook-id, the body


def target_of(url: str) -> tuple[str, str, str]:
    """Origin (`scheme://host[:port]`), Host header, and path with query of a URL; raises ValueError for a bad one."""
    if not url:
        raise ValueError("expected a URL")
    parts = urlsplit(check_url(url))
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    if parts.port not in (None, _DEFAULT_PORTS[parts.scheme]):
        host = f"{host}:{parts.port}"
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    return f"{parts.scheme}://{host}", host, target


class CutoffTemplate(ABC):
    """A configured URL, parsed once. `origin` is `scheme://host[:port]`. Raises ValueError for a bad URL."""

    __slots__ = ("_before", "_head", "_pieces", "_prepared", "_secrets", "found_prepared", "origin")

    def __init__(self, url: str, secrets: Sequence[bytes]) -> None:
        self.origin, host, target = target_of(url)
        self._pieces = self._target(target).encode("ascii").split(b"{user_id}")
        self._head = f"Host: {host}\r\nUser-Agent: billing\r\nAccept: */*\r\n".encode("ascii")
        self._secrets = tuple(secrets)
        self._prepared: dict[str, Prepared] = {}
        self._before: dict[str, Prepared] = {}  # what was prepared before the last turn
        self.found_prepared = 0  # how many requests were sent that had been prepared

    def prepare(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> None:
        """Prepares the bytes that `request` will need for this event, unless `PREPARED_MAX` events are prepared."""
        if len(self._prepared) < PREPARED_MAX and event_id not in self._prepared and event_id not in self._before:
            self._prepared[event_id] = self._make(user_id, event_id, seq, exhausted_at_ns)

    def turn(self) -> None:
        """Drops the requests that were prepared before the last turn and not sent."""
        self._before, self._prepared = self._prepared, {}

    def _target(self, target: str) -> str:
        """Path and query of the request, with `{user_id}` as a placeholder."""
        return target

    @abstractmethod
    def _make(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> Prepared:
        """Makes the parts of a request that do not depend on the instant of sending."""

    @abstractmethod
    def request(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int, timestamp_s: int) -> bytes:
        """The whole request. user_id: UTF-8; timestamp_s: of this attempt, seconds since the epoch."""

    def _take(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> Prepared:
        prepared = self._prepared.pop(event_id, None) or self._before.pop(event_id, None)
        self.found_prepared += prepared is not None
        return prepared or self._make(user_id, event_id, seq, exhausted_at_ns)


class GetTemplate(CutoffTemplate):
    """A GET: all fields are in the query."""

    __slots__ = ()

    def __init__(self, url: str, secrets: Sequence[bytes] = ()) -> None:
        super().__init__(url, secrets)
        self._head += b"Cache-Control: no-store\r\n"

    def _target(self, target: str) -> str:
        if "{user_id}" not in target:
            target += ("&" if "?" in target else "?") + "user_id={user_id}"
        return target + ("&" if "?" in target else "?")

    def _make(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> Prepared:
        event, webhook_id = names_of(event_id)
        path = quoted(user_id).join(self._pieces)
        return b"%bevent_id=%b&seq=%d&exhausted_at_ns=%d" % (path, event, seq, exhausted_at_ns), webhook_id, b""

    def request(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int, timestamp_s: int) -> bytes:
        """The whole GET. user_id: UTF-8; timestamp_s: of this attempt, seconds since the epoch."""
        target, webhook_id, _ = self._take(user_id, event_id, seq, exhausted_at_ns)
        return b"GET %b HTTP/1.1\r\n%b%b" % (
            target,
            self._head,
            webhook_headers(self._secrets, webhook_id, timestamp_s, target),
        )


class PostTemplate(CutoffTemplate):
    """A POST: all fields are in a JSON body."""

    __slots__ = ()

    def __init__(self, url: str, secrets: Sequence[bytes] = ()) -> None:
        super().__init__(url, secrets)
        self._head += b"Content-Type: application/json\r\nContent-Length: "

    def _make(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> Prepared:
        target = quoted(user_id).join(self._pieces)
        fields = {"user_id": user_id.decode(), "event_id": event_id, "seq": seq, "exhausted_at_ns": exhausted_at_ns}
        return target, webhook_id_of(event_id), json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    def request(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int, timestamp_s: int) -> bytes:
        """The whole POST. user_id: UTF-8; timestamp_s: of this attempt, seconds since the epoch."""
        target, webhook_id, body = self._take(user_id, event_id, seq, exhausted_at_ns)
        return b"POST %b HTTP/1.1\r\n%b%d\r\n%b%b" % (
            target,
            self._head,
            len(body),
            webhook_headers(self._secrets, webhook_id, timestamp_s, body),
            body,
        )


def webhook_id_of(event_id: str) -> bytes:
    """An event id as the value of a header: percent-encoded if it is not printable ASCII without spaces."""
    is_safe = event_id.isascii() and event_id.isprintable() and " " not in event_id and event_id != ""
    return event_id.encode("ascii") if is_safe else quoted(event_id.encode())


def names_of(event_id: str) -> tuple[bytes, bytes]:
    """An event id as the value in a query, and as that of a header."""
    event = event_id.encode()
    if event and not event.translate(None, _EVENT):  # as that of nearly every user
        return event.replace(b":", b"%3A"), event
    return quoted(event), webhook_id_of(event_id)


def quoted(text: bytes) -> bytes:
    """Percent-encodes text for a path or a query, except the characters that RFC 3986 calls unreserved."""
    special = text.translate(None, _UNRESERVED)
    if not special:
        return text
    return quote_from_bytes(text, safe="").encode("ascii")


def webhook_headers(secrets: Sequence[bytes], webhook_id: bytes, timestamp_s: int, content: bytes) -> bytes:
    """The headers of Standard Webhooks, with the empty line behind them; without secrets, no signature."""
    if not secrets:
        return b"webhook-id: %b\r\nwebhook-timestamp: %d\r\n\r\n" % (webhook_id, timestamp_s)
    return b"webhook-id: %b\r\nwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n\r\n" % (
        webhook_id,
        timestamp_s,
        sign(secrets, webhook_id, timestamp_s, content),
    )
