"""Notices of the real daemon: every one arrives, in order per account, whatever dies or refuses meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from billing.follower.store import file_of
from billing.signature import parse_secrets
from billing.trial.faults import Fault
from billing.trial.receiver import Receiver
from tests.notices.names import numbered
from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.ports import free_port
from tests.system.private_files import private_file
from tests.system.rpc import Rpc

COIN = 10**9
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def strict_receiver() -> AsyncIterator[Receiver]:
    """An endpoint that takes only what is signed with `SECRET`."""
    receiver = Receiver(secrets=parse_secrets(SECRET))
    await receiver.start()
    yield receiver
    await receiver.close()


def signing(receiver: Receiver, directory: Path) -> dict[str, str]:
    """The settings of a daemon that tells everything there, signed with `SECRET`."""
    return {
        "cutoff__url": f"{receiver.url}/off",
        "cutoff__secret_file": private_file(directory / "secret", SECRET + "\n"),
        "notify__url": f"{receiver.url}/told",
    }


def kinds_of(receiver: Receiver, user: str) -> list[str]:
    """entry_id:kind of what was told of a user, as it came, what came again left out; refused debits without place."""
    names = []
    for call in receiver.calls:
        if call.method == "POST" and call.user_id == user and not call.repeated and call.answered == "200":
            _, entry, kind = numbered(call.event_id).split(":")
            names.append(kind if "-" in entry else f"{entry}:{kind}")
    return names


def entries_accepted(receiver: Receiver, user: str) -> list[str]:
    """The entries of a user that were told and accepted, once each, in the order in which they were first accepted."""
    accepted = [call.event_id for call in receiver.calls if call.user_id == user and call.answered == "200"]
    return [numbered(event_id).split(":")[1] for event_id in dict.fromkeys(accepted)]


def children_of(parent: int) -> dict[int, str]:
    """The processes that one started, with their command lines."""
    commands = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((directory / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                commands[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ")
    return commands


async def test_what_happens_to_an_account_is_told_in_order_and_each_threshold_once_a_crossing(
    data_dir: Path, strict_receiver: Receiver
) -> None:
    receiver = strict_receiver
    with Daemon(data_dir, shards__workers=1, **signing(receiver, data_dir)) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", 10 * COIN)
        await rpc.ask("set_thresholds", "u", [{"amount": 5 * COIN}])
        await rpc.ask("debit", "u", 6 * COIN)  # falls below
        await rpc.ask("debit", "u", COIN)  # is below: not again
        error, _ = await rpc.call("debit", "u", 100 * COIN)
        assert error.startswith("INSUFFICIENT_FUNDS")
        await rpc.ask("top_up", "u", 7 * COIN)  # above: armed again
        await rpc.ask("debit", "u", 10 * COIN)  # to zero
        await rpc.ask("top_up", "u", COIN)
        expected = [
            *("1:account-topped_up", "3:account-debited", "4:balance-low", "5:account-debited"),
            *("account-debit_refused", "6:account-topped_up", "7:account-debited", "7:account-exhausted"),
            *("8:balance-low", "9:account-topped_up", "9:account-restored"),
        ]
        await until(lambda: len(kinds_of(receiver, "u")) >= len(expected))
        await asyncio.sleep(0.1)
        assert kinds_of(receiver, "u") == expected
        posts = [call for call in receiver.calls if call.method == "POST"]
        assert {call.path for call in posts} == {"/told"}
        assert {call.answered for call in posts} == {"200"}, "all are signed"
        assert "notify.url" not in daemon.log.read_text()


async def test_a_secret_that_is_read_again_signs_notices_too(data_dir: Path, strict_receiver: Receiver) -> None:
    receiver, following = strict_receiver, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    with Daemon(data_dir, shards__workers=2, **signing(receiver, data_dir)) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        users = [f"user_{number}" for number in range(8)]  # of both shards
        for user in users:
            await rpc.ask("top_up", user, COIN)
        await until(lambda: all(kinds_of(receiver, user) == ["1:account-topped_up"] for user in users))
        (data_dir / "secret").write_text(following + "\n")
        receiver.secrets = parse_secrets(following)
        for user in users:
            await rpc.ask("top_up", user, COIN)
        await until(lambda: any(call.answered == "401" for call in receiver.calls))
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)
        await until(lambda: all(entries_accepted(receiver, user) == ["1", "2"] for user in users))
        assert "notices of shard" not in daemon.log.read_text(), "nothing has failed"


async def test_an_endpoint_that_was_down_is_told_everything_and_kill_9_loses_none_of_it(data_dir: Path) -> None:
    port = free_port()
    users = [f"user_{number}" for number in range(40)]
    event_ids = {user: [f"{entry}:account-topped_up" for entry in range(1, 31)] for user in users}
    async with receiving() as cutoffs:
        daemon = Daemon(
            data_dir, shards__workers=1, cutoff__url=cutoffs.url, notify__url=f"http://127.0.0.1:{port}/told"
        )
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            for _ in range(15):
                await asyncio.gather(*(rpc.ask("top_up", user, COIN) for user in users))
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            rpc = await Rpc.connect(daemon.rpc_port)
            async with receiving(port, Fault("status", 503)) as receiver:
                for _ in range(15):
                    await asyncio.gather(*(rpc.ask("top_up", user, COIN) for user in users))
                receiver.fault = None
                await until(lambda: len({call.event_id for call in receiver.calls if call.answered == "200"}) > 200)
                daemon.kill()
                await asyncio.to_thread(daemon.start)
                rpc = await Rpc.connect(daemon.rpc_port)

                def arrived() -> bool:
                    return len({call.event_id for call in receiver.calls if call.answered == "200"}) >= 40 * 30

                await until(arrived)
                for user in users:
                    first = list(
                        dict.fromkeys(
                            numbered(call.event_id).split(":", 1)[1]
                            for call in receiver.calls
                            if call.user_id == user and call.answered == "200"
                        )
                    )
                    assert first == event_ids[user]
                await until(lambda: owed_on_record(data_dir) == 0)
                daemon.kill()
                count = len(receiver.calls)
                await asyncio.to_thread(daemon.start)
                rpc = await Rpc.connect(daemon.rpc_port)
                await rpc.ask("top_up", users[0], COIN)
                await until(lambda: numbered(receiver.calls[-1].event_id) == f"{users[0]}:31:account-topped_up")
                assert len(receiver.calls) == count + 1, "what is acknowledged on record is not told again"


def owed_on_record(data_dir: Path) -> int:
    """How many notices the file of the only shard says are owed."""
    with contextlib.closing(sqlite3.connect(file_of(f"{data_dir}/data/notices", 1))) as db:
        return int(db.execute("SELECT count(*) FROM owed").fetchone()[0])


def is_behind(pid: int, other: int) -> bool:
    """Whether a process has the lower priority of the two."""
    return os.getpriority(os.PRIO_PROCESS, pid) > other


async def test_notices_are_always_behind_cutoffs(data_dir: Path) -> None:
    """However many are owed to an endpoint that never answers, every cutoff arrives; and cores go to others first."""
    async with receiving() as cutoffs, receiving(fault=Fault("hang")) as notices:
        with Daemon(data_dir, shards__workers=1, cutoff__url=cutoffs.url, notify__url=f"{notices.url}/told") as daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            users = [f"user_{number}" for number in range(200)]
            await asyncio.gather(*(rpc.ask("top_up", user, COIN) for user in users))
            await until(lambda: len(notices.calls) > 0)
            await asyncio.gather(*(rpc.ask("debit", user, COIN) for user in users))
            await until(lambda: {call.user_id for call in cutoffs.calls} == set(users))
            assert not any(call.answered == "200" for call in notices.calls)
            for worker in daemon.worker_pids():
                (notifier,) = [pid for pid, name in children_of(worker).items() if "billing.notices.notifier" in name]
                priority = os.getpriority(os.PRIO_PROCESS, worker)
                await until(partial(is_behind, notifier, priority))


async def test_a_bucket_that_moves_takes_along_what_is_to_be_told_of_it(data_dir: Path) -> None:
    port = free_port()
    async with receiving() as cutoffs:
        daemon = Daemon(data_dir, cutoff__url=cutoffs.url, notify__url=f"http://127.0.0.1:{port}/told")
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            bucket = await rpc.ask("bucket_id", "mover")
            shards = [row["shard_id"] for row in await rpc.ask("shards_info")]
            for turn in range(4):
                for _ in range(5):
                    await rpc.ask("top_up", "mover", COIN)
                source = next(row for row in await rpc.ask("buckets_info") if row["bucket_id"] == bucket)["shard_id"]
                await rpc.ask("move_bucket", bucket, next(shard for shard in shards if shard != source))
                if turn == 2:
                    daemon.kill()
                    await asyncio.to_thread(daemon.start)
                    rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("debit", "mover", COIN)
            async with receiving(port) as receiver:
                await until(lambda: "21:account-debited" in kinds_of(receiver, "mover"), 40)
                first = list(dict.fromkeys(numbered(call.event_id).split(":", 1)[1] for call in receiver.calls))
                expected = [f"{entry}:account-topped_up" for entry in range(1, 21)] + ["21:account-debited"]
                assert first == expected


async def test_an_endpoint_that_takes_no_notices_is_in_the_log_as_such_from_beginning_to_end(data_dir: Path) -> None:
    port = free_port()
    async with receiving() as cutoffs:
        settings = {"cutoff__url": cutoffs.url, "notify__url": f"http://127.0.0.1:{port}/told", "log__format": "json"}
        with Daemon(data_dir, shards__workers=1, **settings) as daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("top_up", "told", COIN)
            await until(lambda: "takes no notices" in daemon.log.read_text())
            async with receiving(port) as receiver:
                await until(lambda: bool(receiver.calls))
                await until(lambda: "takes notices again" in daemon.log.read_text())
    records = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    shut, opened = (record for record in records if record["logger"] == "billing.notices")
    assert (shut["level"], shut["event"]) == ("warning", "notice_endpoint_shut")
    assert (shut["endpoint"], shut["waiting"]) == (f"http://127.0.0.1:{port}", "1")
    assert "No cutoff waits for them" in shut["do"]
    assert opened["level"] == "info"


async def test_without_a_url_what_was_still_to_be_told_is_given_up(data_dir: Path) -> None:
    port = free_port()
    async with receiving() as cutoffs:
        daemon = Daemon(
            data_dir, shards__workers=1, cutoff__url=cutoffs.url, notify__url=f"http://127.0.0.1:{port}/told"
        )
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("top_up", "early", COIN)
        silent = Daemon(data_dir, shards__workers=1, cutoff__url=cutoffs.url)
        with silent:
            rpc = await Rpc.connect(silent.rpc_port)
            await rpc.ask("top_up", "silent", COIN)
            assert "given up" in silent.log.read_text()
        async with receiving(port) as receiver:
            with Daemon(
                data_dir, shards__workers=1, cutoff__url=cutoffs.url, notify__url=f"{receiver.url}/told"
            ) as daemon:
                rpc = await Rpc.connect(daemon.rpc_port)
                await rpc.ask("top_up", "late", COIN)
                await until(lambda: bool(receiver.calls))
                assert {call.user_id for call in receiver.calls} == {"late"}
