"""`GET /v1/entries`: the feed of all entries, as lines of JSON, as server-sent events, or a page at a time.

    Accept                         what comes
    application/x-ndjson           a line for each entry, up to the newest; `follow=true` goes on with what comes
    (nothing, or anything)         the same
    text/event-stream              an event for each entry, `id` being its cursor, without end
    application/json               one page: {"entries": [...], "next_cursor": "..."}

`cursor` is the cursor of the last entry that the client has; without it the feed starts with the first entry. The
header `Last-Event-ID`, with which browsers and other clients of server-sent events reconnect, takes precedence over it.
`limit` is the most entries that come, 1 to `PAGE_ROWS_MAX`; a stream without it has no limit, and a page without it has
`PAGE_ROWS_MAX`. Each entry has its own `cursor`, so a client that stores the cursor with the entry may break off
anywhere.

A stream requests page after page from the daemon as any client would: it holds at most one page, and requests the next
once the client has read most of that. After the newest entry it asks again every `POLL_S`, and sends the client a
heartbeat every `HEARTBEAT_S`. It ends when the client goes, when the worker stops, and when its token is revoked. A
refusal of the first page is a problem, as everywhere. After a later refusal the stream asks again if a retry can help;
any other refusal it sends as a last line or event, `problem`, and so it does with the reason for which it ends before
the newest entry: a listing that was cut off must not look like a whole one. Only a stream that goes on with what comes
ends without a word when the worker stops, since it has no other end: its client comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from billing.api.calling import plain
from billing.api.http.reading import query_of
from billing.api.http.writing import Writer, encode, problem
from billing.api.methods import PAGE_ROWS_MAX
from billing.api.params import invalid
from billing.api.shapes import FEED_ROW
from billing.ledger.errors import Refused

NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
JSON: Final = "application/json"
PAGE_ROWS: Final = 500  # that a stream requests at a time
POLL_S: Final = 0.5
HEARTBEAT_S: Final = 15.0
STREAMS_MAX: Final = 64  # of one worker
RETRY_MS: Final = 1_000  # after which a client of server-sent events reconnects
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Rows = list[dict[str, Any]]
Ask = Callable[[list[Any]], Awaitable[object]]  # the params of `entries` -> its reply
EndedBy = Callable[[], Refused | None]

_render: Final = Writer(FEED_ROW).render


class Wanted(NamedTuple):
    """The parsed query and headers of a request. `limit`: 0 for no limit."""

    kind: str
    cursor: str
    limit: int
    follow: bool


def wanted(query: str, accept: str, last_event_id: str | None) -> Wanted:
    """Parses the query and the headers of a request. Raises Refused `INVALID_PARAMS`."""
    kind = _kind(accept)
    fields = query_of(query) if query else {}
    unknown = next((name for name in fields if name not in ("cursor", "limit", "follow")), None)
    if unknown is not None:
        raise invalid("unknown field; fields are cursor, limit, follow")
    limit = fields.get("limit", "")
    if limit and not (limit.isascii() and limit.isdecimal() and len(limit) <= 18 and 1 <= int(limit) <= PAGE_ROWS_MAX):
        raise invalid(f"limit must be a whole number, 1 to {PAGE_ROWS_MAX}")
    if fields.get("follow", "false") not in ("true", "false"):
        raise invalid("follow must be true or false")
    cursor = fields.get("cursor", "") if last_event_id is None else last_event_id
    return Wanted(kind, cursor, int(limit or 0), kind == EVENTS or fields.get("follow") == "true")


def _kind(accept: str) -> str:
    """Returns the first media type of an Accept header that the feed has; lines of JSON where it names none of them."""
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in (EVENTS, JSON):
            return media
        if media in (NDJSON, "application/jsonl", "*/*"):
            return NDJSON
    return NDJSON


def page_of(rows: Rows, cursor: str) -> bytes:
    """Returns a page as one JSON object. `cursor`: the cursor behind which the page was requested."""
    return encode({"entries": [_render(row) for row in rows], "next_cursor": rows[-1]["cursor"] if rows else cursor})


def lines_of(rows: Rows) -> bytes:
    """Returns rows as lines of JSON."""
    return b"".join(encode(_render(row)) + b"\n" for row in rows)


def events_of(rows: Rows) -> bytes:
    """Returns rows as server-sent events. Neither a cursor nor JSON has a line end in it."""
    return b"".join(
        b"id: %s\nevent: entry\ndata: %s\n\n" % (row["cursor"].encode(), encode(_render(row))) for row in rows
    )


def params_of(cursor: str, limit: int) -> list[Any]:
    """Returns the params of `entries`."""
    options: dict[bytes, Any] = {b"after": cursor, b"limit": limit}
    return [tuple(options.items())]


class Stream(Protocol):
    """The answer that a stream of entries is written to."""

    def begin(self, kind: str, headers: dict[str, str], /) -> bool:
        """Writes the head, with this media type; returns whether the client wants a body."""

    async def write(self, data: bytes, /) -> None:
        """Writes a piece, once the client has read most of the earlier pieces."""


class Streams:
    """All streams of one worker."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, stream: Stream, wish: Wanted, ask: Ask, ended_by: EndedBy) -> Refused | None:
        """Streams the entries that `wish` asks for, and returns once the stream has ended. If the first page is
        refused, it writes nothing and returns the refusal. `ended_by()` says, before each further page, why the client
        may have no more, and None while it may.
        """
        if self.open >= STREAMS_MAX:
            return Refused("BUSY", f"this worker serves {STREAMS_MAX} streams already")
        self.open += 1
        try:
            return await _stream(stream, wish, ask, ended_by)
        finally:
            self.open -= 1


async def _stream(stream: Stream, wish: Wanted, ask: Ask, ended_by: EndedBy) -> Refused | None:
    remaining, cursor = wish.limit, wish.cursor
    of_events = wish.kind == EVENTS
    form = events_of if of_events else lines_of
    has_begun = False
    silent_s = 0.0
    while True:
        reply = await ask(params_of(cursor, min(remaining, PAGE_ROWS) if remaining else PAGE_ROWS))
        if not has_begun:
            if type(reply) is Refused:
                return reply
            has_begun = True
            if not stream.begin(wish.kind, _HEADERS):
                return None
            if of_events:
                await stream.write(b"retry: %d\n\n" % RETRY_MS)
        if type(reply) is Refused and not reply.retry:
            await stream.write(_last_words(reply, of_events))
            return None
        rows: Rows = [] if type(reply) is Refused else plain(reply)
        if rows:
            await stream.write(form(rows))
            cursor, silent_s = rows[-1]["cursor"], 0.0
            if remaining and (remaining := remaining - len(rows)) <= 0:
                return None
        elif not wish.follow and type(reply) is not Refused:
            return None
        else:
            await asyncio.sleep(POLL_S)
            silent_s += POLL_S
            if silent_s >= HEARTBEAT_S:
                await stream.write(b": still here\n\n" if of_events else b"\n")
                silent_s = 0.0
        reason = ended_by()
        if reason is not None:
            if not (wish.follow and reason.retry):
                await stream.write(_last_words(reason, of_events))
            return None


def _last_words(refusal: Refused, of_events: bool) -> bytes:
    body = problem(refusal).body
    return b"event: problem\ndata: %s\n\n" % body if of_events else b'{"problem":%s}\n' % body
