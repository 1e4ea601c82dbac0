"""What a cutoff looks like on the wire: from the configured URL and what is owed to the bytes of one GET. Pure.

`{user_id}` in the URL is replaced by the user id, or else `user_id=` is added to the query; behind it always come
`event_id`, `seq` and `exhausted_at_ns`. All that an outsider may have chosen is percent-encoded with nothing kept as
it is but letters, digits and `-._~`, so no user id can add a parameter, a path segment or a header.

For `https://cloud.example/off?zone=3`, user `üser/1`, event `%C3%BCser%2F1-7-1700000000000000000`:

    GET /off?zone=3&user_id=%C3%BCser%2F1&event_id=%25C3%25BCser%252F1-7-1700000000000000000&seq=7
        &exhausted_at_ns=1700000000000000000 HTTP/1.1                                      (one line)
    Host: cloud.example
    User-Agent: billing
    Accept: */*
    Cache-Control: no-store
    webhook-id: %C3%BCser%2F1-7-1700000000000000000
    webhook-timestamp: 1700000012
    webhook-signature: v1,...

Event ids are printable ASCII without spaces; one that is not stands in `webhook-id` percent-encoded as in the query.

**Prepared before the instant**: the template takes the URL apart once, and `prepare` makes all of a request that does
not depend on when it is sent, under its event id, for those of a burst that comes within a second. Who is topped up
meanwhile has another event later, so what was prepared for it is never asked for; it is forgotten two `turn`s on. What
is left for the attempt is its second, and the signature over it.
"""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, quote_from_bytes, urlsplit

from billing.addresses import check_url
from billing.expirationd.signature import sign

_HEADER_SAFE: Final = re.compile(r"[!-~]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
PREPARED_MAX: Final = 20_000  # some 400 bytes each; what is beyond is made when it is sent

Prepared = tuple[bytes, bytes]  # the target, the webhook-id


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


class GetTemplate:
    """A configured URL, taken apart once. `origin` is `scheme://host[:port]`; raises ValueError for a bad URL."""

    __slots__ = ("_before", "_head", "_pieces", "_prepared", "_secrets", "found_prepared", "origin")

    def __init__(self, url: str, secrets: Sequence[bytes] = ()) -> None:
        self.origin, host, target = target_of(url)
        if "{user_id}" not in target:
            target += ("&" if "?" in target else "?") + "user_id={user_id}"
        target += "&" if "?" in target else "?"
        self._pieces = target.encode("ascii").split(b"{user_id}")
        self._head = (f"Host: {host}\r\nUser-Agent: billing\r\nAccept: */*\r\nCache-Control: no-store\r\n").encode(
            "ascii"
        )
        self._secrets = tuple(secrets)
        self._prepared: dict[str, Prepared] = {}
        self._before: dict[str, Prepared] = {}  # what was prepared before the last turn
        self.found_prepared = 0  # requests of which all but the time was there

    def prepare(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> None:
        """Makes what `request` will need for this event, unless it is there or there is too much."""
        if len(self._prepared) < PREPARED_MAX and event_id not in self._prepared and event_id not in self._before:
            self._prepared[event_id] = self._make(user_id, event_id, seq, exhausted_at_ns)

    def turn(self) -> None:
        """Forgets what was prepared before the last turn and not sent."""
        self._before, self._prepared = self._prepared, {}

    def _make(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int) -> Prepared:
        user = quote_from_bytes(user_id, safe="").encode("ascii")
        event = quote(event_id, safe="").encode("ascii")
        webhook_id = event_id.encode("ascii") if _HEADER_SAFE.fullmatch(event_id) else event
        target = b"%bevent_id=%b&seq=%d&exhausted_at_ns=%d" % (user.join(self._pieces), event, seq, exhausted_at_ns)
        return target, webhook_id

    def request(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int, timestamp_s: int) -> bytes:
        """The whole GET. user_id: UTF-8; timestamp_s: of this attempt, seconds since the epoch."""
        prepared = self._prepared.pop(event_id, None) or self._before.pop(event_id, None)
        self.found_prepared += prepared is not None
        target, webhook_id = prepared or self._make(user_id, event_id, seq, exhausted_at_ns)
        if not self._secrets:
            return b"GET %b HTTP/1.1\r\n%bwebhook-id: %b\r\nwebhook-timestamp: %d\r\n\r\n" % (
                target,
                self._head,
                webhook_id,
                timestamp_s,
            )
        return b"GET %b HTTP/1.1\r\n%bwebhook-id: %b\r\nwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n\r\n" % (
            target,
            self._head,
            webhook_id,
            timestamp_s,
            sign(self._secrets, webhook_id, timestamp_s, target),
        )
