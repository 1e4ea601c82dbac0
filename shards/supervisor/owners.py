"""Which host serves which shard, by the map's log, and what this host writes there of its own.

    own     a shard is this host's from here on; or another host's, or nobody's
    life    a process of this host has opened the shard's journal, and has not served yet
    at      it serves, and is reached there
    wish    another host is asked for a shard; of a host that stops: it is asked to take one over
    host    this host takes part, where an operator has let the others forget it by mistake

Where another host has decided otherwise meanwhile, nothing is written: each record is made by the newest map. `own`
counts the ownerships of a shard, `life` the processes within one. So no two processes, on whatever host, are ever taken
for one another, and what an earlier one said counts no more.

What is due is decided in `shards.supervisor.sharing`, by `shards.supervisor.placement`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from shards.journal import JournalError
from shards.links.far import Far
from shards.supervisor.child_process import WorkerState
from shards.supervisor.placement import Own, Placement, Shares, Voice
from shards.supervisor.registry import ROOM_RETRY_S, Registry
from shards.supervisor.settings import ShareSettings

log = logging.getLogger("shards.supervisor.sharing")


class Owners:
    """Which host serves which shard, for one supervisor where several hosts serve at once. Before the registry is open,
    only `elsewhere` and `without_host` may be asked.
    """

    def __init__(
        self,
        registry: Registry,
        workers: Mapping[int, WorkerState],
        share: ShareSettings,
        stopping: asyncio.Event,
    ) -> None:
        """`workers`: of this host, by shard."""
        self._registry = registry
        self._workers = workers
        self._share = share
        self._stopping = stopping
        self._numbers: dict[int, int] = {}  # of this host's ownerships
        self._lives: dict[int, int] = {}  # the newest life of each worker within its ownership

    @property
    def _placement(self) -> Placement:
        placement = self._registry.placement
        assert placement is not None, "the registry is open"
        return placement

    @property
    def _owns(self) -> Mapping[int, Own]:
        return self._registry.shares.owns

    # -- where the others are -----------------------------------------------------------------------------------------

    def far(self) -> dict[int, Far]:
        """The addresses of the workers of other hosts' shards."""
        owns, me = self._owns, self._placement.host_id
        return {
            shard: Far(owner.links, owner.number)
            for shard, owner in owns.items()
            if owner.links and owner.host_id != me
        }

    def direct(self) -> dict[int, str]:
        """The addresses at which clients reach the workers of other hosts."""
        owns, me = self._owns, self._placement.host_id
        return {shard: owner.direct for shard, owner in owns.items() if owner.direct and owner.host_id != me}

    def lives(self) -> dict[int, tuple[int, int]]:
        """The shards that other hosts serve, with the number of each shard's newest worker."""
        return {shard: self._owns[shard].voice for shard in self.far() if shard not in self._workers}

    def elsewhere(self) -> dict[int, str]:
        """The shards that other hosts serve, with the names of those hosts; "" where none is known."""
        if self._registry.unopened:
            return {}
        return {
            shard: self._node_of(shard) for shard in sorted(self._registry.map.weights) if shard not in self._workers
        }

    def _node_of(self, shard: int) -> str:
        owner = self._owns.get(shard)
        return "" if owner is None else owner.node

    def without_host(self) -> int:
        """How many shards no host serves, as far as is known here."""
        return sum(bool(self.why_unserved(shard)) for shard in self.elsewhere())

    def why_unserved(self, shard: int) -> str:
        """Why a shard of another host is not served, as far as is known here; "" where it is."""
        owner = self._owns.get(shard)
        if owner is None or not owner.node:
            return "no host serves it yet"
        if owner.host_id == self._placement.host_id:
            return "it is this host's, and has no worker yet"
        if not self._placement.is_alive(shard):
            return f"{owner.node} has served it, and is not heard of"
        return "" if owner.links else f"{owner.node} is starting to serve it"

    # -- what this host owns ------------------------------------------------------------------------------------------

    def is_kept(self, shard: int) -> bool:
        """Whether this host still owns a shard by the ownership with which it began to serve it."""
        owner = self._owns[shard]
        return owner.host_id == self._placement.host_id and owner.number == self._numbers.get(shard)

    async def join(self) -> None:
        """Records that this host takes part, if the map has neither it nor another host of its name. Raises the log's
        errors.
        """
        placement = self._placement

        def records() -> list[list[object]]:
            members = self._registry.shares.members
            if placement.host_id in members or placement.node in {member.node for member in members.values()}:
                return []
            return [["host", placement.host_id, placement.node, placement.workers]]

        if await self._registry.record_if(records):
            log.info("this host takes part again: somebody had let the others forget it")

    async def take(self, shard: int, known: Own | None) -> bool:
        """Makes this host the owner of a shard; False where the owner is no longer the `known` one. Raises the log's
        errors.
        """
        placement = self._placement

        def records() -> list[list[object]]:
            shares = self._registry.shares
            is_newest = shares.owns.get(shard) == known
            return [shares.next_own(shard, placement.node, placement.host_id)] if is_newest else []

        if not await self._registry.record_if(records):
            return False
        self._numbers[shard] = self._owns[shard].number
        self._lives.pop(shard, None)
        return True

    async def wish(self, shard: int, known: Own | None) -> bool:
        """Asks the owner for a shard; False where the owner is no longer the `known` one. Raises the log's errors."""

        def records() -> list[list[object]]:
            owner = self._owns.get(shard)
            return [] if owner is None or owner != known else [["wish", shard, owner.number, self._placement.host_id]]

        return await self._registry.record_if(records)

    def begin_life(self, shard: int) -> Voice:
        """The number of a process that begins as the shard's worker. No two processes have the same number."""
        self._lives[shard] = max(self._owns[shard].life, self._lives.get(shard, 0)) + 1
        return Voice(self._numbers[shard], self._lives[shard])

    async def confirm(self, shard: int) -> bool:
        """Records the number of a worker that has opened its journal, before it serves: reports of an earlier worker
        about moves that are not decided by then never count. False where the shard is no longer this host's.
        """
        number, life = self._numbers.get(shard), self._lives.get(shard, 0)

        def records() -> list[list[object]]:
            owner = self._owns[shard]
            return [["life", shard, number, life]] if owner.number == number and owner.life < life else []

        await self._until_recorded(shard, number, records)
        owner = self._owns.get(shard)
        return owner is not None and owner.voice == (number, life)

    async def arrived(self, shard: int, links: str, direct: str) -> None:
        """The worker of this shard serves: records at which address, trying until the log takes it. `links`: where it
        listens for other workers; `direct`: for clients, as other hosts are told it.
        """
        number, life = self._numbers.get(shard), self._lives.get(shard)

        def records() -> list[list[object]]:
            is_newest = self._owns[shard].voice == (number, life)
            return [["at", shard, number, self._share.advertised(links), direct]] if is_newest else []

        await self._until_recorded(shard, number, records)

    async def _until_recorded(self, shard: int, number: int | None, records: Callable[[], list[list[object]]]) -> None:
        """Tries to record this until the log takes it, as long as this ownership lasts."""
        while number is not None and self._numbers.get(shard) == number and not self._stopping.is_set():
            try:
                await self._registry.record_if(records)
                return
            except JournalError:
                await asyncio.sleep(ROOM_RETRY_S)

    async def give(self, shard: int, heir: str) -> None:
        """Gives the shard to `heir`, a host id, or to no host where that is empty."""
        number, me = self._numbers.pop(shard, None), self._placement.host_id

        def records() -> list[list[object]]:
            shares: Shares = self._registry.shares
            owner, member = shares.owns[shard], shares.members.get(heir)
            if owner.host_id != me or owner.number != number:
                return []
            return [shares.next_own(shard, member.node, heir) if member is not None else shares.next_own(shard, "", "")]

        try:
            if number is not None:
                await self._registry.record_if(records)
        except JournalError as error:
            log.warning("that shard %d was given back could not be told: %s", shard, error)

    async def name_heirs(self) -> None:
        """Records which hosts are to take the shards that this host is about to give back."""

        def records() -> list[list[object]]:
            heirs = self._placement.heirs(self._registry.shares)
            return [["wish", shard, self._owns[shard].number, heir] for shard, heir in heirs.items()]

        with contextlib.suppress(JournalError):  # then they look a little later
            await self._registry.record_if(records)

    async def catch_up(self) -> None:
        """Loads what other hosts have decided, if the log can be reached."""
        with contextlib.suppress(JournalError):
            await self._registry.catch_up()
