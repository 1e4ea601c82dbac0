"""Whether a call that has no answer waits for idle connections: the evidence that a server serves few. Pure.

A server that serves one connection at a time sits on an idle one and does not even accept the call that was written on
another. A call is therefore *suspicious* once it is unanswered for `SILENCE_NS` and twice the usual time while nobody
else was answered either. Then all idle connections are closed (`cleared`). If a call that waited then is answered as
soon as that, the server waited for those: a *strike*.

What proves nothing: a call that is merely slow. Such a call is recognised where calls that were written well after it,
on connections not proved either, are answered before it: a server accepts connections in order, so it has accepted the
connection of the slow call, too. Such an *overtaken* call is never a strike, however late its answer comes; and its
slow answer is measured by what was usual before. (One that was answered on a proved connection says nothing of those
that still wait to be accepted.) It is suspicious all the same, since closing idle connections harms nobody, and a
server may accept from several queues.
"""

from __future__ import annotations

from typing import Final

SILENCE_NS: Final = 20_000_000
STRIKES_MAX: Final = 3


class Silence:
    """Of one endpoint. Instants are of the boot clock."""

    __slots__ = ("_cleared_ns", "_newest_ns", "_usual_ns", "answered_ns", "strikes")

    def __init__(self) -> None:
        self.answered_ns = 0  # when the last answer came
        self.strikes = 0
        self._usual_ns = 0  # what an answer takes; down at once, and up slowly: waiting for others is not usual
        self._newest_ns = 0  # when the newest call was written that was answered on a connection not proved before
        self._cleared_ns = 0  # when the idle connections were closed for the sake of calls without an answer

    @property
    def patience_ns(self) -> int:
        """For how long nothing may be heard before that is suspicious."""
        return SILENCE_NS + 2 * self._usual_ns

    def is_overtaken(self, asked_ns: int) -> bool:
        """Whether a call written then was overtaken by one written well after it, both on connections not proved."""
        return asked_ns + SILENCE_NS < self._newest_ns

    def is_suspicious(self, asked_ns: int, now_ns: int) -> bool:
        """Whether the call that waits for longest, written at `asked_ns`, is suspicious by now."""
        return now_ns - max(asked_ns, self.answered_ns) >= self.patience_ns

    def cleared(self, now_ns: int) -> None:
        """The idle connections were closed for the sake of calls without an answer."""
        self._cleared_ns = now_ns

    def answered(self, asked_ns: int, now_ns: int, proved: bool) -> bool:
        """A call written at `asked_ns` was answered; whether that is the strike that decides: this server serves few.
        `proved`: an answer came on its connection before.
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
