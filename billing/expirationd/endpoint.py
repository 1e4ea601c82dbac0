"""One endpoint: opens connections, writes one request on each and judges its answer, with a limit on everything.

`dialing` makes connections and `answer` parses answers; this module joins them: it chooses the connection for a call,
limits the time, and decides which connections are kept. It has no redirects, cookies, proxies and passwords from the
environment, decompression, or silent second try on a dropped connection, because these cost many times as much as the
exchange itself (`benchmarks/cutoff_get.py`).

**What is an answer.** A complete final status line. 2xx is OK, 429 or 503 with a Retry-After is BUSY, all else FAILED.
If the headers do not end, or end too late, the status decides all the same. Up to `answer_bytes_max` of the body are
read, for at most `body_s`, so that the connection can be used again; otherwise the connection is closed. A call without
an answer is FAILED or TIMED_OUT. But a connection that was used before and ends without an answer was probably closed
while idle: the call is DROPPED, to be tried at once on a new connection; that attempt is counted, too.

**Time.** `connect_timeout_s` for opening a connection; `timeout_s` of `ask` from the writing to the status. One timer
serves all connections, not one per request. If that timer rings late, because the process did not run, answers that
came meanwhile are read first.

**A burst.** If many calls are in flight, answers are read first and then taken one after the other (see `line`). While
they are taken, `is_taking` is true, and `on_taken` is called behind the last one, so that whoever gets the verdicts can
act on all of them at once.

**Which connection.** Many servers serve one connection at a time in each process or thread: a silent connection keeps
such a server waiting for a request, and the server does not even accept a call on another connection. This cannot be
seen from outside, so the endpoint learns it from the server's behaviour. A connection is *proved* once an answer came
on it: the server has accepted it, and keeps it open. Proved connections are used first, the youngest first. *Spare*
connections were opened ahead, and nothing was ever written on them.

    UNKNOWN   no spare connections; a proved one is kept idle for `BRIEFLY_S`, and used for `HELD_S` at most, or for
              `TOGETHER_S` if an answer came on another connection meanwhile: this server serves both
    MANY      up to `warm` connections are kept open, spare ones if too few are proved; connections that a burst opened
              beyond the number that was shown to be harmless are used for `TOGETHER_S` at most, and closed once idle
    FEW       no connection is kept, and at most `FEW_CALLS` are open at once; other calls wait for their turn. A call
              that has had no answer for `HOG_S` does not count: one user's call without an answer delays no others

An endpoint goes from UNKNOWN to MANY in one way, once an answer has left a connection open: some spare connections are
opened before the connection of a call, and the call is answered while all of them stay silent. The first trial opens
two; each further trial doubles the number, up to `warm`, and no more are kept than were tried. When a silence is
suspicious (see `silence`), all idle connections are closed: nothing was written on them, or everything was answered, so
nothing can be lost. If that helps `STRIKES_MAX` times, the server serves FEW. FEW becomes UNKNOWN again after
`FORGET_S`; and at once if a call is answered before another one that was written `SILENCE_NS` earlier on another
connection: a server that serves few would not have read the later one.

**Ahead.** If no connection is open and a cutoff falls due in a moment, `open_ahead` opens one for it, and the next call
is written on that one. So even a server that serves one connection at a time gets the request on the connection that it
waits for. A connection that was opened ahead and not used within `AHEAD_KEPT_S` is closed.

**Which address.** If a name has several addresses, one of them may take connections and serve nobody. So when a call
on a connection that is not proved ends without an answer, and no other call was answered meanwhile, or after each
`REFUSALS_MAX` answers without a 2xx between, all idle connections are closed and the next one goes to another address.
Where all addresses serve, this does no harm.

So the connections of this process delay a call of this process by some `SILENCE_NS` at most, and a call of another
process by `HELD_S` or `AHEAD_KEPT_S`. A connection that has been idle for `idle_s`, or for two thirds of the time after
which this server closed one, is closed or replaced.

The endpoint never decides when to retry, and knows neither accounts nor money. What a server sends is never logged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from billing.expirationd.answer import AnswerReader, Malformed
from billing.expirationd.dialing import Dialer, Unreachable
from billing.expirationd.health import BUSY, DROPPED, FAILED, OK, TIMED_OUT
from billing.expirationd.line import Line, Verdict
from billing.expirationd.silence import SILENCE_NS, STRIKES_MAX, Silence
from shards.system.clock import Clocks

if TYPE_CHECKING:
    import ssl

UNKNOWN: Final = "unknown"
MANY: Final = "many"
FEW: Final = "few"

BRIEFLY_S: Final = 0.01
HELD_S: Final = 0.03
TOGETHER_S: Final = 2.0
AHEAD_KEPT_S: Final = 0.04
FEW_CALLS: Final = 2
HOG_S: Final = 0.25
GATHERED_FROM: Final = 8  # calls in flight: a burst
TRIED_FIRST: Final = 2
REFUSALS_MAX: Final = 5
FORGET_S: Final = 600.0

_TEND_S: Final = 1.0
_TICK_S: Final = 0.001  # the resolution of the loop's timers
_TICK_NS: Final = 1_000_000
_STALLED_NS: Final = 50_000_000  # a timer this late means that the process did not run
_SECOND_NS: Final = 10**9
_RECENTLY_NS: Final = 10**9
_RETRY_AFTER_S_MAX: Final = 10**9
_IDLE_S_MIN: Final = 0.2
_FOR_EVER_NS: Final = 1 << 63

_OK: Final[Verdict] = (OK, "", -1)


def _nothing() -> None:
    """Nobody takes verdicts together."""


class Limits(NamedTuple):
    """Limits of an endpoint, in seconds, bytes and connections."""

    connect_timeout_s: float = 3.0
    body_s: float = 1.0
    answer_bytes_max: int = 4096
    connections_max: int = 64
    warm: int = 8
    idle_s: float = 30.0


def retry_after_ns_of(text: str, wall_ns: int) -> int:
    """The wait of a Retry-After header in ns, from seconds or a date (RFC 9110, section 10.2.3); -1 if the value is
    neither. A date that names no zone, as in the form of C's asctime, is one of UTC (section 5.6.7).
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]), _RETRY_AFTER_S_MAX) * _SECOND_NS
    try:
        at = parsedate_to_datetime(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()) * _SECOND_NS - wall_ns)
    except (ValueError, TypeError, OverflowError):
        return -1


class Endpoint:
    """Connections to one origin (`scheme://host[:port]`). Made and used inside a running loop.

    Of `clocks`, the wall clock is read only to interpret a Retry-After that is a date. `tls` replaces the system's
    certificate authorities (None: these).
    """

    def __init__(self, origin: str, limits: Limits, clocks: Clocks, tls: ssl.SSLContext | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.origin = origin
        self.limits = limits
        self.serves = UNKNOWN
        self.boot_ns = clocks.boot_ns
        self._wall_ns = clocks.wall_ns
        self._dialer = Dialer(origin, limits.connect_timeout_s, tls, clocks.boot_ns)
        self._proved: list[Line] = []  # idle; the one that was used last is the last
        self._spares: deque[Line] = deque()  # idle and never used, the oldest first
        self._ahead: Line | None = None  # idle and never used; the next call uses it
        self._opening: asyncio.Task[None] | None = None  # opens `_ahead`
        self._unanswered: dict[Line, None] = {}  # lines whose request has no answer yet, in the order of writing
        self._unanswered_unproved = 0  # how many of these are not proved
        self._draining: set[Line] = set()  # answered, the body is still to come
        self._connecting = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_ns = 0
        self._silence = Silence()
        self._listening: asyncio.TimerHandle | None = None  # until a silence is suspicious
        self._listening_until_ns = 0
        self._tend: asyncio.TimerHandle | None = None
        self._briefly: asyncio.TimerHandle | None = None
        self._turns: deque[asyncio.Future[None]] = deque()  # calls that wait to connect to a server that serves few
        self._warming: asyncio.Task[None] | None = None
        self._warm_at_ns = 0
        self._warm_failures = 0
        self._kept_open = False  # an answer has left its connection open
        self.shown = 0  # with so many spare connections open, a call was answered: they do no harm
        self._trial: set[Line] = set()  # the spare connections of the trial under way
        self._tried_ns = 0
        self._few_since_ns = 0
        self._gathered: deque[Line] = deque()  # lines that have read something in this turn that is not taken yet
        self.is_taking = False
        self.on_taken: Callable[[], object] = _nothing
        self._answered_line: Line | None = None  # the line on which the last answer came
        self._others_ns = 0  # when the last answer came on another line than that
        self._idle_ns = int(limits.idle_s * _SECOND_NS)
        self._refusals = 0  # answers since the last 2xx
        self.connects = 0
        self._retired = False
        self.closed = False

    @property
    def connections(self) -> int:
        """Open connections, idle and busy."""
        idle = len(self._proved) + len(self._spares) + (self._ahead is not None)
        return idle + len(self._unanswered) + len(self._draining)

    # -- connections ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the regular work on idle connections: closing and replacing them."""
        self._on_tend()

    def spare(self) -> Line | None:
        """An idle connection to write on now, or None."""
        while self._proved:
            line = self._proved.pop()
            if line.usable and self.boot_ns() - line.idle_since_ns < self._idle_ns:
                if self.shown >= self.limits.warm or not self._is_to_try():
                    return line
                self._proved.append(line)
                return None
            line.close()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.usable:
            return ahead
        while self._spares and self.serves == MANY:
            line = self._spares.popleft()
            if line.usable:
                return line
        return None

    def open_ahead(self) -> None:
        """Opens a connection for a call that will be made in a moment, unless there is one already, or the server is
        known to serve few.
        """
        idle = self._proved or self._spares or self._ahead is not None
        busy = self._unanswered or self._connecting or self._opening is not None
        if not (idle or busy or self.closed or self.serves == FEW or not self.limits.warm):
            self._opening = self.loop.create_task(self._open_ahead())

    async def _open_ahead(self) -> None:
        try:
            line = await self._connect()
        except Unreachable:
            return
        finally:
            self._opening = None
        if self.closed or self._retired or self._unanswered or self._connecting:
            line.close()  # a call came first and has its own connection: this one would be a silent one beside it
            return
        self._ahead = line
        self.loop.call_later(AHEAD_KEPT_S, self._close_ahead, line)

    def _close_ahead(self, line: Line) -> None:
        if self._ahead is line:
            self._ahead = None
            line.close()

    def retire(self) -> None:
        """No call will be made any more: keeps no connection from now on, so that no server waits for a request on one
        of them. Exchanges under way go on.
        """
        self._retired = True
        self._clear()
        if self._ahead is not None:
            self._close_ahead(self._ahead)

    async def connect(self) -> Line:
        """Opens a connection; raises Unreachable. If a trial is due, opens its spare connections first."""
        while not self._has_turn():
            turn = self.loop.create_future()
            self._turns.append(turn)
            again = self.loop.call_later(HOG_S, self._give_turn)
            try:
                await turn
            finally:
                again.cancel()
        if self._is_to_try():
            self._tried_ns = self.boot_ns()
            wanted = min(self.limits.warm, max(TRIED_FIRST, 2 * self.shown))
            missing = range(wanted - len(self._spares))
            await asyncio.gather(*[self._add_spare() for _ in missing], return_exceptions=True)
            self._trial = set(self._spares)
        return await self._connect()

    def keep(self, line: Line) -> None:
        """Gives back a connection on which nothing was written, or whose answer was taken whole."""
        line.rest()
        if self.closed or self._retired or not line.usable or self.serves == FEW:
            line.close()
            return
        if line.proved:
            if line.idle_since_ns - line.proved_ns > self._hold_ns(line):
                line.close()
                return
            if self.serves == UNKNOWN and self._briefly is None:
                self._briefly = self.loop.call_later(BRIEFLY_S + _TICK_S, self._on_briefly)
            self._proved.append(line)
            if self._unanswered_unproved and self._listening is None:
                self._listen_closely()
        elif self.serves == MANY and len(self._spares) < self.shown:
            self._spares.append(line)
        else:
            line.close()

    def _hold_ns(self, line: Line) -> int:
        """For how long, in ns, a proved connection may be used before it is closed in favour of the server's other
        clients: if each thread of a server serves one connection, no thread may be left for them.
        """
        if self.serves == MANY:
            return int(TOGETHER_S * _SECOND_NS) if self.connections >= self.shown else _FOR_EVER_NS
        others_ns = self._others_ns if line is self._answered_line else self._silence.answered_ns
        return int((TOGETHER_S if others_ns > line.proved_ns else HELD_S) * _SECOND_NS)

    async def _connect(self) -> Line:
        self._connecting += 1
        try:
            line = await self._dialer.connect(lambda: Line(self))
        finally:
            self._connecting -= 1
            self._give_turn()
        self.connects += 1
        return line

    async def _add_spare(self) -> None:
        line = await self._connect()
        if self.closed or self._retired:
            line.close()
        else:
            self._spares.append(line)

    def _is_to_try(self) -> bool:
        """Whether the next call is to be a trial: whether this server answers it while other connections are silent."""
        return (
            self.serves != FEW
            and self.shown < self.limits.warm
            and self._kept_open
            and not self._unanswered
            and self.boot_ns() - self._tried_ns > _RECENTLY_NS
        )

    # -- one exchange -----------------------------------------------------------------------------------------------

    def ask(self, line: Line, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        """Writes one request. Calls `on_verdict` once with its outcome, not before this method returns. The endpoint
        keeps or closes the connection afterwards.
        """
        proved = line.proved
        self._unanswered[line] = None
        self._unanswered_unproved += not proved
        line.ask(request, self.limits.answer_bytes_max, partial(self._judge, line, proved, timeout_s, on_verdict))
        self._allow(line, timeout_s)
        if self._unanswered_unproved and self._listening is None and (self._proved or self._spares):
            self._listen_closely()

    def _judge(
        self,
        line: Line,
        proved: bool,
        timeout_s: float,
        on_verdict: Callable[[Verdict], None],
        answer: AnswerReader | Exception,
    ) -> None:
        """Calls `on_verdict` with the meaning of an answer, or of the exception that came instead of one."""
        if isinstance(answer, AnswerReader):
            if 200 <= answer.status < 300:
                self._refusals = 0
                on_verdict(_OK)
            else:
                self._refusals += 1
                if self._refusals % REFUSALS_MAX == 0:
                    self._try_another_address(line)
                on_verdict(self._refusal(answer))
            return
        self._unask(line)
        if not proved and self._silence.answered_ns < line.asked_ns:
            self._try_another_address(line)
        if isinstance(answer, Malformed):
            on_verdict((FAILED, "malformed answer", -1))
        elif line.tired:
            on_verdict((TIMED_OUT, line.tired, -1))
        elif line.late:
            on_verdict((TIMED_OUT, f"no answer within {timeout_s:g} s", -1))
        elif not proved:
            on_verdict((FAILED, "connection lost before an answer", -1))
        else:
            self._distrust_idle(line)
            on_verdict((DROPPED, "connection was closed while idle", -1))

    def _try_another_address(self, line: Line) -> None:
        """If the name has several addresses, the next connection goes to another one than that of `line`."""
        if line.peer is not None and self._dialer.demote(line.peer):
            self._clear()

    def _refusal(self, answer: AnswerReader) -> Verdict:
        retry_after_ns = retry_after_ns_of(answer.retry_after, self._wall_ns()) if answer.retry_after else -1
        busy = retry_after_ns >= 0 and answer.status in (429, 503)
        return BUSY if busy else FAILED, f"status {answer.status}", retry_after_ns

    def end(self, line: Line, why: str) -> None:
        """Ends the exchange on a line before its time is over: the verdict will be TIMED_OUT, with `why`."""
        asks_before = line.asks
        line.take_gathered()
        if line in self._unanswered and line.asks == asks_before and not line.late:
            line.tired = why
            line.close()

    def gathers(self, line: Line) -> bool:
        """Whether the line's answer is taken later in this turn, together with those of others, after everything is
        read. This is so in a burst.
        """
        if not self._gathered:
            if len(self._unanswered) < GATHERED_FROM:
                return False
            self.loop.call_soon(self._take_gathered)
        self._gathered.append(line)
        return True

    def _take_gathered(self) -> None:
        self.is_taking = True
        try:
            while self._gathered:
                self._gathered.popleft().take_gathered()
        finally:
            self.is_taking = False
            if self._gathered:  # one of them has met a bug
                self.loop.call_soon(self._take_gathered)
            self.on_taken()

    def on_answer(self, line: Line, answer: AnswerReader, took_ns: int) -> None:
        """A final status came; called before the verdict. Keeps, drains or closes the connection."""
        self._unask(line)
        now_ns = self.boot_ns()
        if line is not self._answered_line:
            self._answered_line, self._others_ns = line, self._silence.answered_ns
        struck = self._silence.answered(now_ns - took_ns, now_ns, line.proved)
        if self.serves == FEW and self._overtook(now_ns - took_ns):
            self.serves = UNKNOWN
            self._give_turn()
        if not line.proved:
            self._learn(struck, now_ns)
            line.proved, line.proved_ns = True, now_ns
        if answer.done and answer.reusable:
            self._kept_open = True
            self.keep(line)
        elif answer.done or line.late or line.tired or self.connections >= self.limits.connections_max:
            line.close()
        else:
            self._draining.add(line)
            self._allow(line, self.limits.body_s)

    def _unask(self, line: Line) -> None:
        if line in self._unanswered:
            del self._unanswered[line]
            self._unanswered_unproved -= not line.proved
            if self._turns:
                self._give_turn()

    def _has_turn(self) -> bool:
        """Whether one more call may be made now; a call without an answer for `HOG_S` does not count."""
        if self.serves != FEW:
            return True
        since_ns = self.boot_ns() - int(HOG_S * _SECOND_NS)
        return sum(line.asked_ns > since_ns for line in self._unanswered) + self._connecting < FEW_CALLS

    def _give_turn(self) -> None:
        while self._turns and self._has_turn():
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                if self.serves == FEW:
                    return

    def on_body(self, line: Line) -> None:
        """The body, which is not used, has been read to its end, or has grown too long."""
        self._draining.discard(line)
        answer = line.answer
        if answer is None or not answer.reusable:
            line.close()
        else:
            self._kept_open = True
            self.keep(line)

    def on_lost(self, line: Line) -> None:
        """The connection has ended."""
        self._unask(line)
        self._draining.discard(line)
        idle_ns = self.boot_ns() - line.idle_since_ns
        if line is self._ahead:
            self._ahead = None
            return
        if line in self._proved:
            self._proved.remove(line)
        elif line in self._spares:
            self._spares.remove(line)
        else:
            return
        if not self.closed and line.is_idle and not line.late and idle_ns > _IDLE_S_MIN * _SECOND_NS:
            self._idle_ns = min(self._idle_ns, idle_ns * 2 // 3)

    async def close(self) -> None:
        """Closes every connection; exchanges under way end as lost."""
        self.closed = True
        self._take_gathered()
        for timer in (self._deadline, self._tend, self._listening, self._briefly):
            if timer is not None:
                timer.cancel()
        for task in (self._warming, self._opening):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._ahead is not None:
            self._close_ahead(self._ahead)
        for line in [*self._proved, *self._spares, *self._unanswered, *self._draining]:
            line.close()
        await asyncio.sleep(0)

    # -- how many connections this server serves at once ------------------------------------------------------------

    def _listen_closely(self) -> None:
        patience_ns = self._silence.patience_ns
        self._listening_until_ns = self.boot_ns() + patience_ns + _TICK_NS
        self._listening = self.loop.call_later(patience_ns / _SECOND_NS + _TICK_S, self._on_listened)

    def _on_listened(self) -> None:
        self._listening = None
        self._take_gathered()
        oldest = next((line for line in self._unanswered if not line.proved), None)
        if oldest is None or not (self._proved or self._spares):
            return
        now_ns = self.boot_ns()
        stalled = now_ns - self._listening_until_ns > _STALLED_NS
        if not stalled and self._silence.is_suspicious(oldest.asked_ns, now_ns):
            self._clear()
            self._silence.cleared(now_ns)
        else:
            self._listen_closely()

    def _clear(self) -> None:
        """Closes all idle connections."""
        idle = [*self._proved, *self._spares]
        self._proved.clear()
        self._spares.clear()
        self._trial.clear()
        for line in idle:
            line.close()

    def _learn(self, struck: bool, now_ns: int) -> None:
        """Learns from an answer on a connection not proved before how many connections this server serves at once."""
        silence = self._silence
        if struck:
            if silence.strikes >= STRIKES_MAX:
                self.serves, self._few_since_ns, silence.strikes, self.shown = FEW, now_ns, 0, 0
                self._clear()
        elif self._trial:
            if self._trial.issubset(self._spares):
                self.serves, self.shown, silence.strikes = MANY, len(self._trial), 0
            self._trial.clear()
        elif self._spares:
            silence.strikes = 0

    def _overtook(self, asked_ns: int) -> bool:
        """Whether a call that was written well before this instant has no answer yet."""
        oldest = next(iter(self._unanswered), None)
        return oldest is not None and asked_ns - oldest.asked_ns > SILENCE_NS

    # -- inside -----------------------------------------------------------------------------------------------------

    def _distrust_idle(self, lost: Line) -> None:
        """Closes all connections that have been idle: whatever closed one of them probably closed the others, too."""
        before_ns = self.boot_ns() - _RECENTLY_NS
        for line in [line for line in (*self._proved, *self._spares) if line.idle_since_ns < before_ns]:
            line.late = True
            line.close()
        self._proved = [line for line in self._proved if line.idle_since_ns >= before_ns]
        self._spares = deque(line for line in self._spares if line.idle_since_ns >= before_ns)

    def _allow(self, line: Line, seconds: float) -> None:
        """Has the line closed after `seconds` unless it is idle by then."""
        line.until_ns = until_ns = self.boot_ns() + int(seconds * _SECOND_NS)
        if self._deadline is None or self._deadline_ns > until_ns:
            self._arm(until_ns)

    def _arm(self, at_ns: int) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline_ns = at_ns
        wait_s = max(0, at_ns - self.boot_ns()) / _SECOND_NS + _TICK_S
        self._deadline = self.loop.call_later(wait_s, self._on_deadline)

    def _on_deadline(self) -> None:
        self._deadline, rang_ns = None, self._deadline_ns
        self._take_gathered()  # answers read before the timer rang count; a call that follows may set the timer anew
        now_ns = self.boot_ns()
        if now_ns - rang_ns > _STALLED_NS:
            self._arm(now_ns)  # answers that came meanwhile are read before any call is given up
            return
        next_ns = 0
        for line in [*self._unanswered, *self._draining]:
            if line.until_ns <= now_ns:
                line.late = True
                line.close()
            elif not next_ns or line.until_ns < next_ns:
                next_ns = line.until_ns
        if next_ns:
            self._arm(next_ns)

    def _close_idle(self, for_ns: int) -> None:
        """Closes the connections that have been idle for `for_ns` or longer."""
        before_ns = self.boot_ns() - for_ns
        for line in [line for line in (*self._proved, *self._spares) if line.idle_since_ns <= before_ns]:
            line.late = True
            line.close()
        self._proved = [line for line in self._proved if line.usable]
        self._spares = deque(line for line in self._spares if line.usable)

    def _on_briefly(self) -> None:
        self._briefly = None
        if self.serves == UNKNOWN:
            self._close_idle(int(BRIEFLY_S * _SECOND_NS))
            if self._proved or self._spares:
                oldest_ns = min(line.idle_since_ns for line in (*self._proved, *self._spares))
                left_s = BRIEFLY_S - (self.boot_ns() - oldest_ns) / _SECOND_NS
                self._briefly = self.loop.call_later(max(0.0, left_s) + _TICK_S, self._on_briefly)

    def _on_tend(self) -> None:
        now_ns = self.boot_ns()
        if self.serves == FEW and now_ns - self._few_since_ns > FORGET_S * _SECOND_NS:
            self.serves = UNKNOWN
            self._give_turn()
        self._close_idle(self._idle_ns if self.serves == MANY else int(BRIEFLY_S * _SECOND_NS))
        if self.serves == MANY:
            self._close_surplus()
        wanted = self.serves == MANY and self.connections < self.shown and not self._retired
        if wanted and self._warming is None and now_ns >= self._warm_at_ns:
            self._warming = self.loop.create_task(self._warm())
        self._tend = self.loop.call_later(_TEND_S, self._on_tend)

    def _close_surplus(self) -> None:
        """Closes idle connections beyond the number that was shown to do no harm, the least recently used first."""
        before_ns = self.boot_ns() - int(BRIEFLY_S * _SECOND_NS)
        while self._proved and self.connections > self.shown and self._proved[0].idle_since_ns < before_ns:
            self._proved.pop(0).close()

    async def _warm(self) -> None:
        try:
            while self.serves == MANY and self.connections < self.shown and not (self.closed or self._retired):
                await self._add_spare()
            self._warm_failures = 0
        except Unreachable:
            self._warm_failures = min(self._warm_failures + 1, 5)
            self._warm_at_ns = self.boot_ns() + (1 << self._warm_failures) * _SECOND_NS
        finally:
            self._warming = None
