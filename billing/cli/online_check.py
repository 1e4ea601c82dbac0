"""`billing doctor --online`: what can be proved of a daemon that serves, without its files.

Each bucket has exactly one owner, by what every worker itself holds; its generation is the map's; its accounts add up
to its totals (the sum that is asserted at every snapshot, made now); every shard serves. Buckets that move meanwhile
are counted and left out. The files of a stopped daemon prove more.
"""

from __future__ import annotations

from typing import Any

from billing.cli.calling import Target, ask
from billing.cli.output import as_json, put


def check_online(target: Target) -> bool:
    """Asks, prints what came of it, and says whether nothing is wrong. Raises Refusal where nobody answers."""
    found: dict[str, Any] = ask(target, "check_owners")
    alerts = [f"shard {row['shard_id']}: {alert}" for row in ask(target, "shards_info") for alert in row["alerts"]]
    if target.as_json:
        put(as_json({**found, "alerts": alerts}))
        return not found["faults"] and not alerts
    put(f"{found['buckets']} buckets on {found['shards']} shards were looked at: their owners, and their sums")
    if found["moving"]:
        put(f"{found['moving']} buckets moved meanwhile and were left out")
    for line in (*alerts, *found["faults"]):
        put(line)
    if found["faults"] or alerts:
        put(f"{len(found['faults']) + len(alerts)} faults")
    else:
        put("no faults")
    return not found["faults"] and not alerts
