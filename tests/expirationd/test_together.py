"""Verdicts that come together: reported together, each with its own consequence, before any further call begins."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from billing.expirationd.delivery import Delivery, DeliveryDependencies, Obligations, Report
from billing.expirationd.health import FAILED, OK
from billing.expirationd.line import Verdict
from shards.system.clock import MACHINE_CLOCKS
from tests.expirationd.fake_obligations import FakeObligations, settings

DONE: Verdict = (OK, "", -1)
REFUSED: Verdict = (FAILED, "status 500", -1)


class TogetherEndpoint:
    """An endpoint with any number of connections; the test says what it answers, and to whom at once."""

    def __init__(self) -> None:
        self.endpoint = self  # it is its own line
        self.is_taking = False
        self.on_taken: Callable[[], object] = lambda: None
        self.asked: dict[bytes, Callable[[Verdict], None]] = {}
        self.kept = 0

    def start(self) -> None:
        """Nothing has to be looked after."""

    def spare(self) -> TogetherEndpoint:
        return self

    def keep(self, line: TogetherEndpoint) -> None:
        self.kept += 1

    def ask(self, line: Any, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        self.asked[request.partition(b"user_id=")[2].partition(b"&")[0]] = on_verdict

    def answer(self, verdicts: dict[bytes, Verdict]) -> None:
        self.is_taking = True
        for user, verdict in verdicts.items():
            self.asked.pop(user)(verdict)
        self.is_taking = False
        self.on_taken()

    async def close(self) -> None:
        """Nothing is open."""


class Together(FakeObligations):
    """Keeps what is reported by one call. `may_act`: whether it owns the accounts."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint: Any = TogetherEndpoint()
        self.parts: list[list[tuple[bytes, str]]] = []
        self.asked_again: list[bytes] = []
        self.may_act = True

    def report_all(self, reports: Sequence[Report], now_ns: int) -> list[bool]:
        self.parts.append([(user, outcome) for _, _, user, _, outcome, _ in reports])
        for one in reports:
            self.report(*one, now_ns)
        return [bool(self.cutoffs.get(user)) for _, _, user, _, _, _ in reports]

    def owed(self, bucket_id: int, user: bytes) -> Any:
        self.asked_again.append(user)
        return super().owed(bucket_id, user)


@pytest.fixture
async def together() -> AsyncIterator[tuple[Together, Delivery]]:
    obligations = Together()
    dependencies = DeliveryDependencies(MACHINE_CLOCKS, random.Random(1), lambda *_: obligations.endpoint)
    delivery = Delivery(
        Obligations(obligations.owed, obligations.report_all, lambda: obligations.may_act),
        settings("http://127.0.0.1:9/off", concurrency=3),
        MACHINE_CLOCKS.wall_ns,
        obligations.failed,
        dependencies,
    )
    delivery.start()
    yield obligations, delivery
    await delivery.close()
    assert obligations.broken == []


def begin(obligations: Together, delivery: Delivery) -> None:
    """Five cutoffs are owed; three may be called at once."""
    for user in (b"a", b"b", b"c", b"d", b"e"):
        obligations.exhaust(delivery, user)
    delivery.rouse()


def outcomes(users: bytes, outcome: str) -> list[tuple[bytes, str]]:
    return [(bytes([user]), outcome) for user in users]


async def test_all_that_begin_in_a_turn_are_reported_before_the_first_is_written(
    together: tuple[Together, Delivery],
) -> None:
    obligations, delivery = together
    begin(obligations, delivery)
    assert obligations.parts == [outcomes(b"abc", "started")]
    assert list(obligations.endpoint.asked) == [b"a", b"b", b"c"]


async def test_each_verdict_has_its_own_consequence_and_what_follows_begins_behind_the_last(
    together: tuple[Together, Delivery],
) -> None:
    obligations, delivery = together
    begin(obligations, delivery)
    obligations.asked_again.clear()
    obligations.endpoint.answer({b"a": DONE, b"c": REFUSED, b"b": DONE})
    assert obligations.parts[1:] == [
        [(b"a", "delivered"), (b"c", "failed"), (b"b", "delivered")],
        outcomes(b"de", "started"),
    ]
    assert obligations.asked_again == [b"d", b"e"], "nobody is asked for again who owes nothing any more"
    assert (delivery.delivered, delivery.failures, delivery.last_error) == (2, 1, "status 500")
    obligations.endpoint.answer({b"e": DONE, b"d": DONE})
    await obligations.until(lambda: b"c" in obligations.endpoint.asked)
    obligations.endpoint.answer({b"c": DONE})
    assert len(delivery.outbox) == 0
    assert obligations.outcomes(b"c") == ["started", "failed", "started", "delivered"]


async def test_one_with_another_cutoff_owed_is_called_again(together: tuple[Together, Delivery]) -> None:
    obligations, delivery = together
    begin(obligations, delivery)
    second = obligations.exhaust(delivery, b"a")
    obligations.endpoint.answer({b"a": DONE, b"b": DONE})
    await obligations.until(lambda: b"a" in obligations.endpoint.asked)
    assert ("cutoff", b"a", second, "started", "") in obligations.reports


async def test_what_comes_while_another_owner_may_live_is_written_later(together: tuple[Together, Delivery]) -> None:
    obligations, delivery = together
    obligations.may_act = False
    begin(obligations, delivery)
    assert (obligations.parts, obligations.endpoint.asked, obligations.endpoint.kept) == ([], {}, 3)
    obligations.may_act = True
    await obligations.until(lambda: len(obligations.endpoint.asked) == 3)
    assert delivery.started == 3


async def test_verdicts_behind_the_end_change_nothing(together: tuple[Together, Delivery]) -> None:
    obligations, delivery = together
    begin(obligations, delivery)
    endpoint = obligations.endpoint
    endpoint.is_taking = True
    endpoint.asked.pop(b"a")(DONE)
    await delivery.close()
    endpoint.answer({b"b": DONE})
    assert obligations.parts == [outcomes(b"abc", "started")]
