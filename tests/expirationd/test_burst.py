"""The forecast's warning: more cutoffs are coming in a second than the endpoint was last seen to take."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

from billing.expirationd.delivery import Delivery, DeliveryDependencies, DeliverySettings, Obligations, one_by_one
from billing.expirationd.request import GetTemplate
from billing.ledger import commands as ops
from billing.ledger.entry import event_id
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from billing.worker.periodic_checks import PeriodicChecks
from shards.system.clock import Clocks
from tests.expirationd.late_endpoint import LateEndpoint
from tests.expirationd.world import S
from tests.simulation.loop import Kernel, SimLoop

BUCKET = 1
TAKES = 50  # cutoffs a second: five at a time, each a tenth of a second


class Worker:
    """A ledger, its delivery and its periodic checks on a virtual clock."""

    def __init__(self) -> None:
        self.kernel = Kernel(random.Random(3))
        self.loop = SimLoop(self.kernel, "worker")  # type: ignore[abstract]
        self.machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False))
        self.machine.create(BUCKET)
        self.machine.start(0)
        self.machine.arm(BUCKET)
        self.endpoint = LateEndpoint(self.kernel, answer_s=0.1)
        self.broken: list[BaseException] = []
        self.loop.create_task(self._open())
        self.run(0)

    async def _open(self) -> None:
        def endpoint_of(*_: Any) -> Any:
            return self.endpoint

        def owed(bucket_id: int, user: bytes) -> Any:
            call = self.machine.ledger.owed(bucket_id, user)
            return None if call is None else (*call[:5], call.due_ns, call.class_name.decode())

        def report(kind: str, bucket_id: int, user: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
            op = ops.CUTOFF_STARTED if outcome == "started" else ops.CUTOFF_DELIVERED
            self.command(op, user, seq)

        settings = DeliverySettings("http://slow.example/off", concurrency=5, warm=0)
        clocks = Clocks(self.kernel.boot_ns, self.kernel.wall_ns)
        dependencies = DeliveryDependencies(clocks, random.Random(1), endpoint_of)
        self.delivery = Delivery(
            Obligations(owed, one_by_one(report)), settings, self.now_ns, self.broken.append, dependencies
        )
        self.delivery.start()
        self.checks = PeriodicChecks(
            self.machine, self.delivery, self.now_ns, self.apply, lambda: None, 0.0, clocks.boot_ns
        )
        self.checks.start()

    def now_ns(self) -> int:
        return self.kernel.now_ns

    def apply(self, bucket_id: int, command: Any) -> object:
        return self.machine.apply(bucket_id, command, self.now_ns())

    def command(self, op: int, user: bytes, a: int, b: int = 0, c: int = 0) -> None:
        self.apply(BUCKET, (op, user, a, b, c, b"", b"", b"", b"", b""))

    def run(self, seconds: int) -> None:
        end_ns = self.kernel.now_ns + seconds * S
        self.loop.call_in(seconds * S, lambda: None)
        self.kernel.run(lambda: self.kernel.now_ns >= end_ns and hasattr(self, "checks"), end_ns + S)

    def let_due_happen(self) -> None:
        while self.machine.due(self.now_ns(), 1000):
            pass

    def exhaust(self, count: int) -> None:
        """So many have a cutoff owed now: more than one second of what the endpoint takes."""
        for number in range(count):
            user = b"now_%d" % number
            self.command(ops.TOP_UP, user, 1)
            self.command(ops.DEBIT, user, 1)
            self.delivery.owe(BUCKET, user, "cutoff", self.now_ns())
        self.delivery.rouse()

    def arm(self, name: bytes, count: int, in_s: int) -> int:
        """So many run out in one second; returns which."""
        at_ns = (self.now_ns() // S + in_s) * S + S // 2
        for number in range(count):
            user = name + b"_%d" % number
            self.command(ops.TOP_UP, user, at_ns - self.now_ns())
            self.command(ops.SET_RATE, user, 3600 * S, -1, -1)  # a nano a nanosecond
        return at_ns // S


@pytest.fixture
def worker() -> Any:
    worker_run = Worker()
    yield worker_run
    assert worker_run.broken == []
    assert worker_run.kernel.troubles == []
    worker_run.loop.die()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "that fall due in the second of" in record.getMessage()]


def test_a_burst_beyond_what_the_endpoint_was_seen_to_take_is_warned_of_once(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    worker.exhaust(200)
    worker.run(8)
    assert len(worker.endpoint.requests) == 200
    assert 0.8 * TAKES <= worker.delivery.throughput.per_second <= TAKES
    second = worker.arm(b"many", 3 * TAKES, 600)
    worker.arm(b"few", TAKES // 2, 900)
    worker.run(75)
    (warning,) = warnings(caplog)
    assert f": {3 * TAKES}; the endpoint was last seen to take " in warning
    figures = worker.checks.figures()
    assert (figures["cutoffs_bursts_warned"], figures["cutoffs_peak_per_second"]) == (1, 3 * TAKES)
    assert figures["cutoffs_peak_at_ns"] == second * S
    assert figures["endpoint_takes_per_second"] == worker.delivery.throughput.per_second


def test_no_warning_of_what_the_endpoint_takes_or_where_it_was_never_seen_at_its_limit(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    worker.arm(b"few", TAKES // 2, 600)
    worker.run(75)
    assert worker.checks.figures()["cutoffs_coming_hour"] == TAKES // 2
    assert worker.checks.figures()["endpoint_takes_per_second"] == -1
    worker.exhaust(200)
    worker.run(75)
    assert worker.delivery.throughput.per_second > 0
    assert warnings(caplog) == []
    assert worker.checks.figures()["cutoffs_bursts_warned"] == 0


def test_requests_of_a_burst_are_prepared_before_it_and_those_of_a_few_are_not(worker: Worker) -> None:
    worker.arm(b"few", 100, 2)
    at_ns = worker.arm(b"storm", 400, 6) * S + S // 2
    for _ in range(6):
        worker.run(1)
        worker.let_due_happen()
    saved = [b"storm_%d" % number for number in range(50)]
    for user in saved:
        worker.command(ops.TOP_UP, user, S)
    worker.run(1)
    worker.let_due_happen()
    users = [b"few_%d" % number for number in range(100)] + [b"storm_%d" % number for number in range(50, 400)]
    for user in users:
        worker.delivery.owe(BUCKET, user, "cutoff", at_ns)
    worker.delivery.rouse()
    worker.run(20)
    assert worker.delivery.ahead.found_prepared == 350
    sent = [request.partition(b"webhook-timestamp")[0] for request in worker.endpoint.requests]
    plain = GetTemplate("http://slow.example/off")
    expected = [
        plain.request(user, event_id(user, 1, at_ns), 1, at_ns, 0).partition(b"webhook-timestamp")[0]
        for user in users
        if user.startswith(b"storm")
    ]
    assert sorted(sent)[-350:] == sorted(expected)
    assert len(sent) == len(users)
    assert plain.found_prepared == 0
