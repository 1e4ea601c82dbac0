"""The request of a notice: one POST with the headers of Standard Webhooks. Pure.

POST /notices HTTP/1.1
Host: cloud.example
User-Agent: billing
Accept: */*
Content-Type: application/json
Content-Length: 391
webhook-id: u1:7-1700000012000000000:account-debited
webhook-timestamp: 1700000012
webhook-signature: v1,...          over `id.timestamp.body`; only with a secret, one for each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from billing.expirationd.request import target_of, webhook_headers


class NoticeTemplate:
    """The parsed `notify.url`; raises ValueError for a bad URL. `body_of(user_id, seq)` returns the body of a
    notice.
    """

    __slots__ = ("_body_of", "_head", "_secrets", "origin")

    def __init__(self, url: str, secrets: Sequence[bytes], body_of: Callable[[bytes, int], bytes]) -> None:
        self.origin, host, target = target_of(url)
        self._head = (
            f"POST {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: billing\r\nAccept: */*\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("ascii")
        self._secrets = tuple(secrets)
        self._body_of = body_of

    def request(self, user_id: bytes, event_id: str, seq: int, at_ns: int, timestamp_s: int) -> bytes:
        """Returns the complete POST. `event_id`: the webhook-id; `timestamp_s`: of this attempt, seconds since the
        epoch.
        """
        body = self._body_of(user_id, seq)
        headers = webhook_headers(self._secrets, event_id.encode("ascii"), timestamp_s, body)
        return b"%b%d\r\n%b%b" % (self._head, len(body), headers, body)
