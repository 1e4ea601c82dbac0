"""A worker's part in what the supervisors of two hosts have to say to each other about moves: it lends its links.

    driver's supervisor ── PassOn ──> a worker of its host ── MOVE ──> the target's worker, on another host
                        <─ FarReport ─                     <──────── what that worker says to the order

The driver of a move is the supervisor of the source's host. The target's worker does what any target does
(`shards.moves.handoff`), and what it says goes back the way that the order came, with the life of the worker
(`shards.supervisor.placement.Voice`): a decision counts only as long as that life is the newest one in the map. It
tells its own supervisor of a bucket that arrives (`Arriving`), which sees in the map what came of it where the driver
says no more.

`PassAsk` goes the same way, to the supervisor of the host that serves a shard: ASK, and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from shards.control import (
    Arriving,
    FarAnswer,
    FarReport,
    Known,
    MoveIn,
    MoveOrder,
    MoveOut,
    MoveReport,
    PassAsk,
    PassOn,
    Served,
    Stored,
    ToSupervisor,
    Unmoved,
    to_order,
    to_report,
)
from shards.machine import Command
from shards.replies import Unavailable
from shards.worker.router import ASK, MOVE, PeerCaller, PeerLink

Voice = tuple[int, int]  # see `shards.supervisor.placement`
NOBODY: Voice = (0, 0)  # the one that was meant was not reached
_Asker = tuple[PeerCaller, Any]  # and the token of its request


class _Answers:
    """The caller, in a link's table of requests, for answers of one kind."""

    mode = 0

    def __init__(self, take: Callable[[Any, Any], None]) -> None:
        self.answer = take  # (token, reply)
        self.refuse = take

    def flush(self) -> None:
        """Does nothing: answers are not staged here."""


class FarMoves:
    """What one worker passes on between this host and others, about moves."""

    def __init__(
        self,
        links: Mapping[int, PeerLink],
        voice: Voice,
        deliver: Callable[[MoveOrder], None],
        ask: Callable[[PeerCaller, Any, Command], None],
        send: Callable[[ToSupervisor], None],
    ) -> None:
        """`links`: by shard, as they are now. `voice` identifies this process among all workers of the shard. `deliver`
        takes a move order from another host, `ask` a request for this host's supervisor, `send` messages for that
        supervisor.
        """
        self._links = links
        self._voice = voice
        self._deliver = deliver
        self._ask = ask
        self._send = send
        self._reports = _Answers(self._on_report)
        self._answers = _Answers(self._on_answer)
        self._storing: dict[int, _Asker] = {}  # number of the move -> who waits for Stored, or Unmoved
        self._telling: dict[int, _Asker] = {}  # number of the move -> who waits for Known, or Served

    # -- for a worker of another host ---------------------------------------------------------------------------------

    def pass_on(self, message: PassOn) -> None:
        """Sends a move order to the worker of another host with the next turn."""
        token = message.shard_id, message.number
        link = self._links.get(message.shard_id)
        if link is None:
            self._on_report(token, Unavailable(message.shard_id, "there is no link to it", "no"))
        else:
            link.ask(self._reports, token, MOVE, 0, (message.source, *message.voice, message.order))

    def pass_ask(self, message: PassAsk) -> None:
        """Sends an operator's request to the supervisor of another host with the next turn."""
        token = message.shard_id, message.number
        link = self._links.get(message.shard_id)
        if link is None:
            self._on_answer(token, Unavailable(message.shard_id, "there is no link to it", "no"))
        else:
            link.ask(self._answers, token, ASK, 0, message.operation)

    def _on_report(self, token: Any, reply: Any) -> None:
        shard_id, number = token
        if isinstance(reply, Unavailable):
            why = f"the worker of shard {shard_id} was not reached: {reply.reason}"
            self._send(FarReport(shard_id, NOBODY, Unmoved(number, why)))
        else:
            own_number, life, report = reply
            self._send(FarReport(shard_id, (own_number, life), to_report(report)))

    def _on_answer(self, token: Any, reply: Any) -> None:
        shard_id, number = token
        if isinstance(reply, Unavailable):
            why = f"shard {shard_id} is another host's, which was not reached, or has not answered: {reply.reason}"
            reply = {"refused": "UNAVAILABLE", "message": why}
        self._send(FarAnswer(number, reply))

    # -- from a worker of another host --------------------------------------------------------------------------------

    def on_request(self, caller: PeerCaller, token: Any, kind: int, payload: Any) -> None:
        """Takes what a worker of another host passes on."""
        if kind == ASK:
            self._ask(caller, token, tuple(payload))
        elif kind == MOVE:
            source, own_number, life, order = payload
            self._on_order(caller, token, source, (own_number, life), to_order(order))

    def _on_order(self, caller: PeerCaller, token: Any, source: int, voice: Voice, order: MoveOrder) -> None:
        number = order.number
        if isinstance(order, MoveOut):
            self._tell((caller, token), Unmoved(number, "a bucket leaves by an order of its own host alone"))
            return
        waited = self._storing.pop(number, None)
        if waited is not None:
            self._tell(waited, Unmoved(number, "another order came"))
        if isinstance(order, MoveIn):
            self._storing[number] = caller, token
            self._send(Arriving(number, order.bucket_id, order.generation, source, voice))
        else:
            self._telling[number] = caller, token
        self._deliver(order)

    def report(self, report: MoveReport) -> None:
        """Sends this worker's report about a move to whoever gave the order."""
        asker = None
        if isinstance(report, Known | Served):
            asker = self._telling.pop(report.number, None)
        elif isinstance(report, Stored | Unmoved):
            asker = self._storing.pop(report.number, None)
        if asker is None:
            self._send(report)
        else:
            self._tell(asker, report)

    def _tell(self, asker: _Asker, report: MoveReport) -> None:
        caller, token = asker
        caller.tell(token, (*self._voice, msgspec.msgpack.encode(report)))
