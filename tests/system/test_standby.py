"""Several hosts over one log on three real nats-servers: one serves, the others stand by, and no death costs money."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.trial.receiver import Receiver
from shards.system.clock import MACHINE_CLOCKS
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.rpc import Lost, Rpc
from tests.system.test_jetstream import Caller, billing, daemon_on, servers

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)
__all__ = ["servers"]

WAIT_S = 120.0


@pytest.fixture
def hosts(servers: NatsCluster, data_dir: Path) -> Iterator[list[Daemon]]:
    """Two hosts; nothing runs yet."""
    made = [daemon_on(servers, data_dir / name, cluster__node=name) for name in ("a", "b")]
    code, said = billing(made[0], "cluster", "init")
    assert code == 0, said
    yield made
    for host in made:
        if host.process is not None:
            host.kill()


def ready_page(host: Daemon) -> tuple[int, str]:
    """Status and text of /readyz; (0, "") where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{host.admin_port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_standing_by(host: Daemon, server: str) -> None:
    """Returns when /readyz says that this host stands by since that other one serves."""
    deadline = time.monotonic() + WAIT_S
    while f"stands by: {server} serves" not in (page := ready_page(host))[1]:
        assert time.monotonic() < deadline, f"{page}\n{host.log.read_text()}"
        time.sleep(0.05)
    assert page[0] == 503


async def is_refused(host: Daemon) -> bool:
    """Whether clients find nobody there."""
    try:
        rpc = await Rpc.connect(host.rpc_port)
        await rpc.call("ping")
    except (Lost, OSError):
        return True
    return False


async def test_a_host_that_dies_is_followed_by_another_one(hosts: list[Daemon]) -> None:
    a, b = hosts
    a.start()
    caller = Caller(a.rpc_port)
    await caller.round()
    b.launch()
    wait_standing_by(b, "a")
    assert await is_refused(b)
    code, said = billing(b, "cluster", "status")
    assert code == 0, said
    assert said.startswith("a serves\nshard 1: "), said

    a.kill()
    b.wait_ready(WAIT_S)
    caller.port, caller._rpc = b.rpc_port, None
    await caller.check()
    await caller.round()

    a.launch()  # it comes back, and finds that another one serves
    wait_standing_by(a, "b")
    await caller.round()
    assert b.stop() == 0  # a planned end gives everything back
    a.wait_ready(WAIT_S)
    caller.port, caller._rpc = a.rpc_port, None
    await caller.check()
    await caller.round()
    assert a.stop() == 0


async def test_a_host_that_was_stopped_and_wakes_up_gives_everything_up(hosts: list[Daemon]) -> None:
    a, b = hosts
    a.start()
    caller = Caller(a.rpc_port)
    await caller.round()
    b.launch()
    wait_standing_by(b, "a")
    a.signal(signal.SIGSTOP)
    b.wait_ready(WAIT_S)
    caller.port, caller._rpc = b.rpc_port, None
    await caller.check()
    await caller.round()
    a.signal(signal.SIGCONT)
    assert a.process is not None
    assert await asyncio.to_thread(a.process.wait, WAIT_S) == 75
    a.process = None
    await caller.check()
    assert b.stop() == 0


async def test_a_cutoff_whose_host_died_before_its_instant_is_called_by_the_other(
    servers: NatsCluster,
    data_dir: Path,
) -> None:
    receiver = Receiver("127.0.0.1", 0)
    await receiver.start()
    url = f"{receiver.url}/off"
    a, b = (daemon_on(servers, data_dir / name, cluster__node=name, cutoff__url=url) for name in ("a", "b"))
    try:
        code, said = billing(a, "cluster", "init")
        assert code == 0, said
        await asyncio.to_thread(a.start)
        b.launch()
        await asyncio.to_thread(wait_standing_by, b, "a")
        rpc = await Rpc.connect(a.rpc_port)
        await rpc.ask("top_up", "user_01", 5_000_000_000)
        rated = await rpc.ask("set_rate", "user_01", 1_000_000_000)  # a coin a second
        a.kill()
        killed_ns = MACHINE_CLOCKS.wall_ns()
        await asyncio.to_thread(b.wait_ready, WAIT_S)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while not receiver.calls:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        later = await Rpc.connect(b.rpc_port)
        told = await later.ask("get_account", "user_01")
        assert told["state"] == "exhausted"
        instant_ns = rated["exhausts_at_ns"]
        assert {(call.event_id, call.exhausted_at_ns) for call in receiver.calls} == {
            (f"user_01:1:{instant_ns}", instant_ns)
        }
        assert killed_ns < instant_ns, "the host that died called nobody"
    finally:
        for host in (a, b):
            if host.process is not None:
                host.kill()
        await receiver.close()
