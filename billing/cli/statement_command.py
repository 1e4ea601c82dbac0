"""`billing statement USER --from --to`: a period of an account, printed with the proof that it adds up.

The rows come from the running daemon through `history`; what they must add up to is said in
`billing.history.statement`. Exit code 1 where they do not.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from billing.cli.calling import Target, run, target_options
from billing.cli.options import Command, option
from billing.cli.output import as_json, put, say
from billing.cli.showing import look_of, put_table, show, with_zone
from billing.cli.tables import COINS, NUMBER, TEXT, WHOLE, Column
from billing.cli.values import SECOND_NS, coins, moment, value_of
from billing.client.client import Client
from billing.history.statement import NEWEST, Row, Statement, fetch

# The columns: heading, how they are set, and which a narrow terminal leaves out first (the highest number).
_COLUMNS: Final = (
    *(("entry", NUMBER, 5), ("at", WHOLE, 0), ("operation", WHOLE, 1), ("accrued", COINS, 4), ("amount", COINS, 2)),
    *(("balance", COINS, 3), ("message", TEXT, 6), ("request", TEXT, 7)),
)

_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z?)",
)


class Instant(click.ParamType):  # type: ignore[type-arg]
    """A day or an instant of UTC such as `2026-03-01` or `2026-03-01T12:00:00.5Z`, or nanoseconds since the epoch."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds since the epoch, 0 to 2**63-1."""
        if isinstance(value, int):  # a default
            return value
        text = str(value)
        if text.isascii() and text.isdigit() and int(text) <= NEWEST:
            return int(text)
        match = _INSTANT.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            year, month, day, hour, minute, second, fraction, _ = match.groups()
            at = datetime(
                *(int(year), int(month), int(day)), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
            )
            at_ns = int(at.timestamp()) * SECOND_NS + int((fraction or "").ljust(9, "0"))
            if not 0 <= at_ns <= NEWEST:
                raise ValueError
        except ValueError:
            self.fail(f"expected an instant such as 2026-03-01 or 2026-03-01T12:00:00Z, got {text!r}", param, ctx)
        return at_ns


INSTANT = Instant()


@click.command(cls=Command)
@click.argument("user")
@option("--from", "from_ns", type=INSTANT, default=0, help="The first instant, UTC.  [the first entry]")
@option("--to", "to_ns", type=INSTANT, default=NEWEST, help="The instant it ends before, UTC.  [the last entry]")
@target_options
@click.pass_context
def statement(context: click.Context, target: Target, user: str, from_ns: int, to_ns: int) -> None:
    """Shows what USER's account opened with, its entries, what it closed with, and that it adds up."""
    if from_ns > to_ns:
        raise click.BadParameter("lies after --to", param_hint="--from")
    found = _ask(target, user, from_ns, to_ns)
    if target.as_json:
        put(as_json(_as_map(user, found)))
    elif target.as_csv:
        show(target, found.rows)
    else:
        _show(target, user, found)
    if found.faults:
        context.exit(1)


def _ask(target: Target, user: str, from_ns: int, to_ns: int) -> Statement:
    async def work(client: Client) -> Statement:
        async def page(before: int, limit: int) -> list[Row]:
            return await client.history(user, limit=limit, before=before)

        return await fetch(page, from_ns, to_ns)

    return run(target, work, user)


def _as_map(user: str, found: Statement) -> dict[str, Any]:
    return {
        "user_id": user,
        "from_ns": found.from_ns,
        "to_ns": found.to_ns if found.to_ns != NEWEST else None,
        "opening_nanos": found.opening_nanos,
        "accrued_nanos": found.accrued_nanos,
        "amount_nanos": found.amount_nanos,
        "closing_nanos": found.closing_nanos,
        "entries": found.rows,
        "adds_up": not found.faults,
        "faults": found.faults,
    }


def _show(target: Target, user: str, found: Statement) -> None:
    look = look_of(target, exact=target.wide)
    first = found.rows[0]["entry_id"] if found.rows else 1
    begin = "opening" if not found.is_first_known or first == 1 else "opening, nothing older is kept"
    from_text = moment(found.from_ns, look) if found.from_ns else ""
    to_text = moment(found.to_ns, look) if found.to_ns != NEWEST else ""
    lines = [("", from_text, begin, "", "", coins(found.opening_nanos), "", "")]
    lines += [
        (
            str(row["entry_id"]),
            moment(row["at_ns"], look),
            str(row["operation"]),
            coins(-row["accrued_nanos"]) if row["accrued_nanos"] else "",
            coins(row["amount_nanos"]) if row["amount_nanos"] else "",
            coins(row["balance_after_nanos"]),
            value_of("message", row["message"]),
            value_of("request_id", row["request_id"]) if row["request_id"] else "",
        )
        for row in found.rows
    ]
    sums = (coins(-found.accrued_nanos), coins(found.amount_nanos), coins(found.closing_nanos))
    lines.append(("", to_text, "closing", *sums, "", ""))
    cells = list(zip(*lines, strict=True))
    at, moments = with_zone("at", cells[1])
    cells[1] = tuple(moments)
    put_table(
        target,
        [
            Column(at if title == "at" else title, kind, of_it, importance)
            for (title, kind, importance), of_it in zip(_COLUMNS, cells, strict=True)
        ],
    )
    if not found.faults:
        number = f"{len(found.rows):,} entr{'y' if len(found.rows) == 1 else 'ies'}"
        sign = "-" if found.amount_nanos < 0 else "+"
        put(
            f"{number}; they add up: {coins(found.opening_nanos)} - {coins(found.accrued_nanos)} {sign} "
            f"{coins(abs(found.amount_nanos))} = {coins(found.closing_nanos)}"
        )
    for fault in found.faults:
        say(f"does not add up: {fault}")


COMMANDS: dict[str, click.Command] = {"statement": statement}
