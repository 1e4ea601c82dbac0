"""One endpoint over aiohttp: warm connections, one request written, one answer judged, everything bounded.

aiohttp does what it does well: resolve, connect, TLS, and parse answers with its C parser. Its session and request
classes are left out, because they cost ten times what the exchange itself costs (`benchmarks/cutoff_get.py` shows
it); with them go, by construction: redirects, cookies, proxies and passwords from the environment, decompression, and
the silent second try of a GET on a dropped connection. Used are `TCPConnector.connect`, and of the connection it gives
`transport.write` and the response handler's `set_response_params` and `read`.

**What is an answer.** Status and headers, complete. 2xx is OK, 5xx is FAILED, all else ANSWERED. The body decides
nothing: up to `answer_bytes_max` of it are read so that the connection can be used again, for at most `body_s`;
otherwise the connection is closed. No answer: FAILED; but if a connection that was used before ends without one, it
was probably closed while idle: DROPPED, to be tried at once on a new connection, as another attempt that is counted.

**Time.** `connect_timeout_s` to be connected, `timeout_s` from writing to the end of the headers, whatever dribbles in
meanwhile. Both are kept to the millisecond (aiohttp would round times above 5 s up to whole seconds), by one timer for
all connections rather than one a request.

**Idle connections** are used last in, first out; one idle for longer than `idle_s` is replaced before the other side
or something between forgets it. `warm` of them are kept open while nothing happens.

It never decides when to try again, and knows neither accounts nor money. What an endpoint sends is never logged.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from billing.expirationd.outbox import ANSWERED, DROPPED, FAILED, OK
from shards.system.clock import boot_now_ns

if TYPE_CHECKING:
    import ssl

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.streams import StreamReader

_NO_ROUNDING_S: Final = 1e9  # ClientTimeout.ceil_threshold: times above it are rounded up to whole seconds
_TEND_S: Final = 1.0
_TICK_S: Final = 0.001  # the resolution of the loop's timers
_SECOND_NS: Final = 10**9
_INFORMATIONAL_MAX: Final = 8  # 1xx answers before the real one
_RECENTLY_NS: Final = 10**9
_RETRY_AFTER_S_MAX: Final = 10**9

Verdict = tuple[int, str, int]  # outcome, error ("" for OK), Retry-After in ns (-1: none)


class Limits(NamedTuple):
    """Seconds, bytes and connections."""

    connect_timeout_s: float = 3.0
    timeout_s: float = 10.0
    body_s: float = 1.0
    answer_bytes_max: int = 4096
    connections_max: int = 64
    warm: int = 8
    idle_s: float = 30.0


class Unreachable(Exception):
    """No connection; the message says why in a few words."""


class Line:
    """One connection, and what is known of it."""

    __slots__ = (
        "busy_until_ns",
        "connection",
        "endpoint",
        "idle_since_ns",
        "late",
        "payload",
        "protocol",
        "transport",
        "used",
    )

    def __init__(self, endpoint: Endpoint, connection: Connection, protocol: ResponseHandler, now_ns: int) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.protocol = protocol
        assert connection.transport is not None
        self.transport: asyncio.Transport = connection.transport
        self.payload: StreamReader | None = None
        self.idle_since_ns = now_ns
        self.busy_until_ns = 0
        self.late = False  # its deadline passed and it was aborted
        self.used = False

    def usable(self) -> bool:
        """Whether a request may be written on it: it is open, and nothing came that nobody asked for."""
        return self.protocol.is_connected() and not self.protocol.should_close


class Endpoint:
    """Connections to one origin (`scheme://host[:port]`). Made and used inside a running loop.

    `now_ns` is asked only to understand a Retry-After that is a date; `tls` replaces the system's trust (None).
    """

    def __init__(self, origin: str, limits: Limits, now_ns: Callable[[], int], tls: ssl.SSLContext | None) -> None:
        import aiohttp  # half a second of imports, wanted only where cutoffs are sent
        from yarl import URL

        self._aiohttp = aiohttp
        self._loop = asyncio.get_running_loop()
        self.origin = origin
        self.limits = limits
        self._now_ns = now_ns
        self._connector = aiohttp.TCPConnector(limit=limits.connections_max, ssl=True if tls is None else tls)
        self._connect_timeout = aiohttp.ClientTimeout(
            total=None,
            connect=limits.connect_timeout_s,
            sock_connect=limits.connect_timeout_s,
            ceil_threshold=_NO_ROUNDING_S,
        )
        self._url = URL(origin + "/")
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_ns = 0
        self._tend: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None
        self._warm_at_ns = 0
        self._warm_failures = 0
        self.connects = 0
        self.closed = False

    @property
    def connections(self) -> int:
        """Open connections, idle and busy."""
        return len(self._idle) + len(self._busy)

    # -- connections ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to keep connections warm."""
        self._on_tend()

    def spare(self) -> Line | None:
        """A warm connection to write on now, or None."""
        idle = self._idle
        while idle:
            line = idle.pop()
            if line.usable():
                return line
            line.connection.close()
        return None

    async def connect(self) -> Line:
        """A new connection; raises Unreachable."""
        aiohttp = self._aiohttp
        request = aiohttp.ClientRequest("GET", self._url, loop=self._loop)
        try:
            connection = await self._connector.connect(request, [], self._connect_timeout)
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "") or "certificate refused"
            raise Unreachable(f"TLS: {why}") from None
        except aiohttp.ClientConnectorSSLError as error:
            why = getattr(error.os_error, "reason", "") or "handshake failed"
            raise Unreachable(f"TLS: {why}") from None
        except aiohttp.ClientConnectorDNSError:
            raise Unreachable("the name does not resolve") from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(_reason(error.os_error)) from None
        except TimeoutError:
            raise Unreachable(f"no connection within {self.limits.connect_timeout_s:g} s") from None
        except (OSError, aiohttp.ClientError) as error:
            raise Unreachable(_reason(error)) from None
        self.connects += 1
        protocol = connection.protocol
        assert protocol is not None
        return Line(self, connection, protocol, boot_now_ns())

    def keep(self, line: Line) -> None:
        """Gives back a connection on which nothing was written."""
        if self.closed:
            line.connection.close()
            return
        line.idle_since_ns = boot_now_ns()
        self._idle.append(line)

    # -- one exchange -----------------------------------------------------------------------------------------------

    async def exchange(self, line: Line, request: bytes) -> Verdict:
        """Writes one request and judges the answer. Afterwards `settle` the line, whatever the verdict."""
        protocol = line.protocol
        protocol.set_response_params(
            read_until_eof=True, auto_decompress=False, read_bufsize=self.limits.answer_bytes_max
        )
        reused, line.used = line.used, True
        self._allow(line, self.limits.timeout_s)
        try:
            line.transport.write(request)
            message, line.payload = await protocol.read()
            status = message.code
            informational = 0
            while status < 200 and status != 101:
                informational += 1
                if informational > _INFORMATIONAL_MAX:
                    return self._lost(line, FAILED, "too many informational answers")
                message, line.payload = await protocol.read()
                status = message.code
        except asyncio.CancelledError:
            self._lost(line, FAILED, "")
            raise
        except Exception as error:  # of many kinds, all of them about this connection
            if line.late:
                return self._lost(line, FAILED, f"no answer within {self.limits.timeout_s:g} s")
            if not isinstance(error, (OSError, self._aiohttp.ClientError)):
                return self._lost(line, FAILED, "malformed answer")
            if not reused:
                return self._lost(line, FAILED, "connection lost before an answer")
            self._distrust_idle()
            return self._lost(line, DROPPED, "connection was closed while idle")
        if 200 <= status < 300:
            return OK, "", -1
        retry_after_ns = -1
        if (text := message.headers.get("Retry-After")) is not None:
            retry_after_ns = self._retry_after_ns(text)
        return FAILED if status >= 500 else ANSWERED, f"status {status}", retry_after_ns

    def settle(self, line: Line) -> bool:
        """Makes the connection idle or closes it. False: the body is still to come, `await drain` does the rest."""
        payload = line.payload
        if payload is not None and not payload.is_eof() and not line.late:
            return False
        self._busy.discard(line)
        line.payload = None
        if payload is None or line.late or not line.usable():
            line.connection.close()
        else:
            self.keep(line)
        return True

    async def drain(self, line: Line) -> None:
        """Reads a body that nobody needs, as far as the limits allow, then settles the line."""
        payload = line.payload
        assert payload is not None
        self._allow(line, self.limits.body_s)
        left = self.limits.answer_bytes_max
        try:
            while not payload.is_eof():
                left -= len(await payload.readany())
                if left < 0:
                    break
        except asyncio.CancelledError:
            line.payload = None
            raise
        except Exception:  # the answer was judged already; what is wrong with its body is of no interest
            line.payload = None
        else:
            if left < 0 or not payload.is_eof():
                line.payload = None
        finally:
            self.settle(line)

    async def close(self) -> None:
        """Closes every connection; exchanges under way end as lost."""
        self.closed = True
        for timer in (self._deadline, self._tend):
            if timer is not None:
                timer.cancel()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        for line in [*self._idle, *self._busy]:
            line.connection.close()
        self._idle.clear()
        self._busy.clear()
        await self._connector.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _lost(self, line: Line, outcome: int, error: str) -> Verdict:
        line.payload = None
        return outcome, error, -1

    def _distrust_idle(self) -> None:
        """What closed one idle connection probably closed the others that have been idle as well."""
        before_ns = boot_now_ns() - _RECENTLY_NS
        for line in self._idle:
            if line.idle_since_ns < before_ns:
                line.connection.close()
        self._idle = [line for line in self._idle if line.idle_since_ns >= before_ns]

    def _retry_after_ns(self, text: str) -> int:
        """Of the header's value, seconds or a date (RFC 9110, section 10.2.3); -1 if it is neither."""
        text = text.strip()
        if text.isascii() and text.isdigit():
            return min(int(text[:10]), _RETRY_AFTER_S_MAX) * _SECOND_NS
        try:
            return max(0, int(parsedate_to_datetime(text).timestamp()) * _SECOND_NS - self._now_ns())
        except (ValueError, TypeError, OverflowError):
            return -1

    def _allow(self, line: Line, seconds: float) -> None:
        """From now on the line is aborted unless it is settled within `seconds`."""
        line.busy_until_ns = until_ns = boot_now_ns() + int(seconds * _SECOND_NS)
        self._busy.add(line)
        if self._deadline is None or self._deadline_ns > until_ns:
            self._arm(until_ns)

    def _arm(self, at_ns: int) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline_ns = at_ns
        wait_s = max(0, at_ns - boot_now_ns()) / _SECOND_NS + _TICK_S
        self._deadline = self._loop.call_later(wait_s, self._on_deadline)

    def _on_deadline(self) -> None:
        self._deadline = None
        now_ns = boot_now_ns()
        next_ns = 0
        for line in self._busy:
            if line.late:
                continue
            if line.busy_until_ns <= now_ns:
                line.late = True
                line.transport.abort()
            elif not next_ns or line.busy_until_ns < next_ns:
                next_ns = line.busy_until_ns
        if next_ns:
            self._arm(next_ns)

    def _on_tend(self) -> None:
        now_ns = boot_now_ns()
        idle_ns = int(self.limits.idle_s * _SECOND_NS)
        fresh = []
        for line in self._idle:
            if line.usable() and now_ns - line.idle_since_ns < idle_ns:
                fresh.append(line)
            else:
                line.connection.close()
        self._idle = fresh
        if self.connections < self.limits.warm and self._warming is None and now_ns >= self._warm_at_ns:
            self._warming = self._loop.create_task(self._warm())
        self._tend = self._loop.call_later(_TEND_S, self._on_tend)

    async def _warm(self) -> None:
        try:
            while self.connections < self.limits.warm and not self.closed:
                self.keep(await self.connect())
            self._warm_failures = 0
        except Unreachable:
            self._warm_failures = min(self._warm_failures + 1, 5)
            self._warm_at_ns = boot_now_ns() + (1 << self._warm_failures) * _SECOND_NS
        finally:
            self._warming = None


def _reason(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else type(error).__name__
