"""`billing export entries` and `billing export accounts`: writes all entries or accounts as lines of JSON or as CSV.

Entries come in the order of the feed (`entries`), each with its cursor. At the end, standard error names the option
(`--since CURSOR`) that continues behind the last entry, so a timer can run the command and append new entries. An
interrupted export has written whole lines; the cursor of the last one continues it.

Each page is written as it arrives, so any number of rows needs only the memory of one page. Meanwhile a person sees a
progress bar: for accounts by their number, for entries by the time span they cover.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from billing.cli.calling import Target, run, target_options
from billing.cli.csv_lines import csv_line
from billing.cli.options import Command, Group, option
from billing.cli.output import as_json, put, say
from billing.cli.paging import columns_of, one_shard_option
from billing.cli.showing import csv_zone_of, is_terminal
from billing.cli.values import csv_name, csv_value, printable
from billing.client.client import Client
from shards.counting import counted

PAGE_ROWS: Final = 1000

Rows = Sequence[dict[str, Any]]
Page = Callable[[str | None], Awaitable[Rows]]  # key -> the rows behind that key


class Sink:
    """Writes rows to standard output, as CSV or as lines of JSON."""

    def __init__(self, method: str, target: Target) -> None:
        self._names = columns_of(method)
        self._as_csv = target.as_csv
        self._zone = csv_zone_of(target)
        self.rows = 0

    def begin(self) -> None:
        """Writes the line of column names, if the form is CSV. Raises OutputFailed."""
        if self._as_csv:
            self._put(self._line(csv_name(name) for name in self._names), newline=False)

    def add(self, rows: Rows) -> None:
        """Writes rows. Raises OutputFailed."""
        self.rows += len(rows)
        if self._as_csv:
            lines = (self._line(csv_value(name, row.get(name), self._zone) for name in self._names) for row in rows)
            self._put("".join(lines), newline=False)
        else:
            self._put("\n".join(as_json(row) for row in rows))

    @staticmethod
    def _put(text: str, *, newline: bool = True) -> None:
        if not put(text, newline=newline):
            raise click.exceptions.Exit(0)  # the reader has closed the pipe

    @staticmethod
    def _line(cells: Any) -> str:
        return csv_line(map(printable, cells) if is_terminal() else cells)


class Bar:
    """A progress bar on standard error. Shown only if standard error is a terminal and standard output is not."""

    def __init__(self, noun: str) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        is_shown = console.is_terminal and not is_terminal()
        self._bar = Progress(
            *(*columns, TimeRemainingColumn()),
            console=console,
            transient=True,
            disable=not is_shown,
            redirect_stdout=False,  # rich must not send the rows to the bar's terminal
        )
        self._noun = noun
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, rows: int, done: int, total: int) -> None:
        """Shows that `rows` rows are written, and that `done` of `total` is done."""
        description = f"{rows:,} {self._noun}"
        if self._task is None:
            self._task = self._bar.add_task(description, total=max(total, 1))
        self._bar.update(self._task, completed=done, total=max(total, 1), description=description)


@click.group(cls=Group)
def export() -> None:
    """Writes all entries or all accounts as lines of JSON or as CSV."""


@export.command("entries", cls=Command)
@option("--since", metavar="CURSOR", default="", help="Behind the entry that has this cursor.  [the beginning]")
@target_options
def export_entries(target: Target, since: str) -> None:
    """Writes all entries, each with its cursor, oldest first."""
    sink = Sink("entries", target)

    async def work(client: Client) -> str:
        cursor, first_ns = since, -1
        now_ns: int = (await client.call("server_info"))["now_ns"]
        with Bar("entries") as bar:
            while rows := await client.entries(after=cursor, limit=PAGE_ROWS):
                if first_ns < 0:
                    first_ns = rows[0]["at_ns"]
                    sink.begin()
                sink.add(rows)
                cursor = rows[-1]["cursor"]
                bar.show(sink.rows, rows[-1]["at_ns"] - first_ns, now_ns - first_ns)
        return cursor

    cursor = run(target, work)
    if not sink.rows:
        sink.begin()
    say(counted(sink.rows, "entry", "entries") + (f"; what comes next: --since {cursor}" if cursor else ""))


@export.command("accounts", cls=Command)
@one_shard_option
@target_options
def export_accounts(target: Target, shard_id: int | None) -> None:
    """Writes all accounts, in order of their user ids: state, money, rate, and when it runs out."""
    sink = Sink("accounts", target)

    async def work(client: Client) -> None:
        shards = await client.call("shards_info")
        total = sum(row["accounts"] or 0 for row in shards if shard_id in (None, row["shard_id"]))
        sink.begin()
        after: str | None = None
        with Bar("accounts") as bar:
            while rows := await client.accounts(after=after, limit=PAGE_ROWS, shard_id=shard_id):
                sink.add(rows)
                after = rows[-1]["user_id"]
                bar.show(sink.rows, sink.rows, total)

    run(target, work)
    say(counted(sink.rows, "account"))


for each in export.commands.values():
    export.hands_on(each.params)

COMMANDS: dict[str, click.Command] = {"export": export}
