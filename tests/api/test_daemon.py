"""The doors of the real daemon: two workers behind one port and one socket, and clients that know nothing of shards."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest

from billing.client import Client, InsufficientFunds, StaleRate, UnknownAccount
from tests.api.outside import RawClient
from tests.system.daemon import Daemon

COIN = 10**9


class ServedDoors(NamedTuple):
    tcp: str
    unix: str
    directory: Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDoors]:
    """Started once for all tests of this file; they keep to users of their own."""
    directory = tmp_path_factory.mktemp("d")
    directory.chmod(0o700)
    served_daemon = Daemon(directory, rpc__unix_socket=str(directory / "rpc.sock"))
    served_daemon.start()
    try:
        yield ServedDoors(served_daemon.address, f"unix:{directory / 'rpc.sock'}", directory)
    finally:
        assert served_daemon.stop() == 0, served_daemon.log.read_text()


async def connect(daemon: ServedDoors) -> RawClient:
    host, _, port = daemon.tcp.partition(":")
    async with Client(daemon.tcp) as client:  # waits until it is up
        await client.ping()
    return RawClient(*await asyncio.open_connection(host, int(port)))


async def test_every_user_is_served_whichever_worker_is_asked(daemon: ServedDoors) -> None:
    async with Client(daemon.tcp) as over_tcp, Client(daemon.unix) as over_unix:
        users = [f"each-{number}" for number in range(60)]
        await asyncio.gather(*(over_tcp.top_up(user, nanos=COIN) for user in users))
        accounts = await asyncio.gather(*(over_unix.get_account(user) for user in users))
        assert [account["balance_nanos"] for account in accounts] == [COIN] * 60
        assert [account["user_id"] for account in accounts] == users
        shards = await over_tcp.shards_info()
        assert len(shards) == 2
        assert len({await over_tcp.bucket_id(user) for user in users}) > 1


async def test_requests_of_one_connection_for_one_user_are_applied_in_order(daemon: ServedDoors) -> None:
    wires = [await connect(daemon) for _ in range(4)]  # by chance on both workers
    for number, wire in enumerate(wires):
        user = f"order-{number}"
        wire.send(msgpack.packb([0, 0, "top_up", [user, 1000]]))
        wire.send(b"".join(msgpack.packb([0, 1 + seq, "set_rate", [user, 0, {"rate_seq": seq}]]) for seq in range(200)))
        replies = {reply[1]: reply for reply in await wire.replies(201)}
        assert [replies[msgid][2] for msgid in range(201)] == [None] * 201
        entries = [replies[msgid][3]["entry_id"] for msgid in range(201)]
        assert entries == sorted(set(entries))
        wire.writer.close()


async def test_errors_are_strings_or_maps_on_either_worker(daemon: ServedDoors) -> None:
    for number in range(8):
        wire = await connect(daemon)
        user = f"errors-{number}"
        assert (await wire.call("debit", user, 5))[0].startswith("UNKNOWN_ACCOUNT: ")
        assert (await wire.call("top_up", user, 5))[0] is None
        error, _ = await wire.call("debit", user, 7)
        assert error.startswith("INSUFFICIENT_FUNDS: ")
        await wire.call("hello", {"errors": "map"})
        error, _ = await wire.call("debit", user, 7)
        assert (error["name"], error["code"], error["shortfall_nanos"], error["applied"]) == (
            *("INSUFFICIENT_FUNDS", 201, 2, "no"),
        )
        wire.writer.close()


async def test_notifications_are_applied_and_never_answered(daemon: ServedDoors) -> None:
    for number in range(6):
        wire = await connect(daemon)
        user = f"silent-{number}"
        wire.send(msgpack.packb([2, "top_up", [user, 5]]) + msgpack.packb([2, "nobody", []]))
        error, account = await wire.call("get_account", user)
        assert (error, account["balance_nanos"]) == (None, 5)
        assert await wire.alive()
        wire.writer.close()


async def test_bad_input_reaches_nobody_else(daemon: ServedDoors) -> None:
    bad = await connect(daemon)
    async with Client(daemon.tcp) as client:
        before = await client.top_up("neighbour", nanos=COIN)
        for params in (
            [],
            ["u"],
            [True, 5],
            ["u", 1.5],
            ["u", True],
            ["u", "five"],
            ["u", 5, {"mode": 1}],
            ["u", 5, 5],
        ):
            error, result = await bad.call("top_up", *params)
            assert error.startswith(("INVALID_", "INVALID_PARAMS")), params
            assert result is None
        bad.send(b"\xc1" * 100)
        assert (await bad.reply())[1] is None
        assert await bad.is_closed()
        after = await client.get_account("neighbour")
        assert (after["balance_nanos"], after["entry_id"]) == (before["balance_nanos"], before["entry_id"])
        with pytest.raises(UnknownAccount):
            await client.get_account("u")


async def test_a_request_id_makes_a_call_take_effect_once(daemon: ServedDoors) -> None:
    async with Client(daemon.tcp) as client:
        first = await client.top_up("once", nanos=COIN, request_id="invoice-1")
        again = await client.top_up("once", nanos=COIN, request_id="invoice-1")
        assert again == {**first, "replayed": True}
        with pytest.raises(InsufficientFunds) as refused:
            await client.debit("once", "2", request_id="order-1")
        with pytest.raises(InsufficientFunds) as refused_again:
            await client.debit("once", "2", request_id="order-1")
        assert refused.value.details["shortfall_nanos"] == refused_again.value.details["shortfall_nanos"] == COIN
        await client.set_rate("once", nanos=0, rate_seq=5)
        with pytest.raises(StaleRate):
            await client.set_rate("once", nanos=0, rate_seq=5)


async def test_a_batch_of_thousands_is_answered(daemon: ServedDoors) -> None:
    async with Client(daemon.tcp) as client:
        replies: list[object] = []
        done = asyncio.Event()

        def on_reply(error: object, result: object) -> None:
            replies.append(error or result)
            if len(replies) == 5000:
                done.set()

        for number in range(5000):
            client.send("top_up", [f"batch-{number % 50}", 1], on_reply)
        client.flush()
        async with asyncio.timeout(60):
            await done.wait()
        assert all(isinstance(reply, dict) for reply in replies)
        accounts = await asyncio.gather(*(client.get_account(f"batch-{number}") for number in range(50)))
        assert [account["balance_nanos"] for account in accounts] == [100] * 50


async def test_the_command_line_against_it(daemon: ServedDoors) -> None:
    async def run(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "billing", *arguments, "--address", daemon.unix),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    assert (await run("top-up", "cli", "12.5"))[0] == 0
    code, out, err = await run("account", "cli")
    assert (code, err) == (0, "")
    assert "12.5" in out
    code, out, err = await run("debit", "cli", "100")
    assert (code, out) == (1, "")
    assert err.startswith("billing: INSUFFICIENT_FUNDS: ")


async def test_listings_cover_all_workers(daemon: ServedDoors) -> None:
    async with Client(daemon.tcp) as client:
        names = [f"list-{number:03}" for number in range(40)]
        await asyncio.gather(*(client.top_up(name, nanos=1) for name in names))
        rows: list[str] = []
        after = "list-"
        while page := await client.accounts(after=after, limit=7):
            rows += [row["user_id"] for row in page]
            after = rows[-1]
        assert [row for row in rows if row.startswith("list-")] == names
        assert await client.pending_cutoffs() == []
