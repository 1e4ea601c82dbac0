"""Backups of the real daemon: taken under load, of one instant, put back, and careful with whom they switch off."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from billing.backup.command import _prove
from billing.trial.faults import Fault
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from tests.doctor.builder import DataDirectoryBuilder
from tests.notices.names import numbered
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.ports import free_port
from tests.system.private_files import tokens_file
from tests.system.processes import killed_with_all_it_started
from tests.system.rpc import ConnectionLost, Rpc
from tests.system.test_admin import at, scraped

COIN = 10**9
NOBODY = 65_534
LOAD_PAUSE_S = 0.05  # of each user: 40 of them make some hundred commands a second
FIVE = ["user_0", "user_1", "user_2", "user_3", "user_4"]
FIRST_NOTICES = ("1:account-topped_up", "2:account-debited", "2:account-exhausted")


async def backed_up(daemon: Daemon, target: Path) -> dict[str, Any]:
    result = await asyncio.to_thread(carried_out, "backup", target, "--address", daemon.address)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "no faults" in result.stdout
    description: dict[str, Any] = json.loads((target / "backup.json").read_text())
    return description


async def put_back(daemon: Daemon, source: Path) -> str:
    """As after the loss of the host: the data directory is empty. What the command says."""
    data = daemon.directory / "data"
    if data.exists():
        shutil.rmtree(data)
    result = await asyncio.to_thread(carried_out, "restore", source, "--config", daemon.config)
    assert result.returncode == 0, result.stderr
    return result.stdout


async def test_a_backup_under_load_holds_exactly_what_was_stamped_up_to_its_instant(data_dir: Path) -> None:
    daemon = Daemon(data_dir, journal__segment_bytes=1 << 20, shards__workers=2)
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        users = [f"user_{number}" for number in range(40)]
        stamped: dict[str, list[int]] = {user: [] for user in users}
        is_going_on = True

        async def top_up(user: str) -> None:
            while is_going_on:
                stamped[user].append((await rpc.ask("top_up", user, 1))["at_ns"])
                await asyncio.sleep(LOAD_PAUSE_S)

        load = [asyncio.create_task(top_up(user)) for user in users]
        await until(lambda: all(len(stamps) > 5 for stamps in stamped.values()))
        description = await backed_up(daemon, data_dir / "backup")
        counts = {user: len(stamps) for user, stamps in stamped.items()}
        await until(lambda: all(len(stamped[user]) > counts[user] for user in users))
        is_going_on = False
        await asyncio.gather(*load)
        rpc.close()
    await put_back(daemon, data_dir / "backup")
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in users:
            expected = sum(1 for at_ns in stamped[user] if at_ns <= description["taken_at_ns"])
            assert expected < len(stamped[user])
            account = await rpc.ask("get_account", user)
            assert account["balance_nanos"] == expected
            rows = await rpc.ask("history", user, {"limit": 1})
            assert rows[0]["balance_after_nanos"] == expected
        assert (await rpc.ask("top_up", users[0], 1))["entry_id"] > 0
        rpc.close()


async def test_what_is_overdue_after_a_restore_waits_for_an_operator_at_every_start(data_dir: Path) -> None:
    async with receiving() as receiver:
        daemon = Daemon(data_dir, cutoff__url=receiver.url, shards__workers=1)
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            dry_ns = 0
            for user in ("saved", "dry"):
                await rpc.ask("top_up", user, 6 * COIN)
                dry_ns = (await rpc.ask("set_rate", user, COIN))["exhausts_at_ns"]
            await backed_up(daemon, data_dir / "backup")
            await rpc.ask("top_up", "saved", 1000 * COIN)  # after the backup: lost with the host
            await killed_with_all_it_started(daemon)
        await put_back(daemon, data_dir / "backup")
        await until(lambda: MACHINE_CLOCKS.wall_ns() > dry_ns)
        receiver.clear()
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await until_exhausted(rpc, "saved", "dry")
            assert [row["held"] for row in await rpc.ask("pending_cutoffs")] == [True, True]
            await rpc.ask("top_up", "later", COIN)
            await rpc.ask("debit", "later", COIN)  # what runs out while it serves does not wait
            await until(lambda: [call.user_id for call in receiver.calls] == ["later"])
            while len(await rpc.ask("pending_cutoffs")) > 2:
                await asyncio.sleep(0.02)
            receiver.clear()
            daemon.kill()
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await until_exhausted(rpc, "saved", "dry")
            assert [row["held"] for row in await rpc.ask("pending_cutoffs")] == [True, True]
            await rpc.ask("top_up", "later", COIN)
            await rpc.ask("debit", "later", COIN)
            await until(lambda: [call.user_id for call in receiver.calls] == ["later"])
            while len(await rpc.ask("pending_cutoffs")) > 2:
                await asyncio.sleep(0.02)
            receiver.clear()
            async with at(daemon) as session:
                await scraped_until(session, "billing_cutoffs_held", 2)
                await rpc.ask("top_up", "saved", 1000 * COIN)
                samples = await scraped_until(session, "billing_cutoffs_held", 1)
            assert samples["billing_cutoffs_owed", ""] == 1
            assert ("billing_cutoff_oldest_owed_seconds", "") not in samples, (
                "it waits for a release, not for an answer"
            )
            assert await rpc.ask("release_cutoffs") == {"released": 1}
            await until(lambda: [call.user_id for call in receiver.calls] == ["dry"])
            assert not (data_dir / "data" / "restored").exists()
            rpc.close()


async def test_seq_rises_over_a_restore_also_where_cutoffs_came_after_the_backup(data_dir: Path) -> None:
    """A receiver that keeps the greatest seq of a user drops no cutoff of the restored daemon."""
    async with receiving() as receiver:
        daemon = Daemon(data_dir, cutoff__url=receiver.url, shards__workers=1)

        def has_calls(number: int) -> bool:
            return len(receiver.calls) == number

        async def spent(rpc: Rpc, times: int) -> list[int]:
            receiver.clear()
            for number in range(1, times + 1):
                await rpc.ask("top_up", "u", COIN)
                await rpc.ask("debit", "u", COIN)
                await until(partial(has_calls, number))
            return [call.seq for call in receiver.calls]

        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            assert await spent(rpc, 1) == [1]
            await backed_up(daemon, data_dir / "backup")
            assert await spent(rpc, 2) == [2, 3]
            await killed_with_all_it_started(daemon)
        before_s = MACHINE_CLOCKS.wall_ns() // 10**9
        await put_back(daemon, data_dir / "backup")
        for _ in range(2):  # also at the next start
            with daemon:
                rpc = await Rpc.connect(daemon.rpc_port)
                first, second = await spent(rpc, 2)
                assert before_s <= first == second - 1
                assert (await rpc.ask("get_account", "u"))["exhaustion_seq"] == second
                before_s = second + 1
                await killed_with_all_it_started(daemon)
        proof = await asyncio.to_thread(carried_out, "doctor", "--config", daemon.config)
        assert proof.returncode == 0, proof.stdout + proof.stderr


async def test_whoever_may_not_back_up_is_told_the_role_that_it_takes(data_dir: Path) -> None:
    roles = ("top_up", "read")
    tokens = tokens_file(data_dir / "tokens", *((f"may_{role}", role, role) for role in roles))
    with Daemon(data_dir, rpc__tokens_file=tokens, shards__workers=1) as daemon:
        for role in roles:
            token = data_dir / role
            token.write_text(role)
            arguments = ("backup", data_dir / "backup", "--address", daemon.address, "--token-file", token)
            result = await asyncio.to_thread(carried_out, *arguments)
            assert result.returncode == 4
            assert "backup needs the role admin" in result.stderr
            assert not (data_dir / "backup").exists()


async def test_a_restore_is_on_record_and_refused_where_the_data_or_the_configuration_do_not_fit(
    host: Path, data_dir: Path
) -> None:
    daemon, backup = Daemon(data_dir, shards__workers=1), data_dir / "backup"
    shutil.copytree(host / "backup", backup)
    taken_at_ns = json.loads((backup / "backup.json").read_text())["taken_at_ns"]
    (data_dir / "other").mkdir()
    other = Daemon(data_dir / "other", shards__bucket_count=7)
    result = await asyncio.to_thread(carried_out, "restore", backup, "--config", other.config)
    assert result.returncode == 78
    assert "shards.bucket_count is 7, and the backup has 3000 buckets" in result.stderr
    (segment,) = (backup / "map").glob("segment-*")
    segment.rename(data_dir / "away")
    result = await asyncio.to_thread(carried_out, "restore", backup, "--config", daemon.config)
    assert result.returncode == 1
    assert f"{segment} is missing, which backup.json names" in result.stderr
    assert not (data_dir / "data").exists()
    (data_dir / "away").rename(segment)
    await put_back(daemon, backup)
    result = await asyncio.to_thread(carried_out, "audit", "--config", daemon.config, "--act", "restore", "--json")
    (row,) = json.loads(result.stdout)
    assert row["actor"] == f"uid:{os.getuid()}"
    assert row["details"] == {"backup": str(backup), "taken_at_ns": taken_at_ns}


async def scraped_until(session: aiohttp.ClientSession, name: str, value: float) -> dict[tuple[str, str], float]:
    async with asyncio.timeout(60):
        while (samples := await scraped(session)).get((name, "")) != value:
            await asyncio.sleep(0.1)
    return samples


async def until_exhausted(rpc: Rpc, *users: str) -> None:
    for _ in range(3000):
        if all([(await rpc.ask("get_account", user))["state"] == "exhausted" for user in users]):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("they did not run out")


async def test_more_than_hold_above_that_came_due_while_nobody_served_wait_too(data_dir: Path) -> None:
    """Of four users two are at either worker: neither has more than four, but with one more all of them together."""
    async with receiving() as receiver:
        daemon = Daemon(data_dir, cutoff__url=receiver.url, cutoff__hold_above=4, shards__workers=2)
        daemon.start()
        await killed_until_overdue(daemon, FIVE[:4])
        with daemon:
            await until(lambda: sorted(call.user_id for call in receiver.calls) == FIVE[:4])
            rpc = await Rpc.connect(daemon.rpc_port)
            while await rpc.ask("pending_cutoffs"):
                await asyncio.sleep(0.05)
            receiver.clear()
            await killed_until_overdue(daemon, FIVE)
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await until_exhausted(rpc, *FIVE)
            await asyncio.sleep(0.5)  # all shards have been asked
            assert len(await rpc.ask("pending_cutoffs")) == 5
            assert receiver.calls == []
            assert await rpc.ask("release_cutoffs") == {"released": 5}
            await until(lambda: sorted(call.user_id for call in receiver.calls) == FIVE)
            rpc.close()


async def killed_until_overdue(daemon: Daemon, users: list[str]) -> None:
    """Lets users run out of money while nobody serves."""
    rpc = await Rpc.connect(daemon.rpc_port)
    dry_ns = 0
    for user in users:
        await rpc.ask("top_up", user, COIN)
        dry_ns = (await rpc.ask("set_rate", user, COIN // 3))["exhausts_at_ns"]
    shards = await rpc.ask("shards_info")
    assert all(shard["accounts"] for shard in shards), "no shard has all of them"
    daemon.kill()
    await until(lambda: MACHINE_CLOCKS.wall_ns() > dry_ns)


async def test_notices_that_were_owed_are_told_by_the_restored_daemon_under_their_ids(data_dir: Path) -> None:
    port, users = free_port(), [f"user_{number}" for number in range(8)]
    daemon = Daemon(data_dir, shards__workers=2, notify__url=f"http://127.0.0.1:{port}/told")
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        async with receiving(port, Fault("status", 503)) as refusing:
            for user in users:
                await rpc.ask("top_up", user, COIN)
                await rpc.ask("debit", user, COIN)
            await until(lambda: {call.user_id for call in refusing.calls} == set(users))
            description = await backed_up(daemon, data_dir / "backup")
            event_ids = {call.event_id for call in refusing.calls}
        async with receiving(port) as receiver:
            await rpc.ask("top_up", "later", COIN)  # is not in the backup, and what is in it may be told by now
            await until(lambda: "later" in {call.user_id for call in receiver.calls})
        told_since = {call.event_id for call in receiver.calls if call.user_id == "later"}
        rpc.close()
    all_event_ids = {f"{user}:{name}" for user in users for name in FIRST_NOTICES}
    assert {numbered(event_id) for event_id in event_ids} <= all_event_ids
    assert sum(row["owed"] for row in description["notices"].values()) == len(all_event_ids)
    output = await put_back(daemon, data_dir / "backup")
    assert f"notices that were still to be told then: {len(all_event_ids)}; they are told at the next start" in output
    async with receiving(port) as receiver:
        with daemon:
            await until(lambda: {numbered(call.event_id) for call in receiver.calls} >= all_event_ids)
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("top_up", "later", COIN)
            await until(lambda: "later" in {call.user_id for call in receiver.calls})
            rpc.close()
        assert {numbered(call.event_id) for call in receiver.calls} == all_event_ids | {"later:1:account-topped_up"}
        assert {call.event_id for call in receiver.calls} >= event_ids, "the ids that they had"
        assert not told_since & {call.event_id for call in receiver.calls}, "its first entry is another one now"
    silent = Daemon(data_dir, shards__workers=2)
    output = await put_back(silent, data_dir / "backup")
    assert f"{len(all_event_ids)}; the next start gives them up, since notify.url is empty" in output


def test_what_is_proved_of_a_good_copy_is_told_under_the_name_that_it_gets(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = data_dir / "copy.unfinished"
    (work / "history").mkdir(mode=0o700, parents=True)
    builder = DataDirectoryBuilder(work, shards=1)
    builder.pay(b"u", COIN)
    builder.close()
    _prove(RealDisk(), str(work), str(data_dir / "copy"), 50)
    output = capsys.readouterr().out
    assert f"{data_dir}/copy/history/shard-1.sqlite is not there yet" in output
    assert "unfinished" not in output


def test_of_a_backup_that_another_version_made_without_notices_it_is_said(host: Path, data_dir: Path) -> None:
    shutil.copytree(host / "backup", data_dir / "backup")
    description_file = data_dir / "backup" / "backup.json"
    description = json.loads(description_file.read_text())
    del description["notices"]
    description_file.write_text(json.dumps(description))
    daemon = Daemon(data_dir, shards__workers=1, notify__url="http://127.0.0.1:9/told")
    result = carried_out("restore", data_dir / "backup", "--config", daemon.config)
    assert result.returncode == 0, result.stderr
    assert "left notices out: what was still to be told then may stay untold" in result.stdout


async def test_what_a_shard_wrote_that_is_gone_is_in_the_backup(data_dir: Path) -> None:
    users = [f"user_{number}" for number in range(12)]
    with Daemon(data_dir, shards__workers=2, shards__bucket_count=24) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in users:
            await rpc.ask("top_up", user, COIN)
        assert all(row["accounts"] for row in await rpc.ask("shards_info"))
        rpc.close()
    fewer = Daemon(data_dir, shards__workers=1, shards__bucket_count=24)
    with fewer:
        await until(lambda: "shard 2 is drained and gone" in fewer.log.read_text())
        rpc = await Rpc.connect(fewer.rpc_port)
        for user in users:
            await rpc.ask("top_up", user, COIN)
        await backed_up(fewer, data_dir / "backup")
        rpc.close()
    await put_back(fewer, data_dir / "backup")
    with fewer:
        rpc = await Rpc.connect(fewer.rpc_port)
        for user in users:
            assert [row["entry_id"] for row in await rpc.ask("history", user)] == [2, 1]
        rpc.close()
    shutil.rmtree(data_dir / "data" / "shard-2")  # its history is all that is left of it, as on servers
    result = await asyncio.to_thread(carried_out, "doctor", "--config", fewer.config)
    assert result.returncode == 0, result.stdout
    assert "no faults" in result.stdout


async def test_a_backup_that_is_interrupted_keeps_nobody_waiting(data_dir: Path) -> None:
    """^C while it copies: the next one begins at once, where one that was killed counts for a minute."""
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for number in range(100):
            await rpc.ask("top_up", f"user_{number}", COIN)
        code = 0
        for number in range(100):  # the copy may be made before the signal comes
            target = data_dir / f"copy-{number}"
            # What is started in the background of a shell, as this suite may be, ignores the signal from its start on.
            line = ["env", "--default-signal=INT", sys.executable, "-m", "billing", "backup", str(target)]
            line += ["--address", daemon.address]
            process = await asyncio.create_subprocess_exec(*line, stdout=DEVNULL, stderr=PIPE)
            ending = asyncio.ensure_future(process.communicate())
            while not ending.done() and not Path(f"{target}.unfinished").exists():
                await asyncio.sleep(0.002)
            if not ending.done():
                process.send_signal(signal.SIGINT)
            await ending
            if code := process.returncode or 0:
                break
        assert code == 1
        assert not Path(f"{target}.unfinished").exists()
        await rpc.ask("backup", "begin")
        await rpc.ask("backup", "end")


async def test_a_backup_during_which_a_worker_ends_is_void_and_the_next_one_is_good(data_dir: Path) -> None:
    with Daemon(data_dir) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("backup", "begin")
        (refusal, _) = await rpc.call("backup", "begin")
        assert refusal.startswith("BACKUP_REFUSED: a backup is being taken already; one that was cut off counts for ")
        killed = (await rpc.ask("shards_info"))[0]["worker_pid"]
        daemon.kill(killed)
        rpc = await reconnected(daemon)
        while (await rpc.ask("shards_info"))[0]["worker_pid"] == killed:
            await asyncio.sleep(0.01)  # the supervisor has not noticed yet: nothing of its files can have changed
        error, _ = await rpc.call("backup", "end")
        assert "ended meanwhile" in error
        assert (await rpc.call("backup", "end"))[0].startswith("BACKUP_REFUSED: no backup is being taken")
        await asyncio.to_thread(daemon.wait_ready)
        await rpc.ask("backup", "begin")
        assert await rpc.ask("backup", "cancel") == {"step": "cancel"}
        assert (await rpc.call("backup", "end"))[0].startswith("BACKUP_REFUSED: no backup is being taken")
        await backed_up(daemon, data_dir / "backup")
        second = await asyncio.to_thread(carried_out, "backup", data_dir / "backup", "--address", daemon.address)
        assert second.returncode == 1
        assert "is there already: a backup is made in a directory of its own" in second.stderr
        acts = [row["details"]["step"] for row in await rpc.ask("audit", {"act": "backup"})]
        assert acts[-4:] == ["cancel", "end", "begin", "end"], "nothing was begun for a directory that is taken"
        rpc.close()


async def reconnected(daemon: Daemon) -> Rpc:
    """A connection that answers: the one before may have been the killed worker's."""
    for _ in range(1200):
        try:
            rpc = await Rpc.connect(daemon.rpc_port)
            await rpc.ask("ping")
            return rpc
        except (ConnectionLost, OSError):
            await asyncio.sleep(0.05)
    raise AssertionError("nobody answers")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a daemon that has stopped, with its data and a backup of them; to be copied."""
    folder = tmp_path_factory.mktemp("host")
    with Daemon(folder, shards__workers=1) as daemon:
        asyncio.run(backed_up(daemon, folder / "backup"))
    return folder


@pytest.mark.parametrize("damage", ["flipped", "missing", "not empty", "unfinished"])
def test_what_is_no_whole_backup_is_not_restored(host: Path, data_dir: Path, damage: str) -> None:
    backup, data = data_dir / "backup", data_dir / "data"
    shutil.copytree(host / "backup", backup)
    daemon = Daemon(data_dir, shards__workers=1)
    if damage == "not empty":
        shutil.copytree(host / "data", data, ignore=shutil.ignore_patterns("*.sock"))
        expected = "is not empty"
    else:
        segment = next((backup / "shard-1").glob("segment-*"))
        if damage == "flipped":
            content = bytearray(segment.read_bytes())
            content[100] ^= 1
            segment.write_bytes(content)
            expected = "is not what was backed up"
        elif damage == "missing":
            segment.unlink()
            expected = "is missing, which backup.json names"
        else:
            (backup / "backup.json").unlink()
            expected = "it is no backup"
    names = sorted(os.listdir(data)) if data.exists() else None
    result = carried_out("restore", backup, "--config", daemon.config)
    assert result.returncode == 1
    assert expected in result.stderr
    assert (sorted(os.listdir(data)) if data.exists() else None) == names
    assert not Path(f"{data}.unfinished").exists(), "the next attempt would take it for one that was cut off"
    second = carried_out("restore", host / "backup", "--config", daemon.config)
    assert second.returncode == (damage == "not empty"), second.stderr


@pytest.mark.parametrize("place", ["beside", "symbolic link", "file system of its own"])
def test_an_empty_data_directory_is_filled_where_it_is_and_keeps_its_owner(
    host: Path, data_dir: Path, place: str
) -> None:
    """As systemd makes that of a dynamic user, which is a link, or as an operator mounts a disk for it."""
    data, owner = data_dir / "data", os.geteuid() or NOBODY
    real = data_dir / "private" if place == "symbolic link" else data
    real.mkdir(mode=0o755)
    if place == "symbolic link":
        data.symlink_to("private")
    elif place == "file system of its own":
        (data / "lost+found").mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(real, owner, owner)
    inode = real.stat().st_ino
    result = carried_out("restore", host / "backup", "--config", Daemon(data_dir, shards__workers=1).config)
    assert result.returncode == 0, result.stderr
    assert (real.stat().st_ino, real.stat().st_mode & 0o777) == (inode, 0o700), "it was not replaced by another one"
    assert {*os.listdir(data)} - {"lost+found"} == {"audit", "history", "map", "restored", "rewound", "shard-1"}
    assert "data.unfinished" not in os.listdir(data_dir)
    for folder, folders, files in os.walk(real):
        assert all(os.lstat(f"{folder}/{name}").st_uid == owner for name in {*folders, *files} - {"lost+found"}), folder
    proof = carried_out("doctor", "--config", data_dir / "config.toml")
    assert proof.returncode == 0, proof.stdout + proof.stderr
