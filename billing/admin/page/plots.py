"""The plots of the page, made with `billing.svg`. Pure: numbers in, markup out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Final

from markupsafe import Markup

from billing import svg
from billing.svg import WIDTH, Axis, Bar, Line

LOWEST_MS: Final = 0.1
DECADES_MS: Final = (0.1, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
BOUND_MS: Final = 50  # the promised 99th percentile of lateness


def lateness(p50_ns: Sequence[int], p99_ns: Sequence[int], span_s: int, slots: int) -> Markup:
    """Lateness over time on a logarithmic axis, newest at the right. A value of -1: nothing was sent in that slot.
    `slots`: how many values fill the width, which covers `span_s` seconds.
    """
    top_ms = max([100, *(value / 1e6 for value in p99_ns)])
    decades = [decade_ms for decade_ms in DECADES_MS if decade_ms < top_ms * 10]
    y = Axis(
        log10(LOWEST_MS),
        log10(decades[-1]),
        [
            (log10(decade_ms), f"{decade_ms} ms" if decade_ms < 1000 else f"{int(decade_ms) // 1000:,} s")
            for decade_ms in decades
        ],
    )
    minutes = [(-span_s * part / 4, f"−{span_s * part / 240:g} min") for part in (4, 3, 2, 1)]
    x = Axis(-span_s, 0, [*minutes, (0, "now")])
    step_s = span_s / max(slots - 1, 1)
    lines = [
        Line(name, name, [_spot((index + 1 - len(values)) * step_s, value) for index, value in enumerate(values)])
        for name, values in (("p99", p99_ns), ("p50", p50_ns))
    ]
    bound = log10(BOUND_MS), f"promised: 99 of 100 calls within {BOUND_MS} ms"
    return svg.chart(f"Lateness of cutoffs over the last {span_s // 60} minutes", x, y, lines, bound=bound)


def _spot(at_s: float, value_ns: int) -> svg.Point | None:
    return None if value_ns < 0 else (at_s, log10(max(value_ns / 1e6, LOWEST_MS)))


def bars(counts: Sequence[int], labels: Sequence[str], title: str) -> Markup:
    """One bar for each slot, the first slot is now. Every tenth slot has a label on the axis."""
    top = max([1, *counts])
    x = Axis(0, len(counts), [(0, "now"), *((index, labels[index]) for index in range(10, len(counts), 10))])
    y = Axis(0, top, [(value, f"{value:,}") for value in sorted({0, top // 2, top})])
    shown = [Bar(index, index + 1, count, f"{labels[index]}: {count:,}") for index, count in enumerate(counts) if count]
    return svg.bars(title, x, y, shown)


def spark(values: Sequence[float], slots: int) -> Markup:
    """A small line plot without axes, from zero to the greatest value. `slots`: how many values fill the width."""
    top = max([1.0, *values])
    step = 200 / max(slots - 1, 1)
    first = 200 - step * (len(values) - 1)
    points = " ".join(f"{first + i * step:.1f},{34 - 30 * value / top:.1f}" for i, value in enumerate(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 200 36" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline points="{}"/></svg>'
    ).format(points)


def shares(counts: Mapping[int, int], title: str) -> Markup:
    """One bar, divided in proportion to the number of buckets of each shard."""
    total, x, rects = max(sum(counts.values()), 1), 0.0, []
    for shard_id, count in counts.items():
        wide = WIDTH * count / total
        rects.append(
            Markup('<rect class="s{}" x="{}" y="0" width="{}" height="14"><title>shard {}: {:,}</title></rect>').format(
                shard_id % 8, round(x, 1), round(max(wide - 1, 0), 1), shard_id, count
            )
        )
        x += wide
    return Markup(
        '<svg class="share" viewBox="0 0 {} 14" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, title, Markup("").join(rects))


def buckets(owners: Sequence[int], pinned: set[int]) -> Markup:
    """A cell for each bucket, from bucket 1 on, in the colour of its owner. The script finds cells by their order."""
    cells = "".join(
        f'<i class="s{owner % 8}{" pin" if number in pinned else ""}"></i>' for number, owner in enumerate(owners, 1)
    )
    return Markup('<div class="buckets" role="img" aria-label="{}">{}</div>').format(
        f"The owners of {len(owners)} buckets, a cell each", Markup(cells)
    )
