"""The connections of `admin.listen`: few, and none of them for nothing.

The supervisor serves operators in the process that keeps workers alive, so connections of strangers must never take the
descriptors that the daemon needs to live. At most `visits_max` connections are open at once; beyond that number the
connection that was quiet for longest makes room for the newest: a probe of /livez is served beside any crowd. One that
is being answered never makes room: who is answered has shown a right to it, or is answered at once.

A connection is closed where its first request, or one that has begun, is not whole within `request_s`; where it has
been idle for `idle_s`; and where its client leaves unread for `stall_s` what it is sent. It is looked at once a second.

A `Visit` stands between the transport and aiohttp's handler, and passes everything on. It reads nothing.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

RESERVED: Final = 128  # descriptors for journal, map, wires to workers, and the pipes of those that are started
VISITS_MAX: Final = 64
LOOK_S: Final = 1.0
_SECOND_NS: Final = 10**9


class VisitLimits(NamedTuple):
    """Connections and seconds."""

    visits_max: int = VISITS_MAX
    request_s: float = 10.0
    idle_s: float = 75.0
    stall_s: float = 30.0


def limits_of_descriptors() -> VisitLimits:
    """As many connections as leave the daemon what it needs of the descriptors it may have."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return VisitLimits(visits_max=min(VISITS_MAX, max(4, (descriptors - RESERVED) // 2)))


class Visits:
    """All connections of the admin server; made inside a running loop."""

    def __init__(self, handler: Callable[[], Any], limits: VisitLimits, boot_ns: Callable[[], int]) -> None:
        """`handler()`: what serves one connection, a protocol of aiohttp's. `boot_ns`: the boot clock."""
        self.boot_ns = boot_ns
        self.limits = limits
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._open: dict[Any, Visit] = {}  # by their handlers
        self._looking: asyncio.TimerHandle | None = None
        self._on_look()

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._open)

    def arriving(self) -> Visit:
        """A protocol for a new connection."""
        return Visit(self, self._handler())

    def answering(self, handler: object, more: int) -> None:
        """A request on this handler's connection is whole and being answered (1), or is answered (-1)."""
        visit = self._open.get(handler)
        if visit is not None:
            visit.answering += more
            visit.has_asked = True
            visit.unfinished = False
            visit.quiet_since_ns = self.boot_ns()

    def enter(self, visit: Visit) -> None:
        """A connection is open."""
        self._open[visit.handler] = visit
        if len(self._open) > self.limits.visits_max:
            quiet = [other for other in self._open.values() if not other.answering and other is not visit]
            min(quiet, key=lambda other: other.quiet_since_ns, default=visit).abort()

    def leave(self, visit: Visit) -> None:
        """A connection has ended."""
        self._open.pop(visit.handler, None)

    def _on_look(self) -> None:
        now_ns = self.boot_ns()
        for visit in [visit for visit in self._open.values() if visit.is_over(now_ns, self.limits)]:
            visit.abort()
        self._looking = self._loop.call_later(LOOK_S, self._on_look)

    def close(self) -> None:
        """Looks no more, and ends every connection."""
        if self._looking is not None:
            self._looking.cancel()
        for visit in list(self._open.values()):
            visit.abort()


class Visit(asyncio.Protocol):
    """One connection."""

    def __init__(self, visits: Visits, handler: Any) -> None:
        self.handler = handler
        self.answering = 0  # requests
        self.has_asked = False  # a whole request has come
        self.unfinished = False  # one has begun
        self.quiet_since_ns = 0  # since it was opened, a request began, or the last one was answered
        self._stalled_since_ns = 0  # since when its client leaves too much unread; 0: it does not
        self._visits = visits
        self._transport: asyncio.Transport | None = None

    def is_over(self, now_ns: int, limits: VisitLimits) -> bool:
        """Whether its time is up."""
        if self._stalled_since_ns:
            return now_ns - self._stalled_since_ns >= limits.stall_s * _SECOND_NS
        if self.answering:
            return False
        patience_s = limits.idle_s if self.has_asked and not self.unfinished else limits.request_s
        return now_ns - self.quiet_since_ns >= patience_s * _SECOND_NS

    def abort(self) -> None:
        """Ends it at once."""
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
