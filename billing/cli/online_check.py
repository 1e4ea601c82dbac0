"""`billing doctor --online`: checks a running daemon by its replies, without its files.

The checks: each bucket has exactly one owner, according to the buckets that every worker itself holds; the bucket's
generation equals the map's; the accounts of a bucket add up to its totals (the check of every snapshot, made now);
every shard serves. Where several hosts serve at once, the host that is asked asks the others, and names the shards
whose hosts do not answer. Buckets that move meanwhile are counted and left out. For accounts and periods drawn at
random, statements and past balances must follow from the entries (`online_statements`). The files of a stopped daemon
prove more.
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
    """Makes the checks and prints the result; returns whether there is no fault. Raises CommandRefused if the daemon
    refuses or does not answer.
    """
    owners: dict[str, Any] = ask(target, "check_owners")
    alerts = [f"shard {row['shard_id']}: {alert}" for row in ask(target, "shards_info") for alert in row["alerts"]]
    if not target.as_json:  # at once: a history that does not answer takes nothing away from it
        buckets, shards = counted(owners["buckets"], "bucket"), counted(owners["shards"], "shard")
        put(f"{buckets} on {shards}: the owners and the sums were looked at")
        for line in owners.get("unchecked", ()):  # a daemon of an older version names none
            put(f"not looked at: {line}")
        if owners["moving"]:
            put(f"left out, since moved meanwhile: {counted(owners['moving'], 'bucket')}")
        for line in (*alerts, *owners["faults"]):
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
