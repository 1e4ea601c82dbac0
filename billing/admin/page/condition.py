"""The daemon's faults of now, the worst first. Pure: figures in, sentences out.

The header's pill and the tab's title show the first fault; the list in the header shows all. Each fault has its
beginning and the number of users that it concerns (if these are known), the command that shows more, and the alert
under which the runbook gives the remedy. A tile is amber or red only because of one of these faults, so that the header
never shows "nothing is wrong" beside such a tile. Overrun that lasts some seconds is no fault: every account overruns
between the 2xx of its cutoff and the report of rate 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from billing.admin.figure_sampler import LOOP, SYNC, FigureSampler, Overrun
from billing.admin.page import plots, words
from billing.admin.processes import FOLLOWERS, Usage
from shards.counting import counted
from shards.supervisor.clock_watch import DOUBTFUL, UNFIT

BAD, WARN = "bad", "warn"
OWED_LATE_NS: Final = 5 * 10**9
CLOCK_OFF_NS: Final = 10**9
DISK_SHARE_MIN: Final = 0.1
LOG_SHARE_MAX: Final = 0.7  # of the limit of a stream; at nine tenths of it changes are refused
OVERRUNNING: Final = "billing accounts --overrunning"  # lists the exhausted accounts that still have a rate
OVERDUE: Final = {LOOP: ("Silent", "BillingLoopLag"), SYNC: ("Disk stuck", "BillingSyncStuck")}  # word, alert


class Trouble(NamedTuple):
    """One fault."""

    kind: str  # BAD or WARN
    label: str  # for the pill and the tab: two or three words
    text: str
    alert: str  # the alert whose entry in the runbook gives the remedy; empty if there is none
    command: str  # the command that shows more; empty if there is none


def troubles(sampler: FigureSampler, usage: Usage) -> list[Trouble]:
    """All faults, the worst first."""
    faults = [
        *_shards(sampler),
        *_endpoint(sampler),
        *_disk(sampler, usage),
        *_owed(sampler),
        *_rest(sampler),
    ]
    return sorted(faults, key=lambda trouble: trouble.kind != BAD)


def _shards(sampler: FigureSampler) -> Iterator[Trouble]:
    unserved = sampler.supervisor.unserved()
    shards = len(sampler.supervisor.workers)
    serving = sum(worker.state == "serving" for worker in sampler.supervisor.workers.values())
    held = any(worker.state == "held" for worker in sampler.supervisor.workers.values())
    if unserved:
        text = f"{serving} of {shards} shards are served: {'; '.join(shard.text for shard in unserved)}"
        if all(shard.is_starting for shard in unserved):
            yield Trouble(WARN, "Starting", text, "BillingShardDown", "billing shards")
        else:
            alert = "BillingShardHeld" if held else "BillingShardDown"
            yield Trouble(BAD, "Degraded", text, alert, "billing shards")
    for stall in sampler.overdue():
        label, alert = OVERDUE[stall.what]
        yield Trouble(BAD, label, stall.text, alert, "billing shards")


def _endpoint(sampler: FigureSampler) -> Iterator[Trouble]:
    owed = sampler.total("pending_cutoffs")
    users = sampler.total("users_waiting")
    partly = _partly(sampler)
    for outage in sampler.outages():
        since = f" since {words.clock(outage.since_ns, sampler.clocks.wall_ns())}" if outage.since_ns else ""
        error = f" ({outage.error})" if outage.error else ""
        waiting = f"; {counted(users, 'user')} {'waits' if users == 1 else 'wait'} for a call" if users else ""
        waiting += f" ({partly})" if waiting and partly else ""
        yield Trouble(
            BAD,
            f"{words.number(owed)} owed" if owed else "No endpoint",
            f"{outage.endpoint} has taken no calls{since}{error} and is probed about once a second{waiting}.",
            "BillingEndpointShut",
            "billing cutoffs",
        )


def _disk(sampler: FigureSampler, usage: Usage) -> Iterator[Trouble]:
    full = [str(shard_id) for shard_id, figures in sorted(sampler.figures.items()) if figures.get("no_room")]
    logs = {shard_id: figures for shard_id, figures in sampler.figures.items() if figures.get("log_bytes", -1) >= 0}
    if full:
        text = f"No room for the journal of shard {', '.join(full)}: commands that change anything are refused."
        label, command = ("Log full", "billing cluster status") if logs else ("Disk full", "df -h")
        yield Trouble(BAD, label, text, "BillingDiskFull", command)
    elif filling := [str(shard_id) for shard_id, figures in sorted(logs.items()) if is_nearly_full(figures)]:
        text = f"The log of shard {', '.join(filling)} nears the limit of its stream (max_bytes)."
        yield Trouble(WARN, "Log filling", text, "BillingLogNearlyFull", "billing cluster status")
    if not full and usage.disk_bytes and usage.disk_free_bytes < DISK_SHARE_MIN * usage.disk_bytes:
        free = f"{words.size(usage.disk_free_bytes)} of {words.size(usage.disk_bytes)}"
        yield Trouble(WARN, "Disk filling", f"The disk of the data has {free} left.", "BillingDiskFilling", "df -h")


def is_nearly_full(figures: Mapping[str, Any]) -> bool:
    """Whether a shard's log nears the limit of its stream. `log_limit_bytes` is -1 for a stream without a limit."""
    limit_bytes: int = figures["log_limit_bytes"]
    return 0 < LOG_SHARE_MAX * limit_bytes < int(figures["log_bytes"])


def _owed(sampler: FigureSampler) -> Iterator[Trouble]:
    held = sampler.total("cutoffs_held")
    if held:
        are = "is" if held == 1 else "are"
        text = f"{counted(held, 'cutoff')} {are} held back since the start, until somebody releases them."
        yield Trouble(BAD, f"{words.number(held)} held back", text, "BillingCutoffsHeld", "billing cutoffs release")
    owed, oldest_ns = sampler.total("pending_cutoffs") - held, sampler.top("oldest_owed_ns")  # without held ones
    if owed > 0 and oldest_ns > OWED_LATE_NS and not sampler.outages():
        have = "has" if owed == 1 else "have"
        partly = f" ({answering})" if (answering := _partly(sampler)) else ""
        text = f"{counted(owed, 'user')} {have} not been cut off{partly}, the first for {words.span(oldest_ns)}."
        errors = [figures["cutoff_error"] for figures in sampler.figures.values() if figures.get("cutoff_error")]
        last = f" The last error: {errors[-1]}." if errors else ""
        yield Trouble(BAD, f"{words.number(owed)} owed", text + last, "BillingCutoffsOwed", "billing cutoffs")
    minute = sampler.last_minute()
    if minute.sent and minute.late_p99_ns > plots.BOUND_MS * 10**6:
        text = f"One in a hundred cutoffs of the last minute left {words.late(minute.late_p99_ns)} late or later."
        yield Trouble(WARN, "Late", text, "BillingCutoffsLate", "billing shards")
    elif OWED_LATE_NS >= (waiting_ns := sampler.top("cutoffs_waiting_ns")) > plots.BOUND_MS * 10**6:
        text = f"A cutoff waits for its call, and has done so for {words.span(waiting_ns)}."
        yield Trouble(WARN, "Late", text, "BillingCutoffsLate", "billing cutoffs")


def _partly(sampler: FigureSampler) -> str:
    """How many of the shards the sums cover, in words; empty if all shards answer."""
    answering = sum(bool(figures) for figures in sampler.figures.values())
    return words.part_of(answering, len(sampler.supervisor.workers))


def _rest(sampler: FigureSampler) -> Iterator[Trouble]:
    for shard_id, figures in sorted(sampler.figures.items()):
        for follower in FOLLOWERS:
            started_before = figures.get(f"{follower}_starts", 0) > 1  # the first start takes a while
            if figures.get(f"{follower}_silent_ns"):
                text = f"The {follower} of shard {shard_id} is silent: {figures[f'{follower}_trouble']}."
                command = f"kill -9 {figures[f'{follower}_pid']}"
                yield Trouble(WARN, f"Silent {follower}", text, "BillingFollowerDown", command)
            elif started_before and not figures[f"{follower}_up"]:
                trouble = figures.get(f"{follower}_trouble", "")
                because = f" ({trouble})" if trouble else ""
                text = f"The process of the {follower} of shard {shard_id} does not run{because}."
                yield Trouble(WARN, f"No {follower}", text, "BillingFollowerDown", "journalctl -u billing")
    if not sampler.outages():  # an outage would be the cause, and is listed already
        yield from overrunning(sampler.overrun())
    if classless := sampler.total("unknown_class_accounts"):
        are = "is" if classless == 1 else "are"
        text = f"{counted(classless, 'account')} {are} in a cutoff class that the configuration does not have."
        yield Trouble(WARN, "Class gone", text, "BillingClassUnknown", "billing doctor")
    offset_ns = sampler.supervisor.time.offset_ns
    if abs(offset_ns) > CLOCK_OFF_NS:
        side = "behind" if offset_ns > 0 else "ahead of"
        text = f"Billing time is {words.span(abs(offset_ns))} {side} the wall clock."
        yield Trouble(WARN, "Clock", text, "BillingClockOff", "timedatectl")
    watch = sampler.supervisor.registry.clock_watch
    if watch.state == UNFIT:
        text = f"The clock of this host is unfit to serve by: {watch.judgement.text}."
        yield Trouble(BAD, "Clock unfit", text, "BillingClockUnfit", "chronyc tracking")
    elif watch.state == DOUBTFUL:
        text = f"The clock of this host is doubtful: {watch.judgement.text}."
        yield Trouble(WARN, "Clock doubtful", text, "BillingClockDoubtful", "chronyc tracking")


def overrunning(overrun: Overrun) -> Iterator[Trouble]:
    """The fault that machines of exhausted accounts go on running; none if they have not done so for long."""
    if overrun.is_wrong:
        only = overrun.accounts == 1
        text = (
            f"{counted(overrun.accounts, 'exhausted account')} still {'has' if only else 'have'} a rate "
            f"({'' if only else 'the highest: '}{overrun.dearest}): {words.coins_short(overrun.nanos_per_hour)} coins "
            "an hour that nobody pays."
        )
        yield Trouble(WARN, "Overrun", text, "BillingOverrunGrowing", OVERRUNNING)


def title(faults: list[Trouble], host: str) -> str:
    """The title of the browser's tab. It begins with the worst fault, so that a narrow tab shows it."""
    return f"● {faults[0].label} · billing on {host}" if faults else f"billing on {host}"
