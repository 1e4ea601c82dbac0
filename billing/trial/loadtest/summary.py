"""A result as text for a terminal, and in the machine-readable forms of `--csv` and `--hgrm`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from statistics import median

from billing.trial.loadtest.conclusion import conclusion, in_short, telling
from billing.trial.loadtest.latency import PERCENTILES, Histogram, hgrm
from billing.trial.loadtest.result import Result, Run, histogram_of, histogram_of_runs
from billing.trial.loadtest.validity import CRITERIA
from shards.counting import counted


def ms(nanoseconds: float | None) -> str:
    """Milliseconds with three significant digits; a dash for None."""
    if nanoseconds is None:
        return "–"
    value = nanoseconds / 1e6
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 1000
        else f"{value:.0f}"
    )


def percentiles_line(name: str, histogram: Histogram) -> str:
    """All percentiles that may be reported, in milliseconds."""
    percentiles = histogram.percentiles()
    parts = [f"{'max' if key == 'max' else 'p' + key} {ms(value)}" for key, value in percentiles.items()]
    return f"{name}: {', '.join(parts)} ms ({counted(histogram.total, 'sample')})"


def lines_of(run: Run) -> Iterator[str]:
    """Yields the lines about one run."""
    what = f"{run.offered_per_s:.0f} offered" if run.offered_per_s else "without a rate"
    yield (
        f"run {run.number + 1}: {counted(run.answered, 'command')} in {run.seconds:.1f} s, {run.per_s:.0f} a second "
        f"({what}), {counted(run.refused, 'debit')} refused, {run.retries} sent again, {run.held} held back by --depth"
    )
    if run.answered:
        yield "  " + percentiles_line("latency from the intended start", histogram_of(run.latency))
        yield "  " + percentiles_line("service time from the sending", histogram_of(run.service))
    if run.lateness:
        yield "  " + percentiles_line("the generator's own lateness", histogram_of(run.lateness))
    cost = [
        f"{value:.1f} µs a {name}"
        for value, name in ((run.cpu_us_per_command, "command"), (run.cpu_us_per_cutoff, "cutoff"))
        if value is not None
    ]
    yield f"  server CPU: {', '.join(cost) or 'not known'} ({run.cpu_note}); generator: {run.generator_cpu:.2f} cores"
    cutoffs = run.cutoffs
    if cutoffs.lateness:
        yield "  " + percentiles_line("lateness of cutoffs", histogram_of(cutoffs.lateness))
    if cutoffs.healthy_lateness:
        yield "  " + percentiles_line(
            "lateness of healthy users beside sick ones", histogram_of(cutoffs.healthy_lateness)
        )
    if cutoffs.last_after_s is not None:
        yield f"  the storm's last cutoff came {cutoffs.last_after_s:.3f} s after its instant"
    if run.chaos_did:
        yield "  trouble made: " + ", ".join(f"{count} × {kind}" for kind, count in sorted(run.chaos_did.items()))
    yield f"  {'VALID' if run.valid else 'INVALID'}" + "".join(f"; {reason}" for reason in run.invalid_because)
    yield f"  {verdict_line(run)}"
    for line in (*run.money.told, *cutoffs.told):
        yield f"    {line}"


def verdict_line(run: Run) -> str:
    """The verdict on money and cutoffs, in one line."""
    money, cutoffs = run.money, run.cutoffs
    healthy = ""
    if cutoffs.healthy_lateness:
        lateness = histogram_of(cutoffs.healthy_lateness)
        p99_ns = lateness.percentile("99")
        latest = f"p99 {ms(p99_ns)}, max" if p99_ns is not None else "max"
        latest_text = f"{latest} {ms(lateness.greatest)} ms"
        healthy = f"; {counted(lateness.total, 'cutoff')} of healthy users beside sick ones, lateness {latest_text}"
    return (
        f"{'RIGHT' if run.clean else 'WRONG'}: "
        f"{counted(money.accounts, 'account')}, {counted(money.answered, 'answer')}, "
        f"{money.wrong_replies} wrong replies, {money.wrong_balances} wrong balances, {money.wrong_refusals} wrong "
        f"refusals, {money.unanswered} unanswered; "
        f"cutoffs of all runs so far: {cutoffs.expected} expected, {cutoffs.received} received, "
        f"{cutoffs.superseded} superseded, {cutoffs.missing} missing, {cutoffs.early} early, {cutoffs.false} false, "
        f"{cutoffs.doubled} doubled{healthy}"
    )


def summary(result: Result) -> Iterator[str]:
    """Yields the lines of the whole summary."""
    facts, workers = result.daemon, counted(result.daemon["workers"], "worker")
    yield from in_short(result)
    yield ""
    yield from conclusion(result)
    yield ""
    commit = result.environment["commit"]
    yield (
        f"billing {facts['version']} with {workers}, journal.sync = {facts['journal_sync']}; "
        f"{result.environment['processor']}, {counted(result.environment['cores'], 'core')}"
        + (f", commit {commit}" if commit else "")
    )
    for step in result.steps:
        latency = histogram_of(step.latency)
        percentiles = ", ".join(f"p{key} {ms(latency.percentile(key))}" for key in ("50", "99", "99.9"))
        yield (
            f"step: {step.offered_per_s:.0f} offered, {step.per_s:.0f} answered a second, {percentiles} ms, "
            f"{'VALID' if step.valid else 'INVALID'}, {'RIGHT' if step.clean else 'WRONG'}"
        )
    for run in result.runs:
        yield from lines_of(run)
    if len(result.runs) > 1:
        yield f"spread over {len(result.runs)} runs: {spread(result)}"
    yield CRITERIA
    for line in result.steps if not result.clean else []:
        yield from (f"    {text}" for text in (*line.money.told, *line.cutoffs.told))


def spread(result: Result) -> str:
    """Least, median and greatest value over the runs: of percentiles of latency, and of the CPU time of a command."""
    parts = []
    for percent in PERCENTILES:
        values = [histogram_of(run.latency).percentile(percent) for run in result.runs]
        measured = sorted(value for value in values if value is not None)
        if len(measured) == len(result.runs):
            parts.append(f"p{percent} {ms(measured[0])} / {ms(median(measured))} / {ms(measured[-1])} ms")
    costs = sorted(run.cpu_us_per_command for run in result.runs if run.cpu_us_per_command is not None)
    if costs:
        parts.append(f"CPU a command {costs[0]:.1f} / {median(costs):.1f} / {costs[-1]:.1f} µs")
    return "; ".join(parts) or "nothing to compare"


def csv_of(result: Result) -> str:
    """The result as CSV: a row for each run or step; times in microseconds. A percentile that may not be reported is
    empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["kind", "number", "offered_per_s", "per_s", "answered", "seconds"]
    names = [
        f"{name}_p{percent}_us"
        for name in ("latency", "service", "cutoff", "healthy")
        for percent in (*PERCENTILES, "max")
    ]
    writer.writerow([*columns, *names, "cpu_us_per_command", "cpu_us_per_cutoff", "valid", "right"])
    for kind, runs in (("step", result.steps), ("run", result.runs)):
        for run in runs:
            row: list[object] = [kind, run.number, f"{run.offered_per_s:.0f}", f"{run.per_s:.1f}", run.answered]
            row.append(f"{run.seconds:.3f}")
            for pairs in (run.latency, run.service, run.cutoffs.lateness, run.cutoffs.healthy_lateness):
                histogram = histogram_of(pairs)
                for percent in PERCENTILES:
                    value = histogram.percentile(percent)
                    row.append("" if value is None else f"{value / 1000:.1f}")
                row.append(f"{histogram.greatest / 1000:.1f}")
            row += [
                "" if value is None else f"{value:.2f}" for value in (run.cpu_us_per_command, run.cpu_us_per_cutoff)
            ]
            writer.writerow([*row, int(run.valid), int(run.clean)])
    return out.getvalue()


def hgrm_of(result: Result) -> str:
    """The latency from the intended start, of all runs or of a sweep's knee, in HdrHistogram's text form."""
    return hgrm(histogram_of_runs(telling(result), "latency"))
