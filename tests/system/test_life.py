"""The life of the daemon: alive, ready, a worker that dies, the others that go on, and an orderly end."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


def get(daemon: Daemon, path: str) -> tuple[int, str]:
    """(status, body) of the admin server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_a_worker_that_dies_is_restarted_while_the_others_serve(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        assert get(daemon, "/livez") == (200, "alive\n")
        assert get(daemon, "/readyz") == (200, "ready\n")
        rpc = await Rpc.connect(daemon.rpc_port)
        shards = {row["shard_id"]: row["worker_pid"] for row in await rpc.ask("shards_info")}
        shard = (await rpc.ask("server_info"))["shard_id"]
        other = next(shard_id for shard_id in shards if shard_id != shard)
        owners = (await rpc.ask("route"))["owners"]
        users = {owner: "" for owner in shards}
        for number in range(100):
            user = f"life_{number}"
            users[owners[await rpc.ask("bucket_id", user) - 1]] = user
        for user in users.values():
            await rpc.ask("top_up", user, 7)

        async def until_not_ready() -> None:
            while (await asyncio.to_thread(get, daemon, "/readyz"))[0] != 503:
                pass

        killed = {None, shards[other]}
        not_ready = asyncio.create_task(until_not_ready())
        daemon.kill(shards[other])
        refused, served = 0, 0
        for _ in range(400):
            error, _ = await asyncio.wait_for(rpc.call("get_account", users[other]), 60)
            assert error is None or error.startswith("UNAVAILABLE"), error
            refused += error is not None
            assert (await rpc.ask("top_up", users[shard], 1))["state"] == "active"
            served += 1
            if refused and error is None:
                break
            now = {row["shard_id"]: row["worker_pid"] for row in await rpc.ask("shards_info")}[other]
            if not refused and now not in killed:  # it was back before this disk had answered
                killed.add(now)
                daemon.kill(now)
        assert refused, "the death of the worker was never seen"
        await asyncio.wait_for(not_ready, 60)
        daemon.wait_ready()
        assert (await rpc.ask("get_account", users[other]))["balance_nanos"] == 7
        assert (await rpc.ask("get_account", users[shard]))["balance_nanos"] == 7 + served
        pids = {row["shard_id"]: row["worker_pid"] for row in await rpc.ask("shards_info")}
        assert pids[other] != shards[other]
        assert pids[shard] == shards[shard]


async def test_sigterm_answers_what_was_asked_and_ends_with_0(data_dir: Path) -> None:
    daemon = Daemon(data_dir)
    daemon.start()
    rpc = await Rpc.connect(daemon.rpc_port)
    calls = [asyncio.ensure_future(rpc.call("top_up", f"end_{number % 10}", 1)) for number in range(500)]
    await asyncio.sleep(0)
    first = await calls[0]
    assert first[0] is None
    assert await asyncio.to_thread(daemon.stop) == 0
    assert [path.name for path in (data_dir / "data" / "run").iterdir()] == ["lock"], "no socket is left"
    replies = await asyncio.gather(*calls, return_exceptions=True)
    answered = [reply for reply in replies if isinstance(reply, tuple) and reply[0] is None]
    daemon.start()
    rpc = await Rpc.connect(daemon.rpc_port)
    total = 0
    for number in range(10):
        error, account = await rpc.call("get_account", f"end_{number}")
        total += account["balance_nanos"] if error is None else 0
    assert total >= len(answered)
    assert daemon.stop() == 0
