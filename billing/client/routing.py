"""Chooses the connection of a client's request: straight to the worker that owns the user's bucket, where possible.

Any worker answers any request, so routing is never needed; it only saves work. A client starts with one connection, the
main connection, to the address it was given. A client with many requests (`MAP_AFTER_REQUESTS`) also requests the map
(`route`), opens a connection to each owner's own port, and sends an account's requests there. All other requests, and
those for an owner without an open connection, take the main connection. Where owners have no ports of their own, or the
client may not read the map, all requests do.

**A move is no error.** The old owner passes on the requests that still come to it. While the client sends requests, it
asks once in `POLL_S` whether the map has changed: it calls `route` with the version it has, and the daemon answers with
the same version alone, or with a new map. Replies to other requests say nothing about routes.

**Order.** Requests for one user are carried out in the order sent, also when their connection changes: requests for the
bucket then wait until everything on the old connection has been answered, and take the new one. That costs one round
trip. After a lost connection nothing is known about the order of the unanswered requests (`Unavailable`, "unknown").

An entry of the map counts only if its generation is not older than the one that the client has. So a late answer, from
a worker that learnt of a move late, reverts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from billing.client.connection import PENDING_MAX, Address, Connection, Link, OnReply, parse_address
from billing.client.errors import BillingError, Unavailable
from billing.client.methods import ABOUT_ACCOUNT
from billing.client.wire import encode
from shards.buckets import HASH_NAME, bucket_id_of

MAP_AFTER_REQUESTS: Final = 16  # about accounts; a script that makes a call or two does not need the map
POLL_S: Final = 1.0

_ANY_HOST: Final = ("0.0.0.0", "::")

Request = tuple[str, Sequence[Any], OnReply]


class Routing:
    """The connections of one client."""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        jitter: Callable[[], float],
        direct: bool,
    ) -> None:
        """`direct`: whether requests may go to the owners' own ports. Raises ValueError for a malformed address."""
        self.main = Link(address, token=token, tls=tls, jitter=jitter, changed=self._on_main)
        self._token = token
        self._tls = tls
        self._jitter = jitter
        self._direct = direct
        self._requests_until_map = MAP_AFTER_REQUESTS  # requests until the map is asked for
        self._links: dict[int, Link] = {}  # shard id -> link to its worker's own port
        self._version = 0  # of the map, as the daemon calls it; 0: none yet
        self._owners: list[int] = []  # index: bucket id - 1
        self._generations: list[int] = []
        self._ways: list[Connection | None] = []  # index: bucket id - 1; None: the main connection
        self._held: dict[int, list[Request]] = {}  # -> waiting requests in order, while a bucket's connection changes
        self._held_count = 0
        self._task: asyncio.Task[None] | None = None
        self._poll_now = asyncio.Event()

    # -- requests ---------------------------------------------------------------------------------------------------

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """As `Connection.send`, over the connection that the map gives."""
        if method not in ABOUT_ACCOUNT:
            self._send_main(method, params, on_reply)
            return
        if not self._ways:
            self._send_main(method, params, on_reply)
            self._requests_until_map -= 1
            if not self._requests_until_map and self._direct:
                self._task = asyncio.get_running_loop().create_task(self._follow())
            return
        index = self._index_of(params)
        if self._held and index in self._held:
            self._hold(index, (method, params, on_reply))
            return
        way = self._ways[index] if index >= 0 else None
        if way is None:
            self._send_main(method, params, on_reply)
        else:
            way.send(method, params, on_reply)

    def _send_main(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        connection = self.main.connection
        if connection is None:
            asyncio.get_running_loop().call_soon(on_reply, Unavailable(self.main.why_not()), None)
        else:
            connection.send(method, params, on_reply)

    def _index_of(self, params: Sequence[Any]) -> int:
        """Returns the index of the user's bucket in the map; -1 where no user is named, which the daemon refuses."""
        user_id = params[0] if params else None
        if type(user_id) is int:
            user_id = str(user_id)
        if type(user_id) is str:
            user_id = user_id.encode("utf-8", "surrogatepass")
        return bucket_id_of(user_id, len(self._ways)) - 1 if type(user_id) is bytes else -1

    def _hold(self, index: int, request: Request) -> None:
        if self._held_count >= PENDING_MAX:
            refused = Unavailable("too many requests wait for a bucket that moves")
            asyncio.get_running_loop().call_soon(request[2], refused, None)
            return
        encode(request[:2])  # raises what `Connection.send` would, to this caller and not to whoever releases it
        self._held_count += 1
        self._held[index].append(request)

    async def usable(self, method: str, params: Sequence[Any]) -> None:
        """Returns once a request has a connection to take; raises as `Link.connected`."""
        if self._ways and method in ABOUT_ACCOUNT:
            index = self._index_of(params)
            if index in self._held or (index >= 0 and self._ways[index] is not None):
                return
        if self.main.connection is None:
            await self.main.connected()

    @property
    def connections(self) -> list[Connection]:
        """All open connections."""
        links = (self.main, *self._links.values())
        return [link.connection for link in links if link.connection is not None]

    @property
    def pending(self) -> int:
        """The number of requests that wait for their reply."""
        return self._held_count + sum(connection.pending for connection in self.connections)

    def close(self) -> None:
        """Ends all connections."""
        if self._task is not None:
            self._task.cancel()
        for link in (self.main, *self._links.values()):
            link.close()

    # -- the map ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keeps the map up to date; ends where the daemon refuses `route` for good."""
        while not self.main.closed:
            self._poll_now.clear()
            sent = -1
            with contextlib.suppress(Unavailable):
                connection = await self.main.connected()
                try:
                    self._learn(await _ask_route(connection, self._version))
                except BillingError as error:
                    if not error.retry:
                        return
                sent = self._sent()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poll_now.wait(), POLL_S)
            while self._sent() == sent and not self._poll_now.is_set():  # no request was sent: the map may wait
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._poll_now.wait(), POLL_S)

    def _sent(self) -> int:
        return sum(connection.sent for connection in self.connections)

    def _learn(self, route: dict[str, Any]) -> None:
        """Takes over the map that `route` answered, except entries of older generations."""
        if "owners" not in route or route.get("hash") != HASH_NAME:
            return
        owners, generations = route["owners"], route["generations"]
        if len(owners) != len(self._owners):
            self._owners, self._generations = owners, generations
            self._ways = [None] * len(owners)
        else:
            for index, generation in enumerate(generations):
                if generation >= self._generations[index]:
                    self._owners[index], self._generations[index] = owners[index], generation
        self._version = route["version"]
        self._open(owner_addresses(route, self.main.address.host))
        self._settle(range(len(self._ways)))

    def _open(self, addresses: dict[int, Address]) -> None:
        """Keeps a link to each of these addresses, and to no other."""
        for shard_id, address in addresses.items():
            link = self._links.get(shard_id)
            if link is None or link.address != address:
                if link is not None:
                    link.close()
                fresh = Link(
                    address, token=self._token, tls=self._tls, jitter=self._jitter, changed=self._on_owner(shard_id)
                )
                self._links[shard_id] = fresh
                fresh.start()
        for shard_id in [shard_id for shard_id in self._links if shard_id not in addresses]:
            self._links.pop(shard_id).retire()

    def _on_main(self) -> None:
        """Requests the whole map again when the main connection is open again: after a loss it may be another one."""
        if self.main.connection is not None and self._version:
            self._version = 0
            self._poll_now.set()

    def _on_owner(self, shard_id: int) -> Callable[[], None]:
        def changed() -> None:
            self._settle(index for index, owner in enumerate(self._owners) if owner == shard_id)

        return changed

    # -- the connection of each bucket ------------------------------------------------------------------------------

    def _way_of(self, index: int) -> Connection | None:
        link = self._links.get(self._owners[index])
        return None if link is None else link.connection

    def _settle(self, indexes: Iterable[int]) -> None:
        """Switches requests for these buckets to the connection that the map gives now, once their old connection has
        answered everything.
        """
        ways, held = self._ways, self._held
        leaving: dict[Connection, list[int]] = {}
        for index in indexes:
            wanted = self._way_of(index)
            if wanted is ways[index] or index in held:
                continue
            old = ways[index] or self.main.connection
            if old is None or not old.pending:
                ways[index] = wanted
            else:
                leaving.setdefault(old, []).append(index)
        for old, of_it in leaving.items():
            held.update((index, []) for index in of_it)
            old.when_answered(lambda of_it=of_it: self._release(of_it))  # type: ignore[misc]

    def _release(self, indexes: list[int]) -> None:
        for index in indexes:
            self._ways[index] = self._way_of(index)
            waiting = self._held.pop(index)
            self._held_count -= len(waiting)
            for request in waiting:
                self.send(*request)


def owner_addresses(route: dict[str, Any], host: str) -> dict[int, Address]:
    """Returns the addresses of the workers with a port of their own, by shard id, from the reply of `route`. `host`:
    that by which the daemon was reached, for workers that listen on all interfaces; empty for a unix socket.
    """
    addresses = {row["shard_id"]: parse_address(row["address"]) for row in route["shards"] if row["address"]}
    return {
        shard_id: address._replace(host=host) if address.host in _ANY_HOST and host else address
        for shard_id, address in addresses.items()
    }


async def _ask_route(connection: Connection, version: int) -> dict[str, Any]:
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def on_reply(error: BillingError | None, result: Any) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    connection.send("route", [{"version": version}], on_reply)
    return await future
