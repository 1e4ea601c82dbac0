"""What surrounds delivery in its tests: obligations that know what is owed and write down what is reported to them.

`FakeObligations` does for cutoffs what the ledger does, in a few lines: an exhaustion owes a cutoff, a top-up takes
back what was not started and owes a restore for what was. The sockets are real.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from billing.expirationd.delivery import Delivery, DeliveryDependencies, DeliverySettings, Obligations, Owed, one_by_one
from billing.expirationd.health import Pace
from billing.trial.faults import Fault, Misbehaviour
from billing.trial.receiver import Receiver
from shards.system.clock import MACHINE_CLOCKS

MS = 10**6
QUICK = Pace(
    waits_ns=(20 * MS, 40 * MS, 60 * MS),
    repeat_ns=60 * MS,
    users_max=4,
    probe_ns=50 * MS,
    fresh_probe_ns=50 * MS,
    retry_after_max_ns=300 * MS,
    rest_max_ns=300 * MS,
)
LONG_S = 60.0  # after which a test that waits is broken


class FakeObligations:
    """Owed cutoffs and restores by user, and every report in order."""

    def __init__(self) -> None:
        self.cutoffs: dict[bytes, list[int]] = {}  # user -> seqs not delivered, oldest first
        self.restores: dict[bytes, int] = {}
        self.classes: dict[bytes, str] = {}  # user -> cutoff class
        self.instants: dict[tuple[bytes, int], int] = {}
        self.reports: list[tuple[str, bytes, int, str, str]] = []  # kind, user, seq, outcome, error
        self.started: set[tuple[bytes, int]] = set()
        self.broken: list[BaseException] = []
        self.seq = 0
        self._reported = asyncio.Event()

    def delivery_of(
        self,
        chosen: DeliverySettings,
        now_ns: Callable[[], int] = MACHINE_CLOCKS.wall_ns,
        may_act: Callable[[], bool] = lambda: True,
    ) -> Delivery:
        """A delivery of these obligations, not started yet."""
        obligations = Obligations(self.owed, one_by_one(self.report), may_act)
        return Delivery(
            obligations, chosen, now_ns, self.failed, DeliveryDependencies(MACHINE_CLOCKS, random.Random(1))
        )

    def exhaust(self, delivery: Delivery, user: bytes) -> int:
        self.seq += 1
        self.instants[user, self.seq] = MACHINE_CLOCKS.wall_ns()
        self.cutoffs.setdefault(user, []).append(self.seq)
        delivery.notify(1, user, class_name=self.classes.get(user, ""))
        return self.seq

    def top_up(self, delivery: Delivery, user: bytes) -> None:
        for seq in self.cutoffs.pop(user, []):
            if (user, seq) in self.started:
                self.restores[user] = seq
        if user in self.restores:
            delivery.notify(1, user, "restore", class_name=self.classes.get(user, ""))

    def owed(self, bucket_id: int, user: bytes) -> Owed | None:
        if user in self.restores:
            kind, seq = "restore", self.restores[user]
        elif self.cutoffs.get(user):
            kind, seq = "cutoff", self.cutoffs[user][0]
        else:
            return None
        instant_ns = self.instants[user, seq]
        return kind, f"{user.decode()}-{seq}-{instant_ns}", seq, instant_ns, 0, instant_ns, self.classes.get(user, "")

    def report(self, kind: str, bucket_id: int, user: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
        self.reports.append((kind, user, seq, outcome, error))
        if outcome == "started" and kind == "cutoff":
            self.started.add((user, seq))
        if outcome == "delivered" and kind == "restore":
            self.restores.pop(user, None)
        elif outcome == "delivered" and seq in self.cutoffs.get(user, []):
            self.cutoffs[user].remove(seq)
        self._reported.set()

    def failed(self, error: BaseException) -> None:
        self.broken.append(error)
        self._reported.set()

    def nothing_owed(self) -> bool:
        return not self.restores and not any(self.cutoffs.values())

    def outcomes(self, user: bytes) -> list[str]:
        return [outcome for _, who, _, outcome, _ in self.reports if who == user]

    def errors(self) -> list[str]:
        return [error for _, _, _, outcome, error in self.reports if outcome == "failed"]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to be so; fails after `LONG_S`."""
        async with asyncio.timeout(LONG_S):
            while not condition():
                self._reported.clear()
                try:
                    await asyncio.wait_for(self._reported.wait(), 0.01)
                except TimeoutError:
                    continue

    async def until_shown(self, delivery: Delivery, connections: int) -> None:
        """Makes calls until the endpoint was seen to answer beside so many silent connections."""
        async with asyncio.timeout(3 * LONG_S):
            while delivery.endpoints[0].shown < connections:
                self.exhaust(delivery, b"calls")
                await self.until(self.nothing_owed)


def settings(url: str, **changes: Any) -> DeliverySettings:
    quick = DeliverySettings(
        url,
        concurrency=4,
        timeout_s=LONG_S,
        connect_timeout_s=LONG_S,
        body_s=0.05,
        warm=1,
        pace=QUICK,
    )
    return quick._replace(**changes)


@asynccontextmanager
async def sending(obligations: FakeObligations, chosen: DeliverySettings) -> AsyncIterator[Delivery]:
    """A delivery that runs; at the end, it must not have failed."""
    delivery = obligations.delivery_of(chosen)
    delivery.start()
    try:
        yield delivery
    finally:
        await delivery.close()
    assert obligations.broken == []


@asynccontextmanager
async def receiving(fault: Fault | None = None, **options: Any) -> AsyncIterator[Receiver]:
    """A receiver that listens on a free port; all calls meet the fault."""
    receiver = Receiver(**({"misbehaviour": Misbehaviour(fault)} | options))
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.close()


class RawEndpoint:
    """An endpoint that sends the given bytes for each request, whatever they are, and keeps what it was sent."""

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers = list(answers)
        self.close_after = close
        self.requests: list[bytes] = []
        self.url = ""

    async def __aenter__(self) -> "RawEndpoint":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, family=socket.AF_INET)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
                if self.close_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
