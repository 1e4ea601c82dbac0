"""`billing doctor --online`: what can be proved of a daemon that serves, without its files.

Each bucket has exactly one owner, by what every worker itself holds; its generation is the map's; its accounts add up
to its totals (the sum that is asserted at every snapshot, made now); every shard serves. Buckets that move meanwhile
are counted and left out. Of accounts and periods drawn at random, statements and past balances are what follows from
the entries (`online_statements`). The files of a stopped daemon prove more.
"""

from __future__ import annotations

import random
from typing import Any

from billing.cli.calling import Target, ask, run
from billing.cli.online_statements import OnlineStatements
from billing.cli.output import as_json, put
from billing.client.client import Client
from shards.counting import counted


async def _statements(client: Client) -> OnlineStatements:
    statements = OnlineStatements(client, random.Random())
    await statements.check()
    return statements


def check_online(target: Target) -> bool:
    """Asks, prints what came of it, and says whether nothing is wrong. Raises Refusal where nobody answers."""
    owners: dict[str, Any] = ask(target, "check_owners")
    alerts = [f"shard {row['shard_id']}: {alert}" for row in ask(target, "shards_info") for alert in row["alerts"]]
    statements = run(target, _statements)
    faults = [*owners["faults"], *statements.faults]
    if target.as_json:
        looked_at = {"accounts": statements.accounts, "periods": statements.periods}
        put(as_json({**owners, "faults": faults, "alerts": alerts, "statements": looked_at}))
        return not faults and not alerts
    buckets, shards = counted(owners["buckets"], "bucket"), counted(owners["shards"], "shard")
    put(f"{buckets} on {shards}: the owners and the sums were looked at")
    if owners["moving"]:
        put(f"left out, since moved meanwhile: {counted(owners['moving'], 'bucket')}")
    periods, accounts = counted(statements.periods, "pair"), counted(statements.accounts, "account")
    put(f"held against its entries: {periods} of periods of {accounts}")
    for line in (*alerts, *faults):
        put(line)
    put(counted(len(faults) + len(alerts), "fault") if faults or alerts else "no faults")
    return not faults and not alerts
