"""The whole daemon on three real nats-servers: what was answered is there, and what is unfit is named."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from billing.client import Client
from billing.client.connection import tls_context
from billing.trial.faults import Fault, Misbehaviour
from billing.trial.receiver import Receiver
from tests.notices.names import numbered
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.endpoint import until
from tests.system.log_hosts import SHARDS, USERS, Caller, billing, daemon_on, ready_page, run
from tests.system.private_files import pem_file, private_file
from tests.system.rpc import ConnectionLost, Rpc
from tests.system.test_followers import followers
from tests.system.test_notices import kinds_of

FILLERS = [f"filler-{number}" for number in range(8)]  # of both shards

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture
def daemon(servers: NatsCluster, data_dir: Path) -> Iterator[Daemon]:
    servers.make_all(SHARDS)
    daemon = daemon_on(servers, data_dir / "host")
    with killed_in_the_end(daemon):
        yield daemon


async def test_what_was_answered_is_there_after_kills_of_the_daemon_of_workers_and_of_servers(
    servers: NatsCluster, daemon: Daemon
) -> None:
    daemon.start()
    caller = Caller(daemon.rpc_port)
    await caller.round()
    code, output = billing(daemon, "doctor")
    assert code == 1, output
    assert "a daemon serves from this log" in output
    daemon.kill()
    code, output = billing(daemon, "doctor")
    assert code == 0, output
    daemon.start()
    await caller.check()
    await caller.round()

    leader = servers.leader("J_1")
    servers.kill(leader)
    await caller.round()
    servers.start_server(leader)
    await caller.check()

    for pid in daemon.worker_pids():
        daemon.kill(pid)
    await caller.round()
    servers.signal(servers.leader("J_2"), signal.SIGTERM)
    await caller.round()
    await caller.check()
    assert daemon.stop() == 0
    daemon.start()
    await caller.check()
    assert daemon.stop() == 0
    code, output = billing(daemon, "doctor")
    assert code == 0, output
    code, output = billing(daemon, "journal", "dump", "--shard", "1")
    assert code == 0, output
    assert "entry" in output


async def test_notices_are_told_in_order_and_none_is_lost_over_kills_of_the_daemon_and_a_server(
    servers: NatsCluster, data_dir: Path, receiver: Receiver
) -> None:
    daemon = daemon_on(servers, data_dir / "host", notify__url=f"{receiver.url}/told")
    kinds = [f"{number}:account-topped_up" for number in range(1, 4)]
    with killed_in_the_end(daemon):
        servers.make_all(SHARDS)
        await asyncio.to_thread(daemon.start)
        caller = Caller(daemon.rpc_port)
        await caller.round()
        daemon.kill()
        await asyncio.to_thread(daemon.start)
        await caller.round()
        servers.kill(servers.leader("J_1"))
        await caller.round()
        async with asyncio.timeout(120):
            while any(kinds_of(receiver, user)[-1:] != kinds[-1:] for user in USERS):
                await asyncio.sleep(0.05)
        for user in USERS:
            assert list(dict.fromkeys(kinds_of(receiver, user))) == kinds
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_without_a_majority_everything_is_refused_and_it_comes_back_by_itself(
    servers: NatsCluster, daemon: Daemon
) -> None:
    daemon.start()
    caller = Caller(daemon.rpc_port)
    await caller.round()
    for number in (0, 1):
        servers.kill(number)
    rpc = await Rpc.connect(daemon.rpc_port)
    refused = unanswered = 0
    while not refused:
        try:
            error, _ = await asyncio.wait_for(rpc.call("get_account", USERS[0]), 60)
        except ConnectionLost:
            unanswered += 1
            rpc = await Rpc.connect(daemon.rpc_port)
            continue
        refused += error is not None
        assert error is None or error.startswith("UNAVAILABLE"), error
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        while 0.0 not in await asyncio.to_thread(grants_left, daemon):
            await asyncio.sleep(0.05)
    for number in (0, 1):
        servers.start_server(number)
    await caller.check()
    await caller.round()
    async with asyncio.timeout(60):
        while len(seconds_left := await asyncio.to_thread(grants_left, daemon)) != SHARDS or 0.0 in seconds_left:
            await asyncio.sleep(0.05)
    assert all(value <= 2 for value in seconds_left), "the grant is of two seconds"
    assert daemon.stop() == 0


def grants_left(daemon: Daemon) -> list[float]:
    """How long each shard may act yet, as /metrics says it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("billing_grant_left_seconds{")]


async def test_a_full_stream_refuses_commands_and_answers_reads_until_there_is_room(
    servers: NatsCluster, daemon: Daemon
) -> None:
    for shard in range(1, SHARDS + 1):
        servers.limit(f"J_{shard}", 200_000)
    daemon.start()
    caller = Caller(daemon.rpc_port)
    await caller.round()
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.call("hello", {"errors": "map"})
    number, refusal = 0, None
    while refusal is None:
        number += 1
        user = USERS[number % len(USERS)]
        error, _ = await asyncio.wait_for(rpc.call("top_up", user, 1, {"message": "x" * 1000}), 60)
        if error is None:
            caller.balances[user] += 1
        else:
            refusal = error
    assert (refusal["name"], refusal["applied"]) == ("UNAVAILABLE", "no")
    assert "full" in refusal["message"]
    for user in USERS:
        error, reply = await rpc.call("get_account", user)
        assert error is None, error
        assert reply["balance_nanos"] == caller.balances[user]
    for shard in range(1, SHARDS + 1):
        servers.limit(f"J_{shard}", -1)
    await caller.round()
    assert daemon.stop() == 0


async def test_a_limit_that_is_lowered_while_it_serves_is_answered_at_once_and_passes_when_it_is_raised(
    servers: NatsCluster, daemon: Daemon
) -> None:
    """Nobody waits for the limit to be raised: what is not answered with a result is answered that it was not applied.
    (For how long reads go on depends on how many grants of time find room.)
    """
    daemon.start()
    caller = Caller(daemon.rpc_port)
    for _ in range(4):
        await caller.round()
    for room_bytes in (3000, -3000):  # to what is nearly reached; below what there is
        for shard in range(1, SHARDS + 1):
            size = servers.ask(f"STREAM.INFO.J_{shard}")["state"]["bytes"]
            servers.limit(f"J_{shard}", size + room_bytes)
        refusals = await asyncio.gather(*(fill(daemon.rpc_port, user) for user in FILLERS))
        assert {refusal["applied"] for refusal in refusals} == {"no"}, refusals
        assert (await fill(daemon.rpc_port, FILLERS[0]))["applied"] == "no"
        for shard in range(1, SHARDS + 1):
            servers.limit(f"J_{shard}", -1)
        await caller.round()
        await caller.check()
    assert daemon.stop() == 0


async def test_cutoffs_go_on_while_a_stream_is_full_and_nothing_of_them_is_lost(
    servers: NatsCluster, data_dir: Path, receiver: Receiver
) -> None:
    """Changes are refused; what time causes is called once, and is in the history when there is room again."""
    daemon = daemon_on(servers, data_dir / "host", cutoff__url=f"{receiver.url}/off")
    with killed_in_the_end(daemon):
        servers.make_all(SHARDS)
        for shard in range(1, SHARDS + 1):
            servers.limit(f"J_{shard}", 600_000)
        await asyncio.to_thread(daemon.start)
        caller = Caller(daemon.rpc_port)
        for number, user in enumerate(USERS):  # they run out one after the other
            await caller.call("top_up", user, 3_000_000_000 * (1 + number))
            await caller.call("set_rate", user, 1_000_000_000)
        full = await asyncio.gather(*(fill(daemon.rpc_port, user) for user in FILLERS))
        assert all("full" in refusal["message"] for refusal in full)
        now_ns = (await caller.call("get_account", FILLERS[0]))["at_ns"]
        async with asyncio.timeout(120):
            while sum(call.exhausted_at_ns > now_ns for call in receiver.calls) < 2:
                await asyncio.sleep(0.05)
        refusals = await asyncio.gather(*(fill(daemon.rpc_port, user) for user in FILLERS))
        assert all(refusal["applied"] == "no" for refusal in refusals), "the streams are full still"

        for shard in range(1, SHARDS + 1):
            servers.limit(f"J_{shard}", -1)
        await caller.call("top_up", FILLERS[0], 1)
        exhaustions: dict[tuple[str, int], int] = {}  # who ran out, when -> the balance then
        for user in USERS:
            rows = [row for row in await caller.call("history", user) if row["operation"] == "exhaust"]
            exhaustions |= {(user, row["at_ns"]): row["balance_after_nanos"] for row in rows}
        assert sum(at_ns > now_ns for _, at_ns in exhaustions) >= 2
        assert set(exhaustions.values()) == {0}
        async with asyncio.timeout(120):
            while missing := set(exhaustions) - {(call.user_id, call.exhausted_at_ns) for call in receiver.calls}:
                await asyncio.sleep(0.05)
        assert not missing
        assert len({call.event_id for call in receiver.calls}) == len({call.user_id for call in receiver.calls})
        assert await asyncio.to_thread(daemon.stop) == 0


async def fill(port: int, user: str) -> dict[str, Any]:
    """Tops the user up until that is refused for want of room; the refusal. A grant that runs out comes back; of what
    was under way as its worker ended nobody knows, which is once at most.
    """
    unknown = 0
    while True:
        rpc = await Rpc.connect(port)
        try:
            await asyncio.wait_for(rpc.call("hello", {"errors": "map"}), 120)
            while True:
                error, _ = await asyncio.wait_for(rpc.call("top_up", user, 1, {"message": "x" * 1000}), 120)
                if error is None or "grant" in error["message"]:
                    continue
                if error["applied"] != "unknown":
                    return dict(error)
                unknown += 1
                assert unknown == 1, error
        except ConnectionLost:  # its worker begins anew
            continue
        finally:
            rpc.close()


async def test_clients_come_in_over_tls(servers: NatsCluster, data_dir: Path) -> None:
    servers.make_all(1)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    daemon = daemon_on(
        servers, data_dir / "tls", cluster__shards=1, shards__workers=1,
        rpc__tls_cert=pem_file(data_dir / "door.pem", *issued.cert_chain_pems),
        rpc__tls_key=pem_file(data_dir / "door.key", issued.private_key_pem),
    )  # fmt: skip
    trust = tls_context(pem_file(data_dir / "ca.pem", authority.cert_pem))
    with killed_in_the_end(daemon):
        await asyncio.to_thread(daemon.start, 60.0)
        async with Client(daemon.address, tls=trust) as client:
            assert (await client.top_up("u", "5"))["balance_nanos"] == 5 * 10**9


def test_what_is_unfit_is_named_with_its_remedy_and_nothing_starts(servers: NatsCluster, data_dir: Path) -> None:
    daemon = daemon_on(servers, data_dir / "host")
    with ThreadPoolExecutor() as executor:  # each waits until it is sure that a stream is absent
        futures = [executor.submit(billing, daemon, *command) for command in (("cluster", "check"), ("serve",))]
    for code, output in (future.result() for future in futures):
        assert code == 78
        assert "billing cluster init" in output
    assert billing(daemon, "cluster", "init")[0] == 0
    assert billing(daemon, "cluster", "check")[0] == 0
    assert "all streams are there already" in billing(daemon, "cluster", "init")[1]

    servers.limit("J_2", 1 << 30)
    code, output = billing(daemon, "cluster", "check")
    assert (code, "J_2: its max_bytes of 1073741824 will be reached" in output) == (0, True), output
    servers.limit("J_2", -1)
    assert "max_bytes" not in billing(daemon, "cluster", "check")[1]

    other = daemon_on(servers, data_dir / "other", shards__bucket_count=64, cluster__shards=1, cluster__replicas=1)
    code, output = billing(other, "serve")
    assert code == 78
    for named in ("shards.bucket_count", "cluster.shards", "cluster.replicas"):
        assert named in output, output

    config = servers.ask("STREAM.INFO.J_1")["config"]
    servers.ask("STREAM.UPDATE.J_1", config | {"max_age": 3_600_000_000_000})
    code, output = billing(daemon, "cluster", "check")
    assert (code, "max_age" in output) == (78, True), output
    servers.ask("STREAM.UPDATE.J_1", config)

    config = servers.ask("STREAM.INFO.S_1")["config"]
    metadata = config["metadata"] | {"billing.cluster": "another"}
    for given_metadata, words in (
        (metadata, "the streams are of different clusters"),
        ({}, "S_1: made by somebody else"),
    ):
        servers.ask("STREAM.UPDATE.S_1", config | {"metadata": given_metadata})
        code, output = billing(daemon, "serve")
        assert (code, words in output) == (78, True), output
    servers.ask("STREAM.UPDATE.S_1", config)

    (data_dir / "host" / "data" / "cluster").write_text("another\n")
    code, output = billing(daemon, "serve")
    assert (code, "another" in output) == (78, True), output


def test_wrong_credentials_are_named_and_may_change_while_it_serves(data_dir: Path) -> None:
    directory = data_dir / "servers"
    directory.mkdir()
    guarded = NatsCluster(directory, 1, 'authorization { user: "billing", password: "right" }\n')
    guarded.credentials = "billing:right"
    secret = data_dir / "credentials"
    try:
        guarded.start()
        credentials_file = private_file(secret, "billing:wrong\n")
        daemon = daemon_on(guarded, data_dir / "host", cluster__replicas=1, cluster__credentials_file=credentials_file)
        description = {"format": 1, "files": {}, "bucket_count": 32, "taken_at_ns": 1}
        for part in ("map", "shard-1", "shard-2"):
            (data_dir / "copy" / part).mkdir(parents=True)
        (data_dir / "copy" / "backup.json").write_text(
            json.dumps(description | {"positions": dict.fromkeys(("map", "shard-1", "shard-2"), 1)})
        )
        dumps = [("journal", "dump", "--shard", shard) for shard in ("0", "1")]
        restore = ("restore", f"{data_dir}/copy")  # first: the others make the data directory
        for command in (restore, ("cluster", "check"), ("serve",), ("doctor",), ("rebuild",), *dumps):
            code, output = billing(daemon, *command)
            assert code == 78, output
            assert "cluster.credentials_file" in output
            assert "wrong" not in output
        secret.write_text("billing:right\n")
        assert billing(daemon, "cluster", "init")[0] == 0
        code, output = billing(daemon, "cluster", "check")
        assert code == 0
        assert "replicas = 1" in output
        with daemon:
            conf = directory / "server-0.conf"
            conf.write_text(conf.read_text().replace("right", "changed"))
            guarded.signal(0, signal.SIGHUP)
            wait_page(daemon, "its grant of time has run out")
            secret.write_text("billing:changed\n")
            daemon.wait_ready()
    finally:
        guarded.close()


def wait_page(daemon: Daemon, text: str) -> None:
    """Returns when /readyz says so."""
    deadline = time.monotonic() + 60
    while text not in (page := ready_page(daemon)[1]):
        assert time.monotonic() < deadline, f"{page}\n{daemon.log.read_text()}"
        time.sleep(0.05)


async def all_followers(daemon: Daemon) -> list[int]:
    """The processes of the histories and the notices of all shards, once each has its file."""
    pids: list[int] = []

    def has_all() -> bool:
        pids[:] = [pid for shard in range(1, SHARDS + 1) for pid in followers(daemon, shard)]
        return len(pids) == 2 * SHARDS

    await until(has_all)
    return pids


async def called(receiver: Receiver, ids: set[str]) -> None:
    """Returns when all of these were called."""
    await until(lambda: ids <= {numbered(call.event_id) for call in receiver.calls})


async def test_a_backup_of_one_kind_is_restored_into_the_other_and_back_with_the_notices_that_are_owed(
    servers: NatsCluster, data_dir: Path
) -> None:
    """The way from files to a cluster and back: balances, histories and retries are the same at each end. The endpoint
    refuses until the last daemon serves, which tells everything that happened at each of the three. Histories that hang
    are behind the journal when the copy is made, and whole in it.
    """
    receiver = Receiver(misbehaviour=Misbehaviour(Fault("status", 503)))
    await receiver.start()
    keys: dict[str, object] = {"shards__workers": SHARDS, "shards__bucket_count": 32}
    keys["notify__url"] = f"{receiver.url}/told"
    cluster = daemon_on(servers, data_dir / "host", **keys)
    places = {name: data_dir / name for name in ("files", "back")}
    for folder in places.values():
        folder.mkdir()
    files, files_again = (Daemon(folder, journal__segment_bytes=1 << 20, **keys) for folder in places.values())
    servers.make_all(SHARDS)
    caller, event_ids = Caller(files.rpc_port), set[str]()
    try:
        for number, (running, following) in enumerate([(files, cluster), (cluster, files_again)], 1):
            await asyncio.to_thread(running.start)
            caller.port, caller._rpc = running.rpc_port, None
            await called(receiver, event_ids)
            if running is cluster:
                await caller.check()
                reply = await caller.call("top_up", USERS[0], 1001, {"request_id": "r1"})
                assert reply["replayed"] is True
                for pid in running.worker_pids():
                    os.kill(pid, signal.SIGUSR1)  # a snapshot now
            hanging = await all_followers(running)
            for pid in hanging:
                os.kill(pid, signal.SIGSTOP)
            await caller.round()
            entries = dict.fromkeys(USERS, number)
            if running is files:
                await caller.call("set_credit_limit", USERS[0], 500)
            else:
                entries[USERS[0]] += 1
            event_ids |= {f"{user}:{entry_id}:account-topped_up" for user, entry_id in entries.items()}
            copy = data_dir / f"copy-{number}"
            code, output = await asyncio.to_thread(run, "backup", copy, "--address", running.address)
            assert code == 0, output
            assert "no faults" in output
            assert "is fed at the next start" not in output
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)
            assert running.stop() == 0
            receiver.clear()
            code, output = billing(following, "restore", str(copy))
            assert code == 0, output
            assert f"notices that were still to be told then: {len(event_ids)}" in output
        code, output = billing(cluster, "restore", str(data_dir / "copy-2"))
        assert code == 1, "the data directory is not empty"
        receiver.fault = None
        await asyncio.to_thread(files_again.start)
        caller.port, caller._rpc = files_again.rpc_port, None
        await called(receiver, event_ids)
        assert {numbered(call.event_id) for call in receiver.calls} == event_ids
        await caller.check()
        await caller.round()
        account = await caller.call("get_account", USERS[0])
        assert account["credit_limit_nanos"] == 500
        assert await asyncio.to_thread(files_again.stop) == 0
    finally:
        for daemon in (files, cluster, files_again):
            daemon.kill_all()
        await receiver.close()
