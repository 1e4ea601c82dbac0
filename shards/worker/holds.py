"""A worker's side of a backup, see `shards.backup`: it holds its files still, and answers a cut.

Each host holds for itself: this worker's supervisor, until it lets go, and that of another host, over a link, for
`LEASE_S` at most. While anybody holds, no snapshot begins, nothing is trimmed, and no bucket moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shards.control import AskShard, BackupReport, Cut, CutAt, FilesHeld, HoldFiles, ShardTold
from shards.machine import Command
from shards.replies import Unavailable
from shards.worker.router import SURVEY

if TYPE_CHECKING:
    from shards.worker.worker import Worker

LEASE_S: Final = 60.0
STILL_POLL_S: Final = 0.02


def cut_at(worker: Worker, at_ns: int, stand_ns: int, done: Callable[[int], None]) -> None:
    """A worker's side. Calls `done(position)` when all that is stamped at or before `at_ns` is durable up to that
    position of its journal, and nothing stamped later is there; -1 where it came to it too late. It stands still from
    `stand_ns` before the instant.
    """
    ahead_ns = at_ns - worker.fresh_now_ns()
    if ahead_ns > stand_ns:
        asyncio.get_running_loop().call_later((ahead_ns - stand_ns) / 1e9, cut_at, worker, at_ns, stand_ns, done)
        return
    if ahead_ns < 0:
        done(-1)
        return
    while worker.fresh_now_ns() <= at_ns:
        continue  # nothing is carried out meanwhile, so nothing before the cut is stamped later
    worker.arrived()  # whatever comes in this turn is stamped anew
    worker.shard.cut()
    if worker.shard.pending_sequence():
        worker.when_durable(lambda: done(worker.journal.head))
        worker.wake()
    else:
        done(worker.journal.head)


class Holds:
    """A worker's side: who holds its files still, each host for itself."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._leases: dict[object, asyncio.TimerHandle | None] = {}  # by holder; this host's supervisor has none

    def on_message(self, message: HoldFiles | Cut | AskShard, send: Callable[[BackupReport], None]) -> None:
        """What this host's supervisor says."""
        worker = self._worker
        if isinstance(message, AskShard):
            _pass_on(worker, message, send)
        elif isinstance(message, Cut):
            cut_at(worker, message.at_ns, message.stand_ns, lambda position: send(CutAt(position)))
        elif message.held:
            self._hold("", None, lambda: send(FilesHeld()))
        else:
            self._let_go("")

    def on_step(self, caller: Any, token: Any, step: Command) -> bool:
        """What another host's worker asks; False where that is no step of a backup."""

        def answer(position: int) -> None:
            self._worker.reply(caller, token, position)

        match step:
            case ("hold_files", holder):
                lease = asyncio.get_running_loop().call_later(LEASE_S, self._let_go, holder)
                self._hold(holder, lease, lambda: answer(0))
            case ("let_go", holder):
                self._let_go(holder)
                answer(0)
            case ("cut", int(at_ns), int(stand_ns)):
                cut_at(self._worker, at_ns, stand_ns, answer)
            case _:
                return False
        return True

    def _hold(self, holder: object, lease: asyncio.TimerHandle | None, tell: Callable[[], None]) -> None:
        """`tell` is called once no snapshot is made, nothing trimmed and no bucket moved, until that is taken back."""
        if (old_lease := self._leases.get(holder)) is not None:
            old_lease.cancel()
        self._leases[holder] = lease
        self._worker.snapshotter.held = self._worker.handoff.held = True
        self._tell_when_still(holder, tell)

    def _let_go(self, holder: object) -> None:
        lease = self._leases.pop(holder, None)
        if lease is not None:
            lease.cancel()
        self._worker.snapshotter.held = self._worker.handoff.held = bool(self._leases)

    def _tell_when_still(self, holder: object, tell: Callable[[], None]) -> None:
        if holder not in self._leases:
            return
        if self._worker.snapshotter.is_still() and self._worker.handoff.is_still():
            tell()
        else:
            asyncio.get_running_loop().call_later(STILL_POLL_S, self._tell_when_still, holder, tell)

    def close(self) -> None:
        """Nobody waits any more."""
        for holder in list(self._leases):
            self._let_go(holder)


class _StepCaller:
    """Who asks a shard of another host: this host's supervisor."""

    mode = 0

    def __init__(self, shard_id: int, send: Callable[[BackupReport], None]) -> None:
        self._shard_id = shard_id
        self._send = send

    def answer(self, token: Any, reply: object) -> None:
        """The other worker's answer, or why there is none."""
        is_told = isinstance(reply, int)
        self._send(ShardTold(self._shard_id, reply if isinstance(reply, int) else -1, "" if is_told else _why(reply)))

    refuse = answer

    def flush(self) -> None:
        """Nothing waits here."""


def _why(reply: object) -> str:
    return reply.reason if isinstance(reply, Unavailable) else "it does not know what a backup is"


def _pass_on(worker: Worker, question: AskShard, send: Callable[[BackupReport], None]) -> None:
    link, caller = worker.links.get(question.shard_id), _StepCaller(question.shard_id, send)
    if link is None:
        caller.answer(None, Unavailable(question.shard_id, "there is no link to it", "no"))
    else:
        link.ask(caller, None, SURVEY, 0, question.step)
        link.flush()
