"""`billing statement USER`: prints a period of an account in such a way that a person can add it up by hand.

The daemon's reply to `statement` has the opening balance, the closing balance and the accrual of the period. If the
period has more entries than one reply holds, the command reads the rest page by page with `history`. It then checks the
rows again: each must follow from the row before, the first from the opening balance, and the last must lead to the
closing balance. It exits with 1 if they do not.

An accrual is in the row of the entry that ends it; the accrual after the last entry is in the row of the closing
balance. So the columns of a period sum to its totals, even if the period begins or ends between two entries.
"""

from __future__ import annotations

from datetime import tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import click

from billing.api.methods import HISTORY_ROWS_MAX
from billing.api.shapes import RESOURCE_LINE
from billing.cli.calling import Target, run, sendable, target_options
from billing.cli.options import Command, option
from billing.cli.output import as_json, put, say
from billing.cli.periods import ANY_INSTANT_NS, DAY, MONTH, YEAR, Span, is_relative, parse_period
from billing.cli.showing import look_of, put_table, show, with_zone
from billing.cli.tables import COINS, NUMBER, TEXT, WHOLE, Column
from billing.cli.values import coins, moment, value_of
from billing.client.client import Client
from billing.ledger.money import INT64_MAX
from shards.counting import counted

Row = dict[str, Any]

# The columns: heading, kind, and rank; a narrow terminal leaves out the column with the highest rank first.
_COLUMNS: Final = (
    *(("entry", NUMBER, 5), ("at", WHOLE, 0), ("operation", WHOLE, 1), ("accrued", COINS, 4), ("amount", COINS, 2)),
    *(("balance", COINS, 3), ("resource", TEXT, 6), ("message", TEXT, 7), ("request", TEXT, 8), ("actor", TEXT, 9)),
)


_NO_ENTRIES: Final = ("missing", "opening")  # the operations of rows that replace entries which the history lacks


class PeriodOptions(NamedTuple):
    """The options that name a period; None for one that was not given."""

    from_text: str | None
    to_text: str | None
    month: str | None
    day: str | None

    def bounds(self, zone: tzinfo | None, now_ns: int) -> tuple[int, int]:
        """The first instant of the period, and the instant before which it ends. Raises click.BadParameter."""
        for name, text, kinds in (("--month", self.month, (MONTH, YEAR)), ("--day", self.day, (DAY,))):
            if text is not None:
                span = span_of(name, text, zone, now_ns)
                if span.kind not in kinds:
                    raise click.BadParameter(f"{text!r} is no {name.lstrip('-')}", param_hint=name)
                return span.from_ns, span.to_ns
        from_ns = 0 if self.from_text is None else span_of("--from", self.from_text, zone, now_ns).from_ns
        to_ns = INT64_MAX if self.to_text is None else span_of("--to", self.to_text, zone, now_ns).from_ns
        if self.to_text is not None and from_ns > to_ns:
            to_ns = span_of("--to", self.to_text, zone, now_ns, behind_ns=from_ns).from_ns
        if from_ns > to_ns:
            raise click.BadParameter("lies after --to", param_hint="--from")
        return from_ns, to_ns

    @property
    def has_end(self) -> bool:
        """Whether an option names the end of the period."""
        return any(text is not None for text in self[1:])

    @property
    def is_relative(self) -> bool:
        """Whether the period depends on the current time."""
        return any(text is not None and is_relative(text) for text in self)


def span_of(name: str, text: str, zone: tzinfo | None, now_ns: int, behind_ns: int | None = None) -> Span:
    """The period that the text of the option `name` names; see `parse_period`. Raises click.BadParameter."""
    try:
        return parse_period(text, zone, now_ns, behind_ns)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


@click.command(cls=Command)
@click.argument("user")
@option("--from", "from_text", metavar="WHEN", help="The first instant: 2026-11-01, november, today.  [the beginning]")
@option("--to", "to_text", metavar="WHEN", help="The instant it ends before, in the same words.  [now]")
@option("--month", metavar="MONTH", help="A whole month, as 2026-11, november or last month; or a year.")
@option("--day", metavar="DAY", help="A whole day, as 2026-11-30, today, yesterday or monday.")
@option("--by", type=click.Choice(["resource"]), help="Itemises what accrued by rate line.")
@target_options
@click.pass_context
def statement(
    context: click.Context,
    target: Target,
    user: str,
    from_text: str | None,
    to_text: str | None,
    month: str | None,
    day: str | None,
    by: str | None,
) -> None:
    """Shows USER's opening balance, entries and closing balance, and that they add up."""
    period = PeriodOptions(from_text, to_text, month, day)
    if sum((month is not None, day is not None, from_text is not None or to_text is not None)) > 1:
        raise click.UsageError("only one of --month, --day, and --from with --to can be given")
    zone = ZoneInfo(target.zone) if target.zone is not None else None
    _check_words(period, zone)
    from_ns, reply, rows = _ask(target, user, period, zone, by)
    faults = faults_of(reply, rows)
    if target.as_json:
        put(as_json({**reply, "entries": rows, "adds_up": not faults, "faults": faults}))
    elif target.as_csv:
        lines = reply["resources"] if by else csv_rows(reply, rows)
        show(target, lines, columns=[field.name for field in RESOURCE_LINE.fields])
    else:
        _show(target, reply, rows, faults)
    look = look_of(target, exact=target.wide)
    if reply["from_ns"] < from_ns:
        say(f"billing: {moment(from_ns, look)}, where the period begins, is yet to come: this is how {user} stands now")
    elif reply["up_to_now"] and target.as_csv and period.has_end:
        say(f"billing: the period goes up to now, {moment(reply['to_ns'], look)}")
    if faults:
        context.exit(1)


def _check_words(period: PeriodOptions, zone: tzinfo | None) -> None:
    """Checks the texts of the options before the first call to the daemon. Raises click.BadParameter."""
    if not period.is_relative:
        period.bounds(zone, ANY_INSTANT_NS)
    for name, text in zip(("--from", "--to", "--month", "--day"), period, strict=True):
        if text is not None:
            span_of(name, text, zone, ANY_INSTANT_NS)


def _ask(
    target: Target, user: str, period: PeriodOptions, zone: tzinfo | None, by: str | None
) -> tuple[int, Row, list[Row]]:
    """(the first instant that was asked for, the daemon's reply, all entries of the period, oldest first)."""

    async def work(client: Client) -> tuple[int, Row, list[Row]]:
        now_ns = (await client.server_info())["now_ns"] if period.is_relative else ANY_INSTANT_NS
        from_ns, to_ns = period.bounds(zone, now_ns)
        reply: Row = await client.call("statement", sendable(user), from_ns, to_ns, by=by)
        rows: list[Row] = list(reply["entries"])
        last_id = reply["last_entry_id"]
        later: list[Row] = []
        while (missing := reply["entries_count"] - sum(map(is_entry, rows)) - sum(map(is_entry, later))) > 0:
            before = later[-1]["entry_id"] if later else last_id + 1
            wanted = min(HISTORY_ROWS_MAX, missing)
            page = await client.history(user, limit=wanted, before=before)
            later += [row for row in page if row["entry_id"] > rows[-1]["entry_id"]]
            if not page or page[-1]["entry_id"] <= rows[-1]["entry_id"]:
                break
        return from_ns, reply, rows + later[::-1]

    return run(target, work, user)


# -- checks ------------------------------------------------------------------------------------------------------------


def is_entry(row: Row) -> bool:
    """Whether a row is an entry, not the replacement of entries that the history lacks."""
    return row["operation"] not in _NO_ENTRIES


def faults_of(reply: Row, rows: list[Row]) -> list[str]:
    """A text for each row, and each sum of the period, that does not add up; empty if all add up."""
    faults = []
    balance = reply["opening_nanos"]
    last_id, last_ns = 0, reply["from_ns"]
    amounts = 0
    for row in rows:
        entry_id, accrued, amount = row["entry_id"], row["accrued_nanos"], row["amount_nanos"]
        before, after = row["balance_before_nanos"], row["balance_after_nanos"]
        if not last_id:
            accrued = balance - before  # only the part within the period, or after the entries that the history lacks
        if accrued < 0:
            faults.append(f"entry {entry_id}: time gave {-accrued} nanos instead of taking")
        if balance - accrued != before:
            faults.append(
                f"entry {entry_id}: {balance} nanos before it, {accrued} accrued, but it starts from {before}"
            )
        if before + amount != after:
            faults.append(f"entry {entry_id}: {before} and {amount} nanos do not make {after}")
        if last_id and is_entry(row) and entry_id != last_id + 1:
            faults.append(f"entry {entry_id} comes after entry {last_id}")
        if not last_ns <= row["at_ns"] < reply["to_ns"]:
            faults.append(f"entry {entry_id} lies out of its place in time")
        balance, last_id, last_ns = after, entry_id if is_entry(row) else 0, row["at_ns"]
        amounts += amount
    came = sum(map(is_entry, rows))
    if came != reply["entries_count"]:
        faults.append(f"{reply['entries_count']} entries are in the period, {came} came")
    opening, closing = reply["opening_nanos"], reply["closing_nanos"]
    added, removed, accrued = reply["credits_nanos"], reply["debits_nanos"], reply["accrued_nanos"]
    if reply["whole_from_ns"] is None and amounts != added - removed:
        faults.append(f"the entries sum to {amounts} nanos, not to {added} - {removed}")
    if opening + added - removed - accrued != closing:
        faults.append(f"{opening} + {added} - {removed} - {accrued} nanos are not the closing balance, {closing}")
    if rows and closing > balance:
        faults.append(f"{balance} nanos behind the last entry, but the period closes with {closing}")
    exact = {name: int(text) for name, text in reply["exact"].items()}
    if exact["opening"] + exact["credits"] - exact["debits"] - exact["accrued"] != exact["closing"]:
        faults.append("the exact sums do not make the exact closing balance")
    if reply["resources"] is not None:
        by_line = sum(int(line["exact_accrued"]) for line in reply["resources"])
        if by_line != exact["accrued"]:
            faults.append(f"the lines sum to {by_line} internal units, the account accrued {exact['accrued']}")
    return faults


# -- printing ----------------------------------------------------------------------------------------------------------


def csv_rows(reply: Row, rows: list[Row]) -> list[Row]:
    """A row for the opening, each entry, and the closing. The columns accrued and amount sum to the period's totals."""
    empty = dict.fromkeys(("entry_id", "resource", "message", "request_id", "actor"))
    opening = reply["opening_nanos"]
    lines = [
        {"at_ns": _opens_at_ns(reply, rows), "operation": "opening", "accrued_nanos": 0, "amount_nanos": 0,
         "balance_nanos": opening, **empty}
    ]  # fmt: skip
    balance = opening
    for row in rows:
        lines.append(
            {
                "at_ns": row["at_ns"],
                "operation": row["operation"],
                "accrued_nanos": balance - row["balance_before_nanos"],
                "amount_nanos": row["amount_nanos"],
                "balance_nanos": row["balance_after_nanos"],
                **{name: row[name] for name in empty},
            }
        )
        balance = row["balance_after_nanos"]
    closing = reply["closing_nanos"]
    lines.append(
        {"at_ns": reply["to_ns"], "operation": "closing", "accrued_nanos": balance - closing, "amount_nanos": 0,
         "balance_nanos": closing, **empty}
    )  # fmt: skip
    return lines


def _opens_at_ns(reply: Row, rows: list[Row]) -> int | None:
    """The begin of the period. For a period from 0 it is the account's first entry; None if that entry is lost."""
    if reply["from_ns"]:
        return int(reply["from_ns"])
    return int(rows[0]["at_ns"]) if rows and rows[0]["entry_id"] == 1 else None


def _show(target: Target, reply: Row, rows: list[Row], faults: list[str]) -> None:
    look = look_of(target, exact=target.wide)
    lines = [
        (
            "" if line["entry_id"] is None else str(line["entry_id"]),
            moment(line["at_ns"], look) if line["at_ns"] else "",
            str(line["operation"]),
            coins(line["accrued_nanos"]) if line["accrued_nanos"] else "",
            coins(line["amount_nanos"]) if line["amount_nanos"] else "",
            coins(line["balance_nanos"]),
            *(value_of(name, line[name]) if line[name] else "" for name in ("resource", "message", "request_id")),
            value_of("actor", line["actor"]) if line["actor"] else "",
        )
        for line in csv_rows(reply, rows)
    ]
    cells = list(zip(*lines, strict=True))
    at, moments = with_zone("at", cells[1])
    cells[1] = tuple(moments)
    put_table(
        target,
        [
            Column(at if title == "at" else title, kind, of_it, importance)
            for (title, kind, importance), of_it in zip(_COLUMNS, cells, strict=True)
            if title in ("entry", "at", "operation", "accrued", "amount", "balance") or any(of_it)
        ],
    )
    if reply["resources"] is not None:
        put("")
        _show_lines(target, reply)
    number = counted(reply["entries_count"], "entry", "entries")
    sums = f"{coins(reply['opening_nanos'])} + {coins(reply['credits_nanos'])} - {coins(reply['debits_nanos'])}"
    if reply["up_to_now"]:
        put(f"The period goes up to now, {moment(reply['to_ns'], look)}.")
    if reply["expired_nanos"]:
        put(f"Of what entries took, {coins(reply['expired_nanos'])} coins were credit that expired.")
    if reply["whole_from_ns"] is not None:
        put(f"The history is not whole before {moment(reply['whole_from_ns'], look)}: what it lacks is not itemised.")
    if not faults:
        put(
            f"{number}; they add up: {sums} - {coins(reply['accrued_nanos'])} accrued = {coins(reply['closing_nanos'])}"
        )
    for fault in faults:
        say(f"does not add up: {fault}")


def _show_lines(target: Target, reply: Row) -> None:
    """Prints a table of the amount that each rate line has spent."""
    lines = reply["resources"]
    names = ["(not known)" if line["resource"] is None else value_of("resource", line["resource"]) for line in lines]
    columns = [
        Column("resource", TEXT, [*(name or "(unnamed)" for name in names), "all"], 0),
        Column("accrued", COINS, [*(coins(line["accrued_nanos"]) for line in lines), coins(reply["accrued_nanos"])], 1),
        Column(
            "rate at the end, per hour",
            COINS,
            [
                *(coins(line["line_rate_nanos_per_hour"]) for line in lines),
                coins(sum(line["line_rate_nanos_per_hour"] for line in lines)),
            ],
            2,
        ),
    ]
    put_table(target, columns)


COMMANDS: dict[str, click.Command] = {"statement": statement}
