"""Sends the rows of `Columns` and takes their answers: open loop or closed, over a few connections.

**Open loop.** A command goes out when it is due, whether or not those before it were answered. Its latency counts from
that moment, not from when it was really sent: a server that stands still for 400 ms delays every request due in that
time, and a loop that waits for answers would never send them. Beside it stands the *service time*, from the actual
sending. How far the sending fell behind the plan is recorded too (`lateness`): a late sender invalidates the
measurement.

At most `depth` commands a connection are open at once. What waits for room is late by the server's doing: it is counted
as held back, and not in the lateness.

**Closed loop.** `depth` commands a connection are kept open; the next goes when one is answered. There is no latency
from an intended start then, only service time.

**Each command has its effect once.** What failed in a way that may pass is sent again after a pause, with the same
`request_id`; the answer then tells what the first one did. Its latency still counts from its moment. Users keep to one
connection, so that commands of one user are carried out in their order unless one had to be repeated; the order that
counts is the daemon's, by `entry_id`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from billing.client.batch import Batch
from billing.client.errors import BillingError
from billing.trial.loadtest.columns import ACTIVE, DEBIT, FAILED, LINE_RATE, OPEN, REFUSED, STALE, Columns
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.skew import Skew
from shards.system.clock import MACHINE_CLOCKS, Alarm

TICK_NS: Final = 250_000  # between two wakings to send, at least
SEND_MAX: Final = 256  # in one turn of the loop
RETRY_PAUSE_NS: Final = 100_000_000
TRIES_MAX: Final = 600
SILENCE_MAX_NS: Final = 60 * 10**9  # without any answer while something is open: it never comes
INTERVAL_NS: Final = 10**8  # of the curve over time
INTERVALS_MAX: Final = 1200
TOLD_MAX: Final = 20
PASSING: Final = frozenset({"UNKNOWN_ACCOUNT"})  # refused only because the first top-up is itself being repeated


class OpenLoop(NamedTuple):
    """Each row goes when it is due."""

    depth: int  # commands that are open on a connection, at most


class ClosedLoop(NamedTuple):
    """The next row goes when one is answered. `more` adds rows to the columns, again and again until the boot instant
    `end_ns`, at which the loop ends; without it the loop ends with the rows that there are.
    """

    depth: int  # commands that are kept open on a connection
    more: Callable[[], None] | None = None
    end_ns: int = 0


class MeasuredSpan(NamedTuple):
    """What of a phase is measured."""

    start_ns: int = 0  # boot instant from which moments count; 0: that at which the phase is run
    warm_ns: int = 0  # what begins earlier, counted from there, is not in the histograms
    interval_ns: int = INTERVAL_NS  # of the curve over time


WHOLE_PHASE: Final = MeasuredSpan()


class LoadDriver:
    """One phase: all rows of the columns from `first` on, and those that a closed loop adds."""

    def __init__(
        self,
        columns: Columns,
        batches: Sequence[Batch],
        loop: OpenLoop | ClosedLoop,
        *,
        first: int = 0,
        measured: MeasuredSpan = WHOLE_PHASE,
    ) -> None:
        self.columns = columns
        self.answered = self.refused = self.stale = self.retries = self.held = 0
        self.failed = 0
        self.told: list[str] = []
        self.latency = Histogram()
        self.service = Histogram()
        self.lateness = Histogram()
        self.intervals: list[Histogram] = []
        self.started_ns, self._warm_ns, self.interval_ns = measured
        self.skew = Skew()
        self.ended_ns = 0
        self._batches = batches
        self._closed = isinstance(loop, ClosedLoop)
        self._room = loop.depth * len(batches)
        self._more, self._end_ns = (loop.more, loop.end_ns) if isinstance(loop, ClosedLoop) else (None, 0)
        self._next = first
        self._in_flight = 0
        self._now_ns = 0
        self._heard_ns = 0  # when something was last answered
        self._blocked = False
        self._scheduled = False
        self._record: Callable[[int], None] = Histogram().record
        self._interval = -1
        self._fastest_ns = 2**63
        self._wall_ns = 0  # wall clock minus boot clock
        self._tries: dict[int, int] = {}
        self._again: deque[tuple[int, int]] = deque()  # (boot instant, row), in this order
        self._alarm = Alarm()

    async def run(self, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Sends all and waits until each row is settled."""
        self.columns.seal()
        loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = loop.create_future()
        boot_ns, wall_ns = MACHINE_CLOCKS.paired()
        self._wall_ns = wall_ns - boot_ns
        self._heard_ns = boot_ns
        if not self.started_ns:
            self.started_ns = boot_ns
        loop.add_reader(self._alarm.fileno(), self._on_alarm)
        try:
            self._pump()
            while not self._finished.done():
                await asyncio.wait({self._finished}, timeout=0.25)
                on_progress(self.answered)
                if self._in_flight and MACHINE_CLOCKS.boot_ns() - self._heard_ns > SILENCE_MAX_NS:
                    self._give_up()
            await self._finished
        finally:
            loop.remove_reader(self._alarm.fileno())
            self._alarm.close()
        self.ended_ns = MACHINE_CLOCKS.boot_ns()
        on_progress(self.answered)

    # -- what the batches call --------------------------------------------------------------------------------------

    def on_read(self) -> None:
        """Answers were read now."""
        now_ns = self._now_ns = self._heard_ns = MACHINE_CLOCKS.boot_ns()
        interval = (now_ns - self.started_ns) // self.interval_ns
        if interval != self._interval and 0 <= interval < INTERVALS_MAX:
            self._interval = interval
            while len(self.intervals) <= interval:
                self.intervals.append(Histogram())
            self._record = self.intervals[interval].record
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def on_answer(self, row: int, error: BillingError | None, reply: Any) -> None:
        """One command was answered."""
        self._in_flight -= 1
        columns = self.columns
        if error is not None:
            self._on_error(row, error)
            return
        columns.answer(row, reply)
        self.answered += 1
        sent_ns, now_ns = columns.sent[row], self._now_ns
        service_ns = now_ns - sent_ns
        began_ns = sent_ns - self.started_ns if self._closed else columns.due[row]
        took_ns = now_ns - self.started_ns - began_ns
        self._record(took_ns)
        if began_ns >= self._warm_ns:
            self.latency.record(took_ns)
            self.service.record(service_ns)
        if service_ns < self._fastest_ns and not reply["replayed"]:
            self._fastest_ns = service_ns
            self.skew.learn(reply["at_ns"], sent_ns + self._wall_ns, now_ns + self._wall_ns)

    def _on_error(self, row: int, error: BillingError) -> None:
        columns = self.columns
        tries = self._tries.get(row, 0) + 1
        if columns.kind[row] == DEBIT and error.name == "INSUFFICIENT_FUNDS":
            columns.state[row] = REFUSED
            self.refused += 1
        elif columns.kind[row] == LINE_RATE and error.name == "STALE_RATE" and tries > 1:
            columns.state[row] = STALE
            self.stale += 1
        elif (error.retry or error.name in PASSING) and tries < TRIES_MAX:
            self._tries[row] = tries
            self.retries += 1
            self._again.append((MACHINE_CLOCKS.boot_ns() + RETRY_PAUSE_NS, row))
        else:
            self._fail(row, str(error))
        if not self._scheduled:  # a connection that was lost reads nothing any more
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _fail(self, row: int, why: str) -> None:
        self.columns.state[row] = FAILED
        self.failed += 1
        if len(self.told) < TOLD_MAX:
            self.told.append(f"{self.columns.text_of(row)}: {why}")

    def _give_up(self) -> None:
        """Nothing was answered for too long: what is open never will be."""
        for row in range(self._next):
            if self.columns.state[row] == OPEN and self.columns.sent[row]:
                self._fail(row, "never answered")
        for row in range(self._next, len(self.columns)):
            self._fail(row, "never sent, for want of answers")
        if not self._finished.done():
            self._finished.set_result(None)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _on_alarm(self) -> None:
        self._alarm.acknowledge()
        self._pump()

    def _pump(self) -> None:
        """Sends what is due and has room, and sees to it that the rest is sent when it is."""
        self._scheduled = False
        if self._finished.done():
            return
        now_ns = MACHINE_CLOCKS.boot_ns()
        room = min(self._room - self._in_flight, SEND_MAX)
        touched: set[int] = set()
        while room > 0 and self._again and self._again[0][0] <= now_ns:
            self._send(self._again.popleft()[1], now_ns, touched)
            room -= 1
        more = self._more
        if more is not None and now_ns < self._end_ns and self._next + room > len(self.columns):
            more()
            self.columns.seal()
        self._send_due(now_ns, room, touched)
        for number in touched:
            self._batches[number].flush()
        self._wait_for_more(now_ns)

    def _send_due(self, now_ns: int, room: int, touched: set[int]) -> None:
        columns, row = self.columns, self._next
        end = min(len(columns), row + max(room, 0))
        if self._closed:
            if self._more is not None and now_ns >= self._end_ns:
                end = row
            while row < end:
                self._send(row, now_ns, touched)
                row += 1
        else:
            due, elapsed_ns = columns.due, now_ns - self.started_ns
            late = None if self._blocked else self.lateness.record
            while row < end and due[row] <= elapsed_ns:
                if late is None:
                    self.held += 1
                elif due[row] >= self._warm_ns:
                    late(elapsed_ns - due[row])
                self._send(row, now_ns, touched)
                row += 1
            has_waiting = row < len(columns) and due[row] <= elapsed_ns
            self._blocked = has_waiting and self._room <= self._in_flight
        self._next = row

    def _send(self, row: int, now_ns: int, touched: set[int]) -> None:
        columns = self.columns
        number = columns.user[row] % len(self._batches)
        method, params = columns.request(row)
        self._batches[number].add(row, method, params)
        columns.sent[row] = now_ns
        self._in_flight += 1
        touched.add(number)

    def _wait_for_more(self, now_ns: int) -> None:
        columns = self.columns
        all_sent = self._next >= len(columns) if self._more is None else now_ns >= self._end_ns
        if all_sent and not self._in_flight and not self._again:
            self._finished.set_result(None)
            return
        wake_ns = self._again[0][0] if self._again else 2**63
        if self._in_flight < self._room:
            if not self._closed and self._next < len(columns):
                wake_ns = min(wake_ns, self.started_ns + columns.due[self._next])
            elif self._closed and not all_sent:
                wake_ns = now_ns
        if self._more is not None and not all_sent:
            wake_ns = min(wake_ns, self._end_ns)
        if wake_ns < 2**63:
            self._alarm.arm(max(wake_ns, now_ns + TICK_NS))

    @property
    def sent(self) -> int:
        """Rows that were sent."""
        return self._next


assert OPEN == 0 < ACTIVE
