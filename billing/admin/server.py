"""HTTP for operators on `admin.listen`. It only reads: no request changes anything.

    /livez      200 while the supervisor's loop turns
    /readyz     200 when every bucket is served and takes changes, else 503 with one reason per line (a worker that
                hangs serves no bucket)
    /metrics    the figures in Prometheus' text format
    /           the dashboard; ?user=ID shows an account on it
    /events     its parts as server-sent events: "parts" {now_ns, parts: {id: markup}}, "moved" [[bucket, shard], …]
    /account    the part about one account: ?user=ID
    /runbook    the meaning and the remedy of each alert

**Who may read.** Every client that reaches the socket may read /livez and /readyz. Everything else has the rules of the
RPC doors (`billing.api.auth`). Without configured tokens: clients on this host, and clients with a certificate. With
tokens: clients with a token, or the certificate of a name, that has the role `read` or `admin`; the token comes as
`Authorization: Bearer` or, from a browser, as the password of Basic. Without configured tokens, a request that has no
certificate and whose `Host` header does not name loopback is refused: otherwise a foreign web page could read here
through a name that it points at 127.0.0.1.

This process keeps the workers alive, and connections of strangers must not take the descriptors that it needs for that.
So `visits` limits the number of connections and the silence on each, and `tls_entrance` limits the handshakes.

At most `VIEWERS_MAX` pages are kept fresh at once. Another one takes the place of the one that was opened first: a
browser that is stopped would hold it for as long as the kernel takes what it does not read, and one that is not stopped
asks again. The workers are asked once for all pages.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web
from markupsafe import Markup

from billing.addresses import parse_listen
from billing.admin.figure_sampler import GLANCE_S, FigureSampler
from billing.admin.metrics import CONTENT_TYPE, Exposition
from billing.admin.page import parts, plots
from billing.admin.processes import HOST, Processes
from billing.admin.visits import VisitLimits, Visits, limits_of_descriptors
from billing.admin.worker_queries import QueryRefused, QueryReplies, WorkerQueries
from billing.api.auth import Guard
from billing.api.listener import Listener, PlainEntrance
from billing.api.methods import ADMIN, READ
from billing.api.origins import origin_of
from billing.api.tls import server_context
from billing.api.tls_entrance import TlsEntrance
from billing.config.schema import Config
from billing.ledger.commands import USER_ID_BYTES_MAX
from shards.system.disk import RealDisk, read_file

VIEWERS_MAX: Final = 32
PAGE: Final = Path(__file__).parent / "page"
ASSETS: Final = {"page.css": "text/css", "page.js": "text/javascript", "page.svg": "image/svg+xml"}
OPEN: Final = ("/livez", "/readyz")
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """The routes, and the check of who may read them."""

    def __init__(
        self, config: Config, sampler: FigureSampler, replies: QueryReplies, refused_sign_in: Callable[[str], None]
    ) -> None:
        """`replies`: the object that the supervisor hands the workers' replies to. `refused_sign_in(address)`: called
        with the client's address when a client shows an unknown token.
        """
        self._sampler = sampler
        self._refused_sign_in = refused_sign_in
        self._supervisor = sampler.supervisor
        self.boot_ns = sampler.clocks.boot_ns
        self._disk = RealDisk()
        self._queries = WorkerQueries(sampler.supervisor, replies)
        info = {"journal_sync": config.journal.sync, "after_exhaustion": config.cutoff.after_exhaustion}
        self._processes = Processes(sampler, config.daemon.data_dir)
        self._exposition = Exposition(sampler, self._processes, info)
        self._files = {name: read_file(self._disk, str(PAGE / name)) for name in ("page.html", "runbook.html", *ASSETS)}
        self.visits: Visits | None = None  # the connections, while the site is served
        self.entrance: TlsEntrance | None = None  # accepts the connections, if the site is served over TLS
        self.take_up(config)
        self._viewers: dict[web.StreamResponse, web.Request] = {}  # the pages that are kept fresh, oldest first
        self._last_event: tuple[int, str] = (-1, "")  # (number of the look, data of the event "parts" made of it)
        self._making = asyncio.Lock()

    def take_up(self, config: Config) -> None:
        """Lets callers in from now on by these tokens, and where it speaks TLS, by these certificates."""
        tokens_file = config.rpc.tokens_file
        self._guard = Guard(config.text_of(tokens_file) if tokens_file else None)
        if self.entrance is not None and (tls := server_context(config)) is not None:
            self.entrance.take_context(tls)

    def application(self) -> web.Application:
        """The aiohttp application: the routes behind the middleware `_door`."""
        application = web.Application(middlewares=[self._door])
        for path, handler in (
            ("/livez", self.livez), ("/readyz", self.readyz), ("/metrics", self.metrics), ("/", self.page),
            ("/events", self.events), ("/account", self.account), ("/runbook", self.runbook),
        ):  # fmt: skip
            application.router.add_get(path, handler)
        for name in ASSETS:
            application.router.add_get(f"/{name}", self.asset)
        return application

    # -- who may read -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        visits, protocol = self.visits, request.protocol
        if visits is not None:
            visits.answering(protocol, 1)
        try:
            return await self._answered(request, handler)
        finally:
            if visits is not None:
                visits.answering(protocol, -1)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN:
            refused = self._refusal(request)
            if refused is not None:
                return refused
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        transport = request.transport
        if transport is None:
            return web.Response(status=400)
        certified = transport.get_extra_info("peercert")
        if not self._guard.asks_for_tokens and not certified and not is_this_host(request.host):
            return web.Response(status=421, text="this is not the host that you named\n", headers=HEADERS)
        grant = self._guard.greet(transport)
        if grant is None:
            token = token_of(request.headers.get("Authorization", ""))
            grant = self._guard.sign_in(token) if token else None
            if token and grant is None:
                self._refused_sign_in(origin_of(transport))
        if grant is None:
            return web.Response(
                status=401,
                text="a token is needed: as a bearer, or as the password with any name\n",
                headers={**HEADERS, "WWW-Authenticate": 'Basic realm="billing", charset="UTF-8"'},
            )
        if not grant.roles & {READ, ADMIN}:
            return web.Response(status=403, text="this token has not the role read\n", headers=HEADERS)
        return None

    # -- for machines -----------------------------------------------------------------------------------------------

    async def livez(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(self, _: web.Request) -> web.Response:
        reasons = self._sampler.why_not_ready()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ready\n")

    async def metrics(self, _: web.Request) -> web.Response:
        if not self._sampler.looks:
            await self._sampler.turned.wait()
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    # -- for people -------------------------------------------------------------------------------------------------

    async def page(self, request: web.Request) -> web.Response:
        user = request.query.get("user", "").strip()
        if not self._sampler.looks:
            await self._sampler.turned.wait()
        bucket_map = self._supervisor.map
        page_parts = parts.parts(self._sampler, await self._ask())
        body = Markup(self._files["page.html"].decode()).format(
            **page_parts,
            user=user,
            host=HOST,
            cells=Markup(" open") if self._sampler.moving() else "",
            account=parts.account(await self._account(user)) if user else "",
            buckets=plots.buckets(bucket_map.owner.tolist()[1:], set(bucket_map.pinned)),
        )
        return web.Response(text=body, content_type="text/html")

    async def account(self, request: web.Request) -> web.Response:
        user = request.query.get("user", "").strip()
        return web.Response(text=parts.account(await self._account(user)), content_type="text/html")

    async def runbook(self, _: web.Request) -> web.Response:
        body = Markup(self._files["runbook.html"].decode()).format(alerts=parts.runbook())
        return web.Response(text=body, content_type="text/html")

    async def asset(self, request: web.Request) -> web.Response:
        name = request.path.removeprefix("/")
        return web.Response(body=self._files[name], content_type=ASSETS[name], charset="utf-8")

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        if len(self._viewers) >= VIEWERS_MAX:
            self._end_oldest_view()
        self._viewers[response] = request
        looks, moves_seen = -1, self._sampler.moves_seen
        try:
            while response in self._viewers:
                if self._sampler.moves_seen != moves_seen:
                    moved = [[move.bucket_id, move.target] for move in self._sampler.moved_since(moves_seen)]
                    moves_seen = self._sampler.moves_seen
                    await response.write(f"event: moved\ndata: {json.dumps(moved)}\n\n".encode())
                if self._sampler.looks != looks:
                    looks = self._sampler.looks
                    await response.write(f"event: parts\ndata: {await self._data(looks)}\n\n".encode())
                await asyncio.sleep(GLANCE_S)
        except ConnectionResetError:
            pass
        finally:
            self._viewers.pop(response, None)
        return response

    def _end_oldest_view(self) -> None:
        oldest = self._viewers.pop(next(iter(self._viewers)))
        transport = oldest.transport
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()  # it may wait for its browser

    async def _data(self, looks: int) -> str:
        """The data of the event "parts", as JSON; made once a look for all viewers."""
        async with self._making:
            if self._last_event[0] != looks:
                answers = await self._ask()
                page_parts = {name: str(markup) for name, markup in parts.parts(self._sampler, answers).items()}
                self._last_event = looks, json.dumps({"now_ns": str(self._now_ns()), "parts": page_parts})
            return self._last_event[1]

    async def _ask(self) -> parts.Answers:
        owed, coming = await asyncio.gather(
            self._answer(self._queries.pending_cutoffs(parts.OWED_SHOWN)),
            self._answer(self._queries.forecast(parts.HOUR_NS, parts.MINUTE_NS)),
        )
        return parts.Answers(owed, coming, self._now_ns(), self._processes.usage())

    async def _answer(self, question: Awaitable[T]) -> T | str:
        try:
            return await question
        except QueryRefused as refusal:
            return refusal.message

    async def _account(self, user: str) -> dict[str, Any] | str:
        name = user.encode()
        if not 1 <= len(name) <= USER_ID_BYTES_MAX:
            return f"A user id has 1 to {USER_ID_BYTES_MAX} bytes."
        try:
            return await self._queries.account(name)
        except QueryRefused as refusal:
            if refusal.name == "UNKNOWN_ACCOUNT":
                return f"There is no account {user}."
            return f"The account cannot be shown now: {refusal.message}."

    def _now_ns(self) -> int:
        """Billing time, as closely as the supervisor knows it. Wall time before billing time is anchored."""
        clock = self._supervisor.time.clock
        clocks = self._sampler.clocks
        return clocks.wall_ns() if clock is None else clock.ahead(clocks.boot_ns())


def is_this_host(host: str) -> bool:
    """Whether a Host header names the loopback of this host."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        return name == "localhost" or parse_listen(f"{name}:1").loopback
    except ValueError:
        return False


def token_of(authorization: str) -> bytes:
    """The token in an Authorization header: that of Bearer, or the password of Basic. Empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class Asker(web.RequestHandler):
    """One connection. Bytes that are not HTTP get a 4xx answer and no line in the daemon's log, as the client is at
    fault.
    """

    def __init__(self, server: web.Server) -> None:
        options: dict[str, Any] = {"access_log": None}  # aiohttp takes None, its types do not
        super().__init__(server, loop=asyncio.get_running_loop(), **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers a bad request with its 4xx status, and ends the connection. aiohttp answers and logs a 5xx, which is
        a bug.
        """
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        refusal = web.Response(status=status, text="this is no HTTP request that is taken here\n", headers=HEADERS)
        refusal.force_close()
        return refusal

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Logs an exception, except for a malformed body: that is the client's fault, as a malformed head is."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


async def serve_admin(
    listener: socket.socket, site: Site, tls: ssl.SSLContext | None, limits: VisitLimits | None = None
) -> None:
    """Serves on a bound socket until cancelled. `limits`: None for the limits that `limits_of_descriptors` gives."""
    runner = web.AppRunner(site.application(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None, "it was set up"
    visits = site.visits = Visits(partial(Asker, runner.server), limits or limits_of_descriptors(), site.boot_ns)
    entrance: PlainEntrance | TlsEntrance = PlainEntrance()
    if tls is not None:
        entrance = site.entrance = TlsEntrance(tls, lambda _: None, handshakes_max=visits.limits.visits_max // 2)
    listening = Listener(listener, entrance, visits.arriving)
    try:
        await asyncio.Event().wait()
    finally:
        listening.close()
        entrance.close()
        await runner.cleanup()
        visits.close()
