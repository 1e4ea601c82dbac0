"""Users who are called for on pipelined connections while their buckets move: no call is lost, doubled or overtaken."""

from __future__ import annotations

import asyncio

from tests.system.rpc import Rpc

FIRST = 10**12  # what each account begins with, in nanos


class PipelinedLoad:
    """Sends `depth` pairs of calls at once for each user on each connection, again and again: a rate of zero, whose
    rising `rate_seq` is refused where the order of the connection is lost, and a nano. Any refusal fails the test.
    """

    def __init__(self, clients: list[Rpc], users: list[str], depth: int, pause_s: float) -> None:
        self.users = users
        self._clients = clients
        self._depth = depth
        self._pause_s = pause_s  # between two pipelines of one user on one connection
        self._called = dict.fromkeys(users, 0)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> set[int]:
        """Opens the accounts and begins; their buckets."""
        buckets = {(await self._clients[0].ask("top_up", user, FIRST))["bucket_id"] for user in self.users}
        for number, rpc in enumerate(self._clients):
            self._tasks += [asyncio.create_task(self._call(rpc, user, f"r{number}")) for user in self.users]
        return buckets

    async def _call(self, rpc: Rpc, user: str, resource: str) -> None:
        seq = 0
        while not self._stopping.is_set():
            calls = []
            for _ in range(self._depth):
                seq += 1
                calls.append(rpc.ask("set_rate", user, 0, {"resource": resource, "rate_seq": seq}))
                calls.append(rpc.ask("top_up", user, 1))
                self._called[user] += 1
            await asyncio.gather(*calls)
            await asyncio.sleep(self._pause_s)

    async def stop(self) -> None:
        """Returns when everything that was sent is answered."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def check(self, rpc: Rpc) -> None:
        """Behind `stop`, every user has each nano once, wherever that is asked."""
        for user in self.users:
            balance, called = (await rpc.ask("get_account", user))["balance_nanos"], FIRST + self._called[user]
            assert balance == called, (user, balance, called)
