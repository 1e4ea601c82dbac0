"""A changed configuration brings another delivery at once, however fast changes come, and none to who ends.

An endpoint that is slow to close holds the former delivery, so that what comes meanwhile meets it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from billing.expirationd.delivery import DeliverySettings
from billing.expirationd.endpoint import Endpoint, Limits
from billing.ledger.ledger import Rules
from billing.worker.dependencies import REAL
from billing.worker.machine import BillingMachine
from billing.worker.outgoing_calls import BucketCalls, OutgoingCalls
from billing.worker.startup_hold import StartupHold
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import RealDisk

FIRST, SECOND, THIRD = (DeliverySettings(f"http://127.0.0.1:9/{name}", warm=0) for name in ("a", "b", "c"))


class SlowToClose(Endpoint):
    """Closes once it may."""

    may_close: asyncio.Event

    async def close(self) -> None:
        await self.may_close.wait()
        await super().close()


class OutgoingCallsHarness:
    """The outgoing calls of a shard without accounts."""

    def __init__(self, directory: Path) -> None:
        self.may_close = asyncio.Event()
        self.endpoints: list[Endpoint] = []
        machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False))
        machine.start(MACHINE_CLOCKS.wall_ns())
        self.broken: list[BaseException] = []
        worker: Any = SimpleNamespace(
            fresh_now_ns=MACHINE_CLOCKS.wall_ns,
            may_act=lambda: True,
            fail=self.broken.append,
            operate=None,
            apply=None,
            wake=lambda: None,
            map=SimpleNamespace(weights={1: 1}),
        )
        hold = StartupHold(RealDisk(), str(directory), -1)
        dependencies = REAL._replace(rng=random.Random(1), endpoint=self.endpoint)
        self.calls = OutgoingCalls(machine, worker, hold, BucketCalls(MACHINE_CLOCKS.boot_ns), FIRST, 0.0, dependencies)

    def endpoint(self, origin: str, limits: Limits, clocks: Clocks, tls: ssl.SSLContext | None) -> Endpoint:
        endpoint = SlowToClose(origin, limits, clocks, tls)
        endpoint.may_close = self.may_close
        self.endpoints.append(endpoint)
        return endpoint

    def open_endpoints(self) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints if not endpoint.closed]

    async def changed(self) -> None:
        """Lets former deliveries close, and waits until they have."""
        self.may_close.set()
        while self.calls._former:
            await asyncio.wait(set(self.calls._former.values()))

    async def close(self) -> None:
        self.may_close.set()
        await self.calls.close()
        assert not self.open_endpoints()
        assert self.broken == []


async def test_the_newest_of_two_changes_counts_and_no_delivery_is_left_behind(tmp_path: Path) -> None:
    harness = OutgoingCallsHarness(tmp_path)
    harness.calls.configure(SECOND)
    await asyncio.sleep(0)
    harness.calls.configure(THIRD)
    assert harness.calls.delivery.settings == THIRD
    await harness.changed()
    assert harness.calls.checks.delivery is harness.calls.delivery
    assert harness.open_endpoints() == harness.calls.delivery.endpoints
    await harness.close()


async def test_a_change_back_while_the_old_delivery_closes_makes_it_anew(tmp_path: Path) -> None:
    harness = OutgoingCallsHarness(tmp_path)
    harness.calls.configure(SECOND)
    await asyncio.sleep(0)
    harness.calls.configure(FIRST)
    await harness.changed()
    assert harness.calls.delivery.settings == FIRST
    assert harness.open_endpoints() == harness.calls.delivery.endpoints
    await harness.close()


async def test_no_delivery_begins_once_the_worker_ends(tmp_path: Path) -> None:
    harness = OutgoingCallsHarness(tmp_path)
    await harness.calls.drain()
    harness.calls.configure(SECOND)
    assert len(harness.endpoints) == 1
    await harness.close()


async def test_a_worker_that_ends_takes_former_deliveries_along(tmp_path: Path) -> None:
    harness = OutgoingCallsHarness(tmp_path)
    harness.calls.configure(SECOND)
    await asyncio.sleep(0)
    harness.calls.configure(THIRD)
    assert len(harness.open_endpoints()) == 3
    await harness.close()
