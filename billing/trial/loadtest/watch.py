"""Watches the daemon's processes: reads their CPU time and memory, and the daemon's /metrics, twice a second.

CPU time is user and system time from /proc: on a shared machine it is less noisy than elapsed time. The sums keep the
CPU time of processes that have ended. A process's command line tells its role: the supervisor, a worker, or a process
beside them (history, notices). The last are summed separately, since no command waits for them.

Events come from the difference between two readings of /metrics: slow syncs, snapshots, moves, slow garbage
collections, and starts of workers. The instant of an event is known only to within the time between two readings.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, NamedTuple

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from shards.counting import counted
from shards.system.clock import MACHINE_CLOCKS

PERIOD_S: Final = 0.5
SLOW_SYNC_S: Final = 0.02
SLOW_COLLECTION_S: Final = 0.01

# The only metrics that are parsed: parsing the whole page each time would slow down the measured daemon.
EVENT_METRICS: Final = (
    "billing_sync_seconds",
    "billing_gc_seconds",
    "billing_snapshots_total",
    "billing_moves_total",
    "billing_worker_starts_total",
)

SUPERVISOR: Final = "supervisor"
WORKER: Final = "worker"
BESIDE: Final = "beside"  # history, notices
SERVING: Final = (SUPERVISOR, WORKER)

Series = dict[tuple[str, str, str], float]  # (sample name, shard, bound) -> value


class Sample(NamedTuple):
    """One process at an instant of the boot clock. `cpu_s`: CPU time since its start; `rss_bytes`: resident memory."""

    boot_ns: int
    pid: int
    role: str
    cpu_s: float
    rss_bytes: int


class Event(NamedTuple):
    """An event that may explain a peak. `boot_ns`: when it was noticed; `text`: the event in words."""

    kind: str  # sync, snapshot, move, collection, restart, or a kind that the load test itself notes
    boot_ns: int
    text: str


class Watch:
    """Watches the process `pid` and its children (None: no processes), and the /metrics of the address `admin` (empty:
    none).
    """

    def __init__(self, pid: int | None, admin: str) -> None:
        self.samples: list[Sample] = []
        self.events: list[Event] = []
        self._pid = pid
        self._admin = admin
        self._latest: dict[int, Sample] = {}
        self._series: Series = {}
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Watch:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        assert self._session is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._session.close()

    async def _run(self) -> None:
        while True:
            self.look()
            await self._scrape()
            await asyncio.sleep(PERIOD_S)

    # -- processes --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Takes a sample of each process."""
        if self._pid is None:
            return
        now_ns = MACHINE_CLOCKS.boot_ns()
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self._pid)
            for process in (main, *main.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    with process.oneshot():
                        times, memory = process.cpu_times(), process.memory_info()
                        role = self._role(process, main)
                    sample = Sample(now_ns, process.pid, role, times.user + times.system, memory.rss)
                    self._latest[process.pid] = sample
                    self.samples.append(sample)

    def _role(self, process: psutil.Process, main: psutil.Process) -> str:
        latest = self._latest.get(process.pid)
        if latest is not None:
            return latest.role
        if process.pid == main.pid:
            return SUPERVISOR
        command = process.cmdline()
        return WORKER if "worker" in command else BESIDE

    def cpu_s(self) -> dict[str, float]:
        """CPU time until now by role, including processes that have ended."""
        self.look()
        sums: dict[str, float] = {}
        for sample in self._latest.values():
            sums[sample.role] = sums.get(sample.role, 0.0) + sample.cpu_s
        return sums

    def workers_rss_bytes(self) -> int:
        """Resident memory of all running workers."""
        self.look()
        newest = max((sample.boot_ns for sample in self._latest.values()), default=0)
        return sum(
            sample.rss_bytes for sample in self._latest.values() if sample.boot_ns == newest and sample.role == WORKER
        )

    # -- events -----------------------------------------------------------------------------------------------------

    def note(self, kind: str, text: str) -> None:
        """Adds an event that the load test itself has caused now."""
        self.events.append(Event(kind, MACHINE_CLOCKS.boot_ns(), text))

    async def _scrape(self) -> None:
        if not self._admin:
            return
        assert self._session is not None
        try:
            async with self._session.get(f"http://{self._admin}/metrics") as answer:
                if answer.status != 200:
                    return
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return
        before, self._series = self._series, series_of(text)
        if before:
            now_ns = MACHINE_CLOCKS.boot_ns()
            self.events += [
                Event(kind, now_ns, description) for kind, description in events_between(before, self._series)
            ]


def series_of(text: str) -> Series:
    """Parses the samples of `EVENT_METRICS` in a page of metrics."""
    series: Series = {}
    event_lines = "\n".join(line for line in text.splitlines() if line.startswith(EVENT_METRICS))
    for family in text_string_to_metric_families(event_lines + "\n"):
        for sample in family.samples:
            series[sample.name, sample.labels.get("shard", ""), sample.labels.get("le", "")] = sample.value
    return series


def events_between(before: Series, after: Series) -> list[tuple[str, str]]:
    """(kind, text) of each event between two readings."""
    events: list[tuple[str, str]] = []
    for kind, metric, above_s, description in (
        ("sync", "billing_sync_seconds", SLOW_SYNC_S, "syncs above"),
        ("collection", "billing_gc_seconds", SLOW_COLLECTION_S, "collections of garbage above"),
    ):
        for shard, slow in _slow(before, after, metric, above_s):
            events.append((kind, f"shard {shard}: {slow} {description} {above_s * 1000:g} ms"))
    for kind, metric, description in (
        ("snapshot", "billing_snapshots_total", "a snapshot finished"),
        ("move", "billing_moves_total", "moved"),
        ("restart", "billing_worker_starts_total", "its worker was started"),
    ):
        for (name, shard, _), value in after.items():
            more = value - before.get((name, shard, ""), value)
            if name == metric and more > 0:
                events.append(
                    (
                        kind,
                        f"{counted(int(more), 'bucket')} {description}"
                        if kind == "move"
                        else f"shard {shard}: {description}",
                    )
                )
    return events


def _slow(before: Series, after: Series, metric: str, above_s: float) -> list[tuple[str, int]]:
    """(shard, number of new values above a bound) of a histogram, for shards that have any. The bound is the
    histogram's lowest one that is at least `above_s`.
    """
    shards = {shard for name, shard, _ in after if name == f"{metric}_count"}
    slow_by_shard: list[tuple[str, int]] = []
    for shard in sorted(shards):
        bounds = [le for name, of, le in after if name == f"{metric}_bucket" and of == shard and le != "+Inf"]
        bound = min((le for le in bounds if float(le) >= above_s), key=float, default=None)
        if bound is None:
            continue
        slow = [
            series.get((f"{metric}_count", shard, ""), 0.0) - series.get((f"{metric}_bucket", shard, bound), 0.0)
            for series in (before, after)
        ]
        if slow[1] > slow[0]:
            slow_by_shard.append((shard, int(slow[1] - slow[0])))
    return slow_by_shard


def as_rows(samples: list[Sample], start_ns: int) -> list[dict[str, Any]]:
    """Samples as the result keeps them, with `at_s`: seconds after the start of the run. Earlier ones are left out."""
    return [
        {**sample._asdict(), "at_s": round((sample.boot_ns - start_ns) / 1e9, 3)}
        for sample in samples
        if sample.boot_ns >= start_ns
    ]
