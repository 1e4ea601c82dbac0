"""The operator's commands: `billing shards`, `billing buckets …`, `billing cutoffs …`, `billing forecast` and the like.

A group that is called without a command runs its default, which lists the group's things.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import click

from billing.api.methods import METHODS
from billing.api.shapes import FORECAST_STEP
from billing.cli import method_page
from billing.cli.calling import Target, ask, run, sendable, target_options
from billing.cli.confirming import confirmed
from billing.cli.method_commands import taken_by
from billing.cli.options import YES, Command, Group, option
from billing.cli.output import put, say
from billing.cli.paging import Filters, PagedMethod, list_all_option, one_shard_option, show_pages
from billing.cli.sentences import Outcome, retried
from billing.cli.showing import ESSENTIAL, look_of, show, show_explained, tell, width_of
from billing.cli.vocabulary import procedure_of
from billing.client.client import Client
from shards.counting import counted
from shards.exits import Exit
from shards.system.clock import MACHINE_CLOCKS

BAR_WIDTH: Final = 40
LOOK_AGAIN_S: Final = 0.1
PENDING_CUTOFFS: Final = PagedMethod("pending_cutoffs", "user_id", "--after")

_METHODS: Final = ("method", "does", "takes", "options")


@click.command(cls=Command)
@target_options
def shards(target: Target) -> None:
    """Lists the shards: process, buckets, accounts, load, and what is wrong."""
    rows = ask(target, "shards_info")
    if target.as_json or target.as_csv:
        show(target, rows)
        return
    shown = [
        {name: value for name, value in row.items() if name not in ("alerts", "reason", "history_lacks")}
        for row in rows
    ]
    if not target.wide:
        shown = [{name: row.get(name) for name in ESSENTIAL["shards_info"]} for row in shown]
    show(target, shown, ESSENTIAL["shards_info"])
    for row in rows:
        if row.get("reason"):
            put(f"shard {row['shard_id']}: {row['reason']}")
        if row.get("history_lacks"):
            put(f"shard {row['shard_id']}: this host's history of it lacks {row['history_lacks']}")
        for alert in row.get("alerts", ()):
            put(f"shard {row['shard_id']}: {alert}")


@click.group(cls=Group, default="list")
def buckets() -> None:
    """Lists the buckets and their owners, or moves and pins them."""


@buckets.command("list")
@target_options
def list_buckets(target: Target) -> None:
    """Lists the buckets: owner, state, generation and accounts."""
    show(target, ask(target, "buckets_info"), ESSENTIAL["buckets_info"])


@buckets.command("of")
@click.argument("user")
@target_options
def bucket_of(target: Target, user: str) -> None:
    """Shows the bucket of USER."""
    show(target, ask(target, "bucket_id", user))


@buckets.command()
@target_options
def route(target: Target) -> None:
    """Shows which shard owns each bucket, as clients learn it."""
    show(target, ask(target, "route"))


@buckets.command()
@click.argument("bucket", type=int)
@click.argument("shard", type=int)
@target_options
def move(target: Target, bucket: int, shard: int) -> None:
    """Moves BUCKET to SHARD, and waits until it serves."""
    tell(target, "move_bucket", ask(target, "move_bucket", bucket, shard))


@buckets.command()
@click.argument("bucket", type=int)
@target_options
def pin(target: Target, bucket: int) -> None:
    """Keeps the rebalancer off BUCKET."""
    tell(target, "pin_bucket", ask(target, "pin_bucket", bucket))


@buckets.command()
@click.argument("bucket", type=int)
@target_options
def unpin(target: Target, bucket: int) -> None:
    """Lets the rebalancer move BUCKET again."""
    tell(target, "unpin_bucket", ask(target, "unpin_bucket", bucket))


@click.command(cls=Command)
@option("--plan", is_flag=True, help="Only shows which buckets would move.")
@target_options
def rebalance(target: Target, plan: bool) -> None:
    """Moves buckets until the load is even."""
    reply = ask(target, "rebalance", plan=plan or None)
    if plan and not target.as_json:
        if not target.as_csv:
            put(f"{counted(reply['moves'], 'bucket')} would move")
        reply = reply["steps"]
    elif isinstance(reply, dict) and not (target.as_json or target.as_csv):
        moves = reply["moves"]
        put(f"{counted(moves, 'bucket')} will move" if moves else "nothing moves: the load is even")
        return
    if reply or target.as_json:
        tell(target, "rebalance", reply)


buckets.add_command(rebalance)


@click.command(cls=Command)
@click.argument("user")
@target_options
def explain(target: Target, user: str) -> None:
    """Tells in sentences why USER stands where it stands; with --wide the fields, too."""
    show_explained(target, ask(target, "explain", user))


@click.command("explain-move", cls=Command)
@click.argument("bucket", type=int)
@click.argument("shard", type=int, required=False)
@target_options
def explain_move(target: Target, bucket: int, shard: int | None) -> None:
    """Shows what a move of BUCKET (to SHARD) waits for, and which worker holds it up."""
    show(target, ask(target, "explain_move", bucket, shard_id=shard))


@click.group(cls=Group, default="list")
def cutoffs() -> None:
    """Lists the cutoffs that are owed, or tries and releases them."""


@cutoffs.command("list")
@option("--after", metavar="USER", help="Starts behind this user.")
@option("--limit", type=int, help="How many at most.  [1000]")
@list_all_option
@one_shard_option
@target_options
def list_cutoffs(target: Target, after: str | None, limit: int | None, every: bool, shard_id: int | None) -> None:
    """Lists the cutoffs that are owed: since when, attempts, and the error of the last attempt."""
    filters = Filters({"shard_id": shard_id}, [] if shard_id is None else ["--shard", str(shard_id)])
    show_pages(target, PENDING_CUTOFFS, after, limit, every, filters=filters)


@cutoffs.command()
@click.argument("user")
@target_options
def retry(target: Target, user: str) -> None:
    """Tries the cutoff that is owed for USER at once, and waits for the outcome, --timeout at most.

    Exits with 0 if the endpoint took the call, with 1 if the call failed or has no answer yet: the daemon then keeps
    trying.
    """

    async def work(client: Client) -> Any:
        await client.call("retry_cutoff", sendable(user))
        began_ns = MACHINE_CLOCKS.boot_ns()
        while True:
            explained = await client.call("explain", sendable(user))
            waited_s = (MACHINE_CLOCKS.boot_ns() - began_ns) / 10**9
            if retried(explained, look) is not None or waited_s >= target.timeout_s:
                return explained
            await asyncio.sleep(LOOK_AGAIN_S)

    look = look_of(target, exact=True)
    explained = run(target, work, user, changes=True)
    outcome = retried(explained, look)
    if outcome is None:
        outcome = Outcome(
            f"It was tried, and has no answer after {target.timeout_s:g} s. {explained['why'] or ''}".rstrip(), False
        )
    if target.as_json or target.as_csv:
        tell(target, "retry_cutoff", explained)
    else:
        put(outcome.text)
    if not outcome.is_done:
        sys.exit(Exit.REFUSED)


@cutoffs.command()
@YES
@target_options
def release(target: Target, yes: bool) -> None:
    """Releases the cutoffs that the daemon held back at its start; asks first."""
    confirmed(lambda: "Every cutoff that was held back is called now: machines will be switched off. Go on?", yes)
    tell(target, "release_cutoffs", ask(target, "release_cutoffs"))


def _value_type(option_name: str) -> Any:
    return taken_by(next(field for field in METHODS["forecast"].options if field.name == option_name))


@click.command(cls=Command)
@option("--within", "--next", "within_ns", type=_value_type("within_ns"), help="How far ahead.  [1h]")
@option("--step", "step_ns", type=_value_type("step_ns"), help="Width of a row.  [1s up to 5m ahead, else 1m]")
@one_shard_option
@target_options
def forecast(target: Target, within_ns: int | None, step_ns: int | None, shard_id: int | None) -> None:
    """Tells how many cutoffs are coming, by the second or minute, and the worst second."""
    coming = ask(target, "forecast", within_ns=within_ns, step_ns=step_ns, shard_id=shard_id)
    if target.as_json:
        show(target, coming)
        return
    steps = coming.pop("steps")
    if target.as_csv:
        show(target, steps, columns=[field.name for field in FORECAST_STEP.fields])
        return
    show(target, coming)
    if steps:
        most = max(row["cutoffs"] for row in steps)
        put("")
        show(target, [{**row, "": "#" * -(-row["cutoffs"] * BAR_WIDTH // most)} for row in steps])
    takes = coming["endpoint_takes_per_second"]
    if takes is not None and takes < coming["peak_per_second"]:
        say(
            f"\nThe worst second brings more than the endpoint was last seen to take: the last of them will be some "
            f"{coming['peak_per_second'] / max(takes, 1):.1f} s late."
        )


@click.group(cls=Group, default="stats")
def expirationd() -> None:
    """Shows the timers that find accounts running out, as Tarantool's expirationd; also: timers."""


@expirationd.command()
@one_shard_option
@target_options
def stats(target: Target, shard_id: int | None) -> None:
    """Per shard: accounts checked, instants fired, mismatches (0, or a bug), lateness, restarts."""
    show(target, ask(target, "expirationd_stats", shard_id=shard_id))


@click.command(cls=Command)
@click.argument("words", nargs=-1, metavar="[NAME]")
@target_options
def methods(target: Target, words: tuple[str, ...]) -> None:
    """Lists the procedures of the daemon and what they take; of NAME, everything about it.

    NAME may be the words of its command as well: account, or buckets move.
    """
    described: list[dict[str, Any]] = ask(target, "methods")
    if words:
        name, words_taken = procedure_of(words, [row["name"] for row in described])
        described = [row for row in described if row["name"] == name and words_taken == len(words)]
        if not described:
            say(f"billing: there is no procedure {' '.join(words)}; `billing methods` lists them")
            sys.exit(1)
    if target.as_json or target.as_csv:
        show(target, described)
    elif words:
        put("\n".join(method_page.described(described[0], width_of(target))))
    else:
        show(
            target,
            [
                {
                    "method": row["name"],
                    "takes": ", ".join(field["name"] for field in row["params"]) or "-",
                    "options": ", ".join(field["name"] for field in row["options"]) or "-",
                    "role": row["role"],
                    "does": row["doc"],
                }
                for row in described
            ],
            _METHODS,
        )


@click.command(cls=Command)
@target_options
def ping(target: Target) -> None:
    """Asks whether the daemon answers."""
    show(target, ask(target, "ping"))


@click.command(cls=Command)
@target_options
def info(target: Target) -> None:
    """Shows the daemon's version and limits."""
    show(target, ask(target, "server_info"))


for group in (buckets, cutoffs, expirationd):
    for command in group.commands.values():
        group.hands_on(command.params)

ALL = (
    *(shards, buckets, rebalance, explain, explain_move),
    *(cutoffs, forecast, expirationd, methods, ping, info),
)
COMMANDS: dict[str, click.Command] = {str(command.name): command for command in ALL}
