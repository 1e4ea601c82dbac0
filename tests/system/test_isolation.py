"""A worker that dies, or cannot live, leaves the others serving; what stands against a move is said by name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import Rpc
from tests.system.test_reload import reload


def readyz(daemon: Daemon) -> str:
    """What /readyz says; empty where all is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/readyz", timeout=60):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()


async def users_of(rpc: Rpc, name: str = "u") -> dict[int, str]:
    """A user of each shard, whose id begins with the name."""
    owners = (await rpc.ask("route"))["owners"]
    users: dict[int, str] = {}
    for number in range(100):
        account = await rpc.ask("top_up", f"{name}{number}", 10**9)
        users.setdefault(owners[account["bucket_id"] - 1], account["user_id"])
    return users


async def connect_to(daemon: Daemon, shard_id: int) -> Rpc:
    """A connection to this shard's worker."""
    while True:
        rpc = await Rpc.connect(daemon.rpc_port)
        if (await rpc.ask("server_info"))["shard_id"] == shard_id:
            return rpc
        rpc.close()


@pytest.fixture(scope="module")
def shared(module_dir: Path) -> Iterator[Daemon]:
    """For tests that leave it serving, whatever they did to it."""
    with Daemon(module_dir, cutoff__url=f"http://127.0.0.1:{free_port()}/cutoff", cutoff__timeout_s=30.0) as daemon:
        yield daemon


async def test_unknown_buckets_and_shards_and_what_stands_against_a_move(shared: Daemon) -> None:
    rpc = await Rpc.connect(shared.rpc_port)
    await rpc.ask("rebalance")
    while (await rpc.ask("rebalance", {"plan": True}))["moves"]:  # what other tests of this daemon have moved
        await asyncio.sleep(0.02)
    route = await rpc.ask("route")
    for method in ("move_bucket", "explain_move", "pin_bucket", "unpin_bucket"):
        more = [1] if method == "move_bucket" else []
        assert (await rpc.call(method, 3001, *more))[0].startswith("UNKNOWN_BUCKET"), method
    source, target = route["owners"][6], 3 - route["owners"][6]
    assert (await rpc.call("move_bucket", 7, 9))[0].startswith("UNKNOWN_SHARD")
    assert (await rpc.call("move_bucket", 7, source))[0].startswith("MOVE_REFUSED")
    await rpc.ask("pin_bucket", 7)
    assert (await rpc.call("move_bucket", 7, target))[0].startswith("BUCKET_PINNED")
    plan = await rpc.ask("explain_move", 7, {"shard_id": target})
    assert (plan["state"], plan["waits_for"], plan["whose"]) == (
        *("pinned", f"bucket 7 is pinned to shard {source}; unpin it first", "the operator"),
    )
    await rpc.ask("unpin_bucket", 7)
    assert (await rpc.ask("explain_move", 7, {"shard_id": target}))["waits_for"] == "an order: move_bucket"
    assert await rpc.ask("route") == route
    assert (await rpc.ask("rebalance", {"plan": True})) == {"moves": 0, "steps": []}
    await rpc.ask("backup", "begin")
    moving = asyncio.ensure_future(rpc.call("move_bucket", 7, target))
    while not plan["waits_for"].startswith("the end of a backup"):
        assert not moving.done(), "a bucket moved during a backup"
        plan = await rpc.ask("explain_move", 7)
    assert plan["whose"] == "whoever makes the backup"
    await rpc.ask("backup", "end")
    assert (await moving)[0] is None
    assert (await rpc.ask("route"))["owners"][6] == target


async def test_what_a_dead_worker_had_in_flight_is_unknown_and_what_never_left_is_not(shared: Daemon) -> None:
    rpc = await connect_to(shared, 1)
    user = (await users_of(rpc, "dead"))[2]
    await rpc.ask("hello", {"errors": "map"})
    pid = (await rpc.ask("shards_info"))[1]["worker_pid"]
    os.kill(pid, signal.SIGSTOP)  # so that what is sent to it stays in flight
    in_flight = [asyncio.ensure_future(rpc.call("top_up", user, 1)) for _ in range(10)]
    asking = asyncio.ensure_future(rpc.call("get_account", user))
    await rpc.ask("shards_info")  # it went behind them, over the supervisor: they have left
    shared.kill(pid)
    for error, _ in await asyncio.gather(*in_flight):
        assert (error["name"], error["retry"], error["applied"]) == ("UNAVAILABLE", True, "unknown")
    assert (await asking)[0]["applied"] == "no"
    # the kernel closes a dying process's sockets one by one, and the last may have been found again meanwhile
    while (await rpc.ask("shards_info"))[1]["worker_pid"] == pid:
        await asyncio.sleep(0.01)
    error, _ = await rpc.call("top_up", user, 1)
    assert error is None or error["applied"] == "no"
    shared.wait_ready()
    assert (await rpc.ask("get_account", user))["balance_nanos"] in (10**9, 10**9 + 1)


async def test_a_worker_that_is_frozen_is_named_to_whoever_asks_for_its_users(shared: Daemon) -> None:
    rpc = await connect_to(shared, 1)
    users = await users_of(rpc, "frozen")
    await rpc.ask("hello", {"errors": "map"})
    pid = (await rpc.ask("shards_info"))[1]["worker_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        change = asyncio.ensure_future(rpc.call("top_up", users[2], 1))
        reads = [asyncio.ensure_future(rpc.call("get_account", users[2])) for _ in range(2)]
        refusals = [(await call)[0] for call in (change, *reads)]
        assert [refusal["applied"] for refusal in refusals] == ["unknown", "no", "no"]
        error, _ = await rpc.call("debit", users[2], 1)  # it is known by now, and nothing is sent there any more
        refusals.append(error)
        for error in refusals:
            assert (error["name"], error["retry"], error["shard_id"]) == ("UNAVAILABLE", True, 2)
            assert "shard 2: its worker has not answered for" in error["message"]
        assert error["applied"] == "no"
        assert (await rpc.ask("get_account", users[1]))["balance_nanos"] == 10**9
    finally:
        os.kill(pid, signal.SIGCONT)
    while (answer := await rpc.call("get_account", users[2]))[0] is not None:
        await asyncio.sleep(0.01)
    assert answer[1]["balance_nanos"] == 10**9 + 1, "what was unknown waited in its socket; what was refused did not"


async def test_no_bucket_leaves_for_a_worker_that_is_frozen(shared: Daemon) -> None:
    """Nobody would serve it until the move is given up after ten seconds, and again at the rebalancer's next try."""
    rpc = await connect_to(shared, 1)
    user = (await users_of(rpc, "stays"))[1]
    account = await rpc.ask("get_account", user)
    pid = (await rpc.ask("shards_info"))[1]["worker_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        moving = asyncio.ensure_future(rpc.call("move_bucket", account["bucket_id"], 2))
        states = set()
        while not moving.done():
            states.add((await rpc.ask("explain_move", account["bucket_id"]))["state"])
            await rpc.ask("top_up", user, 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (await moving)[0] == (
        f"MOVE_REFUSED: bucket {account['bucket_id']} stays where it is: shard 2: its worker does not answer"
    )
    assert "sending" not in states


async def test_a_bucket_that_moves_already_and_one_whose_calls_do_not_end(shared: Daemon) -> None:
    is_asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(10):
            is_asked.set()
        await asyncio.sleep(60)

    server = await asyncio.start_server(silent, "127.0.0.1", urlsplit(shared.address_of("cutoff.url")).port)
    rpc = await Rpc.connect(shared.rpc_port)
    bucket_id = (await rpc.ask("top_up", "u", 100))["bucket_id"]
    await rpc.ask("set_rate", "u", 10_000)
    await asyncio.wait_for(is_asked.wait(), 60)
    route = await rpc.ask("route")
    target = 3 - route["owners"][bucket_id - 1]
    moving = asyncio.ensure_future(rpc.call("move_bucket", bucket_id, target))
    plan: dict[str, Any] = {}
    while not moving.done() and "call of the bucket" not in str(plan.get("waits_for")):
        plan = await rpc.ask("explain_move", bucket_id)
    assert (plan["state"], plan["to_shard_id"], plan["whose"]) == ("sending", target, f"shard {3 - target}")
    error, _ = await rpc.call("move_bucket", bucket_id, target)
    assert error == f"MOVE_REFUSED: bucket {bucket_id} is moving to shard {target} already"
    other = bucket_id + 1 if route["owners"][bucket_id % 3000] == 3 - target else bucket_id - 1
    waiting = asyncio.ensure_future(rpc.call("move_bucket", other, target))
    while not waiting.done() and "turn" not in str(plan["waits_for"]):
        plan = await rpc.ask("explain_move", other)
    refusal = f"MOVE_REFUSED: bucket {bucket_id} stays where it is: still in flight: 1 call"
    assert (await moving)[0].startswith(refusal)
    assert (await waiting)[0] is None
    assert (await rpc.ask("explain_move", bucket_id))["last_error"] == "still in flight: 1 call of the bucket"
    assert (await rpc.ask("route"))["generations"][bucket_id - 1] == route["generations"][bucket_id - 1]
    server.close()


async def test_a_worker_that_crashes_again_and_again_is_held_and_the_others_serve(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await connect_to(daemon, 1)
        users = await users_of(rpc)
        await rpc.ask("hello", {"errors": "map"})
        deadline = time.monotonic() + 120
        crashed = set()
        while "held" not in (text := readyz(daemon)):
            assert time.monotonic() < deadline, text
            row = (await rpc.ask("shards_info"))[1]
            if row["worker_pid"] and row["worker_pid"] not in crashed and row["state"] == "serving":
                crashed.add(row["worker_pid"])
                os.kill(row["worker_pid"], signal.SIGSEGV)
            error, _ = await rpc.call("top_up", users[2], 1)
            if error is not None:
                assert (error["name"], error["retry"]) == ("UNAVAILABLE", True)
            await rpc.ask("top_up", users[1], 1)
            await asyncio.sleep(0.1)
        assert "shard 2: held: it ended 8 times in a row, last: ended with -11" in text
        error, _ = await rpc.call("get_account", users[2])
        assert (error["name"], error["retry"], error["applied"]) == ("UNAVAILABLE", True, "no")
        assert error["message"].startswith("shard 2: it is held, which an operator has to end: it ended 8 times")
        for method in ("accounts", "pending_cutoffs", "forecast", "expirationd_stats"):
            error, _ = await rpc.call(method)
            assert error["name"] == "UNAVAILABLE"
            assert error["message"].endswith("; the option shard_id asks one of the others")
            error, _ = await rpc.call(method, {"shard_id": 2})
            assert error["message"].startswith("shard 2: it is held")
            assert not error["message"].endswith("one of the others")
            error, _ = await rpc.call(method, {"shard_id": 3})
            assert (error["name"], error["message"]) == ("UNKNOWN_SHARD", "shard 3 is not one of [1, 2]")
        assert users[1] in [row["user_id"] for row in await rpc.ask("accounts", {"shard_id": 1})]
        assert await rpc.ask("pending_cutoffs", {"shard_id": 1}) == []
        assert (await rpc.ask("forecast", {"shard_id": 1}))["cutoffs"] == 0
        assert [row["shard_id"] for row in await rpc.ask("expirationd_stats", {"shard_id": 1})] == [1]
        (alert,) = (await rpc.ask("shards_info"))[1]["alerts"]
        assert alert.startswith("SHARD_HELD: nobody serves 1,500 buckets")
        error, _ = await rpc.call("move_bucket", 1, 2)
        assert (error["name"], error["message"]) == ("MOVE_REFUSED", "shard 2 is held")
        await reload(daemon, "shard 2 serves")  # an operator's word, and it is tried again
        assert (await rpc.ask("get_account", users[2]))["balance_nanos"] >= 10**9
        assert readyz(daemon) == ""


async def test_a_history_that_hangs_is_named_to_whoever_asks_and_wherever_an_operator_looks(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", 1)
        assert len(await rpc.ask("history", "u")) == 1
        (worker,) = daemon.worker_pids()
        (history,) = daemon._children(worker)
        os.kill(history, signal.SIGSTOP)
        try:
            error, _ = await rpc.call("history", "u")
            assert f"UNAVAILABLE: the history cannot be read now: its process {history} has said nothing for" in error
            (row,) = await rpc.ask("shards_info")
            while not row["reason"]:
                (row,) = await rpc.ask("shards_info")
            assert row["state"] == "serving"
            assert f"the history: its process {history} has said nothing for" in row["reason"]
            assert "history of shard 1 is silent: it has said nothing for" in daemon.log.read_text()
            await text_when(daemon, "metrics", 'billing_follower_up{follower="history",shard="1"} 0.0')
            await text_when(daemon, "", f"kill -9 {history}")
            assert (await rpc.ask("top_up", "u", 1))["balance_nanos"] == 2
        finally:
            os.kill(history, signal.SIGCONT)
        while (answer := await rpc.call("history", "u"))[0] is not None:
            await asyncio.sleep(0.01)
        assert len(answer[1]) == 2


async def text_when(daemon: Daemon, page: str, text: str) -> None:
    """Returns once a page has the text."""
    url = f"http://127.0.0.1:{daemon.admin_port}/{page}"
    while text not in await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read().decode()):
        await asyncio.sleep(0.1)


async def test_a_bucket_without_an_owner_refuses_to_start_and_says_which(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=1, shards__bucket_count=30)
    with daemon:
        daemon.stop()
        subprocess.run(["rm", "-r", str(data_dir / "data" / "shard-1")], check=True)
        with pytest.raises(AssertionError, match=r"ended with 65(.|\n)*owns bucket 1 .*does not have it"):
            daemon.start()
        daemon.process = None


async def test_a_bucket_with_two_owners_refuses_to_start_and_says_which(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__bucket_count=30)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for shard_id in (2, 1):  # bucket 1 is shard 1's again, at generation 3
            assert (await rpc.call("move_bucket", 1, shard_id))[0] is None
        daemon.stop()
        subprocess.run(["cp", "-a", str(data_dir / "data" / "map"), str(data_dir / "kept")], check=True)
        daemon.start()
        rpc = await Rpc.connect(daemon.rpc_port)
        for shard_id in (2, 1, 2):  # now it is shard 2's, at generation 6
            assert (await rpc.call("move_bucket", 1, shard_id))[0] is None
        daemon.stop()
        subprocess.run(["rm", "-r", str(data_dir / "data" / "map")], check=True)
        subprocess.run(["mv", str(data_dir / "kept"), str(data_dir / "data" / "map")], check=True)
        daemon.process = None
    with pytest.raises(AssertionError, match=r"ended with 65(.|\n)*bucket 1 at generation 6"):
        daemon.start()
    daemon.process = None


async def test_a_main_process_that_is_frozen_is_named_to_operators_and_users_are_served(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await connect_to(daemon, 1)
        users = await users_of(rpc)
        await rpc.ask("hello", {"errors": "map"})
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            calls = rpc.call("shards_info"), rpc.call("pin_bucket", 1), rpc.call("backup", "begin")
            refusals = [error for error, _ in await asyncio.gather(*calls)]
            for error in refusals:
                assert (error["name"], error["retry"]) == ("UNAVAILABLE", True)
                assert "the main process of the daemon has not answered for 8 s" in error["message"]
            assert [error["applied"] for error in refusals] == ["no", "unknown", "unknown"]
            assert (await rpc.ask("top_up", users[1], 1))["balance_nanos"] == 10**9 + 1
            assert (await rpc.ask("get_account", users[2]))["balance_nanos"] == 10**9
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert len(await rpc.ask("shards_info")) == 2
