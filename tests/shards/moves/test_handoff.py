"""A target takes a bucket in once its own billing time has come as far as the source's, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shards.buckets import HASH_NAME, BucketMap
from shards.control import MoveAbort, MoveIn, MoveOut, Stored, Unmoved
from shards.moves.handoff import AHEAD_NS_MAX, Handoff
from shards.moves.move import digest_of
from shards.shard import Shard
from tests.shards.counters import Counters

BUCKET, NOW_NS = 1, 10**18
NUMBER = 5


class Target:
    """A worker of shard 2 that takes buckets in; its clock is set by hand."""

    def __init__(self) -> None:
        self.now_ns = NOW_NS
        self.map, self.links = BucketMap(), dict[int, Any]()
        self.map.apply(["create", 2, HASH_NAME, [1, 2]])
        self.shard = Shard(2, Counters())
        self.shard.serve(0)
        self.said: list[Any] = []
        calls: Any = None
        host: Any = self
        self.handoff = Handoff(host, calls, self.said.append, lambda: 0)

    def fresh_now_ns(self) -> int:
        return self.now_ns

    def when_durable(self, function: Any) -> None:
        function()

    def wake(self) -> None:
        """There is no loop of a worker here."""

    def move_in(self, at_ns: int) -> None:
        source = Counters()
        source.create(BUCKET)
        block = source.dump(BUCKET)
        self.handoff.on_message(MoveIn(NUMBER, BUCKET, 2, block, digest_of(block), at_ns))


@pytest.fixture
def target() -> Target:
    return Target()


async def test_a_bucket_of_a_clock_that_is_ahead_is_waited_for(target: Target) -> None:
    target.move_in(NOW_NS + 1_000_000)
    assert target.said == [], "no instant of it may go back"
    assert not target.handoff.is_still()
    target.now_ns += 1_000_000
    async with asyncio.timeout(60):
        while not target.said:
            await asyncio.sleep(0.001)
    assert isinstance(target.said[0], Stored)


async def test_of_a_clock_that_is_too_far_ahead_nothing_is_taken(target: Target) -> None:
    target.move_in(NOW_NS + AHEAD_NS_MAX + 1)
    assert target.said == [Unmoved(NUMBER, "the clock of the source is 1.000 s ahead of the target's")]
    assert target.handoff.is_still()


async def test_what_is_aborted_while_the_clock_is_awaited_is_not_taken(target: Target) -> None:
    target.move_in(NOW_NS + 1_000_000)
    target.handoff.on_message(MoveAbort(NUMBER, BUCKET))
    target.now_ns += 1_000_000
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, passed.set)  # behind the target's own look
    await passed.wait()
    assert not any(isinstance(message, Stored) for message in target.said)
    assert target.handoff.is_still()


async def test_while_files_are_held_no_bucket_leaves_or_arrives(target: Target) -> None:
    target.handoff.held = True
    target.move_in(NOW_NS)
    target.handoff.on_message(MoveOut(NUMBER + 1, 2, 1))
    why = "a backup is being made, during which no bucket moves"
    assert target.said == [Unmoved(NUMBER, why), Unmoved(NUMBER + 1, why)]
