"""Encodes replies as JSON, and refusals as problems. No sockets.

Every field of money comes twice: `balance_nanos`, a whole number of nanos, and `balance`, a decimal string of coins,
which JavaScript reads exactly, too. So do rates (`rate_nanos_per_hour`, `rate_per_hour`). The `rates` of an account are
`rates_nanos_per_hour` and, as decimal strings, `rates_per_hour`.

A reply that is a map is encoded as that map. Any other reply is in a map under its method's name: `{"ping": "pong"}`. A
page of rows has `next_cursor` beside it, which is null after the last row.

Text that is no UTF-8, such as a request id of raw bytes, is encoded as `base64:` and its bytes in base64.

A **problem** (RFC 9457) has the contract's error under its own names: `name`, `code`, `retry`, `applied` and the named
details. `detail` is the message, and `type` a URN that ends with the name. The status is the one that HTTP clients
expect for such an answer; a client that reads `name` does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from billing.api.http.reading import cursor_of
from billing.api.methods import Method
from billing.api.shapes import Shape
from billing.ledger.entry import plain_text
from billing.ledger.errors import KINDS, Refused
from billing.ledger.money import format_coins

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:billing:error:"
RETRY_AFTER_S: Final = "1"

encode: Final = msgspec.json.Encoder().encode

STATUS: Final[dict[str, int]] = {
    "PROTOCOL_ERROR": 400,
    "FRAME_TOO_LARGE": 413,
    "UNKNOWN_METHOD": 404,
    "INVALID_PARAMS": 400,
    "INVALID_USER_ID": 400,
    "INVALID_AMOUNT": 400,
    "INVALID_RATE": 400,
    "UNKNOWN_ACCOUNT": 404,
    "INSUFFICIENT_FUNDS": 402,
    "INSUFFICIENT_RUNWAY": 402,
    "STALE_RATE": 409,
    "REQUEST_ID_CONFLICT": 409,
    "UNKNOWN_HOLD": 404,
    "LIMIT_EXCEEDED": 422,
    "ACCOUNT_NOT_CLOSABLE": 409,
    "UNKNOWN_CUTOFF": 404,
    "UNKNOWN_CURSOR": 410,
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "UNAVAILABLE": 503,
    "BUCKET_MOVING": 503,
    "WRONG_BUCKET": 503,
    "TOO_MANY_CONNECTIONS": 503,
    "BUSY": 429,
    "UNKNOWN_BUCKET": 404,
    "UNKNOWN_SHARD": 404,
    "BUCKET_PINNED": 409,
    "MOVE_REFUSED": 409,
    "BACKUP_REFUSED": 409,
    "INTERNAL": 500,
}


def status_of(name: str) -> int:
    """Returns the HTTP status of an error name. A name that is not in `STATUS` has 503 if a retry can help, or 409."""
    return STATUS.get(name) or (503 if KINDS[name].retry else 409)


class Problem(NamedTuple):
    """A whole answer that is an error."""

    status: int
    headers: dict[str, str]
    body: bytes
    name: str


def title_of(name: str) -> str:
    """Returns an error's name as words."""
    return name.replace("_", " ").capitalize()


def problem(refusal: Refused, status: int = 0) -> Problem:
    """Returns a refusal as an answer. `status`: where it differs from the status of the name."""
    status = status or status_of(refusal.name)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = RETRY_AFTER_S
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.details.get("replayed"):
        headers["Idempotent-Replayed"] = "true"
    body = {
        **_plain(refusal.details),
        "type": TYPE_PREFIX + refusal.name,
        "title": title_of(refusal.name),
        "status": status,
        "detail": refusal.message,
        "code": refusal.code,
        "name": refusal.name,
        "retry": refusal.retry,
        "applied": refusal.applied,
    }
    return Problem(status, headers, encode(body), refusal.name)


# Fields of money whose plain name another field has.
TAKEN: Final = {"holds_nanos": "holds_total"}


def money_name(name: str, kind: str) -> str:
    """Returns the name of the decimal string beside a field of money; empty for a field that is no money."""
    if name in TAKEN:
        return TAKEN[name]
    if kind in ("nanos", "nanos_per_hour") and "_nanos" in name:
        return name.replace("_nanos", "")
    return ""


class Writer:
    """Renders maps of one shape. Fields that the shape does not name stay as they are."""

    __slots__ = ("_inner", "_money", "_rates", "_texts")

    def __init__(self, shape: Shape) -> None:
        self._money = [(field.name, other) for field in shape.fields if (other := money_name(field.name, field.kind))]
        self._rates = [field.name for field in shape.fields if field.kind == "rates"]
        self._texts = [field.name for field in shape.fields if field.kind == "text" and not field.many]
        self._inner = [
            (field.name, Writer(field.shape), field.many) for field in shape.fields if field.shape is not None
        ]

    def render(self, row: dict[str, Any]) -> dict[str, Any]:
        """Changes the map to the form that JSON has, and returns it."""
        for name, other in self._money:
            nanos = row.get(name)
            if nanos is not None:
                row[other] = format_coins(nanos)
        for name in self._texts:
            if type(row.get(name)) is bytes:
                row[name] = plain_text(row[name])
        for name in self._rates:
            if name not in row:
                continue
            rates = row.pop(name)
            row[f"{name}_nanos_per_hour"] = rates
            row[f"{name}_per_hour"] = {resource: format_coins(rate) for resource, rate in rates.items()}
        for name, writer, many in self._inner:
            value = row.get(name)
            if value is not None:
                row[name] = [writer.render(item) for item in value] if many else writer.render(value)
        return row


def rendering_of(method: Method) -> Callable[[Any, int], Any]:
    """Returns the function that converts a method's plain result to the form that JSON has. It takes the result, which
    it may change, and the number of rows that the call asked for.
    """
    reply, name = method.reply, method.name
    if reply.shape is None:
        return lambda result, limit: {name: _plain(result)}
    render = Writer(reply.shape).render
    if not reply.many:
        return lambda result, limit: render(result)

    def page(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
        body: dict[str, Any] = {name: rows}
        if reply.cursor:
            full = rows and len(rows) >= limit
            body["next_cursor"] = cursor_of(rows[-1][reply.cursor_field]) if full else None
        body[name] = [render(row) for row in rows]
        return body

    return page


def _plain(value: Any) -> Any:
    """Returns the value with all bytes as texts."""
    if type(value) is bytes:
        return plain_text(value)
    if type(value) is dict:
        return {_plain(key) if type(key) is bytes else key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    return value
