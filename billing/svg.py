"""Plots as SVG: pure, numbers in and markup out; the dashboard's and the load test's alike.

A plot carries classes and no style of its own (a page's security policy would refuse it, and light and dark belong to
the page): `plot` is the picture, `grid`, `tick`, `bound` and `mark` its furniture, `line` and `bar` what it shows. Who
shows it brings the colours, and the width of a point that stands `alone`. Sizes are in units of a picture `WIDTH` wide;
what has labels leaves `LEFT` for them.

An axis says what stands at its ends and where its labels are; values are whatever the caller plots, such as powers of
ten. A gap in a line is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil, floor, log10
from typing import Final, NamedTuple

from markupsafe import Markup

WIDTH: Final = 720
HEIGHT: Final = 250
LEFT, RIGHT, TOP, BOTTOM = 78, 8, 12, 26
TICKS: Final = 5
COLOURS: Final = 8

Point = tuple[float, float]

_GRID: Final = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
_TICK: Final = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')


class Axis(NamedTuple):
    """From `low` to `high`, with labels: (value, text)."""

    low: float
    high: float
    labels: Sequence[tuple[float, str]]

    def share(self, value: float) -> float:
        """Where on the axis a value stands, from 0 to 1; beyond its ends, at them."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


class Line(NamedTuple):
    """A line, in the colour of that class."""

    name: str
    kind: str
    points: Sequence[Point | None]


class Bar(NamedTuple):
    """From `start` to `end` on the x axis, so tall; `says` is shown on pointing at it."""

    start: float
    end: float
    height: float
    says: str


def linear(low: float, high: float, unit: str = "", most: int = TICKS) -> Axis:
    """An axis with labels at round numbers, at most so many of them and one more."""
    high = high if high > low else low + 1.0
    rough = (high - low) / most
    power: float = 10.0 ** floor(log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first = ceil(low / step - 1e-9)
    values = [number * step for number in range(first, floor(high / step + 1e-9) + 1)]
    return Axis(low, high, [(value, f"{value:,.6g}{unit}") for value in values])


def chart(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    bound: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str, str]] = (),
    dots: bool = False,
) -> Markup:
    """Lines over two axes. `bound`: a value of y that is promised, and its words; `marks`: upright lines (x, class,
    words); `dots`: a point at each value.
    """
    parts = [_frame(title), *_axes(x, y)]
    if bound is not None:
        at = _y(y, bound[0])
        parts.append(_GRID.format("bound", LEFT, WIDTH - RIGHT, at, at))
        parts.append(_TICK.format(WIDTH - RIGHT - 2, at - 5, "end", bound[1]))
    for value, kind, text in marks:
        at = _x(x, value)
        mark = Markup('<line class="mark {}" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>')
        parts.append(mark.format(kind, at, at, TOP, HEIGHT - BOTTOM, text))
    for line in lines:
        parts += _drawn(line, x, y)
        if dots:
            dot = Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>')
            parts += [dot.format(line.kind, _x(x, at[0]), _y(y, at[1])) for at in line.points if at is not None]
    return Markup("").join([*parts, Markup("</svg>")])


def bars(title: str, x: Axis, y: Axis, shown: Sequence[Bar]) -> Markup:
    """Bars that stand on the x axis; one that is nearly nothing is seen."""
    parts = [_frame(title), *_axes(x, y)]
    bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
    floor_y = HEIGHT - BOTTOM
    for each_bar in shown:
        left, right = _x(x, each_bar.start), _x(x, each_bar.end)
        tall = round(max(floor_y - _y(y, each_bar.height), 2.0), 1)
        parts.append(
            bar.format(left, round(floor_y - tall, 1), round(max(right - left - 1, 1), 1), tall, each_bar.says)
        )
    return Markup("").join([*parts, Markup("</svg>")])


def legend(lines: Sequence[tuple[str, str]]) -> Markup:
    """What the colours mean: (class, name) each."""
    return Markup("").join(Markup('<span class="key {}">{}</span> ').format(kind, name) for kind, name in lines)


def _frame(title: str) -> Markup:
    opening = '<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img"><title>{}</title>'
    return Markup(opening).format(WIDTH, HEIGHT, title)


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.share(value) * (WIDTH - RIGHT - LEFT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - BOTTOM - TOP), 1)


def _axes(x: Axis, y: Axis) -> Iterator[Markup]:
    for value, text in y.labels:
        at = _y(y, value)
        yield _GRID.format("grid", LEFT, WIDTH - RIGHT, at, at)
        yield _TICK.format(LEFT - 6, at + 4, "end", text)
    for value, text in x.labels:
        at = _x(x, value)
        anchor = "start" if at < LEFT + 30 else "end" if at > WIDTH - RIGHT - 30 else "middle"
        yield _TICK.format(at, HEIGHT - 6, anchor, text)


def _drawn(line: Line, x: Axis, y: Axis) -> Iterator[Markup]:
    """Runs of neighbours as lines, a value alone as a dot."""
    for there, run in groupby(line.points, key=lambda point: point is not None):
        if there:
            spots = [f"{_x(x, point[0])} {_y(y, point[1])}" for point in run if point is not None]
            path = Markup('<path class="line {}" d="M{}"><title>{}</title></path>')
            kind = line.kind if len(spots) > 1 else f"{line.kind} alone"
            yield path.format(kind, "L".join(spots if len(spots) > 1 else spots * 2), line.name)
