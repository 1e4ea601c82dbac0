"""What a peer passes on is applied in the order in which it was sent, whatever of it is handed over together."""

from __future__ import annotations

from typing import Any

from shards.replies import Unavailable, WrongBucket
from shards.shard import COMMAND, READ, Shard
from shards.worker.backpressure import Backpressure
from shards.worker.router import receive_frame
from tests.shards.counters import Counters
from tests.shards.journal.rig import SHARD, Rig

BUCKET, ELSEWHERE, MSGID, MODE = 7, 8, 70, 0


class Peer:
    """Another worker: notes what it is answered, by the number of its request."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []

    def answer(self, token: Any, reply: object) -> None:
        self.answers.append((token[0], reply))

    refuse = answer

    def flush(self) -> None:
        """Nothing is held back here."""


def scene() -> tuple[Shard, Peer, Backpressure]:
    shard = Shard(SHARD, Counters())
    shard.serve(0)
    shard.adopt(BUCKET, 1)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    backpressure = Backpressure(SHARD, Rig().opened(), lambda: None, lambda: None)
    return shard, Peer(), backpressure


def pass_on(shard: Shard, peer: Any, backpressure: Backpressure, *asked: tuple[int, int, Any]) -> None:
    """A frame of (kind, bucket id, payload), numbered from 0, and what comes of it."""
    frame = [(number, kind, MSGID, MODE, bucket, payload) for number, (kind, bucket, payload) in enumerate(asked)]
    receive_frame(shard, peer, frame, 100, backpressure)
    ready = shard.take_ready()
    if ready is not None:
        for caller, token, reply in ready.replies:
            caller.answer(token, reply)
        shard.synced(ready)


def test_a_question_finds_the_commands_before_it_and_none_behind_it() -> None:
    shard, peer, backpressure = scene()
    add, get = (COMMAND, BUCKET, ("add", "x", 1)), (READ, BUCKET, ("get", "x"))
    pass_on(shard, peer, backpressure, get, add, add, get, add, get)
    values = [reply for _, reply in peer.answers]
    assert [number for number, _ in peer.answers] == [0, 1, 2, 3, 4, 5]
    assert values[1:] == [1, 2, 2, 3, 3]


def test_a_bucket_that_is_not_here_is_said_so_between_commands_that_are_applied() -> None:
    shard, peer, backpressure = scene()
    add = ("add", "x", 1)
    pass_on(shard, peer, backpressure, (COMMAND, BUCKET, add), (COMMAND, ELSEWHERE, add), (COMMAND, BUCKET, add))
    assert peer.answers == [(0, 1), (1, WrongBucket(ELSEWHERE, SHARD)), (2, 2)]


def test_without_room_commands_are_refused_and_questions_answered() -> None:
    shard, peer, backpressure = scene()
    add, get = (COMMAND, BUCKET, ("add", "x", 1)), (READ, BUCKET, ("get", "x"))
    pass_on(shard, peer, backpressure, add)
    backpressure.reason = "the disk is full"
    pass_on(shard, peer, backpressure, add, get)
    assert sorted(peer.answers[1:]) == [(0, Unavailable(SHARD, "the disk is full", "no")), (1, 1)]
