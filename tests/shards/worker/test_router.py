"""What a peer passes on is applied in the order in which it was sent, whatever of it is handed over together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from shards.replies import Unavailable, WrongBucket
from shards.shard import COMMAND, READ, Shard
from shards.system.links import Wire
from shards.worker import router
from shards.worker.backpressure import Backpressure
from shards.worker.router import ASK, MOVE, SURVEY, PeerCaller, PeerLink, receive_frame
from tests.shards.counters import Counters
from tests.shards.journal.journal_machine import SHARD, JournalMachine

BUCKET, ELSEWHERE, MSGID, MODE = 7, 8, 70, 0


class Peer:
    """Another worker: notes what it is answered, by the number of its request."""

    mode = MODE

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []

    def answer(self, token: Any, reply: object) -> None:
        self.answers.append((token[0], reply))

    refuse = answer

    def echo(self) -> None:
        self.answers.append((-1, None))

    def flush(self) -> None:
        """Nothing is held back here."""


def shard_with_peer() -> tuple[Shard, Peer, Backpressure]:
    shard = Shard(SHARD, Counters())
    shard.serve(0)
    shard.adopt(BUCKET, 1)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    backpressure = Backpressure(SHARD, JournalMachine().opened(), lambda: None, lambda: None)
    return shard, Peer(), backpressure


def pass_on(shard: Shard, peer: Any, backpressure: Backpressure, *questions: tuple[int, int, Any]) -> None:
    """A frame of (kind, bucket id, payload), numbered from 0, and what comes of it."""
    frame = [(number, kind, MSGID, MODE, bucket, payload) for number, (kind, bucket, payload) in enumerate(questions)]
    receive_frame(shard, peer, frame, 100, backpressure, lambda *_: False, lambda *_: None)
    ready = shard.take_ready()
    if ready is not None:
        for caller, token, reply in ready.replies:
            caller.answer(token, reply)
        shard.synced(ready)


def test_a_question_finds_the_commands_before_it_and_none_behind_it() -> None:
    shard, peer, backpressure = shard_with_peer()
    add, get = (COMMAND, BUCKET, ("add", "x", 1)), (READ, BUCKET, ("get", "x"))
    pass_on(shard, peer, backpressure, get, add, add, get, add, get)
    values = [reply for _, reply in peer.answers]
    assert [number for number, _ in peer.answers] == [0, 1, 2, 3, 4, 5]
    assert values[1:] == [1, 2, 2, 3, 3]


def test_a_probe_is_answered_at_once() -> None:
    shard, peer, backpressure = shard_with_peer()
    pass_on(shard, peer, backpressure)
    assert peer.answers == [(-1, None)]


def test_a_bucket_that_is_not_here_is_said_so_between_commands_that_are_applied() -> None:
    shard, peer, backpressure = shard_with_peer()
    add = ("add", "x", 1)
    pass_on(shard, peer, backpressure, (COMMAND, BUCKET, add), (COMMAND, ELSEWHERE, add), (COMMAND, BUCKET, add))
    assert peer.answers == [(0, 1), (1, WrongBucket(ELSEWHERE, SHARD)), (2, 2)]


def test_without_room_commands_are_refused_and_questions_answered() -> None:
    shard, peer, backpressure = shard_with_peer()
    add, get = (COMMAND, BUCKET, ("add", "x", 1)), (READ, BUCKET, ("get", "x"))
    pass_on(shard, peer, backpressure, add)
    backpressure.reason = "the disk is full"
    pass_on(shard, peer, backpressure, add, get)
    assert sorted(peer.answers[1:]) == [(0, Unavailable(SHARD, "the disk is full", "no")), (1, 1)]


def test_without_a_grant_questions_are_refused_those_to_all_shards_too() -> None:
    shard, peer, backpressure = shard_with_peer()
    backpressure.lapsed, backpressure.reason = True, "the grant has run out"
    pass_on(shard, peer, backpressure, (READ, BUCKET, ("get", "x")), (SURVEY, 0, ("sum",)))
    assert peer.answers == [(number, Unavailable(SHARD, "the grant has run out", "no")) for number in (0, 1)]


class Link:
    """A link to a shard that is connected, and answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []

    def ask(self, caller: Any, token: Any, kind: int, bucket_id: int, payload: Any) -> None:
        self.asked.append((caller, token))


async def test_a_question_to_all_shards_ends_where_one_of_them_is_silent_and_names_it() -> None:
    links: dict[int, Any] = {2: Link(), 3: Link()}
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    shard, _, _ = shard_with_peer()
    router.ask_shards(shard, links, [SHARD, *links], ("count",), 0, outcome.set_result, timeout_s=0.01)
    ready = shard.take_ready()
    assert ready is not None
    for caller, reply_token, reply in ready.replies:
        caller.answer(reply_token, reply)
    survey, token = links[2].asked[0]
    survey.answer(token, 5)
    refusal = await outcome
    assert (refusal.shard_id, refusal.applied) == (3, "no")
    survey, token = links[3].asked[0]
    survey.answer(token, 6)  # too late: the future would raise if it were told once more


async def test_a_question_to_all_shards_is_answered_by_each_of_them_once() -> None:
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    survey = router.Survey([1, 2], outcome.set_result, 60)
    for token, reply in ((1, "a"), (1, "again"), (2, "b")):
        survey.answer(token, reply)
    assert await outcome == ["a", "b"]


async def test_a_question_to_all_shards_ends_with_the_first_that_cannot_be_asked() -> None:
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    survey = router.Survey([1, 2, 3], outcome.set_result, 60)
    survey.answer(1, "a")
    survey.refuse(2, Unavailable(2, "its worker is not up", "no"))
    survey.answer(3, "c")
    assert await outcome == Unavailable(2, "its worker is not up", "no")


async def test_a_silent_worker_is_said_to_be_silent_for_as_long_as_it_is() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)  # it takes everything, and answers nothing
    port = server.sockets[0].getsockname()[1]
    refusals: list[Any] = []

    async def dial(wire: Any) -> None:
        await loop.create_connection(wire, "127.0.0.1", port)

    def refuse(caller: Any, token: Any, refusal: object) -> None:
        refusals.append(refusal)

    link = router.PeerLink(2, dial, refuse, lambda *_: None, lambda *_: None, probe_s=0.25)
    link.open()
    while not link.is_open:
        await asyncio.sleep(0.01)
    link.ask(Peer(), (0, 0), READ, BUCKET, ("get", "x"))
    link.flush()
    silences_s: list[float] = []
    while len(silences_s) < 3:
        await asyncio.sleep(0.01)
        if silences_s:  # from then on it is refused at once
            link.ask(Peer(), (0, 0), READ, BUCKET, ("get", "x"))
        for refusal in refusals:
            match = re.fullmatch(r"its worker has not answered for (\S+) s", refusal.reason)
            assert match is not None
            if not silences_s or float(match[1]) != silences_s[-1]:
                silences_s.append(float(match[1]))
        refusals.clear()
    assert silences_s[0] == 2.0
    assert silences_s == sorted(silences_s), "it grows"
    link.close()
    server.close()


REFUSAL = Unavailable(2, "the log is full", "no")


async def linked(answer: Callable[[PeerCaller, Any, int], None]) -> tuple[PeerLink, asyncio.Server]:
    """A link to a peer which treats each request so: `answer(caller, token, kind)`."""
    loop = asyncio.get_running_loop()

    def on_frame(wire: Wire, frame: Any) -> None:
        caller = PeerCaller(wire, lambda msgid, mode, reply: b"for the client")
        for number, kind, msgid, mode, _, _ in frame:
            answer(caller, (number, kind, msgid, mode), kind)
        caller.flush()

    nothing = lambda _: None  # noqa: E731
    server = await loop.create_server(lambda: Wire(on_frame, nothing, nothing), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def dial(wire: Any) -> None:
        await loop.create_connection(wire, "127.0.0.1", port)

    link = PeerLink(2, dial, lambda *_: None, lambda *_: None, lambda *_: None)
    link.open()
    while not link.is_open:
        await asyncio.sleep(0.01)
    return link, server


class Answered(Peer):
    """Whoever asks over a link: `all` is done with so many answers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count = count

    def answer(self, token: Any, reply: object) -> None:
        super().answer(token, reply)
        if len(self.answers) == self._count:
            self.all.set_result(None)


@pytest.mark.parametrize("way", ["refuse", "answer"])
async def test_a_peer_that_refuses_what_is_not_for_a_client_is_understood_to_refuse_it(way: str) -> None:
    link, server = await linked(lambda caller, token, _: getattr(caller, way)(token, REFUSAL))
    asker = Answered(3)
    for kind in (SURVEY, MOVE, ASK):
        link.ask(asker, (kind,), kind, 0, ("count",))
    link.flush()
    await asker.all
    assert asker.answers == [(kind, REFUSAL) for kind in (SURVEY, MOVE, ASK)]
    assert {type(reply) for _, reply in asker.answers} == {Unavailable}
    link.close()
    server.close()


async def test_a_refusal_as_an_older_version_encodes_it_is_one() -> None:
    link, server = await linked(lambda caller, token, _: caller.tell(token, b"for a client"))
    asker = Answered(1)
    link.ask(asker, (0,), ASK, 0, ("shards_here",))
    link.flush()
    await asker.all
    ((_, refusal),) = asker.answers
    assert isinstance(refusal, Unavailable)
    assert (refusal.shard_id, refusal.applied) == (2, "unknown")
    link.close()
    server.close()
