"""Sends the rows of `Columns` and takes their answers: open loop or closed loop, over a few connections.

**Open loop.** A command is sent when it is due, whether or not earlier commands were answered. Its latency counts from
the instant at which it is due, not from its sending: a server that stands still for 400 ms delays every request that is
due in that time, and a loop that waits for answers would not even send these. The *service time*, which counts from the
sending, is recorded as well, and so is the delay of the sending after the plan (`lateness`): a late sender invalidates
the measurement.

At most `depth` commands are open on a connection. A command that waits because so many are open is delayed by the
server: it is counted as held back, and not recorded in the lateness.

**Closed loop.** `depth` commands are kept open on a connection; when one is answered, the next one is sent. There is no
latency from an intended start, only service time.

**Each command takes effect once.** A command that failed with an error that may pass is sent again after a pause, with
the same `request_id`; the reply then tells the effect of the first sending. Its latency still counts from the instant
at which it was due. All commands of a user use one connection, so that they are carried out in their order unless one
had to be sent again; the model uses the daemon's order, by `entry_id`.
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

TICK_NS: Final = 250_000  # least time between two alarms for sending
SEND_MAX: Final = 256  # commands sent in one turn of the loop
RETRY_PAUSE_NS: Final = 100_000_000
TRIES_MAX: Final = 600
SILENCE_MAX_NS: Final = 60 * 10**9  # after so long without any answer, open commands count as never answered
INTERVAL_NS: Final = 10**8  # width of an interval of the curve over time
INTERVALS_MAX: Final = 1200
TOLD_MAX: Final = 20
PASSING: Final = frozenset({"UNKNOWN_ACCOUNT"})  # refused only because the first top-up is itself being repeated


class OpenLoop(NamedTuple):
    """Each row is sent when it is due."""

    depth: int  # commands that are open on a connection, at most


class ClosedLoop(NamedTuple):
    """When a row is answered, the next one is sent. `more()`: adds rows to the columns; called whenever rows run out,
    until the boot instant `end_ns`, at which the loop ends. Without `more` the loop ends with the last row.
    """

    depth: int  # commands that are kept open on a connection
    more: Callable[[], None] | None = None
    end_ns: int = 0


class MeasuredSpan(NamedTuple):
    """The part of a phase that is measured."""

    start_ns: int = 0  # boot instant from which due instants count; 0: the instant at which the phase is run
    warm_ns: int = 0  # commands due earlier than this after the start are not in the histograms
    interval_ns: int = INTERVAL_NS  # width of an interval of the curve over time


WHOLE_PHASE: Final = MeasuredSpan()


class LoadDriver:
    """One phase: sends all rows of the columns from `first` on, and the rows that a closed loop adds."""

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
        self._heard_ns = 0  # when an answer last came
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
        """Sends all rows and waits until each is answered or has failed. `on_progress`: gets the number answered."""
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
        """Called by a batch when it has read answers, before `on_answer` for each of them."""
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
        """Called by a batch for each answered command: records the reply and its times, or handles the error."""
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
        if not self._scheduled:  # a lost connection does not call on_read any more
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _fail(self, row: int, why: str) -> None:
        self.columns.state[row] = FAILED
        self.failed += 1
        if len(self.told) < TOLD_MAX:
            self.told.append(f"{self.columns.text_of(row)}: {why}")

    def _give_up(self) -> None:
        """Fails all open rows and all rows not sent yet, because no answer has come for too long."""
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
        """Sends the rows that are due, as many as `depth` allows, and arms the alarm for the next ones."""
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
        """The number of the first row that has not been sent yet."""
        return self._next


assert OPEN == 0 < ACTIVE
