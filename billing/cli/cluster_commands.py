"""`billing cluster check` and `billing cluster init`: the servers and streams of a log with journal.kind = "jetstream".

`check` says what a start would say, without starting; `init` makes the streams that are missing. Both name all faults
at once, each with the key or setting concerned and what mends it, and exit with 78.
"""

from __future__ import annotations

import os

import click

from billing.cli.finding import config_file as found_config
from billing.cli.options import Group, config_option
from billing.cli.output import put, say
from billing.config.load import load, log_of
from shards.journal import Unfit, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.system.host import REAL


@click.group(cls=Group)
def cluster() -> None:
    """Looks at the servers of a replicated log, and makes its streams."""


@cluster.command()
@config_option
def check(config_file: str | None) -> None:
    """Says everything that is wrong with the servers and streams, and exits with 78; or that nothing is."""
    for warning in _backend(config_file).prepare():
        say(f"billing: warning: {warning}")
    put("the log's servers and streams are fit")


@cluster.command()
@config_option
def init(config_file: str | None) -> None:
    """Makes the streams that are missing. What is there already is left as it is, and must be fit."""
    made = _backend(config_file).make()
    put(f"made {', '.join(made)}" if made else "all streams are there already")


def _backend(config_file: str | None) -> JetStreamBackend:
    config = load(found_config(config_file, os.environ), os.environ).config
    backend = backends.open(log_of(config), REAL)
    if not isinstance(backend, JetStreamBackend):
        raise Unfit(f'journal.kind is "{config.journal.kind}": only "jetstream" has a cluster')
    return backend


for command in cluster.commands.values():
    cluster.hands_on(command.params)

COMMANDS: dict[str, click.Command] = {"cluster": cluster}
