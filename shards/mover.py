"""The operator's side of sharding, in the supervisor: moves, pins, the rebalancer, and what they look like.

A move is decided by `shards.move.Move`; this file carries out its actions: sends messages to workers, makes the
COMMIT record durable, tells every worker of the new owner. Moves run one at a time. The rebalancer runs after the set
of shards or a weight has changed, and on demand; a bucket that was moved by hand stays where it was put until then.

A worker process that starts while a COMMIT is being written must not be told the old owner: `Registry.deciding` is held
over both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from shards.clock import boot_now_ns
from shards.links import Wire
from shards.machine import Command
from shards.move import Action, Commit, Ended, Move, Send
from shards.rebalancer import plan
from shards.registry import Registry

log = logging.getLogger("shards.mover")

SWEEP_S = 0.1
SHARD_FIGURES = ("accounts", "armed", "pending_cutoffs", "journal_bytes", "passed_on")  # of a worker, in shards_info


class WorkerView(Protocol):
    """What the mover needs to know of a worker."""

    shard_id: int
    state: str
    reason: str
    pid: int
    wire: Wire | None


class Mover:
    """Moves buckets and answers the operator's questions about them."""

    def __init__(
        self,
        registry: Registry,
        workers: dict[int, Any],
        figures_of: Callable[[Any], Any],
        drained: Callable[[int], None],
    ) -> None:
        """`figures_of(worker)` awaits a worker's counters; `drained(shard_id)`: a shard of weight 0 is empty."""
        self._registry = registry
        self._workers = workers
        self._figures_of = figures_of
        self._drained = drained
        self._number = 0
        self._move: Move | None = None
        self._ended: asyncio.Future[str] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._rebalancing: asyncio.Task[None] | None = None
        self.moved = 0
        self.aborted = 0
        self.last_error = ""
        self.last_duration_ns = 0

    # -- moves ------------------------------------------------------------------------------------------------------

    async def move(self, bucket_id: int, shard_id: int) -> dict[str, Any]:
        """Moves a bucket; the reply comes when the target serves. A refusal names what stands against it."""
        async with self._one_at_a_time:
            refused = self._obstacle(bucket_id, shard_id)
            if refused is not None:
                return refused
            error = await self._carry_out(bucket_id, shard_id)
        if error:
            return refusal("MOVE_REFUSED", f"bucket {bucket_id} stays where it is: {error}")
        owner = self._registry.map.owner_of(bucket_id)
        return {"bucket_id": bucket_id, "shard_id": owner.shard_id, "generation": owner.generation}

    def _obstacle(self, bucket_id: int, shard_id: int) -> dict[str, Any] | None:
        bucket_map = self._registry.map
        if not 1 <= bucket_id <= bucket_map.bucket_count:
            return refusal("UNKNOWN_BUCKET", f"bucket {bucket_id} is not one of 1..{bucket_map.bucket_count}")
        if shard_id not in bucket_map.weights:
            return refusal("UNKNOWN_SHARD", f"shard {shard_id} is not one of {sorted(bucket_map.weights)}")
        source = bucket_map.owner[bucket_id]
        if source == shard_id:
            return refusal("MOVE_REFUSED", f"bucket {bucket_id} is on shard {shard_id} already")
        if bucket_id in bucket_map.pinned:
            return refusal("BUCKET_PINNED", f"bucket {bucket_id} is pinned to shard {source}; unpin it first")
        for one in (source, shard_id):
            worker = self._workers.get(one)
            if worker is None or worker.state != "serving":
                state = "not there" if worker is None else worker.state
                return refusal("MOVE_REFUSED", f"shard {one} is {state}")
        return None

    async def _carry_out(self, bucket_id: int, target: int) -> str:
        began_ns = boot_now_ns()
        owner = self._registry.map.owner_of(bucket_id)
        self._number += 1
        number = began_ns // 1000 * 1000 + self._number % 1000  # no two of any life are the same
        move = self._move = Move(number, bucket_id, owner.shard_id, target, owner.generation, began_ns)
        self._ended = asyncio.get_running_loop().create_future()
        sweep = asyncio.get_running_loop().create_task(self._sweep(move))
        try:
            await self._act(move.start())
            error = await self._ended
        finally:
            sweep.cancel()
            self._move = None
        self.last_duration_ns = boot_now_ns() - began_ns
        if error:
            self.aborted += 1
            self.last_error = f"bucket {bucket_id}: {error}"
            log.warning("bucket %d was not moved to shard %d: %s", bucket_id, target, error)
        else:
            self.moved += 1
        return error

    async def _sweep(self, move: Move) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._act(move.on_time(boot_now_ns()))

    async def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(shard_id, message):
                    wire = self._workers[shard_id].wire
                    if wire is not None:
                        wire.send(message)
                case Commit(record):
                    await self._commit(record)
                case Ended(error):
                    if self._ended is not None and not self._ended.done():
                        self._ended.set_result(error)

    async def _commit(self, record: list[Any]) -> None:
        """The decision: durable, then applied, then told; nobody else decides or starts meanwhile."""
        move = self._move
        assert move is not None
        async with self._registry.deciding:
            await self._registry.record(record)
            await self._act(move.on_committed())
            for worker in self._workers.values():
                if worker.wire is not None:
                    worker.wire.send(("map", move.number, *record[1:]))

    async def on_message(self, shard_id: int, message: Any) -> None:
        """A worker's word about a move."""
        if self._move is not None:
            await self._act(self._move.on_message(shard_id, message))

    async def on_down(self, shard_id: int) -> None:
        """A worker's process has ended."""
        if self._move is not None:
            await self._act(self._move.on_down(shard_id))

    async def on_serving(self, shard_id: int) -> None:
        """A worker serves."""
        if self._move is not None:
            await self._act(self._move.on_serving(shard_id))

    # -- balance ----------------------------------------------------------------------------------------------------

    def begin_rebalance(self) -> None:
        """Starts to make the load even, unless that is going on."""
        if self._rebalancing is None or self._rebalancing.done():
            self._rebalancing = asyncio.get_running_loop().create_task(self._rebalance())

    async def _rebalance(self) -> None:
        failures = 0
        while steps := plan(self._registry.map):
            for step in steps:
                if self._registry.map.owner[step.bucket_id] != step.source:
                    break  # somebody moved something by hand: plan anew
                reply = await self.move(step.bucket_id, step.target)
                if "refused" in reply:
                    failures += 1
                    await asyncio.sleep(min(0.1 * 2**failures, 5.0))
                    break
                failures = 0
        for shard_id, weight in list(self._registry.map.weights.items()):
            if weight == 0 and not self._registry.map.buckets_of(shard_id):
                self._drained(shard_id)

    def stop(self) -> None:
        """No further move is begun."""
        if self._rebalancing is not None:
            self._rebalancing.cancel()

    # -- what the operator asks -------------------------------------------------------------------------------------

    async def operate(self, operation: Command) -> object:
        """Carries out an operator's wish; the reply is plain data, a refusal `{"refused": name, "message": text}`."""
        match operation:
            case ("shards_info",):
                return await self._shards_info()
            case ("buckets_info",):
                return await self._buckets_info()
            case ("move_bucket", int(bucket_id), int(shard_id)):
                return await self.move(bucket_id, shard_id)
            case ("pin_bucket" | "unpin_bucket" as name, int(bucket_id)):
                bucket_map = self._registry.map
                if not 1 <= bucket_id <= bucket_map.bucket_count:
                    return refusal("UNKNOWN_BUCKET", f"bucket {bucket_id} is not one of 1..{bucket_map.bucket_count}")
                async with self._registry.deciding:
                    await self._registry.record([name.removesuffix("_bucket"), bucket_id])
                return {"bucket_id": bucket_id, "pinned": bucket_id in self._registry.map.pinned}
            case ("rebalance",):
                steps = plan(self._registry.map)
                self.begin_rebalance()
                return {"moves": len(steps)}
            case _:
                return refusal("UNKNOWN_METHOD", f"{operation[0]} is not served by this version")

    async def _all_figures(self) -> list[tuple[Any, dict[str, Any]]]:
        workers = [self._workers[shard_id] for shard_id in sorted(self._workers)]
        figures = await asyncio.gather(*(self._figures_of(worker) for worker in workers))
        return list(zip(workers, figures, strict=True))

    async def _shards_info(self) -> list[dict[str, Any]]:
        bucket_map = self._registry.map
        return [
            {
                "shard_id": worker.shard_id,
                "worker_pid": worker.pid or None,
                "state": worker.state,
                "reason": worker.reason,
                "weight": bucket_map.weights.get(worker.shard_id, 0),
                "buckets": len(bucket_map.buckets_of(worker.shard_id)),
                **{key: figures.get(key) for key in SHARD_FIGURES},
            }
            for worker, figures in await self._all_figures()
        ]

    async def _buckets_info(self) -> list[dict[str, Any]]:
        accounts: dict[int, int] = {}
        for worker, figures in await self._all_figures():
            for bucket_id, count in figures.get("bucket_accounts", ()):
                if self._registry.map.owner[bucket_id] == worker.shard_id:
                    accounts[bucket_id] = count
        bucket_map, move = self._registry.map, self._move
        moving = 0 if move is None else move.bucket_id
        return [
            {
                "bucket_id": bucket_id,
                "shard_id": bucket_map.owner[bucket_id],
                "state": "sending" if bucket_id == moving else "pinned" if bucket_id in bucket_map.pinned else "active",
                "generation": bucket_map.generation[bucket_id],
                "accounts": accounts.get(bucket_id, 0),
            }
            for bucket_id in range(1, bucket_map.bucket_count + 1)
        ]


def refusal(name: str, message: str) -> dict[str, Any]:
    """A refusal as plain data, for the application to make an error of."""
    return {"refused": name, "message": message}
