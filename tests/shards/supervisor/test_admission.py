"""When a worker may serve: once billing time can begin behind all last instants, and the map knows this life of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shards.control import Proved, Recovered, Serve, Serving
from shards.supervisor.settings import ShareSettings
from tests.shards.supervisor.hosts import PartOf, part
from tests.shards.supervisor.rooms import Rooms, ScriptedProcess, until

__all__ = ["part"]

FUTURE_NS = 4_000_000_000_000_000_000  # a last instant that lies ahead of any clock
BESIDE = ShareSettings(2, "127.0.0.1:0", "", "", None)


def recovered(last_instant_ns: int) -> Recovered:
    return Recovered(last_instant_ns, 1_000_000, 1, 1, [])


@pytest.fixture
async def rooms(part: PartOf) -> AsyncIterator[Rooms]:
    host = part("", 0).joined()
    supervisor_rooms = Rooms(host.registry, host.log, {1, 2})
    yield supervisor_rooms
    await supervisor_rooms.close()


async def started(rooms: Rooms) -> list[ScriptedProcess]:
    rooms.processes.start({1: None, 2: None})
    await until(lambda: len(rooms.started) == 2 and all(process.told for process in rooms.started))
    return rooms.started


async def test_time_begins_behind_the_last_instant_of_every_shard(rooms: Rooms) -> None:
    first, second = await started(rooms)
    beginning = asyncio.ensure_future(rooms.admission.begin_time())
    first.say(recovered(1))
    await until(lambda: rooms.workers[1].state == "recovered")
    assert rooms.time.clock is None
    assert not first.heard(Serve)
    second.say(recovered(FUTURE_NS))
    await beginning
    assert rooms.time.now_ns() >= FUTURE_NS
    await until(lambda: first.heard(Serve) and second.heard(Serve))
    assert {proved.shard_id for proved in first.heard(Proved)} == {1, 2}


async def test_nobody_waits_for_a_shard_that_is_held_and_it_is_let_serve_when_it_comes(rooms: Rooms) -> None:
    first, second = await started(rooms)
    rooms.processes.set_state(rooms.workers[2], "held", "exit 74: the disk failed")
    first.say(recovered(1))
    await rooms.admission.begin_time()
    await until(lambda: first.heard(Serve))
    assert not second.heard(Serve)
    second.say(recovered(1))
    await until(lambda: second.heard(Serve))


async def test_a_shard_that_serves_is_founded_once_and_for_all(rooms: Rooms) -> None:
    await started(rooms)
    assert rooms.registry.founded == set()
    for _ in range(2):
        await rooms.admission.on_serving(rooms.workers[1], Serving(1, 3, ""))
    assert rooms.registry.founded == {1}
    assert (rooms.workers[1].state, rooms.workers[1].figures) == ("serving", {"accounts": 3})


async def test_where_hosts_share_a_worker_serves_once_the_map_knows_its_life(part: PartOf) -> None:
    host = part("a").joined()
    rooms = Rooms(host.registry, host.log, {1, 2}, BESIDE)
    assert rooms.owners is not None
    assert await rooms.owners.take(1, None)
    rooms.processes.start_next(1)
    await until(lambda: rooms.started and rooms.started[0].told)
    rooms.started[0].say(recovered(1))
    await rooms.admission.begin_time()
    await until(lambda: rooms.started[0].heard(Serve))
    assert host.registry.shares.owns[1].voice == (1, 1)
    await rooms.close()


async def test_one_whose_shard_was_taken_before_the_map_knew_its_life_never_serves(part: PartOf) -> None:
    host, second_host = part("a").joined(), part("b").joined()
    rooms = Rooms(host.registry, host.log, {1, 2}, BESIDE)
    assert rooms.owners is not None
    assert await rooms.owners.take(1, None)
    rooms.processes.start_next(1)
    await until(lambda: rooms.started and rooms.started[0].told)
    await second_host.registry.catch_up()
    assert await second_host.take(1)
    rooms.started[0].say(recovered(1))
    await rooms.admission.begin_time()
    await until(lambda: host.registry.shares.owns[1].node == "b")
    assert not await rooms.owners.confirm(1)
    assert not rooms.workers[1].is_confirmed
    assert not rooms.started[0].heard(Serve)
    await rooms.close()
