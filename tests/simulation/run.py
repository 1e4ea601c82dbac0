"""A seed, played: what is drawn from it, what goes wrong when, and what must be so at the end."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import NamedTuple

from billing.follower import store
from shards import shard
from tests.simulation.auditor import Violation
from tests.simulation.beside import play_beside, plays
from tests.simulation.calls import Call, Programs
from tests.simulation.clients import Client
from tests.simulation.faults import FaultInjector
from tests.simulation.followers import Strikes
from tests.simulation.promptly import PromptnessWatch, make_sick
from tests.simulation.world import World

CLIENTS = 3
CALLS = 60  # of each client


class RunResult(NamedTuple):
    """What a run was."""

    seed: int
    digest: str
    calls: int
    entries: int
    attempts: int
    fired: dict[str, int]
    steps: int
    waited: int  # looks at which somebody waited for a first call that would succeed
    worst_ns: int  # the longest such wait


def world_of(seed: int, *, follows: bool = False) -> World:
    """The world of a seed, before anything happened."""
    draw = random.Random(seed ^ 0x5EED)
    world = World(
        seed,
        workers=draw.choice((1, 2, 2, 2, 3)),
        buckets=draw.choice((3, 6, 8)),
        accrues=draw.random() < 0.1,
        restores=draw.random() < 0.7,
        follows=follows,
    )
    world.batch_records = draw.choice((world.batch_records, world.batch_records, 2))
    return world


def play(seed: int, log: list[str] | None = None, *, follows: bool = False) -> RunResult:
    """Plays a seed, maybe with the followers of history and notices; raises what is wrong."""
    world = world_of(seed, follows=follows)
    busy_timeout_s, store.BUSY_TIMEOUT_S = store.BUSY_TIMEOUT_S, 0.0  # one thread plays all processes
    world.log = log
    batch_records, shard.BATCH_RECORDS_MAX = shard.BATCH_RECORDS_MAX, world.batch_records
    loggers = [logging.getLogger(name) for name in ("shards", "billing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        return _play(seed, world)
    finally:
        world.close()
        shard.BATCH_RECORDS_MAX = batch_records
        store.BUSY_TIMEOUT_S = busy_timeout_s
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _play(seed: int, world: World) -> RunResult:
    draw = random.Random(seed ^ 0xFACE)
    users = [b"%d" % number for number in draw.sample(range(1, 1000), draw.choice((3, 5, 8)))]
    programs = Programs(random.Random(draw.getrandbits(64)), users, lambda: world.kernel.now_ns)
    clients = [
        Client(
            f"client-{number}",
            world.outside,
            world.door,
            world.auditor,
            programs,
            random.Random(draw.getrandbits(64)),
            world.trace,
        )
        for number in range(CLIENTS + 1)
    ]
    operator = clients.pop()
    injector = FaultInjector(world, clients, operator, random.Random(draw.getrandbits(64)))
    make_sick(seed, world, users)
    world.start()
    promptly = PromptnessWatch(world)
    world.run(world.is_ready, 60, "a first start")
    first = world.task(clients[0].open_accounts())
    world.run(first.done, 60, "accounts are opened")

    async def all_clients() -> None:
        await asyncio.gather(*(client.run(CALLS, lambda: injector.done) for client in clients))

    calling = world.task(all_clients())
    injecting = world.task(injector.run())
    strikes = None
    if world.followers is not None:
        strikes = Strikes(world.followers, random.Random(seed ^ 0xF012), lambda: injector.done)
        world.task(strikes.run())
    world.run(injecting.done, 600, "all faults injected")
    world.heal()
    world.run(calling.done, 600, "all calls answered")
    world.rest()
    if plays(seed):
        play_beside(seed, world, clients[0])
        world.rest()
    reading = world.task(_read_all(clients[0], users, whole=world.followers is not None))
    world.run(reading.done, 60, "all accounts are read")
    promptly.stop()
    world.stop()
    counts = sum(client.calls for client in clients)
    auditor = world.auditor
    return RunResult(
        seed,
        world.digest(),
        counts,
        auditor.entries,
        auditor.attempts,
        injector.fired | ({} if strikes is None else strikes.fired),
        world.kernel.steps,
        promptly.waited,
        promptly.worst_ns,
    )


async def _read_all(client: Client, users: list[bytes], *, whole: bool) -> None:
    """Every account, and with `whole` its history back to its first entry."""
    for user in users:
        if whole:
            rows = await client.until_known(Call("history", user, [], {"limit": 1000}))
            if not rows or (len(rows) < 1000 and rows[-1]["entry_id"] != 1):
                raise Violation(f"the history of {user!r} does not reach back to its first entry: {rows[-1:]}")
        answer = await client.until_known(Call("get_account", user, [], {}))
        if "name" in answer and answer["name"] != "UNKNOWN_ACCOUNT":
            raise Violation(f"{user!r} cannot be read: {answer}")
