"""`billing cluster check`, `init` and `status`: the servers and streams of a log with journal.kind = "jetstream".

`check` says what a start would say, without starting; `init` makes the streams that are missing. Both name all faults
at once, each with the key or setting concerned and what mends it, and exit with 78. `status` tells which host serves
and how each shard's journal stands. All three ask the log's servers, not a daemon.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from billing.cli.finding import config_file as found_config
from billing.cli.options import Group, config_option
from billing.cli.output import put, say
from billing.config.load import load, log_of
from shards.journal import Unfit, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.supervisor.registry import claim_of
from shards.system.host import REAL


@click.group(cls=Group)
def cluster() -> None:
    """Looks at the servers and hosts of a replicated log, and makes its streams."""


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


@cluster.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config_file: str | None, *, as_json: bool) -> None:
    """Says which host serves, and for each shard's journal its leader, size, epoch and last record."""
    backend = _backend(config_file)
    backend.prepare()
    log = backend.map_log(lambda: 0)
    try:
        _, payloads = log.load("status")
    finally:
        log.close()
    serves = claim_of(payloads).node
    rows: list[dict[str, Any]] = [{"node": serves or None, **row} for row in backend.status()]
    if as_json:
        put(json.dumps({"serves": serves or None, "shards": rows}))
        return
    put(f"{serves} serves" if serves else "no host serves")
    for row in rows:
        behind = f", {row['replicas_behind']} replicas behind" if row["replicas_behind"] else ""
        limit = f" of {row['bytes_max']:,}" if row["bytes_max"] else ""
        put(
            f"shard {row['shard_id']}: {row['bytes']:,}{limit} bytes, epoch {row['epoch']}, "
            f"last a {row['last_record']} at sequence {row['sequence']}, led by {row['leader'] or 'nobody'}{behind}"
        )


def _backend(config_file: str | None) -> JetStreamBackend:
    config = load(found_config(config_file, os.environ), os.environ).config
    backend = backends.open(log_of(config), REAL)
    if not isinstance(backend, JetStreamBackend):
        raise Unfit(f'journal.kind is "{config.journal.kind}": only "jetstream" has a cluster')
    return backend


for command in cluster.commands.values():
    cluster.hands_on(command.params)

COMMANDS: dict[str, click.Command] = {"cluster": cluster}
