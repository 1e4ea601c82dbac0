"""The plots of a report, as SVG that stands in the page: nothing is fetched, and no script runs.

Times are in milliseconds on axes of powers of ten, since a latency that is ten times as long is as far away as the one
that is ten times as short. Instants are seconds after the start of the run; the warm-up is shown, though no percentile
counts it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, Final

import pygal
from pygal.style import Style

from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.result import Run, histogram_of

# pygal leaves a finder of the old kind in the way of every import, for map plugins that are not used here; what walks
# that way itself, as pytest does, trips over it.
sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]

Points = list[tuple[float, float] | None]

COLORS: Final = ("#1f5fa8", "#d1731a", "#2d8a4e", "#8b3fa0", "#b3261e", "#5c6670", "#0e8a8a", "#a88a00")
EVENT_COLORS: Final = {
    "sync": "#8a8f98",
    "snapshot": "#2d8a4e",
    "move": "#8b3fa0",
    "collection": "#a88a00",
    "kill": "#b3261e",
    "restart": "#d1731a",
    "fault": "#5c2d1a",
}
NINES: Final = {0: "0 %", 1: "90 %", 2: "99 %", 3: "99.9 %", 4: "99.99 %", 5: "99.999 %", 6: "99.9999 %"}
BINS_A_DECADE: Final = 8
FLOOR_MS: Final = 0.001
POINTS_MAX: Final = 600
UNWANTED: Final = re.compile("<script.*?</script>|<!--.*?-->", re.DOTALL)


def _chart(kind: Any, colors: Sequence[str], **options: Any) -> Any:
    style = Style(
        background="transparent",
        plot_background="#fbfbfc",
        foreground="#3a3f47",
        foreground_strong="#1c1f24",
        foreground_subtle="#c9cdd3",
        colors=tuple(colors),
        font_family="system-ui, sans-serif",
        label_font_size=12,
        major_label_font_size=12,
        legend_font_size=12,
        title_font_size=15,
        opacity=".65",
        opacity_hover=".9",
    )
    return kind(
        style=style,
        js=[],
        width=960,
        height=380,
        margin=14,
        legend_at_bottom=True,
        legend_box_size=12,
        show_dots=False,
        stroke_style={"width": 2},
        include_x_axis=False,
        truncate_legend=-1,
        **options,
    )


def _svg(chart: Any) -> str:
    chart.legend_at_bottom_columns = max(1, len(chart.raw_series))
    text: str = chart.render(is_unicode=True, disable_xml_declaration=True)
    return UNWANTED.sub("", text)


def _power(nanoseconds: float) -> float:
    """The power of ten that is so many milliseconds: where it stands on an axis."""
    return log10(max(nanoseconds / 1e6, FLOOR_MS))


def _decades(powers: Iterable[float]) -> list[float]:
    """The whole powers of ten around some."""
    found = list(powers) or [0.0]
    low, high = floor(min(found)), ceil(max(found))
    return [float(power) for power in range(low, max(high, low + 1) + 1)]


def _format_power(power: float) -> str:
    value = 10**power
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _scale(chart: Any, series: Sequence[tuple[str, Points]]) -> list[float]:
    """Gives a chart an axis of powers of ten that holds all points; these powers."""
    decades = _decades(point[1] for _, points in series for point in points if point)
    chart.y_labels = decades
    chart.range = (decades[0], decades[-1])
    chart.value_formatter = _format_power
    return decades


def by_percentile(curves: Sequence[tuple[str, Histogram]]) -> str:
    """Latency by percentile: each step to the right leaves a tenth of the requests beyond."""
    curves = [(name, histogram) for name, histogram in curves if histogram.total]
    series: list[tuple[str, Points]] = []
    for name, histogram in curves:
        total = histogram.total
        points: Points = [
            (log10(total / (total - seen)) if seen < total else log10(total) + 0.3, _power(value))
            for value, seen in histogram.steps()
        ]
        series.append((name, points))
    chart = _chart(pygal.XY, COLORS, x_title="share of commands that were at least as fast")
    chart.x_labels = [
        number for number in NINES if number <= max((p[0] for _, ps in series for p in ps if p), default=1) + 0.5
    ]
    chart.x_value_formatter = lambda x: NINES.get(round(x), "") if abs(x - round(x)) < 0.01 else f"{1 - 10**-x:.4%}"
    _scale(chart, series)
    for name, points in series:
        chart.add(name, points)
    return _svg(chart)


def over_time(run: Run) -> str:
    """Latency by when answers came, with what happened meanwhile as upright lines."""
    bins = _fewer(run)
    shown: list[tuple[str, Points]] = [
        ("p50", [(at, _power(p50)) for at, _, p50, _, _ in bins if p50 is not None]),
        ("p99", [(at, _power(p99)) for at, _, _, p99, _ in bins if p99 is not None]),
        ("max", [(at, _power(most)) for at, count, _, _, most in bins if count]),
    ]
    shown = [(name, points) for name, points in shown if points]
    kinds = [kind for kind in EVENT_COLORS if any(event["kind"] == kind for event in run.events)]
    colors = [*COLORS[: len(shown)], *(EVENT_COLORS[kind] for kind in kinds)]
    chart = _chart(pygal.XY, colors, allow_interruptions=True, x_title="seconds after the start")
    decades = _scale(chart, shown)
    chart.x_value_formatter = lambda x: f"{x:g} s"
    for name, points in shown:
        chart.add(name, points)
    end_s = run.intervals[-1].at_s + 1 if run.intervals else 0.0
    for kind in kinds:
        points = []
        for event in run.events:
            if event["kind"] == kind and event["at_s"] <= end_s:
                points += [(event["at_s"], decades[0]), (event["at_s"], decades[-1]), None]
        chart.add(f"{kind} ({len(points) // 3})", points, stroke_style={"width": 1, "dasharray": "4, 3"})
    return _svg(chart)


def _fewer(run: Run) -> list[tuple[float, int, int | None, int | None, int]]:
    """Intervals, several as one where there are too many to be seen: the worst of each."""
    size = max(1, ceil(len(run.intervals) / POINTS_MAX))
    found = []
    for begin in range(0, len(run.intervals), size):
        group = run.intervals[begin : begin + size]
        p50 = [each.p50_ns for each in group if each.p50_ns is not None]
        p99 = [each.p99_ns for each in group if each.p99_ns is not None]
        found.append(
            (
                group[0].at_s,
                sum(each.count for each in group),
                max(p50, default=None),
                max(p99, default=None),
                max(each.max_ns for each in group),
            )
        )
    return found


def throughput(steps: Sequence[Run]) -> str:
    """What a sweep is for: latency by what was answered a second."""
    chart = _chart(pygal.XY, COLORS, x_title="commands answered a second")
    chart.show_dots = True
    chart.dots_size = 3
    series: list[tuple[str, Points]] = []
    for percent in ("50", "99", "99.9"):
        points: Points = []
        for step in steps:
            value = histogram_of(step.latency).percentile(percent)
            if value is not None:
                points.append((step.per_s, _power(value)))
        if points:
            series.append((f"p{percent}", points))
            chart.add(f"p{percent}", points)
    _scale(chart, series)
    chart.x_value_formatter = lambda x: f"{x:,.0f}"
    return _svg(chart)


def cutoff_lateness(histogram: Histogram) -> str:
    """How many cutoffs came how long after the exact instant, in bins of equal ratio."""
    bins: dict[int, int] = {}
    for value, count in _counts(histogram):
        number = floor(_power(value) * BINS_A_DECADE)
        bins[number] = bins.get(number, 0) + count
    low, high = min(bins), max(bins) + 1
    chart = _chart(pygal.Histogram, COLORS, show_legend=False, x_title="from the exact instant to the arrival")
    powers = range(floor(low / BINS_A_DECADE), ceil(high / BINS_A_DECADE) + 1)
    chart.x_labels = [float(power) for power in powers]
    chart.x_value_formatter = _format_power
    chart.value_formatter = lambda y: f"{y:,.0f}"
    chart.add(
        "cutoffs",
        [(count, number / BINS_A_DECADE, (number + 1) / BINS_A_DECADE) for number, count in sorted(bins.items())],
        formatter=lambda bar: f"{bar[0]:,.0f} from {_format_power(bar[1])} to {_format_power(bar[2])}",
    )
    return _svg(chart)


def _counts(histogram: Histogram) -> Iterable[tuple[int, int]]:
    before = 0
    for value, seen in histogram.steps():
        yield value, seen - before
        before = seen


def _by_process(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Samples of each process, named by its role; those of one role are numbered in the order of their start."""
    pids: dict[int, list[dict[str, Any]]] = {}
    for sample in run.samples:
        pids.setdefault(sample["pid"], []).append(sample)
    found: dict[str, list[dict[str, Any]]] = {}
    for samples in pids.values():
        role = samples[0]["role"]
        number = sum(name.startswith(role) for name in found) + 1
        found[role if role == "supervisor" else f"{role} {number}"] = samples
    return found


def cpu_over_time(run: Run) -> str:
    """Cores used by each process."""
    chart = _chart(pygal.XY, COLORS, x_title="seconds after the start")
    for name, samples in _by_process(run).items():
        points = [
            (later["at_s"], (later["cpu_s"] - sooner["cpu_s"]) / (later["at_s"] - sooner["at_s"]))
            for sooner, later in pairwise(samples)
            if later["at_s"] - sooner["at_s"] > 0.1
        ]
        if points:
            chart.add(name, points)
    chart.range = (0, max(1.0, max((y for serie in chart.raw_series for _, y in serie[0]), default=1.0)))
    chart.value_formatter = lambda y: f"{y:.2f} cores"
    chart.x_value_formatter = lambda x: f"{x:g} s"
    return _svg(chart)


def memory_over_time(run: Run) -> str:
    """Resident memory of each process."""
    chart = _chart(pygal.XY, COLORS, x_title="seconds after the start")
    most = 1.0
    for name, samples in _by_process(run).items():
        points = [(sample["at_s"], sample["rss_bytes"] / 2**20) for sample in samples]
        most = max(most, *(y for _, y in points))
        chart.add(name, points)
    chart.range = (0, most)
    chart.value_formatter = lambda y: f"{y:,.0f} MiB"
    chart.x_value_formatter = lambda x: f"{x:g} s"
    return _svg(chart)
