"""The parts of the page, made as markup from the newest figures. Each part has the id of the element that it fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from markupsafe import Markup, escape

from billing import __version__
from billing.admin.alerts import ALERTS, PAGE
from billing.admin.figure_sampler import COARSE_NS, COARSE_ROWS, FINE_ROWS, FigureSampler, Overrun, quantile_of
from billing.admin.page import plots, words
from billing.admin.page.condition import OVERDUE, OVERRUNNING, OWED_LATE_NS, Trouble, title, troubles
from billing.admin.processes import HOST, Usage
from billing.cli.values import instant
from billing.ledger.money import format_coins
from shards.counting import counted

HOUR_NS: Final = 3600 * 10**9
MINUTE_NS: Final = 60 * 10**9
OWED_SHOWN: Final = 8
MOVES_SHOWN: Final = 8
EVENTS_SHOWN: Final = 8


class Answers(NamedTuple):
    """The workers' replies for the page, and the resources that the processes use. A str in the place of a reply is the
    reason why there is none.
    """

    owed: Sequence[Mapping[str, Any]] | str
    coming: Mapping[str, Any] | str
    now_ns: int  # billing time of these replies
    usage: Usage


def parts(sampler: FigureSampler, answers: Answers) -> dict[str, Markup]:
    """All parts that are refreshed, by id. `title` is the title of the tab, as text."""
    faults = troubles(sampler, answers.usage)
    return {
        "title": escape(title(faults, HOST)),
        "state": state(faults),
        "troubles": troubles_list(faults),
        "identity": identity(sampler, answers.usage),
        "tiles": tiles(sampler, answers),
        "lateness": lateness(sampler),
        "owed": owed(sampler, answers),
        "coming": coming(answers),
        "next": following(answers),
        "shards": shards(sampler),
        "recent": recent(sampler),
        "shares": shares(sampler),
        "moves": moves(sampler),
    }


def state(faults: Sequence[Trouble]) -> Markup:
    """One line about the daemon's state: its worst fault, or that nothing is wrong."""
    if not faults:
        return Markup('<span class="pill good">Serving</span> every bucket is served, nothing is wrong')
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return Markup('<span class="pill {}">{}</span>{}').format(faults[0].kind, faults[0].label, more)


def troubles_list(faults: Sequence[Trouble]) -> Markup:
    """The faults, each with the command that shows more and the link to its remedy. Empty if there are none."""
    items = [
        Markup('<li class="{}"><b>{}</b><span class="what">{}</span><span class="do">{}{}</span></li>').format(
            trouble.kind,
            trouble.label,
            trouble.text,
            command(trouble.command) if trouble.command else "",
            Markup('<a href="/runbook#{}">what to do</a>').format(trouble.alert) if trouble.alert else "",
        )
        for trouble in faults
    ]
    return Markup("<ul>{}</ul>").format(Markup("").join(items)) if items else Markup("")


def command(text: str) -> Markup:
    """A command with a button that copies it; a narrow place breaks it between its words."""
    words_of_it = Markup(" ").join(Markup("<span>{}</span>").format(word) for word in text.split(" "))
    return Markup(
        '<span class="command"><code>{}</code><button type="button" class="copy" data-copy="{}">copy</button></span>'
    ).format(words_of_it, text)


def identity(sampler: FigureSampler, usage: Usage) -> Markup:
    """The identity of this daemon: its start, version, process id, memory and disk."""
    now_ns = sampler.clocks.wall_ns()
    main = usage.processes[0] if usage.processes else None
    facts = [
        ("up", f"{words.span(now_ns - sampler.started_ns)}, since {words.clock(sampler.started_ns, now_ns)}"),
        ("version", __version__),
        ("process", str(main.pid) if main else "–"),
        ("memory", f"{words.size(usage.memory_bytes)} in {counted(len(usage.processes), 'process', 'processes')}"),
    ]
    if usage.disk_bytes:
        facts.append(("disk", f"{words.size(usage.disk_free_bytes)} free of {words.size(usage.disk_bytes)}"))
    return Markup("<dl>{}</dl>").format(
        Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in facts)
    )


def period_words(sampler: FigureSampler) -> str:
    """The period that the figures of the last hour cover, in words. It is shorter within an hour of the start."""
    now_ns = sampler.clocks.wall_ns()
    hour = now_ns - sampler.started_ns >= HOUR_NS
    return "in the last hour" if hour else f"since the start at {words.clock(sampler.started_ns, now_ns)}"


def tiles(sampler: FigureSampler, answers: Answers) -> Markup:
    """The row of tiles with the most important figures."""
    fine = list(sampler.fine)
    rate = fine[-1].commands if fine else 0.0
    owing = sampler.total("pending_cutoffs")
    oldest_ns = sampler.top("oldest_owed_ns")
    held = sampler.total("cutoffs_held")
    overrun, growing, connections = sampler.total("overrun_nanos"), sampler.overrun(), sampler.total("connections")
    answering = sum(bool(figures) for figures in sampler.figures.values())
    shards = len(sampler.supervisor.workers)
    all_answer = answering == shards
    partly = words.part_of(answering, shards)
    return Markup("").join(
        (
            _tile(
                "Commands a second",
                words.number(rate) if answering else "–",
                plots.spark([row.commands for row in fine], FINE_ROWS) + partly,
            ),
            _lateness_tile(sampler),
            _tile(
                "Cutoffs owed",
                words.number(owing) if answering else "–",
                partly
                if not all_answer
                else f"{held:,} held back since the start"
                if held
                else f"the oldest for {words.span(oldest_ns)}"
                if owing and oldest_ns >= 0
                else "nothing is owed",
                "bad" if held or (owing and oldest_ns > OWED_LATE_NS) else "",
            ),
            _tile(
                "Overrun, coins",
                words.coins_short(overrun) if answering else "–",
                partly
                if not all_answer
                else overrunning(growing)
                if growing.accounts
                else "used by exhausted accounts before their rate was set to 0"
                if overrun
                else "no exhausted account uses anything",
                "warn" if growing.is_wrong else "",
            ),
            _tile(
                "Due within a minute",
                "–" if isinstance(answers.coming, str) else words.number(_by_minute(answers.coming, answers.now_ns)[0]),
                "no forecast now"
                if isinstance(answers.coming, str)
                else f"{words.number(answers.coming['cutoffs'])} within the hour",
            ),
            _tile(
                "Accounts",
                words.number(sampler.total("accounts")) if answering else "–",
                partly if not all_answer else counted(connections, "connection"),
            ),
        )
    )


def overrunning(overrun: Overrun) -> Markup:
    """The exhausted accounts that still have a rate, and the command that lists them."""
    return Markup(
        '{} more an hour: {} whose rate nobody has set to 0{}<a href="/?user={}" title="{}">{}</a> {}'
    ).format(
        words.coins_short(overrun.nanos_per_hour),
        counted(overrun.accounts, "exhausted account"),
        ": " if overrun.accounts == 1 else "; the highest rate has ",
        quote(overrun.dearest, safe=""),
        overrun.dearest,
        overrun.dearest,
        command(OVERRUNNING),
    )


def _lateness_tile(sampler: FigureSampler) -> Markup:
    """The tile with the lateness of cutoffs. If a call that still waits, even for a connection, has waited longer than
    the 99th percentile of the calls that left, the tile shows its wait instead.
    """
    minute = sampler.last_minute()
    waiting_ns = max(sampler.top("cutoffs_waiting_ns", 0), sampler.top("oldest_owed_ns") if sampler.outages() else 0)
    name = "Cutoff lateness, p99"
    if waiting_ns > max(minute.late_p99_ns, plots.BOUND_MS * 10**6):
        sent = f"{words.number(minute.sent)} left in the last minute" if minute.sent else "none left in the last minute"
        return _tile(name, f"> {words.at_least(waiting_ns)}", f"the first that waits; {sent}", "bad")
    if not minute.sent:
        return _tile(name, "–", "none left in the last minute")
    below = f"median {words.late(minute.late_p50_ns)}, {words.number(minute.sent)} in the last minute"
    kind = "bad" if minute.late_p99_ns > plots.BOUND_MS * 10**6 else ""
    return _tile(name, words.late(minute.late_p99_ns), below, kind)


def _tile(title: str, figure: str, below: str | Markup, kind: str = "") -> Markup:
    return Markup('<div class="tile {}"><h2>{}</h2><p class="figure">{}</p><div class="below">{}</div></div>').format(
        kind, title, figure, below
    )


def lateness(sampler: FigureSampler) -> Markup:
    """The plot of how late cutoffs left in the last hour. The newest slot is the one under way."""
    rows = sampler.last_hour()[-COARSE_ROWS:]
    span_s = COARSE_ROWS * COARSE_NS // 10**9
    plot = plots.lateness([row.late_p50_ns for row in rows], [row.late_p99_ns for row in rows], span_s, COARSE_ROWS)
    sent = sum(row.sent for row in rows)
    worst_ns = max((row.late_p99_ns for row in rows), default=-1)
    count = f"{counted(sent, 'cutoff')} {'was' if sent == 1 else 'were'}"
    text = (
        f"{count} sent {period_words(sampler)}; the worst p99 of ten seconds was {words.late(worst_ns)}."
        if sent
        else f"No cutoff was sent {period_words(sampler)}."
    )
    return plot + Markup(
        '<p class="note"><span class="key p50">median</span> <span class="key p99">99th percentile</span> {}</p>'
    ).format(text)


def owed(sampler: FigureSampler, answers: Answers) -> Markup:
    """The table of cutoffs that have had no 2xx yet."""
    if isinstance(answers.owed, str):
        return Markup('<p class="empty">The list cannot be had now: {}.</p>').format(answers.owed)
    total = sampler.total("pending_cutoffs")
    if not answers.owed:
        return Markup('<p class="empty">Nothing is owed: every cutoff had its 2xx.</p>')
    waits = "waits until the endpoint answers" if sampler.outages() else "waits for its turn"
    rows = Markup("").join(
        Markup(
            '<tr><td class="user">{}</td><td class="n">{}</td><td class="n">{}</td><td class="error">{}</td></tr>'
        ).format(
            row["user_id"],
            words.ago(max(0, answers.now_ns - int(row["exhausted_at_ns"]))),
            row["attempts"],
            "held back until somebody releases it"
            if row.get("held")
            else row["last_error"] or ("being sent" if row["attempts"] else waits),
        )
        for row in answers.owed
    )
    more = total - len(answers.owed)
    also = Markup('<p class="note">and {} more: {}</p>').format(words.number(more), command("billing cutoffs"))
    note = also if more > 0 else ""
    return Markup(
        '<div class="scroll"><table><thead><tr><th>User</th><th class="n">Ran out</th><th class="n">Attempts</th>'
        "<th>Last error</th></tr></thead><tbody>{}</tbody></table></div>{}"
    ).format(rows, note)


def coming(answers: Answers) -> Markup:
    """The plot of how many balances run out within the coming hour, by minute."""
    if isinstance(answers.coming, str):
        return Markup('<p class="empty">There is no forecast now: {}.</p>').format(answers.coming)
    total, forecast = answers.coming["cutoffs"], answers.coming
    if not total:
        return Markup('<p class="empty">No balance runs out within the coming hour, as things stand.</p>')
    plot = plots.bars(
        _by_minute(forecast, answers.now_ns),
        [f"{minute} min" for minute in range(60)],
        "Balances that run out, by minute from now",
    )
    takes = forecast["endpoint_takes_per_second"]
    peak = Markup("Balances that run out, as things stand: <b>{}</b>; at most <b>{}</b> in a second, {}.").format(
        words.number(total),
        words.number(forecast["peak_per_second"]),
        f"in {words.span(max(0, forecast['peak_at_ns'] - answers.now_ns))}",
    )
    endpoint_text = f"The endpoint was seen to take {words.number(takes)} calls a second." if takes else ""
    too_many = bool(takes) and forecast["peak_per_second"] > takes
    return plot + Markup('<p class="note">{} <span class="{}">{}</span></p>').format(
        peak, "alarm" if too_many else "", endpoint_text
    )


def following(answers: Answers) -> Markup:
    """A link to the account whose balance runs out next. Empty if none runs out within the hour."""
    if isinstance(answers.coming, str) or answers.coming["next_user_id"] is None:
        return Markup("")
    user, in_ns = answers.coming["next_user_id"], max(0, answers.coming["next_at_ns"] - answers.now_ns)
    return Markup('<p class="note">Next to run out: <a href="/?user={}">{}</a>, in {}.</p>').format(
        quote(user, safe=""), user, words.span(in_ns)
    )


def _by_minute(forecast: Mapping[str, Any], now_ns: int) -> list[int]:
    """How many balances run out in each of the 60 minutes from now, computed from a forecast that may be some seconds
    old.
    """
    counts = [0] * 60
    for step in forecast["steps"]:
        counts[min(59, max(0, (step["at_ns"] - now_ns + MINUTE_NS // 2) // MINUTE_NS))] += step["cutoffs"]
    return counts


def shards(sampler: FigureSampler) -> Markup:
    """The table of shards, a row each."""
    supervisor = sampler.supervisor
    rows = []
    overdue = {stall.shard_id: OVERDUE[stall.what][0].lower() for stall in reversed(sampler.overdue())}
    for shard_id, worker in sorted(supervisor.workers.items()):
        figures = sampler.figures.get(shard_id, {})
        kind = {"serving": "good", "held": "bad", "down": "bad"}.get(worker.state, "warn")
        sync_ns = quantile_of(figures.get("sync_ns", {"bounds": [], "counts": []}), 0.99)
        done, total = worker.progress
        state_text = (
            f"{worker.state} {100 * done // total} %" if worker.state == "recovering" and total else worker.state
        )
        kind, state_text = ("bad", overdue[shard_id]) if shard_id in overdue else (kind, state_text)
        rows.append(
            Markup(
                '<tr><td><span class="swatch s{}"></span> {}</td><td><span class="pill small {}">{}</span> {}</td>'
                '<td class="n">{}</td><td class="n">{}</td><td class="n">{}</td><td class="n">{}</td>'
                '<td class="n">{}</td><td class="n">{}</td><td class="n">{}</td></tr>'
            ).format(
                shard_id % 8,
                shard_id,
                kind,
                state_text,
                worker.reason or figures.get("no_room", ""),
                worker.pid or "–",
                words.number(worker.starts),
                words.number(len(supervisor.map.buckets_of(shard_id))),
                words.number(figures["accounts"]) if "accounts" in figures else "–",
                words.size(figures["journal_bytes"]) if "journal_bytes" in figures else "–",
                words.span(sync_ns) if sync_ns >= 0 else "–",
                words.span(figures["pause_max_ns"]) if "pause_max_ns" in figures else "–",
            )
        )
    return Markup(
        '<div class="scroll"><table><thead><tr><th>Shard</th><th>State</th><th class="n">Process</th>'
        '<th class="n">Starts</th>'
        '<th class="n">Buckets</th><th class="n">Accounts</th><th class="n">Journal</th><th class="n">Sync p99</th>'
        '<th class="n">Longest pause</th></tr></thead><tbody>{}</tbody></table></div>{}'
    ).format(Markup("").join(rows), logs(sampler.figures))


def logs(by_shard: Mapping[int, Mapping[str, Any]]) -> Markup:
    """The table of logs on servers, a row for each shard as its worker sees the log. Empty if no log is on servers."""
    rows = []
    for shard_id, figures in sorted(by_shard.items()):
        if figures.get("log_bytes", -1) < 0:
            continue
        left_ns, limit_bytes = figures["grant_left_ns"], figures["log_limit_bytes"]
        round_trip_ns = figures["log_round_trip_ns"]
        rows.append(
            Markup(
                '<tr><td><span class="swatch s{}"></span> {}</td><td>{}</td><td class="n">{}</td>'
                '<td class="n">{}</td><td class="n">{}</td><td class="n">{}</td></tr>'
            ).format(
                shard_id % 8,
                shard_id,
                figures["log_leader"] or Markup('<span class="pill small bad">nobody</span>'),
                words.span(round_trip_ns) if round_trip_ns >= 0 else "–",
                words.span(left_ns) if left_ns > 0 else Markup('<span class="pill small bad">none</span>'),
                words.size(figures["log_bytes"]),
                words.size(limit_bytes) if limit_bytes >= 0 else "none",
            )
        )
    if not rows:
        return Markup("")
    return Markup(
        '<h3>Logs on servers</h3><div class="scroll"><table id="logs"><thead><tr><th>Shard</th><th>Led by</th>'
        '<th class="n">Round trip</th><th class="n">Grant left</th><th class="n">Log</th><th class="n">Limit</th>'
        "</tr></thead><tbody>{}</tbody></table></div>"
    ).format(Markup("").join(rows))


def recent(sampler: FigureSampler) -> Markup:
    """The warnings that were logged last, newest first."""
    now_ns = sampler.clocks.wall_ns()
    if not sampler.events:
        since = words.clock(sampler.started_ns, now_ns)
        return Markup('<p class="empty">No warning was logged since the start at {}.</p>').format(since)
    rows, last_advice = [], ""
    for event in islice(reversed(sampler.events), EVENTS_SHOWN):
        of = f"shard {event.shard_id}: " if event.shard_id and "shard" not in event.text else ""
        advice = Markup('<span class="note">{}</span>').format(event.do) if event.do != last_advice else ""
        last_advice = event.do  # advice is shown once for consecutive warnings of one kind
        rows.append(
            Markup('<li class="{}"><time>{}</time><span class="what">{}{}</span>{}</li>').format(
                "warn" if event.level == "warning" else "bad",
                words.clock(event.wall_ns, now_ns),
                of,
                event.text,
                advice,
            )
        )
    return Markup("<ul>{}</ul>").format(Markup("").join(rows))


def shares(sampler: FigureSampler) -> Markup:
    """The bar of how many buckets each shard has."""
    bucket_map = sampler.supervisor.map
    counts = {shard_id: len(bucket_map.buckets_of(shard_id)) for shard_id in sorted(sampler.supervisor.workers)}
    text = ", ".join(f"shard {shard_id}: {words.number(count)}" for shard_id, count in counts.items())
    return plots.shares(counts, text) + Markup('<p class="note">{}</p>').format(text)


def moves(sampler: FigureSampler) -> Markup:
    """The list of the last moves."""
    boot_ns, now_ns = sampler.clocks.boot_ns(), sampler.clocks.wall_ns()
    shown = [
        Markup("<li>bucket <b>{}</b>: shard {} → {}, {}</li>").format(
            move.bucket_id, move.source, move.target, words.ago(boot_ns - move.boot_ns)
        )
        for move in islice(reversed(sampler.moves), MOVES_SHOWN)
    ]
    since = words.clock(sampler.started_ns, now_ns)
    if not shown:
        return Markup('<p class="note">No bucket has moved since the start at {}.</p>').format(since)
    return Markup('<p class="note">{} moved since the start at {}, the latest:</p><ul>{}</ul>').format(
        words.number(sampler.moves_seen), since, Markup("").join(shown)
    )


def account(reply: Mapping[str, Any] | str) -> Markup:
    """One account. Its numbers also stand in data attributes, from which the script counts the balance down."""
    if isinstance(reply, str):
        return Markup('<p class="empty">{}</p>').format(reply)
    at_ns, ends_ns, rate = reply["at_ns"], reply["exhausts_at_ns"], reply["rate_nanos_per_hour"]
    good = reply["state"] == "active"
    if ends_ns is not None:
        until = Markup('runs out in <span id="runway">{}</span><b class="instant">{}</b>').format(
            words.span(max(0, ends_ns - at_ns)), instant(ends_ns)
        )
    else:
        until = Markup("is not being spent" if good and not rate else "lasts for centuries" if good else "has run out")
    cutoff = reply.get("cutoff")
    if not good and cutoff:
        until = Markup('ran out <b class="instant">{}</b>').format(instant(cutoff["exhausted_at_ns"]))
    rows = [
        ("Rate", f"{_grouped(rate)} an hour"),
        ("Balance", Markup('<span id="balance">{}</span>').format(_grouped(reply["balance_nanos"]))),
        ("Credit limit", _grouped(reply["credit_limit_nanos"])),
        ("Held", _grouped(reply["holds_nanos"])),
        ("Overrun", _grouped(reply["overrun_nanos"])),
        ("Bucket", str(reply["bucket_id"])),
        ("Last cutoff", _last_cutoff(cutoff) if cutoff else "none"),
    ]
    return Markup(
        '<div class="account" data-available="{}" data-balance="{}" data-rate="{}" data-at="{}" data-ends="{}" '
        'data-state="{}">'
        '<p><span class="pill {}">{}</span> <b class="user">{}</b></p>'
        '<p class="figure" id="ticking" aria-label="available coins">{}</p><p>available; {}</p><dl>{}</dl></div>'
    ).format(
        reply["available_nanos"], reply["balance_nanos"], rate, at_ns, ends_ns or "", reply["state"],
        "good" if good else "bad", reply["state"], reply["user_id"], _grouped(reply["available_nanos"]), until,
        Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in rows),
    )  # fmt: skip


def _grouped(nanos: int) -> str:
    """Exact coins, with a comma between thousands."""
    integer, point, rest = format_coins(nanos).partition(".")
    return f"{int(integer):,}{point}{rest}" if integer not in ("-0",) else f"-0{point}{rest}"


def _last_cutoff(cutoff: Mapping[str, Any]) -> str:
    attempts = cutoff["attempts"]
    if not attempts:
        return {
            "pending": "owed, not sent yet",
            "superseded": "superseded before it was sent",
            "in_grace": "in grace",
        }.get(cutoff["status"], str(cutoff["status"]))
    delivered_ns = cutoff.get("delivered_at_ns")
    late = "" if delivered_ns is None else f" {words.late(delivered_ns - cutoff['exhausted_at_ns'])} late"
    return f"{cutoff['status']}{late} after {counted(attempts, 'attempt')}"


def runbook() -> Markup:
    """The meaning and the remedy of each alert."""
    sections = [
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
    links = Markup(" · ").join(Markup('<a href="#{}">{}</a>').format(alert.name, alert.name) for alert in ALERTS)
    contents = Markup('<nav class="card full" aria-label="Contents"><h2>Contents</h2><p>{}</p></nav>').format(links)
    return contents + Markup("").join(sections)


def _code(text: str) -> Markup:
    """The text as markup; pieces between backquotes become `<code>` elements."""
    pieces = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else Markup("{}").format(piece)
        for index, piece in enumerate(pieces)
    )
