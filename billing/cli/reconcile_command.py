"""`billing reconcile INVENTORY.csv`: compares the machines of an inventory with the rates that the daemon charges.

The inventory has a line for each machine: `user,resource` or `user,resource,rate`, the rate in coins an hour by
default. A first line with names such as these is a heading; `rate_per_second`, `rate_per_minute` or `rate_per_hour` in
it gives the unit. A difference is one of three kinds:

    no_rate      the inventory has a machine for which the daemon has no rate: the machine runs without a charge
    no_machine   the daemon has a rate line for which the inventory has no machine: the user is charged for nothing
    other_rate   both have the machine, but the inventory names another rate than the daemon has

No line that cannot be read is skipped silently: the command prints its number and the fault on standard error, and ends
with 1, as it does for a difference. A line of which only the rate cannot be read still names its machine, so that the
machine's rate is no `no_machine`.

The command reads all accounts with their rates from the daemon, page by page, and keeps the inventory in memory: a
million lines need some 300 MB. Both sides change during the comparison, so a machine that was started or stopped a
moment ago may appear as a difference; a difference that two runs show is real.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable, Iterator
from operator import contains
from typing import Any, Final, NamedTuple

import click

from billing.cli.calling import Target, run, target_options
from billing.cli.csv_lines import Lines
from billing.cli.export_command import PAGE_ROWS, Bar
from billing.cli.options import Command, option
from billing.cli.output import as_json, put, say
from billing.cli.places import ExistingFile
from billing.cli.showing import show
from billing.cli.values import IN_AN_HOUR, RATE_COLUMNS, printable
from billing.client.client import Client
from billing.client.errors import InvalidParams
from billing.client.results import AccountRow
from billing.ledger.commands import RESOURCE_BYTES_MAX, USER_ID_BYTES_MAX
from billing.ledger.errors import Refused
from billing.ledger.money import parse_rate
from shards.counting import counted

NO_RATE: Final = "no_rate"
NO_MACHINE: Final = "no_machine"
OTHER_RATE: Final = "other_rate"
_WORDS: Final = {NO_RATE: "machine without a rate", NO_MACHINE: "rate without a machine", OTHER_RATE: "other rate"}
_HEADING: Final = (
    frozenset({"user", "user_id"}),
    frozenset({"resource", "resource_id", "machine", "machine_id"}),
    frozenset({"rate", *RATE_COLUMNS}),
)

Machines = dict[str, dict[str, int | None]]  # user -> resource -> nanos per hour, None if the line has no rate


class Broken(NamedTuple):
    """A line of the inventory that cannot be read."""

    line: int
    why: str


class Inventory(NamedTuple):
    """The content of an inventory."""

    machines: Machines
    lines: int  # the number of lines that could be read
    broken: list[Broken]
    per: str  # the unit of its rates


class Difference(NamedTuple):
    """One machine or rate line on which inventory and daemon disagree. Rates in nanos per hour."""

    user_id: str
    resource: str
    difference: str
    inventory_nanos_per_hour: int | None
    daemon_nanos_per_hour: int | None


def read_inventory(lines: Iterable[str], per: str | None) -> Inventory:
    """Parses an inventory. `per`: the unit of its rates; None for the unit of the heading, or else the hour. `lines`
    have bytes that are not UTF-8 as surrogates. Raises ValueError if the heading has another unit than `per`.
    """
    unit = per or "hour"
    machines: Machines = {}
    broken: list[Broken] = []
    count = 0
    rest = Lines(lines)
    rows = csv.reader(rest, strict=True)
    while True:
        rest.begin_row()
        try:
            cells = next(rows)
        except StopIteration:
            return Inventory(machines, count, broken, unit)
        except csv.Error as error:
            why = "a quote is not closed" if rest.row_length > 1 else str(error)
            broken.append(Broken(rest.row_line, f"it is no CSV: {why}"))
            rest.give_back()
            rows = csv.reader(rest, strict=True)  # a new reader has no state of the broken row
            continue
        number = rest.row_line
        if not cells:
            continue
        names = [cell.strip().lower() for cell in cells]
        if number == 1 and 2 <= len(names) <= 3 and all(map(contains, _HEADING, names)):
            heading_unit = RATE_COLUMNS.get(names[-1], unit)
            if per not in (None, heading_unit):
                raise ValueError(f"its heading says {names[-1]}, and --per {per}")
            unit = heading_unit
            continue
        try:
            user, resource, rate = _machine_of(cells)
            of_user = machines.setdefault(user, {})
            if resource in of_user:
                raise ValueError(f"{printable(user)} {printable(resource)} stands on a line before")
            if number > 1:  # else it may be a heading
                of_user[resource] = None
            of_user[resource] = _rate_of(rate, unit)
        except ValueError as error:
            broken.append(Broken(number, str(error)))
            rest.give_back()
            continue
        count += 1


def _machine_of(cells: list[str]) -> tuple[str, str, str]:
    """(user, resource, text of the rate) of the cells of a line. Raises ValueError."""
    if len(cells) not in (2, 3):
        raise ValueError(f"expected user,resource or user,resource,rate, got {len(cells)} values")
    user, resource = cells[0].strip(), cells[1].strip()
    for name, text, least, most in (
        ("user", user, 1, USER_ID_BYTES_MAX),
        ("resource", resource, 0, RESOURCE_BYTES_MAX),
    ):
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the {name} is no UTF-8") from None
        if not least <= size <= most:
            raise ValueError(f"the {name} has {size} bytes, expected {least} to {most}")
    return user, resource, cells[2].strip() if len(cells) == 3 else ""


def _rate_of(text: str, per: str) -> int | None:
    """Nanos per hour; None of an empty text. Raises ValueError."""
    try:
        return parse_rate(text, per.encode()) if text else None
    except Refused as refusal:
        raise ValueError(f"the rate is none: {refusal.message}") from None


def differences(machines: Machines, accounts: Iterable[tuple[str, dict[str, int]]]) -> Iterator[Difference]:
    """The differences, given (user, resource -> nanos per hour of each rate line above zero) of all accounts. Removes
    each of these users from `machines`; users that remain have no account (`left_over`).
    """
    for user, rates in accounts:
        wanted = machines.pop(user, {})
        if wanted == rates:
            continue
        for resource, rate in wanted.items():
            charged = rates.get(resource)
            if charged is None and rate != 0:
                yield Difference(user, resource, NO_RATE, rate, None)
            elif charged is not None and rate is not None and rate != charged:
                yield Difference(user, resource, OTHER_RATE, rate, charged)
        for resource, charged in rates.items():
            if resource not in wanted:
                yield Difference(user, resource, NO_MACHINE, None, charged)


def left_over(machines: Machines) -> Iterator[Difference]:
    """A difference for each machine of users who have no account."""
    for user, wanted in machines.items():
        for resource, rate in wanted.items():
            if rate != 0:
                yield Difference(user, resource, NO_RATE, rate, None)


async def _pages(client: Client) -> AsyncIterator[list[AccountRow]]:
    """All accounts with their rates, page by page. Requests the next page before it yields one."""
    limit = PAGE_ROWS

    def ask(after: str | None) -> asyncio.Task[list[AccountRow]]:
        return asyncio.create_task(client.accounts(after=after, limit=limit, show=["rates"]))

    after: str | None = None
    next_page = ask(after)
    while True:
        try:
            rows = await next_page
        except InvalidParams:  # too many rate lines for one page
            if limit == 1:
                raise
            limit = max(1, limit // 2)
            next_page = ask(after)
            continue
        if not rows:
            return
        after = rows[-1].user_id
        next_page = ask(after)
        await asyncio.sleep(0)  # lets the request leave now
        yield rows


async def _compared(client: Client, inventory: Inventory) -> list[Difference]:
    all_differences: list[Difference] = []
    total = sum(row["accounts"] or 0 for row in await client.call("shards_info"))
    done = 0
    with Bar("accounts compared") as bar:
        async for rows in _pages(client):
            all_differences += differences(inventory.machines, ((row["user_id"], row["rates"]) for row in rows))
            done += len(rows)
            bar.show(done, done, total)
    all_differences += left_over(inventory.machines)
    return sorted(all_differences)


@click.command(cls=Command)
@click.argument("inventory", type=ExistingFile(allow_dash=True))
@option("--per", type=click.Choice(list(IN_AN_HOUR)), help="Unit of its rates.  [hour]")
@target_options
@click.pass_context
def reconcile(context: click.Context, target: Target, inventory: str, per: str | None) -> None:
    """Compares machines (INVENTORY, a CSV of user,resource[,rate]) with the rates that are charged."""
    with click.open_file(inventory, encoding="utf-8-sig", errors="surrogateescape") as lines:
        try:
            listing = read_inventory(lines, per)
        except ValueError as error:
            raise click.UsageError(f"{inventory}: {error}") from None
    for line in listing.broken:
        say(f"billing: {inventory}:{line.line}: {line.why}")
    named = [list(rates.values()) for rates in listing.machines.values()]  # before machines are taken out
    all_differences = run(target, lambda client: _compared(client, listing))
    rows: list[dict[str, Any]] = [difference._asdict() for difference in all_differences]
    if target.as_json:
        broken = [line._asdict() for line in listing.broken]
        put(as_json({"machines": listing.lines, "per": listing.per, "differences": rows, "broken_lines": broken}))
    elif target.as_csv:
        show(target, rows, columns=Difference._fields)
    elif rows:
        for row in rows:
            row["difference"] = _WORDS[row["difference"]]
        show(target, rows, ("user_id", "resource", "difference"))
    unread = f"; {counted(len(listing.broken), 'line')} could not be read" if listing.broken else ""
    rated = any(rate is not None for of_user in named for rate in of_user)
    units = f"; its rates were taken as coins per {listing.per}" if rated else ""
    say(f"{counted(listing.lines, 'machine')}, {counted(len(all_differences), 'difference')}{unread}{units}")
    if all_differences or listing.broken:
        context.exit(1)


COMMANDS: dict[str, click.Command] = {"reconcile": reconcile}
