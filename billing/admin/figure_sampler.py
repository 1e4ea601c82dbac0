"""The figure sampler asks every worker for its figures once a second, and keeps what operators are shown.

Theory. Workers count, the sampler remembers. For each worker it keeps the newest figures and the instant of the last
answer. For the whole daemon it keeps a row a second for five minutes and a row each ten seconds for an hour (`Row`); a
row is made of the differences between two looks. `/metrics`, the page and the service manager read the same samples, so
ten viewers cost the workers no more than one. Quantiles of lateness are exact if the workers report the lateness of
each single call between two looks, which they do for small numbers of calls (`ExactHistogram`); otherwise they are
estimated from the histogram. A worker's counters start at zero each time its process starts; a negative difference
means such a start.

`overdue` lists the workers whose loop does not answer or whose batch does not become durable in time; while it lists
any, the service does not feed the watchdog. The sampler logs once when a stall begins and once when it ends. A worker
that is down or held is not overdue: the supervisor reports it, and a restart of the whole daemon would not help. A
worker whose disk is full is not overdue either. The figures of a worker whose loop hangs are out of date: they are not
shown or summed, but kept for the difference to the figures that come once the loop turns again.

The sampler reads and remembers; it decides nothing about workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, Final, NamedTuple

from billing.admin.recent import Recent
from shards.supervisor.child_process import WorkerState
from shards.supervisor.supervisor import Supervisor
from shards.worker.histogram import exact_quantile

LOOK_S: Final = 1.0
GLANCE_S: Final = 0.25  # how often the sampler compares the owners of buckets with those of before
MOVES_KEPT: Final = 65_536  # as many moves as can happen between two glances, so that a page misses none
EVENTS_KEPT: Final = 50
MOVING_NS: Final = 60_000_000_000
FINE_ROWS: Final = 300  # one a second
MINUTE_ROWS: Final = 60
COARSE_NS: Final = 10_000_000_000
COARSE_ROWS: Final = 360  # one each ten seconds: an hour
LOOP_PATIENCE_NS: Final = 10_000_000_000  # a worker that serves answers within this time
START_PATIENCE_NS: Final = 120_000_000_000  # a worker that starts or recovers may be in one long call
SYNC_PATIENCE_NS: Final = 30_000_000_000  # a disk that takes longer for one batch is not coming back
OVERRUN_PATIENCE_NS: Final = 60_000_000_000
NONE: Final[dict[str, Any]] = {"bounds": [], "counts": [], "sum": 0}

LOOP, SYNC = "loop", "sync"  # what is overdue: the worker's loop, or the sync of its batch

log = logging.getLogger("billing.admin")


class Row(NamedTuple):
    """What happened between two looks, over all workers."""

    wall_ns: int
    commands: float  # a second
    sent: int  # cutoffs whose first attempt left
    late_p50_ns: int  # from the balance running out to that first attempt; -1 where none was sent
    late_p99_ns: int
    owed: int  # at the second look


class Outage(NamedTuple):
    """An endpoint that does not answer. `since_ns`: wall clock; 0 if unknown."""

    endpoint: str
    since_ns: int
    error: str


class Overrun(NamedTuple):
    """The use of exhausted accounts whose rate is not 0."""

    accounts: int = 0  # the number of such accounts
    nanos_per_hour: int = 0  # the sum of their rates
    dearest: str = ""  # the user id of the account with the highest rate
    lasts_ns: int = 0  # for how long there has been at least one such account without a pause

    @property
    def is_wrong(self) -> bool:
        """Whether the overrun has lasted longer than the receiver needs to switch machines off and to report that."""
        return self.lasts_ns > OVERRUN_PATIENCE_NS


class Event(NamedTuple):
    """A warning or worse that was logged."""

    wall_ns: int
    level: str
    shard_id: int  # 0: the main process logged it
    text: str
    do: str


class Moved(NamedTuple):
    """A bucket got another owner."""

    number: int  # rises with each move
    boot_ns: int
    bucket_id: int
    source: int
    target: int


class Overdue(NamedTuple):
    """A worker whose loop has not answered, or whose batch has not become durable, for longer than is allowed."""

    shard_id: int
    what: str  # LOOP or SYNC
    text: str  # which shard, and for how long
    for_ns: int


class FigureSampler:
    """See the module. `figures`: the figures of each shard's worker; empty for a worker that is down or whose loop
    hangs.
    """

    def __init__(self, supervisor: Supervisor, recent: Recent | None = None) -> None:
        """`recent`: the last warnings that the main process logged."""
        self.supervisor = supervisor
        self.clocks = supervisor.clocks
        self.started_ns = self.clocks.wall_ns()
        self.replicas: Callable[[], dict[int, bool]] = dict  # shard of another host -> whether its history is followed
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._recent = recent
        self._events_seen: dict[int, tuple[int, int]] = {}  # shard -> (pid, number of its last event)
        self._shut_since_ns = 0
        self.figures: dict[int, dict[str, Any]] = {}
        self._last_figures: dict[int, dict[str, Any]] = {}  # as `figures`, with the last figures of hanging workers
        self._still: dict[tuple[int, str], int] = {}  # (shard, LOOP or SYNC) that was overdue -> since when
        self.fine: deque[Row] = deque(maxlen=FINE_ROWS)
        self.coarse: deque[Row] = deque(maxlen=COARSE_ROWS)
        self.moves: deque[Moved] = deque(maxlen=MOVES_KEPT)
        self.moves_seen = 0
        self.looks = 0
        self._owners: list[int] = []
        self.turned = asyncio.Event()  # set, and replaced, after each look
        self._answered_ns: dict[int, tuple[int, int]] = {}  # shard -> (pid, instant of its last answer or first sight)
        self._before = Sums(), self.clocks.boot_ns()
        self._coarse_before = self._before
        self._minute = deque([self._before], maxlen=MINUTE_ROWS)
        self._minute_late: deque[list[int] | None] = deque(maxlen=MINUTE_ROWS - 1)  # between each two of `_minute`
        self._coarse_late: list[list[int] | None] = []  # since the last coarse row
        self._overrun_since_ns = 0  # boot clock; 0: nothing overruns

    async def run(self) -> None:
        """Looks at the workers once a second and at the owners of buckets each `GLANCE_S`, until cancelled."""
        while True:
            await self.look()
            for _ in range(round(LOOK_S / GLANCE_S)):
                self.glance()
                await asyncio.sleep(GLANCE_S)

    def glance(self) -> None:
        """Records the buckets whose owner has changed since the last glance."""
        owners = self.supervisor.map.owner.tolist()
        if len(owners) == len(self._owners) and owners != self._owners:
            for bucket_id, (source, target) in enumerate(zip(self._owners, owners, strict=True)):
                if source != target:
                    self.moves_seen += 1
                    self.moves.append(Moved(self.moves_seen, self.clocks.boot_ns(), bucket_id, source, target))
        self._owners = owners

    async def look(self) -> None:
        """Asks all workers for their figures, and adds a row of what happened since the last look."""
        workers = list(self.supervisor.workers.values())
        await asyncio.gather(*(self._look_at(worker) for worker in workers))
        for gone in self._last_figures.keys() - {worker.shard_id for worker in workers}:
            del self._last_figures[gone]
        hang = self._note_overdue()
        self.figures = {
            shard_id: {} if shard_id in hang else figures for shard_id, figures in self._last_figures.items()
        }
        now_ns, sums = self.clocks.boot_ns(), Sums(self._last_figures)
        late = known_late(self._before[0], sums)
        self.fine.append(row_between(self._before, (sums, now_ns), self.clocks.wall_ns(), [late]))
        self._before = sums, now_ns
        self._minute.append(self._before)
        self._minute_late.append(late)
        self._coarse_late.append(late)
        if not self.total("overrun_accounts"):
            self._overrun_since_ns = 0
        elif not self._overrun_since_ns:
            self._overrun_since_ns = now_ns
        self._hear()
        if not self.total("endpoints_shut"):
            self._shut_since_ns = 0
        elif not self._shut_since_ns:
            self._shut_since_ns = self.clocks.wall_ns()
        if now_ns - self._coarse_before[1] >= COARSE_NS:
            self.coarse.append(
                row_between(self._coarse_before, (sums, now_ns), self.clocks.wall_ns(), self._coarse_late)
            )
            self._coarse_before = sums, now_ns
            self._coarse_late = []
        self.looks += 1
        turned, self.turned = self.turned, asyncio.Event()
        turned.set()

    async def _look_at(self, worker: WorkerState) -> None:
        pid, now_ns = worker.pid, self.clocks.boot_ns()
        if self._answered_ns.get(worker.shard_id, (0, 0))[0] != pid:
            self._answered_ns[worker.shard_id] = pid, now_ns
        figures = await self.supervisor.worker_figures.of(worker)
        if figures and worker.pid == pid:
            self._answered_ns[worker.shard_id] = pid, self.clocks.boot_ns()
            self._last_figures[worker.shard_id] = figures
        elif not pid:
            self._last_figures[worker.shard_id] = {}

    def _note_overdue(self) -> set[int]:
        """Logs each stall that has begun or ended since the last look. Returns the shards whose loop is overdue."""
        now_ns, overdue = self.clocks.boot_ns(), self.overdue()
        pids = {worker.shard_id: worker.pid for worker in self.supervisor.workers.values()}
        still = {(stall.shard_id, stall.what): stall for stall in overdue}
        for shard_id, what in self._still.keys() - still.keys():
            lasted_s = (now_ns - self._still.pop((shard_id, what))) // 10**9
            if pids.get(shard_id):
                which = "it answers" if what == LOOP else "its disk takes batches"
                log.info("shard %d: %s again, after %d s", shard_id, which, lasted_s)
        for shard_id, what in still.keys() - self._still.keys():
            since_ns = self._still[shard_id, what] = now_ns - still[shard_id, what].for_ns
            for_s, pid = (now_ns - since_ns) // 10**9, pids[shard_id]
            if what == LOOP:
                log.error(
                    "shard %d is silent: it has answered nothing for %d s; its process is %d", shard_id, for_s, pid
                )
            else:
                log.error("shard %d has had a batch at its disk for %d s", shard_id, for_s)
        return {stall.shard_id for stall in overdue if stall.what == LOOP}

    def moved_since(self, number: int) -> list[Moved]:
        """The moves with a number above `number`, in order."""
        return list(takewhile(lambda move: move.number > number, reversed(self.moves)))[::-1]

    def moving(self) -> bool:
        """Whether a bucket has moved within the last minute."""
        return bool(self.moves) and self.clocks.boot_ns() - self.moves[-1].boot_ns < MOVING_NS

    def last_minute(self) -> Row:
        """One row over the last minute."""
        return row_between(self._minute[0], self._minute[-1], self.clocks.wall_ns(), self._minute_late)

    def last_hour(self) -> list[Row]:
        """Rows of ten seconds. The last row ends at the newest look, so that all figures of a page are of that look."""
        newest = row_between(self._coarse_before, self._before, self.clocks.wall_ns(), self._coarse_late)
        return [*self.coarse, newest]

    def overrun(self) -> Overrun:
        """The use of exhausted accounts now."""
        accounts = self.total("overrun_accounts")
        if not accounts:
            return Overrun()
        rates_and_users = [
            figures["overrun_dearest"] for figures in self.figures.values() if "overrun_dearest" in figures
        ]
        _, dearest = max(rates_and_users, key=lambda rate_and_user: rate_and_user[0])
        lasts_ns = self.clocks.boot_ns() - self._overrun_since_ns if self._overrun_since_ns else 0
        return Overrun(accounts, self.total("overrun_nanos_per_hour"), dearest, lasts_ns)

    def outages(self) -> list[Outage]:
        """The endpoints that do not answer. An endpoint that several workers report appears once, with the earliest
        beginning.
        """
        by_endpoint: dict[str, Outage] = {}
        for figures in self.figures.values():
            for row in figures.get("endpoint_outages", ()):
                outage = Outage(row["endpoint"], row["since_ns"], row["error"])
                if outage.endpoint not in by_endpoint or outage.since_ns < by_endpoint[outage.endpoint].since_ns:
                    by_endpoint[outage.endpoint] = outage
            if figures.get("endpoints_shut") and "endpoint_outages" not in figures:
                error = figures.get("cutoff_error", "")
                by_endpoint.setdefault("", Outage("The cutoff endpoint", self._shut_since_ns, error))
        return sorted(by_endpoint.values(), key=lambda outage: outage.since_ns)

    def _hear(self) -> None:
        """Adds to `events` what the main process and the workers have logged since the last look."""
        heard = [(0, 0, self._recent.rows)] if self._recent is not None else []
        for shard_id, worker in self.supervisor.workers.items():
            heard.append((shard_id, worker.pid, self.figures.get(shard_id, {}).get("recent", ())))
        fresh: list[Event] = []
        for shard_id, pid, rows in heard:
            known_pid, known_number = self._events_seen.get(shard_id, (pid, 0))
            known_number = known_number if known_pid == pid else 0
            for number, wall_ns, level, text, do in rows:
                if number > known_number:
                    fresh.append(Event(wall_ns, level, shard_id, text, do))
                    self._events_seen[shard_id] = (pid, number)
        self.events.extend(sorted(fresh))

    def overdue(self) -> list[Overdue]:
        """The workers whose loop or batch has stalled for too long."""
        stalls = []
        now_ns = self.clocks.boot_ns()
        for worker in self.supervisor.workers.values():
            pid, answered_ns = self._answered_ns.get(worker.shard_id, (0, now_ns))
            if not worker.pid or pid != worker.pid:
                continue
            patience_ns = LOOP_PATIENCE_NS if worker.state == "serving" else START_PATIENCE_NS
            still_s = (now_ns - answered_ns) // 10**9
            if now_ns - answered_ns > patience_ns:
                text = f"shard {worker.shard_id} is silent: it has answered nothing for {still_s} s"
                stalls.append(Overdue(worker.shard_id, LOOP, text, now_ns - answered_ns))
            figures = self._last_figures.get(worker.shard_id, {})
            waiting_ns = figures.get("sync_waiting_ns", 0)
            if waiting_ns > SYNC_PATIENCE_NS and not figures.get("no_room"):
                text = f"shard {worker.shard_id}: the disk has held a batch for {waiting_ns // 10**9} s"
                stalls.append(Overdue(worker.shard_id, SYNC, text, waiting_ns))
        return stalls

    def why_not_ready(self) -> list[str]:
        """The reasons why not every bucket is served in full, one line each: a shard that is not served, refuses
        changes, or hangs. Empty if every bucket is. `/readyz` and `billing_ready` are made of this.
        """
        supervisor = self.supervisor
        unfit = [shard.text for shard in (*supervisor.unserved(), *supervisor.refusing())]
        return unfit + [stall.text for stall in self.overdue()]

    def total(self, name: str) -> int:
        """The sum of a figure over the workers that report it."""
        return sum(figures.get(name) or 0 for figures in self.figures.values())

    def top(self, name: str, default: int = -1) -> int:
        """The greatest value of a figure over the workers that report it; `default` if none does."""
        return max((figures[name] for figures in self.figures.values() if name in figures), default=default)


Look = tuple["Sums", int]  # the sums of one look, and its instant by the boot clock


class Sums:
    """The figures of one look, by shard, that `row_between` needs."""

    __slots__ = ("bounds", "calls", "late", "latest", "owed")

    def __init__(self, figures: dict[int, dict[str, Any]] | None = None) -> None:
        self.calls: dict[int, int] = {}
        self.late: dict[int, list[int]] = {}
        self.latest: dict[int, list[int]] = {}  # the newest single values of `late`, ns
        self.bounds: list[int] = []
        self.owed = 0
        for shard_id, shard_figures in (figures or {}).items():
            self.calls[shard_id] = sum(shard_figures.get("calls", {}).values())
            late = shard_figures.get("cutoff_sent_ns", NONE)
            self.late[shard_id] = late["counts"]
            self.latest[shard_id] = late.get("latest", [])
            self.bounds = late["bounds"] or self.bounds
            self.owed += shard_figures.get("pending_cutoffs", 0)


def known_late(old: Sums, new: Sums) -> list[int] | None:
    """How late each call between two looks left, ns; None if that is unknown for any of them."""
    late_ns: list[int] = []
    for shard_id, counts in new.late.items():
        fresh = increase(sum(old.late.get(shard_id, ())), sum(counts))
        latest = new.latest[shard_id]
        if fresh > len(latest):
            return None
        late_ns += latest[len(latest) - fresh :]
    return late_ns


def row_between(before: Look, after: Look, now_ns: int, late_by_look: Iterable[list[int] | None]) -> Row:
    """The row of what happened between two looks. `now_ns`: the wall clock; `late_by_look`: the result of `known_late`
    for each look after `before`, up to `after`.
    """
    (old, old_ns), (new, new_ns) = before, after
    seconds = max(new_ns - old_ns, 1) / 1e9
    commands = sum(increase(old.calls.get(shard_id, 0), calls) for shard_id, calls in new.calls.items())
    counts = [0] * (len(new.bounds) + 1)
    for shard_id, late in new.late.items():
        earlier = old.late.get(shard_id) or [0] * len(late)
        if sum(late) < sum(earlier):  # the worker has started again
            earlier = [0] * len(late)
        for index, count in enumerate(late):
            counts[index] += count - earlier[index]
    looks = list(late_by_look)
    exact = [ns for late in looks if late is not None for ns in late]
    if exact and None not in looks and len(exact) == sum(counts):
        p50_ns, p99_ns = exact_quantile(exact, 0.5), exact_quantile(exact, 0.99)
    else:
        p50_ns, p99_ns = quantile_ns(new.bounds, counts, 0.5), quantile_ns(new.bounds, counts, 0.99)
    return Row(now_ns, commands / seconds, sum(counts), p50_ns, p99_ns, new.owed)


def increase(before: int, after: int) -> int:
    """By how much a counter rose. A counter that fell has started again from zero."""
    return after - before if after >= before else after


def quantile_of(plain: dict[str, Any], share: float) -> int:
    """A quantile of a histogram given as plain data: exact if the data holds every single value, else as
    `quantile_ns`.
    """
    latest = plain.get("latest", ())
    if 0 < len(latest) == sum(plain["counts"]):
        return exact_quantile(latest, share)
    return quantile_ns(plain["bounds"], plain["counts"], share)


def quantile_ns(bounds: list[int], counts: list[int], share: float) -> int:
    """An estimate of a quantile of a histogram, interpolated within the histogram's bucket that holds it. Above the
    last bound it is that bound; -1 for an empty histogram.
    """
    total = sum(counts)
    if not total:
        return -1
    rank, below, low = share * total, 0, 0
    for index, count in enumerate(counts):
        if index == len(bounds):
            return low  # above the last bound: at least that
        high = bounds[index]
        if count and below + count >= rank:
            return int(low + (high - low) * (rank - below) / count)
        below += count
        low = high
    return low
