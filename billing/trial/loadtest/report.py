"""The report: one HTML file with everything in it, for a reader who has to decide how many machines to buy.

The conclusion comes first, in sentences; then the figures that it rests on; then the plots; then everything that is
needed to repeat the test. The file opens without a network, and it contains no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median
from typing import Final

from billing.trial.loadtest import plots
from billing.trial.loadtest.conclusion import (
    FLEETS,
    HEADROOM,
    REPORT_EVERY_S,
    conclusion,
    in_bytes,
    in_short,
    kept_up,
    needs,
    sustained_per_s,
    telling,
)
from billing.trial.loadtest.result import Result, histogram_of, histogram_of_runs
from billing.trial.loadtest.summary import ms, spread, verdict_line
from billing.trial.loadtest.validity import CRITERIA
from shards.counting import counted

STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f24; --soft: #57606a; --line: #d9dce1; --grid: #e7eaee;
  --good: #14552b; --good-back: #e4f3e8; --bad: #8a1c14; --bad-back: #fbe4e2; --warn: #6b4a00; --warn-back: #fdf1d9;
  --code: #f5f6f8; --bar: #1f5fa8;
  --c0: #1f5fa8; --c1: #c2590b; --c2: #2d8a4e; --c3: #8b3fa0; --c4: #b3261e; --c5: #5c6670; --c6: #0e8a8a;
  --c7: #8c6d00; }
@media (prefers-color-scheme: dark) { :root { --paper: #0e1116; --ink: #e8ebef; --soft: #a0a9b4; --line: #2c333c;
  --grid: #252b33; --good: #7fe0a2; --good-back: #12381f; --bad: #ff9b92; --bad-back: #4a1714; --warn: #f5c566;
  --warn-back: #3d2c07; --code: #171b21; --bar: #7db2ff;
  --c0: #7db2ff; --c1: #ff9d5c; --c2: #46b884; --c3: #c99ae0; --c4: #ff8d83; --c5: #a8b2bd; --c6: #5cc9c9;
  --c7: #d8b84a; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 860px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; } h2 { font-size: 1.2em; margin: 2em 0 .4em; }
p { margin: .4em 0; overflow-wrap: anywhere; } .faint { color: var(--soft); font-size: .92em; }
.short { font-size: 1.15em; margin: .8em 0; }
.verdict { padding: .8em 1em; border-radius: 6px; font-weight: 600; margin: 1em 0 .4em; }
.right { background: var(--good-back); color: var(--good); } .wrong { background: var(--bad-back); color: var(--bad); }
.unsure { background: var(--warn-back); color: var(--warn); }
.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 1em 0; }
.big div { border: 1px solid var(--line); border-radius: 6px; padding: .6em .9em; }
.big b { display: block; font-size: 1.4em; font-variant-numeric: tabular-nums; white-space: nowrap; }
.big span { color: var(--soft); }
table { border-collapse: collapse; width: 100%; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--grid); stroke-width: 1; } .tick { font-size: 12px; fill: var(--soft); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.alone { stroke-width: 7; } .bar { fill: var(--bar); }
.mark { stroke-width: 1; stroke-dasharray: 3 4; opacity: .8; }
.legend { font-size: 13px; color: var(--soft); } .key { display: inline-block; margin-right: 14px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle;
  background: var(--key, var(--soft)); }
.c0 { stroke: var(--c0); --key: var(--c0); } .c1 { stroke: var(--c1); --key: var(--c1); }
.c2 { stroke: var(--c2); --key: var(--c2); } .c3 { stroke: var(--c3); --key: var(--c3); }
.c4 { stroke: var(--c4); --key: var(--c4); } .c5 { stroke: var(--c5); --key: var(--c5); }
.c6 { stroke: var(--c6); --key: var(--c6); } .c7 { stroke: var(--c7); --key: var(--c7); }
circle.c0 { fill: var(--c0); } circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); }
.sync { stroke: var(--c5); --key: var(--c5); } .snapshot { stroke: var(--c2); --key: var(--c2); }
.move { stroke: var(--c3); --key: var(--c3); } .collection { stroke: var(--c7); --key: var(--c7); }
.kill { stroke: var(--c4); --key: var(--c4); } .restart { stroke: var(--c1); --key: var(--c1); }
.fault { stroke: var(--c6); --key: var(--c6); }
code { white-space: nowrap; }
pre { background: var(--code); padding: .8em 1em; border-radius: 6px; overflow-x: auto; font-size: .85em; }
:focus-visible { outline: 3px solid var(--bar); }
@media (max-width: 640px) { body { margin: 1em auto; } .tick { font-size: 20px; } .line { stroke-width: 3; } }
"""
NAMES: Final = {  # name in the result -> name in the report
    "host": "host", "system": "system", "python": "Python", "processor": "processor", "cores": "cores",
    "memory_gib": "memory, GiB", "load_before": "load average before", "commit": "commit", "version": "version",
    "workers": "workers", "journal_sync": "journal.sync", "after_exhaustion": "cutoff.after_exhaustion",
    "bucket_count": "buckets", "own": "daemon",
}  # fmt: skip


def report(result: Result) -> str:
    """The whole page."""
    title = "Load test of the billing daemon"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        + "".join(_body(result, title))
        + "</body></html>\n"
    )


def _body(result: Result, title: str) -> Iterator[str]:
    facts, workers = result.daemon, counted(result.daemon["workers"], "worker")
    yield f"<h1>{title}</h1>"
    yield (
        f'<p class="faint">{escape(result.began_at)} · {workers} on {result.environment["cores"]} '
        f"cores ({escape(str(result.environment['processor']))}) · journal.sync = {facts['journal_sync']}</p>"
    )
    yield "".join(f'<p class="short">{escape(sentence)}</p>' for sentence in in_short(result))
    yield (
        '<p class="faint">A command changes or asks for one account, such as a top-up; it is answered once it is '
        "durable on the disk. A cutoff is the call to the cutoff URL at the instant at which a balance runs out.</p>"
    )
    yield from _verdicts(result)
    yield from _big(result)
    yield from _needs(result)
    yield "<h2>What was found</h2>"
    for sentence in conclusion(result):
        if not sentence.startswith((" ", "Capacity")):  # capacity has its own part
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
        lines = [line for run in runs for line in (*run.money.told, *run.cutoffs.told)]
        yield f"<pre>{escape(chr(10).join(lines))}</pre>"
    invalid = [run for run in result.measured if not run.valid]
    if not invalid:
        valid = "The measurement is VALID: commands went out when they were planned to, however the daemon did."
        yield f'<div class="verdict right">{valid}</div>'
    elif result.kind == "sweep":
        yield (
            f'<div class="verdict unsure">{len(invalid)} of {len(result.steps)} steps are INVALID (the generator could '
            "not keep its plan there); they count as not sustained.</div>"
        )
    else:
        yield f'<div class="verdict unsure">INVALID: {len(invalid)} of {counted(len(result.runs), "run")}.</div>'
        for run in invalid:
            yield f'<p class="faint">run {run.number + 1}: {escape("; ".join(run.invalid_because))}</p>'


def _big(result: Result) -> Iterator[str]:
    """The most important figures, in large type."""
    good = telling(result)
    latency = histogram_of_runs(good, "latency")
    lateness = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.lateness])
    cost = [run.cpu_us_per_command for run in good if run.cpu_us_per_command]
    rate = sustained_per_s(result)
    answered = median(run.per_s for run in good) if good else 0.0
    cells = [
        (f"{rate or answered:,.0f}/s", "commands sustained" if rate else "commands answered"),
        (f"{ms(latency.percentile('50'))} ms", "half of the answers came within"),
    ]
    if (p99_ns := latency.percentile("99")) is not None:
        cells.append((f"{ms(p99_ns)} ms", "99 of 100 came within"))
    if lateness.total:
        p50 = lateness.percentile("50")
        cells.append(
            (
                f"{ms(p50 if p50 is not None else lateness.greatest)} ms",
                "half of the cutoffs came within" if p50 else "the last cutoff came within",
            )
        )
    healthy = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.healthy_lateness])
    if healthy.total:
        p99 = healthy.percentile("99")
        label = "99 of 100 healthy users' cutoffs" if p99 is not None else "the last healthy user's cutoff"
        within_ns = p99 if p99 is not None else healthy.greatest
        cells.append((f"{ms(within_ns)} ms", f"{label} came within, beside sick ones"))
    if cost:
        cells.append((f"{median(cost):.1f} µs", "of the server's CPU a command"))
    if result.memory_bytes_per_account is not None:
        cells.append((f"{result.memory_bytes_per_account:,.0f} B", "memory an account"))
    yield '<div class="big">' + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in cells)
    yield "</div>"


def _needs(result: Result) -> Iterator[str]:
    rows = needs(result)
    yield "<h2>Capacity: workers needed for so many virtual machines</h2>"
    if not rows and result.kind == "sweep":
        yield "<p>Not measured: the sweep ended before it found what is too much for the daemon.</p>"
        return
    if not rows:
        yield (
            "<p>Not measured: this test shows that its own rate is answered, or is not, and not how much the daemon "
            f"can. <code>--sweep</code> raises the rate until it cannot; from that, fleets of {FLEETS[0]:,} to "
            f"{FLEETS[-1]:,} virtual machines are reckoned.</p>"
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
    yield _table(["virtual machines", "commands a second", "workers (cores)", "memory, an account each"], body)


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
        for index, run in enumerate(runs):
            latency = histogram_of(run.latency)
            cells = [f"{name} {index + 1}", f"{run.offered_per_s:,.0f}" if run.offered_per_s else "–"]
            cells += [f"{run.per_s:,.0f}", *(ms(latency.percentile(p)) for p in ("50", "90", "99", "99.9"))]
            cells += [ms(latency.greatest), ms(histogram_of(run.service).percentile("99"))]
            cells += ["–" if value is None else f"{value:.1f}" for value in (run.cpu_us_per_command,)]
            cells += ["–" if run.cpu_us_per_cutoff is None else f"{run.cpu_us_per_cutoff:.0f}"]
            body.append([*cells, "yes" if run.valid else "no", "right" if run.clean else "WRONG"])
    yield _table(head, body)
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
    curves = [("latency from the intended start", histogram_of_runs(result.runs or [shown], "latency"))]
    curves += [("service time from the sending", histogram_of_runs(result.runs or [shown], "service"))]
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
            f"{counted(lateness.total, 'cutoff')}, from the exact instant to the arrival at the endpoint, a process of "
            "its own.",
        )
    if shown.samples:
        yield _figure("CPU of each process", plots.cpu_over_time(shown), f"Of {of}; 1 is a whole core.")
        yield _figure("Memory of each process", plots.memory_over_time(shown), f"Of {of}.")


def _knee(result: Result) -> str:
    if result.knee_per_s is None:
        return "No step was sustained."
    return (
        f"Each point is one step. The knee is at {result.knee_per_s:,.0f} offered commands a second: above it the 99th "
        f"percentile leaves {result.p99_limit_ms:g} ms, or the measurement is not valid or too short to tell."
    )


def _again(result: Result) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield f'<p class="faint">{escape(CRITERIA)}</p>'
    yield f"<pre>{escape(result.command)}</pre>"
    facts = {**result.environment, **{key: result.daemon[key] for key in result.daemon if key != "worker_pids"}}
    facts |= {"processes of the generator": result.processes, "connections": result.connections, "depth": result.depth}
    facts["own"] = "its own, made for this test" if facts.get("own") else "one that was running"
    rows = [
        [escape(NAMES.get(name, name)), escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))]
        for name, value in facts.items()
        if value != ""
    ]
    yield f'<div class="facts">{_table(["environment", ""], rows)}</div>'
    if result.configuration:
        summary = "<summary>The daemon's configuration</summary>"
        yield f"<details>{summary}<pre>{escape(result.configuration)}</pre></details>"


def _figure(title: str, svg: str, caption: str) -> str:
    return f'<h2>{title}</h2><figure>{svg}<figcaption class="faint">{escape(caption)}</figcaption></figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'
