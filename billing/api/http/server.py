"""The sockets of the HTTP door: aiohttp reads requests, this module has them answered.

A request goes through in this order, and what fails ends it with a problem: the path and the verb mean a method; who is
asking is known and allowed to (before its body is read); the body is JSON and small enough; its fields are params. Then
it is a call of the connection's `Session` like a call at any other door, and its reply is written once durable.

**Who is asking** is said by the request (`Authorization: Bearer TOKEN`) or, where it says nothing, by the connection: a
client certificate, or loopback where there are no tokens. A wrong token ends the connection: one guess each.

**Bounds.** Connections count for `rpc.connections_max` and its limit of each origin, together with those of the other
doors. A body has at most `BODY_BYTES_MAX`, head lines what aiohttp allows, and both together `frame_deadline_ns` of
time; a compressed body is refused unread. One request of a connection is in flight at a time, and no further one is
read while the client does not read its answers; after `write_stall_ns` of that it is dropped. A connection that rests
is closed after `IDLE_S`.

aiohttp's `RequestHandler` is one connection; `HttpConnection` adds what the door has to know of it. `Reply` is written
as one piece of bytes instead of by aiohttp's writer, which costs more than all the rest of a call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import HttpVersion10

from billing.api.auth import Grant, Guard
from billing.api.calling import Session, plain
from billing.api.door import Door
from billing.api.http import browser, feed
from billing.api.http.openapi import document
from billing.api.http.reading import Reader
from billing.api.http.routes import GET, ROUTES, Route, find
from billing.api.http.writing import JSON, PROBLEM, Problem, encode, problem, rendering_of
from billing.api.methods import METHODS, PAGE_ROWS_MAX, allowed
from billing.api.origins import is_loopback, is_unix, origin_of
from billing.api.wire import FRAME_BYTES_MAX
from billing.ledger.errors import Refused

log = logging.getLogger("billing.api")

BODY_BYTES_MAX: Final = FRAME_BYTES_MAX
IDLE_S: Final = 75.0
LINGER_S: Final = 2.0
_QUIET: Final = logging.getLogger("billing.api.http")  # aiohttp's own; what it would say, `handle_error` does
GRANTS_KEPT_MAX: Final = 1_000
OPENAPI_PATH: Final = "/v1/openapi.json"

_COUNT: Final = 2**32


class Reply(web.StreamResponse):
    """A whole answer, written by one `write`."""

    def __init__(self, head: bytes, body: bytes, status: int = 200, *, last: bool = False) -> None:
        """`head`: status line and headers, each with its line end. `last`: the connection ends behind it."""
        super().__init__(status=status)
        self._head = head
        self._content = body
        self._last = last

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow."""
        return not self._last

    def force_close(self) -> None:
        """Ends the connection behind it."""
        self._last = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Writes it."""
        if not request.keep_alive:
            self._last = True
        if self._last:
            connection = b"Connection: close\r\n\r\n"
        elif request.version == HttpVersion10:
            connection = b"Connection: keep-alive\r\n\r\n"
        else:
            connection = b"\r\n"
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        transport.write(self._head + connection + (b"" if request.method == "HEAD" else self._content))

    async def write_eof(self, data: bytes = b"") -> None:
        """It is written."""


def head_of(status: int, kind: str, length: int, headers: dict[str, str], date: str) -> bytes:
    """Status line and headers."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        f"Date: {date}\r\nServer: billing\r\n{lines}"
    ).encode("latin-1", "replace")


class Served:
    """A route with all that its requests need, made once."""

    __slots__ = ("_limit", "method", "name", "read", "render")

    def __init__(self, route: Route) -> None:
        self.method = route.method
        self.name = route.method.name.encode()
        self.read = Reader(route).params
        self.render = rendering_of(route.method)
        limit = route.method.option("limit")
        self._limit = 0 if limit is None else int(limit.default)

    def limit_of(self, params: list[Any]) -> int:
        """How many rows were asked for."""
        if params and type(params[-1]) is tuple:
            for name, value in params[-1]:
                if name == b"limit":
                    return int(value)
        return self._limit


_SERVED: Final = {route.method.name: Served(route) for route in ROUTES}
_REPLAYED: Final = {"Idempotent-Replayed": "true"}
_BARE: Final[dict[str, str]] = {}


class HttpConnection(web.RequestHandler):
    """One connection: aiohttp's, and what the door has to know of it."""

    __slots__ = (
        "_ending",
        "_origin",
        "_reading_since_ns",
        "_resumed",
        "_stalled_since_ns",
        "_wanted",
        "by_loopback",
        "door",
        "greeted",
        "replies",
        "session",
        "token",
    )

    def __init__(self, server: web.Server, site: HttpDoor, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self.door = site.door
        self.session = Session(site.door, self._on_reply)
        self.greeted: Grant | None = None
        self.by_loopback = False
        self.token = 0
        self._wanted: asyncio.Future[object] | None = None  # the reply that is being waited for
        self._resumed: asyncio.Future[None] | None = None
        self._reading_since_ns = 0  # since when a request is unfinished; 0: none is
        self._stalled_since_ns = 0  # since when the client leaves too much unread; 0: it does not
        self._origin = ""
        self._ending = False

    # -- calls ------------------------------------------------------------------------------------------------------

    def ask(self, grant: Grant, name: bytes, params: list[Any]) -> asyncio.Future[object]:
        """Carries out a call; the future gets its reply."""
        session = self.session
        if session.grant is not grant:
            session.grant = grant
        self.token = token = (self.token + 1) % _COUNT
        wanted = self._wanted = asyncio.get_running_loop().create_future()
        session.arrived()
        session.call(token, name, params)
        return wanted

    def _on_reply(self, token: int, reply: object) -> None:
        wanted = self._wanted
        if token == self.token and wanted is not None and not wanted.done():
            wanted.set_result(reply)

    # -- the transport ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets the connection in, or turns it away."""
        super().connection_made(transport)
        door = self.door
        self._origin = origin_of(transport)
        here = door.origins.enter(self._origin)
        door.connections.add(self)
        self.greeted = door.guard.greet(transport)
        self.by_loopback = is_loopback(transport) and not is_unix(transport)
        limits = door.limits
        if limits.connections_per_origin_max and here > limits.connections_per_origin_max:
            self._turn_away("too many from there")
        elif len(door.connections) > limits.connections_max:
            self._turn_away("too many in all")

    def _turn_away(self, why: str) -> None:
        self.door.origins.turned_away(self._origin, why, self.door.clock())
        refusal = Refused("TOO_MANY_CONNECTIONS", "try again later")
        self.door.note_error(refusal)
        self._part(problem(refusal))

    def _part(self, told: Problem) -> None:
        """Last words, and the end."""
        self.door.drops += 1
        if self.transport is not None and not self.transport.is_closing():
            head = head_of(told.status, PROBLEM, len(told.body), told.headers, formatdate(usegmt=True))
            self.transport.write(head + b"Connection: close\r\n\r\n" + told.body)
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the connection."""
        if self in self.door.connections:
            self.door.connections.discard(self)
            self.door.origins.leave(self._origin)
        self._wake()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A request begins, or goes on."""
        if data and not self._reading_since_ns:
            self._reading_since_ns = self.door.clock()
            self.door.watch(self)
        super().data_received(data)

    def request_read(self) -> None:
        """The request that is being answered has come whole."""
        self._reading_since_ns = 0

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stalled_since_ns = self.door.clock()
        self._resumed = asyncio.get_running_loop().create_future()
        self.door.watch(self)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._stalled_since_ns = 0
        self._wake()

    def _wake(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    async def drained(self) -> None:
        """Returns once the client has read most of what was written."""
        if self._resumed is not None:
            await asyncio.shield(self._resumed)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP, or a bug: one problem, and the end of the connection."""
        if isinstance(exc, ConnectionError):  # the client went away in the middle of its request: nobody is told
            return Reply(b"", b"", last=True)
        if status == 500:
            log.error("a request to the HTTP door met a bug", exc_info=exc)
            refusal = Refused("INTERNAL", "this is a bug in the daemon")
        else:
            refusal = Refused("PROTOCOL_ERROR", "this is no HTTP request that the door takes")
        self.door.drops += 1
        self.door.note_error(refusal)
        told = problem(refusal, status)
        head = head_of(told.status, PROBLEM, len(told.body), told.headers, formatdate(usegmt=True))
        return Reply(head, told.body, told.status, last=True)

    # -- what the door asks of every connection ---------------------------------------------------------------------

    def check_deadlines(self, now_ns: int) -> bool:
        """Ends itself if one has passed; whether there is still one to watch."""
        limits = self.door.limits
        if self.transport is None:
            return False
        if self._stalled_since_ns and now_ns - self._stalled_since_ns >= limits.write_stall_ns:
            self.door.drops += 1
            self.abort()
        elif self._reading_since_ns and now_ns - self._reading_since_ns >= limits.frame_deadline_ns:
            refusal = Refused("PROTOCOL_ERROR", "a request was left unfinished")
            self.door.note_error(refusal)
            self._part(problem(refusal, 408))
        return bool(self._stalled_since_ns or self._reading_since_ns)

    @property
    def origin(self) -> str:
        """Where it comes from."""
        return self._origin

    @property
    def is_ending(self) -> bool:
        """Whether it closes once what was asked for is answered."""
        return self._ending

    def granted(self) -> Grant | None:
        """As `billing.api.door.Client`; a token is looked at with each request."""
        return self.greeted

    def end(self, last_words: bytes) -> None:
        """Reads nothing more, and closes once everything asked for is answered."""
        self._ending = True
        self.close()

    def abort(self) -> None:
        """Closes at once."""
        if self.transport is not None:
            self.transport.abort()


class HttpDoor:
    """The door of one worker: `loop.create_server(http.connection, sock=…)`."""

    def __init__(self, door: Door, wall_now_ns: Callable[[], int]) -> None:
        """`door`: what this worker's connections share, of whatever protocol. `wall_now_ns`: for the header Date."""
        self.door = door
        self._wall_now_ns = wall_now_ns
        self._second = -1
        self._date = ""
        self._grants: dict[str, Grant] = {}  # by token, as far as this guard has let them in
        self._guard: Guard | None = None  # whose they are
        self._document = b""
        self._streams = feed.Streams()
        loop = asyncio.get_running_loop()

        def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)

        self._server = web.Server(self._handle, request_factory=request)

    def connection(self) -> HttpConnection:
        """A protocol for a new connection."""
        return HttpConnection(
            self._server,
            self,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            tcp_keepalive=False,
            access_log=None,
            logger=_QUIET,
            auto_decompress=False,
        )

    # -- answers ----------------------------------------------------------------------------------------------------

    def _now(self) -> str:
        """The header Date."""
        second = self._wall_now_ns() // 10**9
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(HttpConnection, request.protocol)
        try:
            reply = await self._answer(connection, request)
        except Refused as refusal:
            self.door.note_error(refusal)
            reply = self._refusal(refusal)
        except Misplaced as misplaced:
            self.door.note_error(misplaced.refusal)
            reply = self._refusal(misplaced.refusal, misplaced.status, misplaced.headers, last=misplaced.last)
        if connection._stalled_since_ns:
            await connection.drained()
        return reply

    async def _answer(self, connection: HttpConnection, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        grant = self._grant_of(connection, request)
        if path == OPENAPI_PATH:
            return self._openapi(request)
        found = find(path)
        if found is None:
            raise Refused("UNKNOWN_METHOD", f"there is nothing at this path; see {OPENAPI_PATH}")
        verb = GET if request.method == "HEAD" else request.method
        route = found.routes.get(verb)
        if route is None:
            raise Misplaced(405, "this path takes other verbs", {"Allow": _allowed(found.routes)})
        served = _SERVED[route.method.name]
        if not allowed(served.method, grant.roles):
            raise Refused("FORBIDDEN", f"{served.method.name} needs the role {served.method.role}")
        headers = request.headers
        if served.method.name == "entries":
            return await self._feed(connection, request, query, grant)
        body = await self._body(connection, request) if route.has_body else b""
        connection.request_read()
        params = served.read(found.values, query, headers.get("Idempotency-Key"), body)
        asked_ns = self.door.clock()
        reply = await connection.ask(grant, served.name, params)
        self.door.latency.note("http", served.name, self.door.clock() - asked_ns)
        if type(reply) is Refused:
            return self._refusal(reply)
        told = served.render(plain(reply), served.limit_of(params))
        content = encode(told)
        replayed = _REPLAYED if type(told) is dict and told.get("replayed") is True else _BARE
        return Reply(head_of(200, JSON, len(content), replayed, self._now()), content)

    async def _feed(
        self, connection: HttpConnection, request: web.BaseRequest, query: str, grant: Grant
    ) -> web.StreamResponse:
        """The feed of all entries, see `billing.api.http.feed`."""
        headers = request.headers
        wish = feed.wanted(query, headers.get("Accept", ""), headers.get("Last-Event-ID"))
        connection.request_read()
        guard, method = self.door.guard, METHODS["entries"]

        def ask(params: list[Any]) -> asyncio.Future[object]:
            return connection.ask(grant, b"entries", params)

        def goes_on() -> bool:
            try:
                is_granted = self.door.guard is guard or allowed(method, self._grant_of(connection, request).roles)
            except (Refused, Misplaced):
                is_granted = False
            return is_granted and not connection.is_ending

        if wish.kind == JSON:
            reply = await ask(feed.params_of(wish.cursor, wish.limit or PAGE_ROWS_MAX))
            if type(reply) is Refused:
                return self._refusal(reply)
            content = feed.page_of(plain(reply), wish.cursor)
            return Reply(head_of(200, JSON, len(content), _BARE, self._now()), content)
        reply = await self._streams.serve(request, wish, ask, goes_on)
        return self._refusal(reply) if isinstance(reply, Refused) else cast(web.StreamResponse, reply)

    def _refusal(
        self, refusal: Refused, status: int = 0, headers: dict[str, str] | None = None, *, last: bool = False
    ) -> Reply:
        told = problem(refusal, status)
        head = head_of(told.status, PROBLEM, len(told.body), told.headers | (headers or {}), self._now())
        return Reply(head, told.body, told.status, last=last)

    def _openapi(self, request: web.BaseRequest) -> Reply:
        if request.method not in ("GET", "HEAD"):
            raise Misplaced(405, "this path takes other verbs", {"Allow": "GET, HEAD"})
        if not self._document:
            self._document = encode(document())
        return Reply(head_of(200, JSON, len(self._document), _BARE, self._now()), self._document)

    # -- who is asking ----------------------------------------------------------------------------------------------

    def _grant_of(self, connection: HttpConnection, request: web.BaseRequest) -> Grant:
        headers = request.headers
        if "Authorization" not in headers:
            grant = connection.greeted
            if grant is None:
                raise Refused("UNAUTHENTICATED", "sign in: Authorization: Bearer TOKEN")
            browser.check(headers, connection.by_loopback)
            return grant
        said = headers.getall("Authorization")
        scheme, _, token = said[0].partition(" ")
        if len(said) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise Misplaced(401, "expected one Authorization: Bearer TOKEN", last=True, name="UNAUTHENTICATED")
        if self._guard is not self.door.guard:
            self._guard, self._grants = self.door.guard, {}
        token = token.strip()
        found = self._grants.get(token)
        if found is None:
            found = self._guard.sign_in(token.encode("utf-8", "surrogateescape"))
            if found is None:
                self.door.drops += 1
                self.door.refused_sign_in(connection.origin)
                raise Misplaced(401, "this token is not known", last=True, name="UNAUTHENTICATED")
            if len(self._grants) < GRANTS_KEPT_MAX:
                self._grants[token] = found
        return found

    # -- the body ---------------------------------------------------------------------------------------------------

    async def _body(self, connection: HttpConnection, request: web.BaseRequest) -> bytes:
        """The body of a request that has its fields there."""
        headers = request.headers
        kind = headers.get("Content-Type")
        if kind is not None and not _is_json(kind):
            raise Misplaced(415, "the body must be application/json, in UTF-8")
        if "Content-Encoding" in headers:
            raise Misplaced(415, "the body must not be compressed", last=True)
        if not request.body_exists:
            return b""
        if (request.content_length or 0) > BODY_BYTES_MAX:
            raise Misplaced(413, f"a body may have {BODY_BYTES_MAX} bytes", last=True, name="FRAME_TOO_LARGE")
        if kind is None:
            raise Misplaced(415, "the body must be application/json, in UTF-8", last=True)
        if headers.get("Expect", "").lower() == "100-continue" and connection.transport is not None:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            content = request.content
            if content.is_eof():  # it came whole with its head, as most do
                body = content.read_nowait()
                if len(body) <= BODY_BYTES_MAX:
                    return body
                raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX, len(body))
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Misplaced(413, f"a body may have {BODY_BYTES_MAX} bytes", last=True, name="FRAME_TOO_LARGE") from None
        except web.RequestPayloadError:
            raise Misplaced(400, "the body did not come whole", last=True, name="PROTOCOL_ERROR") from None


class Misplaced(Exception):
    """A refusal that HTTP has a status of its own for."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        last: bool = False,
        name: str = "INVALID_PARAMS",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.last = last
        self.refusal = Refused("UNKNOWN_METHOD" if status == 405 else name, message)


def _allowed(routes: dict[str, Route]) -> str:
    verbs = set(routes) | ({"HEAD"} if GET in routes else set())
    return ", ".join(sorted(verbs))


def _is_json(kind: str) -> bool:
    """Whether a Content-Type is JSON in UTF-8."""
    if kind == JSON:
        return True
    media, *parameters = (part.strip().lower() for part in kind.split(";"))
    return media == JSON and all(part in ("", "charset=utf-8", 'charset="utf-8"') for part in parameters)
