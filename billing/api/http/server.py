"""The HTTP door: finds the grant and the method of a request, calls the method, and answers.

The door takes these steps for a request; the first one that fails answers the request with a problem. It finds the
grant. It finds the method of the path and the verb, which the grant must allow; this comes before the body is read. It
checks that the body is JSON and small enough, and converts the fields to params. Then it makes a call of the
connection's `Session`, and writes the reply once that is durable. Nothing here waits: a step that cannot be taken at
once leaves a callback with the connection.

A body has at most `BODY_BYTES_MAX` bytes, head lines what aiohttp's parser allows; a compressed body is refused unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aiohttp import hdrs
from aiohttp.http import HttpVersion10, RawRequestMessage

from billing.api.auth import Grant
from billing.api.calling import plain
from billing.api.door import Door
from billing.api.http import feed
from billing.api.http.answers import Answer, Answers, Misplaced
from billing.api.http.connection import BODY_BYTES_MAX, HttpConnection, Unheld
from billing.api.http.credentials import Credentials
from billing.api.http.openapi import document
from billing.api.http.reading import Reader
from billing.api.http.routes import GET, ROUTES, Route, find, split_target
from billing.api.http.writing import JSON, encode, rendering_of
from billing.api.methods import METHODS, PAGE_ROWS_MAX, allowed
from billing.api.methods import find as find_method
from billing.api.params import invalid
from billing.ledger.errors import Refused

log = logging.getLogger("billing.api")

OPENAPI_PATH: Final = "/v1/openapi.json"
KEY: Final = "Idempotency-Key"


class Served:
    """A route with everything that its requests need, made once."""

    __slots__ = ("_limit", "_render", "_render_one", "has_body", "method", "name", "read")

    def __init__(self, route: Route) -> None:
        self.method = route.method
        self.name = route.method.name.encode()
        self.has_body = route.has_body
        self.read = Reader(route).params
        render = self._render = rendering_of(route.method)
        limit = route.method.option("limit")
        self._limit = 0 if limit is None else int(limit.default)
        self._render_one: Callable[[Any], Any] = lambda result: render(result, 0)

    def rendering_of(self, params: list[Any]) -> Callable[[Any], Any]:
        """Returns the function that converts the plain result of a call with these params to the form that JSON has.
        What `dry_run` answers has the form of the method that it is about.
        """
        if self.method.name == "dry_run" and (row := find_method(params[0])) is not None:
            return lambda result: {"dry_run": _SERVED[row.name]._render(result, 0)}
        limit = self._limit_of(params)
        return (lambda result: self._render(result, limit)) if limit else self._render_one

    def _limit_of(self, params: list[Any]) -> int:
        """Returns how many rows `params` ask for; 0 where the method has no option `limit`."""
        if self._limit and params and type(params[-1]) is tuple:
            for name, value in params[-1]:
                if name == b"limit":
                    return int(value)
        return self._limit


class Call:
    """A request whose method and grant are known."""

    __slots__ = ("connection", "grant", "in_path", "key", "query", "served")

    def __init__(
        self,
        connection: HttpConnection,
        grant: Grant,
        served: Served,
        in_path: list[bytes],
        query: str,
        key: str | None,
    ) -> None:
        """`in_path`: the values that `routes.find` found. `query`: as it came. `key`: the header Idempotency-Key."""
        self.connection = connection
        self.grant = grant
        self.served = served
        self.in_path = in_path
        self.query = query
        self.key = key


_SERVED: Final = {route.method.name: Served(route) for route in ROUTES}


class HttpDoor:
    """The door of one worker: `loop.create_server(http.connection, sock=…)`."""

    def __init__(self, door: Door, wall_now_ns: Callable[[], int]) -> None:
        """`door`: shared by the connections of all protocols of this worker. `wall_now_ns`: for the header Date."""
        self.door = door
        self.unheld = Unheld(asyncio.get_running_loop())
        self._answers = Answers(wall_now_ns)
        self._credentials = Credentials(door)
        self._document = b""
        self._streams = feed.Streams()

    def connection(self) -> HttpConnection:
        """Returns the protocol of a new connection."""
        return HttpConnection(self)

    # -- requests ---------------------------------------------------------------------------------------------------

    def on_request(self, connection: HttpConnection, message: RawRequestMessage) -> None:
        """Answers a request whose head has come, now or later."""
        try:
            self._begin(connection, message)
        except Exception as error:
            self._refuse(connection, error)

    def _begin(self, connection: HttpConnection, message: RawRequestMessage) -> None:
        path, query, _ = split_target(message.path)
        headers, method = message.headers, message.method
        grant = self._grant_of(connection, message)
        if path == OPENAPI_PATH:
            connection.answer(self._openapi(method))
            return
        target = find(path)
        if target is None:
            raise Refused("UNKNOWN_METHOD", f"there is nothing at this path; see {OPENAPI_PATH}")
        route = target.routes.get(GET if method == "HEAD" else method)
        if route is None:
            raise Misplaced(405, "this path takes other verbs", {"Allow": _allowed(target.routes)})
        served = _SERVED[route.method.name]
        if not allowed(served.method, grant.roles):
            raise Refused("FORBIDDEN", f"{served.method.name} needs the role {served.method.role}")
        if served.method.name == "entries":
            self._feed(connection, message, query, grant)
            return
        key = headers.get(KEY)
        if key is not None and any(other != key for other in headers.getall(KEY)):
            raise invalid(f"{KEY} stands twice, and differs")
        call = Call(connection, grant, served, target.values, query, key)
        if not served.has_body:
            self._carry_out(call, b"")
            return
        self._check_body(connection, headers)
        body = connection.whole_body()
        if body is None:
            expected = message.version != HttpVersion10 and headers.get(hdrs.EXPECT, "").lower() == "100-continue"
            connection.wait_for_body(partial(self._on_body, call), expected=expected)
        else:
            self._carry_out(call, body)

    def _on_body(self, call: Call, body: bytes) -> None:
        try:
            self._carry_out(call, body)
        except Exception as error:
            self._refuse(call.connection, error)

    def _carry_out(self, call: Call, body: bytes) -> None:
        if len(body) > BODY_BYTES_MAX:
            raise _too_large()
        served = call.served
        params = served.read(call.in_path, call.query, call.key, body)
        then = partial(self._on_reply, call.connection, served, served.rendering_of(params), self.door.clock())
        call.connection.call(call.grant, served.name, params, then)

    def _on_reply(
        self,
        connection: HttpConnection,
        served: Served,
        render: Callable[[Any], Any],
        asked_ns: int,
        reply: object,
    ) -> None:
        try:
            self.door.latency.note("http", served.name, self.door.clock() - asked_ns)
            if type(reply) is Refused:
                connection.answer(self._answers.refusal(reply))
                return
            body = render(plain(reply))
            replayed = type(body) is dict and body.get("replayed") is True
            connection.answer(self._answers.json(encode(body), replayed=replayed))
        except Exception as error:  # it must not reach the worker, which calls this and has other clients to answer
            self._refuse(connection, error)

    def _openapi(self, verb: str) -> Answer:
        if verb not in ("GET", "HEAD"):
            raise Misplaced(405, "this path takes other verbs", {"Allow": "GET, HEAD"})
        if not self._document:
            self._document = encode(document())
        return self._answers.json(self._document)

    # -- refusals ---------------------------------------------------------------------------------------------------

    def refusal(self, refused: Refused, status: int = 0) -> Answer:
        """Returns a refusal as an answer."""
        return self._answers.refusal(refused, status)

    def _refuse(self, connection: HttpConnection, error: Exception) -> None:
        """Answers a request that ended with an exception."""
        if isinstance(error, Refused):
            self.door.note_error(error)
            connection.answer(self._answers.refusal(error))
        elif isinstance(error, Misplaced):
            self.door.note_error(error.refusal)
            answer = self._answers.refusal(error.refusal, error.status, error.headers, is_last=error.last)
            connection.answer(answer)
        else:
            connection.answer(self._answers.refusal(self._note_bug(error), 500, is_last=True))

    def _note_bug(self, error: Exception) -> Refused:
        """Logs an unexpected exception; returns the refusal for the client."""
        log.error("a request to the HTTP door met a bug", exc_info=error)
        self.door.drops += 1
        refusal = Refused("INTERNAL", "this is a bug in the daemon", applied="unknown")  # the call may be carried out
        self.door.note_error(refusal)
        return refusal

    def _grant_of(self, connection: HttpConnection, message: RawRequestMessage) -> Grant:
        return self._credentials.grant_of(message, connection.greeted, connection.origin, connection.by_loopback)

    def _check_body(self, connection: HttpConnection, headers: Any) -> None:
        """Refuses a body by its headers, before it is read."""
        kind = headers.get(hdrs.CONTENT_TYPE)
        if kind is not None and not _is_json(kind):
            raise Misplaced(415, "the body must be application/json, in UTF-8")
        if hdrs.CONTENT_ENCODING in headers:
            raise Misplaced(415, "the body must not be compressed", last=True)
        if not connection.has_body:
            return
        if headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
            raise Misplaced(501, "a body may be chunked, and encoded for its transfer in no other way", last=True)
        if int(headers.get(hdrs.CONTENT_LENGTH, 0)) > BODY_BYTES_MAX:
            raise _too_large()
        if kind is None:
            raise Misplaced(415, "the body must be application/json, in UTF-8", last=True)

    # -- the feed ---------------------------------------------------------------------------------------------------

    def _feed(self, connection: HttpConnection, message: RawRequestMessage, query: str, grant: Grant) -> None:
        """Answers a request for the feed of all entries, see `billing.api.http.feed`."""
        headers = message.headers
        wish = feed.wanted(query, headers.get("Accept", ""), headers.get("Last-Event-ID"))
        if wish.kind == JSON:
            params = feed.params_of(wish.cursor, wish.limit or PAGE_ROWS_MAX)
            connection.call(grant, b"entries", params, partial(self._on_page, connection, wish.cursor))
            return
        stream = HttpStream(connection, message, self._answers)
        connection.stream(self._serve(connection, message, grant, wish, stream))

    def _on_page(self, connection: HttpConnection, cursor: str, reply: object) -> None:
        try:
            if type(reply) is Refused:
                connection.answer(self._answers.refusal(reply))
            else:
                connection.answer(self._answers.json(feed.page_of(plain(reply), cursor)))
        except Exception as error:  # as in `_on_reply`
            self._refuse(connection, error)

    async def _serve(
        self,
        connection: HttpConnection,
        message: RawRequestMessage,
        grant: Grant,
        wish: feed.Wanted,
        stream: HttpStream,
    ) -> None:
        guard, method = self.door.guard, METHODS["entries"]

        def ask(params: list[Any]) -> asyncio.Future[object]:
            wanted = asyncio.get_running_loop().create_future()
            connection.call(grant, b"entries", params, partial(_settle, wanted))
            return wanted

        def ended_by() -> Refused | None:
            if connection.is_ending or connection.is_gone or (wish.follow and connection.is_half_closed):
                return Refused("UNAVAILABLE", "the worker stops: ask again, with the cursor of the last entry")
            try:
                is_granted = self.door.guard is guard or allowed(method, self._grant_of(connection, message).roles)
            except Misplaced as misplaced:
                return misplaced.refusal
            except Refused as refused:
                return refused
            return None if is_granted else Refused("FORBIDDEN", f"{method.name} needs the role {method.role}")

        try:
            refused = await self._streams.serve(stream, wish, ask, ended_by)
        except Exception as error:
            if stream.has_begun:  # an answer cannot become a problem in its middle: it is left without an end
                self._note_bug(error)
                connection.abort()
            else:
                self._refuse(connection, error)
            return
        if refused is None:
            stream.end()
        else:
            connection.answer(self._answers.refusal(refused))


class HttpStream:
    """An answer that is written in pieces: as chunks or, for HTTP/1.0, as bytes up to the end of the connection."""

    def __init__(self, connection: HttpConnection, message: RawRequestMessage, answers: Answers) -> None:
        self._connection = connection
        self._answers = answers
        self._is_chunked = message.version != HttpVersion10
        self._is_bare = message.method == "HEAD"
        self.has_begun = False

    def begin(self, kind: str, headers: dict[str, str]) -> bool:
        """Writes the head; returns whether the client wants a body."""
        head = self._answers.stream(kind, headers)
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if self._is_chunked else b"Connection: close\r\n\r\n"
        self._connection.write(head + framing)
        self.has_begun = True
        return not self._is_bare

    async def write(self, data: bytes) -> None:
        """Writes a piece, once the client has read most of the earlier pieces."""
        await self._connection.drained()
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def end(self) -> None:
        """Ends the answer."""
        if self._is_chunked and not self._is_bare:
            self._connection.write(b"0\r\n\r\n")
        self._connection.end_stream(is_last=not self._is_chunked)


def _settle(wanted: asyncio.Future[object], reply: object) -> None:
    if not wanted.done():
        wanted.set_result(reply)


def _too_large() -> Misplaced:
    return Misplaced(413, f"a body may have {BODY_BYTES_MAX} bytes", last=True, name="FRAME_TOO_LARGE")


def _allowed(routes: dict[str, Route]) -> str:
    verbs = set(routes) | ({"HEAD"} if GET in routes else set())
    return ", ".join(sorted(verbs))


def _is_json(kind: str) -> bool:
    """Whether a Content-Type is JSON in UTF-8."""
    if kind == JSON:
        return True
    media, *parameters = (part.strip().lower() for part in kind.split(";"))
    return media == JSON and all(part in ("", "charset=utf-8", 'charset="utf-8"') for part in parameters)


def connection_factory(
    door: Door, wall_now_ns: Callable[[], int], random_bytes: Callable[[int], bytes]
) -> Callable[[], HttpConnection]:
    """See `billing.config.doors`."""
    return HttpDoor(door, wall_now_ns).connection
