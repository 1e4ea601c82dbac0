"""History and notices of the real daemon beside shards that go, files that are damaged or gone, and slow processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from billing.history.history_reader import MISSING
from shards.exits import Exit
from tests.system.commands import carried_out_beside
from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.rpc import Rpc
from tests.system.test_notices import children_of, kinds_of

COIN = 10**9
BUCKETS = 24
WAIT_S = 90


def followers(daemon: Daemon, shard: int) -> list[int]:
    """The processes that have a file of this shard open, of history or notices."""
    pids = []
    for worker in daemon.worker_pids():
        for pid, name in children_of(worker).items():
            if "projector" in name or "notifier" in name:
                with contextlib.suppress(OSError):
                    names = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
                    if any(name.endswith(f"/history/shard-{shard}.sqlite") for name in names):
                        pids += [pid] if "projector" in name else []
                    if any(name.endswith(f"/notices/shard-{shard}.sqlite") for name in names):
                        pids += [pid] if "notifier" in name else []
    return pids


async def history(rpc: Rpc, user: str) -> list[dict[str, Any]]:
    """The answer, as soon as there is one: the process of the history may just have been started."""
    async with asyncio.timeout(WAIT_S):
        while True:
            error, rows = await rpc.call("history", user, {"limit": 1000})
            if error is None:
                return list(rows)
            assert error.startswith("UNAVAILABLE"), error
            await asyncio.sleep(0.1)


async def histories(rpc: Rpc, users: list[str]) -> dict[str, list[dict[str, Any]]]:
    return {user: await history(rpc, user) for user in users}


def configured(daemon: Daemon, old: str, new: str) -> None:
    daemon.config.write_text(daemon.config.read_text().replace(old, new))


async def test_a_shard_goes_only_when_its_history_and_notices_are_through(data_dir: Path) -> None:
    """From three workers to two, while the third one's followers stand still: nobody loses history or a notice."""
    users = [f"user_{number}" for number in range(60)]
    async with receiving() as cutoffs, receiving() as notices:
        daemon = Daemon(
            data_dir,
            cutoff__url=cutoffs.url,
            notify__url=f"{notices.url}/told",
            shards__workers=3,
            shards__bucket_count=BUCKETS,
        )
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await asyncio.gather(*(rpc.ask("top_up", user, COIN) for user in users))
            await until(lambda: len(followers(daemon, 3)) == 2, WAIT_S)
            stopped = followers(daemon, 3)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.gather(*(rpc.ask("debit", user, 1) for user in users))
            configured(daemon, "workers = 3", "workers = 2")
            daemon.signal(signal.SIGHUP)

            async def is_drained() -> bool:
                rows = await rpc.ask("shards_info")
                return next((row["buckets"] for row in rows if row["shard_id"] == 3), -1) == 0

            async with asyncio.timeout(WAIT_S):
                while not await is_drained():
                    await asyncio.sleep(0.1)
            await asyncio.gather(*(rpc.ask("debit", user, 2) for user in users))
            await until(lambda: "shard 3 is drained, and waits" in daemon.log.read_text(), WAIT_S)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: "shard 3 is drained and gone" in daemon.log.read_text(), WAIT_S)
            expected = ["1:account-topped_up", "2:account-debited", "3:account-debited"]
            await until(lambda: all(kinds_of(notices, user) == expected for user in users), WAIT_S)
            rpc = await Rpc.connect(daemon.rpc_port)  # the one before may have been with the worker that is gone
            for user, rows in (await histories(rpc, users)).items():
                assert [row["entry_id"] for row in rows] == [3, 2, 1], user
                assert MISSING not in [row["operation"] for row in rows]
            await asyncio.gather(*(rpc.ask("debit", user, 3) for user in users))
            await until(lambda: all(len(kinds_of(notices, user)) == 4 for user in users), WAIT_S)


async def test_the_doctor_online_tells_what_it_saw_though_a_history_does_not_answer(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=BUCKETS) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", COIN)
        await history(rpc, "u")
        (projector,) = followers(daemon, 1)
        os.kill(projector, signal.SIGSTOP)
        await rpc.ask("top_up", "u", COIN)
        try:
            output = await asyncio.to_thread(carried_out_beside, "doctor", "--online", "--address", daemon.address)
        finally:
            os.kill(projector, signal.SIGCONT)
        assert output.returncode == Exit.UNREACHABLE, output
        assert "24 buckets on 1 shard: the owners and the sums were looked at" in output.stdout
        assert "the history cannot be read now" in output.stderr


async def test_a_history_that_is_removed_while_it_runs_is_written_anew(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=BUCKETS) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(1, 21):
            await rpc.ask("top_up", "u", number)
        path = data_dir / "data" / "history" / "shard-1.sqlite"
        rows = await history(rpc, "u")
        path.unlink()
        await rpc.ask("top_up", "u", COIN)
        await until(path.exists, WAIT_S)
        assert (await history(rpc, "u"))[1:] == rows
        daemon.stop()
        await asyncio.to_thread(daemon.start)
        rpc = await Rpc.connect(daemon.rpc_port)
        assert (await history(rpc, "u"))[1:] == rows


async def test_a_shard_whose_journal_is_an_older_copy_is_held_with_both_positions(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=BUCKETS) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "u", COIN)
        daemon.stop()
        journal = data_dir / "data" / "shard-1"
        shutil.copytree(journal, data_dir / "older")
        await asyncio.to_thread(daemon.start)
        rpc = await Rpc.connect(daemon.rpc_port)
        for _ in range(5):
            await rpc.ask("top_up", "u", COIN)
        assert len(await history(rpc, "u")) == 6
        daemon.stop()
        shutil.rmtree(journal)
        shutil.copytree(data_dir / "older", journal)
        process = daemon.launch()
        daemon.process = process
        assert await asyncio.to_thread(process.wait, WAIT_S) == 65
        log = daemon.log.read_text()
        assert "the journal only up to batch" in log
        assert "the history goes up to batch" in log


async def test_rows_that_are_lost_are_said_in_the_answer(data_dir: Path) -> None:
    """The journal was trimmed, and the history's file is gone: the answer has a row that says so, at once."""
    settings = {"shards__workers": 1, "shards__bucket_count": BUCKETS, "journal__segment_bytes": 65_536}
    with Daemon(data_dir, **settings) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        replied = await rpc.ask("top_up", "idle", 5)
        for _ in range(3):
            await asyncio.gather(*(rpc.ask("top_up", "u", 1, {"message": "x" * 500}) for _ in range(200)))
            await history(rpc, "u")
            daemon.stop()  # leaves a snapshot, and trims
            await asyncio.to_thread(daemon.start)
            rpc = await Rpc.connect(daemon.rpc_port)
        daemon.stop()
        for file in (data_dir / "data" / "history").iterdir():
            file.unlink()
        await asyncio.to_thread(daemon.start)
        rpc = await Rpc.connect(daemon.rpc_port)
        (row,) = await history(rpc, "idle")
        assert (row["operation"], row["balance_after_nanos"]) == (MISSING, 5), "nothing happened to it since"
        assert row["whole_from_ns"] == replied["at_ns"]
        await rpc.ask("top_up", "u", 7)
        rows = await history(rpc, "u")
        assert rows[0]["amount_nanos"] == 7
        assert (rows[-1]["operation"], rows[-1]["entry_id"]) == (MISSING, 1)
        assert rows[-1]["whole_from_ns"] == rows[-2]["at_ns"]
        assert rows[-1]["balance_after_nanos"] - rows[-2]["accrued_nanos"] == rows[-2]["balance_before_nanos"]
        assert "lacks what came before batch" in daemon.log.read_text()
