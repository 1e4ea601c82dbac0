"""The connections of `admin.listen`, limited in number and in silence.

The process that keeps workers alive also serves operators, so connections of strangers must never take the descriptors
that the daemon needs to live. At most `visits_max` connections are open at once. When another one arrives, the
connection that has been quiet for longest is closed, so that a probe of /livez is served beside any crowd. A connection
whose request is being answered is never closed for that: its client has shown that it may read, or gets its refusal at
once. If all others are being answered, the new connection is closed.

A connection is closed if its first request, or a request that has begun, is not complete within `request_s`; if it has
been idle for `idle_s`; or if its client does not read what it is sent for `stall_s`. All connections are checked once a
second.

A `Visit` stands between the transport and aiohttp's handler and passes everything on. It does not look into the bytes.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

RESERVED: Final = 128  # descriptors for the journal, the map, wires to workers, and pipes of processes being started
VISITS_MAX: Final = 64
LOOK_S: Final = 1.0
_SECOND_NS: Final = 10**9


class VisitLimits(NamedTuple):
    """The greatest number of connections, and the deadlines of each; see the module."""

    visits_max: int = VISITS_MAX
    request_s: float = 10.0
    idle_s: float = 75.0
    stall_s: float = 30.0


def limits_of_descriptors() -> VisitLimits:
    """Limits with a number of connections that leaves the daemon enough of the descriptors that this process may
    open.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return VisitLimits(visits_max=min(VISITS_MAX, max(4, (descriptors - RESERVED) // 2)))


class Visits:
    """All connections of the admin server; made inside a running loop."""

    def __init__(self, handler: Callable[[], Any], limits: VisitLimits, boot_ns: Callable[[], int]) -> None:
        """`handler()`: makes the aiohttp protocol that serves one connection. `boot_ns`: the boot clock."""
        self.boot_ns = boot_ns
        self.limits = limits
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._open: dict[Any, Visit] = {}  # handler -> its visit
        self._looking: asyncio.TimerHandle | None = None
        self._on_look()

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def arriving(self) -> Visit:
        """Makes the protocol for a new connection."""
        return Visit(self, self._handler())

    def answering(self, handler: object, more: int) -> None:
        """Called when a request on this handler's connection is complete and begins to be answered (`more` = 1), and
        when it has been answered (-1).
        """
        visit = self._open.get(handler)
        if visit is not None:
            visit.answering += more
            visit.has_asked = True
            visit.unfinished = False
            visit.quiet_since_ns = self.boot_ns()

    def enter(self, visit: Visit) -> None:
        """Called when a connection has opened. Closes the quietest one if there are now too many."""
        self._open[visit.handler] = visit
        if len(self._open) > self.limits.visits_max:
            quiet = [other for other in self._open.values() if not other.answering and other is not visit]
            min(quiet, key=lambda other: other.quiet_since_ns, default=visit).abort()

    def leave(self, visit: Visit) -> None:
        """Called when a connection has ended."""
        self._open.pop(visit.handler, None)

    def _on_look(self) -> None:
        now_ns = self.boot_ns()
        for visit in [visit for visit in self._open.values() if visit.is_over(now_ns, self.limits)]:
            visit.abort()
        self._looking = self._loop.call_later(LOOK_S, self._on_look)

    def close(self) -> None:
        """Stops the checks and ends every connection."""
        if self._looking is not None:
            self._looking.cancel()
        for visit in list(self._open.values()):
            visit.abort()


class Visit(asyncio.Protocol):
    """One connection."""

    def __init__(self, visits: Visits, handler: Any) -> None:
        self.handler = handler
        self.answering = 0  # requests that are being answered
        self.has_asked = False  # whether a complete request has come
        self.unfinished = False  # whether a request has begun and is not complete
        self.quiet_since_ns = 0  # since it was opened, a request began, or the last one was answered
        self._stalled_since_ns = 0  # since when its client has left too much unread; 0: it reads
        self._visits = visits
        self._transport: asyncio.Transport | None = None

    def is_over(self, now_ns: int, limits: VisitLimits) -> bool:
        """Whether the connection has exceeded one of its deadlines."""
        if self._stalled_since_ns:
            return now_ns - self._stalled_since_ns >= limits.stall_s * _SECOND_NS
        if self.answering:
            return False
        patience_s = limits.idle_s if self.has_asked and not self.unfinished else limits.request_s
        return now_ns - self.quiet_since_ns >= patience_s * _SECOND_NS

    def abort(self) -> None:
        """Ends the connection at once."""
        self._visits.leave(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.quiet_since_ns = self._visits.boot_ns()
        self.handler.connection_made(transport)
        self._visits.enter(self)

    def data_received(self, data: bytes) -> None:
        if not self.unfinished and not self.answering:
            self.unfinished, self.quiet_since_ns = True, self._visits.boot_ns()
        self.handler.data_received(data)

    def eof_received(self) -> Any:
        return self.handler.eof_received()

    def pause_writing(self) -> None:
        self._stalled_since_ns = self._visits.boot_ns()
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since_ns = 0
        self.handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._visits.leave(self)
        self._transport = None
        self.handler.connection_lost(exc)
