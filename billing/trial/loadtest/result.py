"""A load test's result as data: the output of `--json`, and the source of all reports.

Histograms are kept as pairs (bucket of `latency`, count), so that a report made later has the same percentiles. The
name of a time ends with its unit; `at_s` counts from the start of the run, warm-up included.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from billing.trial.loadtest.chaos import Chaos
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.trace_plan import Tracing
from billing.trial.loadtest.workload import Workload

FORMAT: Final = 1

Pairs = list[tuple[int, int]]


class Interval(msgspec.Struct):
    """An interval of the curve over time, by the instant of the answer; a tenth of a second by default. None: too few
    samples for the percentile.
    """

    at_s: float
    count: int
    p50_ns: int | None
    p99_ns: int | None
    max_ns: int


class Money(msgspec.Struct):
    """The verdict on balances and replies. All numbers but the first two count differences."""

    accounts: int = 0
    answered: int = 0  # commands whose reply was compared, get_account included
    wrong_replies: int = 0
    wrong_balances: int = 0
    wrong_refusals: int = 0
    unanswered: int = 0  # commands, get_account included, that got no usable answer
    told: list[str] = []

    @property
    def clean(self) -> bool:
        return not (self.wrong_replies or self.wrong_balances or self.wrong_refusals or self.unanswered)


class Cutoffs(msgspec.Struct):
    """The verdict on the cutoffs of all runs until now. The lateness is that of cutoffs due since the start of this
    run.
    """

    expected: int = 0
    received: int = 0
    missing: int = 0
    early: int = 0
    false: int = 0
    doubled: int = 0
    doubled_is_wrong: bool = False  # whether no fault was made that excuses a second call
    superseded: int = 0
    lateness: Pairs = []
    healthy_lateness: Pairs = []  # of users for whom the endpoint is well, if it is sick for others
    last_after_s: float | None = None  # of a storm: from its instant to the last arrival
    told: list[str] = []

    @property
    def clean(self) -> bool:
        return not (self.missing or self.early or self.false or (self.doubled and self.doubled_is_wrong))


class Run(msgspec.Struct):
    """One run."""

    number: int
    offered_per_s: float  # 0: as planned by a trace, or a closed loop
    seconds: float  # measured
    planned: int
    answered: int  # within the histograms: warm-up excluded
    per_s: float
    refused: int
    retries: int
    held: int
    latency: Pairs
    service: Pairs
    lateness: Pairs
    intervals: list[Interval]
    valid: bool
    invalid_because: list[str]
    money: Money
    cutoffs: Cutoffs
    cpu_us_per_command: float | None
    cpu_us_per_cutoff: float | None
    cpu_note: str
    generator_cpu: float  # cores
    cpu_by_role: dict[str, float]  # cores, in the measured time
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    storm_at_s: float | None = None
    warmup_s: float = 0.0
    chaos_did: dict[str, int] = {}

    @property
    def clean(self) -> bool:
        """Whether money and cutoffs were right."""
        return self.money.clean and self.cutoffs.clean


class Result(msgspec.Struct):
    """A whole load test."""

    command: str
    began_at: str  # UTC
    kind: str  # "load", "closed", "sweep" or "trace"
    workload: Workload
    tracing: Tracing | None
    chaos: Chaos
    processes: int
    connections: int
    depth: int
    daemon: dict[str, Any]  # version, workers, sync mode, whether it is our own
    configuration: str  # of our own daemon, as it took effect
    environment: dict[str, Any]
    p99_limit_ms: float
    memory_bytes_per_account: float | None
    memory_accounts: int
    runs: list[Run]
    steps: list[Run] = []  # of a sweep, by rising rate
    knee_per_s: float | None = None  # of a sweep: the highest rate that was sustained
    format: int = FORMAT

    @property
    def clean(self) -> bool:
        """Whether money and cutoffs were right in all runs and steps."""
        return all(run.clean for run in (*self.runs, *self.steps))

    @property
    def valid(self) -> bool:
        """Whether the figures describe the daemon: each run is valid. A sweep may end because of its generator; it is
        valid if its knee is known or each of its steps is valid.
        """
        return self.knee_per_s is not None or all(run.valid for run in self.measured)

    @property
    def measured(self) -> list[Run]:
        """The runs whose figures are reported: of a sweep its steps."""
        return self.runs or self.steps


def histogram_of(pairs: Pairs) -> Histogram:
    """The histogram of these pairs."""
    histogram = Histogram()
    histogram.add(pairs)
    return histogram


def histogram_of_runs(runs: list[Run], name: str) -> Histogram:
    """The sum of a histogram over several runs."""
    histogram = Histogram()
    for run in runs:
        histogram.add(getattr(run, name))
    return histogram


def to_json(result: Result) -> bytes:
    """The result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def from_json(data: bytes) -> Result:
    """Parses a result. Raises ValueError if the data are no result."""
    try:
        return msgspec.json.decode(data, type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this is no result of a load test: {error}") from None


def environment() -> dict[str, Any]:
    """The host, the system and the commit of this measurement."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": [round(each, 2) for each in os.getloadavg()],
        "commit": _commit(),
    }


def _processor() -> str:
    output = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout if _has("lscpu") else ""
    for line in output.splitlines():
        if line.startswith("Model name:"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit of the checkout that this code runs from; empty if there is none."""
    if not _has("git"):
        return ""
    here = str(Path(__file__).parent)
    outputs = [
        subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=False).stdout.strip()
        for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return f"{outputs[0]}, with changes" if outputs[0] and outputs[1] else outputs[0]


def _has(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True, check=False).returncode == 0
