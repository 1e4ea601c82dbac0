"""A target takes a bucket in once its own billing time has come as far as the source's, or not at all; a source gives
one away when no call is in flight, and delays no call of other users for one that hangs.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shards.buckets import HASH_NAME, BucketMap
from shards.control import MoveAbort, MoveIn, MoveOut, Stored, Unmoved
from shards.moves.handoff import AHEAD_NS_MAX, CALLS_WAIT_NS, QUIET_WAIT_NS, Handoff
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


class Calls:
    """Calls to the outside for one bucket, as an application has them."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.hang = False
        self._is_paused = False

    def is_paused(self) -> bool:
        return self._is_paused

    def pause_calls(self, bucket_id: int) -> None:
        self._is_paused = True

    def take_up(self, bucket_id: int) -> None:
        self._is_paused = False

    def calls_in_flight(self, bucket_id: int) -> int:
        return self.in_flight

    def calls_hang(self, bucket_id: int) -> bool:
        return self.hang

    def forget_calls(self, bucket_id: int) -> None:
        """The bucket stays."""


class Source(Target):
    """A worker of shard 1 that gives a bucket away; its boot clock is set by hand, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = Shard(1, Counters())
        self.shard.serve(0)
        self.shard.adopt(BUCKET, 1)
        self.boot_ns = 0
        self.calls = Calls()
        host: Any = self
        self.handoff = Handoff(host, self.calls, self.said.append, lambda: self.boot_ns)

    async def waits(self, ns: int) -> None:
        """This much time passes, and the source looks at what it waits for."""
        self.boot_ns += ns
        looked, look = asyncio.Event(), self.calls.calls_in_flight

        def calls_in_flight(bucket_id: int) -> int:
            asyncio.get_running_loop().call_soon(looked.set)
            return look(bucket_id)

        self.calls.calls_in_flight = calls_in_flight  # type: ignore[method-assign]
        await asyncio.wait_for(looked.wait(), 60)
        self.calls.calls_in_flight = look  # type: ignore[method-assign]


async def test_a_bucket_without_calls_leaves_at_once_and_no_call_is_begun_from_then_on() -> None:
    source = Source()
    source.handoff.on_message(MoveOut(NUMBER, BUCKET, 1))
    assert not source.calls.is_paused()
    await source.waits(0)
    assert source.shard.is_frozen(BUCKET)
    assert source.calls.is_paused()
    source.handoff.on_message(MoveAbort(NUMBER, BUCKET))
    assert not source.calls.is_paused()


async def test_a_call_that_hangs_holds_up_no_call_for_others() -> None:
    source = Source()
    source.calls.in_flight, source.calls.hang = 1, True
    source.handoff.on_message(MoveOut(NUMBER, BUCKET, 1))
    for ns in (0, QUIET_WAIT_NS, QUIET_WAIT_NS):
        await source.waits(ns)
        assert not source.calls.is_paused()
        assert not source.shard.is_frozen(BUCKET)
    source.calls.in_flight, source.calls.hang = 0, False
    await source.waits(0)
    assert source.shard.is_frozen(BUCKET)


async def test_calls_that_end_are_waited_for_and_others_are_begun_meanwhile_for_a_while() -> None:
    source = Source()
    source.calls.in_flight = 2
    source.handoff.on_message(MoveOut(NUMBER, BUCKET, 1))
    await source.waits(0)
    assert not source.calls.is_paused()
    await source.waits(QUIET_WAIT_NS)
    assert source.calls.is_paused(), "else there may always be another one"
    source.calls.hang = True
    await source.waits(0)
    assert not source.calls.is_paused(), "one of them does not end"
    assert not any(isinstance(message, Unmoved) for message in source.said)
    await source.waits(CALLS_WAIT_NS)
    assert source.said[-1] == Unmoved(NUMBER, "still in flight: 2 calls of the bucket")
    assert source.handoff.is_still()
    assert not source.calls.is_paused()
