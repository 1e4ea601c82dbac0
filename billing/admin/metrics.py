"""`/metrics`: the figures that the figure sampler holds, in Prometheus' text format.

Theory. One table maps figures to metrics. Names follow Prometheus' conventions: the prefix `billing_`, base units
(seconds, bytes, coins), the suffix `_total` for counters and `_per_second` for rates. `process_*` describe the main
process, as in every Prometheus client; `billing_process_*` describe all processes of the daemon, by name.

A figure is a whole number in the unit that its name ends with; only this module turns `_ns` into seconds and `_nanos`
into coins. A worker's metrics have the label `shard`; the daemon's have no label. A worker that is down has no figures,
and its series are absent rather than zero. The gauges `billing_shard_up` and `billing_follower_up` exist even if the
shard or the follower is down or hangs, so that an alert can use them.

The registry belongs to this module and holds nothing between two scrapes. A scrape asks no worker: it reads the
figures that the sampler already has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from billing import __version__
from billing.admin.figure_sampler import LOOP, FigureSampler
from billing.admin.processes import FOLLOWERS, Processes

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_SCALES: Final = {"_ns": 1e9, "_nanos": 1e9}

# A worker's figure -> (metric, its meaning). The metric's name and value decide its kind: counter, gauge or histogram.
WORKER: Final[dict[str, tuple[str, str]]] = {
    "accounts": ("billing_accounts", "Accounts held."),
    "buckets": ("billing_buckets", "Buckets owned."),
    "armed": ("billing_timers_armed", "Filings in the timing wheel, stale ones included."),
    "connections": ("billing_connections", "Client connections."),
    "handshakes": ("billing_connections_unsigned", "Client connections that have not signed in."),
    "drops": ("billing_connections_dropped_total", "Connections ended for garbage, a limit or a deadline."),
    "requests_in_flight": ("billing_requests_in_flight", "Requests that clients of this worker have under way."),
    "records": ("billing_entries_total", "Entries made durable since the worker started."),
    "sync_ns": ("billing_sync_seconds", "From handing a batch to the disk to hearing that it is durable."),
    "sync_waiting_ns": ("billing_sync_waiting_seconds", "How long the batch under way has waited for the disk."),
    "batch_records": ("billing_batch_entries", "Entries in a batch."),
    "loop_lag_ns": ("billing_loop_lag_seconds", "By how much a beat of the worker's loop came late."),
    "gc_ns": ("billing_gc_seconds", "How long each collection of garbage took."),
    "pause_max_ns": ("billing_loop_pause_minute_max_seconds", "The longest pause of the loop within the last minute."),
    "gc_pause_max_ns": ("billing_gc_life_max_seconds", "The longest garbage collection since the worker started."),
    "journal_bytes": ("billing_journal_bytes", "Journal on disk, segments that are kept included."),
    "grant_left_ns": ("billing_grant_left_seconds", "How long the shard may act yet; absent with a journal in files."),
    "log_round_trip_ns": (
        "billing_log_round_trip_seconds",
        "From sending the last record to the log's servers to its acknowledgement; absent with a journal in files.",
    ),
    "log_bytes": (
        "billing_log_bytes",
        "The shard's log on servers, without its snapshots; absent with a journal in files.",
    ),
    "log_limit_bytes": ("billing_log_limit_bytes", "What that log may take (max_bytes); absent without a limit."),
    "snapshots": ("billing_snapshots_total", "Snapshots made since the worker started."),
    "snapshot_age_ns": ("billing_snapshot_age_seconds", "Since the last snapshot of this life; absent before it."),
    "snapshot_pause_max_ns": ("billing_snapshot_slice_life_max_seconds", "The longest slice of the loop it took."),
    "pending_cutoffs": ("billing_cutoffs_owed", "Cutoffs owed to the cutoff URL."),
    "oldest_owed_ns": (
        "billing_cutoff_oldest_owed_seconds",
        "Age of the oldest cutoff owed that is not held, or absent.",
    ),
    "restores_owed": (
        "billing_restores_owed",
        "Accounts with money again whose restore had no 2xx yet; without a cutoff.restore_url none is called.",
    ),
    "cutoffs_held": ("billing_cutoffs_held", "Cutoffs held back at a start, waiting for release_cutoffs."),
    "cutoffs_waiting_ns": ("billing_cutoff_waiting_seconds", "How late the first attempt that waits longest is now."),
    "calls_in_flight": ("billing_cutoff_calls_in_flight", "Calls out whose answer has not come."),
    "endpoints_shut": ("billing_cutoff_endpoints_shut", "Endpoints that do not answer and are only probed."),
    "cutoff_sent_ns": ("billing_cutoff_sent_lateness_seconds", "From a balance running out to the first cutoff call."),
    "cutoff_done_ns": ("billing_cutoff_done_lateness_seconds", "From a balance running out to the 2xx of its cutoff."),
    "overrun_nanos": ("billing_overrun_coins", "Overrun of the accounts there are; it goes with a closed account."),
    "overrun_grown_nanos": (
        "billing_overrun_grown_coins_total",
        "What machines of exhausted accounts used without paying, since the worker started; it never falls.",
    ),
    "overrun_nanos_per_hour": ("billing_overrun_coins_per_second", "How fast that grows now."),
    "overrun_accounts": ("billing_overrun_accounts", "Exhausted accounts that still have a rate."),
    "unknown_class_accounts": (
        "billing_unknown_class_accounts",
        "Accounts whose cutoff class the configuration does not have; the default serves them.",
    ),
    "request_ids_evicted_early": (
        "billing_request_ids_evicted_early_total",
        "Stored answers that went before their 7 days: a late retry of these would be carried out again.",
    ),
    "cutoffs_coming_minute": ("billing_cutoffs_due_within_minute", "Balances that run out within a minute, as known."),
    "cutoffs_coming_hour": ("billing_cutoffs_due_within_hour", "Balances that run out within an hour, as known."),
    "cutoffs_peak_per_second": ("billing_cutoffs_due_peak_per_second", "The most that run out in one coming second."),
    "endpoint_takes_per_second": (
        "billing_cutoff_endpoint_takes_per_second",
        "Calls a second the endpoint was seen to take.",
    ),
    "cutoffs_not_effective": (
        "billing_cutoffs_not_effective_total",
        "Accounts that still had a rate some time after the 2xx of their cutoff.",
    ),
    "due_fired": ("billing_timers_fired_total", "Instants at which time was due to do something."),
    "wheel_checked": ("billing_wheel_checked_total", "Accounts whose timer was compared with the ledger."),
    "wheel_mismatches": ("billing_wheel_mismatches_total", "Accounts whose timer was not where the ledger says."),
    "wheel_check_restarts": ("billing_wheel_check_restarts_total", "Times that comparison had to be started again."),
    "notices_owed": ("billing_notices_owed", "Notices that had no 2xx yet."),
    "notices_oldest_ns": ("billing_notices_oldest_owed_seconds", "Since the oldest notice owed was made, or absent."),
    "notices_awaited_buckets": (
        "billing_notices_awaited_buckets",
        "Buckets that came from a shard whose notices for them are not on record yet.",
    ),
    "notices_sent": ("billing_notices_delivered_total", "Notices that had their 2xx."),
    "notices_failed": ("billing_notices_failed_total", "Attempts to send notices that failed."),
    "passed_on": ("billing_requests_passed_on_total", "Requests passed on to the worker that owns the bucket."),
    "history_lag_ns": ("billing_history_lag_seconds", "How far the history is behind the journal."),
    "history_behind_batches": ("billing_history_behind_batches", "Batches the history has not reached."),
    "notices_lag_ns": ("billing_notices_lag_seconds", "How far the notices' process is behind the journal."),
}

# A worker's figure that is counted by kind of call -> (metric, its meaning).
CALLS_OUT: Final[dict[str, tuple[str, str]]] = {
    "calls_started": ("billing_cutoff_calls_total", "Calls out that were begun, by kind: cutoff or restore."),
    "calls_delivered": ("billing_cutoff_calls_delivered_total", "Calls out that had their 2xx."),
    "calls_failed": ("billing_cutoff_calls_failed_total", "Calls out that failed, or found no connection."),
}

SHARES: Final = {
    "billing_shards_taken_total": "Shards that this host began to serve beside others.",
    "billing_shards_handed_over_total": "Of these, handed over to a host that served less.",
    "billing_shards_lost_total": "Of these, taken by another host since this one was not heard of.",
}

# The metrics of the supervisor, and those whose labels are names of methods, errors, servers or processes.
DAEMON: Final = (
    *("billing_info", "billing_ready", "billing_clock_offset_seconds", "billing_clock_steps_total"),
    *("billing_clock_error_seconds", "billing_clock_error_limit_seconds", "billing_clock_kept", "billing_stands_by"),
    *("billing_shards_served", "billing_shards_without_host", *SHARES),
    *("billing_moves_total", "billing_moves_aborted_total", "billing_move_duration_seconds"),
    *("billing_shard_up", "billing_shard_held", "billing_worker_starts_total", "billing_disk_full"),
    *("billing_requests_total", "billing_errors_total", "billing_request_duration_seconds"),
    *(
        "billing_log_leader",
        "billing_follower_up",
        "billing_follower_starts_total",
        "billing_disk_free_bytes",
        "billing_disk_size_bytes",
    ),
    *("billing_process_cpu_seconds_total", "billing_process_resident_memory_bytes", "billing_process_open_fds"),
)


class Exposition:
    """The Prometheus collector of one daemon."""

    def __init__(self, sampler: FigureSampler, processes: Processes, info: Mapping[str, str]) -> None:
        """`info`: the labels of `billing_info`, to which the version is added."""
        self._sampler = sampler
        self._processes = processes
        self._info = info
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def text(self) -> bytes:
        """The body of `/metrics`."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Declares no metric in advance: `collect` makes all of them at each scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Makes every metric from the figures of now."""
        yield from self._daemon()
        for figure, (name, help_text) in WORKER.items():
            yield _worker_metric(figure, name, help_text, self._sampler.figures)
        yield self._log_leaders()
        yield from self._calls_out()
        yield from self._by_name()
        yield self._requests()
        yield from self._followers()
        yield from self._used()

    def _daemon(self) -> Iterator[Metric]:
        supervisor = self._sampler.supervisor
        info = GaugeMetricFamily("billing_info", "Version and settings, as labels.", labels=["version", *self._info])
        info.add_metric([__version__, *self._info.values()], 1)
        yield info
        yield _gauge("billing_ready", "Whether /readyz says 200.", int(not self._sampler.why_not_ready()))
        yield _gauge("billing_clock_offset_seconds", "Wall time minus billing time.", supervisor.time.offset_ns / 1e9)
        yield _counter("billing_clock_steps_total", "Times the wall clock was stepped.", supervisor.time.steps)
        watch = supervisor.registry.clock_watch
        yield _gauge(
            "billing_clock_error_seconds",
            "By how much the wall clock may be wrong, where several hosts share a log.",
            watch.judgement.error_ns / 1e9,
        )
        limit_s = watch.guard.error_ns_max / 1e9
        yield _gauge("billing_clock_error_limit_seconds", "Above it this host serves nothing; 0: any clock.", limit_s)
        yield _gauge("billing_clock_kept", "Whether a time service keeps it, where that matters.", watch.is_disciplined)
        stands_by = supervisor.registry.stands_by
        yield _gauge("billing_stands_by", "Whether this host serves nothing, and would take over.", stands_by)
        yield from self._shares()
        mover = supervisor.mover
        yield _counter("billing_moves_total", "Buckets moved.", mover.moved)
        yield _counter("billing_moves_aborted_total", "Moves of buckets that were given up.", mover.aborted)
        yield _gauge("billing_move_duration_seconds", "How long the last move took.", mover.last_duration_ns / 1e9)
        up = GaugeMetricFamily("billing_shard_up", "Whether the shard is served.", labels=["shard"])
        held = GaugeMetricFamily(
            "billing_shard_held", "Whether it is not started again: damaged data or disk.", labels=["shard"]
        )
        starts = CounterMetricFamily("billing_worker_starts", "Starts of the shard's worker.", labels=["shard"])
        full = GaugeMetricFamily("billing_disk_full", "Whether commands are refused: no room.", labels=["shard"])
        hanging = {overdue.shard_id for overdue in self._sampler.overdue() if overdue.what == LOOP}
        for shard_id, worker in sorted(supervisor.workers.items()):
            label = [str(shard_id)]
            up.add_metric(label, int(worker.state == "serving" and shard_id not in hanging))
            held.add_metric(label, int(worker.state == "held"))
            starts.add_metric(label, worker.starts)
            full.add_metric(label, int(bool(self._sampler.figures.get(shard_id, {}).get("no_room"))))
        yield from (up, held, starts, full)

    def _log_leaders(self) -> Metric:
        """The leader of each shard's log. A shard whose worker sees no leader has no series."""
        leads = GaugeMetricFamily(
            "billing_log_leader", "The server that leads the shard's log, as a label.", labels=["shard", "server"]
        )
        for shard_id, figures in sorted(self._sampler.figures.items()):
            if leader := figures.get("log_leader"):
                leads.add_metric([str(shard_id), leader], 1)
        return leads

    def _shares(self) -> Iterator[Metric]:
        """The number of shards that this host serves and, if several hosts serve at once, that it has taken, handed
        over and lost.
        """
        supervisor = self._sampler.supervisor
        sharing = supervisor.sharing
        served = sum(worker.state == "serving" for worker in supervisor.workers.values())
        without_host = supervisor.without_host()
        counts = (0, 0, 0) if sharing is None else (sharing.taken, sharing.handed_over, sharing.lost)
        yield _gauge("billing_shards_served", "Shards that this host serves.", served)
        yield _gauge(
            "billing_shards_without_host", "Shards that no host serves, as far as this one hears.", without_host
        )
        for (name, help_text), count in zip(SHARES.items(), counts, strict=True):
            yield _counter(name, help_text, count)

    def _calls_out(self) -> Iterator[Metric]:
        for figure, (name, help_text) in CALLS_OUT.items():
            metric = CounterMetricFamily(name.removesuffix("_total"), help_text, labels=["shard", "kind"])
            for shard_id, figures in sorted(self._sampler.figures.items()):
                for kind, count in figures.get(figure, {}).items():
                    metric.add_metric([str(shard_id), kind], count)
            yield metric

    def _by_name(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("billing_requests", "Requests carried out, by method.", labels=["shard", "method"])
        errors = CounterMetricFamily("billing_errors", "Errors answered, by name.", labels=["shard", "error"])
        for shard_id, figures in sorted(self._sampler.figures.items()):
            for metric, counts in ((calls, figures.get("calls", {})), (errors, figures.get("errors", {}))):
                for name, count in sorted(counts.items()):
                    metric.add_metric([str(shard_id), name], count)
        yield from (calls, errors)

    def _requests(self) -> Metric:
        durations = HistogramMetricFamily(
            "billing_request_duration_seconds",
            "From reading a request to writing its reply, by door and method.",
            labels=["shard", "door", "method"],
        )
        for shard_id, figures in sorted(self._sampler.figures.items()):
            for door, methods in sorted(figures.get("request_ns", {}).items()):
                for method, plain in sorted(methods.items()):
                    buckets, total = _histogram(plain, 1e9)
                    durations.add_metric([str(shard_id), door, method], buckets, total)
        return durations

    def _followers(self) -> Iterator[Metric]:
        """Whether each follower is up, and its starts. A follower that is down keeps its series, with value 0. The
        follower `replica` has a series for each shard that another host serves.
        """
        labels = ["shard", "follower"]
        up = GaugeMetricFamily("billing_follower_up", "Whether the process behind the journal answers.", labels=labels)
        starts = CounterMetricFamily("billing_follower_starts", "Starts of that process.", labels=labels)
        for shard_id, figures in sorted(self._sampler.figures.items()):
            for follower in FOLLOWERS:
                if f"{follower}_starts" in figures:
                    up.add_metric([str(shard_id), follower], figures[f"{follower}_up"])
                    starts.add_metric([str(shard_id), follower], figures[f"{follower}_starts"])
        for shard_id, is_followed in sorted(self._sampler.replicas().items()):
            up.add_metric([str(shard_id), "replica"], is_followed)
        yield from (up, starts)

    def _used(self) -> Iterator[Metric]:
        usage = self._processes.usage()
        if usage.disk_bytes:
            yield _gauge("billing_disk_free_bytes", "Free on the disk of daemon.data_dir.", usage.disk_free_bytes)
            yield _gauge("billing_disk_size_bytes", "Size of the disk of daemon.data_dir.", usage.disk_bytes)
        cpu = CounterMetricFamily("billing_process_cpu_seconds", "CPU time of each process.", labels=["process"])
        memory = GaugeMetricFamily("billing_process_resident_memory_bytes", "Its memory.", labels=["process"])
        descriptors = GaugeMetricFamily("billing_process_open_fds", "Its file descriptors.", labels=["process"])
        for process in usage.processes:
            cpu.add_metric([process.name], process.cpu_s)
            memory.add_metric([process.name], process.memory_bytes)
            descriptors.add_metric([process.name], process.descriptors)
        yield from (cpu, memory, descriptors)


def _worker_metric(figure: str, name: str, help_text: str, by_shard: dict[int, dict[str, Any]]) -> Metric:
    scale = next((scale for ending, scale in _SCALES.items() if figure.endswith(ending)), 1.0)
    if figure.endswith("_nanos_per_hour"):
        scale = 1e9 * 3600
    samples = [(str(shard), figures[figure]) for shard, figures in sorted(by_shard.items()) if figure in figures]
    if any(isinstance(value, dict) for _, value in samples):
        histogram = HistogramMetricFamily(name, help_text, labels=["shard"])
        for shard, value in samples:
            buckets, total = _histogram(value, scale)
            histogram.add_metric([shard], buckets, total)
        return histogram
    metric: CounterMetricFamily | GaugeMetricFamily
    if name.endswith("_total"):
        metric = CounterMetricFamily(name.removesuffix("_total"), help_text, labels=["shard"])
    else:
        metric = GaugeMetricFamily(name, help_text, labels=["shard"])
    for shard, value in samples:
        if value >= 0:  # -1 means that there is no value
            metric.add_metric([shard], value / scale if scale != 1 else value)
    return metric


def _histogram(plain: Mapping[str, Any], scale: float) -> tuple[list[tuple[str, float]], float]:
    """(cumulative buckets, sum) for Prometheus, made of a `Histogram` given as plain data."""
    edges = [*(f"{bound / scale:g}" for bound in plain["bounds"]), "+Inf"]
    return list(zip(edges, accumulate(plain["counts"]), strict=True)), plain["sum"] / scale


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name.removesuffix("_total"), help_text, value=value)
