"""Want of room as a worker meets it: refused at once, looked for every second, and over as soon as there is some."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shards.journal import Unavailable
from shards.replies import Unavailable as Refusal
from shards.worker.backpressure import Backpressure
from tests.shards.journal.rig import SHARD, Rig, fill


class Client:
    """Keeps what it was refused."""

    def __init__(self) -> None:
        self.refusals: list[tuple[Any, object]] = []

    def refuse(self, token: Any, reply: object) -> None:
        self.refusals.append((token, reply))


def full_rig() -> tuple[Rig, Any, Backpressure, list[str]]:
    """A journal on a disk without room for one more segment, and what it was asked to do."""
    asked: list[str] = []
    rig = Rig(segment_bytes=65_536)
    journal = rig.opened()
    rig.medium.capacity_bytes = rig.medium.used_bytes()
    shortage = Backpressure(SHARD, journal, lambda: asked.append("look"), lambda: asked.append("snapshot"), 0.001)
    return rig, journal, shortage, asked


async def test_commands_are_refused_before_an_append_could_fail_and_no_longer_than_need_be() -> None:
    rig, journal, shortage, _ = full_rig()
    while not shortage.reason:
        fill(journal, 1, 300)  # raises Unavailable where it would come too late
        shortage.looked()
    client = Client()
    shortage.refuse(client, 5)
    assert client.refusals == [(5, Refusal(SHARD, shortage.reason, "no"))]
    assert "the disk is full" in shortage.reason
    assert fill(journal, 20, 300), "what time causes still has room"
    rig.medium.capacity_bytes = None
    journal.idle_barrier()
    shortage.looked()
    assert shortage.reason == ""


async def test_it_looks_again_and_begins_one_snapshot_for_each_state_of_the_log() -> None:
    _, journal, shortage, asked = full_rig()
    while not shortage.reason:
        fill(journal, 1, 300)
        shortage.looked()
    for _ in range(3):
        asked_before = len(asked)
        while len(asked) == asked_before:
            await asyncio.sleep(0.001)
        shortage.looked()
    assert asked == ["snapshot", "look", "look", "look"]


async def test_a_batch_that_found_no_room_is_tried_again_and_stops_nothing_orderly() -> None:
    _, _, shortage, asked = full_rig()
    shortage.check_stop()
    shortage.stick(Unavailable("no room for beginning a new segment"), lambda: asked.append("append"))
    assert shortage.stuck
    assert "no room for beginning" in shortage.reason
    with pytest.raises(Unavailable):
        shortage.check_stop()
    while "append" not in asked:
        await asyncio.sleep(0.001)
    shortage.looked()
    assert not shortage.stuck


async def test_without_a_grant_commands_and_reads_are_refused_until_it_is_renewed() -> None:
    shortage = Backpressure(SHARD, Rig().opened(), lambda: None, lambda: None)
    assert (shortage.reason, shortage.refuses_reads) == ("", False)
    shortage.lapse()
    assert "grant" in shortage.reason
    assert shortage.refuses_reads
    shortage.looked()
    assert "grant" in shortage.reason, "an append that was looked at says nothing about the grant"
    shortage.granted()
    assert (shortage.reason, shortage.refuses_reads) == ("", False)


async def test_a_lack_of_room_outlives_a_grant_that_was_renewed() -> None:
    rig, journal, shortage, _ = full_rig()
    shortage.lapse()
    while "disk" not in shortage.reason:
        fill(journal, 1, 300)
        shortage.looked()
    shortage.granted()
    assert "the disk is full" in shortage.reason
    rig.medium.capacity_bytes = None
    journal.idle_barrier()
    shortage.looked()
    assert shortage.reason == ""
