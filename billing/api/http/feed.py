"""`GET /v1/entries`: the feed of all entries, as lines of JSON, as server-sent events, or a page at a time.

    Accept                         what comes
    application/x-ndjson           a line for each entry, up to the newest; `follow=true` goes on with what comes
    (nothing, or anything)         the same
    text/event-stream              an event for each entry, `id` being its cursor, without end
    application/json               one page: {"entries": [...], "next_cursor": "..."}

`cursor` is that of the last entry that was had; without it the feed begins at the beginning. The header `Last-Event-ID`
with which browsers and other clients of server-sent events connect again, goes before it. `limit` is how many entries
come at most, 1 to `PAGE_ROWS_MAX`. Each entry has its own `cursor`, so whoever stores it with the entry
may break off anywhere. Without a `limit` there is none, but for a page.

A stream asks the daemon for page after page as any client would: it holds no more than one, and asks for the next once
the client has read most of it. Where there is nothing more it asks again every `POLL_S`, and lets the client know every
`HEARTBEAT_S` that it is there. It ends when the client goes, when the worker stops, and when its token is revoked.
What refuses the first page is a problem as everywhere; later, what may pass is waited for, and anything else is told in
a last line or event, `problem`.
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
PAGE_ROWS: Final = 500  # of a stream
POLL_S: Final = 0.5
HEARTBEAT_S: Final = 15.0
STREAMS_MAX: Final = 64  # of one worker
RETRY_MS: Final = 1_000  # after which a client of events connects again
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Rows = list[dict[str, Any]]
Ask = Callable[[list[Any]], Awaitable[object]]  # the params of `entries` -> its reply

_render: Final = Writer(FEED_ROW).render


class Wanted(NamedTuple):
    """What a request asks for. `limit`: 0 for all there is."""

    kind: str
    cursor: str
    limit: int
    follow: bool


def wanted(query: str, accept: str, last_event_id: str | None) -> Wanted:
    """What a request asks for, by its query and headers. Raises Refused `INVALID_PARAMS`."""
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
    """What an Accept header wants: the first of its media types that there is here; lines where it names none."""
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in (EVENTS, JSON):
            return media
        if media in (NDJSON, "application/jsonl", "*/*"):
            return NDJSON
    return NDJSON


def page_of(rows: Rows, cursor: str) -> bytes:
    """A page as one object. `cursor`: the one it was asked for behind."""
    return encode({"entries": [_render(row) for row in rows], "next_cursor": rows[-1]["cursor"] if rows else cursor})


def lines_of(rows: Rows) -> bytes:
    """Rows as lines of JSON."""
    return b"".join(encode(_render(row)) + b"\n" for row in rows)


def events_of(rows: Rows) -> bytes:
    """Rows as server-sent events: a cursor and JSON have no line ends in them."""
    return b"".join(
        b"id: %s\nevent: entry\ndata: %s\n\n" % (row["cursor"].encode(), encode(_render(row))) for row in rows
    )


def params_of(cursor: str, limit: int) -> list[Any]:
    """The params of `entries`."""
    options: dict[bytes, Any] = {b"after": cursor, b"limit": limit}
    return [tuple(options.items())]


class Stream(Protocol):
    """What a stream is written to."""

    def begin(self, kind: str, headers: dict[str, str], /) -> bool:
        """Writes the head, with this media type; whether a body is wanted."""

    async def write(self, data: bytes, /) -> None:
        """A piece, once the client has read most of those before it."""


class Streams:
    """All streams of one worker."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, stream: Stream, wish: Wanted, ask: Ask, goes_on: Callable[[], bool]) -> Refused | None:
        """Streams what is wished for; returns once it has ended, or the refusal of the first page, with which nothing
        was written. `goes_on` says, before each further page, whether the client may have more.
        """
        if self.open >= STREAMS_MAX:
            return Refused("BUSY", f"this worker serves {STREAMS_MAX} streams already")
        self.open += 1
        try:
            return await _stream(stream, wish, ask, goes_on)
        finally:
            self.open -= 1


async def _stream(stream: Stream, wish: Wanted, ask: Ask, goes_on: Callable[[], bool]) -> Refused | None:
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
            body = problem(reply).body
            await stream.write(b"event: problem\ndata: %s\n\n" % body if of_events else b'{"problem":%s}\n' % body)
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
        if not goes_on():
            return None
