"""`billing audit`: operators' requests to the daemon, and refused sign-ins.

Without `--address` the command reads the files of the configured data directory, whether the daemon runs or not; the
caller needs the right to read them. With `--address` it asks that daemon for the record of the daemon's host, for which
the caller needs the role admin.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

import click

from billing.audit.reading import TrailReader, UnknownCursor
from billing.audit.trail import DIRECTORY
from billing.cli.calling import Target, run, target_options
from billing.cli.options import Command, option
from billing.cli.paging import columns_of
from billing.cli.places import Misplaced
from billing.cli.showing import show
from billing.client.client import Client
from billing.config.load import load
from shards.system.disk import RealDisk

PAGE_ROWS: Final = 1000

Rows = list[dict[str, Any]]


@click.command(cls=Command)
@option("--limit", type=click.IntRange(1), default=1000, help="The newest so many records.  [1000]")
@option("--after", metavar="CURSOR", default="", help="Only behind the record that has this cursor.")
@option("--actor", metavar="NAME", help="Only what this one asked for.")
@option("--act", metavar="NAME", help="Only this: move_bucket, reload, sign_in_refused, …")
@target_options
def audit(target: Target, limit: int, after: str, actor: str | None, act: str | None) -> None:
    """Lists what operators asked for, granted or not (moves, backups, …), and refused sign-ins."""
    if target.told_by:
        data_dir = load(target.file, os.environ).config.daemon.data_dir
        if not RealDisk().exists(data_dir):
            raise Misplaced(f"there is no data directory {data_dir}; with --address the daemon there is asked")
        reader = TrailReader(RealDisk(), f"{data_dir}/{DIRECTORY}")
        try:
            records: Rows = list(deque(reader.records(after, actor, act), limit))
        except UnknownCursor as error:
            raise click.ClickException(str(error)) from None
    else:
        records = run(target, lambda client: _fetch_records(client, after, limit, actor, act))
    names = ("at_ns", "actor", "act", "details")
    if not (target.as_json or target.as_csv):
        records = [{name: row[name] for name in names} for row in records]
    show(target, records, names, columns=columns_of("audit"))


async def _fetch_records(client: Client, after: str, limit: int, actor: str | None, act: str | None) -> Rows:
    """Reads all pages behind a cursor, and returns the newest `limit` records."""
    records: deque[dict[str, Any]] = deque(maxlen=limit)
    while rows := await client.audit(after=after, limit=PAGE_ROWS, actor=actor, act=act):
        records += rows
        after = rows[-1].cursor
    return list(records)


COMMANDS: dict[str, click.Command] = {"audit": audit}
