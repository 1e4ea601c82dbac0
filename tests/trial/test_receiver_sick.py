"""The trial receiver is sick for some users, answers oddly, or serves one connection at a time: delivery copes."""

from __future__ import annotations

import pytest

from billing.expirationd.endpoint import FEW
from billing.trial.faults import ODD, Fault, parse_fault
from tests.expirationd.fake_obligations import FakeObligations, receiving, sending, settings

USERS = [f"u{number}" for number in range(40)]


def sick_of(fault: Fault) -> set[str]:
    return {user for user in USERS if fault.concerns(user)}


def test_a_share_of_the_users_is_sick_and_always_the_same_ones() -> None:
    few, many = sick_of(parse_fault("hang@0.1")), sick_of(parse_fault("hang@0.5"))
    assert 0 < len(few) < len(many) < len(USERS)
    assert few < many
    assert sick_of(Fault("hang")) == set(USERS)


def test_groups_of_users_are_sick_each_in_its_own_way_and_nobody_in_two() -> None:
    mixed = parse_fault("hang@0.2+status=409:3600@0.2+gateway=5000@0.2")
    met = {user: fault.name for user in USERS if (fault := mixed.of(user)) is not None}
    assert {user for user, name in met.items() if name == "hang"} == sick_of(parse_fault("hang@0.2"))
    assert set(met.values()) == {"hang", "status", "gateway"}
    assert set(met) == sick_of(mixed)
    assert 0 < len(met) < len(USERS)


@pytest.mark.parametrize("text", ["hang+reset@0.5", "hang@0.6+reset@0.6", "refuse@0.1+hang@0.1", "hang@0.1+"])
def test_groups_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_fault(text)


async def test_a_gateway_answers_504_in_its_own_time() -> None:
    obligations, fault = FakeObligations(), parse_fault("gateway=20")
    async with receiving(fault=fault) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: obligations.errors() != [])
        assert obligations.errors()[0] == "status 504"
        receiver.fault = None
        await obligations.until(obligations.nothing_owed)


@pytest.mark.parametrize(
    "text",
    ["hang@0.25", "gateway=50@0.1+reset@0.1+hang@0.1", "status=409:3600@0.25", "reset@0.25", "drip=50@0.25"],
)
async def test_sick_users_alone_are_not_delivered(text: str) -> None:
    obligations, fault = FakeObligations(), parse_fault(text)
    async with (
        receiving(fault=fault) as receiver,
        sending(obligations, settings(receiver.url, timeout_s=0.3)) as delivery,
    ):
        for user in USERS:
            obligations.exhaust(delivery, user.encode())
        sick = sick_of(fault)
        await obligations.until(lambda: {user.decode() for user, owed in obligations.cutoffs.items() if owed} == sick)
        receiver.fault = None
        if "3600" not in text:
            await obligations.until(obligations.nothing_owed)


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_answer_with_2xx_is_a_success(name: str) -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault(name)) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        for user in USERS:
            obligations.exhaust(delivery, user.encode())
        await obligations.until(obligations.nothing_owed)
        assert obligations.errors() == []
        assert len(receiver.calls) == len(USERS)


async def test_a_receiver_that_serves_one_connection_at_a_time_gets_every_call() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("one-at-a-time")) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        for user in USERS:
            obligations.exhaust(delivery, user.encode())
        await obligations.until(obligations.nothing_owed)
        for _ in range(5):
            obligations.exhaust(delivery, b"alone")
            await obligations.until(obligations.nothing_owed)
        assert obligations.errors() == []


async def test_calls_that_hang_take_no_turn_from_others_where_a_server_was_taken_for_one_of_few() -> None:
    obligations, fault = FakeObligations(), parse_fault("hang@0.5")
    sick = sick_of(fault)
    limits = dict(concurrency=len(USERS), timeout_s=600.0)
    async with receiving(fault=fault) as receiver, sending(obligations, settings(receiver.url, **limits)) as delivery:
        endpoint = delivery.endpoints[0]
        endpoint.serves = FEW  # as a machine may make it look that stands still again and again
        for user in sorted(USERS, key=lambda user: user not in sick):  # who hangs comes first
            obligations.exhaust(delivery, user.encode())
        await obligations.until(lambda: {user.decode() for user, owed in obligations.cutoffs.items() if owed} == sick)
        assert endpoint.serves != FEW, "it answered beside calls that it had before: it serves more"
