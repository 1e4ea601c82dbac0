"""Delivery: the thin asynchronous shell around the outbox that sends cutoffs and restores.

The outbox names the next account, and the ledger the call that is owed for it (`owed`, right before the request is
written, with nothing between). `request` makes the bytes, `endpoint` sends them and reads the answer, and `report`
gets the outcome.

**Order of an attempt.** 1 Take an item. 2 Ask which call is owed; if none is, the attempt ends. 3 Get a connection; if
one had to be opened, ask again. 4 Report STARTED. 5 Write the request. 6 When the status comes, report DELIVERED or
FAILED and finish the item. If no connection can be opened, no call has started: only FAILED is reported, and if the
account is topped up then, the receiver never learns of the cutoff.

**Why an attempt is not a task.** A process that has slept spends most of the time of a single call on memory that it
touches for the first time since. So an attempt consists of plain calls, and no task has to be woken: steps 1 to 5 run
in the turn of the loop that found the item owed, step 6 in the turn that read the answer, which also begins the next
item. Only the opening of a connection is awaited in a task. At most `_AT_ONCE` attempts begin in one turn, and none
after one for which a connection is opened: a connection may be free again in the next turn, so the first calls of a
burst do not wait until as many connections are open as calls may be in flight.

**Together.** In a storm thousands of attempts begin and end at about one time, and what they cost is mostly calls of
Python. So steps 4 to 6 are made for many attempts at once: the attempts that begin in one turn are reported as started
by one call of `report`, right before their requests are written, and the answers that an endpoint takes in one turn are
reported by one call, before further items are taken. An isolated attempt is a list of one.

**What the caller promises.** `report` has changed the answer of `owed` before it returns. The caller calls `notify`
when a call has become owed, as soon as the cause is durable and not before; until then delivery ignores the call, even
if `owed` already names it.
**What delivery promises.** It sends no request before `notify`, and none that `owed` does not name at that moment; at
most one is in flight per account; every attempt has the same event_id; it retries until a 2xx; it sends nothing while
`may_act` is false, because the account may have a newer owner. It stores nothing that matters: a call that was in
flight when the process died is still owed in the ledger.

**Two clocks.** `now_ns` is billing time, for schedules and lateness. `clocks.wall_ns` is the wall clock, by which
receivers check that a call is fresh: `webhook-timestamp` is its second at the moment of writing.

**Another configuration.** A delivery cannot change its settings; another one takes its place (`take_over`). The former
one is retired: it writes no request any more, and reports what comes of those that it has written.

Delivery never decides which call is owed, and reads no clock but these two.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from billing.expirationd.counts import CallCounts
from billing.expirationd.dialing import Unreachable
from billing.expirationd.endpoint import Endpoint, Limits
from billing.expirationd.health import DROPPED, OK, UNREACHABLE, Account, Pace
from billing.expirationd.lane import Item
from billing.expirationd.line import Line, Verdict
from billing.expirationd.outages import OfCutoffs, Outages, Words, waiting_because
from billing.expirationd.outbox import Outbox
from billing.expirationd.request import CutoffTemplate, GetTemplate, PostTemplate
from billing.expirationd.routes import CUTOFF, RESTORE, Routes, Template, call_name
from billing.expirationd.throughput import Throughput
from shards.system.clock import Clocks

if TYPE_CHECKING:
    import ssl

STARTED: Final = "started"
DELIVERED: Final = "delivered"
FAILED_ATTEMPT: Final = "failed"

Owed = tuple[str, str, int, int, int, int, str]  # kind, event_id, seq, exhausted_at_ns, attempts, due_ns, class
OwedOf = Callable[[int, bytes], Owed | None]  # bucket_id, user_id
EndpointOf = Callable[[str, Limits, Clocks, "ssl.SSLContext | None"], Endpoint]
Report = tuple[str, int, bytes, int, str, str]  # kind, bucket_id, user_id, seq, outcome, error
ReportAll = Callable[[Sequence[Report], int], Sequence[bool]]  # reports, now_ns

# Half a millisecond: so many items are begun, or found superseded, before other work's turn; or as many as were
# answered in this one.
_AT_ONCE: Final = 16
_LATE_S: Final = 0.001
_LAPSED_S: Final = 0.02  # how often delivery looks whether the owner may act again
_OPEN_AHEAD_S: Final = 0.03  # before a cutoff: three round trips to a server in the same country
_TIMEOUT_MAX: Final = 6  # the patience grows to this many times `timeout_s`
_SECOND_NS: Final = 10**9


class Obligations(NamedTuple):
    """The functions of the caller, which knows the owed calls.

    `owed` names the call that is owed for an account at this moment, or None. `report` gets the progress of attempts,
    with billing time: STARTED, then DELIVERED or FAILED_ATTEMPT; only FAILED_ATTEMPT if no connection could be opened.
    It returns for each report whether another call may be owed for the account now, which delivery then asks. `may_act`
    is false while the accounts may have a newer owner.
    """

    owed: OwedOf
    report: ReportAll
    may_act: Callable[[], bool] = lambda: True


def one_by_one(report: Callable[[str, int, bytes, int, str, str, int], object]) -> ReportAll:
    """The `report` of a caller that takes reports one by one, each with `now_ns` as its last argument."""

    def report_all(reports: Sequence[Report], now_ns: int) -> list[bool]:
        for one in reports:
            report(*one, now_ns)
        return [True] * len(reports)

    return report_all


class DeliveryDependencies(NamedTuple):
    """The outside world of delivery; a simulation passes its own. `clocks` are those of the machine; `rng` gives the
    jitter of retries; `endpoint_of` makes the `Endpoint` of an origin.
    """

    clocks: Clocks
    rng: random.Random
    endpoint_of: EndpointOf = Endpoint


class OfClass(NamedTuple):
    """The URLs of a cutoff class: `url` is "" and `restore_url` None if the class has none of its own. A `restore_url`
    of "" means that the class has no restores, also where all others have them.
    """

    name: str
    url: str
    restore_url: str | None


class DeliverySettings(NamedTuple):
    """The part of the configuration that delivery needs. URLs are in the form that `billing.addresses.check_url`
    accepts; times in seconds.
    """

    url: str
    restore_url: str = ""
    method: str = "GET"
    secrets: tuple[bytes, ...] = ()
    concurrency: int = 64
    timeout_s: float = 10.0
    connect_timeout_s: float = 3.0
    body_s: float = 1.0
    answer_bytes_max: int = 4096
    warm: int = 8
    idle_s: float = 30.0
    pace: Pace = Pace()
    tls: ssl.SSLContext | None = None
    classes: tuple[OfClass, ...] = ()

    @property
    def urls(self) -> tuple[str, str, tuple[OfClass, ...]]:
        """All that says where calls go."""
        return self.url, self.restore_url, self.classes


def cutoff_routes(settings: DeliverySettings) -> Routes:
    """The routes of cutoffs and restores to the URLs of the settings."""
    template_of = PostTemplate if settings.method == "POST" else GetTemplate
    templates: dict[str, Template] = {CUTOFF: template_of(settings.url, settings.secrets)}
    if settings.restore_url:
        templates[RESTORE] = template_of(settings.restore_url, settings.secrets)
    closed: set[str] = set()
    for name, url, restore_url in settings.classes:
        if url:
            templates[call_name(CUTOFF, name)] = template_of(url, settings.secrets)
        if restore_url:
            templates[call_name(RESTORE, name)] = template_of(restore_url, settings.secrets)
        elif restore_url is not None:
            closed.add(call_name(RESTORE, name))
    return Routes(templates, (of_class.name for of_class in settings.classes), closed)


_Begun = tuple[Item, Line, str, Owed]  # an attempt whose request is to be written: also the name of its template
_Ended = tuple[Item, str, int, int, Verdict]  # an attempt: item, kind, seq, due_ns, and what came of it


class Delivery:
    """Sends the calls that are owed. Made inside a running loop.

    `now_ns` reads billing time anew at each call; `failed` gets an exception that must end the process (a broken
    invariant). `routes`: the routes of calls, if not to the URLs of the settings. `words`: writes the log lines about
    endpoints that take no calls.
    """

    def __init__(
        self,
        obligations: Obligations,
        settings: DeliverySettings,
        now_ns: Callable[[], int],
        failed: Callable[[BaseException], object],
        dependencies: DeliveryDependencies,
        routes: Routes | None = None,
        words: Words = OfCutoffs(),  # noqa: B008
    ) -> None:
        self._owed, self._report, self._may_act = obligations
        self._clocks, rng, self._endpoint_of = dependencies
        self.settings = settings
        self.now_ns = now_ns
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        routes = cutoff_routes(settings) if routes is None else routes
        self._template_name = routes.template_name
        self._templates = routes.templates
        self._lanes = routes.lanes
        self._cutoff_lanes = sorted({lane for name, lane in routes.lanes.items() if name.startswith(CUTOFF)})
        self._origins = routes.origins
        self._endpoint_names = routes.endpoint_names
        self._kinds = routes.kinds
        timeout_ns = int(settings.timeout_s * _SECOND_NS)
        pace = settings.pace._replace(
            concurrency=settings.concurrency, timeout_ns=timeout_ns, patience_max_ns=_TIMEOUT_MAX * timeout_ns
        )
        self.outbox = Outbox(pace, len(self._origins), rng)
        self.endpoints: list[Endpoint] = []
        self.counts = CallCounts(routes.kinds)
        self.last_error = ""
        self.throughput = Throughput()  # of cutoffs
        self._lines: dict[Item, Line] = {}  # calls in flight
        self._ended: list[_Ended] = []  # calls whose verdicts are taken together, in a moment
        self._connecting: set[asyncio.Task[None]] = set()
        self._lapsed: set[asyncio.TimerHandle] = set()  # timers of calls that wait until the owner may act again
        self._rousing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._cutting: asyncio.TimerHandle | None = None
        self._cutting_ns = 0
        self._expecting: asyncio.TimerHandle | None = None
        self._running = self._retired = self._closed = False
        self._quiet: asyncio.Event = asyncio.Event()
        self.outages = Outages(settings.timeout_s, now_ns, lambda: len(self.outbox), words)

    # -- for the caller ---------------------------------------------------------------------------------------------

    def notify(
        self,
        bucket_id: int,
        user_id: bytes,
        kind: str = CUTOFF,
        since_ns: int = -1,
        urgent: bool = False,
        seq: int = -1,
        class_name: str = "",
    ) -> None:
        """A call became owed for this account, or may have. `since_ns`: since when (-1: now). `urgent`: an operator
        wants the call now, whatever failed before. `seq`: the seq of the owed call; no newer call is sent before it was
        notified, too (-1: any owed call may be sent).
        """
        self.owe(bucket_id, user_id, kind, self.now_ns() if since_ns < 0 else since_ns, urgent, seq, class_name)
        self._rouse_soon()

    def owe(
        self,
        bucket_id: int,
        user_id: bytes,
        kind: str,
        since_ns: int,
        urgent: bool = False,
        seq: int = -1,
        class_name: str = "",
    ) -> None:
        """Does what `notify` does for one of many calls; the caller calls `rouse` once after the last of them, which
        begins the calls at once.
        """
        notified = None if seq < 0 else (kind, seq)
        name = self._template_name(kind, class_name) if class_name else kind
        self.outbox.owe(bucket_id, user_id, since_ns, self._lanes.get(name, 0), urgent, notified)

    def hold(
        self, bucket_id: int, user_id: bytes, since_ns: int, kind: str = CUTOFF, seq: int = -1, class_name: str = ""
    ) -> None:
        """A call is owed for this account since `since_ns`, but must not be sent before `release`."""
        notified = None if seq < 0 else (kind, seq)
        self.outbox.hold(
            bucket_id, user_id, since_ns, self._lanes.get(self._template_name(kind, class_name), 0), notified
        )

    def calls(self, kind: str, class_name: str) -> bool:
        """Whether there is a URL for calls of this kind."""
        return (self._template_name(kind, class_name) if class_name else kind) in self._templates

    def release(self) -> int:
        """Sends all held calls, oldest first; returns for how many accounts."""
        released = self.outbox.release()
        self._rouse_soon()
        return released

    def expect(self, due_ns: int) -> None:
        """A cutoff falls due at `due_ns` if nothing else happens: opens a connection for it `_OPEN_AHEAD_S` before."""
        if self._expecting is not None:
            self._expecting.cancel()
        in_s = max(0.0, (due_ns - self.now_ns()) / 1e9 - _OPEN_AHEAD_S)
        self._expecting = self._loop.call_later(in_s, self._on_expected)

    def _on_expected(self) -> None:
        self._expecting = None
        if self._running:
            for lane in self._cutoff_lanes:
                self.endpoints[lane].open_ahead()

    @property
    def ahead(self) -> CutoffTemplate:
        """The template of cutoffs, which prepares the requests of coming cutoffs."""
        template = self._templates[CUTOFF]
        assert isinstance(template, CutoffTemplate), "these are no cutoffs"
        return template

    def start(self) -> None:
        """Starts the endpoints, and begins to send."""
        settings = self.settings
        limits = Limits(
            connect_timeout_s=settings.connect_timeout_s,
            body_s=settings.body_s,
            answer_bytes_max=settings.answer_bytes_max,
            connections_max=settings.concurrency + settings.warm,
            warm=settings.warm,
            idle_s=settings.idle_s,
        )
        self.endpoints = [self._endpoint_of(origin, limits, self._clocks, settings.tls) for origin in self._origins]
        for endpoint in self.endpoints:
            endpoint.on_taken = self._take_verdicts
            endpoint.start()
        self._running = True
        self._rouse_soon()

    def figures(self) -> dict[str, Any]:
        """Counters for the operator, as plain data."""
        return {
            "calls_started": dict(self.counts.started),
            "calls_delivered": dict(self.counts.delivered),
            "calls_failed": dict(self.counts.failed),
            "cutoffs_held": self.outbox.held,
            "calls_in_flight": self.outbox.in_flight,
            "cutoffs_waiting_ns": self._waiting_ns(),
            "users_waiting": len(self.outbox),
            "endpoints_shut": len(self.outages),
            "endpoint_outages": self.outages.plain(),
            "cutoff_error": self.last_error,
            "cutoff_sent_ns": self.counts.sent_late.plain(),
            "cutoff_done_ns": self.counts.done_late.plain(),
        }

    @property
    def started(self) -> int:
        """How many calls of all kinds were begun."""
        return sum(self.counts.started.values())

    @property
    def delivered(self) -> int:
        """How many calls of all kinds got a 2xx."""
        return sum(self.counts.delivered.values())

    @property
    def failures(self) -> int:
        """How many calls of all kinds failed, or could not open a connection."""
        return sum(self.counts.failed.values())

    def why(self, bucket_id: int, user_id: bytes, last_error: str) -> str | None:
        """Why a call for this user is not done yet, in a sentence; None if the outbox has no item for the account.
        `last_error`: the error of the last attempt, "" if there was none.
        """
        item = self.outbox.find(bucket_id, user_id)
        if item is None:
            return None
        outage = self.outages.of(self._endpoint_names[item.lane])
        return waiting_because(item, outage, last_error, self.now_ns(), len(self.outbox))

    def _waiting_ns(self) -> int:
        """How late the oldest event without any attempt already is, in ns; 0 if there is none."""
        oldest_ns = self.outbox.oldest_fresh_ns(self._lines)
        return 0 if oldest_ns < 0 else max(0, self.now_ns() - oldest_ns)

    def take_over(self, former: Delivery) -> None:
        """Takes the place of a former delivery, which is retired, and goes on with its counts. The caller hands the
        owed calls over, drains the former delivery and closes it. Until then `owed` must name no call for an account
        for which the former one has a request under way.
        """
        former._running, former._retired = False, True
        for endpoint in former.endpoints:
            endpoint.retire()
        self.counts = former.counts
        self.counts.add_kinds(self._kinds)

    @property
    def call_s_max(self) -> float:
        """A call that is under way ends within this time."""
        settings = self.settings
        return settings.connect_timeout_s + _TIMEOUT_MAX * settings.timeout_s + 1.0

    def under_way(self) -> list[Account]:
        """The accounts for which a request has been written whose outcome is not known."""
        return [item.account for item in self._lines]

    async def drain(self, timeout_s: float) -> bool:
        """Begins no further call and waits for those in flight; False if some are still in flight after `timeout_s`."""
        self._running = False
        if self.outbox.in_flight:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    async def close(self) -> None:
        """Ends at once. Calls in flight stay owed, because it is unknown whether they arrived."""
        self._running, self._closed = False, True
        self.outages.close()
        for timer in (self._timer, self._cutting, self._expecting, self._rousing, *self._lapsed):
            if timer is not None:
                timer.cancel()
        for connecting in self._connecting:
            connecting.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for endpoint in self.endpoints:
            await endpoint.close()

    # -- attempts ---------------------------------------------------------------------------------------------------

    def rouse(self, now_ns: int = 0) -> None:
        """Begins the calls that can begin now, and sets the timer for the instant at which others can. `now_ns`:
        billing time, if the caller has just read it; 0 if not.
        """
        try:
            self._rouse(now_ns or self.now_ns())
        except Exception as error:
            self._failed(error)

    def _rouse(self, now_ns: int, at_once: int = _AT_ONCE) -> None:
        if not self._running:
            return
        begun: list[_Begun] = []
        for number in range(at_once):
            item = self.outbox.take(now_ns)
            if item is None:
                break
            if self._begin(item, now_ns, begun):
                self._rouse_soon()
                break
            if number % _AT_ONCE == _AT_ONCE - 1:
                self._send(begun)
                begun, now_ns = [], self.now_ns()
        else:
            self._rouse_soon()
        self._send(begun)
        if (self._cutting is None or len(self._origins) > 1) and self.outbox.is_crowded:
            self._watch()
        if self._rousing is not None:
            return
        wake_ns = self.outbox.next_wake_ns(now_ns)
        if wake_ns < 0:
            return
        if self._timer is None or wake_ns < self._timer_ns:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ns = wake_ns
            self._timer = self._loop.call_later(max(0, wake_ns - now_ns) / 1e9 + _LATE_S, self._on_timer)

    def _rouse_soon(self) -> None:
        if self._rousing is None:
            self._rousing = self._loop.call_soon(self._on_rousing)

    def _on_rousing(self) -> None:
        self._rousing = None
        self.rouse()

    def _watch(self) -> None:
        """Few senders of an endpoint are free: sets the timer for the instant at which the outbox may name hanging
        calls to end. One that is set for calls to another endpoint may be too late for these.
        """
        now_ns = self.now_ns()
        cut_ns = self.outbox.next_cut_ns(now_ns)
        if cut_ns < 0 or (self._cutting is not None and cut_ns >= self._cutting_ns):
            return
        if self._cutting is not None:
            self._cutting.cancel()
        self._cutting_ns = cut_ns
        self._cutting = self._loop.call_later((cut_ns - now_ns) / 1e9 + _LATE_S, self._on_cutting, False)

    def _on_cutting(self, input_read: bool) -> None:
        if not input_read:  # answers that came while the process did not run are read first
            self._cutting_ns = 0  # nothing is earlier
            self._cutting = self._loop.call_later(10 * _LATE_S, self._on_cutting, True)
            return
        self._cutting = None
        now_ns = self.now_ns()
        for item in self.outbox.cut(now_ns):
            line = self._lines.get(item)
            if line is not None:
                in_s = (now_ns - item.begun_ns) / 1e9
                line.endpoint.end(line, f"no answer within {in_s:.1f} s, and others wait")
        self.rouse()

    def _on_timer(self) -> None:
        self._timer = None
        self.rouse()

    def _begin(self, item: Item, now_ns: int, begun: list[_Begun], line: Line | None = None) -> bool:
        """Begins the attempt for an item that was taken at `now_ns`: adds it to `begun`, which the caller passes to
        `_send` in this turn, starts to open a connection for it, or finds that no call is to be sent now. Returns
        whether a connection is being opened. `line`: the connection that was opened for the item.
        """
        owed = self._named(item)
        if owed is None:
            self.outbox.forget(item)
            self._unsent(line)
            return False
        kind, _, seq, _, _, due_ns, class_name = owed
        name = self._template_name(kind, class_name) if class_name else kind
        if not self.outbox.begin(item, (kind, seq), self._lanes[name], due_ns, now_ns):
            self._unsent(line)
            return False
        endpoint = self.endpoints[self._lanes[name]]
        if line is not None and line.endpoint is not endpoint:
            self._unsent(line)
            line = None
        if line is None and (line := endpoint.spare()) is None:
            connecting = self._loop.create_task(self._connect(item, endpoint, kind, seq, due_ns))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._on_connected)
            return True
        begun.append((item, line, name, owed))
        return False

    def _send(self, begun: list[_Begun]) -> None:
        """Reports that these attempts have started, and writes their requests."""
        if not begun:
            return
        if not self._may_act():  # the accounts may have another owner by now, where the calls are no longer owed
            for item, line, _, _ in begun:
                line.endpoint.keep(line)
                self._begin_later(item)
            return
        now_ns, counts = self.now_ns(), self.counts
        late_ns: list[int] = []
        for _, _, _, (kind, _, _, _, attempts, due_ns, _) in begun:
            counts.started[kind] += 1
            if kind == CUTOFF and not attempts:
                late_ns.append(now_ns - due_ns if now_ns > due_ns else 0)
        counts.sent_late.add_all(late_ns)
        self._report(
            [(owed[0], item.bucket_id, item.user_id, owed[2], STARTED, "") for item, _, _, owed in begun], now_ns
        )
        timestamp_s = self._clocks.wall_ns() // _SECOND_NS
        for item, line, name, (kind, event_id, seq, exhausted_at_ns, _, due_ns, _) in begun:
            request = self._templates[name].request(item.user_id, event_id, seq, exhausted_at_ns, timestamp_s)
            timeout_s = self.outbox.lanes[item.lane].patience_ns / 1e9
            self._lines[item] = line
            line.endpoint.ask(line, request, timeout_s, partial(self._on_verdict, item, kind, seq, due_ns))

    async def _connect(self, item: Item, endpoint: Endpoint, kind: str, seq: int, due_ns: int) -> None:
        """Opens a connection for an item, and goes on with the attempt."""
        try:
            line = await endpoint.connect()
        except Unreachable as error:
            if self._retired:  # no call has begun, and another delivery makes it
                self.outbox.forget(item)
                self._when_quiet()
                return
            self._report_outcomes([(item, kind, seq, due_ns, (UNREACHABLE, str(error), -1))], self.now_ns())
        else:
            self._begin_one(item, line)
        self.rouse()

    def _begin_one(self, item: Item, line: Line | None = None) -> None:
        begun: list[_Begun] = []
        self._begin(item, self.now_ns(), begun, line)
        self._send(begun)

    def _on_connected(self, connecting: asyncio.Task[None]) -> None:
        self._connecting.discard(connecting)
        if not connecting.cancelled() and (error := connecting.exception()) is not None:
            self._failed(error)

    def _begin_later(self, item: Item) -> None:
        def again() -> None:
            self._lapsed.discard(timer)
            try:
                self._begin_one(item)
            except Exception as error:
                self._failed(error)
            self.rouse()

        timer = self._loop.call_later(_LAPSED_S, again)
        self._lapsed.add(timer)

    def _on_verdict(self, item: Item, kind: str, seq: int, due_ns: int, verdict: Verdict) -> None:
        """Takes the verdict on a request: at once, or together with those of other requests whose answers were read in
        the same turn.
        """
        if self._closed:
            return
        self._ended.append((item, kind, seq, due_ns, verdict))
        if not self._lines.pop(item).endpoint.is_taking:
            self._take_verdicts()

    def _take_verdicts(self) -> None:
        """Reports the outcomes of the requests that have ended, then begins the next calls."""
        ended, self._ended = self._ended, []
        if not ended or self._closed:
            return
        try:
            now_ns = self.now_ns()
            self._report_outcomes(ended, now_ns)
            self._rouse(now_ns, max(len(ended), _AT_ONCE))  # as many as have become free
        except Exception as error:
            self._failed(error)

    def _named(self, item: Item) -> Owed | None:
        """The owed call of the account, or None if there is none or it was not notified yet: the ledger may be ahead of
        what is durable. None if another delivery has taken over.
        """
        if self._retired:
            return None
        owed = self._owed(item.bucket_id, item.user_id)
        notified = item.notified
        if owed is None or notified is None or (owed[0] == notified[0] and owed[2] <= notified[1]):
            return owed
        return None

    def _unsent(self, line: Line | None) -> None:
        if line is not None:
            line.endpoint.keep(line)
        self._when_quiet()

    def _report_outcomes(self, ended: list[_Ended], now_ns: int) -> None:
        """Reports the outcomes of attempts, first to the caller, then to the outbox."""
        outbox, counts = self.outbox, self.counts
        reports: list[Report] = []
        late_ns: list[int] = []  # of the cutoffs that were delivered
        for item, kind, seq, due_ns, (outcome, error, _) in ended:
            if outcome == OK:
                counts.delivered[kind] += 1
                if kind == CUTOFF:
                    late_ns.append(now_ns - due_ns if now_ns > due_ns else 0)
                reports.append((kind, item.bucket_id, item.user_id, seq, DELIVERED, ""))
            else:
                counts.failed[kind] += 1
                counts.dropped += outcome == DROPPED
                self.last_error = error
                reports.append((kind, item.bucket_id, item.user_id, seq, FAILED_ATTEMPT, error))
        if late_ns:
            counts.done_late.add_all(late_ns)
            self.throughput.answered(now_ns, any(outbox.lanes[n].is_full for n in self._cutoff_lanes), len(late_ns))
        looked: dict[int, str] = {}  # lane -> the last error
        for (item, _, _, _, (outcome, error, retry_after_ns)), may_owe in zip(
            ended, self._report(reports, now_ns), strict=True
        ):
            more = outcome != OK or (may_owe and self._named(item) is not None)
            looked[item.lane] = error or looked.get(item.lane, "")
            outbox.finish(item, outcome, now_ns, retry_after_ns, more)
        for lane, error in looked.items():
            self.outages.look(self._endpoint_names[lane], outbox.lanes[lane], error)
        if not self._running:
            self._when_quiet()

    def _when_quiet(self) -> None:
        if not self._running and not self.outbox.in_flight:
            self._quiet.set()
