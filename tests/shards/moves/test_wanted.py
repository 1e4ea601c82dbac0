"""What is wanted of buckets outlives whoever moves them: it is carried on, or given up with a reason that is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from shards.buckets import HASH_NAME, BucketMap
from shards.control import Known, MoveAbort, MoveOrder, MoveOut, Unmoved
from shards.moves.mover import Mover
from shards.moves.wanted import Wanted, WantedMoves
from shards.supervisor.placement import Voice
from tests.shards.supervisor.test_operator_api import OperatorApiHarness, harness, rows_of

__all__ = ["harness"]


def of(*records: list[Any]) -> WantedMoves:
    wanted = WantedMoves()
    for record in records:
        wanted.apply(record)
    return wanted


def test_a_decision_or_a_word_ends_what_was_wanted_and_a_reason_is_kept() -> None:
    wanted = of(["wanted", 1, 2, 1], ["wanted", 2, 2, 1], ["wanted", 3, 2, 4], ["wanted", 4, 2, 1])
    assert not wanted.apply(["assign", 1, 2, 2]), "which is the map's, too"
    wanted.apply(["unwanted", 2, 1, ""])
    wanted.apply(["unwanted", 3, 3, ""])  # of a move before
    wanted.apply(["unwanted", 4, 1, "shard 2 is down"])
    assert wanted.of == {3: Wanted(2, 4), 4: Wanted(2, 1, "shard 2 is down")}
    assert wanted.pending() == {3: Wanted(2, 4)}
    assert of(*wanted.records()).of == wanted.of
    wanted.apply(["wanted", 4, 3, 1])
    assert wanted.of[4] == Wanted(3, 1), "it was asked for again"
    assert not wanted.apply(["claim", "a", "host id", 7, 1]), "one host serves all from here on"
    assert wanted.of == {}


def test_only_the_host_of_a_buckets_shard_carries_on_and_nothing_twice() -> None:
    bucket_map = BucketMap()
    bucket_map.apply(["create", 4, HASH_NAME, [1, 2]])
    wanted = of(["wanted", 1, 2, 1], ["wanted", 2, 2, 1], ["wanted", 3, 1, 1], ["unwanted", 2, 1, "no"])
    assert wanted.to_carry_on(bucket_map, {1, 2}, set()) == [1, 3]
    assert wanted.to_carry_on(bucket_map, {1}, set()) == [1]
    assert wanted.to_carry_on(bucket_map, {1, 2}, {1}) == [3]


class NoOtherHosts:
    """The way to other hosts, of which there is none."""

    def __init__(self) -> None:
        self._number = 0

    def next_number(self, source: int) -> int:
        self._number += 1
        return self._number

    def voice_of(self, shard: int) -> Voice:
        return Voice(1, 1)

    def is_serving(self, shard: int) -> bool:
        return True

    def leads(self) -> bool:
        return True

    def why_not(self, shard: int) -> str:
        return ""

    def look_at_arrivals(self) -> None:
        pass


class UnwillingWorker:
    """The wire of a worker that gives nothing away."""

    def __init__(self, mover: Mover, shard: int) -> None:
        self._mover, self._shard = mover, shard
        self.asked = 0

    def send(self, order: MoveOrder) -> None:
        assert isinstance(order, MoveOut | MoveAbort)
        self.asked += isinstance(order, MoveOut)
        reply = Unmoved(order.number, "calls in flight") if isinstance(order, MoveOut) else Known(order.number)
        asyncio.get_running_loop().create_task(self._mover.on_message(self._shard, reply))


@pytest.fixture
async def unwilling(harness: OperatorApiHarness) -> AsyncIterator[OperatorApiHarness]:
    harness.mover.far = NoOtherHosts()  # type: ignore[assignment]
    for shard, worker in harness.workers.items():
        worker.wire = UnwillingWorker(harness.mover, shard)  # type: ignore[assignment]
    harness.mover.carry_on_pauses_s = (0.0, 0.0, 0.0)
    yield harness
    harness.mover.stop()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.001)


async def test_a_move_without_its_driver_is_tried_again_and_given_up_where_everybody_sees_it(
    unwilling: OperatorApiHarness,
) -> None:
    registry, mover = unwilling.registry, unwilling.mover
    await registry.record(["wanted", 1, 2, 1])  # by a host that is gone
    await mover.look_at_map()
    await until(lambda: registry.wanted.of[1].given_up)
    wire: Any = unwilling.workers[1].wire
    assert wire.asked == 3
    assert registry.wanted.of == {1: Wanted(2, 1, "bucket 1 stays where it is: calls in flight")}
    await mover.look_at_map()
    assert not mover.running, "it was given up"

    del unwilling.workers[1]  # another host shows it as well
    unwilling.elsewhere[1] = "b"
    mover.errors.clear()
    mover.far = None
    unwilling.workers[2].wire = unwilling.wire(2)  # type: ignore[assignment]
    row = (await rows_of(unwilling, "shards_info"))[0]
    assert row["alerts"] == ["MOVE_FAILED: bucket 1: bucket 1 stays where it is: calls in flight"]


async def test_who_asked_for_a_move_and_was_told_no_wants_nothing_any_more(unwilling: OperatorApiHarness) -> None:
    reply = await unwilling.mover.move(1, 2)
    assert reply["refused"] == "MOVE_REFUSED"
    assert unwilling.registry.wanted.of == {}


async def test_a_rebalance_is_in_the_log_until_the_load_is_even(unwilling: OperatorApiHarness) -> None:
    registry, mover = unwilling.registry, unwilling.mover
    await registry.record(["uneven", True])  # by a host that is gone; the load is even
    await mover.look_at_map()
    await until(lambda: not registry.uneven)
