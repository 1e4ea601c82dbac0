"""The client of the package against the real daemon: straight to the owners, through moves, deaths and restarts. All
tests share one daemon, and those without ports of the owners another one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.client import BillingError, Client, Unavailable
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    with Daemon(module_dir, shards__workers=2) as started:
        yield started


@pytest.fixture(scope="module")
def without_ports(module_dir: Path) -> Iterator[Daemon]:
    folder = module_dir / "without-ports"
    folder.mkdir()
    with Daemon(folder, shards__workers=2, rpc__direct=False) as started:
        yield started


async def passed_on(rpc: Rpc) -> int:
    return sum(row["passed_on"] for row in await rpc.ask("shards_info"))


async def until_direct(client: Client, rpc: Rpc, users: list[str]) -> None:
    """Calls until no worker passes anything on."""
    for _ in range(200):
        passed = await passed_on(rpc)
        await asyncio.gather(*(client.get_account(user) for user in users))
        if await passed_on(rpc) == passed:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the client does not go straight to the owners")


async def known_users(client: Client, count: int) -> list[str]:
    users = [f"smart_{number}" for number in range(count)]
    await asyncio.gather(*(client.top_up(user, nanos=10**12) for user in users))
    return users


async def test_it_goes_straight_to_the_owners(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        users = await known_users(client, 40)
        await until_direct(client, rpc, users)
        whole = await client.route()
        assert await client.route(version=whole["version"]) == {"version": whole["version"]}
    async with Client(daemon.address, direct=False) as client:
        passed = await passed_on(rpc)
        await asyncio.gather(*(client.get_account(user) for user in users))
        assert await passed_on(rpc) > passed


async def fanned_out(client: Client, users: list[str]) -> list[int]:
    """The balances of users after two top-ups each, of which the second repeats nothing."""
    balances: list[int] = []

    def on_answer(number: int, error: BillingError | None, result: Any) -> None:
        assert error is None, (number, error)
        if number >= len(users):
            balances.append(result["balance_nanos"])

    async with client.fan_out(on_answer) as batches:
        for number, user in enumerate([*users, *users]):
            batches.add(number, "top_up", [user, 5, {"request_id": f"fan {number}"}])
        batches.flush()
        assert batches.open == 2 * len(users)
        await batches.answered()
    return balances


async def test_what_is_fanned_out_is_passed_on_by_nobody(daemon: Daemon) -> None:
    users = [f"fan_{number}" for number in range(200)]
    rpc = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        passed = await passed_on(rpc)
        assert await fanned_out(client, users) == [10] * len(users)
        assert await passed_on(rpc) == passed


async def test_what_is_fanned_out_goes_the_first_way_where_owners_have_no_ports(without_ports: Daemon) -> None:
    users = [f"fan_{number}" for number in range(200)]
    rpc = await Rpc.connect(without_ports.rpc_port)
    async with Client(without_ports.address) as client:
        passed = await passed_on(rpc)
        assert await fanned_out(client, users) == [10] * len(users)
        assert await passed_on(rpc) > passed


async def test_without_ports_of_their_own_everything_goes_the_first_way(without_ports: Daemon) -> None:
    async with Client(without_ports.address) as client:
        users = await known_users(client, 40)
        for _ in range(3):
            await asyncio.gather(*(client.get_account(user) for user in users))
        assert {row["address"] for row in (await client.route())["shards"]} == {None}


async def test_it_follows_moves_without_an_error_and_keeps_the_order_for_each_user(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        users = await known_users(client, 8)
        buckets = sorted({await client.bucket_id(user) for user in users})
        await until_direct(client, rpc, users)
        errors: list[Any] = []
        answered = dict.fromkeys(users, 0)
        called = dict.fromkeys(users, 0)
        stop = asyncio.Event()

        async def load(user: str) -> None:
            while not stop.is_set():
                for _ in range(4):
                    called[user] += 1

                    def on_reply(error: Any, _: Any, user: str = user) -> None:
                        answered[user] += 1
                        if error is not None:
                            errors.append(error)

                    # a rate_seq that does not rise is refused: an error where the order is lost
                    client.send("set_rate", [user, 0, {"resource": "r", "rate_seq": called[user]}], on_reply)
                while called[user] - answered[user] > 64:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.003)

        tasks = [asyncio.create_task(load(user)) for user in users]
        rng, moved = random.Random(1), 0
        for _ in range(60):
            error, _ = await rpc.call("move_bucket", rng.choice(buckets), rng.choice((1, 2)))
            moved += error is None
            assert error is None or "already" in error or "took too long" in error, error  # a disk may stall
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*tasks)
        async with asyncio.timeout(60):
            while answered != called:
                await asyncio.sleep(0.01)
        assert errors == []
        assert moved >= 15
        await until_direct(client, rpc, users)


async def test_a_dead_owner_is_unavailable_at_once_and_found_again(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    async with Client(daemon.address) as client:
        users = await known_users(client, 40)
        owners = (await client.route())["owners"]
        of_shard = {user: owners[await client.bucket_id(user) - 1] for user in users}
        await until_direct(client, rpc, users)
        pids = {row["shard_id"]: row["worker_pid"] for row in await client.shards_info()}
        calls = {user: asyncio.ensure_future(client.top_up(user, nanos=1)) for user in users}
        daemon.kill(pids[2])
        outcomes = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
        for user, outcome in outcomes.items():
            assert not isinstance(outcome, BaseException) or isinstance(outcome, Unavailable)
            if isinstance(outcome, Unavailable):
                assert (of_shard[user], outcome.retry) == (2, True)
        refused = 0
        for _ in range(20):  # a disk that stalls for another shard may take longer than the restart
            for user in users:
                try:
                    await client.debit(user, nanos=1)  # without a request_id it is not repeated
                except Unavailable as error:
                    assert of_shard[user] == 2
                    refused += error.applied == "no"
            if refused:
                break
            pids_now = {row["shard_id"]: row["worker_pid"] for row in await client.shards_info()}
            if pids_now[2]:
                daemon.kill(pids_now[2])
        assert refused, "the others answer while one is down"
        for user in users:  # reads, and calls under a request_id, are repeated until the worker is back
            assert (await client.top_up(user, nanos=1, request_id="again"))["user_id"] == user
        await until_direct(client, await Rpc.connect(daemon.rpc_port), users)


async def test_after_a_restart_with_other_ports_it_is_direct_again(daemon: Daemon) -> None:
    async with Client(daemon.address) as client:
        users = await known_users(client, 20)
        await until_direct(client, await Rpc.connect(daemon.rpc_port), users)
        assert daemon.stop() == 0
        with pytest.raises(Unavailable):
            await client.call("top_up", users[0], 1, timeout_s=0.2)
        daemon.start()
        for user in users:
            await client.get_account(user)
        await until_direct(client, await Rpc.connect(daemon.rpc_port), users)
