"""The plots of a report, made with `billing.svg`: each is a picture with a legend of its colours.

Times are in milliseconds on logarithmic axes. Instants are seconds after the start of the run; the warm-up is shown,
though no percentile counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, Final

from markupsafe import Markup

from billing import svg
from billing.svg import Axis, Bar, Line, Point
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.result import Run, histogram_of

EVENTS: Final = ("sync", "snapshot", "move", "collection", "kill", "restart", "fault")
NINES: Final = ("0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %")
BINS_A_DECADE: Final = 8
FLOOR_MS: Final = 0.001
POINTS_MAX: Final = 600


def _power(nanoseconds: float) -> float:
    """The decimal logarithm of a time in milliseconds, at least that of `FLOOR_MS`: its value on an axis."""
    return log10(max(nanoseconds / 1e6, FLOOR_MS))


def _duration(power: float) -> str:
    value = 10**power
    return f"{value / 1000:,.3g} s" if value >= 1000 else f"{value:.3g} ms"


def _decades(powers: Iterable[float]) -> Axis:
    """An axis from a whole power of ten to another, which covers the given powers."""
    values = list(powers) or [0.0]
    low, high = floor(min(values)), max(ceil(max(values)), floor(min(values)) + 1)
    return Axis(low, high, [(power, _duration(power)) for power in range(low, high + 1)])


def _values(lines: Sequence[Line]) -> list[float]:
    return [point[1] for line in lines for point in line.points if point is not None]


def _ends(lines: Sequence[Line]) -> tuple[float, float]:
    xs = [point[0] for line in lines for point in line.points if point is not None] or [0.0, 1.0]
    return min(xs), max(xs)


def _with_legend(picture: Markup, lines: Sequence[Line], more: Sequence[tuple[str, str]] = ()) -> Markup:
    return picture + Markup('<p class="legend">{}</p>').format(
        svg.legend([*((line.kind, line.name) for line in lines), *more])
    )


def _colour(number: int) -> str:
    return f"c{number % svg.COLOURS}"


def by_percentile(curves: Sequence[tuple[str, Histogram]]) -> Markup:
    """The plot of latency by percentile. Each label to the right has a tenth of the requests beyond it that the label
    before it has.
    """
    lines = []
    for number, (name, histogram) in enumerate((name, histogram) for name, histogram in curves if histogram.total):
        total = histogram.total
        points = [
            (log10(total / (total - cumulative)) if cumulative < total else log10(total) + 0.3, _power(value))
            for value, cumulative in histogram.steps()
        ]
        lines.append(Line(name, _colour(number), points))
    end = max(1.0, _ends(lines)[1])
    x = Axis(0, end, [(number, text) for number, text in enumerate(NINES) if number <= end + 0.05])
    return _with_legend(svg.chart("Latency by percentile", x, _decades(_values(lines)), lines), lines)


def over_time(run: Run) -> Markup:
    """The plot of latency by the instant of the answer, with events as vertical lines."""
    bins = _fewer(run)
    shown: list[tuple[str, list[Point | None]]] = [
        ("half", [(at, _power(p50)) if p50 is not None else None for at, _, p50, _, _ in bins]),
        ("99 %", [(at, _power(p99)) if p99 is not None else None for at, _, _, p99, _ in bins]),
        ("slowest", [(at, _power(most)) if count else None for at, count, _, _, most in bins]),
    ]
    lines = [Line(name, _colour(number), points) for number, (name, points) in enumerate(shown) if any(points)]
    end_s = run.intervals[-1].at_s + 1 if run.intervals else 1.0
    events = [event for event in run.events if event["kind"] in EVENTS and 0 <= event["at_s"] <= end_s]
    marks = [(event["at_s"], event["kind"], f"{event['at_s']:.1f} s: {event['text']}") for event in events]
    kinds = [
        (f"mark {kind}", f"{kind} ({count})")
        for kind in EVENTS
        if (count := sum(event["kind"] == kind for event in events))
    ]
    x = svg.linear(0, end_s, " s")
    return _with_legend(svg.chart("Latency over time", x, _decades(_values(lines)), lines, marks=marks), lines, kinds)


def _fewer(run: Run) -> list[tuple[float, int, int | None, int | None, int]]:
    """(instant in s, count, p50, p99, max in ns) of at most `POINTS_MAX` points. A point stands for several intervals
    if there are too many, with the worst values of these.
    """
    size = max(1, ceil(len(run.intervals) / POINTS_MAX))
    groups = []
    for begin in range(0, len(run.intervals), size):
        group = run.intervals[begin : begin + size]
        p50 = [each.p50_ns for each in group if each.p50_ns is not None]
        p99 = [each.p99_ns for each in group if each.p99_ns is not None]
        groups.append(
            (
                group[0].at_s,
                sum(each.count for each in group),
                max(p50, default=None),
                max(p99, default=None),
                max(each.max_ns for each in group),
            )
        )
    return groups


def throughput(steps: Sequence[Run]) -> Markup:
    """The plot of a sweep: latency by commands answered a second."""
    lines = []
    for number, (percent, name) in enumerate((("50", "half"), ("99", "99 %"), ("99.9", "99.9 %"))):
        points: list[Point | None] = [
            (step.per_s, _power(value))
            for step in sorted(steps, key=lambda step: step.per_s)
            if (value := histogram_of(step.latency).percentile(percent)) is not None
        ]
        if points:
            lines.append(Line(name, _colour(number), points))
    x = svg.linear(0, _ends(lines)[1], "/s")
    return _with_legend(svg.chart("Latency by throughput", x, _decades(_values(lines)), lines, dots=True), lines)


def cutoff_lateness(histogram: Histogram) -> Markup:
    """The plot of how many cutoffs came how long after the exact instant, in bins of equal ratio."""
    bins: dict[int, int] = {}
    for value, count in _counts(histogram):
        number = floor(_power(value) * BINS_A_DECADE)
        bins[number] = bins.get(number, 0) + count
    x = _decades([min(bins) / BINS_A_DECADE, (max(bins) + 1) / BINS_A_DECADE])
    shown = [
        Bar(
            number / BINS_A_DECADE,
            (number + 1) / BINS_A_DECADE,
            count,
            f"{count:,} from {_duration(number / BINS_A_DECADE)} to {_duration((number + 1) / BINS_A_DECADE)}",
        )
        for number, count in sorted(bins.items())
    ]
    return svg.bars("Lateness of cutoffs", x, svg.linear(0, max(bins.values())), shown)


def _counts(histogram: Histogram) -> Iterable[tuple[int, int]]:
    before = 0
    for value, cumulative in histogram.steps():
        yield value, cumulative - before
        before = cumulative


def _by_process(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The samples of each process, by the name of its role. Processes of one role are numbered in the order of their
    first samples.
    """
    pids: dict[int, list[dict[str, Any]]] = {}
    for sample in run.samples:
        pids.setdefault(sample["pid"], []).append(sample)
    by_process: dict[str, list[dict[str, Any]]] = {}
    for samples in pids.values():
        role = samples[0]["role"]
        number = sum(name.startswith(role) for name in by_process) + 1
        by_process[role if role == "supervisor" else f"{role} {number}"] = samples
    return by_process


def cpu_over_time(run: Run) -> Markup:
    """The plot of the cores that each process used."""
    lines = []
    for number, (name, samples) in enumerate(_by_process(run).items()):
        points = [
            (later["at_s"], (later["cpu_s"] - sooner["cpu_s"]) / (later["at_s"] - sooner["at_s"]))
            for sooner, later in pairwise(samples)
            if later["at_s"] - sooner["at_s"] > 0.1
        ]
        if points:
            lines.append(Line(name, _colour(number), points))
    return _over_seconds("CPU of each process", lines, max(1.0, *_values(lines), 1.0))


def memory_over_time(run: Run) -> Markup:
    """The plot of the resident memory of each process."""
    lines = [
        Line(name, _colour(number), [(sample["at_s"], sample["rss_bytes"] / 2**20) for sample in samples])
        for number, (name, samples) in enumerate(_by_process(run).items())
    ]
    return _over_seconds("Memory of each process", lines, max(_values(lines), default=1.0), " MiB")


def _over_seconds(title: str, lines: Sequence[Line], most: float, unit: str = "") -> Markup:
    low, high = _ends(lines)
    picture = svg.chart(title, svg.linear(low, high, " s"), svg.linear(0, most, unit), lines)
    return _with_legend(picture, lines)
