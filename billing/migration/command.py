"""`billing import FILE …`: imports accounts from CSV, JSON lines or Tarantool's files into the serving daemon.

The suffix of a file's name says its format: `.csv`, `.jsonl` or `.ndjson`, `.snap` and `.xlog`. For Tarantool, give the
snapshot and the logs behind it. `--dry-run` reads everything and sends nothing. An interrupted import is run again
unchanged (see `billing.migration.plan`). Lines that are not imported are listed on standard error, and the exit code is
1 then; all others were imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from billing.cli.calling import NotReached, Target, run, target_options
from billing.cli.options import Command
from billing.cli.output import put, say
from billing.cli.places import ExistingFile
from billing.cli.values import coins
from billing.client.client import Client
from billing.client.errors import BillingError, Forbidden, RequestIdConflict
from billing.client.fan_out import FanOut
from billing.ledger.money import parse_rate
from billing.migration.mapping import Mapping, mapping_of
from billing.migration.plan import commands_of, is_empty, most_of_a_bucket, refusal_of
from billing.migration.sources import (
    PER,
    Account,
    Item,
    LeftOut,
    NotTaken,
    from_csv,
    from_json_lines,
    from_tarantool,
    merged,
)
from billing.migration.tarantool_log import LogError
from shards.counting import counted

WINDOW: Final = 20_000  # commands sent that are not answered yet
CHUNK: Final = 500  # accounts whose commands are sent in one write per owner
SHOWN_MAX: Final = 1000  # how many refused lines are listed; the count includes all

AGAIN: Final = "Run the same import again, with the same --label: what was done is not repeated."
TARANTOOL: Final = (".snap", ".xlog")
JSON_LINES: Final = (".jsonl", ".ndjson")


class Outcome(NamedTuple):
    """The result of an import."""

    accounts: int
    commands: int
    replayed: int
    refused: list[NotTaken]
    retryable: int  # of the refused commands, those that the daemon may take later


@click.command(name="import", cls=Command)
@click.argument("files", nargs=-1, required=True, type=ExistingFile(Path))
@click.option("--label", default="import", help="Names this import: the same one again repeats nothing.")
@click.option("--space", help="Of Tarantool: the space that holds the balances; `balance` where nothing is said.")
@click.option("--user-field", help="Its field of the user: a name, or a number from 1; `username`.")
@click.option("--coins-field", help="Its field of the coins; `coins`.")
@click.option(
    "--mapping",
    "mapping_file",
    type=ExistingFile(Path),
    help="A TOML file that says the same, the unit of the coins, and where the history is.",
)
@click.option("--dry-run", is_flag=True, help="Reads everything and says what would be done; calls nobody.")
@target_options
def import_(
    target: Target,
    files: tuple[Path, ...],
    label: str,
    space: str | None,
    user_field: str | None,
    coins_field: str | None,
    mapping_file: Path | None,
    dry_run: bool,
) -> None:
    """Opens accounts with the balances, credit limits and rates that FILES name.

    The first line of a CSV names its columns: user_id, and any of balance, credit_limit, resource, rate and per, or
    rate_per_hour. Lines of JSON (.jsonl, .ndjson) have the same names; of Tarantool its .snap and .xlog are read. A
    rate is a second's where nothing says its unit; what was understood is told, and by --dry-run before anything is.
    """
    if not 1 <= len(label.encode()) <= 40:
        raise click.UsageError("--label takes 1 to 40 bytes")
    try:
        mapping = Mapping() if mapping_file is None else mapping_of(contents(mapping_file).decode(), str(mapping_file))
        mapping = mapping._replace(
            space=mapping.space if space is None else space,
            user=mapping.user if user_field is None else user_field,
            coins=mapping.coins if coins_field is None else coins_field,
        )
        console = Console(stderr=True)
        columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed:,.0f} lines"))
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            items = list(merged(progress.track(read(files, mapping), total=None)))
    except (LogError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    not_taken = [item for item in items if isinstance(item, NotTaken)]
    named_accounts = [item for item in items if isinstance(item, Account)]
    not_taken += [refusal for account in named_accounts if (refusal := refusal_of(account)) is not None]
    accounts = [account for account in named_accounts if not is_empty(account) and refusal_of(account) is None]
    if empty := sum(map(is_empty, named_accounts)):
        put(_empty(empty))
    for left_out in items:
        if isinstance(left_out, LeftOut):
            put(f"space {left_out.space} is not imported: {counted(left_out.tuples, 'tuple')}")
    if dry_run:
        commands = sum(1 for account in accounts for _ in commands_of(account, label, ""))
        put(f"would import {counted(len(accounts), 'account')} with {counted(commands, 'command')}")
    else:
        try:
            outcome = run(target, lambda client: carry_out(client, accounts, label), changes=True)
        except NotReached as error:
            if not error.is_open:
                raise
            error.show()
            say(AGAIN)
            sys.exit(error.exit_code)
        not_taken += outcome.refused
        put(
            f"imported {counted(outcome.accounts, 'account')} with {counted(outcome.commands, 'command')}, "
            f"{outcome.replayed:,} of them done before"
        )
    for summary in (balances_of(accounts), rates_of(accounts)):
        if summary:
            put(summary)
    for line in not_taken[:SHOWN_MAX]:
        say(f"not taken: {line.location}: {line.reason}")
    if not_taken:
        lines = len({line.location for line in not_taken})  # several commands of a line may have been refused
        say(f"{counted(lines, 'line')} {'was' if lines == 1 else 'were'} not taken")
        if not dry_run and outcome.retryable:
            say(f"{counted(outcome.retryable, 'command')} may be taken later. {AGAIN}")
        sys.exit(1)


def balances_of(accounts: Iterable[Account]) -> str:
    """A sentence about the balances and credit limits that were read; empty where there are none."""
    balances = [account.balance_nanos for account in accounts if account.balance_nanos]
    limits = [account.credit_limit_nanos for account in accounts if account.credit_limit_nanos is not None]
    parts = [
        f"{name}: {counted(len(values), 'account')}, together {coins(sum(values))} coins"
        for name, values in (("balances", balances), ("credit limits", limits))
        if values
    ]
    return "; ".join(parts)


def rates_of(accounts: Iterable[Account]) -> str:
    """A sentence about the rates that were read; empty where there are none."""
    lines = dict.fromkeys(PER, 0)
    hourly = 0
    for account in accounts:
        for line in account.rates:
            lines[line.per] += 1
            hourly += parse_rate(line.rate, line.per.encode())
    unnamed = {"second": " (which is what a rate is where no unit is named)"}
    parts = [
        f"{counted(count, 'line')} in coins per {per}{unnamed.get(per, '')}" for per, count in lines.items() if count
    ]
    return f"rates: {', '.join(parts)}; together {coins(hourly)} coins per hour" if parts else ""


def read(files: Iterable[Path], mapping: Mapping) -> Iterator[Item]:
    """Yields everything that the files contain. Raises LogError, ValueError and OSError."""
    tarantool = []
    for path in files:
        if path.suffix in TARANTOOL:
            tarantool.append(path)
        elif path.suffix == ".csv":
            with text_of(path) as lines:
                yield from from_csv(lines, str(path))
        elif path.suffix in JSON_LINES:
            with text_of(path) as lines:
                yield from from_json_lines(lines, str(path))
        else:
            raise ValueError(f"{path}: expected a name that ends with .csv, .jsonl, .ndjson, .snap or .xlog")
    if tarantool:
        tarantool.sort(key=lambda path: (path.suffix != ".snap", path.name))
        yield from from_tarantool(((str(path), contents(path)) for path in tarantool), mapping)


@contextmanager
def text_of(path: Path) -> Iterator[IO[str]]:
    """Opens a text file. Raises ValueError that names the file where it is not UTF-8."""
    with click.open_file(str(path), encoding="utf-8-sig") as lines:
        try:
            yield lines
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{path}: expected UTF-8, got a byte {byte:#04x}; nothing was imported") from None


def contents(path: Path) -> bytes:
    """A file's bytes."""
    with click.open_file(str(path), "rb") as opened:
        return bytes(opened.read())


def why_not(account: Account, method: str, error: BillingError, label: str) -> str:
    """The reason why a command for an account was refused, as text."""
    if isinstance(error, RequestIdConflict):
        return (
            f"{account.user_id} was imported before as {label!r} with another {method}, which stands "
            "(REQUEST_ID_CONFLICT); where this is to come on top of that, give it another --label"
        )
    return f"{method} of {account.user_id} was refused: {error}"


async def check_memory(client: Client, accounts: list[Account]) -> None:
    """Refuses an import with more request ids than the daemon remembers: run again after an interruption, it would do
    twice what was forgotten. Passes if the caller's token may not ask.
    """
    try:
        info = await client.server_info()
    except Forbidden:
        return
    most, remembered = most_of_a_bucket(accounts, info.bucket_count), info.request_ids_per_bucket
    if most > remembered:
        raise click.ClickException(
            f"one bucket would get {most:,} commands, and the daemon remembers {remembered:,} of a bucket, so that an "
            "interrupted import could not be run again without doing some of it twice; nothing was imported. Start the "
            f"daemon with ledger.request_ids_per_bucket = {most} or more"
        )


async def carry_out(client: Client, accounts: list[Account], label: str) -> Outcome:
    """Sends all commands, at most `WINDOW` of them unanswered, and counts the results."""
    await check_memory(client, accounts)
    sent: list[tuple[Account, str]] = []
    refused: list[NotTaken] = []
    replayed = retryable = 0
    room = asyncio.Event()

    def on_answer(number: int, error: BillingError | None, result: Any) -> None:
        nonlocal replayed, retryable
        account, method = sent[number]
        if error is not None:
            refused.append(NotTaken(account.location, why_not(account, method, error, label)))
            retryable += error.retry
        elif result.get("replayed"):
            replayed += 1
        room.set()

    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("accounts", total=len(accounts))
        async with client.fan_out(on_answer) as batches:
            for start in range(0, len(accounts), CHUNK):
                chunk = accounts[start : start + CHUNK]
                await _space(batches, room)
                for account in chunk:
                    for method, params in commands_of(account, label, "imported"):
                        sent.append((account, method))
                        batches.add(len(sent) - 1, method, params)
                batches.flush()
                progress.advance(task, len(chunk))
            await batches.answered()
    refused_locations = {line.location for line in refused}
    imported = sum(account.location not in refused_locations for account in accounts)
    return Outcome(imported, len(sent) - len(refused), replayed, refused, retryable)


async def _space(batches: FanOut, room: asyncio.Event) -> None:
    """Waits until another chunk fits into the window."""
    while batches.open >= WINDOW:
        room.clear()
        await room.wait()


COMMANDS: dict[str, click.Command] = {"import": import_}


def _empty(count: int) -> str:
    """A sentence about users who have nothing to import."""
    have = "has" if count == 1 else "have"
    return f"{counted(count, 'user')} {have} no money, no limit and no rate: the first top-up opens the account"
