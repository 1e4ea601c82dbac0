"""A batch for each owner: sends many commands about accounts, each straight to the worker that owns the user's bucket.

    async with client.fan_out(on_answer) as batches:
        batches.add(0, "top_up", ["user_01", 5])
        batches.flush()
        await batches.answered()

It is used as `billing.client.batch.Batch` is, with the same guarantee: each number is answered exactly once. Passing a
command on costs a worker two thirds of carrying it out; with a fan-out no worker has to pass commands on.

The fan-out reads the daemon's map once, at the beginning. A bucket that moves later is no error: its old owner passes
its commands on. Commands for a worker without a port of its own, or whose port did not answer at the beginning, go to
the address that the client was given, and so do all commands where the caller may not read the map.

Commands for one user take one connection, so they are carried out in the order in which they were added. While that
connection is lost, further commands get `Unavailable`; they are not sent over another connection.
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

CONNECT_S: Final = 5.0  # for an owner's port; if it does not answer, its commands go to the main address


class FanOut:
    """See the module. Made by `Client.fan_out`; usable from one event loop."""

    def __init__(self, main: Batch, route: Callable[[], Awaitable[Any]], host: str, open_at: OpenAt) -> None:
        """`route`: requests the daemon's map; `host`: that of the address of `main`, for owners that listen on all
        interfaces; `open_at`: makes the batch for an address.
        """
        self._main = main
        self._batches = [main]
        self._of_bucket: list[Batch] = []  # index: bucket id - 1
        self._bucket_of: Callable[[bytes], int] = hashed_into(1)
        self._route = route
        self._host = host
        self._open_at = open_at

    async def __aenter__(self) -> Self:
        try:
            await self._connect()
        except BaseException:  # `__aexit__` is not called then, and the links would go on connecting
            self._close()
            raise
        return self

    async def _connect(self) -> None:
        await self._main.connect()
        route = await self._map()
        addresses = owner_addresses(route, self._host)
        batches = dict(zip(addresses, await asyncio.gather(*map(self._connected, addresses.values())), strict=True))
        self._of_bucket = [batches.get(owner, self._main) for owner in route["owners"]]
        if self._of_bucket:
            self._bucket_of = hashed_into(len(self._of_bucket))

    async def _map(self) -> dict[str, Any]:
        """Returns the daemon's map; one without owners where the caller may not read it. Raises Unavailable."""
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
        except BaseException:
            batch.close()
            raise
        self._batches.append(batch)
        return batch

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for batch in self._batches:
            batch.close()

    @property
    def open(self) -> int:
        """The number of commands that wait for their answer."""
        return sum(batch.open for batch in self._batches)

    def add(self, number: int, method: str, params: Sequence[Any]) -> None:
        """Stages one command, whose first parameter is the user, a text; it leaves with `flush`."""
        if self._of_bucket:
            self._of_bucket[self._bucket_of(params[0].encode()) - 1].add(number, method, params)
        else:
            self._main.add(number, method, params)

    def flush(self) -> None:
        """Writes all added commands, in one write per owner."""
        for batch in self._batches:
            batch.flush()

    async def answered(self) -> None:
        """Waits until no command is open."""
        for batch in self._batches:
            await batch.answered()
