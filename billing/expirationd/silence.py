"""Finds out whether a call without an answer waits for idle connections, because the server serves few. Pure.

A server that serves one connection at a time waits for a request on an idle connection, and does not even accept the
call that was written on another. A call is therefore *suspicious* once it has had no answer for `SILENCE_NS` plus twice
the usual time, and no other call was answered meanwhile. Then the endpoint closes all idle connections (`cleared`). If
a call that waited at that moment is answered within the same time, the server was waiting for the idle connections:
this is a *strike*.

A call that is merely slow proves nothing. It is recognised when calls that were written well after it, on connections
that were not proved either, are answered before it: a server accepts connections in order, so it has accepted the
connection of the slow call, too. Such an *overtaken* call is never a strike, however late its answer comes. (An answer
on a proved connection says nothing about connections that still wait to be accepted.) An overtaken call can be
suspicious all the same, because closing idle connections does no harm, and a server may accept from several queues.
"""

from __future__ import annotations

from typing import Final

SILENCE_NS: Final = 20_000_000
STRIKES_MAX: Final = 3


class Silence:
    """The evidence about one endpoint. Instants are of the boot clock."""

    __slots__ = ("_cleared_ns", "_newest_ns", "_usual_ns", "answered_ns", "strikes")

    def __init__(self) -> None:
        self.answered_ns = 0  # when the last answer came
        self.strikes = 0
        self._usual_ns = 0  # the usual time of an answer; falls at once and rises slowly, as waits are not usual
        self._newest_ns = 0  # when the newest call was written that was answered on a connection not proved before
        self._cleared_ns = 0  # when the idle connections were closed because a call was suspicious

    @property
    def patience_ns(self) -> int:
        """A call without an answer is suspicious after this time."""
        return SILENCE_NS + 2 * self._usual_ns

    def is_overtaken(self, asked_ns: int) -> bool:
        """Whether a call written at `asked_ns` was overtaken by one written well after it, both on connections not
        proved before.
        """
        return asked_ns + SILENCE_NS < self._newest_ns

    def is_suspicious(self, asked_ns: int, now_ns: int) -> bool:
        """Whether the call that waits for longest, written at `asked_ns`, is suspicious by now."""
        return now_ns - max(asked_ns, self.answered_ns) >= self.patience_ns

    def cleared(self, now_ns: int) -> None:
        """The endpoint has closed its idle connections because a call was suspicious."""
        self._cleared_ns = now_ns

    def answered(self, asked_ns: int, now_ns: int, proved: bool) -> bool:
        """A call written at `asked_ns` was answered. Returns whether this answer is a strike. `proved`: an answer had
        come on its connection before.
        """
        waited = asked_ns < self._cleared_ns and not self.is_overtaken(asked_ns)
        struck = not proved and waited and now_ns <= self._cleared_ns + self.patience_ns
        if struck:
            self._cleared_ns = 0
            self.strikes += 1
        self.answered_ns = now_ns
        if not proved:
            self._newest_ns = max(self._newest_ns, asked_ns)
        slower_ns = now_ns - asked_ns - self._usual_ns
        self._usual_ns += slower_ns // 16 if self._usual_ns and slower_ns > 0 else slower_ns
        return struck
