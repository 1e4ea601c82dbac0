"""Faults that show something only in company: each is one thing that goes wrong right behind, or during, another."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from shards.buckets import bucket_id_of
from tests.simulation.calls import COIN, Call
from tests.simulation.clients import Client
from tests.simulation.loop import SECOND_NS

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector


async def set_back(injector: FaultInjector) -> bool:
    """The wall clock is set back, and the power goes before billing time could have been bent."""
    world = injector.world
    if world.supervisor is None:
        return False
    world.kernel.wall_offset_ns -= injector.rng.choice((2, 60, 3600)) * SECOND_NS
    world.machine.lose_power()
    return True


async def left_over(injector: FaultInjector) -> bool:
    """A worker hangs, for longer than a start waits for its lock, and the main process ends meanwhile."""
    world, rng = injector.world, injector.rng
    if not world.is_ready() or world.supervising is None:
        return False
    rng.choice(injector._workers()).loop.hung_until_ns = world.kernel.now_ns + rng.randrange(11, 25) * SECOND_NS
    world.supervising.kill()
    for _ in range(600):
        await asyncio.sleep(0.1)
        if world.is_ready():
            break
    return True


async def busy_end(injector: FaultInjector) -> bool:
    """An orderly end while the disk is slow and somebody reads: there are answers that wait for the batch before."""
    world, rng = injector.world, injector.rng
    supervisor_before = world.supervisor
    if supervisor_before is None or not world.is_ready():
        return False
    programs, seed = injector.operator._programs, random.Random(rng.getrandbits(64))
    reader = Client("reader", world.outside, world.door, world.auditor, programs, seed, world.trace)
    machine = world.machine
    usual_speed = machine.slow_disk, machine.slow_share
    machine.slow_disk, machine.slow_share = True, 0.8

    async def read() -> None:
        while world.supervisor is supervisor_before:
            await reader._all([Call("get_account", user, [], {}) for user in programs.users])
            await asyncio.sleep(rng.random() * 0.002)

    reading = world.task(read())
    await asyncio.sleep(rng.random() * 0.1)
    await world.restart()
    machine.slow_disk, machine.slow_share = usual_speed
    await reading
    return await injector._wait(world.is_ready, 20)


async def owing(injector: FaultInjector) -> bool:
    """Buckets move while calls are owed for them, or under way, and some move comes to nothing because its target ends.
    Nothing is started anew afterwards: what was left lying stays there.
    """
    world, rng, auditor = injector.world, injector.rng, injector.world.auditor
    supervisor = world.supervisor
    if not await injector._two_shards() or supervisor is None or not world.is_ready():
        return False
    world.endpoint_faults.wrong.clear()
    world.endpoint_faults.wrong[rng.choice(("refused", "slow", "slow"))] = 1.0
    programs, seed = injector.operator._programs, random.Random(rng.getrandbits(64))
    payer = Client("payer", world.outside, world.door, auditor, programs, seed, world.trace)
    for number, user in enumerate(rng.sample(programs.users, 2)):
        tag = b"owing %d %d" % (world.kernel.now_ns, number)
        call = Call("debit", user, [100 * COIN], {"mode": "force", "message": tag, "request_id": tag})
        call.number, call.tag = 100 * COIN, tag
        await payer.until_known(call)
        await asyncio.sleep(rng.random() * 0.1)
        bucket = bucket_id_of(user, world.buckets)
        source = auditor.owner[bucket][0]
        targets = [shard for shard in sorted(supervisor.workers) if shard != source]
        process, body = world.process_of(targets[0]) if targets else None, world.processes.get(source)
        worker = None if body is None else body.worker
        if world.supervisor is not supervisor or process is None or worker is None:
            return False
        move = world.task(injector.operator.ask("move_bucket", bucket, targets[0]))
        if rng.random() < 0.5:
            await injector._wait(lambda: bucket in worker.handoff._leaving or move.done())  # noqa: B023
            await asyncio.sleep(rng.random() * 0.002)
            process.kill()
        await asyncio.wait([move], timeout=30)
    return True
