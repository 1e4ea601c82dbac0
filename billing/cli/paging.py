"""Lists that are longer than a page: the command prints whether more rows follow and how to get them; `--all` fetches
every page.

A full page alone does not prove that more rows follow: the command asks the daemon for one row behind the last.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import click

from billing.api.methods import METHODS
from billing.cli.calling import Target, run, sendable
from billing.cli.options import option
from billing.cli.output import say
from billing.cli.showing import ESSENTIAL, show
from billing.client.client import Client

PAGE_ROWS_MAX: Final = 1000

Complete = Callable[[Client, list[Any]], Awaitable[list[Any]]]


def columns_of(method: str) -> list[str]:
    """The fields that every row of a method's reply has."""
    shape = METHODS[method].reply.shape
    assert shape is not None
    return [field.name for field in shape.fields if not field.optional]


ROWS_SHOWN: Final = {"history": 100}  # method -> rows shown without --limit; PAGE_ROWS_MAX for all others

list_all_option = option("--all", "every", is_flag=True, help="Fetches every page.")
one_shard_option = option(
    *("--shard", "shard_id"), type=int, metavar="SHARD", help="Of this shard alone, as where another does not answer."
)


class PagedMethod(NamedTuple):
    """A method that answers with pages of rows."""

    method: str
    key: str  # the field of a page's last row that the next page is asked for with
    cursor: str  # the option that takes this key


class Filters(NamedTuple):
    """The rows to ask for: options of the method, and the words of the command line that gave them."""

    options: dict[str, Any]
    arguments: Sequence[str]  # repeated in the command line that is printed to get more rows


EVERYTHING: Final = Filters({}, ())


def show_pages(
    target: Target,
    paged: PagedMethod,
    start: Any,
    limit: int | None,
    every: bool,
    *,
    user: str | None = None,
    filters: Filters = EVERYTHING,
    complete: Complete | None = None,
) -> None:
    """Fetches the page behind the key `start`, or with `every` all pages from there, and shows the rows. `complete`
    turns the fetched rows into the shown ones.
    """
    method, key, cursor = paged
    last: list[Any] = [None]  # the key of the last row of the page
    if every and limit is not None:
        raise click.UsageError("--all and --limit cannot both be given")
    wanted = PAGE_ROWS_MAX if every else ROWS_SHOWN.get(method, PAGE_ROWS_MAX) if limit is None else limit
    name = cursor.lstrip("-")

    async def fetch(client: Client) -> tuple[list[Any], bool]:
        async def page(behind: Any, rows: int) -> list[Any]:
            params = [] if user is None else [sendable(user)]
            page_rows: list[Any] = await client.call(
                method, *params, limit=rows, **{name: sendable(behind)}, **filters.options
            )
            return page_rows

        rows = latest = await page(start, wanted)
        while every and len(latest) >= wanted:
            latest = await page(latest[-1][key], wanted)
            rows = rows + latest
        more = bool(not every and len(rows) >= wanted and await page(rows[-1][key], 1))
        last[0] = rows[-1].get(key) if rows else None
        return (rows if complete is None else await complete(client, rows)), more

    rows, more = run(target, fetch, user)
    show(target, rows, ESSENTIAL[method], columns=columns_of(method))
    if more:
        context = click.get_current_context()
        line = [
            *context.command_path.split(),
            *([user] if user is not None else []),
            *filters.arguments,
            cursor,
            str(last[0]),
        ]
        say(f"More follow: {shlex.join(line)}, or --all.")
