"""The parts of the page: what is known now, as markup. Each part is the content of the element of that id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from billing.admin.alerts import ALERTS, PAGE
from billing.admin.figure_sampler import COARSE_NS, COARSE_ROWS, FINE_ROWS, FigureSampler, quantile_ns
from billing.admin.page import plots, words
from billing.cli.showing import instant
from billing.ledger.money import format_coins
from shards.system.clock import boot_now_ns

HOUR_NS: Final = 3600 * 10**9
MINUTE_NS: Final = 60 * 10**9
OWED_SHOWN: Final = 20
MOVES_SHOWN: Final = 8
OWED_LATE_NS: Final = 5 * 10**9


class Asked(NamedTuple):
    """What the workers answered for the page; a text says why there is no answer."""

    owed: Sequence[Mapping[str, Any]] | str
    coming: Mapping[str, Any] | str
    now_ns: int  # billing time of these answers


def parts(sampler: FigureSampler, asked: Asked) -> dict[str, Markup]:
    """All parts that change by themselves, by id."""
    return {
        "state": state(sampler),
        "tiles": tiles(sampler, asked),
        "lateness": lateness(sampler),
        "owed": owed(sampler, asked),
        "coming": coming(asked),
        "shards": shards(sampler),
        "moves": moves(sampler),
    }


def state(sampler: FigureSampler) -> Markup:
    """One line: how the daemon is."""
    reasons = [*sampler.supervisor.ready_reasons(), *sampler.overdue()]
    if not reasons:
        return Markup('<span class="pill good">Serving</span> every bucket is served')
    kind, word = (
        ("warn", "Starting")
        if all("recover" in one or "starting" in one for one in reasons)
        else (
            "bad",
            "Degraded",
        )
    )
    return Markup('<span class="pill {}">{}</span> {}').format(kind, word, "; ".join(reasons))


def tiles(sampler: FigureSampler, asked: Asked) -> Markup:
    """The figures one looks at first."""
    fine = list(sampler.fine)
    rate = fine[-1].commands if fine else 0.0
    minute = sampler.last_minute()
    owing = sampler.total("pending_cutoffs")
    oldest_ns = sampler.top("oldest_owed_ns")
    held = sampler.total("cutoffs_held")
    overrun, growing = sampler.total("overrun_nanos"), sampler.total("overrun_nanos_per_hour")
    return Markup("").join(
        (
            _tile(
                "Commands a second",
                words.number(rate),
                plots.spark([row.commands for row in fine], FINE_ROWS),
            ),
            _tile(
                "Cutoff lateness, p99",
                words.span(minute.late_p99_ns) if minute.sent else "–",
                f"median {words.span(minute.late_p50_ns)}, {words.number(minute.sent)} in the last minute"
                if minute.sent
                else "none was due in the last minute",
                "bad" if minute.late_p99_ns > plots.BOUND_MS * 10**6 else "",
            ),
            _tile(
                "Cutoffs owed",
                words.number(owing),
                f"{held} held back at the start"
                if held
                else f"the oldest for {words.span(oldest_ns)}"
                if owing and oldest_ns >= 0
                else "nothing is owed",
                "bad" if held or (owing and oldest_ns > OWED_LATE_NS) else "",
            ),
            _tile(
                "Overrun, coins",
                words.coins(overrun),
                f"and {words.coins(growing)} more an hour" if growing else "not growing",
                "warn" if growing else "",
            ),
            _tile(
                "Due within a minute",
                "–" if isinstance(asked.coming, str) else words.number(_by_minute(asked.coming, asked.now_ns)[0]),
                "no forecast now"
                if isinstance(asked.coming, str)
                else f"{words.number(asked.coming['cutoffs'])} within the hour",
            ),
            _tile(
                "Accounts",
                words.number(sampler.total("accounts")),
                f"{words.number(sampler.total('connections'))} connections",
            ),
        )
    )


def _tile(title: str, figure: str, below: str | Markup, kind: str = "") -> Markup:
    return Markup('<div class="tile {}"><h2>{}</h2><p class="figure">{}</p><div class="below">{}</div></div>').format(
        kind, title, figure, below
    )


def lateness(sampler: FigureSampler) -> Markup:
    """How late cutoffs left, over the last hour; the newest slot is the one under way."""
    rows = list(sampler.coarse)
    span_s = COARSE_ROWS * COARSE_NS // 10**9
    plot = plots.lateness([row.late_p50_ns for row in rows], [row.late_p99_ns for row in rows], span_s, COARSE_ROWS)
    sent = sum(row.sent for row in rows)
    worst_ns = max((row.late_p99_ns for row in rows), default=-1)
    text = (
        f"{words.number(sent)} cutoffs were sent in this hour; the worst p99 of ten seconds was {words.span(worst_ns)}."
        if sent
        else "No cutoff was sent in this hour."
    )
    return plot + Markup(
        '<p class="note"><span class="key p50">median</span> <span class="key p99">99th percentile</span> {}</p>'
    ).format(text)


def owed(sampler: FigureSampler, asked: Asked) -> Markup:
    """Cutoffs that have not had their 2xx."""
    if isinstance(asked.owed, str):
        return Markup('<p class="empty">{}</p>').format(asked.owed)
    total = sampler.total("pending_cutoffs")
    if not asked.owed:
        return Markup('<p class="empty">Nothing is owed: every cutoff had its 2xx.</p>')
    rows = Markup("").join(
        Markup(
            '<tr><td class="user">{}</td><td class="n">{}</td><td class="n">{}</td><td class="error">{}</td></tr>'
        ).format(
            row["user_id"],
            words.ago(max(0, asked.now_ns - int(row["exhausted_at_ns"]))),
            row["attempts"],
            row["last_error"] or ("being sent" if row["attempts"] else "waits for its turn"),
        )
        for row in asked.owed
    )
    more = total - len(asked.owed)
    note = Markup('<p class="note">and {} more</p>').format(words.number(more)) if more > 0 else ""
    return Markup(
        '<div class="scroll"><table><thead><tr><th>User</th><th class="n">Ran dry</th><th class="n">Attempts</th>'
        "<th>Last error</th></tr></thead><tbody>{}</tbody></table></div>{}"
    ).format(rows, note)


def coming(asked: Asked) -> Markup:
    """How many balances run out within the hour, by minute."""
    if isinstance(asked.coming, str):
        return Markup('<p class="empty">There is no forecast now: {}</p>').format(asked.coming)
    total, told = asked.coming["cutoffs"], asked.coming
    if not total:
        return Markup('<p class="empty">No balance runs out within the coming hour, as things stand.</p>')
    plot = plots.bars(
        _by_minute(told, asked.now_ns),
        [f"{minute} min" for minute in range(60)],
        "Balances that run out, by minute from now",
    )
    takes = told["endpoint_takes_per_second"]
    peak = Markup("Balances that run out, as things stand: <b>{}</b>; at most <b>{}</b> in a second, {}.").format(
        words.number(total),
        words.number(told["peak_per_second"]),
        f"in {words.span(max(0, told['peak_at_ns'] - asked.now_ns))}",
    )
    seen = f"The endpoint was seen to take {words.number(takes)} calls a second." if takes else ""
    too_many = bool(takes) and told["peak_per_second"] > takes
    return plot + Markup('<p class="note">{} <span class="{}">{}</span></p>').format(
        peak, "alarm" if too_many else "", seen
    )


def _by_minute(told: Mapping[str, Any], now_ns: int) -> list[int]:
    """How many run out in each of the 60 minutes from now; a forecast is some seconds old."""
    counts = [0] * 60
    for step in told["steps"]:
        counts[min(59, max(0, (step["at_ns"] - now_ns + MINUTE_NS // 2) // MINUTE_NS))] += step["cutoffs"]
    return counts


def shards(sampler: FigureSampler) -> Markup:
    """A row for each shard."""
    supervisor = sampler.supervisor
    rows = []
    for shard_id, worker in sorted(supervisor.workers.items()):
        figures = sampler.figures.get(shard_id, {})
        kind = {"serving": "good", "held": "bad", "down": "bad"}.get(worker.state, "warn")
        sync = figures.get("sync_ns", {"bounds": [], "counts": []})
        sync_ns = quantile_ns(sync["bounds"], sync["counts"], 0.99)
        done, whole = worker.progress
        told = f"{worker.state} {100 * done // whole} %" if worker.state == "recovering" and whole else worker.state
        rows.append(
            Markup(
                '<tr><td><span class="swatch s{}"></span> {}</td><td><span class="pill small {}">{}</span> {}</td>'
                '<td class="n">{}</td><td class="n">{}</td><td class="n">{}</td><td class="n">{}</td>'
                '<td class="n">{}</td><td class="n">{}</td></tr>'
            ).format(
                shard_id % 8,
                shard_id,
                kind,
                told,
                worker.reason or figures.get("no_room", ""),
                worker.pid or "–",
                words.number(len(supervisor.map.buckets_of(shard_id))),
                words.number(figures.get("accounts", 0)),
                words.size(figures.get("journal_bytes", 0)),
                words.span(sync_ns) if sync_ns >= 0 else "–",
                words.span(figures.get("pause_max_ns", 0)),
            )
        )
    return Markup(
        '<div class="scroll"><table><thead><tr><th>Shard</th><th>State</th><th class="n">Process</th>'
        '<th class="n">Buckets</th><th class="n">Accounts</th><th class="n">Journal</th><th class="n">Sync p99</th>'
        '<th class="n">Longest pause</th></tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup("").join(rows))


def moves(sampler: FigureSampler) -> Markup:
    """The moves that were seen last."""
    now_ns = boot_now_ns()
    shown = [
        Markup("<li>bucket <b>{}</b>: shard {} → {}, {}</li>").format(
            one.bucket_id, one.source, one.target, words.ago(now_ns - one.boot_ns)
        )
        for one in islice(reversed(sampler.moves), MOVES_SHOWN)
    ]
    if not shown:
        return Markup('<p class="note">No bucket has moved since the start. A cell lights up when it does.</p>')
    return Markup('<p class="note">{} moved since the start, the latest:</p><ul>{}</ul>').format(
        sampler.moves_seen, Markup("").join(shown)
    )


def account(asked: Mapping[str, Any] | str) -> Markup:
    """One account; its numbers stand in data attributes, too, for the script to count down from."""
    if isinstance(asked, str):
        return Markup('<p class="empty">{}</p>').format(asked)
    at_ns, ends_ns, rate = asked["at_ns"], asked["exhausts_at_ns"], asked["rate_nanos_per_hour"]
    good = asked["state"] == "active"
    if ends_ns is not None:
        until = Markup('runs out in <span id="runway">{}</span>, at <b class="instant">{}</b>').format(
            words.span(max(0, ends_ns - at_ns)), instant(ends_ns)
        )
    else:
        until = Markup("does not run out" if good else "has run out")
    cutoff = asked.get("cutoff")
    rows = [
        ("Rate", f"{format_coins(rate)} an hour"),
        ("Balance", format_coins(asked["balance_nanos"])),
        ("Credit limit", format_coins(asked["credit_limit_nanos"])),
        ("Held", format_coins(asked["holds_nanos"])),
        ("Overrun", format_coins(asked["overrun_nanos"])),
        ("Bucket", str(asked["bucket_id"])),
        ("Last cutoff", f"{cutoff['status']}, {cutoff['attempts']} attempts" if cutoff else "none"),
    ]
    return Markup(
        '<div class="account" data-available="{}" data-rate="{}" data-at="{}" data-ends="{}" data-state="{}">'
        '<p><span class="pill {}">{}</span> <b class="user">{}</b></p>'
        '<p class="figure" id="ticking" aria-label="available coins">{}</p><p>available; {}</p><dl>{}</dl></div>'
    ).format(
        asked["available_nanos"], rate, at_ns, ends_ns or "", asked["state"],
        "good" if good else "bad", asked["state"], asked["user_id"], format_coins(asked["available_nanos"]), until,
        Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in rows),
    )  # fmt: skip


def runbook() -> Markup:
    """What each alert means and what to do."""
    made = [
        Markup(
            '<section class="card full" id="{}"><h2>{} <span class="pill small {}">{}</span></h2><p>{}</p>'
            '<p><b>Do:</b> {}</p><p class="note"><code>{}</code>, for {}</p></section>'
        ).format(
            alert.name,
            alert.name,
            "bad" if alert.severity == PAGE else "warn",
            alert.severity,
            _code(alert.meaning),
            _code(alert.action),
            alert.expression,
            alert.lasting,
        )
        for alert in ALERTS
    ]
    return Markup("").join(made)


def _code(text: str) -> Markup:
    """What stands between backquotes, as code."""
    pieces = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else Markup("{}").format(piece)
        for index, piece in enumerate(pieces)
    )
