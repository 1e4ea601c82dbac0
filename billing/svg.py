"""Plots as SVG, for the dashboard and the load test. Pure: numbers in, markup out.

A plot carries CSS classes and no style: the dashboard's security policy would refuse a style, and the page decides
between light and dark. Class `plot` is the picture; `grid`, `tick`, `bound` and `mark` are the lines and labels around
the data; `line` and `bar` are the data. The page's style sheet gives the colours, and the width of a point of class
`alone`, which has no neighbours. Sizes are in units of a picture `WIDTH` wide; a plot with labels leaves `LEFT` for
them.

An axis has the values at its two ends and its labels. Values may have any unit, such as powers of ten. None in a line
is a gap.
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
    """An axis from `low` to `high`. `labels`: (value, text) each."""

    low: float
    high: float
    labels: Sequence[tuple[float, str]]

    def share(self, value: float) -> float:
        """The position of a value on the axis, from 0 to 1. A value beyond an end gets the position of that end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


class Line(NamedTuple):
    """A line. `kind`: the CSS class that gives its colour."""

    name: str
    kind: str
    points: Sequence[Point | None]


class Bar(NamedTuple):
    """A bar from `start` to `end` on the x axis. `height`: in units of the y axis; `says`: the text of its tooltip."""

    start: float
    end: float
    height: float
    says: str


def linear(low: float, high: float, unit: str = "", most: int = TICKS) -> Axis:
    """An axis with labels at round numbers, at most `most` + 1 of them."""
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
    """A plot of lines over two axes. `bound`: a promised value of y, and its label; `marks`: vertical lines (x, class,
    tooltip); `dots`: whether each value gets a dot.
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
    """A plot of bars that stand on the x axis. Each bar is at least 2 units tall, so that small values are visible."""
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
    """The legend of the colours. `lines`: (class, name) each."""
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
    """The markup of one line: a path for each run of neighbouring points, and a dot for a point without neighbours."""
    for there, run in groupby(line.points, key=lambda point: point is not None):
        if there:
            spots = [f"{_x(x, point[0])} {_y(y, point[1])}" for point in run if point is not None]
            path = Markup('<path class="line {}" d="M{}"><title>{}</title></path>')
            kind = line.kind if len(spots) > 1 else f"{line.kind} alone"
            yield path.format(kind, "L".join(spots if len(spots) > 1 else spots * 2), line.name)
