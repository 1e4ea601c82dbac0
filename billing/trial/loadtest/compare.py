"""Compares two results: which figures differ by more than the noise of their own runs. Pure.

A figure changed if all values of one result are below all values of the other, and the medians are further apart than
the wider of the two spreads. With three runs each, the first condition holds by chance once in ten times; the second
one makes that rare. If a result has fewer than three runs, the comparison says neither that a figure changed nor that
it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

import msgspec

from billing.trial.loadtest.latency import PERCENTILES
from billing.trial.loadtest.result import Result, Run, histogram_of
from shards.counting import counted

RUNS_MIN: Final = 3

Figure = Callable[[Run], float | None]


def _percentile(name: str, percent: str) -> Figure:
    return lambda run: _ms(histogram_of(_pairs(run, name)).percentile(percent))


def _pairs(run: Run, name: str) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = run.cutoffs.lateness if name == "cutoff" else getattr(run, name)
    return pairs


def _ms(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def _role(name: str) -> Figure:
    return lambda run: run.cpu_by_role.get(name)


FIGURES: Final[tuple[tuple[str, str, Figure], ...]] = (
    ("commands answered a second", "", lambda run: run.per_s or None),
    *((f"latency p{percent}", "ms", _percentile("latency", percent)) for percent in PERCENTILES),
    *((f"service time p{percent}", "ms", _percentile("service", percent)) for percent in PERCENTILES),
    *((f"cutoff lateness p{percent}", "ms", _percentile("cutoff", percent)) for percent in PERCENTILES),
    ("server CPU a command", "µs", lambda run: run.cpu_us_per_command),
    ("server CPU a cutoff", "µs", lambda run: run.cpu_us_per_cutoff),
    *((f"cores of {role}", "", _role(role)) for role in ("supervisor", "worker", "beside")),
)


def compare(before: Result, after: Result) -> Iterator[str]:
    """The comparison as lines: first the differing conditions, which make the two hard to compare, then a table of the
    figures of both with the changes.
    """
    yield from (f"not the same: {line}" for line in differing(before, after))
    for name, result in (("the first", before), ("the second", after)):
        if invalid := sum(not run.valid for run in result.measured):
            runs = counted(len(result.measured), "run")
            yield f"INVALID: {invalid} of {runs} of {name}; such latencies are not to be used"
    few = [
        f"{name} has {counted(len(result.measured), 'run')}"
        for name, result in (("the first", before), ("the second", after))
        if len(result.measured) < RUNS_MIN
    ]
    if few:
        yield f"too few runs to tell what changed: {' and '.join(few)}, and each needs {RUNS_MIN} or more (--runs)"
    rows: list[tuple[str, ...]] = [("", "before", "after", "difference", "runs before", "runs after", "")]
    for name, unit, figure in FIGURES:
        sides = [[value for run in result.measured if (value := figure(run)) is not None] for result in (before, after)]
        if all(sides):
            rows.append(_row(f"{name}, {unit}" if unit else name, *sides))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *figures, verdict = row
        aligned = "  ".join(f"{cell:>{width}}" for cell, width in zip(figures, widths[1:-1], strict=True))
        yield f"{first:<{widths[0]}}  {aligned}  {verdict}".rstrip()


def differing(before: Result, after: Result) -> Iterator[str]:
    """The conditions that figures depend on and that differ between the two."""
    for name in ("kind", "workload", "tracing", "chaos", "processes", "connections", "depth"):
        yield from _unlike(name, getattr(before, name), getattr(after, name))
    for name in ("workers", "journal_sync", "version"):
        if before.daemon.get(name) != after.daemon.get(name):
            yield f"{name}: {before.daemon.get(name)} and {after.daemon.get(name)}"
    for name in ("host", "processor", "cores", "python", "system"):
        if before.environment.get(name) != after.environment.get(name):
            yield f"{name}: {before.environment.get(name)} and {after.environment.get(name)}"


def _unlike(name: str, a: object, b: object) -> Iterator[str]:
    """The differences of two settings, one line each. Two structs of one type are compared field by field."""
    if a == b:
        return
    if isinstance(a, msgspec.Struct) and isinstance(b, type(a)):
        for part in a.__struct_fields__:
            yield from _unlike(f"{name} {part}", getattr(a, part), getattr(b, part))
    else:
        yield f"{name}: {_in_words(a)} and {_in_words(b)}"


def _in_words(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{part} {_in_words(getattr(value, part))}" for part in value.__struct_fields__)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, tuple | list):
        return "/".join(map(str, value)) or "none"
    return f"{value:,.12g}" if isinstance(value, int | float) else str(value)


def verdict(before: list[float], after: list[float]) -> str:
    """The verdict on a figure, in words."""
    if min(len(before), len(after)) < RUNS_MIN:
        return "too few runs"
    return "CHANGED" if changed(before, after) else "within the noise"


def changed(before: list[float], after: list[float]) -> bool:
    """Whether the values of two results differ beyond their own noise."""
    if min(len(before), len(after)) < RUNS_MIN:
        return False
    apart = max(before) < min(after) or max(after) < min(before)
    spread = max(max(before) - min(before), max(after) - min(after))
    return apart and abs(median(after) - median(before)) > spread


def _row(name: str, before: list[float], after: list[float]) -> tuple[str, ...]:
    a, b = median(before), median(after)
    share = f"{(b - a) / a:+.1%}" if a else "–"
    ranges = (f"{min(side):,.4g}–{max(side):,.4g}" for side in (before, after))
    return name, f"{a:,.4g}", f"{b:,.4g}", share, *ranges, verdict(before, after)
