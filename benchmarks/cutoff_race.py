"""Top-ups within milliseconds of the exhaustion: does the endpoint's last state of every user agree with the ledger?

`--users` accounts run out one after the other, `--per-second` of them a second; each is topped up at a random instant
within `--spread-ms` before or after its exhaustion. The figures compare the receiver's record with the ledger:

    called_but_saved    users whose top-up was stamped before their exhaustion and who got a GET all the same
    off_but_active      users whose last call to the endpoint was a cutoff, and who are active
    on_but_exhausted    users whose last call was a restore, and who are exhausted
    early               cutoffs that arrived before the exhaustion
    misjudged           top-ups stamped before it that say `restored`, or at or after it that do not

All must be 0; the exit code is 1 otherwise.

    python -m benchmarks.cutoff_race --users 100000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.endpoint import COIN, Endpoint, disagreements, many, nothing_owed
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

PLENTY = 1_000_000 * COIN
RATE = COIN // 10  # nanos a second


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one race from start to end."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        directory.chmod(0o700)
        endpoint = Endpoint()
        urls = {"cutoff__url": endpoint.url + "/off", "cutoff__restore_url": endpoint.url + "/on"}
        daemon = Daemon(directory, shards__workers=2, journal__segment_bytes=64 << 20, **urls)
        with endpoint, daemon:
            return await _race(arguments, daemon, endpoint)


async def _race(arguments: argparse.Namespace, daemon: Daemon, endpoint: Endpoint) -> dict[str, Any]:
    rng = random.Random(arguments.seed)
    rpc = await Rpc.connect(daemon.rpc_port)
    users = [f"race_{number}" for number in range(arguments.users)]
    lead_s = 4 + len(users) / 5_000  # nobody runs out while the rates are being set
    span_s = len(users) / arguments.per_second
    coins = [int((lead_s + span_s * rng.random()) * RATE) for _ in users]
    await many(rpc, [("top_up", user, amount) for user, amount in zip(users, coins, strict=True)])
    accounts = await many(rpc, [("set_rate", user, RATE) for user in users])
    instants = {account["user_id"]: account["exhausts_at_ns"] for account in accounts}
    spread_ns = int(arguments.spread_ms * 1e6)
    plan = sorted((at_ns + rng.randrange(-spread_ns, spread_ns), user) for user, at_ns in instants.items())
    loop = asyncio.get_running_loop()
    ahead_ns = (await rpc.ask("server_info"))["now_ns"] - int(loop.time() * COIN)
    replies: dict[str, dict[str, Any]] = {}

    async def top_up(user: str) -> None:
        replies[user] = await rpc.ask("top_up", user, PLENTY)

    tasks = []
    for at_ns, user in plan:
        while (wait_s := (at_ns - ahead_ns) / COIN - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(top_up(user)))
    await asyncio.gather(*tasks)
    await nothing_owed(rpc)
    while (await many(rpc, [("shards_info",)]))[0][0]["pending_cutoffs"]:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)  # restores are not counted as pending
    now = await many(rpc, [("get_account", user) for user in users])
    calls = endpoint.calls()
    called = {call["user_id"] for call in calls}
    off = [reply["at_ns"] - instants[user] for user, reply in replies.items()]
    saved = {user for user, reply in replies.items() if reply["at_ns"] < instants[user]}
    return {
        "users": len(users),
        "saved_before": len(saved),
        "within_5_ms": sum(abs(ns) <= 5_000_000 for ns in off),
        "within_1_ms": sum(abs(ns) <= 1_000_000 for ns in off),
        "cutoffs_received": sum("/off" in call["target"] for call in calls),
        "restores_received": sum("/on" in call["target"] for call in calls),
        "called_but_saved": len(called & saved),
        "misjudged": sum(bool(reply.get("restored")) == (user in saved) for user, reply in replies.items()),
        **disagreements(calls, {account["user_id"] for account in now if account["state"] == "active"}),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--per-second", type=int, default=3_000)
    parser.add_argument("--spread-ms", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default="/tmp")
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(parser.parse_args()))
    print(json.dumps(result, indent=1))
    wrong = ("called_but_saved", "misjudged", "off_but_active", "on_but_exhausted", "early")
    sys.exit(any(result[name] for name in wrong))


if __name__ == "__main__":
    main()
