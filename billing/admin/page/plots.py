"""The plots of the page as SVG: pure, numbers in and markup out.

Colours and fonts are those of the page's classes; nothing here carries a style of its own, which the page's content
security policy would refuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup

WIDTH: Final = 720
HEIGHT: Final = 250
LEFT, RIGHT, TOP, BOTTOM = 78, 8, 12, 26
LOWEST_MS: Final = 0.1
DECADES_MS: Final = (0.1, 1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
BOUND_MS: Final = 50  # what is promised for the 99th percentile

_GRID: Final = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
_TICK_LEFT: Final = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')


def lateness(p50_ns: Sequence[int], p99_ns: Sequence[int], span_s: int, slots: int) -> Markup:
    """Lateness over time, newest at the right; logarithmic. -1: nothing was sent in a slot. `slots` fill the width."""
    top_ms = max([100, *(value / 1e6 for value in p99_ns)])
    decades = [one for one in DECADES_MS if one < top_ms * 10]
    high = math.log10(decades[-1] / LOWEST_MS)
    parts = [_frame(f"Lateness of cutoffs over the last {span_s // 60} minutes")]
    for one in decades:
        y = _y(one, high)
        parts.append(_GRID.format(LEFT, WIDTH - RIGHT, y, y))
        text = f"{one} ms" if one < 1000 else f"{int(one) // 1000} s"
        parts.append(_TICK_LEFT.format(LEFT - 6, y + 4, text))
    y = _y(BOUND_MS, high)
    parts.append(Markup('<line class="bound" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
    parts.append(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="end">promised: p99 within {} ms</text>').format(
            WIDTH - RIGHT - 2, y - 5, BOUND_MS
        )
    )
    for part in range(5):
        x = LEFT + (WIDTH - RIGHT - LEFT) * part / 4
        minutes = span_s * (4 - part) / 240
        text = "now" if part == 4 else f"−{minutes:g} min"
        anchor = "start" if part == 0 else "end" if part == 4 else "middle"
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                round(x, 1), HEIGHT - 6, anchor, text
            )
        )
    for name, values in (("p99", p99_ns), ("p50", p50_ns)):
        parts.append(_line(name, values, slots, high))
    return Markup("").join([*parts, Markup("</svg>")])


def _frame(title: str) -> Markup:
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(WIDTH, HEIGHT, title)


def _y(ms: float, high: float) -> float:
    share = math.log10(max(ms, LOWEST_MS) / LOWEST_MS) / high
    return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)


def _line(name: str, values: Sequence[int], slots: int, high: float) -> Markup:
    """Runs of neighbouring slots as lines, a slot alone as a dot."""
    step = (WIDTH - RIGHT - LEFT) / max(slots - 1, 1)
    first = WIDTH - RIGHT - step * (len(values) - 1)
    runs: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value < 0:
            if runs[-1]:
                runs.append([])
        else:
            runs[-1].append(f"{first + index * step:.1f} {_y(value / 1e6, high)}")
    drawn = [
        Markup('<path class="{}" d="M{}"/>').format(name, "L".join(run if len(run) > 1 else run * 2))
        for run in runs
        if run
    ]
    return Markup("").join(drawn)


def spark(values: Sequence[float], slots: int) -> Markup:
    """A small line without axes, from zero to the greatest value."""
    top = max([1.0, *values])
    step = 200 / max(slots - 1, 1)
    first = 200 - step * (len(values) - 1)
    points = " ".join(f"{first + i * step:.1f},{34 - 30 * value / top:.1f}" for i, value in enumerate(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 200 36" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline points="{}"/></svg>'
    ).format(points)


def bars(counts: Sequence[int], labels: Sequence[str], title: str) -> Markup:
    """One bar a slot; every tenth slot is named."""
    width, left, floor, ceiling = 420, 44, 150, 14
    top = max([1, *counts])
    wide = (width - left) / max(len(counts), 1)
    made = [Markup('<svg class="plot" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(width, 176, title)]
    for value in sorted({top, top // 2} - {0}):
        y = round(floor - (floor - ceiling) * value / top, 1)
        made.append(_GRID.format(left, width, y, y))
        made.append(_TICK_LEFT.format(left - 6, y + 4, f"{value:,}"))
    bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}: {}</title></rect>')
    for index, count in enumerate(counts):
        x = round(left + index * wide, 1)
        if count:
            tall = round(max((floor - ceiling) * count / top, 2.0), 1)
            made.append(bar.format(x, round(floor - tall, 1), round(max(wide - 1, 1), 1), tall, labels[index], count))
        if index % 10 == 0:
            made.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(x, floor + 18, labels[index]))
    made.append(_GRID.format(left, width, floor, floor))
    return Markup("").join([*made, Markup("</svg>")])


def shares(counts: Mapping[int, int], title: str) -> Markup:
    """One bar, divided by how many buckets each shard has."""
    whole, x, made = max(sum(counts.values()), 1), 0.0, []
    for shard_id, count in counts.items():
        wide = WIDTH * count / whole
        made.append(
            Markup('<rect class="s{}" x="{}" y="0" width="{}" height="14"><title>shard {}: {:,}</title></rect>').format(
                shard_id % 8, round(x, 1), round(max(wide - 1, 0), 1), shard_id, count
            )
        )
        x += wide
    return Markup(
        '<svg class="share" viewBox="0 0 {} 14" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, title, Markup("").join(made))


def buckets(owners: Sequence[int], pinned: set[int]) -> Markup:
    """A cell a bucket; the first is bucket 1. The script finds cells by their order."""
    cells = "".join(
        f'<i class="s{owner % 8}{" pin" if number in pinned else ""}"></i>' for number, owner in enumerate(owners, 1)
    )
    return Markup('<div class="buckets" role="img" aria-label="{}">{}</div>').format(
        f"The owners of {len(owners)} buckets, a cell each", Markup(cells)
    )
