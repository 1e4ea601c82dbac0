"""The meaning of a result for people who buy machines: sentences, each with the figure that it rests on. Pure.

A sentence says whether a figure was measured or calculated. A rate counts as sustained if its measurement was VALID,
money was right, and the 99th percentile of latency stayed within the limit (`--p99-ms`). A sweep finds the highest such
rate. Any other run shows only that its own rate is sustained, which does not tell how many workers a fleet needs; so
capacity is calculated from a sweep only. The calculation plans with the share `HEADROOM` of the sustained rate, because
a system that is full on an ordinary day fails on the first busier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from statistics import median
from typing import Final, NamedTuple

from billing.trial.loadtest.result import Result, Run, histogram_of, histogram_of_runs
from shards.counting import counted

TOO_FEW: Final = "there were too few answers to tell a 99th percentile"
HEADROOM: Final = 0.7  # the share of the sustained rate that capacity is planned with
BUSY: Final = 0.7  # of a core: above this a command costs as much CPU time as on a full core
REPORT_EVERY_S: Final = 60
CUTOFF_BOUND_NS: Final = 50_000_000  # 99 of 100 cutoffs are meant to come within this time
FLEETS: Final = (10_000, 100_000, 1_000_000, 10_000_000)


class Need(NamedTuple):
    """The need of a fleet of `machines` reporting virtual machines: commands a second, workers and memory."""

    machines: int
    per_s: float
    workers: int
    memory_bytes: float | None


def sustained(run: Run, limit_ms: float) -> bool:
    """Whether a run shows that the daemon sustains its rate. If there are too few answers for a 99th percentile, the
    slowest answer counts.
    """
    latency = histogram_of(run.latency)
    p99_ns = latency.percentile("99") or (latency.greatest if latency.total else None)
    return run.valid and run.clean and p99_ns is not None and p99_ns <= limit_ms * 1e6


def too_much(run: Run, limit_ms: float) -> bool:
    """Whether a run shows that its rate is too much for the daemon. A few slow answers, too few for a 99th percentile,
    show nothing.
    """
    p99_ns = histogram_of(run.latency).percentile("99")
    return run.valid and run.clean and p99_ns is not None and p99_ns > limit_ms * 1e6


def sustained_per_s(result: Result) -> float | None:
    """The highest rate that the result shows to be sustained; None if it shows none. A closed loop shows none, because
    it sends fewer commands when the daemon is slow.
    """
    if result.kind == "closed":
        return None
    if result.knee_per_s is not None:
        return result.knee_per_s
    if not result.runs or not all(sustained(run, result.p99_limit_ms) for run in result.runs):
        return None
    return median(run.per_s for run in result.runs)


def found_the_limit(result: Result) -> bool:
    """Whether a sweep found the limit of the daemon: a rate above the knee was offered as planned and was too much. A
    sweep found none if its generator could not offer more, or if its steps were too short for a 99th percentile.
    """
    knee = result.knee_per_s
    above = [step for step in result.steps if knee is not None and step.offered_per_s > knee]
    return any(too_much(step, result.p99_limit_ms) for step in above)


def telling(result: Result) -> list[Run]:
    """The runs whose figures count: all runs, or the steps of a sweep at its knee."""
    if result.runs:
        return result.runs
    at_knee = [step for step in result.steps if step.offered_per_s == result.knee_per_s]
    good = [step for step in at_knee if sustained(step, result.p99_limit_ms)]
    return good or result.steps[:1]


def kept_up(result: Result) -> list[Run]:
    """The runs whose lateness of cutoffs is reported: all runs; of a sweep only the sustained steps, if there are."""
    good = [step for step in result.steps if sustained(step, result.p99_limit_ms)]
    return result.runs or good or result.steps


def in_bytes(number: float) -> str:
    """A number of bytes as MiB or GiB."""
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.1f} GiB"


def needs(result: Result) -> list[Need]:
    """The needs of the fleets in `FLEETS`, whose machines report once a minute each. Empty unless the result is a sweep
    that found the limit.
    """
    rate = result.knee_per_s
    if rate is None or not found_the_limit(result):
        return []
    per_worker = rate * HEADROOM / result.daemon["workers"]
    memory = result.memory_bytes_per_account
    return [
        Need(
            machines,
            machines / REPORT_EVERY_S,
            max(1, ceil(machines / REPORT_EVERY_S / per_worker)),
            None if memory is None else memory * machines,
        )
        for machines in FLEETS
    ]


def in_short(result: Result) -> list[str]:
    """The result in three sentences: how fast the daemon was, how late cutoffs were, whether money was right."""
    workers = counted(result.daemon["workers"], "worker")
    latency = histogram_of_runs(telling(result), "latency")
    p99_ns = latency.percentile("99")
    share, within_ns = ("99 of 100", p99_ns) if p99_ns is not None else ("all", latency.greatest)
    within = f"; {share} answers came within {_in_ms(within_ns)}" if latency.total else ""
    rate = sustained_per_s(result)
    answered = median(run.per_s for run in telling(result)) if telling(result) else 0.0
    if result.kind == "closed":
        first = f"With {workers}, callers who wait for each answer were answered {answered:,.0f} times a second."
    elif result.knee_per_s is not None and not found_the_limit(result):
        late = any(not step.valid for step in result.steps)
        first = f"With {workers} the daemon keeps up with at least {rate:,.0f} commands a second{within}; " + (
            "the generator could not offer more on this machine." if late else f"of more {TOO_FEW} (--duration)."
        )
    elif result.knee_per_s is not None:
        first = f"With {workers} the daemon keeps up with {rate:,.0f} commands a second and not with more{within}."
    elif rate is not None:
        first = f"With {workers} the daemon kept up with the {rate:,.0f} commands a second that were offered{within}."
    elif answered and not _is_too_much(result):
        first = f"Whether the daemon with {workers} keeps up is not known: {_why_unknown(result)}."
    elif answered:
        first = f"The daemon with {workers} did not keep up: {_why_not(result)}."
    else:
        first = f"No commands were offered to the daemon with {workers}."
    return [first, _cutoffs_in_short(result), _money_in_short(result)]


def _cutoffs_in_short(result: Result) -> str:
    expected = expected_cutoffs(result)
    lateness = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.lateness])
    if not expected:
        return "No cutoff was due, so nothing is said about cutoffs."
    if not lateness.total:
        return f"{counted(expected, 'cutoff').capitalize()} had to come."
    p99_ns, bound, cutoffs = lateness.percentile("99"), _in_ms(CUTOFF_BOUND_NS), counted(lateness.total, "cutoff")
    who = "A user whose money ran out was cut off"
    if p99_ns is not None:
        when = f"LATE, beyond the {bound} that are meant" if p99_ns > CUTOFF_BOUND_NS else "in time"
        return f"{who} {when}: 99 of 100 within {_in_ms(p99_ns)} of the exact instant, of {cutoffs}."
    within = lateness.up_to(CUTOFF_BOUND_NS)
    counts = (
        f"{within:,} within the {bound} that are meant, the last {_in_ms(lateness.greatest)} after the exact instant"
    )
    late, meant = lateness.total - within, lateness.total / 100
    if late <= meant:
        return f"{who} in time: {counts}, of {cutoffs}."
    if late > meant + 3 * meant**0.5 + 1:  # hardly ever so many, if one in a hundred is late
        return f"{who} LATE: {counts}, of {cutoffs}."
    return f"Too few users were cut off to tell whether 99 of 100 are in time: {counts}, of {cutoffs}."


def _money_in_short(result: Result) -> str:
    if not result.clean:
        return "MONEY OR CUTOFFS CAME OUT WRONG: nothing else counts until that is explained."
    answers = sum(run.money.answered for run in (*result.runs, *result.steps))
    answers_text = counted(answers, "answer")
    return f"Not a nano was wrong in {answers_text} and every final balance, held against an independent sum."


def expected_cutoffs(result: Result) -> int:
    """How many cutoffs had to come, over all runs."""
    return max((run.cutoffs.expected for run in result.measured), default=0)


def _in_ms(nanoseconds: float) -> str:
    value = nanoseconds / 1e6
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _invalid(result: Result) -> str:
    """How many measurements were INVALID, and why."""
    runs = result.measured
    invalid = [run for run in runs if not run.valid]
    because = f" ({invalid[0].invalid_because[0]})" if invalid[0].invalid_because else ""
    if len(runs) == 1:
        return f"the measurement was not valid{because}"
    were = "was" if len(invalid) == 1 else "were"
    return f"{len(invalid)} of {counted(len(runs), 'measurement')} {were} not valid{because}"


def unusable(result: Result) -> str:
    """The message about an INVALID result, which tells nothing about the daemon."""
    return f"INVALID, which says nothing of how fast the daemon is: {_invalid(result)}"


def _is_too_much(result: Result) -> bool:
    """Whether the result shows that the daemon did not keep up: money was wrong, or a valid run was slow."""
    return not result.clean or _slowest_p99_ns(result) > result.p99_limit_ms * 1e6


def _slowest_p99_ns(result: Result) -> float:
    """The worst 99th percentile of the valid runs; 0 if no run has enough answers for one."""
    p99s_ns = (histogram_of(run.latency).percentile("99") for run in result.measured if run.valid)
    return max((p99_ns for p99_ns in p99s_ns if p99_ns is not None), default=0)


def _why_not(result: Result) -> str:
    """Why a rate was not sustained: money was wrong, or answers were late."""
    reasons, slowest_ns = [], _slowest_p99_ns(result)
    if slowest_ns > result.p99_limit_ms * 1e6:
        reasons.append(f"the 99th percentile was {_in_ms(slowest_ns)}, above {result.p99_limit_ms:g} ms")
    if not result.clean:
        reasons.append("money or cutoffs were wrong")
    return " and ".join(reasons)


def _why_unknown(result: Result) -> str:
    """Why it is unknown whether the daemon sustains the rate."""
    if not all(run.valid for run in result.measured):
        return _invalid(result)
    slowest_ns = max(histogram_of(run.latency).greatest for run in result.measured)
    return f"{TOO_FEW}, and the slowest took {_in_ms(slowest_ns)}, above {result.p99_limit_ms:g} ms"


def conclusion(result: Result) -> Iterator[str]:
    """Yields the conclusion as sentences, the verdict first."""
    if not result.clean:
        yield (
            "DO NOT TRUST THIS DAEMON: money or cutoffs came out wrong. No figure below means anything until that is "
            "explained."
        )
    else:
        answers = sum(run.money.answered for run in (*result.runs, *result.steps))
        expected = expected_cutoffs(result)
        cutoffs = (
            f"every one of the {expected:,} cutoffs that had to come came, none early, none false."
            if expected > 1
            else "the one cutoff that had to come came, not early, and no false one."
            if expected
            else "no cutoff was due, and none came."
        )
        yield (
            f"Money was right: all {answers:,} answers and every final balance are what an independent sum says, and "
            f"{cutoffs}"
        )
    if any(not run.valid for run in result.runs):
        yield f"INVALID: {_invalid(result)}. Latencies of such a run are not to be used."
    yield from _rate(result)
    yield from _cutoffs(result)
    memory = result.memory_bytes_per_account
    if memory is not None:
        yield f"Memory: {memory:,.0f} bytes an account in the workers, over {result.memory_accounts:,} accounts."
    yield from _needs(result)


def _rate(result: Result) -> Iterator[str]:
    rate, workers, limit = sustained_per_s(result), result.daemon["workers"], f"{result.p99_limit_ms:g} ms"
    cost = [run.cpu_us_per_command for run in telling(result) if run.cpu_us_per_command]
    if result.kind == "closed" and result.runs:
        yield (
            f"A closed loop was answered {median(run.per_s for run in result.runs):,.0f} times a second. Its latencies "
            "are not what callers would see, who do not wait for each other."
        )
    elif rate is None:
        if not _is_too_much(result):
            yield "Whether the offered rate can be sustained is not known."
        elif any(run.answered for run in result.measured):
            yield f"The offered rate was not sustained: {_why_not(result)}."
    else:
        shown = "Sustained at most" if found_the_limit(result) else "Sustained at least (no limit was found)"
        latency = histogram_of_runs(telling(result), "latency")
        p99_ns = latency.percentile("99")
        yield (
            f"{shown}: {rate:,.0f} durable commands a second on {counted(workers, 'worker')}, "
            f"{rate / workers:,.0f} a worker, with the 99th percentile of latency within {limit}"
            + (f" (it was {p99_ns / 1e6:.1f} ms)." if p99_ns else ".")
        )
    if cost:
        each = median(cost)
        busy = each / 1e6 * median(run.per_s for run in telling(result)) / workers
        yield (
            f"A command cost {each:.1f} µs of the daemon's CPU at that rate: {busy:.0%} of a core for each worker. "
            + (
                f"At that cost a core that does nothing else is full at {1e6 / each:,.0f} a second."
                if busy >= BUSY
                else "A command costs less where more of them share a sync, so this does not tell when a core is full."
            )
        )


def _cutoffs(result: Result) -> Iterator[str]:
    lateness = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.lateness])
    p50_ns, p99_ns = lateness.percentile("50"), lateness.percentile("99")
    if lateness.total and p50_ns is not None:
        tail = f", 99 % within {p99_ns / 1e6:.1f} ms" if p99_ns is not None else ""
        yield (
            f"Cutoffs: half of {lateness.total:,} reached the endpoint within {p50_ns / 1e6:.1f} ms of "
            f"the exact instant{tail}, the last after {lateness.greatest / 1e6:.0f} ms."
        )
    healthy = histogram_of([pair for run in kept_up(result) for pair in run.cutoffs.healthy_lateness])
    if healthy.total:
        healthy_p99_ns = healthy.percentile("99")
        tail = f"99 % within {healthy_p99_ns / 1e6:.1f} ms, " if healthy_p99_ns is not None else ""
        yield (
            f"Users for whom the endpoint was well, while it was sick for others: {tail}the last of {healthy.total:,} "
            f"cutoffs after {healthy.greatest / 1e6:.0f} ms."
        )
    storms = [run.cutoffs.last_after_s for run in kept_up(result) if run.cutoffs.last_after_s]
    if storms:
        yield (
            f"A storm of {result.workload.storm:,} cutoffs due at one instant was over after {median(storms):.2f} s: "
            f"{result.workload.storm / median(storms):,.0f} a second."
        )
    cost = [run.cpu_us_per_cutoff for run in kept_up(result) if run.cpu_us_per_cutoff]
    if cost:
        yield f"A cutoff cost {median(cost):.0f} µs of the daemon's CPU (less where many are due at once)."


def _needs(result: Result) -> Iterator[str]:
    rows = needs(result)
    if rows:
        yield (
            f"Capacity: a worker takes one core. Planned with {HEADROOM:.0%} of what was sustained, virtual machines "
            f"that each report once in {REPORT_EVERY_S} s need:"
        )
    elif result.kind == "sweep":
        yield "Capacity is not measured: the sweep ended before it found what is too much for the daemon."
    else:
        yield "Capacity is not measured by this run: --sweep raises the rate to what the daemon can, and says it."
    for need in rows:
        memory = "" if need.memory_bytes is None else f", {in_bytes(need.memory_bytes)} if each is an account"
        yield (
            f"  {need.machines:,} virtual machines: {need.per_s:,.0f} commands a second, "
            f"{counted(need.workers, 'worker')}{memory}"
        )
    if any(need.workers > result.daemon["workers"] for need in rows):
        yield (
            f"  (reckoned in proportion beyond the {counted(result.daemon['workers'], 'worker')} measured; a daemon is "
            "one host, so more workers than its cores mean more daemons, each with its own users)"
        )
