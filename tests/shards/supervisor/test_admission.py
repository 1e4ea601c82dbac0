"""When a worker may serve: once billing time can begin behind all last instants, and the map knows this life of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shards.control import Proved, Recovered, Serve, Serving
from shards.supervisor.settings import ShareSettings
from tests.shards.supervisor.hosts import PartOf, part
from tests.shards.supervisor.supervisor_parts import ScriptedProcess, SupervisorParts, until

__all__ = ["part"]

FUTURE_NS = 4_000_000_000_000_000_000  # a last instant that lies ahead of any clock
BESIDE = ShareSettings(2, "127.0.0.1:0", "", "", None)


def recovered(last_instant_ns: int) -> Recovered:
    return Recovered(last_instant_ns, 1_000_000, 1, 1, [])


@pytest.fixture
async def parts(part: PartOf) -> AsyncIterator[SupervisorParts]:
    host = part("", 0).joined()
    supervisor_parts = SupervisorParts(host.registry, host.log, {1, 2})
    yield supervisor_parts
    await supervisor_parts.close()


async def started(parts: SupervisorParts) -> list[ScriptedProcess]:
    parts.processes.start({1: None, 2: None})
    await until(lambda: len(parts.started) == 2 and all(process.told for process in parts.started))
    return parts.started


async def test_time_begins_behind_the_last_instant_of_every_shard(parts: SupervisorParts) -> None:
    first, second = await started(parts)
    beginning = asyncio.ensure_future(parts.admission.begin_time())
    first.say(recovered(1))
    await until(lambda: parts.workers[1].state == "recovered")
    assert parts.time.clock is None
    assert not first.heard(Serve)
    second.say(recovered(FUTURE_NS))
    await beginning
    assert parts.time.now_ns() >= FUTURE_NS
    await until(lambda: first.heard(Serve) and second.heard(Serve))
    assert {proved.shard_id for proved in first.heard(Proved)} == {1, 2}


async def test_nobody_waits_for_a_shard_that_is_held_and_it_is_let_serve_when_it_comes(parts: SupervisorParts) -> None:
    first, second = await started(parts)
    parts.processes.set_state(parts.workers[2], "held", "exit 74: the disk failed")
    first.say(recovered(1))
    await parts.admission.begin_time()
    await until(lambda: first.heard(Serve))
    assert not second.heard(Serve)
    second.say(recovered(1))
    await until(lambda: second.heard(Serve))


async def test_a_shard_that_serves_is_founded_once_and_for_all(parts: SupervisorParts) -> None:
    await started(parts)
    assert parts.registry.founded == set()
    for _ in range(2):
        await parts.admission.on_serving(parts.workers[1], Serving(1, 3, ""))
    assert parts.registry.founded == {1}
    assert (parts.workers[1].state, parts.workers[1].figures) == ("serving", {"accounts": 3})


async def test_where_hosts_share_a_worker_serves_once_the_map_knows_its_life(part: PartOf) -> None:
    host = part("a").joined()
    parts = SupervisorParts(host.registry, host.log, {1, 2}, BESIDE)
    assert parts.owners is not None
    assert await parts.owners.take(1, None)
    parts.processes.start_next(1)
    await until(lambda: parts.started and parts.started[0].told)
    parts.started[0].say(recovered(1))
    await parts.admission.begin_time()
    await until(lambda: parts.started[0].heard(Serve))
    assert host.registry.shares.owns[1].voice == (1, 1)
    await parts.close()


async def test_one_whose_shard_was_taken_before_the_map_knew_its_life_never_serves(part: PartOf) -> None:
    host, second_host = part("a").joined(), part("b").joined()
    parts = SupervisorParts(host.registry, host.log, {1, 2}, BESIDE)
    assert parts.owners is not None
    assert await parts.owners.take(1, None)
    parts.processes.start_next(1)
    await until(lambda: parts.started and parts.started[0].told)
    await second_host.registry.catch_up()
    assert await second_host.take(1)
    parts.started[0].say(recovered(1))
    await parts.admission.begin_time()
    await until(lambda: host.registry.shares.owns[1].node == "b")
    assert not await parts.owners.confirm(1)
    assert not parts.workers[1].is_confirmed
    assert not parts.started[0].heard(Serve)
    await parts.close()
