"""Users who are well beside users who are not (I25): the last act of some runs.

Nothing is broken any more, but the endpoint answers badly for a crowd of users: it hangs, fails, asks for time or hangs
up, by user. Once it has done so for each of them, users for whom it answers run out one after the other. Each must be
called within `WELL_S` of its instant, whatever was answered for the others; then the sick get well, and everything ends
as ever.
"""

from __future__ import annotations

import asyncio
import random

from tests.simulation.auditor import Violation
from tests.simulation.calls import COIN, Call
from tests.simulation.clients import Client
from tests.simulation.outside import SICK
from tests.simulation.world import World

SHARE = 0.25  # of the runs
CROWD = 24
WELL = 5
FAIL_S = 12.0  # by then each of the crowd has failed, also who hangs until the time-out
WELL_S = 2.0
ACT_S = 120.0


def plays(seed: int) -> bool:
    """Whether this run has the act."""
    return random.Random(seed ^ 0x51C4).random() < SHARE


def play_beside(seed: int, world: World, client: Client) -> None:
    """Plays it, in a world at rest; raises Violation."""
    rng = random.Random(seed ^ 0x51C5)
    kinds = rng.choice((*[(kind,) for kind in SICK], SICK))
    crowd = [b"sick-%d" % number for number in range(CROWD)]
    world.endpoint_faults.sick = {user: rng.choice(kinds) for user in crowd}
    act = world.task(_act(world, client, crowd, rng))
    world.run(act.done, ACT_S, f"users who are well, beside {CROWD} for whom the endpoint is {kinds}")
    world.endpoint_faults.sick.clear()


async def _act(world: World, client: Client, crowd: list[bytes], rng: random.Random) -> None:
    for user in crowd:
        await _run_out(client, user)
    await asyncio.sleep(FAIL_S)
    for number in range(WELL):
        user = b"well-%d" % number
        await _run_out(client, user)
        await asyncio.sleep(WELL_S)
        late_ns = world.auditor.lateness_ns(user)
        if late_ns < 0 or late_ns > WELL_S * 10**9:
            raise Violation(f"{user!r} is not called within {WELL_S} s of its instant, beside users who fail (I25)")
        await asyncio.sleep(3 * rng.random())


async def _run_out(client: Client, user: bytes) -> None:
    """The user gets some money and spends it at once."""
    for method, options in (("top_up", {}), ("debit", {"mode": "strict"})):
        tag = b"%b %b" % (method.encode(), user)
        call = Call(method, user, [COIN], {**options, "message": tag, "request_id": tag})
        call.number, call.tag = COIN, tag
        await client.until_known(call)
