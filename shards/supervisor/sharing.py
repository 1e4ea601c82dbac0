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
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from shards.journal import Fenced, JournalError, LastSign
from shards.links.far import Far
from shards.supervisor.child_process import WorkerState
from shards.supervisor.placement import Own, Placement, Take, Voice, Wish
from shards.supervisor.registry import HANDOVER_POLL_S, ROOM_RETRY_S, STANDBY_POLL_S, Conflict, Registry

HAND_OVER_S = 30.0  # so long a worker may take to give its shard to another host
LET_GO_S = 2.0  # and where another host has the shard already: nothing that it does counts any more
LISTEN_NS = 5_000_000_000  # so long a new host that hears others waits until it can compare its clock with theirs

log = logging.getLogger("shards.supervisor.sharing")


class ShareSettings(NamedTuple):
    """How this host serves beside others."""

    workers: int  # how many shards it serves at most
    listen: str  # "host:port" for the links of other hosts; the worker of shard k listens at port + k, or at a free one
    advertise: str  # by which host name or address others and clients reach this host; "": as it listens
    secret_file: str  # "": none
    certificates: tuple[str, str, str] | None  # see `shards.links.far.Certificates`

    def listen_of(self, shard: int) -> str:
        """Where the worker of this shard is to listen."""
        host, _, port = self.listen.rpartition(":")
        return f"{host}:{int(port) + shard if int(port) else 0}"

    def told(self, address: str) -> str:
        """An address of this host as others are told it."""
        host, _, port = address.rpartition(":")
        is_any = host in ("0.0.0.0", "[::]", "")
        return f"{self.advertise}:{port}" if address and is_any and self.advertise else address


class Hands(NamedTuple):
    """What the supervisor does for it."""

    start: Callable[[int], None]  # a worker for this shard
    end: Callable[[WorkerState, float], Awaitable[None]]  # orderly for so many seconds; returns once it is gone
    prepare: Callable[[int], None]  # keeps so many processes ready for the next shards that are taken
    tell: Callable[[], None]  # every worker, where the others are
    spawn: Callable[[Awaitable[None]], None]  # beside
    looked: Callable[[], None]  # the newest of the map is known


class Sharing:
    """Of one supervisor, once the registry is open."""

    def __init__(
        self, registry: Registry, workers: dict[int, WorkerState], hands: Hands, boot_ns: Callable[[], int]
    ) -> None:
        assert registry.placement is not None
        self._registry = registry
        self._placement: Placement = registry.placement
        self._workers = workers
        self._hands = hands
        self._boot_ns = boot_ns
        self._numbers: dict[int, int] = {}  # of this host's ownerships
        self._lives: dict[int, int] = {}  # the newest life of each worker within its ownership
        self._ending: set[int] = set()  # shards whose workers were told to end
        self._failed: set[int] = set()  # shards that could not be served here
        self._told: dict[int, Own] = {}  # the owners that workers know
        self._began_ns = boot_ns()
        self._stopping = False
        self.taken = self.handed_over = self.lost = 0  # shards, ever
        self.why_idle = ""  # why this host takes no shard; "": it may

    # -- what others ask ----------------------------------------------------------------------------------------------

    def far(self) -> dict[int, Far]:
        """Where the shards of other hosts are reached."""
        owns, me = self._registry.shares.owns, self._placement.host_id
        return {shard: Far(own.links, own.number) for shard, own in owns.items() if own.links and own.host_id != me}

    def direct(self) -> dict[int, str]:
        """Where clients reach the workers of other hosts."""
        owns, me = self._registry.shares.owns, self._placement.host_id
        return {shard: own.direct for shard, own in owns.items() if own.direct and own.host_id != me}

    def node_of(self, shard: int) -> str:
        """The host that serves a shard, or is to; "" where none is known."""
        own = self._registry.shares.owns.get(shard)
        return "" if own is None else own.node

    def without_host(self) -> int:
        """How many shards no host serves, as far as is known here."""
        elsewhere = [shard for shard in self._registry.map.weights if shard not in self._workers]
        return sum(bool(self.why_unserved(shard)) for shard in elsewhere)

    def why_unserved(self, shard: int) -> str:
        """Why a shard of another host is not served, as far as is known here; "" where it is."""
        own = self._registry.shares.owns.get(shard)
        if own is None or not own.node:
            return "no host serves it yet"
        if own.host_id == self._placement.host_id:
            return "it is this host's, and has no worker yet"
        if not self._placement.is_alive(shard):
            return f"{own.node} has served it, and is not heard of"
        return "" if own.links else f"{own.node} is starting to serve it"

    # -- the life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks and does until it is stopped. Raises Fenced where one host serves everything now, and Conflict where
        another one has its name.
        """
        told = ""
        while not self._stopping:
            try:
                pause_s = await self._look()
                told = ""
            except Fenced:
                raise
            except JournalError as error:  # this host goes on with what it serves, and looks again
                pause_s = ROOM_RETRY_S
                if str(error) != told:
                    log.error("who serves which shard cannot be looked at: %s", error)
                told = str(error)
            await asyncio.sleep(pause_s)

    async def _look(self) -> float:
        """One look; seconds until the next."""
        registry, placement = self._registry, self._placement
        looked_ns = self._boot_ns()
        await registry.catch_up()
        if why := placement.why_to_go(registry.shares):
            raise Conflict(why)
        signs = await registry.signs()
        now_ns = self._boot_ns()
        placement.hear(registry.shares, signs, now_ns)
        self._follow_owners(now_ns)
        self._hands.looked()
        self._hands.prepare(self._spares_wanted())
        if not self._workers and not self._is_clock_fit(signs, looked_ns):
            return STANDBY_POLL_S
        failed = self._failed | {one for one, worker in self._workers.items() if worker.state == "held"}
        step = placement.next_step(registry.shares, {*self._workers, *self._ending}, failed, now_ns)
        if step is None or self._stopping:
            is_awaiting = placement.is_awaiting(registry.shares, {*self._workers, *self._ending}, failed, now_ns)
            return HANDOVER_POLL_S if is_awaiting and not self._stopping else STANDBY_POLL_S
        known = registry.shares.owns.get(step.shard)
        if isinstance(step, Wish):
            await self._wish(step.shard, known)
            return HANDOVER_POLL_S
        await self._take(step, known)
        return HANDOVER_POLL_S

    def _is_clock_fit(self, signs: Mapping[int, LastSign], looked_ns: int) -> bool:
        """Whether this host may take its first shard, by its own clock and those of the hosts that it hears."""
        registry, placement = self._registry, self._placement
        fault = registry.clock_fault(placement, signs, looked_ns)
        self.why_idle = f"the clock of this host is unfit: {fault}" if fault else ""
        guard = registry.clock_watch.guard
        is_new = self._boot_ns() - self._began_ns < LISTEN_NS
        is_deaf = bool(guard.error_ns_max) and is_new and not guard.is_informed
        if not fault and is_deaf and any(placement.is_alive(shard) for shard in signs):
            self.why_idle = "this host hears what time it is for the others"
        return not self.why_idle

    def try_again(self) -> None:
        """What could not be served here may be tried again, by an operator's word."""
        self._failed.clear()

    def stop(self) -> None:
        """Takes nothing more, and says who is to look out for what this host gives back."""
        self._stopping = True
        self._hands.spawn(self._promise())

    async def _promise(self) -> None:
        def records() -> list[list[object]]:
            shares = self._registry.shares
            heirs = self._placement.heirs(shares)
            return [["wish", shard, shares.owns[shard].number, heir] for shard, heir in heirs.items()]

        with contextlib.suppress(JournalError):  # then they look a little later
            await self._registry.record_if(records)

    def _spares_wanted(self) -> int:
        """Processes to keep ready: this host's part of the shards of any one other host."""
        shares = self._registry.shares
        hosts, shards = len(shares.members), len(self._registry.map.weights)
        part = -(-shards // (hosts * (hosts - 1))) if hosts > 1 else 0
        return max(0, min(part, self._placement.workers - len(self._workers)))

    def _follow_owners(self, now_ns: int) -> None:
        """Lets go what others have taken, hands over what they wish for, and tells the workers where the others are."""
        owns, me = self._registry.shares.owns, self._placement.host_id
        for shard, worker in list(self._workers.items()):
            own = owns[shard]
            if shard in self._ending:
                continue
            if own.host_id != me or own.number != self._numbers[shard]:
                log.warning("shard %d is served by %s now: its worker here ends", shard, own.node or "nobody")
                if worker.state == "held":
                    self._failed.add(shard)
                self._placement.disturbed(now_ns)
                self.lost += 1
                self._end(shard, worker, "")
            elif own.wish and worker.state == "serving":
                log.info("shard %d is handed over, since another host serves less", shard)
                self.handed_over += 1
                self._end(shard, worker, own.wish)
        if owns != self._told:
            self._told = dict(owns)
            self._hands.tell()

    def _end(self, shard: int, worker: WorkerState, heir: str) -> None:
        self._ending.add(shard)
        self._hands.spawn(self._until_ended(shard, worker, heir))

    async def _until_ended(self, shard: int, worker: WorkerState, heir: str) -> None:
        await self._hands.end(worker, HAND_OVER_S if heir else LET_GO_S)
        number = self._numbers.pop(shard)
        await self._give(shard, number, heir)
        self._ending.discard(shard)

    async def _give(self, shard: int, number: int, heir: str) -> None:
        """The shard is the heir's from here on, or where there is none, nobody's."""
        shares, me = self._registry.shares, self._placement.host_id

        def records() -> list[list[object]]:
            nonlocal shares
            shares = self._registry.shares
            own, member = shares.owns[shard], shares.members.get(heir)
            if own.host_id != me or own.number != number:
                return []
            return [shares.next_own(shard, member.node, heir) if member is not None else shares.next_own(shard, "", "")]

        try:
            await self._registry.record_if(records)
        except JournalError as error:
            log.warning("that shard %d was given back could not be told: %s", shard, error)

    async def _wish(self, shard: int, known: Own | None) -> None:
        def records() -> list[list[object]]:
            own = self._registry.shares.owns.get(shard)
            return [] if own is None or own != known else [["wish", shard, own.number, self._placement.host_id]]

        if await self._registry.record_if(records) and known is not None:
            log.info("%s is asked for shard %d, since this host serves less", known.node, shard)

    async def _take(self, step: Take, known: Own | None) -> None:
        shard, placement = step.shard, self._placement

        def records() -> list[list[object]]:
            shares = self._registry.shares
            return (
                [shares.next_own(shard, placement.node, placement.host_id)] if shares.owns.get(shard) == known else []
            )

        if not await self._registry.record_if(records):
            return
        self._numbers[shard] = self._registry.shares.owns[shard].number
        self._lives.pop(shard, None)
        if self._stopping:
            await self.given_back(shard)
            return
        before = "" if known is None or known.host_id == placement.host_id else known.node
        log.info("shard %d is taken over%s", shard, f" from {before}" if before else "")
        self.taken += 1
        self._hands.start(shard)

    async def arrived(self, shard: int, links: str, direct: str) -> None:
        """The worker of this shard serves: others are told where it is reached. Tried until the log takes it."""
        number, life = self._numbers.get(shard), self._lives.get(shard)

        def records() -> list[list[object]]:
            own = self._registry.shares.owns[shard]
            return [["at", shard, number, links, direct]] if own.voice == (number, life) else []

        await self._until_recorded(shard, number, records)

    def begin_life(self, shard: int) -> Voice:
        """A process begins to be the shard's worker: the life that it will have. No two processes have the same."""
        own = self._registry.shares.owns[shard]
        self._lives[shard] = max(own.life, self._lives.get(shard, 0)) + 1
        return Voice(self._numbers[shard], self._lives[shard])

    async def confirm(self, shard: int) -> bool:
        """Records the life of a worker that has opened its journal, before it serves: what an earlier life said of a
        move that is not decided by then never counts. False where the shard is not this host's any more.
        """
        number, life = self._numbers.get(shard), self._lives.get(shard, 0)

        def records() -> list[list[object]]:
            own = self._registry.shares.owns[shard]
            return [["life", shard, number, life]] if own.number == number and own.life < life else []

        await self._until_recorded(shard, number, records)
        own = self._registry.shares.owns.get(shard)
        return own is not None and own.voice == (number, life)

    async def _until_recorded(self, shard: int, number: int | None, records: Callable[[], list[list[object]]]) -> None:
        """Tried until the log takes it, as long as this ownership lasts."""
        while number is not None and self._numbers.get(shard) == number and not self._stopping:
            try:
                await self._registry.record_if(records)
                return
            except JournalError:
                await asyncio.sleep(ROOM_RETRY_S)

    async def catch_up(self) -> None:
        """Takes up what others have decided, if the log can be reached."""
        with contextlib.suppress(JournalError):
            await self._registry.catch_up()

    async def given_back(self, shard: int) -> None:
        """The worker of this shard has ended, and the daemon stops: other hosts need not wait."""
        number = self._numbers.get(shard)
        if number is not None and shard not in self._ending:
            await self._give(shard, number, "")
