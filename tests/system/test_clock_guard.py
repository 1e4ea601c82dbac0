"""A host whose clock is wrong takes nothing over and gives up what it has; nobody is charged for its error."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path

import pytest

from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.clock_step import ClockStep
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import WAIT_S, daemon_on, ready_page, wait_said
from tests.system.rpc import Rpc

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

HOUR_S = 3600
NANOS_A_SECOND = 1_000_000_000


class HostWithClock:
    """A host with a wall clock of its own."""

    def __init__(self, log_server: NatsCluster, directory: Path) -> None:
        single = {"cluster__replicas": 1, "cluster__shards": 1, "shards__workers": 1}
        self.daemon = daemon_on(log_server, directory, cluster__node=directory.name, **single)
        self.clock = ClockStep(directory)
        self.daemon.environment = self.clock.environment

    def wait_page(self, words: str) -> None:
        """Returns once /readyz says so."""
        deadline = time.monotonic() + WAIT_S
        while words not in (page := ready_page(self.daemon))[1]:
            assert time.monotonic() < deadline, f"{words}: {page}\n{self.log_text}"
            time.sleep(0.05)

    def wait_said(self, words: str) -> None:
        wait_said(self.daemon, words)

    async def wait_gone(self) -> int:
        """The exit code."""
        assert self.daemon.process is not None
        code = await asyncio.to_thread(self.daemon.process.wait, WAIT_S)
        self.daemon.process = None
        return code

    def page(self, path: str) -> str:
        """A page of the admin server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.daemon.admin_port}{path}", timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    @property
    def log_text(self) -> str:
        return self.daemon.log.read_text()


async def test_a_host_an_hour_off_serves_nothing_until_its_clock_is_right(
    log_server: NatsCluster, data_dir: Path
) -> None:
    a, b = (HostWithClock(log_server, data_dir / name) for name in ("a", "b"))
    with killed_in_the_end(a.daemon, b.daemon):
        log_server.make_all(1)
        await asyncio.to_thread(a.daemon.start)
        rpc = await Rpc.connect(a.daemon.rpc_port)
        await rpc.ask("top_up", "user_01", 1000 * NANOS_A_SECOND)
        account = await rpc.ask("set_rate", "user_01", NANOS_A_SECOND)

        b.clock.to(HOUR_S)
        b.daemon.launch()
        await asyncio.to_thread(b.wait_page, "a serves; the clock of this host is unfit")
        b.wait_said("the clock of this host is unfit to serve by")

        a.clock.to(HOUR_S)  # as b's: now nobody has a clock to go by
        assert await a.wait_gone() == 75
        assert "gives its shards up because of its clock: it is 3" in a.log_text
        await asyncio.to_thread(b.wait_page, "stands by: the clock of this host is unfit")

        b.clock.to(0)
        await asyncio.to_thread(b.daemon.wait_ready, WAIT_S)
        rpc = await Rpc.connect(b.daemon.rpc_port)
        now = await rpc.ask("get_account", "user_01")
        assert now["state"] == "active"
        assert now["exhausts_at_ns"] == account["exhausts_at_ns"], "nobody is charged for an hour"
        assert account["at_ns"] < now["at_ns"] < account["at_ns"] + HOUR_S * NANOS_A_SECOND // 2

        b.clock.may_be_wrong_by(200_000)
        await asyncio.to_thread(b.wait_said, "the clock of this host is doubtful: the kernel says")
        assert ready_page(b.daemon)[0] == 200
        assert "The clock of this host is doubtful: the kernel says" in await asyncio.to_thread(b.page, "/")
        metrics = await asyncio.to_thread(b.page, "/metrics")
        for line in ("error_seconds 0.2", "error_limit_seconds 0.25", "kept 1.0"):
            assert f"\nbilling_clock_{line}\n" in metrics, metrics
        assert "\nbilling_stands_by 0.0\n" in metrics
        b.clock.may_be_wrong_by(300_000)
        assert await b.wait_gone() == 75
        assert "because of its clock: the kernel says that it may be wrong by 0.300 s" in b.log_text
