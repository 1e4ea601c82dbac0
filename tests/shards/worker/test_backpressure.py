"""Want of room as a worker meets it: refused at once, looked for every second, and over as soon as there is some."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shards.journal import Full, Unavailable
from shards.replies import Unavailable as Refusal
from shards.worker.backpressure import REASONS_MAX, Backpressure
from tests.shards.journal.journal_machine import SHARD, JournalMachine, fill


class Client:
    """Keeps what it was refused."""

    def __init__(self) -> None:
        self.refusals: list[tuple[Any, object]] = []

    def refuse(self, token: Any, reply: object) -> None:
        self.refusals.append((token, reply))


def full_machine() -> tuple[JournalMachine, Any, Backpressure, list[str]]:
    """A journal on a disk without room for one more segment, and what it was asked to do."""
    requests: list[str] = []
    machine = JournalMachine(segment_bytes=65_536)
    journal = machine.opened()
    machine.medium.capacity_bytes = machine.medium.used_bytes()
    backpressure = Backpressure(
        SHARD, journal, lambda: requests.append("look"), lambda: requests.append("snapshot"), 0.001
    )
    return machine, journal, backpressure, requests


async def test_commands_are_refused_before_an_append_could_fail_and_no_longer_than_need_be() -> None:
    machine, journal, backpressure, _ = full_machine()
    while not backpressure.reason:
        fill(journal, 1, 300)  # raises Unavailable where it would come too late
        backpressure.looked()
    client = Client()
    backpressure.refuse(client, 5)
    assert client.refusals == [(5, Refusal(SHARD, backpressure.reason, "no"))]
    assert "the disk is full" in backpressure.reason
    assert fill(journal, 20, 300), "what time causes still has room"
    machine.medium.capacity_bytes = None
    journal.idle_barrier()
    backpressure.looked()
    assert backpressure.reason == ""


async def test_it_looks_again_and_begins_one_snapshot_for_each_state_of_the_log() -> None:
    _, journal, backpressure, requests = full_machine()
    while not backpressure.reason:
        fill(journal, 1, 300)
        backpressure.looked()
    for _ in range(3):
        asked_before = len(requests)
        while len(requests) == asked_before:
            await asyncio.sleep(0.001)
        backpressure.looked()
    assert requests == ["snapshot", "look", "look", "look"]


async def test_a_batch_that_found_no_room_is_tried_again_and_stops_nothing_orderly() -> None:
    _, _, backpressure, requests = full_machine()
    backpressure.check_stop()
    backpressure.stick(Unavailable("no room for beginning a new segment"), lambda: requests.append("append"))
    assert backpressure.stuck
    assert "no room for beginning" in backpressure.reason
    with pytest.raises(Unavailable):
        backpressure.check_stop()
    while "append" not in requests:
        await asyncio.sleep(0.001)
    backpressure.looked()
    assert not backpressure.stuck


async def test_a_batch_that_was_withdrawn_is_not_waited_for_and_nobody_is_let_in() -> None:
    _, _, backpressure, requests = full_machine()
    backpressure.withdraw(Full("the log is full"))
    assert backpressure.refuses_reads
    client = Client()
    backpressure.refuse(client, 1)
    assert client.refusals == [(1, Refusal(SHARD, "the log is full", "no"))]
    with pytest.raises(Unavailable):
        backpressure.check_stop()
    assert requests == []


async def test_without_a_grant_commands_and_reads_are_refused_until_it_is_renewed() -> None:
    backpressure = Backpressure(SHARD, JournalMachine().opened(), lambda: None, lambda: None)
    assert (backpressure.reason, backpressure.refuses_reads) == ("", False)
    backpressure.lapse()
    assert "grant" in backpressure.reason
    assert backpressure.refuses_reads
    backpressure.looked()
    assert "grant" in backpressure.reason, "an append that was looked at says nothing about the grant"
    backpressure.granted()
    assert (backpressure.reason, backpressure.refuses_reads) == ("", False)


async def test_a_lack_of_room_outlives_a_grant_that_was_renewed() -> None:
    machine, journal, backpressure, _ = full_machine()
    backpressure.lapse()
    while "disk" not in backpressure.reason:
        fill(journal, 1, 300)
        backpressure.looked()
    backpressure.granted()
    assert "the disk is full" in backpressure.reason
    machine.medium.capacity_bytes = None
    journal.idle_barrier()
    backpressure.looked()
    assert backpressure.reason == ""


async def test_why_a_grant_is_not_renewed_is_logged_once_a_lapse(caplog: pytest.LogCaptureFixture) -> None:
    _, _, backpressure, _ = full_machine()
    error = Unavailable("tls://a:4222 is not trusted: certificate has expired")
    backpressure.not_renewed(error)
    assert not caplog.messages, "it has time left, and may be renewed in time"
    backpressure.lapse()
    for _ in range(3):
        backpressure.not_renewed(error)
    told = f"shard {SHARD}: the grant of time is not renewed: {error.message}"
    assert caplog.messages.count(told) == 1
    backpressure.granted()
    backpressure.lapse()
    backpressure.not_renewed(error)
    assert caplog.messages.count(told) == 2


async def test_the_servers_of_the_log_that_are_tried_in_turn_are_named_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, _, backpressure, _ = full_machine()
    backpressure.lapse()
    for number in range(300):
        backpressure.not_renewed(Unavailable(f"the log cannot be reached: nats://{number % 3}:4222 did not answer"))
    reasons = [text for text in caplog.messages if "is not renewed" in text]
    assert [text.partition("nats://")[2] for text in reasons] == [
        f"{number}:4222 did not answer" for number in range(3)
    ]
    for number in range(300):
        backpressure.not_renewed(Unavailable(f"another one each time: {number}"))
    assert sum("is not renewed" in text for text in caplog.messages) == REASONS_MAX
