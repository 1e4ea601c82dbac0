"""The report: one HTML file with everything in it, for somebody who has to decide how many machines to buy.

What it says comes first, in sentences; then the figures they rest on; then the plots; then everything that is needed to
do it again. It opens without a network, and no script runs in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from billing.trial.loadtest import plots
from billing.trial.loadtest.conclusion import (
    FLEETS,
    HEADROOM,
    REPORT_EVERY_S,
    conclusion,
    counted,
    in_bytes,
    kept_up,
    needs,
    sustained_per_s,
    telling,
)
from billing.trial.loadtest.result import Result, histogram_of, whole
from billing.trial.loadtest.summary import ms, spread, verdict_line
from billing.trial.loadtest.validity import CRITERIA

STYLE: Final = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1f24; background: #fff; max-width: 1000px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; } h2 { font-size: 1.2em; margin: 2em 0 .4em; }
p { margin: .4em 0; } .faint { color: #5c6670; font-size: .92em; }
.verdict { padding: .8em 1em; border-radius: 6px; font-weight: 600; margin: 1em 0 .4em; }
.right { background: #e4f3e8; color: #14552b; } .wrong { background: #fbe4e2; color: #8a1c14; }
.unsure { background: #fdf1d9; color: #6b4a00; }
.big { display: flex; flex-wrap: wrap; gap: 12px; margin: 1em 0; }
.big div { flex: 1 1 170px; border: 1px solid #d9dce1; border-radius: 6px; padding: .6em .9em; }
.big b { display: block; font-size: 1.5em; font-variant-numeric: tabular-nums; } .big span { color: #5c6670; }
table { border-collapse: collapse; width: 100%; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid #e3e6ea; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; } .scroll { overflow-x: auto; }
figure { margin: 0; } svg { width: 100%; height: auto; }
pre { background: #f5f6f8; padding: .8em 1em; border-radius: 6px; overflow-x: auto; font-size: .85em; }
"""


def report(result: Result) -> str:
    """The whole page."""
    title = "Load test of the billing daemon"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        + "".join(_body(result, title))
        + "</body></html>\n"
    )


def _body(result: Result, title: str) -> Iterator[str]:
    facts, workers = result.daemon, counted(result.daemon["workers"], "worker")
    yield f"<h1>{title}</h1>"
    yield (
        f'<p class="faint">{escape(result.began_at)} · {workers} on {result.environment["cores"]} '
        f"cores ({escape(str(result.environment['processor']))}) · journal.sync = {facts['journal_sync']} · commit "
        f"{escape(str(result.environment['commit']) or 'unknown')}</p>"
    )
    yield from _verdicts(result)
    yield from _big(result)
    yield from _needs(result)
    yield "<h2>What was found</h2>"
    for sentence in conclusion(result):
        if not sentence.startswith(" ") and not sentence.endswith(":"):
            yield f"<p>{escape(sentence)}</p>"
    yield from _figures(result)
    yield from _plots(result)
    yield from _again(result)


def _verdicts(result: Result) -> Iterator[str]:
    runs = [*result.steps, *result.runs]
    if result.clean:
        yield '<div class="verdict right">Money is right: no difference in any balance, reply or cutoff.</div>'
    else:
        yield '<div class="verdict wrong">Money is WRONG. Nothing else on this page counts.</div>'
        told = [line for run in runs for line in (*run.money.told, *run.cutoffs.told)]
        yield f"<pre>{escape(chr(10).join(told))}</pre>"
    invalid = [run for run in result.measured if not run.valid]
    if not invalid:
        yield '<div class="verdict right">VALID: the generator kept its own plan in every run.</div>'
    elif result.kind == "sweep":
        yield (
            f'<div class="verdict unsure">{len(invalid)} of {len(result.steps)} steps are INVALID (the generator could '
            "not keep its plan there); they count as not sustained.</div>"
        )
    else:
        yield f'<div class="verdict unsure">{len(invalid)} of {len(result.runs)} runs are INVALID.</div>'
        for run in invalid:
            yield f'<p class="faint">run {run.number + 1}: {escape("; ".join(run.invalid_because))}</p>'


def _big(result: Result) -> Iterator[str]:
    """The few figures that are looked for first."""
    good = telling(result)
    latency = whole(good, "latency")
    lateness = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.lateness])
    cost = sorted(run.cpu_us_per_command for run in good if run.cpu_us_per_command is not None)
    top = max((run.per_s for run in good), default=0.0)
    cells = [
        (f"{top:,.0f}/s", "commands sustained" if sustained_per_s(result) else "commands answered"),
        (f"{ms(latency.percentile('50'))} / {ms(latency.percentile('99'))} ms", "latency of callers: half / 99 %"),
    ]
    if lateness.total:
        p50 = lateness.percentile("50")
        cells.append(
            (
                f"{ms(p50 if p50 is not None else lateness.greatest)} ms",
                "cutoff lateness: " + ("half" if p50 else "most"),
            )
        )
    if cost:
        cells.append((f"{cost[len(cost) // 2]:.1f} µs", "server CPU a command"))
    if result.memory_bytes_per_account is not None:
        cells.append((f"{result.memory_bytes_per_account:,.0f} B", "memory an account"))
    yield '<div class="big">' + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in cells)
    yield "</div>"


def _needs(result: Result) -> Iterator[str]:
    rows = needs(result)
    yield "<h2>How many machines you need</h2>"
    if not rows:
        yield (
            f"<p>This test does not say: its rate was not sustained within {result.p99_limit_ms:g} ms at the 99th "
            f"percentile, or it was not valid, or offered nothing. Fleets of {FLEETS[0]:,} to {FLEETS[-1]:,} machines "
            "are reckoned where it was; run it with <code>--sweep</code> on a quiet machine.</p>"
        )
        return
    yield (
        f"<p>For virtual machines that each report once in {REPORT_EVERY_S} seconds. A worker takes one core. Planned "
        f"with {HEADROOM:.0%} of the sustained rate; in proportion beyond the "
        f"{counted(result.daemon['workers'], 'worker')} "
        "measured. One daemon is one host: more workers than its cores mean more daemons, each with its own "
        "users.</p>"
    )
    body = [
        [
            f"{need.machines:,}",
            f"{need.per_s:,.0f}",
            f"{need.workers:,}",
            "–" if need.memory_bytes is None else in_bytes(need.memory_bytes),
        ]
        for need in rows
    ]
    yield _table(["machines that report", "commands a second", "workers (cores)", "memory, an account each"], body)


def _figures(result: Result) -> Iterator[str]:
    yield "<h2>Figures</h2>"
    yield (
        '<p class="faint">Latency counts from the intended moment of each command, so that a daemon that stands still '
        "delays everybody who would have asked meanwhile; service time from its real sending. Milliseconds. A "
        "percentile is told only where at least 100 samples lie beyond. Warm-up is not in it.</p>"
    )
    head = ["", "offered/s", "answered/s", "p50", "p90", "p99", "p99.9", "max", "service p99", "µs a command"]
    head += ["µs a cutoff", "valid", "money"]
    body = []
    for name, runs in (("step", result.steps), ("run", result.runs)):
        for place, run in enumerate(runs):
            latency = histogram_of(run.latency)
            cells = [f"{name} {place + 1}", f"{run.offered_per_s:,.0f}" if run.offered_per_s else "–"]
            cells += [f"{run.per_s:,.0f}", *(ms(latency.percentile(p)) for p in ("50", "90", "99", "99.9"))]
            cells += [ms(latency.greatest), ms(histogram_of(run.service).percentile("99"))]
            cells += ["–" if value is None else f"{value:.1f}" for value in (run.cpu_us_per_command,)]
            cells += ["–" if run.cpu_us_per_cutoff is None else f"{run.cpu_us_per_cutoff:.0f}"]
            body.append([*cells, "yes" if run.valid else "no", "right" if run.clean else "WRONG"])
    yield f'<div class="scroll">{_table(head, body)}</div>'
    if len(result.runs) > 1:
        yield f'<p class="faint">Least / median / most of {len(result.runs)} runs: {escape(spread(result))}.</p>'
    for run in result.runs or result.steps[-1:]:
        yield f'<p class="faint">{escape(verdict_line(run))}</p>'


def _plots(result: Result) -> Iterator[str]:
    if result.steps:
        yield _figure("Throughput against latency", plots.throughput(result.steps), _knee(result))
    good = telling(result)
    shown = good[-1] if result.steps else max(good, key=lambda run: histogram_of(run.latency).value_at(0.99))
    of = f"the step at {shown.offered_per_s:,.0f} a second" if result.steps else f"run {shown.number + 1}"
    curves = [("latency from the intended start", whole(result.runs or [shown], "latency"))]
    curves += [("service time from the sending", whole(result.runs or [shown], "service"))]
    if any(histogram.total for _, histogram in curves):
        over = "all runs" if result.runs else of
        yield _figure(
            "Latency by percentile",
            plots.by_percentile(curves),
            f"Of {over}; each step to the right leaves a tenth of them beyond.",
        )
    if shown.answered:
        yield _figure(
            "Latency over time, and what happened meanwhile",
            plots.over_time(shown),
            f"Of {of}, warm-up included. Upright lines are events, known to half a second: syncs of the disk "
            "above 20 ms, snapshots, moves of buckets, collections of garbage above 10 ms, and trouble that was made.",
        )
    lateness = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.lateness])
    if lateness.total:
        yield _figure(
            "Lateness of cutoffs",
            plots.cutoff_lateness(lateness),
            f"{lateness.total:,} cutoffs, from the exact instant to the arrival at the endpoint, a process of its own.",
        )
    if shown.samples:
        yield _figure("CPU of each process", plots.cpu_over_time(shown), f"Of {of}; 1 is a whole core.")
        yield _figure("Memory of each process", plots.memory_over_time(shown), f"Of {of}.")


def _knee(result: Result) -> str:
    if result.knee_per_s is None:
        return "No step was sustained."
    return (
        f"Each point is one step. The knee is at {result.knee_per_s:,.0f} offered commands a second: above it the 99th "
        f"percentile leaves {result.p99_limit_ms:g} ms, or the measurement is not valid."
    )


def _again(result: Result) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield f'<p class="faint">{escape(CRITERIA)}</p>'
    yield f"<pre>{escape(result.command)}</pre>"
    facts = {**result.environment, **{key: result.daemon[key] for key in result.daemon if key != "worker_pids"}}
    facts |= {"processes of the generator": result.processes, "connections": result.connections, "depth": result.depth}
    rows = [[escape(str(name)), escape(str(value))] for name, value in facts.items()]
    yield _table(["environment", ""], rows)
    if result.configuration:
        summary = "<summary>The daemon's configuration</summary>"
        yield f"<details>{summary}<pre>{escape(result.configuration)}</pre></details>"


def _figure(title: str, svg: str, caption: str) -> str:
    return f'<h2>{title}</h2><figure>{svg}<figcaption class="faint">{escape(caption)}</figcaption></figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
