"""`billing doctor --online`: checks a running daemon by its replies, without its files.

The checks: each bucket has exactly one owner, according to the buckets that every worker itself holds; the bucket's
generation equals the map's; the accounts of a bucket add up to its totals (the check of every snapshot, made now);
every shard serves. Where several hosts serve at once, the host that is asked asks the others, and names the shards
whose hosts do not answer. Buckets that move meanwhile are counted and left out. For accounts and periods drawn at
random, statements and past balances must follow from the entries (`online_statements`). The files of a stopped daemon
prove more.

A shard that is handed over to another host, or whose worker is started again, answers nobody for a moment. So where
shards do not answer, or are no host's, the check looks again until all do, for `PASSING_S` at most, and goes by the
last look. Two owners, or sums that are wrong, are reported as soon as any look has them. That a shard is drained, or
that a move of a bucket came to nothing and the bucket stayed where it was, is told, and is no fault.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final, NamedTuple

from billing.cli.calling import Target, run
from billing.cli.online_statements import OnlineStatements
from billing.cli.output import as_json, put
from billing.client.client import Client
from shards.counting import counted
from shards.system.clock import MACHINE_CLOCKS

PASSING_S: Final = 10.0  # longer than a shard takes to be served again after its host's end, planned or not
AGAIN_S: Final = 0.5
TOLD: Final = ("DRAINING:", "MOVE_FAILED:")  # the alerts that are no fault: nothing is wrong


class _Look(NamedTuple):
    """What one look at the daemon showed."""

    owners: dict[str, Any]
    alerts: list[str]
    told: list[str]  # what is no fault

    @property
    def is_over(self) -> bool:
        """Whether another look could show nothing else: all shards answer, or there is a fault that stays."""
        unanswered = set(self.owners.get("unanswered", ()))  # a daemon of an older version names none
        may_pass = unanswered or self.alerts or self.owners.get("unchecked")
        return not may_pass or bool(set(self.owners["faults"]) - unanswered)


async def _look(client: Client) -> _Look:
    look = _Look(await client.call("check_owners"), [], [])
    for row in await client.call("shards_info"):
        for alert in row["alerts"]:
            (look.told if alert.startswith(TOLD) else look.alerts).append(f"shard {row['shard_id']}: {alert}")
    return look


async def _last_look(client: Client, passing_s: float) -> _Look:
    deadline_ns = MACHINE_CLOCKS.boot_ns() + int(passing_s * 1e9)
    while True:
        look = await _look(client)
        if look.is_over or MACHINE_CLOCKS.boot_ns() >= deadline_ns:
            return look
        await asyncio.sleep(AGAIN_S)


async def _statements(client: Client) -> OnlineStatements:
    statements = OnlineStatements(client, random.Random())
    await statements.check()
    return statements


def check_online(target: Target, passing_s: float = PASSING_S) -> bool:
    """Makes the checks and prints the result; returns whether there is no fault. Raises CommandRefused if the daemon
    refuses or does not answer.
    """
    owners, alerts, told = run(target, lambda client: _last_look(client, passing_s))
    if not target.as_json:  # at once: a history that does not answer takes nothing away from it
        buckets, shards = counted(owners["buckets"], "bucket"), counted(owners["shards"], "shard")
        put(f"{buckets} on {shards}: the owners and the sums were looked at")
        for line in owners.get("unchecked", ()):  # a daemon of an older version names none
            put(f"not looked at: {line}")
        if owners["moving"]:
            put(f"left out, since moved meanwhile: {counted(owners['moving'], 'bucket')}")
        for line in (*told, *alerts, *owners["faults"]):
            put(line)
    statements = run(target, _statements)
    faults = [*owners["faults"], *statements.faults]
    if target.as_json:
        looked_at = {"accounts": statements.accounts, "periods": statements.periods}
        put(as_json({**owners, "faults": faults, "alerts": alerts, "statements": looked_at}))
        return not faults and not alerts
    periods, accounts = counted(statements.periods, "pair"), counted(statements.accounts, "account")
    put(f"held against its entries: {periods} of periods of {accounts}")
    for line in statements.faults:
        put(line)
    put(counted(len(faults) + len(alerts), "fault") if faults or alerts else "no faults")
    return not faults and not alerts
