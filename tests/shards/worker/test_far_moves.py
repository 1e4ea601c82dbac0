"""What a worker passes on between the supervisors of two hosts, and says to whom."""

from __future__ import annotations

from typing import Any

import msgspec

from shards.control import (
    Arriving,
    FarAnswer,
    FarReport,
    Known,
    MoveAbort,
    MoveIn,
    MoveOrder,
    MoveOut,
    NewOwner,
    PassAsk,
    PassOn,
    Payload,
    Stored,
    ToSupervisor,
    Unmoved,
    to_report,
)
from shards.machine import Command
from shards.replies import Unavailable
from shards.worker.far_moves import NOBODY, FarMoves
from shards.worker.router import ASK, MOVE

VOICE, SOURCES = (6, 1), (4, 2)
IN = MoveIn(9, 3, 2, b"block", b"digest", 5)


class Link:
    """To another host's worker: what was asked over it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, int, Any]] = []

    def ask(self, caller: Any, token: Any, kind: int, bucket_id: int, payload: Any) -> None:
        self.asked.append((caller, token, kind, payload))


class ReplyRecorder:
    """A worker of another host, over its link to this one: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, Any]] = []

    def tell(self, token: Any, answer: object) -> None:
        self.told.append((token, answer))

    def reports(self) -> list[object]:
        assert all(answer[:2] == VOICE for _, answer in self.told), "each says which life of the worker it is of"
        return [to_report(answer[2]) for _, answer in self.told]


class FarMovesHarness:
    """One worker's part; links lead to shard 2."""

    def __init__(self) -> None:
        self.link = Link()
        self.sent: list[ToSupervisor] = []
        self.delivered: list[MoveOrder] = []
        self.asked: list[tuple[Any, Any, Command]] = []
        links: Any = {2: self.link}
        ask = lambda *question: self.asked.append(question)  # noqa: E731
        self.far = FarMoves(links, VOICE, self.delivered.append, ask, self.sent.append)

    def order(self, order: MoveOrder, token: int = 0) -> Any:
        recorder: Any = ReplyRecorder()
        self.far.on_request(recorder, token, MOVE, (1, *SOURCES, msgspec.msgpack.encode(order)))
        return recorder


def test_an_order_is_passed_on_and_what_comes_back_names_the_life_that_said_it() -> None:
    harness = FarMovesHarness()
    order = msgspec.msgpack.encode(IN)
    harness.far.pass_on(PassOn(2, 9, 1, SOURCES, order))
    ((caller, token, kind, payload),) = harness.link.asked
    assert (kind, payload) == (MOVE, (1, *SOURCES, order))
    caller.answer(token, (7, 3, msgspec.msgpack.encode(Stored(9, b"digest"))))
    caller.refuse(token, Unavailable(2, "its worker went away", "no"))
    harness.far.pass_on(PassOn(5, 9, 1, SOURCES, order))
    assert harness.sent == [
        FarReport(2, (7, 3), Stored(9, b"digest")),
        FarReport(2, NOBODY, Unmoved(9, "the worker of shard 2 was not reached: its worker went away")),
        FarReport(5, NOBODY, Unmoved(9, "the worker of shard 5 was not reached: there is no link to it")),
    ]


def test_a_wish_is_passed_on_and_answered_or_refused_by_name() -> None:
    harness = FarMovesHarness()
    harness.far.pass_ask(PassAsk(2, 7, ("move_bucket_here", 3, 2)))
    ((caller, token, kind, payload),) = harness.link.asked
    assert (kind, payload) == (ASK, ("move_bucket_here", 3, 2))
    caller.answer(token, {"generation": 2})
    caller.refuse(token, Unavailable(2, "its worker went away", "no"))
    harness.far.pass_ask(PassAsk(5, 8, ("move_bucket_here", 3, 2)))
    first, second, third = harness.sent
    assert first == FarAnswer(7, {"generation": 2})
    for refused, number, why in ((second, 7, "its worker went away"), (third, 8, "there is no link to it")):
        assert isinstance(refused, FarAnswer)
        assert (refused.number, refused.reply["refused"]) == (number, "UNAVAILABLE")
        assert why in refused.reply["message"]


def test_what_the_target_says_goes_to_whoever_gave_the_order_and_all_else_to_its_own_supervisor() -> None:
    harness = FarMovesHarness()
    recorder = harness.order(IN)
    assert harness.sent == [Arriving(9, 3, 2, 1, SOURCES)], "its own supervisor looks into the map for it"
    assert harness.delivered == [IN]
    harness.far.report(Payload(9, b"block", b"digest", 5))  # of a move that this host drives
    harness.far.report(Known(9))
    assert recorder.told == []
    harness.far.report(Stored(9, b"digest"))
    harness.far.report(Stored(9, b"digest"))
    assert recorder.reports() == [Stored(9, b"digest")], "once"
    assert harness.sent[1:] == [Payload(9, b"block", b"digest", 5), Known(9), Stored(9, b"digest")]


def test_an_order_that_overtakes_another_ends_its_wait() -> None:
    harness = FarMovesHarness()
    first, second = harness.order(IN), harness.order(MoveAbort(9, 3))
    assert first.reports() == [Unmoved(9, "another order came")]
    harness.far.report(Known(9))
    assert second.reports() == [Known(9)]
    answering = harness.order(NewOwner(9, 3, 2, 2))
    harness.far.report(Known(9))
    assert answering.reports() == [Known(9)]


def test_a_bucket_leaves_by_an_order_of_its_own_host_alone() -> None:
    harness = FarMovesHarness()
    recorder = harness.order(MoveOut(9, 3, 1))
    assert recorder.reports() == [Unmoved(9, "a bucket leaves by an order of its own host alone")]
    assert harness.delivered == []


def test_a_wish_of_another_host_is_this_hosts_supervisors_to_answer() -> None:
    harness = FarMovesHarness()
    recorder: Any = ReplyRecorder()
    harness.far.on_request(recorder, 1, ASK, ["move_bucket_here", 3, 2])
    assert harness.asked == [(recorder, 1, ("move_bucket_here", 3, 2))]
