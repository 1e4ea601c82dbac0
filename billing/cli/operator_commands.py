"""The operator's commands: `billing shards`, `billing buckets …`, `billing cutoffs …`, `billing forecast` and the like.

A group called without a command lists what it is about.
"""

from __future__ import annotations

import click

from billing.cli.calling import DURATION, Target, ask, target_options
from billing.cli.showing import show

BAR_WIDTH = 40

_limit = click.option("--limit", type=int, help="How many at most.  [1000]")


@click.command()
@target_options
def shards(target: Target) -> None:
    """Lists the shards: process, buckets, accounts, load, and what is wrong."""
    rows = ask(target, "shards_info")
    if target.as_json:
        show(target, rows)
        return
    show(target, [{name: value for name, value in row.items() if name not in ("alerts", "reason")} for row in rows])
    for row in rows:
        for alert in row.get("alerts", ()):
            click.echo(f"shard {row['shard_id']}: {alert}")


@click.group(invoke_without_command=True)
@target_options
@click.pass_context
def buckets(context: click.Context, target: Target) -> None:
    """Lists the buckets and their owners, or moves and pins them."""
    if context.invoked_subcommand is None:
        show(target, ask(target, "buckets_info"))


@buckets.command("of")
@click.argument("user")
@target_options
def bucket_of(target: Target, user: str) -> None:
    """Tells the bucket that USER is in."""
    show(target, ask(target, "bucket_id", user))


@buckets.command()
@target_options
def route(target: Target) -> None:
    """Tells who owns each bucket, as clients are told."""
    show(target, ask(target, "route"))


@buckets.command()
@click.argument("bucket", type=int)
@click.argument("shard", type=int)
@target_options
def move(target: Target, bucket: int, shard: int) -> None:
    """Moves BUCKET to SHARD, and waits until it serves."""
    show(target, ask(target, "move_bucket", bucket, shard))


@buckets.command()
@click.argument("bucket", type=int)
@target_options
def pin(target: Target, bucket: int) -> None:
    """Keeps the rebalancer off BUCKET."""
    show(target, ask(target, "pin_bucket", bucket))


@buckets.command()
@click.argument("bucket", type=int)
@target_options
def unpin(target: Target, bucket: int) -> None:
    """Lets the rebalancer move BUCKET again."""
    show(target, ask(target, "unpin_bucket", bucket))


@click.command()
@click.option("--plan", is_flag=True, help="Only shows which buckets would move.")
@target_options
def rebalance(target: Target, plan: bool) -> None:
    """Moves buckets until the load is even."""
    reply = ask(target, "rebalance", plan=plan or None)
    if plan and not target.as_json:
        click.echo(f"{reply['moves']} buckets would move")
        reply = reply["steps"]
    if reply or target.as_json:
        show(target, reply)


buckets.add_command(rebalance)


@click.command()
@click.argument("user")
@target_options
def explain(target: Target, user: str) -> None:
    """Shows why USER stands where it stands: bucket and owner, timer, cutoffs and attempts."""
    show(target, ask(target, "explain", user))


@click.command("explain-move")
@click.argument("bucket", type=int)
@click.argument("shard", type=int, required=False)
@target_options
def explain_move(target: Target, bucket: int, shard: int | None) -> None:
    """Shows what a move of BUCKET (to SHARD) waits for, and whose that is."""
    show(target, ask(target, "explain_move", bucket, shard_id=shard))


@click.group(invoke_without_command=True)
@click.option("--after", metavar="USER", help="Starts behind this user.")
@_limit
@target_options
@click.pass_context
def cutoffs(context: click.Context, target: Target, after: str | None, limit: int | None) -> None:
    """Lists the cutoffs that are owed, or tries and releases them."""
    if context.invoked_subcommand is None:
        show(target, ask(target, "pending_cutoffs", after=after, limit=limit))


@cutoffs.command()
@click.argument("user")
@target_options
def retry(target: Target, user: str) -> None:
    """Tries the cutoff that is owed for USER at once."""
    show(target, ask(target, "retry_cutoff", user))


@cutoffs.command()
@target_options
def release(target: Target) -> None:
    """Lets the cutoffs go that the start of the daemon held back."""
    show(target, ask(target, "release_cutoffs"))


@click.command()
@click.option("--next", "--within", "within_ns", type=DURATION, help="How far ahead.  [1h]")
@click.option("--step", "step_ns", type=DURATION, help="Width of a row.  [1s up to 5m ahead, else 1m]")
@target_options
def forecast(target: Target, within_ns: int | None, step_ns: int | None) -> None:
    """Tells how many cutoffs are coming, by the second or minute, and the worst second."""
    coming = ask(target, "forecast", within_ns=within_ns, step_ns=step_ns)
    if target.as_json:
        show(target, coming)
        return
    steps = coming.pop("steps")
    show(target, coming)
    if steps:
        most = max(row["cutoffs"] for row in steps)
        click.echo()
        show(target, [{**row, "": "#" * -(-row["cutoffs"] * BAR_WIDTH // most)} for row in steps])
    takes = coming["endpoint_takes_per_second"]
    if takes is not None and takes < coming["peak_per_second"]:
        click.echo(
            f"\nThe worst second brings more than the endpoint was last seen to take: the last of them will be some "
            f"{coming['peak_per_second'] / max(takes, 1):.1f} s late.",
            err=True,
        )


@click.group()
def expirationd() -> None:
    """What users of Tarantool's expirationd look for."""


@expirationd.command()
@target_options
def stats(target: Target) -> None:
    """Per shard: accounts checked, instants fired, mismatches (0, or a bug), lateness, restarts."""
    show(target, ask(target, "expirationd_stats"))


@click.command()
@target_options
def methods(target: Target) -> None:
    """Lists the procedures of the daemon, and what they take."""
    described = ask(target, "methods")
    if not target.as_json:
        described = [
            {
                "method": row["name"],
                "takes": ", ".join(field["name"] for field in row["params"]) or "-",
                "options": ", ".join(field["name"] for field in row["options"]) or "-",
                "role": row["role"],
                "does": row["doc"],
            }
            for row in described
        ]
    show(target, described)


@click.command()
@target_options
def ping(target: Target) -> None:
    """Asks whether the daemon answers."""
    show(target, ask(target, "ping"))


@click.command()
@target_options
def info(target: Target) -> None:
    """Shows the daemon's version and limits."""
    show(target, ask(target, "server_info"))


ALL = (
    *(shards, buckets, rebalance, explain, explain_move),
    *(cutoffs, forecast, expirationd, methods, ping, info),
)
COMMANDS: dict[str, click.Command] = {str(command.name): command for command in ALL}
