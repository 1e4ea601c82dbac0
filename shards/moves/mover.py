"""Moves, carried out: by hand, and by the rebalancer.

A move is decided by `shards.moves.move.Move`; this file carries out its actions: sends messages to workers, makes the
COMMIT record durable, tells every worker of the new owner. Each bucket has at most one move at a time; how many run
at once, and how many of them a shard gives or takes, is bounded (`Caps`); others wait their turn. The rebalancer runs
after the set of shards or a weight has changed, and on demand; a bucket that was moved by hand stays where it was put
until then. What cannot be is refused by name, and changes nothing.

A worker process that starts while a COMMIT is being written must not be told the old owner: `Registry.deciding` is held
over both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from shards.control import FarReport, MoveOrder, MoveReport, Stored, Unmoved
from shards.journal import Fenced, JournalError
from shards.machine import Command
from shards.moves.move import Action, Commit, Ended, Move, Send
from shards.moves.rebalancer import Step, plan
from shards.supervisor.placement import Voice
from shards.supervisor.registry import Registry
from shards.system.links import Wire

log = logging.getLogger("shards.moves.mover")

SWEEP_S = 0.1
MOVE_HERE = "move_bucket_here"  # what one supervisor asks of another: as `move_bucket`, and whether it is planned
CARRY_ON_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0)  # between attempts at a move whose driver has ended
ERRORS_KEPT = 100
ASKED_NS = 1_000_000_000  # a worker that has answered is not asked again for so long


class WorkerView(Protocol):
    """What the mover needs to know of a worker."""

    shard_id: int
    state: str
    reason: str
    pid: int
    wire: Wire | None


class FarSide(Protocol):
    """What the mover needs where several hosts serve at once; see `shards.supervisor.far_side`."""

    def next_number(self, source: int, /) -> int:
        """A number for a move that no other move has, greater than that of any earlier move of the same bucket."""

    def voice_of(self, shard: int, /) -> Voice:
        """The worker whose reports count for a shard, as far as this host knows."""

    def is_serving(self, shard: int, /) -> bool:
        """Whether, by the map, the newest worker of the shard serves."""

    def leads(self) -> bool:
        """Whether this host is the one that evens out the load."""

    def why_not(self, shard: int, /) -> str:
        """Why a shard of another host can take no part in a move; "" where it can."""

    def send(self, shard: int, source: int, voice: Voice, order: MoveOrder, /) -> None:
        """Passes an order on to the worker of another host."""

    async def ask(self, shard: int, operation: Command, /) -> dict[str, Any]:
        """Sends an operation to the supervisor of a shard's host, and returns its answer or a refusal; what it decided
        is known here by then.
        """

    async def ask_only(self, shard: int, operation: Command, /) -> dict[str, Any]:
        """As `ask`, for operations that decide nothing."""

    def look_at_arrivals(self) -> None:
        """Lets workers drop the copies of buckets that, by the map, can never arrive here any more."""


class Caps(NamedTuple):
    """How many moves may run at once: in all, out of one shard, into one shard."""

    total: int = 1
    sending: int = 1
    receiving: int = 1


class MoveSettings(NamedTuple):
    """The settings of the mover; a reload may change them."""

    wanted: frozenset[int]  # shards; any other one goes as soon as it is empty
    caps: Caps = Caps()
    locked: frozenset[int] = frozenset()  # shards that the rebalancer leaves alone


class Obstacle(NamedTuple):
    """Why a move cannot begin or end."""

    name: str  # of the refusal
    text: str
    shard_down: bool = False  # a shard is to be brought up again; all else is for an operator to decide


class Running:
    """A move that was requested and has not ended."""

    def __init__(self, bucket_id: int, source: int, target: int) -> None:
        self.bucket_id = bucket_id
        self.source = source
        self.target = target
        self.move: Move | None = None  # None: it waits its turn
        self.voices: dict[int, Voice] = {}  # of both shards, where several hosts serve at once
        self.sweep: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class Mover:
    """Drives the moves of buckets."""

    def __init__(
        self,
        registry: Registry,
        workers: Mapping[int, WorkerView],
        settings: MoveSettings,
        boot_ns: Callable[[], int],
        far: FarSide | None = None,
        why_still: Callable[[Any], Awaitable[str]] | None = None,
    ) -> None:
        """`boot_ns`: the boot clock. `far`: where several hosts serve at once. `why_still` asks a worker, and returns
        why it would take no part in a move; "" where it would.
        """
        self._boot_ns = boot_ns
        self._registry = registry
        self._workers = workers
        self.settings = settings
        self.far = far
        self._why_still = why_still
        self._answered_ns: dict[int, int] = {}  # boot instants at which workers would take part in a move
        self._drained: asyncio.Queue[int] = asyncio.Queue()  # at most once for each shard and rebalancing
        self._number = 0
        self.running: dict[int, Running] = {}  # by bucket id
        self._by_number: dict[int, Running] = {}
        self._room = asyncio.Event()
        self._held = False
        self._serving = asyncio.Event()  # a shard serves that did not
        self._rebalancing: asyncio.Task[None] | None = None
        self._plans = 0  # how often a new plan was asked for
        self.carry_on_pauses_s: tuple[float, ...] = CARRY_ON_PAUSES_S
        self._carried: dict[int, asyncio.Task[None]] = {}  # moves that others asked for or drove before, by bucket id
        self.moved = 0
        self.aborted = 0
        self.errors: dict[int, str] = {}  # bucket id -> why its last move came to nothing, the newest last
        self.last_duration_ns = 0

    def take_settings(self, settings: MoveSettings) -> None:
        """Heeds these from now on: what waits for its turn begins where there is room for it, and the rebalancer, where
        it is at work, goes on by a new plan.
        """
        is_changed, self.settings = settings != self.settings, settings
        self._room.set()
        if is_changed and self.rebalancing:
            self.begin_rebalance()

    async def hold(self) -> None:
        """Begins no further move, and returns once none is under way. Requested moves wait for `release`."""
        self._held = True
        while self._by_number:
            self._room.clear()
            await self._room.wait()

    @property
    def is_held(self) -> bool:
        """Whether no move begins, because a backup holds the files still."""
        return self._held

    def release(self) -> None:
        """Lets moves begin again."""
        self._held = False
        self._room.set()

    # -- moves ------------------------------------------------------------------------------------------------------

    async def move(
        self, bucket_id: int, shard_id: int, *, pass_on: bool = True, planned: bool = False, is_wanted: bool = False
    ) -> dict[str, Any]:
        """Moves a bucket; returns the reply once the target serves it. A refusal names the obstacle. `pass_on`: where
        another host has the source, that host is asked to move it. `planned`: the rebalancer asks, and tries again in
        any case. `is_wanted`: the map's log has the wish already.
        """
        obstacle = self.obstacle(bucket_id, shard_id)
        if obstacle is not None:
            return refusal(obstacle.name, obstacle.text)
        source = self._registry.map.owner[bucket_id]
        if self.far is not None and source not in self._workers:
            if pass_on:
                return await self.far.ask(source, (MOVE_HERE, bucket_id, shard_id, int(planned)))
            return refusal("MOVE_REFUSED", f"shard {source} is not served by the host that was asked")
        running = self.running[bucket_id] = Running(bucket_id, source, shard_id)
        try:
            while True:
                while not (planned and self._locked_of(running)) and not self._has_room(running):
                    self._room.clear()
                    await self._room.wait()
                if not (unasked := self._unasked(running)):
                    break
                if why := await self._still(unasked):
                    return refusal("MOVE_REFUSED", f"bucket {bucket_id} stays where it is: {why}")
            obstacle = self.obstacle(bucket_id, shard_id, running)
            if obstacle is not None:
                return refusal(obstacle.name, obstacle.text)
            if planned and (locked := self._locked_of(running)):  # since the plan was made
                return refusal("MOVE_REFUSED", f"shard {min(locked)} is locked: the rebalancer leaves it alone")
            is_noted = self.far is not None and not planned and not is_wanted
            if is_noted and (unnoted := await self._note_wanted(running)):
                return refusal("MOVE_REFUSED", unnoted)
            error = await self._carry_out(running)
            if is_noted and error:
                await self._note_unwanted(bucket_id)
        finally:
            del self.running[bucket_id]
            self._room.set()
            if not self.rebalancing and (self.is_leaving(running.source) or self.is_leaving(shard_id)):
                self.begin_rebalance()  # it would stay otherwise: whoever drained it is done
        owner = self._registry.map.owner_of(bucket_id)
        if error and owner.shard_id == shard_id:
            return refusal("UNAVAILABLE", f"bucket {bucket_id} is on shard {shard_id} now, but {error}")
        if error:
            return refusal("MOVE_REFUSED", f"bucket {bucket_id} stays where it is: {error}")
        return {"bucket_id": bucket_id, "shard_id": owner.shard_id, "generation": owner.generation}

    def _locked_of(self, running: Running) -> frozenset[int]:
        """Returns which of the two shards of a move the rebalancer leaves alone by now."""
        return self.settings.locked & {running.source, running.target}

    def _unasked(self, running: Running) -> list[Any]:
        """The workers of this host that have a part in a move, if one has not been asked for a while. Nobody serves a
        bucket that is on its way: towards a worker that stands still it would be until the move is given up.
        """
        if self._why_still is None:
            return []
        oldest_ns = self._boot_ns() - ASKED_NS
        sides = [shard_id for shard_id in (running.source, running.target) if shard_id in self._workers]
        if all(self._answered_ns.get(shard_id, -1) >= oldest_ns for shard_id in sides):
            return []
        return [self._workers[shard_id] for shard_id in sides]

    async def _still(self, workers: list[Any]) -> str:
        """Why one of these workers would take no part in a move; "" where all would. All are asked at once: of two that
        take longer than `ASKED_NS` to answer, one would else be to ask again whenever the other has answered.
        """
        assert self._why_still is not None
        reasons = await asyncio.gather(*map(self._why_still, workers))
        now_ns = self._boot_ns()
        for worker, why in zip(workers, reasons, strict=True):
            if why:
                return f"shard {worker.shard_id}: {why}"
            self._answered_ns[worker.shard_id] = now_ns
        return ""

    async def _note_wanted(self, running: Running) -> str:
        """Records the move in the map's log, so that it outlives this process. Returns why it cannot begin, or ""."""
        bucket_id, source, target = running.bucket_id, running.source, running.target

        def records() -> list[list[Any]]:
            bucket_map = self._registry.map
            is_here = bucket_map.owner[bucket_id] == source
            return [["wanted", bucket_id, target, bucket_map.generation[bucket_id]]] if is_here else []

        try:
            return "" if await self._registry.record_if(records) else f"bucket {bucket_id} has moved meanwhile"
        except Fenced:
            raise
        except JournalError as error:
            return f"the map cannot be written: {error}"

    async def _note_unwanted(self, bucket_id: int, reason: str = "") -> None:
        def records() -> list[list[Any]]:
            wanted = self._registry.wanted.of.get(bucket_id)
            return [] if wanted is None else [["unwanted", bucket_id, wanted.generation, reason]]

        await self._registry.record_surely(records)

    def _carry_on_all(self) -> None:
        """Takes up the recorded moves of buckets of this host that no process drives."""
        served = {shard_id for shard_id, worker in self._workers.items() if worker.state == "serving"}
        running = self.running.keys() | self._carried.keys()
        for bucket_id in self._registry.wanted.to_carry_on(self._registry.map, served, running):
            self._carried[bucket_id] = asyncio.get_running_loop().create_task(self._carry_on(bucket_id))

    async def _carry_on(self, bucket_id: int) -> None:
        """Drives a move whose driver has ended, until it is done, is given up, or is another host's to drive."""
        wanted, reason = self._registry.wanted.of[bucket_id], ""
        log.info("bucket %d is to go to shard %d still: whoever moved it has ended", bucket_id, wanted.shard)
        try:
            for pause_s in self.carry_on_pauses_s:
                reply = await self.move(bucket_id, wanted.shard, pass_on=False, is_wanted=True)
                is_here = self._registry.map.owner[bucket_id] in self._workers
                if not is_here or self._registry.wanted.of.get(bucket_id) != wanted:
                    return
                reason = reply["message"]
                await asyncio.sleep(pause_s)
            await self._note_unwanted(bucket_id, reason)
            log.warning("the move of bucket %d to shard %d is given up: %s", bucket_id, wanted.shard, reason)
        finally:
            del self._carried[bucket_id]

    def obstacle(self, bucket_id: int, shard_id: int, running: Running | None = None) -> Obstacle | None:
        """The obstacle to a move, or None; `running` is the move itself where it was admitted already."""
        bucket_map = self._registry.map
        if not 1 <= bucket_id <= bucket_map.bucket_count:
            return Obstacle("UNKNOWN_BUCKET", f"bucket {bucket_id} is not one of 1..{bucket_map.bucket_count}")
        if shard_id not in bucket_map.weights:
            return Obstacle("UNKNOWN_SHARD", f"shard {shard_id} is not one of {sorted(bucket_map.weights)}")
        if self.is_leaving(shard_id) and (running is None or running.move is None):
            return Obstacle("MOVE_REFUSED", f"shard {shard_id} is being drained, to be gone")
        source = bucket_map.owner[bucket_id]
        if source == shard_id:
            return Obstacle("MOVE_REFUSED", f"bucket {bucket_id} is on shard {shard_id} already")
        if bucket_id in bucket_map.pinned:
            return Obstacle("BUCKET_PINNED", f"bucket {bucket_id} is pinned to shard {source}; unpin it first")
        other = self.running.get(bucket_id)
        if other is not running:
            target = "another shard" if other is None else f"shard {other.target}"
            return Obstacle("MOVE_REFUSED", f"bucket {bucket_id} is moving to {target} already")
        for side_id in (source, shard_id):
            worker = self._workers.get(side_id)
            if worker is None and self.far is not None:
                if why := self.far.why_not(side_id):
                    return Obstacle("MOVE_REFUSED", f"shard {side_id}: {why}", shard_down=True)
            elif worker is None or worker.state != "serving":
                state = "not there" if worker is None else worker.state
                return Obstacle("MOVE_REFUSED", f"shard {side_id} is {state}", shard_down=True)
        return None

    def is_leaving(self, shard_id: int) -> bool:
        """Whether a shard is no longer wanted, and is retired as soon as it is empty."""
        return shard_id not in self.settings.wanted

    def touches(self, shard_id: int) -> bool:
        """Whether a move from or to this shard has not ended."""
        return any(shard_id in (running.source, running.target) for running in self.running.values())

    def _has_room(self, candidate: Running) -> bool:
        under_way = [running for running in self.running.values() if running.move is not None]
        return (
            not self._held
            and len(under_way) < self.settings.caps.total
            and sum(running.source == candidate.source for running in under_way) < self.settings.caps.sending
            and sum(running.target == candidate.target for running in under_way) < self.settings.caps.receiving
        )

    async def _carry_out(self, running: Running) -> str:
        began_ns = self._boot_ns()
        generation = self._registry.map.generation[running.bucket_id]
        self._number += 1
        number = began_ns // 1000 * 1000 + self._number % 1000  # no two of any life are the same
        if self.far is not None:
            number = self.far.next_number(running.source)
            running.voices = {shard_id: self.far.voice_of(shard_id) for shard_id in (running.source, running.target)}
        move = Move(number, running.bucket_id, running.source, running.target, generation, began_ns)
        running.move = move
        self._by_number[number] = running
        running.sweep = asyncio.get_running_loop().create_task(self._sweep(running, move))
        await self._act(running, move.start())
        error = await running.ended
        self.last_duration_ns = self._boot_ns() - began_ns
        self.errors.pop(running.bucket_id, None)
        if error:
            self.aborted += 1
            self.errors[running.bucket_id] = error
            if len(self.errors) > ERRORS_KEPT:
                del self.errors[next(iter(self.errors))]
            log.warning("bucket %d was not moved to shard %d: %s", running.bucket_id, running.target, error)
        else:
            self.moved += 1
        return error

    async def _sweep(self, running: Running, move: Move) -> None:
        """Resends messages of a move until every worker knows the outcome, which may be after the move has ended."""
        while not move.is_over:
            await asyncio.sleep(SWEEP_S)
            await self._act(running, move.on_time(self._boot_ns()))
        self._by_number.pop(move.number, None)
        self._room.set()

    async def _act(self, running: Running, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(shard_id, message):
                    worker = self._workers.get(shard_id)
                    if worker is None and self.far is not None:
                        self.far.send(shard_id, running.source, running.voices[running.source], message)
                    elif worker is not None and worker.wire is not None:
                        worker.wire.send(message)
                case Commit(record):
                    await self._commit(running, record)
                case Ended(error):
                    if not running.ended.done():
                        running.ended.set_result(error)

    async def _commit(self, running: Running, record: list[Any]) -> None:
        """Makes the decision durable, applies it, and sends it to the workers; meanwhile nothing else is decided, and
        no worker starts.
        """
        move = running.move
        assert move is not None
        async with self._registry.deciding:
            if self.far is None:
                await self._registry.record(record)
            elif not await self._registry.commit(record, running.voices):
                reason = "the source or the target began another life before that was decided"
                await self._act(running, move.on_refused(reason, self._boot_ns()))
                return
            shards = {worker.shard_id for worker in self._workers.values() if worker.wire is not None}
            if self.far is not None and running.target not in self._workers:
                shards.add(running.target)  # hosts that only pass requests on hear of it by the log
            await self._act(running, move.on_committed(sorted(shards), self._boot_ns()))

    async def on_message(self, shard_id: int, message: MoveReport) -> None:
        """Takes a worker's message about a move."""
        running = self._by_number.get(message.number)
        if running is not None and running.move is not None:
            await self._act(running, running.move.on_message(shard_id, message, self._boot_ns()))

    async def on_far_report(self, message: FarReport) -> None:
        """Takes a report of another host's worker."""
        report = message.report
        running = self._by_number.get(report.number)
        if running is None:
            return
        if isinstance(report, Stored) and running.voices.get(message.shard_id) != message.voice:
            report = Unmoved(report.number, f"the worker of shard {message.shard_id} is not the one that was meant")
        await self.on_message(message.shard_id, report)

    async def look_at_map(self) -> None:
        """The map has new records, maybe of a new worker of a shard, here or on another host."""
        if self.far is None:
            return
        self.far.look_at_arrivals()
        for running in list(self._by_number.values()):
            for shard_id, voice in running.voices.items():
                move = running.move
                if move is None or self.far.voice_of(shard_id) == voice:
                    continue
                await self._act(running, move.on_down(shard_id, self._boot_ns()))
                if self.far.is_serving(shard_id):
                    await self._act(running, move.on_serving(shard_id, self._boot_ns()))
        self._carry_on_all()
        if self._registry.uneven and self.far.leads() and not self.rebalancing:
            self.begin_rebalance()

    async def on_worker(self, shard_id: int, event: str) -> None:
        """A worker has ended ("down"), serves ("serving"), or will not be started again ("held")."""
        if event == "serving":
            self._serving.set()
        for running in list(self._by_number.values()):
            move = running.move
            assert move is not None
            react = {"down": move.on_down, "serving": move.on_serving, "held": move.on_held}[event]
            await self._act(running, react(shard_id, self._boot_ns()))

    # -- balance ----------------------------------------------------------------------------------------------------

    def plan(self) -> list[Step]:
        """The moves that would even out the load."""
        return plan(self._registry.map, self.settings.locked)

    @property
    def rebalancing(self) -> bool:
        """Whether the rebalancer runs."""
        return self._rebalancing is not None and not self._rebalancing.done()

    async def rebalance(self) -> None:
        """Requests that the load be evened out. The request is recorded in the map's log and outlives this process;
        where several hosts serve at once, the host that leads by then carries it out. Raises JournalError.
        """
        await self._registry.record_if(lambda: [] if self._registry.uneven else [["uneven", True]])
        if self.far is None or self.far.leads():
            self.begin_rebalance()

    def even_out(self) -> None:
        """Starts the rebalancer once every worker serves, where that was requested, or a shard is to be drained."""
        if self.far is not None:  # `look_at_map` sees to it
            return
        is_owed = self._registry.uneven or any(map(self.is_leaving, self._registry.map.weights))
        if is_owed and all(worker.state == "serving" for worker in self._workers.values()):
            self.begin_rebalance()

    async def next_drained(self) -> int:
        """Waits for a shard of weight 0 that owns no bucket any more, and returns it."""
        return await self._drained.get()

    def begin_rebalance(self) -> None:
        """Starts the rebalancer; where it runs already, it makes a new plan."""
        self._plans += 1
        if not self.rebalancing:
            self._rebalancing = asyncio.get_running_loop().create_task(self._rebalance())

    async def _rebalance(self) -> None:
        failures = 0
        while steps := self.plan():
            if self.far is not None and not self.far.leads():
                return  # another host sees in the map what is left
            remaining = iter(steps)
            pool = [self._follow(remaining) for _ in range(self.settings.caps.total)]
            if all(await asyncio.gather(*pool)):
                failures = 0
            else:
                failures += 1
                self._serving.clear()
                with contextlib.suppress(asyncio.TimeoutError):  # one that serves again is worth a try at once
                    await asyncio.wait_for(self._serving.wait(), min(0.1 * 2**failures, 5.0))
        if self._registry.uneven:
            await self._registry.record(["uneven", False])
        for shard_id, weight in list(self._registry.map.weights.items()):
            if weight == 0 and not self._registry.map.buckets_of(shard_id):
                self._drained.put_nowait(shard_id)

    async def _follow(self, steps: Any) -> bool:
        """Makes the moves of a plan one after the other; returns False where one was refused, and a new plan is
        needed.
        """
        plans = self._plans
        for step in steps:
            if plans != self._plans:
                return True
            reply = await self.move(step.bucket_id, step.target, planned=True)
            if "refused" in reply:
                return False
        return True

    def stop(self) -> None:
        """Begins no further move, and decides none that is under way."""
        if self._rebalancing is not None:
            self._rebalancing.cancel()
        for task in self._carried.values():
            task.cancel()
        for running in self._by_number.values():
            if running.sweep is not None:
                running.sweep.cancel()
        self._by_number.clear()


def refusal(name: str, message: str) -> dict[str, Any]:
    """A refusal as plain data, of which the application makes an error. With `applied` "unknown" beside it, what was
    asked for may still be done.
    """
    return {"refused": name, "message": message}
