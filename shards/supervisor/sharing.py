"""One host's part where several serve at once: looks at the log a few times a second, and carries out what is due.

    take        `own` in the map, then a worker opens the shard's journal; once it serves, `at` tells where that is
    wish        asks another host for a shard, where that makes the load more even (`shards.supervisor.placement`)
    hand over   ends the worker of a shard that another host wishes for, and makes that host its owner
    let go      ends the worker of a shard that another host has taken: this one was not heard of for too long

A worker is told of every change of the others' addresses; a link to an owner before is dropped, and what was asked over
it and not answered is answered as unknown. Bytes of money pass through none of this: what a worker may answer and
whom it may call depends on its journal alone, which lets in one owner at a time.

A host whose clock is unfit takes nothing while it serves nothing, and gives up everything where it serves (the
supervisor ends). Where the log is out of reach nothing is decided; workers live on as long as their grants of time.

A shard that cannot be served here (its worker is held) stays this host's until another one takes it, and is not taken
again before a reload or a restart. What other hosts may do with it is theirs to find out.

Each life of a worker is recorded in the map (`life`), behind the opening of the journal and before it serves, and is
told by then what the map says up to there: so a move is decided by the lives that gave and stored the bucket, or not at
all (`shards.supervisor.far_side`), and what opened a journal when its host owned the shard no more never serves.

What is written into the map is made in `shards.supervisor.owners`; this module decides when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from shards.journal import Fenced, JournalError, LastSign
from shards.supervisor.background import Background
from shards.supervisor.briefing import Briefing
from shards.supervisor.child_process import WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.placement import Own, Placement, Take, Wish
from shards.supervisor.registry import HANDOVER_POLL_S, ROOM_RETRY_S, STANDBY_POLL_S, Conflict, Registry
from shards.supervisor.worker_processes import WorkerProcesses

HAND_OVER_S = 30.0  # so long a worker may take to give its shard to another host
LET_GO_S = 2.0  # and where another host has the shard already: nothing that it does counts any more
LISTEN_NS = 5_000_000_000  # so long a new host that hears others waits until it can compare its clock with theirs

log = logging.getLogger("shards.supervisor.sharing")


class Sharing:
    """Takes and gives up shards for one supervisor where several hosts serve at once; it alone starts and ends their
    workers.
    """

    def __init__(
        self,
        registry: Registry,
        owners: Owners,
        processes: WorkerProcesses,
        briefing: Briefing,
        looked: Callable[[], Coroutine[Any, Any, None]],
        background: Background,
        stopping: asyncio.Event,
        boot_ns: Callable[[], int],
    ) -> None:
        """`looked` runs as a background task after each look, with the newest map. `boot_ns`: the boot clock."""
        self._registry = registry
        self._owners = owners
        self._processes = processes
        self._workers: Mapping[int, WorkerState] = processes.by_shard
        self._briefing = briefing
        self._looked = looked
        self._background = background
        self._stopping = stopping
        self._boot_ns = boot_ns
        self._ending: set[int] = set()  # shards whose workers were told to end
        self._failed: set[int] = set()  # shards that could not be served here
        self._announced: dict[int, Own] = {}  # the owners that workers know
        self._began_ns = 0
        self.taken = self.handed_over = self.lost = 0  # shards, ever
        self.why_idle = ""  # why this host takes no shard; "": it may

    # -- the life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks and acts until the daemon stops; to be called once the registry is open. Raises Fenced where one host
        serves everything now, and Conflict where another host has this one's name.
        """
        assert self._registry.placement is not None
        placement, logged = self._registry.placement, ""
        self._began_ns = self._boot_ns()
        self._registry.stands_by = True
        while not self._stopping.is_set():
            try:
                pause_s = await self._look(placement)
                logged = ""
            except Fenced:
                raise
            except JournalError as error:  # this host goes on with what it serves, and looks again
                pause_s = ROOM_RETRY_S
                if str(error) != logged:
                    log.error("who serves which shard cannot be looked at: %s", error)
                logged = str(error)
            await asyncio.sleep(pause_s)

    async def _look(self, placement: Placement) -> float:
        """Looks once and acts; returns the seconds until the next look."""
        registry = self._registry
        looked_ns = self._boot_ns()
        await registry.catch_up()
        if why := placement.why_to_go(registry.shares):
            raise Conflict(why)
        await self._owners.join()
        signs = await registry.signs()
        now_ns = self._boot_ns()
        placement.hear(registry.shares, signs, now_ns)
        self._follow_owners(placement, now_ns)
        self._background.spawn(self._looked())
        self._processes.prepare_next(self._spares_wanted(placement))
        if not self._workers and not self._is_clock_fit(placement, signs, looked_ns):
            return STANDBY_POLL_S
        failed = self._failed | {shard for shard, worker in self._workers.items() if worker.state == "held"}
        step = placement.next_step(registry.shares, {*self._workers, *self._ending}, failed, now_ns)
        if step is None or self._stopping.is_set():
            is_awaiting = placement.is_awaiting(registry.shares, {*self._workers, *self._ending}, failed, now_ns)
            return HANDOVER_POLL_S if is_awaiting and not self._stopping.is_set() else STANDBY_POLL_S
        known_owner = registry.shares.owns.get(step.shard)
        if isinstance(step, Wish):
            if await self._owners.wish(step.shard, known_owner) and known_owner is not None:
                log.info("%s is asked for shard %d, since this host serves less", known_owner.node, step.shard)
        else:
            await self._take(placement, step, known_owner)
        return HANDOVER_POLL_S

    def _is_clock_fit(self, placement: Placement, signs: Mapping[int, LastSign], looked_ns: int) -> bool:
        """Whether this host may take its first shard, judged by its own clock and those of the hosts that it hears."""
        registry = self._registry
        fault = registry.clock_fault(placement, signs, looked_ns)
        self.why_idle = f"the clock of this host is unfit: {fault}" if fault else ""
        guard = registry.clock_watch.guard
        is_new = self._boot_ns() - self._began_ns < LISTEN_NS
        is_deaf = bool(guard.error_ns_max) and is_new and not guard.is_informed
        if not fault and is_deaf and any(placement.is_alive(shard) for shard in signs):
            self.why_idle = "this host hears what time it is for the others"
        return not self.why_idle

    def try_again(self) -> None:
        """Tries shards again that could not be served here; an operator has asked for it."""
        self._failed.clear()

    def _spares_wanted(self, placement: Placement) -> int:
        """Processes to keep ready: this host's part of the shards of any one other host."""
        shares = self._registry.shares
        hosts, shards = len(shares.members), len(self._registry.map.weights)
        part = -(-shards // (hosts * (hosts - 1))) if hosts > 1 else 0
        return max(0, min(part, placement.workers - len(self._workers)))

    # -- what comes ---------------------------------------------------------------------------------------------------

    async def _take(self, placement: Placement, step: Take, known_owner: Own | None) -> None:
        shard = step.shard
        if not await self._owners.take(shard, known_owner):
            return
        if self._stopping.is_set():
            await self._owners.give(shard, "")
            return
        former_node = "" if known_owner is None or known_owner.host_id == placement.host_id else known_owner.node
        log.info("shard %d is taken over%s", shard, f" from {former_node}" if former_node else "")
        self.taken += 1
        self._processes.start_next(shard)
        self._registry.stands_by = False

    # -- what goes ----------------------------------------------------------------------------------------------------

    def _follow_owners(self, placement: Placement, now_ns: int) -> None:
        """Ends the workers of shards that other hosts have taken, hands over shards that they wish for, and tells
        workers the addresses of the rest.
        """
        owns = self._registry.shares.owns
        for shard, worker in list(self._workers.items()):
            owner = owns[shard]
            if shard in self._ending:
                continue
            if not self._owners.is_kept(shard):
                log.warning("shard %d is served by %s now: its worker here ends", shard, owner.node or "nobody")
                if worker.state == "held":
                    self._failed.add(shard)
                placement.disturbed(now_ns)
                self.lost += 1
                self._end(shard, worker, "")
            elif owner.wish and worker.state == "serving":
                log.info("shard %d is handed over, since another host serves less", shard)
                self.handed_over += 1
                self._end(shard, worker, owner.wish)
        if owns != self._announced:
            self._announced = dict(owns)
            self._briefing.tell_places()

    def _end(self, shard: int, worker: WorkerState, heir: str) -> None:
        self._ending.add(shard)
        self._background.spawn(self._until_ended(shard, worker, heir))

    async def _until_ended(self, shard: int, worker: WorkerState, heir: str) -> None:
        await self._processes.end(worker, HAND_OVER_S if heir else LET_GO_S)
        if not self._workers:
            self._registry.stands_by = True
            self._processes.refuse_clients()
        self._briefing.tell_places()
        await self._owners.give(shard, heir)
        self._ending.discard(shard)

    async def give_back(self) -> None:
        """The daemon stops: gives each shard back as soon as its worker has ended, so that other hosts take them one by
        one. Returns once the log says so of all, or cannot be reached.
        """
        self._background.spawn(self._owners.name_heirs())
        workers = list(self._workers.values())
        await asyncio.gather(*(self._give_back(worker) for worker in workers), return_exceptions=True)

    async def _give_back(self, worker: WorkerState) -> None:
        if worker.task is not None:
            await asyncio.wait({worker.task})
        if worker.shard_id not in self._ending:
            await self._owners.give(worker.shard_id, "")
