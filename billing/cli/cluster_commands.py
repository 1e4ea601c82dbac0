"""`billing cluster check` and `billing cluster init`: the servers and streams of a log with journal.kind = "jetstream".

`check` says what a start would say, without starting; `init` makes the streams that are missing. Both name all faults
at once, each with the key or setting concerned and what mends it, and exit with 78.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from billing.config.load import load, log_of
from shards.journal import Unfit, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.system.host import REAL

config_option = click.option(
    "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="As for billing serve."
)


@click.group()
def cluster() -> None:
    """Looks at the servers of a replicated log, and makes its streams."""


@cluster.command()
@config_option
def check(file: Path | None) -> None:
    """Says everything that is wrong with the servers and streams, and exits with 78; or that nothing is."""
    for warning in _backend(file).prepare():
        click.echo(f"billing: warning: {warning}", err=True)
    click.echo("the log's servers and streams are fit")


@cluster.command()
@config_option
def init(file: Path | None) -> None:
    """Makes the streams that are missing. What is there already is left as it is, and must be fit."""
    made = _backend(file).make()
    click.echo(f"made {', '.join(made)}" if made else "all streams are there already")


def _backend(file: Path | None) -> JetStreamBackend:
    config = load(file, os.environ).config
    backend = backends.open(log_of(config), REAL)
    if not isinstance(backend, JetStreamBackend):
        raise Unfit(f'journal.kind is "{config.journal.kind}": only "jetstream" has a cluster')
    return backend


COMMANDS: dict[str, click.Command] = {"cluster": cluster}
