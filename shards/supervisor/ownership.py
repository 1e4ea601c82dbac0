"""Whether each bucket has exactly one owner, by what every worker of every host itself holds.

This host asks its own workers and the hosts that serve the other shards (`HELD_HERE`), and then all for the moves that
have not ended (`MOVING_HERE`): a bucket that moves, or whose generation changes meanwhile, is left out. Before it
compares, it waits until its map is as new as that of every host that has answered. Shards whose hosts do not answer in
time are named in `unchecked`; their buckets are left out. A shard whose worker does not answer its own host is a
fault, which `unanswered` has as well: of the faults it alone may pass by itself, as when the shard is handed over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from shards.buckets import check_single_owner
from shards.machine import Command
from shards.moves.mover import Mover
from shards.supervisor.registry import Registry
from shards.supervisor.worker_figures import WorkerFigures

HELD_HERE: Final = "held_here"  # operations that hosts ask each other
MOVING_HERE: Final = "moving_here"
FAR_S: Final = 4.0  # for another host to look at all its buckets: the answer comes within the clients' 10 s
MAP_S: Final = 1.0  # for this host's map to become as new as those of the others
MAP_LOOK_S: Final = 0.02
SILENT: Final = "silent"  # the state of a shard that should serve, and whose worker does not answer
FAULTS_SHOWN_MAX: Final = 100

AskHosts = Callable[[Command, float], Awaitable[list[dict[str, Any]]]]  # asks all other hosts, for so many seconds


class OwnershipCheck:
    """Makes the check, and answers other hosts that make it."""

    def __init__(
        self,
        registry: Registry,
        workers: Mapping[int, Any],
        mover: Mover,
        worker_figures: WorkerFigures,
        elsewhere: Callable[[], dict[int, str]],
        ask_hosts: AskHosts,
    ) -> None:
        """`elsewhere`: the shards that other hosts serve, with the names of these; "" where none is known."""
        self._registry = registry
        self._workers = workers
        self._mover = mover
        self._worker_figures = worker_figures
        self._elsewhere = elsewhere
        self._ask_hosts = ask_hosts

    async def held_here(self) -> dict[str, Any]:
        """Asks every worker of this host what it holds. `shards`: the shard and what it holds, None where its worker
        does not answer; `unanswered`: the faults that say so; `moving`: buckets that moved meanwhile.
        """
        moving = set(self._mover.running)
        workers = [self._workers[shard_id] for shard_id in sorted(self._workers)]
        answers = await asyncio.gather(*(self._worker_figures.examine(worker) for worker in workers))
        unanswered, shards = list[str](), list[tuple[int, Any]]()
        for worker, answer in zip(workers, answers, strict=True):
            shards.append((worker.shard_id, None if answer is None else answer.held))
            if answer is None:
                state = SILENT if worker.state == "serving" else worker.state
                unanswered.append(f"shard {worker.shard_id} does not answer: {state}")
        faults = unanswered[:]
        for worker, answer in zip(workers, answers, strict=True):
            faults += [] if answer is None else [f"shard {worker.shard_id}: {fault}" for fault in answer.faults]
        moving |= set(self._mover.running)
        return {
            "shards": shards,
            "faults": faults[:FAULTS_SHOWN_MAX],
            "unanswered": unanswered,
            "moving": list(moving),
        }

    def moving_here(self) -> dict[str, Any]:
        """The buckets whose moves this host drives, and how new its map is."""
        return {"moving": list(self._mover.running), "version": self._registry.version}

    async def check(self) -> dict[str, Any]:
        """Makes the check; returns the reply to the operator."""
        bucket_map, elsewhere = self._registry.map, self._elsewhere()
        generations = bucket_map.generation[:]
        here, others = await asyncio.gather(self.held_here(), self._ask_hosts((HELD_HERE,), FAR_S))
        newest = await self._ask_hosts((MOVING_HERE,), MAP_S) if others else []
        await self._until_version(max((reply["version"] for reply in newest), default=0))
        bucket_map = self._registry.map
        moving = {bucket_id for reply in (here, *others, *newest) for bucket_id in reply["moving"]}
        moving |= set(self._mover.running)
        moving |= {
            bucket_id
            for bucket_id, generation in enumerate(bucket_map.generation)
            if generation != generations[bucket_id]
        }
        answered = [(int(shard_id), held) for reply in (here, *others) for shard_id, held in reply["shards"]]
        held: dict[int, Iterable[tuple[int, int]]] = {shard_id: held or () for shard_id, held in answered}
        twice = {shard_id for shard_id, count in Counter(shard_id for shard_id, _ in answered).items() if count > 1}
        unchecked = _unchecked(elsewhere, held, twice)
        unasked = {*unchecked, *(shard_id for shard_id, held_of_shard in answered if held_of_shard is None)}
        left_out = moving | {bucket_id for shard_id in unasked for bucket_id in bucket_map.buckets_of(shard_id)}
        faults = [fault for reply in (here, *others) for fault in reply["faults"]]
        faults += check_single_owner(
            bucket_map, {shard: pairs for shard, pairs in held.items() if shard not in twice}, left_out
        )
        return {
            "buckets": bucket_map.bucket_count - len(left_out),
            "moving": len(moving),
            "shards": len(held.keys() - unchecked.keys()),
            "faults": faults[:FAULTS_SHOWN_MAX],
            "unanswered": [  # a host of an older version has only the faults
                fault for reply in (here, *others) for fault in reply.get("unanswered", ())
            ],
            "unchecked": [f"shard {shard_id}: {why}" for shard_id, why in sorted(unchecked.items())],
        }

    async def _until_version(self, version: int) -> None:
        """Waits until this host's map is so new: it looks at the log all the time. Gives up after `MAP_S`."""
        deadline_s = MAP_S
        while self._registry.version < version and deadline_s > 0:
            await asyncio.sleep(MAP_LOOK_S)
            deadline_s -= MAP_LOOK_S


def _unchecked(elsewhere: Mapping[int, str], held: Iterable[int], twice: Iterable[int]) -> dict[int, str]:
    """The shards that were not looked at, and why."""
    unchecked = {
        shard_id: f"{node} has not answered" if node else "no host serves it" for shard_id, node in elsewhere.items()
    }
    for shard_id in held:
        unchecked.pop(shard_id, None)
    return unchecked | dict.fromkeys(twice, "it went to another host meanwhile")
