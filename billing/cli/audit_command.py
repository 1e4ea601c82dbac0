"""`billing audit`: what operators asked of the daemon, and who was not let in, out of the files of its data directory.

It works whether the daemon runs or not, on its host, for whoever may read the directory.
"""

from __future__ import annotations

import os
from typing import Any

import click

from billing.audit.trail import DIRECTORY, read_trails
from billing.cli.calling import Target, target_options
from billing.cli.options import Command, option
from billing.cli.output import say
from billing.cli.showing import show
from billing.config.load import load
from shards.system.disk import RealDisk


@click.command(cls=Command)
@option("--limit", type=click.IntRange(1), default=1000, help="The newest so many records.  [1000]")
@option("--actor", metavar="NAME", help="Only what this one asked for.")
@option("--act", metavar="NAME", help="Only this: move_bucket, reload, sign_in_refused, …")
@target_options
def audit(target: Target, limit: int, actor: str | None, act: str | None) -> None:
    """Lists what operators did (moves, backups, reloads, …) and refused sign-ins, oldest first."""
    data_dir = load(target.file, os.environ).config.daemon.data_dir
    records, faults = read_trails(RealDisk(), f"{data_dir}/{DIRECTORY}")
    found: list[dict[str, Any]] = [
        record for record in records if actor in (None, record["actor"]) and act in (None, record["act"])
    ]
    show(target, found[-limit:], ("at_ns", "actor", "act", "details"))
    for fault in faults:
        say(f"billing: {fault}")


COMMANDS: dict[str, click.Command] = {"audit": audit}
