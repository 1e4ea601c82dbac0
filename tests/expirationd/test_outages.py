"""What is told of an endpoint that takes no calls, and of calls that wait, in virtual time."""

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from billing.expirationd.delivery import Delivery, DeliveryDependencies, DeliverySettings, Obligations, Owed, one_by_one
from shards.system.clock import Clocks
from tests.expirationd.late_endpoint import LateEndpoint
from tests.simulation.loop import Kernel, SimLoop

S = 10**9
ORIGIN = "http://away.example"


class SlowEndpoint(LateEndpoint):
    """Connections to it take three seconds to come about."""

    async def connect(self) -> LateEndpoint:
        await asyncio.sleep(3)
        return self


class RunningDelivery:
    """A delivery of its own world, for users who are owed one cutoff each."""

    def __init__(self) -> None:
        self.kernel = Kernel(random.Random(5))
        self.loop = SimLoop(self.kernel, "worker")  # type: ignore[abstract]
        self.owed: dict[bytes, int] = {}
        self.broken: list[BaseException] = []
        self.delivery: Delivery = None  # type: ignore[assignment]  # as soon as it runs

    def start(self, endpoint: LateEndpoint, **changes: Any) -> None:
        """Begins to send to this endpoint."""

        async def start() -> None:
            settings = DeliverySettings(f"{ORIGIN}/off", warm=0, **changes)
            self.delivery = Delivery(
                Obligations(self._owed_of, one_by_one(self._report)),
                settings,
                lambda: self.kernel.now_ns,
                self.broken.append,
                DeliveryDependencies(
                    Clocks(self.kernel.boot_ns, self.kernel.wall_ns),
                    random.Random(1),
                    lambda *_: endpoint,  # type: ignore[arg-type]
                ),
            )
            self.delivery.start()

        self.loop.create_task(start())
        self.run(1)

    def exhaust(self, user: bytes) -> None:
        """A cutoff of this user is owed from now on."""
        self.owed[user] = self.kernel.now_ns
        self.delivery.owe(1, user, "cutoff", self.kernel.now_ns)
        self.loop.call_soon(self.delivery.rouse)

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        end_ns = self.kernel.now_ns + int(seconds * S)
        self.loop.call_in(int(seconds * S), lambda: None)
        self.kernel.run(lambda: self.kernel.now_ns >= end_ns, end_ns + S)

    def _owed_of(self, bucket_id: int, user: bytes) -> Owed | None:
        since_ns = self.owed.get(user)
        return None if since_ns is None else ("cutoff", f"{user.decode()}-1", 1, since_ns, 0, since_ns, "")

    def _report(self, kind: str, bucket_id: int, user: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
        if outcome == "delivered":
            del self.owed[user]


@pytest.fixture
def running() -> Iterator[RunningDelivery]:
    run = RunningDelivery()
    yield run
    assert run.broken == []
    assert run.kernel.troubles == []
    run.loop.die()


def test_an_outage_is_logged_as_it_begins_once_a_minute_with_how_many_wait_and_as_it_ends(
    running: RunningDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "billing.expirationd")
    running.start(LateEndpoint(running.kernel, back_ns=running.kernel.now_ns + 150 * S))
    began_ns = running.kernel.now_ns
    for number in range(7):
        running.exhaust(b"early%d" % number)
    running.run(70)
    for number in range(5):
        running.exhaust(b"late%d" % number)
    running.run(70)
    (outage,) = running.delivery.figures()["endpoint_outages"]
    assert (outage["endpoint"], outage["error"], outage["waiting"]) == (ORIGIN, "connection refused", 12)
    assert began_ns <= outage["since_ns"] <= began_ns + S
    assert running.delivery.figures()["users_waiting"] == 12
    running.run(70)
    assert running.owed == {}
    assert running.delivery.figures()["endpoint_outages"] == []
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in messages] == ["WARNING", "WARNING", "WARNING", "INFO"]
    texts = [text for _, text in messages]
    assert texts[:3] == [
        f"{ORIGIN} takes no calls (connection refused) and is probed; users who wait: 7",
        f"{ORIGIN} has taken no calls for 60 s (connection refused) and is probed; users who wait: 7",
        f"{ORIGIN} has taken no calls for 120 s (connection refused) and is probed; users who wait: 12",
    ]
    assert texts[3].startswith(f"{ORIGIN} takes calls again after 1")
    assert 145 <= float(texts[3].split(" after ")[1].split(" s:")[0]) <= 155


def test_lateness_holds_what_still_waits_also_for_its_connection(running: RunningDelivery) -> None:
    running.start(SlowEndpoint(running.kernel), concurrency=2)
    assert running.delivery.figures()["cutoffs_waiting_ns"] == 0
    running.exhaust(b"first")
    running.exhaust(b"second")
    running.run(1)
    assert running.delivery.figures()["calls_in_flight"] == 2
    assert 0.9 * S < running.delivery.figures()["cutoffs_waiting_ns"] <= S
    running.exhaust(b"third")
    running.run(3)  # the first two have been called, and the third has waited for its turn
    assert sorted(running.owed) == [b"third"]
    assert 2.9 * S < running.delivery.figures()["cutoffs_waiting_ns"] <= 3 * S
    running.run(4)
    assert running.owed == {}
    assert running.delivery.figures()["cutoffs_waiting_ns"] == 0


def test_a_call_that_has_no_answer_yet_is_no_first_call_that_waits(running: RunningDelivery) -> None:
    running.start(LateEndpoint(running.kernel, answer_s=5.0), concurrency=2)
    running.exhaust(b"asked")
    running.run(3)
    assert running.delivery.figures()["calls_in_flight"] == 1
    assert running.delivery.figures()["cutoffs_waiting_ns"] == 0
    running.run(3)
    assert running.owed == {}
