"""`billing cluster`: the servers and streams of a log with journal.kind = "jetstream", and the hosts that share it.

`check` makes the checks of the daemon's start without starting it; `init` makes the streams that are missing. Both
report all faults at once, each with the key or setting concerned and the remedy, and exit with 78. `status` prints
which host serves which shard, and the state of each shard's journal. `drain` and `undrain` decide which hosts serve
nothing, `forget` removes a host that is gone for good. All of them ask the log's servers; for the links between hosts
`status` also asks the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import click
import msgspec

from billing.cli.calling import ask, target_of
from billing.cli.finding import config_file as found_config
from billing.cli.options import Group, config_option
from billing.cli.output import put, say
from billing.config.load import load, log_of
from shards.journal import Overtaken, Unfit, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.moves.wanted import WantedMoves
from shards.supervisor.placement import Shares
from shards.supervisor.registry import claim_of, moves_of, shares_of
from shards.system.host import REAL


@click.group(cls=Group)
def cluster() -> None:
    """Looks at the servers and hosts of a replicated log, and makes its streams."""


@cluster.command()
@config_option
def check(config_file: str | None) -> None:
    """Reports every fault of the log's servers and streams, and exits with 78 if there is one."""
    for warning in _backend(config_file).prepare():
        say(f"billing: warning: {warning}")
    put("the log's servers and streams are fit")


@cluster.command()
@config_option
def init(config_file: str | None) -> None:
    """Makes the streams that are missing. Existing streams are not changed, and must be fit."""
    streams = _backend(config_file).make()
    put(f"made {', '.join(streams)}" if streams else "all streams are there already")


@cluster.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config_file: str | None, *, as_json: bool) -> None:
    """Shows which host serves, what moves, and for each shard's journal its leader, size, epoch and last record. If
    several hosts serve at once, it also asks the daemon of this configuration which links between hosts are down, and
    what its histories lack.
    """
    backend = _backend(config_file)
    backend.prepare()
    log = backend.map_log(lambda: 0)
    try:
        _, payloads = log.load("status")
    finally:
        log.close()
    serves, shares = claim_of(payloads).node, shares_of(payloads)
    wanted, is_uneven = moves_of(payloads)
    rows: list[dict[str, Any]] = [
        {"node": (shares.owns[row["shard_id"]].node if row["shard_id"] in shares.owns else serves) or None, **row}
        for row in backend.status()
    ]
    drained = sorted(shares.drained)
    unlinked, lacking, unasked = _as_this_host_says(config_file) if len(shares.members) > 1 else ([], [], "")
    if as_json:
        moves = [
            {"bucket_id": bucket_id, "to_shard_id": move.shard, "given_up": move.given_up or None}
            for bucket_id, move in sorted(wanted.of.items())
        ]
        state = {"serves": serves or None, "drained": drained, "rebalancing": is_uneven, "moves": moves}
        put(json.dumps(state | {"links_down": None if unasked else unlinked, "shards": rows, "history_lacks": lacking}))
        return
    for line in [*_who_serves(serves, shares), *_what_moves(wanted, is_uneven=is_uneven)]:
        put(line)
    if len(shares.members) > 1:
        for line in [unasked] if unasked else unlinked or ["every host has links to the shards of the others"]:
            put(line)
        for line in lacking:
            put(line)
    for row in rows:
        behind = f", {row['replicas_behind']} replicas behind" if row["replicas_behind"] else ""
        limit = f" of {row['bytes_max']:,}" if row["bytes_max"] else ""
        put(
            f"shard {row['shard_id']}: {row['bytes']:,}{limit} bytes, epoch {row['epoch']}, "
            f"last a {row['last_record']} at sequence {row['sequence']}, led by {row['leader'] or 'nobody'}{behind}"
        )


def _who_serves(serves: str, shares: Shares) -> list[str]:
    """A line for each host of the cluster, and one for the shards that no host serves."""
    if not shares.is_used:
        return [f"{serves} serves" if serves else "no host serves"]
    lines = []
    for host_id, member in sorted(shares.members.items(), key=lambda item: item[1].node):
        shards = shares.served_by(host_id)
        served = f"serves {_named(shards)}" if shards else ""
        drained = "is drained" if member.node in shares.drained else ""
        lines.append(f"{member.node} {' and '.join(filter(None, (served, drained))) or 'serves nothing'}")
    if unowned := [shard for shard, owner in sorted(shares.owns.items()) if not owner.node]:
        lines.append(f"no host serves {', '.join(map(str, unowned))}")
    return lines


def _named(shards: list[int]) -> str:
    return f"{'shard' if len(shards) == 1 else 'shards'} {', '.join(map(str, shards))}"


def _as_this_host_says(config_file: str | None) -> tuple[list[str], list[str], str]:
    """Asks the daemon of this configuration: (a line for each missing link between hosts, as that daemon and the hosts
    that it reaches report it; a line for each history of that daemon that lacks entries; the reason why both are not
    known, or "").
    """
    try:
        rows = ask(target_of(config_file), "shards_info")
    except click.ClickException as error:
        return [], [], f"the links between hosts are not known: {error.message}"
    unlinked = [f"shard {row['shard_id']} has no link from {host}" for row in rows for host in row["links_down"]]
    lacks = {row["shard_id"]: row["history_lacks"] for row in rows if row["history_lacks"]}
    return unlinked, [f"this host's history of shard {shard_id} lacks {what}" for shard_id, what in lacks.items()], ""


def _what_moves(wanted: WantedMoves, *, is_uneven: bool) -> list[str]:
    """A line for each move that was requested and has not ended, whichever host drives it."""
    lines = ["buckets are being moved until the load is even"] if is_uneven else []
    for bucket_id, move in sorted(wanted.of.items()):
        if move.given_up:
            lines.append(f"bucket {bucket_id} was to go to shard {move.shard}, and was given up: {move.given_up}")
        else:
            lines.append(f"bucket {bucket_id} moves to shard {move.shard}")
    return lines


@cluster.command()
@config_option
@click.argument("node")
def drain(config_file: str | None, node: str) -> None:
    """Lets other hosts take the shards of NODE, and NODE take none as long as others can. NODE goes on running."""
    shares = _decide(config_file, node, ["drained", node, True])
    if {member.node for member in shares.members.values()} - shares.drained - {node}:
        put(f"{node} is drained: the other hosts ask for its shards, one after the other")
    else:
        put(f"{node} is drained, as every other host is: whoever serves a shard goes on until a host is undrained")


@cluster.command()
@config_option
@click.argument("node")
def undrain(config_file: str | None, node: str) -> None:
    """Lets NODE serve its part of the shards again."""
    _decide(config_file, node, ["drained", node, False])
    put(f"{node} takes its part again")


@cluster.command()
@config_option
@click.argument("node")
def forget(config_file: str | None, node: str) -> None:
    """Removes NODE, which is gone for good, from the hosts of the cluster. One that serves shards is not removed. One
    that lives joins again by itself.
    """
    _decide(config_file, node, ["gone", node])
    put(f"{node} is forgotten; should it be started again, it joins as a new host, and is not drained")


def _decide(config_file: str | None, node: str, record: list[Any]) -> Shares:
    """Records the decision about this host. Returns who served what before."""
    backend = _backend(config_file)
    backend.prepare()
    log = backend.map_log(lambda: 0)
    try:
        while True:
            version, payloads = log.load("drain")
            shares = shares_of(payloads)
            nodes = sorted({member.node for member in shares.members.values()})
            if node not in nodes:
                who_takes_part = f"the hosts are {', '.join(nodes)}" if nodes else "no host serves with cluster.listen"
                raise click.ClickException(f"no host {node} takes part: {who_takes_part}")
            served = sorted(shard for shard, owner in shares.owns.items() if owner.node == node)
            if record[0] == "gone" and served:
                raise click.ClickException(
                    f"{node} serves {_named(served)}: if it lives, drain it and stop it first; if not, the other hosts "
                    "take its shards within seconds, as far as their shards.workers allow that"
                )
            with contextlib.suppress(Overtaken):
                log.decide(version, msgspec.msgpack.encode([record]))
                return shares
    finally:
        log.close()


def _backend(config_file: str | None) -> JetStreamBackend:
    config = load(found_config(config_file, os.environ), os.environ).config
    backend = backends.open(log_of(config), REAL)
    if not isinstance(backend, JetStreamBackend):
        raise Unfit(f'journal.kind is "{config.journal.kind}": only "jetstream" has a cluster')
    return backend


for command in cluster.commands.values():
    cluster.hands_on(command.params)

COMMANDS: dict[str, click.Command] = {"cluster": cluster}
