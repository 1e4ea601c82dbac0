"""The move of one bucket from shard to shard, as a state machine without I/O.

    supervisor                     source                              target
    move_out ────────────────────> lets calls in flight end,
                                   freezes the bucket (no command,
                                   no timer), waits until all of it
                                   is durable, dumps it
             <──────────── payload
    move_in  ─────────────────────────────────────────────────────────> stores payload and digest durably, disarmed
             <────────────────────────────────────────────────── stored
    COMMIT: one record, durable
    new_owner ───────────────────> gives up what it has,               activates, arms: what is overdue fires with
             ─────────────────────  passes on what waited, garbage      its true instant
             <─────────────────────────────────── known │ served

**The COMMIT record decides, and nothing else.** Before it every trouble (a process that ends, a refusal, too long a
wait) aborts to the source, which goes on as if nothing had been; after it there is only forward: a target that died
finds the payload in its own journal, and a source that died finds another owner in the map. Nobody ever concludes
anything from a peer's silence but the supervisor, and it only before COMMIT.

**Where several hosts serve at once**, the driver is the supervisor of the source's host, and COMMIT is a record in a
log that others write, too: it is made only while the lives of both workers which gave and stored the bucket are the
newest that the log knows (`Registry.commit`). So a takeover of either makes it impossible, and a host that takes one
over after the driver's death, or holds the target, finds in the log what came of it (`shards.supervisor.far_side`).

**What is decided is said until it is known.** `new_owner` goes to every worker, `move_abort` to source and target,
again and again until each has acknowledged it or has ended (its next life begins with the map). Either may come any
number of times: whoever knows it already acknowledges it and does nothing.

**Generations and numbers fence.** The source's copy has generation g, the stored payload g + 1. Where a move comes to
nothing while its target is down, the next one may give another target the same g + 1: the copy left behind is told from
an owner's by nothing having happened to it (`shards.worker.recover`). A message that carries another move's number is
ignored, and one of a move that was aborted or decided, so a late or doubled one changes nothing.

`Move` is the supervisor's side: events in, actions out. What source and target do is in `shards.shard` and
`shards.worker.worker`.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, assert_never

from shards.control import (
    Holdup,
    Known,
    MoveAbort,
    MoveIn,
    MoveOrder,
    MoveOut,
    MoveReport,
    NewOwner,
    Payload,
    Served,
    Stored,
    Unmoved,
)

MOVE_TIMEOUT_NS = 10_000_000_000  # until COMMIT; then the move is aborted
SAY_AGAIN_NS = 200_000_000  # after so long the decision is sent again to workers that did not acknowledge it


class Send(NamedTuple):
    """A message to a shard's worker."""

    shard_id: int
    message: MoveOrder


class Commit(NamedTuple):
    """The record that decides the move. The caller makes it durable, applies it to the map, and calls
    `on_committed`.
    """

    record: list[Any]


class Ended(NamedTuple):
    """The move has ended; `error` is empty where the target serves the bucket."""

    error: str


Action = Send | Commit | Ended

PREPARING, STORING, COMMITTING, COMMITTED, ENDED = "preparing", "storing", "committing", "committed", "ended"


def digest_of(block: bytes) -> bytes:
    """The digest by which source and target know that they hold the same content."""
    return hashlib.blake2b(block, digest_size=16).digest()


class Move:
    """One move, as the supervisor drives it."""

    def __init__(self, number: int, bucket_id: int, source: int, target: int, generation: int, now_ns: int) -> None:
        """`generation` is that of the source's ownership; `now_ns` is of the clock that calls of `on_time` use."""
        self.number = number
        self.bucket_id = bucket_id
        self.source = source
        self.target = target
        self.generation = generation
        self.state = PREPARING
        self.reason = "the source is asked for the bucket"
        self._deadline_ns = now_ns + MOVE_TIMEOUT_NS
        self._digest = b""
        self._outcome: MoveAbort | NewOwner | None = None  # what came of it
        self._untold: list[int] = []  # shards whose workers did not acknowledge that yet
        self._say_again_ns = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, and every worker knows the outcome."""
        return self.state == ENDED and not self._untold

    def start(self) -> list[Action]:
        """Returns the first message."""
        return [Send(self.source, MoveOut(self.number, self.bucket_id, self.generation))]

    def on_message(self, shard_id: int, message: MoveReport, now_ns: int) -> list[Action]:
        """Takes a worker's message; messages about other moves, or that do not fit the state, are ignored."""
        if message.number != self.number:
            return []
        is_source, is_target = shard_id == self.source, shard_id == self.target
        match message:
            case Payload():
                return self._on_payload(message, now_ns) if is_source and self.state == PREPARING else []
            case Stored():
                return self._on_stored(message, now_ns) if is_target and self.state == STORING else []
            case Known() | Served():
                if shard_id in self._untold:
                    self._untold.remove(shard_id)
                if isinstance(message, Served) and is_target and self.state == COMMITTED:
                    self.state = ENDED
                    return [Ended("")]
            case Holdup():
                if is_source and self.state == PREPARING:
                    self.reason = message.reason
            case Unmoved():
                if self.state in (PREPARING, STORING):
                    return self.abort(message.reason, now_ns)
            case _:
                assert_never(message)
        return []

    def _on_payload(self, payload: Payload, now_ns: int) -> list[Action]:
        if digest_of(payload.block) != payload.digest:
            return self.abort("the payload was damaged on its way from the source", now_ns)
        self.state, self.reason, self._digest = STORING, "the target stores the payload", payload.digest
        of_bucket = self.bucket_id, self.generation + 1
        order = MoveIn(self.number, *of_bucket, payload.block, payload.digest, payload.at_ns)
        return [Send(self.target, order)]

    def _on_stored(self, stored: Stored, now_ns: int) -> list[Action]:
        if stored.digest != self._digest:
            return self.abort("the target stored something else", now_ns)
        self.state, self.reason = COMMITTING, "the decision is being recorded"
        return [Commit(["assign", self.bucket_id, self.target, self.generation + 1])]

    def on_committed(self, shards: list[int], now_ns: int) -> list[Action]:
        """The COMMIT record is durable and applied. `shards`: those with a worker that must be sent the outcome."""
        assert self.state == COMMITTING, self.state
        self.state, self.reason = COMMITTED, "the target takes over"
        outcome = NewOwner(self.number, self.bucket_id, self.target, self.generation + 1)
        return self._say(outcome, shards, now_ns)

    def _say(self, outcome: MoveAbort | NewOwner, shards: list[int], now_ns: int) -> list[Action]:
        self._outcome, self._untold, self._say_again_ns = outcome, list(shards), now_ns + SAY_AGAIN_NS
        return [Send(shard_id, outcome) for shard_id in shards]

    def on_refused(self, reason: str, now_ns: int) -> list[Action]:
        """The log does not have the COMMIT record and never will: a worker of the source or target that had given or
        stored the bucket has ended.
        """
        assert self.state == COMMITTING, self.state
        self.state = STORING
        return self.abort(reason, now_ns)

    def on_down(self, shard_id: int, now_ns: int) -> list[Action]:
        """A worker has ended. After COMMIT its next process finds the decision in the map."""
        actions: list[Action] = []
        if shard_id in (self.source, self.target) and self.state in (PREPARING, STORING):
            actions = self.abort(f"the worker of shard {shard_id} went away", now_ns)
        if shard_id in self._untold:
            self._untold.remove(shard_id)
        return actions

    def on_held(self, shard_id: int, _: int) -> list[Action]:
        """A worker will not be started again. A decision stands, but the move no longer waits for that worker."""
        if shard_id == self.target and self.state == COMMITTED:
            self.state = ENDED
            return [Ended(f"the worker of shard {shard_id} is held")]
        return []

    def on_serving(self, shard_id: int, _: int) -> list[Action]:
        """A worker has begun to serve by the present map."""
        if shard_id == self.target and self.state == COMMITTED:
            self.state = ENDED
            return [Ended("")]
        return []

    def on_time(self, now_ns: int) -> list[Action]:
        """Sends again what was not answered in time, and aborts a move that takes too long."""
        if now_ns >= self._deadline_ns and self.state in (PREPARING, STORING):
            return self.abort(f"took too long while {self.reason}", now_ns)
        if self._outcome is not None and self._untold and now_ns >= self._say_again_ns:
            return self._say(self._outcome, self._untold, now_ns)
        return []

    def abort(self, reason: str, now_ns: int) -> list[Action]:
        """Aborts the move before COMMIT: the source keeps the bucket."""
        assert self.state in (PREPARING, STORING), f"a move is not aborted while {self.state}"
        self.state = ENDED
        outcome = MoveAbort(self.number, self.bucket_id)
        return [*self._say(outcome, [self.target, self.source], now_ns), Ended(reason)]
