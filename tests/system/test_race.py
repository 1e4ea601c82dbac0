"""Top-ups within milliseconds of the exhaustion instant: whoever is saved is not called, and the newest state wins."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.rpc import Rpc
from tests.system.test_cutoffs import COIN

USERS = 200
LEAD_NS = 4 * COIN
SPREAD_NS = 5_000_000


async def test_top_ups_around_the_instant_leave_the_endpoint_with_what_the_ledger_says(data_dir: Path) -> None:
    rng = random.Random(5)
    async with receiving() as receiver:
        urls = {"cutoff__url": f"{receiver.url}/off", "cutoff__restore_url": f"{receiver.url}/on"}
        with Daemon(data_dir, **urls) as daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            users = [f"race_{number}" for number in range(USERS)]
            await asyncio.gather(*(rpc.ask("top_up", user, COIN) for user in users))
            rate = COIN * COIN // LEAD_NS  # a coin lasts four seconds
            accounts = await asyncio.gather(*(rpc.ask("set_rate", user, rate) for user in users))
            instants = {account["user_id"]: account["exhausts_at_ns"] for account in accounts}
            loop = asyncio.get_running_loop()
            ahead_ns = (await rpc.ask("server_info"))["now_ns"] - int(loop.time() * COIN)
            replies: dict[str, dict[str, object]] = {}

            async def top_up(user: str) -> None:
                at_ns = instants[user] + rng.randrange(-SPREAD_NS, SPREAD_NS)
                await asyncio.sleep((at_ns - ahead_ns) / COIN - loop.time())
                replies[user] = await rpc.ask("top_up", user, 1000 * COIN)

            await asyncio.gather(*(top_up(user) for user in users))

            async def settled() -> bool:
                accounts = await asyncio.gather(*(rpc.ask("get_account", user) for user in users))
                return all(account["state"] == "active" for account in accounts)

            assert await settled()
            saved = [user for user in users if not replies[user].get("restored")]
            assert all(replies[user]["at_ns"] < instants[user] for user in saved)
            assert all(replies[user]["at_ns"] >= instants[user] for user in users if user not in saved)
            called = {call.user_id for call in receiver.calls if call.path == "/off"}

            def on_again() -> bool:
                last = {call.user_id: call.path for call in receiver.calls}
                return all(last[user] == "/on" for user in {call.user_id for call in receiver.calls})

            await until(on_again)
            assert called.isdisjoint(saved), "nobody who was saved before the instant is called"
            assert all(call.lateness_us >= 0 for call in receiver.calls if call.path == "/off")
            assert await rpc.ask("pending_cutoffs") == []
