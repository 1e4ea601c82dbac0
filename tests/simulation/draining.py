"""Shards are drained while the followers on them fail: their files, their processes, and the receiver of notices.

Plays in worlds with followers alone. The daemon is started with fewer shards; while those that are to go wait for their
history and notices, one strike after the other hits the processes there, the endpoint may be slow or down, and the disk
of the journals slow. That a shard goes too early is seen by `followers` at the record with which the map forgets it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.followers import Strikes

if TYPE_CHECKING:
    from tests.simulation.faults import Chaos

LOOKS, LOOK_S = 200, 0.05
STRUCK = 0.1  # of the looks
DOWN = 0.5  # of the drains: the endpoint answers badly meanwhile, so that something is owed


async def draining(chaos: Chaos) -> bool:
    """Some shards are drained in bad company."""
    world, rng, followers = chaos.world, chaos.rng, chaos.world.followers
    assert followers is not None
    if not await chaos._two_shards() or not world.is_ready():
        return False
    fewer = rng.randrange(1, world.workers)
    going = range(fewer + 1, world.workers + 1)
    machine = world.machine
    kept = machine.slow_disk, machine.slow_share
    machine.slow_disk, machine.slow_share = rng.random() < 0.5, 0.5
    if rng.random() < DOWN:
        world.moods.wrong[rng.choice(("refused", "slow", "5xx"))] = rng.choice((0.5, 0.9))
    strikes = Strikes(followers, rng, lambda: False)
    await world.restart(fewer)
    for _ in range(LOOKS):
        supervisor = world.supervisor
        if supervisor is not None and supervisor.workers and set(supervisor.map.weights) == set(range(1, fewer + 1)):
            break
        there = [process for process in followers.running if int(process.name.partition("-")[2]) in going]
        if there and rng.random() < STRUCK:
            strikes.strike(rng.choice(sorted(there, key=lambda process: process.pid)))
        await asyncio.sleep(LOOK_S)
    machine.slow_disk, machine.slow_share = kept
    for kind, count in strikes.fired.items():
        chaos.fired[f"{kind}, draining"] = chaos.fired.get(f"{kind}, draining", 0) + count
    return True
