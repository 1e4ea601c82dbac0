"""What one supervisor has to do with moves in which another host takes part.

**The host of the source drives**: its supervisor freezes, commits and aborts; any other host that is asked for the move
passes the wish on. What the driver says to a target elsewhere goes over a link of one of its workers (`PassOn`), what
it decides is in the map's log (`Registry.commit`).

**The host of the target looks into the log.** A bucket that arrives is either decided, which every host is told by the
log, or can never be, once the log knows a later life of the source than the one that gave it: then the target's copy is
dropped, whether the driver says so or has died. Until one of the two is in the log, nobody concludes anything.

`Arrivals` is pure. What is asked of another supervisor is answered, or refused where the worker ends that was to pass
it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from shards.buckets import BucketMap
from shards.control import Arriving, AskShard, FarAnswer, MoveAbort, MoveOrder, PassAsk, PassOn
from shards.machine import Command
from shards.supervisor.child_process import WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.placement import Own, Shares, Voice
from shards.supervisor.registry import Registry

_COUNT_BITS = _SHARD_BITS = 16  # of the number of a move, behind the version of the map at which it began


class Arrivals:
    """The buckets that other hosts are moving to shards of this host, until the log has the outcome of each move."""

    def __init__(self) -> None:
        self._arriving: dict[tuple[int, int], Arriving] = {}  # (shard, number of the move)

    def note(self, shard: int, arriving: Arriving) -> None:
        """A worker of this host is about to store a bucket."""
        self._arriving[shard, arriving.number] = arriving

    def forget(self, shard: int) -> None:
        """A worker has ended: its next process knows only what the map says of the buckets that it stored."""
        self._arriving = {key: arrival for key, arrival in self._arriving.items() if key[0] != shard}

    def aborted(self, bucket_map: BucketMap, shares: Shares) -> list[tuple[int, MoveAbort]]:
        """The arrivals, by shard, that can no longer be decided: the log, as far as it is known here, has a later
        worker of the source. Decided arrivals are forgotten.
        """
        aborts = []
        for (shard, number), arrival in list(self._arriving.items()):
            if bucket_map.generation[arrival.bucket_id] >= arrival.generation:
                del self._arriving[shard, number]
                if bucket_map.owner_of(arrival.bucket_id) != (shard, arrival.generation):
                    # it was decided for another, or moved on
                    aborts.append((shard, MoveAbort(number, arrival.bucket_id)))
            elif is_over(shares.owns.get(arrival.source), Voice(*arrival.voice)):
                del self._arriving[shard, number]
                aborts.append((shard, MoveAbort(number, arrival.bucket_id)))
        return aborts


def is_over(owner: Own | None, voice: Voice) -> bool:
    """Whether the log, as far as it is known here, has a later worker than this one; where it is behind it may have
    only an earlier one.
    """
    return owner is not None and owner.voice > voice


class FarSide:
    """The part of one supervisor's moves that concerns other hosts."""

    def __init__(self, registry: Registry, workers: Mapping[int, WorkerState], owners: Owners) -> None:
        self._registry = registry
        self._workers = workers
        self._owners = owners
        self._arrivals = Arrivals()
        self._count = 0  # of moves, and of what was asked
        self._questions: dict[int, tuple[int, asyncio.Future[Any]]] = {}  # number -> shard whose worker passes it on

    def next_number(self, source: int) -> int:
        """A number for a new move: unique, and greater than the number of any earlier move of the same bucket, on any
        host.
        """
        self._count += 1
        counted = self._registry.version << _COUNT_BITS | self._count & (1 << _COUNT_BITS) - 1
        return counted << _SHARD_BITS | source

    def voice_of(self, shard: int) -> Voice:
        """The worker whose reports count for a shard, as far as this host knows."""
        owner = self._registry.shares.owns.get(shard)
        return Voice(0, 0) if owner is None else owner.voice

    def is_serving(self, shard: int) -> bool:
        """Whether, by the map, the newest worker of the shard serves."""
        owner = self._registry.shares.owns.get(shard)
        return owner is not None and bool(owner.links)

    def leads(self) -> bool:
        """Whether this host is the one that evens out the load: the host that serves the first shard."""
        return min(self._registry.map.weights) in self._workers

    def why_not(self, shard: int) -> str:
        """Why a shard of another host can take no part in a move; "" where it can."""
        return self._owners.why_unserved(shard)

    def send(self, shard: int, source: int, voice: Voice, order: MoveOrder) -> None:
        """Passes an order on. Where no worker of this host can, the order is dropped, as on a closed wire."""
        relay = self._relay(source)
        if relay is not None and relay.wire is not None:
            relay.wire.send(PassOn(shard, order.number, source, voice, msgspec.msgpack.encode(order)))

    def _relay(self, preferred: int) -> WorkerState | None:
        candidates = [
            worker for worker in self._workers.values() if worker.state == "serving" and worker.wire is not None
        ]
        return min(candidates, key=lambda worker: worker.shard_id != preferred, default=None)

    async def ask(self, shard: int, operation: Command) -> dict[str, Any]:
        """Sends an operation to the supervisor of a shard's host; returns its answer or a refusal. What it decided is
        known here by then, if the log can be reached.
        """
        reply = await self.ask_only(shard, operation)
        await self._owners.catch_up()
        return reply

    async def ask_only(self, shard: int, operation: Command) -> dict[str, Any]:
        """As `ask`, for operations that decide nothing."""
        relay = self._relay(shard)
        if relay is None or relay.wire is None:
            return _unavailable(shard, "no worker of this host can ask")
        self._count += 1
        number, answered = self._count, asyncio.get_running_loop().create_future()
        self._questions[number] = relay.shard_id, answered
        relay.wire.send(PassAsk(shard, number, operation))
        try:
            reply = await answered
        finally:
            del self._questions[number]
        return dict(reply)

    def ask_shard(self, shard: int, step: Command) -> None:
        """Sends a step of a backup to a shard of another host, which answers with ShardTold. ConnectionError: no worker
        of this host can pass it on.
        """
        relay = self._relay(shard)
        if relay is None or relay.wire is None:
            raise ConnectionError("this host serves no shard at present, and asks the others over its workers' links")
        relay.wire.send(AskShard(shard, step))

    def on_message(self, shard: int, message: Arriving | FarAnswer) -> None:
        """Takes a worker's message: it is about to store a bucket that another host moves to it, or has the answer to
        what it passed on.
        """
        if isinstance(message, Arriving):
            self._arrivals.note(shard, message)
        elif message.number in self._questions and not self._questions[message.number][1].done():
            self._questions[message.number][1].set_result(message.reply)

    def look_at_arrivals(self) -> None:
        """Lets workers drop the copies of buckets that, by the map, can never arrive here any more."""
        for shard, abort in self._arrivals.aborted(self._registry.map, self._registry.shares):
            worker = self._workers.get(shard)
            if worker is not None and worker.wire is not None:
                worker.wire.send(abort)

    def on_down(self, shard: int) -> None:
        """A worker of this host has ended: what it passed on gets no answer any more."""
        self._arrivals.forget(shard)
        for relay, answered in self._questions.values():
            if relay == shard and not answered.done():
                answered.set_result(
                    _unavailable(shard, "the worker that asked has ended; the map says what came of it")
                )


def _unavailable(shard: int, why: str) -> dict[str, Any]:
    return {"refused": "UNAVAILABLE", "message": f"shard {shard} is another host's: {why}"}
