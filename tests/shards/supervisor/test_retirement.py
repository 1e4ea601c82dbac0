"""A drained shard is let go once nothing needs it, and stays where it is wanted again or takes part in a move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shards.control import ReadObstacle, ShardsChanged, Stop
from tests.shards.supervisor.hosts import PartOf, part
from tests.shards.supervisor.rooms import Rooms, ScriptedProcess, until

__all__ = ["part"]


class Drained:
    """Shard 2 is wanted no more, and owns nothing; both workers serve."""

    def __init__(self, rooms: Rooms, stays: ScriptedProcess, goes: ScriptedProcess) -> None:
        self.rooms = rooms
        self.stays = stays
        self.goes = goes


@pytest.fixture
async def drained(part: PartOf) -> AsyncIterator[Drained]:
    host = part("", 0).joined()
    rooms = Rooms(host.registry, host.log, {1})
    owned = host.registry.map.ownership_of(2)
    await host.registry.record(
        ["weight", 2, 0], *(["assign", bucket_id, 1, after + 1] for bucket_id, after in owned.items())
    )
    stays, goes = await rooms.serving(1, 2)
    retiring = asyncio.ensure_future(rooms.retirement.run())
    yield Drained(rooms, stays, goes)
    retiring.cancel()
    await rooms.close()


async def test_what_nobody_needs_goes_and_the_others_hear_of_it(drained: Drained) -> None:
    rooms = drained.rooms
    rooms.mover.begin_rebalance()
    await until(lambda: rooms.events == [(2, "down")])
    assert list(rooms.workers) == [1]
    assert list(rooms.registry.map.weights) == [1]
    assert drained.goes.heard(Stop)
    assert [message.records for message in drained.stays.heard(ShardsChanged)] == [[["retire", 2]]]


async def test_it_waits_for_whoever_needs_the_journal_and_says_why(drained: Drained) -> None:
    rooms = drained.rooms
    drained.goes.obstacle = "the history is 3 batches behind"
    rooms.mover.begin_rebalance()
    await until(lambda: rooms.workers[2].reason)
    assert rooms.workers[2].reason == "the history is 3 batches behind"
    rooms.mover.begin_rebalance()  # it is asked by one only
    drained.goes.obstacle = ""
    await until(lambda: 2 not in rooms.workers)
    assert not drained.stays.heard(ReadObstacle)


async def test_one_that_is_wanted_again_stays(drained: Drained) -> None:
    rooms = drained.rooms
    drained.goes.obstacle = "the history is 3 batches behind"
    rooms.mover.begin_rebalance()
    await until(lambda: drained.goes.heard(ReadObstacle))
    rooms.mover.settings = rooms.mover.settings._replace(wanted=frozenset((1, 2)))
    asked_before = len(drained.goes.heard(ReadObstacle))
    drained.goes.obstacle = ""
    rooms.mover.begin_rebalance()
    await until(lambda: not rooms.mover.rebalancing)
    assert len(drained.goes.heard(ReadObstacle)) - asked_before <= 1
    assert list(rooms.workers) == [1, 2]
    assert not drained.goes.heard(Stop)
