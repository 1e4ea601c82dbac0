"""An endpoint returns after an outage: how fast is the backlog sent, and is anybody called who was topped up meanwhile?

First, `--storm` accounts run out at one instant while the endpoint is up, which gives the rate of a storm. Then the
endpoint is stopped, `--pending` accounts run out, and one in ten of them is topped up meanwhile. The endpoint is
started again, and one in a hundred is topped up while the backlog drains. The figures compare the receiver's record
with the ledger:

    drained_per_second  from the first to the last cutoff that arrived; `of_storm` is its ratio to the storm's
    called_but_saved    topped up while the endpoint was down, and called all the same
    off_but_active, on_but_exhausted, early     as in `benchmarks.cutoff_race`
    lost                neither topped up nor called

All but those of the first line must be 0; the exit code is 1 otherwise.

    python -m benchmarks.cutoff_drain --pending 100000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.endpoint import COIN, Endpoint, disagreements, many, nothing_owed
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

LEAD_S = 4


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one measurement from start to end."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        directory.chmod(0o700)
        endpoint = Endpoint()
        urls = {"cutoff__url": endpoint.url + "/off", "cutoff__restore_url": endpoint.url + "/on"}
        daemon = Daemon(directory, shards__workers=2, journal__segment_bytes=64 << 20, **urls)
        with endpoint, daemon:
            return await _measure(arguments, daemon, endpoint)


def _rate(calls: list[dict[str, Any]]) -> float:
    arrived = sorted(call["arrived_ns"] for call in calls if "/off" in call["target"])
    return (len(arrived) - 1) / (float(arrived[-1] - arrived[0]) / 1e9)


async def _measure(arguments: argparse.Namespace, daemon: Daemon, endpoint: Endpoint) -> dict[str, Any]:
    rpc = await Rpc.connect(daemon.rpc_port)
    await _storm(rpc, arguments.storm)
    storm_per_s = _rate(endpoint.calls())
    endpoint.stop()
    users = [f"user_{number}" for number in range(arguments.pending)]
    await many(rpc, [("top_up", user, COIN) for user in users])
    await many(rpc, [("debit", user, COIN) for user in users])
    away = users[::10]
    await many(rpc, [("top_up", user, COIN) for user in away])
    draining = users[5::100]
    endpoint.start()
    async with asyncio.timeout(30):
        while not await _there(endpoint):
            await asyncio.sleep(0.01)
    for user in draining:
        await rpc.ask("top_up", user, COIN)
        await asyncio.sleep(arguments.pending / 20_000 / len(draining))
    await nothing_owed(rpc)
    await asyncio.sleep(1.0)  # lets the restores arrive
    saved = {*away, *draining}
    calls = endpoint.calls()
    called = {call["user_id"] for call in calls}
    return {
        "pending": len(users) - len(away),
        "storm_per_second": round(storm_per_s),
        "drained_per_second": round(_rate(calls)),
        "of_storm": round(_rate(calls) / storm_per_s, 2),
        "topped_up_while_draining": len(draining),
        "of_these_called_before": len(called & {*draining}),
        "repeated": sum(call["repeated"] for call in calls),
        "called_but_saved": len(called & {*away}),
        "lost": len({*users} - saved - called),
        **disagreements(calls, saved),
    }


async def _there(endpoint: Endpoint) -> bool:
    try:
        return bool(endpoint.page("/stats")["received"])
    except OSError:
        return False


async def _storm(rpc: Rpc, count: int) -> None:
    rate = COIN // 10  # nanos a second: one nano lasts ten nanoseconds
    users = [f"storm_{number}" for number in range(count)]
    await many(rpc, [("top_up", user, 100 * COIN) for user in users])
    accounts = await many(rpc, [("set_rate", user, rate) for user in users])
    target_ns = (await rpc.ask("server_info"))["now_ns"] + LEAD_S * COIN
    debits = [(account["exhausts_at_ns"] - target_ns) // 10 for account in accounts]
    await many(rpc, [("debit", user, nanos) for user, nanos in zip(users, debits, strict=True)])
    assert (await rpc.ask("server_info"))["now_ns"] < target_ns, "the storm came while it was being made"
    await asyncio.sleep(LEAD_S)
    await nothing_owed(rpc)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--storm", type=int, default=10_000)
    parser.add_argument("--directory", default="/tmp")
    result = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(parser.parse_args()))
    print(json.dumps(result, indent=1))
    wrong = ("called_but_saved", "lost", "off_but_active", "on_but_exhausted", "early")
    sys.exit(any(result[name] for name in wrong))


if __name__ == "__main__":
    main()
