"""A batch for each owner: many commands about accounts, each sent straight to the worker that owns the user's bucket.

    async with client.fan_out(on_answer) as batches:
        batches.add(0, "top_up", ["user_01", 5])
        batches.flush()
        await batches.answered()

It is used as `billing.client.batch.Batch` is, and keeps its promise: each number is answered exactly once. To pass a
command on costs a worker two thirds of what it costs to carry one out; here nothing is passed on.

The daemon's map is read once, at the beginning. A bucket that moves later is no error: its old owner passes on what
comes. Commands for a worker without a port of its own, or whose port does not answer at the beginning, and all of them
where the caller may not ask for the map, go to the address that the client was given.

Commands for one user take one connection, hence are carried out in the order in which they were added. Where that
connection is lost, what comes later is answered with `Unavailable`; it is not sent another way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self

from billing.client.batch import Batch
from billing.client.connection import Address
from billing.client.errors import BillingError, Unavailable
from billing.client.routing import owner_addresses
from shards.buckets import HASH_NAME, hashed_into

OpenAt = Callable[[Address], Batch]

CONNECT_S: Final = 5.0  # for an owner's port; a client for which it is shut goes through the main address


class FanOut:
    """See the module. Made by `Client.fan_out`; usable from one event loop."""

    def __init__(self, main: Batch, route: Callable[[], Awaitable[Any]], host: str, open_at: OpenAt) -> None:
        """`route`: asks the daemon for its map; `host`: where `main` goes, for owners that listen everywhere;
        `open_at`: makes the batch of an address.
        """
        self._main = main
        self._batches = [main]
        self._of_bucket: list[Batch] = []  # index: bucket id - 1
        self._bucket_of: Callable[[bytes], int] = hashed_into(1)
        self._route = route
        self._host = host
        self._open_at = open_at

    async def __aenter__(self) -> Self:
        await self._main.connect()
        route = await self._map()
        addresses = owner_addresses(route, self._host)
        batches = dict(zip(addresses, await asyncio.gather(*map(self._connected, addresses.values())), strict=True))
        self._of_bucket = [batches.get(owner, self._main) for owner in route["owners"]]
        if self._of_bucket:
            self._bucket_of = hashed_into(len(self._of_bucket))
        return self

    async def _map(self) -> dict[str, Any]:
        """The daemon's map; without owners where the caller may not ask for it. Raises Unavailable."""
        try:
            route = await self._route()
        except Unavailable:
            raise
        except BillingError:
            route = {}
        return dict(route) if route.get("hash") == HASH_NAME else {"owners": [], "shards": []}

    async def _connected(self, address: Address) -> Batch:
        batch = self._open_at(address)
        try:
            async with asyncio.timeout(CONNECT_S):
                await batch.connect()
        except (BillingError, TimeoutError):
            batch.close()
            return self._main
        self._batches.append(batch)
        return batch

    async def __aexit__(self, *_: object) -> None:
        for batch in self._batches:
            batch.close()

    @property
    def open(self) -> int:
        """Commands that wait for their answer."""
        return sum(batch.open for batch in self._batches)

    def add(self, number: int, method: str, params: Sequence[Any]) -> None:
        """Stages one command, whose first parameter is the user, a text; it leaves with `flush`."""
        if self._of_bucket:
            self._of_bucket[self._bucket_of(params[0].encode()) - 1].add(number, method, params)
        else:
            self._main.add(number, method, params)

    def flush(self) -> None:
        """Writes all that was added, as one write an owner."""
        for batch in self._batches:
            batch.flush()

    async def answered(self) -> None:
        """Waits until no command is open."""
        for batch in self._batches:
            await batch.answered()
