"""Results made by hand, for tests of what is said of them."""

from __future__ import annotations

from typing import Any

from billing.trial.loadtest.chaos import Chaos
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.result import Cutoffs, Interval, Money, Result, Run
from billing.trial.loadtest.workload import Workload

MS = 1_000_000


def pairs(value_ns: int, count: int = 20_000, tail_ns: int = 0, tail: int = 0) -> list[tuple[int, int]]:
    """So many samples at one value, and a tail at another."""
    histogram = Histogram()
    for value, times in ((value_ns, count), (tail_ns, tail)):
        for _ in range(min(times, 1)):
            histogram.record(value)
        if times:
            index = max(index for index, counted in enumerate(histogram.counts) if counted)
            histogram.counts[index] = times
    return histogram.sparse()


def run_of(number: int = 0, *, per_s: float = 1000.0, p50_ns: int = 2 * MS, **changes: Any) -> Run:
    """A run that is valid and right unless said otherwise."""
    fields: dict[str, Any] = {
        "number": number,
        "offered_per_s": per_s,
        "seconds": 20.0,
        "planned": 20_000,
        "answered": 20_000,
        "per_s": per_s,
        "refused": 0,
        "retries": 0,
        "held": 0,
        "latency": pairs(p50_ns),
        "service": pairs(p50_ns),
        "lateness": pairs(50_000),
        "intervals": [Interval(0.1 * at, 100, 2 * MS, None, 4 * MS) for at in range(20)],
        "valid": True,
        "invalid_because": [],
        "money": Money(accounts=10, answered=20_010),
        "cutoffs": Cutoffs(expected=300, received=300, lateness=pairs(MS, 300)),
        "cpu_us_per_command": 10.0,
        "cpu_us_per_cutoff": None,
        "cpu_note": "",
        "generator_cpu": 0.1,
        "cpu_by_role": {"worker": 0.4, "supervisor": 0.01},
        "samples": [
            {
                "boot_ns": at * 10**9,
                "pid": 7,
                "role": "worker",
                "cpu_s": 0.4 * at,
                "rss_bytes": 2**26,
                "at_s": float(at),
            }
            for at in range(3)
        ],
        "events": [{"at_s": 0.5, "kind": "move", "text": "bucket 7 <moved>"}],
    }
    return Run(**{**fields, **changes})


def result_of(*runs: Run, **changes: Any) -> Result:
    """A result of such runs."""
    fields: dict[str, Any] = {
        "command": "billing loadtest",
        "began_at": "2026-01-01T00:00:00+00:00",
        "kind": "load",
        "workload": Workload(),
        "tracing": None,
        "chaos": Chaos(),
        "processes": 1,
        "connections": 4,
        "depth": 4096,
        "daemon": {"version": "1", "workers": 2, "journal_sync": "always", "worker_pids": [], "own": True},
        "configuration": "[journal]\n",
        "environment": {"host": "h", "processor": "p", "cores": 4, "python": "3", "system": "s", "commit": "c"},
        "p99_limit_ms": 50.0,
        "memory_bytes_per_account": 200.0,
        "memory_accounts": 10_000,
        "runs": list(runs),
    }
    return Result(**{**fields, **changes})
