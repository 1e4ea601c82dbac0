"""What benchmarks share: arguments, quantiles, and the printing of figures."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def add_arguments(parser: argparse.ArgumentParser, runs: int = 5, seconds: float = 4.0) -> None:
    """Adds the arguments that most benchmarks take."""
    parser.add_argument("--seconds", type=float, default=seconds, help="of each run, warm-up not counted")
    parser.add_argument("--runs", type=int, default=runs, help="the medians of these are the result")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")


def quantile(values: Iterable[float], share: float) -> float:
    """Returns the value at index `share` times their number, sorted. `share`: 0 to 1. Raises ValueError where there are
    none.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def quantiles_ms(latencies: Iterable[float]) -> dict[str, float]:
    """Returns p50, p99 and p99.9 of seconds, as milliseconds. Raises ValueError where there are none."""
    ordered = sorted(latencies)
    return {
        name: round(quantile(ordered, share) * 1e3, 3)
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))
    }


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the median of each figure. Raises KeyError where a run lacks one."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def show(arguments: argparse.Namespace, runs: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """Prints the runs and the result, one line each, or as JSON."""
    if arguments.json:
        print(json.dumps({"arguments": vars(arguments), "runs": list(runs), "median": result}, indent=1))
        return
    _print(runs, result)


def show_each(arguments: argparse.Namespace, kinds: dict[str, list[dict[str, Any]]]) -> None:
    """Prints several kinds of runs like `show`, each with its medians."""
    if arguments.json:
        by_kind = {kind: {"runs": runs, "median": medians(runs)} for kind, runs in kinds.items()}
        print(json.dumps({"arguments": vars(arguments), "kinds": by_kind}, indent=1))
        return
    for kind, runs in kinds.items():
        print(f"{kind}:")
        _print(runs, medians(runs))


def _print(runs: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    for run in runs:
        print("  ".join(f"{key} {value}" for key, value in run.items()))
    print(f"median of {len(runs)}:  " + "  ".join(f"{key} {value}" for key, value in result.items()))
