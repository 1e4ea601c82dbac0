"""Shards are drained while the followers on them fail: their files, their processes, and the receiver of notices.

Plays in worlds with followers alone. The daemon is started with fewer shards; while those that are to go wait for their
history and notices, one strike after the other hits the processes there, the endpoint may be slow or down, and the disk
of the journals slow. Some drains begin with a move that was decided, and everything killed before its source could put
that on record. That a shard goes too early is seen by `followers` at the record with which the map forgets it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.followers import Strikes

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector

LOOKS, LOOK_S = 200, 0.05
STRUCK = 0.1  # of the looks
CUT_OFF = 0.5  # of the drains begin with a move whose source does not know yet that it was decided
GLANCES, GLANCE_S = 5000, 0.0002
DOWN = 0.5  # of the drains: the endpoint answers badly meanwhile, so that something is owed


async def draining(injector: FaultInjector) -> bool:
    """Some shards are drained in bad company."""
    world, rng, followers = injector.world, injector.rng, injector.world.followers
    assert followers is not None
    if not await injector._two_shards() or not world.is_ready():
        return False
    fewer = rng.randrange(1, world.workers)
    leaving_shards = range(fewer + 1, world.workers + 1)
    machine = world.machine
    usual_speed = machine.slow_disk, machine.slow_share
    machine.slow_disk, machine.slow_share = rng.random() < 0.5, 0.5
    if rng.random() < DOWN:
        world.endpoint_faults.wrong[rng.choice(("refused", "slow", "5xx"))] = rng.choice((0.5, 0.9))
    strikes = Strikes(followers, rng, lambda: False)
    if rng.random() >= CUT_OFF or not await _cut_off(injector, leaving_shards, fewer):
        await world.restart(fewer)
    for _ in range(LOOKS):
        supervisor = world.supervisor
        if supervisor is not None and supervisor.workers and set(supervisor.map.weights) == set(range(1, fewer + 1)):
            break
        processes = [process for process in followers.running if int(process.name.partition("-")[2]) in leaving_shards]
        if processes and rng.random() < STRUCK:
            strikes.strike(rng.choice(sorted(processes, key=lambda process: process.pid)))
        await asyncio.sleep(LOOK_S)
    machine.slow_disk, machine.slow_share = usual_speed
    for kind, count in strikes.fired.items():
        injector.fired[f"{kind}, draining"] = injector.fired.get(f"{kind}, draining", 0) + count
    return True


async def _cut_off(injector: FaultInjector, leaving_shards: range, fewer: int) -> bool:
    """A bucket of a shard that is to go moves, and everything is killed as soon as the map has decided; the daemon
    comes back with fewer shards. False where there is no such bucket, or the move came to nothing.
    """
    world, owner = injector.world, injector.world.auditor.owner
    buckets = [bucket for bucket, (shard, _) in sorted(owner.items()) if shard in leaving_shards]
    if not buckets:
        return False
    bucket, target = injector.rng.choice(buckets), injector.rng.randrange(1, fewer + 1)
    move = world.task(injector.operator.ask("move_bucket", bucket, target))
    for _ in range(GLANCES):
        if owner[bucket][0] == target or move.done():
            break
        await asyncio.sleep(GLANCE_S)
    if owner[bucket][0] != target or move.done():
        return False
    world.workers = fewer
    for process in list(world.machine.processes.values()):
        process.kill()
    await asyncio.wait([move], timeout=30)
    return await injector._wait(lambda: world.supervisor is not None, 20)
