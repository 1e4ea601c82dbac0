"""`billing statement USER --from --to`: a period of an account, printed with the proof that it adds up.

The rows come from the running daemon through `history`; what they must add up to is said in
`billing.history.statement`. Exit code 1 where they do not.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from billing.cli.calling import CommandRefused, Target, target_options
from billing.cli.showing import SECOND_NS, instant, print_table, value_of
from billing.client.client import Client
from billing.client.errors import BillingError
from billing.history.statement import NEWEST, Row, Statement, fetch
from billing.ledger.money import format_coins

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


@click.command(context_settings={"max_content_width": 120})
@click.argument("user")
@click.option("--from", "from_ns", type=INSTANT, default=0, help="The first instant, UTC.  [the first entry]")
@click.option("--to", "to_ns", type=INSTANT, default=NEWEST, help="The instant it ends before, UTC.  [the last entry]")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Calls the daemon where this configuration listens, instead of --address.",
)
@target_options
@click.pass_context
def statement(context: click.Context, target: Target, user: str, from_ns: int, to_ns: int, file: Path | None) -> None:
    """Shows what USER's account opened with, its entries, what it closed with, and that it adds up."""
    if from_ns > to_ns:
        raise click.BadParameter("lies after --to", param_hint="--from")
    if file is not None:
        if context.get_parameter_source("address") == ParameterSource.COMMANDLINE:
            raise click.UsageError("--config and --address cannot both be given")
        target = target._replace(address=_address_in(file))
    found = _ask(target, user, from_ns, to_ns)
    if target.as_json:
        click.echo(json.dumps(_as_map(user, found), ensure_ascii=False, default=bytes.hex))
    else:
        _show(user, found)
    if found.faults:
        context.exit(1)


def _address_in(file: Path) -> str:
    """Where the daemon of this configuration can be called. Raises ConfigError."""
    from billing.config.load import load

    rpc = load(file, os.environ).config.rpc
    return rpc.listen or f"unix:{rpc.unix_socket}"


def _ask(target: Target, user: str, from_ns: int, to_ns: int) -> Statement:
    async def call() -> Statement:
        client = Client(target.address, token=target.token, timeout_s=target.timeout_s)

        async def page(before: int, limit: int) -> list[Row]:
            return await client.history(user, limit=limit, before=before)

        try:
            return await fetch(page, from_ns, to_ns)
        finally:
            client.close()

    try:
        return asyncio.run(call())
    except BillingError as error:
        raise CommandRefused(error, target.as_json) from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--address") from None


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


def _show(user: str, found: Statement) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("entry", "at", "operation", "accrued", "amount", "balance", "message", "request"):
        whole = title in ("accrued", "amount", "balance")  # of a sum no digit is ever left out
        table.add_column(title, justify="right" if whole else "left", no_wrap=whole, overflow="fold")
    first = found.rows[0]["entry_id"] if found.rows else 1
    begin = "opening" if not found.is_first_known or first == 1 else "opening, nothing older is kept"
    table.add_row("", instant(found.from_ns) if found.from_ns else "", begin, "", "", format_coins(found.opening_nanos))
    for row in found.rows:
        accrued = row["accrued_nanos"]
        table.add_row(
            str(row["entry_id"]),
            instant(row["at_ns"]),
            str(row["operation"]),
            format_coins(-accrued) if accrued else "",
            format_coins(row["amount_nanos"]) if row["amount_nanos"] else "",
            format_coins(row["balance_after_nanos"]),
            Text(value_of("message", row["message"])),
            Text(value_of("request_id", row["request_id"]) if row["request_id"] else ""),
        )
    table.add_row(
        "",
        instant(found.to_ns) if found.to_ns != NEWEST else "",
        "closing",
        format_coins(-found.accrued_nanos),
        format_coins(found.amount_nanos),
        format_coins(found.closing_nanos),
    )
    print_table(table)
    sums = f"{format_coins(found.opening_nanos)} - {format_coins(found.accrued_nanos)} + "
    sums += f"{format_coins(found.amount_nanos)} = {format_coins(found.closing_nanos)}"
    if not found.faults:
        click.echo(f"{len(found.rows)} entries; they add up: {sums}")
    for fault in found.faults:
        click.echo(f"does not add up: {fault}", err=True)


COMMANDS: dict[str, click.Command] = {"statement": statement}
