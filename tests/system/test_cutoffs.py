"""Cutoffs of the real daemon over kill −9: owed ones are sent, with their true instants and the same event_id."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.trial.faults import Fault
from shards.system.clock import MACHINE_CLOCKS
from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.ports import free_port
from tests.system.rpc import Rpc

COIN = 10**9


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    """For tests that leave it serving; nobody listens where its cutoffs go but for whoever does."""
    url = f"http://127.0.0.1:{free_port()}/cutoff"
    with Daemon(module_dir, shards__workers=1, cutoff__url=url) as started:
        yield started


def port_of(daemon: Daemon) -> int:
    """Where its cutoffs go."""
    return int(urlsplit(daemon.address_of("cutoff.url")).port or 0)


async def test_the_forecast_tells_the_worst_second_and_the_second_opinion_has_none_of_its_own(daemon: Daemon) -> None:
    async with receiving(port_of(daemon)):
        rpc = await Rpc.connect(daemon.rpc_port)
        users = [f"user_{number}" for number in range(60)]
        await asyncio.gather(*(rpc.ask("top_up", user, 100 * COIN) for user in users))
        accounts = await asyncio.gather(*(rpc.ask("set_rate", user, COIN) for user in users))
        seconds = [account["exhausts_at_ns"] // COIN for account in accounts]
        forecast = await rpc.ask("forecast", {"within_ns": 200 * COIN})
        assert forecast["cutoffs"] == 60
        assert {row["at_ns"] // COIN: row["cutoffs"] for row in forecast["steps"]} == {
            second: seconds.count(second) for second in seconds
        }
        assert forecast["peak_per_second"] == max(seconds.count(second) for second in seconds)
        assert (await rpc.ask("forecast", {"within_ns": 20 * COIN}))["cutoffs"] == 0
        by_minute = await rpc.ask("forecast")
        assert (by_minute["cutoffs"], by_minute["step_ns"]) == (60, 60 * COIN)
        error, _ = await rpc.call("forecast", {"within_ns": 7 * 86_400 * COIN, "step_ns": COIN})
        assert error.startswith("LIMIT_EXCEEDED")
        rows = await rpc.ask("expirationd_stats")
        for _ in range(1600):  # the first round is a second after a start, the second a minute later
            rows = await rpc.ask("expirationd_stats")
            if sum(row["checked_count"] for row in rows) >= 60:
                break
            await asyncio.sleep(0.05)
        assert sum(row["checked_count"] for row in rows) >= 60
        assert [row["mismatches"] for row in rows] == [0]
        assert [row["restarts"] for row in rows] == [0]


async def test_a_top_up_before_the_instant_saves_and_nobody_is_called(daemon: Daemon) -> None:
    async with receiving(port_of(daemon)) as receiver:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "saved", COIN)
        account = await rpc.ask("set_rate", "saved", COIN // 4)
        first_ns = account["exhausts_at_ns"]
        saved = await rpc.ask("top_up", "saved", 100 * COIN)
        assert saved["exhausts_at_ns"] == first_ns + 400 * COIN
        await until(lambda: MACHINE_CLOCKS.wall_ns() > first_ns + COIN // 2)
        assert receiver.calls == []
        assert (await rpc.ask("get_account", "saved"))["state"] == "active"
        await rpc.ask("set_rate", "saved", 0)  # other tests of this daemon count what is coming


async def test_an_endpoint_that_refuses_is_tried_again_and_the_account_says_so(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("top_up", "refused", COIN)
    await rpc.ask("debit", "refused", COIN)
    cutoff: dict[str, Any] = {"attempts": 0}
    for _ in range(1000):
        cutoff = (await rpc.ask("get_account", "refused"))["cutoff"]
        if cutoff["attempts"] >= 2:
            break
        await asyncio.sleep(0.02)
    assert cutoff["attempts"] >= 2
    assert "refused" in cutoff["last_error"]
    restored = await rpc.ask("top_up", "refused", 1)
    assert restored["restored"] is True
    assert restored["cutoff"]["status"] == "superseded"
    assert await rpc.ask("pending_cutoffs") == []


async def test_exhaustions_that_fell_due_while_nobody_served_are_called_at_once_with_their_true_instants(
    data_dir: Path,
) -> None:
    async with receiving() as receiver:
        daemon = Daemon(data_dir, shards__workers=1, cutoff__url=receiver.url)
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            expected = {}
            for number in range(20):
                user = f"due_{number}"
                await rpc.ask("top_up", user, COIN)
                account = await rpc.ask("set_rate", user, COIN // 4 + number)
                expected[user] = account["exhausts_at_ns"]
            daemon.kill()
            assert receiver.calls == []
            await until(lambda: MACHINE_CLOCKS.wall_ns() > max(expected.values()))
            await asyncio.to_thread(daemon.start)
            await until(lambda: len(receiver.calls) >= 20)
            assert {call.user_id: call.exhausted_at_ns for call in receiver.calls} == expected
            assert all(call.lateness_us >= 0 for call in receiver.calls)
            assert len(receiver.calls) == 20


async def test_what_was_not_acknowledged_is_sent_again_after_kill_9_under_the_same_event_id(data_dir: Path) -> None:
    port = free_port()
    async with receiving(port, Fault("status", 503)) as receiver:
        daemon = Daemon(data_dir, shards__workers=1, cutoff__url=f"http://127.0.0.1:{port}/cutoff")
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("top_up", "again", COIN)
            first = await rpc.ask("debit", "again", COIN)
            assert first["outcome"] == "exhausted"
            await until(lambda: len(receiver.calls) >= 1)
            (pending,) = await rpc.ask("pending_cutoffs")
            assert pending["user_id"] == "again"
            daemon.kill()
            count = len(receiver.calls)
            await asyncio.to_thread(daemon.start)
            await until(lambda: len(receiver.calls) > count)
            assert {call.event_id for call in receiver.calls} == {pending["event_id"]}
            receiver.fault = None
            rpc = await Rpc.connect(daemon.rpc_port)

            async def nothing_is_owed() -> bool:
                return list(await rpc.ask("pending_cutoffs")) == []

            for _ in range(1200):
                if await nothing_is_owed():
                    break
                await asyncio.sleep(0.05)
            assert await nothing_is_owed()
            account = await rpc.ask("get_account", "again")
            assert account["cutoff"]["status"] in ("delivered", "effective")
            daemon.kill()
            delivered = len(receiver.calls)
            await asyncio.to_thread(daemon.start)
            await asyncio.sleep(0.5)
            assert len(receiver.calls) == delivered, "an acknowledged cutoff is not sent again"


async def test_machines_that_still_run_after_a_2xx_are_cut_off_again_under_the_same_event_id(data_dir: Path) -> None:
    async with receiving() as receiver:
        with Daemon(data_dir, shards__workers=1, cutoff__url=receiver.url, cutoff__recheck_s=0.3) as daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            for user in ("runs", "stops"):
                await rpc.ask("top_up", user, COIN)
                await rpc.ask("set_rate", user, COIN)
                await rpc.ask("debit", user, COIN, {"mode": "partial"})
            assert (await rpc.ask("get_account", "runs"))["cutoff"]["status"] in ("pending", "delivered")
            await until(lambda: any(call.user_id == "stops" for call in receiver.calls))
            await rpc.ask("set_rate", "stops", 0)
            await until(lambda: sum(call.user_id == "runs" for call in receiver.calls) >= 3)
            await until_effective(rpc, "stops")
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            rpc = await Rpc.connect(daemon.rpc_port)
            count = len(receiver.calls)
            await until(lambda: len(receiver.calls) >= count + 2)
            for user in ("runs", "stops"):
                assert len({call.event_id for call in receiver.calls if call.user_id == user}) == 1
            assert (await rpc.ask("set_rate", "runs", 0))["state"] == "exhausted"
            account = await rpc.ask("get_account", "runs")
            assert account["cutoff"]["attempts"] >= 3
            await until_effective(rpc, "runs")
            count = len(receiver.calls)
            await asyncio.sleep(0.7)
            assert len(receiver.calls) == count
            restored = await rpc.ask("top_up", "runs", COIN)
            assert (restored["restored"], restored["cutoff"]["status"]) == (True, "effective")


async def until_effective(rpc: Rpc, user: str) -> None:
    for _ in range(3000):
        if (await rpc.ask("get_account", user))["cutoff"]["status"] == "effective":
            return
        await asyncio.sleep(0.02)
    raise AssertionError("its cutoff never became effective")


async def test_what_waits_since_the_start_waits_on_where_its_bucket_moves(data_dir: Path) -> None:
    async with receiving(fault=Fault("status", 503)) as refusing:
        daemon = Daemon(data_dir, cutoff__url=refusing.url, cutoff__hold_above=2, shards__bucket_count=24)
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            owners, users = (await rpc.ask("route"))["owners"], list[str]()
            for number in range(40):  # all of them at shard 1
                bucket_id = await rpc.ask("bucket_id", f"u{number}")
                if owners[bucket_id - 1] == 1 and len(users) < 6:
                    users.append(f"u{number}")
                    await rpc.ask("top_up", users[-1], 10)
                    await rpc.ask("debit", users[-1], 10)
            await until(lambda: {call.user_id for call in refusing.calls} == set(users))
            daemon.kill()
            port = refusing.port
            await refusing.close()
            async with receiving(port) as receiver:
                daemon.start()
                rpc = await Rpc.connect(daemon.rpc_port)
                for bucket_id in {await rpc.ask("bucket_id", user) for user in users}:
                    await rpc.ask("move_bucket", bucket_id, 2)
                await rpc.ask("top_up", "free", 10)
                await rpc.ask("debit", "free", 10)
                await until(lambda: receiver.calls)
                while len(rows := await rpc.ask("pending_cutoffs")) > 6:  # free's 2xx is being recorded
                    await asyncio.sleep(0.02)
                assert sorted(row["user_id"] for row in rows if row["held"]) == sorted(users)
                assert [call.user_id for call in receiver.calls] == ["free"]
                assert await rpc.ask("release_cutoffs") == {"released": 6}
                await until(lambda: {call.user_id for call in receiver.calls} == {"free", *users})


async def test_explain_says_what_the_call_that_is_owed_met(data_dir: Path) -> None:
    """Also where that is a restore, and where it is the oldest of several cutoffs."""
    async with receiving() as well, receiving(fault=Fault("status", 418)) as refusing:
        daemon = Daemon(data_dir, shards__workers=1, cutoff__url=well.url, cutoff__restore_url=refusing.url)
        with daemon.config.open("a") as file:
            file.write(f'[cutoff.class.unwell]\nurl = "{refusing.url}"\nrestore_url = ""\n')
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            for user in ("saved", "lost"):
                await rpc.ask("top_up", user, 10)
                await rpc.ask("debit", user, 10)
                await until(lambda user=user: user in [call.user_id for call in well.calls])  # type: ignore[misc]
                while (await rpc.ask("get_account", user))["cutoff"]["status"] != "effective":
                    await asyncio.sleep(0.02)
            await rpc.ask("set_class", "lost", "unwell")
            for resource in ("a", "b"):
                await rpc.ask("set_rate", "lost", 1, {"resource": resource})
            await rpc.ask("top_up", "saved", 10)
            for user in ("saved", "lost"):
                while "status 418" not in str((await rpc.ask("explain", user))["why"]):
                    await asyncio.sleep(0.02)
            calls = len([call for call in refusing.calls if call.user_id == "saved"])
            await rpc.ask("set_class", "saved", "unwell")
            no_url = "The configuration names no restore URL for this user any more, so the restore is not made."
            assert (await rpc.ask("explain", "saved"))["why"] == no_url
            assert len([call for call in refusing.calls if call.user_id == "saved"]) <= calls + 1
