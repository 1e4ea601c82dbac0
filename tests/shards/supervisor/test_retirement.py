"""A drained shard is let go once nothing needs it, and stays where it is wanted again or takes part in a move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shards.control import ReadObstacle, ShardsChanged, Stop
from tests.shards.supervisor.hosts import PartOf, part
from tests.shards.supervisor.supervisor_parts import ScriptedProcess, SupervisorParts, until

__all__ = ["part"]


class DrainedShard:
    """Shard 2 is wanted no more, and owns nothing; both workers serve."""

    def __init__(self, parts: SupervisorParts, stays: ScriptedProcess, goes: ScriptedProcess) -> None:
        self.parts = parts
        self.stays = stays
        self.goes = goes


@pytest.fixture
async def drained(part: PartOf) -> AsyncIterator[DrainedShard]:
    host = part("", 0).joined()
    parts = SupervisorParts(host.registry, host.log, {1})
    owned = host.registry.map.ownership_of(2)
    await host.registry.record(
        ["weight", 2, 0], *(["assign", bucket_id, 1, after + 1] for bucket_id, after in owned.items())
    )
    stays, goes = await parts.serving(1, 2)
    retiring = asyncio.ensure_future(parts.retirement.run())
    yield DrainedShard(parts, stays, goes)
    retiring.cancel()
    await parts.close()


async def test_what_nobody_needs_goes_and_the_others_hear_of_it(drained: DrainedShard) -> None:
    parts = drained.parts
    parts.mover.begin_rebalance()
    await until(lambda: parts.events == [(2, "down")])
    assert list(parts.workers) == [1]
    assert list(parts.registry.map.weights) == [1]
    assert drained.goes.heard(Stop)
    assert [message.records for message in drained.stays.heard(ShardsChanged)] == [[["retire", 2]]]


async def test_it_waits_for_whoever_needs_the_journal_and_says_why(drained: DrainedShard) -> None:
    parts = drained.parts
    drained.goes.obstacle = "the history is 3 batches behind"
    parts.mover.begin_rebalance()
    await until(lambda: parts.workers[2].reason)
    assert parts.workers[2].reason == "the history is 3 batches behind"
    parts.mover.begin_rebalance()  # it is asked by one only
    drained.goes.obstacle = ""
    await until(lambda: 2 not in parts.workers)
    assert not drained.stays.heard(ReadObstacle)


async def test_one_that_is_wanted_again_stays(drained: DrainedShard) -> None:
    parts = drained.parts
    drained.goes.obstacle = "the history is 3 batches behind"
    parts.mover.begin_rebalance()
    await until(lambda: drained.goes.heard(ReadObstacle))
    parts.mover.settings = parts.mover.settings._replace(wanted=frozenset((1, 2)))
    asked_before = len(drained.goes.heard(ReadObstacle))
    drained.goes.obstacle = ""
    parts.mover.begin_rebalance()
    await until(lambda: not parts.mover.rebalancing)
    assert len(drained.goes.heard(ReadObstacle)) - asked_before <= 1
    assert list(parts.workers) == [1, 2]
    assert not drained.goes.heard(Stop)
